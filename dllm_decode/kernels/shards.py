"""An output head whose rows several processes share: statistics of logits that nobody gathers.

Each process computes the statistics of its own ids; what is exchanged are four numbers per row.
Every process merges the same numbers in the same order, so that all of them decide alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dllm_decode.kernels.reference import RowStatistics, head_logits


@dataclass(frozen=True, eq=False)
class VocabularyShard:
    """The part of an output head that this process holds.

    Attributes:
        weight: (V', D), the rows of its ids.
        first: the id of its first row.
        vocabulary: ids of all processes together, V.
        group: the processes, None for all.

    Examples:
        >>> VocabularyShard(torch.zeros(50, 8), first=50, vocabulary=100).shape
        (100, 8)
    """

    weight: Tensor
    first: int
    vocabulary: int
    group: Any = None
    _banned: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(V, D) of the whole head."""
        return self.vocabulary, self.weight.shape[1]

    def own(self, ids: Tensor | None) -> Tensor | None:
        """Banned ids that are rows of this part, counted from its first one; looked up once."""
        if ids is None:
            return None
        known = self._banned.get(id(ids))
        if known is None:
            here = ids - self.first
            here = here[(here >= 0) & (here < len(self.weight))]
            if len(self._banned) >= 8:  # of earlier decodes
                self._banned.clear()
            known = self._banned[id(ids)] = (
                ids,
                here,
            )  # holds the ids, so that no other has their id
        return known[1]

    def own_ids(self, ids: Tensor) -> Tensor:
        """Ids counted from the first row of this part, -1 for those of others, same shape."""
        here = ids - self.first
        return torch.where((ids >= 0) & (here >= 0) & (here < len(self.weight)), here, -1)

    def merged(self, own: RowStatistics) -> RowStatistics:
        """The statistics of all logits from those of this part's, (N,) each.

            maximum = max_r maximum_r,   total = sum_r total_r exp(maximum_r - maximum)

        Args:
            own: ids counted from the first row of this part.
        """
        planes = (own.token + self.first, own.maximum, own.rest, own.moment)
        table = self._gathered(torch.stack([plane.double() for plane in planes]))
        tokens, maxima, rests, moments = table.unbind(1)  # (R, N) each
        maximum = maxima.amax(0)
        # the first process with the largest logit has the lowest of its ids
        winner = (maxima == maximum).int().argmax(0, keepdim=True)
        below = maxima - maximum
        share = torch.where(maxima == -torch.inf, 0.0, below.exp())
        totals = torch.where(share == 0, 0.0, share * (1 + rests))
        others = totals.scatter(0, winner, rests.gather(0, winner))
        moment = torch.where(share == 0, 0.0, share * moments + totals * below.clamp(min=-1e30))
        kept = own.maximum.dtype
        return RowStatistics(
            token=tokens.gather(0, winner)[0].long(),
            maximum=maximum.to(kept),
            rest=others.sum(0).to(own.rest.dtype),
            moment=moment.sum(0).to(own.moment.dtype),
        )

    def largest(self, values: Tensor) -> Tensor:
        """The largest value that any process has, elementwise: that of the one who holds the id."""
        from torch import distributed

        found = values.contiguous().clone()
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self.group)
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits of all ids, (N, V), for whoever asks for them."""
        room = hidden.new_full((1,), len(self.weight), dtype=torch.long)
        widest = int(self.largest(room))
        own = head_logits(hidden, self.weight)
        parts = self._gathered(torch.nn.functional.pad(own, (0, widest - own.shape[1])))
        sizes = self._gathered(room)[:, 0].tolist()
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], 1)

    def _gathered(self, values: Tensor) -> Tensor:
        """The values of all processes, one behind the other in a new first dimension."""
        from torch import distributed

        values = values.contiguous()
        count = distributed.get_world_size(self.group)
        found = [torch.empty_like(values) for _ in range(count)]
        distributed.all_gather(found, values, group=self.group)
        return torch.stack(found)
