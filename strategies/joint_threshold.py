"""Token editing: decide what is sure, and write over what the model has come to see otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding.selection import best, order_scores, reaching
from dllm_decode.decoding.strategy import Progress, Revisions, Strategy
from dllm_decode.decoding.types import Change, Decision, Memory, Request, Snapshot, StepView
from dllm_decode.errors import require_count, require_in_range
from dllm_decode.strategies.fixed import scheduled


@dataclass
class PostSteps(Memory):
    """How long each row has stayed in its window.

    Attributes:
        done: (B,) int64, steps since the window was full.
    """

    done: Tensor

    @staticmethod
    def of(snapshot: Snapshot) -> PostSteps:
        """None done yet."""
        return PostSteps(torch.zeros_like(snapshot.horizon))

    def stay(self, snapshot: Snapshot, view: StepView, most: int) -> Tensor:
        """Rows whose window is full for at most so many steps, (B,) bool; counts the step."""
        full = ~(view.gather(snapshot.undecided) & view.active).any(1)
        before = torch.where(view.fresh, 0, self.done)
        self.done = torch.where(full, before + 1, 0)
        return full & (self.done <= most)


@dataclass(frozen=True)
class JointThreshold(Strategy):
    """Commit what is surer than one threshold, write over what contradicts more than another.

        open i:     commit  iff  c(i) > threshold  or  rank(i) < n
        settled i:  edit    iff  v(i) != x(i)  and  c(i) > edit_threshold

    with v the proposal, c its probability, x the token that stands there, rank 0 the most confident
    open position and n = 1, or n(s) of LLaDA's linear schedule where `steps_per_block` is given. A
    full window is looked at again until a step changes nothing, at most `post_steps` times.

    Sources: LLaDA2.1, arXiv 2602.08676 (M2T and T2T); the model card's quality mode is the default,
    its speed mode and SGLang are threshold=0.5 edit_threshold=0.0, diffusers adds
    steps_per_block=32. Deviations: the mask id is removed before the argmax, so that it can neither
    be committed nor be edited in; earlier blocks are final.

    Args:
        threshold: probability that an open position needs more than, [0, 1].
        edit_threshold: probability that a settled position needs more than to be written over,
            [0, 1]; 0 edits wherever the first choice differs, None edits nowhere.
        post_steps: the most steps in a full window, 0 or more.
        steps_per_block: commit at least what a fixed schedule of so many steps would; None for at
            least one.
        revisions: the most edits of one column, 1 or more; the default is more than a block of 32
            columns can ask for.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=4).answer(JointThreshold(), "abcd")  # the second pass finds nothing to change
        ('abcd', 2)
    """

    threshold: float = 0.7
    edit_threshold: float | None = 0.5
    post_steps: int = 16
    steps_per_block: int | None = None
    revisions: int = 48
    revises: ClassVar[bool] = True  # type: ignore[misc]
    needs_window: ClassVar[bool] = True
    request_parameters: ClassVar[tuple[str, ...]] = ("threshold",)

    def __post_init__(self) -> None:
        require_in_range("threshold", self.threshold, 0.0, 1.0)
        if self.edit_threshold is not None:
            require_in_range("edit_threshold", self.edit_threshold, 0.0, 1.0)
        require_count("post_steps", self.post_steps, minimum=0)
        if self.steps_per_block is not None:
            require_count("steps_per_block", self.steps_per_block)
        require_count("revisions", self.revisions)

    @property
    def progress(self) -> Progress:
        """A bound per column; the published one is `post_steps` alone."""
        return Revisions(self.revisions)

    def begin(self, request: Request, snapshot: Snapshot) -> PostSteps:
        """Steps in full windows."""
        return PostSteps.of(snapshot)

    def decide(self, view: StepView, memory: PostSteps) -> Decision:
        """What is sure, and what contradicts what stands there."""
        confidence, scores = view.pred.confidence, order_scores(view)
        threshold = view.parameter("threshold", self.threshold, confidence)
        chosen = reaching(confidence, view.open, threshold, True, scores)
        if self.steps_per_block is not None:
            count = scheduled(view.window_open, self.steps_per_block, view.window_step)
            chosen = chosen | best(scores, view.open, count)
        if self.edit_threshold is not None:
            other = view.settled & (view.pred.token != view.tokens)
            chosen = chosen | other & (confidence > self.edit_threshold)
        return Decision(chosen, scores=scores)

    def lingers(
        self, snapshot: Snapshot, view: StepView, change: Change, memory: PostSteps
    ) -> Tensor:
        """Full windows, for `post_steps` steps."""
        return memory.stay(snapshot, view, self.post_steps)
