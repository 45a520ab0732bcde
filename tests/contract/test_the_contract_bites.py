"""Tests of the tests: each known defect, built in on purpose, is caught by the intended property.

The defects are those that were found in other implementations of the same ideas.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from drawing import number, profile
from hypothesis import HealthCheck, Phase, given, settings
from outside_decoding.rules import Corrects, Deep, Doubts, LooksAhead
from torch.nn import functional

from dllm_decode import testing
from dllm_decode.decoding import batch, canvas, loop, passes, settle
from dllm_decode.decoding import cache as cache_module
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.sampling import Greedy, Sampler
from dllm_decode.decoding.selection import best, ordered, ranks
from dllm_decode.decoding.strategy import Pipeline, StopRule, Strategy, Transform
from dllm_decode.decoding.types import Decision, Memory
from dllm_decode.strategies.credit import CreditMemory, TraceCredit
from dllm_decode.strategies.entropy_bound import EntropyBound
from dllm_decode.strategies.eot import CommittedEot
from dllm_decode.strategies.factor import Factor
from dllm_decode.strategies.fixed import FixedSchedule, TopK, scheduled
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.testing import Case, StrategyContract, cases

PROPERTIES = sorted(name for name in dir(StrategyContract) if name.startswith("test_"))
ENDS = "test_it_ends_in_time_with_every_column_decided"
GIVEN = "test_prompt_and_fixed_tokens_stay_as_they_are"
MONOTONE = "test_what_is_decided_stays_unless_the_strategy_may_revoke"
ALIKE = "test_a_row_decodes_alike_alone_and_in_any_batch"
RUNNING = "test_a_row_decodes_alike_alone_and_in_a_running_batch"
LEAKS = "test_nothing_leaks_from_one_request_to_the_next"
REPLAYS = "test_the_trace_replays_to_the_result"
SEEDED = "test_the_same_seed_gives_the_same_result"
MASK = "test_mask_and_control_ids_play_no_part"
COUNTED = "test_every_forward_pass_is_counted"
SYNCS = "test_the_time_between_two_syncs_changes_nothing"
UNWRITTEN = "test_nothing_that_is_handed_over_is_written_to"
PROBES = "test_no_probe_leaves_its_keys_and_values_behind"
CARRIED = "test_a_carried_prediction_is_that_of_a_pass"
ZERO = "test_weight_zero_equals_absent"
SHRINKS = "test_a_stricter_threshold_commits_no_more_in_the_first_step"
SEQUENTIAL = "test_the_strictest_threshold_is_sequential_where_nothing_is_certain"
END_OF_TEXT = "test_no_work_is_done_behind_a_committed_end_of_text"


# Wrong parts.


@dataclass(frozen=True)
class BatchWideMaximum(EntropyBound):
    """The running maximum of the entropy bound goes over the rows (d2Cache)."""

    def decide(self, view, memory):
        scores = -view.pred.entropy
        entropy = view.pred.entropy.masked_fill(~view.open, float("inf"))
        entropy = entropy.gather(1, ordered(scores, view.open))
        cost = entropy.cumsum(1) - entropy.cummax(0).values
        count = (cost <= self.bound).sum(1).clamp(min=1)
        return Decision(view.open & (ranks(scores, view.open) < count[:, None]), scores=scores)


@dataclass
class Places(Memory):
    """Which rows of the plugin's own matrices belong to the rows of the batch."""

    key: tuple
    rows: torch.Tensor


@dataclass(frozen=True)
class StaleCredit(TraceCredit):
    """Credit lives on the plugin, keyed by the shape of the canvas (dInfer)."""

    kept: dict = field(default_factory=dict)

    def begin(self, request, snapshot):
        empty = super().begin(request, snapshot)
        key = tuple(empty.ids.shape)
        self.kept.setdefault(key, empty)
        return Places(key, torch.arange(request.rows))

    def adjust(self, view, memory):
        whole = self.kept[memory.key]
        part = CreditMemory(whole.ids[memory.rows], whole.credit[memory.rows])
        pred = super().adjust(replace(view, fresh=torch.zeros_like(view.fresh)), part)
        whole.ids[memory.rows], whole.credit[memory.rows] = part.ids, part.credit
        return pred


@dataclass(frozen=True)
class RowZeroForAll(ConfidenceThreshold):
    """The first row's confidences decide for every row (d3LLM, Prophet)."""

    def decide(self, view, memory):
        return Decision(view.open & (view.pred.confidence[:1] >= self.threshold))


