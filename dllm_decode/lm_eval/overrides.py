"""Arguments of the harness as overrides of the configuration."""

from __future__ import annotations

import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

GROUPS = ("strategy", "schedule", "cache", "sampler")


def as_override(key: str, value: Any) -> str:
    """One argument as an override, e.g. `strategy.select.threshold=0.8`.

    A text is read as on the command line (`[credit]` is a list); one that means nothing there, such
    as a path with a quote or an equals sign in it, is taken word for word.

    Args:
        key: Full key or short name.
        value: A text, number, flag, list or None.
    """
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    if value is None:
        return f"{key}=null"
    if not isinstance(value, str):
        return f"{key}={value}"
    return f"{key}={value}" if _readable(f"{key}={value}") else f"{key}={quoted(value)}"


def _readable(word: str) -> bool:
    try:
        return not OverridesParser.create().parse_override(word).is_sweep_override()
    except HydraException:
        return False


def quoted(text: str) -> str:
    """A text for Hydra's grammar, taken word for word."""
    # a backslash is special only before a quote
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + m[2].replace("'", "\\'"), text)
    return f"'{escaped}'"
