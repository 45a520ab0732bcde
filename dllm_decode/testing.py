"""Tests that every decoding strategy must pass, for the strategies here and for anybody's own.

Subclass `StrategyContract`, say which strategies to test, and run pytest; see docs/testing.md.
Needs Hypothesis, which `pip install 'dllm_decode[test]'` brings.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dllm_decode.decoding.cache import (
    CachePolicy,
    CertaintyCache,
    DelayedCache,
    DualCache,
    NoCache,
    PeriodicCache,
    Plan,
    PrefixCache,
    VicinityCache,
    mask_of,
)
from dllm_decode.decoding.checks import check_composition
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.observer import Observer
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.sampling import Categorical, Greedy, Sampler
from dllm_decode.decoding.schedule import Blocks, Schedule, SlidingWindow, WholeCanvas
from dllm_decode.decoding.selection import best
from dllm_decode.decoding.strategy import Budget, Part, Revisions, Strategy
from dllm_decode.decoding.types import (
    Change,
    Decision,
    Memory,
    Request,
    Snapshot,
    StepView,
    Vocab,
)
from dllm_decode.errors import CapabilityError, PluginError
from dllm_decode.kernels.noise import Noise, fold, mix, unit_interval
from dllm_decode.models.toy import Shuffle, row_state

Option = TypeVar("Option")
VOCAB = Vocab(size=12, mask_id=11, eot_ids=(10,), pad_id=9, banned_ids=(9,))
FAR = 1e6


class ModelFailed(RuntimeError):
    """What `HashDenoiser` raises when it was asked to fail.

    Examples:
        >>> issubclass(ModelFailed, RuntimeError)
        True
    """


@dataclass
class HashDenoiser:
    """A pseudo-random model: logits depend on the row's own live tokens and nothing else.

        logit[column, v] = scale * Gumbel(hash(seed, live tokens, column, v)) + added[v]

    Rows of a batch therefore decode exactly as alone, or somebody mixed them up. A pass that is
    said to be complete attends to every column it is given, as a model without an attention mask
    would.

    Args:
        vocab: special token ids.
        seed: of the hash.
        scale: 1.5 gives confidences between 0.1 and 1, large values saturate them, tiny ones make
            everything equal.
        levels: round the noise to that many values, so that exact ties occur; None not to.
        added: logits added per token id, e.g. {mask_id: 1e6} predicts the mask everywhere.
        fail_at: the pass, counted from 0, that raises `ModelFailed`; None for none.
        patience: passes after which a decode counts as endless.
        dtype: of the logits.
        rows_per_pass: the batch size of every pass so far.
        device: the CPU; nothing else is served.
        max_length: longest canvas, None for no limit.
        shifted: the logits of a column are read at the column in front of it, as Dream's are.

    Examples:
        >>> from dllm_decode import Decoder, Request
        >>> from dllm_decode.strategies.fixed import TopK
        >>> model = HashDenoiser(seed=3)
        >>> Decoder(model, TopK(2)).decode(Request(((1, 2), (3,)), 4)).forwards
        (2, 2)
        >>> model.rows_per_pass
        [2, 2]
    """

    vocab: Vocab = VOCAB
    seed: int = 0
    scale: float = 1.5
    levels: int | None = None
    added: Mapping[int, float] = field(default_factory=dict)
    fail_at: int | None = None
    patience: int = 200
    dtype: torch.dtype = torch.float64
    rows_per_pass: list[int] = field(default_factory=list)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_length: int | None = None
    shifted: bool = False

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """Logits (B, W, V); see `dllm_decode.decoding.denoiser.Denoiser`."""
        return self.head(self.states(tokens, live, index, plan))

    @property
    def provides(self) -> frozenset[str]:
        """States are shown, the logits without `added`, and embeddings, one-hot."""
        return frozenset({"hidden", "embeddings"})

    @property
    def width(self) -> int:
        """Of the states: one number per id."""
        return self.vocab.size

    def states(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """What the head starts from, (B, W, V); see `dllm_decode.decoding.denoiser`."""
        passes = len(self.rows_per_pass)
        if passes == self.fail_at:
            raise ModelFailed(f"pass {passes} failed on purpose")
        assert passes < self.patience, f"the decode has not ended after {passes} forward passes"
        self.rows_per_pass.append(tokens.shape[0])
        if plan.extents is not None and live.is_cpu:
            columns = torch.arange(live.shape[1])
            begin, end = torch.tensor(plan.extents).unsqueeze(-1).unbind(1)
            outside = (columns < begin) | (columns >= end)
            assert len(begin) == len(live), "the plan is of other rows than the pass"
            assert not (live & outside).any(), "a row is live outside of the plan's extents"
        first = torch.where(live, torch.arange(tokens.shape[1]), tokens.shape[1]).amin(1)
        state = fold(self.state(tokens, live, plan)[:, None], index - first[:, None])
        draw = unit_interval(fold(state[..., None], torch.arange(self.vocab.size)))
        if self.levels is not None:
            draw = ((draw * self.levels).floor() + 0.5) / self.levels
        return -self.scale * (-draw.log()).log()

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of states: `added` on top."""
        logits = hidden.clone()
        for token, amount in self.added.items():
            logits[..., token] += amount
        return logits.to(self.dtype)

    def embed(self, tokens: Tensor) -> Tensor:
        """One-hot embeddings (B, L, V)."""
        return torch.nn.functional.one_hot(tokens, self.vocab.size).to(self.dtype)

    def sources(self, index: Tensor, live: Tensor) -> Tensor:
        """The columns at which the logits of index (B, W) are read, -1 for none."""
        return self._read_at(index, live)

    def _read_at(self, index: Tensor, live: Tensor) -> Tensor:
        """What `sources` should say; the model itself relies on this."""
        if not self.shifted:
            return index
        first = live.int().argmax(1, keepdim=True)
        return torch.where(index >= 0, torch.maximum(index - 1, first), -1)

    def state(self, tokens: Tensor, live: Tensor, plan: Plan) -> Tensor:
        """What the logits of a row depend on, (B,) int64: here a hash of its live tokens."""
        return row_state(tokens, torch.ones_like(live) if plan.complete else live, self.seed)


