"""The measured part of a model card: what the bundled model can do and how decoding behaves on it.

Everything here is made from finished runs of `task=eval`; see `card_task`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_decode.errors import ConfigError
from dllm_decode.evaluation import metrics
from dllm_decode.evaluation.metrics import Sample
from dllm_decode.evaluation.reporting import figures
from dllm_decode.evaluation.reporting.tables import markdown_table, percent
from dllm_decode.evaluation.store import EvalRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
GAPS = (1, 2, 4, 8)  # steps between proposal and commit

# Whether a family has one right answer, by name.
Determined = Mapping[str, bool]


@dataclass(frozen=True)
class Measured:
    """The runs a card is made of.

    Attributes:
        sequential: One token per step on the families that are shown.
        weak: The same on the others, None where there are none.
        parallel: (tokens per step, run).
        thresholds: (threshold, run).
    """

    sequential: EvalRun
    weak: EvalRun | None
    parallel: tuple[tuple[int, EvalRun], ...]
    thresholds: tuple[tuple[float, EvalRun], ...]


def text(found: Measured, determined: Determined, answers: Mapping[str, Sequence[int]]) -> str:
    """The figures of a card as Markdown.

    Args:
        found: The runs.
        determined: By family, whether a problem has one right answer.
        answers: Right tokens of each problem, by its key.
    """
    parts = [
        "### One token per step",
        families(found, determined),
        averages(found, determined),
        "### Several tokens per step",
        parallel(found),
        "### Confidence threshold",
        thresholds(found),
        "![Accuracy against tokens per step by family, and against tokens per forward by threshold]"
        "(dynamics.png)",
        "### Temporal redundancy",
        redundancy(found),
        "### Calibration",
        calibrated(found, determined, answers),
        "![Confidence at commit against the share of right tokens](calibration.png)",
    ]
    return "\n\n".join(parts)


def families(found: Measured, determined: Determined) -> str:
    """Accuracy of every family with one token per step."""
    rows = []
    for run, note in ((found.sequential, "shown"), (found.weak, "weak")):
        for family in run.families if run is not None else ():
            assert run is not None
            samples = run.of(family)
            rows.append(
                [
                    family,
                    "one" if determined[family] else "many",
                    f"{len(samples):,}",
                    percent(metrics.accuracy(samples)),
                    f"{_mean([s.delivered for s in samples]):.1f}",
                    f"{_mean([s.forwards for s in samples]):.1f}",
                    note,
                ]
            )
    head = ["family", "right answers", "problems", "accuracy % [95 %]", "answer tokens", "forwards"]
    return markdown_table([*head, ""], rows)


def averages(found: Measured, determined: Determined) -> str:
    """What holds over all families that are shown."""
    run = found.sequential
    one = [family for family in run.families if determined[family]]
    shares = {family: metrics.accuracy(run.of(family)).value for family in run.families}
    lines = []
    if one:
        worst = min(one, key=lambda family: shares[family])
        lines.append(
            f"Average over the {len(one)} families with one right answer: "
            f"{100 * _mean([shares[t] for t in one]):.1f} %, lowest {worst} with "
            f"{100 * shares[worst]:.1f} %."
        )
    lines.append(
        f"An answer has {_mean([s.delivered for s in run.samples]):.1f} tokens before its end of "
        f"text and takes {_mean([s.forwards for s in run.samples]):.1f} forwards."
    )
    return " ".join(lines)


def parallel(found: Measured) -> str:
    """Accuracy of every family with one token per step and with several."""
    runs = [(1, found.sequential), *found.parallel]
    head = ["family", *(f"K = {count}" for count, _ in runs)]
    rows = [
        [family, *(percent(metrics.accuracy(run.of(family))) for _, run in runs)]
        for family in found.sequential.families
    ]
    rows.append(["all", *(percent(metrics.accuracy(run.samples)) for _, run in runs)])
    note = (
        "Accuracy % [95 %] with K tokens per step, the most confident first (`strategy=topk`); "
        f"{len(found.parallel[0][1].samples):,} problems for K > 1."
    )
    return f"{note}\n\n{markdown_table(head, rows)}"


def thresholds(found: Measured) -> str:
    """Accuracy and speed over all families for every threshold."""
    rows = [
        [
            f"{threshold:g}",
            percent(metrics.accuracy(run.samples)),
            f"{metrics.forwards_per_problem(run.samples).value:.2f}",
            f"{metrics.tokens_per_forward(run.samples).value:.2f}",
        ]
        for threshold, run in found.thresholds
    ]
    head = ["threshold", "accuracy % [95 %]", "forwards per problem", "tokens per forward"]
    note = f"All families together, {len(found.thresholds[0][1].samples):,} problems."
    return f"{note}\n\n{markdown_table(head, rows)}"


def redundancy(found: Measured) -> str:
    """Share of tokens that had been the model's proposal for some steps before their commit."""
    runs = [("sequential", found.sequential)]
    runs += [(f"threshold {value:g}", run) for value, run in found.thresholds[-2:]]
    rows = [
        [
            name,
            *(f"{100 * metrics.temporal_redundancy(run.samples, gap):.1f}" for gap in GAPS),
        ]
        for name, run in runs
    ]
    note = (
        "Share of delivered tokens [%] that had been the model's unbroken first choice for at "
        "least this many steps when they were committed."
    )
    return f"{note}\n\n{markdown_table(['strategy', *(f'{g} steps' for g in GAPS)], rows)}"


