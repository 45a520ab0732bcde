"""The host's one sync: what it fetches, what it raises, and that no decode runs for ever."""

import copy
import gc
import warnings
import weakref
from dataclasses import dataclass, replace

import pytest
import torch

from dllm_decode.decoding.cache import CachePolicy, NoCache
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder, Run
from dllm_decode.decoding.monitor import fetch
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.sampling import Categorical, Greedy
from dllm_decode.decoding.schedule import Blocks, Schedule, SlidingWindow, WholeCanvas, Window
from dllm_decode.decoding.selection import best
from dllm_decode.decoding.strategy import (
    Budget,
    Filter,
    Pipeline,
    Strategy,
    Transform,
    complete,
)
from dllm_decode.decoding.types import Decision, Request
from dllm_decode.errors import ConfigError, DecisionError, DeviceError, DllmDecodeError, PluginError
from dllm_decode.strategies.at_most import AtMost
from dllm_decode.strategies.entropy import EntropyThreshold
from dllm_decode.strategies.fixed import FixedSchedule, TopK
from dllm_decode.strategies.suppress import BanTokens, DeferTokens
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.testing import VOCAB, HashDenoiser, StoringHashDenoiser, row_of

REQUEST = Request(((1, 2, 3), (4,), (5, 6)), (9, 6, 8))
QUIET = dict.fromkeys(VOCAB.never_generated, -1e6)


def test_what_is_fetched_comes_back_by_name_with_its_shape_and_exact():
    twice = torch.tensor([[5], [6]])
    got = fetch(
        one=twice,
        flags=torch.tensor([True, False]),
        large=torch.tensor([[2**52 + 1, -3]]),
        shares=torch.tensor([0.1], dtype=torch.float32),
        none=torch.zeros(0, 2),
        other=twice,
    )
    assert got["one"] == got["other"] == [[5], [6]]
    assert got["flags"] == [1, 0] and got["large"] == [[2**52 + 1, -3]] and got["none"] == []
    assert got["shares"] == [torch.tensor(0.1).item()]
    assert [type(x) for x in (got["flags"][0], got["large"][0][0], got["shares"][0])] == [
        int, int, float,
    ]  # fmt: skip


# No decode runs for ever.


@dataclass(frozen=True)
class MySchedule(Schedule):
    """Opens what a test says, from a step on."""

    index: object
    after: int = 0

    def window(self, snapshot):
        plain = WholeCanvas().window(snapshot)
        done = (snapshot.decided & snapshot.editable).sum(1) >= self.after
        index = torch.where(done[:, None], self.index(snapshot, plain.index), plain.index)
        return Window(index, plain.key)


def prompt_only(snapshot, index):
    columns = torch.arange(index.shape[1]).expand_as(index)
    return torch.where(columns < snapshot.start, columns, -1)


def decided_only(snapshot, index):
    open_columns = snapshot.undecided.gather(1, index.clamp(min=0))
    return torch.where((index >= 0) & ~open_columns, index, -1)


