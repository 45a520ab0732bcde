"""Loading checkpoints: round trips, damage, refusals, the self-check, and known traps."""

import builtins
import json
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import published_configs as sizes
import pytest
import torch
from golden_checkpoints import GOLDEN, OPTIONS
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from dllm_decode.decoding.cache import BlockExact, DualCache, NoCache, Plan
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request
from dllm_decode.errors import CheckpointError, ConfigError
from dllm_decode.models import checks, doctor, load_model, placement
from dllm_decode.models.adopt import adopt
from dllm_decode.models.files import stored_tensors
from dllm_decode.models.spec import SPECS
from dllm_decode.strategies.fixed import TopK


def load(folder, **options):
    return load_model(str(folder), device="cpu", dtype="float32", **options)


def golden(family, **options):
    return load(GOLDEN / family, **(OPTIONS[family] | options))


def logits(loaded, tokens):
    live = torch.ones_like(tokens, dtype=torch.bool)
    return loaded.denoiser(tokens, live, torch.arange(tokens.shape[1]).expand_as(tokens), Plan())


def weights(folder):
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


@pytest.fixture
def copy(tmp_path):
    """A checkpoint folder that may be damaged, with helpers to do so."""

    class Copy:
        folder = tmp_path / "checkpoint"

        def of(self, family):
            shutil.copytree(GOLDEN / family, self.folder)
            return self.folder

        def tensors(self, change):
            tensors = weights(self.folder)
            change(tensors)
            save_file(tensors, self.folder / "model.safetensors", metadata={"format": "pt"})

        def config(self, **values):
            path = self.folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return Copy()


@pytest.fixture
def tiny(tmp_path):
    """Writes a random checkpoint of a family in its published format."""

    return lambda name: sizes.write_tiny(name, tmp_path / name)


TOKENS = torch.tensor([[5, 9, 14, 3, 77, 20, 31, 8, 41, 12, 60, 2]])


@pytest.mark.one_in(4)
@pytest.mark.parametrize("family", OPTIONS)
def test_load_save_load_is_the_identity_and_keeps_published_names(family, tmp_path):
    first = golden(family)
    first.save_pretrained(tmp_path / "saved")
    published, written = weights(GOLDEN / family), weights(tmp_path / "saved")
    assert published.keys() == written.keys()
    assert all(torch.equal(published[name], written[name]) for name in published)
    config = json.loads((GOLDEN / family / "config.json").read_text())
    assert json.loads((tmp_path / "saved" / "config.json").read_text()) == config
    again = load(tmp_path / "saved", **OPTIONS[family])
    assert torch.equal(logits(first, TOKENS), logits(again, TOKENS))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("family", OPTIONS)
def test_loading_twice_gives_the_same_logits(family):
    assert torch.equal(logits(golden(family), TOKENS), logits(golden(family), TOKENS))


