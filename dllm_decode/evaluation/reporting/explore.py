"""The part of a report's page that answers questions: sort, filter, pivot, and look at answers.

Tables are DataTables, charts are Vega-Lite; both come with Python packages (`dllm_decode[report]`)
and go into the page whole, so that it needs no network. Without them the page is the plain one.
"""

from __future__ import annotations

import json
import math
import os
import re
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dllm_decode import storage
from dllm_decode.decoding.colours import GIVEN, SCALE
from dllm_decode.evaluation.metrics import Sample
from dllm_decode.evaluation.reporting.factors import factor_names, traits_of
from dllm_decode.evaluation.reporting.palette import colour, colours
from dllm_decode.evaluation.reporting.tables import ALL, Row, rows_of
from dllm_decode.evaluation.store import EvalRun

MOST_BYTES = 12_000_000  # of answers in a page
EXTRA = "pip install 'dllm_decode[report]'"


@dataclass(frozen=True)
class Figure:
    """A figure of a run that the page can sort, draw and pivot.

    Attributes:
        key: Field name in the page.
        head: For people, with the unit.
        digits: Behind the point.
        best: 1 where more is better, -1 where less is.

    Examples:
        >>> [figure.key for figure in FIGURES if figure.best < 0]
        ['forwards', 'seconds_per_problem']
    """

    key: str
    head: str
    digits: int
    best: int


FIGURES = (
    Figure("accuracy", "accuracy %", 1, 1),
    Figure("tokens_per_forward", "tokens per forward", 2, 1),
    Figure("forwards", "forwards per problem", 1, -1),
    Figure("speedup_forwards", "speedup in forwards", 2, 1),
    Figure("speedup_useful", "speedup, padding left out", 2, 1),
    Figure("headroom", "% of oracle", 0, 1),
    Figure("over_thresholds", "points over thresholds", 1, 1),
    Figure("seconds_per_problem", "ms per problem", 1, -1),
)


def missing() -> bool:
    """Whether a package is missing that the page needs for this part."""
    return any(find_spec(name) is None for name in ("itables", "vl_convert"))


def section(runs: Sequence[EvalRun], answers: int) -> str:
    """The HTML of this part, with its data and its programs; "" where a package is missing.

    Args:
        runs: Those of the report, under the names that it shows.
        answers: Problems whose answers are in the page at most.
    """
    if missing():
        return ""
    here = files(__package__)
    script, tables, charts = (here / "explore.js").read_text(encoding="utf-8"), *libraries()
    text = (here / "explore.html").read_text(encoding="utf-8")
    parts = {
        "/* tables.css */": tables[1],
        # no "<" in the data, and in the script none that could end the element around it
        "{data}": json.dumps(data(runs, answers), separators=(",", ":"), allow_nan=False).replace(
            "<", "\\u003c"
        ),
        "{tables}": b64encode(tables[0].encode()).decode(),
        "/* charts.js */": charts.replace("</script", "<\\/script").replace("<!--", "<\\!--"),
        "/* explore.js */": script,
    }
    # all at once: what was put in may look like a mark itself
    return re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], text)


@cache
def libraries() -> tuple[tuple[str, str], str]:
    """Script and style of the tables, script of the charts."""
    spec = find_spec("itables")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "html"
    script, style = (
        (folder / f"dt_bundle.{ending}").read_text(encoding="utf-8") for ending in ("js", "css")
    )
    return (script, style), _charts()


def _charts() -> str:
    """The script of the charts; it takes two seconds to put together, and is kept for next time."""
    kept = _kept(f"charts-{version('vl-convert-python')}.js")
    if kept is not None:
        with suppress(OSError, UnicodeDecodeError):
            return kept.read_text(encoding="utf-8")
    charts: Any = import_module("vl_convert")  # its types do not know that a snippet is optional
    made = str(charts.javascript_bundle())
    if kept is not None:
        with suppress(OSError):  # a folder that cannot be written to costs time and nothing else
            kept.parent.mkdir(parents=True, exist_ok=True)
            storage.write_text(kept, made)
    return made


