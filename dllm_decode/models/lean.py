"""Dense models of Llama's kind in few operations, without transformers.

The stock class stays the definition; this one has the same weights and computes the same function
up to rounding. It is quicker on a processor because it issues half the operations and touches less
memory: queries, keys and values come from one product, queries and keys are rotated
together and in place, by tables that are made once in a pass, and so is the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from dllm_decode.decoding.types import gather_columns
from dllm_decode.models.key_value import KeyValueStore
from dllm_decode.models.spec import LeanForm

Turn = tuple[Tensor, Tensor]


class LeanOutput(NamedTuple):
    """What a pass gives, under the name that transformers uses.

    Examples:
        >>> LeanOutput(torch.zeros(1, 4, 8)).last_hidden_state.shape
        torch.Size([1, 4, 8])
    """

    last_hidden_state: Tensor


class LeanNorm(nn.Module):
    """Vectors divided by their root mean square, times a weight.

    Args:
        config: As of `LeanModel`.

    Examples:
        >>> norm = LeanNorm(SimpleNamespace(hidden_size=2, rms_norm_eps=0.0, dtype=torch.float32))
        >>> _ = nn.init.ones_(norm.weight)
        >>> (norm(torch.tensor([[3.0, 4.0]])) * 12.5**0.5).detach().round().tolist()
        [[3.0, 4.0]]
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.width, self.eps = config.hidden_size, config.rms_norm_eps
        self.weight = nn.Parameter(torch.empty(self.width, dtype=config.dtype))
        self.least = torch.tensor(self.eps, device="cpu")

    def forward(self, hidden: Tensor) -> Tensor:
        """Of hidden states (N, D)."""
        if not hidden.is_cpu or hidden.dtype != torch.float32:
            return rms_norm(hidden, (self.width,), self.weight, self.eps)
        # there torch has no kernel for it, and makes two more planes of its size
        length = vector_norm(hidden, dim=-1, keepdim=True)
        share = torch.addcmul(self.least, length, length, value=1 / self.width).rsqrt_()
        return torch.mul(hidden, share).mul_(self.weight)


