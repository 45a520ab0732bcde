"""From a folder of runs to tables, figures and pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dllm_decode import storage
from dllm_decode.errors import ConfigError, require_choice
from dllm_decode.evaluation.reporting import explore, figures, parallel, tables
from dllm_decode.evaluation.reporting import render as page
from dllm_decode.evaluation.reporting.controls import notes
from dllm_decode.evaluation.reporting.factors import named, traits_of
from dllm_decode.evaluation.store import EvalRun, RunCollection, collect, read_run, whole_and_parts


def read_runs(paths: Sequence[Path]) -> list[EvalRun]:
    """Finished jobs, in the order given."""
    return [read_run(path) for path in paths]


@dataclass(frozen=True)
class Written:
    """What a report consists of.

    Attributes:
        report: Its content.
        files: What was written.
    """

    report: page.ReportPage
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Chosen:
    """The runs of a report, the baseline first, the oracle last.

    Attributes:
        whole: Runs on the same problems.
        parts: Runs on some of these.
        timed: Runs made for their wall time only.
    """

    whole: Sequence[EvalRun]
    parts: Sequence[EvalRun]
    timed: Sequence[EvalRun]

    def named(self) -> Chosen:
        """The same under names that say only what differs."""
        short = named([*self.whole, *self.parts, *self.timed])
        a, b = len(self.whole), len(self.whole) + len(self.parts)
        return Chosen(short[:a], short[a:b], short[b:])

    @property
    def beside(self) -> list[EvalRun]:
        """Runs on part of the problems, at the batch size of the others."""
        return [run for run in self.parts if run.batch_size == self.whole[0].batch_size]

    @property
    def clocked(self) -> list[EvalRun]:
        """What wall times are read from: runs that are for that, or else all there are."""
        others = [run for run in self.parts if run.batch_size != self.whole[0].batch_size]
        return list(self.timed) or [*self.whole, *others]


def chosen_runs(collection: RunCollection, only: str | None) -> Chosen:
    """The runs whose name or folder contains a text.

    Of runs on part of the problems those are left out that are there on all of them.

    Args:
        collection: What there is.
        only: The text, None for all runs.

    Raises:
        ConfigError: There are none, or no table should mix them.
    """
    runs = [
        run
        for run in collection.runs
        if only is None or only in run.name or only in run.path.as_posix()
    ]
    if not runs:
        failed = "; ".join(collection.left_out)
        which = f"contain {only!r}" if only else "are finished"
        raise ConfigError(f"task.runs: no runs {which}" + (f" ({failed})" if failed else ""))
    runs.sort(key=_place)
    timed = [run for run in runs if run.timing]
    whole, parts = whole_and_parts([run for run in runs if not run.timing] or timed)
    there = {_job(run) for run in whole}
    parts = [run for run in parts if _job(run) not in there]
    return Chosen(
        distinct(whole, lambda run: _job(run)[:2]),
        distinct(parts, _job),
        distinct(timed, lambda run: (*_job(run), run.timing)),
    )


def _job(run: EvalRun) -> tuple[str, str, int]:
    """What runs of the same job have in common, whatever the code was."""
    return run.name, json.dumps(run.settings, sort_keys=True, default=str), run.batch_size


def distinct(
    runs: Sequence[EvalRun], key: Callable[[EvalRun], tuple[object, ...]]
) -> list[EvalRun]:
    """Of runs with the same key, which differ in the code alone, the newest.

    Args:
        runs: In any order, which is kept.
        key: What runs that are the same have in common.
    """
    newest: dict[tuple[object, ...], EvalRun] = {}
    for run in runs:
        other = newest.get(key(run))
        if other is None or _time(run) >= _time(other):
            newest[key(run)] = run
    return [run for run in runs if newest[key(run)] is run]


def _time(run: EvalRun) -> str:
    return str(run.results.get("environment", {}).get("time", ""))


def _place(run: EvalRun) -> tuple[bool, bool, int, str]:
    """The baseline first, the oracle last, the others in the order of their sweep."""
    first = not tables.is_sequential(run)
    return tables.is_oracle(run), first, run.order, run.name


@dataclass(frozen=True)
class ReportSettings:
    """What a report shows.

    Attributes:
        only: Keep runs whose name or folder contains this text, None for all.
        title: Of the page.
        preface: Markdown before the tables.
        draw: Whether there are figures.
        answers: Problems whose answers the page holds, to look at and to play; 0: the page has
            nothing to sort, filter and click, only tables and figures.
        sections: Families with a section of their own in Markdown; () for all.

    Examples:
        >>> ReportSettings(only="credit", draw=False).title
        'Evaluation'
    """

    only: str | None = None
    title: str = "Evaluation"
    preface: str = ""
    draw: bool = True
    answers: int = 0
    sections: tuple[str, ...] = ()


def write_report(
    collection: RunCollection, folder: Path, settings: ReportSettings = ReportSettings()
) -> Written:
    """Write CSV, Markdown, HTML and figures into a folder.

    Args:
        collection: The runs.
        folder: Where to write; it is made.
        settings: What the report shows.

    Raises:
        ConfigError: No table should mix the runs; says which differ, and how. A section is of no
            family of theirs.
    """
    chosen = chosen_runs(collection, settings.only).named()
    runs = chosen.whole
    report = _page(chosen, collection, settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the folder of a report must be writable, got {folder}: {error.strerror or error}"
        ) from None
    drawn = figures.draw_all(runs, folder / "figures") if settings.draw else []
    by_family = (row for rows in report.families.values() for row in rows)
    texts = {
        "table.csv": tables.csv_text(
            [*report.overall, *report.parts, *by_family],
            {trait.name: trait.factors for trait in traits_of([*runs, *chosen.beside])},
        ),
        "report.md": page.to_markdown(report, [f"figures/{path.name}" for path in drawn]),
        "report.html": page.to_html(
            report,
            {path.stem: path.read_text(encoding="utf-8") for path in drawn},
            explore.section(runs, settings.answers) if settings.answers else "",
        ),
    }
    if report.times:
        texts["wall_time.csv"] = tables.wall_time_csv(report.times)
    for name, text in texts.items():
        storage.write_text(folder / name, text)
    return Written(report, (*(folder / name for name in texts), *drawn))


def _page(chosen: Chosen, collection: RunCollection, settings: ReportSettings) -> page.ReportPage:
    """The content of the report: its tables, and what is to be known about them."""
    runs, smaller = chosen.whole, chosen.beside
    times = tables.wall_times(chosen.clocked)
    families = dict.fromkeys(family for run in runs for family in run.families)
    for name in settings.sections:
        require_choice("task.sections", name, tuple(families))
    return page.ReportPage(
        title=settings.title,
        facts=facts_of(runs),
        overall=tables.rows_of(runs, None),
        families={
            family: tables.rows_of([run for run in runs if family in run.families], family)
            for family in families
        },
        parts=tables.rows_of(beside(runs, smaller), None, runs) if smaller else [],
        times=times,
        timed_on=machine_of(chosen.timed[0]) if chosen.timed else "",
        notes=notes(runs, smaller, times if chosen.timed else ()),
        warnings=collection.left_out,
        pushed=parallel.pushed(runs),
        counts=collection.counts,
        preface=settings.preface,
        sections=settings.sections,
    )


def beside(runs: Sequence[EvalRun], parts: Sequence[EvalRun]) -> list[EvalRun]:
    """Runs on part of the problems, with the baseline and the oracle on the same ones.

    Of parts that hold different problems the most frequent choice is kept.

    Args:
        runs: On all problems.
        parts: On some of them, one or more.
    """
    choices = [part.keys for part in parts]
    problems = max(choices, key=choices.count)
    baselines = [run.on(problems) for run in runs if tables.is_sequential(run)]
    oracles = [run.on(problems) for run in runs if tables.is_oracle(run)]
    chosen = [part for part, own in zip(parts, choices, strict=True) if own == problems]
    return [*baselines, *chosen, *oracles]


def facts_of(runs: Sequence[EvalRun]) -> dict[str, str]:
    """Model, problems, machine and settings that all runs share."""
    first = runs[0].results
    model = first["model"]
    mark = f", fingerprint {model['fingerprint']}" if model.get("fingerprint") else ""
    sizes = {
        family: len(runs[0].of(family))
        for family in dict.fromkeys(t for r in runs for t in r.families)
    }
    machine = first.get("environment", {})
    batches = sorted({run.results.get("batch_size", "?") for run in runs})
    return {
        "model": f"{model['description']}{mark}",
        "problems": f"{first['problems']:,} per run: "
        + ", ".join(f"{family} {size:,}" for family, size in sizes.items()),
        "machine": f"{machine_of(runs[0])}; Python {machine.get('python')}, "
        f"torch {machine.get('torch')}, transformers {machine.get('transformers')}",
        "batch": f"{', '.join(map(str, batches))} problems decoded together",
    }


def machine_of(run: EvalRun) -> str:
    """What a run was made on."""
    machine = run.results.get("environment", {})
    device = machine.get("gpu") or f"{machine.get('cores')} cores of {machine.get('processor')}"
    threads = machine.get("threads")
    return f"{device}; {threads} thread{'' if threads == 1 else 's'}"


__all__ = [
    "Chosen",
    "ReportSettings",
    "Written",
    "chosen_runs",
    "collect",
    "read_runs",
    "write_report",
]
