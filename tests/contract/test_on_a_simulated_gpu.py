"""Whatever is composed decodes on a GPU as on the processor, and never keeps the host waiting."""

import copy
import json
import logging
import warnings
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from drawing import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from interpreted import check_interpreted
from simulated_gpu import MixedDevices, SimulatedGpu, spread_over_two
from test_parts_compose import composed
from test_strategies import FOLDER, STOPS, STRATEGIES, TRANSFORMS, WIDTH, fits

from dllm_decode.decoding.cache import (
    BlockExact,
    CertaintyCache,
    DelayedCache,
    DualCache,
    NoCache,
    PeriodicCache,
    Plan,
    PrefixCache,
    VicinityCache,
)
from dllm_decode.decoding.loop import Decoder, Run
from dllm_decode.decoding.replay import ReplayedSteps
from dllm_decode.decoding.sampling import Categorical, Greedy
from dllm_decode.decoding.schedule import Blocks, SlidingWindow, WholeCanvas
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Memory, Request
from dllm_decode.errors import CapabilityError, ConfigError
from dllm_decode.kernels import dispatch, reference
from dllm_decode.kernels.noise import Noise
from dllm_decode.kernels.reference import COLUMNS
from dllm_decode.models import load_model
from dllm_decode.models.compiled import run_body
from dllm_decode.models.drafting import DraftLayer, LayerDrafter
from dllm_decode.models.frequencies import counted
from dllm_decode.strategies.adjust import Adjust
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.uncode import Uncode

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"
CACHES = {
    "none": NoCache(),
    "prefix": PrefixCache(),
    "dual": DualCache(),
    "vicinity": VicinityCache(2, 2, 1),
    "periodic": PeriodicCache(3),
    "delayed": DelayedCache(3),
    "certainty": CertaintyCache(top=2, every=3),
    "block_exact": BlockExact(WIDTH),
}
SAMPLERS = {
    "greedy": Greedy(),
    "categorical": Categorical(0.7),
    "dream": Categorical(0.2, top_p=0.95, confidence_from="sampled"),
    "top_k": Categorical(0.7, top_k=5),
    "min_p": Categorical(0.7, min_p=0.1),
    "top_h": Categorical(0.7, top_h=0.5),
    "zero": Categorical(0.0, top_p=0.9),
}
PAIRS = [
    *((name, cache, "greedy") for name in STRATEGIES for cache in CACHES),
    *((name, "none", sampler) for name in STRATEGIES for sampler in SAMPLERS),
]

SCHEDULES = {"blocks": Blocks(WIDTH), "sliding": SlidingWindow(WIDTH), "whole": WholeCanvas()}
LENGTHS = (8, 5)
REQUEST = Request(((1, 2, 3), (4,)), LENGTHS, (3, 1), reference=tuple((7,) * n for n in LENGTHS))
OPTIONS = {"llada": {}, "dream": {}, "llada2": {"mask_id": 213, "block_length": WIDTH}}


@cache
def model_of(family):
    path = str(GOLDEN / family)
    return load_model(path, device="cpu", dtype="float32", **OPTIONS[family]).denoiser


@cache
def frequencies_of(size):
    """A file of frequencies for a vocabulary of this size."""
    path = Path(FOLDER.name) / f"frequencies-{size}.json"
    path.write_text(json.dumps(counted([range(size), [1, 1, 4]], size)))
    return str(path)


@cache
def drafter_of(width):
    """A draft layer for states of this width, with weights that matter."""
    torch.manual_seed(0)
    return LayerDrafter(DraftLayer(width, width, heads=1, hidden=8).requires_grad_(False))


def decoder_of(strategy, cache="none", sampler="greedy", schedule="blocks", family="llada"):
    """The parts on the processor; None where they do not work together."""
    family = "llada2" if cache == "block_exact" else family
    if isinstance(strategy.select, Uncode):
        frequencies = frequencies_of(model_of(family).vocab.size)
        strategy = replace(strategy, select=replace(strategy.select, frequencies=frequencies))
    if isinstance(strategy.select, Adjust):
        drafter = drafter_of(model_of(family).model.config.hidden_size)
        strategy = replace(strategy, select=replace(strategy.select, weights=drafter))
    parts = (SCHEDULES[schedule], CACHES[cache], SAMPLERS[sampler])
    try:
        return Decoder(model_of(family), strategy, *parts)
    except CapabilityError:
        return None


