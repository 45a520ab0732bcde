"""Which columns are open: a window per row, so that each row may be somewhere else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from dllm_decode.decoding.selection import numbers
from dllm_decode.decoding.types import Request, Snapshot, StepView
from dllm_decode.errors import (
    CapabilityError,
    require,
    require_choice,
    require_count,
    require_in_range,
)
from dllm_decode.kernels.reference import best_slot


@dataclass(frozen=True)
class Window:
    """The open part of the canvas.

    Attributes:
        index: (B, W) canvas column of each slot in rising order, -1 where a row has fewer.
        key: (B,) a number that changes when a row enters a new window.
        inside: (B, W) bool, the slots that have a column, none of them beyond the canvas; None to
            have that found out, and columns beyond the canvas left out.

    Examples:
        >>> import torch
        >>> Window(index=torch.tensor([[4, 5, -1]]), key=torch.tensor([4])).index
        tensor([[ 4,  5, -1]])
    """

    index: Tensor
    key: Tensor
    inside: Tensor | None = None


class Schedule(ABC):
    """Says, row by row, which columns may be committed next.

    Attributes:
        sees_canvas: the view that `window` is given shows every live generated column, not the
            row's window alone.

    Examples:
        One column in the first step of a row, all of them afterwards:

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


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _grid(length: int, start: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The block of each column, and of the one behind them: where it begins, and its number.

    (columns + 1, 1) and (columns + 1,). Made once per shape of a canvas, and looked up in every
    step.

    Args:
        length: columns per block.
        start: where one of them begins.
        columns: of the canvas.
        device: where the table is needed.
    """
    offsets = torch.arange(-start, columns + 1 - start, device=device)
    blocks = torch.div(offsets, length, rounding_mode="floor")
    return (blocks * length + start).unsqueeze(1), blocks


def _from(begin: Tensor, width: int, limit: Tensor, key: Tensor) -> Window:
    """Columns begin, begin + 1, ... of each row, up to a limit that is no column beyond the canvas.

    Args:
        begin: (B, 1).
        width: slots.
        limit: (B, 1) one past the last column.
        key: (B,) see `Window`.
    """
    columns = begin + numbers(width, begin.device)
    inside = columns < limit
    return Window(torch.where(inside, columns, -1), key, inside)


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
            width, device = snapshot.tokens.shape[1], snapshot.rows.device
            begins, order = _grid(self.length, snapshot.start, width, device)
            first = snapshot.first_undecided
            begin, key = begins.index_select(0, first), order.index_select(0, first)
            return _from(begin, self.length, snapshot.limit, key)
        block = (snapshot.first_undecided - snapshot.first) // self.length
        begin = snapshot.first + block * self.length
        # a block that begins in the prompt ends no later for it
        limit = torch.minimum(begin + self.length, snapshot.horizon)
        return _from(begin.clamp(min=snapshot.start)[:, None], self.length, limit[:, None], block)


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
        return _from(begin[:, None], width, snapshot.limit, torch.zeros_like(begin))


@dataclass(frozen=True)
class _OfWidth(Schedule):
    """A window of at most `width` columns."""

    width: int = 32

    def __post_init__(self) -> None:
        require_count("width", self.width)


@dataclass(frozen=True)
class SlidingWindow(_OfWidth):
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

    def window(self, snapshot: Snapshot, view: StepView | None = None) -> Window:
        """`width` columns from the first undecided one."""
        begin = snapshot.first_undecided
        return _from(begin[:, None], self.width, snapshot.limit, torch.zeros_like(begin))


@dataclass(frozen=True)
class UndecidedColumns(_OfWidth):
    """The next `width` undecided columns, wherever they are.

    Unlike `SlidingWindow`, which is as narrow as its decided columns make it, the window always
    holds `width` columns that can still be committed, until the row has fewer. Decided columns in
    between are not part of it, so rules that open columns again find none, and the undecided share
    of the window is always 1.

    Source: DSB, arXiv 2602.05992, the greedy form; the constant form is `SlidingWindow`.

    Args:
        width: undecided columns, 1 or more.

    Raises:
        ConfigError: for fewer.

    Examples:
        >>> from dllm_decode.models.toy import Reverse
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Reverse(n=4).answer(TopK(2), "abcd", schedule=UndecidedColumns(3))
        ('dcba', 3)
    """

    def window(self, snapshot: Snapshot, view: StepView | None = None) -> Window:
        """The first `width` undecided columns of each row."""
        undecided = snapshot.undecided
        rows = undecided.shape[0]
        # undecided columns go to their rank; all others share a place behind, which is cut off
        place = torch.where(undecided, undecided.cumsum(1) - 1, self.width).clamp(max=self.width)
        index = torch.full((rows, self.width + 1), -1, device=undecided.device)
        index = index.scatter(1, place, snapshot.columns.expand(rows, -1))[:, :-1]
        return Window(index, torch.zeros_like(snapshot.horizon))


@dataclass(frozen=True)
class AdaptiveBlocks(Schedule):
    """Blocks that end where the model expects a delimiter.

        n = max(1, floor(share * columns))
        D = { i : begin <= i < begin + n, the argmax at i is a delimiter }
        end = 1 + the most confident i of D if its confidence reaches tau, else begin + length

    A row stays in its block until it is full; then the next one begins at its first undecided
    column. The end is chosen by the last prediction, made before the last commits of the old block;
    a row's first block has `length` columns.

    Source: AdaBlock, arXiv 2509.26432. Deviations: the released code makes a pass of its own at the
    boundary, and thereby chooses the first block as well; here the rows of a batch differ.

    Args:
        length: columns of a block without a delimiter, 1 or more.
        tau: confidence that a delimiter has to reach, [0, 1].
        share: how far behind the beginning of a block delimiters count, as a share of the row's
            columns, (0, 1].
        delimiters: token ids, or None for the model's end-of-text ids.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.threshold import ConfidenceThreshold
        >>> world = Copy(n=6)
        >>> blocks = AdaptiveBlocks(2, share=1.0, delimiters=(world.symbols.index("e"),))
        >>> rule = ConfidenceThreshold(0.9)
        >>> world.answer(rule, "abcdef", schedule=blocks)  # ab, cde, f and the end
        ('abcdef', 3)
    """

    length: int = 32
    tau: float = 0.3
    share: float = 0.25
    delimiters: Sequence[int] | None = None

    sees_canvas = True

    def __post_init__(self) -> None:
        require_count("length", self.length)
        require_in_range("tau", self.tau, 0.0, 1.0)
        require_in_range("share", self.share, 0.0, 1.0, open_low=True)
        given = () if self.delimiters is None else self.delimiters
        whole = all(isinstance(token, int) and not isinstance(token, bool) for token in given)
        require(
            self.delimiters is None or (len(given) > 0 and whole),
            "delimiters must be null (the model's end-of-text ids) or a list of token ids, "
            f"got {self.delimiters!r}",
        )

    def window(self, snapshot: Snapshot, view: StepView | None = None) -> Window:
        """The block around the first undecided column of each row."""
        begin = snapshot.first_undecided
        end = begin + self.length
        if view is not None:
            old, last = view.window_first, view.window_columns.amax(1)
            stays = (begin >= old) & (begin <= last)
            end = torch.where(stays, last + 1, self._end(snapshot, view, begin))
            begin = torch.where(stays, old, begin)
        columns = snapshot.columns[snapshot.start :].expand(begin.shape[0], -1)
        limit = torch.minimum(end, snapshot.horizon)[:, None]
        inside = (columns >= begin[:, None]) & (columns < limit)
        return Window(torch.where(inside, columns, -1), begin)

    def _end(self, snapshot: Snapshot, view: StepView, begin: Tensor) -> Tensor:
        """One past the last column of a block that begins at `begin`, (B,)."""
        vocab = snapshot.vocab
        ids = vocab.eot_ids if self.delimiters is None else tuple(self.delimiters)
        reach = ((snapshot.end - snapshot.start) * self.share).long().clamp(min=1)
        near = (view.index >= begin[:, None]) & (view.index < (begin + reach)[:, None])
        said = near & view.masked & torch.isin(view.pred.top_token, snapshot.ids(ids))
        place = best_slot(view.pred.top_certainty, said)
        sure = said & (view.pred.top_confidence >= self.tau)
        found = view.index.gather(1, place)[:, 0] + 1
        return torch.where(sure.gather(1, place)[:, 0], found, begin + self.length)
