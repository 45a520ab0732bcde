"""Wide in, narrow out: commit many positions, open again those that the rest does not support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding.selection import best, order_scores, reaching
from dllm_decode.decoding.strategy import Progress, Revisions, Strategy
from dllm_decode.decoding.types import Decision, Memory, Request, Snapshot, StepView
from dllm_decode.errors import require_count, require_in_range


@dataclass
class LastCommits(Memory):
    """What the next step needs to know of the last one.

    Attributes:
        count: (B,) int64, positions that each row committed.
    """

    count: Tensor


@dataclass(frozen=True)
class Wino(Strategy):
    """Commit above a low threshold, verify by leaving out, open again what fails.

        commit i  iff  c(i) > threshold, at most clip(floor(0.7 M), 5, 20) of M open positions, and
                  the best one always
        re-mask i iff  q(i) < verify_threshold,  where more than one position was committed in this
                  step; at most n - 1 of them, the least supported first, n those of the step before
                  (30 in a window's first step)

    with c the probability of the proposal and q the probability of the settled token when it is
    masked itself. The settled positions of the window are dealt into `groups`, and each group is
    masked in one alternative of a probe: one further pass per step, of `groups` times the row.
    With as many groups as columns that is the leave-one-out probability of the paper.

    Source: WINO, arXiv 2507.18578. Deviation: the released code reads q in the same pass from a
    shadow copy of the block with an attention mask of its own, which a stock transformer cannot be
    given; what a probe of a group has masked beside a position is unknown to it as well.

    Args:
        threshold: probability that an open position needs more than, [0, 1].
        verify_threshold: probability that a settled token must keep, [0, 1].
        groups: alternatives of the probe, 1 or more.
        revisions: how often a column may be opened again, 1 or more; bounds the decode, which the
            published rule leaves to the counts above.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=4).answer(Wino(), "abcd")
        ('abcd', 1)
    """

    threshold: float = 0.6
    verify_threshold: float = 0.9
    groups: int = 4
    revisions: int = 4
    revocable: ClassVar[bool] = True  # type: ignore[misc]
    needs_window: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_in_range("threshold", self.threshold, 0.0, 1.0)
        require_in_range("verify_threshold", self.verify_threshold, 0.0, 1.0)
        require_count("groups", self.groups)
        require_count("revisions", self.revisions)

    @property
    def progress(self) -> Progress:
        """At most `revisions` re-masks of a column."""
        return Revisions(self.revisions)

    def begin(self, request: Request, snapshot: Snapshot) -> LastCommits:
        """The memory of rows that have committed nothing."""
        return LastCommits(torch.zeros_like(snapshot.horizon))

    def decide(self, view: StepView, memory: LastCommits) -> Decision:
        """What is surest, less the settled tokens that the probe does not support."""
        scores = order_scores(view)
        most = (view.open.sum(1) * 0.7).floor().long().clamp(5, 20)
        sure = reaching(view.pred.confidence, view.open, self.threshold, True, scores)
        chosen = best(scores, sure, most)
        before = torch.where(view.fresh, 30, memory.count)
        memory.count = chosen.sum(1)
        several = (memory.count > 1) & (before > 1)
        support = self._support(view, several)
        weak = view.settled & (support < self.verify_threshold)
        limit = torch.where(several, before - 1, 0)
        return Decision(chosen, scores=scores, remask=best(-support, weak, limit))

    def _support(self, view: StepView, rows: Tensor) -> Tensor:
        """The probability of each settled token when its group is masked, (B, W)."""
        place = (view.settled.cumsum(1) - 1) % self.groups
        mask = view.snapshot.vocab.mask_id
        groups = [view.settled & (place == group) for group in range(self.groups)]
        asking = torch.stack([rows & group.any(1) for group in groups], 1)
        masked = torch.stack([view.tokens.masked_fill(group, mask) for group in groups], 1)
        support = torch.ones_like(view.pred.confidence)
        found = view.probe(masked, where=view.settled, rows=asking)
        for group, pred in zip(groups, found, strict=True):
            own = pred.prob_of(view.tokens[..., None])[..., 0]
            support = torch.where(group, own, support)
        return support
