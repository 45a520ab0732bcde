"""What the loop needs of a model."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dllm_decode.decoding.cache import Plan, Store
from dllm_decode.decoding.types import Vocab


@runtime_checkable
class Denoiser(Protocol):
    """A model that predicts the clean token of every column from a partly masked canvas.

    vocab: special ids; device: where tokens must be; max_length: longest canvas including the
    prompt, or None. Adapters own everything that is particular to a model (logits shift, attention
    kind, position ids); strategies never see it. One whose passes can stop before the output head
    also has `before_head` (arguments as of a call, returns `prediction.HiddenStates`), used while
    its `head_obstacle`, a text that says why not, is empty.
    """

    @property
    def vocab(self) -> Vocab:
        """Special token ids."""

    @property
    def device(self) -> torch.device:
        """Where tokens must be."""

    @property
    def max_length(self) -> int | None:
        """Longest canvas including the prompt, or None for no limit."""

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """One forward pass.

        tokens (B, L); live (B, L) bool: columns that exist for the row (not padding, not behind its
        horizon), nothing else may be attended to; index (B, W): columns whose logits are wanted, -1
        for none (any value may come back there); plan: columns to recompute.
        Returns logits (B, W, V) that predict the token of each wanted column.
        """


@runtime_checkable
class StoringDenoiser(Denoiser, Protocol):
    """A denoiser that can keep keys and values, as every cache policy but `none` needs.

    One that reads the logits of a column elsewhere (a shifted model) also has
    `sources(index (B, W), live (B, L)) -> (B, W)`, the columns it reads, which are then recomputed
    together with those of the plan.
    """

    def allocate(self, rows: int, columns: int) -> Store:
        """A key/value store without rows, with room for `rows` of `columns` canvas columns."""
