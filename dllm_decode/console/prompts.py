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
_JSON_LINES, _JSON, _TEXT = (".jsonl", ".ndjson"), (".json",), ("", ".txt", ".text", ".md")
_MOST_SEED = 2**63 - 1


class PromptsError(DllmDecodeError):
    """A prompts file that cannot be read, or a line in it that is no prompt."""


@dataclass(frozen=True)
class GivenPrompt:
    """One prompt.

    Attributes:
        content: A text or a chat.
        source: Where it came from, for messages.
        max_new_tokens: What its line asks for, None where it does not; likewise the others.
        seed: Of its draws.
        parameters: Request parameters, see `Request`.
        chat_template_kwargs: What the chat template is given beside the messages.
        continue_final_message: Whether the last message of a chat is continued, None: if it is the
            assistant's.

    Examples:
        >>> GivenPrompt("Sort: Eve, Ada.", source="prompts.jsonl, line 1", max_new_tokens=16).title
        'Sort: Eve, Ada.'
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
        return " ".join(str(text or "").split())


def read_prompts(name: str) -> list[GivenPrompt]:
    """All prompts of a file.

    Lines end at a line feed and nowhere else. In a `.jsonl` file each is an object with `prompt`, a
    text, or `messages`, a chat, and if wanted `max_new_tokens`, `seed`, `parameters`, an object of
    numbers, `chat_template_kwargs`, an object, and `continue_final_message`, true or false; a
    `.json` file holds a list of such objects, or of texts. In a text file each line is a prompt, as
    it is, and blank ones do not count.

    Args:
        name: The file; `-` is standard input, JSON lines where it starts with a brace, a JSON list
            where it starts with a bracket.

    Raises:
        PromptsError: The file cannot be read or is none of these; names file and line.
        ConfigError: The name is empty.
    """
    if not name:
        raise ConfigError(
            "prompts names no file, got an empty text; give prompts=FILE or prompts=-"
        )
    label = "standard input" if name == STANDARD_INPUT else name
    text = _read(name)
    kind = Path(name).suffix.lower()
    if name == STANDARD_INPUT:
        kind = {"{": ".jsonl", "[": ".json"}.get(text.lstrip()[:1], ".txt")
    if kind in _JSON:
        found = list(_from_document(text, label))
    elif kind in (*_JSON_LINES, *_TEXT):
        found = list(_from_lines(text, label, kind in _JSON_LINES))
    else:
        raise PromptsError(
            f"a prompts file is called .jsonl, .json or .txt, got {name}; if each of its lines is "
            f"a prompt, give them on standard input: prompts=- < {name}"
        )
    if not found:
        raise PromptsError(f"{label} holds no prompts")
    return found


def prompts_to_learn_from(name: str) -> list[GivenPrompt]:
    """The same for a training, whose decodes all have the settings of the command line.

    Args:
        name: See `read_prompts`.

    Raises:
        PromptsError: As there, and for a line with a seed or parameters of its own.
    """
    found = read_prompts(name)
    for prompt in found:
        for key in ("seed", "parameters"):
            if getattr(prompt, key) is not None:
                raise PromptsError(
                    f"{prompt.source}: a training takes no {key} of a single prompt; leave it out "
                    "and set it for all on the command line"
                )
    return found


def _read(name: str) -> str:
    """The text of a file, without a byte order mark."""
    try:
        if name == STANDARD_INPUT:
            if sys.stdin is None:
                raise PromptsError("prompts=- reads standard input, which is closed")
            # the bytes, where there are any: their encoding does not depend on the terminal's
            stream = getattr(sys.stdin, "buffer", None)
            return sys.stdin.read() if stream is None else stream.read().decode("utf-8-sig")
        return Path(name).expanduser().read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise PromptsError(f"cannot read the prompts file {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise PromptsError(f"the prompts file {name} is not UTF-8 text: {error.reason}") from None


def _from_lines(text: str, label: str, as_json: bool) -> Iterator[GivenPrompt]:
    for number, line in enumerate(text.split("\n"), start=1):
        source = f"{label}, line {number}"
        line = line.removesuffix("\r")
        if as_json and line.strip():
            yield _from_record(_parsed(line, source), source)
        elif line.strip():
            yield GivenPrompt(_text(_not_json(line, source), source), source)


def _not_json(line: str, source: str) -> str:
    """A line of text; raises `PromptsError` for JSON in a file that is not called so."""
    if line.lstrip().startswith("{"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return line
        if isinstance(record, dict) and {"prompt", "messages"} & set(record):
            raise PromptsError(
                f"{source}: is a JSON object, which the name of the file does not say; call it "
                "....jsonl"
            )
    return line


def _from_document(text: str, label: str) -> Iterator[GivenPrompt]:
    """A list of prompts, or one; lines of JSON documents are read as such."""
    try:
        document = _parsed(text, label)
    except PromptsError:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) < 2 or not all(line.lstrip().startswith("{") for line in lines):
            raise
        yield from _from_lines(text, label, True)
        return
    entries = document if isinstance(document, list) else [document]
    for number, entry in enumerate(entries, start=1):
        source = f"{label}, entry {number}"
        if isinstance(entry, str):
            yield GivenPrompt(_text(entry, source), source)
        else:
            yield _from_record(entry, source)


def _parsed(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptsError(f"{source}: not a JSON document ({error})") from None


def _from_record(record: Any, source: str) -> GivenPrompt:
    if not isinstance(record, dict) or not ({"prompt", "messages"} & set(record)):
        raise PromptsError(f"{source}: needs an object with the key prompt or messages")
    if {"prompt", "messages"} <= set(record):
        raise PromptsError(f"{source}: prompt and messages exclude each other; give one of them")
    chat = "messages" in record
    return GivenPrompt(
        _chat(record["messages"], source) if chat else _text(record["prompt"], source),
        source,
        _count(record, "max_new_tokens", 1, source),
        _count(record, "seed", 0, source, _MOST_SEED),
        _parameters(record.get("parameters"), source),
        _of_type(record, "chat_template_kwargs", dict, "an object", source),
        _of_type(record, "continue_final_message", bool, "true or false", source),
    )


def _count(
    record: dict[str, Any], name: str, minimum: int, source: str, most: int | None = None
) -> int | None:
    value = record.get(name)
    if value is not None and (type(value) is not int or value < minimum):
        raise PromptsError(f"{source}: {name} must be a whole number >= {minimum}, got {value!r}")
    if value is not None and most is not None and value > most:
        raise PromptsError(f"{source}: {name} must be at most {most}, got {value!r}")
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
    return _whole(value, source)


def _whole(text: str, source: str) -> str:
    """A text without halves of characters, which no file and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptsError(
            f"{source}: holds half a character (a lone surrogate, {text[error.start]!a})"
        ) from None
    return text


def _chat(value: Any, source: str) -> list[dict[str, Any]]:
    from dllm_decode.models.chat import plain_messages

    try:
        _whole(json.dumps(value, ensure_ascii=False), source)
        return plain_messages(value)
    except ConfigError as error:
        raise PromptsError(f"{source}: messages: {error}") from None


def one_prompt(text: str) -> list[GivenPrompt]:
    """The prompt of the command line; raises `ConfigError` if it is empty."""
    if not text.strip():
        raise ConfigError('prompt is empty; give prompt="...", or prompts=FILE, or neither')
    return [GivenPrompt(_whole(text, "prompt"), "prompt")]
