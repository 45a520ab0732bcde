"""Factor rule: the more positions go together, the surer each of them has to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding.selection import order_scores, ordered, ranks
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_choice, require_in_range

VARIANTS = ("published", "copied", "d2cache")


@dataclass(frozen=True)
class Factor(Strategy):
    """Commit the n most confident open positions, n chosen so that their errors stay rare together.

        n = largest n with (n + 1) * (1 - c(n)) < factor, at least 1

    with c(1) >= c(2) >= ... the confidences of the open positions (lower columns first on ties).

    Source: Fast-dLLM, arXiv 2505.22618, section 3.3.

    Args:
        factor: bound on (n + 1) * error, a number without unit in [0, 1e6].
        variant: `published` (the rule above); `copied`, the condition that most released code
            shares: equality passes, and where the walk over the sorted positions passes or stops at
            the last one, all are committed, the failed one included; `d2cache`: the rule above, but
            one fewer where all positions pass. The last two reproduce other projects and have no
            other use.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=4).answer(Factor(1.0), "abcd")  # the model is certain
        ('abcd', 1)
    """

    factor: float = 1.0
    variant: str = "published"
    request_parameters: ClassVar[tuple[str, ...]] = ("factor",)

    def __post_init__(self) -> None:
        require_in_range("factor", self.factor, 0.0, 1e6)
        require_choice("variant", self.variant, VARIANTS)

    def decide(self, view: StepView, memory: None) -> Decision:
        """The n most confident positions."""
        scores = order_scores(view)
        falling = view.pred.confidence.double().gather(1, ordered(scores, view.open))
        factor = view.parameter("factor", self.factor, falling)
        count = self.count(falling, view.open.sum(1), factor)
        return Decision(
            view.open & (ranks(scores, view.open) < count[:, None]),
            scores=scores,
        )

    def count(
        self, confidence: Tensor, positions: Tensor, factor: Tensor | float | None = None
    ) -> Tensor:
        """How many positions are committed, (B,).

        Args:
            confidence: (B, W) float64, the row's open positions first, in falling order.
            positions: (B,) how many of them are open.
            factor: the bound, (B, 1) or one number; None for the field.
        """
        factor = self.factor if factor is None else factor
        number = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)
        if self.variant == "copied":
            fails = (confidence < 1.0 - factor / (number + 1)) & (number > 1)
        else:
            fails = (number + 1) * (1.0 - confidence) >= factor
        inside = number <= positions[:, None]
        # the first failing position, or one past the last open one
        stop = torch.where(fails & inside, number, positions[:, None] + 1).amin(1)
        if self.variant == "copied":
            return torch.where(stop >= positions, positions, stop - 1)
        if self.variant == "d2cache":
            stop = torch.minimum(stop, positions)
        return (stop - 1).clamp(min=1)
