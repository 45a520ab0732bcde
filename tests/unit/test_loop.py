import gc
import math
import warnings
import weakref
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode.decoding.cache import BlockExact, CertaintyCache, DualCache, Plan
from dllm_decode.decoding.denoiser import Capabilities
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.observer import Interrupted, Observer
from dllm_decode.decoding.sampling import Categorical, Greedy
from dllm_decode.decoding.schedule import Blocks, SlidingWindow, WholeCanvas
from dllm_decode.decoding.selection import best
from dllm_decode.decoding.strategy import Budget, Pipeline, StopRule, Strategy
from dllm_decode.decoding.types import Decision, Request
from dllm_decode.errors import CapabilityError, ConfigError, ModelOutputError
from dllm_decode.strategies.fixed import TopK
from dllm_decode.testing import VOCAB, HashDenoiser, StoringHashDenoiser, replay, row_of

EOT = VOCAB.eot_ids[0]
QUIET = dict.fromkeys(VOCAB.never_generated, -1e6)


@dataclass(frozen=True)
class Take(Strategy):
    """Commits the k most confident open positions and keeps the views it saw."""

    k: int = 1
    seen: list = field(default_factory=list)

    def decide(self, view, memory):
        self.seen.append(view)
        return Decision(best(view.pred.confidence, view.open, self.k))


@dataclass(frozen=True)
class Wait(Strategy):
    """Commits nothing until its budget ends."""

    steps: int = 3

    @property
    def progress(self):
        return Budget(self.steps)

    def decide(self, view, memory):
        return Decision(torch.zeros_like(view.open))


@dataclass(frozen=True)
class CutAt(StopRule):
    """Cuts every row to a number of generated columns after its first step."""

    columns: int

    def horizon(self, snapshot, view, change, memory):
        return torch.full_like(snapshot.horizon, snapshot.start + self.columns)


@dataclass
class Scripted(HashDenoiser):
    """A hash model that does something else in one pass."""

    at: int = 1
    act: object = None

    def __call__(self, tokens, live, index, plan):
        logits = super().__call__(tokens, live, index, plan)
        if len(self.rows_per_pass) == self.at + 1:
            return self.act(logits)
        return logits


def decode(strategy=None, request=None, model=None, schedule=None, **more):
    model = HashDenoiser(added=QUIET) if model is None else model
    strategy = Take() if strategy is None else strategy
    request = Request(((1, 2), (3,)), 4) if request is None else request
    schedule = WholeCanvas() if schedule is None else schedule
    return Decoder(model, strategy, schedule, **more).decode(request)


# Composition and requests that cannot work.


@dataclass(frozen=True)
class Wide(Take):
    sees_canvas = True
    needs_window = True


@dataclass(frozen=True)
class Made(Take):
    width: int | None = None
    fingerprint: str | None = None
    needs_reference = True

    @property
    def window_width(self):
        return self.width

    @property
    def model_fingerprint(self):
        return self.fingerprint


@dataclass
class Storing(HashDenoiser):
    def allocate(self, rows, columns):
        return None


@dataclass
class Causal(Storing):
    block_length: int = 4


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            (HashDenoiser(), Take(), Blocks(4), DualCache()),
            r"cache \(DualCache\) needs keys and values .* model \(HashDenoiser\) has none",
        ),
        (
            (Storing(), Take(), Blocks(4), BlockExact()),
            r"cache \(BlockExact\) is exact for block-causal models only, but model \(Storing\)",
        ),
        (
            (HashDenoiser(), Made(width=8), Blocks(4)),
            r"strategy \(Made\) was made for blocks of 8 columns, but schedule has 4",
        ),
        (
            (HashDenoiser(), Pipeline(Made(width=8)), WholeCanvas()),
            r"strategy\.select \(Made\) was made for blocks of 8 .* has no block grid",
        ),
        (
            (HashDenoiser(), Made(fingerprint="abc"), Blocks(4)),
            "was trained for the model with fingerprint abc, but model has none",
        ),
        (
            (Storing(), Wide(), Blocks(4), DualCache()),
            r"strategy \(Wide\) reads predictions outside the current window",
        ),
    ],
)
def test_parts_that_cannot_work_together_are_refused_when_composed(parts, message):
    with pytest.raises(CapabilityError, match=message):
        Decoder(*parts)