def check(decoder, devices=1, sync_every=1, programs=(), replayed=False):
    """Decode here and there: the same tokens, one wait per step, and no upload.

    Args:
        replayed: Replay steps as graphs, where they can be.
        programs: Triton programs, to be interpreted; plain torch where there are none.
    """
    with warnings.catch_warnings(), dispatch.using("auto" if programs else "reference"):
        warnings.simplefilter("ignore", RuntimeWarning)
        want = decoder.decode(REQUEST)
        with SimulatedGpu() as gpu:
            gpu.interpret(programs)
            model = copy.deepcopy(decoder.denoiser.model)
            model = gpu.place(model) if devices == 1 else spread_over_two(gpu, model)
            compiled = AsItIs(model) if replayed else None
            there = replace(decoder.denoiser, model=model, compiled=compiled)
            strategy = copy.deepcopy(decoder.strategy)  # a drafter moves to the device for good
            parts = replace(decoder, denoiser=there, strategy=strategy, sync_every=sync_every)
            run = Run(parts, REQUEST)
            run.admit(range(REQUEST.rows))
            steps = watched(gpu, run)
            got = run.result()
    for name in ("sequences", "forwards", "step_of", "finish_reasons"):
        assert getattr(got, name) == getattr(want, name)
    return steps


@pytest.fixture
def replays(monkeypatch):
    """How many steps of each decode were replayed, and what stood in the way of more."""
    made, init = [], ReplayedSteps.__init__

    def noted(self, *given):
        init(self, *given)
        made.append(self)

    monkeypatch.setattr(ReplayedSteps, "__init__", noted)
    return made


@pytest.mark.parametrize(
    ("name", "cache", "sampler"),
    [
        ("threshold", "none", "greedy"),
        pytest.param("credit", "dual", "greedy", marks=pytest.mark.slow),
        pytest.param("topk", "none", "top_h", marks=pytest.mark.slow),
    ],
)
def test_a_step_is_captured_once_per_shape_and_replayed_with_the_processors_tokens(
    name, cache, sampler, replays
):
    steps = check(decoder_of(composed(name, stop="eot"), cache, sampler), replayed=True)
    (made,) = replays
    assert made.replays > 1
    if name == "threshold":
        assert min(outside(step) for step in steps) < 30  # what is left beside the graph


@pytest.mark.slow
@pytest.mark.parametrize("place", range(0, len(PAIRS), 8))
def test_every_composition_replays_what_it_can_and_gives_the_same_tokens(place, replays):
    for name, policy, sampler in PAIRS[place : place + 8]:
        replays.clear()
        stop = "eot" if fits(name, "eot") else "never"
        decoder = decoder_of(composed(name, stop=stop), policy, sampler)
        if decoder is not None:
            check(decoder, replayed=True)
            assert replays


@dataclass(frozen=True)
class Looks(TopK):
    """Waits for the device in every step."""

    def decide(self, view, memory):
        assert bool(view.open.any())
        return super().decide(view, memory)


@dataclass
class Tally(Memory):
    """Counts on the host, where a graph does not."""

    calls: int


@dataclass(frozen=True)
class Counts(TopK):
    def begin(self, request, snapshot):
        return Tally(0)

    def decide(self, view, memory):
        memory.calls += 1
        return super().decide(view, memory)


