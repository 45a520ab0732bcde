"""With debug=True, whoever writes in place to what it was handed is named."""

from dataclasses import dataclass, field

import pytest

from dllm_decode.decoding.cache import DualCache, NoCache
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.observer import Observer
from dllm_decode.decoding.sampling import Greedy
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Filter, NeverStop, Pipeline, Transform
from dllm_decode.decoding.types import Request
from dllm_decode.errors import PluginError
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.testing import HashDenoiser, StoringHashDenoiser

REQUEST = Request(((1, 2, 3), (4,), (5, 6)), (9, 6, 8))


@dataclass(frozen=True)
class MyRule(ConfidenceThreshold):
    """Writes to the view before it decides."""

    threshold: float = 0.6
    write: object = None

    def decide(self, view, memory):
        if self.write:
            self.write(view)
        return super().decide(view, memory)


@dataclass(frozen=True)
class MyTransform(Transform):
    write: object

    def adjust(self, view, memory):
        self.write(view)
        return view.pred


@dataclass(frozen=True)
class MyFilter(Filter):
    write: object

    def keep(self, view, decision, memory):
        self.write(decision)
        return view.open


@dataclass(frozen=True)
class MyStop(NeverStop):
    write: object

    def horizon(self, snapshot, view, change, memory):
        self.write(snapshot, change)
        return snapshot.horizon


@dataclass(frozen=True)
class MySchedule(Blocks):
    write: object = None

    def window(self, snapshot):
        self.write(snapshot)
        return super().window(snapshot)


@dataclass(frozen=True)
class MyCache(DualCache):
    write: object = None

    def plan(self, snapshot, index, fresh, memory):
        self.write(snapshot, index)
        return super().plan(snapshot, index, fresh, memory)


@dataclass(frozen=True)
class MySampler(Greedy):
    write: object = None

    def predict(self, logits, banned, noise):
        self.write(banned, noise)
        return super().predict(logits, banned, noise)


@dataclass
class MyModel(HashDenoiser):
    write: object = None

    def __call__(self, tokens, live, index, plan):
        logits = super().__call__(tokens, live, index, plan)
        self.write(tokens, live, index)
        return logits


@dataclass
class MyObserver(Observer):
    begins: object = None
    steps: object = None

    def start(self, request, snapshot):
        if self.begins:
            self.begins(snapshot)

    def step(self, change, snapshot):
        if self.steps:
            self.steps(change, snapshot)


def written(message, *, strategy=None, model=None, schedule=None, cache=None, **more):
    model = model or (HashDenoiser() if cache is None else StoringHashDenoiser())
    decoder = Decoder(
        model, strategy or MyRule(), schedule or Blocks(4), cache or NoCache(), debug=True, **more
    )
    with pytest.raises(PluginError, match=f"^{message}.* that it was handed"):
        decoder.decode(REQUEST)


PLANES = {
    "tokens": lambda v: v.tokens.fill_(3),
    "open": lambda v: v.open.fill_(True),
    "masked": lambda v: v.masked.logical_not_(),
    "settled": lambda v: v.settled.fill_(True),
    "index": lambda v: v.index.zero_(),
    "step": lambda v: v.step.add_(1),
    "window_step": lambda v: v.window_step.add_(1),
    "fresh": lambda v: v.fresh.fill_(True),
    "noise.seeds": lambda v: v.noise.seeds.add_(1),
    "snapshot.tokens": lambda v: v.snapshot.tokens[:, :3].fill_(7),
    "snapshot.decided": lambda v: v.snapshot.decided.fill_(True),
    "snapshot.editable": lambda v: v.snapshot.editable.fill_(True),
    "snapshot.horizon": lambda v: v.snapshot.horizon.zero_(),
    "snapshot.first": lambda v: v.snapshot.first.zero_(),
    "snapshot.end": lambda v: v.snapshot.end.add_(1),
    "snapshot.rows": lambda v: v.snapshot.rows.add_(1),
    "snapshot.undecided": lambda v: v.snapshot.undecided.fill_(False),
    "pred.top_token": lambda v: v.pred.token.fill_(2),
    "pred.top_confidence": lambda v: v.pred.confidence.fill_(0.5),
    "pred._raw": lambda v: v.pred._raw.zero_(),
}