def test_a_part_that_reads_the_whole_window_is_refused_where_a_cache_leaves_some_out():
    @dataclass(frozen=True)
    class Reads(Take):
        needs_window = True

    with pytest.raises(CapabilityError, match="reads the prediction at every column of the window"):
        Decoder(Storing(), Reads(), Blocks(4), CertaintyCache())


@pytest.mark.parametrize(
    ("request_", "changed", "message"),
    [
        (Request(((1, 2),), 4), {"max_length": 5}, "together need 6 positions, the model has 5"),
        (Request(((1,), (1, 12)), 4), {}, "prompt 1 contains token id 12; the model knows 0 to 11"),
        (Request(((-1,),), 4), {}, "prompt 0 contains token id -1"),
        (
            Request(((),), 4, fixed=({1: 12},)),
            {},
            r"fixed token of row 0 must be a token id in \[0, 11\] and not the mask, got 12",
        ),
        (Request(((),), 4, fixed=({1: 11},)), {}, "and not the mask, got 11"),
    ],
)
def test_requests_that_do_not_fit_the_model_are_refused(request_, changed, message):
    with pytest.raises(ConfigError, match=message):
        decode(request=request_, model=HashDenoiser(**changed))


def test_a_strategy_that_needs_a_reference_says_so():
    with pytest.raises(CapabilityError, match=r"strategy\.select \(Made\) needs the tokens of a"):
        decode(Pipeline(Made()))


def test_a_check_interval_must_be_a_count():
    with pytest.raises(ConfigError, match="sync_every must be a whole number >= 1, got 0"):
        decode(sync_every=0)


# What a decode delivers.


def test_rows_of_different_lengths_get_their_own_number_of_tokens_and_forwards():
    result = decode(Take(2), Request(((1, 2, 3), (), (11,)), (1, 5, 4)))
    assert [len(s) for s in result.sequences] == [1, 5, 4]
    assert result.forwards == (1, 3, 2)
    assert result.finish_reasons == ("length",) * 3 and result.undecided == (0, 0, 0)
    assert result.trace == () and result.reference_forwards == (0, 0, 0)


def test_each_token_knows_its_step_and_confidence():
    strategy = Take(2)
    result = decode(strategy, Request(((1,),), 3))
    assert sorted(result.step_of[0]) == [0, 0, 1]
    for column, (step, token) in enumerate(
        zip(result.step_of[0], result.sequences[0], strict=True)
    ):
        pred = strategy.seen[step].pred
        assert pred.top_token[0, column] == token
        assert result.confidence_of[0][column] == pytest.approx(pred.confidence[0, column].item())


def test_fixed_tokens_stay_have_no_step_and_are_seen_by_the_model():
    fixed = ({0: 3, 2: EOT}, None)
    result = decode(request=Request(((1,), (1,)), 3, fixed=fixed))
    assert result.sequences[0][0] == 3 and result.sequences[0][2] == EOT
    assert result.step_of[0][0] == result.step_of[0][2] == -1
    assert math.isnan(result.confidence_of[0][0]) and result.forwards == (1, 3)


def test_a_row_that_is_fixed_altogether_takes_no_forward_pass():
    model = HashDenoiser(added=QUIET)
    result = decode(request=Request(((1,),), 2, fixed=({0: 1, 1: 2},)), model=model)
    assert result.sequences == ((1, 2),) and result.forwards == (0,)
    assert model.rows_per_pass == []


def test_finished_rows_leave_the_batch():
    model = HashDenoiser(added=QUIET)
    decode(request=Request(((1,), (2,), (3,)), (1, 3, 2)), model=model)
    assert model.rows_per_pass == [3, 2, 1]


def test_a_run_advances_to_where_a_row_is_done():
    model, left = HashDenoiser(added=QUIET), []
    run = Decoder(model, Take(), Blocks(4)).begin(Request(((1,), (2,), (3,)), (1, 3, 2)))
    run.admit(range(3))
    while run.live:
        run.advance()
        left.append((run.live, len(model.rows_per_pass)))
    assert left == [((2, 1), 1), ((1,), 2), ((), 3)]


def test_what_lies_behind_the_horizon_is_neither_decoded_nor_seen():
    strategy = Pipeline(Take(), stop={"cut": CutAt(2)})
    result = decode(strategy, Request(((1,),), 6))
    assert len(result.sequences[0]) == 2 and result.finish_reasons == ("eot",)
    gone = decode(Pipeline(Take(), stop={"cut": CutAt(-3)}), Request(((1,),), 6))
    assert gone.sequences == ((),) and gone.forwards == (1,)


def test_a_budget_ends_with_closing_commits_and_says_so():
    result = decode(Wait(3), Request(((1,),), 4))
    assert result.finish_reasons == ("budget",) and result.forwards == (3,)
    assert set(result.step_of[0]) == {2}
    in_blocks = decode(Wait(3), Request(((1,),), 4), schedule=Blocks(2))
    assert in_blocks.forwards == (4,), "the second block takes one closing step"


def test_the_trace_is_kept_where_it_was_asked_for():
    request = Request(((1, 2), (3,)), (3, 4), fixed=({1: 2}, None))
    result = decode(Take(2), request, record=True)
    assert [list(s) for s in result.sequences] == replay(request, VOCAB, result.trace)


# What a strategy sees.


def test_a_view_tells_windows_apart():
    strategy = Take()
    decode(strategy, Request(((1,),), 4), schedule=Blocks(2))
    views = strategy.seen
    assert [view.fresh.item() for view in views] == [True, False, True, False]
    assert [view.window_step.item() for view in views] == [0, 1, 0, 1]
    assert [view.window_open.item() for view in views] == [2, 2, 2, 2]
    assert [view.step.item() for view in views] == [0, 1, 2, 3]
    assert [view.steps_left.item() for view in views] == [4, 3, 2, 1]
    assert [view.mask_ratio.item() for view in views] == [1.0, 0.5, 1.0, 0.5]
    assert views[2].index.tolist() == [[3, 4]] and views[1].settled.sum() == 1


def test_a_part_that_sees_the_canvas_still_commits_in_the_window_only():
    strategy = Wide()
    decode(strategy, Request(((1,), (1,)), (4, 3)), schedule=Blocks(2))
    first = strategy.seen[0]
    assert first.masked.tolist() == [[True] * 4, [True, True, True, False]]
    assert first.open.tolist() == first.active.tolist() == [[True, True, False, False]] * 2
    assert first.window_open.tolist() == [2, 2]


def test_a_sliding_window_is_entered_once():
    strategy = Take()
    decode(strategy, Request(((1,),), 5), schedule=SlidingWindow(2))
    assert [view.fresh.item() for view in strategy.seen] == [True] + [False] * 4


def test_steps_left_follows_the_budget():
    class Seen(Wait):
        def decide(self, view, memory):
            left.append(view.steps_left.item())
            return super().decide(view, memory)

    left: list = []
    decode(Seen(3), Request(((1,),), 2))
    assert left == [3, 2, 1]


def test_a_probe_is_one_more_pass_with_other_tokens_in_the_open_slots_only():
    @dataclass(frozen=True)
    class Probing(Take):
        def decide(self, view, memory):
            probes.append((view, view.probe(torch.full_like(view.tokens, 5))))
            return super().decide(view, memory)

    probes: list = []
    model = HashDenoiser(added=QUIET)
    result = decode(Probing(), Request(((1,),), 3), model)
    assert result.forwards == (6,) and model.rows_per_pass == [1] * 6
    view, second = probes[1]
    canvas = view.snapshot.tokens.clone()
    canvas[:, 1:] = torch.where(view.open, 5, canvas[:, 1:])
    again = HashDenoiser(added=QUIET)(canvas, view.snapshot.live, view.index, Plan())
    assert torch.equal(second.logits.isfinite(), again.isfinite() & second.logits.isfinite())
    allowed = second.logits.isfinite()
    assert torch.equal(second.logits[allowed], again[allowed])
    assert not torch.equal(view.pred.logits[allowed], again[allowed])


# Observers, interruption, faults.


@dataclass
class Watcher(Observer):
    events: list = field(default_factory=list)

    def start(self, request, snapshot):
        self.events.append(("start", request.rows))

    def step(self, change, snapshot):
        self.events.append(("step", change.rows.tolist()))
        assert snapshot.tokens.shape[0] == change.rows.numel()

    def finish(self, result):
        self.events.append(("finish", result.finish_reasons))


def test_observers_hear_of_every_step_once():
    watcher = Watcher()
    decode(request=Request(((1,), (2,)), (1, 2)), observers=(watcher,))
    assert watcher.events == [
        ("start", 2),
        ("step", [0, 1]),
        ("step", [1]),
        ("finish", ("length", "length")),
    ]


def test_an_observer_that_raises_ends_the_decode():
    class Angry(Observer):
        def step(self, change, snapshot):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        decode(observers=(Angry(),))


def test_an_interrupted_decode_delivers_what_was_decided():
    def stop(logits):
        raise KeyboardInterrupt

    watcher = Watcher()
    model = Scripted(added=QUIET, at=2, act=stop)
    request = Request(((1,), (2,)), (1, 4))
    with pytest.raises(Interrupted, match="decoding was interrupted") as caught:
        decode(request=request, model=model, observers=(watcher,))
    result = caught.value.result
    assert result.finish_reasons == ("length", "interrupted") and result.forwards == (1, 2)
    assert result.undecided == (0, 2) and len(result.sequences[1]) == 4
    assert result.sequences[1].count(VOCAB.mask_id) == 2
    assert watcher.events[-1] == ("finish", result.finish_reasons)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_cannot_be_used_are_refused_by_row_column_and_step(value):
    def spoil(logits):
        logits[0, 2] = value
        return logits

    model = Scripted(added=QUIET, at=1, act=spoil)
    with pytest.raises(
        ModelOutputError,
        match=r"logits that cannot be used .*: row 1, generated column 2, step 1",
    ):
        decode(Leftmost(), Request(((1,), (2,)), (1, 4)), model)


@dataclass(frozen=True)
class Leftmost(Strategy):
    def decide(self, view, memory):
        return Decision(best(-view.index.double(), view.open))


def test_bad_logits_at_decided_columns_do_no_harm():
    def spoil(logits):
        logits[0, 0] = float("nan")
        return logits

    model = Scripted(added=QUIET, at=1, act=spoil)
    assert decode(Leftmost(), Request(((1,),), 3), model).forwards == (3,)


