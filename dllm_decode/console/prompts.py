"""Reading prompts: a text, a file, standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_decode.errors import ConfigError, DllmDecodeError

STANDARD_INPUT = "-"


class PromptsError(DllmDecodeError):
    """A prompts file that cannot be read, or a line in it that is no prompt."""


@dataclass(frozen=True)
class Asked:
    """One prompt.

    content: a text or a chat; source: where it came from, for messages; max_new_tokens, seed,
    parameters: what its line asks for, None where it does not; see `Request`;
    chat_template_kwargs: what the chat template is given beside the messages;
    continue_final_message: whether the last message of a chat is continued, None: if it is the
    assistant's.
    """

    content: str | list[dict[str, Any]]
    source: str
    max_new_tokens: int | None = None
    seed: int | None = None
    parameters: dict[str, float] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None

    @property
    def title(self) -> str:
        """The text, or the last message of the chat, on one line."""
        text = self.content if isinstance(self.content, str) else self.content[-1]["content"]
        return " ".join(text.split())


def read_prompts(name: str) -> list[Asked]:
    """All prompts of a file.

    name: a `.jsonl` file (one object per line with `prompt`, a text, or `messages`, a chat, and if
    wanted `max_new_tokens`, `seed`, `parameters`, an object of numbers, `chat_template_kwargs`, an
    object, and `continue_final_message`, true or false), any other file (one
    prompt per line, blank lines do not count), or `-` for standard input (JSON lines where the
    first line starts with a brace). Raises `PromptsError` naming file and line.
    """
    lines = _read(name).splitlines()
    first = next((line for line in lines if line.strip()), "")
    as_json = name.endswith(".jsonl") or (name == STANDARD_INPUT and first.lstrip().startswith("{"))
    label = "standard input" if name == STANDARD_INPUT else name
    found = list(_parse(lines, label, as_json))
    if not found:
        raise PromptsError(f"{label} holds no prompts")
    return found


def _read(name: str) -> str:
    if name == STANDARD_INPUT:
        return sys.stdin.read()
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise PromptsError(f"cannot read the prompts file {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise PromptsError(f"the prompts file {name} is not UTF-8 text: {error.reason}") from None


def _parse(lines: list[str], label: str, as_json: bool) -> Iterator[Asked]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            source = f"{label}, line {number}"
            yield _from_json(line, source) if as_json else Asked(line.strip(), source)


def _from_json(line: str, source: str) -> Asked:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise PromptsError(f"{source}: not a JSON document ({error})") from None
    if not isinstance(record, dict) or not ({"prompt", "messages"} & set(record)):
        raise PromptsError(f"{source}: needs an object with the key prompt or messages")
    chat = "messages" in record
    return Asked(
        _chat(record["messages"], source) if chat else _text(record["prompt"], source),
        source,
        _count(record, "max_new_tokens", 1, source),
        _count(record, "seed", 0, source),
        _parameters(record.get("parameters"), source),
        _of_type(record, "chat_template_kwargs", dict, "an object", source),
        _of_type(record, "continue_final_message", bool, "true or false", source),
    )


def _count(record: dict[str, Any], name: str, minimum: int, source: str) -> int | None:
    value = record.get(name)
    if value is not None and (type(value) is not int or value < minimum):
        raise PromptsError(f"{source}: {name} must be a whole number >= {minimum}, got {value!r}")
    return value


def _of_type(record: dict[str, Any], name: str, kind: type, words: str, source: str) -> Any:
    value = record.get(name)
    if value is not None and not isinstance(value, kind):
        raise PromptsError(f"{source}: {name} must be {words}, got {value!r}")
    return value


def _parameters(value: Any, source: str) -> dict[str, float] | None:
    numbers = isinstance(value, dict) and all(type(n) in (int, float) for n in value.values())
    if value is not None and not numbers:
        raise PromptsError(
            f"{source}: parameters must be an object of numbers, e.g. "
            f'{{"strategy.select.threshold": 0.8}}, got {value!r}'
        )
    return None if value is None else dict(value)


def _text(value: Any, source: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PromptsError(f"{source}: prompt must be a text that is not empty, got {value!r}")
    return value


def _chat(value: Any, source: str) -> list[dict[str, Any]]:
    from dllm_decode.models.chat import plain_messages

    try:
        return plain_messages(value)
    except ConfigError as error:
        raise PromptsError(f"{source}: messages: {error}") from None


def one_prompt(text: str) -> list[Asked]:
    """The prompt of the command line; raises `ConfigError` if it is empty."""
    if not text.strip():
        raise ConfigError('prompt is empty; give prompt="...", or prompts=FILE, or neither')
    return [Asked(text, "prompt")]
