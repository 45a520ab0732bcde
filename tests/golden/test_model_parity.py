"""Logits of the golden checkpoints equal those of the published reference implementations.

Bits are compared only with a forward that runs beside ours (`plain_models`); the stored logits come
from another machine and are met up to rounding.
"""

import json
from pathlib import Path

import pytest
import torch
from plain_models import Plain
from safetensors.torch import load_file

from dllm_decode.decoding.cache import Plan
from dllm_decode.models import load_model
from dllm_decode.models.files import published_state

GOLDEN = Path(__file__).parent
MASK_IDS = {"lladamoe": 197, "llada2": 213}  # not in config.json, given by the cases
DENSE = ("llada", "dream")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


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


def plainly(model, family, tokens, live, positions=None):
    """Logits (B, L, V) of the plain forward with a model's own weights, not shifted.

    positions: None to count from each row's first live column, as the adapter does.
    """
    columns = torch.arange(tokens.shape[1]).expand_as(tokens)
    if positions is None:
        positions = (columns - live.int().argmax(1, keepdim=True)).clamp(min=0)
    settings = json.loads((GOLDEN / "checkpoints" / family / "config.json").read_text())
    keys = None if bool(live.all()) else live
    return Plain.of(family, settings).logits(published_state(model), tokens, positions, keys)


def assert_rounding_alone(logits, expected, family, dtype):
    """Holds for the same function on another processor, and for little else.

    Which instructions a processor has and how many threads share a sum decide the order in which
    it is added up. float32: logits reach 25 and were seen to move by 3e-5 between three instruction
    sets; 1e-4 is also the noise that every stored decode survives. bfloat16 keeps 8 bits, and each
    of two sound runs is as far from float32 as the stored one, so from each other about 1.4 times
    as far.
    """
    tolerances = json.loads((GOLDEN / "model_parity" / f"{family}_logits.json").read_text())
    tolerances = tolerances["tolerances"]
    apart = (logits.float() - expected.float()).abs()
    if dtype == "fp32":
        assert float(apart.max()) <= 1e-4 <= tolerances["fp32_max_abs"]
    else:
        assert float(apart.mean()) <= 2 * tolerances["bf16_mean_abs"]
        assert float(apart.max()) <= tolerances["bf16_max_abs"]


def shifted(denoiser, logits):
    """Raw logits (B, L, V) at the columns they are for: c is read at c - 1 if shifted."""
    return torch.cat([logits[:, :1], logits[:, :-1]], 1) if denoiser.shifted else logits


@pytest.mark.parametrize("family", DENSE)
def test_the_weights_of_a_dense_family_are_those_of_its_file(models, family):
    weights = published_state(models(family).denoiser.model)
    stored = load_file(GOLDEN / "checkpoints" / family / "model.safetensors")
    assert weights.keys() == stored.keys()
    assert all(torch.equal(weights[name], stored[name]) for name in stored)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", DENSE)
def test_a_dense_family_is_its_plain_forward_bit_for_bit(models, family, dtype, name):
    stored = case(family)
    denoiser = models(family, DTYPES[dtype]).denoiser
    tokens = stored[f"ids_{name}"].long()
    logits = all_logits(denoiser, tokens)
    plain = plainly(denoiser.model, family, tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert torch.equal(logits, shifted(denoiser, plain))
    assert_rounding_alone(plain, stored[f"logits_{name}_{dtype}"], family, dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", DENSE)
def test_a_padded_batch_is_its_plain_forward_bit_for_bit(models, family, dtype):
    stored = case(family)
    live = stored["attention_mask_pad"].bool()
    assert not live.all()
    denoiser = models(family, DTYPES[dtype]).denoiser
    tokens = stored["ids_pad"].long()
    logits = all_logits(denoiser, tokens, live)
    expected = shifted(denoiser, plainly(denoiser.model, family, tokens, live))
    # a row's first column is predicted from itself, where the plain shift reads the padding
    compared = live & live.roll(1, 1) if denoiser.shifted else live
    compared[:, 0] = live[:, 0]
    assert torch.equal(logits[compared], expected[compared])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_plain_llada_is_the_reference_on_a_padded_batch(models, dtype):
    # the reference counts positions from the padding, the adapter from a row's first token
    stored = case("llada")
    model = models("llada", DTYPES[dtype]).denoiser.model
    live, tokens = stored["attention_mask_pad"].bool(), stored["ids_pad"].long()
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    logits = plainly(model, "llada", tokens, live, positions)
    assert_rounding_alone(logits[live], stored[f"logits_pad_{dtype}"][live], "llada", dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_plain_dream_is_the_reference_on_a_padded_batch(models, dtype):
    stored = case("dream")
    model = models("dream", DTYPES[dtype]).denoiser.model
    live, tokens = stored["attention_mask_pad"].bool(), stored["ids_pad"].long()
    logits = plainly(model, "dream", tokens, live)
    assert_rounding_alone(logits[live], stored[f"logits_pad_{dtype}"][live], "dream", dtype)


@pytest.mark.parametrize("name", ["a", "b"])
def test_llada_moe_equals_the_reference_up_to_the_order_of_sums(models, name):
    stored = case("lladamoe")
    logits = all_logits(models("lladamoe").denoiser, stored[f"ids_{name}"])
    assert difference(logits, stored[f"logits_{name}_fp32"]) <= 1e-4


@pytest.mark.parametrize("block", [4, 8])
def test_llada2_equals_the_reference_with_its_block_causal_mask(models, block):
    stored = case("llada2")
    denoiser = models("llada2", block_length=block).denoiser
    logits = all_logits(denoiser, stored[f"ids_b{block}"])
    assert difference(logits, stored[f"logits_b{block}_fp32"]) <= 1e-4


def test_llada2_without_a_mask_equals_the_reference_with_full_attention(models):
    stored = case("llada2")
    length = stored["ids_full"].shape[1]
    denoiser = models("llada2", block_length=length).denoiser
    logits = all_logits(denoiser, stored["ids_full"])
    assert difference(logits, stored["logits_full_fp32"]) <= 1e-4


def test_padded_llada_batch_through_the_adapter_differs_by_rounding_alone(models):
    stored = case("llada")
    live = stored["attention_mask_pad"].bool()
    logits = all_logits(models("llada").denoiser, stored["ids_pad"], live)
    assert difference(logits[live], stored["logits_pad_fp32"][live]) <= 1e-4


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
