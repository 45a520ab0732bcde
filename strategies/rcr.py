"""Running-confidence re-masking: what stays decided is what was surest, whenever it was said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dllm_decode.decoding.selection import best, order_scores
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import ColumnMemory, Decision, Request, Snapshot, StepView
from dllm_decode.errors import require_count
from dllm_decode.strategies.fixed import scheduled


@dataclass(frozen=True)
class RunningConfidence(Strategy):
    """Propose all that is open, and leave undecided what was ever proposed least surely.

        r(i) = c(i) of the step in which i was last open
        undecided after step s:  the M(s) - n(s) positions of the window with the smallest r

    with c the probability of the proposal, M(s) the open positions of the step and
    n(s) = floor(M / S) + [s < M mod S] of LLaDA's linear schedule, S = steps_per_block. A position
    decided earlier is opened again where an open one is surer now.

    Source: RCR of MDPO, arXiv 2508.13148. Deviation: the released code looks at all blocks so far;
    here earlier windows are final.

    Args:
        steps_per_block: S, forward passes per window, 1 or more.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=4).answer(RunningConfidence(steps_per_block=2), "abcd")
        ('abcd', 2)
    """

    steps_per_block: int = 16
    revocable: ClassVar[bool] = True  # type: ignore[misc]
    needs_window: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_count("steps_per_block", self.steps_per_block)

    def begin(self, request: Request, snapshot: Snapshot) -> ColumnMemory:
        """The running confidence of every column."""
        return ColumnMemory.of(snapshot, float("inf"))

    def decide(self, view: StepView, memory: ColumnMemory) -> Decision:
        """All that is open, less the least sure of the window."""
        scores = order_scores(view).float()
        running = torch.where(view.open, scores, memory.read(view))
        memory.write(view, running)
        count = scheduled(view.window_open, self.steps_per_block, view.window_step).clamp(min=1)
        left = (view.open.sum(1) - count).clamp(min=0)
        again = best(-running, view.open | view.settled, left)
        return Decision(view.open & ~again, scores=scores, remask=view.settled & again)
