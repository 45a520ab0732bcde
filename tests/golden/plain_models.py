"""LLaDA and Dream as their papers describe them: one plain function over the checkpoint's tensors.

Written against the published tensor names alone, with no module, no cache and no class of
transformers, so that it can be read in one go. The adapter must give the same numbers bit for bit,
because both are computed here and now: on one processor, with one number of threads. It is written
in the order of operations of the stock classes, since another order rounds differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, scaled_dot_product_attention, silu

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Names:
    """Where a family keeps what; `{}` is the number of the layer."""

    embedding: str
    layer: str
    norms: tuple[str, str]
    attention: tuple[str, str, str, str]
    mlp: tuple[str, str, str]
    last_norm: str
    head: str


LLADA = Names(
    embedding="model.transformer.wte",
    layer="model.transformer.blocks.{}.",
    norms=("attn_norm", "ff_norm"),
    attention=("q_proj", "k_proj", "v_proj", "attn_out"),
    mlp=("ff_proj", "up_proj", "ff_out"),
    last_norm="model.transformer.ln_f",
    head="model.transformer.ff_out",
)
DREAM = Names(
    embedding="model.embed_tokens",
    layer="model.layers.{}.",
    norms=("input_layernorm", "post_attention_layernorm"),
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    mlp=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    last_norm="model.norm",
    head="lm_head",
)


@dataclass(frozen=True)
class Plain:
    """One family's forward; settings are those of the published config.json.

    rotate_in_float32: queries and keys are rotated in float32 (LLaDA's `rope_full_precision`), else
    in the dtype of the model.
    """

    names: Names
    layers: int
    heads: int
    eps: float
    rope_theta: float
    rotate_in_float32: bool

    @staticmethod
    def of(family: str, settings: Mapping[str, Any]) -> Plain:
        if family == "llada":
            own = ("n_layers", "n_heads", "rms_norm_eps", "rope_theta", "rope_full_precision")
            return Plain(LLADA, *(settings[name] for name in own))
        own = ("num_hidden_layers", "num_attention_heads", "rms_norm_eps", "rope_theta")
        return Plain(DREAM, *(settings[name] for name in own), rotate_in_float32=False)

    @torch.no_grad()
    def logits(
        self, weights: Weights, tokens: Tensor, positions: Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Logits (B, L, V), not shifted; keys (B, L) bool: what may be seen, None for all."""
        hidden = embedding(tokens, weights[f"{self.names.embedding}.weight"])
        mask = None if keys is None else keys[:, None, None].expand(-1, 1, tokens.shape[1], -1)
        for number in range(self.layers):
            layer = self.names.layer.format(number)
            attention_norm, mlp_norm = (layer + name for name in self.names.norms)
            inside = self._norm(weights, attention_norm, hidden)
            hidden = hidden + self._attention(weights, layer, inside, positions, mask)
            inside = self._norm(weights, mlp_norm, hidden)
            hidden = hidden + self._mlp(weights, layer, inside)
        hidden = self._norm(weights, self.names.last_norm, hidden)
        return _project(weights, self.names.head, hidden)

    def _norm(self, weights: Weights, name: str, hidden: Tensor) -> Tensor:
        exact = hidden.float()
        scaled = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.eps)
        return weights[f"{name}.weight"] * scaled.to(hidden.dtype)

    def _attention(
        self, weights: Weights, layer: str, hidden: Tensor, positions: Tensor, mask: Tensor | None
    ) -> Tensor:
        rows, length, width = hidden.shape
        size = width // self.heads
        *inputs, output = (layer + name for name in self.names.attention)
        query, key, value = (
            _project(weights, name, hidden).view(rows, length, -1, size).transpose(1, 2)
            for name in inputs
        )
        query, key = self._rotated(query, positions), self._rotated(key, positions)
        shared = self.heads // key.shape[1]
        if shared > 1 and mask is not None:
            key, value = (states.repeat_interleave(shared, dim=1) for states in (key, value))
        mixed = scaled_dot_product_attention(
            query, key, value, mask, scale=size**-0.5, enable_gqa=shared > 1 and mask is None
        )
        return _project(weights, output, mixed.transpose(1, 2).reshape(rows, length, width))

    def _rotated(self, states: Tensor, positions: Tensor) -> Tensor:
        size = states.shape[-1]
        frequency = 1.0 / (self.rope_theta ** (torch.arange(0, size, 2).float() / size))
        angle = positions[:, None, :, None].float() * frequency
        angle = torch.cat([angle, angle], -1)
        dtype = torch.float32 if self.rotate_in_float32 else states.dtype
        turned, cosine, sine = states.to(dtype), angle.cos().to(dtype), angle.sin().to(dtype)
        left, right = turned[..., : size // 2], turned[..., size // 2 :]
        return (turned * cosine + torch.cat([-right, left], -1) * sine).to(states.dtype)

    def _mlp(self, weights: Weights, layer: str, hidden: Tensor) -> Tensor:
        gate, up, down = (layer + name for name in self.names.mlp)
        opened = silu(_project(weights, gate, hidden)) * _project(weights, up, hidden)
        return _project(weights, down, opened)


def _project(weights: Weights, name: str, hidden: Tensor) -> Tensor:
    return linear(hidden, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
