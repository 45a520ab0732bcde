"""The Triton twins of `reference`: same signatures, same results, one read of the logits.

Logits and hidden states are float32, bfloat16 or float16 with a contiguous last dimension; they are
never written to. Whatever a kernel cannot do raises `Unsupported` before anything is launched.
Needs Triton, and a CUDA device unless Triton's interpreter is on (TRITON_INTERPRET=1 before the
first import).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime import JITFunction

from dllm_decode.kernels import programs
from dllm_decode.kernels.reference import CreditUpdate, RowStatistics, Slots, head_logits

INTERPRETED = not isinstance(programs.scan_rows, JITFunction)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Enough warps to keep every multiprocessor of a large chip busy with several at a time.
_PROGRAMS = 4096
_LARGEST_K = 32
# Rows from which the head runs in slabs, and the logits of a slab: the model of costs in
# docs/kernels.md.
MANY_ROWS = 2048
SCRATCH = 1 << 23
_LARGEST_WINDOW = 1 << 15


class Unsupported(Exception):
    """A shape, dtype or device that the kernels do not serve; says which.

    Examples:
        >>> isinstance(Unsupported("float16 states"), Exception)
        True
    """


def layout(rows: int, vocabulary: int) -> tuple[int, int, int]:
    """How a row is read.

    Rows are split so that programs of one warp each fill the chip. The number of rows is rounded to
    a power of two, so that few variants of a kernel are compiled.

    Args:
        rows: Rows of logits.
        vocabulary: Logits per row.

    Returns:
        Ids per block, ids per program, programs per row.
    """
    block = max(16, min(1024, triton.next_power_of_2(vocabulary)))
    blocks = triton.cdiv(vocabulary, block)
    parts = max(1, min(blocks, _PROGRAMS // triton.next_power_of_2(rows)))
    chunk = triton.cdiv(blocks, parts) * block
    return block, chunk, triton.cdiv(vocabulary, chunk)


def head_plan(rows: int) -> tuple[str, str]:
    """How head and statistics are computed, `fused` or `slabs`, and why; see docs/kernels.md.

    Args:
        rows: Rows of hidden states.
    """
    if rows < MANY_ROWS:
        return "fused", "the time goes into reading the head, which both ways do once"
    return "slabs", (
        "the time goes into the product, where the library is faster than a fused kernel by more "
        "than it costs to write and read the logits of a slab"
    )


def head_layout(rows: int, vocabulary: int) -> tuple[int, int, int, int]:
    """The tiles of the head product.

    Args:
        rows: Rows of hidden states.
        vocabulary: Rows of the head's weight.

    Returns:
        Rows, ids and inner dimension of a tile, and ids per program.
    """
    height = 16 if rows <= 16 else 64 if rows <= 64 else 128
    block = max(16, min(128, triton.next_power_of_2(vocabulary)))
    blocks = triton.cdiv(vocabulary, block)
    parts = max(1, min(blocks, 528 // triton.cdiv(triton.next_power_of_2(rows), height)))
    return height, block, 64, triton.cdiv(blocks, parts) * block


def row_statistics(
    logits: Tensor, banned: Tensor | None = None, k: int = 0, ids: Tensor | None = None
) -> RowStatistics:
    """Argmax, maximum, sum and moment of every row; see `reference.row_statistics`.

    k may be up to 32.
    """
    return _statistics(logits, banned, _Wanted(k, ids))[0]


def top_k(logits: Tensor, k: int, banned: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest logits of every row and their ids; see `reference.top_k`.

    k may be up to 32.
    """
    stats = row_statistics(logits, banned, min(k, logits.shape[-1]))
    assert stats.top_values is not None and stats.top_ids is not None
    return stats.top_values, stats.top_ids


def gumbel_statistics(
    logits: Tensor,
    states: Tensor,
    temperature: float,
    banned: Tensor | None = None,
    k: int = 0,
) -> tuple[RowStatistics, Tensor]:
    """The row statistics and a draw; see `reference.gumbel_statistics`.

    k may be up to 32.
    """
    stats, drawn = _statistics(logits, banned, _Wanted(k, None, states, temperature))
    assert drawn is not None
    return stats, drawn


