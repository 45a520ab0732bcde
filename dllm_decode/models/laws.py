"""The exact output laws of the toy worlds, and how far a decode is from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dllm_decode.errors import ConfigError


def kl_divergence(target: Mapping[Any, float], law: Mapping[Any, float]) -> float:
    """KL(target || law) in bits: sum_y p(y) log2(p(y) / q(y)); infinite where q misses an outcome.

    Args:
        target: The joint distribution of a toy world, outcomes to probabilities that sum to 1.
        law: The exact distribution of a strategy's output, likewise.

    Raises:
        ConfigError: The probabilities of one of them do not sum to 1.
    """
    _check_law("target", target)
    _check_law("law", law)
    total = 0.0
    for outcome, p in target.items():
        if p > 0:
            q = law.get(outcome, 0.0)
            total += p * math.log2(p / q) if q > 0 else math.inf
    return max(0.0, total)


def total_variation(target: Mapping[Any, float], law: Mapping[Any, float]) -> float:
    """Half the sum over outcomes of |p - q|, in [0, 1]; see `kl_divergence`.

    Args:
        target: Probability of each outcome, p.
        law: Likewise, q.
    """
    _check_law("target", target)
    _check_law("law", law)
    outcomes = {*target, *law}
    return 0.5 * sum(abs(target.get(y, 0.0) - law.get(y, 0.0)) for y in outcomes)


def empirical_law(sequences: Sequence[Sequence[int]]) -> dict[tuple[int, ...], float]:
    """Share of each outcome among decoded sequences."""
    law: dict[tuple[int, ...], float] = {}
    for sequence in sequences:
        key = tuple(sequence)
        law[key] = law.get(key, 0.0) + 1 / len(sequences)
    return law


def law_of_partition(
    joint: Mapping[tuple[int, ...], float], steps: Sequence[Sequence[int]]
) -> dict[tuple[int, ...], float]:
    """Exact output distribution of decoding fixed groups of positions at temperature 1.

        q(y) = prod_t prod_{j in S_t} p(y_j | y_{S_1}, ..., y_{S_{t-1}})

    KL(joint || q) is the bound L_T, and one group of all positions gives the total correlation;
    arXiv 2510.04767, section 3.

    Args:
        joint: Outcomes, tuples of equal length, to probabilities.
        steps: The positions S_1, S_2, ... that together are 0 .. n - 1, each once.

    Raises:
        ConfigError: The steps are no partition.
    """
    _check_law("joint", joint)
    length = len(next(iter(joint)))
    if sorted(place for group in steps for place in group) != list(range(length)):
        raise ConfigError(f"steps must hold each position 0 to {length - 1} once, got {steps}")
    law: dict[tuple[int, ...], float] = {(): 1.0}
    known: list[int] = []
    for group in steps:
        grown: dict[tuple[int, ...], float] = {}
        for past, weight in law.items():
            for choice, share in _independent(joint, known, past, group).items():
                key = (*past, *choice)
                grown[key] = grown.get(key, 0.0) + weight * share
        law = grown
        known += group
    places = [known.index(place) for place in range(length)]
    return {tuple(outcome[place] for place in places): q for outcome, q in law.items()}


def _independent(
    joint: Mapping[tuple[int, ...], float],
    known: Sequence[int],
    past: tuple[int, ...],
    group: Sequence[int],
) -> dict[tuple[int, ...], float]:
    """The product of the group's marginals given what is known; uniform where it cannot happen."""
    fits = {
        outcome: p
        for outcome, p in joint.items()
        if all(outcome[place] == token for place, token in zip(known, past, strict=True))
    }
    fits = fits or dict(joint)  # an impossible past: any continuation, it is lost already
    mass = sum(fits.values())
    choices: dict[tuple[int, ...], float] = {(): 1.0}
    for place in group:
        marginal: dict[int, float] = {}
        for outcome, p in fits.items():
            marginal[outcome[place]] = marginal.get(outcome[place], 0.0) + p / mass
        choices = {
            (*chosen, token): weight * share
            for chosen, weight in choices.items()
            for token, share in marginal.items()
        }
    return choices


def _check_law(name: str, law: Mapping[Any, float]) -> None:
    total = sum(law.values())
    if not law or min(law.values()) < 0 or abs(total - 1) > 1e-6:
        raise ConfigError(f"{name} must hold probabilities that sum to 1, got a sum of {total:g}")
