"""Numbers of columns: all of them, and the first that is marked."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def numbers(count: int, device: torch.device) -> Tensor:
    """0, 1, ... count - 1, made once and never to be written to, (count,) int64.

    Args:
        count: how many, 0 or more.
        device: where.
    """
    return torch.arange(count, device=device)


def first_column(flags: Tensor) -> Tensor:
    """Lowest column that is set in each row, L where none is, (B,) int64.

    Args:
        flags: (B, L) bool.
    """
    # of equal ones, max takes the first
    found, column = flags.max(1)
    return torch.where(found, column, flags.shape[1])
