"""SlowFast: look how far the model is sure of anything, then fill that span."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_decode.decoding.selection import best, order_scores
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, Memory, Request, Snapshot, StepView
from dllm_decode.errors import require_count, require_in_range


@dataclass
class PhaseMemory(Memory):
    """Where each row stands.

    Attributes:
        fast: (B,) bool, in the fast phase.
        slow_steps: (B,) steps done in this slow phase.
        estimate: (B,) how far the last step thought the span reaches, a canvas column.
        last: (B,) the last canvas column of the span.
    """

    fast: Tensor
    slow_steps: Tensor
    estimate: Tensor
    last: Tensor


@dataclass(frozen=True)
class SlowFast(Strategy):
    """Alternate between estimating a span of the window and filling it.

        e_t = max { i : c(i) >= explore },  the first open column where there is none
        slow: commit in the whole window, until e_t has moved by at most `stable` columns since the
              step before, or slow_steps are done; the span ends at e_t
        fast: commit up to the end of the span, until it is full; then slow again
        commit: all i with c(i) >= threshold, if there are two or more; else the most confident i

    Phases are those of a row; a new window begins slowly.

    Source: SlowFast sampling, arXiv 2506.10848. Deviations: the released loop always takes all its
    slow steps (stable=null), in a full block as well, and in the fast phase uses old logits behind
    the span, which none of its commits depends on.

    Args:
        threshold: probability in [0, 1] that a commit needs, unless it is the only one.
        explore: probability in [0, 1] up to which the span reaches.
        slow_steps: longest slow phase, 1 or more.
        stable: how far an estimate may move and still end the slow phase [columns], 0 or more; None
            takes all slow steps.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy, Shuffle
        >>> Copy(n=4).answer(SlowFast(), "abcd")
        ('abcd', 1)
        >>> Shuffle(n=4).answer(SlowFast(), "abcd")
        ('adcb', 5)
    """

    threshold: float = 0.9
    explore: float = 0.3
    slow_steps: int = 6
    stable: int | None = 1

    def __post_init__(self) -> None:
        require_in_range("threshold", self.threshold, 0.0, 1.0)
        require_in_range("explore", self.explore, 0.0, 1.0)
        require_count("slow_steps", self.slow_steps)
        if self.stable is not None:
            require_count("stable", self.stable, minimum=0)

    def begin(self, request: Request, snapshot: Snapshot) -> PhaseMemory:
        """The memory of rows that have not begun."""
        zero = torch.zeros_like(snapshot.horizon)
        return PhaseMemory(zero.bool(), zero, zero, zero)

    def decide(self, view: StepView, memory: PhaseMemory) -> Decision:
        """Sure positions of the span or the window, or the best one there."""
        confidence, scores = view.pred.confidence, order_scores(view)
        span = view.open & (view.index <= memory.last[:, None])
        fast = memory.fast & ~view.fresh & span.any(1)
        again = (memory.fast | view.fresh) & ~fast
        among = torch.where(fast[:, None], span, view.open)
        sure = among & (confidence >= self.threshold)
        several = sure.sum(1, keepdim=True) >= 2
        self._note(view, memory, fast, torch.where(again, 0, memory.slow_steps))
        return Decision(
            torch.where(several, sure, best(scores, among)),
            scores=scores.masked_fill(~among, float("-inf")),
        )

    def _note(self, view: StepView, memory: PhaseMemory, fast: Tensor, done: Tensor) -> None:
        """Take in the estimate of this step, which may end the slow phase."""
        likely = view.open & (view.pred.confidence >= self.explore)
        farthest = torch.where(likely, view.index, -1).amax(1)
        first = torch.where(view.open, view.index, view.snapshot.tokens.shape[1]).amin(1)
        estimate = torch.where(likely.any(1), farthest, first)
        ended = done + 1 >= self.slow_steps
        if self.stable is not None:
            ended = ended | (done > 0) & ((estimate - memory.estimate).abs() <= self.stable)
        ended = ended & ~fast
        memory.last = torch.where(ended, estimate, memory.last)
        memory.fast, memory.estimate = fast | ended, estimate
        memory.slow_steps = torch.where(fast, done, done + 1)
