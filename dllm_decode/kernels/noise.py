"""Counter-based random numbers: a pure function of (row seed, stream, step, column, id).

A row draws the same numbers whatever its batch, its neighbours and the device, and a draw can be
repeated at will, which a stateful generator shared by a batch cannot offer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch only has the arithmetic one)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def mix(value: Tensor) -> Tensor:
    """The splitmix64 finaliser (Steele et al., 2014): a bijection of int64 with good avalanche."""
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def fold(state: Tensor, value: Tensor | int) -> Tensor:
    """Absorb one more number into a hash state; both int64 and broadcastable."""
    return mix((state ^ value) + _GOLDEN)


def unit_interval(state: Tensor) -> Tensor:
    """Map hash states to float64 in the open interval (0, 1).

    52 bits: with one more, the half that keeps 0 out would round the largest value up to 1.
    """
    return (_shift_right(state, 12).to(torch.float64) + 0.5) * 2.0**-52


def gumbel(state: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel noise in float64, one number per (state, id).

    state: int64 of `Noise.states`; ids: int64 token ids, 0 or more; shapes broadcast.
    """
    return -(-unit_interval(fold(state, ids)).log()).log()


@dataclass(frozen=True)
class Noise:
    """The random numbers of one step.

    seeds: (B,) int64, one per row; step: (B,) int64 steps the row has done; index: (B, W) canvas
    columns relative to the first generated column. Streams keep different uses apart.
    """

    seeds: Tensor
    step: Tensor
    index: Tensor

    TOKENS = 1
    POSITIONS = 2

    def states(self, stream: int = TOKENS) -> Tensor:
        """One int64 hash state per window slot, (B, W), from which its numbers follow."""
        rows = fold(fold(mix(self.seeds), stream), self.step)
        return fold(rows[:, None], self.index)

    def uniform(self, stream: int = POSITIONS) -> Tensor:
        """One float64 in (0, 1) per window slot, (B, W)."""
        return unit_interval(self.states(stream))

    def uniform_over(self, vocabulary: int, stream: int = TOKENS) -> Tensor:
        """One float64 in (0, 1) per window slot and token id, (B, W, V)."""
        ids = torch.arange(vocabulary, device=self.index.device)
        return unit_interval(fold(self.states(stream)[..., None], ids))

    def gumbel_over(self, vocabulary: int, stream: int = TOKENS) -> Tensor:
        """Standard Gumbel noise in float64, (B, W, V)."""
        ids = torch.arange(vocabulary, device=self.index.device)
        return gumbel(self.states(stream)[..., None], ids)
