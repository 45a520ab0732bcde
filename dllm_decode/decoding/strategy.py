"""What plugin authors subclass: one small class per role, and the pipeline that joins them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding import calls
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.renamed import say_renamed
from dllm_decode.decoding.types import Change, Decision, Memory, Request, Snapshot, StepView, Vocab
from dllm_decode.errors import ConfigError, require_count


@dataclass(frozen=True)
class EveryStep:
    """Progress rule: each live row gains at least one decided position per step."""


@dataclass(frozen=True)
class Budget:
    """Progress rule: steps may commit nothing, but a row ends after `steps` steps.

    steps: forward passes per row, 1 or more. In the last one everything still open is committed;
    the finish reason is `budget` if the strategy had not asked for it. Where the schedule has
    windows behind the current one, each of them then takes one closing step.
    """

    steps: int

    def __post_init__(self) -> None:
        require_count("steps", self.steps)


Progress = EveryStep | Budget


class Part(ABC):  # noqa: B024 - the roles below add the abstract method
    """A frozen plugin. What it must remember lives in the memory that `begin` returns.

    Class attributes declare what a part needs; the composition is checked once, before decoding:
    sees_canvas: the view shows every live generated column, not only the current window;
    needs_reference: the request must carry the result of a reference decode;
    needs_window: the part reads predictions at every column of the window, also at decided ones or
    over several steps, so that a cache may not leave some out;
    request_parameters: fields (numbers) that rows of a request may set for themselves, read with
    `view.parameter`;
    window_width: the only block length the part works with, or None;
    model_fingerprint: the only model the part works with, or None.
    """

    sees_canvas: bool = False
    needs_reference: ClassVar[bool] = False
    needs_window: ClassVar[bool] = False
    request_parameters: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        """Take over `per_row`, the old name of `request_parameters`; warns."""
        super().__init_subclass__(**options)
        if "per_row" in vars(cls):
            say_renamed(f"{cls.__name__}.per_row", "request_parameters")
            cls.request_parameters = vars(cls)["per_row"]

    @property
    def window_width(self) -> int | None:
        """The block length this part was made for, or None for any."""
        return None

    @property
    def model_fingerprint(self) -> str | None:
        """The fingerprint of the only model this part was made for, or None for any."""
        return None

    def banned_ids(self, vocab: Vocab) -> tuple[int, ...]:
        """Ids that the part will remove, for samplers that reshape the distribution earlier."""
        return ()

    def begin(self, request: Request, snapshot: Snapshot) -> Memory | None:
        """The memory of one request, rows in dimension 0 of every tensor; None for no memory."""
        return None


class Strategy(Part):
    """Chooses which open positions to commit: the only role a decode cannot do without.

    revocable: the strategy may re-mask positions that it committed earlier.
    """

    revocable: bool = False

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Every part with its key below `strategy`; one that is not composed has the key ""."""
        yield "", self

    @property
    def progress(self) -> Progress:
        """The rule that makes decoding end; see `EveryStep` and `Budget`."""
        return EveryStep()

    @abstractmethod
    def decide(self, view: StepView, memory: Any) -> Decision:
        """The decision for this step. Committing nothing is fine: the loop forces one commit."""

    def horizon(self, snapshot: Snapshot, view: StepView, change: Change, memory: Any) -> Tensor:
        """One past the last column still worth decoding, (B,), asked after the commit."""
        return snapshot.horizon


class Transform(Part):
    """Reshapes the prediction before positions are chosen."""

    @abstractmethod
    def adjust(self, view: StepView, memory: Any) -> Any:
        """The prediction that the following parts see, usually `view.pred.with_logit_bias(...)`."""


class Filter(Part):
    """Vetoes commits."""

    @abstractmethod
    def keep(self, view: StepView, decision: Decision, memory: Any) -> Tensor:
        """Slots whose commit is not vetoed, (B, W) bool."""


class StopRule(Part):
    """Says how far a row is still worth decoding."""

    @abstractmethod
    def horizon(self, snapshot: Snapshot, view: StepView, change: Change, memory: Any) -> Tensor:
        """One past the last column worth decoding, (B,); values beyond the current are ignored.

        Asked after the commit: `snapshot` already holds it, `change` says what it was, and `view`
        is the step as the model predicted it.
        """


@dataclass(frozen=True)
class NeverStop(StopRule):
    """The null stop rule: every row is decoded to its full length."""

    def horizon(self, snapshot: Snapshot, view: StepView, change: Change, memory: None) -> Tensor:
        """The horizon as it is."""
        return snapshot.horizon


