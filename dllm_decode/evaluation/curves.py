"""Accuracy against parallelism: Pareto front, AUP, PBx, and a rule's match on another's curve."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dllm_decode.errors import ConfigError, require_in_range

Point = tuple[float, float]  # (tokens per forward, accuracy)


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other point beats, by rising tokens per forward.

    A point is beaten by one that is at least as good in both and better in one; of equal points
    the first counts.

    Args:
        points: (tokens per forward, accuracy) in any order.
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i))
    front: list[int] = []
    best = -math.inf
    for index in order:
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front[::-1]


def aup(points: Sequence[Point], best_accuracy: float | None = None) -> float:
    """Accuracy under parallelism: area under accuracy against tokens per forward, weighted.

        W(y)  = min(exp(-3 (1 - y / y_max)), 1)
        AUP   = x_1 y_1 + sum_{i >= 2} (x_i - x_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2

    The figure depends on what else is in the table (y_max), and its first term is not weighted.

    Source: d3LLM, arXiv 2601.07568. Deviation: their code refuses a curve whose last point has
    fallen by more than 5 %; here that point does not count.

    Args:
        points: (tokens per forward x, accuracy y in %) in any order; those more than 5 % below the
            accuracy of the slowest one are left out.
        best_accuracy: y_max, the best accuracy of all methods that are compared, in %; None: of
            these points.

    Returns:
        The area, in % x tokens per forward.

    Raises:
        ConfigError: There are no points, or y_max is below the best one.
    """
    if not points:
        raise ConfigError("AUP needs at least one point, got none")
    curve = sorted(points)
    curve = [point for point in curve if point[1] >= curve[0][1] - 5]
    top = max(y for _, y in curve) if best_accuracy is None else best_accuracy
    if top < max(y for _, y in curve) or top <= 0:
        raise ConfigError(
            f"best_accuracy must be positive and at least that of every point, got {top}"
        )
    weighted = [y * min(math.exp(-3 * (1 - y / top)), 1.0) for _, y in curve]
    area = curve[0][0] * curve[0][1]
    for i in range(1, len(curve)):
        area += (curve[i][0] - curve[i - 1][0]) * (weighted[i] + weighted[i - 1]) / 2
    return area


def pbx(points: Sequence[Point], accuracy: float, *, interpolate: bool = True) -> float:
    """PBx: the most tokens per step at which the average accuracy is still x %.

    Of points with equal tokens per step the more accurate one counts.

    Source: the leaderboard rule of ParallelBench, arXiv 2510.04767.

    Args:
        points: (slot-based tokens per step, accuracy in %) in any order.
        accuracy: x, in (0, 100].
        interpolate: Linearly between neighbouring points, as for adaptive rules; without it the
            fastest measured point counts, as for fixed numbers of tokens per step.

    Returns:
        Tokens per step, NaN where x is never reached.

    Raises:
        ConfigError: The accuracy is out of range.
    """
    require_in_range("accuracy", accuracy, 0, 100, open_low=True, unit="%")
    best: dict[float, float] = {}
    for x, y in points:
        best[x] = max(y, best.get(x, -math.inf))
    curve = sorted(best.items())
    reached = [x for x, y in curve if y >= accuracy]
    if not reached:
        return math.nan
    last = reached[-1]
    behind = [point for point in curve if point[0] > last]
    if not interpolate or not behind:
        return last
    (x0, y0), (x1, y1) = (last, best[last]), behind[0]
    return x0 + (x1 - x0) * (y0 - accuracy) / (y0 - y1)


def above_curve(costs: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much a point is above the curve through others at its own cost.

        shares[d, 0] - c_d(costs[d, 0]),   c_d linear between the points (costs[d, k], shares[d, k])

    Of points with equal costs the best one counts. Behind the dearest point the curve goes on at
    its height, since who may spend more need not; in front of the cheapest one there is no curve.

    Args:
        costs: (draws, 1 + K) what each point costs (forwards); the first one is compared with the
            others.
        shares: (draws, 1 + K) what it reaches (accuracy).

    Returns:
        (draws,) differences, NaN where the point is cheaper than every other one.

    Examples:
        >>> costs, shares = np.array([[3.0, 2.0, 4.0]]), np.array([[0.9, 0.5, 0.7]])
        >>> above_curve(costs, shares).round(3).tolist()
        [0.3]
    """
    own, x = costs[:, :1], costs[:, 1:]
    equal = x[:, :, None] == x[:, None, :]
    y = np.where(equal, shares[:, None, 1:], -np.inf).max(2)
    below = np.where(x <= own, x, -np.inf)
    above = np.where(x >= own, x, np.inf)
    left, right = below.argmax(1, keepdims=True), above.argmin(1, keepdims=True)
    x0, x1 = np.take_along_axis(below, left, 1), np.take_along_axis(above, right, 1)
    y0, y1 = np.take_along_axis(y, left, 1), np.take_along_axis(y, right, 1)
    within = (x1 > x0) & np.isfinite(x0) & np.isfinite(x1)
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.where(within, (own - x0) / (x1 - x0), 0.0)
    reached = np.where(np.isfinite(x0), y0 + weight * np.where(within, y1 - y0, 0.0), np.nan)
    found: NDArray[np.float64] = (shares[:, :1] - reached)[:, 0]
    return found


def parallelizability(points: Sequence[Point]) -> float:
    """Mean tokens per step of a sweep, weighted with the score.

        sum_k k score_k / sum_k score_k

    Large where the score stays up when more tokens are decided together; it depends on the steps
    that were tried, so compare sweeps over the same ones.

    Source: ParallelBench, arXiv 2510.04767.

    Args:
        points: (tokens per step k, score) of each run.

    Returns:
        Tokens per step, NaN where every score is 0.

    Examples:
        >>> parallelizability([(1.0, 100.0), (2.0, 50.0)])
        1.3333333333333333
    """
    total = math.fsum(y for _, y in points)
    return math.fsum(x * y for x, y in points) / total if total else math.nan


def slope(points: Sequence[Point]) -> float:
    """Slope of the least-squares line through points; NaN where all x are the same.

    ParallelBench's order preference is this for (block length, score) at two tokens per step.

    Args:
        points: (x, y) of each.

    Examples:
        >>> slope([(1.0, 5.0), (3.0, 4.0)])
        -0.5
    """
    x0 = math.fsum(x for x, _ in points) / len(points)
    y0 = math.fsum(y for _, y in points) / len(points)
    spread = math.fsum((x - x0) ** 2 for x, _ in points)
    return math.fsum((x - x0) * (y - y0) for x, y in points) / spread if spread else math.nan