@pytest.mark.parametrize("plane", PLANES)
def test_a_rule_that_writes_to_its_view_is_named_with_the_plane(plane):
    rule = MyRule(write=PLANES[plane])
    written(rf"strategy \(MyRule\) wrote to {plane}", strategy=rule)
    written(rf"strategy\.select \(MyRule\) wrote to {plane}", strategy=Pipeline(rule))


def test_every_part_of_a_pipeline_is_named_with_its_place():
    rule = MyRule()
    written(
        r"strategy\.transforms\.mine \(MyTransform\) wrote to open",
        strategy=Pipeline(rule, {"mine": MyTransform(PLANES["open"])}),
    )
    written(
        r"strategy\.filters\.mine \(MyFilter\) wrote to commit",
        strategy=Pipeline(rule, filters={"mine": MyFilter(lambda d: d.commit.fill_(True))}),
    )
    cut = MyStop(lambda snapshot, change: snapshot.horizon.sub_(1))
    written(
        r"strategy\.stop\.mine \(MyStop\) wrote to horizon",
        strategy=Pipeline(rule, stop={"mine": cut}),
    )
    changes = MyStop(lambda snapshot, change: change.tokens.fill_(1))
    written(
        r"strategy\.stop\.mine \(MyStop\) wrote to tokens",
        strategy=Pipeline(rule, stop={"mine": changes}),
    )
    inner = Pipeline(MyRule(write=PLANES["open"]))
    written(r"strategy\.select\.select \(MyRule\) wrote to open", strategy=Pipeline(inner))


def test_schedules_caches_samplers_models_and_observers_are_named():
    written(
        r"schedule \(MySchedule\) wrote to decided",
        schedule=MySchedule(4, write=lambda s: s.decided.fill_(False)),
    )
    written(
        r"cache \(MyCache\) wrote to tokens",
        cache=MyCache(write=lambda s, index: s.tokens.fill_(3)),
    )
    written(r"cache \(MyCache\) wrote to a tensor", cache=MyCache(write=lambda s, i: i.zero_()))
    written(
        r"sampler \(MySampler\) wrote to a tensor",
        sampler=MySampler(write=lambda banned, noise: banned.zero_()),
    )
    for write in (
        lambda tokens, live, index: tokens.fill_(3),
        lambda tokens, live, index: live.fill_(True),
        lambda tokens, live, index: index.zero_(),
    ):
        written(r"model \(MyModel\) wrote to a tensor", model=MyModel(write=write))
    for observer in (
        MyObserver(begins=lambda s: s.tokens.fill_(3)),
        MyObserver(steps=lambda change, s: s.decided.fill_(True)),
        MyObserver(steps=lambda change, s: s.horizon.add_(1)),
        MyObserver(steps=lambda change, s: change.commit.fill_(True)),
    ):
        written(r"observer \(MyObserver\) wrote to", observers=(observer,))


def test_an_engine_reports_the_row_whose_plugin_writes():
    decoder = Decoder(HashDenoiser(), MyRule(write=PLANES["open"]), Blocks(4), debug=True)
    result = Engine(decoder, 2).decode(REQUEST)
    assert result.finish_reasons == ("error",) * 3
    assert all("strategy (MyRule) wrote to open" in error for error in result.errors)


@dataclass
class Counting(Observer):
    """Keeps what it saw, as observers may."""

    steps: int = 0
    kept: list = field(default_factory=list)

    def step(self, change, snapshot):
        self.steps += 1
        self.kept.append(snapshot)


@pytest.mark.parametrize("cache", [NoCache(), DualCache()])
def test_parts_that_only_read_decode_alike_with_and_without_debug(cache):
    def run(debug):
        watch = Counting()
        strategy = Pipeline(TopK(2), filters={"mine": MyFilter(lambda decision: None)})
        decoder = Decoder(
            StoringHashDenoiser(), strategy, Blocks(4), cache, observers=(watch,), debug=debug
        )
        result = decoder.decode(REQUEST)
        return result.sequences, result.forwards, result.step_of, watch.steps

    assert run(debug=True) == run(debug=False)