def gumbel_argmax(
    logits: Tensor, states: Tensor, temperature: float, banned: Tensor | None = None
) -> Tensor:
    """See `reference.gumbel_argmax`; the statistics come with the same read."""
    return gumbel_statistics(logits, states, temperature, banned)[1]


def credit_update(
    logits: Tensor,
    slots: Slots,
    banned: Tensor | None = None,
    raw: RowStatistics | None = None,
) -> CreditUpdate:
    """Credit after a step and the logits it raises; see `reference.credit_update`.

    One read of the logits, or K gathers where `raw` is given.
    """
    _check_rows(logits)
    rows = _Rows(logits, logits.shape[1], _bans(logits, banned))
    return _credit(rows, _scan(rows, _Wanted()) if raw is None else _whole(raw), slots)


def credit_from(
    values: Tensor,
    raw: RowStatistics,
    slots: Slots,
) -> CreditUpdate:
    """The same where the logits needed are known; see `reference.credit_from`.

    Values and statistics may be float32 or float64.
    """
    _check_device(values)
    largest = torch.iinfo(torch.int32).max
    rows = _Rows(values.contiguous(), largest, _bans(values, None))
    return _credit(rows, _whole(raw), slots, given=True)


def _credit(rows: _Rows, parts: _Parts, slots: Slots, *, given: bool = False) -> CreditUpdate:
    """`rows` are the logits, or where they are `given` those of the slots alone."""
    count, width = slots.ids.shape
    device = rows.values.device
    merged = _empty_statistics(count, device)
    fused = _empty_statistics(count, device, torch.float64)
    new_ids = torch.empty((count, width), dtype=torch.int64, device=device)
    new_credit = torch.empty((count, width), dtype=slots.credit.dtype, device=device)
    delta = torch.empty((count, width), dtype=torch.float64, device=device)
    if count:
        with _on(rows.values):
            programs.credit_rows[(count,)](
                *parts.statistics,
                *rows.arguments,
                *(slots.ids.contiguous(), slots.credit.contiguous()),
                *(_of_rows(slots.alpha, count, device), _of_rows(slots.beta, count, device)),
                *(float(slots.gamma), slots.open.contiguous().view(torch.int8)),
                *_outputs(merged),
                *(new_ids, new_credit, delta),
                *_outputs(fused),
                PARTS=parts.count,
                PART_WIDTH=triton.next_power_of_2(parts.count),
                SLOTS=width,
                SLOT_WIDTH=triton.next_power_of_2(width),
                BANS=rows.banned.numel(),
                GIVEN=given,
                num_warps=1,
            )
    return CreditUpdate(
        new_ids, new_credit, delta, merged if parts.whole is None else parts.whole, fused
    )


def _of_rows(value: Tensor | float, rows: int, device: torch.device) -> Tensor:
    """A value of each row, (rows,); one for all is filled in on the device."""
    if isinstance(value, Tensor):
        return value.contiguous()
    return torch.full((rows,), value, dtype=torch.float64, device=device)


