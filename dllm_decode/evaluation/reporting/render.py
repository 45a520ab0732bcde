"""The report as Markdown, and the same as one HTML file that needs nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from dllm_decode.evaluation.metrics import definitions
from dllm_decode.evaluation.reporting.controls import Note
from dllm_decode.evaluation.reporting.parallel import HEADS as PUSHED_HEADS
from dllm_decode.evaluation.reporting.parallel import Pushed
from dllm_decode.evaluation.reporting.tables import (
    Row,
    WallTime,
    escaped,
    markdown,
    markdown_table,
    wall_time_cells,
)

OVERALL = ("strategy", "problems", "accuracy", "strict", "forwards", "tokens_per_forward",
           "over_thresholds", "speedup_forwards", "speedup_useful", "speedup_wall",
           "headroom")  # fmt: skip
BEHAVIOUR = ("strategy", "slots_per_forward", "wasted_forwards", "decoding_order", "redundancy",
             "seconds_per_problem", "tokens_per_second")  # fmt: skip
PER_FAMILY = ("strategy", "problems", "accuracy", "strict", "forwards", "tokens_per_forward",
            "over_thresholds", "speedup_forwards", "speedup_useful", "headroom")  # fmt: skip

_CAPTIONS = {
    "accuracy_speed": "Accuracy against tokens per forward, with 95 % intervals and Pareto front.",
    "families": "The same for each family on which the rules differ, and for all others together.",
    "steps": "Tokens committed in each model pass.",
    "grid": "Accuracy of every run on every family, tokens per forward below.",
}


@dataclass(frozen=True)
class ReportPage:
    """What a report says.

    Attributes:
        title: Its heading.
        facts: Name to text, about model, machine and settings.
        overall: A row per run.
        families: The same for each family, by its name.
        notes: The controls.
        parts: A row per run on part of the problems, with the baseline on the same ones.
        times: Wall times by batch size.
        timed_on: The machine of runs made for their wall time; "" where the times are those of the
            rows, which then have columns for them.
        warnings: What was left out and why.
        pushed: A row per rule over its swept setting.
        counts: How many of how many jobs are here, "" where all are.
        preface: Markdown put before the tables.
        sections: Families with a section of their own in Markdown; () for all.
    """

    title: str
    facts: Mapping[str, str]
    overall: Sequence[Row]
    families: Mapping[str, Sequence[Row]]
    notes: Sequence[Note]
    parts: Sequence[Row] = ()
    times: Sequence[WallTime] = ()
    timed_on: str = ""
    warnings: Sequence[str] = ()
    pushed: Sequence[Pushed] = ()
    counts: str = ""
    preface: str = ""
    sections: Sequence[str] = ()

    def columns(self, names: Sequence[str]) -> list[str]:
        """Columns of a table, without those that say nothing new.

        Left out are the wall time where a better one stands elsewhere, and the strict score where
        every answer has one form.
        """
        without = set(_WALL_TIME_COLUMNS) if self.timed_on else set()
        rows = [*self.overall, *self.parts]
        if all(math.isnan(row.strict) or row.strict == row.accuracy.value for row in rows):
            without.add("strict")
        return [name for name in names if name not in without]

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


def to_markdown(report: ReportPage, figures: Sequence[str] = ()) -> str:
    """The whole report as Markdown.

    Args:
        report: Its content.
        figures: Paths of the figures that are linked.
    """
    parts = [f"# {escaped(report.title)}\n"]
    if report.preface:
        parts.append(report.preface.strip() + "\n")
    parts.append("".join(f"- {name}: {escaped(text)}\n" for name, text in report.facts.items()))
    parts += [f"> {escaped(report.counts)}.\n"] if report.counts else []
    parts += [f"> Left out: {escaped(text)}\n" for text in report.warnings]
    overall, behaviour = report.columns(OVERALL), report.columns(BEHAVIOUR)
    parts += ["## All families together\n", markdown(report.overall, overall)]
    parts += ["## How they decode\n", markdown(report.overall, behaviour)]
    for path in figures:
        caption = _CAPTIONS.get(Path(path).stem, "")
        parts.append(f"![{caption}]({path})\n")
    if report.times:
        heads, lines = wall_time_cells(report.times)
        parts += ["## Wall time\n", escaped(report.about_times) + "\n"]
        parts.append(markdown_table(heads, lines) + "\n")
    if report.parts:
        parts += [f"## {_PARTS} ({report.parts[0].problems:,})\n", markdown(report.parts, overall)]
    if report.pushed:
        lines = [rule.cells() for rule in report.pushed]
        parts += ["## As many tokens per step as possible\n", _PUSHED]
        parts.append(markdown_table(PUSHED_HEADS, lines) + "\n")
    if report.notes:
        lines_of_notes = [f"- **{note.kind}.** {escaped(note.text)}\n" for note in report.notes]
        parts += ["## Controls\n", "".join(lines_of_notes)]
    parts.append("## Family by family\n")
    if report.sections:
        parts.append(f"{len(report.families)} families are in `table.csv`, these are some.\n")
    for family in report.sections or report.families:
        rows = report.families[family]
        parts += [f"### {escaped(family)}\n", markdown(rows, report.columns(PER_FAMILY))]
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
        "delivered token or its end of text; - where passes decide nothing for another reason "
        "(probes, revisions, budgets, guidance, votes), which is cost and no padding."
    )
    lines.append(
        "- over thresholds: accuracy minus that of plain thresholds with as many forwards (linear "
        "interpolation between runs of `strategy=threshold` with the same schedule, cache, sampler "
        "and stop rules; a run slower than all of them is compared with the slowest, one faster "
        "than all of them with none); 95 % interval: bootstrap over problems, drawn alike for all. "
        "Forwards are summed over the problems of a table, in which long answers weigh most, so "
        "that a rule may be ahead in the sum and behind in its families; the notes average too."
    )
    lines.append("- of oracle: tokens per forward over those of `strategy=oracle`, same problems.")
    return "\n".join(lines) + "\n"


_PUSHED = (
    "ParallelBench's figures. Tokens per step are requested columns over forwards, the score is "
    "the accuracy averaged over families. PBx: the most tokens per step at which the score is "
    "still x %, between measured points where the rule adapts.\n"
)
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
td { border-bottom: 1px solid #ddd; padding: 0.25rem 0.7rem; }
td[style] { white-space: nowrap; }
.figure { display: block; margin: 1.5rem 0; } .figure svg { max-width: 100%; height: auto; }
.caption { display: block; color: #444; font-size: 0.85rem; }
blockquote { border-left: 4px solid #D55E00; padding: 0.2rem 0.8rem; margin: 0.5rem 0;
             background: #fdf3ec; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #161616; }
       th { border-color: #ddd; } td { border-color: #333; } .caption { color: #aaa; }
       .figure svg { background: #fff; border-radius: 4px; } blockquote { background: #33231a; } }
@media print { body { margin: 0; max-width: none; font-size: 11px; } h2 { break-after: avoid; } }
"""


