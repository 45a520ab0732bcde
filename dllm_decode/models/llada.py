"""LLaDA-8B on the stock Llama classes; the only addition is rotation in float32."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from dllm_decode.models.spec import LLADA_NAMES


class LLaDARotaryEmbedding(LlamaRotaryEmbedding):  # type: ignore[misc]
    """Rotation tables in float32 whatever the dtype of the model.

    The class name must contain `RotaryEmbedding`: transformers fills the table of a model that was
    built on the meta device by that name, and leaves random numbers in any other.
    """

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine tables, (B, L, head size) each.

        Args:
            x: Any tensor on the right device.
            position_ids: (B, L).
        """
        like = torch.empty(0, dtype=torch.float32, device=x.device)
        cosine, sine = super().forward(like, position_ids)
        return cosine, sine


class LLaDAAttention(LlamaAttention):  # type: ignore[misc]
    """Llama's attention with queries and keys rotated in the dtype of the tables."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of hidden states (B, Q, D), stored keys and values included."""
        rows, slots, _ = hidden_states.shape

        def heads(states: Tensor) -> Tensor:
            return states.view(rows, slots, -1, self.head_dim).transpose(1, 2)

        query, key, value = (
            heads(project(hidden_states)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        cosine, sine = position_embeddings
        rotated = apply_rotary_pos_emb(query.to(cosine.dtype), key.to(cosine.dtype), cosine, sine)
        query, key = (states.to(value.dtype) for states in rotated)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output.reshape(rows, slots, -1)), weights


class LLaDAModelLM(LlamaForCausalLM):  # type: ignore[misc]
    """Llama with rotation in float32, as `rope_full_precision` asks for."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        if not config.rope_full_precision:
            return
        self.model.rotary_emb = LLaDARotaryEmbedding(config)
        for number, layer in enumerate(self.model.layers):
            layer.self_attn = LLaDAAttention(config, number)
        self.post_init()


def _renaming(ours: str, theirs: str) -> WeightRenaming:
    """From the published place of a tensor to its place in Llama."""
    number = re.escape(theirs).replace(re.escape("{}"), r"(\d+)")
    return WeightRenaming(rf"^{number}\.", ours.replace("{}", r"\1") + ".")


# Registered under the class name alone: other models of type `llama` or `llada` are not touched.
register_checkpoint_conversion_mapping(
    "LLaDAModelLM",
    [_renaming(ours, theirs) for ours, theirs in LLADA_NAMES.items()],
    overwrite=True,
)
