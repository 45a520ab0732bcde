"""The figures of the results page, drawn again from its tables.

    python docs/tools/draw_figures.py docs/results.md docs/results

The page is written by `experiment=bundled`, which also draws the figures; this command draws them
again when their style changes. Tokens per pass of each step are in no table, so that the figure of
steps needs the runs themselves.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dllm_decode.config.compose import compose_checked, without_shorthands
from dllm_decode.errors import ConfigError, DllmDecodeError
from dllm_decode.evaluation.reporting import figures
from dllm_decode.evaluation.reporting.factors import traits_of
from dllm_decode.evaluation.reporting.figures import Shown
from dllm_decode.evaluation.reporting.tables import ALL, Row
from dllm_decode.evaluation.statistics import Interval
from dllm_decode.evaluation.store import EvalRun
from dllm_decode.tasks.eval import job_name, settings_of

_NUMBER = re.compile(r"[-+]?\d[\d,.]*\d|\d")


def main(words: Sequence[str]) -> int:
    """Draw the figures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="Markdown page of a report")
    parser.add_argument("folder", type=Path, help="where the figures go")
    parser.add_argument("--experiment", default="bundled", help="whose jobs the page shows")
    given = parser.parse_args(words)
    try:
        shown = shown_in(given.page.read_text(encoding="utf-8"), jobs_of(given.experiment))
        makers = {
            "accuracy_speed": lambda: figures.accuracy_against_speed(shown),
            "families": lambda: figures.per_family(shown),
            "grid": lambda: figures.ablation_grid(shown),
        }
        for path in figures.draw(makers, given.folder, ("svg",)):
            print(f"drawn: {path}")
    except DllmDecodeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def jobs_of(experiment: str) -> dict[str, dict[str, object]]:
    """Name to settings of the jobs of an experiment with a list of them."""
    task = compose_checked([f"experiment={experiment}"]).task
    found = {}
    for line in task.jobs:
        overrides = without_shorthands(["task=eval", *str(task.common).split(), *line.split()])
        option = next(text for text in overrides if text.startswith("strategy=")).partition("=")[2]
        found[job_name(option, overrides)] = settings_of(compose_checked(overrides))
    return found


def shown_in(page: str, jobs: dict[str, dict[str, object]]) -> list[Shown]:
    """The runs of a page with their figures; raises `ConfigError` for a run that no job has."""
    rows, known = rows_of(page), jobs | _as_reported(jobs)
    for name in rows:
        if name not in known:
            raise ConfigError(f"the page shows {name!r}; the jobs are {', '.join(known)}")
    runs = [_run(name, known[name]) for name in rows]
    return [
        Shown(trait, {f: replace(row, strategy=trait.name) for f, row in rows[run.name].items()})
        for trait, run in zip(traits_of(runs), runs, strict=True)
    ]


def _as_reported(jobs: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """The same by the names that a report of all jobs gives them."""
    runs = [_run(name, settings) for name, settings in jobs.items()]
    return {trait.name: jobs[run.name] for trait, run in zip(traits_of(runs), runs, strict=True)}


def _run(name: str, settings: dict[str, object]) -> EvalRun:
    return EvalRun(Path(), {"name": name, "settings": settings, "families": []}, ())


def rows_of(page: str) -> dict[str, dict[str, Row]]:
    """Run and family to figures, from the tables of a page that have accuracies."""
    found: dict[str, dict[str, Row]] = {}
    family, heads = "", []
    for line in page.splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
            family = (
                ALL if title == "All families together" else title if line[:4] == "### " else ""
            )
            heads = []
        if not line.startswith("|") or not family:
            continue
        cells = [cell.strip().replace("\\", "") for cell in line.strip("|").split(" | ")]
        if not heads:
            heads = cells
        elif not cells[0].startswith("---") and "problems" in heads:
            own = dict(zip(heads, cells, strict=True))
            found.setdefault(own["strategy"], {})[family] = _row(own, family)
    return found


def _row(cells: dict[str, str], family: str) -> Row:
    def numbers(head: str) -> list[float]:
        text = next(cell for name, cell in cells.items() if name.startswith(head))
        return [float(found.replace(",", "")) for found in _NUMBER.findall(text.replace(", ", " "))]

    share, speed = numbers("accuracy"), numbers("tokens per forward")
    (forwards,) = numbers("forwards")
    return Row(
        strategy=cells["strategy"],
        family=family,
        problems=round(numbers("problems")[0]),
        accuracy=Interval(*(value / 100 for value in share)),
        forwards=Interval(forwards, forwards, forwards),
        tokens_per_forward=Interval(*speed),
        slots_per_forward=0.0,
        tokens_per_second=0.0,
        seconds_per_problem=0.0,
        wasted_forwards=0.0,
        decoding_order=0.0,
        redundancy=0.0,
        speedup=None,
        headroom=None,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
