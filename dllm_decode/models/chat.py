"""Conversations: messages in every usual form, as the plain texts that chat templates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dllm_decode.errors import ConfigError

Message = dict[str, Any]


def plain_messages(messages: Any) -> list[Message]:
    """The messages of a conversation with every content as one text.

    A content may be a text, a list of parts `{"type": "text", "text": ...}`, which become lines,
    or None, which is an empty text. Further keys (`name`, `reasoning_content`, ...) go to the
    template as they are.

    Args:
        messages: Mappings with `role` and `content`.

    Raises:
        ConfigError: A message that is none, with its number and what is wrong.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ConfigError(
            f"a chat is a list of messages with the keys role and content, got {_short(messages)}"
        )
    return [_message(message, number) for number, message in enumerate(messages)]


def _message(message: Any, number: int) -> Message:
    where = f"message {number} of the chat"
    if not isinstance(message, Mapping):
        raise ConfigError(
            f"{where} must be an object; a chat message has the keys role and content, "
            f"got {_short(message)}"
        )
    for key in ("role", "content"):
        if key not in message:
            raise ConfigError(
                f"{where} has no {key}; a chat message has the keys role and content, "
                f"got {_short(message)}"
            )
    role = message["role"]
    if not isinstance(role, str) or not role.strip():
        raise ConfigError(f"{where} needs a role such as user, got {_short(role)}")
    rest = {str(k): plain(v, f"{k} of {where}") for k, v in message.items() if v is not None}
    return rest | {"role": role, "content": _content(message["content"], where)}


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise ConfigError(
            f"{where}: content must be a text, a list of text parts or null, got {_short(content)}"
        )
    return "\n".join(_part(part, where) for part in content)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) else None
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
        raise ConfigError(
            f'{where}: a part of its content must be {{"type": "text", "text": "..."}}; this model '
            f"reads no {kind!r}, got {_short(part)}"
        )
    return text


def plain(value: Any, where: str) -> Any:
    """A value rebuilt of JSON types, so that a template gets no object with methods.

    Raises `ConfigError` for anything else.

    Args:
        value: Any.
        where: What it is, for messages.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(entry, where) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, where) for entry in value]
    raise ConfigError(f"{where} must hold plain JSON values, got {type(value).__name__}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
