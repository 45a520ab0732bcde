"""Small tensor functions that selection rules share; all per row, lowest column first on ties."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dllm_decode.kernels import dispatch, reference

if TYPE_CHECKING:
    from dllm_decode.decoding.types import StepView

ORDERS = ("confidence", "margin", "entropy", "random")


def order_scores(view: StepView, order: str = "confidence") -> Tensor:
    """Scores by which positions are taken, largest first, (B, W); every ranking rule asks here.

    They are computed from the mass beside the winner, not from probabilities, so that positions
    keep their order where confidences and margins are rounded to 1.

    Args:
        view: the step.
        order: `confidence` (odds of the proposal), `margin` (odds of top-1 minus top-2
            probability), `entropy` (minus the entropy [nats]) or `random` (a uniform number per
            position and step).
    """
    if order == "confidence":
        return view.pred.certainty
    if order == "margin":
        return view.pred.margin_certainty
    if order == "entropy":
        return -view.pred.entropy
    return view.noise.uniform()


def ranks(scores: Tensor, among: Tensor) -> Tensor:
    """Position of each slot in the order of falling scores, 0 for the best, (B, W) int64.

    Equal scores rank by column.

    Args:
        scores: (B, W).
        among: (B, W) bool, slots that take part; the others rank behind them.
    """
    order = ordered(scores, among)
    place = numbers(scores.shape[1], scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, place)


def ordered(scores: Tensor, among: Tensor) -> Tensor:
    """Slots in the order of falling scores, those not among the candidates last, (B, W) int64.

    Args:
        scores: (B, W), larger is better.
        among: (B, W) bool, the candidates.
    """
    by_score = scores.sort(dim=1, descending=True, stable=True).indices
    last = (~among).gather(1, by_score).to(torch.int8)
    return by_score.gather(1, last.sort(dim=1, stable=True).indices)


def best(scores: Tensor, among: Tensor, count: Tensor | int = 1) -> Tensor:
    """The best candidates of each row, (B, W) bool; lower columns first on ties.

    Args:
        scores: (B, W), no NaN among the candidates.
        among: (B, W) bool, the candidates.
        count: how many, one number or (B,), 0 or more.

    Examples:
        >>> scores = torch.tensor([[0.2, 0.9, 0.5]])
        >>> best(scores, torch.tensor([[True, False, True]]))
        tensor([[False, False,  True]])
    """
    if isinstance(count, int) and count == 1 and scores.is_floating_point():
        top = reference.best_slot(scores, among)
        return torch.zeros_like(among).scatter_(1, top, True) & among
    limit = count[:, None] if isinstance(count, Tensor) else count
    return among & (ranks(scores, among) < limit)


def reaching(
    scores: Tensor,
    among: Tensor,
    threshold: Tensor | float,
    strict: bool = False,
    order: Tensor | None = None,
) -> Tensor:
    """Candidates whose score reaches the threshold, in each row at least the best one, (B, W) bool.

    On a GPU one kernel, and no waiting.

    Args:
        scores: (B, W), no NaN among the candidates.
        among: (B, W) bool, the candidates.
        threshold: one number for all rows, or (B, 1).
        strict: ask for more than the threshold.
        order: (B, W), what the best one is the best by; None for the scores.

    Examples:
        >>> scores = torch.tensor([[0.2, 0.9, 0.5], [0.2, 0.1, 0.3]])
        >>> reaching(scores, torch.ones(2, 3, dtype=torch.bool), 0.5)
        tensor([[False,  True,  True],
                [False, False,  True]])
    """
    if isinstance(threshold, Tensor):
        threshold = threshold.to(scores.dtype)
    if not dispatch.uses_triton(scores):
        return reference.reaching(scores, among, threshold, strict, order)
    level = (
        threshold[:, 0]
        if isinstance(threshold, Tensor)
        else scores.new_full(scores.shape[:1], threshold)
    )
    return dispatch.threshold_selection(scores, among, level, strict, order)[0]


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def numbers(count: int, device: torch.device) -> Tensor:
    """0, 1, ... count - 1, made once and never to be written to, (count,) int64.

    Args:
        count: how many, 0 or more.
        device: where.
    """
    return torch.arange(count, device=device)
