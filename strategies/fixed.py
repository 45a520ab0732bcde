"""Fixed schedules: how many tokens a step commits is known before the model has said anything."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dllm_decode.decoding.selection import ORDERS, best, order_scores
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_choice, require_count


def scheduled(masks: Tensor, steps: int, step: Tensor) -> Tensor:
    """How many of M masks step s of S commits in LLaDA's linear schedule, (B,) int64.

        n(s) = floor(M / S) + [s < M mod S]

    Steps behind the schedule (where commits were vetoed) go on with floor(M / S).

    Args:
        masks: (B,) M, open positions when the block was entered.
        steps: S, 1 or more.
        step: (B,) s, counted from 0 in the block.
    """
    return masks // steps + (step < masks % steps)


@dataclass(frozen=True)
class FixedSchedule(Strategy):
    """Commit the best n(s) open positions in step s, so that a block takes a given number of steps.

        n(s) = floor(M / S) + [s < M mod S]

    with M the open positions when the row entered the block and S = steps_per_block.

    Source: LLaDA, arXiv 2502.09992, section 2.4 (`low_confidence` and `random` remasking).
    Deviation: with S larger than M a block takes M passes; the released code also runs the passes
    that commit nothing.

    Args:
        steps_per_block: S, forward passes per block, 1 or more.
        order: `confidence`, `margin`, `entropy` or `random`; see `order_scores`.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=4).answer(FixedSchedule(steps_per_block=2), "abcd")
        ('abcd', 2)
    """

    steps_per_block: int = 16
    order: str = "confidence"

    def __post_init__(self) -> None:
        require_count("steps_per_block", self.steps_per_block)
        require_choice("order", self.order, ORDERS)

    def decide(self, view: StepView, memory: None) -> Decision:
        """The best n(s) open positions."""
        scores = order_scores(view, self.order)
        count = scheduled(view.window_open, self.steps_per_block, view.window_step)
        return Decision(best(scores, view.open, count), scores=scores)


@dataclass(frozen=True)
class TopK(Strategy):
    """Commit the k best open positions in every step.

    Args:
        tokens_per_step: k, 1 or more; 1 decodes one token at a time, the baseline of every
            comparison.
        order: `confidence`, `margin`, `entropy` or `random`; see `order_scores`.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=4).answer(TopK(2), "abcd")
        ('abcd', 3)
    """

    tokens_per_step: int = 2
    order: str = "confidence"

    def __post_init__(self) -> None:
        require_count("tokens_per_step", self.tokens_per_step)
        require_choice("order", self.order, ORDERS)

    def decide(self, view: StepView, memory: None) -> Decision:
        """The k best open positions."""
        scores = order_scores(view, self.order)
        return Decision(best(scores, view.open, self.tokens_per_step), scores=scores)
