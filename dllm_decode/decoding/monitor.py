"""The one place where the host waits for the device: faults, and rows that are done."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dllm_decode.decoding.batch import Batch
from dllm_decode.decoding.outcome import Outcome
from dllm_decode.decoding.prediction import DensePrediction, Prediction
from dllm_decode.decoding.returned import named
from dllm_decode.decoding.sampling import Categorical, Greedy
from dllm_decode.decoding.settle import Faults, takes_its_word, where
from dllm_decode.decoding.strategy import EveryStep, Strategy
from dllm_decode.decoding.types import Change, StepView
from dllm_decode.errors import (
    DecisionError,
    DeviceError,
    DllmDecodeError,
    ModelOutputError,
    PluginError,
)
from dllm_decode.kernels.dispatch import lost_device


def fetch(**tensors: Tensor) -> dict[str, list[Any]]:
    """Tensors as (nested) lists of Python numbers, all of them in one transfer.

    Floating-point numbers travel as the bits of float64 among whole ones, so that all are exact.
    What stands under several names, as counters do that never moved, travels once.
    """
    distinct = {id(tensor): tensor for tensor in tensors.values()}
    flat = [_bits(tensor) for tensor in distinct.values()]
    numbers, begin, found = torch.cat(flat).tolist(), 0, {}
    for key, tensor in distinct.items():
        own = numbers[begin : begin + tensor.numel()]
        begin += len(own)
        if tensor.is_floating_point():
            own = list(struct.unpack(f"{len(own)}d", struct.pack(f"{len(own)}q", *own)))
        found[key] = _nested(own, tensor.shape)
    return {name: found[id(tensor)] for name, tensor in tensors.items()}


def fetch_counts(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Whole numbers and flags, (N,) each, as lists of numbers, all of them in one transfer.

    Args:
        tensors: by name.
    """
    numbers, begin, found = torch.cat([*tensors.values()]).tolist(), 0, {}
    for name, tensor in tensors.items():
        end = begin + tensor.shape[0]
        found[name] = numbers[begin:end]
        begin = end
    return found


def _bits(tensor: Tensor) -> Tensor:
    """Whole numbers in one dimension, from which those of the tensor follow."""
    whole = tensor.double().view(torch.long) if tensor.is_floating_point() else tensor
    return whole if whole.dim() == 1 else whole.reshape(-1)


def _nested(numbers: list[Any], shape: Sequence[int]) -> list[Any]:
    if len(shape) == 1:
        return numbers
    size = len(numbers) // max(1, shape[0])
    parts = (numbers[at * size : (at + 1) * size] for at in range(shape[0]))
    return [_nested(part, shape[1:]) for part in parts]


class DeviceFaultsEndIt:
    """Raises `DeviceError` for errors after which a device computes nothing more.

    Memory that does not suffice is no such error: fewer rows may fit.

    Examples:
        >>> with DeviceFaultsEndIt():
        ...     raise RuntimeError("CUDA error: device-side assert triggered")
        Traceback (most recent call last):
        dllm_decode.errors.DeviceError: the device failed and computes nothing more in this ...
    """

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
            return
        text = str(error)
        if "out of memory" in text or "ALLOC_FAILED" in text:
            raise torch.OutOfMemoryError(text) from error
        if lost_device(error):
            raise DeviceError(
                "the device failed and computes nothing more in this process "
                f"({text.splitlines()[0]}); start again, with kernels=reference head=apart if it "
                "was one of our kernels; CUDA_LAUNCH_BLOCKING=1 in the environment shows where it "
                "happens"
            ) from error


class Counts(NamedTuple):
    """How many slots of a step are what the host has to know of; 0 for what nobody looked at.

    Attributes:
        faults: the decision asks for what it may not have, or the logits cannot be used.
        ties: nothing ranks them: no odds are left against what is proposed there.
        chosen: of those, committed.
        candidates: open.

    Examples:
        >>> Counts(faults=0, ties=2, chosen=1, candidates=3).ties
        2
    """

    faults: int
    ties: int = 0
    chosen: int = 0
    candidates: int = 0


@dataclass(frozen=True)
class PendingCheck:
    """A step that the host has not seen yet.

    Attributes:
        view: the step.
        faults: of the strategy's decision.
        counts: (N,) the numbers of `Counts`, or of faults alone, row by row.
        ranks: whether all of them are counted.
    """

    view: StepView
    faults: Faults
    counts: Tensor
    ranks: bool

    @staticmethod
    def of(view: StepView, change: Change, faults: Faults) -> PendingCheck:
        """Count on the device what the host will want to know."""
        pred, wrong = view.pred, faults.wrong
        if isinstance(pred, DensePrediction):
            wrong = wrong | (view.masked > pred.healthy)
        if not faults.strategy.ranks:
            return PendingCheck(view, faults, wrong.sum(1), False)
        scores = faults.decision.scores
        assert scores is not None
        # a strategy of its own may rank by confidences, which are rounded
        certain = 1 if scores is vars(pred).get("confidence") else 0
        ties = view.open & (scores == certain)
        flags = torch.stack([wrong, ties, ties & change.commit, view.open])
        return PendingCheck(view, faults, flags.sum((1, 2)), True)

    @property
    def unusable(self) -> Tensor | None:
        """Undecided slots whose logits cannot be used, (B, W) bool; None where nobody can say."""
        pred = self.view.pred
        if isinstance(pred, DensePrediction | KeptPrediction) and pred.healthy is not None:
            return self.view.masked & ~pred.healthy
        return None

    def let_go(self) -> PendingCheck:
        """The same without the predictions, whose logits would be kept until the next sync."""
        faults = _let_go(self.faults)
        return PendingCheck(faults.view, faults, self.counts, self.ranks)


