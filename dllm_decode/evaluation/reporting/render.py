"""The report as one HTML file that needs nothing else, and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from dllm_decode.evaluation.metrics import definitions
from dllm_decode.evaluation.reporting.controls import Note
from dllm_decode.evaluation.reporting.tables import (
    COLUMNS,
    Row,
    Timing,
    cells,
    markdown,
    markdown_table,
    wall_time_cells,
)

OVERALL = ("strategy", "problems", "accuracy", "forwards", "tokens_per_forward",
           "speedup_forwards", "speedup_useful", "speedup_wall", "headroom")  # fmt: skip
BEHAVIOUR = ("strategy", "slots_per_forward", "wasted_forwards", "decoding_order", "redundancy",
             "seconds_per_problem", "tokens_per_second")  # fmt: skip
PER_TASK = ("strategy", "problems", "accuracy", "forwards", "tokens_per_forward",
            "speedup_forwards", "speedup_useful", "headroom")  # fmt: skip

_CAPTIONS = {
    "accuracy_speed": "Accuracy against tokens per forward, with 95 % intervals and Pareto front.",
    "tasks": "Tokens per forward on each task, with the accuracy at the end of each bar.",
    "steps": "Tokens committed in each model pass.",
    "grid": "Accuracy of every run on every task, tokens per forward below.",
}


@dataclass(frozen=True)
class Report:
    """What a report says: title, facts about model, machine and settings, tables and notes.

    facts: name to text; overall: a row per run; tasks: task name to its rows; notes: the controls;
    parts: a row per run on part of the problems, with the baseline on the same ones; times: wall
    times by batch size; timed_on: the machine of runs made for their wall time, "" where the times
    are those of the rows (which then have columns for them); warnings: what was left out and why;
    preface: Markdown put before the tables.
    """

    title: str
    facts: Mapping[str, str]
    overall: Sequence[Row]
    tasks: Mapping[str, Sequence[Row]]
    notes: Sequence[Note]
    parts: Sequence[Row] = ()
    times: Sequence[Timing] = ()
    timed_on: str = ""
    warnings: Sequence[str] = ()
    preface: str = ""

    def columns(self, names: Sequence[str]) -> list[str]:
        """Columns of a table, without the wall time where a better one stands elsewhere."""
        return [name for name in names if not (self.timed_on and name in _WALL_TIME_COLUMNS)]

    @property
    def about_times(self) -> str:
        """How the wall times were measured."""
        if not self.timed_on:
            return f"{_WALL_TIME} Small batches were timed on fewer problems."
        counts = {t.batch_size: f"{t.problems:,} at batch {t.batch_size}" for t in self.times}
        repeats = max(t.repetitions for t in self.times)
        return (
            f"{_WALL_TIME} Measured in runs of their own ({self.timed_on}), on "
            f"{', '.join(counts.values())}; medians of {repeats} "
            f"{'repetition' if repeats == 1 else 'repetitions'} in which all runs took turns."
        )


def to_markdown(report: Report, figures: Sequence[str] = ()) -> str:
    """The whole report as Markdown; figures: paths that are linked."""
    parts = [f"# {report.title}\n"]
    if report.preface:
        parts.append(report.preface.strip() + "\n")
    parts.append("".join(f"- {name}: {text}\n" for name, text in report.facts.items()))
    parts += [f"> Left out: {text}\n" for text in report.warnings]
    overall, behaviour = report.columns(OVERALL), report.columns(BEHAVIOUR)
    parts += ["## All tasks together\n", markdown(report.overall, overall)]
    parts += ["## How they decode\n", markdown(report.overall, behaviour)]
    for path in figures:
        caption = _CAPTIONS.get(Path(path).stem, "")
        parts.append(f"![{caption}]({path})\n")
    if report.times:
        heads, lines = wall_time_cells(report.times)
        parts += [f"## Wall time\n\n{report.about_times}\n", markdown_table(heads, lines) + "\n"]
    if report.parts:
        parts += [f"## {_PARTS} ({report.parts[0].problems:,})\n", markdown(report.parts, overall)]
    if report.notes:
        parts += ["## Controls\n", "".join(f"- **{n.kind}.** {n.text}\n" for n in report.notes)]
    parts.append("## Task by task\n")
    for task, rows in report.tasks.items():
        parts += [f"### {task}\n", markdown(rows, PER_TASK)]
    parts += ["## Definitions\n", definitions_markdown()]
    return "\n".join(parts)


def definitions_markdown() -> str:
    """All metrics with unit and definition."""
    lines = [f"- `{name}` [{unit}]: {text}." for name, unit, text in definitions()]
    lines.append(
        "- speedup: forwards (or wall time) of the sequential run with the same schedule, cache, "
        "sampler and stop rules, over those of the run, on the same problems."
    )
    lines.append(
        "- speedup in forwards, padding left out: the same, counting only passes that decided a "
        "delivered token or its end of text."
    )
    lines.append("- of oracle: tokens per forward over those of `strategy=oracle`, same problems.")
    return "\n".join(lines) + "\n"


_PARTS = "On part of the problems"
_WALL_TIME = (
    "Of decoding alone, on the same kinds of problems at each batch size. Speedups are against the "
    "sequential run at the same batch size."
)
_WALL_TIME_COLUMNS = ("speedup_wall", "seconds_per_problem", "tokens_per_second")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff; margin: 2rem auto;
       max-width: 80rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.85rem; }
.wide { overflow-x: auto; }
th { text-align: left; border-bottom: 2px solid #111; padding: 0.3rem 0.7rem;
     vertical-align: bottom; }
th small { font-weight: normal; color: #555; display: block; }
td { border-bottom: 1px solid #ddd; padding: 0.25rem 0.7rem; }
td.number, th.number { text-align: right; white-space: nowrap; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: 0.85rem; }
dt { font-weight: 600; } dd { margin: 0 0 0.4rem 1.2rem; }
.warning { border-left: 4px solid #D55E00; padding: 0.2rem 0.8rem; background: #fdf3ec; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } h2 { break-after: avoid; } }
"""


