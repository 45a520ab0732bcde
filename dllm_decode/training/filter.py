"""Training an acceptance filter from the passes of the oracle; see `task=train_filter`.

Recipe: Learn2PD, arXiv 2509.25188: one record per forward pass and block, the input is the
confidence of every column, the label whether its most likely token is the reference's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
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
        return self.at(torch.isin(self.prompt, torch.tensor(list(prompts), dtype=torch.int64)))

    def at(self, keep: Tensor) -> FilterRecords:
        """Some of the records.

        Args:
            keep: (R,) bool, or the places of those to keep.
        """
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
        steps: Updates.
        rate: Learning rate of AdamW.
        weight_decay: Of AdamW.
        batch: Records per update, drawn anew for each; None for all of them, as published.
        seed: Of the initial weights, which are uniform in +-1/sqrt(N), and of the draws.

    Examples:
        >>> FilterRecipe(steps=100).rate
        0.003
    """

    steps: int
    rate: float = 3e-3
    weight_decay: float = 0.01
    batch: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class FittedFilter:
    """A filter with the losses that were watched while it learned.

    Attributes:
        network: The weights with the smallest watched loss; the last ones where none was watched.
        curve: (updates, loss on records learned from, watched loss), the first before any update.
        kept: The updates that the weights have had.
    """

    network: AcceptanceFilter
    curve: tuple[tuple[int, float, float], ...]
    kept: int


_LOOKS = 50  # at the watched loss during a training


def fit(
    records: FilterRecords,
    recipe: FilterRecipe,
    watched: FilterRecords | None = None,
    *,
    fingerprint: str | None = None,
    report: Callable[[float], None] = lambda step: None,
) -> FittedFilter:
    """Train a filter with AdamW, and keep the weights that do best on records it does not see.

        loss = mean over existing columns of -y log sigmoid(z) - (1 - y) log(1 - sigmoid(z))

    Args:
        records: What to learn from.
        recipe: How.
        watched: What decides which weights are kept; None: the last ones are, as published.
        fingerprint: Of the model that the records come from; None for none.
        report: Called after each update with the number of updates so far.
    """
    width = records.confidence.shape[1]
    one, two, three, four = weights = [w.requires_grad_() for w in _initial(width, recipe.seed)]
    optimiser = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=recipe.weight_decay)
    draws = torch.Generator().manual_seed(recipe.seed)
    network = AcceptanceFilter(one, two, three, four, fingerprint)
    curve, best, kept = [], math.inf, (0, _copied(network))
    for step in range(recipe.steps + 1):
        if step % max(1, recipe.steps // _LOOKS) == 0 or step == recipe.steps:
            with torch.no_grad():
                seen = float(loss(network, records))
                unseen = seen if watched is None else float(loss(network, watched))
            curve.append((step, seen, unseen))
            if watched is None or unseen < best:
                best, kept = unseen, (step, _copied(network))
        if step < recipe.steps:
            optimiser.zero_grad()
            torch.autograd.backward(loss(network, _drawn(records, recipe.batch, draws)))
            optimiser.step()
            report(step + 1)
    return FittedFilter(kept[1], tuple(curve), kept[0])


def _copied(network: AcceptanceFilter) -> AcceptanceFilter:
    one, two, three, four = (weight.detach().clone() for weight in network.weights())
    return AcceptanceFilter(one, two, three, four, network.fingerprint)


def _drawn(records: FilterRecords, batch: int | None, draws: torch.Generator) -> FilterRecords:
    """Some records, all of them where they are no more."""
    if batch is None or batch >= len(records):
        return records
    return records.at(torch.randint(len(records), (batch,), generator=draws))


def loss(network: AcceptanceFilter, records: FilterRecords) -> Tensor:
    """Mean binary cross-entropy over the columns that exist, in nats.

    Args:
        network: The filter.
        records: What to compare it with.
    """
    return _loss(network.logits(records.confidence), records)


def _loss(z: Tensor, records: FilterRecords) -> Tensor:
    each: Tensor = functional.binary_cross_entropy_with_logits(
        z, records.correct.float(), reduction="none"
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
        nothing was right) and `accepted` (share of the open columns) of both rules, and
        `at_equal_speed`: the precision of the surest columns, as many as the filter accepts.
    """
    scores = {
        "filter": network.logits(records.confidence).sigmoid(),
        "confidence": records.confidence,
    }
    right = records.correct[records.open]
    clear = records.confidence[records.open]
    return [
        {"threshold": threshold}
        | {name: _quality(score > threshold, records) for name, score in scores.items()}
        | {"at_equal_speed": _surest(clear, right, (scores["filter"] > threshold)[records.open])}
        for threshold in thresholds
    ]


def _surest(confidence: Tensor, right: Tensor, accepted: Tensor) -> float | None:
    """Share of right columns among the surest ones, as many as are accepted; ties by their mean."""
    count = int(accepted.sum())
    if not count:
        return None
    bound = confidence.topk(count).values[-1]
    above, level = confidence > bound, confidence == bound
    hits = right[above].sum() + (count - above.sum()) * right[level].double().mean()
    return float(hits) / count


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


_DRAWS = 500


def compared(network: AcceptanceFilter, records: FilterRecords, seed: int = 0) -> dict[str, Any]:
    """How well the filter tells right from wrong open columns, beside the confidence it reads.

    Args:
        network: The filter.
        records: That it was not trained on.
        seed: Of the bootstrap over prompts.

    Returns:
        `auc` of `filter`, of `confidence` and their `difference` with `low` and `high` (95 %, None
        where all columns are right or all are wrong), the `loss` of both, and `at_recall`: the
        precision of both at equal recall.
    """
    z = network.logits(records.confidence)
    where = records.open
    right = records.correct[where]
    scores = {"filter": z[where].double(), "confidence": records.confidence[where].double()}
    ranks = {name: _ranks(score) for name, score in scores.items()}
    owner = records.prompt[:, None].expand_as(where)[where]
    ones = torch.ones(len(right), dtype=torch.float64)
    auc: dict[str, Any] = {name: _auc(rank, right, ones) for name, rank in ranks.items()}
    auc["difference"] = _difference(ranks, right, owner, seed)
    clear = records.confidence.float().clamp(1e-6, 1 - 1e-6)
    return {
        "open_columns": int(where.sum()),
        "right": _share(int(right.sum()), right.numel()),
        "auc": auc,
        "loss": {
            "filter": float(loss(network, records)),
            "confidence": float(_loss(clear.logit(), records)),
        },
        "at_recall": [
            {"recall": recall}
            | {name: precision_at(score, right, recall) for name, score in scores.items()}
            for recall in (0.8, 0.9, 0.95)
        ],
    }


def _ranks(score: Tensor) -> Tensor:
    """The number of each score among the distinct ones, from the smallest."""
    ranks: Tensor = torch.unique(score, return_inverse=True)[1]
    return ranks


def _auc(rank: Tensor, right: Tensor, weight: Tensor) -> float | None:
    """Chance that a right column is scored above a wrong one, ties counting half.

        AUC = sum_g P_g (N_{<g} + N_g / 2) / (P N)

    over the distinct scores g with weights P_g of right and N_g of wrong columns; None without
    either kind.
    """
    good = torch.bincount(rank, weight * right)
    bad = torch.bincount(rank, weight * ~right)
    whole = float(good.sum() * bad.sum())
    if whole == 0:
        return None
    return float((good * (bad.cumsum(0) - bad / 2)).sum()) / whole


def _difference(
    ranks: Mapping[str, Tensor], right: Tensor, owner: Tensor, seed: int
) -> dict[str, float | None]:
    """AUC of the filter minus that of the confidence, resampling prompts."""
    prompts, place = torch.unique(owner, return_inverse=True)
    draws = torch.Generator().manual_seed(seed)
    count = len(prompts)
    gaps = []
    for draw in range(_DRAWS + 1):
        drawn = torch.randint(count, (count,), generator=draws) if draw else torch.arange(count)
        weight = torch.bincount(drawn, minlength=count).double()[place]
        of_filter = _auc(ranks["filter"], right, weight)
        of_confidence = _auc(ranks["confidence"], right, weight)
        if of_filter is None or of_confidence is None:
            return {"value": None, "low": None, "high": None}
        gaps.append(of_filter - of_confidence)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.tensor(gaps[1:], dtype=torch.float64).quantile(ends).tolist()
    return {"value": gaps[0], "low": low, "high": high}


def doubt(found: Mapping[str, Any]) -> str | None:
    """What speaks against a filter, None where it is better than confidence beyond doubt.

    Args:
        found: What `compared` tells.
    """
    auc = found["auc"]
    gap = auc["difference"]
    if gap["value"] is None:
        return "no right and wrong columns to tell apart among the held-out ones"
    if gap["low"] > 0:
        return None
    return (
        f"AUC {auc['filter']:.3f} against {auc['confidence']:.3f} on held-out prompts, difference "
        f"{gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
    )


def precision_at(score: Tensor, right: Tensor, recall: float) -> float | None:
    """Share of right columns among the highest scored ones that hold a share of all right ones.

    Args:
        score: (N,) of each column.
        right: (N,) bool.
        recall: Share of the right columns to accept, (0, 1].

    Returns:
        The precision, of equal scores all or none accepted; None where no column is right.
    """
    if not bool(right.any()):
        return None
    order = score.argsort(descending=True)
    hits = right[order].double().cumsum(0)
    last = int((hits >= recall * hits[-1]).nonzero()[0])
    accepted = score >= score[order][last]
    return _share(int((right & accepted).sum()), int(accepted.sum()))


def transfer(
    records: FilterRecords,
    groups: Mapping[str, Collection[int]],
    recipe: FilterRecipe,
    watch: float,
) -> list[dict[str, Any]]:
    """Filters that never saw a group of prompts, measured on it.

    Args:
        records: Of all prompts.
        groups: Name to numbers of the prompts that are left out together.
        recipe: How each is trained.
        watch: Share of the other prompts that decides which weights are kept.

    Returns:
        `left_out`, `prompts` and what `compared` tells, for every group that leaves two prompts.
    """
    found = []
    for name, members in groups.items():
        rest = [prompt for prompt in records.prompts if prompt not in members]
        own = records.of_prompts(list(members))
        if len(rest) < 2 or not len(own):
            continue
        learned, watched = split(records.of_prompts(rest), watch, recipe.seed)
        network = fit(learned, recipe, watched).network
        about = {"left_out": name, "prompts": len(own.prompts)}
        found.append(about | compared(network, own, recipe.seed))
    return found