def to_html(report: ReportPage, figures: Mapping[str, str], explore: str = "") -> str:
    """The report as one page that needs no other file.

    Args:
        report: What it says.
        figures: SVG text by name, put where the Markdown page links `NAME.svg`.
        explore: HTML put behind the heading, see `explore.section`.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(_: RendererHTML, tokens: Sequence[Token], place: int, *__: object) -> str:
        return _figure(figures, tokens[place])

    reader.add_render_rule("image", image)
    reader.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
    reader.add_render_rule("table_close", lambda *_: "</table></div>\n")
    body = reader.render(to_markdown(report, [f"{name}.svg" for name in figures]))
    top, end, rest = body.partition("</h1>\n")
    body = f"{top}{end}{explore}{rest}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body>\n"
        f"{body}</body></html>\n"
    )


def _figure(figures: Mapping[str, str], token: Token) -> str:
    """A drawn figure with its caption; of pictures from elsewhere, which no page fetches, words."""
    name, caption = Path(str(token.attrs["src"])).stem, escape(token.content)
    if name not in figures:
        return f"<em>{caption}</em>"
    svg = _inline(figures[name], name, caption)
    # a paragraph cannot hold a figure element
    return f'<span class="figure">{svg}<span class="caption">{caption}</span></span>'


def _inline(svg: str, name: str, label: str) -> str:
    """An SVG for the middle of a page: no XML prologue, identifiers of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