CLOSED = {
    "no column": lambda snapshot, index: torch.full_like(index, -1),
    "negative ones": lambda snapshot, index: torch.full_like(index, -7),
    "columns of the prompt": prompt_only,
    "decided columns": decided_only,
    "columns beyond the canvas": lambda snapshot, index: index + 1000,
    "columns behind every horizon": lambda snapshot, index: snapshot.horizon[:, None] + 0 * index,
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("sync_every", [1, 4, 10**30])
@pytest.mark.parametrize("kind", CLOSED)
def test_a_schedule_that_opens_nothing_is_named_with_row_and_step(kind, sync_every, after):
    schedule = MySchedule(CLOSED[kind], after)
    decoder = Decoder(HashDenoiser(), TopK(1), schedule, sync_every=sync_every)
    message = rf"^schedule \(MySchedule\) opens no undecided column of row 0, step {after}: "
    with pytest.raises(PluginError, match=message):
        decoder.decode(REQUEST)
    result = Engine(decoder, 2).decode(REQUEST)
    assert result.finish_reasons == ("error",) * 3
    assert all("schedule (MySchedule) opens no" in error for error in result.errors)


@dataclass(frozen=True)
class MyCache(CachePolicy):
    """Recomputes everything but the columns a test names, and all at first."""

    out: object
    logits = "part"

    def recompute(self, step):
        return (step.snapshot.live & ~self.out(step)) | (step.memory.passes < 1)[:, None]


@pytest.mark.parametrize(
    "out",
    [lambda s: s.window, lambda s: s.snapshot.undecided, lambda s: s.snapshot.live],
    ids=["the window", "what is undecided", "everything"],
)
def test_a_cache_policy_that_leaves_the_window_out_is_named(out):
    decoder = Decoder(StoringHashDenoiser(), TopK(1), Blocks(4), MyCache(out))
    message = (
        r"^cache \(MyCache\) recomputes no undecided column of row 0, step 1, that its window "
        r"opens: 8 are left, the first is generated column [01]$"
    )
    with pytest.raises(PluginError, match=message):
        decoder.decode(REQUEST)
    assert Engine(decoder, 2).decode(REQUEST).finish_reasons == ("error",) * 3


def test_one_row_that_is_stuck_does_not_cost_the_others():
    def closed_in_the_second_row(snapshot, index):
        return torch.where((snapshot.rows == 1)[:, None], -1, index)

    decoder = Decoder(HashDenoiser(), TopK(1), MySchedule(closed_in_the_second_row))
    result = Engine(decoder, 3).decode(REQUEST)
    assert result.finish_reasons == ("length", "error", "length")
    assert "of row 1, step 0" in result.errors[1]


class Wait(Strategy):
    progress = Budget(5)

    def decide(self, view, memory):
        return Decision(torch.zeros_like(view.open))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("sync_every", [7, 1000, 10**30])
@pytest.mark.parametrize("strategy", [TopK(1), ConfidenceThreshold(0.3), Wait()])
@pytest.mark.parametrize("schedule", [Blocks(4), WholeCanvas(), SlidingWindow(3)])
def test_the_host_syncs_before_every_row_must_be_done(strategy, schedule, sync_every):
    model = HashDenoiser(added=QUIET)
    often = Decoder(HashDenoiser(added=QUIET), strategy, schedule).decode(REQUEST)
    seldom = Decoder(model, strategy, schedule, sync_every=sync_every).decode(REQUEST)
    assert [row_of(seldom, row) for row in range(3)] == [row_of(often, row) for row in range(3)]
    most = max(REQUEST.lengths)
    assert len(model.rows_per_pass) <= max(often.forwards) + most


def test_nothing_is_asked_of_the_device_between_two_syncs_that_sync_every_allows():
    decoder = Decoder(HashDenoiser(added=QUIET), TopK(1), WholeCanvas(), sync_every=4)
    run = decoder.begin(REQUEST)
    run.admit(range(3))
    syncs = []
    plain = run.monitor.sync
    run.monitor.sync = lambda: syncs.append(int(run.batch.counters.step[0])) or plain()
    for _ in range(8):
        run.step()
    assert syncs == [4, 8]


# Ties.


@dataclass(frozen=True)
class BreaksItsWord(Strategy):
    """Promises to commit something in every step, and commits nothing from a step on."""

    after: int = 2
    always_commits = True

    def decide(self, view, memory):
        late = view.step[:, None] >= self.after
        return Decision(view.open & ~late & (view.index == view.index.amin(1, keepdim=True)))


@pytest.mark.parametrize("sync_every", [1, 3])
@pytest.mark.parametrize("inside", [False, True])
def test_a_strategy_that_promised_to_commit_and_does_not_is_refused_by_name(sync_every, inside):
    rule = BreaksItsWord()
    strategy = Pipeline(Pipeline(rule)) if inside else rule
    place = "strategy.select.select" if inside else "strategy"
    decoder = Decoder(HashDenoiser(added=QUIET), strategy, Blocks(1), sync_every=sync_every)
    promise = rf"^{place} \(BreaksItsWord\) declares always_commits"
    message = rf"{promise}, but committed nothing: row 0, step 2$"
    with pytest.raises(DecisionError, match=message):
        decoder.decode(REQUEST)


@dataclass(frozen=True)
class KeepNone(Filter):
    def keep(self, view, decision, memory):
        return torch.zeros_like(view.open)


SATURATED = HashDenoiser(added=QUIET, scale=1e6)
ONE_ROW = Request(((1,),), 4)


def warnings_of(strategy, model=SATURATED, **more):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Decoder(model, strategy, WholeCanvas(), **more).decode(ONE_ROW)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    "strategy",
    [
        TopK(1),
        TopK(3),
        FixedSchedule(2),
        Pipeline(ConfidenceThreshold(0.9), filters={"n": AtMost(2)}),
    ],
)
def test_ties_that_the_column_decides_are_told_of_once_with_advice(strategy):
    (message,) = warnings_of(strategy)
    assert "4 of 4 candidate positions have confidence exactly 1" in message
    assert "the column alone decides which of them are committed" in message
    assert "strategy=threshold, commits all of them" in message