# family: columns of the block grid, whether predictions are shifted, the word of the mask
KINDS = {
    "illada": (None, False),
    "sdar": (4, False),
    "sdar_moe": (4, False),
    "fast_dllm": (8, True),
    "fast_dllm_tied": (8, True),
    "llada2_2": (4, False),
    "stable_diffcoder": (4, False),
    "rnd1": (None, True),
    "wedlm": (None, False),
    "wedlm_qwen2": (None, False),
    "a2d_qwen3": (None, False),
    "a2d_qwen2": (None, False),
    "a2d_llama": (None, False),
    "open_dcoder": (None, True),
}


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Each small family as published, loaded once."""
    loaded, folder = {}, tmp_path_factory.mktemp("families")

    def get(name):
        if name not in loaded:
            loaded[name] = load(sizes.write_tiny(name, folder / name))
        return loaded[name]

    return get


@pytest.mark.one_in(7)
@pytest.mark.parametrize("name", sizes.TINY)
def test_families_without_golden_weights_load_and_pass_their_self_check(name, families):
    loaded = families(name)
    assert (loaded.denoiser.block_length, loaded.denoiser.shifted) == KINDS[name]
    assert loaded.denoiser.reordered == name.startswith("wedlm")
    assert loaded.denoiser.vocab.mask_id == 91
    assert loaded.denoiser.vocab.eot_ids == (90,)
    assert logits(loaded, TOKENS).isfinite().all()


def test_every_mixture_of_experts_runs_its_experts_as_one_product(families):
    mixtures = {name for name, spec in SPECS.items() if "Moe" in spec.config_class}
    small = {"LLaDAMoEModelLM": "lladamoe", "LLaDA2MoeModelLM": "llada2"}
    small |= {sizes.TINY[name]["architectures"][0]: name for name in sizes.TINY}
    for architecture in mixtures:
        name = small[architecture]
        model = (golden(name) if name in OPTIONS else families(name)).denoiser.model
        assert model.config._experts_implementation == "grouped_mm", architecture


@pytest.mark.parametrize("name", ["a2d_qwen3", "a2d_qwen2", "a2d_llama"])
def test_families_of_either_attention_are_block_causal_where_the_setting_says_so(name, tiny):
    folder = tiny(name)
    loaded = load(folder, block_length=4)
    changed = TOKENS.clone()
    changed[0, -1] = 1
    same = (logits(loaded, TOKENS) == logits(loaded, changed)).all(-1)[0]
    assert same[:8].all() and not same[8:].any()


def in_published_order(loaded, tokens, mask_id):
    """Logits as WeDLM's sampler gets them: decided tokens moved to the front, a causal model."""
    decided = [c for c in range(tokens.shape[1]) if tokens[0, c] != mask_id]
    order = torch.tensor(decided + [c for c in range(tokens.shape[1]) if c not in decided])
    length = len(order)
    with torch.no_grad():
        hidden = loaded.denoiser.model.model(
            input_ids=tokens[:, order],
            position_ids=order[None],
            attention_mask=torch.ones(length, length, dtype=torch.bool).tril()[None, None],
            use_cache=False,
        ).last_hidden_state
    read = loaded.denoiser.head(hidden)
    return torch.empty_like(read).index_copy(1, order, read)


@pytest.mark.parametrize("name", ["wedlm", "wedlm_qwen2"])
def test_a_mask_in_the_order_of_decisions_is_the_published_order_of_tokens(name, families):
    loaded, mask = families(name), 91
    tokens = TOKENS.clone()
    tokens[0, [5, 6, 9, 10, 11]] = mask
    expected = in_published_order(loaded, tokens, mask)
    assert torch.allclose(logits(loaded, tokens), expected, atol=1e-5)
    padded = torch.cat((torch.full((1, 3), 90), tokens), 1)
    live = torch.arange(15)[None] >= 3
    index = torch.arange(3, 15)[None]
    alone = loaded.denoiser(padded, live, index, Plan())
    assert torch.allclose(alone, expected, atol=1e-5)
    # all of the masks behind may be missing, as in the published loop
    assert torch.allclose(logits(loaded, tokens[:, :10]), expected[:, :10], atol=1e-5)


@pytest.mark.parametrize("cache", [NoCache(), DualCache()])
def test_a_reordered_model_decodes_a_padded_batch_like_its_rows_alone(cache, families):
    prompts = ((5, 9, 14, 3, 77), (20, 31))
    decoder = Decoder(families("wedlm").denoiser, Pipeline(TopK(1)), Blocks(4), cache=cache)
    together = decoder.decode(Request(prompts, 8)).sequences
    alone = [decoder.decode(Request((prompt,), 8)).sequences[0] for prompt in prompts]
    assert [list(row) for row in together] == [list(row) for row in alone]


def chosen_by_hand(logits, bias, block, capacity, used):
    """Experts and weights of each token as LLaDA2.2's router is published, block by block."""
    scores = logits.sigmoid()
    experts, weights = [], []
    for begin in range(0, len(logits), block):
        corrected = scores[begin : begin + block] + bias
        allowed = set(corrected.max(0).values.argsort(descending=True)[:capacity].tolist())
        for token in range(len(corrected)):
            order = corrected[token].argsort(descending=True).tolist()
            mine = [expert for expert in order if expert in allowed][:used]
            own = scores[begin + token, mine]
            experts.append(mine)
            weights.append((own / own.sum() * 2.5).tolist())
    return experts, weights


