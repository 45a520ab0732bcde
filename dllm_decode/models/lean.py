"""Dense models of Llama's kind in few operations, without transformers.

The stock class stays the definition; this one has the same weights and computes the same function
up to rounding. It is quicker on a processor because a layer issues 20 operations in place of 75:
queries, keys and values come from one product, gate and up from another, and queries and keys are
rotated together, by tables that are made once in a pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from dllm_decode.models.key_value import KeyValueStore
from dllm_decode.models.spec import LeanForm

Turn = tuple[Tensor, Tensor]


class LeanOutput(NamedTuple):
    """What a pass gives, under the name that transformers uses."""

    last_hidden_state: Tensor


class Rotation(nn.Module):
    """Cosines and sines of rotary positions, for all layers of a pass at once.

    Args:
        size: Width of a head.
        theta: Base of the frequencies.
        full_precision: Whether heads are rotated in float32 whatever the dtype of the model.
    """

    inv_freq: Tensor

    def __init__(self, size: int, theta: float, full_precision: bool) -> None:
        super().__init__()
        self.size, self.theta, self.full_precision = size, theta, full_precision
        self.register_buffer("inv_freq", torch.empty(size // 2), persistent=False)

    def fill(self, device: torch.device) -> None:
        """Write theta^(-2i/size), i = 0, 1, ..., in float32, whatever dtype the model has."""
        exponents = torch.arange(0, self.size, 2, dtype=torch.float32) / self.size
        self.inv_freq = (1.0 / self.theta**exponents).to(device)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Turn:
        """Cosine and signed sine, (B, Q, 1, size) each, of positions (B, Q)."""
        angle = positions[..., None].float() * self.inv_freq
        cosine, sine = angle.cos(), angle.sin()
        # the half that the heads are rolled by comes with its sign
        turn = torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)
        kind = torch.float32 if self.full_precision else dtype
        return turn[0].to(kind)[:, :, None], turn[1].to(kind)[:, :, None]


class LeanLayer(nn.Module):
    """Attention and gated MLP, each behind a norm and added to its input.

    Args:
        config: As of `LeanModel`.
        number: Of the layer.
    """

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        width, inner, self.size = config.hidden_size, config.intermediate_size, config.head_dim
        self.heads, self.shared = config.num_attention_heads, config.num_key_value_heads
        self.number, self.eps, self.width = number, config.rms_norm_eps, width
        every = (self.heads + 2 * self.shared) * self.size
        self.norms = nn.Parameter(torch.empty(2, width))
        self.attention_in = nn.Linear(width, every, bias=config.qkv_bias)
        self.attention_out = nn.Linear(self.heads * self.size, width, bias=False)
        self.mlp_in = nn.Linear(width, 2 * inner, bias=False)
        self.mlp_out = nn.Linear(inner, width, bias=False)

    def forward(
        self, hidden: Tensor, turn: Turn, mask: Tensor | None, store: KeyValueStore | None
    ) -> Tensor:
        """Hidden states (B, Q, D) behind the layer."""
        inside = rms_norm(hidden, (self.width,), self.norms[0], self.eps)
        hidden = hidden + self._attend(inside, turn, mask, store)
        inside = rms_norm(hidden, (self.width,), self.norms[1], self.eps)
        gate, up = linear(inside, self.mlp_in.weight).chunk(2, -1)
        return hidden + linear(silu(gate) * up, self.mlp_out.weight)

    def _attend(
        self, inside: Tensor, turn: Turn, mask: Tensor | None, store: KeyValueStore | None
    ) -> Tensor:
        rows, slots, _ = inside.shape
        fused = linear(inside, self.attention_in.weight, self.attention_in.bias)
        fused = fused.view(rows, slots, -1, self.size)
        turned, value = fused.split((self.heads + self.shared, self.shared), 2)
        cosine, sine = turn
        exact = turned.to(cosine.dtype)
        turned = torch.addcmul(exact * cosine, exact.roll(self.size // 2, -1), sine)
        turned = turned.to(value.dtype)
        query, key = turned.split((self.heads, self.shared), 2)
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        if store is not None:
            key, value = store.update(key, value, self.number)
        groups = self.heads // self.shared
        if groups > 1 and mask is not None:  # kernels with a mask know nothing of shared heads
            key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
        mixed = scaled_dot_product_attention(
            query, key, value, mask, enable_gqa=groups > 1 and mask is None
        )
        mixed = mixed.transpose(1, 2).reshape(rows, slots, -1)
        return linear(mixed, self.attention_out.weight)

    def parts(self) -> dict[str, Tensor]:
        """The weights as views with the names of the stock class, relative to the layer."""
        sizes = [count * self.size for count in (self.heads, self.shared, self.shared)]
        found = {
            "input_layernorm.weight": self.norms[0],
            "post_attention_layernorm.weight": self.norms[1],
            "self_attn.o_proj.weight": self.attention_out.weight,
            "mlp.down_proj.weight": self.mlp_out.weight,
        }
        names = [f"self_attn.{name}_proj" for name in "qkv"]
        for kind, tensor in self.attention_in.named_parameters():
            views = tensor.split(sizes)
            found |= {f"{name}.{kind}": view for name, view in zip(names, views, strict=True)}
        gate, up = self.mlp_in.weight.chunk(2)
        found |= {"mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up}
        return found


class LeanBody(nn.Module):
    """Embedding, layers and last norm; called as the body of a transformers model is.

    Args:
        config: As of `LeanModel`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.eps, self.width = config.rms_norm_eps, config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, self.width)
        self.layers = nn.ModuleList(LeanLayer(config, n) for n in range(config.num_hidden_layers))
        self.norm = nn.Parameter(torch.empty(self.width))
        theta = config.rope_parameters["rope_theta"]
        self.rotary_emb = Rotation(config.head_dim, theta, config.rope_full_precision)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        past_key_values: KeyValueStore | None = None,
        use_cache: bool = False,
    ) -> LeanOutput:
        """Hidden states (B, Q, D) of tokens (B, Q); see `models.compiled.run_body`."""
        hidden = self.embed_tokens(input_ids)
        turn = self.rotary_emb(position_ids, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, turn, attention_mask, past_key_values)
        return LeanOutput(rms_norm(hidden, (self.width,), self.norm, self.eps))


