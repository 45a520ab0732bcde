"""Dream's schedules: a time grid from 1 to eps says what share of the masks each step commits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dllm_decode.decoding.selection import best, order_scores
from dllm_decode.decoding.strategy import Budget, Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_choice, require_count, require_in_range
from dllm_decode.kernels.reference import tempered


def transfer_shares(steps: int, eps: float) -> Tensor:
    """Share of the remaining masks that each step commits, (steps,) float32; the last is 1.

        1 - t(i+1) / t(i),   t = `steps` + 1 points evenly spaced from 1 to eps

    In float32 as released: the counts are truncated, so one unit in the last place can matter.

    Args:
        steps: number of steps, 1 or more.
        eps: where the points end, (0, 1).
    """
    grid = torch.linspace(1.0, eps, steps + 1, dtype=torch.float32)
    shares = 1.0 - grid[1:] / grid[:-1]
    shares[-1] = 1.0
    return shares


@lru_cache(maxsize=64)
def _shares_on(steps: int, eps: float, device: torch.device) -> Tensor:
    """The shares on a device, uploaded once: an upload in every step would make the host wait."""
    return transfer_shares(steps, eps).to(device)


@dataclass(frozen=True)
class _TimeGrid(Strategy):
    """What both schedules share: the grid, and a budget because a step may commit nothing."""

    steps: int = 32
    eps: float = 1e-3

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        require_in_range("eps", self.eps, 0.0, 1.0, open_low=True, open_high=True)

    @property
    def progress(self) -> Budget:
        """`steps` passes per row; the last one commits whatever is left."""
        return Budget(self.steps)

    def share(self, view: StepView) -> Tensor:
        """The share of this step, (B,) float32."""
        shares = _shares_on(self.steps, self.eps, view.step.device)
        return shares[view.step.clamp(max=self.steps - 1)]


@dataclass(frozen=True)
class DreamSchedule(_TimeGrid):
    """Commit floor(M * (1 - t(i+1) / t(i))) of the M open positions in step i, the best first.

    t is the time grid of `transfer_shares`. Source: Dream, arXiv 2508.15487, and its released
    sampler. Deviation: M is the row's own number of open positions; the released code averages it
    over the batch. Use it with schedule=whole, as released.

    Args:
        steps: forward passes per row, 1 or more; the last one commits the rest, earlier ones may
            commit nothing.
        eps: end of the time grid, in (0, 1).
        order: what comes first: `confidence` (maskgit_plus), `margin` (topk_margin) or `entropy`.
        position_temperature: 0 takes the best positions; above 0 they are drawn without
            replacement from softmax(score / position_temperature), [0, 1e6] (alg_temp).

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.decoding.schedule import WholeCanvas
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=6).answer(DreamSchedule(steps=3), "abcdef", schedule=WholeCanvas())
        ('abcdef', 3)
    """

    order: str = "entropy"
    position_temperature: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("order", self.order, ("confidence", "margin", "entropy"))
        require_in_range("position_temperature", self.position_temperature, 0.0, 1e6)

    def decide(self, view: StepView, memory: None) -> Decision:
        """The best or drawn positions of this step."""
        scores = order_scores(view, self.order)
        if self.position_temperature > 0.0:
            measure = getattr(view.pred, self.order)
            measure = -measure if self.order == "entropy" else measure
            # the k largest of score / T + Gumbel noise are a draw without replacement
            noise = -(-view.noise.uniform().log()).log()
            scores = tempered(measure, self.position_temperature) + noise
        count = (view.open.sum(1).float() * self.share(view)).long()
        return Decision(best(scores, view.open, count), scores=scores)


@dataclass(frozen=True)
class DreamOrigin(_TimeGrid):
    """Commit each open position with probability 1 - t(i+1) / t(i), whatever the model says.

    The reverse process of absorbing diffusion. Source: Dream, arXiv 2508.15487, `origin`. Use it
    with schedule=whole, as released.

    Args:
        steps: forward passes per row, 1 or more; the last one commits the rest, earlier ones may
            commit nothing.
        eps: end of the time grid, in (0, 1).

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.decoding.schedule import WholeCanvas
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=6).answer(DreamOrigin(steps=3), "abcdef", schedule=WholeCanvas())
        ('abcdef', 3)
    """

    def decide(self, view: StepView, memory: None) -> Decision:
        """The positions whose number falls below the share."""
        number = view.noise.uniform()
        return Decision(view.open & (number < self.share(view)[:, None]), scores=-number)
