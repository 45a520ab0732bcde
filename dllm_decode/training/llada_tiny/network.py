"""The LLaDA architecture in plain torch, with the published tensor names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_SPREAD = 0.05  # standard deviation of the first embeddings
_SHARPNESS = 5.0  # of the heads that begin with a look at a neighbour


@dataclass(frozen=True)
class Shape:
    """Sizes of the network.

    Attributes:
        vocab: Number of tokens.
        width: Of the residual stream.
        layers: Number of blocks.
        heads: Attention heads of a block.
        hidden: Width of the feed-forward layers.
        rope_theta: Base of the rotary positions.
        norm_eps: Added to the mean square in a norm.

    Examples:
        >>> Shape(vocab=100, width=64, heads=2).layers
        6
    """

    vocab: int
    width: int = 192
    layers: int = 6
    heads: int = 4
    hidden: int = 512
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5


class Norm(nn.Module):
    """Root mean square normalisation, computed in float32.

    Args:
        width: Of the rows.
        eps: Added to the mean square.

    Examples:
        >>> Norm(4, 1e-5)(torch.full((1, 4), 3.0)).round(decimals=3).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Scale every row to a mean square of one, then by the weights.

        Args:
            x: (..., width).
        """
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        scaled: Tensor = self.weight * wide
        return scaled


class Block(nn.Module):
    """Attention over all positions and a gated feed-forward, both with residual.

    Args:
        shape: Sizes of the network.

    Examples:
        >>> shape = Shape(vocab=10, width=8, layers=1, heads=2, hidden=16)
        >>> sum(weight.numel() for weight in Block(shape).parameters())
        656
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, hidden = shape.width, shape.hidden
        self.heads = shape.heads
        self.attn_norm = Norm(width, shape.norm_eps)
        self.ff_norm = Norm(width, shape.norm_eps)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.ff_out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Send the residual stream through one layer.

        Args:
            x: (batch, length, width).
            cos: (length, head size), see `turns`.
            sin: (length, head size).
            wanted: (n,) flat indices into batch * length: the rows behind the attention that are
                needed at all; the result is then (n, width).
        """
        x = x + self._attend(self.attn_norm(x), cos, sin)
        x = x.flatten(0, 1)[wanted] if wanted is not None else x
        y = self.ff_norm(x)
        gated: Tensor = self.ff_out(functional.silu(self.ff_proj(y)) * self.up_proj(y))
        return x + gated

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        size = width // self.heads
        q, k, v = (
            project(x).view(batch, length, self.heads, size).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin)
        if x.is_cuda:
            mixed = functional.scaled_dot_product_attention(q, k.to(v.dtype), v)
        else:  # faster than the fused kernel on CPU at these lengths; softmax sums in float32
            scores = q @ (k * (1 / math.sqrt(size))).to(v.dtype).transpose(-1, -2)
            mixed = scores.softmax(-1) @ v
        out: Tensor = self.attn_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class Network(nn.Module):
    """A masked diffusion model: token ids in, logits out, no causal mask.

    Args:
        shape: Sizes of the network.

    Examples:
        >>> network = Network(Shape(vocab=10, width=8, layers=1, heads=2, hidden=16))
        >>> network(torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 5, 10])
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.ln_f = Norm(shape.width, shape.norm_eps)
        self.reset()

    def reset(self) -> None:
        """Draw all weights from the global generator of torch.

        Two heads of each of the lowest two blocks look at the neighbours from the start. Copying
        what stands behind a label needs such heads first, and then everything that looks something
        up; left to chance, they take most of the tokens until a list can be copied.
        """
        nn.init.normal_(self.wte.weight, std=_SPREAD)
        deep = 1 / math.sqrt(2 * self.shape.layers)
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and not name.startswith("wte"):
                scale = deep if name.endswith(("attn_out.weight", "ff_out.weight")) else 1.0
                nn.init.normal_(weight, std=scale / math.sqrt(weight.shape[1]))
        # What all embeddings share is a bias for queries and keys, of which the format has none.
        shared = _SPREAD * torch.randn(self.shape.width).sign()
        self.wte.weight.data += shared
        for block in self.blocks[:2]:
            assert isinstance(block, Block)
            for head, offset in enumerate((-1, 1)[: self.shape.heads]):
                look(block, head, offset, shared, self.shape)

    def forward(self, tokens: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Logits for token ids.

        Args:
            tokens: (batch, length).
            wanted: (n,) flat indices into batch * length, to compute the logits of these rows
                alone.

        Returns:
            (n, vocab), or (batch, length, vocab) where `wanted` is None.
        """
        x = self.wte(tokens)
        cos, sin = turns(tokens.shape[1], self.shape, tokens.device)
        *lower, last = self.blocks
        for block in lower:
            x = block(x, cos, sin)
        x = last(x, cos, sin, wanted)
        # The head shares the embedding.
        logits: Tensor = functional.linear(self.ln_f(x), self.wte.weight)
        return logits


@torch.no_grad()
def look(block: Block, head: int, offset: int, shared: Tensor, shape: Shape) -> None:
    """Let a head attend to the position at an offset, whatever stands there.

    The query is a fixed vector q in the fastest rotary planes, the key is q turned back by the
    offset; R(i) q . R(j) R(-offset) q is largest at j = i + offset.

    Args:
        block: Whose head it is.
        head: Its number.
        offset: From the attending position, in tokens.
        shared: (width,) what all embeddings have in common, with half of their mean square.
        shape: Sizes of the network.
    """
    size = shape.width // shape.heads
    query = torch.zeros(size)
    query[: min(4, size // 2)] = _SHARPNESS
    cos, sin = turns(2, shape, shared.device)
    key = rotate(query, cos[1], -offset * sin[1])
    # A row behind a norm has length sqrt(width), and half of its square is along `shared`.
    reader = shared / shared.norm() / math.sqrt(shape.width / 2)
    rows = slice(head * size, (head + 1) * size)
    for project, vector in ((block.q_proj, query), (block.k_proj, key)):
        project.weight[rows] = 0.1 * project.weight[rows] + torch.outer(vector, reader)


def turns(length: int, shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary positions 0 .. length - 1.

    Args:
        length: Number of positions.
        shape: Sizes of the network.
        device: Where they are needed.

    Returns:
        Two tensors (length, head size).
    """
    size = shape.width // shape.heads
    rate = shape.rope_theta ** (-torch.arange(0, size, 2, device=device).float() / size)
    angle = torch.outer(torch.arange(length, device=device).float(), rate)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions in float32; the halves of a head are paired.

    Args:
        x: (..., length, head size).
        cos: (length, head size), see `turns`.
        sin: (length, head size).
    """
    x = x.float()
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin
