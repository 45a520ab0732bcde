"""The body of a transformers model, as it is or through torch.compile with few static shapes."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dllm_decode.decoding.types import gather_columns
from dllm_decode.models.key_value import KeyValueStore
from dllm_decode.models.lean import LeanModel

MODES = ("default", "reduce-overhead", "max-autotune")
COLUMNS = 32  # queries and canvas columns are padded to multiples of this, rows to powers of two
GRAPHS = 64  # shapes before torch.compile gives up on new ones
ALIGNED = 8  # numbers between rows of a mask that memory-efficient attention reads as it is

log = logging.getLogger(__name__)
Mask = Any  # Tensor | torch's BlockMask | None; the second is imported where it is made


def run_body(
    model: Any,
    tokens: Tensor,
    positions: Tensor,
    mask: Mask,
    store: KeyValueStore | None,
    slots: Tensor | None = None,
) -> Tensor:
    """One pass through the transformer, (B, Q, D) or (B, W, D): the only call of a model's body.

    Args:
        model: A `...ForCausalLM`.
        tokens: (B, Q) ids.
        positions: (B, Q), from 0 at each row's first live column.
        mask: Bool, (B, L), (B, 1, 1, L) or (B, 1, Q, L), or for FlexAttention blocks of it; None
            where everything is seen.
        store: Stored keys and values that the pass updates and attends to.
        slots: (B, W), of Q, -1 for any, where states are wanted; None for everywhere.
    """
    if isinstance(model, LeanModel):
        some = slots if slots is not None and slots.shape[1] < tokens.shape[1] else None
        hidden: Tensor = model.model(tokens, mask, positions, store, some).last_hidden_state
        return hidden if slots is None or slots is some else gather_columns(hidden, slots)
    if isinstance(mask, Tensor) and mask.dim() == 4:
        if tokens.is_cuda and mask.dtype == torch.bool:
            mask = additive(mask, model.get_input_embeddings().weight.dtype)
        mask = mask.expand(-1, 1, tokens.shape[1], -1)
    more: dict[str, Any] = {}
    if isinstance(mask, Tensor) and mask.dim() == 2 and _by_rows(model):
        from dllm_decode.models.varlen import seen_of

        mask, more = None, {"seen": seen_of(mask)}
    past: Any = store
    if store is not None:
        from dllm_decode.models.stock_cache import stock_cache

        past = stock_cache(store)
    output = model.model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=past,
        use_cache=store is not None,
        **more,
    )
    hidden = output.last_hidden_state
    return hidden if slots is None else gather_columns(hidden, slots.to(hidden.device))


def _by_rows(model: Any) -> bool:
    """Whether attention takes the keys of each row, see `models.varlen`."""
    return bool(model.config._attn_implementation == "dllm_decode_varlen")


def blocks_seen(queries: Tensor, keys: Tensor, grid: tuple[Tensor, Tensor] | None = None) -> Mask:
    """The mask for FlexAttention, which skips what no query of a block may see.

    Args:
        queries: (B, Q), their columns.
        keys: (B, L) bool, columns that may be seen.
        grid: The blocks of queries (B, Q) and of keys (B, L), of which a query sees its own and
            earlier ones; None for full attention.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        there = keys[row, key]
        return there if grid is None else there & (grid[0][row, query] >= grid[1][row, key])

    rows, columns = keys.shape
    return create_block_mask(seen, rows, None, queries.shape[1], columns, str(keys.device))


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as numbers that are added to the scores.

    On a GPU attention would make these of it in every layer anew.

    Args:
        mask: (B, 1, 1, L) or (B, 1, Q, L), what may be seen.
        dtype: Of the queries.
    """
    width = mask.shape[-1]
    room = -(-width // ALIGNED) * ALIGNED
    numbers = torch.zeros(*mask.shape[:-1], room, dtype=dtype, device=mask.device)[..., :width]
    return numbers.masked_fill_(~mask, torch.finfo(dtype).min)


class CompiledBody:
    """`run_body` through torch.compile.

    Every new shape is compiled, which takes seconds to minutes, so rows are padded to powers of two
    and columns to multiples of `COLUMNS` by repeating the last one; nothing attends to the copies.
    A single row that sees everything is not padded: a mask for the copies would cost it the fastest
    attention, so its columns are compiled once for all numbers of them.
    What cannot be compiled runs uncompiled from then on, with the reason logged once.

    Args:
        model: A `...ForCausalLM` on one device.
        mode: Of torch.compile, one of `MODES`.
        backend: As torch.compile names it.

    Examples:
        >>> from dllm_decode.models.loading import load_model
        >>> model = load_model("bundled:llada-tiny", compile="default").denoiser
        >>> type(model.compiled).__name__
        'CompiledBody'
    """

    def __init__(self, model: Any, mode: str = "default", backend: str = "inductor") -> None:
        options: dict[str, Any] = {"mode": mode} if backend == "inductor" else {}
        torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
        self.mode = mode
        self._model = model
        self._graph = torch.compile(run_body, backend=backend, dynamic=False, **options)
        self._broken = False

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Mask,
        store: KeyValueStore | None,
    ) -> Tensor:
        """Hidden states (B, Q, D); see `run_body`."""
        # the first pass with a store allocates it, which is no work for a graph; FlexAttention is
        # compiled by itself, and its blocks are not padded
        unready = store is not None and not store.is_ready
        if self._broken or unready or not (mask is None or isinstance(mask, Tensor)):
            return run_body(self._model, tokens, positions, mask, store)
        try:
            return self._padded(tokens, positions, mask, store)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # compilers fail in many ways; a real fault of the model comes back uncompiled
            self._broken = True
            cause = getattr(error, "inner_exception", error)
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            log.warning("the model runs uncompiled: torch.compile failed (%s)", reason)
            return run_body(self._model, tokens, positions, mask, store)

    def _padded(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        store: KeyValueStore | None,
    ) -> Tensor:
        rows, queries = tokens.shape
        if rows == 1 and mask is None and store is None and queries > 1:
            for plane in (tokens, positions):
                torch._dynamo.maybe_mark_dynamic(plane, 1)
            alone: Tensor = self._graph(self._model, tokens, positions, None, None)
            return alone.clone()
        keys = queries if store is None else store.width
        width = _multiple(keys) if store is None else min(_multiple(keys), store.columns)
        all_rows = _power(rows) if store is None else min(_power(rows), store.rows)
        row = torch.arange(all_rows, device=tokens.device).clamp(max=rows - 1)
        slot = torch.arange(_multiple(queries), device=tokens.device).clamp(max=queries - 1)
        if mask is None and width > keys:
            mask = torch.ones(rows, 1, 1, keys, dtype=torch.bool, device=tokens.device)
        if mask is not None:
            mask = mask[row] if mask.dim() == 2 or mask.shape[2] == 1 else mask[row][:, :, slot]
            mask = pad(mask, (0, width - keys), value=False)
        at = row[:, None], slot
        with contextlib.ExitStack() as stack:
            if store is not None:
                stack.callback(store.aim, store.places, keys)
                store.aim(store.places[at], width)
            # a replayed CUDA graph writes its next result to the same place
            hidden = self._graph(self._model, tokens[at], positions[at], mask, store).clone()
        return hidden[:rows, :queries]


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _multiple(count: int) -> int:
    return -(-count // COLUMNS) * COLUMNS
