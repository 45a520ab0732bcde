"""Rows of a report and the forms they are written in."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from dllm_decode.evaluation import metrics
from dllm_decode.evaluation.curves import above_curve
from dllm_decode.evaluation.metrics import Samples, Speedup
from dllm_decode.evaluation.statistics import Interval, resampled
from dllm_decode.evaluation.store import EvalRun

ALL = "all families"


@dataclass(frozen=True)
class Row:
    """One run on one family, or on all of them together.

    Attributes:
        strategy: Name of the run.
        family: Name of the family, `ALL` for all of them together.
        problems: How many.
        accuracy: Share in [0, 1].
        forwards: Passes per problem.
        tokens_per_forward: Delivered tokens per pass.
        slots_per_forward: Requested columns per pass.
        tokens_per_second: Delivered tokens over wall time.
        seconds_per_problem: Wall time.
        wasted_forwards: Passes per problem that decided nothing delivered.
        decoding_order: Kendall's tau of position and step, in [-1, 1].
        redundancy: Share of tokens in [0, 1] that were proposed before their commit.
        speedup: Against the sequential run, None without one on the same problems.
        headroom: Share of the oracle's tokens per forward, None without one on the same problems.
        over_thresholds: Accuracy, a share, over that of plain thresholds with as many forwards, see
            `over_thresholds`; None without thresholds on the same problems.
        strict: Share of answers that are right and in the form that was asked for.
        is_oracle: Whether the run imitates a reference decode.
    """

    strategy: str
    family: str
    problems: int
    accuracy: Interval
    forwards: Interval
    tokens_per_forward: Interval
    slots_per_forward: float
    tokens_per_second: float
    seconds_per_problem: float
    wasted_forwards: float
    decoding_order: float
    redundancy: float
    speedup: Speedup | None
    headroom: float | None
    over_thresholds: Interval | None = None
    strict: float = math.nan
    is_oracle: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: What stands above it.
        unit: In parentheses behind the head, "" for none.
        numeric: Whether it is set to the right.

    Examples:
        >>> Column("accuracy", "%").numeric
        True
    """

    head: str
    unit: str
    numeric: bool = True


COLUMNS: dict[str, Column] = {
    "strategy": Column("strategy", "", False),
    "family": Column("family", "", False),
    "problems": Column("problems", ""),
    "accuracy": Column("accuracy", "% [95 %]"),
    "strict": Column("in the form asked for", "% right"),
    "forwards": Column("forwards", "per problem"),
    "tokens_per_forward": Column("tokens per forward", "[95 %]"),
    "speedup_forwards": Column("speedup", "in forwards"),
    "speedup_useful": Column("speedup", "in forwards, padding left out"),
    "speedup_wall": Column("speedup", "in wall time"),
    "headroom": Column("of oracle", "%"),
    "over_thresholds": Column("over thresholds", "points at equal forwards [95 %]"),
    "slots_per_forward": Column("slots per forward", "counts padding"),
    "wasted_forwards": Column("wasted forwards", "per problem"),
    "decoding_order": Column("order", "Kendall's tau of position and step"),
    "redundancy": Column("proposed before commit", "% of tokens"),
    "tokens_per_second": Column("tokens per second", ""),
    "seconds_per_problem": Column("time", "ms per problem"),
}


def rows_of(
    runs: Sequence[EvalRun], family: str | None, thresholds: Sequence[EvalRun] = ()
) -> list[Row]:
    """One row per run, in the order of the runs.

    Args:
        runs: Those to compare; the sequential ones and the oracle are found among them.
        family: The one whose problems count, None for all of them.
        thresholds: Runs on more problems, among which plain thresholds are looked for as well.
    """
    oracle = next((run for run in runs if is_oracle(run)), None)
    rows = []
    gaps = over_thresholds(runs, family, thresholds)
    for run, gap in zip(runs, gaps, strict=True):
        base = sequential_of(run, runs)
        key = (family, id(base), id(oracle))
        if key not in run.computed:
            # with the runs themselves, so that their identities are not given away again
            run.computed[key] = _row(run, family, base, oracle), base, oracle
        rows.append(replace(run.computed[key][0], over_thresholds=gap))
    return rows