@dataclass(frozen=True)
class Asks(TopK):
    """Asks for a further pass."""

    def decide(self, view, memory):
        view.probe(view.tokens)
        return super().decide(view, memory)


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        (Looks(1), "operation not permitted when stream is capturing: _local_scalar_dense"),
        pytest.param(
            *(Counts(1), "a part changes what it remembers in number, shape or kind"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(Asks(1), "a part asks the model for further passes"), marks=pytest.mark.slow
        ),
    ],
)
def test_what_cannot_be_captured_runs_as_it_is_and_says_why(strategy, reason, replays, caplog):
    decoder = decoder_of(Pipeline(strategy))
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        want = decoder.decode(REQUEST)
        with SimulatedGpu() as gpu, dispatch.using("reference"):
            model = gpu.place(copy.deepcopy(decoder.denoiser.model))
            there = replace(decoder.denoiser, model=model, compiled=AsItIs(model))
            got = replace(decoder, denoiser=there).decode(REQUEST)
    assert (got.sequences, got.forwards, got.step_of) == (
        want.sequences,
        want.forwards,
        want.step_of,
    )
    (message,) = [text for text in caplog.messages if "replayed" in text]
    assert message.startswith(f"steps are not replayed as CUDA graphs: {reason}")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sync_every": 4}, "sync_every=4 keeps steps until the next sync; use 1"),
        ({"record": True}, "the trace and observers keep what a step changed; decode without"),
        ({"debug": True}, "debug=true looks at every step on the host"),
    ],
)
def test_what_keeps_steps_is_not_replayed_and_says_so(options, reason, caplog):
    decoder = decoder_of(Pipeline(TopK(1)))
    with SimulatedGpu() as gpu, caplog.at_level(logging.WARNING):
        model = gpu.place(copy.deepcopy(decoder.denoiser.model))
        there = replace(decoder.denoiser, model=model, compiled=AsItIs(model))
        replace(decoder, denoiser=there, **options).begin(REQUEST)
    assert f"not replayed as CUDA graphs: {reason}" in caplog.text


def test_on_a_processor_the_same_function_runs_as_it_is(replays, caplog):
    decoder = decoder_of(Pipeline(TopK(2)))
    here = replace(decoder.denoiser, compiled=AsItIs(decoder.denoiser.model))
    with caplog.at_level(logging.WARNING):
        got = replace(decoder, denoiser=here).decode(REQUEST)
    assert got.sequences == decoder.decode(REQUEST).sequences
    assert not replays and not caplog.messages


class AsItIs:
    """A compiled body that is not compiled."""

    mode = "reduce-overhead"

    def __init__(self, model):
        self.model = model

    def __call__(self, *given):
        return run_body(self.model, *given)


def watched(gpu, run):
    """Step to the end; what each step launched, where no row left in it."""
    steps = []
    while run.live:
        before = len(run.live)
        gpu.clear()
        run.step()
        stayed = len(run.live) == before
        # which rows ask for a probe has to be known before its pass, or it would run for all
        waits = [wait for wait in gpu.waits if " at passes.py" not in wait]
        assert len(gpu.waits) - len(waits) <= 1, gpu.waits
        # rows that leave are fetched, and those that stay are moved together
        assert len(waits) <= (1 if stayed else 2), waits
        assert all(" at monitor.py" in wait for wait in waits), waits
        assert not gpu.reciprocals
        if len(steps) > 1:  # constants are uploaded once
            assert len(gpu.uploads) <= (0 if stayed else 4), gpu.uploads
        steps.append(gpu.launches + gpu.programs if stayed else None)
    return [step for step in steps[2:] if step is not None]


BODY = ("transformers/", "compiled.py", "llada.py", "llada2.py", "key_value.py", "adapter.py")


def outside(launches):
    """Launches outside the model."""
    return sum(n for line, n in launches.items() if not line.startswith(BODY))


@pytest.mark.parametrize(
    ("name", "cache", "sampler", "devices", "sync_every", "budget"),
    [
        pytest.param("threshold", "dual", "greedy", 1, 1, 150, marks=pytest.mark.slow),
        ("credit", "none", "greedy", 2, 1, 180),
        pytest.param("threshold", "none", "greedy", 1, 1, 120, marks=pytest.mark.slow),
        ("dream_topk_margin", "none", "top_h", 1, 4, 330),
    ],
)
def test_a_decode_on_a_gpu_is_the_processors_waits_once_per_step_and_launches_little(
    name, cache, sampler, devices, sync_every, budget
):
    strategy = composed(name, stop="eot")
    steps = check(decoder_of(strategy, cache, sampler), devices, sync_every)
    assert steps
    for launches in steps:
        assert outside(launches) <= budget, launches.most_common()


