"""Passes that stop before the output head: same decodes, no logits unless somebody asks."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dllm_decode.decoding.cache import DualCache, NoCache, PrefixCache
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.prediction import (
    DensePrediction,
    HeadPrediction,
    HiddenStates,
    Prediction,
)
from dllm_decode.decoding.sampling import Categorical
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline, Strategy
from dllm_decode.decoding.types import Decision, Request
from dllm_decode.errors import ConfigError, ModelOutputError
from dllm_decode.kernels import dispatch, reference
from dllm_decode.models import load_model
from dllm_decode.models.head import head_obstacle
from dllm_decode.strategies.ccd import ReleasedCCD
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.suppress import BanTokens
from dllm_decode.strategies.threshold import ConfidenceThreshold

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"
OPTIONS = {"llada": {}, "dream": {}, "llada2": {"mask_id": 213, "block_length": 8}}
REQUEST = Request(((5, 6, 7), (8, 9, 10, 11, 12)), 16)
CREDIT = Pipeline(ConfidenceThreshold(threshold=0.05), transforms={"credit": TraceCredit()})


@pytest.fixture(scope="module")
def denoisers():
    return {
        family: load_model(str(GOLDEN / family), device="cpu", **options).denoiser
        for family, options in OPTIONS.items()
    }


@pytest.fixture
def before_head(monkeypatch):
    """As on a GPU: passes stop before the head, and no prediction makes logits by itself.

    The kernels are asked for, refuse this device, and plain torch computes what they would.
    """
    pytest.importorskip("triton", reason="Triton is published for Linux only")
    monkeypatch.setattr(dispatch, "fuses_head", lambda device, obstacle: True)
    with dispatch.using("triton"):
        yield


@pytest.fixture
def products(monkeypatch):
    """Counts how often dense logits are made of hidden states, and by whom."""
    made, made_at_once = [], reference.head_logits

    def head_logits(hidden, weight):
        made.append(hidden.shape)
        return made_at_once(hidden, weight)

    monkeypatch.setattr(reference, "head_logits", head_logits)
    return made


def outcome(decoder):
    result = decoder.decode(REQUEST)
    return result.sequences, result.forwards, result.finish_reasons, result.step_of


STRATEGIES = {
    "credit": CREDIT,
    "margin, which needs the two largest": TopK(order="margin"),
    "bans in a transform": Pipeline(TopK(), transforms={"ban": BanTokens(ids=[3, 40])}),
    "several of the largest": Pipeline(ReleasedCCD()),
}


@pytest.mark.one_in(12)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", OPTIONS)
def test_a_decode_is_the_same_with_logits_and_without(denoisers, family, strategy, monkeypatch):
    decoder = Decoder(denoisers[family], STRATEGIES[strategy], Blocks(8))
    plain = outcome(decoder)
    monkeypatch.setattr(dispatch, "fuses_head", lambda device, obstacle: True)
    assert outcome(decoder) == plain
    with dispatch.using("triton"):
        assert outcome(decoder) == plain


@pytest.mark.parametrize("cache", [PrefixCache(), DualCache()])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_caches_work_in_front_of_the_head(denoisers, family, cache, monkeypatch):
    decoder = Decoder(denoisers[family], CREDIT, Blocks(8), cache)
    plain = outcome(decoder)
    monkeypatch.setattr(dispatch, "fuses_head", lambda device, obstacle: True)
    assert outcome(decoder) == plain


def test_greedy_credit_decoding_never_makes_logits(denoisers, before_head, monkeypatch):
    decoder = Decoder(denoisers["llada"], CREDIT, Blocks(8))
    asked = []
    monkeypatch.setattr(HiddenStates, "logits", property(lambda self: asked.append(self)))
    outcome(decoder)
    assert not asked


@dataclass(frozen=True)
class Curious(Strategy):
    """Asks for everything dense, twice, and for a ban on top."""

    def decide(self, view, memory):
        pred = view.pred
        assert isinstance(pred, HeadPrediction)
        probs = pred.probs
        assert torch.equal(pred.logits.softmax(-1), probs)
        assert torch.equal(pred.probs, probs)
        assert bool((probs[..., view.snapshot.vocab.mask_id] == 0).all())
        torch.testing.assert_close(probs.amax(-1), pred.confidence)
        assert torch.equal(pred.suppress(torch.tensor([3])).probs[..., 3], probs[..., 3] * 0)
        return Decision(view.open)


def test_a_plugin_that_asks_for_logits_gets_them_made_once(denoisers, before_head, products):
    decoder = Decoder(denoisers["llada"], Curious(), Blocks(8))
    forwards = outcome(decoder)[1]
    assert len(products) == max(forwards)


def test_a_sampler_that_draws_gets_logits(denoisers, before_head, products):
    seen = []

    class Looking(ConfidenceThreshold):
        def decide(self, view, memory):
            seen.append(type(view.pred))
            return super().decide(view, memory)

    Decoder(denoisers["llada"], Looking(), Blocks(8), sampler=Categorical()).decode(REQUEST)
    assert {*seen} == {DensePrediction}
    assert not products


def test_unusable_hidden_states_are_found_and_located(denoisers, before_head):
    inner = denoisers["llada"]

    class Sick:
        vocab, device, max_length, head_obstacle = inner.vocab, inner.device, None, ""
        passes = 0

        def before_head(self, tokens, live, index, plan):
            source = inner.before_head(tokens, live, index, plan)
            self.passes += 1
            if self.passes == 2:
                source.hidden[1, 3] = float("nan")
            return source

        __call__ = before_head

    with pytest.raises(ModelOutputError, match=r"row 1, generated column 3, step 1"):
        Decoder(Sick(), TopK(tokens_per_step=1), Blocks(8)).decode(REQUEST)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_that_a_prediction_offers_is_the_same_from_hidden_states(dtype, before_head):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 16, generator=generator).to(dtype)
    weight = torch.randn(40, 16, generator=generator).to(dtype)
    banned = torch.tensor([4])
    ids = torch.tensor([1, 4, -1, 7]).expand(2, 3, 4)
    added = torch.tensor([0.0, 2.0, 1.0, 3.0]).expand(2, 3, 4)

    def offered(pred):
        raised = pred.with_logit_bias(ids, added)
        yield from (pred.token, pred.top_token, pred.healthy, pred.topk(1)[1])
        for one in (pred, raised):
            yield from (one.confidence, one.entropy, one.maximum, one.logsumexp)
            yield from (one.logit_of(ids), one.prob_of(ids), one.token)
        # from here on dense logits exist
        for one in (pred, raised, pred.suppress(torch.tensor([1]))):
            yield from (one.topk(5)[0], one.topk(5)[1], one.margin)
            yield from (one.logits, one.probs, one.token, one.confidence, one.logit_of(ids))

    head = Prediction.of(HiddenStates(hidden, weight), banned)
    dense = Prediction.of(hidden.float() @ weight.float().T, banned)
    for ours, theirs in zip(offered(head), offered(dense), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_an_id_that_nearly_ties_is_never_above_the_maximum(before_head):
    # products of the same numbers, summed in another order
    hidden = torch.randn(1, 5, 3000, generator=torch.Generator().manual_seed(0))
    pred = Prediction.of(HiddenStates(hidden, hidden[0, :1].expand(9, -1).contiguous()))
    assert bool((pred.prob_of(torch.arange(9).expand(1, 5, 9)) <= pred.confidence[..., None]).all())


def model_with(head, embedding=None):
    embedding = nn.Embedding(9, 4, dtype=torch.bfloat16) if embedding is None else embedding
    return SimpleNamespace(
        get_output_embeddings=lambda: head, get_input_embeddings=lambda: embedding
    )


def plain_head(**changes):
    usual = {"in_features": 4, "out_features": 9, "bias": False, "dtype": torch.bfloat16}
    return nn.Linear(**(usual | changes))


class Quantised(nn.Linear):
    pass


def hooked():
    head = plain_head()
    head.register_forward_hook(lambda *given: None)
    return head


def replaced():
    head = plain_head()
    head.forward = head.forward
    return head


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (Quantised(4, 9), "it is a Quantised, not a plain linear layer"),
        (plain_head(bias=True), "it has a bias"),
        (hooked(), "it has hooks"),
        (replaced(), "it has hooks"),
        (plain_head(out_features=3), "this process holds (3, 4) of it as Parameter"),
        (plain_head(device="meta"), "it is not in the memory of a device"),
        (plain_head(dtype=torch.float32), "it is torch.float32; the kernel is for"),
    ],
)
def test_a_head_that_is_more_than_a_product_runs_apart_with_one_logged_reason(head, reason, caplog):
    pytest.importorskip("triton", reason="Triton is published for Linux only")
    obstacle = head_obstacle(model_with(head), 9)
    dispatch._said.clear()
    with dispatch.using("triton"), caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert not dispatch.fuses_head(torch.device("cpu"), obstacle)
    assert len(caplog.records) == 1
    assert f"the output head runs apart from the statistics: {reason}" in caplog.text


def test_the_hook_of_a_device_map_is_no_obstacle_unless_it_brings_the_weight():
    hooks = pytest.importorskip("accelerate.hooks")
    for offload, reason in ((False, ""), (True, "it has hooks")):
        head, hook = plain_head(), hooks.AlignDevicesHook("cpu", offload=False)
        hooks.add_hook_to_module(head, hook)
        hook.offload = offload
        assert head_obstacle(model_with(head), 9).startswith(reason)
        assert bool(head_obstacle(model_with(head), 9)) == offload


def test_a_plain_head_has_no_obstacle_tied_or_not():
    head = plain_head()
    assert head_obstacle(model_with(head), 9) == ""
    assert head_obstacle(model_with(head, embedding=head), 9) == ""


def test_the_head_is_fused_only_where_the_kernels_run():
    pytest.importorskip("triton", reason="Triton is published for Linux only")
    here = torch.device("cpu")
    assert not dispatch.fuses_head(here, "")
    with dispatch.using("reference"):
        assert not dispatch.fuses_head(here, "")
    with dispatch.using("triton"):
        assert dispatch.fuses_head(here, "")
        dispatch.choose("triton", "apart")
        assert not dispatch.fuses_head(here, "")
    dispatch.choose("auto", "auto")


def test_an_unknown_choice_of_the_head_is_refused():
    with pytest.raises(ConfigError, match="head must be one of auto, apart; got 'fused'"):
        dispatch.choose("auto", "fused")


def test_a_cpu_decode_reads_plain_logits(denoisers, monkeypatch):
    calls = []
    denoiser = replace(denoisers["llada"])
    monkeypatch.setattr(
        type(denoiser), "before_head", lambda *given: calls.append(given), raising=True
    )
    Decoder(denoiser, CREDIT, Blocks(8), NoCache()).decode(REQUEST)
    assert not calls
