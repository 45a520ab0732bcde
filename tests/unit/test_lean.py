"""The lean body: the function of the stock class up to rounding, the same weights and files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache as remember
from pathlib import Path
from tempfile import mkdtemp

import published_configs as sizes
import pytest
import torch
from safetensors.torch import load_file

from dllm_decode.decoding.cache import (
    BlockExact,
    DualCache,
    NoCache,
    PeriodicCache,
    Plan,
    PrefixCache,
)
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request, gather_columns
from dllm_decode.errors import CheckpointError, ConfigError
from dllm_decode.models import load_model
from dllm_decode.models.compiled import CompiledBody
from dllm_decode.models.lean import LeanModel
from dllm_decode.models.spec import SPECS
from dllm_decode.strategies.threshold import ConfidenceThreshold

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"
BUNDLED = "bundled:llada-tiny"
FAMILIES = ("llada", "dream", "illada", "fast_dllm", "fast_dllm_tied")
# with the same layers as one of these
ALIKE = ("stable_diffcoder", "open_dcoder", "a2d_qwen2", "a2d_llama")
REQUEST = Request(((1, 2, 3), (4,), (5, 6, 7, 8, 9)), (20, 9, 17))


@remember
def folder(family):
    golden = GOLDEN / family
    return golden if golden.is_dir() else sizes.write_tiny(family, Path(mkdtemp()) / family)


@remember
def load(family, body, dtype="float32"):
    return load_model(str(folder(family)), device="cpu", dtype=dtype, body=body)


def padded(loaded, length=24, rows=3):
    tokens = torch.randint(0, 90, (rows, length), generator=torch.Generator().manual_seed(1))
    pads = torch.tensor([0, 5, 9])[:rows, None]
    return tokens, torch.arange(length) >= pads


def decode(loaded, cache, **changes):
    denoiser = replace(loaded.denoiser, **changes)
    decoder = Decoder(denoiser, Pipeline(ConfidenceThreshold(0.6)), Blocks(8), cache)
    return Engine(decoder, max_batch=2).decode(REQUEST)


@pytest.mark.parametrize("family", FAMILIES + ALIKE)
def test_every_declared_family_has_the_hidden_states_of_its_stock_class(family):
    lean, stock = load(family, "lean"), load(family, "stock")
    assert isinstance(lean.denoiser.model, LeanModel)
    tokens, live = padded(lean)
    for complete in (torch.ones_like(live), live):
        ours, theirs = (m.denoiser.hidden(tokens, complete) for m in (lean, stock))
        assert torch.allclose(ours[complete], theirs[complete], atol=2e-5, rtol=1e-4)
        # the last layer is computed where it is read, with a mask of rows or of the block grid
        index = torch.tensor([[14, 23, 11], [9, 10, -1], [13, 20, 21]])
        some = lean.denoiser.states(tokens, complete, index, Plan())
        whole = gather_columns(ours, lean.denoiser.sources(index, complete))
        assert torch.allclose(some[index >= 0], whole[index >= 0], atol=2e-5, rtol=1e-4)


def test_every_family_that_declares_it_is_tested():
    declared = {spec.family for spec in SPECS.values() if spec.lean is not None}
    assert declared == {load(family, "stock").description.family for family in FAMILIES + ALIKE}


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_in_bfloat16_it_is_as_near_to_float32_as_the_stock_class(family):
    tokens, live = padded(load(family, "stock"))
    exact = load(family, "stock").denoiser.hidden(tokens, live)[live]
    ours, theirs = (
        load(family, body, "bfloat16").denoiser.hidden(tokens, live)[live].float()
        for body in ("lean", "stock")
    )
    assert (ours - exact).abs().mean() <= 1.2 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_with_a_store_gives_the_logits_of_a_pass_without(family):
    denoiser = load(family, "lean").denoiser
    tokens, live = padded(denoiser)
    every = torch.arange(24).expand_as(tokens)
    store = denoiser.allocate(3, 24)
    store.join(3)
    denoiser(tokens, live, every, Plan(every, live, store))
    block = every[:, 8:17]
    some = denoiser(tokens, live, block[:, 1:], Plan(block, live, store))
    whole = denoiser(tokens, live, block[:, 1:], Plan())
    assert torch.allclose(some[live[:, 9:17]], whole[live[:, 9:17]], atol=1e-4, rtol=1e-4)


CACHES = (NoCache(), PrefixCache(), DualCache(), PeriodicCache(every=2))


@pytest.mark.one_in(6)
@pytest.mark.parametrize("family", FAMILIES)
def test_decodes_give_the_tokens_of_the_stock_class_with_every_cache(family):
    block_causal = load(family, "stock").denoiser.block_length is not None
    for cache in (NoCache(), BlockExact(8)) if block_causal else CACHES:
        ours, theirs = (decode(load(family, body), cache) for body in ("lean", "stock"))
        assert ours.errors == ("",) * 3
        assert (ours.sequences, ours.forwards) == (theirs.sequences, theirs.forwards)


@pytest.mark.parametrize(
    "cache",
    [DualCache(), NoCache()],
    ids=["dual", "none"],
)
@pytest.mark.slow
def test_it_can_be_compiled(cache):
    lean = load("llada", "lean")
    body = CompiledBody(lean.denoiser.model, backend="eager")
    result = decode(lean, cache, compiled=body)
    assert not body._broken
    assert result.sequences == decode(lean, cache).sequences


@pytest.mark.parametrize("family", FAMILIES)
def test_its_weights_have_the_stock_and_the_published_names(family, tmp_path):
    lean, stock = load(family, "lean").denoiser.model, load(family, "stock").denoiser.model
    ours, theirs = lean.state_dict(), stock.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    load(family, "lean").save_pretrained(tmp_path / "saved")
    stored = load_file(folder(family) / "model.safetensors")
    written = load_file(tmp_path / "saved" / "model.safetensors")
    assert stored.keys() == written.keys()
    assert all(torch.equal(stored[name], written[name]) for name in stored)


def test_files_in_the_stock_layout_are_read_as_well(tmp_path):
    from safetensors.torch import save_file

    copy = shutil.copytree(GOLDEN / "llada", tmp_path / "copy")
    stock = load("llada", "stock").denoiser.model.state_dict()
    state = {name: tensor.clone() for name, tensor in stock.items()}
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    again = load_model(str(copy), device="cpu", body="lean").denoiser.model.state_dict()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_a_table_with_other_frequencies_is_found():
    from dllm_decode.models.checks import require_sound

    loaded = load_model(str(GOLDEN / "llada"), device="cpu", body="lean")
    loaded.denoiser.model.model.rotary_emb.inv_freq.mul_(1.001)
    with pytest.raises(CheckpointError, match=r"rotation table: .*inv_freq is not theta"):
        require_sound(loaded.denoiser, loaded.tokenizer, "somewhere")


OTHERS = [
    ("llada2", {"mask_id": 213}, "LLaDA2 is no dense model of Llama's kind"),
    ("llada", {"attn_implementation": "eager"}, "it has no model.attn_implementation=eager"),
    ("llada", {"device_map": {"": "cpu"}}, "it runs on one device; set model.device_map and"),
]


@pytest.mark.parametrize(("family", "options", "reason"), OTHERS)
def test_where_it_cannot_be_used_it_is_refused_and_auto_takes_the_stock_class(
    family, options, reason, monkeypatch
):
    monkeypatch.setattr("dllm_decode.models.placement.find_spec", lambda name: name)  # accelerate
    with pytest.raises(ConfigError, match=f"model.body=lean cannot be used: {reason}"):
        load_model(str(GOLDEN / family), body="lean", **options)
    if "device_map" not in options:
        found = load_model(str(GOLDEN / family), device="cpu", body="auto", **options)
        assert not isinstance(found.denoiser.model, LeanModel)


def test_auto_takes_it_where_it_can_be_and_other_words_are_refused():
    loaded = load_model(str(GOLDEN / "llada"), device="cpu", body="auto")
    assert isinstance(loaded.denoiser.model, LeanModel)
    with pytest.raises(
        ConfigError, match=r"model.body must be one of auto, stock, lean; got 'fat'"
    ):
        load_model(str(GOLDEN / "llada"), body="fat")


# The tokenizer that is read without transformers.


@pytest.fixture(scope="module")
def both():
    return tuple(load_model(BUNDLED, body=body) for body in ("lean", "stock"))


TEXTS = ["Copy: 1 Ada 2 Ben", "", "  ", "<|eot_id|> 1\n\t", "Zürich ≥ 3 🙂", "a<|mdm_mask|>b"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_ids_that_transformers_gives_it(both, text):
    lean, stock = (model.tokenizer for model in both)
    assert type(lean.backend).__name__ == "DirectTokenizer" != type(stock.backend).__name__
    for control in (False, True):
        ids = stock.encode(text, control=control)
        assert lean.encode(text, control=control) == ids
        for keep in (False, True):
            assert lean.decode(ids, keep_special=keep) == stock.decode(ids, keep_special=keep)


def test_chats_and_special_ids_are_those_of_transformers(both):
    lean, stock = (model.tokenizer for model in both)
    chat = [{"role": "user", "content": "Copy: 1 Ada <|eot_id|>"}]
    assert lean.encode_chat(chat) == stock.encode_chat(chat)
    assert (lean.end_id, lean.pad_id, lean.ids) == (stock.end_id, stock.pad_id, stock.ids)
    assert lean.backend.special_tokens_map == stock.backend.special_tokens_map
    assert set(lean.backend.all_special_ids) == set(stock.backend.all_special_ids)
    assert both[0].denoiser.vocab == both[1].denoiser.vocab


INTERPRETED = [
    ("tokenizer_config.json", {"add_bos_token": True}),
    ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizerFast"}),
    ("tokenizer_config.json", {"clean_up_tokenization_spaces": True}),
    ("tokenizer_config.json", {"additional_special_tokens": ["<|new|>"]}),
    ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": "x"}]}),
    ("tokenizer_config.json", {"eos_token": {"content": "<|endoftext|>"}}),
    ("special_tokens_map.json", {"mask_token": "<|mdm_mask|>"}),
    ("tokenizer.json", {"truncation": {"direction": "Right", "max_length": 4,
                                       "strategy": "LongestFirst", "stride": 0}}),
    ("chat_template.jinja", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), INTERPRETED)
def test_files_that_transformers_interprets_are_left_to_it(both, name, change, tmp_path):
    import json

    from dllm_decode.models.direct import read_directly

    copy = shutil.copytree(both[0].description.path, tmp_path / "copy")
    assert read_directly(copy) is not None
    if change is None:
        (copy / name).write_text("x")
    else:
        (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | change))
    assert read_directly(copy) is None


def test_a_damaged_tokenizer_is_reported_with_its_folder(both, tmp_path):
    copy = shutil.copytree(both[0].description.path, tmp_path / "copy")
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"the tokenizer in .*copy cannot be read: "):
        load_model(str(copy), body="lean")
