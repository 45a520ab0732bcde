"""Writing a network as a folder in the published LLaDA format."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dllm_decode.training.llada_tiny.network import Shape
from dllm_decode.training.llada_tiny.tokenizer import EOT, MASK, save_tokenizer, vocabulary


def published_config(shape: Shape, longest: int) -> dict[str, object]:
    """The settings of a network under the keys of the published `config.json`.

    Args:
        shape: Sizes of the network.
        longest: The longest sequence it was trained on, in tokens.
    """
    ids = vocabulary()
    return {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
            "AutoModel": "modeling_llada.LLaDAModelLM",
        },
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": shape.width,
        "embedding_dropout": 0.0,
        "embedding_size": shape.vocab,
        "eos_token_id": ids[EOT],
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": ids[MASK],
        "max_sequence_length": longest,
        "mlp_hidden_size": shape.hidden,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": shape.heads,
        "n_kv_heads": shape.heads,
        "n_layers": shape.layers,
        "pad_token_id": ids[EOT],
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rms_norm_eps": shape.norm_eps,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": shape.rope_theta,
        "scale_logits": False,
        "transformers_version": "4.46.3",
        "use_cache": False,
        "vocab_size": shape.vocab,
        "weight_tying": False,
    }


def published_tensors(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the published names, in bfloat16.

    The head is trained as one with the embedding and written once more under its own name, as
    the published checkpoints have it (`weight_tying: false`).

    Args:
        weights: The state of a `Network`.
    """
    weights = weights | {"ff_out.weight": weights["wte.weight"]}
    return {
        f"model.transformer.{name}": weight.detach().cpu().to(torch.bfloat16).clone().contiguous()
        for name, weight in weights.items()
    }


def export(weights: dict[str, Tensor], shape: Shape, folder: Path, longest: int) -> None:
    """Write config, weights and tokenizer; the folder is replaced in one go, other files stay.

    Args:
        weights: The state of a `Network` of that shape.
        shape: Sizes of the network.
        folder: Where to write; made if it is not there.
        longest: The longest sequence it was trained on, in tokens.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fresh.chmod(0o755)
        if folder.exists():
            shutil.copytree(folder, fresh, dirs_exist_ok=True)
        config = published_config(shape, longest)
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        generation = {key: config[key] for key in ("eos_token_id", "pad_token_id", "use_cache")}
        (fresh / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        save_tokenizer(fresh, longest)
        tensors = published_tensors(weights)
        save_file(tensors, fresh / "model.safetensors", metadata={"format": "pt"})
        (fresh / "model.safetensors").chmod(0o644)
        replace_folder(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def replace_folder(fresh: Path, folder: Path) -> None:
    """Put a new folder in the place of another; a reader sees the old or the new one, whole.

    Args:
        fresh: The new one, on the same file system.
        folder: Where it goes; there need not be one yet.
    """
    old = fresh.with_name(fresh.name + "-old")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