@pytest.mark.parametrize("policy", ["none", "dual"])
def test_with_the_head_on_another_device_no_logits_move(policy):
    decoder = decoder_of(composed("credit", stop="eot"), policy)
    with SimulatedGpu() as gpu, dispatch.using("reference"):
        model = spread_over_two(gpu, copy.deepcopy(decoder.denoiser.model))
        run = Run(replace(decoder, denoiser=replace(decoder.denoiser, model=model)), REQUEST)
        assert run.batch.device == torch.device("cuda:1"), "that of the head"
        run.admit(range(REQUEST.rows))
        gpu.clear()
        run.step()
        back = [int(move.split()[0]) for move in gpu.moves if "cuda:1 to cuda:0" in move]
        there = [int(move.split()[0]) for move in gpu.moves if "cuda:0 to cuda:1" in move]
    columns = REQUEST.rows * REQUEST.width
    assert back and max(back) <= columns, "ids, positions and what may be seen"
    assert max(there) <= columns * model.config.hidden_size
    assert len(gpu.moves) <= 12, gpu.moves


def test_on_a_gpu_attention_is_given_one_additive_mask_and_none_where_nothing_is_hidden():
    denoiser, masks = model_of("llada"), []
    even, uneven = torch.ones(2, 8).bool(), torch.arange(8) >= torch.tensor([[0], [3]])
    tokens, index = torch.arange(16).view(2, 8), torch.arange(8).expand(2, 8)
    want = denoiser(tokens, uneven, index, Plan(complete=False))
    with SimulatedGpu() as gpu, dispatch.using("reference"):
        model = gpu.place(copy.deepcopy(denoiser.model))
        for layer in model.model.layers:
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
            )
        there = replace(denoiser, model=model)
        given = [plane.to("cuda") for plane in (tokens, index)]
        there(given[0], even.to("cuda"), given[1], Plan(complete=True))
        layers = len(masks)
        got = there(given[0], uneven.to("cuda"), given[1], Plan(complete=False))
    assert masks[:layers] == [None] * layers
    assert len({id(mask.inner) for mask in masks[layers:]}) == 1, "the same in every layer"
    assert masks[-1].dtype == torch.float32 and masks[-1].shape == (2, 1, 8, 8)
    torch.testing.assert_close(got.inner[uneven], want[uneven], atol=1e-4, rtol=1e-3)


def test_the_simulation_notices_what_a_gpu_would_not_forgive():
    with SimulatedGpu() as gpu:
        values = torch.arange(3.0, device="cuda")
        here, other = torch.ones(3), torch.ones(3, device="cuda:1")
        for mixed in (lambda: values + here, lambda: values + other, lambda: here[values.long()]):
            with pytest.raises(MixedDevices):
                mixed()
        for wait in (
            lambda: bool(values.all()),
            lambda: int(values.max()),
            lambda: values[values > 1],
            lambda: values.nonzero(),
            lambda: values.tolist(),
            lambda: values.cpu(),
            lambda: values.masked_select(values > 1),
        ):
            gpu.clear()
            wait()
            assert len(gpu.waits) == 1, gpu.waits
        for upload in (
            lambda: torch.tensor([1], device="cuda"),
            lambda: here.to("cuda"),
            lambda: here.to(values.device, non_blocking=True),
            lambda: values[torch.tensor([0])],
            lambda: values[[0, 1]],
            lambda: values.copy_(here),
        ):
            gpu.clear()
            upload()
            assert len(gpu.uploads) == 1, gpu.uploads
        gpu.clear()
        assert (values.view(3, 1)[1:] / 3 + 1).device == torch.device("cuda:0")
        assert gpu.launches.total() == 2 and len(gpu.reciprocals) == 1


SETTINGS = {name: SAMPLERS[name] for name in SAMPLERS if name != "greedy"}


@pytest.mark.parametrize("sampler", SETTINGS)
def test_no_sampler_makes_a_float64_plane_of_the_vocabulary_or_waits(sampler):
    vocabulary = COLUMNS + 5
    logits = torch.randn(1, 2, vocabulary)
    noise = Noise(torch.tensor([4]), torch.tensor([1]), torch.tensor([[0, 1]]))
    drawn = SETTINGS[sampler].predict(logits, torch.tensor([3]), noise)
    with SimulatedGpu() as gpu, dispatch.using("reference"):
        there = Noise(*(plane.to("cuda") for plane in (noise.seeds, noise.step, noise.index)))
        logits, banned = logits.to("cuda"), torch.tensor([3]).to("cuda")
        gpu.clear()
        pred = SETTINGS[sampler].predict(logits, banned, there)
        assert pred.token.tolist() == drawn.token.tolist()
        confidence = pred.confidence
        assert gpu.largest[torch.float64] <= 2 * COLUMNS
        assert gpu.waits == ["tolist at elsewhere"] and not gpu.uploads
    torch.testing.assert_close(confidence.inner, drawn.confidence)


