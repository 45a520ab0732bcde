"""The Triton twins of `reference`: same signatures, same results, one read of the logits.

Logits and hidden states are float32, bfloat16 or float16 with a contiguous last dimension; they are
never written to. Whatever a kernel cannot do raises `Unsupported` before anything is launched.
Needs Triton, and a CUDA device unless Triton's interpreter is on (TRITON_INTERPRET=1 before the
first import).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
    return _statistics(logits, banned, k, ids, None, 1.0)[0]


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
    stats, drawn = _statistics(logits, banned, k, None, states, temperature)
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
    banned = _bans(logits, banned)
    if raw is None:
        parts = _scan(logits, banned, 0, None, 1.0)
    else:
        parts = _Parts(logits.shape[0], 1, logits.device, whole=raw)
    return _credit(logits, logits.shape[1], banned, parts, raw, slots, given=False)


def credit_from(
    values: Tensor,
    raw: RowStatistics,
    slots: Slots,
) -> CreditUpdate:
    """The same where the logits needed are known; see `reference.credit_from`.

    Values and statistics may be float32 or float64.
    """
    _check_device(values)
    parts = _Parts(values.shape[0], 1, values.device, whole=raw)
    largest = torch.iinfo(torch.int32).max
    return _credit(values.contiguous(), largest, _bans(values, None), parts, raw, slots, given=True)


def _credit(
    logits: Tensor,
    vocabulary: int,
    banned: Tensor,
    parts: _Parts,
    raw: RowStatistics | None,
    slots: Slots,
    *,
    given: bool,
) -> CreditUpdate:
    rows, width = slots.ids.shape
    merged = _empty_statistics(rows, logits)
    fused = _empty_statistics(rows, logits, torch.float64)
    new_ids = torch.empty((rows, width), dtype=torch.int64, device=logits.device)
    new_credit = torch.empty((rows, width), dtype=slots.credit.dtype, device=logits.device)
    delta = torch.empty((rows, width), dtype=torch.float64, device=logits.device)
    if rows:
        with _on(logits):
            programs.credit_rows[(rows,)](
                *parts.statistics,
                *(logits, logits.stride(0), vocabulary, banned),
                *(slots.ids.contiguous(), slots.credit.contiguous()),
                *(_of_rows(slots.alpha, rows, logits), _of_rows(slots.beta, rows, logits)),
                *(float(slots.gamma), slots.open.contiguous().view(torch.int8)),
                *_outputs(merged),
                *(new_ids, new_credit, delta),
                *_outputs(fused),
                PARTS=parts.count,
                PART_WIDTH=triton.next_power_of_2(parts.count),
                SLOTS=width,
                SLOT_WIDTH=triton.next_power_of_2(width),
                BANS=banned.numel(),
                GIVEN=given,
                num_warps=1,
            )
    return CreditUpdate(new_ids, new_credit, delta, merged if raw is None else raw, fused)


def _of_rows(value: Tensor | float, rows: int, like: Tensor) -> Tensor:
    """A value of each row, (rows,); one for all is filled in on the device."""
    if isinstance(value, Tensor):
        return value.contiguous()
    return torch.full((rows,), value, dtype=torch.float64, device=like.device)


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
    rows, depth = hidden.shape
    vocabulary = weight.shape[0]
    banned = _bans(hidden, banned)
    if head_plan(rows)[0] == "slabs":
        return _head_in_slabs(hidden, weight, banned)
    height, block, inner, chunk = head_layout(max(rows, 1), vocabulary)
    parts = _Parts(rows, triton.cdiv(vocabulary, chunk), hidden.device)
    if rows:
        with _on(hidden):
            programs.scan_head[(triton.cdiv(rows, height), parts.count)](
                *(hidden, hidden.stride(0), weight, weight.stride(0), rows, vocabulary, banned),
                *parts.statistics,
                DEPTH=depth,
                BANS=banned.numel(),
                CHUNK=chunk,
                ROWS=height,
                BLOCK=block,
                INNER=inner,
                UPCAST=INTERPRETED,
                num_warps=8 if height == 128 else 4,
                num_stages=3,
            )
    return _finish(parts, hidden, vocabulary, banned, 0, None)[0]


def _head_in_slabs(hidden: Tensor, weight: Tensor, banned: Tensor) -> RowStatistics:
    """Products of the library, a few ids of the head at a time, each read once and forgotten."""
    rows, vocabulary = hidden.shape[0], weight.shape[0]
    slab = max(128, SCRATCH // triton.next_power_of_2(max(rows, 1)))
    starts = range(0, vocabulary, slab)
    counts = [layout(max(rows, 1), min(slab, vocabulary - start))[2] for start in starts]
    parts = _Parts(rows, sum(counts), hidden.device)
    for number, start in enumerate(starts):
        logits = head_logits(hidden, weight[start : start + slab])
        _scan_into(parts, logits, banned, start, sum(counts[:number]))
    return _finish(parts, hidden, vocabulary, banned, 0, None)[0]


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


class _Parts:
    """Partial results, one entry per row and part; `whole` takes finished rows as one part."""

    def __init__(
        self,
        rows: int,
        count: int,
        device: torch.device,
        k: int = 0,
        draw: bool = False,
        whole: RowStatistics | None = None,
    ) -> None:
        def buffer(dtype: torch.dtype, *more: int) -> Tensor:
            return torch.empty((rows, count, *more), dtype=dtype, device=device)

        self.count = count
        self.width = triton.next_power_of_2(max(k, 1))
        if whole is None:
            floats = (buffer(torch.float32), buffer(torch.float32), buffer(torch.float32))
            self.statistics: tuple[Tensor, ...] = (*floats, buffer(torch.int32))
        else:
            self.statistics = (whole.maximum, whole.rest, whole.moment, whole.token)
        empty = self.statistics[0]
        self.keys = buffer(torch.int64, self.width) if k else empty
        self.noisy = buffer(torch.float64) if draw else empty
        self.drawn = buffer(torch.int32) if draw else empty


def _statistics(
    logits: Tensor,
    banned: Tensor | None,
    k: int,
    ids: Tensor | None,
    states: Tensor | None,
    temperature: float,
) -> tuple[RowStatistics, Tensor | None]:
    _check_rows(logits)
    if not 0 <= k <= min(_LARGEST_K, logits.shape[-1]):
        raise Unsupported(f"the {k} largest logits; the kernel finds up to {_LARGEST_K}")
    banned = _bans(logits, banned)
    parts = _scan(logits, banned, k, states, temperature)
    return _finish(parts, logits, logits.shape[1], banned, k, ids, states is not None)


def _scan(
    logits: Tensor, banned: Tensor, k: int, states: Tensor | None, temperature: float
) -> _Parts:
    """The one read of the logits."""
    rows, vocabulary = logits.shape
    _, _, count = layout(max(rows, 1), vocabulary)
    parts = _Parts(rows, count, logits.device, k, states is not None)
    _scan_into(parts, logits, banned, 0, 0, k, states, temperature)
    return parts


def _scan_into(
    parts: _Parts,
    logits: Tensor,
    banned: Tensor,
    first_id: int,
    first_part: int,
    k: int = 0,
    states: Tensor | None = None,
    temperature: float = 1.0,
) -> None:
    """Read rows, or a slab of them whose first logit is that of `first_id`."""
    rows, vocabulary = logits.shape
    block, chunk, count = layout(max(rows, 1), vocabulary)
    if rows:
        with _on(logits):
            programs.scan_rows[(rows, count)](
                *(logits, logits.stride(0), vocabulary, banned),
                *(first_id, first_part, parts.count),
                *parts.statistics,
                parts.keys,
                parts.keys if states is None else states.contiguous(),
                float(temperature),
                *(parts.noisy, parts.drawn),
                BANS=banned.numel(),
                BLOCK=block,
                CHUNK=chunk,
                K=k,
                SLOTS=parts.width,
                DRAW=states is not None,
                VECTOR=16 // logits.element_size(),
                WIDTH=min(block, 512 // logits.element_size()),
                num_warps=1,
            )


def _finish(
    parts: _Parts,
    rows_of: Tensor,
    vocabulary: int,
    banned: Tensor,
    k: int,
    ids: Tensor | None,
    draw: bool = False,
) -> tuple[RowStatistics, Tensor | None]:
    """Merge the parts; `rows_of` are the logits, read only at `ids`."""
    rows, device = rows_of.shape[0], rows_of.device
    stats = _empty_statistics(rows, rows_of)
    values = torch.empty((rows, k), dtype=torch.float32, device=device)
    top_ids = torch.empty((rows, k), dtype=torch.int64, device=device)
    slots = 0 if ids is None else ids.shape[1]
    at = torch.empty((rows, slots), dtype=torch.float32, device=device)
    drawn = torch.empty(rows if draw else 0, dtype=torch.int64, device=device)
    if rows:
        with _on(rows_of):
            programs.finish_rows[(rows,)](
                *parts.statistics,
                *(parts.keys, parts.noisy, parts.drawn),
                *(rows_of, rows_of.stride(0), vocabulary, banned),
                banned if ids is None else ids.contiguous(),
                *_outputs(stats),
                *(values, top_ids, at, drawn),
                PARTS=parts.count,
                PART_WIDTH=triton.next_power_of_2(parts.count),
                K=k,
                WIDTH=parts.width,
                SLOTS=slots,
                SLOT_WIDTH=triton.next_power_of_2(max(slots, 1)),
                BANS=banned.numel(),
                DRAW=draw,
                num_warps=1 if k == 0 else 4,
            )
    stats = replace(
        stats,
        top_values=values if k else None,
        top_ids=top_ids if k else None,
        at=None if ids is None else at,
    )
    return stats, drawn if draw else None


def _empty_statistics(rows: int, like: Tensor, dtype: torch.dtype = torch.float32) -> RowStatistics:
    def floats() -> Tensor:
        return torch.empty(rows, dtype=dtype, device=like.device)

    token = torch.empty(rows, dtype=torch.int64, device=like.device)
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