def test_the_tokens_of_a_block_choose_their_experts_together(families):
    denoiser = families("llada2_2").denoiser
    seen = []
    routers = denoiser.model.routers
    assert len(routers) == 1 and denoiser.routes_blocks
    handle = routers[0].register_forward_hook(lambda module, given, made: seen.append(made))
    try:
        denoiser.hidden(TOKENS[:, :10], torch.ones(1, 10, dtype=torch.bool))
    finally:
        handle.remove()
    logits, weights, experts = seen[0]
    bias = routers[0].e_score_correction_bias
    by_hand, shares = chosen_by_hand(logits, bias, block=4, capacity=3, used=2)
    assert [sorted(row) for row in experts.tolist()] == [sorted(row) for row in by_hand]
    assert len({expert for row in by_hand[:4] for expert in row}) <= 3
    for found, numbers, mine, expected in zip(
        experts.tolist(), weights.tolist(), by_hand, shares, strict=True
    ):
        assert [numbers[found.index(expert)] for expert in mine] == pytest.approx(expected)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("cache", [NoCache(), BlockExact()])
def test_rows_of_a_batch_do_not_choose_each_other_s_experts(cache, families):
    prompts = ((5, 9, 14, 3, 77, 20, 31), (20, 31), (8,))
    decoder = Decoder(families("llada2_2").denoiser, Pipeline(TopK(1)), Blocks(4), cache=cache)
    together = decoder.decode(Request(prompts, (8, 14, 5))).sequences
    for prompt, length, row in zip(prompts, (8, 14, 5), together, strict=True):
        assert list(decoder.decode(Request((prompt,), length)).sequences[0]) == list(row)


def test_experts_chosen_by_blocks_run_uncompiled_and_say_so(tiny, caplog):
    assert load(tiny("llada2_2"), compile="default").denoiser.compiled is None
    assert "uncompiled: its experts are chosen by whole blocks" in caplog.text


def test_a_causal_qwen2_is_not_taken_for_open_dcoder(tiny):
    folder = tiny("open_dcoder")
    config = folder / "config.json"
    values = json.loads(config.read_text())
    del values["auto_map"], values["mask_token_id"]
    config.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="writes from left to right"):
        load(folder, mask_id=91)


def test_attention_in_the_order_of_decisions_needs_sdpa(tiny):
    with pytest.raises(ConfigError, match="must be sdpa for WeDLM, whose reordered mask"):
        load(tiny("wedlm"), attn_implementation="eager")


def test_a_reordered_model_that_sees_decided_columns_behind_is_found(monkeypatch, families):
    denoiser = families("wedlm").denoiser
    everything = lambda self, queries, keys, tokens: keys[:, None].expand(-1, queries.shape[1], -1)  # noqa: E731
    monkeypatch.setattr(type(denoiser), "_reordered_mask", everything)
    assert "decided columns in front" in checks.check_attention(denoiser)


def test_ids_may_be_banned_and_are_checked(copy):
    folder = copy.of("llada2")
    banned = load(folder, **OPTIONS["llada2"], banned_ids=[9, 7]).denoiser.vocab.banned_ids
    assert banned[:2] == (7, 9)
    for key in ("banned_ids", "edit_ids"):
        for wrong in ([-1], [10**6], [True], ["7"]):
            with pytest.raises(ConfigError, match=rf"model\.{key} must be ids from 0 to"):
                load(folder, **OPTIONS["llada2"], **{key: wrong})
        with pytest.raises(ConfigError, match=rf"model\.{key} must not hold 5, which ends a text"):
            load(folder, **OPTIONS["llada2"], eot_ids=[5], **{key: [5]})


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    ("key", "wrong", "kind"),
    [
        *(("mask_id", wrong, "a token id") for wrong in ("x", [1], 1.5, True)),
        *(("pad_id", wrong, "a token id") for wrong in ("x", [1])),
        *(("eot_ids", wrong, "a list of token ids") for wrong in ("x", 5, ["x"], [[1]])),
        *((key, 5, "a list of ids") for key in ("banned_ids", "edit_ids")),
    ],
)
def test_special_ids_of_another_kind_are_refused_by_key(key, wrong, kind):
    with pytest.raises(ConfigError, match=rf"^model\.{key} must be {kind}, got ") as caught:
        golden("llada2", **{key: wrong})
    if key in ("mask_id", "pad_id", "eot_ids"):
        loaded = golden("llada2")
        with pytest.raises(ConfigError, match=f"^{re.escape(str(caught.value))}$"):
            adopt(loaded.denoiser.model, **{key: wrong})


