"""What plugin authors subclass: one small class per role, and the pipeline that joins them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding import calls
from dllm_decode.decoding.denoiser import Drafter
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.renamed import say_renamed
from dllm_decode.decoding.returned import named
from dllm_decode.decoding.types import Change, Decision, Memory, Request, Snapshot, StepView, Vocab
from dllm_decode.errors import ConfigError, require_count
from dllm_decode.kernels.lazy import copied, once


@dataclass(frozen=True)
class EveryStep:
    """Progress rule: each live row gains at least one decided position per step.

    Examples:
        >>> from dllm_decode.strategies.fixed import TopK
        >>> TopK(1).progress
        EveryStep()
    """


@dataclass(frozen=True)
class Budget:
    """Progress rule: steps may commit nothing, but a row ends after a given number of steps.

    In the last one everything still open is committed; the finish reason is `budget` if the
    strategy had not asked for it. Where the schedule has windows behind the current one, each of
    them then takes one closing step.

    Attributes:
        steps: forward passes per row, 1 or more.

    Raises:
        ConfigError: for other numbers of steps.

    Examples:
        >>> Budget(steps=64)
        Budget(steps=64)
    """

    steps: int

    def __post_init__(self) -> None:
        require_count("steps", self.steps)


@dataclass(frozen=True)
class Revisions:
    """Progress rule of strategies that revise: a bound on how often, and no demand for a net gain.

    A live row commits at least one open slot per step, and each column is opened again or written
    over at most k times, so that a row of L columns ends within L (1 + k) steps. A step that
    lingers in a full window needs no commit; it is granted only while that bound can still be kept.

    Attributes:
        per_column: k, 1 or more.

    Raises:
        ConfigError: for other numbers.

    Examples:
        A rule that writes over what the model has come to see otherwise, at most twice per column:

        >>> from dllm_decode.decoding.selection import best
        >>> from dllm_decode.models.toy import Copy
        >>> @dataclass(frozen=True)
        ... class Corrects(Strategy):
        ...     revises = True
        ...     progress = Revisions(per_column=2)
        ...     def decide(self, view, memory):
        ...         other = view.settled & (view.pred.token != view.tokens)
        ...         return Decision(best(view.pred.certainty, view.open) | other)
        >>> Copy(n=3).answer(Corrects(), "abc")
        ('abc', 4)
    """

    per_column: int

    def __post_init__(self) -> None:
        require_count("per_column", self.per_column)


Progress = EveryStep | Budget | Revisions


class Part(ABC):  # noqa: B024 - the roles below add the abstract method
    """A frozen plugin. What it must remember lives in the memory that `begin` returns.

    Class attributes (or properties) declare what a part needs. They are checked once, when the
    parts are composed; what is not declared costs nothing.

    Attributes:
        sees_canvas: the view shows every live generated column, not the current window alone.
        needs_reference: requests must carry the tokens of a reference decode.
        needs_window: the part reads predictions at every column of the window, decided ones or
            several steps of them included, so that no cache may leave some out.
        reads_decided: the part reads predictions at the decided columns of the window as well, so
            that caches which predict nothing there are refused.
        needs: what the part wants to see of the model's inside: `hidden` (`view.hidden` and
            `view.head`), `embeddings` (which drafters get). Models that do not provide it are
            refused.
        request_parameters: numeric fields that the rows of a request may set for themselves; the
            part reads them with `view.parameter`.

    Examples:
        >>> from dllm_decode.strategies.fixed import TopK
        >>> [name for name, part in TopK(1).parts()]
        ['']
    """

    sees_canvas: bool = False
    needs_reference: ClassVar[bool] = False
    needs_window: ClassVar[bool] = False
    reads_decided: ClassVar[bool] = False
    needs: ClassVar[Set[str]] = frozenset()
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

    @property
    def drafter(self) -> Drafter | None:
        """A light network that predicts again between two forward passes; see `StepView.draft`."""
        return None

    @property
    def drafter_widths(self) -> tuple[int, int] | None:
        """Widths of the states and embeddings that the drafter is for, or None for any."""
        return None

    def banned_ids(self, vocab: Vocab) -> tuple[int, ...]:
        """Ids that the part will remove from the prediction.

        Samplers that temper or truncate the distribution remove them first; a nucleus could
        otherwise hold nothing else.
        """
        return ()

    def end_ids(self, vocab: Vocab) -> tuple[int, ...]:
        """Ids at which the part ends a text; where no part names any, the model's own do.

        What an outcome delivers, and what a page shows of it, stops in front of the first of them.
        """
        return ()

    def begin(self, request: Request, snapshot: Snapshot) -> Memory | None:
        """The memory of a request's rows; see `Memory`.

        Args:
            request: the rows that join.
            snapshot: their canvas before the first step.

        Returns:
            A memory with these rows in the first dimension of every tensor, or None for none.
        """
        return None


class Strategy(Part):
    """Chooses which open positions to commit: the only role a decode cannot do without.

    Attributes:
        revocable: whether the strategy may open again what it has committed.
        revises: whether it may write over what it has committed, and stay in a full window to look
            at it again; needs the progress rule `Revisions`.
        wraps: whether it stands for a whole rule of its own, whose transforms and filters belong
            inside it.
        always_commits: a promise that each of its decisions commits at least one slot of every row
            that has an open one, so that the loop need not have another slot ready. A class that
            overrides `decide` has to promise it again; a broken promise ends the decode with an
            error.
        ranks: whether it may commit some of several slots with the same score and leave others, so
            that many ties are worth a warning; False is a promise of the same kind.

    Examples:
        >>> from dataclasses import dataclass
        >>> from dllm_decode.decoding.selection import best
        >>> from dllm_decode.models.toy import Reverse
        >>> @dataclass(frozen=True)
        ... class SurestTwo(Strategy):
        ...     def decide(self, view, memory):
        ...         return Decision(best(view.pred.certainty, view.open, 2))
        >>> Reverse(n=4).answer(SurestTwo(), "abcd")
        ('dcba', 3)
    """

    revocable: bool = False
    revises: bool = False
    wraps: ClassVar[bool] = False
    always_commits: bool = False
    ranks: bool = True

    def __init_subclass__(cls, **options: Any) -> None:
        """A class does not vouch for another class's `decide`."""
        super().__init_subclass__(**options)
        for word, careful in (("always_commits", False), ("ranks", True)):
            if "decide" in vars(cls) and word not in vars(cls):
                setattr(cls, word, careful)

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Every part with its key below `strategy`; one that is not composed has the key ""."""
        yield "", self

    def with_parts(self, change: Callable[[str, Any], Any]) -> Strategy:
        """The strategy with other parts in place of those that `parts` yields.

        Args:
            change: from a part and its key below `strategy` to the part that takes its place.
        """
        changed: Strategy = change("", self)
        return changed

    @property
    def progress(self) -> Progress:
        """The rule that makes decoding end; see `EveryStep`, `Budget` and `Revisions`."""
        return EveryStep()

    @abstractmethod
    def decide(self, view: StepView, memory: Any) -> Decision:
        """The decision for this step.

        Committing nothing is fine: a row that would gain nothing is given its best open slot, by
        the decision's scores.

        Args:
            view: the step.
            memory: what `begin` returned; change it in place.

        Returns:
            What to commit, and with what.
        """

    def horizon(self, snapshot: Snapshot, view: StepView, change: Change, memory: Any) -> Tensor:
        """One past the last column still worth decoding, (B,) int64; see `StopRule.horizon`."""
        return snapshot.horizon

    def lingers(
        self, snapshot: Snapshot, view: StepView, change: Change, memory: Any
    ) -> Tensor | None:
        """Rows that want another step in their window although it is full, (B,) bool.

        Asked under the progress rule `Revisions`, after each step. A row stays only behind a step
        that changed something, and within the rule's bound; in the next step nothing is open in
        it, and its settled slots may be written over or opened again.

        Args:
            snapshot: the canvas after the step.
            view: the step, with the prediction that the selection saw.
            change: what the step did.
            memory: what `begin` returned; change it in place.

        Returns:
            The rows, or None for none.
        """
        return None


class RuleWrapper(Strategy):
    """A strategy that carries out several steps of another one, its field `rule`.

    Examples:
        >>> from dataclasses import dataclass
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> @dataclass(frozen=True)
        ... class AsItIs(RuleWrapper):
        ...     rule: Strategy
        ...     def decide(self, view, memory):
        ...         return self.rule.decide(view, memory)
        >>> Copy(n=4).answer(AsItIs(TopK(2)), "abcd")
        ('abcd', 3)
        >>> [key for key, _ in AsItIs(TopK(2)).parts()]
        ['', 'rule']
    """

    rule: Strategy
    wraps = True

    @property
    def progress(self) -> Progress:
        """That of the rule."""
        return self.rule.progress

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Itself, and the parts of its rule."""
        yield "", self
        for key, part in self.rule.parts():
            yield f"rule.{key}" if key else "rule", part

    def with_parts(self, change: Callable[[str, Any], Any]) -> Strategy:
        """With other parts in place of its own; see `Strategy.with_parts`."""

        def inner(key: str, part: Any) -> Any:
            return change(f"rule.{key}" if key else "rule", part)

        own: Any = change("", self)
        changed: Strategy = replace(own, rule=self.rule.with_parts(inner))
        return changed

    def begin(self, request: Request, snapshot: Snapshot) -> Memory | None:
        """The memory of the rule."""
        return self.rule.begin(request, snapshot)

    def horizon(self, snapshot: Snapshot, view: StepView, change: Change, memory: Any) -> Tensor:
        """That of the rule, asked once for all of its steps."""
        return self.rule.horizon(snapshot, view, change, memory)