@dataclass
class PipelineMemory(Memory):
    """The memories of a pipeline's parts, keyed by slot (`transforms.credit`)."""

    parts: dict[str, Memory | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Pipeline(Strategy):
    """Transforms, then one selection, then filters; afterwards the stop rules.

    transforms, filters, stop: mappings from a name of your choice to a part, applied in order;
    select: any strategy. Raises `ConfigError` for lists and for parts of the wrong role.
    """

    select: Strategy
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    filters: Mapping[str, Filter] = field(default_factory=dict)
    stop: Mapping[str, StopRule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.select, Strategy):
            raise ConfigError(f"strategy.select must be a Strategy, got {_kind(self.select)}")
        for slot, role in (("transforms", Transform), ("filters", Filter), ("stop", StopRule)):
            self._check_slot(slot, role)

    def _check_slot(self, slot: str, role: type[Part]) -> None:
        parts = getattr(self, slot)
        if not isinstance(parts, Mapping):
            raise ConfigError(
                f"strategy.{slot} is a mapping from names to parts, got a {_kind(parts)}; "
                f"write +strategy.{slot}.<name>={{_target_: ...}}"
            )
        for name, part in parts.items():
            if not isinstance(part, role):
                raise ConfigError(
                    f"strategy.{slot}.{name} must be a {role.__name__}, got {_kind(part)}"
                )

    def _slots(self) -> Iterator[tuple[str, Part]]:
        """What the pipeline itself holds, in the order it acts."""
        for slot in ("transforms", "select", "filters", "stop"):
            if slot == "select":
                yield slot, self.select
            else:
                for name, part in getattr(self, slot).items():
                    yield f"{slot}.{name}", part

    def parts(self) -> Iterator[tuple[str, Part]]:
        """All parts with their key below `strategy`, in the order they act."""
        for key, part in self._slots():
            if isinstance(part, Strategy):
                for inner, chosen in part.parts():
                    yield f"{key}.{inner}" if inner else key, chosen
            else:
                yield key, part

    @property
    def revocable(self) -> bool:  # type: ignore[override]
        """Whether the selection may re-mask."""
        return self.select.revocable

    @property
    def progress(self) -> Progress:
        """The selection's rule."""
        return self.select.progress

    def begin(self, request: Request, snapshot: Snapshot) -> PipelineMemory:
        """One memory per part."""
        return PipelineMemory(
            {
                key: calls.begin(part, f"strategy.{key}", request, snapshot)
                for key, part in self._slots()
            }
        )

    def decide(self, view: StepView, memory: PipelineMemory) -> Decision:
        """The selection's decision on the transformed prediction, less what the filters veto."""
        made: list[tuple[str, Prediction]] = []
        for name, transform in self.transforms.items():
            place = f"transforms.{name}"
            own = view.for_part(place)
            pred = calls.adjust(transform, own, memory.parts[place])
            made.append((calls.name_of(transform, own.part), pred))
            view = view.with_prediction(pred)
        decision = calls.decide(self.select, view.for_part("select"), memory.parts["select"])
        decision = replace(complete(decision, view), predictions=(*made, *decision.predictions))
        for name, part in self.filters.items():
            place = f"filters.{name}"
            kept = calls.keep(part, view.for_part(place), decision, memory.parts[place])
            decision = replace(decision, commit=decision.commit & kept)
        return decision

    def horizon(
        self, snapshot: Snapshot, view: StepView, change: Change, memory: PipelineMemory
    ) -> Tensor:
        """The nearest horizon of the selection and all stop rules."""
        own = view.for_part("select")
        nearest = calls.horizon(self.select, snapshot, own, change, memory.parts["select"])
        for name, rule in self.stop.items():
            place = f"stop.{name}"
            own = view.for_part(place)
            asked = calls.horizon(rule, snapshot, own, change, memory.parts[place])
            nearest = torch.minimum(nearest, asked)
        return nearest


def complete(decision: Decision, view: StepView) -> Decision:
    """A decision with tokens, scores and confidence filled in from the view's prediction."""
    tokens = view.pred.token if decision.tokens is None else decision.tokens
    confidence = decision.confidence
    if confidence is None:
        own = decision.tokens is None
        pred = view.pred
        # ids outside the vocabulary are refused later, by name
        known = tokens.clamp(0, view.snapshot.vocab.size - 1)[..., None]
        confidence = pred.confidence if own else pred.prob_of(known)[..., 0]
    scores = confidence if decision.scores is None else decision.scores
    return replace(decision, tokens=tokens, confidence=confidence, scores=scores)


def _kind(value: object) -> str:
    return type(value).__name__
