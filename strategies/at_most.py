"""A cap on how many tokens one step may commit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dllm_decode.decoding.selection import best, order_scores
from dllm_decode.decoding.strategy import Filter
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_count


@dataclass(frozen=True)
class AtMost(Filter):
    """Keep the best commits of each row, by the selection's own scores, and veto the others.

    Args:
        tokens: commits per row and step, 1 or more.

    Raises:
        ConfigError: for anything else.

    Examples:
        >>> from dllm_decode import Pipeline
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.threshold import ConfidenceThreshold
        >>> calm = Pipeline(ConfidenceThreshold(0.9), filters={"two": AtMost(2)})
        >>> Copy(n=4).answer(calm, "abcd")  # the model is certain of all five columns
        ('abcd', 3)
    """

    tokens: int = 8

    def __post_init__(self) -> None:
        require_count("tokens", self.tokens)

    def keep(self, view: StepView, decision: Decision, memory: None) -> Tensor:
        """The best of what the selection wants to commit, (B, W) bool."""
        scores = order_scores(view) if decision.scores is None else decision.scores
        return best(scores, decision.commit, self.tokens)