@dataclass(frozen=True)
class AveragedCount(FixedSchedule):
    """The count of a step is averaged over the rows (Dream)."""

    def decide(self, view, memory):
        count = scheduled(view.window_open, self.steps_per_block, view.window_step)
        mean = count.float().mean().ceil().long().expand_as(count)
        return Decision(best(view.pred.confidence, view.open, mean))


@dataclass(frozen=True)
class CallCounter(Strategy):
    """A schedule that is indexed by a counter on the plugin (Saber)."""

    calls: list = field(default_factory=list)

    def decide(self, view, memory):
        self.calls.append(None)
        count = 1 + len(self.calls) // 4
        return Decision(best(view.pred.confidence, view.open, count))


@dataclass(frozen=True)
class GlobalRandomness(Strategy):
    """Positions are drawn from the global generator."""

    def decide(self, view, memory):
        return Decision(best(torch.rand(view.open.shape), view.open))


@dataclass(frozen=True)
class NeighbourlyProbe(ConfidenceThreshold):
    """One uncertain row makes all rows pay for a probe."""

    def decide(self, view, memory):
        if bool((view.open & (view.pred.confidence < self.threshold)).any()):
            view.probe(view.pred.token)
        return super().decide(view, memory)


@dataclass(frozen=True)
class AlwaysProbing(ConfidenceThreshold):
    """Probes in every step, as it may."""

    def decide(self, view, memory):
        view.probe(view.pred.token)
        return super().decide(view, memory)


@dataclass(frozen=True)
class ClosesSlots(ConfidenceThreshold):
    """Marks in the view itself what it has no use for."""

    def decide(self, view, memory):
        view.open.logical_and_(view.masked)
        return super().decide(view, memory)


@dataclass(frozen=True)
class RoundsConfidences(ConfidenceThreshold):
    """Rounds the prediction where it stands."""

    def decide(self, view, memory):
        view.pred.confidence.round_(decimals=2)
        return super().decide(view, memory)


@dataclass(frozen=True)
class CutInPlace(StopRule):
    """Moves the horizon that it was shown."""

    def horizon(self, snapshot, view, change, memory):
        return snapshot.horizon.clamp_(max=snapshot.start + 5)


@dataclass(frozen=True)
class CutEarly(StopRule):
    """Columns from the fifth on are not worth decoding, as it finds after the first step."""

    def horizon(self, snapshot, view, change, memory):
        return snapshot.horizon.clamp(max=snapshot.start + 4)


@dataclass(frozen=True)
class SecondThoughts(Strategy):
    """Opens a settled position again and does not say so."""

    def decide(self, view, memory):
        return Decision(
            best(view.pred.confidence, view.open, 2),
            remask=best(-view.pred.confidence, view.settled),
        )


@dataclass(frozen=True)
class Rewriter(Strategy):
    """Commits the best open position, and the settled ones once more."""

    def decide(self, view, memory):
        return Decision(best(view.pred.confidence, view.open) | view.settled)


@dataclass(frozen=True)
class SkipsTheMask(ConfidenceThreshold):
    """The best position counts as a fallback even where it predicts the mask, and is then skipped.

    The loop of dInfer's threshold decoding that never ends.
    """

    def decide(self, view, memory):
        confidence = view.pred.confidence.masked_fill(~view.open, -1.0)
        enough = confidence >= confidence.amax(1, keepdim=True).clamp(max=self.threshold)
        allowed = ~torch.isin(view.pred.token, view.snapshot.never_generated)
        return Decision(view.open & enough & allowed)


@dataclass(frozen=True)
class NoFallback(Strategy):
    """A threshold that nothing reaches, and no fallback."""

    def decide(self, view, memory):
        return Decision(view.open & (view.pred.confidence > 1.0))


@dataclass(frozen=True)
class UpsideDown(ConfidenceThreshold):
    """Commits what is unsure."""

    def decide(self, view, memory):
        return Decision(view.open & (view.pred.confidence <= self.threshold))


@dataclass(frozen=True)
class AlwaysPushes(Transform):
    """Adds a constant beside the weighted term."""

    weight: float = 0.0

    def adjust(self, view, memory):
        second = view.pred.topk(2)[1][..., 1:]
        return view.pred.with_logit_bias(second, torch.full(second.shape, self.weight + 2.0))


@dataclass(frozen=True)
class BanAtTheEnd(Transform):
    """Removes the ids that are never generated, after the other transforms."""

    def adjust(self, view, memory):
        never = view.snapshot.never_generated.expand(*view.open.shape, -1)
        return view.pred.with_logit_bias(never, torch.full(never.shape, float("-inf")))


