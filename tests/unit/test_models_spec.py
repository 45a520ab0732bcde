"""The table of families: every published size, and refusals by name."""

import published_configs as sizes
import pytest

from dllm_decode.errors import CheckpointError
from dllm_decode.models.blueprint import Blueprint, build_on_meta
from dllm_decode.models.files import published_shapes
from dllm_decode.models.spec import REFUSED, SPECS, Published, spec_of


def meta_model(values):
    published = Published(values)
    spec = spec_of(values)
    settings = spec.translate(published)
    published.finish()
    return build_on_meta(Blueprint(None, spec, published, settings, None))


# name, config.json, parameters in units of 1e9 as published, number of tensors on disk
PUBLISHED = {
    "LLaDA-8B": (sizes.LLADA_8B, 8.016, 3 + 9 * 32),
    "iLLaDA-8B": (sizes.ILLADA_8B, 7.62, 3 + 9 * 32),
    "LLaDA-MoE-7B-A1B": (sizes.LLADA_MOE, 7.357, 3 + 16 * (9 + 3 * 64)),
    "LLaDA2-mini": (sizes.LLADA2_MINI, 16.256, 3 + 20 * 6 + 3 + 19 * (2 + 3 + 3 * 256)),
    "LLaDA2-flash": (sizes.LLADA2_FLASH, 102.89, 3 + 32 * 6 + 3 + 31 * (2 + 3 + 3 * 256)),
    "LLaDA2.2-flash": (sizes.LLADA2_2_FLASH, 102.89, 3 + 32 * 6 + 3 + 31 * (2 + 3 + 3 * 256)),
    "Dream-7B": (sizes.DREAM_7B, 7.616, 3 + 12 * 28),
    "Fast-dLLM-v2-7B": (sizes.FAST_DLLM_7B, 7.616, 3 + 12 * 28),
    "Fast-dLLM-v2-1.5B": (sizes.FAST_DLLM_1_5B, 1.544, 3 + 12 * 28),
    "SDAR-1.7B": (sizes.SDAR_1_7B, 2.03, 3 + 11 * 28),
    "SDAR-4B": (sizes.SDAR_4B, 4.41, 3 + 11 * 36),
    "SDAR-8B": (sizes.SDAR_8B, 8.19, 3 + 11 * 36),
    "Stable-DiffCoder-8B": (sizes.STABLE_DIFFCODER_8B, 8.25, 3 + 9 * 32),
    "RND1-Base": (sizes.RND1_BASE, 30.53, 3 + 48 * (9 + 3 * 128)),
    "WeDLM-7B": (sizes.WEDLM_7B, 7.616, 3 + 12 * 28),
    "WeDLM-8B": (sizes.WEDLM_8B, 8.19, 3 + 11 * 36),
    "Tiny-A2D-0.6B": (sizes.A2D_QWEN3_0_6B, 0.596, 3 + 11 * 28),
    "Tiny-A2D-Coder-0.5B": (sizes.A2D_QWEN2_0_5B, 0.494, 3 + 12 * 24),
    "Open-dCoder-0.5B": (sizes.OPEN_DCODER_0_5B, 0.494, 3 + 12 * 24),
    "SDAR-30B-A3B": (sizes.SDAR_30B_A3B, 30.53, 3 + 48 * (9 + 3 * 128)),
}


@pytest.mark.one_in(21)
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_has_its_parameters_and_tensor_names(name):
    values, billions, tensors = PUBLISHED[name]
    model = meta_model(values)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    digits = len(str(billions).partition(".")[2])
    assert round(parameters / 1e9, digits) == billions
    assert len(published_shapes(model)) == tensors