class Transform(Part):
    """Reshapes the prediction before positions are chosen.

    Examples:
        >>> from dataclasses import dataclass
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> @dataclass(frozen=True)
        ... class No(Transform):
        ...     token: int
        ...     def adjust(self, view, memory):
        ...         return view.pred.suppress(view.snapshot.ids((self.token,)))
        >>> world = Copy(n=4)
        >>> never_d = Pipeline(TopK(1), transforms={"no": No(world.symbols.index("d"))})
        >>> "d" in world.answer(never_d, "abcd")[0]
        False
    """

    @abstractmethod
    def adjust(self, view: StepView, memory: Any) -> Any:
        """The prediction that the following parts see.

        Args:
            view: the step, with the prediction as the transforms before have left it.
            memory: what `begin` returned; change it in place.

        Returns:
            A prediction of the same shape, mostly `view.pred.with_logit_bias(ids, delta)` or
            `view.pred.suppress(ids)`.
        """


class Filter(Part):
    """Vetoes commits.

    Examples:
        >>> from dataclasses import dataclass
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> @dataclass(frozen=True)
        ... class NotTheFirst(Filter):
        ...     def keep(self, view, decision, memory):
        ...         return view.index != view.snapshot.start
        >>> late = Pipeline(TopK(5), filters={"late": NotTheFirst()})
        >>> Copy(n=4).answer(late, "abcd")  # four at once, then the first, which must gain
        ('abcd', 2)
    """

    @abstractmethod
    def keep(self, view: StepView, decision: Decision, memory: Any) -> Tensor:
        """Slots whose commit is not vetoed, (B, W) bool.

        Args:
            view: the step, with the prediction that the selection saw.
            decision: the selection's decision, complete, less what filters before have vetoed.
            memory: what `begin` returned; change it in place.
        """


