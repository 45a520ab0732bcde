"""Many requests through one running batch."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode.cli import main
from dllm_decode.config.compose import compose_checked
from dllm_decode.decoding.cache import DualCache, NoCache, Plan
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.observer import Interrupted, Observer
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.sampling import Categorical
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline, Strategy
from dllm_decode.decoding.types import Decision, Request, Snapshot, StepView, Vocab
from dllm_decode.errors import CapabilityError, ConfigError
from dllm_decode.strategies.eot import CommittedEot
from dllm_decode.strategies.fixed import TopK
from dllm_decode.tasks import build_task
from dllm_decode.testing import HashDenoiser, HashStore

VOCAB = Vocab(size=11, mask_id=10, eot_ids=(9,))


@dataclass(frozen=True)
class Waves:
    """Logits that depend on the row's own live tokens only; `poison` makes rows NaN."""

    vocab: Vocab = VOCAB
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_length: int | None = None
    poison: int | None = None

    def __call__(self, tokens, live, index, plan: Plan):
        place = torch.cumsum(live.long(), 1)
        digest = (tokens * live * place).sum(1) % 977
        slot = torch.where(index >= 0, place.gather(1, index.clamp(min=0)), 0)
        phase = digest[:, None, None] * 0.37 + slot[..., None] * 1.3 + torch.arange(11) * 2.1
        logits = 4 * torch.sin(phase).double()
        if self.poison is not None:
            opening = tokens.gather(1, live.int().argmax(1, keepdim=True))[:, 0]
            bad = opening == self.poison
            logits = logits.masked_fill(bad[:, None, None], float("nan"))
        return logits


@dataclass(frozen=True)
class Measured(Waves):
    """Notes rows and columns of every pass, and whether it could do without a mask."""

    passes: list[tuple[int, int, bool | None]] = field(default_factory=list)

    def __call__(self, tokens, live, index, plan: Plan):
        self.passes.append((*tokens.shape, plan.complete))
        assert not plan.complete or bool(live.all())
        return super().__call__(tokens, live, index, plan)


@dataclass(frozen=True)
class Bold(Strategy):
    def decide(self, view: StepView, memory: None) -> Decision:
        return Decision(view.open & (view.pred.confidence > 0.6))


@dataclass(frozen=True)
class Allergic(Bold):
    """Raises when it sees a row whose prompt starts with a given token."""

    token: int = 7

    def decide(self, view: StepView, memory: None) -> Decision:
        snapshot = view.snapshot
        if (snapshot.tokens.gather(1, snapshot.first[:, None])[:, 0] == self.token).any():
            raise RuntimeError("this prompt disagrees with me")
        return super().decide(view, memory)


def decoder(strategy: Strategy | None = None, **options) -> Decoder:
    pipeline = Pipeline(strategy or Bold(), stop={"eot": CommittedEot()})
    denoiser = options.pop("denoiser", Waves())
    return Decoder(denoiser, pipeline, Blocks(4), sampler=Categorical(0.7), **options)


prompts = st.lists(
    st.lists(st.integers(0, 8), min_size=1, max_size=6).map(tuple), min_size=1, max_size=8
)


def request_of(texts, lengths) -> Request:
    return Request(tuple(texts), tuple(lengths[: len(texts)]))


def outcome(result, row):
    return result.sequences[row], result.forwards[row], result.finish_reasons[row]


def test_a_pass_is_as_wide_as_the_widest_row_of_its_batch_and_wide_rows_come_first():
    request = request_of([(1,), (2,) * 20, (3,), (4,) * 3], [4, 8, 4, 8])
    alone, two = Measured(), Measured()
    Engine(decoder(denoiser=alone), 1).decode(request)
    widths = [columns for _, columns, _ in alone.passes]
    assert list(dict.fromkeys(widths)) == [28, 11, 5]
    assert all(complete for *_, complete in alone.passes)  # nothing is padding in a batch of one
    Engine(decoder(denoiser=two), 2, batching="static").decode(request)
    shapes = [(rows, columns) for rows, columns, _ in two.passes]
    assert shapes[0] == (2, 28) and (2, 5) in shapes
    first = shapes.index((2, 5))
    assert all(columns >= 11 for _, columns in shapes[:first])


