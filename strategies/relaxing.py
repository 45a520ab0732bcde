"""A confidence threshold that gives way as the block fills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dllm_decode.decoding.selection import order_scores, reaching
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_in_range


@dataclass(frozen=True)
class RelaxingThreshold(Strategy):
    """Commit what reaches a threshold that falls with the decided share of the window.

        commit i  iff  c(i) >= threshold * (1 - relief * (1 - eta))  or  i is the most confident

    with eta the undecided share of the window before the step, 1 in a new one.

    Source: Streaming-dLLM, arXiv 2601.17917, released code. Deviation: the rule alone; its pruning
    of the columns behind the window concerns the model's attention.

    Args:
        threshold: probability asked of a window without decided columns, [0, 1].
        relief: how much of it has gone when the window is nearly full, [0, 1]; 0 is the plain
            threshold.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy, Shuffle
        >>> Copy(n=4).answer(RelaxingThreshold(), "abcd")
        ('abcd', 1)
        >>> Shuffle(n=6).answer(RelaxingThreshold(0.6, relief=0.0), "abcdef")  # nothing gives way
        ('feadbc', 7)
        >>> Shuffle(n=6).answer(RelaxingThreshold(0.6, relief=0.3), "abcdef")
        ('feadbc', 6)
    """

    threshold: float = 0.9
    relief: float = 0.3
    request_parameters: ClassVar[tuple[str, ...]] = ("threshold",)

    def __post_init__(self) -> None:
        require_in_range("threshold", self.threshold, 0.0, 1.0)
        require_in_range("relief", self.relief, 0.0, 1.0)

    def decide(self, view: StepView, memory: None) -> Decision:
        """Everything above the row's present threshold, at least the best."""
        confidence, scores = view.pred.confidence, order_scores(view)
        share = (1.0 - self.relief * (1.0 - view.mask_ratio))[:, None].to(confidence.dtype)
        threshold = view.parameter("threshold", self.threshold, confidence) * share
        chosen = reaching(confidence, view.open, threshold, order=scores)
        return Decision(chosen, scores=scores)
