"""The longest sure prefix: tokens are committed from left to right, as many as are sure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_in_range


@dataclass(frozen=True)
class PrefixRun(Strategy):
    """Commit the open positions from the left up to the first one that is not sure.

        commit i  iff  c(j) >= threshold for all open j <= i   or   i is the leftmost open position

    What a row has decided is then always a prefix of its window, except for tokens that were given
    in advance.

    Sources: the rule of DMax, arXiv 2604.08302 (released code), and of Longest Stable Prefix,
    arXiv 2603.04514. Deviation from the latter: a run is not cut back to a delimiter.

    Args:
        threshold: probability in [0, 1].

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy, Shuffle
        >>> Copy(n=4).answer(PrefixRun(), "abcd")
        ('abcd', 1)
        >>> Shuffle(n=4).answer(PrefixRun(0.4), "abcd")
        ('acbd', 3)
    """

    threshold: float = 0.9
    request_parameters: ClassVar[tuple[str, ...]] = ("threshold",)

    def __post_init__(self) -> None:
        require_in_range("threshold", self.threshold, 0.0, 1.0)

    def decide(self, view: StepView, memory: None) -> Decision:
        """The sure run, or the leftmost open position."""
        confidence = view.pred.confidence
        threshold = view.parameter("threshold", self.threshold, confidence)
        unsure = view.open & (confidence < threshold)
        run = view.open & (unsure.cumsum(1) == 0)
        # the lower the column, the larger the score: what a row must gain it gains at the left
        return Decision(run, scores=-view.index.to(confidence.dtype))
