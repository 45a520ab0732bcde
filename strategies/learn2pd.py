"""Learn2PD: a small trained network says which positions of a block are already right.

Source: Learning to Parallel Decoding, arXiv 2509.25188 (ICLR 2026), and its released code.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from dllm_decode.decoding.selection import best, order_scores
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, Memory, Request, Snapshot, StepView
from dllm_decode.errors import ConfigError, require_count, require_in_range
from dllm_decode.models.acceptance import AcceptanceFilter
from dllm_decode.strategies.fixed import scheduled


@cache
def _doubt(weights: str, why: str) -> None:
    """Warn, once in a process, of a filter that is no improvement."""
    warnings.warn(
        f"the filter {weights} is no better than the plain confidence that it reads ({why}); "
        "strategy=threshold is the rule to compare with",
        RuntimeWarning,
        stacklevel=3,
    )


@dataclass
class FilterMemory(Memory):
    """What the filter needs in every step.

    Attributes:
        network: the filter, on the device of the request.
    """

    network: AcceptanceFilter


@dataclass(frozen=True)
class Learn2PD(Strategy):
    """Commit what the filter accepts, and what a fixed schedule would have committed anyway.

        commit i  iff  sigmoid(z(c))_i > tau   or   rank(i) < n(s)

    with c the confidences of ALL columns of the block (decided ones with the model's fresh
    probability there, columns beyond a short block as 0), z the two-layer network, rank 0 the most
    confident open position and n(s) the count of LLaDA's linear schedule.

    Notes: `accepted` (B, W) bool, the accepted open positions, for `strategy/stop=eot_accepted`.
    The block length of the schedule must be the filter's.

    Source: Learning to Parallel Decoding, arXiv 2509.25188, and its released code.

    Args:
        weights: safetensors file of the filter, or `bundled:NAME`.
        tau: what a position's acceptance has to exceed, probability in [0, 1]; 1 accepts nothing.
        steps_per_block: steps S of the schedule, 1 or more; None for one position per step.
        match_model: refuse a filter that was trained for another checkpoint.

    Raises:
        ConfigError: for values out of range.
        CheckpointError: for weights that cannot be read.

    Examples:
        >>> Learn2PD().window_width  # the bundled filter was trained for blocks of 32 columns
        32
    """

    weights: str = "bundled:llada-tiny"
    tau: float = 0.96
    steps_per_block: int | None = None
    match_model: bool = True

    needs_window = True
    reads_decided = True

    def __post_init__(self) -> None:
        require_in_range("tau", self.tau, 0.0, 1.0)
        if self.steps_per_block is not None:
            require_count("steps_per_block", self.steps_per_block)
        if not isinstance(self.weights, str) or not self.weights:
            raise ConfigError(
                f"weights must be a safetensors file or bundled:NAME, got {self.weights!r}"
            )
        _ = self.network

    @cached_property
    def network(self) -> AcceptanceFilter:
        """The filter as read from `weights`."""
        return AcceptanceFilter.load(self.weights)

    @property
    def window_width(self) -> int:
        """The block length the filter was trained for [columns]."""
        return self.network.block_length

    @property
    def model_fingerprint(self) -> str | None:
        """The model the filter was trained for, None where that is not to be checked."""
        return self.network.fingerprint if self.match_model else None

    def begin(self, request: Request, snapshot: Snapshot) -> FilterMemory:
        """The filter where the tokens are; says once what its training said against it."""
        if self.network.doubt is not None:
            _doubt(self.weights, self.network.doubt)
        return FilterMemory(self.network.to(snapshot.tokens.device))

    def decide(self, view: StepView, memory: FilterMemory) -> Decision:
        """The union of accepted and scheduled positions."""
        scores = order_scores(view)
        accepted = view.open & (self.acceptance(view, memory.network) > self.tau)
        forced = best(scores, view.open, self._least(view))
        return Decision(accepted | forced, scores=scores, notes={"accepted": accepted})

    def acceptance(self, view: StepView, network: AcceptanceFilter) -> Tensor:
        """sigmoid(z) at every slot of the window, (B, W) float32; 0 outside the window."""
        width = network.block_length
        inside = view.active & (view.index >= 0)
        begin = view.window_first[:, None]
        # columns in front of the window and behind it share one spare place
        place = torch.where(inside, view.index - begin, width)
        block = torch.zeros(place.shape[0], width + 1, device=place.device)
        block = block.scatter(1, place, view.pred.confidence.float())[:, :width]
        accept = network.logits(block).sigmoid()
        return accept.gather(1, place.clamp(max=width - 1)).masked_fill(~inside, 0.0)

    def _least(self, view: StepView) -> Tensor:
        if self.steps_per_block is None:
            return torch.ones_like(view.window_open)
        return scheduled(view.window_open, self.steps_per_block, view.window_step)
