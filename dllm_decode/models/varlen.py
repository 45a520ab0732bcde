"""Attention over rows of different lengths without padding, by flash-attn."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# transformers' own way takes the last columns of a mask for those of the queries, and positions
# with gaps for several texts; here queries lie anywhere in the canvas.
NAME = "dllm_decode_varlen"


class Seen(NamedTuple):
    """The keys that each row of a pass may see, found once for all layers.

    Attributes:
        row: Of each key, (N,).
        column: Of each key, (N,).
        begins: Where each row's keys begin among all, (B + 1,) int32.

    Examples:
        >>> seen_of(torch.tensor([[True, True, False], [False, True, False]])).begins.tolist()
        [0, 2, 3]
    """

    row: Tensor
    column: Tensor
    begins: Tensor


def seen_of(mask: Tensor) -> Seen:
    """Rows and columns of the keys that a mask (B, L) bool lets be seen; the host waits once."""
    row, column = mask.nonzero(as_tuple=True)
    ends = mask.sum(1).cumsum(0, dtype=torch.int32)
    return Seen(row, column, torch.nn.functional.pad(ends, (1, 0)))


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    seen: Seen | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, (B, Q, H, D), in which every query sees its row's keys.

    Args:
        module: The layer's attention.
        query: (B, H, Q, D).
        key: (B, K, L, D), where K divides H.
        value: (B, K, L, D).
        attention_mask: None; what is seen says `seen`.
        scaling: Of the scores.
        seen: The keys of each row; None for all.
    """
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    query = query.transpose(1, 2)
    if seen is None:
        keys, values = key.transpose(1, 2), value.transpose(1, 2)
        return flash_attn_func(query, keys, values, softmax_scale=scaling), None
    rows, queries = query.shape[:2]
    result = flash_attn_varlen_func(
        query.reshape(-1, *query.shape[2:]),
        key[seen.row, :, seen.column],
        value[seen.row, :, seen.column],
        cu_seqlens_q=torch.arange(rows + 1, dtype=torch.int32, device=query.device) * queries,
        cu_seqlens_k=seen.begins,
        max_seqlen_q=queries,
        max_seqlen_k=key.shape[2],
        softmax_scale=scaling,
    )
    return result.unflatten(0, (rows, queries)), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
