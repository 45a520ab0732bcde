"""What ParallelBench asks of a report: how far a rule can be pushed, in which order it fills.

Source: ParallelBench, arXiv 2510.04767, and its leaderboard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dllm_decode.evaluation import metrics
from dllm_decode.evaluation.curves import parallelizability, pbx, slope
from dllm_decode.evaluation.reporting.factors import traits_of
from dllm_decode.evaluation.reporting.tables import is_threshold, stops, surroundings
from dllm_decode.evaluation.store import EvalRun

LEVELS = (90, 80, 70)  # % of right answers
_FIXED = "fixed number per pass"


@dataclass(frozen=True)
class Pushed:
    """One rule over its swept setting.

    Attributes:
        rule: Its name with what does not change.
        settings: How many runs.
        most: For each of `LEVELS` the most tokens per step at which the score is still that good,
            NaN where it never is.
        parallelizability: Mean tokens per step, weighted with the score.

    Examples:
        >>> Pushed("topk", 6, (2.0, 4.0, 4.0), 9.5).most[0]
        2.0
    """

    rule: str
    settings: int
    most: tuple[float, ...]
    parallelizability: float

    def cells(self) -> list[str]:
        """What people read."""
        most = ["-" if math.isnan(x) else f"{x:.2f}" for x in self.most]
        return [self.rule, str(self.settings), *most, f"{self.parallelizability:.2f}"]


HEADS = (
    "rule",
    "settings",
    *(f"PB{level} (tokens per step)" for level in LEVELS),
    "parallelizability (tokens per step)",
)


def pushed(runs: Sequence[EvalRun]) -> list[Pushed]:
    """Every rule that was run with three settings or more, in the order of the runs.

    Tokens per step are requested columns over forwards, and the score is the accuracy averaged over
    families, both as published.

    Args:
        runs: Of a report.
    """
    lines: dict[str, list[tuple[EvalRun, str, str]]] = {}
    for run, trait in zip(runs, traits_of(runs), strict=True):
        if trait.at is not None:
            lines.setdefault(trait.line, []).append((run, trait.rule, trait.kind))
    found = []
    for line, members in lines.items():
        if len(members) < 3:
            continue
        points = [(metrics.slots_per_forward(run.samples), 100 * score(run)) for run, *_ in members]
        _, rule, kind = members[0]
        most = tuple(pbx(points, level, interpolate=kind != _FIXED) for level in LEVELS)
        rest = [f"{name}={value}" for name, value in json.loads(line)[1].items() if value]
        found.append(Pushed(" ".join([rule, *rest]), len(members), most, parallelizability(points)))
    return found


def score(run: EvalRun) -> float:
    """Accuracy, averaged over families."""
    shares = [metrics.accuracy(run.of(family)).value for family in run.families]
    return sum(shares) / len(shares)


def best_thresholds(runs: Sequence[EvalRun]) -> list[str]:
    """What the best threshold of every problem by itself would give, a sentence per surroundings.

    Args:
        runs: Of a report.
    """
    groups: dict[str, list[EvalRun]] = {}
    for run in runs:
        if is_threshold(run):
            key = json.dumps([surroundings(run), stops(run)], sort_keys=True, default=str)
            groups.setdefault(key, []).append(run)
    found = []
    for members in groups.values():
        if len(members) < 2:
            continue
        chosen = metrics.per_sample_oracle([run.samples for run in members])
        found.append(
            f"With the fastest of the most accurate thresholds for each problem by itself "
            f"({len(members)} thresholds: {', '.join(run.name for run in members)}) accuracy would "
            f"be {100 * metrics.accuracy(chosen).value:.1f} % at "
            f"{metrics.forwards_per_problem(chosen).value:.1f} forwards and "
            f"{metrics.slots_per_forward(chosen):.2f} tokens per step, padding counted."
        )
    return found


def order_preferences(runs: Sequence[EvalRun]) -> list[str]:
    """How accuracy changes with the block length at two tokens per step, a sentence per rule.

    Args:
        runs: Of a report.
    """
    groups: dict[str, list[tuple[float, float, EvalRun]]] = {}
    for run in runs:
        select = run.settings["strategy"].get("select") or {}
        schedule = dict(run.settings.get("schedule") or {})
        length = schedule.pop("length", None)
        if select.get("tokens_per_step") == 2 and isinstance(length, int):
            key = json.dumps(
                [run.settings["strategy"], schedule, surroundings(run)[1:]], default=str
            )
            groups.setdefault(key, []).append((float(length), 100 * score(run), run))
    found = []
    for members in groups.values():
        points = [(length, share) for length, share, _ in members]
        if len({length for length, _ in points}) < 3:
            continue
        order = members[0][2].settings["strategy"]["select"].get("order")
        lengths = ", ".join(f"{length:g}: {share:.1f} %" for length, share in sorted(points))
        found.append(
            f"Two tokens per step by {order}, blocks of {lengths}: {slope(points):+.2f} points per "
            "column of block length (below zero: better from left to right)."
        )
    return found