def test_ties_at_confidence_one_are_warned_of_once():
    saturated = HashDenoiser(added=QUIET, scale=1e6)
    with pytest.warns(RuntimeWarning, match="4 of 4 candidate positions have confidence exactly 1"):
        decode(model=saturated, request=Request(((1,),), 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode(model=saturated, request=Request(((1,),), 4))
        decode(request=Request(((1,),), 4))
    assert len(caught) == 1


@given(
    seed=st.integers(0, 99),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    every=st.integers(2, 4),
    strategy=st.sampled_from([Take(2), Wait(3), Pipeline(Take(), stop={"cut": CutAt(3)})]),
    sampler=st.sampled_from([Greedy(), Categorical()]),
)
def test_looking_less_often_changes_nothing_but_surplus_passes(
    seed, lengths, every, strategy, sampler
):
    request = Request(((1,),) * len(lengths), tuple(lengths))

    def run(sync_every):
        model = HashDenoiser(seed=seed, added=QUIET)
        result = decode(strategy, request, model, sampler=sampler, sync_every=sync_every)
        return result, sum(model.rows_per_pass)

    often, _ = run(1)
    seldom, spent = run(every)
    for row in range(request.rows):
        assert row_of(often, row) == row_of(seldom, row)
    assert spent == sum(seldom.forwards) + sum(seldom.surplus_forwards)
    assert sum(often.surplus_forwards) == 0


# Autograd.


class Learned(torch.nn.Module):
    """A model of one's own, with weights that are being trained."""

    vocab, device, max_length = VOCAB, torch.device("cpu"), None

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(VOCAB.size, 8)
        self.head = torch.nn.Linear(8, VOCAB.size)

    def forward(self, tokens, live, index, plan):
        whole = self.embedding(tokens).mean(1, keepdim=True)
        return self.head(whole + self.embedding(index.clamp(min=0) % VOCAB.size))


class Enabling(Learned):
    """Asks for a graph itself."""

    @torch.enable_grad()
    def forward(self, tokens, live, index, plan):
        return super().forward(tokens, live, index, plan)


@dataclass(frozen=True)
class Weighing(Take):
    """A rule with a weight of its own that takes part in everything it says."""

    weight: torch.nn.Parameter = field(default_factory=lambda: torch.nn.Parameter(torch.ones(1)))

    def decide(self, view, memory):
        decision = super().decide(view, memory)
        scores = view.pred.confidence * self.weight
        return Decision(decision.commit, scores=scores, confidence=scores)


@pytest.mark.parametrize("model", [Learned, Enabling])
@pytest.mark.parametrize("strategy", [Take, Weighing])
def test_no_graph_is_kept_whoever_wrote_the_model(model, strategy):
    rule, kept = strategy(), []

    class Keeping(Observer):
        def step(self, change, snapshot):
            kept.append((change.confidence, change.scores, change.probability))

    run = Decoder(model(), rule, WholeCanvas(), observers=(Keeping(),)).begin(Request(((1, 2),), 4))
    run.admit([0])
    while run.live:
        run.step()
        assert not run.canvas.confidence_of.requires_grad
    assert not any(plane.requires_grad for step in kept for plane in step)
    assert not any(view.pred.confidence.requires_grad for view in rule.seen)
    assert not any(view.pred.logits.requires_grad for view in rule.seen)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("missing", ["vocab", "device", "max_length"])
def test_a_model_without_what_every_model_needs_is_refused_by_name(missing):
    members = {"vocab": VOCAB, "device": torch.device("cpu"), "max_length": None}
    del members[missing]
    kind = type("Mine", (), {**members, "__call__": lambda self, *given: None})
    with pytest.raises(CapabilityError, match=rf"^model \(Mine\) has no {missing}; a model needs"):
        Decoder(kind(), Take())


def test_a_model_declares_what_it_can_do_by_its_attributes():
    assert Capabilities.of(HashDenoiser()).block_length is None
    assert Capabilities.of(HashDenoiser()).fingerprint is None
    assert Capabilities.of(Causal()).block_length == 4
    with pytest.raises(ConfigError, match="block_length of the model must be a whole number >= 1"):
        Decoder(Causal(block_length=0), Take())


def test_what_a_decode_needed_is_freed_with_it_and_not_when_python_looks_for_circles():
    decoder = Decoder(StoringHashDenoiser(), TopK(1), cache=DualCache())
    gc.collect()
    gc.disable()
    try:
        run = decoder.begin(Request(((1, 2), (3,)), max_new_tokens=4))
        run.admit([0, 1])
        while run.live:
            run.step()
        run.result()
        held = [weakref.ref(part) for part in (run, run.batch, run.passes, run.canvas)]
        del run
        assert [ref() for ref in held] == [None] * 4
    finally:
        gc.enable()


def test_a_model_is_asked_once_what_it_can_do(monkeypatch):
    asked = []
    of = Capabilities.of
    monkeypatch.setattr(Capabilities, "of", lambda model: asked.append(model) or of(model))
    decoder = Decoder(HashDenoiser(), TopK(2))
    asked.clear()
    decoder.decode(Request(((1,), (2,)), max_new_tokens=2))
    assert not asked