@examples(5)
@given(
    prompts,
    st.lists(st.integers(4, 12), min_size=8, max_size=8),
    st.integers(1, 5),
    st.sampled_from(["continuous", "static"]),
)
def test_a_row_decodes_alike_in_any_batch(texts, lengths, max_batch, batching):
    request = request_of(texts, lengths)
    together = Engine(decoder(), max_batch, batching=batching).decode(request)
    for row in range(request.rows):
        alone = decoder().decode(request.take([row]))
        assert outcome(together, row) == outcome(alone, 0)


def test_results_arrive_as_they_are_ready_and_are_kept_in_order():
    request = Request(((1,), (2,), (3,)), (12, 4, 4))
    arrived = [row for row, _ in Engine(decoder(), 2).stream(request)]
    assert sorted(arrived) == [0, 1, 2]
    assert arrived[0] == 1, "the short row of the first batch must not wait for the long one"


def test_a_request_that_raises_in_its_strategy_does_not_cost_the_others(caplog):
    request = Request(((1,), (7, 1), (3,), (4, 4)), 8)
    result = Engine(decoder(Allergic()), 3).decode(request)
    assert "a batch of 3 rows failed and is decoded row by row" in caplog.text
    assert result.finish_reasons[1] == "error"
    assert "this prompt disagrees with me" in result.errors[1]
    good = decoder().decode(request)
    for row in (0, 2, 3):
        assert outcome(result, row) == outcome(good, row)


def test_nan_logits_end_one_row_and_say_where():
    request = Request(((1,), (8, 1), (3,)), 8)
    result = Engine(decoder(denoiser=Waves(poison=8)), 3).decode(request)
    assert result.finish_reasons[1] == "error"
    assert "NaN" in result.errors[1] and "row 1" in result.errors[1]
    assert result.errors[0] == result.errors[2] == ""


# A row that fails anywhere is an error row, and nobody else notices.


PLACES = ("begin", "decide", "horizon", "window", "cache begin", "observer start", "observer step")
FAILING = 7


def sees_it(snapshot: Snapshot) -> bool:
    """Whether a row whose prompt starts with the token that fails is there."""
    opening = snapshot.tokens.gather(1, snapshot.first[:, None])[:, 0]
    return bool((opening == FAILING).any())


def fail_at(place: str, here: str, snapshot: Snapshot) -> None:
    if place == here and sees_it(snapshot):
        raise RuntimeError(f"failed in {place}")


@dataclass(frozen=True)
class FailingRule(Bold):
    place: str = ""

    def begin(self, request, snapshot):
        fail_at(self.place, "begin", snapshot)

    def decide(self, view, memory):
        fail_at(self.place, "decide", view.snapshot)
        return super().decide(view, memory)

    def horizon(self, snapshot, view, change, memory):
        fail_at(self.place, "horizon", snapshot)
        return snapshot.horizon


@dataclass(frozen=True)
class FailingBlocks(Blocks):
    place: str = ""

    def window(self, snapshot):
        fail_at(self.place, "window", snapshot)
        return super().window(snapshot)


@dataclass(frozen=True)
class FailingCache(DualCache):
    place: str = ""

    def begin(self, request, snapshot):
        fail_at(self.place, "cache begin", snapshot)
        return super().begin(request, snapshot)


@dataclass
class FailingObserver(Observer):
    place: str = ""

    def start(self, request, snapshot):
        fail_at(self.place, "observer start", snapshot)

    def step(self, change, snapshot):
        fail_at(self.place, "observer step", snapshot)


@examples(10)
@given(
    rows=st.lists(st.sampled_from([1, 2, 3, FAILING]), min_size=1, max_size=6),
    place=st.sampled_from(PLACES),
    max_batch=st.integers(1, 4),
    batching=st.sampled_from(["continuous", "static"]),
)
def test_every_row_appears_once_and_only_failing_ones_as_errors(rows, place, max_batch, batching):
    request = Request(tuple((first, 1) for first in rows), tuple(4 + n for n in range(len(rows))))
    failing = Decoder(
        Faulty(at=-1),
        FailingRule(place=place),
        FailingBlocks(4, place=place),
        FailingCache(place=place),
        observers=(FailingObserver(place),),
    )
    engine = Engine(failing, max_batch, batching=batching)
    arrived = list(engine.stream(request))
    assert sorted(row for row, _ in arrived) == list(range(len(rows)))
    plain = Decoder(Faulty(at=-1), Bold(), Blocks(4), DualCache())
    result = engine.decode(request)
    for row, first in enumerate(rows):
        if first == FAILING:
            assert result.finish_reasons[row] == "error" and place in result.errors[row]
        else:
            assert outcome(result, row) == outcome(plain.decode(request.take([row])), 0)
    assert [dict(arrived)[row].finish_reason for row in range(len(rows))] == list(
        result.finish_reasons
    )


