"""The one place where the host waits for the device: faults, and rows that are done."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dllm_decode.decoding.batch import Batch
from dllm_decode.decoding.outcome import Outcome
from dllm_decode.decoding.prediction import DensePrediction
from dllm_decode.decoding.settle import Faults, where
from dllm_decode.decoding.types import StepView
from dllm_decode.errors import ModelOutputError


def fetch(**tensors: Tensor) -> dict[str, list[Any]]:
    """Tensors as (nested) lists of Python numbers, all of them in one transfer.

    Whole numbers come back as int, exact up to 2**53 where floating-point ones stand beside them.
    """
    values = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    numbers = iter(torch.cat([value.reshape(-1) for value in values.values()]).tolist())
    return {
        name: _nested(numbers, value.shape, float if value.is_floating_point() else int)
        for name, value in values.items()
    }


def _nested(numbers: Iterator[Any], shape: Sequence[int], kind: type) -> list[Any]:
    if len(shape) == 1:
        return list(map(kind, islice(numbers, shape[0])))
    return [_nested(numbers, shape[1:], kind) for _ in range(shape[0])]


@dataclass(frozen=True)
class PendingCheck:
    """A step that the host has not seen yet.

    Attributes:
        view: the step.
        faults: of the strategy's decision.
        counts: (4,) how many illegal slots, unusable logits, ties at confidence 1, open slots.
    """

    view: StepView
    faults: Faults
    counts: Tensor

    @staticmethod
    def of(view: StepView, faults: Faults) -> PendingCheck:
        """Count on the device what the host will want to know."""
        illegal, pred = faults.count, view.pred
        if not isinstance(pred, DensePrediction):
            nothing = torch.zeros_like(illegal)
            return PendingCheck(view, faults, torch.stack([illegal, nothing, nothing, nothing]))
        unusable = (view.masked & ~pred.healthy).sum()
        ties = ((pred.top_confidence >= 1.0) & view.open).sum()
        counts = torch.stack([illegal, unusable, ties, view.open.sum()])
        return PendingCheck(view, faults, counts)


class Monitor:
    """Watches a batch from the host: raises for faults, and takes finished rows out.

    Every sync fetches everything the host wants to know in one transfer; `sync_every` steps pass
    between two of them. With a key/value store each step ends with one, because the width of the
    next pass comes with it.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.outcomes: dict[int, Outcome] = {}
        self._every = 1 if batch.parts.cache.stores else batch.parts.sync_every
        self._pending: list[PendingCheck] = []
        self._warned = False

    def check(self, view: StepView, faults: Faults) -> None:
        """Note a step; every `sync_every` steps, `sync`."""
        self._pending.append(PendingCheck.of(view, faults))
        if len(self._pending) >= self._every:
            self.sync()

    def sync(self) -> None:
        """Wait for the device: raise for faults, record and remove rows that are done."""
        pending, self._pending = self._pending, []
        checks = {f"check {n}": check.counts for n, check in enumerate(pending)}
        facts = fetch(**self.batch.sizes(), **checks)
        for name, check in zip(checks, pending, strict=True):
            self._judge(check, *facts.pop(name))
        done = [at for at, left in enumerate(facts["undecided"]) if not left]
        if done:
            self.record(done)
            self.batch.remove(done)
        stay = [at for at, left in enumerate(facts["undecided"]) if left]
        self.batch.measure({name: [values[at] for at in stay] for name, values in facts.items()})

    def _judge(
        self, check: PendingCheck, illegal: int, unusable: int, ties: int, candidates: int
    ) -> None:
        """Refuse illegal decisions and unusable logits; warn where confidences rank nothing."""
        if unusable:
            raise _unusable_logits(check.view)
        if illegal:
            raise check.faults.error()
        if ties > 1 and 2 * ties > candidates and not self._warned:
            self._warned = True
            warnings.warn(
                f"{ties} of {candidates} candidate positions have confidence exactly 1, so "
                "their order is decided by the column alone; a low temperature with "
                "sampler.confidence_from=sampled or low-precision logits do this",
                RuntimeWarning,
                stacklevel=6,
            )

    def record(self, positions: Sequence[int], reason: str | None = None) -> None:
        """Fetch the outcomes of some rows of the batch, all in one go.

        Args:
            positions: where they stand in the batch.
            reason: the finish reason, None for what follows from the decode.
        """
        facts = fetch(**self.batch.account(positions))
        for at, position in enumerate(positions):
            row = self.batch.rows[position]
            own = {name: values[at] for name, values in facts.items()}
            self.outcomes[row] = self._outcome(row, own, reason)

    def _outcome(self, row: int, facts: dict[str, Any], reason: str | None) -> Outcome:
        batch, length = self.batch, facts["length"]
        if reason is None:
            cut = length < batch.request.lengths[row]
            reason = "budget" if facts["over_budget"] else "eot" if cut else "length"
        return Outcome(
            tokens=tuple(facts["tokens"][:length]),
            forwards=facts["forwards"],
            finish_reason=reason,
            step_of=tuple(facts["step_of"][:length]),
            confidence_of=tuple(facts["confidence_of"][:length]),
            undecided=sum(facts["undecided"][:length]),
            surplus_forwards=facts["surplus"],
            eot_ids=batch.canvas.vocab.eot_ids,
            last_fixed=batch.request.last_fixed[row],
        )


def _unusable_logits(view: StepView) -> ModelOutputError:
    assert isinstance(view.pred, DensePrediction)
    row, slot = (int(number) for number in (view.masked & ~view.pred.healthy).nonzero()[0])
    return ModelOutputError(
        "the model returned logits that cannot be used (NaN, infinite, or every allowed token "
        f"at -inf): {where(view, row, slot)}"
    )
