"""Dilated unmasking: positions are fixed in advance, far apart first, then ever closer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_decode.decoding.selection import order_scores, ordered
from dllm_decode.decoding.strategy import Filter, Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_count


@dataclass(frozen=True)
class Dilated(Strategy):
    """Commit level after level of a grid that gets finer: every W/b-th position, W/b**2-th ... all.

        stride(k) = max(1, floor(W / base**k)),  k = 1, 2, ...
        commit i  iff  place(i) mod stride(k) = 0,  for the first k that has an open position

    with W the columns of the row's window and place counted from its first column. A window of W
    columns takes about log(W) / log(base) steps, whatever the model says. A window that ends early
    (an end of text was found) goes on with the grid of what is left.

    Source: DUS, dilated unmasking, arXiv 2506.19037. Deviation: its option to open again what is
    unsure is left out, as is the merging of small levels.

    Args:
        base: by how much the stride shrinks from level to level, 2 or more.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=7).answer(Dilated(), "abcdefg")  # strides 4, 2 and 1
        ('abcdefg', 3)
    """

    base: int = 2

    def __post_init__(self) -> None:
        require_count("base", self.base, minimum=2)

    def decide(self, view: StepView, memory: None) -> Decision:
        """The open positions of the coarsest level that has some."""
        # the width of the row's own window: the batch may hold wider ones
        width = (view.window_columns >= 0).sum(1, keepdim=True)
        level = self._level(view.index - view.window_first[:, None], width)
        coarsest = torch.where(view.open, level, view.index.shape[1]).amin(1, keepdim=True)
        return Decision(view.open & (level == coarsest))

    def _level(self, place: Tensor, width: Tensor) -> Tensor:
        """The level k - 1 of each place, (B, W): the first whose stride divides it."""
        level, stride, found = torch.zeros_like(place), width, torch.zeros_like(place).bool()
        for _ in range(place.shape[1].bit_length()):  # the stride is 1 by then
            stride = (stride // self.base).clamp(min=1)
            found = found | (place % stride == 0)
            level = level + ~found
        return level


@dataclass(frozen=True)
class Spaced(Filter):
    """Keep commits apart: best first, and none closer to a kept one than `gap` columns.

    Source: DUS, arXiv 2506.19037, where it is a filter behind entropy and threshold rules.

    Args:
        gap: smallest distance between two commits of a step [columns], 1 or more; 1 keeps all.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode import Pipeline
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.threshold import ConfidenceThreshold
        >>> apart = Pipeline(ConfidenceThreshold(0.9), filters={"spaced": Spaced(gap=2)})
        >>> Copy(n=7).answer(apart, "abcdefg")  # no two neighbours in one step
        ('abcdefg', 3)
    """

    gap: int = 2

    def __post_init__(self) -> None:
        require_count("gap", self.gap)

    def keep(self, view: StepView, decision: Decision, memory: None) -> Tensor:
        """The commits that stay, (B, W) bool."""
        scores = order_scores(view) if decision.scores is None else decision.scores
        left, kept = decision.commit, torch.zeros_like(decision.commit)
        if self.gap == 1:
            return left
        order = ordered(scores, left)
        for place in range(order.shape[1]):
            slot = order[:, place : place + 1]
            column = view.index.gather(1, slot)
            close = (view.index - column).abs() < self.gap
            free = left.gather(1, slot) & ~(kept & close).any(1, keepdim=True)
            kept = kept.scatter(1, slot, free)
        return kept
