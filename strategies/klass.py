"""KLASS: commit what is sure and has stopped moving."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_decode.decoding.selection import best, order_scores
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import (
    ColumnMemory,
    Decision,
    Memory,
    Request,
    Snapshot,
    StepView,
)
from dllm_decode.errors import require_count, require_in_range
from dllm_decode.strategies.fixed import scheduled


@dataclass
class MovementMemory(Memory):
    """What was predicted at each column, and for how long it has stood still.

    Attributes:
        logits: of the step before, -inf where none was.
        calm: steps in a row that moved less than the bound.
    """

    logits: ColumnMemory
    calm: ColumnMemory


@dataclass(frozen=True)
class Klass(Strategy):
    """Commit sure positions whose distribution has hardly moved in the last steps.

        stable i  iff  KL(p_t(i) || p_{t-1}(i)) < kl  in each of the last `history` steps
        commit i  iff  stable i and c(i) > threshold;  where there is none, the best n(s)

    with c the probability of the proposal and n(s) the count of LLaDA's linear schedule, 1 without
    `steps_per_block`. A column is compared with itself: its first prediction is compared with
    nothing, so nothing is stable before step `history` of a column's life in the window.

    Source: KLASS, arXiv 2511.05664, and its released code. Deviations: what is left when a step
    commits fewer than n(s) is decided later, where the released code leaves masks in its output;
    the best n(s) are open positions, always; banned ids have no part in the divergence; the
    history of a column starts with its window.

    Args:
        threshold: probability that has to be exceeded, [0, 1].
        kl: bound of the divergence, 0 or more [nats].
        history: steps in a row below the bound, 1 or more.
        steps_per_block: S of the schedule that is followed where nothing is stable; None for one
            position.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=4).answer(Klass(), "abcd")  # two forced steps, then the rest has not moved
        ('abcd', 3)
    """

    threshold: float = 0.6
    kl: float = 0.015
    history: int = 2
    steps_per_block: int | None = None

    # a step without a prediction at a column would compare it with an older one
    needs_window = True

    def __post_init__(self) -> None:
        require_in_range("threshold", self.threshold, 0.0, 1.0)
        require_in_range("kl", self.kl, 0.0, 1e6, unit="nats")
        require_count("history", self.history)
        if self.steps_per_block is not None:
            require_count("steps_per_block", self.steps_per_block)

    def begin(self, request: Request, snapshot: Snapshot) -> MovementMemory:
        """The memory of columns that nothing was predicted for."""
        never = ColumnMemory.of(snapshot, float("-inf"), snapshot.vocab.size)
        return MovementMemory(never, ColumnMemory.of(snapshot, 0))

    def decide(self, view: StepView, memory: MovementMemory) -> Decision:
        """What is sure and calm, or the best n(s)."""
        confidence, scores = view.pred.confidence, order_scores(view)
        calm = self._calm(view, memory)
        ready = view.open & (calm >= self.history) & (confidence > self.threshold)
        if self.steps_per_block is None:
            return Decision(ready, scores=scores)  # the loop forces the best one
        count = scheduled(view.window_open, self.steps_per_block, view.window_step)
        otherwise = best(scores, view.open, count)
        return Decision(torch.where(ready.any(1, keepdim=True), ready, otherwise), scores=scores)

    def _calm(self, view: StepView, memory: MovementMemory) -> Tensor:
        """Steps in a row that each position has hardly moved, (B, W); noted for the next step."""
        moved = view.pred.kl_from(memory.logits.read(view))
        known = ~view.fresh[:, None]
        calm = torch.where((moved < self.kl) & known, memory.calm.read(view) + 1, 0)
        memory.logits.write(view, view.pred.logits)
        memory.calm.write(view, calm)
        return calm
