"""Guidance by a second stream: what it predicts, what it counts, and that caches stay right."""

from dataclasses import replace

import pytest
import torch
from changing_model import ChangingModel

from dllm_decode import Decoder, Request, load
from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.denoiser import Capabilities, StoringDenoiser
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.trace import Trace
from dllm_decode.errors import ConfigError
from dllm_decode.models.guided import Guided, StoringGuided, guided
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.tasks.generate import first_line
from dllm_decode.testing import CACHES, Case, HashDenoiser, StoringHashDenoiser, StrategyContract

REQUEST = Request(((1, 2, 3), (4,), (5, 6)), (7, 5, 6))
RULE = ConfidenceThreshold(0.4)


class TestUnderGuidance(StrategyContract):
    """A strategy keeps its contract with a guided model, under every cache."""

    def strategies(self) -> list[Strategy]:
        return [RULE]

    def decoder(self, case: Case, strategy, request, model=None) -> Decoder:
        plain = super().decoder(case, strategy, request, model)
        return replace(plain, denoiser=guided(plain.denoiser, 1.5))


def plain_guided(model, prompt, length, scale, columns):
    """Logits of some decided columns of one row, by two calls and a loop over ids."""
    mask, prompt = model.vocab.mask_id, list(prompt)
    answer = [columns.get(column, mask) for column in range(length)]
    index = torch.arange(len(prompt), len(prompt) + length)[None]
    rows = []
    for front in (prompt, [mask] * len(prompt)):
        tokens = torch.tensor([[*front, *answer]])
        rows.append(model(tokens, torch.ones_like(tokens).bool(), index, Plan())[0].tolist())
    return [
        [given + scale * (given - blank) for given, blank in zip(one, two, strict=True)]
        for one, two in zip(*rows, strict=True)
    ]


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_logits_are_moved_away_from_those_without_the_prompt(scale: float) -> None:
    model, mask = ChangingModel(), ChangingModel().vocab.mask_id
    tokens = torch.tensor([[0, 0, 3, 7, mask, mask], [4, 1, 2, 7, 5, mask]])
    live = torch.tensor([[False, False, *[True] * 4], [True] * 6])
    index = torch.tensor([[3, 4, 5], [3, 4, 5]])
    found = guided(model, scale)(tokens, live, index, Plan(start=3))
    for row, (prompt, decided) in enumerate((((3,), {0: 7}), ((4, 1, 2), {0: 7, 1: 5}))):
        expected = torch.tensor(plain_guided(model, prompt, 3, scale, decided))
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache", sorted(CACHES))
def test_both_passes_are_counted_under_every_cache(cache: str) -> None:
    model = StoringHashDenoiser()
    decoder = Decoder(guided(model, 1.0), RULE, Blocks(4), CACHES[cache])
    result = decoder.decode(REQUEST)
    assert sum(result.forwards) == sum(model.rows_per_pass)
    assert all(forwards % 2 == 0 for forwards in result.forwards)


class Blank(StoringHashDenoiser):
    """A model that keeps what it was told, for the second stream to be looked at."""

    def __call__(self, tokens, live, index, plan):
        self.__dict__.setdefault("seen", []).append((tokens, plan.store))
        return super().__call__(tokens, live, index, plan)


def test_the_second_stream_sees_masks_for_the_prompt_and_has_a_store_of_its_own() -> None:
    model = Blank()
    Decoder(guided(model, 1.0), RULE, Blocks(4), CACHES["dual"]).decode(Request(((1, 2, 3),), 7))
    for (given, own), (blank, other) in zip(model.seen[::2], model.seen[1::2], strict=True):
        assert given[0, :3].tolist() == [1, 2, 3]
        assert blank[0, :3].tolist() == [model.vocab.mask_id] * 3
        assert torch.equal(given[:, 3:], blank[:, 3:]) and own is not other
    stores = {id(store) for _, store in model.seen}
    assert len(stores) == 2


def test_traces_and_streams_count_both_passes_as_results_do() -> None:
    decoder = load("toy_copy", RULE, guidance=1.0)
    prompt = decoder.model.sample_prompts(1, 0)[0]
    *before, last = decoder.stream(prompt, max_new_tokens=6)
    assert [step.forwards for step in (*before, last)] == [
        2 * step.number for step in (*before, last)
    ]
    request = Request((decoder.encode(prompt),), 6)
    result = decoder.decode(request, record=True)
    replayed = Trace.of(request, result, decoder.model.denoiser.vocab).replay()
    assert replayed.forwards == result.forwards == (last.forwards,)


@pytest.mark.parametrize("scale", [-1.0, 101.0, float("nan")])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match=r"^guidance must lie in"):
        guided(HashDenoiser(), scale)


def test_no_guidance_is_the_model_itself_and_a_model_without_a_store_gets_none() -> None:
    model = StoringHashDenoiser()
    assert guided(model, 0.0) is model
    assert isinstance(guided(model, 1.0), StoringGuided)
    plain = guided(ChangingModel(fingerprint="abc"), 2.0)
    assert type(plain) is Guided and not isinstance(plain, StoringDenoiser)
    own = Capabilities.of(plain)
    assert (own.fingerprint, own.passes_per_call, own.before_head) == ("abc guidance 2.0", 2, None)
    assert Capabilities.of(guided(plain, 1.0)).passes_per_call == 4


def test_an_id_that_a_stream_excludes_keeps_its_logit() -> None:
    class Excluding(HashDenoiser):
        def __call__(self, tokens, live, index, plan):
            logits = super().__call__(tokens, live, index, plan)
            blank = (tokens[:, 0] == self.vocab.mask_id)[:, None]
            logits[..., 3] = torch.where(blank, float("-inf"), logits[..., 3])
            logits[..., 4] = float("-inf")
            return logits

    tokens, live = torch.tensor([[1, 11]]), torch.ones(1, 2).bool()
    found = guided(Excluding(), 3.0)(tokens, live, torch.tensor([[1]]), Plan(start=1))[0, 0]
    assert not found.isnan().any() and found[4] == float("-inf") and found[3].isfinite()


def test_guidance_is_a_setting_of_the_command_line_and_of_load() -> None:
    two, one = load("toy_copy", RULE, guidance=1.0), load("toy_copy", RULE)
    prompts = one.model.sample_prompts(2, 0)
    plain, found = (d.generate(prompts, max_new_tokens=6) for d in (one, two))
    assert found.texts == plain.texts
    assert all(more == 2 * less for more, less in zip(found.forwards, plain.forwards, strict=True))
    assert first_line(two).endswith("; guidance 1.0") and "guidance" not in first_line(one)
