"""What may stand in the files of an evaluation: they may come from anywhere, or be damaged."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import Any

# Larger numbers are damage: nobody asks for so many columns or passes, and a report that believed
# them would fill the memory or add up to infinity.
MOST = 10**6
LONGEST = 20_000  # entries of a list
LONGEST_LABEL = 200  # characters of a family's name, or of a fact about the machine
DEEPEST = 64  # levels of nested values
_LATEST = 1e9  # seconds

# What is wrong with a value: "" for nothing, or the words "must be ...".
Check = Callable[[Any], str]


def shown(value: Any) -> str:
    """A value in a few letters, however large or deep it is."""
    writer = reprlib.Repr()
    writer.maxlevel, writer.maxstring, writer.maxother = 2, 60, 60
    return writer.repr(value)


def fault_in(values: Mapping[str, Any], checks: Mapping[str, Check]) -> str:
    """The first value that fails its check, with its key; "" if there is none.

    Args:
        values: A JSON object.
        checks: What each key must hold; keys that are absent are not checked.
    """
    for key, check in checks.items():
        if key in values:
            fault = check(values[key])
            if fault:
                return f"{key!r} {fault}, got {shown(values[key])}"
    return ""


def all_pass(values: Sequence[Any], check: Check) -> bool:
    """Whether many values pass a check, in a few looks at many instead of one at each.

    Args:
        values: In any order; of lists none longer than `LONGEST`.
        check: What each must hold; a list passes where each of its entries does by itself.
    """
    kinds = set(map(type, values))
    some: Collection[Any] = values
    if kinds == {list}:
        if max(map(len, values)) > LONGEST:
            return False
        entries = list(chain.from_iterable(values))
        some = [entries[place : place + LONGEST] for place in range(0, len(entries), LONGEST)]
    elif len(kinds) == 1 and kinds <= _SIMPLE:  # of one kind, because 1, 1.0 and true are equal
        some = set(values)
    return not any(map(check, some))


_SIMPLE = {str, int, float, bool, type(None)}


def text(value: Any) -> str:
    """Any text that can be written."""
    if not isinstance(value, str):
        return "must be a text"
    if value.isascii():
        return ""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "must be a text without halves of surrogate pairs"
    return ""


def name(value: Any) -> str:
    """A text that is not empty."""
    return text(value) or ("" if value.strip() else "must not be empty")


def label(value: Any) -> str:
    """A short text in one line, as pages and figures show it."""
    fault = name(value)
    if fault:
        return fault
    short = len(value) <= LONGEST_LABEL and value.isprintable()
    return "" if short else f"must be one line of at most {LONGEST_LABEL} letters"


def flag(value: Any) -> str:
    """A bool, and not 0 or 1."""
    return "" if isinstance(value, bool) else "must be true or false"


def whole(low: int, high: int = MOST) -> Check:
    """A whole number in [low, high].

    Args:
        low: Smallest number.
        high: Largest number.
    """

    def check(value: Any) -> str:
        right = type(value) is int and low <= value <= high
        return "" if right else f"must be a whole number from {low} to {high:,}"

    return check


def seconds(value: Any) -> str:
    """A time: a finite number, not below zero."""
    right = type(value) in (int, float) and 0 <= value <= _LATEST
    return "" if right else f"must be a number of seconds from 0 to {_LATEST:g}"


def wholes(low: int, high: int = MOST) -> Check:
    """A list of whole numbers in [low, high].

    Args:
        low: Smallest number.
        high: Largest number.
    """

    def check(values: Any) -> str:
        if not isinstance(values, list | tuple):
            return "must be a list"
        if len(values) > LONGEST:
            return f"must be a list of at most {LONGEST:,} numbers"
        right = set(map(type, values)) <= {int} and (
            not values or (min(values) >= low and max(values) <= high)
        )
        return "" if right else f"must hold whole numbers from {low} to {high:,} only"

    return check


def shares(values: Any) -> str:
    """A list of numbers in [0, 1]."""
    if not isinstance(values, list | tuple):
        return "must be a list"
    # numbers beyond the range are refused before they are added up; NaN may hide behind the others
    right = set(map(type, values)) <= {int, float} and (
        not values or (0 <= min(values) <= max(values) <= 1 and not math.isnan(sum(values)))
    )
    return "" if right else "must hold numbers from 0 to 1 only"


def texts(values: Any) -> str:
    """A list of texts."""
    if not isinstance(values, list | tuple):
        return "must be a list"
    if len(values) > LONGEST:
        return f"must be a list of at most {LONGEST:,} texts"
    if set(map(type, values)) <= {str} and "".join(values).isascii():
        return ""  # in one look instead of one per value
    fault = next((fault for value in values if (fault := text(value))), "")
    return f"holds a value that {fault}" if fault else ""


def names(values: Any) -> str:
    """A list of one or more different texts."""
    if not isinstance(values, list) or not values:
        return "must be a list of at least one text"
    fault = next((fault for value in values if (fault := label(value))), "")
    if fault:
        return f"holds a value that {fault}"
    return "" if len(set(values)) == len(values) else "must not hold a text twice"


def mapping(checks: Mapping[str, Check], *needed: str) -> Check:
    """An object whose values pass their checks.

    Args:
        checks: What keys must hold where they are there; further keys are free.
        needed: Keys that must be there.
    """

    def check(values: Any) -> str:
        if not isinstance(values, dict):
            return "must be an object"
        missing = [key for key in needed if key not in values]
        if missing:
            return f"has no {', '.join(map(repr, missing))}"
        fault = fault_in(values, checks)
        return f"is damaged: {fault}" if fault else ""

    return check


def mapping_of(check: Check) -> Check:
    """An object all of whose values pass a check."""

    def checked(values: Any) -> str:
        if not isinstance(values, dict):
            return "must be an object"
        fault = fault_in(values, dict.fromkeys(values, check))
        return f"is damaged: {fault}" if fault else ""

    return checked


def optional(check: Check) -> Check:
    """Null, or what passes a check."""
    return lambda value: "" if value is None else check(value)


def scalar(value: Any) -> str:
    """A text, number, true, false or null."""
    if isinstance(value, str):
        return label(value) if value else ""
    simple = value is None or isinstance(value, bool | int | float)
    return "" if simple else "must be a text or a number"


def too_deep(values: Any) -> bool:
    """Whether lists and objects are nested deeper than `DEEPEST` levels."""
    level = [values]
    for _ in range(DEEPEST):
        level = [
            entry
            for value in level
            if isinstance(value, dict | list)
            for entry in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return True
