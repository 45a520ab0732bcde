"""CCD as released: commit what was a close candidate one step ago and still says the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_decode.decoding.selection import best, order_scores
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, Memory, Request, Snapshot, StepView
from dllm_decode.errors import require_count, require_in_range


@dataclass
class CandidateMemory(Memory):
    """What the last step left behind, by generated column (the last one takes empty slots).

    Attributes:
        width: (B,) candidate width V.
        runner_up: (B, G + 1) bool, the best positions that were left open.
        token: (B, G + 1) what was proposed there.
    """

    width: Tensor
    runner_up: Tensor
    token: Tensor


@dataclass(frozen=True)
class ReleasedCCD(Strategy):
    """Commit the sharpest position, or several that two steps in a row agree on.

    Order the open positions by falling negative entropy. A step commits the best one, unless that
    was a runner-up of the step before; then it commits

        m = { i among the best V : i was a runner-up, and its proposal is that of the step before }

    (all of m with seek, the best of m otherwise; the best position where m is empty). Runners-up of
    a step are the best V positions that it leaves open. V is 1 in the first warm_up_steps - 1
    steps, grows by one per step up to 1 + floor(expand_ratio), and falls to 1 before growing
    where at most a tenth of the canvas is open.

    Source: the released code of CCD, arXiv 2512.02044, which its authors call preliminary: the
    paper averages the predicted distributions over the last steps, the code does not. Deviations:
    any number of rows, and one position per step outside m (as its defaults have it). Use it with
    schedule=whole, as released.

    Args:
        expand_ratio: how far V may grow, 0 or more; below 1 one position goes per step.
        warm_up_steps: first steps, which commit the best position only; 1 or more.
        seek: commit all of m (dynamic budget, CCD-DS) instead of one position (CCD).

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.decoding.schedule import WholeCanvas
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=6).answer(ReleasedCCD(warm_up_steps=2), "abcdef", schedule=WholeCanvas())
        ('abcdef', 5)
    """

    expand_ratio: float = 4.0
    warm_up_steps: int = 5
    seek: bool = True

    needs_window = True

    def __post_init__(self) -> None:
        require_in_range("expand_ratio", self.expand_ratio, 0.0, 1e6)
        require_count("warm_up_steps", self.warm_up_steps)

    def begin(self, request: Request, snapshot: Snapshot) -> CandidateMemory:
        """The memory before the first step: a width of 1 and no runners-up."""
        rows, columns = snapshot.tokens.shape
        nothing = torch.zeros_like(snapshot.tokens[:, :1]).expand(
            rows, columns - snapshot.start + 1
        )
        return CandidateMemory(torch.ones_like(snapshot.horizon), nothing.bool(), nothing.clone())

    def decide(self, view: StepView, memory: CandidateMemory) -> Decision:
        """The best position or the agreeing ones."""
        scores = order_scores(view, "entropy")
        memory.width = self._width(view, memory.width)
        column = _column(view, memory)
        was_runner_up = memory.runner_up.gather(1, column)
        agrees = was_runner_up & (memory.token.gather(1, column) == view.pred.token)
        matched = best(scores, view.open, memory.width) & agrees
        if not self.seek:
            matched = best(scores, matched)
        first = best(scores, view.open)
        expand = (first & was_runner_up).any(1) & matched.any(1) & ~self._warming(view)
        commit = torch.where(expand[:, None], matched, first)
        runner_up = best(scores, view.open & ~commit, memory.width)
        memory.runner_up = torch.zeros_like(memory.runner_up).scatter(1, column, runner_up)
        memory.token = memory.token.scatter(1, column, view.pred.token)
        return Decision(commit, scores=scores)

    def _warming(self, view: StepView) -> Tensor:
        return view.step < self.warm_up_steps

    def _width(self, view: StepView, width: Tensor) -> Tensor:
        """The candidate width V of this step, (B,)."""
        columns = view.snapshot.end - view.snapshot.start
        few = view.masked.sum(1) <= 0.1 * columns
        grown = torch.where(few, 1, width) + 1
        grown = grown.clamp(max=1 + int(self.expand_ratio))
        return torch.where(view.step < self.warm_up_steps - 1, 1, grown)


def _column(view: StepView, memory: CandidateMemory) -> Tensor:
    """Each slot's place in the memory, (B, W); absent slots share the last one."""
    spare = memory.token.shape[1] - 1
    return torch.where(view.index >= 0, view.index - view.snapshot.start, spare)
