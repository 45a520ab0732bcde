"""Drafts between two passes: what a perfect and a useless layer give, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import requests
from safetensors.torch import load_file, save_file
from torch import Tensor

from dllm_decode.decoding.cache import DualCache, Plan
from dllm_decode.decoding.denoiser import Capabilities
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.sampling import Categorical, Greedy
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.trace import StepRecord
from dllm_decode.decoding.types import Request
from dllm_decode.errors import CapabilityError, CheckpointError, ConfigError
from dllm_decode.evaluation.data import Question
from dllm_decode.evaluation.metrics import METRICS, DecodedRow, Sample, sample_of
from dllm_decode.models.drafting import DraftLayer, LayerDrafter, rotated
from dllm_decode.strategies.adjust import Adjust
from dllm_decode.strategies.at_most import AtMost
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.eot import CommittedEot
from dllm_decode.strategies.fixed import FixedSchedule, TopK
from dllm_decode.strategies.freedave import FreeDave
from dllm_decode.strategies.suppress import BanTokens
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.strategies.wino import Wino
from dllm_decode.testing import VOCAB, HashDenoiser, StoringHashDenoiser

decodes = examples(3)
RULES = {
    "one": lambda: TopK(1, "entropy"),
    "random": lambda: TopK(2, "random"),
    "threshold": lambda: ConfidenceThreshold(0.4),
    "schedule": lambda: FixedSchedule(3),
    "pipeline": lambda: Pipeline(TopK(3), {"ban": BanTokens((2,))}, {"two": AtMost(2)}),
    "credit": lambda: Pipeline(ConfidenceThreshold(0.5), {"credit": TraceCredit()}),
}


def perfect(model: Capabilities, states: Tensor, tokens: Tensor, live: Tensor) -> Tensor:
    """What the model itself says of the new canvas."""
    everywhere = torch.arange(tokens.shape[1]).expand_as(tokens)
    assert model.states is not None
    return model.states(tokens, live, everywhere, Plan())


def useless(model: Capabilities, states: Tensor, tokens: Tensor, live: Tensor) -> Tensor:
    return states


@pytest.mark.parametrize("name", RULES)
@decodes
@given(requests(), st.integers(0, 4), st.sampled_from([Greedy(), Categorical(1.0)]))
def test_with_a_perfect_layer_it_gives_the_tokens_of_the_rule_alone_in_fewer_passes(
    name: str, case: Any, drafts: int, sampler: Any
) -> None:
    prompts, length, block = case
    request, parts = Request(prompts, length), {"schedule": Blocks(block), "sampler": sampler}
    alone = Decoder(HashDenoiser(), RULES[name](), **parts).decode(request)
    drafted = Decoder(HashDenoiser(), Adjust(RULES[name](), drafts, perfect), **parts)
    result = drafted.decode(request)
    assert result.sequences == alone.sequences
    for passes, count, steps in zip(result.forwards, result.drafts, alone.forwards, strict=True):
        assert passes + count == steps, "drafts are counted, and are no forwards"
    if name == "one":
        blocks = [min(block, length - begin) for begin in range(0, length, block)]
        assert {*result.forwards} == {sum(math.ceil(size / (drafts + 1)) for size in blocks)}


@decodes
@given(requests(), st.integers(0, 4), st.sampled_from(["confidence", "entropy", "margin"]))
def test_with_a_layer_that_changes_nothing_it_is_top_k(case: Any, drafts: int, order: str) -> None:
    prompts, length, block = case
    request, parts = Request(prompts, length), {"schedule": Blocks(block)}
    model = HashDenoiser(levels=4)  # with ties
    together = Decoder(model, TopK(drafts + 1, order), **parts).decode(request)
    drafted = Decoder(model, Adjust(TopK(1, order), drafts, useless), **parts).decode(request)
    assert drafted.sequences == together.sequences
    assert drafted.forwards == together.forwards


def test_a_draft_never_proposes_what_is_never_generated() -> None:
    def pushes(model: Capabilities, states: Tensor, tokens: Tensor, live: Tensor) -> Tensor:
        states = states.clone()
        states[..., list(VOCAB.never_generated)] = 1e6
        return states

    request = Request(((1, 2), (3,)), 8)
    for sampler in (Greedy(), Categorical(1.0)):
        result = Decoder(HashDenoiser(), Adjust(drafts=3, weights=pushes), sampler=sampler)
        for row in result.decode(request).sequences:
            assert not {*row} & {*VOCAB.never_generated}


def test_drafts_stand_apart_in_changes_traces_results_and_samples() -> None:
    model = HashDenoiser()
    decoder = Decoder(model, Adjust(drafts=2, weights=perfect), Blocks(4), record=True)
    result = decoder.decode(Request(((1, 2), (3,)), (7, 4)))
    assert result.forwards == (3, 2) and result.drafts == (4, 2)
    steps = [StepRecord.of(change) for change in result.trace]
    assert [step.drafts for step in steps] == [(2, 2), (0, 0), (2,)]
    assert [step.forwards for step in steps] == [(1, 1), (1, 1), (1,)]
    assert steps[0].record()["drafts"] == (2, 2)
    plain = Decoder(model, TopK(1), record=True).decode(Request(((1,),), 2))
    assert "drafts" not in StepRecord.of(plain.trace[0]).record()
    question = Question("a/0", "a", "?", "", 7, lambda text: True)
    sample = sample_of(question, DecodedRow(result.rows[0], slots=7))
    assert sample.drafts == 4 and Sample.from_record(sample.to_record()) == sample
    older = {name: value for name, value in sample.to_record().items() if name != "drafts"}
    assert Sample.from_record(older).drafts == 0
    endless = HashDenoiser(added=dict.fromkeys(VOCAB.eot_ids, -50.0))
    whole = Decoder(endless, decoder.strategy, Blocks(4)).decode(Request(((1, 2),), 7))
    sample = sample_of(question, DecodedRow(whole.rows[0], slots=7))
    assert max(sample.steps) >= sample.forwards == 3
    assert Sample.from_record(sample.to_record()) == sample, "a step is a pass or a draft"
    assert next(m for m in METRICS if m.name == "drafts").of([sample]) == 4.0


def test_stop_rules_act_after_the_pass_and_rows_are_as_alone() -> None:
    model = HashDenoiser(added={VOCAB.eot_ids[0]: 1.5})
    stopping = Pipeline(Adjust(drafts=2, weights=perfect), stop={"eot": CommittedEot()})
    request = Request(((1, 2), (3,), (4, 5, 6)), (9, 4, 12))
    together = Decoder(model, stopping, Blocks(6)).decode(request)
    for row in range(3):
        alone = Decoder(model, stopping, Blocks(6)).decode(request.take([row]))
        assert alone.sequences[0] == together.sequences[row]
        assert alone.forwards[0] == together.forwards[row]
        assert alone.drafts[0] == together.drafts[row]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: Wino(), "cannot be drafted"),
        (lambda: FreeDave(), "cannot be drafted"),
        (lambda: Adjust(weights=useless), "cannot be drafted"),
        (lambda: Pipeline(TopK(1), stop={"eot": CommittedEot()}), "stop rules belong beside"),
        (lambda: AtMost(2), "rule must be a Strategy, got AtMost"),
    ],
)
def test_rules_that_cannot_be_drafted_are_refused(rule: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Adjust(rule(), weights=useless)


@pytest.mark.parametrize("drafts", [-1, 1.5, "two", True])
def test_a_number_of_drafts_that_is_none_is_refused(drafts: Any) -> None:
    with pytest.raises(ConfigError, match=r"drafts must be a whole number >= 0, got"):
        Adjust(drafts=drafts, weights=useless)


def test_stores_and_models_without_states_or_embeddings_are_refused_by_name() -> None:
    with pytest.raises(CapabilityError, match=r"Adjust\).*needs the states of the whole canvas"):
        Decoder(StoringHashDenoiser(), Adjust(weights=useless), cache=DualCache())
    for shows, missing in (({"hidden"}, "embeddings"), (set(), "embeddings, hidden")):
        model = type("Closed", (HashDenoiser,), {"provides": frozenset(shows)})()
        with pytest.raises(CapabilityError, match=rf"looks at the model's {missing}, which model"):
            Decoder(model, Adjust(weights=useless))


# The layer.


@pytest.fixture(scope="module")
def layer() -> DraftLayer:
    torch.manual_seed(0)
    layer = DraftLayer(width=8, embedding=6, heads=2, hidden=5)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return layer.requires_grad_(False)


def plainly(layer: DraftLayer, embedded: Tensor, states: Tensor, live: list[bool]) -> Tensor:
    """The layer for one row, column by column and number by number, in float64."""
    named = {name: weight.double() for name, weight in layer.state_dict().items()}

    def norm(value: Tensor, name: str) -> Tensor:
        return value / (value.square().mean() + 1e-5).sqrt() * named[f"{name}.weight"]

    def turned(value: Tensor, place: int) -> Tensor:
        half = len(value) // 2
        out = torch.empty_like(value)
        for i in range(half):
            t = place / 10_000 ** (i / half)
            a, b = value[i], value[half + i]
            out[i] = a * math.cos(t) - b * math.sin(t)
            out[half + i] = b * math.cos(t) + a * math.sin(t)
        return out

    columns, first = len(live), live.index(True)
    mixed, heads = [], []
    for c in range(columns):
        both = torch.cat([norm(embedded[c], "norm_embedding"), norm(states[c], "norm_state")])
        mixed.append(named["join.weight"] @ both + named["join.bias"])
        inner = named["attention.weight"] @ norm(mixed[c], "norm_attention")
        heads.append(inner.view(3, layer.heads, -1))
    new = []
    for c in range(columns):
        seen = []
        for h in range(layer.heads):
            query = turned(heads[c][0, h], c - first)
            scores = torch.tensor(
                [
                    float(query @ turned(heads[k][1, h], k - first)) / math.sqrt(len(query))
                    if live[k]
                    else -math.inf
                    for k in range(columns)
                ],
                dtype=torch.float64,
            )
            weights = scores.softmax(0)
            seen.append(sum(float(weights[k]) * heads[k][2, h] for k in range(columns)))
        a = mixed[c] + named["attended.weight"] @ torch.cat(seen)
        gate, value = (named["feed.weight"] @ norm(a, "norm_feed")).chunk(2)
        g = a + named["fed.weight"] @ (gate * gate.sigmoid() * value)
        new.append(states[c] + norm(g, "norm_out"))
    return torch.stack(new)


def test_the_layer_is_what_its_formula_says_and_padding_does_not_matter(layer: DraftLayer) -> None:
    draw = torch.Generator().manual_seed(1)
    embedded, states = (torch.randn(2, 5, n, generator=draw).double() for n in (6, 8))
    live = torch.ones(2, 5, dtype=torch.bool)
    live[1, :2] = False
    found = layer(embedded, states, live)
    for row in range(2):
        wanted = plainly(layer, embedded[row], states[row], live[row].tolist())
        torch.testing.assert_close(
            found[row][live[row]].double(), wanted[live[row]], rtol=0, atol=2e-5
        )
    alone = layer(embedded[1:, 2:], states[1:, 2:], live[1:, 2:])
    torch.testing.assert_close(found[1, 2:], alone[0], rtol=0, atol=1e-5)


def test_rotary_positions_say_how_far_two_columns_are_apart() -> None:
    draw = torch.Generator().manual_seed(2)
    query, key = (torch.randn(1, 1, 1, 6, generator=draw).expand(1, 1, 9, 6) for _ in range(2))
    live = torch.ones(1, 9, dtype=torch.bool)
    scores = (rotated(query, live) @ rotated(key, live).transpose(-1, -2))[0, 0]
    for apart in range(1, 8):
        torch.testing.assert_close(
            scores.diagonal(apart), scores[0, apart].expand(9 - apart), rtol=0, atol=1e-4
        )


# Files.


def test_a_file_gives_the_layer_back_and_says_its_model(layer: DraftLayer, tmp_path: Path) -> None:
    path = tmp_path / "drafter.safetensors"
    LayerDrafter(layer, "0123456789abcdef").save(path, {"recipe": "by hand"})
    back = LayerDrafter.load(path)
    assert back.fingerprint == "0123456789abcdef"
    for name, weight in layer.state_dict().items():
        assert torch.equal(back.layer.state_dict()[name], weight.bfloat16().float())
    with pytest.raises(CapabilityError, match=r"fingerprint 0123456789abcdef.*task=train_drafter"):
        Decoder(HashDenoiser(), Adjust(weights=str(path)))
    odd = Adjust(weights=str(path), match_model=False)
    size = VOCAB.size
    message = rf"states of width 8 and embeddings of 6, but model \(\w+\) has {size} and {size}"
    with pytest.raises(CapabilityError, match=message):
        Decoder(HashDenoiser(), odd)
    silent = type("Silent", (HashDenoiser,), {"width": None})()  # then its first states tell
    with pytest.raises(CapabilityError, match="states of width 8 and embeddings of 6, but the mod"):
        Decoder(silent, odd).decode(Request(((1, 2),), 4))


class Stays(torch.nn.Module):
    """A module as a drafter, which must be moved to where the states are."""

    def __init__(self) -> None:
        super().__init__()
        self.moved_to: list[torch.device] = []

    def to(self, device: torch.device) -> Stays:  # type: ignore[override]
        self.moved_to.append(device)
        return self

    def forward(self, model: Capabilities, states: Tensor, tokens: Tensor, live: Tensor) -> Tensor:
        assert self.moved_to == [states.device]
        return states


def test_a_module_given_as_the_drafter_is_moved_to_the_models_device_before_any_pass() -> None:
    drafter = Stays()
    decoder = Decoder(HashDenoiser(), Adjust(drafts=1, weights=drafter))
    together = Decoder(HashDenoiser(), TopK(2, "entropy"))
    request = Request(((1, 2),), 4)
    assert decoder.decode(request).sequences == together.decode(request).sequences
    assert drafter.moved_to == [torch.device("cpu")]


def damaged(path: Path, kind: str) -> None:
    """Write over a good file with one that is wrong in one way."""
    tensors, notes = load_file(path), {"heads": "2"}
    name = "fed.weight"
    if kind == "text":
        path.write_text("no tensors")
        return
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-10])
        return
    if kind == "absent":
        del tensors[name]
    elif kind == "shape":
        tensors["feed.weight"] = tensors["feed.weight"][:3].clone()
    elif kind == "nan":
        tensors[name][0, 0] = math.nan
    elif kind == "whole numbers":
        tensors[name] = tensors[name].to(torch.int8)
    elif kind == "no heads":
        notes = {}
    elif kind == "heads":
        notes = {"heads": "3"}
    save_file(tensors, path, notes)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "cannot be read"),
        ("cut", "cannot be read"),
        ("absent", "no matrix fed.weight"),
        ("shape", r"feed.weight must have shape \(10, 8\), got \(3, 8\)"),
        ("nan", "fed.weight holds NaN"),
        ("whole numbers", "fed.weight must be stored as .* got I8"),
        ("no heads", "heads=None in its metadata"),
        ("heads", "multiple of 2 . heads, got 3 heads"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(
    kind: str, message: str, layer: DraftLayer, tmp_path: Path
) -> None:
    path = tmp_path / "drafter.safetensors"
    LayerDrafter(layer).save(path, {})
    damaged(path, kind)
    with pytest.raises(CheckpointError, match=message) as caught:
        LayerDrafter.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("weights", ["bundled:nothing", "nowhere.safetensors"])
def test_a_file_that_is_not_there_is_said_with_the_way_to_make_one(weights: str) -> None:
    with pytest.raises(CheckpointError, match=f"drafter {weights} was not found.*train_drafter"):
        Adjust(weights=weights)
