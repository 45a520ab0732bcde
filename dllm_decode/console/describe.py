"""A strategy, a schedule or any other part in words, made from its class and settings."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from dllm_decode.decoding.strategy import NeverStop, StopRule, Strategy


def describe_part(part: Any) -> str:
    """The class name as words, with its numbers and every setting that is not the default.

    `ConfidenceThreshold(threshold=0.9)` gives "confidence threshold (threshold 0.9)".
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", type(part).__name__).lower()
    settings = ", ".join(_settings(part))
    return f"{words} ({settings})" if settings else words


def _settings(part: Any) -> list[str]:
    if not is_dataclass(part):
        return []
    told = []
    for place, entry in enumerate(fields(part)):
        value = getattr(part, entry.name)
        default = None if entry.default is MISSING else entry.default
        simple = isinstance(value, int | float | str)
        number = isinstance(value, float) or place == 0
        if simple and not entry.name.startswith("_") and (number or value != default):
            told.append(f"{entry.name} {value}")
    return told


def describe_strategy(strategy: Strategy) -> str:
    """The parts in the order they act: "trace credit (...) -> confidence threshold (...)"."""
    parts = [part for _, part in strategy.parts() if not isinstance(part, NeverStop)]
    steps = [part for part in parts if not isinstance(part, StopRule)]
    stops = [describe_part(part) for part in parts if isinstance(part, StopRule)]
    ending = f"; stop: {', '.join(stops)}" if stops else ""
    return " -> ".join(map(describe_part, steps)) + ending
