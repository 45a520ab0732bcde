"""Hierarchical decoding: one position per gap, so that what goes together stands apart."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dllm_decode.decoding.selection import order_scores, reaching
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_in_range


@dataclass(frozen=True)
class Hierarchical(Strategy):
    """Commit the most confident position of every gap, if it is sure enough.

        commit i  iff  c(i) > threshold
                   or  c(i) > low_threshold and c(i) = max of c over the gap around i
                   or  i is the most confident open position of the row

    A gap is a maximal run of neighbouring open positions; all positions that share its maximum
    exactly count. Each step splits every gap, so a block takes about log2(length) steps where the
    model is sure enough.

    Source: dInfer, arXiv 2510.08666 (hierarchical decoding). Deviation: any number of rows; the
    released class takes one.

    Args:
        threshold: probability above which every position goes, [0, 1].
        low_threshold: probability that the best of a gap has to exceed, [0, 1]; without effect
            from `threshold` on.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Shuffle
        >>> Shuffle(n=8).answer(Hierarchical(0.9, low_threshold=0.1), "abcdefgh")
        ('acgfgdeg', 5)
    """

    threshold: float = 0.9
    low_threshold: float = 0.4

    def __post_init__(self) -> None:
        require_in_range("threshold", self.threshold, 0.0, 1.0)
        require_in_range("low_threshold", self.low_threshold, 0.0, 1.0)

    def decide(self, view: StepView, memory: None) -> Decision:
        """Sure positions or the best one, and the peaks of the gaps."""
        confidence, scores = view.pred.confidence, order_scores(view)
        sure = reaching(confidence, view.open, self.threshold, True, scores)
        peak = peaks(scores, view.open, view.index) & (confidence > self.low_threshold)
        return Decision(sure | peak, scores=scores)


def peaks(scores: Tensor, among: Tensor, columns: Tensor) -> Tensor:
    """Candidates that reach the largest score of their run of neighbouring candidates, (B, W) bool.

    Args:
        scores: (B, W).
        among: (B, W) bool, the candidates.
        columns: (B, W) of the slots: a window may leave out some between two slots.
    """
    begins = among.clone()
    begins[:, 1:] &= ~among[:, :-1] | (columns[:, 1:] != columns[:, :-1] + 1)
    run = begins.cumsum(1)
    floor = scores.new_full((scores.shape[0], scores.shape[1] + 1), float("-inf"))
    candidates = scores.masked_fill(~among, float("-inf"))
    top = floor.scatter_reduce(1, run, candidates, "amax")
    return among & (scores == top.gather(1, run))