@dataclass(frozen=True)
class LateEot(CommittedEot):
    """Looks at the canvas as it was before the commit."""

    def horizon(self, snapshot, view, change, memory):
        return super().horizon(view.snapshot, view, change, memory)


@dataclass(frozen=True)
class Unbanned(Sampler):
    """Forgets to remove the ids that are never generated."""

    def predict(self, logits, banned, noise):
        return Prediction.of(logits)


# Wrong core, by replacing one function of it.


def no_forced_progress(view, scores, asked, progress):
    return asked, torch.zeros_like(view.open.any(1))


def no_faults(view, decision, revocable, unfit):
    return torch.zeros_like(view.open)


_legal_change = settle.legal_change


def settled_counts_as_open(view, decision, *rest):
    return _legal_change(replace(view, open=view.open | view.settled), decision, *rest)


def everybody_may_re_mask(view, decision, *rest):
    change = _legal_change(view, decision, *rest)
    return change if decision.remask is None else replace(change, remask=decision.remask)


def no_bound(view, asked, progress):
    return asked


def stays_for_ever(asked, after, view, change, progress):
    full = ~(view.gather(after.undecided) & view.active).any(1)
    return asked & full, asked


def edits_are_commits(view, decision, *rest):
    change = _legal_change(view, decision, *rest)
    return replace(change, commit=change.written, edit=None)


def nothing_was_refused(asked, granted):
    return None


def everybody_pays(self, rows, *, unasked):
    self._extra.add("probes", rows.any(0).sum().expand(len(rows)))
    self._extra.add("waits", torch.ones_like(rows[:, 0]).long())


def any_probe_will_do(self, carry, view):
    made, self._probes, self._last = self._probes, [], None
    if carry is not None and self.batch.store is None:
        values = made[0].values
        carried = batch.Carried(made[0].rows & self.batch.next.open.any(1), values)
        carried.fit(self.batch.next.index.shape[1])
        self.batch.next.carried = carried


_states = testing.HashDenoiser.states


def states_of_a_batch(self, tokens, *rest):
    return _states(self, tokens, *rest) * len(tokens)


def probes_are_free(self, rows, *, unasked):
    """What `Batch.count_probe` does, without the counting."""


_apply = canvas.Canvas.apply


def writes_other_tokens(self, change, *columns, **rest):
    moved = torch.where(change.tokens < 9, (change.tokens + 1) % 9, change.tokens)
    _apply(self, replace(change, tokens=moved), *columns, **rest)


def applies_every_remask(self, change, *columns, **rest):
    _apply(self, change, *columns)


def rows_keep_their_place(self, rows):
    self.stored = self.stored[: len(rows)]


_of = canvas.Canvas.of


def fixed_tokens_are_open(*args, **rest):
    made = _of(*args, **rest)
    columns = torch.arange(made.tokens.shape[1])
    made.editable = (columns >= made.start) & (columns < made.end[:, None])
    made.planes["decided"] = functional.pad(~made.editable, (0, 1))
    return made


def columns_are_read_where_they_stand(self, index, live):
    return index


_plan = batch.Batch.plan


def trusts_the_last_sync(self):
    unseen, self._unseen = self._unseen, 0
    try:
        return _plan(self)
    finally:
        self._unseen = unseen


def trusts_probes(self, columns):
    pass


# One suite per defect.


@dataclass
class Mutant(StrategyContract):
    """A suite over given strategies, the properties that must fail, and what to replace.

    entailed: properties that may fail as well in a thorough run, in cases that show what follows
        from the defect.
    """

    make: Callable[[], Sequence[Strategy]]
    caught_by: set[str]
    thresholds: Callable[[], Sequence[Strategy]] = tuple
    zero: Callable[[], Sequence[tuple[Strategy, Strategy]]] = tuple
    replaced: Mapping[tuple[object, str], object] = field(default_factory=dict)
    samplers: Sequence[Sampler] = StrategyContract.samplers
    ending: Callable[[], Sequence[Strategy]] = tuple
    probes: Callable[[], Sequence[Strategy]] = tuple
    properties: Sequence[str] = tuple(PROPERTIES)
    entailed: set[str] = field(default_factory=set)

    strategies = property(lambda self: self.make)
    loose_to_strict = property(lambda self: self.thresholds)
    with_weight_zero = property(lambda self: self.zero)
    ending_at_eot = property(lambda self: self.ending)
    probing = property(lambda self: self.probes)