class LeanModel(nn.Module):
    """A language model with the calls that the adapter makes of a transformers model.

    Args:
        settings: Of the stock configuration class.
        form: What the family declares.
    """

    def __init__(self, settings: Mapping[str, Any], form: LeanForm) -> None:
        super().__init__()
        share = settings["hidden_size"] // settings["num_attention_heads"]
        usual = {"head_dim": share, "rope_full_precision": False}
        fixed = {"is_causal": False, "_attn_implementation": "sdpa"}
        self.config = SimpleNamespace(**(usual | dict(settings) | fixed), qkv_bias=form.qkv_bias)
        self.published = form.published
        self.model = LeanBody(self.config)
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.lm_head.weight.dtype

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of tokens."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """The head."""
        return self.lm_head

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Views of all weights under the names of the stock class."""
        body = self.model
        found = {"model.embed_tokens.weight": body.embed_tokens.weight}
        for number, layer in enumerate(body.layers):
            assert isinstance(layer, LeanLayer)
            found |= {f"model.layers.{number}.{name}": w for name, w in layer.parts().items()}
        found |= {"model.norm.weight": body.norm, "lm_head.weight": self.lm_head.weight}
        return {name: tensor.detach() for name, tensor in found.items()}

    def published_state(self) -> dict[str, Tensor]:
        """Views of all weights under their published names."""
        return {self._published(name): tensor for name, tensor in self.state_dict().items()}

    def _published(self, name: str) -> str:
        """The published name of a tensor: `model.layers.3.mlp.up_proj.weight`, say."""
        front, dot, kind = name.rpartition(".")
        words = front.split(".")
        number = next((word for word in words if word.isdigit()), "")
        pattern = ".".join("{}" if word.isdigit() else word for word in words)
        return self.published.get(pattern, pattern).format(number) + dot + kind

    def save_pretrained(self, folder: Path) -> None:
        """Write `model.safetensors` with the published names."""
        from safetensors.torch import save_file

        state = {name: tensor.contiguous() for name, tensor in self.published_state().items()}
        if self.config.tie_word_embeddings:
            del state[self._published("lm_head.weight")]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
