"""Which columns are open: a window per row, so that each row may be somewhere else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm_decode.decoding.selection import numbers
from dllm_decode.decoding.types import Request, Snapshot, StepView
from dllm_decode.errors import CapabilityError, require_choice, require_count


@dataclass(frozen=True)
class Window:
    """The open part of the canvas.

    Attributes:
        index: (B, W) canvas column of each slot in rising order, -1 where a row has fewer.
        key: (B,) a number that changes when a row enters a new window.

    Examples:
        >>> import torch
        >>> Window(index=torch.tensor([[4, 5, -1]]), key=torch.tensor([4])).index
        tensor([[ 4,  5, -1]])
    """

    index: Tensor
    key: Tensor


class Schedule(ABC):
    """Says, row by row, which columns may be committed next.

    Attributes:
        sees_canvas: the view that `window` is given shows every live generated column, not the
            row's window alone.

    Examples:
        A window as wide as the surest half of what was predicted last:

        >>> from dataclasses import dataclass
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> @dataclass(frozen=True)
        ... class OneThenAll(Schedule):
        ...     def window(self, snapshot, view=None):
        ...         width = 1 if view is None else snapshot.tokens.shape[1]
        ...         return SlidingWindow(width).window(snapshot)
        >>> Copy(n=4).answer(TopK(9), "abcd", schedule=OneThenAll())
        ('abcd', 2)
    """

    sees_canvas: bool = False

    @property
    def block_length(self) -> int | None:
        """Length of the block grid, or None where there is no grid."""
        return None

    def check(self, request: Request) -> None:
        """Raise `ConfigError` if the schedule cannot serve the request."""
        return

    def on_grid(self, block_length: int | None) -> Schedule:
        """This schedule as a model needs it.

        Args:
            block_length: columns per block of the model's attention, None for full attention.

        Raises:
            CapabilityError: where windows would not be blocks of the model's grid.
        """
        if block_length is not None:
            raise CapabilityError(
                f"model attends block by block ({block_length} columns), which schedule "
                f"({type(self).__name__}) does not follow; use schedule=blocks "
                f"schedule.length={block_length}"
            )
        return self

    @abstractmethod
    def window(self, snapshot: Snapshot, view: StepView | None = None) -> Window:
        """The window of each row; what a row without undecided columns gets does not matter.

        Args:
            snapshot: the canvas.
            view: the step that has just been done, as the model predicted it, whose `active` slots
                are the window of then; None for rows that have not done one. Read it row by row,
                so that a row gets the same window in any batch.
        """


def _slots(snapshot: Snapshot, begin: Tensor, width: int, limit: Tensor) -> Tensor:
    """Columns begin, begin + 1, ... of each row, -1 at and behind the limit, (B, width)."""
    columns = begin[:, None] + numbers(width, begin.device)
    return columns.masked_fill_(columns >= limit[:, None], -1)


@dataclass(frozen=True)
class Blocks(Schedule):
    """Semi-autoregressive blocks: the first block of a row that still has undecided columns.

    Attributes:
        length: columns per block, 1 or more. The last block of a row may be shorter, also where it
            is the only one.
        origin: where the grid starts: behind the `prompt`; at the beginning of the row
            (`absolute`), so that the end of the prompt lies in the first block; or `auto`,
            `absolute` for models whose attention is block-causal and `prompt` for all others.

    Sources: LLaDA, arXiv 2502.09992, appendix B.4; the absolute grid is that of the released
    samplers of LLaDA2, SDAR and Fast-dLLM v2.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Copy(n=4).answer(TopK(4), "abcd", schedule=Blocks(2))
        ('abcd', 3)
    """

    length: int = 32
    origin: str = "auto"

    def __post_init__(self) -> None:
        require_count("length", self.length)
        require_choice("origin", self.origin, ("auto", "prompt", "absolute"))

    @property
    def block_length(self) -> int:
        """The grid's length is that of the blocks."""
        return self.length

    def on_grid(self, block_length: int | None) -> Blocks:
        """The absolute grid for block-causal models, whose block length must be this one's."""
        if block_length is None:
            return self
        if self.length != block_length or self.origin == "prompt":
            raise CapabilityError(
                f"model attends in blocks of {block_length} columns counted from the beginning of "
                f"the row, but schedule has length={self.length} origin={self.origin}; use "
                f"schedule=blocks schedule.length={block_length} schedule.origin=auto"
            )
        return replace(self, origin="absolute")

    def window(self, snapshot: Snapshot, view: StepView | None = None) -> Window:
        """The block around the first undecided column of each row."""
        if self.origin != "absolute":
            block = (snapshot.first_undecided - snapshot.start) // self.length
            begin = block * self.length + snapshot.start
            return Window(_slots(snapshot, begin, self.length, snapshot.horizon), block)
        block = (snapshot.first_undecided - snapshot.first) // self.length
        begin = snapshot.first + block * self.length
        # a block that begins in the prompt ends no later for it
        limit = torch.minimum(begin + self.length, snapshot.horizon)
        return Window(_slots(snapshot, begin.clamp(min=snapshot.start), self.length, limit), block)


@dataclass(frozen=True)
class WholeCanvas(Schedule):
    """Every live generated column at once (Dream, and LLaDA's base models).

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Copy(n=4).answer(TopK(4), "abcd", schedule=WholeCanvas())
        ('abcd', 2)
    """

    def window(self, snapshot: Snapshot, view: StepView | None = None) -> Window:
        """All columns up to the horizon."""
        begin = torch.full_like(snapshot.horizon, snapshot.start)
        width = snapshot.tokens.shape[1] - snapshot.start
        return Window(_slots(snapshot, begin, width, snapshot.horizon), torch.zeros_like(begin))


@dataclass(frozen=True)
class SlidingWindow(Schedule):
    """The next `width` columns from the first undecided one on; moves with every commit there.

    The window never counts as new, so that what a strategy remembers of a column stays while the
    window slides over it.

    Args:
        width: columns, 1 or more.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Copy(n=4).answer(TopK(4), "abcd", schedule=SlidingWindow(3))
        ('abcd', 2)
    """

    width: int = 32

    def __post_init__(self) -> None:
        require_count("width", self.width)

    def window(self, snapshot: Snapshot, view: StepView | None = None) -> Window:
        """`width` columns from the first undecided one."""
        begin = snapshot.first_undecided
        return Window(
            _slots(snapshot, begin, self.width, snapshot.horizon), torch.zeros_like(begin)
        )