def eot(rule: type[CommittedEot] = CommittedEot) -> Callable[[], Sequence[Strategy]]:
    return lambda: [Pipeline(select=ConfidenceThreshold(0.7), stop={"eot": rule()})]


def probing() -> Sequence[Strategy]:
    return [AlwaysProbing(0.6)]


def cut(rule: type[StopRule]) -> Callable[[], Sequence[Strategy]]:
    return lambda: [Pipeline(select=TopK(1), stop={"cut": rule()})]


def credit(kind: type[TraceCredit] = TraceCredit, **more: Transform):
    transforms = {"credit": kind(alpha=2.0), **more}
    return lambda: [Pipeline(select=ConfidenceThreshold(0.6), transforms=dict(transforms))]


def fresh_credit(kind: type[TraceCredit]):
    return lambda: [Pipeline(select=ConfidenceThreshold(0.6), transforms={"credit": kind()})]


def thresholds(rule: type[Strategy] = ConfidenceThreshold, **more: object):
    return lambda: [rule(threshold, **more) for threshold in (0.3, 0.6, 0.9)]


def factors(variant: str):
    return lambda: [Factor(factor, variant) for factor in (1.9, 1.0, 0.7)]


def pushed_credit(kind: type[Transform]):
    def pairs():
        select = ConfidenceThreshold(0.6)
        return [(Pipeline(select, {"part": kind()}), Pipeline(select))]

    return pairs


