"""Token to mask: open again what the model doubts, instead of writing over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding.selection import best, order_scores, reaching
from dllm_decode.decoding.strategy import Progress, Revisions, Strategy
from dllm_decode.decoding.types import (
    Change,
    ColumnMemory,
    Decision,
    Memory,
    Request,
    Snapshot,
    StepView,
)
from dllm_decode.errors import require_choice, require_count, require_in_range
from dllm_decode.strategies.joint_threshold import PostSteps

DETECTORS = {"low_prob": 0.5, "t2t_remask": 0.9, "logit_diff": 0.3}


@dataclass
class Doubts(Memory):
    """What the detector `logit_diff` compares with, and the steps in full windows.

    Attributes:
        before: by column, the logits of the step before; None for the other detectors.
        post: steps in full windows.
    """

    before: ColumnMemory | None
    post: PostSteps


@dataclass(frozen=True)
class TokenToMask(Strategy):
    """Commit above a threshold, and open again the settled positions that a detector names.

        low_prob:    p(x(i)) < remask_threshold
        t2t_remask:  v(i) != x(i)  and  c(i) > remask_threshold
        logit_diff:  p'(x(i)) - p(x(i)) > remask_threshold

    with x the token that stands there, p its probability now and p' in the step before (if
    anything was settled by then), v the proposal and c its probability. Of the positions that it
    names, at most max(1, floor(share * settled positions of the window)) are opened, the most
    doubtful first, and each column at most `revisions` times. A full window is looked at again
    until a step changes nothing, at most `post_steps` times.

    Source: Token-to-Mask for LLaDA2.1, arXiv 2604.18738. Its text and its code differ in the
    defaults (0.1 and 3 revisions against 0.5 and 5, a cap in the code alone, the size of a movement
    against a fall); these are the code's.

    Args:
        threshold: probability that an open position needs more than, [0, 1]; the best one is
            committed in any case.
        detector: `low_prob`, `t2t_remask` or `logit_diff`.
        remask_threshold: of the detector, probability in [0, 1]; None for 0.5, 0.9 or 0.3.
        share: of the settled positions that a step may open again, (0, 1].
        revisions: how often a column may be opened again, 1 or more.
        post_steps: the most steps in a full window, 0 or more.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=4).answer(TokenToMask(detector="t2t_remask"), "abcd")
        ('abcd', 2)
    """

    threshold: float = 0.7
    detector: str = "low_prob"
    remask_threshold: float | None = None
    share: float = 0.25
    revisions: int = 5
    post_steps: int = 16
    revocable: ClassVar[bool] = True  # type: ignore[misc]
    needs_window: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_in_range("threshold", self.threshold, 0.0, 1.0)
        require_choice("detector", self.detector, tuple(DETECTORS))
        if self.remask_threshold is not None:
            require_in_range("remask_threshold", self.remask_threshold, 0.0, 1.0)
        require_in_range("share", self.share, 0.0, 1.0, open_low=True)
        require_count("revisions", self.revisions)
        require_count("post_steps", self.post_steps, minimum=0)

    @property
    def progress(self) -> Progress:
        """The method's own bound: how often a column may be opened again."""
        return Revisions(self.revisions)

    def begin(self, request: Request, snapshot: Snapshot) -> Doubts:
        """No steps in a full window yet; logits of the step before where they are compared."""
        before = None
        if self.detector == "logit_diff":
            before = ColumnMemory.of(snapshot, float("-inf"), snapshot.vocab.size)
        return Doubts(before, PostSteps.of(snapshot))

    def decide(self, view: StepView, memory: Doubts) -> Decision:
        """What is sure, and what is doubted."""
        scores = order_scores(view)
        named, doubt = self._doubted(view, memory)
        assert view.snapshot.revised is not None
        # a column that may not be opened any more must not take the place of one that may
        named = named & (view.gather(view.snapshot.revised) < self.revisions)
        most = (view.settled.sum(1) * self.share).floor().long().clamp(min=1)
        remask = best(doubt, named, most)
        chosen = reaching(view.pred.confidence, view.open, self.threshold, True, scores)
        return Decision(chosen, scores=scores, remask=remask)

    def _doubted(self, view: StepView, memory: Doubts) -> tuple[Tensor, Tensor]:
        """Settled slots that the detector names, and how doubtful they are, (B, W)."""
        level = self.remask_threshold
        level = DETECTORS[self.detector] if level is None else level
        own = view.pred.prob_of(view.tokens[..., None])[..., 0]
        if self.detector == "low_prob":
            return view.settled & (own < level), -own
        if self.detector == "t2t_remask":
            other = view.settled & (view.pred.token != view.tokens)
            return other & (view.pred.confidence > level), view.pred.confidence
        assert memory.before is not None
        past, some = memory.before.read(view), view.settled.any(1)[:, None, None]
        # as released: what was predicted before anything was decided is nothing to compare with
        memory.before.write(view, view.pred.logits.masked_fill(~some, float("-inf")))
        known = ~torch.isneginf(past).all(-1) & ~view.fresh[:, None]
        before = past.softmax(-1).gather(-1, view.tokens[..., None])[..., 0]
        fall = torch.where(known, before - own, 0.0)
        return view.settled & (fall > level), fall

    def lingers(self, snapshot: Snapshot, view: StepView, change: Change, memory: Doubts) -> Tensor:
        """Full windows, for `post_steps` steps."""
        return memory.post.stay(snapshot, view, self.post_steps)
