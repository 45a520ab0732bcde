"""A transformers model as the loop's denoiser: everything particular to a model ends here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.prediction import HiddenStates
from dllm_decode.decoding.selection import numbers
from dllm_decode.decoding.types import Vocab, gather_columns
from dllm_decode.kernels.shards import VocabularyShard
from dllm_decode.models.compiled import CompiledBody, Mask, blocks_seen, run_body
from dllm_decode.models.grouping import PassCost
from dllm_decode.models.head import first_of_all, head_obstacle, vocabulary_shard
from dllm_decode.models.key_value import FixedBuffers, KeyValueStore


@dataclass(frozen=True)
class TransformersDenoiser:
    """A stock transformers language model without causal mask, as a `Denoiser`.

    Attributes:
        model: A `...ForCausalLM` in evaluation mode.
        vocab: Special ids; the head may have more rows than ids.
        max_length: Longest canvas in tokens.
        shifted: Whether hidden states at column p predict column p + 1.
        block_length: Columns of the block-causal grid, counted from the row's first live column;
            None for full attention.
        reordered: Whether attention is causal in the order of decisions, see `ModelSpec`.
        routes_blocks: Whether the tokens of a block choose their experts together, as LLaDA2.2's.
        fingerprint: Of the checkpoint, see `models.fingerprint`; None for models without one.
        compiled: Runs the model's body; None to run it as it is.
        watch: Is told the columns and the seconds of each pass; None for nobody.

    Examples:
        >>> from dllm_decode.models.loading import load_model
        >>> model = load_model("bundled:llada-tiny").denoiser
        >>> model.shifted, model.block_length
        (False, None)
    """

    model: Any
    vocab: Vocab
    max_length: int | None = None
    shifted: bool = False
    block_length: int | None = None
    reordered: bool = False
    routes_blocks: bool = False
    fingerprint: str | None = None
    compiled: CompiledBody | None = field(default=None, repr=False)
    watch: Callable[[int, float], None] | None = field(default=None, repr=False)

    @property
    def device(self) -> torch.device:
        """The device of the output head, on which it takes tokens and gives logits.

        With a device map the embedding may lie elsewhere: moving ids there is nothing beside moving
        logits back.
        """
        head: torch.device = self.model.get_output_embeddings().weight.device
        # a head that waits on the disk or in the memory of the host is brought to the embedding
        return self._entry if head.type in ("meta", "cpu") else head

    @property
    def _entry(self) -> torch.device:
        """The device of the input embedding, where a pass begins."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def replays(self) -> bool:
        """Whether steps are to be replayed as CUDA graphs, as the forward pass is."""
        return self.compiled is not None and self.compiled.mode == "reduce-overhead"

    def allocate(self, rows: int, columns: int) -> KeyValueStore:
        """A key/value store without rows, with room for `rows` of `columns` canvas columns."""
        if self.replays:
            return self._buffers.store(rows, columns)
        return KeyValueStore(self.model.config.num_hidden_layers, rows, columns)

    @cached_property
    def _buffers(self) -> FixedBuffers:
        return FixedBuffers(self.model.config.num_hidden_layers)

    @torch.no_grad()
    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """Logits (B, W, V) of the wanted columns; see `Denoiser`.

        The output head runs on the wanted columns alone, read where `sources` says.
        """
        return self._head(self._wanted(tokens, live, index, plan))

    @torch.no_grad()
    def before_head(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> HiddenStates:
        """The same logits, not computed yet; where `head_obstacle` is empty."""
        hidden = self._wanted(tokens, live, index, plan)
        if self._shard is not None:
            return HiddenStates(hidden, self._shard)
        weight = self.model.get_output_embeddings().weight.detach()[: self.vocab.size]
        return HiddenStates(hidden, weight)

    @cached_property
    def _shard(self) -> VocabularyShard | None:
        """This process's part of the head under tensor parallelism, None elsewhere."""
        return vocabulary_shard(self.model, self.vocab.size)

    @property
    def head_shared(self) -> bool:
        """Whether several processes hold parts of the head; see `Capabilities`."""
        return self._shard is not None

    @property
    def head_obstacle(self) -> str:
        """Why the fused head cannot be used, "" where it can; see `models.head`."""
        return head_obstacle(self.model, self.vocab.size)

    @property
    def provides(self) -> frozenset[str]:
        """What parts may see of its inside; see `Capabilities`."""
        return frozenset({"hidden", "embeddings"})

    @property
    def width(self) -> int:
        """Of the hidden states; see `Capabilities`."""
        width: int = self.model.config.hidden_size
        return width

    def states(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """Hidden states (B, W, D) that predict the wanted columns; with gradients, for training."""
        return self._wanted(tokens, live, index, plan)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (B, W, V) of such states; with gradients, for training a drafter."""
        return self._head(hidden)

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings of tokens (B, L), (B, L, D); with gradients, for training a drafter."""
        embedded: Tensor = self.model.get_input_embeddings()(tokens.to(self._entry))
        return embedded.to(tokens.device)

    def _wanted(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """Hidden states (B, W, D) from which the logits of the wanted columns follow.

        Processes that share a model take those of the first: what is decided must be the same to
        the last bit everywhere, or one of them would wait for the others for ever.
        """
        hidden = self._computed(tokens, live, index, plan)
        return hidden if self._shard is None else first_of_all(hidden, self._shard.group)

    def _computed(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """The same as this process has computed it."""
        source = self.sources(index, live)
        if plan.columns is None:
            extents = plan.extents
            if extents and not plan.complete and live.is_cpu and self.compiled is None:
                groups = self._cost.groups(tuple(end - begin for begin, end in extents))
                if len(groups) > 1:
                    parts = [self._group(tokens, live, source, extents, rows) for rows in groups]
                    order = torch.tensor([row for rows in groups for row in rows])
                    return torch.cat(parts)[order.argsort()]
            return self._whole(tokens, live, plan.complete, source)
        store, known, width = plan.store, plan.valid, tokens.shape[1]
        assert isinstance(store, KeyValueStore) and known is not None
        first = _first(live)
        places = plan.places()
        runs = plan.runs
        store.aim(places, width, runs)
        seen = live if plan.complete else live & known[:, :width]
        mask = self._mask(places, seen, first, plan.complete, tokens)
        positions = places - first
        if self.routes_blocks:
            self._aim(positions, live.gather(1, places))
        if runs is not None and len(runs) == 1:
            return self._forward(tokens[:, runs[0]], positions, mask, store, source - runs[0].start)
        # places rise, and a wanted column is one of them; -1 finds the first, and nobody reads it
        slots = torch.searchsorted(places, source.contiguous())
        return self._forward(tokens.gather(1, places), positions, mask, store, slots)

    @cached_property
    def _cost(self) -> PassCost:
        return PassCost.of(self.model)

    def _group(
        self,
        tokens: Tensor,
        live: Tensor,
        source: Tensor,
        extents: Sequence[tuple[int, int]],
        rows: tuple[int, ...],
    ) -> Tensor:
        """Hidden states (N, W, D) of some rows at `source`, from a pass as wide as the widest.

        A row's first live column is the pass's first, so that it computes what it computes alone.
        """
        widths = [extents[row][1] - extents[row][0] for row in rows]
        at, begin = torch.tensor(rows), torch.tensor([[extents[row][0]] for row in rows])
        columns = torch.arange(max(widths)).expand(len(rows), -1)
        # behind a narrower row its last column is repeated, and nothing attends to it
        last = torch.tensor(widths)[:, None] - 1
        ids = tokens[at[:, None], begin + torch.minimum(columns, last)]
        alike = len({*widths}) == 1
        mask = self._mask(columns, columns <= last, torch.zeros_like(begin), alike, ids)
        if self.routes_blocks:
            self._aim(columns, columns <= last)
        # a window may reach beyond a row's end, where nothing is decided
        slots = (source[at] - begin).clamp(max=columns.shape[1] - 1)
        return self._forward(ids, columns, mask, None, slots)

    def sources(self, index: Tensor, live: Tensor) -> Tensor:
        """The columns whose hidden states give the logits of columns index, (B, W), -1 for none.

        A shifted model predicts column c from c - 1, wherever the block borders are, and the row's
        first column from itself.
        """
        if not self.shifted:
            return index
        return torch.where(index >= 0, torch.maximum(index - 1, _first(live)), -1)

    @torch.no_grad()
    def hidden(self, tokens: Tensor, live: Tensor, complete: bool | None = None) -> Tensor:
        """Hidden states of all columns without a store, (B, L, D); not shifted.

        Positions are counted from the row's first live column, so that a row in a padded batch
        computes what it computes alone.

        Args:
            tokens: (B, L), see `Denoiser`.
            live: (B, L) bool, see `Denoiser`.
            complete: Whether all columns are live; None to ask the device.
        """
        return self._whole(tokens, live, complete)

    def _whole(
        self, tokens: Tensor, live: Tensor, complete: bool | None, slots: Tensor | None = None
    ) -> Tensor:
        """As `hidden`, with `slots` (B, W) of these columns alone."""
        first = _first(live)
        columns = numbers(tokens.shape[1], tokens.device).expand_as(tokens)
        mask = self._mask(columns, live, first, complete, tokens)
        positions = columns - first
        if self.routes_blocks:
            self._aim(positions, live)
        return self._forward(tokens, positions, mask, None, slots)

    def _mask(
        self,
        queries: Tensor,
        keys: Tensor,
        first: Tensor,
        complete: bool | None,
        tokens: Tensor,
    ) -> Mask:
        """The attention mask: None where everything is seen, else bool, never numbers.

        Padding in front of a row counts as part of its first block, so that no query is left
        without a key.

        Args:
            queries: (B, Q), their columns.
            keys: (B, L) bool, columns that may be seen.
            first: (B, 1), each row's first live column.
            complete: Whether `keys` are all; None to ask the device.
            tokens: (B, L), which say what is decided.

        Returns:
            (B, 1, 1, L), or (B, 1, Q, L) where the block grid or the order decides; for
            FlexAttention blocks of it, of which those are skipped that nobody may see; (B, L) for
            other attention than these, where transformers looks into it and so makes the host wait
            for a GPU.
        """
        if self.reordered:
            return self._reordered_mask(queries, keys, tokens)[:, None]
        kind = self.model.config._attn_implementation
        if self.block_length is None:
            complete = bool(keys.all()) if complete is None else complete
            if complete:
                return None
            if kind == "flex_attention":
                return blocks_seen(queries, keys)
            return keys[:, None, None] if kind == "sdpa" else keys
        columns = torch.arange(keys.shape[1], device=keys.device)
        block_of_key = (columns - first).clamp(min=0) // self.block_length
        block_of_query = (queries - first).clamp(min=0) // self.block_length
        if kind == "flex_attention":
            return blocks_seen(queries, keys, (block_of_query, block_of_key))
        seen = block_of_query[:, :, None] >= block_of_key[:, None, :]
        return (seen & keys[:, None, :])[:, None]

    def _reordered_mask(self, queries: Tensor, keys: Tensor, tokens: Tensor) -> Tensor:
        """The mask (B, Q, L) of a model that reads decided columns first, then undecided ones.

        The published decoding moves the tokens and keeps their positions. Rotary attention asks for
        positions alone, so that a mask in the order of reading is the same without moving anything.
        Every column sees itself, so that padding is not left without a key.
        """
        columns = torch.arange(keys.shape[1], device=keys.device)
        order = columns + keys.shape[1] * tokens.eq(self.vocab.mask_id)
        seen = order.gather(1, queries)[:, :, None] >= order[:, None, :]
        return (seen & keys[:, None, :]) | (queries[:, :, None] == columns)

    def _aim(self, positions: Tensor, live: Tensor) -> None:
        """Tell a model whose blocks choose experts together which tokens of the pass those are."""
        if self.block_length is not None:
            self.model.aim_routing(positions.clamp(min=0) // self.block_length, live)

    def _forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Mask,
        store: KeyValueStore | None,
        slots: Tensor | None,
    ) -> Tensor:
        """One pass through the transformer, compiled or not, see `run_body`.

        Hidden states (B, Q, D), or (B, W, D) at the slots (B, W), -1 for any.
        """
        begin = time.perf_counter() if self.watch is not None else 0.0
        home, entry = tokens.device, self._entry
        # columns behind a row's end may lie further from its first than the model has positions
        last = None if self.max_length is None else self.max_length - 1
        tokens, positions = tokens.to(entry), positions.clamp(0, last).to(entry)
        mask = None if mask is None else mask.to(entry)
        if self.compiled is not None:
            hidden = self.compiled(tokens, positions, mask, store)
            hidden = hidden if slots is None else gather_columns(hidden, slots.to(hidden.device))
        else:
            hidden = run_body(self.model, tokens, positions, mask, store, slots)
        if self.watch is not None:
            self.watch(tokens.numel(), time.perf_counter() - begin)
        # with a device map the last layer may live elsewhere than the head
        return hidden.to(home)

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits (B, W, V) of hidden states (B, W, D), without those of rows that pad the head."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits[..., : self.vocab.size].to(hidden.device)


def _first(live: Tensor) -> Tensor:
    """The first live column of each row, (B, 1)."""
    return live.max(1, keepdim=True).indices  # of equal ones the first