def test_llada_8b_has_the_291_published_names_and_the_published_number_of_bytes():
    shapes = published_shapes(meta_model(sizes.LLADA_8B))
    outer = {f"model.transformer.{name}.weight" for name in ("wte", "ln_f", "ff_out")}
    inner = {
        f"model.transformer.blocks.{layer}.{name}.weight"
        for layer in range(32)
        for name in (
            [
                "attn_norm",
                "ff_norm",
                "q_proj",
                "k_proj",
                "v_proj",
                "attn_out",
                "ff_proj",
                "up_proj",
                "ff_out",
            ]
        )
    }
    assert set(shapes) == outer | inner and len(shapes) == 291
    assert shapes["model.transformer.blocks.31.ff_out.weight"] == (4096, 12288)
    assert 2 * sum(_size(shape) for shape in shapes.values()) == 16_031_162_368


@pytest.mark.slow
def test_llada2_2_flash_has_the_published_number_of_weights():
    shapes = published_shapes(meta_model(sizes.LLADA2_2_FLASH))
    assert sum(_size(shape) for shape in shapes.values()) == 102_889_705_216


def test_dream_7b_has_the_published_number_of_bytes():
    shapes = published_shapes(meta_model(sizes.DREAM_7B))
    assert 2 * sum(_size(shape) for shape in shapes.values()) == 15_231_233_024


def test_llada2_writes_fused_attention_and_single_experts():
    shapes = published_shapes(meta_model(sizes.LLADA2_MINI))
    assert shapes["model.word_embeddings.weight"] == (157184, 2048)
    assert shapes["model.layers.0.attention.query_key_value.weight"] == (24 * 128, 2048)
    assert shapes["model.layers.0.mlp.gate_proj.weight"] == (5120, 2048)
    assert shapes["model.layers.19.mlp.experts.255.down_proj.weight"] == (2048, 512)
    assert shapes["model.layers.19.mlp.gate.expert_bias"] == (256,)
    assert not any(".self_attn." in name for name in shapes)


def _size(shape):
    count = 1
    for side in shape:
        count *= side
    return count


def test_dispatch_is_on_the_architecture_and_never_on_the_model_type():
    assert spec_of(sizes.LLADA_8B).family == "LLaDA"
    assert spec_of(sizes.LLADA_MOE).family == "LLaDA-MoE"
    assert sizes.LLADA_8B["model_type"] == sizes.LLADA_MOE["model_type"] == "llada"


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(CheckpointError, match=r"'BertForMaskedLM' is not known; known are A2DLl"):
        spec_of({"architectures": ["BertForMaskedLM"]})


@pytest.mark.parametrize("values", [{}, {"architectures": []}, {"architectures": None}])
def test_a_config_without_architecture_is_refused(values):
    with pytest.raises(CheckpointError, match="names no architecture"):
        spec_of(values)


MISSING = {
    "DiffusionGemmaForBlockDiffusion": "starts as random tokens and has no mask id",
    "GFusionForDiffusionLM": "one compressed state per column",
    "NemotronLabsDiffusionModel": "between causal and block-wise",
}


@pytest.mark.parametrize("architecture", MISSING)
def test_families_that_do_not_fit_are_refused_with_what_is_missing(architecture):
    assert set(REFUSED) == set(MISSING)
    with pytest.raises(
        CheckpointError, match=f"{architecture}' is not supp.*{MISSING[architecture]}"
    ):
        spec_of({"architectures": [architecture]})


@pytest.mark.parametrize(
    ("capacity", "allowed"), [(7, ">= 8"), (257, "at most the 256"), ("x", ">=")]
)
def test_a_block_needs_as_many_experts_as_a_token_uses(capacity, allowed):
    values = sizes.LLADA2_2_FLASH | {"expert_capacity": capacity}
    with pytest.raises(CheckpointError, match=f"'expert_capacity' must be .*{allowed}"):
        spec_of(values).translate(Published(values))


