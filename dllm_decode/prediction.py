"""One forward pass as lazy row statistics: each is computed at most once, most rules need few."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from dllm_decode.kernels import reference


class Draw(Protocol):
    """How a proposal is drawn from a prediction; `None` in its place means the argmax."""

    def __call__(self, prediction: Prediction) -> Tensor:
        """Token ids (B, W)."""


class Prediction(ABC):
    """What the model predicts at the window slots of a step (B rows, W slots, V token ids).

    `token` is the proposal (the argmax, or a sample where a sampler draws), `confidence` its
    probability. The other statistics describe the whole row. All are float32 or better, and all
    come from the untempered, unfiltered distribution in which banned ids have probability 0.
    """

    _draw: Draw | None = None

    # What the two kinds of prediction define.

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(B, W, V)."""

    @property
    @abstractmethod
    def top_token(self) -> Tensor:
        """The most likely token, lowest id on ties, (B, W) int64."""

    @property
    @abstractmethod
    def logsumexp(self) -> Tensor:
        """Natural logarithm of the partition sum, (B, W)."""

    @property
    @abstractmethod
    def entropy(self) -> Tensor:
        """Entropy in nats, (B, W)."""

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """Dense logits (B, W, V), banned ids at -inf. Materialised only when asked for."""

    @abstractmethod
    def topk(self, k: int) -> tuple[Tensor, Tensor]:
        """The k largest logits and their ids, (B, W, k) each; lower id first on ties."""

    @abstractmethod
    def logit_of(self, ids: Tensor) -> Tensor:
        """Logits at ids (B, W, K); -inf for banned ids and for empty slots (-1)."""

    # What follows from those.

    @staticmethod
    def of(logits: Tensor, banned: Tensor | None = None, draw: Draw | None = None) -> Prediction:
        """The prediction of a forward pass.

        logits: (B, W, V), never written to; banned: (M,) ids that must never be proposed (mask and
        control tokens), removed before the argmax; draw: how `token` is drawn, None for the argmax.
        """
        return DensePrediction(logits, banned, draw)

    @cached_property
    def token(self) -> Tensor:
        """The proposal at each slot, (B, W) int64."""
        return self.top_token if self._draw is None else self._draw(self)

    @cached_property
    def top_confidence(self) -> Tensor:
        """Probability of `top_token`, (B, W)."""
        return self.prob_of(self.top_token[..., None])[..., 0]

    @cached_property
    def confidence(self) -> Tensor:
        """Probability of `token`, (B, W)."""
        if self._draw is None:
            return self.top_confidence
        return self.prob_of(self.token[..., None])[..., 0]

    @cached_property
    def _top_two(self) -> Tensor:
        values = self.topk(2)[0]
        if values.shape[-1] == 2:
            return values
        return torch.cat([values, torch.full_like(values, float("-inf"))], -1)

    @cached_property
    def margin(self) -> Tensor:
        """Probability of the most likely token minus that of the second, (B, W)."""
        top = (self._top_two - self.logsumexp[..., None]).exp()
        return top[..., 0] - top[..., 1]

    @cached_property
    def logit_gap(self) -> Tensor:
        """Largest logit minus the second largest, (B, W)."""
        return self._top_two[..., 0] - self._top_two[..., 1]

    def prob_of(self, ids: Tensor) -> Tensor:
        """Probabilities of ids (B, W, K); 0 for banned ids and empty slots (-1)."""
        return (self.logit_of(ids) - self.logsumexp[..., None]).exp()

    @cached_property
    def probs(self) -> Tensor:
        """Dense probabilities (B, W, V) for plugins that need them; nothing here does."""
        return self.logits.softmax(-1)

    def raised(self, ids: Tensor, delta: Tensor) -> Prediction:
        """This prediction with sparse additions to its logits.

        l'[v] = l[v] + sum of delta over the slots that hold v. Every statistic follows exactly
        from this one's without touching the V columns again where all additions are >= 0.

        ids: (B, W, K) int64, -1 for an empty slot; delta: (B, W, K), -inf bans an id.
        """
        return RaisedPrediction(self, ids, delta, self._draw)


