"""LLaDA2 on the stock GLM-4 MoE classes; only names differ, and queries, keys, values are fused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import linear
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import Split, WeightConverter, WeightRenaming
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter

_FUSED = "attention.query_key_value.weight"


@dataclass(frozen=True)
class MatrixRows:
    """Some rows of a stored matrix, read when a rank asks for its share of them.

    Attributes:
        stored: A safetensors slice.
        begin: First row of the whole matrix.
        end: One past the last.

    Examples:
        >>> import torch
        >>> class Stored:  # what safetensors gives for a tensor that was not read
        ...     def get_shape(self): return [4, 2]
        ...     def get_dtype(self): return "F32"
        >>> MatrixRows(Stored(), 1, 3).get_shape()
        [2, 2]
    """

    stored: Any
    begin: int
    end: int

    def get_shape(self) -> list[int]:
        """The shape of the part: its rows, then the sizes of the stored tensor."""
        return [self.end - self.begin, *self.stored.get_shape()[1:]]

    def get_dtype(self) -> str:
        """The dtype as safetensors names it."""
        return str(self.stored.get_dtype())

    def __getitem__(self, where: Any) -> Tensor:
        """A part of the rows; an index that is not a range of rows reads all of them first."""
        rows, *rest = where if isinstance(where, tuple) else (where,)
        if not isinstance(rows, slice):
            part: Tensor = self.stored[self.begin : self.end][where]
            return part
        first, last, _ = rows.indices(self.end - self.begin)
        read: Tensor = self.stored[(slice(self.begin + first, self.begin + last), *rest)]
        return read


class BlockRouter(Glm4MoeTopkRouter):  # type: ignore[misc]
    """The router of LLaDA2.2: the tokens of a block choose from the same few experts.

    With s(t, e) = sigmoid(logit) + bias, a block keeps the `expert_capacity` experts of largest
    max_t s(t, e), and each of its tokens takes its best ones among those. Weights are the sigmoids
    without the bias, as ever.

    Args:
        config: Of the model, with `expert_capacity`.

    Examples:
        >>> import torch
        >>> more = dict(expert_capacity=2, n_routed_experts=4, num_experts_per_tok=1)
        >>> router = BlockRouter(Glm4MoeConfig(hidden_size=2, **more, n_group=1, topk_group=1))
        >>> router.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-1.0, 0.0]])
        >>> _ = router.e_score_correction_bias.zero_()
        >>> router.groups, router.live = torch.tensor([0, 0]), torch.tensor([True, True])
        >>> router(torch.tensor([[4.0, 0.0], [0.0, 4.0]]))[2].tolist()  # each its own best
        [[0], [1]]
        >>> router.capacity = 1
        >>> router(torch.tensor([[4.0, 0.0], [0.0, 3.0]]))[2].tolist()  # what the block kept
        [[0], [0]]
    """

    def __init__(self, config: Glm4MoeConfig) -> None:
        super().__init__(config)
        self.capacity = config.expert_capacity
        self.groups: Tensor | None = None
        self.live: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, E), weights (N, K) and experts (N, K) of N = B * Q tokens."""
        hidden = hidden_states.view(-1, self.hidden_dim)
        logits = linear(hidden.float(), self.weight.float())
        scores = logits.sigmoid()
        choice = scores + self.e_score_correction_bias
        if self.groups is None or self.live is None:
            raise RuntimeError("LLaDA2.2 has to be told the blocks of a pass (aim_routing)")
        groups, live = self.groups.to(choice.device), self.live.to(choice.device)
        heard = choice.masked_fill(~live[:, None], -torch.inf)
        group = groups[:, None].expand_as(heard)
        best = torch.full_like(choice, -torch.inf).scatter_reduce(0, group, heard, "amax")
        kept = torch.zeros_like(best, dtype=torch.bool)
        kept.scatter_(1, best.topk(self.capacity, dim=-1).indices, True)
        choice = choice.masked_fill(~kept[groups], -torch.inf)
        experts = choice.topk(self.top_k, dim=-1, sorted=False).indices
        weights = scores.gather(1, experts)
        if self.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return logits, weights * self.routed_scaling_factor, experts


class LLaDA2MoeModelLM(Glm4MoeForCausalLM):  # type: ignore[misc]
    """GLM-4 MoE that reads and writes the published LLaDA2 names."""

    def __init__(self, config: Glm4MoeConfig) -> None:
        super().__init__(config)
        self.routers: list[BlockRouter] = []
        if getattr(config, "expert_capacity", None) is None:
            return
        for layer in self.model.layers[config.first_k_dense_replace :]:
            layer.mlp.gate = BlockRouter(config)
            self.routers.append(layer.mlp.gate)
        self.post_init()

    def aim_routing(self, blocks: Tensor, live: Tensor) -> None:
        """Tell the routers of LLaDA2.2 which tokens of the next pass choose together.

        Args:
            blocks: Number of the block of each token, (B, Q).
            live: Which tokens take part in the choice, (B, Q) bool.
        """
        # numbered from 0 within a pass: a row has at most as many blocks as tokens
        ordered, order = blocks.sort(1)
        fresh = torch.nn.functional.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0))
        dense = torch.empty_like(blocks).scatter_(1, order, fresh.cumsum(1))
        rows = torch.arange(len(blocks), device=blocks.device)[:, None] * blocks.shape[1]
        for router in self.routers:
            router.groups, router.live = (rows + dense).flatten(), live.flatten()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """As the class below says; for this one transformers would search this file for a word.

        Where it does not find it, each expert is a product of its own, for which the host waits.
        """
        can: bool = Glm4MoeForCausalLM._can_set_experts_implementation()
        return can

    @staticmethod
    def lazy_state(files: Mapping[str, Any], config: Glm4MoeConfig) -> dict[str, Any]:
        """All tensors as lazy slices, queries, keys and values apart.

        With tensor parallelism each rank reads its own rows, which the stock splitting of a fused
        matrix cannot do.

        Args:
            files: The path of the file that holds each tensor.
            config: Of the model.
        """
        handles = {file: safe_open(file, framework="pt") for file in set(files.values())}
        kv = config.num_key_value_heads * config.head_dim
        borders = [0, config.num_attention_heads * config.head_dim]
        borders += [borders[1] + kv, borders[1] + 2 * kv]
        state: dict[str, Any] = {}
        for name, file in files.items():
            stored = handles[file].get_slice(name)
            if not name.endswith(_FUSED):
                state[name] = stored
                continue
            for part, begin, end in zip("qkv", borders, borders[1:], strict=False):
                state[name.replace(_FUSED, f"self_attn.{part}_proj.weight")] = MatrixRows(
                    stored, begin, end
                )
        return state


_NAMES = {
    r"^model\.word_embeddings\.": "model.embed_tokens.",
    r"\.attention\.dense\.": ".self_attn.o_proj.",
    r"\.attention\.query_layernorm\.": ".self_attn.q_norm.",
    r"\.attention\.key_layernorm\.": ".self_attn.k_norm.",
    r"\.mlp\.gate\.expert_bias": ".mlp.gate.e_score_correction_bias",
}

# Registered under the class name alone: other models of GLM's type are not touched.
register_checkpoint_conversion_mapping(
    "LLaDA2MoeModelLM",
    [
        *(WeightRenaming(theirs, ours) for theirs, ours in _NAMES.items()),
        WeightConverter(
            _FUSED,
            [f"self_attn.{part}_proj.weight" for part in "qkv"],
            [Split(dim=0)],
        ),
        *get_checkpoint_conversion_mapping("glm4_moe"),
    ],
    overwrite=True,
)
