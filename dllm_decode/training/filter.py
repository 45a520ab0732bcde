"""Training an acceptance filter from the passes of the oracle; see `task=train_filter`.

Recipe: Learn2PD, arXiv 2509.25188: one record per forward pass and block, the input is the
confidence of every column, the label whether its most likely token is the reference's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dllm_decode.decoding.observer import Observer
from dllm_decode.decoding.types import Change, Snapshot
from dllm_decode.models.acceptance import AcceptanceFilter


@dataclass(frozen=True)
class FilterRecords:
    """What R forward passes of the oracle over blocks of N columns had seen, and what was right.

    Attributes:
        confidence: (R, N) of the most likely token, 0 where the block has no such column.
        correct: (R, N) bool, the most likely token is the reference's.
        exists: (R, N) bool, the block has the column.
        open: (R, N) bool, the column was undecided.
        prompt: (R,) int64, number of the prompt.

    Examples:
        >>> confidence = torch.tensor([[0.9, 0.4], [0.8, 0.0]])
        >>> every = torch.ones(2, 2, dtype=torch.bool)
        >>> right, prompt = confidence > 0.5, torch.tensor([0, 1])
        >>> records = FilterRecords(confidence, right, every, every, prompt)
        >>> [len(part) for part in split(records, share=0.5, seed=0)]
        [1, 1]
    """

    confidence: Tensor
    correct: Tensor
    exists: Tensor
    open: Tensor
    prompt: Tensor

    def __len__(self) -> int:
        return self.prompt.numel()

    @property
    def prompts(self) -> list[int]:
        """Numbers of the prompts in rising order."""
        return sorted(set(self.prompt.tolist()))

    def of_prompts(self, prompts: Sequence[int]) -> FilterRecords:
        """The records of some of the prompts.

        Args:
            prompts: Their numbers.
        """
        keep = torch.isin(self.prompt, torch.tensor(prompts))
        planes = (self.confidence, self.correct, self.exists, self.open, self.prompt)
        return FilterRecords(*(plane[keep] for plane in planes))


def split(records: FilterRecords, share: float, seed: int) -> tuple[FilterRecords, FilterRecords]:
    """Divide records into some to learn from and some to measure with; no prompt is in both.

    Args:
        records: Of two prompts or more.
        share: Of the prompts, kept for measuring, in (0, 1); each side gets at least one prompt.
        seed: Of the choice.

    Returns:
        The records to learn from, and those to measure with.
    """
    prompts = records.prompts
    random.Random(seed).shuffle(prompts)
    kept = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    return records.of_prompts(prompts[kept:]), records.of_prompts(prompts[:kept])


@dataclass
class FilterRecorder(Observer):
    """Collects the records of an oracle decode, which says in its notes what it saw.

    Attributes:
        parts: The records of each step.

    Examples:
        >>> FilterRecorder().parts
        []
    """

    parts: list[FilterRecords] = field(default_factory=list)

    def step(self, change: Change, snapshot: Snapshot) -> None:
        """Take one record per row of the step."""
        exists = change.index >= 0
        confidence = torch.where(exists, change.notes["confidence"].float(), 0.0)
        part = FilterRecords(
            confidence, change.notes["correct"], exists, change.notes["open"], change.rows
        )
        self.parts.append(FilterRecords(*(getattr(part, name).cpu() for name in _PLANES)))

    def records(self) -> FilterRecords:
        """All records so far, ordered by prompt, so that the batch does not matter."""
        whole = [torch.cat([getattr(part, name) for part in self.parts]) for name in _PLANES]
        order = whole[-1].sort(stable=True).indices
        return FilterRecords(*(plane[order] for plane in whole))


_PLANES = ("confidence", "correct", "exists", "open", "prompt")


@dataclass(frozen=True)
class FilterRecipe:
    """How a filter is trained.

    Attributes:
        steps: Number of updates.
        rate: Learning rate of AdamW.
        weight_decay: Of AdamW.
        seed: Of the initial weights, which are uniform in +-1/sqrt(N).

    Examples:
        >>> FilterRecipe(steps=300, rate=0.02).seed
        0
    """

    steps: int
    rate: float
    weight_decay: float = 0.0
    seed: int = 0


def fit(
    records: FilterRecords,
    recipe: FilterRecipe,
    *,
    fingerprint: str | None = None,
    report: Callable[[float], None] = lambda step: None,
) -> AcceptanceFilter:
    """Train a filter on all records at once with AdamW.

        loss = mean over existing columns of -y log sigmoid(z) - (1 - y) log(1 - sigmoid(z))

    Args:
        records: What to learn from.
        recipe: How.
        fingerprint: Of the model that the records come from; None for none.
        report: Called after each update with the number of updates so far.
    """
    width = records.confidence.shape[1]
    one, two, three, four = weights = [w.requires_grad_() for w in _initial(width, recipe.seed)]
    optimiser = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=recipe.weight_decay)
    for step in range(recipe.steps):
        optimiser.zero_grad()
        torch.autograd.backward(loss(AcceptanceFilter(one, two, three, four), records))
        optimiser.step()
        report(step + 1)
    return AcceptanceFilter(one.detach(), two.detach(), three.detach(), four.detach(), fingerprint)


def loss(network: AcceptanceFilter, records: FilterRecords) -> Tensor:
    """Mean binary cross-entropy over the columns that exist, in nats.

    Args:
        network: The filter.
        records: What to compare it with.
    """
    each: Tensor = functional.binary_cross_entropy_with_logits(
        network.logits(records.confidence), records.correct.float(), reduction="none"
    )
    mean: Tensor = torch.where(records.exists, each, 0.0).sum() / records.exists.sum()
    return mean


def _initial(width: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(width)

    def draw(*shape: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1) * bound

    return draw(width, width), draw(width), draw(width, width), draw(width)


def measured(
    network: AcceptanceFilter, records: FilterRecords, thresholds: Sequence[float]
) -> list[dict[str, Any]]:
    """Precision and recall on open columns, per threshold, of the filter and of the confidence.

    Accepting a column is right where its most likely token is the reference's. `confidence` is the
    plain threshold rule on the same columns, which does not see the confidences of the others: what
    the filter has to beat.

    Args:
        network: The filter.
        records: That it was not trained on.
        thresholds: Probabilities in [0, 1].

    Returns:
        For each threshold, `precision` (share of the accepted columns that are right, None where
        nothing was accepted), `recall` (share of the right ones that were accepted, None where
        nothing was right) and `accepted` (share of the open columns) of both rules.
    """
    scores = {
        "filter": network.logits(records.confidence).sigmoid(),
        "confidence": records.confidence,
    }
    return [
        {"threshold": threshold}
        | {name: _quality(score > threshold, records) for name, score in scores.items()}
        for threshold in thresholds
    ]


def _quality(accepted: Tensor, records: FilterRecords) -> dict[str, float | None]:
    accepted = accepted & records.open
    right = records.correct & records.open
    both = int((accepted & right).sum())
    return {
        "precision": _share(both, int(accepted.sum())),
        "recall": _share(both, int(right.sum())),
        "accepted": _share(int(accepted.sum()), int(records.open.sum())),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
