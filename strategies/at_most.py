"""A cap on how many tokens one step may commit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dllm_decode.decoding.selection import best
from dllm_decode.decoding.strategy import Filter
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_count


@dataclass(frozen=True)
class AtMost(Filter):
    """Keep the best commits of each row, by the selection's own scores, and veto the others.

    tokens: commits per row and step, 1 or more. Raises `ConfigError` for anything else.
    """

    tokens: int = 8

    def __post_init__(self) -> None:
        require_count("tokens", self.tokens)

    def keep(self, view: StepView, decision: Decision, memory: None) -> Tensor:
        """The `tokens` best of the wished commits."""
        scores = view.pred.confidence if decision.scores is None else decision.scores
        return best(scores, decision.commit, self.tokens)
