"""Intervals, paired comparisons and rank correlation; all pure, all seeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dllm_decode.errors import ConfigError, require_count, require_in_range

Numbers = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A number with its confidence interval.

    Attributes:
        value: The number.
        low: Lower bound, at most the number; NaN where there is none.
        high: Upper bound, at least the number; NaN where there is none.

    Examples:
        >>> Interval(0.9, low=0.85, high=0.94)
        Interval(value=0.9, low=0.85, high=0.94)
    """

    value: float
    low: float
    high: float

    def excludes(self, number: float) -> bool:
        """Whether a number is outside; of unknown bounds nothing is known.

        Args:
            number: In the unit of the interval.
        """
        return self.low > number or self.high < number


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Source: Wilson, JASA 22 (1927).

    Args:
        successes: p n, from 0 to n.
        trials: n, 1 or more.
        level: Coverage, in (0, 1); z is the normal quantile of (1 + level) / 2.

    Returns:
        The share with its bounds, all in [0, 1].

    Raises:
        ConfigError: A value is out of range.
    """
    require_count("trials", trials)
    require_in_range("successes", successes, 0, trials)
    require_in_range("level", level, 0, 1, open_low=True, open_high=True)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / trials
    middle = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # rounding must not push the bounds past the share at 0 and 1
    low = min(share, max(0.0, (middle - reach) / scale))
    high = max(share, min(1.0, (middle + reach) / scale))
    return Interval(share, low, high)


def bootstrap_ratio(
    top: Numbers, bottom: Numbers, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap of sum(top) / sum(bottom) over problems; a mean has bottom = 1, 1, ...

    Args:
        top: One number per problem.
        bottom: One number per problem, in the same order.
        draws: Resamples, 1 or more, each with as many problems as there are.
        level: Coverage, in (0, 1).
        seed: Of the draws.

    Returns:
        The ratio with its bounds, NaN where sum(bottom) is 0.

    Raises:
        ConfigError: The lengths differ or are 0, or a value is out of range.
    """
    return _bootstrapped(_paired(top, bottom).tobytes(), draws, level, seed)


@lru_cache(maxsize=4096)
def _bootstrapped(pair: bytes, draws: int, level: float, seed: int) -> Interval:
    """`bootstrap_ratio`; tables and figures of a report ask for the same ones several times."""
    values = np.frombuffer(pair).reshape(2, -1)
    return _interval(_ratio(values.sum(1)), _ratio(resampled(values, draws, seed)), level)


@dataclass(frozen=True)
class Comparison:
    """A paired difference `first - second` with its interval.

    Attributes:
        difference: The mean over problems, with its bounds.
        p_value: Two-sided: the share of resamples on the far side of 0, doubled, at most 1.
        problems: How many were compared.

    Examples:
        >>> Comparison(Interval(0.02, -0.01, 0.05), p_value=0.2, problems=500).difference
        Interval(value=0.02, low=-0.01, high=0.05)
    """

    difference: Interval
    p_value: float
    problems: int