@pytest.mark.parametrize(
    "strategy",
    [
        ConfidenceThreshold(0.9),
        TopK(4),
        TopK(9),
        EntropyThreshold(0.1),
        FixedSchedule(1),
        FixedSchedule(2, "random"),
        Pipeline(ConfidenceThreshold(0.9), filters={"none": KeepNone()}),
    ],
)
def test_a_rule_for_which_the_order_of_ties_decides_nothing_hears_of_none(strategy):
    expected = 1 if isinstance(strategy, Pipeline) else 0
    # with every commit vetoed, progress takes the first column of those that tie
    assert len(warnings_of(strategy)) == expected


@dataclass(frozen=True)
class ByConfidence(Strategy):
    def decide(self, view, memory):
        scores = view.pred.confidence
        return Decision(best(scores, view.open), scores=scores)


class Close(HashDenoiser):
    """Confidences that are rounded to 1, though no two are equal."""

    def __call__(self, tokens, live, index, plan):
        logits = torch.full((*index.shape, self.vocab.size), -90.0)
        logits[..., 0] = -20.0 - 3.0 * (index * 5 % 7)
        logits[..., 1] = 0.0
        return logits


def test_confidences_that_are_rounded_to_1_are_no_ties_to_who_ranks_by_odds():
    assert not warnings_of(TopK(1), Close(added=QUIET))
    (message,) = warnings_of(ByConfidence(), Close(added=QUIET))
    assert "4 of 4 candidate positions have confidence exactly 1" in message
    steps = [
        Decoder(Close(added=QUIET), TopK(1, order), WholeCanvas()).decode(ONE_ROW).step_of[0]
        for order in ("confidence", "margin", "entropy")
    ]
    assert steps == [(1, 2, 3, 0)] * 3


def test_the_advice_is_about_the_sampler_where_it_makes_the_ties():
    cold = Categorical(temperature=1e-6, confidence_from="sampled")
    (message,) = warnings_of(TopK(1), HashDenoiser(added=QUIET), sampler=cold)
    assert message.endswith("sampler.confidence_from=untempered tells them apart")


@dataclass
class Certain(HashDenoiser):
    """Is certain in some columns only."""

    columns: int = 2

    def __call__(self, tokens, live, index, plan):
        logits = super().__call__(tokens, live, index, plan)
        first = live.int().argmax(1, keepdim=True)
        sure = (index - first - 1 < self.columns)[..., None]
        return torch.where(sure, logits * 1e6, logits)


