"""Rows of different widths in one step: which of them share a forward pass on a processor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# One core of a server's processor, as measured; only their ratios decide.
_LAYER = 3.5e-4  # seconds of calls that a layer costs however little it computes
_PRODUCTS = 6e10  # operations per second in products of matrices
_MEMORY = 1.5e10  # bytes per second, read from memory


@dataclass(frozen=True)
class PassCost:
    """What a pass costs, in units of one narrow column: fixed + rows * width * (1 + bend * width).

    Attributes:
        fixed: Calls and weights to read, whatever the pass holds.
        bend: Attention, which grows with the square of the width.

    Examples:
        >>> PassCost(fixed=30.0, bend=0.0).groups((90, 20, 88, 24))
        ((0, 2), (3, 1))
    """

    fixed: float
    bend: float

    @staticmethod
    def of(model: Any) -> PassCost:
        """The cost of a model of transformers, or one like it, from its sizes."""
        weights = list(model.model.parameters())
        embedding = model.get_input_embeddings().weight
        numbers = max(1, sum(w.numel() for w in weights) - embedding.numel())
        column = 2 * numbers / _PRODUCTS
        layers, width = model.config.num_hidden_layers, embedding.shape[1]
        fixed = layers * _LAYER + numbers * embedding.element_size() / _MEMORY
        return PassCost(fixed / column, 4 * layers * width / numbers)

    def groups(self, widths: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The cheapest division of rows into passes, each as wide as its widest row.

        Args:
            widths: Columns of each row.

        Returns:
            Positions of the rows of each pass, the widest first.
        """
        return _groups(widths, self.fixed, self.bend)


@lru_cache(maxsize=4096)  # widths change when a row joins, ends or finds its end
def _groups(widths: tuple[int, ...], fixed: float, bend: float) -> tuple[tuple[int, ...], ...]:
    order = sorted(range(len(widths)), key=lambda row: -widths[row])
    # rows of one width stay together, so a pass can begin only where the width changes
    begins = [n for n, row in enumerate(order) if n == 0 or widths[row] != widths[order[n - 1]]]
    ends = [*begins[1:], len(order)]
    best = {0: (0.0, 0)}  # by the number of rows that are placed: cost, and where the last begins
    for end in ends:
        best[end] = min(
            (best[begin][0] + fixed + (end - begin) * _row(widths[order[begin]], bend), begin)
            for begin in begins
            if begin < end
        )
    found: list[tuple[int, ...]] = []
    end = len(order)
    while end:
        begin = best[end][1]
        found.append(tuple(order[begin:end]))
        end = begin
    return tuple(reversed(found))


def _row(width: int, bend: float) -> float:
    return width * (1 + bend * width)