@examples(6)
@given(at=st.integers(0, 6), max_batch=st.integers(1, 4), rows=st.integers(1, 5))
def test_every_row_appears_once_wherever_a_store_or_a_pass_fails(at, max_batch, rows):
    request = Request(tuple((i,) for i in range(1, rows + 1)), 8)
    faulty = Faulty(at=at, error=RuntimeError("the store is gone"))
    one = decoder(denoiser=faulty, cache=DualCache())
    arrived = list(Engine(one, max_batch).stream(request))
    assert sorted(row for row, _ in arrived) == list(range(rows))
    errors = [outcome.error for _, outcome in arrived if outcome.error]
    assert len(errors) <= 1 and all("the store is gone" in error for error in errors)
    assert not errors or max_batch == 1 or rows == 1


def test_a_row_that_fails_on_admission_under_suspicion_is_an_error_row():
    request = Request(((1,), (FAILING,), (2,)), 8)
    for max_batch in (1, 2, 3):
        one = Decoder(Waves(), FailingRule(place="begin"), Blocks(4))
        result = Engine(one, max_batch).decode(request)
        assert result.finish_reasons == ("length", "error", "length")
        assert result.errors[1].startswith("RuntimeError('failed in begin'); raised by strategy (")


def test_an_exception_of_an_observer_says_which_one_raised_it():
    watch = FailingObserver("observer step")
    with pytest.raises(RuntimeError, match="failed in observer step") as caught:
        decoder(observers=(watch,)).decode(Request(((FAILING,),), 8))
    assert caught.value.__notes__ == ["raised by observer (FailingObserver)"]
    result = Engine(decoder(observers=(watch,)), 2).decode(Request(((1,), (FAILING,)), 8))
    assert result.errors[1].endswith("; raised by observer (FailingObserver)")


@dataclass(frozen=True)
class Cramped(Waves):
    """Runs out of memory with more than `room` rows."""

    room: int = 2

    def __call__(self, tokens, live, index, plan):
        if tokens.shape[0] > self.room:
            raise torch.OutOfMemoryError("simulated")
        return super().__call__(tokens, live, index, plan)


def test_out_of_memory_halves_the_batch_and_goes_on(caplog):
    request = Request(tuple((i,) for i in range(1, 8)), 8)
    result = Engine(decoder(denoiser=Cramped(room=2)), 8).decode(request)
    assert result.sequences == decoder().decode(request).sequences
    assert "going on with" in caplog.text


@pytest.mark.parametrize(("rows", "limit"), [(3, 1), (5, 2), (2, 1)])
def test_the_next_batch_is_half_of_the_rows_that_did_not_fit_not_of_those_that_might(
    rows, limit, caplog
):
    request = Request(tuple((i,) for i in range(1, rows + 1)), 8)
    Engine(decoder(denoiser=Cramped(room=rows - 1)), 64).decode(request)
    assert f"out of memory with {rows} rows; going on with {limit} at once" in caplog.text


def test_a_single_row_that_does_not_fit_is_reported():
    result = Engine(decoder(denoiser=Cramped(room=0)), 4).decode(Request(((1,),), 8))
    assert result.finish_reasons == ("error",)
    assert "simulated" in result.errors[0]


@dataclass
class PressCtrlC(Observer):
    after: int
    seen: int = 0

    def step(self, change, snapshot: Snapshot) -> None:
        self.seen += 1
        if self.seen == self.after:
            raise KeyboardInterrupt


@examples(4)
@given(st.integers(1, 12))
def test_an_interrupt_keeps_the_finished_rows(after):
    request = Request(tuple((i,) for i in range(1, 7)), 8)
    whole = decoder().decode(request)
    try:
        result = Engine(decoder(observers=(PressCtrlC(after),)), 2).decode(request)
    except Interrupted as stopped:
        result = stopped.result
    for row, reason in enumerate(result.finish_reasons):
        if reason != "interrupted":
            assert outcome(result, row) == outcome(whole, row)


