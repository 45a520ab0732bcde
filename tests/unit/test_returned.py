"""What schedules, cache policies, samplers and models return is refused in their name."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from dllm_decode.decoding.cache import CachePolicy, DualCache, NoCache, Refresh
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.sampling import Greedy, Sampler
from dllm_decode.decoding.schedule import Blocks, Schedule, WholeCanvas, Window
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import ColumnMemory, Decision, Memory, Request
from dllm_decode.errors import DecisionError, ModelOutputError, PluginError
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.testing import VOCAB, HashDenoiser, StoringHashDenoiser

REQUEST = Request(((1, 2, 3), (4,), (5, 6)), (9, 6, 8))
RULE = ConfidenceThreshold(0.6)


@dataclass(frozen=True)
class MySchedule(Schedule):
    answer: object

    def window(self, snapshot):
        return self.answer(Blocks(4).window(snapshot))


@dataclass(frozen=True)
class MyCache(CachePolicy):
    """Answers what a test says, as its plan or as the columns to recompute."""

    plans: object = None
    columns: object = None

    def plan(self, snapshot, index, fresh, memory):
        refresh = super().plan(snapshot, index, fresh, memory)
        return self.plans(refresh) if self.plans else refresh

    def recompute(self, step):
        columns = DualCache().recompute(step)
        return self.columns(columns) if self.columns else columns


@dataclass(frozen=True)
class MySampler(Sampler):
    answer: object

    def predict(self, logits, banned, noise):
        return self.answer(logits, banned)


@dataclass
class MyModel(HashDenoiser):
    answer: object = None

    def __call__(self, tokens, live, index, plan):
        return self.answer(super().__call__(tokens, live, index, plan))


def refused(error, message, *, model=None, schedule=None, cache=None, sampler=None):
    model = model or (HashDenoiser() if cache is None else StoringHashDenoiser())
    decoder = Decoder(model, RULE, schedule or Blocks(4), cache or NoCache(), sampler or Greedy())
    with pytest.raises(error, match=message):
        decoder.decode(REQUEST)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda w: None, "is None; it must be a Window"),
        (lambda w: (w.index, w.key), "is a tuple; it must be a Window"),
        (lambda w: w.index, "is a tensor of shape .*; it must be a Window"),
        (
            lambda w: Window(None, w.key),
            r"index is None; it must .* \(3, W\)",
        ),
        (lambda w: Window(w.index.tolist(), w.key), "index is a list; it must be a tensor"),
        (lambda w: Window(w.index[:1], w.key), r"index is a tensor of shape \(1, 4\)"),
        (lambda w: Window(w.index[0], w.key), r"index is a tensor of shape \(4,\)"),
        (lambda w: Window(w.index[:, :0], w.key), r"index is a tensor of shape \(3, 0\)"),
        (
            lambda w: Window(w.index.double(), w.key),
            "index is a tensor of type torch.float64; it must be",
        ),
        (lambda w: Window(w.index >= 0, w.key), "index is a tensor of type torch.bool; it must be"),
        (lambda w: Window(w.index.to("meta"), w.key), "index is a torch.strided tensor on meta"),
        (lambda w: Window(w.index, None), r"key is None; it must be a tensor of shape \(3,\)"),
        (lambda w: Window(w.index, w.key[:1]), r"key is a tensor of shape \(1,\)"),
        (lambda w: Window(w.index, w.key[:, None]), r"key is a tensor of shape \(3, 1\)"),
        (lambda w: Window(w.index, w.key.float()), "key is a tensor of type torch.float32"),
    ],
)
def test_a_window_that_is_none_is_laid_on_the_schedule(answer, message):
    refused(
        PluginError,
        rf"^schedule \(MySchedule\): what window returned.* {message}",
        schedule=MySchedule(answer),
    )


def test_columns_beyond_the_canvas_are_no_columns():
    def beyond(window):
        far = torch.full_like(window.index, 99)
        return Window(torch.cat([window.index, far], 1), window.key)

    plain = Decoder(HashDenoiser(), RULE, Blocks(4)).decode(REQUEST)
    odd = Decoder(HashDenoiser(), RULE, MySchedule(beyond)).decode(REQUEST)
    assert odd.sequences == plain.sequences and odd.step_of == plain.step_of


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda r: r.columns, "is a tensor of shape .*; it must be a Refresh or None"),
        (lambda r: (r.columns, r.valid), "is a tuple; it must be a Refresh or None"),
        (lambda r: Refresh(None, r.valid), r"as columns is None; .* of shape \(3, 12\)"),
        (lambda r: Refresh(r.columns[:1], r.valid), r"as columns is a tensor of shape \(1, 12\)"),
        (lambda r: Refresh(r.columns, r.valid[:, :3]), r"as valid is a tensor of shape \(3, 3\)"),
        (lambda r: Refresh(r.columns.int(), r.valid), "as columns is a tensor of type torch.int32"),
        (
            lambda r: Refresh(r.columns, r.valid.float()),
            "as valid is a tensor of type torch.float32",
        ),
    ],
)
def test_a_plan_that_is_none_is_laid_on_the_cache(answer, message):
    refused(
        PluginError,
        rf"^cache \(MyCache\): what plan returned {message}",
        cache=MyCache(plans=answer),
    )


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda c: None, r"is None; it must be a tensor of shape \(3, 12\)"),
        (lambda c: c.tolist(), "is a list; it must be a tensor"),
        (lambda c: c[:1], r"is a tensor of shape \(1, 12\)"),
        (lambda c: c[:, :-1], r"is a tensor of shape \(3, 11\)"),
        (lambda c: c.float(), "is a tensor of type torch.float32; it must be torch.bool"),
        (lambda c: c.int(), "is a tensor of type torch.int32; it must be torch.bool"),
    ],
)
def test_columns_to_recompute_that_are_none_are_laid_on_the_cache(answer, message):
    refused(
        PluginError,
        rf"^cache \(MyCache\): what recompute returned {message}",
        cache=MyCache(columns=answer),
    )


def test_a_cache_policy_whose_memory_is_missing_is_named():
    class Forgetful(DualCache):
        def begin(self, request, snapshot):
            return None

    message = r"^cache \(Forgetful\): what begin returned is None; plan needs a StoreMemory"
    refused(PluginError, message, cache=Forgetful())


def proposing(token):
    """Predictions whose draw gives what a function makes of the right tokens."""
    return lambda logits, banned: Prediction.of(logits, banned, lambda p: token(p.top_token))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda logits, banned: None, "is None; it must be a Prediction"),
        (lambda logits, banned: logits, "is a tensor of shape .*; it must be a Prediction"),
        (
            lambda logits, banned: Prediction.of(logits[:1], banned),
            r"has shape \(1, 4, 12\); it must have that of the logits, \(3, 4, 12\)",
        ),
        (
            lambda logits, banned: Prediction.of(logits[:, :1], banned),
            r"has shape \(3, 1, 12\); it must have that of the logits",
        ),
        (
            lambda logits, banned: Prediction.of(torch.cat([logits, logits], -1), banned),
            r"has shape \(3, 4, 24\); it must have that of the logits",
        ),
        (proposing(lambda token: token.double()), "proposes no tokens: .*float64"),
        (proposing(lambda token: token[:, :1]), r"proposes no tokens: .*\(3, 1\)"),
    ],
)
def test_a_prediction_that_is_none_is_laid_on_the_sampler(answer, message):
    refused(
        PluginError,
        rf"^sampler \(MySampler\): what predict returned {message}",
        sampler=MySampler(answer),
    )


def test_what_a_sampler_cannot_make_a_prediction_of_is_laid_on_it():
    refused(
        PluginError,
        r"^sampler \(MySampler\): logits must be floating-point numbers, got torch.int64",
        sampler=MySampler(lambda logits, banned: Prediction.of(logits.long(), banned)),
    )


def test_a_prediction_without_numbers_is_laid_on_a_sampler_of_ones_own():
    def nothing(logits, banned):
        return Prediction.of(torch.full_like(logits, float("nan")), banned)

    message = r"^sampler \(MySampler\), or the model, made .*row 0, generated column 0, step 0"
    refused(PluginError, message, sampler=MySampler(nothing))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: None, r"None; it must be a tensor of shape \(3, 4, 12\)"),
        (lambda x: (x,), "a tuple; it must be a tensor"),
        (lambda x: x.numpy(), "a ndarray; it must be a tensor"),
        (lambda x: x[:1], r"a tensor of shape \(1, 4, 12\)"),
        (lambda x: x[:, :1], r"a tensor of shape \(3, 1, 12\)"),
        (lambda x: torch.cat([x, x], 1), r"a tensor of shape \(3, 8, 12\)"),
        (lambda x: x.flatten(0, 1), r"a tensor of shape \(12, 12\)"),
        (lambda x: x[..., :8], r"a tensor of shape \(3, 4, 8\)"),
        (lambda x: torch.cat([x, x + 30], -1), r"a tensor of shape \(3, 4, 24\)"),
        (lambda x: x[..., :0], r"a tensor of shape \(3, 4, 0\)"),
        (lambda x: x.permute(2, 0, 1), r"a tensor of shape \(12, 3, 4\)"),
        (lambda x: x.long(), "a tensor of type torch.int64"),
        (lambda x: x.to(torch.complex64), "a tensor of type torch.complex64"),
        (lambda x: x.to(torch.float8_e4m3fn), "a tensor of type torch.float8_e4m3fn"),
        (lambda x: x.to("meta"), "a torch.strided tensor on meta"),
        (lambda x: x.to_sparse(), "a torch.sparse_coo tensor on cpu"),
    ],
)
def test_logits_that_are_none_are_laid_on_the_model(answer, message):
    refused(
        ModelOutputError,
        rf"^model \(MyModel\) returned logits that cannot be used, {message}",
        model=MyModel(answer=answer),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_every_precision_are_taken(dtype):
    result = Decoder(MyModel(answer=lambda x: x.to(dtype)), RULE, Blocks(4)).decode(REQUEST)
    assert not any(set(row) & set(VOCAB.never_generated) for row in result.sequences)


def test_a_memory_whose_rows_were_lost_in_a_step_is_named_with_its_part():
    @dataclass
    class Calm(Memory):
        seen: torch.Tensor

    @dataclass(frozen=True)
    class Forgetful(Strategy):
        def begin(self, request, snapshot):
            return Calm(torch.zeros(len(snapshot.rows)))

        def decide(self, view, memory):
            memory.seen = view.pred.confidence.mean()  # over all rows
            return Decision(view.open)

    message = r"strategy \(Forgetful\): the memory's seen has shape \(\); the 2 rows"
    with pytest.raises(DecisionError, match=message):
        Decoder(HashDenoiser(), Forgetful()).decode(Request(((1,), (2, 3)), (2, 40)))


def test_a_schedule_that_opens_nothing_of_its_window_is_named():
    class Closed(WholeCanvas):
        def window(self, snapshot):
            window = super().window(snapshot)
            return Window(window.index, window.key, torch.zeros_like(window.index).bool())

    with pytest.raises(PluginError, match=r"schedule \(Closed\) opens no undecided column"):
        Decoder(HashDenoiser(), TopK(1), Closed()).decode(Request(((1,),), 4))


@dataclass(frozen=True)
class WritesInPlace(Strategy):
    """The commonest slip: what is open shrinks to what is sure, for the loop as well."""

    def decide(self, view, memory):
        commit = view.open
        commit &= view.pred.confidence >= 2.0
        return Decision(commit)


@pytest.mark.parametrize("sync_every", [1, 3])
def test_a_strategy_that_writes_in_place_does_not_decode_for_ever(sync_every):
    message = r"row 0 is not done .* strategy \(WritesInPlace\), or a part of it, writes in place"
    decoder = Decoder(HashDenoiser(patience=999), WritesInPlace(), sync_every=sync_every)
    with pytest.raises(DecisionError, match=message):
        decoder.decode(Request(((1,), (2, 3)), (4, 9)))


@pytest.mark.parametrize("held", [list, tuple, lambda entries: {"a": entries}])
def test_a_memory_may_not_hold_memories_in_a_list(held):
    @dataclass
    class History(Memory):
        last: Any

    @dataclass(frozen=True)
    class Remembers(Strategy):
        def begin(self, request, snapshot):
            return History(held([ColumnMemory.of(snapshot, -1)]))

        def decide(self, view, memory):
            return Decision(view.open)

    with pytest.raises(DecisionError, match="of tensors, whose rows cannot follow the batch"):
        Decoder(HashDenoiser(), Remembers()).decode(Request(((1,),), (2,)))


def test_what_is_recorded_beside_a_token_does_not_choose_it():
    @dataclass(frozen=True)
    class Shy(Strategy):
        said: float | None

        def decide(self, view, memory):
            own = None if self.said is None else self.said * view.index.double()
            return Decision(torch.zeros_like(view.open), confidence=own)

    results = [
        Decoder(HashDenoiser(), Shy(said)).decode(Request(((1, 2),), 6))
        for said in (None, 0.01, -0.01)
    ]
    assert len({result.step_of for result in results}) == 1