class DensePrediction(Prediction):
    """A prediction that owns the logits of a forward pass."""

    def __init__(self, logits: Tensor, banned: Tensor | None, draw: Draw | None) -> None:
        self._raw = logits
        self._banned = banned
        self._draw = draw

    @property
    def shape(self) -> tuple[int, int, int]:
        rows, slots, vocabulary = self._raw.shape
        return rows, slots, vocabulary

    def _per_slot(self, compute: Callable[[Tensor], Tensor]) -> Tensor:
        rows, slots, vocabulary = self.shape
        values = compute(self._raw.reshape(rows * slots, vocabulary))
        return values.reshape(rows, slots, *values.shape[1:])

    @cached_property
    def _statistics(self) -> reference.RowStatistics:
        return reference.row_statistics(self._raw.reshape(-1, self.shape[-1]), self._banned)

    def _reshaped(self, values: Tensor) -> Tensor:
        return values.reshape(self.shape[:2])

    @cached_property
    def maximum(self) -> Tensor:
        """Largest logit of each slot, (B, W)."""
        return self._reshaped(self._statistics.maximum)

    @cached_property
    def healthy(self) -> Tensor:
        """Whether a slot's logits can be used at all, (B, W): no NaN, no +inf, not all banned."""
        stats = self._statistics
        return self._reshaped(stats.maximum.isfinite() & stats.total.isfinite())

    @cached_property
    def top_token(self) -> Tensor:
        return self._reshaped(self._statistics.token)

    @cached_property
    def top_confidence(self) -> Tensor:
        return self._reshaped(self._statistics.confidence)

    @cached_property
    def logsumexp(self) -> Tensor:
        return self._reshaped(self._statistics.logsumexp)

    @cached_property
    def entropy(self) -> Tensor:
        return self._reshaped(self._statistics.entropy)

    @cached_property
    def logits(self) -> Tensor:
        return reference.without(self._raw, self._banned)

    def topk(self, k: int) -> tuple[Tensor, Tensor]:
        rows, slots, vocabulary = self.shape
        values, ids = reference.top_k(self._raw.reshape(-1, vocabulary), k, self._banned)
        return values.reshape(rows, slots, -1), ids.reshape(rows, slots, -1)

    def logit_of(self, ids: Tensor) -> Tensor:
        flat = ids.reshape(-1, ids.shape[-1])
        return self._per_slot(lambda raw: reference.logits_at(raw, flat, self._banned))


@dataclass(frozen=True)
class _Additions:
    """Sparse additions with one slot per id: ids (B, W, K), delta (B, W, K), 0 where empty."""

    ids: Tensor
    delta: Tensor

    @staticmethod
    def of(ids: Tensor, delta: Tensor) -> _Additions:
        """Merge slots that hold the same id: their additions add up in the first of them."""
        delta = delta.masked_fill(ids < 0, 0.0)
        same = (ids[..., :, None] == ids[..., None, :]) & (ids >= 0)[..., None]
        zero = torch.zeros((), dtype=delta.dtype, device=delta.device)
        summed = torch.where(same, delta[..., None, :], zero).sum(-1)
        first = torch.arange(ids.shape[-1], device=ids.device)
        repeated = (same & (first[None, :] < first[:, None])).any(-1)
        empty = repeated | (ids < 0)
        return _Additions(ids.masked_fill(empty, -1), summed.masked_fill(empty, 0.0))


