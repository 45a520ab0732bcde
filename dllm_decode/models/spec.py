"""The table of model families: one row per published architecture name.

A row says how a published checkpoint becomes a stock transformers model. The table is keyed on
`architectures[0]` of config.json, never on `model_type`, which two LLaDA families share.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
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
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "initializer_range",
        "label2id",
        "license",
        "mask_token_id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "trust_remote_code",
        "unsloth_version",
        "use_cache",
    }
)


class Published:
    """A config.json that knows which of its keys were read, so that no switch is ignored.

    Args:
        values: the JSON object.
        ignored: keys that are known to be harmless.
        file: what to name in messages.

    Examples:
        >>> published = Published({"architectures": ["LLaDAModelLM"], "vocab_size": 10})
        >>> published.count("vocab_size"), published.get("rope_theta", 1e4)
        (10, 10000.0)
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        ignored: frozenset[str] = frozenset(),
        file: Path | str = "config.json",
    ) -> None:
        self.values = values
        self.architecture = architecture_of(values, file)
        self.where = f"{file} ({self.architecture})"
        self._seen = set(INERT | ignored)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key as it is; `default` where it is absent or null."""
        self._seen.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """The value of a key as it is; raises `CheckpointError` where there is none."""
        value = self.get(key)
        if value is None:
            raise CheckpointError(f"{self.where} has no {key!r}")
        return value

    def count(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """A whole number of at least `minimum`; without a default the key has to be there."""
        value = self.need(key) if default is None else self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.refused(key, value, f"a whole number >= {minimum}")
        if value >= 2**63:
            raise self.refused(key, value, "a size that a tensor can have")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0; without a default the key has to be there."""
        value = self.need(key) if default is None else self.get(key, default)
        return self.positive(key, value)

    def positive(self, key: str, value: Any) -> float:
        """The value as a float; raises `CheckpointError` unless it is finite and above 0."""
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not 0 < value <= sys.float_info.max:
            raise self.refused(key, value, "a finite number above 0")
        return float(value)

    def switch(self, key: str, default: bool) -> bool:
        """The value as a bool; raises `CheckpointError` for anything but true and false.

        Args:
            key: Its name.
            default: The value where the key is missing.
        """
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.refused(key, value, "true or false")
        return value

    def layers(self, key: str, default: list[int], *, most: int) -> list[int]:
        """Numbers of layers; raises `CheckpointError` for anything else.

        Args:
            key: Its name.
            default: The value where the key is missing.
            most: The largest number, 0 or more.
        """
        value = self.get(key, default)
        whole = isinstance(value, list) and all(type(entry) is int for entry in value)
        if not whole or not all(0 <= entry <= most for entry in value):
            raise self.refused(key, value, f"a list of whole numbers from 0 to {most}")
        return list(value)

    def token(self, key: str, vocabulary: int) -> int | None:
        """A token id, None where there is none; -1 says so in checkpoints of the Llama family."""
        value = self.get(key)
        if value is None or (value == -1 and type(value) is int):
            return None
        if type(value) is not int or not 0 <= value < vocabulary:
            raise self.refused(key, value, f"a token id, 0 to {vocabulary - 1}")
        return value

    def tokens(self, key: str, vocabulary: int) -> tuple[int, ...] | None:
        """One token id or a list of them, None where there is none."""
        value = self.get(key)
        if not isinstance(value, list):
            one = self.token(key, vocabulary)
            return None if one is None else (one,)
        if not all(type(entry) is int and 0 <= entry < vocabulary for entry in value):
            raise self.refused(key, value, f"token ids, 0 to {vocabulary - 1}")
        return tuple(value) or None

    def expect(self, key: str, *allowed: Any) -> None:
        """Refuse any value but the allowed ones; absent and null count as the first of them."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            raise self.unsupported(key, value, *allowed)

    def skip(self, *keys: str) -> None:
        """Note keys that have no effect on a forward pass of this family."""
        self._seen.update(keys)

    def unsupported(self, key: str, value: Any, *allowed: Any) -> CheckpointError:
        """The error for a value that means something which is not implemented."""
        return CheckpointError(
            f"{self.where} sets {key!r} to {_shown(value)}, which is not supported; supported is "
            f"{' or '.join(map(repr, allowed))}"
        )

    def refused(self, key: str, value: Any, allowed: str) -> CheckpointError:
        """The error for a value that cannot be used."""
        return CheckpointError(f"{self.where}: {key!r} must be {allowed}, got {_shown(value)}")

    def finish(self) -> None:
        """Refuse what nobody read and is set to something."""
        unread = sorted(
            key
            for key, value in self.values.items()
            if key not in self._seen and value is not None and value is not False
        )
        if unread:
            listing = ", ".join(f"{key}={_shown(self.values[key])}" for key in unread)
            raise CheckpointError(
                f"{self.where} has settings that are not handled: {listing}; "
                "if they do not change what the model computes, name them in "
                f"model.ignore_settings=[{','.join(unread)}]"
            )


def _shown(value: Any) -> str:
    """A value in a message: long ones cut off."""
    try:
        text = json.dumps(value) if isinstance(value, dict | list) else repr(value)
    except (RecursionError, ValueError):
        return "a value too deep or too long to be shown"
    return text if len(text) <= 80 else f"{text[:77]}..."


def architecture_of(values: Mapping[str, Any], file: Path | str = "config.json") -> str:
    """`architectures[0]`; raises `CheckpointError` where config.json names none.

    Args:
        values: Content of config.json.
        file: Its name, for messages.
    """
    names = values.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(
            f"{file} names no architecture (key 'architectures', a list of names), so the model "
            "family is unknown"
        )
    return names[0]


@dataclass(frozen=True)
class LeanForm:
    """How `models.lean` computes a dense family of Llama's kind.

    Attributes:
        published: From stock names of tensors to published ones, `{}` for the number of a layer;
            those left out are published under their stock name.
        qkv_bias: Whether queries, keys and values have a bias, as Qwen2's do.

    Examples:
        >>> SPECS["LLaDAModelLM"].lean.published["lm_head"]
        'model.transformer.ff_out'
    """

    published: Mapping[str, str] = field(default_factory=dict)
    qkv_bias: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """How one published architecture is loaded and asked.

    Attributes:
        family: Name for people.
        translate: From config.json to the settings of the stock config class.
        config_class: Stock class, `module:Class`.
        model_class: Stock class or a subclass that knows the published names, `module:Class`.
        shifted: Whether logits at position p predict p + 1.
        block: For block-causal attention the key of config.json that holds the length of the
            published block grid (empty where there is none) and the length where it is not set;
            None for full attention.
        either: Whether a model with full attention becomes block-causal where a block length is
            asked for.
        reordered: Whether attention is causal in the order in which columns were decided.
        mask_token: The tokenizer's word for the mask.
        turn_end: Words that end a turn and so a text.
        reply_header: What the chat template appends even when it is asked not to.
        lean: How `models.lean` computes it, None where only the stock class does.
    """

    family: str
    translate: Callable[[Published], Settings]
    config_class: str
    model_class: str
    shifted: bool = False
    block: tuple[str, int] | None = None
    either: bool = False
    reordered: bool = False
    mask_token: str | None = None
    turn_end: tuple[str, ...] = ()
    reply_header: str | None = None
    lean: LeanForm | None = None

    def block_length(self, published: Published) -> int | None:
        """Columns of the published block grid, None for full attention."""
        if self.block is None:
            return None
        key, usual = self.block
        return published.count(key, usual) if key else usual


_ROPE = ("rope_theta", "partial_rotary_factor")


def _rope(config: Published, usual_theta: float | None = None, *, partly: bool = False) -> Settings:
    """Rotary positions, from keys of their own or, as transformers 5 writes them, from one object.

    Position scaling is refused; the published models have none.

    Args:
        config: as read.
        usual_theta: the base where none is given; None if it has to be there.
        partly: the family may rotate a part of each head only.
    """
    kept = {name: config.get(name) for name in _ROPE}
    for key in ("rope_parameters", "rope_scaling"):
        given = config.get(key, {})
        given = {} if given is False else given  # as RND1 writes it
        if isinstance(given, dict) and set(given) == {"full_attention"}:  # one entry per layer type
            given = given["full_attention"]
        if not isinstance(given, dict):
            raise config.refused(key, given, "an object")
        plain = {"rope_type": "default", "type": "default", "factor": 1.0}
        for name, value in given.items():
            place = f"{key}.{name}"
            if name in kept and value is not None:
                if kept[name] not in (None, value):
                    raise config.refused(place, value, f"{kept[name]!r}, as {name!r} says")
                kept[name] = value
            elif name not in kept and value is not None and value != plain.get(name):
                raise config.unsupported(place, value, plain.get(name))
    theta = usual_theta if kept["rope_theta"] is None else kept["rope_theta"]
    if theta is None:
        raise CheckpointError(f"{config.where} has no 'rope_theta', nor is it in 'rope_parameters'")
    share = kept["partial_rotary_factor"]
    share = config.positive("partial_rotary_factor", 1 if share is None else share)
    if share > 1 or (share < 1 and not partly):
        allowed = "a number above 0, at most 1" if partly else "1"
        raise config.refused("partial_rotary_factor", share, allowed)
    return {
        "rope_type": "default",
        "rope_theta": config.positive("rope_theta", theta),
        "partial_rotary_factor": share,
    }


def _same_attention(config: Published, layers: int) -> None:
    """Refuse layers that do not attend to everything."""
    kinds = config.get("layer_types")
    full = isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)
    if kinds is not None and (not full or len(kinds) != layers):
        raise config.refused("layer_types", kinds, f"'full_attention' for each of {layers} layers")


def _heads(config: Published, names: tuple[str, str, str]) -> tuple[int, int, int]:
    """Hidden width, heads and key/value heads, where the last divide the second.

    Args:
        config: As read.
        names: The keys of the three.
    """
    width, heads = config.count(names[0]), config.count(names[1])
    shared = config.count(names[2], heads)
    if heads % shared:
        raise config.refused(names[2], shared, f"a divisor of {names[1]}={heads}")
    return width, heads, shared


def _sizes(config: Published, *, partly_rotated: bool = False) -> Settings:
    """What every family but LLaDA-8B writes under the names transformers uses."""
    config.expect("hidden_act", "silu")
    config.expect("use_sliding_window", False)
    config.skip("sliding_window", "max_window_layers")
    width, heads, shared = _heads(
        config, ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    layers = config.count("num_hidden_layers")
    _same_attention(config, layers)
    return {
        "vocab_size": config.count("vocab_size"),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "max_position_embeddings": config.count("max_position_embeddings"),
        "rms_norm_eps": config.number("rms_norm_eps", 1e-6),
        "rope_parameters": _rope(config, partly=partly_rotated),
        "tie_word_embeddings": config.switch("tie_word_embeddings", False),
    }


def _head_size(config: Published) -> int:
    """Width of one attention head, an even number."""
    width, heads = config.count("hidden_size"), config.count("num_attention_heads")
    if config.get("head_dim") is None and width % heads:
        raise config.refused("num_attention_heads", heads, f"a divisor of the width {width}")
    size = config.count("head_dim", width // heads or 1)
    if size % 2:
        raise config.refused("head_dim", size, "an even number")
    return size


def _plain_head_size(config: Published, width: int, heads: int) -> None:
    """Refuse heads of another width than the model's divided by their number."""
    if width % heads or width // heads % 2:
        raise config.refused("num_attention_heads", heads, f"a divisor of {width} with even share")
    config.expect("head_dim", width // heads)


def _experts(config: Published) -> Settings:
    """Number of experts and how many a token uses; transformers 5 has another word for the first.

    Returns the settings with the word of Qwen3-MoE.
    """
    number = config.get("num_local_experts")
    total = config.count("num_experts") if number is None else config.count("num_local_experts")
    config.expect("num_experts", total)
    used = config.count("num_experts_per_tok")
    if used > total:
        raise config.refused("num_experts_per_tok", used, f"at most the {total} experts")
    return {"num_experts": total, "num_experts_per_tok": used}


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
    width, heads, shared = _heads(config, ("d_model", "n_heads", "n_kv_heads"))
    if width % heads or width // heads % 2:
        raise config.refused("n_heads", heads, f"a divisor of d_model={width} with an even share")
    layers = config.count("n_layers")
    _same_attention(config, layers)
    tied = config.switch("tie_word_embeddings", False)
    known = config.count("vocab_size")
    rows = config.count("embedding_size", known)  # as many as the ids, or more for speed
    if known > rows:
        raise config.refused("vocab_size", known, f"at most embedding_size={rows}")
    return {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": config.count("mlp_hidden_size", config.count("mlp_ratio", 4) * width),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "max_position_embeddings": config.count("max_sequence_length"),
        "rms_norm_eps": config.number("rms_norm_eps", 1e-5),
        "rope_parameters": _rope(config, 10000.0),
        "rope_full_precision": config.switch("rope_full_precision", True),
        "tie_word_embeddings": config.switch("weight_tying", tied),
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
        "intermediate_size": config.count("intermediate_size"),
    }


def _llada_moe(config: Published) -> Settings:
    """LLaDA-MoE: Qwen3-MoE with unnormalised expert weights."""
    config.expect("attention_bias", False)
    config.expect("clip_qkv", None)
    config.expect("moe_router_enable_expert_bias", False)
    config.expect("moe_router_score_function", "softmax")
    config.expect("norm_topk_prob", False)
    config.expect("qk_layernorm", True)
    config.expect("routed_scaling_factor", 1)
    config.expect("router_num_group", None)
    config.expect("router_topk_group", None)
    config.expect("shared_expert_intermediate_size", None)
    config.skip("output_router_logits", "router_aux_loss_coef")
    sizes = _sizes(config)
    experts_in = config.layers("moe_layer_freq", [], most=1)
    if experts_in and len(experts_in) != sizes["num_hidden_layers"]:
        allowed = f"one entry for each of {sizes['num_hidden_layers']} layers"
        raise config.refused("moe_layer_freq", experts_in, allowed)
    width = config.count("expert_intermediate_size")
    return {
        **sizes,
        "head_dim": _head_size(config),
        "intermediate_size": config.count("dense_intermediate_size", width),
        "moe_intermediate_size": width,
        **_experts(config),
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
    config.skip("block_size", "embedding_dropout", "output_dropout", "output_router_logits")
    config.skip(*EDIT_TOKENS)
    sizes, size = _sizes(config, partly_rotated=True), _head_size(config)
    experts = _experts(config)
    config.expect("rotary_dim", int(size * sizes["rope_parameters"]["partial_rotary_factor"]))
    width = config.count("moe_intermediate_size")
    shared = config.count("num_shared_experts", 0, minimum=0)
    config.expect("moe_shared_expert_intermediate_size", width * shared)
    total, groups = experts["num_experts"], config.count("n_group", 1)
    chosen = config.count("topk_group", 1)
    if total % groups or total // groups < 2:  # the router scores a group by its best two
        raise config.refused("n_group", groups, f"a divisor of {total} experts, two to a group")
    if chosen > groups:
        raise config.refused("topk_group", chosen, f"at most the {groups} groups")
    if experts["num_experts_per_tok"] > chosen * (total // groups):
        most = f"at most the {chosen * (total // groups)} experts of topk_group={chosen} groups"
        raise config.refused("num_experts_per_tok", experts["num_experts_per_tok"], most)
    return _capacity(config, experts) | {
        **sizes,
        "head_dim": size,
        "intermediate_size": config.count("intermediate_size"),
        "moe_intermediate_size": width,
        "n_routed_experts": total,
        "n_shared_experts": shared,
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "n_group": groups,
        "topk_group": chosen,
        "norm_topk_prob": config.switch("norm_topk_prob", True),
        "routed_scaling_factor": config.number("routed_scaling_factor", 1.0),
        "first_k_dense_replace": config.count("first_k_dense_replace", 0, minimum=0),
        "use_qk_norm": True,
        "num_mtp_layers": 0,
    }


def _capacity(config: Published, experts: Settings) -> Settings:
    """How many experts the tokens of a block choose from together, where LLaDA2.2 limits them."""
    if config.get("expert_capacity") is None:
        return {}
    most, least = experts["num_experts"], experts["num_experts_per_tok"]
    capacity = config.count("expert_capacity", minimum=least)
    if capacity > most:
        raise config.refused("expert_capacity", capacity, f"at most the {most} experts")
    return {"expert_capacity": capacity}


def _qwen2(config: Published) -> Settings:
    """The settings of Dream, which is a Qwen2.5."""
    config.expect("use_mrope", False)
    sizes = _sizes(config)
    _plain_head_size(config, sizes["hidden_size"], sizes["num_attention_heads"])
    return {**sizes, "intermediate_size": config.count("intermediate_size")}


def _fast_dllm(config: Published) -> Settings:
    """The settings of Fast-dLLM v2, which is a Qwen2.5 with a block length."""
    config.skip("bd_size")
    return _qwen2(config)


def _qwen3(config: Published) -> Settings:
    """The settings of SDAR, which is a Qwen3."""
    config.expect("attention_bias", False)
    config.skip("block_size", "debug", "ep_size", "fuse_cross_entropy")
    config.skip("micro_forward", "skip_checkpoint", "use_deepep")  # of its training
    return {
        **_sizes(config),
        "head_dim": _head_size(config),
        "intermediate_size": config.count("intermediate_size"),
    }


def _qwen3_moe(config: Published) -> Settings:
    """The settings of SDAR-30B-A3B, which is a Qwen3-MoE."""
    config.skip("output_router_logits", "router_aux_loss_coef")
    config.need("norm_topk_prob")
    sizes = _qwen3(config)
    return {
        **sizes,
        "moe_intermediate_size": config.count("moe_intermediate_size"),
        **_experts(config),
        "norm_topk_prob": config.switch("norm_topk_prob", True),
        "decoder_sparse_step": config.count("decoder_sparse_step", 1),
        "mlp_only_layers": config.layers(
            "mlp_only_layers", [], most=sizes["num_hidden_layers"] - 1
        ),
    }


def _rnd1(config: Published) -> Settings:
    """RND1: Qwen3-MoE with full attention; predictions are one column to the left."""
    config.expect("is_causal", False)
    config.skip("moe_backend", "num_diffusion_steps")
    return _qwen3_moe(config)


def _open_dcoder(config: Published) -> Settings:
    """Open-dCoder: Qwen2.5 under the name of the causal model it was made from."""
    if config.get("auto_map") is None and config.get("mask_token_id") is None:
        raise CheckpointError(
            f"{config.where}: nothing says that this model fills masks (Open-dCoder's config.json "
            "has an 'auto_map', others a 'mask_token_id'), so it writes from left to right and "
            "cannot be decoded here"
        )
    return _qwen2(config)


def _wedlm(config: Published) -> Settings:
    """WeDLM-8B, which has the layers of Qwen3."""
    config.expect("qk_norm", True)
    return _qwen3(config)


def _wedlm_qwen2(config: Published) -> Settings:
    """WeDLM-7B, which has the layers of Qwen2.5."""
    config.expect("qk_norm", False)
    config.expect("attention_bias", True)
    return _qwen2(config)


# Ids with which LLaDA2.2 edits its own text; that needs positions to move, which no loop here does.
EDIT_TOKENS = ("delete_token_id", "split_token_id")

# Where LLaDA's files keep the tensors of a Llama; `ff_out` also names the head.
_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
LLADA_NAMES = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    **{
        f"model.layers.{{}}.{ours}": f"model.transformer.blocks.{{}}.{theirs}"
        for ours, theirs in _BLOCK.items()
    },
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
        lean=LeanForm(LLADA_NAMES),
    ),
    "ILLaDAForCausalLM": ModelSpec(
        family="iLLaDA",
        translate=_illada,
        config_class="transformers:LlamaConfig",
        model_class="transformers:LlamaForCausalLM",
        mask_token="<[MASK]>",
        lean=LeanForm(),
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
        block=("block_size", 32),
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
        lean=LeanForm(qkv_bias=True),
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
        lean=LeanForm(qkv_bias=True),
    ),
    "StableDiffcoderForCausalLM": ModelSpec(
        family="Stable-DiffCoder",
        translate=_illada,
        config_class="transformers:LlamaConfig",
        model_class="transformers:LlamaForCausalLM",
        block=("", 4),
        mask_token="<[MASK_TOKEN]>",
        lean=LeanForm(),
    ),
    "RND1LM": ModelSpec(
        family="RND1",
        translate=_rnd1,
        config_class="transformers:Qwen3MoeConfig",
        model_class="transformers:Qwen3MoeForCausalLM",
        shifted=True,
        turn_end=("<|im_end|>",),
    ),
    "WeDLMForCausalLM": ModelSpec(
        family="WeDLM",
        translate=_wedlm,
        config_class="transformers:Qwen3Config",
        model_class="transformers:Qwen3ForCausalLM",
        reordered=True,
        turn_end=("<|im_end|>",),
    ),
    "Qwen2ForCausalLM": ModelSpec(
        family="Open-dCoder",
        translate=_open_dcoder,
        config_class="transformers:Qwen2Config",
        model_class="transformers:Qwen2ForCausalLM",
        shifted=True,
        mask_token="<M>",
        turn_end=("<|im_end|>",),
        lean=LeanForm(qkv_bias=True),
    ),
    "A2DQwen3LMHeadModel": ModelSpec(
        family="A2D-Qwen3",
        translate=_qwen3,
        config_class="transformers:Qwen3Config",
        model_class="transformers:Qwen3ForCausalLM",
        either=True,
        mask_token="<|mask|>",
        turn_end=("<|im_end|>",),
    ),
    "A2DQwen2LMHeadModel": ModelSpec(
        family="A2D-Qwen2",
        translate=_qwen2,
        config_class="transformers:Qwen2Config",
        model_class="transformers:Qwen2ForCausalLM",
        either=True,
        mask_token="<|mask|>",
        turn_end=("<|im_end|>",),
        lean=LeanForm(qkv_bias=True),
    ),
    "A2DLlamaLMHeadModel": ModelSpec(
        family="A2D-Llama",
        translate=_illada,
        config_class="transformers:LlamaConfig",
        model_class="transformers:LlamaForCausalLM",
        either=True,
        mask_token="<|mask|>",
        turn_end=("<|eot_id|>",),
        lean=LeanForm(),
    ),
}

# WeDLM gives one name to two bodies: that of Qwen3 and, without `qk_norm`, that of Qwen2.5.
WEDLM_QWEN2 = replace(
    SPECS["WeDLMForCausalLM"],
    translate=_wedlm_qwen2,
    config_class="transformers:Qwen2Config",
    model_class="transformers:Qwen2ForCausalLM",
)

# Architectures that are known and cannot be decoded here, with what is missing.
REFUSED = {
    "DiffusionGemmaForBlockDiffusion": (
        "its canvas starts as random tokens and has no mask id, and each pass is fed the previous "
        "logits through a separate encoder and decoder; the loop here marks undecided columns with "
        "a mask token and passes no logits back"
    ),
    "GFusionForDiffusionLM": (
        "its latent attention keeps one compressed state per column, and the store here keeps keys "
        "and values"
    ),
    "NemotronLabsDiffusionModel": (
        "its attention changes between causal and block-wise within one decoding, and its "
        "positions are scaled; a model here has one kind of attention"
    ),
}


def spec_of(values: Mapping[str, Any], file: Path | str = "config.json") -> ModelSpec:
    """The row of a config.json; raises `CheckpointError` for architectures not in the table.

    Args:
        values: Content of config.json.
        file: Its name, for messages.
    """
    architecture = architecture_of(values, file)
    if architecture in REFUSED:
        raise CheckpointError(
            f"{file}: architecture {architecture!r} is not supported: {REFUSED[architecture]}"
        )
    if architecture not in SPECS:
        raise CheckpointError(
            f"{file}: architecture {_shown(architecture)} is not known; known are "
            f"{', '.join(sorted(SPECS))}"
        )
    if architecture == "WeDLMForCausalLM" and not values.get("qk_norm"):
        return WEDLM_QWEN2
    return SPECS[architecture]
