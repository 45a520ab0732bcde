"""Commit below the threshold what the model has proposed several times in a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_decode.decoding.selection import order_scores, reaching
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


@dataclass
class ProposalMemory(Memory):
    """What was proposed at each column, and how often in a row.

    Attributes:
        token: of the step before, -1 where none was.
        count: steps in a row with that token.
    """

    token: ColumnMemory
    count: ColumnMemory


@dataclass(frozen=True)
class HistoryStable(Strategy):
    """Commit what is sure, and what is less sure but has not changed for some steps.

        commit i  iff  c(i) >= threshold
                   or  c(i) >= low_threshold and the last `history` proposals at i are the same
                   or  i is the most confident open position of the row

    This step's proposal counts; a new window starts to count anew.

    Source: the simple form that anchor-based history-stable decoding (arXiv 2604.08964) and its
    relatives share. Deviation: their context and extrapolation terms are left out; the defaults of
    `low_threshold` and `history` are ours.

    Args:
        threshold: probability at which history does not matter, [0, 1].
        low_threshold: probability asked of a stable proposal, [0, 1].
        history: proposals in a row that have to be the same, 1 or more; 1 makes `low_threshold`
            the only threshold.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=4).answer(HistoryStable(), "abcd")
        ('abcd', 1)
    """

    threshold: float = 0.9
    low_threshold: float = 0.6
    history: int = 2

    # proposals of a column are compared over steps, so no cache may leave some out
    needs_window = True

    def __post_init__(self) -> None:
        require_in_range("threshold", self.threshold, 0.0, 1.0)
        require_in_range("low_threshold", self.low_threshold, 0.0, 1.0)
        require_count("history", self.history)

    def begin(self, request: Request, snapshot: Snapshot) -> ProposalMemory:
        """The memory of columns that nothing was proposed for."""
        return ProposalMemory(ColumnMemory.of(snapshot, -1), ColumnMemory.of(snapshot, 0))

    def decide(self, view: StepView, memory: ProposalMemory) -> Decision:
        """Sure positions or the best one, and stable ones."""
        confidence, scores = view.pred.confidence, order_scores(view)
        sure = reaching(confidence, view.open, self.threshold, order=scores)
        stable = self._count(view, memory) >= self.history
        return Decision(
            sure | view.open & stable & (confidence >= self.low_threshold), scores=scores
        )

    def _count(self, view: StepView, memory: ProposalMemory) -> Tensor:
        """How often in a row each proposal was made, (B, W); noted for the next step."""
        token = view.pred.token
        same = (memory.token.read(view) == token) & ~view.fresh[:, None]
        count = torch.where(same, memory.count.read(view) + 1, 1)
        memory.token.write(view, token)
        memory.count.write(view, count)
        return count