def _kept(name: str) -> Path | None:
    """A file in the user's cache; None for a user without a home."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return folder / "dllm_decode" / name


def data(runs: Sequence[EvalRun], answers: int) -> dict[str, Any]:
    """What the page knows, as plain JSON values.

    Args:
        runs: Those of the report.
        answers: Problems whose answers are included at most.
    """
    traits = traits_of(runs)
    hues = colours(traits)
    families = list(dict.fromkeys(family for run in runs for family in run.families))
    by_family = {ALL: rows_of(runs, None)} | {
        family: rows_of([run for run in runs if family in run.families], family)
        for family in (families if len(families) > 1 else [])
    }
    figures: list[dict[str, Any]] = [{} for _ in runs]
    for family, rows in by_family.items():
        found = {row.strategy: row for row in rows}
        for number, run in enumerate(runs):
            if run.name in found:
                figures[number][family] = _figures(found[run.name])
    chosen, total = _chosen(runs, answers), len(runs[0].samples)
    problems, texts, records = _answers(runs, chosen)
    return {
        "factors": factor_names(traits),
        "families": list(by_family),
        "figures": [vars(figure) for figure in FIGURES],
        "hues": [[kind, hue] for kind, hue in hues.items()],
        "runs": [
            {
                "name": run.name,
                "line": trait.line,
                "at": trait.at,
                "kind": trait.kind if trait.role == "rule" else trait.role,
                "colour": colour(trait, hues),
                "factors": dict(trait.factors),
                "figures": figures[number],
            }
            for number, (run, trait) in enumerate(zip(runs, traits, strict=True))
        ],
        "problems": problems,
        "texts": texts,
        "answers": records,
        "total": total,
        "scale": SCALE,
        "given": GIVEN,
    }


def _figures(row: Row) -> dict[str, Any]:
    speed, gap = row.speedup, row.over_thresholds
    values: dict[str, float | None] = {
        "problems": row.problems,
        "accuracy": 100 * row.accuracy.value,
        "accuracy_low": 100 * row.accuracy.low,
        "accuracy_high": 100 * row.accuracy.high,
        "forwards": row.forwards.value,
        "tokens_per_forward": row.tokens_per_forward.value,
        "tokens_per_forward_low": row.tokens_per_forward.low,
        "tokens_per_forward_high": row.tokens_per_forward.high,
        "speedup_forwards": None if speed is None else speed.forwards,
        "speedup_useful": None if speed is None else speed.useful,
        "headroom": None if row.headroom is None else 100 * row.headroom,
        "over_thresholds": None if gap is None else 100 * gap.value,
        "seconds_per_problem": 1000 * row.seconds_per_problem,
    }
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _chosen(runs: Sequence[EvalRun], most: int) -> list[str]:
    """Problems whose answers the page holds: those that some run got wrong come first."""
    asked = [run.samples.column("problem") for run in runs]
    wrong = dict.fromkeys(
        problem
        for run, problems in zip(runs, asked, strict=True)
        for problem, right in zip(problems, run.samples.column("correct"), strict=True)
        if not right
    )
    kept = set(list({**wrong, **dict.fromkeys(asked[0])})[:most])
    return [problem for problem in asked[0] if problem in kept]


def _answers(
    runs: Sequence[EvalRun], chosen: Sequence[str]
) -> tuple[list[list[str]], list[str], list[list[Any]]]:
    """Problems, distinct texts, and for each problem the record of each run."""
    texts: dict[str, int] = {}
    by_run = [{sample.problem: sample for sample in run.on(chosen).samples} for run in runs]
    problems: list[list[str]] = []
    records: list[list[Any]] = []
    size = 0
    for problem in chosen:
        first = by_run[0][problem]
        own = [_answer(found[problem], texts) if problem in found else None for found in by_run]
        size += len(json.dumps(own)) + len(first.prompt)
        if size > MOST_BYTES:
            break
        problems.append([problem, first.family, first.prompt])
        records.append(own)
    return problems, list(texts), records


def _answer(sample: Sample, texts: dict[str, int]) -> list[Any]:
    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    return [
        number(sample.text or (f"({sample.error})" if sample.error else "")),
        int(sample.correct),
        sample.forwards,
        list(sample.steps),
        [round(100 * share) for share in sample.confidence],
        [number(piece) for piece in sample.pieces],
    ]