def _row(
    run: EvalRun, family: str | None, sequential: EvalRun | None, oracle: EvalRun | None
) -> Row:
    samples = run.of(family)
    base = sequential.of(family) if sequential is not None else None
    best = oracle.of(family) if oracle is not None else None
    return Row(
        strategy=run.name,
        family=family or ALL,
        problems=len(samples),
        accuracy=metrics.accuracy(samples),
        forwards=metrics.forwards_per_problem(samples),
        tokens_per_forward=metrics.tokens_per_forward(samples),
        slots_per_forward=metrics.slots_per_forward(samples),
        tokens_per_second=metrics.tokens_per_second(samples),
        seconds_per_problem=metrics.seconds_per_problem(samples),
        wasted_forwards=metrics.wasted_forwards(samples),
        decoding_order=metrics.decoding_order(samples),
        redundancy=metrics.temporal_redundancy(samples),
        speedup=metrics.speedup(samples, base) if _comparable(base, samples) else None,
        headroom=metrics.headroom(samples, best) if _comparable(best, samples) else None,
        strict=metrics.accuracy_strict(samples),
        is_oracle=is_oracle(run),
    )


def _comparable(other: Samples | None, samples: Samples) -> TypeGuard[Samples]:
    return bool(other) and metrics.same_problems(samples, other or ())


_DRAWS = 1000
_FEWEST = 8  # problems; resamples of fewer are often all alike, as if nothing were uncertain


def over_thresholds(
    runs: Sequence[EvalRun],
    families: str | Sequence[str] | None,
    thresholds: Sequence[EvalRun] = (),
) -> list[Interval | None]:
    """Accuracy of each run over that of plain thresholds that take as many forwards.

    The control of every rule: a threshold is one number to set, so that a rule is better only where
    no threshold does as well with as many passes. Between the runs of `strategy=threshold` with the
    same schedule, cache, sampler and stop rules accuracy is interpolated over forwards
    (`curves.above_curve`); the interval is a bootstrap over problems, drawn alike for all runs.

    Args:
        runs: On the same problems.
        families: The one or those whose problems count, None for all of them.
        thresholds: Runs on more problems, among which plain thresholds are looked for as well.

    Returns:
        Per run the difference of shares, with NaN for bounds where more than one draw in twenty is
        faster than every threshold, and of fewer than eight problems; None for thresholds, the
        sequential run and the oracle, and where fewer than two thresholds can be compared with.
    """
    if not runs:
        return []
    names = families if families is None or isinstance(families, str) else tuple(families)
    asked = ("gaps", names, *map(id, runs), None, *map(id, thresholds))
    if asked not in runs[0].computed:
        # with the runs themselves, as in `rows_of`
        found = _over_thresholds(runs, names, thresholds)
        runs[0].computed[asked] = found, (*runs, *thresholds)
    gaps: list[Interval | None] = runs[0].computed[asked][0]
    return gaps


def _over_thresholds(
    runs: Sequence[EvalRun],
    families: str | Sequence[str] | None,
    thresholds: Sequence[EvalRun],
) -> list[Interval | None]:
    chosen = {families} if isinstance(families, str) else families
    problems = [s.problem for s in runs[0].samples if chosen is None or s.family in chosen]
    known = set(problems)
    plain = [run for run in (*runs, *thresholds) if is_threshold(run) and run.keys >= known]
    curves = [_to_compare(run, plain) if known and run.keys >= known else [] for run in runs]
    every = list({id(run): run for run in (*runs, *plain)}.values())
    if not any(curves):
        return [None] * len(runs)
    numbers = np.concatenate([numbers_of(run, problems)[:, ::2].T for run in every])
    # the first draw is of all problems, once each
    sums = np.concatenate([numbers.sum(1, keepdims=True), resampled(numbers, _DRAWS, 0)], 1)
    at = {id(run): 2 * place for place, run in enumerate(every)}

    def gap(run: EvalRun, curve: Sequence[EvalRun]) -> Interval | None:
        if not curve:
            return None
        places = np.array([at[id(other)] for other in (run, *curve)])
        return _gap(sums[places], sums[places + 1], len(problems))

    return [gap(run, curve) for run, curve in zip(runs, curves, strict=True)]


def _to_compare(run: EvalRun, plain: Sequence[EvalRun]) -> list[EvalRun]:
    """The plain thresholds with which a run is compared; none for runs that need no control."""
    if any(run is other for other in plain) or is_sequential(run) or is_oracle(run):
        return []
    alike = [
        other
        for other in plain
        if stops(other) == stops(run) and surroundings(other) == surroundings(run)
    ]
    return alike if len(alike) > 1 else []


def _gap(right: NDArray[np.float64], forwards: NDArray[np.float64], problems: int) -> Interval:
    """The difference with its interval; sums (1 + K, 1 + draws), the run itself first."""
    gaps = above_curve(forwards.T, right.T / problems)
    drawn = gaps[1:][~np.isnan(gaps[1:])]
    if problems < _FEWEST or len(drawn) < 0.95 * _DRAWS:
        return Interval(float(gaps[0]), math.nan, math.nan)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(gaps[0]), float(low), float(high))


