"""Counter-based random numbers: a pure function of (row seed, stream, step, column, id).

A row draws the same numbers whatever its batch, its neighbours and the device, and a draw can be
repeated at will, which a stateful generator shared by a batch cannot offer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.kernels.lazy import LazyFields

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch only has the arithmetic one)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def mix(value: Tensor) -> Tensor:
    """The splitmix64 finaliser (Steele et al., 2014): a bijection of int64 with good avalanche.

    Args:
        value: int64 of any shape.
    """
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def fold(state: Tensor, value: Tensor | int) -> Tensor:
    """Absorb one more number into a hash state.

    Args:
        state: int64.
        value: int64, broadcastable with the state.
    """
    return mix((state ^ value) + _GOLDEN)


def unit_interval(state: Tensor) -> Tensor:
    """Map hash states to float64 in the open interval (0, 1).

    52 bits: with one more, the half that keeps 0 out would round the largest value up to 1.

    Args:
        state: int64 of any shape.
    """
    return (_shift_right(state, 12).to(torch.float64) + 0.5) * 2.0**-52


def gumbel(state: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel noise in float64, one number per (state, id).

    Args:
        state: int64, of `Noise.states`.
        ids: int64 token ids, 0 or more; broadcastable with the states.
    """
    return -(-unit_interval(fold(state, ids)).log()).log()


@dataclass(frozen=True)
class Noise(LazyFields):
    """The random numbers of one step.

    Streams keep different uses apart: TOKENS for proposals, POSITIONS for the choice of positions.

    Attributes:
        seeds: (B,) int64, one per row.
        step: (B,) int64, steps the row has done.
        index: (B, W) columns, counted from the first generated one.

    Examples:
        >>> zero, seeds = torch.zeros(2, dtype=torch.long), torch.tensor([3, 4])
        >>> both = Noise(seeds, zero, torch.tensor([[0, 1], [0, 1]])).uniform()
        >>> alone = Noise(seeds[1:], zero[1:], torch.tensor([[1]])).uniform()
        >>> bool(both[1, 1] == alone[0, 0])
        True
    """

    seeds: Tensor
    step: Tensor
    index: Tensor
    lazy: ClassVar[tuple[str, ...]] = ("index",)

    TOKENS = 1
    POSITIONS = 2

    def states(self, stream: int = TOKENS) -> Tensor:
        """One int64 hash state per window slot, (B, W), from which its numbers follow.

        Args:
            stream: What the numbers are for.
        """
        rows = fold(fold(mix(self.seeds), stream), self.step)
        return fold(rows[:, None], self.index)

    def uniform(self, stream: int = POSITIONS) -> Tensor:
        """One float64 in (0, 1) per window slot, (B, W).

        Args:
            stream: What the numbers are for.
        """
        return unit_interval(self.states(stream))