def paired_bootstrap(
    first: Numbers, second: Numbers, *, draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> Comparison:
    """Mean difference of two runs on the same problems, by resampling problems.

    Args:
        first: One value per problem, 0 or 1 for accuracy.
        second: One value per problem, in the same order.
        draws: Resamples, 1 or more, each with as many problems as there are.
        level: Coverage, in (0, 1).
        seed: Of the draws.

    Raises:
        ConfigError: The lengths differ or are 0, or a value is out of range.
    """
    pair = _paired(first, second)
    gaps = pair[0] - pair[1]
    means = resampled(gaps[None], draws, seed)[0] / len(gaps)
    tail = min((means <= 0).mean(), (means >= 0).mean())
    return Comparison(
        _interval(float(gaps.mean()), means, level), min(1.0, 2 * float(tail)), len(gaps)
    )


def kendall_tau(first: Numbers, second: Numbers) -> float:
    """Kendall's rank correlation tau-b, in [-1, 1]; NaN where one of the two is constant.

        tau_b = (concordant - discordant) / sqrt((n0 - ties_first) (n0 - ties_second))

    Source: Kendall, Biometrika 33 (1945).

    Args:
        first: Any numbers.
        second: As many.

    Raises:
        ConfigError: The lengths differ or are 0.
    """
    a, b = _paired(first, second)
    agree = differ_first = differ_second = 0
    for gap in range(1, len(a)):  # all pairs of long sequences at once would fill the memory
        rise, other = _rises(a, gap), _rises(b, gap)
        agree += int((rise * other).sum())
        differ_first += int(np.count_nonzero(rise))
        differ_second += int(np.count_nonzero(other))
    return float(_tau(*map(np.array, (agree, differ_first, differ_second))))


def orders(sequences: Sequence[Sequence[int]]) -> list[float]:
    """`kendall_tau` of place and value for each of many sequences; NaN for one value or none."""
    found = [math.nan] * len(sequences)
    like: dict[int, list[int]] = {}  # of like length, so that one long sequence does not cost all
    for number, sequence in enumerate(sequences):
        if len(sequence) > 1:
            like.setdefault((len(sequence) - 1).bit_length(), []).append(number)
    for numbers in like.values():
        taus = _orders([sequences[number] for number in numbers])
        for number, tau in zip(numbers, taus.tolist(), strict=True):
            found[number] = tau
    return found


def _orders(sequences: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """`orders` of sequences of like length, filled up with NaN.

    Places always rise, so that only the values are compared.
    """
    lengths = np.array(list(map(len, sequences)))
    there = np.arange(lengths.max()) < lengths[:, None]
    whole = np.fromiter(chain.from_iterable(sequences), dtype=np.int64)
    # the narrowest kind that holds them as they are
    exact = np.float32 if np.abs(whole).max() < 2**24 else np.float64
    values = np.full(there.shape, np.nan, dtype=exact)
    values[there] = whole
    values = np.ascontiguousarray(values.T)
    # of like pairs of one distance there are fewer than places, and small counts add up faster
    count = np.int8 if len(values) <= np.iinfo(np.int8).max else np.int64
    more, same = np.zeros(len(lengths), dtype=np.int64), np.zeros(len(lengths), dtype=np.int64)
    for gap in range(1, len(values)):
        front, back = values[:-gap], values[gap:]
        more += (back > front).view(np.int8).sum(0, dtype=count)
        same += (back == front).view(np.int8).sum(0, dtype=count)
    pairs = lengths * (lengths - 1) // 2
    return _tau(2 * more + same - pairs, pairs, pairs - same)


def _tau(
    agree: NDArray[np.int64], differ_first: NDArray[np.int64], differ_second: NDArray[np.int64]
) -> NDArray[np.float64]:
    """tau-b of how many pairs agree more than disagree, and differ in the first and the second."""
    scale = np.sqrt(differ_first.astype(np.float64) * differ_second.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        taus: NDArray[np.float64] = np.where(scale == 0, np.nan, agree / scale)
    return taus


def _rises(values: NDArray[Any], gap: int) -> NDArray[np.int8]:
    """1, 0 or -1 for each pair of places `gap` apart: the second is more, the same, or less."""
    front, back = values[:-gap], values[gap:]
    return (back > front).view(np.int8) - (back < front).view(np.int8)


def _paired(first: Numbers, second: Numbers) -> NDArray[np.float64]:
    if len(first) != len(second):
        raise ConfigError(
            f"paired values must have the same length, got {len(first)} and {len(second)}"
        )
    if len(first) == 0:
        raise ConfigError("a statistic needs at least one problem, got none")
    return np.array([first, second], dtype=np.float64)


def resampled(values: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Sums over resamples of the problems.

    A resample says only how often each problem is in it, so that all sums are products with one
    matrix of counts, which is made once per number of problems and seed.

    Args:
        values: (figures, problems).
        draws: How many resamples, each with as many problems as there are.
        seed: Of the draws.

    Returns:
        (figures, draws).
    """
    counts = _counts(values.shape[1], draws, seed)
    sums = np.empty((draws, len(values)))
    for begin in range(0, draws, _ROWS):
        part = slice(begin, begin + _ROWS)
        sums[part] = counts[part].astype(np.float64) @ values.T
    return sums.T


_ROWS = 32  # resamples that are drawn or summed at once, which fit into a core's cache


@lru_cache(maxsize=8)
def _counts(problems: int, draws: int, seed: int) -> NDArray[np.uint16]:
    """(draws, problems): how often each resample has each problem."""
    require_count("draws", draws)
    random = np.random.default_rng(seed)
    counts = np.empty((draws, problems), dtype=np.uint16)
    for begin in range(0, draws, _ROWS):
        rows = min(_ROWS, draws - begin)
        drawn = random.integers(0, problems, size=(rows, problems))
        drawn += problems * np.arange(rows)[:, None]  # each row counts for itself
        part = np.bincount(drawn.ravel(), minlength=rows * problems)
        counts[begin : begin + rows] = part.reshape(rows, problems)
    return counts


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        shares: NDArray[np.float64] = np.where(sums[1] == 0, np.nan, sums[0] / sums[1])
    return shares


def _interval(
    value: float | NDArray[np.float64], draws: NDArray[np.float64], level: float
) -> Interval:
    require_in_range("level", level, 0, 1, open_low=True, open_high=True)
    middle = float(value)
    if not np.isfinite(draws).all():
        return Interval(middle, math.nan, math.nan)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(middle, min(middle, float(low)), max(middle, float(high)))