def numbers_of(run: EvalRun, problems: Sequence[str]) -> NDArray[np.float64]:
    """(problems, 3): right answers, delivered tokens, forwards; of failures the others' mean cost.

    Args:
        run: With samples of these problems.
        problems: Their keys, in the order of the lines.
    """
    samples = run.of(None)
    if "places" not in run.computed:
        run.computed["places"] = {key: place for place, key in enumerate(samples.column("problem"))}
    places: dict[str, int] = run.computed["places"]
    columns = [samples.numbers(name) for name in ("correct", "delivered", "forwards")]
    chosen = np.stack(columns, 1, dtype=np.float64)[[places[problem] for problem in problems]]
    if samples.without_failed is None:
        return chosen
    errors = samples.column("error")
    failed = np.array([bool(errors[places[problem]]) for problem in problems])
    if failed.any() and not failed.all():
        # wrong, but no cheap answers: in what a decode costs they stand for the others
        chosen[failed, 1:] = chosen[~failed, 1:].mean(0)
    return chosen


# What a run is, told from its settings.


def selection(run: EvalRun) -> str:
    """The class of the selection rule, e.g. `Threshold`."""
    strategy = run.settings["strategy"]
    select = strategy.get("select") or strategy
    return str(select.get("_target_", "")).rpartition(".")[2]


def is_oracle(run: EvalRun) -> bool:
    """Whether a run imitates a reference decode."""
    return selection(run) == "Oracle"


def is_plain(run: EvalRun) -> bool:
    """Whether nothing but selection and stop rules acts."""
    strategy = run.settings["strategy"]
    return not strategy.get("transforms") and not strategy.get("filters")


def is_threshold(run: EvalRun) -> bool:
    """Whether a run commits what is above a threshold, and does nothing else."""
    return is_plain(run) and selection(run) == "ConfidenceThreshold"


def is_sequential(run: EvalRun) -> bool:
    """Whether a run decodes one token per step, the most confident one."""
    select = run.settings["strategy"].get("select") or {}
    one = select.get("tokens_per_step") == 1 and select.get("order") == "confidence"
    return is_plain(run) and selection(run) == "TopK" and one


def with_padding_last(run: EvalRun) -> EvalRun | None:
    """The run without its `DeferTokens`, None unless that leaves a sequential run."""
    strategy = run.settings["strategy"]
    names = [str(part.get("_target_")) for part in (strategy.get("transforms") or {}).values()]
    if [name.rpartition(".")[2] for name in names] != ["DeferTokens"]:
        return None
    settings = {**run.settings, "strategy": {**strategy, "transforms": {}}}
    plain = replace(run, results={**run.results, "settings": settings})
    return plain if is_sequential(plain) else None


def surroundings(run: EvalRun) -> tuple[object, ...]:
    """Everything but strategy: schedule, cache, sampler, guidance, and how decodes vote."""
    own = tuple(run.settings.get(name) for name in ("schedule", "cache", "sampler", "guidance"))
    return (*own, run.results.get("voting"))


def stops(run: EvalRun) -> object:
    """The stop rules of a run; rules that never stop are none."""
    rules = run.settings["strategy"].get("stop") or {}
    return {
        name: rule
        for name, rule in rules.items()
        if not str(rule.get("_target_", "")).endswith(".NeverStop")
    }


def sequential_of(run: EvalRun, runs: Sequence[EvalRun]) -> EvalRun | None:
    """The sequential run with the same schedule, cache, sampler and stop rules.

    Args:
        run: That is to be compared.
        runs: To choose from.
    """
    same = [
        other
        for other in runs
        if is_sequential(other)
        and stops(other) == stops(run)
        and surroundings(other) == surroundings(run)
    ]
    return same[0] if same else None


@dataclass(frozen=True)
class WallTime:
    """Wall time of one strategy at one batch size.

    Attributes:
        strategy: Name of its runs.
        batch_size: Problems decoded together.
        problems: In each repetition.
        repetitions: How often it was measured.
        seconds_per_problem: Median, smallest and largest over the repetitions.
        tokens_per_second: Median.
        speedup: Median over the sequential run of the same settings and repetition at the same
            batch size, None without one.

    Examples:
        >>> from dllm_decode.evaluation.statistics import Interval
        >>> WallTime("credit", 8, 500, 3, Interval(0.02, 0.018, 0.022), 400.0, 1.8).speedup
        1.8
    """

    strategy: str
    batch_size: int
    problems: int
    repetitions: int
    seconds_per_problem: Interval
    tokens_per_second: float
    speedup: float | None


