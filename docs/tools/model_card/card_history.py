"""Does it say something beside a confidence for how long a token has been proposed?

Credit and other rules that look back live on a redundancy: a proposal that has stood for some steps
is right more often than a fresh one *of the same confidence*. A model whose confidences are
calibrated given all it sees leaves nothing to be learned from the past. Here that is measured: for
every open column of an answer at every step, whether its proposal is the token that is delivered in
the end, and how well that is told by the confidence p alone, and by p with the proposal's age.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dllm_decode.decoding.observer import Observer
from dllm_decode.decoding.types import Change, Snapshot

_FEWEST = 50  # sightings, for figures that mean something


@dataclass(frozen=True)
class Sightings:
    """Open columns of answers, each once per step.

    Attributes:
        probability: (n,) of the proposal, in [0, 1].
        age: (n,) steps for which it has been proposed without a break, 0 where it is new.
        final: (n,) bool, whether it is the token delivered at that column.
    """

    probability: Tensor
    age: Tensor
    final: Tensor

    def below(self, confidence: float) -> Sightings:
        """Those with a smaller confidence: what a threshold leaves open."""
        kept = self.probability < confidence
        return Sightings(self.probability[kept], self.age[kept], self.final[kept])


class Watch(Observer):
    """Notes the proposal of every open column at every step of one decode of whole requests.

    Args:
        rows: Of the request.
        columns: Of its longest row.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self._token = torch.full((rows, columns), -1)
        self._age = torch.zeros(rows, columns, dtype=torch.long)
        self._seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def step(self, change: Change, snapshot: Snapshot) -> None:
        """Compare the proposals with those of the step before."""
        columns = snapshot.start + change.index.clamp(min=0)
        settled = snapshot.decided.gather(1, columns) & ~change.commit
        slots = (change.index >= 0) & ~settled
        row = change.rows[:, None].expand_as(slots)[slots].cpu()
        at, token = (row, change.index[slots].cpu()), change.tokens[slots].cpu()
        self._age[at] = torch.where(self._token[at] == token, self._age[at] + 1, 0)
        self._token[at] = token
        place = row * self._token.shape[1] + at[1]
        self._seen.append((place, token, self._age[at], change.probability[slots].cpu().double()))

    def sightings(self, sequences: Sequence[Sequence[int]], ends: Sequence[int]) -> Sightings:
        """What was seen of the answers.

        Args:
            sequences: Delivered ids of each row.
            ends: Ids that end a text.
        """
        final = torch.full_like(self._token, -1)
        for row, sequence in enumerate(sequences):
            answer = [token for token in sequence if token not in ends]
            final[row, : len(answer)] = torch.tensor(answer, dtype=torch.long)
        place, token, age, probability = (
            torch.cat(parts) for parts in zip(*self._seen, strict=True)
        )
        wanted = final.flatten()[place]
        inside = wanted >= 0
        return Sightings(probability[inside], age[inside], (token == wanted)[inside])


def auc(score: Tensor, positive: Tensor) -> float:
    """Probability that a positive case has the larger score than a negative one, ties half.

    Args:
        score: (n,) any real numbers.
        positive: (n,) bool.

    Returns:
        The area under the curve in [0, 1], NaN where either kind is missing.
    """
    good, bad = int(positive.sum()), int((~positive).sum())
    if not good or not bad:
        return float("nan")
    _, inverse, counts = score.unique(return_inverse=True, return_counts=True)
    upto = counts.cumsum(0).double()
    rank = (upto - (counts.double() - 1) / 2)[inverse]  # mean rank of equals, from 1
    return float((rank[positive].sum() - good * (good + 1) / 2) / (good * bad))


@dataclass(frozen=True)
class Redundancy:
    """What age adds.

    Attributes:
        count: How many sightings.
        right: Share of them that are final.
        alone: AUC of p.
        aged: AUC of p and age.
    """

    count: int
    right: float
    alone: float
    aged: float

    @property
    def gain(self) -> float:
        """Difference of the areas."""
        return self.aged - self.alone


def redundancy(seen: Sightings) -> Redundancy | None:
    """AUC for "is final" of a logistic fit on logit p, and of one on logit p and log(1 + age).

    None where there are too few sightings, or none that is final, or none that is not.
    """
    count, good = len(seen.final), int(seen.final.sum())
    if count < _FEWEST or good in (0, count):
        return None
    p = seen.probability.clamp(1e-12, 1 - 1e-12)
    features = torch.stack([p.logit(), (1 + seen.age.double()).log()], 1)
    aged = _fitted(features, seen.final)
    return Redundancy(count, good / count, auc(p, seen.final), auc(aged, seen.final))


def _fitted(features: Tensor, positive: Tensor) -> Tensor:
    """Scores of a logistic regression on (n, features), fitted to the same cases."""
    features = (features - features.mean(0)) / features.std(0).clamp(min=1e-9)
    weight = torch.zeros(features.shape[1] + 1, dtype=torch.double, requires_grad=True)
    target = positive.double()
    optimiser = torch.optim.LBFGS([weight], max_iter=100)

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = binary_cross_entropy_with_logits(features @ weight[:-1] + weight[-1], target)
        value = value + 1e-5 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return (features @ weight[:-1] + weight[-1]).detach()