@pytest.mark.parametrize(("columns", "told"), [(1, 0), (2, 0), (3, 1), (4, 1)])
def test_ties_are_told_of_where_they_are_more_than_half_of_the_candidates(columns, told):
    model = Certain(added=QUIET, columns=columns)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = Decoder(model, TopK(1), WholeCanvas()).begin(ONE_ROW)
        run.admit([0])
        run.step()
    assert len(caught) == told


# A device that failed.


@dataclass
class Broken(HashDenoiser):
    """Fails in every pass from one on, as a device does."""

    error: Exception | None = None
    at: int = 2

    def __call__(self, tokens, live, index, plan):
        logits = super().__call__(tokens, live, index, plan)
        if len(self.rows_per_pass) > self.at:
            raise self.error
        return logits


DEVICE_ERRORS = [
    torch.AcceleratorError("CUDA error: device-side assert triggered", 710),
    RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"),
    RuntimeError("HIP error: unspecified launch failure"),
]


@pytest.mark.parametrize("error", DEVICE_ERRORS, ids=lambda error: str(error)[:30])
def test_a_device_that_failed_ends_the_run_at_once_with_advice(error):
    for decode in (lambda d: d.decode(REQUEST), lambda d: Engine(d, 2).decode(REQUEST)):
        model = Broken(error=error)
        with pytest.raises(DeviceError, match=r"the device failed .* start again, .*CUDA_LAUNCH"):
            decode(Decoder(model, TopK(1), Blocks(4)))
        assert len(model.rows_per_pass) == 3, "a row was repeated on a device that is lost"


def test_an_engine_delivers_what_was_done_before_the_device_failed():
    request = Request(((1,), (2,), (3,)), (2, 9, 9))
    stream = Engine(Decoder(Broken(error=DEVICE_ERRORS[0], at=4), TopK(1)), 3).stream(request)
    row, outcome = next(stream)
    assert row == 0 and outcome.finish_reason == "length"
    with pytest.raises(DeviceError):
        list(stream)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        torch.AcceleratorError("CUDA error: out of memory", 2),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
    ids=["torch", "driver", "cublas"],
)
def test_memory_that_does_not_suffice_is_no_failed_device(error, caplog):
    @dataclass
    class Small(HashDenoiser):
        def __call__(self, tokens, live, index, plan):
            if tokens.shape[0] > 1:
                raise error
            return super().__call__(tokens, live, index, plan)

    result = Engine(Decoder(Small(added=QUIET), TopK(1)), 3).decode(REQUEST)
    assert result.errors == ("", "", "") and "going on with 1 at once" in caplog.text


def test_another_error_of_a_model_stays_what_it_is():
    with pytest.raises(RuntimeError, match="shapes do not match"):
        Decoder(Broken(error=RuntimeError("shapes do not match")), TopK(1)).decode(REQUEST)


# The name it had.


def test_the_former_name_of_sync_every_works_and_says_so():
    with pytest.warns(DeprecationWarning, match="check_every is now sync_every"):
        decoder = Decoder(HashDenoiser(), TopK(1), check_every=3)
    assert decoder.sync_every == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replace(decoder, cache=NoCache()).sync_every == 3
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(ConfigError, match="sync_every must be a whole number >= 1, got 0"),
    ):
        Decoder(HashDenoiser(), TopK(1), check_every=0)


# What is kept until the next sync.


