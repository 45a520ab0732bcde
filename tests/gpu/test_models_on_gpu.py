"""Small checkpoints of every kind on a real GPU: what they compute there is what they do here.

Nothing here takes more than a few MiB of a card.
"""

from __future__ import annotations

import published_configs as sizes
import pytest
import torch
from golden_checkpoints import GOLDEN, OPTIONS

from dllm_decode.decoding.cache import BlockExact, DelayedCache, DualCache, NoCache, Plan
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.sampling import Categorical
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request
from dllm_decode.kernels import dispatch
from dllm_decode.models import load_model
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.threshold import ConfidenceThreshold

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = "cuda"
REQUEST = Request(((5, 9, 14, 3, 77, 20, 31, 8), (7, 7)), 24)
WIDE = {"hidden_size": 128, "intermediate_size": 256}
STRATEGY = Pipeline(ConfidenceThreshold(0.02), transforms={"credit": TraceCredit()})


def load(folder, device=GPU, dtype="float32", **options):
    return load_model(str(folder), device=device, dtype=dtype, **options).denoiser


def logits(denoiser):
    tokens = torch.arange(5, 25, device=denoiser.device)[None]
    index = torch.arange(20, device=denoiser.device)[None]
    return denoiser(tokens, torch.ones_like(tokens, dtype=torch.bool), index, Plan()).cpu()


def is_near(found, exact, most):
    return float((found.float() - exact.float()).norm() / exact.float().norm()) < most


@pytest.mark.parametrize("family", OPTIONS)
def test_logits_are_those_of_the_processor(family):
    here, there = (
        logits(load(GOLDEN / family, device, **OPTIONS[family])) for device in (GPU, "cpu")
    )
    torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("family", "cache"),
    [
        ("llada", NoCache()),
        ("llada", DelayedCache()),
        ("dream", DualCache()),
        ("lladamoe", DualCache()),
        ("llada2", BlockExact()),
    ],
    ids=str,
)
def test_a_decode_with_a_store_is_the_same_with_kernels_and_in_plain_torch(family, cache):
    decoder = Decoder(load(GOLDEN / family, **OPTIONS[family]), STRATEGY, Blocks(8), cache)
    with dispatch.using("auto", "apart"):
        fused = decoder.decode(REQUEST)
    with dispatch.using("reference", "apart"):
        plain = decoder.decode(REQUEST)
    assert fused.sequences == plain.sequences


def test_draws_are_the_same_with_kernels_and_in_plain_torch():
    parts = {"sampler": Categorical(temperature=0.8, top_p=0.9)}
    decoder = Decoder(load(GOLDEN / "llada"), STRATEGY, Blocks(8), **parts)
    with dispatch.using("auto", "apart"):
        fused = decoder.decode(REQUEST)
    with dispatch.using("reference", "apart"):
        assert decoder.decode(REQUEST).sequences == fused.sequences


def test_a_compiled_model_gives_the_tokens_of_the_one_that_is_not():
    models = (load(GOLDEN / "llada", compile=mode) for mode in (None, "reduce-overhead"))
    plain, graphs = (
        Decoder(model, STRATEGY, Blocks(8), DualCache()).decode(REQUEST) for model in models
    )
    assert plain.sequences == graphs.sequences


@pytest.mark.parametrize(
    ("family", "kind", "most"),
    [
        ("a2d_qwen2", "int8", 0.05),
        ("a2d_qwen2", "int4", 0.4),
        ("a2d_qwen2", "nf4", 0.3),
        ("llada2_2", "int8", 0.1),
        ("rnd1", "int4", 0.4),
        ("rnd1", "nf4", 0.3),
    ],
)
def test_fewer_bits_are_near_the_exact_weights_and_decode(
    family, kind, most, tmp_path, monkeypatch
):
    pytest.importorskip("bitsandbytes" if kind == "nf4" else "torchao")
    wide = WIDE if family == "a2d_qwen2" else WIDE | {"moe_intermediate_size": 128}
    monkeypatch.setitem(sizes.TINY, family, sizes.TINY[family] | wide)
    folder = sizes.write_tiny(family, tmp_path / family)
    exact, packed = (load(folder, dtype="bfloat16", quantization=q) for q in (None, kind))
    assert is_near(logits(packed), logits(exact), most)
    length = packed.block_length or 8
    result = Decoder(packed, STRATEGY, Blocks(length)).decode(Request(((1, 2, 3), (4,)), 16))
    assert len(result.sequences) == 2


@pytest.mark.parametrize("cache", [NoCache(), DualCache(), DelayedCache()], ids=str)
def test_rows_of_different_lengths_decode_as_they_do_alone(cache):
    pytest.importorskip("flash_attn")
    denoiser = load(GOLDEN / "llada", dtype="bfloat16", attn_implementation="flash_attention_2")
    masked = load(GOLDEN / "llada", dtype="bfloat16")
    assert is_near(logits(denoiser), logits(masked), 0.05)
    assert len(Decoder(denoiser, STRATEGY, Blocks(8), cache).decode(REQUEST).sequences) == 2