@dataclass(frozen=True)
class Pass:
    """What one forward pass did with the store.

    Attributes:
        computed: (B, L) bool, columns whose entry was computed and stored.
        attended: (B, L) bool, columns whose entry was read.
    """

    computed: Tensor
    attended: Tensor


@dataclass
class HashStore:
    """What a `StoringHashDenoiser` keeps of each column.

    Attributes:
        capacity: Most rows.
        columns: Columns of a row, L.
        stored: (B, L) int64, a number for each column, -1 where nothing was stored.

    Examples:
        >>> store = HashStore(capacity=2, columns=4)
        >>> store.stored.shape
        torch.Size([0, 4])
    """

    capacity: int
    columns: int
    stored: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.stored = torch.full((0, self.columns), -1)

    def take(self, rows: Sequence[int]) -> None:
        """Keep the given rows, in that order."""
        self.stored = self.stored[list(rows)]

    def join(self, count: int) -> None:
        """Append rows with nothing of use in them."""
        self.stored = torch.cat([self.stored, torch.full((count, self.columns), -1)])
        assert self.stored.shape[0] <= self.capacity, "more rows than there is room for"


@dataclass
class StoringHashDenoiser(HashDenoiser):
    """A pseudo-random model that stores a number per column, as a transformer keys and values.

    What is stored of a column depends on its token and on all columns attended to when it was
    computed, and the logits on what is stored of all columns attended to. So it matters what a
    cache policy recomputes, and any number that is stale, dropped or of another row is noticed.
    Logits that are read at a column which the pass does not compute end the decode.

    Attributes:
        passes: what every pass with a store has computed and attended to.

    Examples:
        >>> from dllm_decode.decoding.cache import DualCache
        >>> from dllm_decode.strategies.fixed import TopK
        >>> model = StoringHashDenoiser()
        >>> decoder = Decoder(model, TopK(1), cache=DualCache())
        >>> _ = decoder.decode(Request(((3, 4),), max_new_tokens=3))
        >>> [int(one.computed.sum()) for one in model.passes]
        [5, 3, 3]
    """

    passes: list[Pass] = field(default_factory=list)

    def states(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """What the head starts from, (B, W, V); see `dllm_decode.decoding.denoiser`."""
        if plan.columns is not None:
            computed = mask_of(plan.columns, tokens.shape[1])
            for columns, run in zip(plan.columns, (plan.runs or ()) * len(live), strict=False):
                told = list(range(run.start, run.stop))
                assert columns.tolist() == told, "the plan's runs are not its columns"
            source = self._read_at(index, live)
            missing = (source >= 0) & ~computed.gather(1, source.clamp(min=0))
            assert not bool(missing.any()), (
                f"logits are read at columns {source[missing].tolist()}, which the pass leaves out"
            )
        return super().states(tokens, live, index, plan)

    def allocate(self, rows: int, columns: int) -> HashStore:
        """A store without rows; see `dllm_decode.decoding.denoiser.StoringDenoiser`."""
        return HashStore(rows, columns)

    def state(self, tokens: Tensor, live: Tensor, plan: Plan) -> Tensor:
        """A hash of what is stored of the valid columns, (B,) int64."""
        columns = torch.arange(tokens.shape[1])
        first = torch.where(live, columns, tokens.shape[1]).amin(1, keepdim=True)
        own = fold(fold(mix(torch.tensor(self.seed)), columns - first), tokens)
        if plan.columns is None:
            return (fold(own, (own * live).sum(1, keepdim=True)) * live).sum(1)
        assert isinstance(plan.store, HashStore) and plan.valid is not None
        width = tokens.shape[1]
        stored, valid = plan.store.stored, plan.valid[:, :width] & live
        valid = torch.ones_like(valid) if plan.complete else valid
        anew = mask_of(plan.columns, width)
        self.passes.append(Pass(anew, valid))
        around = torch.where(anew, own, stored[:, :width]) * valid
        now = torch.where(anew, fold(own, around.sum(1, keepdim=True)), stored[:, :width])
        stored[:, :width] = now
        return (now * valid).sum(1)


def columns_computed(cache: CachePolicy) -> list[int]:
    """How many columns a policy recomputes in each pass of a small decode.

    The decode has a prompt of 4 columns and an answer of 4 in blocks of 2, and commits one token
    per step, the leftmost of the block first.

    Args:
        cache: The policy.

    Examples:
        >>> from dllm_decode.decoding.cache import DualCache
        >>> columns_computed(DualCache())  # all on entering a block, then the block
        [8, 2, 8, 2]
    """

    class Leftmost(Strategy):
        def decide(self, view: StepView, memory: Memory | None) -> Decision:
            columns = torch.arange(view.open.shape[1], 0, -1, dtype=torch.float64)
            return Decision(best(columns.expand_as(view.open), view.open))

    model = StoringHashDenoiser()
    request = Request(((3, 4, 5, 6),), max_new_tokens=4)
    Decoder(model, Leftmost(), schedule=Blocks(2), cache=cache).decode(request)
    return [int(one.computed.sum()) for one in model.passes]


MODELS: Mapping[str, Mapping[str, Any]] = {
    "mixed": {},
    "ties": {"levels": 2},
    "saturated": {"scale": 1e4},
    "flat": {"scale": 1e-6},
    "early end": {"added": {VOCAB.eot_ids[0]: 3.0}},
    "single": {"dtype": torch.float32},
}


# Small settings, so that short canvases have steps of every kind.
CACHES: Mapping[str, CachePolicy] = {
    "none": NoCache(),
    "prefix": PrefixCache(),
    "dual": DualCache(),
    "vicinity": VicinityCache(before=1, after=1, warmup=1),
    "periodic": PeriodicCache(every=2),
    "delayed": DelayedCache(every=3),
    "certainty": CertaintyCache(top=2, sigma=2.0, every=3),
}


@dataclass(frozen=True)
class Case:
    """A drawn decode: sizes and choices as plain numbers, so that a failing one can be read.

    Attributes:
        prompts: Token ids of each row.
        lengths: Generated columns of each row.
        fixed: Tokens given in advance, per row by offset.
        seed: Of the first row.
        model: Kind of model, see `StrategyContract.model`.
        schedule: `blocks`, `sliding` or another kind, see `StrategyContract.schedule`.
        width: Columns of a window.
        choice: Number that `pick` chooses by.
        order: The rows in another order.
        cache: Name of a cache policy.
        sync_every: Steps between two syncs.
        shifted: Whether the logits at a column predict the next one.
        batch: Rows decoded together.
        batching: `continuous` or `static`.

    Examples:
        >>> case = Case(((3, 4),), (5,), ({},), 0, "hash", "whole", 1, choice=7, order=(0,))
        >>> case.pick(["a", "b", "c"])
        'b'
    """

    prompts: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    fixed: tuple[dict[int, int], ...]
    seed: int
    model: str
    schedule: str
    width: int
    choice: int
    order: tuple[int, ...]
    cache: str = "none"
    sync_every: int = 1
    shifted: bool = False
    batch: int = 2
    batching: str = "continuous"

    def pick(self, options: Sequence[Option]) -> Option:
        """One of several options, the same one each time for lists of the same length."""
        return options[self.choice % len(options)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Cases of one to three rows with short canvases."""
    rows = draw(st.integers(1, 3))

    def each_row(values: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(values) for _ in range(rows))

    token = st.integers(0, VOCAB.size - 1)
    lengths = each_row(st.integers(1, 7))
    generated = st.integers(0, VOCAB.pad_id - 1 if VOCAB.pad_id else 0)
    return Case(
        prompts=each_row(st.lists(token, max_size=3).map(tuple)),
        lengths=lengths,
        fixed=each_row(st.dictionaries(st.integers(0, 6), generated, max_size=2)),
        seed=draw(st.integers(0, 999)),
        model=draw(st.sampled_from(sorted(MODELS))),
        schedule=draw(st.sampled_from(["blocks", "sliding", "whole"])),
        width=draw(st.integers(1, 4)),
        choice=draw(st.integers(0, 999)),
        order=tuple(draw(st.permutations(range(rows)))),
        cache=draw(st.sampled_from(list(CACHES))),
        sync_every=draw(st.sampled_from([1, 2, 3, 7])),
        shifted=draw(st.booleans()),
        batch=draw(st.sampled_from([2, 1])),
        batching=draw(st.sampled_from(["continuous", "static"])),
    )


class Recorder(Observer):
    """Keeps the canvas before and after every step, and the changes between.

    Args:
        model: whose passes are counted as well, None for none.

    Examples:
        >>> from dllm_decode.strategies.fixed import TopK
        >>> recorder = Recorder()
        >>> decoder = Decoder(HashDenoiser(), TopK(1), observers=(recorder,))
        >>> _ = decoder.decode(Request(((3, 4),), max_new_tokens=3))
        >>> len(recorder.changes)
        3
    """

    def __init__(self, model: HashDenoiser | None = None) -> None:
        self.model = model
        self.passes: list[int] = []  # that the model has done by the end of each step
        self.request: Request | None = None
        self.snapshots: list[Snapshot] = []
        self.changes: list[Change] = []

    def start(self, request: Request, snapshot: Snapshot) -> None:
        """Keep the canvas before the first step."""
        self.request = request
        self.snapshots.append(snapshot)

    def step(self, change: Change, snapshot: Snapshot) -> None:
        """Keep the change, and the canvas behind it."""
        self.changes.append(change)
        self.snapshots.append(snapshot)
        self.passes.append(0 if self.model is None else len(self.model.rows_per_pass))

    def steps_of(self, row: int, result: Result) -> int:
        """Steps in which a row took part; passes behind its end, before the sync, do not count."""
        took_part = [
            change.live[change.rows == row] for change in self.changes if change.live is not None
        ]
        return sum(int(live.sum()) for live in took_part)


@dataclass(frozen=True)
class _Eager(Sampler):
    """Computes what plugins read most before they are asked, so that a write to it is noticed."""

    inner: Sampler

    @property
    def reshapes(self) -> bool:
        return self.inner.reshapes

    def predict(self, logits: Tensor, banned: Tensor, noise: Noise) -> Prediction:
        pred = self.inner.predict(logits, banned, noise)
        _ = pred.token, pred.confidence
        return pred


@dataclass(frozen=True)
class _Wrapped(Strategy):
    """Another strategy, watched."""

    inner: Strategy

    revocable = property(lambda self: self.inner.revocable)
    revises = property(lambda self: self.inner.revises)
    progress = property(lambda self: self.inner.progress)

    def parts(self) -> Iterator[tuple[str, Part]]:
        return self.inner.parts()

    def begin(self, request: Request, snapshot: Snapshot) -> Memory | None:
        return self.inner.begin(request, snapshot)

    def decide(self, view: StepView, memory: Any) -> Decision:
        return self.inner.decide(view, memory)

    def horizon(self, snapshot: Snapshot, view: StepView, change: Change, memory: Any) -> Tensor:
        return self.inner.horizon(snapshot, view, change, memory)

    def lingers(
        self, snapshot: Snapshot, view: StepView, change: Change, memory: Any
    ) -> Tensor | None:
        return self.inner.lingers(snapshot, view, change, memory)


@dataclass(frozen=True)
class _ForgetsCarry(_Wrapped):
    """Another strategy, but for what it would carry into the next step."""

    def decide(self, view: StepView, memory: Any) -> Decision:
        return replace(self.inner.decide(view, memory), carry=None)


@dataclass(frozen=True)
class _Overheard(_Wrapped):
    """Another strategy, with a count of the edits and re-masks that it asks for."""

    asked: list[int] = field(default_factory=list)

    def decide(self, view: StepView, memory: Any) -> Decision:
        decision = self.inner.decide(view, memory)
        tokens = view.pred.token if decision.tokens is None else decision.tokens
        edits = decision.commit & view.settled & (tokens != view.tokens)
        remasks = torch.zeros_like(edits) if decision.remask is None else decision.remask
        self.asked.append(int(((edits | remasks) & view.live[:, None]).sum()))
        return decision


def replay(request: Request, vocab: Vocab, trace: Sequence[Change]) -> list[list[int]]:
    """The sequences that follow from a request and the changes of its decode, and nothing else.

    Args:
        request: What was decoded.
        vocab: Special ids of the model.
        trace: All changes, in order.
    """
    rows = [[vocab.mask_id] * length for length in request.lengths]
    horizons = list(request.lengths)
    for row, given_tokens in enumerate(request.fixed or ()):
        for offset, token in (given_tokens or {}).items():
            rows[row][offset] = token
    for change in trace:
        for place, row in enumerate(change.rows.tolist()):
            horizons[row] = int(change.horizon[place])
            for slot, column in enumerate(change.index[place].tolist()):
                if change.remask[place, slot]:
                    rows[row][column] = vocab.mask_id
                if change.written[place, slot]:
                    rows[row][column] = int(change.tokens[place, slot])
    return [tokens[:horizon] for tokens, horizon in zip(rows, horizons, strict=True)]


def row_of(result: Result, row: int) -> tuple[Any, ...]:
    """What a row got: tokens, counts, finish reason, and the step of each token.

    Args:
        result: Of a decode.
        row: Of its request.
    """
    counts = (result.probes, result.passes, result.edits, result.remasks, result.not_granted)
    return (
        result.sequences[row],
        result.forwards[row],
        result.finish_reasons[row],
        result.step_of[row],
        *(count[row] for count in counts),
    )


def _plane(index: Tensor, slots: Tensor | None, snapshot: Snapshot) -> Tensor:
    """Slots (B, W) of generated columns as a plane (B, L)."""
    if slots is None:
        return torch.zeros_like(snapshot.decided)
    return mask_of(torch.where(slots, index + snapshot.start, -1), snapshot.tokens.shape[1])


def _offered(options: Sequence[Option], without: str) -> Sequence[Option]:
    """What a suite has for a property; the property is skipped where that is nothing."""
    if not options:
        pytest.skip(without)
    return options


def _property(check: Callable[[Any, Case], None]) -> Callable[..., None]:
    """A check of one case as a Hypothesis test that any number of suites can inherit.

    An example decodes up to four batches, so a fifth of the profile's examples are drawn. The
    global generator starts each example in the same state, so that a counterexample of a strategy
    that draws from it can be replayed and is reported as what it is.
    """

    @functools.wraps(check)
    def reproducible(self: Any, case: Case) -> None:  # Hypothesis passes both by the check's names
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            check(self, case)

    sized = settings(
        max_examples=max(1, settings().max_examples // 5),
        deadline=None,
        suppress_health_check=[
            HealthCheck.differing_executors,
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
        ],
    )
    test: Callable[..., None] = sized(given(case=cases())(reproducible))
    return test


class StrategyContract:
    """What holds for every strategy; subclass it, override `strategies`, and run pytest.

    Override what applies: `loose_to_strict` for rules with a threshold, `with_weight_zero` for
    transforms with a weight, `ending_at_eot` for strategies that stop behind the first end of
    text, `probing` for strategies that ask for further forward passes.

    Attributes:
        samplers: the samplers that are drawn from; add your own.

    Examples:
        >>> from dllm_decode.strategies.fixed import TopK
        >>> class TestTwoAtATime(StrategyContract):
        ...     def strategies(self):
        ...         return [TopK(2)]
    """

    _properties_of: ClassVar[Mapping[str, Sequence[str]]] = {
        "loose_to_strict": (
            "test_a_stricter_threshold_commits_no_more_in_the_first_step",
            "test_the_strictest_threshold_is_sequential_where_nothing_is_certain",
        ),
        "with_weight_zero": ("test_weight_zero_equals_absent",),
        "ending_at_eot": ("test_no_work_is_done_behind_a_committed_end_of_text",),
        "probing": (
            "test_no_probe_leaves_its_keys_and_values_behind",
            "test_a_carried_prediction_is_that_of_a_pass",
        ),
    }

    samplers: Sequence[Sampler] = (
        Greedy(),
        Categorical(temperature=1.0),
        Categorical(temperature=0.7, top_p=0.9, confidence_from="sampled"),
    )

    def __init_subclass__(cls) -> None:
        """Properties of hooks that a suite does not override are not collected."""
        super().__init_subclass__()
        for hook, properties in cls._properties_of.items():
            if getattr(cls, hook) is getattr(StrategyContract, hook):
                for name in properties:
                    setattr(cls, name, None)

    def strategies(self) -> Sequence[Strategy]:
        """The strategies under test; new objects at each call, always in the same order."""
        raise TypeError(f"{type(self).__name__} must override strategies()")

    def loose_to_strict(self) -> Sequence[Strategy]:
        """One rule at several thresholds; the last accepts no confidence of 1/2 or less."""
        return ()

    def with_weight_zero(self) -> Sequence[tuple[Strategy, Strategy]]:
        """Pairs: a strategy with a part whose weight is 0, and the same without that part."""
        return ()

    def ending_at_eot(self) -> Sequence[Strategy]:
        """Strategies that end a row behind a committed end of text with nothing open before it."""
        return ()

    def probing(self) -> Sequence[Strategy]:
        """Strategies that ask for further forward passes (`view.probe`)."""
        return ()

    # How a case becomes a decode.

    def _strategy(self, case: Case) -> Strategy:
        """A new object of the strategy that the case chose."""
        return case.pick(self.strategies())

    def _width(self, strategy: Strategy) -> int | None:
        """The only block length that the strategy works with."""
        widths = (part.window_width for _, part in strategy.parts())
        return next((width for width in widths if width is not None), None)

    def request(self, case: Case, strategy: Strategy) -> Request:
        """The request of a case; rows are at least as long as the strategy's blocks."""
        least = (self._width(strategy) or 1) - 1
        lengths = tuple(least + length for length in case.lengths)
        fixed = tuple(
            {offset: token for offset, token in tokens.items() if offset < length}
            for tokens, length in zip(case.fixed, lengths, strict=True)
        )
        reference = tuple(
            tuple((case.seed + 3 * column) % min(VOCAB.never_generated) for column in range(length))
            for length in lengths
        )
        seeds = tuple(case.seed + row for row in range(len(lengths)))
        return Request(case.prompts, lengths, seeds, fixed, reference)

    def schedule(self, case: Case, strategy: Strategy, request: Request) -> Schedule:
        """The schedule of a case; blocks never longer than the shortest row."""
        width = self._width(strategy)
        if width is not None:
            return Blocks(width)
        if case.schedule == "whole":
            return WholeCanvas()
        if case.schedule == "sliding":
            return SlidingWindow(case.width)
        return Blocks(min(case.width, *request.lengths))

    def cache(self, case: Case, strategy: Strategy, schedule: Schedule) -> CachePolicy:
        """The cache policy of a case, or none where it does not work with the strategy."""
        policy = CACHES[case.cache]
        try:
            check_composition(StoringHashDenoiser(), strategy, schedule, policy)
        except CapabilityError:
            return NoCache()
        return policy

    def _with_shared_cache(
        self, case: Case, request: Request, strategies: Sequence[Strategy]
    ) -> Case:
        """The case without its cache policy if that does not work with all of some strategies."""
        wanted = CACHES[case.cache]
        found = [self.cache(case, s, self.schedule(case, s, request)) for s in strategies]
        return case if all(policy is wanted for policy in found) else replace(case, cache="none")

    def model(self, case: Case, **changed: Any) -> HashDenoiser:
        """The model of a case, which gives the ids that may not be generated no chance."""
        given = {"seed": case.seed, "shifted": case.shifted, **MODELS[case.model]}
        arguments = {**given, **changed}
        added = dict.fromkeys(VOCAB.never_generated, -FAR)
        kind = HashDenoiser if case.cache == "none" else StoringHashDenoiser
        return kind(**{**arguments, "added": {**added, **arguments.get("added", {})}})

    def decoder(
        self, case: Case, strategy: Strategy, request: Request, model: HashDenoiser | None = None
    ) -> Decoder:
        """The parts of a case around a strategy."""
        schedule = self.schedule(case, strategy, request)
        return Decoder(
            self.model(case) if model is None else model,
            strategy,
            schedule,
            self.cache(case, strategy, schedule),
            sampler=case.pick(self.samplers),
            record=True,
            sync_every=case.sync_every,
        )

    def decode(
        self, case: Case, strategy: Strategy, request: Request, model: HashDenoiser | None = None
    ) -> tuple[Result, Recorder, HashDenoiser]:
        """One decode, with what was recorded of it and the model that was asked."""
        model = self.model(case) if model is None else model
        recorder = Recorder(model)
        decoder = replace(self.decoder(case, strategy, request, model), observers=(recorder,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return decoder.decode(request), recorder, model

    def run(self, case: Case) -> tuple[Result, Recorder, HashDenoiser]:
        """The decode that a case describes."""
        strategy = self._strategy(case)
        return self.decode(case, strategy, self.request(case, strategy))

    # The properties.

    @_property
    def test_it_ends_in_time_with_every_column_decided(self, case: Case) -> None:
        """At most one step per column (or the budget, and one closing step per window).

        Strategies that revise take at most 1 + k steps per column, those included that linger.
        """
        strategy = self._strategy(case)
        request = self.request(case, strategy)
        result, recorder, _ = self.decode(case, strategy, request)
        progress = strategy.progress
        for row, length in enumerate(request.lengths):
            steps = recorder.steps_of(row, result)
            limit = length + (progress.steps if isinstance(progress, Budget) else 0)
            limit *= 1 + (progress.per_column if isinstance(progress, Revisions) else 0)
            assert steps <= limit, f"row {row} took {steps} steps, allowed are {limit}"
            sequence = result.sequences[row]
            assert VOCAB.mask_id not in sequence, f"row {row} ends with a mask: {sequence}"
            assert result.undecided[row] == 0, f"row {row} has undecided columns"
            reason = result.finish_reasons[row]
            whole = len(sequence) == length
            assert whole or reason == "eot", f"row {row} is cut off, but says {reason}"

    @_property
    def test_prompt_and_fixed_tokens_stay_as_they_are(self, case: Case) -> None:
        """Neither prompts nor fixed tokens are ever written to, whatever ids they hold."""
        strategy = self._strategy(case)
        request = self.request(case, strategy)
        result, recorder, _ = self.decode(case, strategy, request)
        start = recorder.snapshots[0]
        expected = torch.full_like(start.tokens, -1)
        for row, prompt in enumerate(request.prompts):
            expected[row, start.start - len(prompt) : start.start] = torch.tensor(prompt)
            for offset, token in ((request.fixed or ())[row] or {}).items():
                expected[row, start.start + offset] = token
                cut = offset >= len(result.sequences[row])
                assert cut or result.step_of[row][offset] == -1, "a fixed token was committed"
        rows = [torch.arange(request.rows), *(change.rows for change in recorder.changes)]
        for kept, snapshot in zip(rows, recorder.snapshots, strict=True):
            given_tokens = expected[kept] >= 0
            same = (snapshot.tokens == expected[kept]) & snapshot.decided
            assert bool((same | ~given_tokens).all()), "a prompt or fixed token was changed"

    @_property
    def test_what_is_decided_stays_unless_the_strategy_may_revoke(self, case: Case) -> None:
        """Only `revocable` strategies open a decided column again, and only `revises` rewrites one.

        Each rewrite is an edit of its step's change, and under `Revisions(k)` a column is opened
        again or written over at most k times.
        """
        strategy = self._strategy(case)
        _, recorder, _ = self.run(case)
        before = recorder.snapshots[0]
        tokens, decided = before.tokens.clone(), before.decided.clone()
        revised = torch.zeros_like(tokens)
        for change, snapshot in zip(recorder.changes, recorder.snapshots[1:], strict=True):
            rows = change.rows
            reopened = decided[rows] & ~snapshot.decided
            rewritten = decided[rows] & snapshot.decided & (snapshot.tokens != tokens[rows])
            assert strategy.revocable or not bool(reopened.any()), (
                "a decided column was opened again"
            )
            assert strategy.revises or not bool(rewritten.any()), (
                "a decided token was replaced without being opened"
            )
            edits = _plane(change.index, change.edit, snapshot)
            assert torch.equal(rewritten, edits), "what was written over is not what was edited"
            revised[rows] += reopened | rewritten
            tokens[rows], decided[rows] = snapshot.tokens, snapshot.decided
        if isinstance(strategy.progress, Revisions):
            most = int(revised.max())
            assert most <= strategy.progress.per_column, f"a column was revised {most} times"

    @_property
    def test_a_row_decodes_alike_alone_and_in_any_batch(self, case: Case) -> None:
        """Neighbours, their lengths and the order of rows change nothing, forwards included."""
        request = self.request(case, self._strategy(case))
        width = min(case.width, *request.lengths)
        case = replace(case, width=width)
        together, _, _ = self.decode(case, self._strategy(case), request)
        mixed, _, _ = self.decode(case, self._strategy(case), request.take(case.order))
        alone, _, _ = self.decode(case, self._strategy(case), request.take(case.order[:1]))
        row = case.order[0]
        assert row_of(alone, 0) == row_of(together, row), f"row {row} decodes differently alone"
        for place, row in enumerate(case.order):
            same = row_of(mixed, place) == row_of(together, row)
            assert same, f"row {row} decodes differently at place {place} of the batch"

    @_property
    def test_a_row_decodes_alike_alone_and_in_a_running_batch(self, case: Case) -> None:
        """Rows join, finish, leave and are replaced in any order, and get what they get alone."""
        request = self.request(case, self._strategy(case))
        case = replace(case, width=min(case.width, *request.lengths))
        decoder = self.decoder(case, self._strategy(case), request)
        engine = Engine(decoder, case.batch, batching=case.batching)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            running = engine.decode(request.take(case.order))
        assert not any(running.errors), f"decoding failed in a running batch: {running.errors}"
        for place, row in enumerate(case.order):
            alone, _, _ = self.decode(case, self._strategy(case), request.take([row]))
            same = row_of(running, place) == row_of(alone, 0)
            assert same, f"row {row} decodes differently as arrival {place} of a running batch"

    @_property
    def test_nothing_leaks_from_one_request_to_the_next(self, case: Case) -> None:
        """A used strategy decodes as a new one, also after an early stop and after an exception."""
        new, used = self._strategy(case), self._strategy(case)
        request = self.request(case, new)
        expected, _, _ = self.decode(case, new, request)
        end = {VOCAB.eot_ids[0]: 2.0}
        self.decode(case, used, request, self.model(case, seed=case.seed + 1, added=end))
        with suppress(ModelFailed):
            failing = self.model(case, seed=case.seed + 2, fail_at=1)
            self.decode(case, used, request, failing)
        got, _, _ = self.decode(case, used, request)
        for row in range(request.rows):
            same = row_of(got, row) == row_of(expected, row)
            assert same, f"row {row} decodes differently after other requests"

    @_property
    def test_the_trace_replays_to_the_result(self, case: Case) -> None:
        """The changes alone give the delivered tokens and the step of each."""
        strategy = self._strategy(case)
        request = self.request(case, strategy)
        result, _, _ = self.decode(case, strategy, request)
        replayed = replay(request, VOCAB, result.trace)
        assert [list(s) for s in result.sequences] == replayed, "the trace gives other tokens"
        done = list(result.forwards)  # in steps of the rule, of which a pass may stand for several
        for change in result.trace:
            several = [1] * len(change.rows) if change.steps is None else change.steps.tolist()
            for place, row in enumerate(change.rows.tolist()):
                step = int(change.step[place])
                wrote = bool(change.touched[place].any())
                assert not wrote or step < done[row], f"row {row}: step {step} was not counted"
                done[row] += several[place] - 1

    @_property
    def test_the_same_seed_gives_the_same_result(self, case: Case) -> None:
        """All randomness comes from the seeds of the request."""
        first, _, _ = self.run(case)
        torch.rand(1)
        second, _, _ = self.run(case)
        same = [row_of(first, row) == row_of(second, row) for row in range(len(first.sequences))]
        assert all(same), f"rows {same} differ between two decodes with the same seeds"

    @_property
    def test_the_time_between_two_syncs_changes_nothing(self, case: Case) -> None:
        """Rows get the same, however many steps the host lets pass between two syncs."""
        strategy = self._strategy(case)
        request = self.request(case, strategy)
        every, _, _ = self.decode(replace(case, sync_every=1), strategy, request)
        now_and_then, _, _ = self.decode(
            replace(case, sync_every=max(2, case.sync_every)), self._strategy(case), request
        )
        for row in range(request.rows):
            same = row_of(now_and_then, row) == row_of(every, row)
            assert same, f"row {row} decodes differently with fewer syncs"

    @_property
    def test_nothing_that_is_handed_over_is_written_to(self, case: Case) -> None:
        """Views, predictions, canvases and changes stay as they are; only memories are written."""
        strategy = self._strategy(case)
        request = self.request(case, strategy)
        decoder = self.decoder(case, strategy, request)
        guarded = replace(decoder, sampler=_Eager(decoder.sampler), debug=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                guarded.decode(request)
            except PluginError as error:
                raise AssertionError(str(error)) from error

    @_property
    def test_no_probe_leaves_its_keys_and_values_behind(self, case: Case) -> None:
        """What a probe has stored is computed again before a later step attends to it."""
        strategy = case.pick(_offered(self.probing(), "no strategy that probes"))
        case = case if case.cache != "none" else replace(case, cache="dual")
        request = self.request(case, strategy)
        _, recorder, model = self.decode(case, strategy, request)
        if not isinstance(model, StoringHashDenoiser) or not model.passes:
            return  # a cache policy that the strategy does not work with
        probed: dict[int, set[int]] = {row: set() for row in range(request.rows)}
        begin = 0
        for change, end in zip(recorder.changes, recorder.passes, strict=True):
            own, *probes = model.passes[begin:end]
            begin = end
            for place, row in enumerate(change.rows.tolist()):
                probed[row] -= set(own.computed[place].nonzero()[:, 0].tolist())
                left = probed[row] & set(own.attended[place].nonzero()[:, 0].tolist())
                assert not left, f"row {row} attends to columns {sorted(left)} of a probe"
                for probe in probes:
                    probed[row] |= set(probe.computed[place].nonzero()[:, 0].tolist())

    @_property
    def test_a_carried_prediction_is_that_of_a_pass(self, case: Case) -> None:
        """A step that begins with what a probe has said goes on as if it had asked again."""
        strategy = case.pick(_offered(self.probing(), "no strategy that probes"))
        request = self.request(case, strategy)
        case = replace(case, cache="none")
        carrying, recorder, _ = self.decode(case, strategy, request)
        asking, _, _ = self.decode(case, _ForgetsCarry(case.pick(self.probing())), request)
        for row in range(request.rows):
            same = carrying.sequences[row] == asking.sequences[row]
            assert same, f"row {row} decodes differently when every step asks the model"
            saved = sum(
                int(change.carried[change.rows == row].sum())
                for change in recorder.changes
                if change.carried is not None
            )
            less = asking.forwards[row] - carrying.forwards[row]
            assert less == saved, f"row {row} saved {less} passes, {saved} were carried"

    @_property
    def test_mask_and_control_ids_play_no_part(self, case: Case) -> None:
        """They are never emitted, and their logits change nothing, however large they are."""
        strategy = self._strategy(case)
        request = self.request(case, strategy)
        without, _, _ = self.decode(case, strategy, request)
        pushed = self.model(case, added=dict.fromkeys(VOCAB.never_generated, FAR))
        if case.model == "early end":
            pushed.added = {**MODELS["early end"]["added"], **pushed.added}
        result, _, _ = self.decode(case, self._strategy(case), request, pushed)
        for row, sequence in enumerate(result.sequences):
            emitted = set(sequence) & set(VOCAB.never_generated)
            assert not emitted, f"row {row} contains {emitted}, which is never generated"
            same = row_of(result, row) == row_of(without, row)
            assert same, f"row {row} depends on logits of ids that are never generated"

    @_property
    def test_every_forward_pass_is_counted(self, case: Case) -> None:
        """Rows times passes of the model are the forwards of the result, probes included.

        So are edits, re-masks and those that were not granted; with a key/value store, rows beside
        those that probe are computed as well, and counted apart.
        """
        strategy = _Overheard(self._strategy(case))
        request = self.request(case, strategy)
        result, recorder, model = self.decode(replace(case, sync_every=1), strategy, request)
        spent = sum(model.rows_per_pass)
        told = sum(result.forwards) + sum(result.surplus_forwards)
        assert spent == told, f"the model computed {spent} rows, the result says {told}"
        changes = recorder.changes
        for name, planes in (
            ("forwards", [change.forwards for change in changes]),
            ("probes", [change.probes for change in changes]),
            ("edits", [change.edit for change in changes]),
            ("remasks", [change.remask for change in changes]),
            ("not_granted", [change.not_granted for change in changes]),
        ):
            done = sum(int(torch.as_tensor(p).sum()) for p in planes if p is not None)
            counted = sum(getattr(result, name))
            assert counted == done, f"the result has {counted} {name}, the changes have {done}"
        revised = sum(result.edits) + sum(result.remasks) + sum(result.not_granted)
        asked = sum(strategy.asked)
        assert revised == asked, f"{asked} revisions were asked for, {revised} are accounted for"

    @_property
    def test_weight_zero_equals_absent(self, case: Case) -> None:
        """A part with weight 0 changes nothing."""
        zero, absent = case.pick(_offered(self.with_weight_zero(), "no part with a weight"))
        request = self.request(case, zero)
        case = self._with_shared_cache(case, request, (zero, absent))
        got, _, _ = self.decode(case, zero, request)
        expected, _, _ = self.decode(case, absent, request)
        for row in range(request.rows):
            same = row_of(got, row) == row_of(expected, row)
            assert same, f"row {row} decodes differently with the part at weight 0"

    @_property
    def test_a_stricter_threshold_commits_no_more_in_the_first_step(self, case: Case) -> None:
        """From loose to strict the first step's commits only shrink."""
        rules = _offered(self.loose_to_strict(), "no threshold")
        request = self.request(case, rules[0])
        first = [self.decode(case, rule, request)[0].trace[:1] for rule in rules]
        for looser, stricter in pairwise(first):
            if looser:
                more = stricter[0].commit & ~looser[0].commit
                assert not bool(more.any()), "a stricter threshold committed another column"

    @_property
    def test_the_strictest_threshold_is_sequential_where_nothing_is_certain(
        self, case: Case
    ) -> None:
        """A shuffle of items: one forced commit per step, however many columns tie."""
        rules = _offered(self.loose_to_strict(), "no threshold")
        if self._width(rules[-1]) is not None:
            pytest.skip("no threshold")
        world = Shuffle(n=2 + case.width, noise=0.0 if case.model == "ties" else 1e-6)
        prompt = tuple(world.tokenizer.encode(world.sample_prompts(1, case.seed)[0]))
        rows = len(case.lengths)
        decoder = Decoder(world, rules[-1], WholeCanvas(), record=True)
        result = decoder.decode(Request((prompt,) * rows, world.n))
        for row, sequence in enumerate(result.sequences):
            steps = result.step_of[row]
            assert len(set(steps)) == world.n, f"row {row} decided several columns at once: {steps}"
            assert sorted(sequence) == sorted(prompt[:-1]), f"row {row} is no shuffle of its items"

    @_property
    def test_no_work_is_done_behind_a_committed_end_of_text(self, case: Case) -> None:
        """The row ends with the step that decides its first end of text and all in front of it."""
        strategy = case.pick(_offered(self.ending_at_eot(), "no rule that ends a row there"))
        if isinstance(strategy.progress, Revisions):
            pytest.skip("what may still be revised ends nothing")
        request = replace(self.request(case, strategy), fixed=None)
        model = self.model(case, added={VOCAB.eot_ids[0]: 2.0 + case.choice % 3})
        result, recorder, _ = self.decode(case, strategy, request, model)
        for row, sequence in enumerate(result.sequences):
            ends = [place for place, token in enumerate(sequence) if token in VOCAB.eot_ids]
            assert all(place == len(sequence) - 1 for place in ends), (
                f"row {row} goes on behind its end of text: {sequence}"
            )
            steps = recorder.steps_of(row, result)
            needed = 1 + max(result.step_of[row])
            assert steps == needed, f"row {row} took {steps} steps for what {needed} had decided"
