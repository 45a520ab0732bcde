"""Rules against plain thresholds on the longest answers of a family alone.

    python docs/tools/long_answers.py count 60 schedule.length=128

decodes the held-out problems of a family whose answers have so many tokens or more, with thresholds
and with credit, and prints a row for each rule: accuracy, forwards, and accuracy over the
thresholds that take as many forwards, with the interval of a bootstrap over problems.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dllm_decode.api import TextDecoder, build
from dllm_decode.config.compose import compose_checked
from dllm_decode.errors import ConfigError, DllmDecodeError, require_choice
from dllm_decode.evaluation.metrics import Sample, forwards_per_problem
from dllm_decode.evaluation.reporting.tables import over_thresholds, percent, points
from dllm_decode.evaluation.statistics import Interval, wilson
from dllm_decode.evaluation.store import EvalRun
from dllm_decode.problems import FAMILIES, Problem, problems
from dllm_decode.tasks.eval import job_name, settings_of

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
JOBS = (
    *(("threshold", f"strategy.select.threshold={value}") for value in THRESHOLDS),
    ("credit",),
    ("credit", "strategy.select.threshold=0.95"),
    ("credit", "strategy.transforms.credit.identity=false"),
    ("credit_adaptive",),
)
BATCH = 24


def longest(family: str, tokens: int, decoder: TextDecoder) -> list[Problem]:
    """Those of a draw of held-out problems with answers of so many tokens or more.

    The draw is the largest power of two that the family has, up to 8192.
    """
    count = 1
    while count < 8192:
        try:
            found, count = problems(family, "held_out", 2 * count, 0), 2 * count
        except ConfigError:
            break
    encode = decoder.model.tokenizer.encode
    return [p for p in found if len(encode(" " + p.answer, framed=False)) >= tokens]


def run_of(job: Sequence[str], around: Sequence[str], asked: Sequence[Problem]) -> EvalRun:
    """What a rule does with the problems, as a run of an evaluation."""
    strategy, *rest = job
    words = [f"strategy={strategy}", *rest, *around]
    cfg = compose_checked(["model=llada", *words])
    length = FAMILIES[asked[0].family].canvas
    result = build(cfg).generate([p.prompt for p in asked], max_new_tokens=length, batch_size=BATCH)
    samples = tuple(
        Sample(
            problem=f"{p.family}/{number}",
            family=p.family,
            prompt=p.prompt,
            text=text,
            correct=FAMILIES[p.family].grade(p, text),
            slots=length,
            forwards=forwards,
            steps=(),
        )
        for number, (p, text, forwards) in enumerate(
            zip(asked, result.texts, result.forwards, strict=True)
        )
    )
    about = {"name": job_name(strategy, words), "families": [asked[0].family]}
    return EvalRun(Path(), {**about, "settings": settings_of(cfg)}, samples)


def row(run: EvalRun, gap: Interval | None) -> str:
    """A line of the table."""
    right = sum(sample.correct for sample in run.samples)
    share = percent(wilson(right, len(run.samples)))
    forwards = forwards_per_problem(run.samples).value
    return f"| {run.name} | {share} | {forwards:.2f} | {points(gap)} |"


def main(words: Sequence[str]) -> int:
    """Decode and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", help="name of a family")
    parser.add_argument("tokens", type=int, help="of the shortest answer")
    parser.add_argument("around", nargs="*", help="settings of all decodes, as schedule.length=128")
    given = parser.parse_args(words)
    family, tokens, around = given.family, given.tokens, given.around
    try:
        require_choice("family", family, tuple(FAMILIES))
        decoder = build(compose_checked(["model=llada", "strategy=threshold", *around]))
        asked = longest(family, tokens, decoder)
        if not asked:
            raise ConfigError(f"no problem of {family} has an answer of {tokens} tokens")
        print(f"{len(asked)} problems of {family} with {tokens} tokens or more")
        runs = []
        for job in JOBS:
            runs.append(run_of(job, around, asked))
            print(row(runs[-1], None), flush=True)
        for run, gap in zip(runs, over_thresholds(runs, None), strict=True):
            if gap is not None:
                print(row(run, gap))
    except DllmDecodeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