def threshold_selection(
    scores: Tensor,
    open: Tensor,
    threshold: Tensor,
    strict: bool = False,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Open slots that reach a threshold; see `reference.threshold_selection`.

    Windows may have up to 32,768 slots.
    """
    rows, columns = scores.shape
    _check_device(scores)
    if scores.dtype not in (torch.float32, torch.float64):
        raise Unsupported(f"scores of type {scores.dtype}; the kernel takes float32 and float64")
    if not 1 <= columns <= _LARGEST_WINDOW:
        raise Unsupported(f"a window of {columns} slots; the kernel takes 1 to {_LARGEST_WINDOW}")
    commit = torch.empty((rows, columns), dtype=torch.bool, device=scores.device)
    left = torch.empty(rows, dtype=torch.int64, device=scores.device)
    if rows:
        with _on(scores):
            programs.select_rows[(rows,)](
                scores.contiguous(),
                (scores if order is None else order).contiguous(),
                open.contiguous().view(torch.int8),
                threshold.contiguous(),
                columns,
                commit.view(torch.int8),
                left,
                STRICT=strict,
                WIDTH=triton.next_power_of_2(columns),
                num_warps=4 if columns <= 4096 else 16,
            )
    return commit, left


def head_statistics(hidden: Tensor, weight: Tensor, banned: Tensor | None = None) -> RowStatistics:
    """The row statistics of hidden @ weight.T; see `reference.head_statistics`.

    The logits exist only in registers.
    """
    _check_head(hidden, weight)
    count, depth = hidden.shape
    rows = _Rows(hidden, weight.shape[0], _bans(hidden, banned))
    if head_plan(count)[0] == "slabs":
        return _head_in_slabs(rows, weight)
    height, block, inner, chunk = head_layout(max(count, 1), rows.vocabulary)
    parts = _parts(rows, triton.cdiv(rows.vocabulary, chunk))
    if count:
        with _on(hidden):
            programs.scan_head[(triton.cdiv(count, height), parts.count)](
                *(hidden, hidden.stride(0), weight, weight.stride(0)),
                *(count, rows.vocabulary, rows.banned),
                *parts.statistics,
                DEPTH=depth,
                BANS=rows.banned.numel(),
                CHUNK=chunk,
                ROWS=height,
                BLOCK=block,
                INNER=inner,
                UPCAST=INTERPRETED,
                num_warps=8 if height == 128 else 4,
                num_stages=3,
            )
    return _finish(parts, rows, _Wanted())[0]


def _head_in_slabs(rows: _Rows, weight: Tensor) -> RowStatistics:
    """Products of the library, a few ids of the head at a time, each read once and forgotten."""
    height = max(rows.count, 1)
    slab = max(128, SCRATCH // triton.next_power_of_2(height))
    starts = range(0, rows.vocabulary, slab)
    counts = [layout(height, min(slab, rows.vocabulary - start))[2] for start in starts]
    parts = _parts(rows, sum(counts))
    for number, start in enumerate(starts):
        logits = head_logits(rows.values, weight[start : start + slab])
        piece = _Rows(logits, logits.shape[1], rows.banned)
        _scan_into(parts, piece, _Wanted(), start, sum(counts[:number]))
    return _finish(parts, rows, _Wanted())[0]


def head_logits_at(
    hidden: Tensor, weight: Tensor, ids: Tensor, banned: Tensor | None = None
) -> Tensor:
    """Logits of some ids from hidden states; see `reference.head_logits_at`.

    The wanted columns of the head are read, and none of them is stored.
    """
    _check_head(hidden, weight)
    rows, slots = ids.shape
    banned = _bans(hidden, banned)
    at = torch.empty((rows, slots), dtype=torch.float32, device=hidden.device)
    if at.numel():
        with _on(hidden):
            programs.gather_head[(rows, slots)](
                *(hidden, hidden.stride(0), weight, weight.stride(0), banned),
                *(ids.contiguous(), at),
                DEPTH=hidden.shape[1],
                BANS=banned.numel(),
                BLOCK=min(1024, triton.next_power_of_2(hidden.shape[1])),
                num_warps=4,
            )
    return at


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows that a program reads, of logits or hidden states, and what is left out of them.

    Attributes:
        values: (N, V) logits, (N, D) hidden states or (N, K) logits of the slots.
        vocabulary: Ids that a row stands for.
        banned: (M,) ids that count as if their logits were -inf.
    """

    values: Tensor
    vocabulary: int
    banned: Tensor

    @property
    def count(self) -> int:
        return self.values.shape[0]

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.values, self.values.stride(0), self.vocabulary, self.banned


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is asked for beside argmax, maximum, sum and moment.

    Attributes:
        k: Number of largest logits.
        ids: (N, S) ids whose logits are read as well.
        states: (N,) states of the random numbers of a draw; None draws nothing.
        temperature: Temperature of the draw.
    """

    k: int = 0
    ids: Tensor | None = None
    states: Tensor | None = None
    temperature: float = 1.0

    @property
    def draw(self) -> bool:
        return self.states is not None


@dataclass(frozen=True, slots=True)
class _Parts:
    """Partial results, one entry per row and part.

    Attributes:
        count: Parts of a row.
        statistics: (N, count) maxima, sums, moments and argmaxes.
        keys: (N, count, width) sort keys of the largest logits.
        noisy: (N, count) largest sums of logit and noise.
        drawn: (N, count) their ids.
        width: Keys per part, a power of two.
        whole: Finished rows that stand for one part, if nothing was read.
    """

    count: int
    statistics: tuple[Tensor, ...]
    keys: Tensor
    noisy: Tensor
    drawn: Tensor
    width: int = 1
    whole: RowStatistics | None = None


def _parts(rows: _Rows, count: int, wanted: _Wanted = _Wanted()) -> _Parts:
    """Room for the results of `count` parts of each row."""

    def buffer(dtype: torch.dtype, *more: int) -> Tensor:
        return torch.empty((rows.count, count, *more), dtype=dtype, device=rows.values.device)

    width = triton.next_power_of_2(max(wanted.k, 1))
    floats = (buffer(torch.float32), buffer(torch.float32), buffer(torch.float32))
    statistics = (*floats, buffer(torch.int32))
    return _Parts(
        count,
        statistics,
        keys=buffer(torch.int64, width) if wanted.k else floats[0],
        noisy=buffer(torch.float64) if wanted.draw else floats[0],
        drawn=buffer(torch.int32) if wanted.draw else floats[0],
        width=width,
    )


def _whole(raw: RowStatistics) -> _Parts:
    """Statistics of finished rows, as one part."""
    empty = raw.maximum
    statistics = (raw.maximum, raw.rest, raw.moment, raw.token)
    return _Parts(1, statistics, empty, empty, empty, whole=raw)


def _statistics(
    logits: Tensor, banned: Tensor | None, wanted: _Wanted
) -> tuple[RowStatistics, Tensor | None]:
    _check_rows(logits)
    if not 0 <= wanted.k <= min(_LARGEST_K, logits.shape[-1]):
        raise Unsupported(f"the {wanted.k} largest logits; the kernel finds up to {_LARGEST_K}")
    rows = _Rows(logits, logits.shape[1], _bans(logits, banned))
    return _finish(_scan(rows, wanted), rows, wanted)


def _scan(rows: _Rows, wanted: _Wanted) -> _Parts:
    """The one read of the logits."""
    parts = _parts(rows, layout(max(rows.count, 1), rows.vocabulary)[2], wanted)
    _scan_into(parts, rows, wanted, 0, 0)
    return parts


def _scan_into(parts: _Parts, rows: _Rows, wanted: _Wanted, first_id: int, first_part: int) -> None:
    """Read rows, or a slab of them whose first logit is that of `first_id`."""
    logits = rows.values
    block, chunk, count = layout(max(rows.count, 1), rows.vocabulary)
    if rows.count:
        with _on(logits):
            programs.scan_rows[(rows.count, count)](
                *rows.arguments,
                *(first_id, first_part, parts.count),
                *parts.statistics,
                parts.keys,
                parts.keys if wanted.states is None else wanted.states.contiguous(),
                float(wanted.temperature),
                *(parts.noisy, parts.drawn),
                BANS=rows.banned.numel(),
                BLOCK=block,
                CHUNK=chunk,
                K=wanted.k,
                SLOTS=parts.width,
                DRAW=wanted.draw,
                VECTOR=16 // logits.element_size(),
                WIDTH=min(block, 512 // logits.element_size()),
                num_warps=1,
            )


def _finish(parts: _Parts, rows: _Rows, wanted: _Wanted) -> tuple[RowStatistics, Tensor | None]:
    """Merge the parts; the rows are read only at the ids wanted."""
    count, device = rows.count, rows.values.device
    k, ids = wanted.k, wanted.ids
    stats = _empty_statistics(count, device)
    values = torch.empty((count, k), dtype=torch.float32, device=device)
    top_ids = torch.empty((count, k), dtype=torch.int64, device=device)
    slots = 0 if ids is None else ids.shape[1]
    at = torch.empty((count, slots), dtype=torch.float32, device=device)
    drawn = torch.empty(count if wanted.draw else 0, dtype=torch.int64, device=device)
    if count:
        with _on(rows.values):
            programs.finish_rows[(count,)](
                *parts.statistics,
                *(parts.keys, parts.noisy, parts.drawn),
                *rows.arguments,
                rows.banned if ids is None else ids.contiguous(),
                *_outputs(stats),
                *(values, top_ids, at, drawn),
                PARTS=parts.count,
                PART_WIDTH=triton.next_power_of_2(parts.count),
                K=k,
                WIDTH=parts.width,
                SLOTS=slots,
                SLOT_WIDTH=triton.next_power_of_2(max(slots, 1)),
                BANS=rows.banned.numel(),
                DRAW=wanted.draw,
                num_warps=1 if k == 0 else 4,
            )
    stats = replace(
        stats,
        top_values=values if k else None,
        top_ids=top_ids if k else None,
        at=None if ids is None else at,
    )
    return stats, drawn if wanted.draw else None


def _empty_statistics(
    rows: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> RowStatistics:
    def floats() -> Tensor:
        return torch.empty(rows, dtype=dtype, device=device)

    token = torch.empty(rows, dtype=torch.int64, device=device)
    return RowStatistics(token, floats(), floats(), floats())


def _outputs(stats: RowStatistics) -> tuple[Tensor, ...]:
    return stats.maximum, stats.rest, stats.moment, stats.token


def _bans(like: Tensor, banned: Tensor | None) -> Tensor:
    if banned is None:
        return torch.empty(0, dtype=torch.int64, device=like.device)
    return banned.contiguous()


def _check_device(tensor: Tensor) -> None:
    if not (tensor.is_cuda or INTERPRETED):
        raise Unsupported(f"a tensor on {tensor.device}; the kernels run on CUDA devices")


def _check_rows(rows: Tensor) -> None:
    _check_device(rows)
    if rows.dtype not in DTYPES:
        raise Unsupported(f"{rows.dtype}; the kernels take float32, bfloat16 and float16")
    if rows.dim() != 2 or rows.shape[1] == 0 or (rows.shape[1] > 1 and rows.stride(1) != 1):
        raise Unsupported(
            f"a tensor of shape {tuple(rows.shape)} and strides {rows.stride()}; the kernels take "
            "(N, V) with V >= 1 and a contiguous last dimension"
        )


def _check_head(hidden: Tensor, weight: Tensor) -> None:
    _check_rows(hidden)
    _check_rows(weight)
    if hidden.dtype != weight.dtype or hidden.device != weight.device:
        raise Unsupported(
            f"hidden states of {hidden.dtype} on {hidden.device} and a head of {weight.dtype} on "
            f"{weight.device}"
        )
    if hidden.dtype == torch.float32 and not INTERPRETED:
        raise Unsupported("a head of torch.float32; its tiles do not fit into registers")
    if fault := head_fault(hidden.device):
        raise Unsupported(fault)


def head_fault(device: torch.device) -> str:
    """Why head and statistics cannot be one kernel on a device, "" where they can.

    Args:
        device: Where the hidden states are.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0):
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return (
        f"a head on a device of capability {major}.{minor}; before 8.0 its tiles do not fit into "
        "registers"
    )


@contextmanager
def _on(tensor: Tensor) -> Iterator[Any]:
    """Launch on the tensor's own device."""
    if tensor.is_cuda:
        with torch.cuda.device(tensor.device):
            yield
    else:
        yield
