"""A report in a terminal: what fits into one screen; the rest is in files."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from dllm_decode.evaluation.curves import pareto_front
from dllm_decode.evaluation.reporting import tables
from dllm_decode.evaluation.reporting.render import ReportPage

MOST_LINES = 40
MOST_FAILED = 3
MOST_LEFT_OUT = 5
FLOORS = (90, 95, 98, 99, 99.5)

# Short heads: a table has to fit into 80 letters.
HEADS = {
    "strategy": "run",
    "family": "family",
    "accuracy": "accuracy\n% [95 %]",
    "forwards": "forwards",
    "tokens_per_forward": "tokens/forward\n[95 %]",
    "speedup_forwards": "speedup,\nforwards",
    "headroom": "% of\noracle",
    "over_thresholds": "points over thresholds,\nequal forwards [95 %]",
}


def overview(
    report: ReportPage,
    width: int,
    closing: Sequence[str] = (),
    floors: Sequence[float] = FLOORS,
) -> list[RenderableType]:
    """What a terminal shows of a report, at most `MOST_LINES` lines of it.

    Args:
        report: Its content.
        width: Of the terminal, in letters.
        closing: Lines behind it, which count as well.
        floors: Accuracies [%] at which the fastest run is named.
    """
    head = [_cut(f"{name}: {text}", width) for name, text in report.facts.items()][:2]
    tail = [
        _cut(text, width)
        for text in (*best(report.overall, floors), *_over(report), *_notes(report))
    ]
    tail += _left_out(report, width)
    closing = [line for text in closing for line in _wrapped(text, width)]
    taken = (
        len(head) + len(tail) + len(closing) + 6
    )  # heads and ends of the table, and what is hidden
    shown = most_telling(report.overall, max(3, MOST_LINES - taken))
    more = len(report.overall) - len(shown)
    hidden = [f"... and {more} more runs, in the files below"] if more else []
    lines = [_line(line) for line in (*hidden, *tail, *closing)]
    return [*map(_line, head), table(shown, width=width), *lines]


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ignore")


def table(rows: Sequence[tables.Row], *, families: bool = False, width: int = 100) -> Table:
    """A table for the terminal, one line per row.

    Args:
        rows: What it shows.
        families: Whether a line names its family instead of its run.
        width: Of the terminal: columns that do not fit are left out, the last ones first.
    """
    dropped = {"strategy" if families else "family"}
    if all(row.headroom is None for row in rows):
        dropped.add("headroom")
    if all(row.speedup is None for row in rows):
        dropped.add("speedup_forwards")
    if all(row.over_thresholds is None for row in rows):
        dropped.add("over_thresholds")
    names = [name for name in HEADS if name not in dropped]
    filled = [tables.cells(row) for row in rows]
    sizes = {
        name: max(len(text) for text in (*HEADS[name].split("\n"), *(c[name] for c in filled)))
        for name in names
    }
    first, *others = names
    while others and min(sizes[first], 40) + sum(sizes[name] + 2 for name in others) > width:
        others.pop()
    shown = Table(padding=(0, 1, 0, 0), box=SIMPLE_HEAD, pad_edge=False)
    for name in (first, *others):
        number = tables.COLUMNS[name].numeric
        shown.add_column(
            HEADS[name],
            justify="right" if number else "left",
            no_wrap=True,
            min_width=sizes[name] if number else None,
            overflow="ellipsis",
        )
    for cells in filled:
        # as text, since names like transforms=[credit] would be read as markup
        shown.add_row(*(Text(cells[name]) for name in (first, *others)))
    return shown


def most_telling(rows: Sequence[tables.Row], most: int) -> list[tables.Row]:
    """Of many rows the baseline, the fastest at every accuracy, and as many others as fit.

    Args:
        rows: Of a table.
        most: How many to keep.
    """
    if len(rows) <= most:
        return list(rows)
    front = pareto_front([(r.tokens_per_forward.value, r.accuracy.value) for r in rows])
    order = dict.fromkeys([0, len(rows) - 1, *front, *range(len(rows))])
    kept = set(list(order)[:most])
    return [row for number, row in enumerate(rows) if number in kept]


def best(rows: Sequence[tables.Row], floors: Sequence[float] = FLOORS) -> list[str]:
    """The fastest run at an accuracy of at least so much [%], a line for each change.

    Args:
        rows: Of a table.
        floors: Accuracies [%].
    """
    own = [row for row in rows if not row.is_oracle]
    found: dict[str, str] = {}
    for floor in floors if len(own) > 2 else ():
        enough = [row for row in own if 100 * row.accuracy.value >= floor]
        if enough:
            row = max(enough, key=lambda row: row.tokens_per_forward.value)
            speed = f"{row.tokens_per_forward.value:.2f} tokens per forward"
            found[row.strategy] = f"best at {floor:g} % or more: {row.strategy}, {speed}"
    return list(found.values())


def _over(report: ReportPage) -> list[str]:
    """Where a rule differs most from thresholds with as many forwards, a line in all."""
    sure = [
        (row.over_thresholds.value, f"{row.strategy} on {family}")
        for family, rows in report.families.items()
        for row in rows
        if row.over_thresholds is not None and row.over_thresholds.excludes(0)
    ]
    ranked = sorted(sure, key=lambda found: (-abs(found[0]), found[1]))
    words = ", ".join(f"{where} {100 * gap:+.1f}" for gap, where in ranked)
    return [f"points over thresholds at equal forwards: {words}"] if words else []


def _notes(report: ReportPage) -> list[str]:
    failed = [note.text for note in report.notes if note.kind == "not decoded"]
    counts = Counter(note.kind for note in report.notes if note.kind != "not decoded")
    words = ", ".join(f"{kind} {count}" for kind, count in counts.items())
    if len(failed) > MOST_FAILED:
        failed[MOST_FAILED:] = [f"problems of {len(failed) - MOST_FAILED} more runs likewise"]
    return [*failed, *([f"controls, in the files below: {words}"] if words else [])]


def _left_out(report: ReportPage, width: int) -> list[str]:
    lines = [
        line
        for text in report.warnings[:MOST_LEFT_OUT]
        for line in _wrapped(_cut(f"left out: {text}", 3 * width), width)
    ]
    more = len(report.warnings) - MOST_LEFT_OUT
    lines += [f"... and {more} more left out, in the files below"] if more > 0 else []
    return [*lines, *([report.counts] if report.counts else [])]


def _wrapped(text: str, width: int) -> list[str]:
    """Lines whose paths are whole, so that they can be copied."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _cut(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3].rstrip()}..."