class KeptPrediction(NamedTuple):
    """What messages need of a prediction: who proposed a token, and which slots are unusable.

    Attributes:
        token: (B, W) its proposals.
        confidence: (B, W) their probability, NaN where there is none.
        entropy: The same: what is NaN in one is in the other.
        healthy: (B, W) bool, None where nobody asked.
    """

    token: Tensor
    confidence: Tensor
    entropy: Tensor
    healthy: Tensor | None


def _let_go(faults: Faults) -> Faults:
    """The same without the logits behind its predictions, and those of decisions within."""
    decision = replace(
        faults.decision,
        predictions=tuple((who, _kept(pred)) for who, pred in faults.decision.predictions),
        within=tuple(map(_let_go, faults.decision.within)),
    )
    view = faults.view.but(pred=_kept(faults.view.pred), hidden=None, passes=None)
    return replace(faults, view=view, decision=decision)


def _kept(pred: Prediction) -> Prediction:
    healthy = pred.healthy if isinstance(pred, DensePrediction) else None
    kept = KeptPrediction(pred.token, pred.confidence, pred.confidence, healthy)
    return cast(Prediction, kept)  # all that is read of it later


PATIENCE = 256  # steps beyond a row's columns; the contract's models call 200 passes endless


class Monitor:
    """Watches a batch from the host: raises for faults, and takes finished rows out.

    Every sync fetches everything the host wants to know in one transfer; `sync_every` steps pass
    between two of them. With a key/value store each step ends with one, because the width of the
    next pass comes with it.

    Examples:
        >>> from dllm_decode.decoding.loop import Decoder, Run
        >>> from dllm_decode.decoding.types import Request
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> run = Run(Decoder(Copy(n=3), TopK(4)), Request(((0, 1, 2, 63),), max_new_tokens=4))
        >>> run.admit([0])
        >>> run.step()  # ends with a sync: the row is full and leaves
        >>> run.live, run.outcomes[0].finish_reason
        ((), 'length')
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.outcomes: dict[int, Outcome] = {}
        self._every = 1 if batch.parts.cache.stores else batch.parts.sync_every
        self._longest = 1
        self._left: dict[int, int] = {}  # undecided columns of each row when last seen
        self._pending: list[PendingCheck] = []
        self._warned = False
        self._said = False
        self._passes = batch.parts.able.passes_per_call
        self._trusts = takes_its_word(batch.parts.strategy)
        self._gains = isinstance(batch.parts.strategy.progress, EveryStep)
        self._due: dict[int, int] = {}  # the batch's step at which each row is done at the latest
        vocab = batch.parts.denoiser.vocab
        parts = (part for _, part in batch.parts.strategy.parts())
        ends = dict.fromkeys(token for part in parts for token in part.end_ids(vocab))
        self._end_ids = tuple(ends) or vocab.eot_ids

    def check(self, check: PendingCheck) -> None:
        """Note a step; every `sync_every` steps, `sync`."""
        # no row needs more steps than it had undecided columns, unless it revises
        now = len(self._pending) + 1 >= min(self._every, self._longest)
        self._pending.append(check if now else check.let_go())
        if now:
            self.sync()

    def sync(self) -> None:
        """Wait for the device: raise for faults, record and remove rows that are done."""
        pending, self._pending = self._pending, []
        wanted = self.batch.sizes()
        for number, check in enumerate(pending):
            wanted[f"check {number}"] = check.counts
        facts = fetch_counts(wanted)
        for number, check in enumerate(pending):
            counts = facts.pop(f"check {number}")
            if any(counts):
                self._judge(check, Counts(*counts) if check.ranks else Counts(sum(counts)))
        left, opened = facts["undecided"], facts["open"]
        if 0 in opened:
            self._refuse_stuck_rows(left, opened)
        if self._trusts:
            self._check_gains(left, len(pending))
        elif self._gains:
            self._count_down(left)
        self._longest = max(1, *left)
        if 0 in left:
            done = [at for at, count in enumerate(left) if not count]
            self.record(done)
            stay = self.batch.remove(done)
            facts = {name: [values[at] for at in stay] for name, values in facts.items()}
        self.batch.measure(facts)

    def _refuse_stuck_rows(self, left: Sequence[int], opened: Sequence[int]) -> None:
        for at, (count, slots) in enumerate(zip(left, opened, strict=True)):
            if count and not slots:
                raise self.batch.stuck(at)

    def _check_gains(self, left: Sequence[int], steps: int) -> None:
        """Refuse a strategy that promised to commit something in every step and did not."""
        rows, before = self.batch.rows, self._left
        self._left = dict(zip(rows, left, strict=True))
        for at, row in enumerate(rows):
            if 0 < before.get(row, self._left[row] + steps) - steps < self._left[row]:
                raise self._broken_word(at)

    def _count_down(self, left: Sequence[int]) -> None:
        """Refuse a row that takes far more steps than it had columns: it would take any number."""
        now = self.batch.steps
        for row, count in zip(self.batch.rows, left, strict=True):
            if now >= self._due.setdefault(row, now + count + PATIENCE) and count:
                who = named("strategy", self.batch.parts.strategy)
                raise DecisionError(
                    f"row {row} is not done {PATIENCE} steps after it had to be, for the loop "
                    f"decides a column in each: {who}, or a part of it, writes in place to what it "
                    "was handed; debug=true says which"
                )

    def _broken_word(self, at: int) -> DecisionError:
        place, part = next(
            (place, part)
            for place, part in self.batch.parts.strategy.parts()
            if isinstance(part, Strategy)
        )
        step = int(self.batch.counters.step[at]) - 1
        return DecisionError(
            f"{named(f'strategy.{place}' if place else 'strategy', part)} declares always_commits, "
            f"but committed nothing: row {self.batch.rows[at]}, step {step}"
        )

    def _judge(self, check: PendingCheck, counts: Counts) -> None:
        """Refuse illegal decisions and unusable logits; warn where ties decide."""
        if counts.faults:
            unusable = check.unusable
            if unusable is not None and bool(unusable.any()):
                raise self._unusable(check.view, unusable)
            raise check.faults.error(named("sampler", self.batch.parts.sampler))
        # who commits all of them, or none, does not care for their order
        ranked = not 0 < counts.chosen < counts.ties or 2 * counts.ties <= counts.candidates
        if not ranked and not self._warned:
            self._warned = True
            advice = (
                "sampler.confidence_from=untempered tells them apart"
                if self.batch.parts.sampler.reshapes
                else "a rule with a threshold, such as strategy=threshold, commits all of them"
            )
            warnings.warn(
                f"{counts.ties} of {counts.candidates} candidate positions have confidence exactly "
                f"1, so that the column alone decides which of them are committed; {advice}",
                RuntimeWarning,
                stacklevel=8,
            )

    def _unusable(self, view: StepView, unusable: Tensor) -> DllmDecodeError:
        """Who made a prediction that no rule can use, and where."""
        row, slot = unusable.nonzero()[0].tolist()
        fault = "cannot be used (NaN, infinite, or every allowed token at -inf)"
        sampler = self.batch.parts.sampler
        if isinstance(sampler, Greedy | Categorical):
            return ModelOutputError(
                f"the model returned logits that {fault}: {where(view, row, slot)}"
            )
        return PluginError(
            f"{named('sampler', sampler)}, or the model, made a prediction that {fault}: "
            f"{where(view, row, slot)}"
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
            self._say_not_granted(row, own)

    def _say_not_granted(self, row: int, facts: dict[str, Any]) -> None:
        """Say once per decode that a strategy could not revise all that it wanted to."""
        if not facts["not_granted"] or self._said:
            return
        self._said = True
        strategy = self.batch.parts.strategy
        warnings.warn(
            f"strategy asked for {facts['not_granted']} edits and re-masks in row {row} that its "
            f"progress rule, {strategy.progress}, did not allow; they are counted in "
            "Outcome.not_granted",
            RuntimeWarning,
            stacklevel=8,
        )

    def _outcome(self, row: int, facts: dict[str, Any], reason: str | None) -> Outcome:
        batch, request = self.batch, self.batch.request
        length, fixed = facts["horizon"] - request.start, request.fixed and request.fixed[row]
        steps, step_of = facts["step"] - facts["jumped"], facts["step_of"][:length]
        forwards = steps - facts["carried"] + facts["probes"]
        surplus = batch.steps - facts["joined"] - steps + facts["unasked"]
        if reason is None:
            cut = length < request.lengths[row]
            reason = "budget" if facts["over_budget"] else "eot" if cut else "length"
        return Outcome(
            tokens=tuple(facts["tokens"][:length]),
            forwards=forwards * self._passes,
            finish_reason=reason,
            step_of=tuple(step_of),
            confidence_of=tuple(facts["confidence_of"][:length]),
            undecided=step_of.count(-1) - sum(at < length for at in fixed or ()),
            surplus_forwards=surplus * self._passes,
            probes=facts["probes"] * self._passes,
            passes=(forwards - facts["probes"] + facts["waits"]) * self._passes,
            drafts=facts["drafts"],
            edits=facts["edits"],
            remasks=facts["remasks"],
            not_granted=facts["not_granted"],
            eot_ids=self._end_ids,
            last_fixed=request.last_fixed[row],
        )