class StopRule(Part):
    """Says how far a row is still worth decoding, or that all of it can be committed now.

    Examples:
        >>> from dataclasses import dataclass
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> @dataclass(frozen=True)
        ... class Three(StopRule):
        ...     def horizon(self, snapshot, view, change, memory):
        ...         return snapshot.horizon.clamp(max=snapshot.start + 3)
        >>> Copy(n=4).answer(Pipeline(TopK(1), stop={"three": Three()}), "abcd")
        ('abc', 3)
    """

    @abstractmethod
    def horizon(self, snapshot: Snapshot, view: StepView, change: Change, memory: Any) -> Tensor:
        """One past the last column worth decoding, (B,) int64; larger ones than now are ignored.

        Args:
            snapshot: the canvas after the commit.
            view: the step as the model predicted it, before any transform.
            change: what the step did.
            memory: what `begin` returned; change it in place.
        """

    def closes(self, view: StepView, memory: Any) -> Tensor | None:
        """Rows that are finished now: everything undecided is committed with this step's tokens.

        Only what the view shows is committed, so that a rule which ends rows in one go declares
        `sees_canvas`.

        Args:
            view: the step as the model predicted it, before any transform.
            memory: what `begin` returned; change it in place.

        Returns:
            (B,) bool, or None for none.
        """
        return None