class Rotation(nn.Module):
    """Cosines and sines of rotary positions, for all layers of a pass at once.

    Args:
        size: Width of a head.
        theta: Base of the frequencies.
        full_precision: Whether heads are rotated in float32 whatever the dtype of the model.

    Examples:
        >>> cosine, sine = Rotation(8, 10000.0, False)(torch.arange(3)[None], torch.float32)
        >>> cosine.shape, float(cosine[0, 0, 0, 0])
        (torch.Size([1, 3, 1, 8]), 1.0)
    """

    inv_freq: Tensor

    def __init__(self, size: int, theta: float, full_precision: bool) -> None:
        super().__init__()
        self.full_precision = full_precision
        # on the processor wherever the weights are made, so that it always holds its numbers
        exponents = torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size
        self.register_buffer("inv_freq", 1.0 / theta**exponents, persistent=False)

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

    Matrices are stored (inputs, outputs), the order in which a processor multiplies fastest. Gate
    and up are two, because rows of 4096 bytes, as both together have in small models, share few
    places in a cache.

    Args:
        config: As of `LeanModel`.
        number: Of the layer.

    Examples:
        >>> from dllm_decode.models import load_model
        >>> model = load_model("bundled:llada-tiny", body="lean").denoiser.model
        >>> sorted(name for name in model.model.layers[0].parts() if "mlp" in name)
        ['mlp.down_proj.weight', 'mlp.gate_proj.weight', 'mlp.up_proj.weight']
    """

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        width, inner, self.size = config.hidden_size, config.intermediate_size, config.head_dim
        self.heads, self.shared = config.num_attention_heads, config.num_key_value_heads
        self.number = number
        every = (self.heads + 2 * self.shared) * self.size

        def weights(*sides: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(sides, dtype=config.dtype))

        self.attention_norm, self.mlp_norm = LeanNorm(config), LeanNorm(config)
        self.attention_in = weights(width, every)
        self.attention_out = weights(self.heads * self.size, width)
        self.gate, self.up = weights(width, inner), weights(width, inner)
        self.mlp_out = weights(inner, width)
        self.bias = weights(every) if config.qkv_bias else None

    def forward(
        self,
        hidden: Tensor,
        turn: Turn,
        mask: Tensor | None,
        store: KeyValueStore | None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Hidden states behind the layer.

        Args:
            hidden: (B * Q, D), in front of it.
            turn: Of the positions, which says what B and Q are.
            mask: (B, 1, 1 or Q, L), added to what attention compares; None to see everything.
            store: Of keys and values.
            slots: (B, W), of Q, where states are wanted; None for everywhere.

        Returns:
            (B * Q, D), or (B * W, D).
        """
        mixed = self._attend(self.attention_norm(hidden), turn, mask, store, slots)
        if slots is not None:
            every = hidden.unflatten(0, turn[0].shape[:2])
            hidden = gather_columns(every, slots).flatten(0, 1)
        hidden = torch.addmm(hidden, mixed, self.attention_out)
        inside = self.mlp_norm(hidden)
        gate, up = torch.mm(inside, self.gate), torch.mm(inside, self.up)
        return torch.addmm(hidden, silu(gate, inplace=True).mul_(up), self.mlp_out)

    def _attend(
        self,
        inside: Tensor,
        turn: Turn,
        mask: Tensor | None,
        store: KeyValueStore | None,
        slots: Tensor | None,
    ) -> Tensor:
        """What the heads found, (B * Q, heads * size), or of the slots alone."""
        fused = torch.mm(inside, self.attention_in)
        if self.bias is not None:
            fused = fused + self.bias
        cosine, sine = turn
        states = fused.view(*cosine.shape[:2], -1, self.size)
        turned, value = states.split((self.heads + self.shared, self.shared), 2)
        exact = turned.to(cosine.dtype)
        rolled = exact.roll(self.size // 2, -1)
        turned = exact.mul_(cosine).addcmul_(rolled, sine)
        query, key = turned.to(value.dtype).split((self.heads, self.shared), 2)
        if slots is not None:
            query = gather_columns(query, slots)
            if mask is not None and mask.shape[2] > 1:
                mask = gather_columns(mask[:, 0], slots)[:, None]
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if store is not None:
            key, value = store.update(key, value, self.number)
        groups = self.heads // self.shared
        if groups > 1 and mask is not None:  # kernels with a mask know nothing of shared heads
            key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
        mixed = scaled_dot_product_attention(
            query, key, value, mask, enable_gqa=groups > 1 and mask is None
        )
        return mixed.transpose(1, 2).flatten(0, 1).flatten(1)

    def parts(self) -> dict[str, Tensor]:
        """The weights as views with the names of the stock class, relative to the layer."""
        found = {
            "input_layernorm.weight": self.attention_norm.weight,
            "post_attention_layernorm.weight": self.mlp_norm.weight,
            "self_attn.o_proj.weight": self.attention_out.T,
            "mlp.gate_proj.weight": self.gate.T,
            "mlp.up_proj.weight": self.up.T,
            "mlp.down_proj.weight": self.mlp_out.T,
        }
        sizes = [count * self.size for count in (self.heads, self.shared, self.shared)]
        for kind, tensor in (("weight", self.attention_in.T), ("bias", self.bias)):
            if tensor is not None:
                views = zip("qkv", tensor.split(sizes), strict=True)
                found |= {f"self_attn.{name}_proj.{kind}": view for name, view in views}
        return found


class LeanBody(nn.Module):
    """Embedding, layers and last norm; called as the body of a transformers model is.

    Args:
        config: As of `LeanModel`.

    Examples:
        >>> from dllm_decode.models import load_model
        >>> model = load_model("bundled:llada-tiny", body="lean").denoiser.model
        >>> ids = torch.arange(5)[None]
        >>> with torch.no_grad():
        ...     model.model(ids, None, ids).last_hidden_state.shape
        torch.Size([1, 5, 192])
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        # given, not drawn: to draw on the meta device imports torch's compiler
        table = torch.empty(config.vocab_size, config.hidden_size, dtype=config.dtype)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=table)
        self.layers = nn.ModuleList(LeanLayer(config, n) for n in range(config.num_hidden_layers))
        self.norm = LeanNorm(config)
        theta = config.rope_parameters["rope_theta"]
        self.rotary_emb = Rotation(config.head_dim, theta, config.rope_full_precision)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        past_key_values: KeyValueStore | None = None,
        slots: Tensor | None = None,
    ) -> LeanOutput:
        """Hidden states (B, Q, D) of tokens (B, Q); see `models.compiled.run_body`.

        With `slots` (B, W), of Q, those of the slots alone, (B, W, D): what the last layer would
        compute of the others is not computed.
        """
        hidden = self.embed_tokens(input_ids).flatten(0, 1)
        turn = self.rotary_emb(position_ids, hidden.dtype)
        mask = None
        if attention_mask is not None:  # as numbers: each layer would make them of it anew
            mask = hidden.new_zeros(attention_mask.shape).masked_fill_(~attention_mask, -torch.inf)
        *others, last = self.layers
        for layer in others:
            hidden = layer(hidden, turn, mask, past_key_values)
        hidden = last(hidden, turn, mask, past_key_values, slots)
        shape = input_ids.shape if slots is None else slots.shape
        return LeanOutput(self.norm(hidden).unflatten(0, shape))


class LeanModel(nn.Module):
    """A language model with the calls that the adapter makes of a transformers model.

    Args:
        settings: Of the stock configuration class.
        form: What the family declares.
        dtype: Of the weights, which are made on torch's current device and hold nothing yet.

    Examples:
        >>> from dllm_decode.models import load_model
        >>> model = load_model("bundled:llada-tiny", body="lean").denoiser.model
        >>> "model.transformer.wte.weight" in model.published_state()
        True
    """

    def __init__(
        self, settings: Mapping[str, Any], form: LeanForm, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        share = settings["hidden_size"] // settings["num_attention_heads"]
        usual = {"head_dim": share, "rope_full_precision": False}
        fixed = {"is_causal": False, "_attn_implementation": "sdpa"}
        own = {"qkv_bias": form.qkv_bias, "dtype": dtype}
        self.config = SimpleNamespace(**(usual | dict(settings) | fixed | own))
        self.published = form.published
        self.model = LeanBody(self.config)
        width, rows = self.config.hidden_size, self.config.vocab_size
        self.lm_head = nn.Linear(width, rows, bias=False, device="meta")
        self.lm_head.weight = (
            self.model.embed_tokens.weight
            if self.config.tie_word_embeddings
            else nn.Parameter(torch.empty(rows, width, dtype=dtype))
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.lm_head.weight.dtype

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of tokens."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """The head, one matrix of all ids."""
        return self.lm_head

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Views of all weights under the names of the stock class."""
        body = self.model
        found = {"model.embed_tokens.weight": body.embed_tokens.weight}
        for number, layer in enumerate(body.layers):
            assert isinstance(layer, LeanLayer)
            found |= {f"model.layers.{number}.{name}": w for name, w in layer.parts().items()}
        found |= {"model.norm.weight": body.norm.weight, "lm_head.weight": self.lm_head.weight}
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
