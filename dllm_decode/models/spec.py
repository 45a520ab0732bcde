"""The table of model families: one row per published architecture name.

A row says how a published checkpoint becomes a stock transformers model. The table is keyed on
`architectures[0]` of config.json, never on `model_type`, which two LLaDA families share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dllm_decode.errors import CheckpointError

Settings = dict[str, Any]

# Keys that every config.json may carry and that do not change what a forward pass computes.
INERT = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "auto_map",
        "bos_token_id",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "gradient_checkpointing",
        "initializer_range",
        "license",
        "mask_token_id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "return_dict",
        "sep_token_id",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "unsloth_version",
        "use_cache",
    }
)


class Published:
    """A config.json that knows which of its keys were read, so that no switch is ignored."""

    def __init__(self, values: Mapping[str, Any], ignored: frozenset[str] = frozenset()) -> None:
        self.values = values
        self.architecture = architecture_of(values)
        self._seen = set(INERT | ignored)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; `default` where it is absent or null."""
        self._seen.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """The value of a key; raises `CheckpointError` where there is none."""
        value = self.get(key)
        if value is None:
            raise CheckpointError(f"config.json ({self.architecture}) has no {key!r}")
        return value

    def expect(self, key: str, *allowed: Any) -> None:
        """Refuse any value but the allowed ones; absent and null count as the first of them."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            words = " or ".join(map(repr, allowed))
            raise CheckpointError(
                f"config.json ({self.architecture}) sets {key!r} to {value!r}, which is not "
                f"supported; supported is {words}"
            )

    def skip(self, *keys: str) -> None:
        """Note keys that have no effect on a forward pass of this family."""
        self._seen.update(keys)

    def finish(self) -> None:
        """Refuse what nobody read and is set to something."""
        unread = sorted(
            key
            for key, value in self.values.items()
            if key not in self._seen and value is not None and value is not False
        )
        if unread:
            listing = ", ".join(f"{key}={self.values[key]!r}" for key in unread)
            raise CheckpointError(
                f"config.json ({self.architecture}) has settings that are not handled: {listing}; "
                "if they do not change what the model computes, name them in "
                f"model.ignore_settings=[{','.join(unread)}]"
            )


def architecture_of(values: Mapping[str, Any]) -> str:
    """`architectures[0]`; raises `CheckpointError` where config.json names none."""
    names = values.get("architectures")
    if not isinstance(names, list) or not names:
        raise CheckpointError(
            "config.json names no architecture (key 'architectures'), so the model family is "
            "unknown"
        )
    return str(names[0])


@dataclass(frozen=True)
class ModelSpec:
    """How one published architecture is loaded and asked.

    family: name for people; translate: from config.json to the settings of the stock config class;
    config_class, model_class: stock classes, `module:Class`; shifted: logits at position p predict
    p + 1; block: for block-causal attention the key of config.json that holds the length of the
    published block grid (empty where there is none) and the length where it is not set, None for
    full attention; mask_token: the tokenizer's word for the mask; turn_end: words that end a turn
    and so a text; reply_header: what the chat template appends even when it is asked not to.
    """

    family: str
    translate: Callable[[Published], Settings]
    config_class: str
    model_class: str
    shifted: bool = False
    block: tuple[str, int] | None = None
    mask_token: str | None = None
    turn_end: tuple[str, ...] = ()
    reply_header: str | None = None

    def block_length(self, published: Published) -> int | None:
        """Columns of the published block grid, None for full attention."""
        if self.block is None:
            return None
        key, usual = self.block
        return int(published.get(key, usual)) if key else usual


def _rope(theta: float, share: float = 1.0) -> Settings:
    """Rotary positions; share: part of each head that is rotated, in (0, 1]."""
    return {
        "rope_type": "default",
        "rope_theta": float(theta),
        "partial_rotary_factor": float(share),
    }


def _unscaled(config: Published) -> None:
    """Refuse position scaling; the published models have none."""
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict):
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind == "default" and scaling.get("factor", 1.0) == 1.0:
            return
    config.expect("rope_scaling", None)


def _sizes(config: Published) -> Settings:
    """What every family but LLaDA-8B writes under the names transformers uses."""
    config.expect("hidden_act", "silu")
    config.expect("use_sliding_window", False)
    config.skip("sliding_window", "max_window_layers", "layer_types")
    _unscaled(config)
    heads = config.need("num_attention_heads")
    return {
        "vocab_size": config.need("vocab_size"),
        "hidden_size": config.need("hidden_size"),
        "num_hidden_layers": config.need("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads", heads),
        "max_position_embeddings": config.need("max_position_embeddings"),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_parameters": _rope(config.need("rope_theta"), config.get("partial_rotary_factor", 1)),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
    }


def _head_size(config: Published) -> int:
    """Width of one attention head."""
    width = config.need("hidden_size") // config.need("num_attention_heads")
    return int(config.get("head_dim", width))


def _llada(config: Published) -> Settings:
    """LLaDA-8B Base and Instruct, LLaDA-1.5, and the bundled llada-tiny."""
    for switch in (
        "alibi",
        "attention_layer_norm",
        "bias_for_layer_norm",
        "include_bias",
        "include_qkv_bias",
        "input_emb_norm",
        "multi_query_attention",
        "scale_logits",
    ):
        config.expect(switch, False)
    config.expect("rope", True)
    config.expect("activation_type", "silu")
    config.expect("block_type", "llama")
    config.expect("block_group_size", 1)
    config.expect("layer_norm_type", "rms")
    config.expect("layer_norm_with_affine", True)
    config.skip(
        "alibi_bias_max",
        "attention_layer_norm_with_affine",
        "embedding_dropout",
        "flash_attention",
        "init_cutoff_factor",
        "init_device",
        "init_fn",
        "init_std",
        "precision",
        "residual_dropout",
    )
    width = config.need("d_model")
    heads = config.need("n_heads")
    return {
        "vocab_size": config.get("embedding_size", config.need("vocab_size")),
        "hidden_size": width,
        "intermediate_size": config.get("mlp_hidden_size", config.get("mlp_ratio", 4) * width),
        "num_hidden_layers": config.need("n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("n_kv_heads", heads),
        "max_position_embeddings": config.need("max_sequence_length"),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_parameters": _rope(config.get("rope_theta", 10000.0)),
        "rope_full_precision": config.get("rope_full_precision", True),
        "tie_word_embeddings": config.get("weight_tying", False),
    }


def _illada(config: Published) -> Settings:
    """iLLaDA: Llama under its own names."""
    for switch in ("attention_bias", "mlp_bias"):
        config.expect(switch, False)
    config.expect("layer_norm_eps", None)
    config.skip("resid_pdrop", "embd_pdrop", "pretraining_tp")
    return {
        **_sizes(config),
        "head_dim": _head_size(config),
        "intermediate_size": config.need("intermediate_size"),
    }


def _llada_moe(config: Published) -> Settings:
    """LLaDA-MoE: Qwen3-MoE with unnormalised expert weights."""
    config.expect("attention_bias", False)
    config.expect("clip_qkv", None)
    config.expect("moe_router_enable_expert_bias", False)
    config.expect("moe_router_score_function", "softmax")
    config.expect("norm_topk_prob", False)
    config.expect("partial_rotary_factor", 1)
    config.expect("qk_layernorm", True)
    config.expect("routed_scaling_factor", 1)
    config.expect("router_num_group", None)
    config.expect("router_topk_group", None)
    config.expect("shared_expert_intermediate_size", None)
    config.skip("output_router_logits", "router_aux_loss_coef")
    experts_in = config.get("moe_layer_freq", [1] * config.need("num_hidden_layers"))
    width = config.need("expert_intermediate_size")
    return {
        **_sizes(config),
        "head_dim": _head_size(config),
        "intermediate_size": config.get("dense_intermediate_size", width),
        "moe_intermediate_size": width,
        "num_experts": config.need("num_experts"),
        "num_experts_per_tok": config.need("num_experts_per_tok"),
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer, used in enumerate(experts_in) if not used],
    }


def _llada2(config: Published) -> Settings:
    """LLaDA2.0 and 2.1: the Ling 2.0 mixture of experts, which GLM-4 MoE computes."""
    for switch in ("norm_head", "use_bias", "use_qkv_bias"):
        config.expect(switch, False)
    config.expect("moe_router_enable_expert_bias", True)
    config.expect("num_nextn_predict_layers", 0)
    config.expect("router_dtype", "fp32")
    config.expect("score_function", "sigmoid")
    config.expect("use_qk_norm", True)
    config.expect("use_rmsnorm", True)
    config.skip("embedding_dropout", "output_dropout", "output_router_logits")
    size, share = _head_size(config), config.get("partial_rotary_factor", 1.0)
    config.expect("rotary_dim", int(size * share))
    width, shared = config.need("moe_intermediate_size"), config.get("num_shared_experts", 0)
    config.expect("moe_shared_expert_intermediate_size", width * shared)
    return {
        **_sizes(config),
        "head_dim": size,
        "intermediate_size": config.need("intermediate_size"),
        "moe_intermediate_size": width,
        "n_routed_experts": config.need("num_experts"),
        "n_shared_experts": shared,
        "num_experts_per_tok": config.need("num_experts_per_tok"),
        "n_group": config.get("n_group", 1),
        "topk_group": config.get("topk_group", 1),
        "norm_topk_prob": config.get("norm_topk_prob", True),
        "routed_scaling_factor": float(config.get("routed_scaling_factor", 1.0)),
        "first_k_dense_replace": config.get("first_k_dense_replace", 0),
        "use_qk_norm": True,
        "num_mtp_layers": 0,
    }


def _qwen2(config: Published) -> Settings:
    """Dream: Qwen2.5."""
    config.expect("use_mrope", False)
    return {**_sizes(config), "intermediate_size": config.need("intermediate_size")}


def _fast_dllm(config: Published) -> Settings:
    """Fast-dLLM v2: Qwen2.5 with a block length."""
    config.skip("bd_size")
    return _qwen2(config)


def _qwen3(config: Published) -> Settings:
    """SDAR: Qwen3."""
    config.expect("attention_bias", False)
    config.skip("block_size", "ep_size", "fuse_cross_entropy")
    return {
        **_sizes(config),
        "head_dim": _head_size(config),
        "intermediate_size": config.need("intermediate_size"),
    }


def _qwen3_moe(config: Published) -> Settings:
    """SDAR-30B-A3B: Qwen3-MoE."""
    config.skip("output_router_logits", "router_aux_loss_coef")
    return {
        **_qwen3(config),
        "moe_intermediate_size": config.need("moe_intermediate_size"),
        "num_experts": config.need("num_experts"),
        "num_experts_per_tok": config.need("num_experts_per_tok"),
        "norm_topk_prob": config.need("norm_topk_prob"),
        "decoder_sparse_step": config.get("decoder_sparse_step", 1),
        "mlp_only_layers": config.get("mlp_only_layers", []),
    }


LLADA_HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"

SPECS: dict[str, ModelSpec] = {
    "LLaDAModelLM": ModelSpec(
        family="LLaDA",
        translate=_llada,
        config_class="transformers:LlamaConfig",
        model_class="dllm_decode.models.llada:LLaDAModelLM",
        mask_token="<|mdm_mask|>",
        turn_end=("<|eot_id|>",),
        reply_header=LLADA_HEADER,
    ),
    "ILLaDAForCausalLM": ModelSpec(
        family="iLLaDA",
        translate=_illada,
        config_class="transformers:LlamaConfig",
        model_class="transformers:LlamaForCausalLM",
        mask_token="<[MASK]>",
    ),
    "LLaDAMoEModelLM": ModelSpec(
        family="LLaDA-MoE",
        translate=_llada_moe,
        config_class="transformers:Qwen3MoeConfig",
        model_class="transformers:Qwen3MoeForCausalLM",
        mask_token="<|mask|>",
        turn_end=("<|role_end|>",),
    ),
    "LLaDA2MoeModelLM": ModelSpec(
        family="LLaDA2",
        translate=_llada2,
        config_class="transformers:Glm4MoeConfig",
        model_class="dllm_decode.models.llada2:LLaDA2MoeModelLM",
        block=("", 32),
        mask_token="<|mask|>",
        turn_end=("<|role_end|>",),
    ),
    "DreamModel": ModelSpec(
        family="Dream",
        translate=_qwen2,
        config_class="transformers:Qwen2Config",
        model_class="transformers:Qwen2ForCausalLM",
        shifted=True,
        mask_token="<|mask|>",
        turn_end=("<|im_end|>",),
    ),
    "SDARForCausalLM": ModelSpec(
        family="SDAR",
        translate=_qwen3,
        config_class="transformers:Qwen3Config",
        model_class="transformers:Qwen3ForCausalLM",
        block=("block_size", 4),
        mask_token="<|MASK|>",
        turn_end=("<|im_end|>",),
    ),
    "SDARMoeForCausalLM": ModelSpec(
        family="SDAR-MoE",
        translate=_qwen3_moe,
        config_class="transformers:Qwen3MoeConfig",
        model_class="transformers:Qwen3MoeForCausalLM",
        block=("block_size", 4),
        mask_token="<|MASK|>",
        turn_end=("<|im_end|>",),
    ),
    "Fast_dLLM_QwenForCausalLM": ModelSpec(
        family="Fast-dLLM v2",
        translate=_fast_dllm,
        config_class="transformers:Qwen2Config",
        model_class="transformers:Qwen2ForCausalLM",
        shifted=True,
        block=("bd_size", 32),
        mask_token="|<MASK>|",
        turn_end=("<|im_end|>",),
    ),
}

# Architectures that are known and cannot be decoded here, with what is missing.
REFUSED = {
    "DiffusionGemmaForBlockDiffusion": (
        "its canvas starts as random tokens and has no mask id, and each pass is fed the previous "
        "logits through a separate encoder and decoder; the loop here marks undecided columns with "
        "a mask token and passes no logits back"
    ),
}


def spec_of(values: Mapping[str, Any]) -> ModelSpec:
    """The row of a config.json; raises `CheckpointError` for architectures not in the table."""
    architecture = architecture_of(values)
    if architecture in REFUSED:
        raise CheckpointError(
            f"architecture {architecture!r} is not supported: {REFUSED[architecture]}"
        )
    if architecture not in SPECS:
        raise CheckpointError(
            f"architecture {architecture!r} is not known; known are {', '.join(sorted(SPECS))}"
        )
    return SPECS[architecture]