SWITCHES = [
    (sizes.LLADA_8B, {"alibi": True}, "alibi"),
    (sizes.LLADA_8B, {"attention_layer_norm": True}, "attention_layer_norm"),
    (sizes.LLADA_8B, {"block_group_size": 2}, "block_group_size"),
    (sizes.LLADA_8B, {"scale_logits": True}, "scale_logits"),
    (sizes.LLADA_8B, {"include_qkv_bias": True}, "include_qkv_bias"),
    (sizes.LLADA_8B, {"multi_query_attention": True}, "multi_query_attention"),
    (sizes.LLADA_8B, {"layer_norm_type": "default"}, "layer_norm_type"),
    (sizes.ILLADA_8B, {"layer_norm_eps": 1e-5}, "layer_norm_eps"),
    (sizes.ILLADA_8B, {"rope_scaling": {"rope_type": "linear", "factor": 2}}, "rope_scaling"),
    (sizes.LLADA_MOE, {"norm_topk_prob": True}, "norm_topk_prob"),
    (sizes.LLADA_MOE, {"clip_qkv": 8.0}, "clip_qkv"),
    (sizes.LLADA_MOE, {"shared_expert_intermediate_size": 512}, "shared_expert"),
    (sizes.LLADA2_MINI, {"score_function": "softmax"}, "score_function"),
    (sizes.LLADA2_MINI, {"use_qkv_bias": True}, "use_qkv_bias"),
    (sizes.LLADA2_MINI, {"rotary_dim": 128}, "rotary_dim"),
    (sizes.LLADA2_MINI, {"norm_head": True}, "norm_head"),
    (sizes.DREAM_7B, {"use_mrope": True}, "use_mrope"),
    (sizes.DREAM_7B, {"use_sliding_window": True}, "use_sliding_window"),
    (sizes.SDAR_8B, {"attention_bias": True}, "attention_bias"),
    (sizes.SDAR_8B, {"hidden_act": "gelu"}, "hidden_act"),
    (sizes.STABLE_DIFFCODER_8B, {"mlp_bias": True}, "mlp_bias"),
    (sizes.RND1_BASE, {"is_causal": True}, "is_causal"),
    (sizes.WEDLM_8B, {"attention_bias": True}, "attention_bias"),
    (sizes.WEDLM_7B, {"attention_bias": False}, "attention_bias"),
]


@pytest.mark.parametrize(("values", "switch", "name"), SWITCHES)
def test_a_switch_that_is_not_implemented_is_refused_by_name(values, switch, name):
    values = values | switch
    with pytest.raises(CheckpointError, match=f"sets '{name}.*not supported"):
        spec_of(values).translate(Published(values))


@pytest.mark.parametrize("values", [size for size, _, _ in PUBLISHED.values()])
def test_an_unknown_setting_is_refused_by_name_unless_it_is_off_or_waived(values):
    loud = values | {"use_magic": 3, "other_magic": False, "third": None}
    published = Published(loud)
    spec_of(loud).translate(published)
    with pytest.raises(CheckpointError, match=r"not handled: use_magic=3;.*ignore_settings=\[use"):
        published.finish()
    waived = Published(loud, frozenset({"use_magic"}))
    spec_of(loud).translate(waived)
    waived.finish()


def test_a_missing_size_is_refused_by_name():
    values = {key: value for key, value in sizes.LLADA_8B.items() if key != "n_heads"}
    with pytest.raises(CheckpointError, match="has no 'n_heads'"):
        spec_of(values).translate(Published(values))


def test_block_grids_are_read_from_the_config_or_stand_in_the_table():
    grids = {
        name: SPECS[name].block_length(Published(values))
        for name, values in (
            ("LLaDAModelLM", sizes.LLADA_8B),
            ("DreamModel", sizes.DREAM_7B),
            ("LLaDA2MoeModelLM", sizes.LLADA2_MINI),
            ("SDARForCausalLM", sizes.SDAR_8B | {"block_size": 32}),
            ("SDARMoeForCausalLM", sizes.SDAR_30B_A3B),
            ("Fast_dLLM_QwenForCausalLM", sizes.FAST_DLLM_7B),
        )
    }
    assert list(grids.values()) == [None, None, 32, 32, 4, 32]