def to_html(report: Report, figures: Mapping[str, str]) -> str:
    """One page with everything in it. figures: name to SVG text."""
    body = [f"<h1>{escape(report.title)}</h1>"]
    body.append(_list(report.facts))
    body += [f'<p class="warning">Left out: {escape(text)}</p>' for text in report.warnings]
    overall, behaviour = report.columns(OVERALL), report.columns(BEHAVIOUR)
    body += ["<h2>All tasks together</h2>", _table(report.overall, overall)]
    body += ["<h2>How they decode</h2>", _table(report.overall, behaviour)]
    for name, svg in figures.items():
        caption = escape(_CAPTIONS.get(name, ""))
        body.append(f"<figure>{_inline(svg, name)}<figcaption>{caption}</figcaption></figure>")
    if report.times:
        body += ["<h2>Wall time</h2>", f"<p>{escape(report.about_times)}</p>"]
        body.append(_grid(*wall_time_cells(report.times)))
    if report.parts:
        body += [f"<h2>{_PARTS} ({report.parts[0].problems:,})</h2>"]
        body.append(_table(report.parts, overall))
    if report.notes:
        items = "".join(
            f"<li><strong>{escape(n.kind)}.</strong> {escape(n.text)}</li>" for n in report.notes
        )
        body += ["<h2>Controls</h2>", f"<ul>{items}</ul>"]
    body.append("<h2>Task by task</h2>")
    for task, rows in report.tasks.items():
        body += [f"<h3>{escape(task)}</h3>", _table(rows, PER_TASK)]
    body += ["<h2>Definitions</h2>", _list({f"{n} [{u}]": f"{t}." for n, u, t in definitions()})]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _list(facts: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{escape(n)}</dt><dd>{escape(t)}</dd>" for n, t in facts.items())
    return f"<dl>{items}</dl>"


def _table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    def cell(kind: str, name: str, inside: str) -> str:
        mark = ' class="number"' if COLUMNS[name].numeric else ""
        return f"<{kind}{mark}>{inside}</{kind}>"

    heads = "".join(
        cell("th", c, f"{escape(COLUMNS[c].head)}<small>{escape(COLUMNS[c].unit)}</small>")
        for c in columns
    )
    lines = [
        "<tr>" + "".join(cell("td", c, escape(cells(row)[c])) for c in columns) + "</tr>"
        for row in rows
    ]
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _grid(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of texts; all columns but the first are numbers."""

    def row(kind: str, insides: Sequence[str]) -> str:
        marks = ["", *[' class="number"'] * (len(insides) - 1)]
        pairs = zip(marks, insides, strict=True)
        return "".join(f"<{kind}{mark}>{inside}</{kind}>" for mark, inside in pairs)

    body = "".join(f"<tr>{row('td', [escape(text) for text in line])}</tr>" for line in lines)
    # "time (ms)": the unit in small letters below
    units = [re.sub(r" \((.*)\)$", r"<small>\1</small>", escape(head)) for head in heads]
    return (
        f'<div class="wide"><table><thead><tr>{row("th", units)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _inline(svg: str, name: str) -> str:
    """An SVG for the middle of a page: no XML prologue, identifiers of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    label = escape(_CAPTIONS.get(name, name))
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