def wall_times(runs: Sequence[EvalRun]) -> list[WallTime]:
    """One entry per strategy and batch size, by rising size.

    Returns:
        The entries; none if all runs have the same size and none was made for its wall time.
    """
    sizes = sorted({run.batch_size for run in runs})
    if len(sizes) < 2 and not any(run.timing for run in runs):
        return []
    found = []
    for size in sizes:
        same = [run for run in runs if run.batch_size == size]
        for name in dict.fromkeys(run.name for run in same):
            found.append(_timing([run for run in same if run.name == name], same))
    return found


def _timing(repetitions: Sequence[EvalRun], runs: Sequence[EvalRun]) -> WallTime:
    first = repetitions[0]
    seconds = [metrics.seconds_per_problem(run.samples) for run in repetitions]
    gains = [gain for run in repetitions if (gain := _gain_in_time(run, runs)) is not None]
    return WallTime(
        first.name,
        first.batch_size,
        len(first.samples),
        len(repetitions),
        Interval(median(seconds), min(seconds), max(seconds)),
        median(metrics.tokens_per_second(run.samples) for run in repetitions),
        median(gains) if gains else None,
    )


def _gain_in_time(run: EvalRun, runs: Sequence[EvalRun]) -> float | None:
    base = sequential_of(run, [other for other in runs if other.timing == run.timing])
    if base is None or not metrics.same_problems(run.of(None), base.of(None)):
        return None
    return metrics.speedup(run.of(None), base.of(None)).wall_time


# Forms.


def cells(row: Row) -> dict[str, str]:
    """What people read, by column."""
    speed = row.speedup
    return {
        "strategy": row.strategy,
        "family": row.family,
        "problems": f"{row.problems:,}",
        "accuracy": percent(row.accuracy),
        "strict": _number(100 * row.strict, "{:.1f}"),
        "forwards": f"{row.forwards.value:.1f}",
        "tokens_per_forward": _span(row.tokens_per_forward, 1, 2),
        "speedup_forwards": "-" if speed is None else f"{speed.forwards:.2f}x",
        "speedup_useful": "-" if speed is None else _number(speed.useful, "{:.2f}x"),
        "speedup_wall": "-" if speed is None else _number(speed.wall_time, "{:.2f}x"),
        "headroom": "-" if row.headroom is None else f"{100 * row.headroom:.0f}",
        "over_thresholds": points(row.over_thresholds),
        "slots_per_forward": f"{row.slots_per_forward:.2f}",
        "wasted_forwards": f"{row.wasted_forwards:.1f}",
        "decoding_order": _number(row.decoding_order, "{:+.2f}"),
        "redundancy": _number(100 * row.redundancy, "{:.0f}"),
        "tokens_per_second": _number(row.tokens_per_second, "{:.0f}"),
        "seconds_per_problem": _number(1000 * row.seconds_per_problem, "{:.1f}"),
    }


def percent(share: Interval) -> str:
    """A share with its interval: "98.0 [96.1, 99.0]"."""
    return _span(share, 100, 1)


def points(gap: Interval | None) -> str:
    """A difference of shares in points: "+1.2 [-0.3, +2.7]"; "-" where there is none."""
    if gap is None or math.isnan(gap.value):
        return "-"
    if math.isnan(gap.low):
        return f"{_signed(gap.value)} [open]"
    return f"{_signed(gap.value)} [{_signed(gap.low)}, {_signed(gap.high)}]"