MUTANTS: dict[str, Mutant] = {
    "running maximum over the batch": Mutant(lambda: [BatchWideMaximum(1.5)], {ALIKE, RUNNING}),
    "factor commits the position that failed": Mutant(
        factors("copied"), {SEQUENTIAL}, factors("copied")
    ),
    "credit outlives the request": Mutant(fresh_credit(StaleCredit), {LEAKS, RUNNING}),
    "the mask id earns credit": Mutant(credit(ban=BanAtTheEnd()), {MASK}, samplers=(Unbanned(),)),
    "the fallback commits every tie": Mutant(
        thresholds(tie_slack=1e-5), {SEQUENTIAL}, thresholds(tie_slack=1e-5)
    ),
    "row 0 for all rows": Mutant(lambda: [RowZeroForAll(0.6)], {ALIKE, RUNNING}),
    "counts averaged over rows": Mutant(lambda: [AveragedCount(2)], {ALIKE, RUNNING}),
    "mutable state on the plugin": Mutant(lambda: [CallCounter()], {LEAKS, RUNNING}),
    "global random numbers": Mutant(
        lambda: [GlobalRandomness()], {SEEDED, ALIKE, RUNNING, LEAKS, MASK, SYNCS}
    ),
    "neighbours pay for a probe": Mutant(lambda: [NeighbourlyProbe(0.6)], {ALIKE, RUNNING}),
    "probes are not counted": Mutant(
        lambda: [AlwaysProbing(0.6)],
        {COUNTED},
        replaced={(batch.Batch, "count_probe"): probes_are_free},
    ),
    "a probe's keys and values stay": Mutant(
        probing,
        {PROBES},
        probes=probing,
        replaced={(cache_module.StoreMemory, "distrust"): trusts_probes},
    ),
    "a shifted model's source columns are not computed": Mutant(
        lambda: [TopK(1)],
        {ENDS},
        replaced={(testing.HashDenoiser, "sources"): columns_are_read_where_they_stand},
        properties=(ENDS,),  # the model refuses such a pass, so every property fails
    ),
    "columns cut since the last sync are attended to": Mutant(
        cut(CutEarly), {SYNCS}, replaced={(batch.Batch, "plan"): trusts_the_last_sync}
    ),
    "the view is written to": Mutant(lambda: [ClosesSlots(0.6)], {UNWRITTEN}),
    "the prediction is written to": Mutant(lambda: [RoundsConfidences(0.6)], {UNWRITTEN}),
    "the horizon is moved in place": Mutant(
        # a horizon behind the canvas: any decode of such a row fails
        cut(CutInPlace),
        {UNWRITTEN},
        entailed=set(PROPERTIES) - {UNWRITTEN},
    ),
    "re-masking without saying so": Mutant(
        lambda: [SecondThoughts()],
        {MONOTONE},
        replaced={
            (settle, "faulty"): no_faults,
            (settle, "legal_change"): everybody_may_re_mask,
            (canvas.Canvas, "apply"): applies_every_remask,
        },
        entailed=set(PROPERTIES) - {MONOTONE},  # a decode that never ends has none
    ),
    "committed tokens are rewritten": Mutant(
        lambda: [Rewriter()],
        {MONOTONE},
        replaced={
            (settle, "legal_change"): settled_counts_as_open,
            (settle, "faulty"): no_faults,
        },
        entailed={COUNTED},
    ),
    "the mask is emitted": Mutant(
        lambda: [ConfidenceThreshold(0.6)],
        {MASK},
        samplers=(Unbanned(),),
        replaced={(settle, "faulty"): no_faults},
    ),
    "a predicted mask stalls the threshold": Mutant(
        lambda: [SkipsTheMask(0.6)],
        {MASK},
        samplers=(Unbanned(),),
        replaced={(settle, "_with_progress"): no_forced_progress},
    ),
    "no forced progress": Mutant(
        lambda: [NoFallback()],
        {ENDS},
        replaced={(settle, "_with_progress"): no_forced_progress},
        properties=(ENDS,),  # every decode is endless, so every property fails
    ),
    "a column is revised without end": Mutant(
        lambda: [Corrects(times=1)], {MONOTONE}, replaced={(settle, "_bounded"): no_bound}
    ),
    "a row stays in a full window": Mutant(
        lambda: [Doubts()],
        {ENDS},
        replaced={(loop, "staying"): stays_for_ever},
        properties=(ENDS,),  # every decode is endless, so every property fails
    ),
    "an edit is told as a commit": Mutant(
        lambda: [Corrects()],
        {MONOTONE, COUNTED},
        replaced={(settle, "legal_change"): edits_are_commits},
    ),
    "what is not granted is forgotten": Mutant(
        lambda: [Corrects(times=1)],
        {COUNTED},
        replaced={(settle, "_not_granted"): nothing_was_refused},
    ),
    "all rows pay for the probes of some": Mutant(
        lambda: [LooksAhead()],
        {COUNTED, ALIKE, RUNNING},
        replaced={(batch.Batch, "count_probe"): everybody_pays},
        properties=(COUNTED, ALIKE, RUNNING),
    ),
    "a probe of other tokens is carried on": Mutant(
        lambda: [LooksAhead()],
        {CARRIED},
        probes=lambda: [LooksAhead()],
        replaced={(passes.ModelPasses, "carry"): any_probe_will_do},
        properties=(CARRIED,),
    ),
    "states depend on the batch": Mutant(
        lambda: [Deep()],
        {ALIKE, RUNNING},
        replaced={(testing.HashDenoiser, "states"): states_of_a_batch},
        entailed={SYNCS},
    ),
    "strict is loose": Mutant(
        thresholds(UpsideDown), {SHRINKS, SEQUENTIAL}, thresholds(UpsideDown)
    ),
    "weight zero still acts": Mutant(lambda: [TopK(2)], {ZERO}, zero=pushed_credit(AlwaysPushes)),
    "end of text noticed a step late": Mutant(eot(LateEot), {END_OF_TEXT}, ending=eot(LateEot)),
    "the canvas writes what the trace does not say": Mutant(
        lambda: [TopK(2)], {REPLAYS}, replaced={(canvas.Canvas, "apply"): writes_other_tokens}
    ),
    "stored columns do not move with their row": Mutant(
        lambda: [TopK(1)],
        {ALIKE, RUNNING},
        replaced={(testing.HashStore, "take"): rows_keep_their_place},
    ),
    "fixed tokens are overwritten": Mutant(
        lambda: [TopK(2)],
        {GIVEN},
        replaced={(canvas.Canvas, "of"): staticmethod(fixed_tokens_are_open)},
        entailed={ENDS},
    ),
}

# The same parts as they should be.
CONTROLS: dict[str, Mutant] = {
    "entropy bound": Mutant(lambda: [EntropyBound(1.5)], set()),
    "factor": Mutant(factors("published"), set(), factors("published")),
    "credit": Mutant(fresh_credit(TraceCredit), set()),
    "credit behind a ban": Mutant(credit(ban=BanAtTheEnd()), set(), samplers=(Greedy(),)),
    "threshold": Mutant(thresholds(), set(), thresholds()),
    "schedule": Mutant(lambda: [FixedSchedule(2)], set()),
    "probes": Mutant(probing, set(), probes=probing),
    "cut": Mutant(cut(CutEarly), set()),
    "end of text": Mutant(eot(), set(), ending=eot()),
}