def at_line(number: int) -> Callable[..., Any]:
    """A trace function that interrupts at the n-th line of what moves rows and writes tokens."""
    left = [number]

    def line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return line

    def call(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        return line if (Path(code.co_filename).stem, code.co_name) in MOVING else None

    return call


MOVING = {("batch", "remove"), ("canvas", "take"), ("canvas", "apply"), ("canvas", "_written"),
          ("types", "take"), ("types", "_take"), ("monitor", "record")}  # fmt: skip


@pytest.mark.slow
def test_an_interrupt_at_any_line_gives_no_row_the_tokens_of_another():
    request = Request(((1,), (4, 2), (3, 5)), (1, 3, 2))
    plain, lines = decoder(TopK(1)), 0
    whole = plain.decode(request)
    while True:
        lines += 1
        before = sys.gettrace()
        sys.settrace(at_line(lines))
        try:
            plain.decode(request)
        except Interrupted as stopped:
            sys.settrace(before)
            agrees_as_far_as_it_goes(stopped.result, whole)
        else:
            break
        finally:
            sys.settrace(before)
    assert lines > 50


def agrees_as_far_as_it_goes(result: Result, whole: Result) -> None:
    for row, own in zip(result.rows, whole.rows, strict=True):
        known = [column for column, step in enumerate(own.step_of[: len(row.step_of)])
                 if row.step_of[column] >= 0]  # fmt: skip
        assert [row.tokens[c] for c in known] == [own.tokens[c] for c in known]
        assert [row.step_of[c] for c in known] == [own.step_of[c] for c in known]
        if row.finish_reason != "interrupted":
            assert row.tokens == own.tokens


def test_columns_in_flight_bound_the_batch():
    request = Request(tuple((i,) for i in range(1, 7)), 8)
    widths = []

    @dataclass(frozen=True)
    class Watch(Waves):
        def __call__(self, tokens, live, index, plan):
            widths.append(tokens.shape[0])
            return super().__call__(tokens, live, index, plan)

    Engine(decoder(denoiser=Watch()), 6, max_tokens_in_flight=20).decode(request)
    assert max(widths) == 2


def test_a_bound_below_one_row_is_refused():
    with pytest.raises(ConfigError, match="max_tokens_in_flight is 5, but one row needs 9"):
        Engine(decoder(), 6, max_tokens_in_flight=5).decode(Request(((1,),), 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch must be a whole number >= 1, got 0"),
        ({"max_tokens_in_flight": 0}, "max_tokens_in_flight must be a whole number >= 1"),
        ({"batching": "fast"}, "batching must be one of continuous, static; got 'fast'"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Engine(decoder(), **options)


def test_the_trace_of_restarted_rows_holds_each_step_once():
    request = Request(((1,), (7, 1), (3,)), 8)
    result = Engine(decoder(Allergic(), record=True), 3).decode(request)
    steps = [
        (int(row), int(step))
        for change in result.trace
        for row, step in zip(change.rows, change.step, strict=True)
    ]
    assert len(steps) == len(set(steps))
    assert {row for row, _ in steps} == {0, 2}


@dataclass(frozen=True)
class Faulty(Waves):
    """Fails at the nth call, counted over passes and allocations of the store."""

    at: int = 0
    error: BaseException = field(default_factory=lambda: torch.OutOfMemoryError("simulated"))
    calls: list = field(default_factory=list)

    def count(self):
        self.calls.append(None)
        if len(self.calls) - 1 == self.at:
            raise self.error

    def allocate(self, rows, columns):
        self.count()
        return HashStore(rows, columns)

    def __call__(self, tokens, live, index, plan):
        self.count()
        return super().__call__(tokens, live, index, plan)


@examples(6)
@given(at=st.integers(0, 9), cache=st.sampled_from([NoCache(), DualCache()]))
def test_out_of_memory_at_any_allocation_costs_nothing_but_time(at, cache):
    request = Request(tuple((i,) for i in range(1, 6)), 8)
    whole = decoder().decode(request)
    result = Engine(decoder(denoiser=Faulty(at=at), cache=cache), 3).decode(request)
    assert result.errors == ("",) * 5
    assert result.sequences == whole.sequences and result.forwards == whole.forwards


@examples(4)
@given(at=st.integers(0, 9))
def test_an_interrupt_inside_a_pass_keeps_the_finished_rows(at):
    request = Request(tuple((i,) for i in range(1, 6)), 8)
    whole = decoder().decode(request)
    try:
        faulty = Faulty(at=at, error=KeyboardInterrupt())
        result = Engine(decoder(denoiser=faulty), 2).decode(request)
    except Interrupted as stopped:
        result = stopped.result
        assert "interrupted" in result.finish_reasons
    for row, reason in enumerate(result.finish_reasons):
        if reason != "interrupted":
            assert outcome(result, row) == outcome(whole, row)


def alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_no_tensor_is_kept_after_a_run_whatever_happened_in_it():
    request = Request(((1,), (7, 1), (3,)), 8)
    engines = [
        Engine(decoder(cache=DualCache(), denoiser=Faulty(at=-1)), 2),
        Engine(decoder(Allergic()), 2),
        Engine(decoder(denoiser=Faulty(at=3)), 2),
    ]
    gc.freeze()  # what was there before is not counted, which is most of the work
    try:
        for engine in engines:
            engine.decode(request)  # constants that are uploaded once
            before = alive()
            result = engine.decode(request)
            assert alive() <= before
            del result
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("task", ["generate", "eval"])
def test_the_engine_s_settings_are_keys_of_the_command_line(task):
    keys = ("batch_size=3", "max_tokens_in_flight=200", "batching=static")
    built = build_task(compose_checked([f"task={task}", "model=toy_copy", *keys]))
    assert (built.batch_size, built.max_tokens_in_flight, built.batching) == (3, 200, "static")
    plain = build_task(compose_checked([f"task={task}", "model=toy_copy"]))
    own = Engine(decoder())
    assert plain.batch_size == own.max_batch
    assert plain.max_tokens_in_flight == own.max_tokens_in_flight
    assert plain.batching == own.batching


@pytest.mark.parametrize("task", ["generate", "eval"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("batching=fast", "batching must be one of continuous, static; got 'fast'"),
        ("max_tokens_in_flight=0", "max_tokens_in_flight must be a whole number >= 1, got 0"),
    ],
)
def test_wrong_keys_are_refused_when_the_task_is_built(task, words, message):
    with pytest.raises(ConfigError, match=message):
        build_task(compose_checked([f"task={task}", "model=toy_copy", words]))


@pytest.mark.parametrize("task", ["generate", "eval"])
def test_the_keys_reach_the_engine(task, tmp_path, monkeypatch):
    made = []
    check = Engine.__post_init__
    monkeypatch.setattr(Engine, "__post_init__", lambda self: made.append(self) or check(self))
    words = [f"task={task}", "model=toy_copy", "display=none", "batch_size=3", "batching=static"]
    words += [f"runs={tmp_path}/runs", f"hydra.run.dir={tmp_path}/run", "max_tokens_in_flight=300"]
    few = {"eval": ["task.count=4", "schedule=whole"], "generate": ["compare=false"]}
    words += few[task]
    assert main(words) == 0
    found = {(one.max_batch, one.max_tokens_in_flight, one.batching) for one in made}
    assert (3, 300, "static") in found


def test_parts_that_cannot_work_together_end_the_run_and_not_each_row():
    @dataclass(frozen=True)
    class Unfit(TopK):
        def horizon(self, snapshot, view, change, memory):
            raise CapabilityError("needs what this model has not")

    engine = Engine(Decoder(HashDenoiser(), Unfit(1)), max_batch=2)
    with pytest.raises(CapabilityError, match="needs what this model has not"):
        engine.decode(Request(((1,), (2,), (3,)), 4))


class Ends(Observer):
    def __init__(self):
        self.results = []

    def finish(self, result):
        self.results.append(result)


def test_observers_of_a_stream_are_told_its_end():
    watch = Ends()
    engine = Engine(Decoder(HashDenoiser(), TopK(1), observers=(watch,)), max_batch=2)
    rows = dict(engine.stream(Request(((1,), (2,), (3,)), 4)))
    (result,) = watch.results
    assert [rows[row] for row in range(3)] == list(result.rows)


def test_an_interrupted_stream_says_what_was_decided():
    @dataclass(frozen=True)
    class Stops(TopK):
        def decide(self, view, memory):
            if int(view.step.max()) == 2:
                raise KeyboardInterrupt
            return super().decide(view, memory)

    watch = Ends()
    engine = Engine(Decoder(HashDenoiser(), Stops(1), observers=(watch,)), max_batch=2)
    with pytest.raises(Interrupted) as interrupted:
        list(engine.stream(Request(((1,), (2,), (3,)), 4)))
    assert interrupted.value.result.rows[0].finish_reason == "interrupted"
    assert watch.results == [interrupted.value.result]
