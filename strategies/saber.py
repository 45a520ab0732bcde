"""Saber: a threshold that adapts to what was committed, and a few positions opened again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
from dllm_decode.errors import require_count


@dataclass
class Confidences(Memory):
    """What a row was sure of.

    Attributes:
        committed: by column, the confidence with which it was last committed, NaN before.
        last: by column, the probability of the first choice in the step before.
    """

    committed: ColumnMemory
    last: ColumnMemory


@dataclass(frozen=True)
class Saber(Strategy):
    """Commit above the mean confidence of all commits so far, open again what lost the most.

        commit i   iff  c(i) > mean of the confidences at commit (1 before the first),
                   and the best `at_least` always
        re-mask    max(floor(at_least / 2), ceil(k / one_of)) positions, at most k - 1, of those
                   decided by now, those first whose top probability fell most since the step before

    with c the probability of the proposal and k the commits of the step; nothing is opened in the
    step that fills the window. What is committed and would be opened in the same step stays open.

    Source: Saber, arXiv 2510.18165, the released code for LLaDA (its text opens ceil(k / 8)).

    Args:
        at_least: positions that are committed in any case, 1 or more.
        one_of: commits per position that is opened again, 1 or more.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=4).answer(Saber(), "abcd")
        ('abcd', 4)
    """

    at_least: int = 2
    one_of: int = 8
    revocable: ClassVar[bool] = True  # type: ignore[misc]
    needs_window: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_count("at_least", self.at_least)
        require_count("one_of", self.one_of)

    def begin(self, request: Request, snapshot: Snapshot) -> Confidences:
        """The memory of rows in which nothing has been committed or predicted."""
        return Confidences(ColumnMemory.of(snapshot, float("nan")), ColumnMemory.of(snapshot, 0.0))

    def decide(self, view: StepView, memory: Confidences) -> Decision:
        """The surer ones, less those that lost the most."""
        confidence, scores = view.pred.confidence.float(), order_scores(view)
        level = memory.committed.values[:, :-1].nanmean(1).nan_to_num(nan=1.0)
        chosen = view.open & (confidence > level[:, None])
        chosen = chosen | best(scores, view.open, self.at_least)
        memory.committed.write(view, confidence, where=chosen)
        top = view.pred.top_confidence.float()
        fall = memory.last.read(view) - top
        memory.last.write(view, top)
        again = best(fall, view.settled | chosen, self._count(view, chosen))
        return Decision(chosen & ~again, scores=scores, remask=view.settled & again)

    def _count(self, view: StepView, chosen: Tensor) -> Tensor:
        """How many positions are opened again, (B,)."""
        commits = chosen.sum(1)
        count = torch.div(commits + self.one_of - 1, self.one_of, rounding_mode="floor")
        count = torch.minimum(count.clamp(min=self.at_least // 2), commits - 1)
        return torch.where(view.open.sum(1) > commits, count, 0)
