"""How decoding behaves on the families where it is hard: the second half of a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from card_history import Redundancy

from dllm_decode.evaluation import metrics
from dllm_decode.evaluation.metrics import Sample
from dllm_decode.evaluation.reporting.tables import markdown_table, percent
from dllm_decode.evaluation.store import EvalRun

_POINT = 0.01  # accuracies this close count as equal


@dataclass(frozen=True)
class Dynamics:
    """Finished runs on the hard families, all of the same problems.

    Attributes:
        sequential: One token per step.
        thresholds: (threshold, run), ascending.
        oracle: The run of `strategy=oracle`.
        orders: (order, run) of one token per step on the whole canvas, for puzzles.
        history: What age adds below a threshold of 0.9, by family, None where too little was seen.
    """

    sequential: EvalRun
    thresholds: tuple[tuple[float, EvalRun], ...]
    oracle: EvalRun
    orders: tuple[tuple[str, EvalRun], ...]
    history: Mapping[str, Redundancy | None]


def text(found: Dynamics) -> str:
    """The figures as Markdown."""
    parts = [
        "### Where decoding is hard",
        families(found),
        summary(found),
        "### Which cell first",
        orders(found),
        "### What age says beside confidence",
        history(found),
    ]
    return "\n\n".join(parts)


def families(found: Dynamics) -> str:
    """Every hard family: accuracy and passes for every threshold, and how early tokens stood."""
    head = ["family", "answer tokens", "one per pass"]
    head += [f"threshold {value:g}" for value, _ in found.thresholds]
    head += ["oracle", "proposed 2 passes before %"]
    rows = []
    for family in (*found.sequential.families, "all"):
        runs = [found.sequential, *(run for _, run in found.thresholds), found.oracle]
        every = [_of(run, family) for run in runs]
        tokens = sum(s.delivered for s in every[0]) / len(every[0])
        early = metrics.temporal_redundancy(_of(_near(found, 0.9), family), 2)
        cells = [f"{100 * _share(samples):.1f} @ {_passes(samples):.1f}" for samples in every]
        rows.append([family, f"{tokens:.1f}", *cells, f"{100 * early:.1f}"])
    note = (
        "Accuracy % @ forwards per problem, "
        f"{len(found.sequential.of(found.sequential.families[0])):,} held-out problems per family; "
        "last, the share of tokens committed by threshold "
        f"{_nearest(found, 0.9):g} that had been first choice for two passes or more."
    )
    return f"{note}\n\n{markdown_table(head, rows)}"


def summary(found: Dynamics) -> str:
    """What moves with the threshold, and how far ahead the oracle is."""
    low, high = found.thresholds[0], found.thresholds[-1]
    moved = 100 * (_share(high[1].samples) - _share(low[1].samples))
    slower = _passes(high[1].samples) / _passes(low[1].samples)
    told = (
        f"From threshold {low[0]:g} to {high[0]:g} accuracy moves by {moved:+.1f} points and "
        f"passes by a factor of {slower:.2f}."
    )
    oracle = found.oracle.samples
    equal = [
        (_passes(run.samples), value)
        for value, run in found.thresholds
        if _share(run.samples) >= _share(oracle) - _POINT
    ]
    if not equal:
        return f"{told} No threshold is as accurate as the oracle to within a point."
    passes, value = min(equal)
    return (
        f"{told} The fastest threshold that is as accurate as the oracle to within a point, "
        f"{value:g}, takes {passes / _passes(oracle):.2f} times its passes."
    )


def orders(found: Dynamics) -> str:
    """One cell per pass, in different orders."""
    rows = [
        [order, percent(metrics.accuracy(run.samples)), f"{_passes(run.samples):.1f}"]
        for order, run in found.orders
    ]
    families = ", ".join(found.orders[0][1].families)
    note = f"One token per pass on the whole canvas of {families}, in the order of a score."
    return f"{note}\n\n{markdown_table(['order', 'accuracy % [95 %]', 'forwards'], rows)}"


def history(found: Dynamics) -> str:
    """What the age of a proposal adds to its confidence, family by family."""
    rows = []
    for family, entry in found.history.items():
        if entry is None:
            rows.append([family, "too few", "", "", "", ""])
            continue
        areas = [f"{entry.alone:.3f}", f"{entry.aged:.3f}", f"{entry.gain:+.3f}"]
        rows.append([family, f"{entry.count:,}", f"{100 * entry.right:.1f}", *areas])
    head = ["family", "sightings", "right %", "AUC of p", "AUC of p and age", "gain"]
    note = (
        "Open answer columns whose proposal has less than 0.9, once per pass of threshold 0.9: how "
        "well it is told that the proposal is what is delivered in the end, by its confidence p, "
        "and by p with the number of passes since it was first proposed. Where the gain is none, "
        "the past tells nothing that p does not."
    )
    return f"{note}\n\n{markdown_table(head, rows)}"


def _of(run: EvalRun, family: str) -> Sequence[Sample]:
    return run.samples if family == "all" else run.of(family)


def _nearest(found: Dynamics, value: float) -> float:
    return min((known for known, _ in found.thresholds), key=lambda known: abs(known - value))


def _near(found: Dynamics, value: float) -> EvalRun:
    """The run whose threshold is nearest."""
    return dict(found.thresholds)[_nearest(found, value)]


def _share(samples: Sequence[Sample]) -> float:
    return sum(s.correct for s in samples) / len(samples)


def _passes(samples: Sequence[Sample]) -> float:
    return sum(s.forwards for s in samples) / len(samples)
