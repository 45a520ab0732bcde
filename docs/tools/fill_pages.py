"""Tables of chosen runs inside the pages of the documentation, kept current by one command.

    python docs/tools/fill_pages.py runs/bundled docs
    python docs/tools/fill_pages.py runs/bundled_rules docs --results results_rules.md

A page marks a place with the names of runs, and of the page of results that they belong to where
that is not `results.md`; the runs of that page fill it:

    <!-- runs: threshold 0.5; threshold -->
    (whatever stands here is replaced)
    <!-- runs: end -->
    <!-- runs of results_rules.md: wino; threshold -->
    <!-- runs: end -->
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from dllm_decode.errors import ConfigError, DllmDecodeError
from dllm_decode.evaluation import metrics
from dllm_decode.evaluation.reporting.controls import at_equal_forwards
from dllm_decode.evaluation.reporting.report import chosen_runs
from dllm_decode.evaluation.reporting.tables import is_sequential, markdown_table, percent
from dllm_decode.evaluation.store import EvalRun, collect
from dllm_decode.problems import FAMILIES

END = "<!-- runs: end -->"
_HEAD = r"<!-- runs(?: of ([\w.-]+))?: (?!end -->)"
_PLACE = re.compile(_HEAD + r"(.*?) -->\n(.*?)" + re.escape(END), re.DOTALL)
# Counts that have a column where one of the runs has some, and their heads.
_EXTRA = {
    "probes": "forwards that probe",
    "drafts": "drafts",
    "edits": "edits",
    "remasks": "re-masks",
    "not_granted": "not granted",
}
_METRICS = {metric.name: metric for metric in metrics.METRICS}
_MARK = re.compile(_HEAD)


def refresh(folder: str | Path, runs: Sequence[EvalRun], results: str = "results.md") -> list[Path]:
    """Fill the marked places of the Markdown pages below a folder; returns the pages changed.

    Args:
        folder: Of the pages.
        runs: What they may name.
        results: The page of results that the runs belong to; places of others stay as they are.

    Nothing is written before all pages are known to be good. Raises `ConfigError` for a folder
    that is not there, a page of results that no place names, a mark without its end, and a name
    that no run has.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"PAGES must be a folder of Markdown pages, got {root}")
    changed: dict[Path, str] = {}
    places = 0

    def filled(found: re.Match[str]) -> str:
        nonlocal places
        if (found[1] or "results.md") != results:
            return found[0]
        places += 1
        return _filled(found, path, root / results, runs)

    for path in sorted(root.rglob("*.md")):
        old = path.read_text(encoding="utf-8")
        if len(_MARK.findall(old)) != len(_PLACE.findall(old)):
            raise ConfigError(f"{path} has a mark '<!-- runs: ...' without '{END}'")
        new = _PLACE.sub(filled, old)
        if new != old:
            changed[path] = new
    if not places:
        raise ConfigError(f"no page below {root} has a place for the runs of {results}")
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8")
    return list(changed)


def _filled(found: re.Match[str], page: Path, results: Path, runs: Sequence[EvalRun]) -> str:
    """One marked place with its table."""
    by_name = {run.name: run for run in reversed(runs)}  # of one name the first
    names = [name.strip() for name in found[2].split(";")]
    for name in names:
        if name not in by_name:
            known = ", ".join(dict.fromkeys(run.name for run in runs))
            raise ConfigError(f"{page} names the run {name!r}; there are {known}")
    chosen = [by_name[name] for name in names]
    # where some of them had fewer problems, all are compared on these
    problems = {s.problem for s in min(chosen, key=lambda run: len(run.samples)).samples}
    where = Path(os.path.relpath(results, page.parent)).as_posix()
    every = [run.on(problems) for run in runs if problems <= {s.problem for s in run.samples}]
    table = section([run.on(problems) for run in chosen], every, where)
    return f"{found[0].partition(' -->')[0]} -->\n{table}\n{END}"


def section(
    chosen: Sequence[EvalRun], runs: Sequence[EvalRun], results: str = "../results.md"
) -> str:
    """What was measured with the chosen runs.

    Args:
        chosen: Those that are shown.
        runs: All of them, among which the baseline is.
        results: Where the page of results is, seen from the one that is filled.
    """
    first = chosen[0]
    loose = [
        family
        for family in first.families
        if family in FAMILIES and not FAMILIES[family].determined
    ]
    base = next((run for run in runs if is_sequential(run)), None)
    said = [f"{len(first.samples):,} held-out problems of {len(first.families)} families, batch "]
    said += [f"{first.results['batch_size']}, made with [the results]({results})."]
    heads = ["strategy", "accuracy % [95 %]", "forwards per problem", "tokens per forward"]
    if loose:
        heads += [f"{', '.join(loose)}: accuracy %", "forwards"]
        said += [f" The last two columns: {_several(loose)}, where many answers are right."]
    if base is not None:
        share, forwards = metrics.accuracy(base.samples), _forwards(base, base.families)
        said += [f" `{base.name}` has {percent(share)} % at {forwards:.1f} forwards."]
    extra = [name for name in _EXTRA if any(_mean(run, name) for run in chosen)]
    heads += [f"{_EXTRA[name]} per problem" for name in extra]
    text = textwrap.fill("".join(said), 120)
    table = markdown_table(heads, [_row(run, loose, extra) for run in chosen])
    return "\n\n".join([text, table, *_controls(chosen, runs)])


def _controls(chosen: Sequence[EvalRun], runs: Sequence[EvalRun]) -> list[str]:
    """Each chosen rule against the thresholds that take as many forwards, if there are some."""
    # of one name the first, and no problems that a run lacks
    every = [run for run in {r.name: r for r in reversed(runs)}.values() if run.samples]
    names = [run.name for run in chosen]
    told = [text for run, text in at_equal_forwards(every) if run.name in names]
    return [textwrap.fill(text, 120) for text in told]


def _row(run: EvalRun, loose: Sequence[str], extra: Sequence[str]) -> list[str]:
    cells = [
        run.name,
        percent(metrics.accuracy(run.samples)),
        f"{_forwards(run, run.families):.1f}",
        f"{metrics.tokens_per_forward(run.samples).value:.2f}",
    ]
    if loose:
        share = metrics.accuracy([sample for sample in run.samples if sample.family in loose])
        cells += [f"{100 * share.value:.1f}", f"{_forwards(run, loose):.1f}"]
    return cells + [f"{_mean(run, name):.1f}" for name in extra]


def _mean(run: EvalRun, name: str) -> float:
    """A count of `Sample` averaged over the problems."""
    found: float = _METRICS[name].of(run.samples)
    return found


def _forwards(run: EvalRun, families: Sequence[str]) -> float:
    return metrics.forwards_per_problem([s for s in run.samples if s.family in families]).value


def _several(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def main(words: Sequence[str]) -> int:
    """Fill the pages; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", help="folder of task=eval")
    parser.add_argument("pages", help="folder of Markdown pages")
    parser.add_argument("--results", default="results.md", help="page of results of these runs")
    given = parser.parse_args(words)
    try:
        chosen = chosen_runs(collect(given.runs), None)
        for path in refresh(given.pages, [*chosen.whole, *chosen.beside], given.results):
            print(f"filled: {path}")
    except DllmDecodeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