class RaisedPrediction(Prediction):
    """A prediction with sparse additions, computed from the statistics of the one below it.

    With a_u = l_u - logsumexp of the base and S = 1 + sum_u e^{a_u} (e^{delta_u} - 1):
    logsumexp' = logsumexp + log S, and the entropy is log S - B / S with
    B = -entropy + sum_u e^{a_u} (e^{delta_u} (a_u + delta_u) - a_u). Both are sums of terms >= 0
    for additions >= 0. A negative addition can cancel nearly all of the mass, so predictions that
    hold one compute these two densely. Source: the identity of CreditDecoding's fusion (E3').
    """

    def __init__(self, base: Prediction, ids: Tensor, delta: Tensor, draw: Draw | None) -> None:
        self._base = base
        self._draw = draw
        self._ids = ids
        self._delta = delta

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._base.shape

    @cached_property
    def _additions(self) -> _Additions:
        return _Additions.of(self._ids, self._delta.to(self._base.logsumexp.dtype))

    @cached_property
    def _sparse_is_exact(self) -> bool:
        return bool((self._additions.delta >= 0).all())

    @cached_property
    def _raised_logits(self) -> Tensor:
        """Logits at the additions' ids after raising, (B, W, K); -inf in empty slots."""
        return self._base.logit_of(self._additions.ids) + self._additions.delta

    @cached_property
    def _mass(self) -> Tensor:
        """S: the partition sum relative to the base's, (B, W)."""
        share = self._base.prob_of(self._additions.ids)
        return 1.0 + (share * self._additions.delta.expm1()).sum(-1)

    @cached_property
    def logsumexp(self) -> Tensor:
        if not self._sparse_is_exact:
            return self.logits.logsumexp(-1)
        return self._base.logsumexp + self._mass.log()

    @cached_property
    def entropy(self) -> Tensor:
        if not self._sparse_is_exact:
            surprise = (self.logits - self.logsumexp[..., None]).nan_to_num(neginf=0.0)
            return -(self.probs * surprise).sum(-1)
        delta = self._additions.delta
        below = self._base.logit_of(self._additions.ids) - self._base.logsumexp[..., None]
        share = below.exp()
        below = below.masked_fill(share == 0, 0.0)
        change = share * (delta.exp() * (below + delta) - below)
        moment = change.sum(-1) - self._base.entropy
        return (self._mass.log() - moment / self._mass).clamp(min=0.0)

    def topk(self, k: int) -> tuple[Tensor, Tensor]:
        additions = self._additions
        spare = additions.ids.shape[-1]
        values, ids = self._base.topk(min(k + spare, self.shape[-1]))
        raised = (ids[..., :, None] == additions.ids[..., None, :]).any(-1)
        values = torch.cat([values.masked_fill(raised, float("-inf")), self._raised_logits], -1)
        # an entry that moved to the additions, or an empty slot, sorts behind every real id
        beyond = self.shape[-1]
        ids = torch.cat(
            [
                ids.masked_fill(raised, beyond),
                additions.ids.masked_fill(additions.ids < 0, beyond),
            ],
            -1,
        )
        by_id = ids.sort(dim=-1, stable=True)
        values = values.gather(-1, by_id.indices)
        order = values.sort(dim=-1, descending=True, stable=True)
        picked = by_id.values.gather(-1, order.indices)[..., :k]
        return order.values[..., :k], picked.clamp(max=beyond - 1)

    @cached_property
    def top_token(self) -> Tensor:
        return self.topk(1)[1][..., 0]

    def logit_of(self, ids: Tensor) -> Tensor:
        same = ids[..., :, None] == self._additions.ids[..., None, :]
        same = same & (ids >= 0)[..., None]
        zero = torch.zeros((), dtype=self._additions.delta.dtype, device=ids.device)
        added = torch.where(same, self._additions.delta[..., None, :], zero)
        return self._base.logit_of(ids) + added.sum(-1)

    @cached_property
    def logits(self) -> Tensor:
        dense = self._base.logits.clone()
        additions = self._additions
        ids = additions.ids.clamp(min=0)
        return dense.scatter_add_(-1, ids, additions.delta.to(dense.dtype))
