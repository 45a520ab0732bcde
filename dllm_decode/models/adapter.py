"""A transformers model as the loop's denoiser: everything particular to a model ends here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dllm_decode.cache import Plan, columns_of, mask_of
from dllm_decode.models.key_value import KeyValueStore
from dllm_decode.types import Vocab, gather_columns


@dataclass(frozen=True)
class TransformersDenoiser:
    """A stock transformers language model without causal mask.

    model: a `...ForCausalLM` in evaluation mode; vocab: special ids; max_length: longest canvas
    [tokens]; shifted: hidden states at column p predict column p + 1; block_length: columns of the
    block-causal grid, counted from the row's first live column, None for full attention;
    fingerprint: of the checkpoint, see `models.fingerprint`, None for models without one.
    """

    model: Any
    vocab: Vocab
    max_length: int | None = None
    shifted: bool = False
    block_length: int | None = None
    fingerprint: str | None = None

    @property
    def device(self) -> torch.device:
        """Where tokens must be."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def allocate(self, rows: int, columns: int) -> KeyValueStore:
        """A key/value store without rows, with room for `rows` of `columns` canvas columns."""
        return KeyValueStore(self.model.config.num_hidden_layers, rows, columns)

    @torch.no_grad()
    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """Logits (B, W, V) of the wanted columns; see `Denoiser`.

        The output head runs on the wanted columns alone. A shifted model predicts column c from
        c - 1, wherever the block borders are, and the row's first column from itself.
        """
        first = live.int().argmax(1, keepdim=True)
        source = torch.maximum(index - 1, first) if self.shifted else index
        source = torch.where(index >= 0, source, -1)
        if plan.columns is None:
            return self._head(gather_columns(self.hidden(tokens, live), source))
        store, known, width = plan.store, plan.valid, tokens.shape[1]
        assert isinstance(store, KeyValueStore) and known is not None
        if self.shifted:
            wanted = mask_of(plan.columns, width) | mask_of(source, width)
            plan = replace(plan, columns=columns_of(wanted & live))
        places = plan.places()
        valid = live & (known[:, :width] | mask_of(places, width))
        store.aim(places, width)
        mask = self._mask(places, valid, first)
        hidden = self._forward(tokens.gather(1, places), places - first, mask, store)
        slots = torch.arange(places.shape[1], device=tokens.device).expand_as(places)
        slot_of = torch.zeros_like(tokens).scatter_(1, places, slots)
        return self._head(gather_columns(hidden, gather_columns(slot_of, source)))

    @torch.no_grad()
    def hidden(self, tokens: Tensor, live: Tensor) -> Tensor:
        """Hidden states of all columns without a store, (B, L, D); not shifted.

        tokens, live: (B, L), see `Denoiser`. Positions are counted from the row's first live
        column, so that a row in a padded batch computes what it computes alone.
        """
        first = live.int().argmax(1, keepdim=True)
        columns = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self._forward(tokens, columns - first, self._mask(columns, live, first), None)

    def _mask(self, queries: Tensor, keys: Tensor, first: Tensor) -> Tensor | None:
        """The attention mask: None where everything is seen, else bool, never numbers.

        queries (B, Q): their columns; keys (B, L) bool: columns that may be seen; first (B, 1).
        Returns (B, L), or (B, 1, Q, L) where the block grid decides. Padding in front of a row
        counts as part of its first block, so that no query is left without a key.
        """
        if self.block_length is None:
            return None if bool(keys.all()) else keys
        columns = torch.arange(keys.shape[1], device=keys.device)
        block_of_key = (columns - first).clamp(min=0) // self.block_length
        block_of_query = (queries - first).clamp(min=0) // self.block_length
        seen = block_of_query[:, :, None] >= block_of_key[:, None, :]
        return (seen & keys[:, None, :])[:, None]

    def _forward(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, store: KeyValueStore | None
    ) -> Tensor:
        """One pass through the transformer: the only call of the model's body.

        tokens, positions (B, Q); mask: see `_mask`; store: stored keys and values that the pass
        updates and attends to. Returns hidden states (B, Q, D).
        """
        output = self.model.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions.clamp(min=0),
            past_key_values=store,
            use_cache=store is not None,
        )
        # with a device map the last layer may live elsewhere
        hidden: Tensor = output.last_hidden_state.to(tokens.device)
        return hidden

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits (B, W, V) of hidden states (B, W, D)."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits.to(hidden.device)
