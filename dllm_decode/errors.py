"""Every error raised on purpose: what was wrong, what was got, what is allowed, where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from difflib import get_close_matches
from numbers import Integral


class DllmDecodeError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns.

    Examples:
        >>> issubclass(ConfigError, DllmDecodeError), DllmDecodeError("no").exit_code
        (True, 1)
    """

    exit_code = 1


class ConfigError(DllmDecodeError, ValueError):
    """A setting, option or request value that cannot work; names the key.

    Examples:
        >>> import dllm_decode
        >>> dllm_decode.load("toy_copy", strategy="credt")
        Traceback (most recent call last):
            ...
        dllm_decode.errors.ConfigError: unknown option strategy=credt; did...
    """

    exit_code = 2


class CapabilityError(ConfigError):
    """Two parts that are valid alone but cannot work together; names both config groups.

    Examples:
        >>> import dllm_decode
        >>> dllm_decode.load("toy_copy", cache="dual")
        Traceback (most recent call last):
            ...
        dllm_decode.errors.CapabilityError: cache (DualCache) needs keys and v...
    """


class CheckpointError(DllmDecodeError):
    """A checkpoint, tokenizer or weight file that is missing, truncated or does not fit.

    Examples:
        >>> from pathlib import Path
        >>> from dllm_decode.models.acceptance import AcceptanceFilter
        >>> AcceptanceFilter.load(Path("nowhere.safetensors"))
        Traceback (most recent call last):
            ...
        dllm_decode.errors.CheckpointError: filter nowhere.safetensors was not...
    """


class TraceError(DllmDecodeError):
    """A trace file that cannot be read; names file and line.

    Examples:
        >>> from dllm_decode.decoding.trace import read_trace
        >>> read_trace("nowhere.jsonl")
        Traceback (most recent call last):
            ...
        dllm_decode.errors.TraceError: cannot read the trace nowhere.jsonl: t...
    """


class PluginError(DllmDecodeError):
    """A plugin returned or did something that it may not; names the plugin and its place.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> class Forgets(TopK):
        ...     def decide(self, view, memory):
        ...         return None
        >>> Copy(n=3).answer(Forgets(1), "abc")
        Traceback (most recent call last):
            ...
        dllm_decode.errors.DecisionError: strategy (Forgets): decide returne...
    """


class DecisionError(PluginError):
    """A strategy asked for something illegal; names the plugin, row, column and step.

    Examples:
        >>> issubclass(DecisionError, PluginError)
        True
    """


class ModelOutputError(DllmDecodeError):
    """The model returned logits that no rule can use (NaN, infinite, everything banned).

    Examples:
        >>> issubclass(ModelOutputError, DllmDecodeError)
        True
    """


class DeviceError(DllmDecodeError):
    """The device failed, and nothing more can be computed in this process; says what to do.

    Examples:
        >>> issubclass(DeviceError, DllmDecodeError)
        True
    """


def require(condition: bool, message: str) -> None:
    """Raise an error unless a condition holds.

    Args:
        condition: What must hold.
        message: What was wrong, what was got, what is allowed, where.

    Raises:
        ConfigError: It does not hold.
    """
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

    Args:
        name: The field, as its object calls it; configuration puts the key in front.
        value: What was given.
        low: The lower bound.
        high: The upper bound.
        open_low: Whether the lower bound itself is refused.
        open_high: Whether the upper bound itself is refused.
        unit: For the message, e.g. "nats".

    Raises:
        ConfigError: The value is not a real number inside the interval; NaN is not.

    Examples:
        >>> require_in_range("threshold", 1.5, 0, 1)
        Traceback (most recent call last):
        ...
        dllm_decode.errors.ConfigError: threshold must lie in [0, 1], got 1.5
    """
    number = isinstance(value, Integral | float) and not isinstance(value, bool)
    inside = number and (low < value if open_low else low <= value)
    inside = inside and (value < high if open_high else value <= high)
    if not inside:
        left = "(" if open_low else "["
        right = ")" if open_high else "]"
        what = f" {unit}" if unit else ""
        verb = "lie in" if number else "be a number in"
        raise ConfigError(f"{name} must {verb} {left}{low}, {high}{right}{what}, got {value!r}")


def require_count(name: str, value: object, *, minimum: int = 1) -> int:
    """Check that a setting is a whole number that is large enough, Python's own or numpy's.

    Args:
        name: The field.
        value: What was given.
        minimum: The smallest number allowed.

    Returns:
        The number as one of Python's own.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise ConfigError(f"{name} must be a whole number >= {minimum}, got {value!r}")
    return int(value)


def require_some(name: str, values: Sized | None, what: str) -> None:
    """Check that a setting names something; None stands for a default.

    Args:
        name: The field.
        values: What was given.
        what: The kind of thing that it names.

    Raises:
        ConfigError: It is empty.
    """
    if values is not None and not len(values):
        raise ConfigError(f"{name} must name at least one {what}, got an empty list")


def require_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Check that a setting is one of a few words.

    Args:
        name: The field.
        value: What was given.
        allowed: The words.

    Raises:
        ConfigError: It is none of them; lists them.
    """
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def did_you_mean(
    name: str, names: Iterable[str] | Mapping[str, str], prefix: str = "", likeness: float = 0.6
) -> str:
    """A suggestion for a misspelt or shortened name: "; did you mean PREFIXname?", or nothing.

    Args:
        name: What was given.
        names: What is there; a mapping says how each is shown.
        prefix: Put before the suggestion, e.g. the group that it belongs to.
        likeness: How much a name has to resemble `name`, from 0 to 1.
    """
    shown = names if isinstance(names, Mapping) else {other: other for other in names}
    begun = [other for other in shown if len(name) > 3 and other.startswith(name)][:3]
    close = begun or get_close_matches(name, list(shown), 1, likeness)
    words = " or ".join(prefix + shown[other] for other in close)
    return f"; did you mean {words}?" if close else ""
