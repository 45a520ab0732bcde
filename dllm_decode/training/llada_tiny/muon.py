"""Muon for matrices, AdamW for the rest, with the matrix work divided among the workers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def orthogonal(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Move the singular values of matrices towards one.

    Newton-Schulz iteration with a quintic polynomial, x <- a x + (b G + c G^2) x with G = x x^T.

    Args:
        matrices: (n, rows, columns), rows not more than columns.
        steps: Iterations.
        dtype: Of the products.

    Returns:
        The matrices (n, rows, columns) in float32.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrices.to(dtype)
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(dtype)
    for _ in range(steps):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.float()


class MuonAdamW:
    """One optimiser for a network: matrices by Muon, embeddings and norms by AdamW.

    Args:
        named: Name and weight of everything that is trained.
        rank: Number of this worker, which solves its share of the matrices.
        workers: How many share the work.
        dtype: Of the products of the matrix work.

    Examples:
        >>> weight = torch.nn.Parameter(torch.eye(2))
        >>> optimiser = MuonAdamW([("blocks.0.q_proj.weight", weight)])
        >>> weight.grad = torch.eye(2)
        >>> optimiser.step(1, muon_rate=0.1, adam_rate=0.1, momentum=0.9, decay=0.0)
        >>> bool(weight[0, 0] < 1)
        True
    """

    def __init__(
        self,
        named: Sequence[tuple[str, Tensor]],
        *,
        rank: int = 0,
        workers: int = 1,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.rank, self.workers, self.dtype = rank, workers, dtype
        matrices = [(n, w) for n, w in named if w.ndim == 2 and not n.startswith("wte")]
        self.groups: list[list[tuple[str, Tensor]]] = []  # same shape: one batched iteration
        for shape in sorted({tuple(w.shape) for _, w in matrices}):
            self.groups.append([(n, w) for n, w in matrices if tuple(w.shape) == shape])
        chosen = {n for n, _ in matrices}
        self.others = [(n, w) for n, w in named if n not in chosen]
        self.state: dict[str, Tensor] = {f"momentum.{n}": torch.zeros_like(w) for n, w in matrices}
        for name, weight in self.others:
            self.state[f"mean.{name}"] = torch.zeros_like(weight)
            self.state[f"square.{name}"] = torch.zeros_like(weight)

    @torch.no_grad()
    def step(
        self,
        number: int,
        *,
        muon_rate: float,
        adam_rate: float,
        momentum: float,
        decay: float,
        share: object = None,
    ) -> None:
        """Update all weights from their `.grad`.

        Args:
            number: Of the step, 1 for the first.
            muon_rate: Learning rate of the matrices.
            adam_rate: Learning rate of the other weights.
            momentum: Of the matrices, in [0, 1).
            decay: Weight decay of the matrices.
            share: `share(flat)` adds a vector over all workers in place; None for a single worker.
        """
        updates = [self._direction(group, momentum) for group in self.groups]
        if callable(share):
            flat = torch.cat([update.flatten() for update in updates])
            share(flat)
            parts = torch.split(flat, [update.numel() for update in updates])
            updates = [p.view_as(u) for p, u in zip(parts, updates, strict=True)]
        for group, update in zip(self.groups, updates, strict=True):
            scale = max(1.0, group[0][1].shape[0] / group[0][1].shape[1]) ** 0.5
            for (_, weight), change in zip(group, update, strict=True):
                weight.mul_(1 - muon_rate * decay).add_(change, alpha=-muon_rate * scale)
        self._adam(number, adam_rate)

    def _direction(self, group: list[tuple[str, Tensor]], momentum: float) -> Tensor:
        """Orthogonalised momentum of one group; rows of other workers stay zero."""
        lookahead = []
        for name, weight in group:
            assert weight.grad is not None
            average = self.state[f"momentum.{name}"].lerp_(weight.grad, 1 - momentum)
            lookahead.append(weight.grad.lerp(average, momentum))
        mine = slice(self.rank, None, self.workers)
        result = torch.zeros(len(group), *group[0][1].shape, device=group[0][1].device)
        part = lookahead[mine]
        if part:
            stack = torch.stack(part)
            tall = stack.shape[1] > stack.shape[2]
            solved = orthogonal(stack.transpose(1, 2) if tall else stack, dtype=self.dtype)
            result[mine] = solved.transpose(1, 2) if tall else solved
        return result

    def _adam(self, number: int, rate: float) -> None:
        low, high = 0.9, 0.98
        for name, weight in self.others:
            assert weight.grad is not None
            mean = self.state[f"mean.{name}"].lerp_(weight.grad, 1 - low)
            square = self.state[f"square.{name}"].lerp_(weight.grad.square(), 1 - high)
            root = (square / (1 - high**number)).sqrt_().add_(1e-8)
            weight.addcdiv_(mean, root, value=-rate / (1 - low**number))
