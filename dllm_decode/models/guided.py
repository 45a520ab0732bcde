"""Classifier-free guidance: a denoiser that wraps a denoiser and asks it twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm_decode.decoding.cache import Plan, Store
from dllm_decode.decoding.denoiser import Capabilities, Denoiser, StoringDenoiser
from dllm_decode.decoding.types import Vocab
from dllm_decode.errors import require_in_range


@dataclass(frozen=True)
class Guided:
    """A denoiser that moves the prediction away from what it would be without the prompt.

        l = l_given + scale * (l_given - l_blank)

    with l_given the logits of the canvas and l_blank those of the same canvas with the mask on all
    columns of the prompt. An id that either of them excludes keeps its l_given. A call makes two
    passes, and both are counted in `forwards`.

    Source: LLaDA, arXiv 2502.09992, `cfg_scale` of the released sampler. Deviation: tokens given in
    advance inside the answer (infilling) stay in the blank canvas.

    Args:
        inner: the model.
        scale: how far, 0 to 100; 0 is the model itself, at twice its passes.

    Raises:
        ConfigError: for other scales.

    Examples:
        >>> from dllm_decode import Decoder, Request
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.threshold import ConfidenceThreshold
        >>> world = Copy(n=3)
        >>> prompt = tuple(world.tokenizer.encode("cab"))
        >>> decoder = Decoder(guided(world, 1.0), ConfidenceThreshold(0.9))
        >>> decoder.decode(Request((prompt,), 4)).forwards
        (2,)
    """

    inner: Denoiser
    scale: float

    def __post_init__(self) -> None:
        require_in_range("guidance", self.scale, 0.0, 100.0)

    @property
    def vocab(self) -> Vocab:
        """That of the model."""
        return self.inner.vocab

    @property
    def device(self) -> torch.device:
        """That of the model."""
        return self.inner.device

    @property
    def max_length(self) -> int | None:
        """That of the model."""
        return self.inner.max_length

    @property
    def block_length(self) -> int | None:
        """That of the model."""
        return Capabilities.of(self.inner).block_length

    @property
    def sources(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Those of the model."""
        return Capabilities.of(self.inner).sources

    @property
    def fingerprint(self) -> str | None:
        """Not the model's own, because it predicts something else."""
        own = Capabilities.of(self.inner).fingerprint
        return None if own is None else f"{own} guidance {self.scale}"

    @property
    def passes_per_call(self) -> int:
        """Twice those of the model."""
        return 2 * Capabilities.of(self.inner).passes_per_call

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """The guided logits (B, W, V); see `Denoiser`."""
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        prompt = (columns < plan.start) & live
        blank = tokens.masked_fill(prompt, self.vocab.mask_id)
        store = plan.store
        first, second = (store.given, store.blank) if isinstance(store, TwoStores) else (None, None)
        given = self.inner(tokens, live, index, replace(plan, store=first)).float()
        other = self.inner(blank, live, index, replace(plan, store=second)).float()
        guided = given + self.scale * (given - other)
        return torch.where(given.isinf() | other.isinf(), given, guided)


@dataclass(frozen=True)
class StoringGuided(Guided):
    """The same for a model that keeps keys and values: those of the two canvases stay apart.

    Examples:
        >>> from dllm_decode.testing import StoringHashDenoiser
        >>> type(guided(StoringHashDenoiser(), 1.0)).__name__
        'StoringGuided'
    """

    def allocate(self, rows: int, columns: int) -> TwoStores:
        """Two stores without rows, with room for `rows` of `columns` canvas columns each."""
        assert isinstance(self.inner, StoringDenoiser)
        return TwoStores(self.inner.allocate(rows, columns), self.inner.allocate(rows, columns))


@dataclass(frozen=True)
class TwoStores:
    """Keys and values of both canvases, row by row the same rows.

    Attributes:
        given: of the canvas.
        blank: of the canvas without its prompt.

    Examples:
        >>> from dllm_decode.testing import StoringHashDenoiser
        >>> stores = guided(StoringHashDenoiser(), 1.0).allocate(2, 8)
        >>> stores.join(2)
        >>> stores.given.stored.shape, stores.blank.stored.shape
        (torch.Size([2, 8]), torch.Size([2, 8]))
    """

    given: Store
    blank: Store

    def take(self, rows: Sequence[int]) -> None:
        """Keep the given rows, in that order."""
        self.given.take(rows)
        self.blank.take(rows)

    def join(self, count: int) -> None:
        """Make room for `count` more rows."""
        self.given.join(count)
        self.blank.join(count)


def guided(denoiser: Denoiser, scale: float) -> Denoiser:
    """The denoiser with guidance; with scale 0 the denoiser itself.

    Args:
        denoiser: Any.
        scale: See `Guided`.

    Raises:
        ConfigError: The scale is out of range.
    """
    kind = StoringGuided if isinstance(denoiser, StoringDenoiser) else Guided
    made = kind(denoiser, scale)
    return denoiser if scale == 0 else made