# Cases in which the defects above show, found among 600 drawn ones; the shortest come first. A
# defect that shows in none of them is searched for among those drawn now.
REMEMBERED = (
    Case(
        prompts=((2,), (0,)),
        lengths=(6, 6),
        fixed=({}, {}),
        seed=0,
        model="mixed",
        schedule="blocks",
        width=1,
        choice=0,
        order=(0, 1),
    ),
    Case(
        prompts=((3,), (3,), ()),
        lengths=(4, 3, 7),
        fixed=({}, {0: 0}, {0: 0, 5: 0}),
        seed=0,
        model="early end",
        schedule="blocks",
        width=4,
        choice=1,
        order=(1, 0, 2),
        cache="prefix",
    ),
    Case(
        prompts=((), (9, 4, 9), (1,)),
        lengths=(5, 4, 5),
        fixed=({}, {2: 7, 3: 7}, {3: 5, 1: 2}),
        seed=32,
        model="single",
        schedule="whole",
        width=4,
        choice=95,
        order=(1, 0, 2),
        cache="dual",
        sync_every=3,
        batching="static",
    ),
    Case(
        prompts=((), (), (4, 8)),
        lengths=(3, 6, 7),
        fixed=({3: 2, 2: 3}, {6: 7, 3: 6}, {0: 2, 3: 4}),
        seed=107,
        model="mixed",
        schedule="sliding",
        width=3,
        choice=63,
        order=(0, 1, 2),
        cache="delayed",
        sync_every=3,
        shifted=True,
    ),
    Case(
        prompts=((3, 8, 2), (5,), (8, 8, 0)),
        lengths=(2, 6, 7),
        fixed=({}, {}, {0: 6, 3: 7}),
        seed=559,
        model="ties",
        schedule="whole",
        width=2,
        choice=608,
        order=(2, 1, 0),
        cache="certainty",
        sync_every=3,
        batch=1,
    ),
)


@cache
def drawn() -> list[Case]:
    """Cases of every kind, drawn once for all defects."""
    found: list[Case] = []

    @settings(
        max_examples=number(20, 600),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases())
    def collect(case):
        found.append(case)

    collect()
    return found


def searched() -> Iterator[Case]:
    """Where a defect is looked for; of the drawn, first those with many rows and long ones."""
    yield from REMEMBERED
    yield from sorted(
        drawn(), key=lambda case: (len(case.lengths), sum(case.lengths)), reverse=True
    )


def some() -> list[Case]:
    """A case or a few for what must hold; the first drawn is the empty one."""
    return drawn()[1 : number(2, 8)]


def fails(
    suite: StrategyContract,
    name: str,
    tried: Iterable[Case],
    failures: type[Exception] | tuple[type[Exception], ...] = AssertionError,
) -> bool:
    """Whether a property of the contract fails in one of some cases."""
    check = getattr(StrategyContract, name).hypothesis.inner_test
    for case in tried:
        try:
            check(suite, case)
        except failures:
            return True
        except pytest.skip.Exception:
            pass
    return False


def caught(suite: Mutant) -> set[str]:
    """The properties that fail; those that should are searched for until they do.

    A crash is a failure of what a defect entails alone: what should catch it says what is wrong.
    """
    crashes = dict.fromkeys(suite.entailed, (AssertionError, RuntimeError))
    return {
        name
        for name in suite.properties
        if fails(
            suite,
            name,
            searched() if name in suite.caught_by else some(),
            crashes.get(name, AssertionError),
        )
    }


@pytest.mark.one_in(20)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_defect_is_caught_by_exactly_the_intended_property(name, monkeypatch):
    mutant = MUTANTS[name]
    for (place, attribute), wrong in mutant.replaced.items():
        monkeypatch.setattr(place, attribute, wrong)
    entailed = mutant.entailed if profile() == "thorough" else set()
    assert caught(mutant) - entailed == mutant.caught_by


@pytest.mark.parametrize("name", CONTROLS)
def test_the_part_as_it_should_be_passes(name):
    assert caught(CONTROLS[name]) == set()


def test_the_example_of_the_documentation_passes():
    page = Path(__file__).parents[2] / "docs" / "testing.md"
    example = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[0]
    names: dict = {}
    exec(compile(example, str(page), "exec"), names)
    suite = names["TestMyRule"]()
    collected = [name for name in PROPERTIES if getattr(suite, name) is not None]
    assert len(collected) == len(PROPERTIES) - 4
    assert not any(fails(suite, name, some()) for name in collected)


def test_every_property_catches_some_defect():
    assert set().union(*(mutant.caught_by for mutant in MUTANTS.values())) == set(PROPERTIES)
