"""ReMDM: open the least confident positions again, late in the block, and decide them anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding.selection import best, order_scores
from dllm_decode.decoding.strategy import Progress, Revisions, Strategy
from dllm_decode.decoding.types import ColumnMemory, Decision, Request, Snapshot, StepView
from dllm_decode.errors import require_count, require_in_range
from dllm_decode.strategies.fixed import scheduled


@dataclass(frozen=True)
class ReMdm(Strategy):
    """A fixed schedule with steps in between that open positions again and decide as many.

        ordinary step s:   commit the best n(s) open positions
        refining step:     before its pass, the `reopen` positions committed with the least
                           confidence are opened again; it commits the best `reopen` open ones

    with n(s) = floor(M / S) + [s < M mod S] of LLaDA's linear schedule, M the open positions when
    the row entered the window and S = steps_per_block. The refining steps come after the first
    min(S, floor(refine_from * M)) ordinary ones.

    Source: ReMDM, arXiv 2503.00307, in the form for LLaDA (`ReMDM-LLaDA`, ParallelBench).
    Deviations: counts are of the window, and a step commits at least one position, so that no mask
    is ever left (the released code plans each block with the steps of the whole answer, and ends in
    an assertion where these are fewer than its columns).

    Args:
        steps_per_block: S, ordinary steps per window, 1 or more.
        refine_steps: refining steps per window, 1 or more.
        reopen: positions that are opened before each of them, 1 or more.
        refine_from: share of the window that is decided before, (0, 1].

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=4).answer(ReMdm(steps_per_block=2, refine_steps=1), "abcd")
        ('abcd', 3)
    """

    steps_per_block: int = 16
    refine_steps: int = 4
    reopen: int = 2
    refine_from: float = 0.875
    revocable: ClassVar[bool] = True  # type: ignore[misc]
    needs_window: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_count("steps_per_block", self.steps_per_block)
        require_count("refine_steps", self.refine_steps)
        require_count("reopen", self.reopen)
        require_in_range("refine_from", self.refine_from, 0.0, 1.0, open_low=True)

    @property
    def progress(self) -> Progress:
        """A column is opened again at most once before each refining step."""
        return Revisions(self.refine_steps)

    def begin(self, request: Request, snapshot: Snapshot) -> ColumnMemory:
        """With what confidence each column was committed."""
        return ColumnMemory.of(snapshot, float("inf"))

    def decide(self, view: StepView, memory: ColumnMemory) -> Decision:
        """The count of the step, less what the next one decides anew."""
        scores = order_scores(view).float()
        step, begin = view.window_step, self._ordinary_before(view)
        refining = (step >= begin) & (step < begin + self.refine_steps)
        ordinary = torch.where(step < begin, step, step - self.refine_steps)
        count = scheduled(view.window_open, self.steps_per_block, ordinary)
        chosen = best(scores, view.open, torch.where(refining, self.reopen, count))
        memory.write(view, scores, where=chosen)
        next_refines = (step + 1 >= begin) & (step + 1 < begin + self.refine_steps)
        limit = torch.where(next_refines, self.reopen, 0)
        # what was committed just now may be what is opened again: then it is not committed
        again = best(-memory.read(view), view.settled | chosen, limit)
        return Decision(chosen & ~again, scores=scores, remask=view.settled & again)

    def _ordinary_before(self, view: StepView) -> Tensor:
        """Ordinary steps before the first refining one, (B,)."""
        decided = (view.window_open * self.refine_from).floor().long()
        return decided.clamp(min=1, max=self.steps_per_block)
