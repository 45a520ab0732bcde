"""Logits of the golden checkpoints equal those of the published reference implementations."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dllm_decode.decoding.cache import Plan
from dllm_decode.models import load_model

GOLDEN = Path(__file__).parent
MASK_IDS = {"lladamoe": 197, "llada2": 213}  # not in config.json, given by the cases
DENSE = ("llada", "dream")


@pytest.fixture(scope="module")
def models():
    """Loads each checkpoint once per dtype."""
    loaded = {}

    def get(family, dtype="float32", **options):
        key = (family, dtype, *options.items())
        if key not in loaded:
            options = {"mask_id": MASK_IDS.get(family), "device": "cpu"} | options
            loaded[key] = load_model(str(GOLDEN / "checkpoints" / family), dtype=dtype, **options)
        return loaded[key]

    return get


def case(family):
    """The stored tensors of a family's case."""
    folder = GOLDEN / "model_parity"
    assert json.loads((folder / f"{family}_logits.json").read_text())["family"] == family
    return load_file(folder / f"{family}_logits.safetensors")


def all_logits(denoiser, tokens, live=None):
    """Logits at every column through the adapter; unshifted."""
    live = torch.ones_like(tokens, dtype=torch.bool) if live is None else live
    index = torch.arange(tokens.shape[1]).expand_as(tokens)
    return denoiser(tokens, live, index, Plan())


def difference(logits, expected):
    return float((logits.float() - expected.float()).abs().max())


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", DENSE)
def test_dense_families_are_bit_equal_to_the_reference(models, family, dtype, name):
    stored = case(family)
    denoiser = models(family, {"fp32": "float32", "bf16": "bfloat16"}[dtype]).denoiser
    logits = all_logits(denoiser, stored[f"ids_{name}"])
    expected = stored[f"logits_{name}_{dtype}"]
    if denoiser.shifted:
        assert torch.equal(logits[:, 0], expected[:, 0])
        logits, expected = logits[:, 1:], expected[:, :-1]
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("name", ["a", "b"])
def test_llada_moe_equals_the_reference_up_to_the_order_of_sums(models, name):
    stored = case("lladamoe")
    logits = all_logits(models("lladamoe").denoiser, stored[f"ids_{name}"])
    assert difference(logits, stored[f"logits_{name}_fp32"]) <= 1e-5


@pytest.mark.parametrize("block", [4, 8])
def test_llada2_equals_the_reference_with_its_block_causal_mask(models, block):
    stored = case("llada2")
    denoiser = models("llada2", block_length=block).denoiser
    logits = all_logits(denoiser, stored[f"ids_b{block}"])
    assert difference(logits, stored[f"logits_b{block}_fp32"]) <= 1e-5


def test_llada2_without_a_mask_equals_the_reference_with_full_attention(models):
    stored = case("llada2")
    length = stored["ids_full"].shape[1]
    denoiser = models("llada2", block_length=length).denoiser
    logits = all_logits(denoiser, stored["ids_full"])
    assert difference(logits, stored["logits_full_fp32"]) <= 1e-5


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_padded_llada_batch_is_bit_equal_with_the_reference_positions(models, dtype):
    # The reference counts positions from the padding; the adapter counts from the row's first
    # token, which is why the stock model is called directly here.
    stored = case("llada")
    model = models("llada", {"fp32": "float32", "bf16": "bfloat16"}[dtype]).denoiser.model
    live = stored["attention_mask_pad"].bool()
    with torch.no_grad():
        logits = model(input_ids=stored["ids_pad"], attention_mask=live).logits
    assert torch.equal(logits[live], stored[f"logits_pad_{dtype}"][live])


def test_padded_llada_batch_through_the_adapter_differs_by_rounding_alone(models):
    stored = case("llada")
    live = stored["attention_mask_pad"].bool()
    logits = all_logits(models("llada").denoiser, stored["ids_pad"], live)
    assert difference(logits[live], stored["logits_pad_fp32"][live]) <= 1e-4


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_padded_dream_batch_is_bit_equal_and_shifted(models, dtype):
    stored = case("dream")
    live = stored["attention_mask_pad"].bool()
    denoiser = models("dream", {"fp32": "float32", "bf16": "bfloat16"}[dtype]).denoiser
    logits = all_logits(denoiser, stored["ids_pad"], live)[:, 1:]
    expected = stored[f"logits_pad_{dtype}"][:, :-1]
    both = live[:, 1:] & live[:, :-1]
    assert torch.equal(logits[both], expected[both])


@pytest.mark.parametrize("family", ["llada", "dream", "lladamoe"])
@pytest.mark.parametrize("padding", [0, 5])
def test_eager_and_sdpa_attention_agree_with_and_without_padding(models, family, padding):
    tokens = case(family)["ids_a"]
    live = torch.ones_like(tokens, dtype=torch.bool)
    live[0, :padding] = False
    sdpa = all_logits(models(family).denoiser, tokens, live)
    eager = all_logits(models(family, attn_implementation="eager").denoiser, tokens, live)
    assert difference(eager[live], sdpa[live]) <= 1e-4
    assert not torch.equal(eager[live], sdpa[live])
