"""Every error raised on purpose: what was wrong, what was got, what is allowed, where."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any


class DllmDecodeError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(DllmDecodeError, ValueError):
    """A setting, option or request value that cannot work; names the key."""

    exit_code = 2


class CapabilityError(ConfigError):
    """Two parts that are valid alone but cannot work together; names both config groups."""


class CheckpointError(DllmDecodeError):
    """A checkpoint, tokenizer or weight file that is missing, truncated or does not fit."""


class PluginError(DllmDecodeError):
    """A plugin returned or did something that it may not; names the plugin and its place."""


class DecisionError(PluginError):
    """A strategy asked for something illegal; names the plugin, row, column and step."""


class ModelOutputError(DllmDecodeError):
    """The model returned logits that no rule can use (NaN, infinite, everything banned)."""


class DeviceError(DllmDecodeError):
    """The device failed, and nothing more can be computed in this process; says what to do."""


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_in_range(
    name: str,
    value: float,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
    unit: str = "",
) -> None:
    """Check that a number lies in an interval, with a message that states the interval.

    name: the config key without its group; value: what was given; low, high: the bounds;
    open_low, open_high: the bound itself is not allowed; unit: e.g. "nats".
    Raises `ConfigError` for anything that is not a real number inside the interval (NaN included).
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    inside = number and (low < value if open_low else low <= value)
    inside = inside and (value < high if open_high else value <= high)
    if not inside:
        left = "(" if open_low else "["
        right = ")" if open_high else "]"
        what = f" {unit}" if unit else ""
        raise ConfigError(f"{name} must lie in {left}{low}, {high}{right}{what}, got {value!r}")


def require_count(name: str, value: object, *, minimum: int = 1) -> None:
    """Check that a setting is a whole number of at least `minimum`; raises `ConfigError`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ConfigError(f"{name} must be a whole number >= {minimum}, got {value!r}")


def require_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Check that a setting is one of a few words; raises `ConfigError` that lists them."""
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


LARGEST_JSON = 2**27  # bytes; the largest index of a published checkpoint has 3 MB


def parse_json(
    content: bytes | str, where: object, error: type[DllmDecodeError] = ConfigError
) -> Any:
    """The value of one JSON document from outside.

    Args:
        content: the document; bytes must be UTF-8, with or without a byte order mark.
        where: what to name in messages: a file, perhaps with a line.
        error: class of the error.

    Raises:
        DllmDecodeError: `error`, for what is no JSON, has a key twice, or is nested too deeply.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise ValueError(f"the key {twice!r} is there twice in one object")
        return values

    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=once)
    except UnicodeDecodeError as fault:
        raise error(f"{where} cannot be read: it is not UTF-8 text (byte {fault.start})") from None
    except RecursionError:
        raise error(f"{where} cannot be read: it is nested too deeply") from None
    except ValueError as fault:
        raise error(f"{where} cannot be read: {fault}") from None


def read_json(path: Path, error: type[DllmDecodeError] = ConfigError) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: the file, at most `LARGEST_JSON` bytes.
        error: class of the error, whose message names the file.

    Raises:
        DllmDecodeError: `error`, for a file that cannot be read or holds no JSON object.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise error(f"{path} is too large for a JSON file: {size} bytes")
        content = path.read_bytes()
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror or fault}") from None
    values = parse_json(content, path, error)
    if not isinstance(values, dict):
        raise error(f"{path} must hold one JSON object, got {_kind(values)}")
    return values


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    words = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return words.get(type(value), "a number")
