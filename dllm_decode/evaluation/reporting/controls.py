"""What a table alone does not say: fair comparisons, made by default and put into words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dllm_decode.evaluation import metrics
from dllm_decode.evaluation.curves import Point, pbx
from dllm_decode.evaluation.reporting.parallel import best_thresholds, order_preferences
from dllm_decode.evaluation.reporting.tables import (
    WallTime,
    is_oracle,
    is_plain,
    is_sequential,
    is_threshold,
    numbers_of,
    over_thresholds,
    points,
    sequential_of,
    stops,
    surroundings,
    with_padding_last,
)
from dllm_decode.evaluation.statistics import Interval, paired_bootstrap, resampled
from dllm_decode.evaluation.store import EvalRun, one_line
from dllm_decode.problems import FAMILIES

_PADDING_SHARE = 0.1

# What notes say; the functions below fill in the figures.
_NOT_DECODED = (
    "{failed} of {problems:,} problems of {run} could not be decoded and count as wrong; the "
    "first: {error}"
)
_NO_CURVE = (
    "{where}. Whether credit beats a plain threshold cannot be said: that needs at least two runs "
    "of strategy=threshold with the same surroundings; add strategy=threshold "
    "strategy.select.threshold=0.5,0.6,0.7,0.8,0.9 to the sweep."
)
_NONE_AS_ACCURATE = (
    "{where}. None of the {count} plain thresholds is as accurate (the best has {best:.1f} %), so "
    "the comparison at equal accuracy is open; add higher thresholds to the sweep."
)
_ALL_SLOWER = (
    "{where}. All plain thresholds that were run are slower and at least as accurate, so the "
    "comparison at equal accuracy is open; add lower thresholds to the sweep."
)
_MATCHED = (
    "{where}. A plain threshold fitted to be as accurate reaches {matched:.2f} (linear "
    "interpolation between {count} thresholds): {verdict}. At the nearest speed, against "
    "{nearest} ({speed:.2f} tokens per forward), {gap}"
)
_AGAINST_THRESHOLDS = (
    "Tokens per forward against a plain threshold fitted to be as accurate (linear interpolation "
    "between thresholds with the same schedule, cache, sampler and stop rules, on the problems of "
    "each run; 95 % intervals over problems, open where no threshold can be fitted): {verdicts}."
)
_EQUAL_FORWARDS = (
    "{run}: {pooled} points of accuracy over plain thresholds at equal forwards{groups}{average}; "
    "{families}."
)
_STOP_ALONE = (
    "The stop rule alone ({alone} against {full}, {problems:,} problems): forwards "
    "divided by {forwards:.2f}, wall time by {wall_time:.2f}, accuracy {share:.1f} % against "
    "{full_share:.1f} %. "
    "Speedups in the table are against the sequential run with the same stop rule, so that this "
    "gain is not in them."
)
_PADDING_PASSES = (
    "Without a stop rule {full} needs {full_passes:.1f} passes per problem, of which "
    "{full_wasted:.0f} % decide nothing that is delivered; with it {wasted:.0f} % of {passes:.1f} "
    "do."
)
_STOP_UNKNOWN = (
    "What the stop rule alone gives is not shown for {runs}, because strategy=sequential with and "
    "without it (strategy/stop=never) was not run with the same schedule, cache and sampler."
)
_PADDING_LAST = (
    "A sequential run that decides padding last ({run}, {problems:,} problems) needs "
    "{passes:.1f} passes per problem instead of {base_passes:.1f}, accuracy {share:.1f} % against "
    "{base_share:.1f} %. Against it, every speedup in forwards is {ratio:.2f} times smaller."
)
_SHORTER = (
    "{run} delivers {fewer:.0f} % fewer tokens than {base}; part of its speedup in forwards is "
    "shorter answers."
)
_PADDING_SAVED = (
    "Of the passes saved against the sequential run, this share decided nothing but padding behind "
    "the end of the answer there: {shares}. The column that leaves padding out counts only passes "
    "that decided something delivered."
)


@dataclass(frozen=True)
class Note:
    """One finding.

    Attributes:
        kind: `not decoded`, `credit`, `thresholds`, `equal forwards`, `best threshold`, `order`,
            `end of text` or `padding`.
        text: One or two sentences.

    Examples:
        >>> Note("gain", "credit needs 1.2 times fewer passes at equal accuracy").kind
        'gain'
    """

    kind: str
    text: str


def notes(
    runs: Sequence[EvalRun], parts: Sequence[EvalRun] = (), times: Sequence[WallTime] = ()
) -> list[Note]:
    """All controls that apply to a set of comparable runs.

    Args:
        runs: On the same problems.
        parts: Runs on some of these at the same batch size, which can serve as controls.
        times: Wall times that go before those of the runs.
    """
    found = [_not_decoded(run) for run in (*runs, *parts) if any(run.samples.column("error"))]
    found += [_credit(run, runs) for run in runs if _has_credit(run)]
    found += _against_thresholds(runs, parts)
    found += [Note("equal forwards", text) for _, text in at_equal_forwards(runs)]
    found += [Note("best threshold", text) for text in best_thresholds(runs)]
    found += [Note("order", text) for text in order_preferences(runs)]
    found += _end_of_text(runs, parts, times)
    found += _padding(runs)
    found += _padding_last(runs, parts)
    return found


def _not_decoded(run: EvalRun) -> Note:
    """Problems that count as wrong because something else went wrong."""
    errors = [sample.error for sample in run.samples if sample.error]
    text = _NOT_DECODED.format(
        failed=len(errors), problems=len(run.samples), run=run.name, error=one_line(errors[0])
    )
    return Note("not decoded", text)


def _has_credit(run: EvalRun) -> bool:
    parts = run.settings["strategy"].get("transforms") or {}
    return any("Credit" in str(part.get("_target_", "")) for part in parts.values())


def _rule_apart_from_threshold(run: EvalRun) -> dict[str, object]:
    """The selection rule of a run without its threshold."""
    select = run.settings["strategy"].get("select") or {}
    return {key: value for key, value in select.items() if key != "threshold"}


def _point(run: EvalRun) -> Point:
    """Tokens per forward and accuracy of a run; both are asked for against every other run."""
    if "point" not in run.computed:
        speed = metrics.tokens_per_forward(run.samples).value
        run.computed["point"] = speed, metrics.accuracy(run.samples).value
    found: Point = run.computed["point"]
    return found


def _credit(run: EvalRun, runs: Sequence[EvalRun]) -> Note:
    """Credit acts as a lower, history-dependent threshold; compare with the plain one tuned."""
    select = run.settings["strategy"].get("select") or {}
    curve = [
        other
        for other in runs
        if is_plain(other)
        and _rule_apart_from_threshold(other) == _rule_apart_from_threshold(run)
        and surroundings(other) == surroundings(run)
        and stops(other) == stops(run)
    ]
    speed, share = _point(run)
    where = f"{run.name}: {100 * share:.1f} % at {speed:.2f} tokens per forward"
    if "threshold" not in select or len(curve) < 2:
        return Note("credit", _NO_CURVE.format(where=where))
    points = [_point(other) for other in curve]
    matched = pbx([(x, 100 * y) for x, y in points], 100 * share) if share > 0 else math.nan
    if math.isnan(matched):
        best = 100 * max(y for _, y in points)
        text = _NONE_AS_ACCURATE.format(where=where, count=len(curve), best=best)
        return Note("credit", text)
    if matched == max(x for x, _ in points) and speed >= matched:
        return Note("credit", _ALL_SLOWER.format(where=where))
    nearest = min(curve, key=lambda other: abs(_point(other)[0] - speed))
    gain = _gain_over_thresholds(run, curve)
    if math.isnan(gain.value):  # all of them are as accurate, and the fastest is faster
        gain = replace(gain, value=speed / matched - 1)
    text = _MATCHED.format(
        where=where,
        matched=matched,
        count=len(curve),
        verdict=_verdict(gain),
        nearest=nearest.name,
        speed=_point(nearest)[0],
        gap=_accuracy_gap(run, nearest),
    )
    return Note("credit", text)


def _against_thresholds(runs: Sequence[EvalRun], parts: Sequence[EvalRun]) -> list[Note]:
    """Every other rule against the curve of plain thresholds, at its own accuracy."""
    plain = [run for run in runs if is_threshold(run)]
    told = []
    for run in (*runs, *parts):
        if run in plain or _has_credit(run) or is_sequential(run) or is_oracle(run):
            continue
        curve = [
            other.on(run.keys)
            for other in plain
            if surroundings(other) == surroundings(run) and stops(other) == stops(run)
        ]
        if len(curve) > 1:
            gain = _gain_over_thresholds(run, curve)
            bounds = f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
            figure = "open" if math.isnan(gain.low) else f"{100 * gain.value:+.1f} % {bounds}"
            told.append(f"{run.name} {figure}")
    text = _AGAINST_THRESHOLDS.format(verdicts=", ".join(told))
    return [Note("thresholds", text)] if told else []


def at_equal_forwards(runs: Sequence[EvalRun]) -> list[tuple[EvalRun, str]]:
    """Every rule against the thresholds that take as many passes, and in which families it wins.

    What is pooled hides more than it shows: most families of a table cannot tell rules apart.

    Args:
        runs: On the same problems.

    Returns:
        A sentence for each run that has such a control, see `tables.over_thresholds`.
    """
    families = list(dict.fromkeys(family for run in runs for family in run.families))
    pooled = over_thresholds(runs, None)
    groups = {words: over_thresholds(runs, names) for words, names in _groups(families).items()}
    each = {
        family: dict(zip((r.name for r in own), over_thresholds(own, family), strict=True))
        for family in families
        if (own := [run for run in runs if family in run.families])
    }
    found = []
    for place, (run, gap) in enumerate(zip(runs, pooled, strict=True)):
        if gap is None or math.isnan(gap.value):
            continue
        parts = [f"{words} {points(gaps[place])}" for words, gaps in groups.items()]
        text = _EQUAL_FORWARDS.format(
            run=run.name,
            pooled=points(gap),
            groups=f" ({'; '.join(parts)})" if parts else "",
            average=_averaged([own.get(run.name) for own in each.values()]),
            families=_told_apart({name: own.get(run.name) for name, own in each.items()}),
        )
        found.append((run, text))
    return found


def _groups(families: Sequence[str]) -> dict[str, list[str]]:
    """Families with one right answer and with many, where there are both."""
    known = [name for name in families if name in FAMILIES]
    one = [name for name in known if FAMILIES[name].determined]
    many = [name for name in known if not FAMILIES[name].determined]
    if not one or not many:
        return {}
    return {"one right answer": one, "many right answers": many}


def _averaged(gaps: Sequence[Interval | None]) -> str:
    """The mean of families that are each compared at their own forwards.

    In a sum over families those with long answers weigh most: a rule may be ahead in the sum and in
    no family. Families have no problem in common, so that variances add up.
    """
    known = [gap for gap in gaps if gap is not None and not math.isnan(gap.value)]
    if len(known) < 2:
        return ""
    mean = sum(gap.value for gap in known) / len(known)
    wide = math.sqrt(sum(((gap.high - gap.low) / 2) ** 2 for gap in known)) / len(known)
    figure = points(Interval(mean, mean - wide, mean + wide))
    of = f"{len(known)} of {len(gaps)}" if len(known) < len(gaps) else f"{len(known)}"
    return f", {figure} on average over {of} families, each at forwards of its own"


def _told_apart(gaps: Mapping[str, Interval | None]) -> str:
    """The families in which the interval leaves zero out, the largest difference first."""
    sure = [(gap.value, name) for name, gap in gaps.items() if gap is not None and gap.excludes(0)]
    if not sure:
        return "in no family can the two be told apart"
    ranked = sorted(sure, key=lambda found: (-abs(found[0]), found[1]))
    return "by family, where zero is outside of the interval: " + ", ".join(
        f"{name} {points(gaps[name])}" for _, name in ranked
    )


def _verdict(gain: Interval) -> str:
    figures = f"{100 * gain.value:+.1f} % tokens per forward"
    if math.isnan(gain.low):
        return (
            f"{figures}, but in some resamples of the problems no threshold can be fitted, so "
            "that there is no telling which is better"
        )
    figures += f" [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    if gain.low <= 0 <= gain.high:
        return f"{figures}, so that the two cannot be told apart"
    return f"{figures}, so that credit {'beats' if gain.low > 0 else 'does not beat'} it"


def _gain_over_thresholds(
    run: EvalRun, curve: Sequence[EvalRun], *, draws: int = 1000, seed: int = 0
) -> Interval:
    """Tokens per forward of a run over those of the threshold that is as accurate, minus 1.

    The interval is a bootstrap over problems, drawn alike for all runs; NaN bounds where more than
    one draw in twenty has no threshold to compare with, below or above.
    """
    problems = run.samples.column("problem")
    numbers = np.concatenate([numbers_of(other, problems) for other in (run, *curve)], 1)
    # the first is of all problems, once each
    sums = np.concatenate([numbers.sum(0)[None], resampled(numbers.T, draws, seed).T])
    gains = [_gain(row.reshape(-1, 3)) for row in sums]
    known = [gain for gain in gains[1:] if not math.isnan(gain)]
    if len(known) < 0.95 * draws:
        return Interval(gains[0], math.nan, math.nan)
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(gains[0], float(low), float(high))


def _gain(sums: NDArray[np.float64]) -> float:
    """`_gain_over_thresholds` of one draw; sums (runs, 3), credit first."""
    speeds = sums[:, 1] / sums[:, 2]
    right = sums[:, 0]
    if right[0] == 0 or right[1:].min() >= right[0]:  # the curve ends before it
        return math.nan
    # only ratios of accuracies matter, so that counts of right answers will do
    share = 100 * right / right.max()
    points = list(zip(speeds[1:].tolist(), share[1:].tolist(), strict=True))
    return float(speeds[0]) / pbx(points, float(share[0])) - 1


def _accuracy_gap(run: EvalRun, other: EvalRun) -> str:
    problems = run.samples.column("problem")
    ours, theirs = (numbers_of(one, problems)[:, 0] for one in (run, other))
    result = paired_bootstrap(ours, theirs)
    d = result.difference
    return (
        f"the difference in accuracy is {100 * d.value:+.1f} points "
        f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}] (paired bootstrap, p = {result.p_value:.2f})."
    )


def _end_of_text(
    runs: Sequence[EvalRun], parts: Sequence[EvalRun], times: Sequence[WallTime]
) -> list[Note]:
    """What stopping at the end of text alone gives, apart from any selection rule."""
    found = []
    stopping = [run for run in runs if is_sequential(run) and stops(run)]
    missing: list[str] = []
    seen: list[object] = []
    for run in runs:
        rule = (stops(run), surroundings(run))
        if not stops(run) or rule in seen:
            continue
        seen.append(rule)
        alone = next((r for r in stopping if (stops(r), surroundings(r)) == rule), None)
        full = next(
            (
                r
                for r in (*runs, *parts)
                if is_sequential(r) and not stops(r) and surroundings(r) == surroundings(run)
            ),
            None,
        )
        if alone is None or full is None:
            missing += [r.name for r in runs if (stops(r), surroundings(r)) == rule]
            continue
        found += _stop_alone(_same_problems(alone, full), full, times)
    if missing:
        found.append(Note("end of text", _STOP_UNKNOWN.format(runs=", ".join(missing))))
    return found


def _stop_alone(alone: EvalRun, full: EvalRun, times: Sequence[WallTime]) -> list[Note]:
    """A sequential run with the stop rule against one without it, on the same problems."""
    gain = metrics.speedup(alone.samples, full.samples)
    stop = _STOP_ALONE.format(
        alone=alone.name,
        full=full.name,
        problems=len(full.samples),
        forwards=gain.forwards,
        wall_time=_time_ratio(full, alone, times) or gain.wall_time,
        share=_accuracy(alone),
        full_share=_accuracy(full),
    )
    padding = _PADDING_PASSES.format(
        full=full.name,
        full_passes=_forwards(full),
        full_wasted=100 * _wasted_share(full),
        wasted=100 * _wasted_share(alone),
        passes=_forwards(alone),
    )
    return [Note("end of text", stop), Note("padding", padding)]


def _accuracy(run: EvalRun) -> float:
    """Share of right answers in %."""
    return 100 * metrics.accuracy(run.samples).value


def _time_ratio(run: EvalRun, other: EvalRun, times: Sequence[WallTime]) -> float | None:
    """Wall time of one run over that of another at their batch size, None where not measured."""
    found = {t.strategy: t.seconds_per_problem for t in times if t.batch_size == run.batch_size}
    if run.name not in found or other.name not in found:
        return None
    return found[run.name].value / found[other.name].value


def _same_problems(run: EvalRun, other: EvalRun) -> EvalRun:
    """A run on the problems of another one."""
    return run.on(other.keys)


def _wasted_share(run: EvalRun) -> float:
    """Share of the passes that decide nothing delivered."""
    return metrics.wasted_forwards(run.samples) / _forwards(run)


def _forwards(run: EvalRun) -> float:
    return metrics.forwards_per_problem(run.samples).value


def _padding_last(runs: Sequence[EvalRun], parts: Sequence[EvalRun]) -> list[Note]:
    """The baseline against one that decides padding last, which makes all speedups smaller."""
    found = []
    for run in (*runs, *parts):
        late = with_padding_last(run)
        base = late and sequential_of(late, runs)
        if base:
            base = _same_problems(base, run)
            text = _PADDING_LAST.format(
                run=run.name,
                problems=len(run.samples),
                passes=_forwards(run),
                base_passes=_forwards(base),
                share=_accuracy(run),
                base_share=_accuracy(base),
                ratio=metrics.speedup(run.samples, base.samples).forwards,
            )
            found.append(Note("padding", text))
    return found


def _padding(runs: Sequence[EvalRun]) -> list[Note]:
    """Notes where passes were saved that decided nothing delivered, or less was delivered."""
    found: list[Note] = []
    shares: list[tuple[float, str]] = []
    for run in runs:
        base = sequential_of(run, runs)
        if base is None or base is run:
            continue
        gain = metrics.speedup(run.samples, base.samples)
        if gain.forwards > 1 and gain.padding > _PADDING_SHARE:
            shares.append((gain.padding, run.name))
        if gain.forwards > 1 and gain.tokens < 1 - _PADDING_SHARE:
            fewer = 100 * (1 - gain.tokens)
            text = _SHORTER.format(run=run.name, fewer=fewer, base=base.name)
            found.append(Note("padding", text))
    if shares:
        listing = ", ".join(f"{name} {100 * share:.0f} %" for share, name in sorted(shares))
        found.append(Note("padding", _PADDING_SAVED.format(shares=listing)))
    return found
