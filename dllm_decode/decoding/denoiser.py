"""What the loop needs of a model."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dllm_decode.decoding.cache import Plan, Store
from dllm_decode.decoding.prediction import HiddenStates
from dllm_decode.decoding.types import Vocab
from dllm_decode.errors import require_count


@runtime_checkable
class Denoiser(Protocol):
    """A model that predicts the clean token of every column from a partly masked canvas.

    These four members are all that a model needs. What it can do beyond that it declares by having
    attributes of the names in `Capabilities`. Adapters own everything that is particular to a model
    (logits shift, attention kind, position ids); strategies never see it.

    Attributes:
        vocab: special token ids.
        device: where tokens must be.
        max_length: longest canvas including the prompt [tokens], or None for no limit.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> world: Denoiser = Copy(n=3)  # any object with these members is one
        >>> world.vocab.mask_id, world.device
        (65, device(type='cpu'))
    """

    @property
    def vocab(self) -> Vocab:
        """The token ids that the loop has to know."""

    @property
    def device(self) -> torch.device:
        """The device on which it takes tokens and gives logits."""

    @property
    def max_length(self) -> int | None:
        """Longest canvas including the prompt, or None for no limit."""

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """One forward pass.

        Args:
            tokens: (B, L) ids.
            live: (B, L) bool, columns that exist for the row (not padding, not behind its
                horizon); nothing else may be attended to.
            index: (B, W) columns whose logits are wanted, -1 for none (any value may come back
                there).
            plan: columns to recompute.

        Returns:
            Logits (B, W, V) that predict the token of each wanted column.
        """


@runtime_checkable
class StoringDenoiser(Denoiser, Protocol):
    """A denoiser that can keep keys and values, as every cache policy but `none` needs.

    Examples:
        >>> from dllm_decode.testing import StoringHashDenoiser
        >>> store = StoringHashDenoiser().allocate(rows=2, columns=16)
        >>> store.capacity, store.columns
        (2, 16)
    """

    def allocate(self, rows: int, columns: int) -> Store:
        """A key/value store without rows, with room for `rows` of `columns` canvas columns."""


class Drafter(Protocol):
    """A light network on a model's states, which follows commits between two forward passes.

    Examples:
        >>> import torch
        >>> def stays(model, states, tokens, live):  # a drafter that has nothing to add
        ...     return states
        >>> drafter: Drafter = stays
        >>> drafter(Capabilities(), torch.ones(1, 2, 4), torch.ones(1, 2), torch.ones(1, 2)).shape
        torch.Size([1, 2, 4])
    """

    def __call__(self, model: Capabilities, states: Tensor, tokens: Tensor, live: Tensor) -> Tensor:
        """New states from the last ones and from a canvas with other tokens.

        Args:
            model: what the model declares, `head` and `embed` among it.
            states: (B, L, D), the state at a column predicts the token of that column.
            tokens: (B, L) ids.
            live: (B, L) bool, columns that exist for the row.

        Returns:
            (B, L, D).
        """


@runtime_checkable
class MovableDrafter(Drafter, Protocol):
    """A drafter that has weights; every `torch.nn.Module` with the call of a drafter is one.

    Examples:
        >>> import torch
        >>> class Adds(torch.nn.Module):
        ...     def forward(self, model, states, tokens, live):
        ...         return states + 1
        >>> isinstance(Adds(), MovableDrafter)
        True
    """

    def to(self, device: torch.device) -> Drafter:
        """The drafter with its weights on a device; the run calls this before its first pass.

        Args:
            device: of the model.
        """


@dataclass(frozen=True)
class Capabilities:
    """What a denoiser declares beyond `Denoiser`; the defaults are those of a plain model.

    Attributes:
        block_length: columns of the block-causal grid, counted from the row's first live column;
            None for attention over the whole canvas.
        fingerprint: of the checkpoint, which learned strategies are matched with; None for none.
        sources: `sources(index (B, W), live (B, L)) -> (B, W)`, the columns at which the logits of
            other columns are read (a shifted model); they are recomputed together with those of the
            plan. None where every column is read at its own place.
        before_head: the pass without its output head, arguments as of a call; None for a model
            that cannot stop there.
        head_obstacle: why the head may not be left to the loop's kernels, empty if it may.
        head_shared: whether several processes hold parts of the head, so that a pass stops in front
            of it rather than gather its logits.
        provides: what parts may see of the model's inside, by name: `hidden`, `embeddings`.
        states: with `hidden`: the pass without its output head, arguments as of a call, (B, W, D).
        head: with `hidden`: the output head on such states, (B, W, V).
        width: with `hidden`: D, which draft layers are matched with; None where it is not said.
        embed: with `embeddings`: the input embeddings of tokens (B, L), (B, L, E).
        passes_per_call: forward passes that one call makes for every row, 1 or more, which are all
            counted.
        replays: whether what follows a pass is to be replayed as a CUDA graph; see `replay`.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Capabilities.of(Copy(n=3)).block_length is None
        True
    """

    block_length: int | None = None
    fingerprint: str | None = None
    sources: Callable[[Tensor, Tensor], Tensor] | None = None
    before_head: Callable[..., HiddenStates] | None = None
    head_obstacle: str = ""
    head_shared: bool = False
    provides: Set[str] = frozenset()
    states: Callable[..., Tensor] | None = None
    head: Callable[[Tensor], Tensor] | None = None
    width: int | None = None
    embed: Callable[[Tensor], Tensor] | None = None
    passes_per_call: int = 1
    replays: bool = False

    def __post_init__(self) -> None:
        require_count("passes_per_call of the model", self.passes_per_call)
        if self.block_length is not None:
            require_count("block_length of the model", self.block_length)

    @staticmethod
    def of(denoiser: Denoiser) -> Capabilities:
        """What a denoiser declares: its attributes of these names, defaults for those it lacks."""
        names = [entry.name for entry in fields(Capabilities)]
        return Capabilities(**{n: getattr(denoiser, n) for n in names if hasattr(denoiser, n)})
