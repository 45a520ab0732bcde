"""Stop texts: where a decoded text ends although the model went on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from dllm_decode.errors import ConfigError


def stop_texts(name: str, value: Any) -> tuple[str, ...]:
    """Stop texts as a user gives them: one, several, or None for none; empty ones do not count.

    Args:
        name: The option, for messages.
        value: What was given.

    Raises:
        ConfigError: For anything else.
    """
    texts = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{name} must be a text or a list of texts, got {value!r}")
    return tuple(text for text in texts if text)


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first place where one of the stop texts begins.

    Args:
        text: An answer.
        stops: Texts that end it.

    >>> cut("It is 4. Q: 3 + 3?", ["Q:", " Q"])
    'It is 4.'
    """
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def tokens_before(text: str, ids: Sequence[int], decode: Callable[[list[int]], str]) -> int:
    """How many of the tokens hold a text that was cut out of them.

    Args:
        text: A beginning of `decode(ids)`.
        ids: The tokens before it was cut.
        decode: Token ids to text.

    Returns:
        The smallest number of leading tokens whose text is at least as long.
    """
    return bisect_left(range(len(ids)), len(text), key=lambda n: len(decode(list(ids[:n]))))