class Remembering(HashDenoiser):
    """Knows which of its logits are still alive."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.made = []

    def __call__(self, tokens, live, index, plan):
        logits = super().__call__(tokens, live, index, plan)
        self.made.append(weakref.ref(logits))
        return logits

    def alive(self):
        return sum(made() is not None for made in self.made)


@pytest.mark.parametrize(
    "sampler", [Greedy(), Categorical(0.7, top_p=0.9)], ids=["greedy", "drawn"]
)
@pytest.mark.parametrize("transforms", [{}, {"ban": BanTokens([3])}, {"defer": DeferTokens([3])}])
def test_seldom_syncs_do_not_keep_the_logits_of_the_steps_between_alive(transforms, sampler):
    model = Remembering(added=QUIET)
    strategy = Pipeline(TopK(1), transforms=transforms)
    run = Run(Decoder(model, strategy, WholeCanvas(), sampler=sampler, sync_every=8), REQUEST)
    run.admit(range(3))
    alive = []
    gc.disable()
    try:
        for _ in range(6):
            run.step()
            alive.append(model.alive())
    finally:
        gc.enable()
    assert alive == [0] * 6


@dataclass(frozen=True)
class Wrong(TopK):
    """Does something illegal in its third step."""

    kind: str = "closed"

    def decide(self, view, memory):
        decision = complete(super().decide(view, memory), view)
        third = (view.step == 2)[:, None]
        tokens, scores, commit = decision.tokens, decision.scores, decision.commit
        if self.kind == "closed":
            commit = commit | (third & ~view.open)
        elif self.kind == "token":
            tokens = torch.where(third, VOCAB.mask_id, tokens)
        else:
            scores = torch.where(third, float("nan"), scores)
        return replace(decision, tokens=tokens, scores=scores, commit=commit)


@dataclass(frozen=True)
class WrongTransform(Transform):
    """Proposes the mask in its third step."""

    def adjust(self, view, memory):
        logits = view.pred.logits.clone()
        logits[view.step == 2, :, VOCAB.mask_id] = 1e9
        return Prediction.of(logits)


class NotANumber(HashDenoiser):
    """Its logits are NaN from a pass on."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def __call__(self, tokens, live, index, plan):
        logits = super().__call__(tokens, live, index, plan)
        return logits * float("nan") if len(self.rows_per_pass) > self.at else logits


@pytest.mark.parametrize(
    ("model", "strategy"),
    [
        *((HashDenoiser(), Pipeline(Wrong(1, kind=kind))) for kind in ("closed", "token", "score")),
        (HashDenoiser(), Pipeline(TopK(1), {"wrong": WrongTransform()})),
        (NotANumber(2), Pipeline(TopK(1))),
    ],
    ids=["a closed slot", "a token", "a score", "a transform", "the model"],
)
def test_a_fault_is_told_in_the_same_words_however_seldom_the_host_syncs(model, strategy):
    said = set()
    for sync_every in (1, 2, 5):
        own = copy.deepcopy(model)
        with pytest.raises(DllmDecodeError) as caught:
            Decoder(own, strategy, WholeCanvas(), sync_every=sync_every).decode(REQUEST)
        said.add(str(caught.value))
    assert len(said) == 1 and "step 2" in said.pop()


@pytest.mark.parametrize(
    ("rule", "filters", "warned"),
    [
        (ConfidenceThreshold(0.5), {}, False),
        (ConfidenceThreshold(0.5), {"two": AtMost(2)}, True),
        (ConfidenceThreshold(1.0, strict=True), {}, True),
        (ConfidenceThreshold(1.0, strict=True, at_least=2), {}, True),
    ],
)
def test_ties_are_only_looked_for_where_a_rule_may_leave_some(rule, filters, warned):
    model = HashDenoiser(added=dict.fromkeys(VOCAB.never_generated, -1e6) | {3: 1e9})
    strategy = Pipeline(rule, filters=filters)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Decoder(model, strategy, WholeCanvas()).decode(REQUEST)
    assert strategy.ranks == warned
    assert any("confidence exactly 1" in str(one.message) for one in said) == warned


def test_whoever_overrides_a_rule_that_does_not_rank_gives_that_word_anew():
    class Own(ConfidenceThreshold):
        def decide(self, view, memory):
            return super().decide(view, memory)

    assert not ConfidenceThreshold(0.9).ranks and Own(0.9).ranks
