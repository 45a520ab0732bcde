"""The plain-torch definition of the row statistics: CPU path and specification of the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowStatistics:
    """What most decoding rules need of one row of logits, all of shape (N,).

    With the row's maximum m: `total` = sum exp(l - m), `moment` = sum exp(l - m) * (l - m).
    Then logsumexp = m + log(total), the top-1 probability is 1 / total, and the entropy in nats is
    log(total) - moment / total. `token` is the lowest id among the maxima.
    """

    token: Tensor
    maximum: Tensor
    total: Tensor
    moment: Tensor

    @property
    def logsumexp(self) -> Tensor:
        """Natural logarithm of the partition sum, (N,)."""
        return self.maximum + self.total.log()

    @property
    def confidence(self) -> Tensor:
        """Probability of the most likely token, (N,)."""
        return self.total.reciprocal()

    @property
    def entropy(self) -> Tensor:
        """Entropy in nats, (N,); terms of probability 0 contribute 0."""
        return (self.total.log() - self.moment / self.total).clamp(min=0.0)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of all statistics: float32, or float64 for float64 logits."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def without(logits: Tensor, banned: Tensor | None) -> Tensor:
    """The logits in working precision with the banned ids at -inf; the input is not written to.

    logits: (..., V); banned: (M,) token ids, or None.
    """
    values = logits.to(working_dtype(logits.dtype))
    if banned is None or banned.numel() == 0:
        return values
    return values.index_fill(-1, banned, float("-inf"))


def lowest_argmax(values: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the last dimension and the lowest index that reaches it.

    values: (..., V). Returns (maximum (...), index (...)). torch leaves the index open on ties.
    """
    maximum = values.amax(-1)
    columns = torch.arange(values.shape[-1], device=values.device)
    hits = torch.where(values == maximum[..., None], columns, values.shape[-1])
    return maximum, hits.amin(-1).clamp(max=values.shape[-1] - 1)


def row_statistics(logits: Tensor, banned: Tensor | None = None) -> RowStatistics:
    """Argmax, maximum, partition sum and entropy moment of every row.

    logits: (N, V) of any float dtype and row stride; banned: (M,) ids that count as -inf.
    A row that is NaN, +inf or banned everywhere gives a `maximum` that is not finite or a `total`
    that is NaN; the caller decides what that means.
    """
    values = without(logits, banned)
    maximum, token = lowest_argmax(values)
    shifted = values - maximum[:, None]
    weights = shifted.exp()
    # exp(-inf) * -inf is NaN, but the limit of x * log(x) at 0 is 0
    moment = (weights * shifted.masked_fill(weights == 0, 0.0)).sum(-1)
    return RowStatistics(token, maximum, weights.sum(-1), moment)


def top_k(logits: Tensor, k: int, banned: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest logits of every row and their ids, largest first, lower id first on ties.

    logits: (N, V); k: 1 to V. Returns values (N, k) and ids (N, k).
    """
    values = without(logits, banned)
    k = min(k, values.shape[-1])
    top = values.topk(k, dim=-1)
    # topk leaves the choice among equals open: only rows with a tie at the cut need the full sort
    smallest = top.values[:, -1:]
    tied = (values == smallest).sum(-1) > (top.values == smallest).sum(-1)
    ids = top.indices
    if bool(tied.any()):
        ordered = values[tied].sort(dim=-1, descending=True, stable=True)
        ids = ids.clone()
        ids[tied] = ordered.indices[:, :k]
    ids = ids.sort(-1).values
    picked = values.gather(-1, ids)
    order = picked.sort(dim=-1, descending=True, stable=True)
    return order.values, ids.gather(-1, order.indices)


def logits_at(logits: Tensor, ids: Tensor, banned: Tensor | None = None) -> Tensor:
    """The logits of given ids, -inf for banned ids and for empty slots (id -1).

    logits: (N, V); ids: (N, K) in [-1, V). Returns (N, K) in working precision.
    """
    values = logits.gather(-1, ids.clamp(min=0)).to(working_dtype(logits.dtype))
    dead = ids < 0
    if banned is not None and banned.numel():
        dead = dead | (ids[..., None] == banned).any(-1)
    return values.masked_fill(dead, float("-inf"))
