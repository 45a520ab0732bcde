"""The jobs of a sweep of `task=generate` in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from dllm_decode.errors import DllmDecodeError
from dllm_decode.storage import read_json

MOST_JOBS = 30


def table_of_jobs(folder: Path) -> Table:
    """What was set in each job, and what came of it; the last ones where there are many.

    Args:
        folder: Of the sweep, in which every job has a folder with its number.
    """
    places = [place for place in folder.iterdir() if place.name.isdigit()]
    found = [
        (place.name, results, _overrides(place))
        for place in sorted(places, key=lambda place: int(place.name))
        if (results := _json(place / "results.json"))
    ]
    hidden = len(found) - MOST_JOBS
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    table.caption = f"the last {MOST_JOBS}; all are in {folder}" if hidden > 0 else f"{folder}"
    for head in ("job", "overrides", "forwards", "tokens/forward", "seconds", "correct"):
        number = head != "overrides"
        table.add_column(head, justify="right" if number else "left", no_wrap=number)
    common = set.intersection(*(set(words) for *_, words in found)) if len(found) > 1 else set()
    for name, results, words in found[-MOST_JOBS:]:
        figures = next(iter(results["runs"].values()))
        right = f"{figures['correct']}/{figures['prompts']}" if "correct" in figures else "-"
        own = " ".join(word for word in words if word not in common)
        table.add_row(
            name,
            Text(own),
            str(figures["forwards"]),
            f"{figures['tokens_per_forward']:.2f}",
            f"{figures['seconds']:.2f}",
            right,
        )
    return table


def _overrides(place: Path) -> list[str]:
    return [str(word) for word in _json(place / "env.json").get("overrides", [])]


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where a job left none."""
    try:
        return read_json(path, DllmDecodeError) if path.exists() else {}
    except DllmDecodeError:
        return {}
