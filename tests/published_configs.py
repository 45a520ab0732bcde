"""Sizes of the published checkpoints, as config.json gives them, and tiny ones of each family."""

import json
from pathlib import Path

LLADA_8B = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_device": "meta",
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "precision": "amp_bf16",
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "transformers_version": "4.46.3",
    "use_cache": False,
    "vocab_size": 126464,
    "weight_tying": False,
}
ILLADA_8B = {
    "architectures": ["ILLaDAForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 155136,
}
LLADA_MOE = {
    "architectures": ["LLaDAMoEModelLM"],
    "model_type": "llada",
    "attention_bias": False,
    "clip_qkv": None,
    "dense_intermediate_size": 8192,
    "eos_token_id": 156892,
    "expert_intermediate_size": 1024,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "max_position_embeddings": 8192,
    "moe_layer_freq": [1] * 16,
    "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
    "norm_topk_prob": None,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "pad_token_id": 156892,
    "partial_rotary_factor": 1,
    "qk_layernorm": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000,
    "routed_scaling_factor": 1,
    "shared_expert_intermediate_size": None,
    "tie_word_embeddings": False,
    "vocab_size": 157184,
}
LLADA2_MINI = {
    "architectures": ["LLaDA2MoeModelLM"],
    "model_type": "llada2_moe",
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "max_position_embeddings": 32768,
    "moe_intermediate_size": 512,
    "moe_router_enable_expert_bias": True,
    "n_group": 8,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 20,
    "num_key_value_heads": 4,
    "num_shared_experts": 1,
    "pad_token_id": 156892,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-6,
    "rope_theta": 600000,
    "routed_scaling_factor": 2.5,
    "score_function": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "use_bias": False,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "vocab_size": 157184,
}
LLADA2_FLASH = LLADA2_MINI | {
    "hidden_size": 4096,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
}
LLADA2_2_FLASH = LLADA2_FLASH | {
    "block_size": 32,
    "delete_token_id": 156930,
    "expert_capacity": 48,
    "max_position_embeddings": 131072,
    "rope_theta": 3000000,
    "split_token_id": 156931,
}
DREAM_7B = {
    "architectures": ["DreamModel"],
    "model_type": "Dream",
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "mask_token_id": 151666,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 151643,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
FAST_DLLM_7B = DREAM_7B | {
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "model_type": "Fast_dLLM_Qwen",
    "bd_size": 32,
    "layer_types": ["full_attention"] * 28,
    "mask_token_id": None,
    "max_position_embeddings": 32768,
}
FAST_DLLM_1_5B = FAST_DLLM_7B | {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
SDAR_8B = {
    "architectures": ["SDARForCausalLM"],
    "model_type": "sdar",
    "attention_bias": False,
    "attn_implementation": "flex_attention",
    "block_size": 4,
    "debug": False,
    "eos_token_id": 151643,
    "ep_size": 1,
    "fuse_cross_entropy": True,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "mask_token_id": 151669,
    "max_position_embeddings": 32768,
    "max_window_layers": 36,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
SDAR_1_7B = SDAR_8B | {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
}
SDAR_4B = SDAR_8B | {"hidden_size": 2560, "intermediate_size": 9728}
SDAR_30B_A3B = SDAR_8B | {
    "architectures": ["SDARMoeForCausalLM"],
    "model_type": "sdar_moe",
    "decoder_sparse_step": 1,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
}

STABLE_DIFFCODER_8B = {key: value for key, value in ILLADA_8B.items() if key != "resid_pdrop"} | {
    "architectures": ["StableDiffcoderForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling.StableDiffcoderForCausalLM"},
    "model_type": "llama",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "head_dim": 128,
    "pad_token_id": 1,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
RND1_BASE = SDAR_30B_A3B | {
    "architectures": ["RND1LM"],
    "model_type": "rnd1",
    "block_size": None,
    "eos_token_id": 151645,
    "is_causal": False,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "moe_backend": "hf",
    "num_diffusion_steps": 256,
    "output_router_logits": False,
    "pad_token_id": 151643,
    "rope_scaling": False,
    "router_aux_loss_coef": 0.001,
    "sliding_window": False,
}
WEDLM_8B = {key: value for key, value in SDAR_8B.items() if key != "block_size"} | {
    "architectures": ["WeDLMForCausalLM"],
    "model_type": "wedlm",
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 16384,
    "qk_norm": True,
}
WEDLM_7B = DREAM_7B | {
    "architectures": ["WeDLMForCausalLM"],
    "model_type": "wedlm",
    "attention_bias": True,
    "head_dim": 128,
    "mask_token_id": 151665,
    "max_position_embeddings": 32768,
    "qk_norm": False,
}
A2D_QWEN3_0_6B = WEDLM_8B | {
    "architectures": ["A2DQwen3LMHeadModel"],
    "model_type": "a2d-qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "layer_types": ["full_attention"] * 28,
    "mask_token_id": None,
    "max_position_embeddings": 40960,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "qk_norm": None,
    "tie_word_embeddings": True,
}
A2D_QWEN2_0_5B = DREAM_7B | {
    "architectures": ["A2DQwen2LMHeadModel"],
    "model_type": "a2d-qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "mask_token_id": None,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
OPEN_DCODER_0_5B = A2D_QWEN2_0_5B | {
    "architectures": ["Qwen2ForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_qwen2.Qwen2ForCausalLM"},
    "model_type": "qwen2",
    "trust_remote_code": True,
}
A2D_LLAMA = STABLE_DIFFCODER_8B | {
    "architectures": ["A2DLlamaLMHeadModel"],
    "model_type": "a2d-llama",
}

# Families without a golden checkpoint, shrunk; heads of 16, two layers, 96 token ids.
_SMALL = {
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "eos_token_id": 90,
    "pad_token_id": 90,
    "mask_token_id": 91,
}
_PLAIN_HEADS = {key: value for key, value in _SMALL.items() if key != "head_dim"}
_FEW_EXPERTS = {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2}
_TWO = {"layer_types": ["full_attention"] * 2}
TINY = {
    "illada": ILLADA_8B | _SMALL,
    "sdar": SDAR_8B | _SMALL,
    "sdar_moe": SDAR_30B_A3B | _SMALL | _FEW_EXPERTS,
    "fast_dllm": FAST_DLLM_7B | _PLAIN_HEADS | {"bd_size": 8} | _TWO,
    "fast_dllm_tied": FAST_DLLM_1_5B | _PLAIN_HEADS | {"bd_size": 8} | _TWO,
    "llada2_2": LLADA2_2_FLASH
    | {key: value for key, value in _SMALL.items() if key != "mask_token_id"}
    | _FEW_EXPERTS
    | {
        "block_size": 4,
        "delete_token_id": 92,
        "expert_capacity": 3,
        "mask_token_id": 91,
        "n_group": 1,
        "split_token_id": 93,
        "topk_group": 1,
    },
    "stable_diffcoder": STABLE_DIFFCODER_8B | _SMALL,
    "rnd1": RND1_BASE | _SMALL | _FEW_EXPERTS,
    "wedlm": WEDLM_8B | _SMALL | _TWO,
    "wedlm_qwen2": WEDLM_7B | _SMALL,
    "a2d_qwen3": A2D_QWEN3_0_6B | _SMALL | _TWO,
    "a2d_qwen2": A2D_QWEN2_0_5B | _PLAIN_HEADS,
    "a2d_llama": A2D_LLAMA | _SMALL,
    "open_dcoder": OPEN_DCODER_0_5B | _PLAIN_HEADS,
}


def write_tiny(name: str, folder: Path) -> Path:
    """Write a random checkpoint of `TINY` in its published format; returns its folder."""
    import torch
    from safetensors.torch import save_file

    from dllm_decode.models.blueprint import import_class, make_config
    from dllm_decode.models.files import published_state
    from dllm_decode.models.spec import Published, spec_of

    values = TINY[name]
    spec = spec_of(values)
    torch.manual_seed(0)
    model = import_class(spec.model_class)(make_config(spec, spec.translate(Published(values))))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            torch.nn.init.normal_(buffer, std=0.1)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    state = {key: value.contiguous() for key, value in published_state(model).items()}
    if values["tie_word_embeddings"]:
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
