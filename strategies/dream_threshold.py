"""A confidence threshold under a schedule: what was not sure enough is owed to later steps."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_decode.decoding.selection import best, order_scores
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_count, require_in_range


@dataclass(frozen=True)
class ScheduledThreshold(Strategy):
    """Commit at most what a fixed schedule would have committed by now, and only what is sure.

        count(s) = min((s + 1) * n, M) - committed so far
        commit i iff rank(i) < count(s) and c(i) >= threshold, and the best position always

    with M the open positions when the row entered the window, n = tokens_per_step, c the
    probability of the proposal and rank 0 the most confident open position. Positions that the
    threshold rejects are a deficit that later steps may make up for. Where a window takes in
    columns while others are decided (sliding, undecided), M minus the open ones is not what was
    committed.

    Source: Fast-dLLM's Dream sampler (`confidence_threshold`), arXiv 2505.22618, used with
    schedule=whole there.

    Args:
        threshold: probability, [0, 1].
        tokens_per_step: n, 1 or more; 1 is one token at a time.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=4).answer(ScheduledThreshold(0.9, tokens_per_step=2), "abcd")
        ('abcd', 3)
    """

    threshold: float = 0.9
    tokens_per_step: int = 4

    def __post_init__(self) -> None:
        require_in_range("threshold", self.threshold, 0.0, 1.0)
        require_count("tokens_per_step", self.tokens_per_step)

    def decide(self, view: StepView, memory: None) -> Decision:
        """The sure ones among the best count(s), and the best one."""
        scores = order_scores(view)
        left = view.window_open - (view.window_step + 1) * self.tokens_per_step
        count = (view.open.sum(1) - left.clamp(min=0)).clamp(min=1)
        sure = best(scores, view.open, count) & (view.pred.confidence >= self.threshold)
        return Decision(sure | best(scores, view.open), scores=scores)