@examples(10)
@given(st.lists(st.lists(st.integers(-2, 2), min_size=7, max_size=7), min_size=1), st.data())
def test_the_largest_logits_with_ties_are_found_there_without_a_wait(rows, data):
    logits = torch.tensor(rows, dtype=data.draw(st.sampled_from([torch.float32, torch.float64])))
    logits = torch.where(logits < -1, -0.0, logits)
    k, bans = data.draw(st.integers(1, 7)), data.draw(st.sampled_from([None, [2], [0, 6]]))
    here = reference.top_k(logits, k, None if bans is None else torch.tensor(bans))
    with SimulatedGpu() as gpu:
        banned = None if bans is None else torch.tensor(bans, device="cuda")
        there = reference.top_k(logits.to("cuda"), k, banned)
        assert not gpu.waits
    assert torch.equal(there[0].inner, here[0]) and torch.equal(there[1].inner, here[1])


@pytest.mark.slow
@pytest.mark.parametrize("place", range(0, len(PAIRS), 8))
def test_every_strategy_with_every_cache_and_every_sampler_decodes_there_as_here(place):
    for name, policy, sampler in PAIRS[place : place + 8]:
        stop = "eot" if fits(name, "eot") else "never"
        decoder = decoder_of(composed(name, stop=stop), policy, sampler)
        if decoder is not None:
            check(decoder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "schedule"), [*(("dream", name) for name in SCHEDULES), ("llada2", "blocks")]
)
@pytest.mark.parametrize("devices", [1, 2])
def test_every_schedule_and_model_decodes_there_as_here(family, schedule, devices):
    for policy in ("none", "dual"):
        strategy = composed("credit", stop="eot")
        check(decoder_of(strategy, policy, schedule=schedule, family=family), devices, 4)


@pytest.mark.parametrize("name", [pytest.param("freedave", marks=pytest.mark.slow), "left_repeat"])
def test_what_once_asked_the_device_again_in_every_step_no_longer_does(name):
    """Rows that a probe has told about come with the sync; nobody looks at the sign of a bias."""
    if name == "freedave":
        check(decoder_of(composed(name, stop="never")))
    else:
        check(decoder_of(composed("threshold", [name], stop="never")))


def test_a_draft_layer_is_moved_there_once_and_decodes_there_as_here():
    check(decoder_of(composed("adjust", stop="eot"), sampler="categorical"), devices=2)


@pytest.mark.slow
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("stop", STOPS)
def test_every_transform_filter_and_stop_rule_decodes_there_as_here(transform, stop):
    name = "threshold" if fits("threshold", stop) else "learn2pd"
    for sampler in ("greedy", "categorical"):
        check(decoder_of(composed(name, [transform], ["at_most"], stop=stop), sampler=sampler))


@examples(10)
@given(
    name=st.sampled_from(STRATEGIES),
    cache=st.sampled_from(sorted(CACHES)),
    sampler=st.sampled_from(sorted(SAMPLERS)),
    transforms=st.lists(st.sampled_from(TRANSFORMS), unique=True, max_size=2),
    devices=st.integers(1, 2),
    sync_every=st.sampled_from([1, 4]),
)
@pytest.mark.slow
def test_any_composition_decodes_there_as_here(
    name, cache, sampler, transforms, devices, sync_every
):
    stop = "eot" if fits(name, "eot") else "never"
    try:
        decoder = decoder_of(composed(name, transforms, stop=stop), cache, sampler)
        if decoder is not None:
            check(decoder, devices, sync_every)
    except ConfigError:  # parts, or a model, that refuse each other
        assume(False)


@pytest.mark.slow
def test_the_triton_programs_decode_there_as_the_processor_under_the_interpreter():
    pytest.importorskip("triton", reason="Triton is published for Linux only")
    check_interpreted(Path(__file__).parent / "simulated_kernels.py", seconds=1800)
