"""Confidence threshold: commit whatever the model is sure enough about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding.selection import best, order_scores, reaching
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_count, require_in_range
from dllm_decode.strategies.fixed import scheduled


@dataclass(frozen=True)
class ConfidenceThreshold(Strategy):
    """Commit every open position whose confidence reaches the threshold, and never nothing.

        commit i  iff  c(i) >= threshold  or  rank(i) < n  or  c(i) >= max_j c(j) - tie_slack

    with c the probability of the proposal, rank 0 the most confident open position (the lowest
    column on ties) and n = max(at_least, n(s)), n(s) the count of LLaDA's linear schedule where
    `steps_per_block` is given and 0 otherwise.

    Source: Fast-dLLM, arXiv 2505.22618, section 3.3 (`>=`, the best one forced). Other
    implementations by options: strict with steps_per_block (LLaDA2, SDAR), at_least (d2Cache),
    tie_slack 1e-5 (dInfer).

    Args:
        threshold: probability, [0, 1].
        strict: ask for more than the threshold (`>`).
        at_least: the best n positions are always committed, 1 or more.
        steps_per_block: a block takes at most this many steps, because each commits at least what
            a fixed schedule would; None for no schedule.
        tie_slack: positions within this probability of the best one go with it, [0, 1]; None for
            the best alone.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy, Shuffle
        >>> Copy(n=4).answer(ConfidenceThreshold(0.9), "abcd")  # the model is certain of all
        ('abcd', 1)
        >>> Shuffle(n=4).answer(ConfidenceThreshold(0.9), "abcd")  # of no item before its turn
        ('adcb', 5)
    """

    threshold: float = 0.9
    strict: bool = False
    at_least: int = 1
    steps_per_block: int | None = None
    tie_slack: float | None = None
    request_parameters: ClassVar[tuple[str, ...]] = ("threshold",)
    always_commits: ClassVar[bool] = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        require_in_range("threshold", self.threshold, 0.0, 1.0)
        require_count("at_least", self.at_least)
        if self.steps_per_block is not None:
            require_count("steps_per_block", self.steps_per_block)
        if self.tie_slack is not None:
            require_in_range("tie_slack", self.tie_slack, 0.0, 1.0)

    @property
    def ranks(self) -> bool:  # type: ignore[override]
        """Whether the best n are asked for, or a threshold that certainty itself does not reach."""
        return self.strict or self.at_least > 1 or self.steps_per_block is not None

    def decide(self, view: StepView, memory: None) -> Decision:
        """Everything above the threshold, the best n, and what ties with the best."""
        confidence, scores = view.pred.confidence, order_scores(view)
        threshold = view.parameter("threshold", self.threshold, confidence)
        chosen = reaching(confidence, view.open, threshold, self.strict, scores)
        if self.at_least > 1 or self.steps_per_block is not None:
            chosen = chosen | best(scores, view.open, self._least(view))
        if self.tie_slack is not None:
            top = confidence.masked_fill(~view.open, -1.0).amax(1, keepdim=True)
            chosen = chosen | view.open & (confidence >= top - self.tie_slack)
        return Decision(chosen, scores=scores)

    def _least(self, view: StepView) -> Tensor:
        least = torch.full_like(view.window_open, self.at_least)
        if self.steps_per_block is None:
            return least
        count = scheduled(view.window_open, self.steps_per_block, view.window_step)
        return torch.maximum(least, count)