def _signed(share: float) -> str:
    """A share in points with its sign; nothing has none."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _span(interval: Interval, scale: float, digits: int) -> str:
    value, low, high = (scale * x for x in (interval.value, interval.low, interval.high))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def head(name: str) -> str:
    """Head of a column with its unit."""
    column = COLUMNS[name]
    return f"{column.head} ({column.unit})" if column.unit else column.head


def csv_text(rows: Sequence[Row], factors: Mapping[str, Mapping[str, object]] | None = None) -> str:
    """All figures in full precision, one line per row; shares in 0..1, times in seconds.

    Args:
        rows: What it shows, a line each.
        factors: By the name of a run: what tells it from the others, a column each at the end.
    """
    own = factors or {}
    swept = list(dict.fromkeys(name for values in own.values() for name in values))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ranges = ("accuracy", "forwards", "tokens_per_forward")
    plain = ("slots_per_forward", "tokens_per_second", "seconds_per_problem", "wasted_forwards",
             "decoding_order", "redundancy")  # fmt: skip
    names = [f"{name}{end}" for name in ranges for end in ("", "_low", "_high")]
    writer.writerow(
        ["strategy", "family", "problems", *names, *plain, "speedup_forwards", "speedup_wall_time",
         "delivered_tokens_of_sequential", "saved_forwards_from_padding",
         "speedup_useful_forwards", "share_of_oracle", *_GAP,
         "accuracy_strict", *(f"factor: {name}" for name in swept)]
    )  # fmt: skip
    for row in rows:
        spans = [getattr(row, name) for name in ranges]
        speed = row.speedup
        gains = (
            [""] * 5
            if speed is None
            else [_csv(getattr(speed, entry.name)) for entry in fields(Speedup)]
        )
        writer.writerow(
            [_cell(row.strategy), _cell(row.family), row.problems]
            + [repr(x) for span in spans for x in (span.value, span.low, span.high)]
            + [_csv(getattr(row, name)) for name in plain]
            + gains
            + ["" if row.headroom is None else repr(row.headroom)]
            + [*_gap_cells(row.over_thresholds), _csv(row.strict)]
            + [_cell(str(own.get(row.strategy, {}).get(name, ""))) for name in swept]
        )
    return buffer.getvalue()


_GAP = tuple(f"accuracy_over_thresholds{end}" for end in ("", "_low", "_high"))


def _gap_cells(gap: Interval | None) -> list[str]:
    return [""] * 3 if gap is None else [_csv(x) for x in (gap.value, gap.low, gap.high)]


def _cell(text: str) -> str:
    """A text in one line that no spreadsheet takes for a formula."""
    line = " ".join(text.split())
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def _csv(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A Markdown table of runs.

    Args:
        rows: What it shows, a line each.
        columns: Keys of `COLUMNS`.
    """
    filled = [[cells(row)[name] for name in columns] for row in rows]
    numeric = [COLUMNS[name].numeric for name in columns]
    return markdown_table([head(name) for name in columns], filled, numeric) + "\n"


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool] = ()
) -> str:
    """A Markdown table.

    Args:
        heads: One per column.
        rows: Cells of each line, as many.
        numeric: Per column, whether it is set to the right; empty for all but the first.
    """
    right = numeric or [False] + [True] * (len(heads) - 1)
    lines = [heads, ["---:" if number else "---" for number in right], *rows]
    return "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)


# What begins something else than text: marks inside of words do not, nor do lone brackets.
_MARKS = re.compile(r"([\\`*|~]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:]))")


def escaped(text: str) -> str:
    """A text for the middle of a Markdown line that shows as it is and brings no HTML along."""
    line = " ".join(text.split())
    return _MARKS.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;"))


def wall_time_cells(times: Sequence[WallTime]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of a table: a line per strategy, three columns per batch size."""
    sizes = sorted({timing.batch_size for timing in times})
    by_key = {(timing.strategy, timing.batch_size): timing for timing in times}
    repeated = any(timing.repetitions > 1 for timing in times)
    heads = ["strategy"]
    for size in sizes:
        heads += [
            f"time at batch {size} (ms per problem{' [range]' if repeated else ''})",
            "tokens per second",
            "speedup (in wall time)",
        ]
    lines = []
    for name in dict.fromkeys(timing.strategy for timing in times):
        line = [name]
        for size in sizes:
            timing = by_key.get((name, size))
            line += ["-"] * 3 if timing is None else _wall_time(timing)
        lines.append(line)
    return heads, lines


def _wall_time(timing: WallTime) -> list[str]:
    seconds = timing.seconds_per_problem
    return [
        f"{1000 * seconds.value:.1f}" if timing.repetitions == 1 else _span(seconds, 1000, 1),
        _number(timing.tokens_per_second, "{:.0f}"),
        "-" if timing.speedup is None else _number(timing.speedup, "{:.2f}x"),
    ]


def wall_time_csv(times: Sequence[WallTime]) -> str:
    """All wall times in full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ["strategy", "batch_size", "problems", "repetitions"]
    ends = ["tokens_per_second", "speedup"]
    writer.writerow(
        [*names, *(f"seconds_per_problem{end}" for end in ("", "_low", "_high")), *ends]
    )
    for timing in times:
        seconds = timing.seconds_per_problem
        span = [seconds.value, seconds.low, seconds.high]
        facts = [_cell(timing.strategy), *(getattr(timing, n) for n in names[1:])]
        values = [*facts, *span, *(getattr(timing, n) for n in ends)]
        writer.writerow("" if value is None else value for value in values)
    return buffer.getvalue()
