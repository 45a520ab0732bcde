"""LocalLeap: around what the model is sure of, less is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding.selection import order_scores, reaching
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_count, require_in_range


@dataclass(frozen=True)
class LocalLeap(Strategy):
    """Commit anchors, and what stands near an anchor and reaches a lower threshold.

        A = { i : c(i) >= threshold }
        commit i  iff  i in A  or  c(i) >= relaxed and |i - j| <= radius for some j in A
                       or  i is the most confident open position of the row

    Anchors are open positions of this step; what was decided before is none.

    Source: LocalLeap, read from the port in the released code of DAWN (arXiv 2602.06953).
    Deviation: distances are counted in canvas columns, also where a window has gaps.

    Args:
        threshold: probability of an anchor, [0, 1].
        relaxed: probability asked near an anchor, [0, 1]; without effect from `threshold` on.
        radius: how far an anchor reaches, in columns, 1 or more.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy, Shuffle
        >>> Copy(n=4).answer(LocalLeap(), "abcd")
        ('abcd', 1)
        >>> Shuffle(n=6).answer(LocalLeap(radius=2), "abcdef")  # sure of the end and the last item
        ('feadbc', 7)
        >>> Shuffle(n=6).answer(LocalLeap(relaxed=0.15, radius=2), "abcdef")
        ('acfebd', 5)
    """

    threshold: float = 0.9
    relaxed: float = 0.75
    radius: int = 4
    request_parameters: ClassVar[tuple[str, ...]] = ("threshold", "relaxed")

    def __post_init__(self) -> None:
        require_in_range("threshold", self.threshold, 0.0, 1.0)
        require_in_range("relaxed", self.relaxed, 0.0, 1.0)
        require_count("radius", self.radius)

    def decide(self, view: StepView, memory: None) -> Decision:
        """Anchors, their surroundings, or the best one."""
        confidence, scores = view.pred.confidence, order_scores(view)
        threshold = view.parameter("threshold", self.threshold, confidence)
        relaxed = view.parameter("relaxed", self.relaxed, confidence)
        anchor = view.open & (confidence >= threshold)
        near = view.open & (distance_to(anchor, view.index) <= self.radius)
        sure = reaching(confidence, view.open, threshold, order=scores)
        commit = sure | near & (confidence >= relaxed)
        return Decision(commit, scores=scores)


def distance_to(marked: Tensor, index: Tensor) -> Tensor:
    """Columns from each slot to the nearest marked one of its row, (B, W) int64.

    Where a row has no mark, more columns than any canvas has.

    Args:
        marked: (B, W) bool.
        index: (B, W) canvas column of each slot, rising.
    """
    far = 2**31
    left = torch.where(marked, index, -far).cummax(1).values
    right = torch.where(marked, index, 2 * far).flip(1).cummin(1).values.flip(1)
    return torch.minimum(index - left, right - index)
