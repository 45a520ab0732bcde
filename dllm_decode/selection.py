"""Small tensor functions that selection rules share; all per row, lowest column first on ties."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(scores: Tensor, among: Tensor) -> Tensor:
    """Position of each slot in the order of falling scores, 0 for the best.

    scores (B, W); among (B, W) bool: slots that take part, the others rank behind them. Equal
    scores rank by column. Returns (B, W) int64.
    """
    order = ordered(scores, among)
    place = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, place)


def ordered(scores: Tensor, among: Tensor) -> Tensor:
    """Slots in the order of falling scores, those not among the candidates last, (B, W) int64."""
    by_score = scores.sort(dim=1, descending=True, stable=True).indices
    last = (~among).gather(1, by_score).to(torch.int8)
    return by_score.gather(1, last.sort(dim=1, stable=True).indices)


def best(scores: Tensor, among: Tensor, count: Tensor | int = 1) -> Tensor:
    """The `count` best candidates of each row, (B, W) bool.

    scores (B, W); among (B, W) bool; count: one number or (B,), 0 or more.
    """
    limit = count[:, None] if isinstance(count, Tensor) else count
    return among & (ranks(scores, among) < limit)


def first_column(flags: Tensor) -> Tensor:
    """Lowest column that is set in each row, L where none is, (B,) int64. flags: (B, L) bool."""
    columns = torch.arange(flags.shape[1], device=flags.device)
    return torch.where(flags, columns, flags.shape[1]).amin(1)