@pytest.mark.parametrize("said_by", ["config.json", "model.edit_ids"])
def test_ids_that_insert_and_delete_are_never_generated_and_loading_says_so(said_by, copy, caplog):
    folder, options = copy.of("llada2"), dict(OPTIONS["llada2"])
    if said_by == "config.json":
        copy.config(delete_token_id=11, split_token_id=12)
    else:
        options["edit_ids"] = [11, 12]
    loaded = load(folder, **options)
    assert {11, 12} <= set(loaded.denoiser.vocab.never_generated)
    said = [record for record in caplog.messages if "decoded without insert and delete" in record]
    assert len(said) == 1 and "(11, 12)" in said[0]
    report = doctor.examine({"checkpoint": str(folder), "device": "cpu", **options})
    assert any("edits its own text (ids 11, 12)" in found.text for found in report.findings)


def test_a_llada_checkpoint_in_the_stock_layout_gives_the_same_logits(copy):
    folder = copy.of("llada")
    expected = logits(golden("llada"), TOKENS)
    stock = {k: v.clone() for k, v in golden("llada").denoiser.model.state_dict().items()}
    save_file(stock, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.0.self_attn.q_proj.weight" in stored_tensors(folder)
    assert torch.equal(logits(load(folder), TOKENS), expected)


def as_transformers_5_writes_it(values):
    """A config.json after `save_pretrained` of transformers 5."""
    values = dict(values)
    layers = values.get("n_layers", values.get("num_hidden_layers"))
    rope = {"rope_type": "default", "rope_theta": float(values.pop("rope_theta"))}
    if "partial_rotary_factor" in values:
        rope["partial_rotary_factor"] = values.pop("partial_rotary_factor")
    for older in ("rope_scaling", "torch_dtype", "layer_types"):
        values.pop(older, None)
    if "num_experts" in values:
        values["num_local_experts"] = values.pop("num_experts")
    return values | {
        "rope_parameters": rope,
        "layer_types": ["full_attention"] * layers,
        "dtype": "bfloat16",
        "pad_token_id": -1,
        "transformers_version": "5.23.0",
    }


@pytest.mark.one_in(18)
@pytest.mark.parametrize("family", [*OPTIONS, *sizes.TINY])
def test_a_config_as_transformers_5_writes_it_gives_the_same_logits(family, copy, tiny):
    folder = copy.of(family) if family in OPTIONS else tiny(family)
    options = OPTIONS.get(family, {})
    before = load(folder, **options)
    file = folder / "config.json"
    file.write_text(json.dumps(as_transformers_5_writes_it(json.loads(file.read_text()))))
    after = load(folder, **options)
    assert torch.equal(logits(before, TOKENS), logits(after, TOKENS))
    assert after.denoiser.vocab.pad_id is None
    assert (
        after.denoiser.model.config.rope_parameters == before.denoiser.model.config.rope_parameters
    )


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_positions_may_stand_per_layer_type_or_under_the_older_word(key, copy):
    folder = copy.of("dream")
    rope = {"rope_theta": 1e6, "rope_type": "default"}
    copy.config(rope_theta=None, **{key: {"full_attention": rope}})
    assert torch.equal(logits(load(folder), TOKENS), logits(golden("dream"), TOKENS))


# Damage.


def test_a_missing_tensor_is_named(copy):
    folder = copy.of("llada")
    copy.tensors(lambda tensors: tensors.pop("model.transformer.blocks.1.attn_norm.weight"))
    with pytest.raises(
        CheckpointError, match=r"missing: model.transformer.blocks.1.attn_norm.weight$"
    ):
        load(folder)


def test_an_unexpected_tensor_is_named(copy):
    folder = copy.of("dream")
    copy.tensors(lambda tensors: tensors.update({"model.extra.weight": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"unexpected: model.extra.weight$"):
        load(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(copy):
    folder = copy.of("llada")
    name = "model.transformer.ff_out.weight"
    copy.tensors(lambda tensors: tensors.update({name: torch.zeros(200, 48)}))
    with pytest.raises(CheckpointError, match=r"ff_out.weight is 200 x 48, config.json asks"):
        load(folder)


def test_a_missing_expert_is_named(copy):
    folder = copy.of("llada2")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    copy.tensors(lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        load(folder, **OPTIONS["llada2"])


def test_a_truncated_file_is_reported_with_its_bytes(copy):
    folder = copy.of("llada")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model.safetensors is truncated: \d+ of \d+ bytes"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, (2).to_bytes(8, "little") + b"[{"])
def test_a_file_that_is_no_safetensors_is_reported(copy, content):
    folder = copy.of("llada")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors is .*copy it again"):
        load(folder)


def test_a_missing_shard_is_named(copy):
    folder = copy.of("lladamoe")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model-00002-of-00003.safetensors"):
        load(folder, mask_id=197)


def test_an_index_that_names_tensors_no_shard_holds_is_reported(copy):
    folder = copy.of("lladamoe")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.ghost.weight"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"no shard holds: model.ghost.weight"):
        load(folder, mask_id=197)


def test_an_index_without_weight_map_is_reported(copy):
    folder = copy.of("lladamoe")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no 'weight_map'"):
        load(folder, mask_id=197)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_config_that_is_no_json_object_is_reported(copy, content):
    folder = copy.of("llada")
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config.json (cannot be read|must hold one JSON)"):
        load(folder)


# Special ids and settings.


def test_a_checkpoint_without_any_mask_id_is_refused_with_the_fix():
    with pytest.raises(CheckpointError, match=r"no mask token: .* '<\|mask\|>'; set model.mask_id"):
        load(GOLDEN / "lladamoe")


def test_settings_win_over_config_json():
    vocab = golden("llada", mask_id=250, eot_ids=[1, 2], pad_id=3).denoiser.vocab
    assert (vocab.mask_id, vocab.eot_ids, vocab.pad_id) == (250, (1, 2), 3)


def test_a_list_of_end_ids_in_config_json_is_read(copy):
    folder = copy.of("llada")
    copy.config(eos_token_id=[221, 7])
    assert load(folder).denoiser.vocab.eot_ids == (221, 7)


WRONG = [
    ({"dtype": "int8"}, "model.dtype must be one of auto, float32"),
    ({"device": "gpu"}, "model.device must be auto, cpu or a device of this machine, got 'gpu'"),
    ({"attn_implementation": "fast"}, "model.attn_implementation must be one of sdpa"),
    ({"attn_implementation": "flash_attention_2"}, "flash_attention_2 runs on GPUs alone; use"),
    ({"device_map": "nonsense"}, r"device_map must be auto, .*sequential, a mapping, cpu or a dev"),
    ({"device_map": "meta"}, r"model\.device_map must be auto, .* got 'meta' \(it holds no num"),
    ({"device_map": 3}, r"model\.device_map must be one of auto, .* or a mapping .* got 3"),
    ({"device_map": {}}, r"or a mapping from names of modules \('' for all\) to devices, got {}"),
    ({"device_map": {3: "cpu"}}, r"or a mapping from names of modules .*, got {3: 'cpu'}"),
    ({"device_map": {"": 77}}, r"device_map\[''\] must be disk, the number of a GPU, cpu or a dev"),
    ({"device_map": {"": None}}, r"model\.device_map\[''\] must be .* got None"),
    ({"device_map": {"": "gpu"}}, r"model\.device_map\[''\] must be .* got 'gpu'"),
    (
        {"device_map": {"modl": "cpu"}},
        "names 'modl', which the model does not have; it has",
    ),
    ({"device_map": {"model": "cpu"}}, "model.device_map says nothing about lm_head.weight"),
    ({"device_map": {"": "disk"}}, "sends the embedding to the disk, .* give model.embed"),
    (
        {"device_map": {"": "cpu", "lm_head": "disk"}, "quantization": "int8"},
        "quantised weights stay where they are computed with: model.device_map must not send",
    ),
    ({"device_map": "auto", "tensor_parallel": 2}, "device_map and model.tensor_parallel exclude"),
    ({"tensor_parallel": 2}, "needs as many processes; start with torchrun --nproc-per-node 2"),
    ({"tensor_parallel": 1}, "model.tensor_parallel must be a whole number >= 2, got 1"),
    ({"block_length": 8}, "model.block_length is for block-causal models; LLaDA attends"),
    ({"max_length": 257}, "model.max_length must not exceed the model's 256 positions, got 257"),
    ({"max_length": 0}, "model.max_length must be a whole number >= 1, got 0"),
    ({"mask_id": 256}, r"mask_id must lie in \[0, 255\], got 256"),
]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda value: str(value)[:24])
def test_settings_that_cannot_work_are_refused_by_key(options, message):
    if "device_map" in options:
        pytest.importorskip("accelerate")
    with pytest.raises(ConfigError, match=message):
        load_model(str(GOLDEN / "llada"), **({"device": "cpu"} | options))


def test_a_number_of_processes_that_cannot_share_the_model_is_refused(monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"needs as many processes, but torchrun has started 2"):
        golden("llada", tensor_parallel=3)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"tensor_parallel=3 must divide the \d key/value heads"):
        golden("llada", tensor_parallel=3)


def test_a_device_map_without_accelerate_is_refused_with_the_fix(monkeypatch):
    monkeypatch.setattr("dllm_decode.models.placement.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"model.device_map needs the package accelerate; pip"):
        golden("llada", device_map="auto")


def test_block_causal_models_refuse_attention_that_cannot_take_their_mask():
    with pytest.raises(
        ConfigError, match=r"model.attn_implementation must be sdpa or flex_attention for LLaDA2"
    ):
        golden("llada2", attn_implementation="eager")
    with pytest.raises(ConfigError, match=r"model.block_length must be a whole number >= 1, got 0"):
        golden("llada2", block_length=0)


def test_a_block_longer_than_the_model_s_positions_is_refused_before_it_is_probed():
    message = "model.block_length must not exceed the model's 512 positions, got 513"
    with pytest.raises(ConfigError, match=message):
        golden("llada2", block_length=513)
    loaded = golden("llada2", block_length=8)
    assert checks.check_attention(replace(loaded.denoiser, block_length=513)) == message


def test_dtype_is_what_was_asked_for_and_not_what_the_file_says():
    assert golden("dream").denoiser.model.dtype == torch.float32  # config.json says bfloat16
    half = load_model(str(GOLDEN / "llada2"), dtype="bfloat16", device="cpu", mask_id=213)
    assert half.denoiser.model.dtype == torch.bfloat16
    router = half.denoiser.model.model.layers[1].mlp.gate.e_score_correction_bias
    assert router.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("slower", [1, 9])
def test_a_dtype_that_this_processor_multiplies_slowly_is_loaded_with_a_word(
    dtype, slower, monkeypatch, caplog
):
    times = {torch.float32: 0.1}
    monkeypatch.setattr(placement, "_product_seconds", lambda of: times.get(of, 0.1 * slower))
    load_model(str(GOLDEN / "llada"), dtype=dtype, device="cpu")
    said = [record for record in caplog.messages if "this processor multiplies" in record]
    if slower == 1 or dtype == "float32":
        assert not said
    else:
        assert said == [
            f"this processor multiplies {dtype} matrices 9 times slower than float32 ones; "
            "model.dtype=auto is faster, in twice the memory"
        ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_small_product_of_every_dtype_can_be_timed(dtype):
    assert placement._product_seconds(dtype) > 0
    assert placement.slow_on_processor(dtype, torch.device("cuda")) == ""


def test_the_description_says_what_was_loaded():
    described = golden("llada").description
    assert described.family == "LLaDA" and described.parameters == 75_504
    assert str(described).endswith("75.5 thousand parameters, float32 on cpu")
    assert described.path == GOLDEN / "llada"


@pytest.mark.parametrize("device", ["mps", "gpu", "xpu", "hpu", "vulkan", "meta", "", "cpu:x"])
def test_a_device_that_cannot_be_used_is_refused_in_one_line(device):
    with pytest.raises(
        ConfigError, match=r"model.device must be auto, cpu or a device of"
    ) as caught:
        load_model(str(GOLDEN / "llada"), device=device)
    assert f"got {device!r}" in str(caught.value) and len(str(caught.value)) < 180


@pytest.mark.slow
def test_threads_can_load_at_once():
    verbosity = logging.get_verbosity()
    kinds = [("llada", "float32"), ("llada", "bfloat16"), ("dream", "float32")] * 3

    def one(kind):
        family, dtype = kind
        return load_model(str(GOLDEN / family), device="cpu", dtype=dtype)

    with ThreadPoolExecutor(len(kinds)) as pool:
        loaded = list(pool.map(one, kinds))
    for (family, dtype), made in zip(kinds, loaded, strict=True):
        assert str(made.denoiser.model.dtype) == f"torch.{dtype}"
        if dtype == "float32":
            assert torch.equal(logits(made, TOKENS), logits(golden(family), TOKENS))
    assert torch.get_default_dtype() == torch.float32
    assert logging.get_verbosity() == verbosity


# The self-check.


@pytest.mark.parametrize("family", OPTIONS)
def test_a_sound_model_has_no_findings(family):
    loaded = golden(family)
    assert [f.problem for f in checks.self_check(loaded.denoiser, loaded.tokenizer)] == [""] * 3


@pytest.mark.parametrize("family", OPTIONS)
def test_a_table_that_was_never_filled_is_found(family):
    loaded = golden(family)
    loaded.denoiser.model.model.rotary_emb.inv_freq.mul_(1.001)
    with pytest.raises(CheckpointError, match=r"rotation table: .*inv_freq is not theta"):
        checks.require_sound(loaded.denoiser, loaded.tokenizer, "somewhere")


@pytest.mark.parametrize("family", ["llada", "dream", "lladamoe"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_causal_model_is_found(family, attention):
    loaded = golden(family, attn_implementation=attention)
    loaded.denoiser.model.config.is_causal = True
    assert "so the attention is causal" in checks.check_attention(loaded.denoiser)


def test_a_block_causal_model_that_sees_the_next_block_is_found(monkeypatch):
    loaded = golden("llada2")
    monkeypatch.setattr(type(loaded.denoiser), "_mask", lambda *args: None)
    assert "influences the block before its own" in checks.check_attention(loaded.denoiser)


def test_a_block_causal_model_that_is_causal_inside_blocks_is_found(monkeypatch):
    loaded = golden("llada2")
    lower = torch.ones(16, 16, dtype=torch.bool).tril()[None, None]
    monkeypatch.setattr(type(loaded.denoiser), "_mask", lambda *args: lower)
    assert "so the attention is causal" in checks.check_attention(loaded.denoiser)


def test_weights_that_are_not_finite_are_found(copy):
    folder = copy.of("llada")
    name = "model.transformer.blocks.0.ff_out.weight"
    copy.tensors(lambda tensors: tensors[name].fill_(float("nan")))
    with pytest.raises(CheckpointError, match="attention: the model returns NaN or infinite"):
        load(folder)


class Words:
    """A tokenizer that has a number of ids."""

    def __init__(self, size):
        self.size = size


def test_a_tokenizer_that_does_not_fit_the_embedding_is_found():
    denoiser = golden("llada").denoiser
    assert "ids up to 299, the model only 256" in checks.check_vocabulary(denoiser, Words(300))
    assert "mask id 252 is not in the tokenizer" in checks.check_vocabulary(denoiser, Words(252))
    assert checks.check_vocabulary(denoiser, Words(253)) == ""
    denoiser.model.lm_head.weight = torch.nn.Parameter(torch.zeros(200, 48))
    assert "the output embedding has 200 rows" in checks.check_vocabulary(denoiser, Words(None))


# Traps.


def test_registration_does_not_capture_other_families():
    from transformers import AutoConfig, Glm4MoeForCausalLM, LlamaForCausalLM
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    golden("llada"), golden("llada2")
    assert "llada" not in CONFIG_MAPPING and "llada2_moe" not in CONFIG_MAPPING
    for model_class, size in ((LlamaForCausalLM, 8), (Glm4MoeForCausalLM, 16)):
        config = AutoConfig.for_model(
            model_class.config_class.model_type,
            hidden_size=size,
            intermediate_size=size,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=8,
        )
        with torch.device("meta"):
            mapping = get_model_conversion_mapping(model_class(config))
        patterns = " ".join(source for entry in mapping for source in entry.source_patterns)
        assert "transformer.blocks" not in patterns and "query_key_value" not in patterns


def test_full_precision_rotation_is_on_as_published_and_can_be_off(copy):
    folder = copy.of("llada")
    rotary = golden("llada").denoiser.model.model.rotary_emb
    table, _ = rotary(torch.zeros(1, dtype=torch.bfloat16), torch.arange(4)[None])
    assert type(rotary).__name__ == "LLaDARotaryEmbedding" and table.dtype == torch.float32
    copy.config(rope_full_precision=False)
    rotary = load(folder).denoiser.model.model.rotary_emb
    table, _ = rotary(torch.zeros(1, dtype=torch.bfloat16), torch.arange(4)[None])
    assert table.dtype == torch.bfloat16


def test_loading_asks_nothing_and_opens_no_connection(monkeypatch, capfd):
    def never(*args, **kwargs):
        raise AssertionError("stdin or the network was used")

    monkeypatch.setattr(builtins, "input", never)
    monkeypatch.setattr(socket.socket, "connect", never)
    monkeypatch.setattr("huggingface_hub.snapshot_download", never)
    for family in OPTIONS:
        golden(family)
    assert capfd.readouterr() == ("", "")
