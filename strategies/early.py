"""Early commit: finish a row in one go once everything that is left is sure enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding.strategy import StopRule
from dllm_decode.decoding.types import Change, Snapshot, StepView
from dllm_decode.errors import ConfigError, require_choice, require_count, require_in_range


@dataclass(frozen=True)
class _EarlyCommit(StopRule):
    """What the rules share: progress in a budget of steps, and the mean gap of some columns.

    Args:
        steps: the steps that a decode is thought to take, 1 or more; None for as many as the row
            has columns.
    """

    steps: int | None = None
    sees_canvas: ClassVar[bool] = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.steps is not None:
            require_count("steps", self.steps)

    def horizon(self, snapshot: Snapshot, view: StepView, change: Change, memory: None) -> Tensor:
        """The horizon as it is: what is closed is not cut."""
        return snapshot.horizon

    def _progress(self, view: StepView) -> Tensor:
        """Share of the steps that this one completes, (B,) in (0, 1]."""
        length = view.snapshot.end - view.snapshot.start
        total = length if self.steps is None else torch.full_like(length, self.steps)
        return ((view.step + 1) / total).clamp(max=1.0)

    def _gap(self, view: StepView, among: Tensor) -> Tensor:
        """Mean distance of the two largest logits [nats] over slots, (B,); inf where none is."""
        values = view.pred.topk(2)[0]
        gap = values[..., 0] - values[..., -1]
        count = among.sum(1)
        mean = torch.where(among, gap, 0.0).sum(1) / count.clamp(min=1)
        return torch.where(count > 0, mean, float("inf"))


@dataclass(frozen=True)
class Prophet(_EarlyCommit):
    """Finish a row as soon as its answer is sure: a mean logit gap above a level that falls.

        close  iff  mean over the answer's undecided columns of (l1 - l2) >= level(p)
        level(p) = levels[0], levels[1], levels[2] in the first, middle and last third of p

    with l1, l2 the two largest logits [nats] and p the share of the steps that are done. Everything
    undecided is committed with that step's tokens; a row whose answer is decided is closed as well,
    one that is too short to have an answer never.

    Source: Prophet, arXiv 2508.19982. Deviations: the gap is that of undecided columns (at a
    decided one the model copies what it reads, and the released gap is huge there), of each row
    for itself, and what is committed are the step's proposals.

    Args:
        begin_column: first column of the answer, counted from the first generated one, 0 or more.
        columns: of the answer, 1 or more; None for all that follow.
        levels: the gap that is needed in each third [nats], 0 or more.
        steps: the steps that a decode is thought to take; None for as many as the row has columns.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode import Pipeline
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Copy(n=4).answer(Pipeline(TopK(1), stop={"early": Prophet()}), "abcd")
        ('abcd', 1)
    """

    begin_column: int = 0
    columns: int | None = 5
    levels: tuple[float, ...] = (7.5, 5.0, 2.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("begin_column", self.begin_column, minimum=0)
        if self.columns is not None:
            require_count("columns", self.columns)
        try:
            levels = tuple(float(level) for level in self.levels)
        except (TypeError, ValueError):
            levels = ()
        if len(levels) != 3 or not all(level >= 0 for level in levels):
            raise ConfigError(f"levels must be three numbers >= 0, got {self.levels!r}")
        object.__setattr__(self, "levels", levels)

    def closes(self, view: StepView, memory: None) -> Tensor:
        """Rows whose answer is sure."""
        place = view.index - view.snapshot.start - self.begin_column
        answer = view.masked & (place >= 0)
        if self.columns is not None:
            answer = answer & (place < self.columns)
        progress = self._progress(view)
        early, middle, late = self.levels
        level = torch.where(progress <= 1 / 3, early, torch.where(progress <= 2 / 3, middle, late))
        exists = view.snapshot.end - view.snapshot.start > self.begin_column
        return exists & (self._gap(view, answer) >= level)


@dataclass(frozen=True)
class Sched(_EarlyCommit):
    """Finish a row as soon as all that is left is sure: a mean logit gap above a falling curve.

        close  iff  mean over the undecided columns of (l1 - l2) >= level(p)
        linear:       level(p) = high + (low - high) p
        cosine:       level(p) = low + (high - low) (1 + cos(pi p)) / 2
        exponential:  level(p) = low + (high - low) exp(-rate p)

    with l1, l2 the two largest logits [nats] and p the share of the steps that are done. Everything
    undecided is committed with that step's tokens.

    Source: SchED, arXiv 2512.02892. Its constants could not be read; these are Prophet's ends.
    Deviation: the mean is that of the undecided columns, because at a decided one the model copies
    what it reads.

    Args:
        high: the gap that is needed at the start [nats], 0 or more.
        low: the gap at the end [nats], 0 or more.
        curve: `linear`, `cosine` or `exponential`.
        rate: how fast the exponential curve falls, above 0.
        steps: the steps that a decode is thought to take; None for as many as the row has columns.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode import Pipeline
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Copy(n=4).answer(Pipeline(TopK(1), stop={"early": Sched()}), "abcd")
        ('abcd', 1)
    """

    high: float = 7.5
    low: float = 2.5
    curve: str = "linear"
    rate: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("high", "low"):
            require_in_range(name, getattr(self, name), 0.0, math.inf, open_high=True)
        require_choice("curve", self.curve, ("linear", "cosine", "exponential"))
        require_in_range("rate", self.rate, 0.0, math.inf, open_low=True, open_high=True)

    def closes(self, view: StepView, memory: None) -> Tensor:
        """Rows in which all that is left is sure."""
        progress = self._progress(view)
        if self.curve == "linear":
            share = 1 - progress
        elif self.curve == "cosine":
            share = (1 + torch.cos(math.pi * progress)) / 2
        else:
            share = torch.exp(-self.rate * progress)
        return self._gap(view, view.masked) >= self.low + (self.high - self.low) * share
