"""Entropy threshold: commit where the whole predicted distribution is sharp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dllm_decode.decoding.selection import order_scores, reaching
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_in_range


@dataclass(frozen=True)
class EntropyThreshold(Strategy):
    """Commit every open position whose entropy is low enough, and always the lowest one.

        commit i  iff  H(i) <= threshold  or  i = argmin_j H(j),    H(i) = -sum_v p(i,v) ln p(i,v)

    Source: dParallel, arXiv 2509.26488, the decoding rule (its distilled weights are what makes
    models certain early; the rule itself needs no training). Deviation: the released code adds
    1e-12 or 1e-8 inside the logarithm.

    Args:
        threshold: entropy [nats], 0 or more.
        strict: ask for less than the threshold (`<`), as dParallel's Dream version does; its LLaDA
            version accepts equality.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Shuffle
        >>> Shuffle(n=4).answer(EntropyThreshold(0.1), "abcd")  # any order of the items is right
        ('cdba', 5)
    """

    threshold: float = 0.5
    strict: bool = False
    request_parameters: ClassVar[tuple[str, ...]] = ("threshold",)

    def __post_init__(self) -> None:
        require_in_range("threshold", self.threshold, 0.0, 1e6, unit="nats")

    def decide(self, view: StepView, memory: None) -> Decision:
        """Everything below the threshold and the lowest entropy."""
        scores = order_scores(view, "entropy")
        threshold = view.parameter("threshold", self.threshold, scores)
        return Decision(reaching(scores, view.open, -threshold, self.strict), scores=scores)