def calibrated(
    found: Measured, determined: Determined, answers: Mapping[str, Sequence[int]]
) -> str:
    """Confidence at commit against right tokens, one line per run."""
    rows = []
    for name, run in _calibration_runs(found):
        pairs = right_tokens(run, determined, answers)
        if not pairs:
            continue
        bins = metrics.calibration(pairs)
        rows.append(
            [
                name,
                f"{len(pairs):,}",
                f"{100 * _mean([c for c, _ in pairs]):.1f}",
                f"{100 * _mean([float(r) for _, r in pairs]):.1f}",
                f"{100 * metrics.calibration_error(bins):.1f}",
            ]
        )
    head = ["strategy", "tokens", "mean confidence %", "right %", "expected calibration error %"]
    note = (
        "Confidence with which a token was committed, and whether it is the right one at its "
        "place; families with one right answer. Several tokens per step commit unsure ones too."
    )
    return f"{note}\n\n{markdown_table(head, rows)}"


def right_tokens(
    run: EvalRun, determined: Determined, answers: Mapping[str, Sequence[int]]
) -> list[tuple[float, bool]]:
    """(confidence, right) of every delivered token that has one right value."""
    pairs: list[tuple[float, bool]] = []
    for sample in run.samples:
        if determined[sample.family]:
            pairs += zip(sample.confidence, _right(sample, answers[sample.problem]), strict=True)
    return pairs


def _right(sample: Sample, answer: Sequence[int]) -> list[bool]:
    delivered = sample.tokens[: sample.delivered]
    return [place < len(answer) and token == answer[place] for place, token in enumerate(delivered)]


def _calibration_runs(found: Measured) -> list[tuple[str, EvalRun]]:
    runs = [("one token per step", found.sequential)]
    return runs + [(f"{count} tokens per step", run) for count, run in found.parallel]


def draw(
    found: Measured,
    determined: Determined,
    answers: Mapping[str, Sequence[int]],
    folder: Path,
) -> list[Path]:
    """`dynamics.png` and `calibration.png` in a folder; raises `ConfigError` without matplotlib."""
    makers: dict[str, Callable[[], Figure]] = {
        "dynamics": lambda: _dynamics(found),
        "calibration": lambda: _calibration(found, determined, answers),
    }
    drawn = []
    for name, make in makers.items():
        figure = make()
        drawn.append(folder / f"{name}.png")
        figure.savefig(drawn[-1], dpi=110)
        figures.pyplot().close(figure)
    return drawn


_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_LINES = ("-", "--", "-.", ":")


def _style(number: int) -> tuple[str, str, str]:
    """Colour, marker and line of a family, so that 140 of them differ."""
    line = _LINES[number // len(_COLOURS) % len(_LINES)]
    return _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)], line


def _dynamics(found: Measured) -> Figure:
    """Left: accuracy against tokens per step; right: accuracy against speed for thresholds."""
    figure, (left, right) = figures.canvas(10.0, 3.8, ncols=2)
    runs = [(1, found.sequential), *found.parallel]
    for number, family in enumerate(found.sequential.families):
        colour, marker, line = _style(number)
        shares = [100 * metrics.accuracy(run.of(family)).value for _, run in runs]
        left.plot([k for k, _ in runs], shares, color=colour, marker=marker, ls=line, label=family)
    left.set_xscale("log", base=2)
    left.set_xticks([k for k, _ in runs], [str(k) for k, _ in runs])
    left.set_xlabel("tokens per step")
    left.set_ylabel("accuracy [% of problems]")
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}  # 22 lines leave no room inside
    left.legend(fontsize=6, frameon=False, **beside)
    for value, run in found.thresholds:
        speed = metrics.tokens_per_forward(run.samples).value
        share = metrics.accuracy(run.samples)
        spread = [[100 * (share.value - share.low)], [100 * (share.high - share.value)]]
        right.errorbar([speed], [100 * share.value], yerr=spread, color="#0072B2", marker="o")
        right.annotate(f"{value:g}", (speed, 100 * share.value), (4, 4), textcoords="offset points")
    right.set_xlabel("tokens per forward")
    right.set_title("confidence threshold", fontsize=9)
    return figure


def _calibration(
    found: Measured, determined: Determined, answers: Mapping[str, Sequence[int]]
) -> Figure:
    """Reliability diagram; the area of a marker follows the number of tokens."""
    figure, axes = figures.canvas(4.6, 4.2)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, label="perfect")
    for number, (name, run) in enumerate(_calibration_runs(found)):
        bins = metrics.calibration(right_tokens(run, determined, answers))
        if not bins:
            continue
        colour, marker, line = _style(number)
        most = max(entry.count for entry in bins)
        at = [entry.confidence for entry in bins], [entry.right for entry in bins]
        axes.plot(*at, color=colour, ls=line, linewidth=1)
        sizes = [8 + 60 * entry.count / most for entry in bins]
        axes.scatter(*at, s=sizes, color=colour, marker=marker, label=name)
    axes.set_xlabel("confidence when committed")
    axes.set_ylabel("share of right tokens")
    axes.legend(fontsize=7, frameon=False)
    return figure


def insert(page: Path, figures_text: str) -> None:
    """Replace what stands between the two marks of a page.

    Raises `ConfigError` for a page that cannot be read or has no marks.
    """
    try:
        old = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"task.card: {page} cannot be read: {error}") from None
    head, begin, rest = old.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"task.card: {page} must hold the lines {BEGIN} and {END}")
    page.write_text(f"{head}{BEGIN}\n\n{figures_text}\n\n{END}{tail}", encoding="utf-8")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
