"""Cache policies: what is recomputed, and that nothing stale is ever used for what it was not."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cache as remember
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode.decoding.cache import (
    MEMORIES,
    BlockExact,
    CertaintyCache,
    DelayedCache,
    DualCache,
    NoCache,
    PeriodicCache,
    Plan,
    PrefixCache,
    Refresh,
    VicinityCache,
    columns_of,
    mask_of,
)
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder, Run
from dllm_decode.decoding.schedule import Blocks, WholeCanvas
from dllm_decode.decoding.strategy import Pipeline, Strategy
from dllm_decode.decoding.types import Decision, Request, StepView, Vocab
from dllm_decode.errors import CapabilityError, ConfigError, PluginError
from dllm_decode.models.adapter import TransformersDenoiser
from dllm_decode.models.key_value import FixedBuffers, KeyValueStore
from dllm_decode.strategies.eot import CommittedEot
from dllm_decode.strategies.fixed import TopK

VOCAB = Vocab(size=23, mask_id=22, eot_ids=(21,))
APPROXIMATE = [
    PrefixCache(),
    DualCache(),
    VicinityCache(before=2, after=1, warmup=2),
    PeriodicCache(every=3),
    DelayedCache(every=4),
    CertaintyCache(top=3, sigma=2.0, every=4),
]
EVERY_STEP_ALL = [
    VicinityCache(before=99, after=99, warmup=1),
    PeriodicCache(every=1),
    DelayedCache(every=1),
    CertaintyCache(top=99, every=1),
]


@remember
def model(kv_heads: int = 2):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=23, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=kv_heads, max_position_embeddings=64,
        is_causal=False, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    network = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        network.lm_head.weight.mul_(12)
    return network


def denoiser(block_length: int | None = None, kv_heads: int = 2) -> TransformersDenoiser:
    return TransformersDenoiser(model(kv_heads), VOCAB, block_length=block_length)


@dataclass(frozen=True)
class Bold(Strategy):
    threshold: float = 0.25

    def decide(self, view: StepView, memory: None) -> Decision:
        return Decision(view.open & (view.pred.confidence > self.threshold))


def decoder(cache, *, schedule=None, strategy=None, block_length=None, **options) -> Decoder:
    pipeline = Pipeline(strategy or Bold(), stop={"eot": CommittedEot()})
    net = denoiser(block_length)
    return Decoder(net, pipeline, schedule or Blocks(4), cache=cache, **options)


def name(cache) -> str:
    return type(cache).__name__


PROMPTS = ((1, 2, 3, 4, 5), (6,), (7, 8, 9), (2, 2), (11, 3, 1, 1), (5, 19))
REQUEST = Request(PROMPTS, (11, 6, 8, 12, 5, 9))


def outcome(result, row):
    return result.sequences[row], result.forwards[row], result.finish_reasons[row]


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_columns_and_masks_are_two_ways_to_say_the_same(rows):
    mask = torch.tensor(rows)
    columns = columns_of(mask)
    assert torch.equal(mask_of(columns, 5), mask)


@given(st.data(), st.sampled_from([1, 2, 4]))
def test_with_unchanged_tokens_any_columns_give_the_logits_of_the_full_pass(data, kv_heads):
    net = denoiser(kv_heads=kv_heads)
    width = 10
    row_of_tokens = st.lists(st.integers(0, 22), min_size=width, max_size=width)
    tokens = torch.tensor(data.draw(st.lists(row_of_tokens, min_size=1, max_size=3)))
    rows = tokens.shape[0]
    pads = torch.tensor([data.draw(st.integers(0, 3)) for _ in range(rows)])
    live = torch.arange(width) >= pads[:, None]
    store = net.allocate(rows, width)
    store.join(rows)
    everything = torch.arange(width).expand(rows, -1)
    full = net(tokens, live, everything, Plan())
    net(tokens, live, everything, Plan(columns_of(live), live, store))
    chosen = torch.tensor([
        data.draw(st.lists(st.booleans(), min_size=width, max_size=width)) for _ in range(rows)
    ])  # fmt: skip
    chosen = (chosen & live) | (torch.arange(width) == width - 1)
    columns = columns_of(chosen)
    again = net(tokens, live, columns, Plan(columns, live, store))
    row, slot = (columns >= 0).nonzero(as_tuple=True)
    expected = full[row, columns[row, slot]]
    torch.testing.assert_close(again[row, slot], expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("cache", EVERY_STEP_ALL, ids=name)
@pytest.mark.parametrize("schedule", [Blocks(4), WholeCanvas()], ids=["blocks", "whole"])
def test_a_policy_that_recomputes_everything_equals_no_cache(cache, schedule):
    plain = decoder(NoCache(), schedule=schedule).decode(REQUEST)
    stored = decoder(cache, schedule=schedule).decode(REQUEST)
    assert stored.sequences == plain.sequences
    assert stored.forwards == plain.forwards


@pytest.mark.one_in(2)
@pytest.mark.parametrize("cache", [*APPROXIMATE, NoCache()], ids=name)
@pytest.mark.parametrize("max_batch", [2, 6])
def test_a_row_decodes_alike_alone_and_in_a_refilled_batch(cache, max_batch):
    one = decoder(cache)
    together = Engine(one, max_batch).decode(REQUEST)
    for row in range(REQUEST.rows):
        assert outcome(together, row) == outcome(one.decode(REQUEST.take([row])), 0)


@pytest.mark.parametrize("cache", APPROXIMATE, ids=name)
def test_a_cached_decode_ends_without_masks_and_within_its_bound(cache):
    result = decoder(cache).decode(REQUEST)
    for sequence, forwards, length in zip(
        result.sequences, result.forwards, REQUEST.lengths, strict=True
    ):
        assert VOCAB.mask_id not in sequence
        assert forwards <= length


def test_block_exact_equals_no_cache_on_a_block_causal_model():
    schedule = Blocks(4)
    for strategy in (Bold(), Bold(0.0), Bold(1.0)):
        plain = decoder(NoCache(), block_length=4, schedule=schedule, strategy=strategy)
        exact = decoder(BlockExact(4), block_length=4, schedule=schedule, strategy=strategy)
        expected, result = plain.decode(REQUEST), exact.decode(REQUEST)
        assert result.sequences == expected.sequences
        assert result.forwards == expected.forwards
        assert Engine(exact, 2).decode(REQUEST).sequences == expected.sequences


@dataclass(frozen=True)
class Wavering(Bold):
    """Opens the first settled position again whenever it commits at least two."""

    revocable: ClassVar[bool] = True

    def decide(self, view: StepView, memory: None) -> Decision:
        decision = super().decide(view, memory)
        first = view.settled & (view.settled.cumsum(1) == 1)
        remask = first & (decision.commit.sum(1, keepdim=True) >= 2)
        return Decision(decision.commit, remask=remask)


@pytest.mark.parametrize("cache", [*EVERY_STEP_ALL, DelayedCache(every=99)], ids=name)
def test_a_column_that_is_opened_again_is_recomputed(cache):
    wavering = decoder(cache, strategy=Wavering())
    result = wavering.decode(REQUEST)
    assert all(VOCAB.mask_id not in sequence for sequence in result.sequences)
    if cache in EVERY_STEP_ALL:
        assert result.sequences == decoder(NoCache(), strategy=Wavering()).decode(REQUEST).sequences


def test_block_exact_stays_exact_under_re_masking():
    schedule = Blocks(4)
    options = {"block_length": 4, "schedule": schedule, "strategy": Wavering()}
    plain = decoder(NoCache(), **options).decode(REQUEST)
    assert decoder(BlockExact(4), **options).decode(REQUEST).sequences == plain.sequences


class Watch:
    """A denoiser that notes the plans it gets."""

    def __init__(self) -> None:
        self.inner = denoiser()
        self.vocab, self.device, self.max_length = VOCAB, self.inner.device, None
        self.plans: list[Plan] = []

    def allocate(self, rows, columns):
        return self.inner.allocate(rows, columns)

    def __call__(self, tokens, live, index, plan):
        self.plans.append(plan)
        return self.inner(tokens, live, index, plan)


def columns_of_steps(cache, threshold=0.0, strategy=None) -> list[list[int]]:
    watch = Watch()
    pipeline = Pipeline(strategy or Bold(threshold))
    Decoder(watch, pipeline, Blocks(4), cache=cache).decode(Request(((1, 2, 3),), 12))
    return [[c for c in plan.columns[0].tolist() if c >= 0] for plan in watch.plans]


def test_dual_recomputes_the_block_and_prefix_the_suffix_too():
    everything = list(range(15))
    one_by_one = 1.0
    assert columns_of_steps(DualCache(), one_by_one)[:5] == [
        everything, [3, 4, 5, 6], [3, 4, 5, 6], [3, 4, 5, 6], everything,
    ]  # fmt: skip
    assert columns_of_steps(PrefixCache(), one_by_one)[4:6] == [everything, list(range(7, 15))]


def test_vicinity_adds_neighbours_after_its_warm_up():
    steps = columns_of_steps(VicinityCache(before=2, after=1, warmup=2), 1.0)
    assert steps[:4] == [list(range(15))] * 2 + [[1, 2, 3, 4, 5, 6, 7]] * 2


def test_periodic_recomputes_all_columns_now_and_then():
    steps = columns_of_steps(PeriodicCache(every=2), 1.0)
    assert [len(step) for step in steps[:4]] == [15, 4, 15, 4]


def test_delayed_recomputes_undecided_and_just_committed_columns():
    steps = columns_of_steps(DelayedCache(every=99), 1.0)
    assert len(steps[0]) == 15
    assert [len(step) for step in steps[1:4]] == [12, 11, 10]


def test_delayed_recomputes_everything_in_every_so_many_steps():
    sizes = [len(step) for step in columns_of_steps(DelayedCache(every=3), 1.0)]
    assert [at for at, size in enumerate(sizes) if size == 15] == [0, 3, 6, 9]
    assert {len(step) for step in columns_of_steps(DelayedCache(every=1), 1.0)} == {15}


def test_certainty_commits_only_where_logits_are_fresh():
    cache = CertaintyCache(top=2, every=99)

    def trace(threshold):
        one = Decoder(Watch(), Pipeline(Bold(threshold)), WholeCanvas(), cache=cache, record=True)
        return one.decode(Request(((1, 2, 3),), 12)).trace

    assert len(trace(0.0)) == 1, "the first pass computes every column"
    for change in trace(1.0)[1:]:
        just_committed = 1
        assert int((change.index >= 0).sum()) <= 2 + just_committed
        assert int(change.commit.sum()) == 1


def test_the_dropped_tail_is_neither_computed_nor_attended_to():
    @dataclass(frozen=True)
    class Short(CommittedEot):
        def horizon(self, snapshot, view, change, memory):
            return torch.minimum(
                snapshot.horizon, torch.full_like(snapshot.horizon, snapshot.start + 6)
            )

    watch = Watch()
    pipeline = Pipeline(Bold(1.0), stop={"short": Short()})
    Decoder(watch, pipeline, Blocks(4), cache=DualCache()).decode(Request(((1, 2, 3),), 12))
    for plan in watch.plans[1:]:
        assert int(plan.columns.max()) < 3 + 6
        assert not plan.valid[:, 3 + 6 :].any()


@dataclass(frozen=True)
class Curious(Bold):
    def decide(self, view: StepView, memory: None) -> Decision:
        view.probe(torch.full_like(view.tokens, 5))
        return super().decide(view, memory)


def test_what_a_probe_has_stored_is_computed_again_in_the_next_pass():
    """Also behind the window, where nothing else asks for it."""
    steps = columns_of_steps(DualCache(), strategy=Curious(1.0))
    everything, block = list(range(15)), [3, 4, 5, 6]
    assert steps[:4] == [everything, everything, everything, everything]
    steps = columns_of_steps(DelayedCache(every=99), strategy=Curious(1.0))
    assert steps[0] == steps[1] == everything, "the first probe stored the prompt as well"
    assert steps[2] == everything and set(block) <= set(steps[4])


def test_a_probe_changes_nothing_that_is_exact():
    options = {"block_length": 4, "schedule": Blocks(4)}
    plain = decoder(NoCache(), strategy=Curious(), **options).decode(REQUEST)
    stored = decoder(BlockExact(4), strategy=Curious(), **options).decode(REQUEST)
    assert stored.sequences == plain.sequences
    assert stored.forwards == plain.forwards


def test_the_store_holds_exactly_the_bytes_of_all_columns():
    net = denoiser(kv_heads=2)
    run = Run(Decoder(net, Pipeline(Bold()), Blocks(4), cache=DualCache()), REQUEST, capacity=3)
    run.admit([0, 1, 2])
    run.step()
    layers, heads, size, columns = 2, 2, 8, 5 + 12
    assert run.batch.store.bytes == layers * 2 * 3 * columns * heads * size * 8


def test_a_store_has_room_for_the_rows_there_are_and_no_more():
    run = Run(decoder(DualCache()), REQUEST, capacity=10**9)
    run.admit([0, 1])
    run.step()
    assert run.batch.store.rows == REQUEST.rows


@dataclass(frozen=True)
class NowAndThen(DualCache):
    """Computes everything without the store in the second step of a block."""

    remembers: ClassVar[tuple[str, ...]] = ("age",)

    def plan(self, snapshot, index, fresh, memory):
        refresh = super().plan(snapshot, index, fresh, memory)
        return None if bool((memory.age == 1).any()) else refresh


def test_a_policy_may_do_without_the_store_in_some_steps():
    rows = Request((tuple(range(1, 5)), tuple(range(1, 12))), (12, 3))
    together = decoder(NowAndThen(), strategy=TopK(1)).decode(rows)
    for row in range(2):
        alone = decoder(NowAndThen(), strategy=TopK(1)).decode(rows.take([row]))
        assert outcome(alone, 0) == outcome(together, row)


def test_a_policy_that_says_it_stores_nothing_may_not_plan_a_refresh():
    stores_nothing = type("Forgot", (DualCache,), {"stores": False})
    with pytest.raises(PluginError, match=r"^cache \(Forgot\): .* which stores = False rules out"):
        decoder(stores_nothing()).decode(REQUEST)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"logits": "everything"}, "logits must be one of canvas, .*; got 'everything'"),
        ({"attention": "blocks"}, "attention must be one of any, block_causal; got 'blocks'"),
        ({"remembers": ("agge",)}, r"remembers must be a tuple of age, .*; got \('agge',\)"),
        ({"remembers": "age"}, "remembers must be a tuple of age, .*; got 'age'"),
    ],
)
def test_a_policy_that_declares_what_means_nothing_is_refused(declared, message):
    with pytest.raises(CapabilityError, match=rf"^cache \(Mine\): {message}"):
        decoder(type("Mine", (DualCache,), declared)())


def test_rows_that_join_may_not_be_planned_otherwise_than_those_before():
    class Moody(DualCache):
        def plan(self, snapshot, index, fresh, memory):
            refresh = super().plan(snapshot, index, fresh, memory)
            return refresh if len(snapshot.rows) > 1 else None

    run = Run(decoder(Moody()), REQUEST)
    run.admit([0, 1])
    with pytest.raises(PluginError, match="plan returned a Refresh for some rows of a batch and"):
        run.admit([2])


def test_what_a_plan_says_of_padding_is_left_out():
    class Greedy(DualCache):
        def plan(self, snapshot, index, fresh, memory):
            everything = torch.ones_like(snapshot.live)
            return Refresh(everything, everything)

    for row in range(REQUEST.rows):
        alone = decoder(Greedy()).decode(REQUEST.take([row]))
        assert outcome(alone, 0) == outcome(decoder(Greedy()).decode(REQUEST), row)


def test_a_store_that_takes_over_buffers_forgets_what_they_held():
    buffers = FixedBuffers(layers=1)
    first = buffers.store(rows=1, columns=4)
    first.aim(torch.arange(4)[None], 4)
    first.update(torch.full((1, 1, 4, 2), torch.nan), torch.full((1, 1, 4, 2), torch.nan), 0)
    layer = first.positional[0]
    del first
    second = buffers.store(rows=1, columns=4)
    assert second.positional[0] is layer
    assert not layer.keys.any() and not layer.values.any()


def test_nothing_is_kept_after_a_run():
    run = Run(decoder(DualCache()), REQUEST)
    run.admit(range(REQUEST.rows))
    while run.live:
        run.step()
    run.batch.abandon()
    assert run.memory is None
    assert run.batch.store is None and run.batch.cache_memory is None


@pytest.mark.parametrize("cache", [*APPROXIMATE, BlockExact(4)], ids=name)
def test_a_policy_remembers_what_it_reads_and_nothing_else(cache):
    def sequences(kept):
        policy = copy(cache)
        type_ = type(name(cache), (type(cache),), {"remembers": kept})
        object.__setattr__(policy, "__class__", type_)
        return decoder(policy, block_length=4).decode(REQUEST).sequences

    everything = sequences(MEMORIES)
    assert sequences(cache.remembers) == everything
    for kept in cache.remembers:
        rest = tuple(other for other in cache.remembers if other != kept)
        message = rf"^cache \({name(cache)}\) reads memory.{kept}, .*; name '{kept}' in its `rem"
        with pytest.raises(PluginError, match=message):
            sequences(rest)


def test_a_policy_with_a_rule_of_its_own_remembers_everything():
    class Patient(DualCache):
        def recompute(self, step):
            return super().recompute(step) | (step.memory.age > 2)[:, None] & step.snapshot.live

    class Renamed(DualCache):
        pass

    assert tuple(Patient.remembers) == MEMORIES and Renamed.remembers == DualCache.remembers
    assert decoder(Patient()).decode(REQUEST).undecided == (0,) * REQUEST.rows


@pytest.mark.parametrize("firsts", [[2], [2, 2, 2], [0, 3, 2]])
@pytest.mark.parametrize("told", [True, False])
def test_keys_and_values_are_written_to_their_columns_however_they_are_named(firsts, told):
    torch.manual_seed(0)
    store, rows, width = KeyValueStore(layers=1, rows=4, columns=9), len(firsts), 4
    before = torch.randn(2, 4, 3, 9, 2)
    layer = store.positional[0]
    layer.keys, layer.values = before.clone()
    new = torch.randn(2, rows, 3, width, 2)
    runs = [slice(first, first + width) for first in firsts]
    runs = runs[:1] if len({*firsts}) == 1 else runs
    store.aim(torch.tensor(firsts)[:, None] + torch.arange(width), 8, runs if told else None)
    found = store.update(*new, layer=0)
    for plane, old, states in zip(found, before, new, strict=True):
        expected = old[:rows, :, :8].clone()
        for row, first in enumerate(firsts):
            expected[row, :, first : first + width] = states[row]
        assert torch.equal(plane, expected)


def test_a_plan_says_where_columns_are_a_run():
    def runs(request, cache):
        watch = Watch()
        Decoder(watch, Pipeline(Bold(1.0)), Blocks(4), cache=cache).decode(request)
        for plan in watch.plans:
            told = plan.runs or ()
            for columns, run in zip(plan.columns.tolist(), told * len(plan.columns), strict=False):
                assert columns == [*range(run.start, run.stop)]
        return [plan.runs and len(plan.runs) for plan in watch.plans]

    alike = Request(((1, 2), (3, 4)), 8)
    assert {*runs(alike, DualCache())} == {1}
    assert None in runs(alike, DelayedCache(every=99))  # what is decided lies between
    padded = runs(Request(((1, 2, 3), (4,)), 8), DualCache())
    assert padded[:3] == [None, 1, 1]  # the first pass needs more of the longer prompt


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VicinityCache(before=-1), "before must be a whole number >= 0, got -1"),
        (lambda: VicinityCache(after=-1), "after must be"),
        (lambda: VicinityCache(warmup=0), "warmup must be a whole number >= 1"),
        (lambda: PeriodicCache(every=0), "every must be"),
        (lambda: DelayedCache(every=0), "every must be"),
        (lambda: CertaintyCache(top=0), "top must be"),
        (lambda: CertaintyCache(sigma=0.0), r"sigma must lie in \(0.0, inf\]"),
        (lambda: BlockExact(0), "length must be"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
