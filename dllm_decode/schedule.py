"""Which columns are open: a window per row, so that each row may be somewhere else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_decode.errors import ConfigError, require_count
from dllm_decode.selection import first_column
from dllm_decode.types import Board, Request


@dataclass(frozen=True)
class Window:
    """The open part of the canvas.

    index (B, W): canvas column of each slot in rising order, -1 where a row has fewer; key (B,):
    a number that changes when a row enters a new window.
    """

    index: Tensor
    key: Tensor


class Schedule(ABC):
    """Says, row by row, which columns may be committed next."""

    @property
    def block_length(self) -> int | None:
        """Length of the block grid, or None where there is no grid."""
        return None

    def check(self, request: Request) -> None:
        """Raise `ConfigError` if the schedule cannot serve the request."""
        return

    @abstractmethod
    def window(self, board: Board) -> Window:
        """The window of each row; called only with rows that have undecided columns left."""


def _slots(board: Board, begin: Tensor, width: int, limit: Tensor) -> Tensor:
    """Columns begin, begin + 1, ... of each row, -1 at and behind the limit, (B, width)."""
    columns = begin[:, None] + torch.arange(width, device=board.tokens.device)
    return torch.where(columns < limit[:, None], columns, -1)


@dataclass(frozen=True)
class Blocks(Schedule):
    """Semi-autoregressive blocks: the first block of a row that still has undecided columns.

    length: columns per block, 1 or more; the grid starts behind the prompt, the last block of a
    row may be shorter. Source: LLaDA, arXiv 2502.09992, appendix B.4.
    """

    length: int = 32

    def __post_init__(self) -> None:
        require_count("schedule.length", self.length)

    @property
    def block_length(self) -> int:
        """`length`."""
        return self.length

    def check(self, request: Request) -> None:
        """A block longer than every row's canvas is refused."""
        if self.length > max(request.lengths):
            raise ConfigError(
                f"schedule.length is {self.length}, longer than the canvas of "
                f"{max(request.lengths)} columns (max_new_tokens); use "
                f"schedule.length={max(request.lengths)} or schedule=whole"
            )

    def window(self, board: Board) -> Window:
        """The block around the first undecided column of each row."""
        block = (first_column(board.undecided) - board.start) // self.length
        begin = board.start + block * self.length
        return Window(_slots(board, begin, self.length, board.horizon), block)


@dataclass(frozen=True)
class WholeCanvas(Schedule):
    """Every live generated column at once (Dream, and LLaDA's base models)."""

    def window(self, board: Board) -> Window:
        """All columns up to the horizon."""
        begin = torch.full_like(board.horizon, board.start)
        width = board.tokens.shape[1] - board.start
        return Window(_slots(board, begin, width, board.horizon), torch.zeros_like(begin))


@dataclass(frozen=True)
class SlidingWindow(Schedule):
    """The next `width` columns from the first undecided one on; moves with every commit there.

    width: columns, 1 or more. The window never counts as new, so what a strategy remembers of a
    column stays while the window slides over it.
    """

    width: int = 32

    def __post_init__(self) -> None:
        require_count("schedule.width", self.width)

    def window(self, board: Board) -> Window:
        """`width` columns from the first undecided one."""
        begin = first_column(board.undecided)
        return Window(_slots(board, begin, self.width, board.horizon), torch.zeros_like(begin))
