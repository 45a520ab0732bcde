"""Entropy-bounded unmasking: as many positions as their joint uncertainty allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dllm_decode.decoding.selection import order_scores, ordered, ranks
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_choice, require_in_range


@dataclass(frozen=True)
class EntropyBound(Strategy):
    """Commit the longest prefix of the sorted positions whose entropies, less the largest, fit.

        k = largest k with  sum_{j<=k} H(j) - max_{j<=k} H(j) <= bound, at least 1

    over the open positions of the row in the given order. The left-hand side bounds the mutual
    information that is lost by drawing the k tokens independently.

    Source: EB-Sampler, arXiv 2505.24857. The maximum runs along the sorted positions of one row,
    never over the rows of a batch.

    Args:
        bound: 0 or more, in `unit`.
        unit: of the bound, `nats` or `bits`.
        order: `entropy` (lowest first) or `confidence` (highest first); lower columns first on
            ties.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Shuffle
        >>> Shuffle(n=4).answer(EntropyBound(0.1), "abcd")  # any order of the items is right
        ('abcd', 4)
        >>> Shuffle(n=4).answer(EntropyBound(1.5), "abcd")
        ('adba', 2)
    """

    bound: float = 0.1
    unit: str = "nats"
    order: str = "entropy"
    request_parameters: ClassVar[tuple[str, ...]] = ("bound",)

    def __post_init__(self) -> None:
        require_choice("unit", self.unit, ("nats", "bits"))
        require_in_range("bound", self.bound, 0.0, 1e6, unit=self.unit)
        require_choice("order", self.order, ("entropy", "confidence"))

    def decide(self, view: StepView, memory: None) -> Decision:
        """The longest prefix within the bound."""
        scores = order_scores(view, self.order)
        entropy = view.pred.entropy.double().masked_fill(~view.open, float("inf"))
        entropy = entropy.gather(1, ordered(scores, view.open))
        cost = entropy.cumsum(1) - entropy.cummax(1).values
        bound = view.parameter("bound", self.bound, cost)
        bound = bound * math.log(2.0) if self.unit == "bits" else bound
        # inf - inf behind the last open position is NaN, which is never within the bound
        count = (cost <= bound).sum(1).clamp(min=1)
        return Decision(view.open & (ranks(scores, view.open) < count[:, None]), scores=scores)