@dataclass(frozen=True)
class NeverStop(StopRule):
    """The null stop rule: every row is decoded to its full length.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Copy(n=4).answer(Pipeline(TopK(1), stop={"never": NeverStop()}), "abcd")
        ('abcd', 5)
    """

    def horizon(self, snapshot: Snapshot, view: StepView, change: Change, memory: None) -> Tensor:
        """The horizon as it is."""
        return snapshot.horizon


@dataclass
class PipelineMemory(Memory):
    """The memories of a pipeline's parts.

    Attributes:
        parts: place in the pipeline, e.g. "transforms.credit", to memory.

    Examples:
        >>> from dllm_decode.strategies.fixed import TopK
        >>> PipelineMemory({"select": None}).parts
        {'select': None}
    """

    parts: dict[str, Memory | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Pipeline(Strategy):
    """Transforms, then one selection, then filters; after the commit the stop rules.

    Attributes:
        select: any strategy; a pipeline too.
        transforms: name of your choice to transform, applied in order.
        filters: name to filter; a commit stays where none vetoes it.
        stop: name to stop rule; the nearest horizon counts.

    Raises:
        ConfigError: for lists instead of mappings, and for parts of the wrong role.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.at_most import AtMost
        >>> from dllm_decode.strategies.threshold import ConfidenceThreshold
        >>> calm = Pipeline(ConfidenceThreshold(0.9), filters={"two": AtMost(2)})
        >>> [key for key, _ in calm.parts()]
        ['select', 'filters.two']
        >>> Copy(n=4).answer(calm, "abcd")
        ('abcd', 3)
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
        if self.select.wraps and (self.transforms or self.filters):
            raise ConfigError(
                f"strategy.select ({_kind(self.select)}) stands for a whole rule; put "
                f"{', '.join([*self.transforms, *self.filters])} into it: strategy.select.rule may "
                "be a pipeline"
            )

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
        return iter(self._parts)

    @once
    def _parts(self) -> Sequence[tuple[str, Part]]:
        found: list[tuple[str, Part]] = []
        for key, part in self._slots():
            if isinstance(part, Strategy):
                found += [(f"{key}.{inner}" if inner else key, own) for inner, own in part.parts()]
            else:
                found.append((key, part))
        return found

    def with_parts(self, change: Callable[[str, Any], Any]) -> Pipeline:
        """The pipeline with other parts in place of its own; see `Strategy.with_parts`."""

        def selection(key: str, part: Any) -> Any:
            return change(f"select.{key}" if key else "select", part)

        slots = {
            slot: {key: change(f"{slot}.{key}", part) for key, part in getattr(self, slot).items()}
            for slot in ("transforms", "filters", "stop")
        }
        return replace(self, select=self.select.with_parts(selection), **slots)

    @once
    def revocable(self) -> bool:  # type: ignore[override]
        """Whether the selection may re-mask."""
        return self.select.revocable

    @once
    def revises(self) -> bool:  # type: ignore[override]
        """Whether the selection may write over what it has committed."""
        return self.select.revises

    @once
    def always_commits(self) -> bool:  # type: ignore[override]
        """Whether the selection always commits, and no filter can veto it."""
        return self.select.always_commits and not self.filters

    @once
    def ranks(self) -> bool:  # type: ignore[override]
        """Whether the selection does, or a filter may."""
        return self.select.ranks or bool(self.filters)

    @once
    def progress(self) -> Progress:
        """How the loop makes progress where nothing is committed: as the selection says."""
        return self.select.progress

    @once
    def _closing(self) -> Sequence[tuple[str, StopRule]]:
        """The stop rules that may end a row in one go, with their place."""
        rules = [(f"stop.{name}", rule) for name, rule in self.stop.items()]
        return [(place, rule) for place, rule in rules if type(rule).closes is not StopRule.closes]

    @once
    def _ending(self) -> Sequence[tuple[str, StopRule]]:
        """The stop rules that may move a horizon, with their place."""
        rules = [(f"stop.{name}", rule) for name, rule in self.stop.items()]
        return [(place, rule) for place, rule in rules if type(rule) is not NeverStop]

    def begin(self, request: Request, snapshot: Snapshot) -> PipelineMemory:
        """The memories of all parts, by place."""
        return PipelineMemory(
            {
                key: calls.begin(part, f"strategy.{key}", request, snapshot)
                for key, part in self._slots()
            }
        )

    @calls.checks_itself
    def decide(self, view: StepView, memory: PipelineMemory) -> Decision:
        """The selection's decision on the transformed prediction, less what the filters veto."""
        made: list[tuple[str, Prediction]] = []
        seen = view
        for name, transform in self.transforms.items():
            place = f"transforms.{name}"
            own = view.for_part(place)
            pred = calls.adjust(transform, own, memory.parts[place])
            made.append((named(own.part, transform), pred))
            view = view.with_prediction(pred)
        decision = calls.decide(self.select, view.for_part("select"), memory.parts["select"])
        decision = complete(decision, view)
        if made:
            decision = copied(decision, predictions=(*made, *decision.predictions))
        for name, part in self.filters.items():
            place = f"filters.{name}"
            kept = calls.keep(part, view.for_part(place), decision, memory.parts[place])
            decision = copied(decision, commit=decision.commit & kept)
        for place, rule in self._closing:
            close = calls.closes(rule, seen.for_part(place), memory.parts[place])
            decision = copied(decision, close=_either(decision.close, close))
        return decision

    def horizon(
        self, snapshot: Snapshot, view: StepView, change: Change, memory: PipelineMemory
    ) -> Tensor:
        """The nearest horizon of the selection and all stop rules."""
        nearest = snapshot.horizon
        if type(self.select).horizon is not Strategy.horizon:
            own = view.for_part("select")
            nearest = calls.horizon(self.select, snapshot, own, change, memory.parts["select"])
        for place, rule in self._ending:
            own = view.for_part(place)
            asked = calls.horizon(rule, snapshot, own, change, memory.parts[place])
            if asked is not snapshot.horizon:
                nearest = asked if nearest is snapshot.horizon else torch.minimum(nearest, asked)
        return nearest

    def lingers(
        self, snapshot: Snapshot, view: StepView, change: Change, memory: PipelineMemory
    ) -> Tensor | None:
        """The rows that the selection wants to look at once more."""
        own = view.for_part("select")
        return calls.lingers(self.select, snapshot, own, change, memory.parts["select"])


def complete(decision: Decision, view: StepView) -> Decision:
    """A decision with tokens, scores and confidence filled in from the view's prediction.

    Args:
        decision: as a strategy returned it.
        view: of the step.
    """
    pred, tokens, confidence = view.pred, decision.tokens, decision.confidence
    if tokens is not None and confidence is not None and decision.scores is not None:
        return decision
    scores = decision.scores
    if tokens is None:
        scores = pred.certainty if scores is None else scores
        confidence = pred.confidence if confidence is None else confidence
    elif confidence is None:
        # ids outside the vocabulary are refused later, by name
        known = tokens.clamp(0, view.snapshot.vocab.size - 1)[..., None]
        confidence = pred.prob_of(known)[..., 0]
    tokens = pred.token if tokens is None else tokens
    scores = confidence if scores is None else scores
    return copied(decision, tokens=tokens, confidence=confidence, scores=scores)


def _either(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one | other


def _kind(value: object) -> str:
    return type(value).__name__
