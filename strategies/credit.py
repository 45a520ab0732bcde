"""CreditDecoding: tokens that keep winning the same position earn a bonus on their logits.

Source: CreditDecoding, arXiv 2510.06133 (ACL 2026), equations 6 and 7; adaptive form section 4.3.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.strategy import Transform
from dllm_decode.decoding.types import ColumnMemory, Memory, Request, Snapshot, StepView
from dllm_decode.errors import require_choice, require_count, require_in_range
from dllm_decode.kernels.reference import Slots

# The precision of all credit.
_EXACT = torch.zeros((), dtype=torch.float64)


@dataclass
class CreditMemory(Memory):
    """Credit by generated column, so that it survives any move of the window.

    Attributes:
        ids: (B, G + 1, K) int64 credited tokens, -1 for an empty slot; G generated columns, the
            last entry takes what slots without a column write.
        credit: (B, G + 1, K) float64 their credit, 0 where empty.
    """

    ids: Tensor
    credit: Tensor


@dataclass(frozen=True, kw_only=True)
class _CreditRule(Transform):
    """What the fixed and the adaptive form share: the memory, its update, the fusion."""

    slots: int = 8
    scope: str = "block"
    identity: bool = True

    # a step without a prediction at a column would decay its credit without new evidence
    needs_window = True

    def __post_init__(self) -> None:
        require_count("slots", self.slots)
        require_choice("scope", self.scope, ("block", "request"))

    @property
    def sees_canvas(self) -> bool:  # type: ignore[override]
        """Credit of the whole request is earned at every open column, so all must be predicted."""
        return self.scope == "request"

    def begin(self, request: Request, snapshot: Snapshot) -> CreditMemory:
        """The memory of a request in which no token has earned credit yet."""
        rows, width = snapshot.tokens.shape
        shape = (rows, width - snapshot.start + 1, self.slots)
        device = snapshot.tokens.device
        return CreditMemory(
            ids=torch.full(shape, -1, device=device),
            credit=torch.zeros(shape, dtype=torch.float64, device=device),
        )

    def adjust(self, view: StepView, memory: CreditMemory) -> Prediction:
        """The prediction with alpha * log(1 + credit) added to the credited logits."""
        alpha, beta, gamma = self.strengths(view)
        if self.scope == "block":  # ids may stay: without credit they add nothing and go first
            memory.credit = memory.credit.masked_fill(view.fresh[:, None, None], 0.0)
        earns = view.masked if self.scope == "request" else view.open
        columns = _column(view, memory)
        ids, credit = memory.ids.gather(1, columns), memory.credit.gather(1, columns)
        if not self.identity:
            # one slot is ever filled; naming the present winner in it hands over the credit
            ids = torch.where(ids < 0, ids, view.pred.top_token[..., None])
        done = view.pred.credited(Slots(ids, credit, alpha, beta, gamma, earns))
        memory.ids = memory.ids.scatter(1, columns, done.ids)
        memory.credit = memory.credit.scatter(1, columns, done.credit)
        return done.prediction

    @abstractmethod
    def strengths(self, view: StepView) -> tuple[Tensor | float, Tensor | float, float]:
        """Alpha and beta, (B,) or one for all rows, and gamma of this step."""


def _column(view: StepView, memory: CreditMemory) -> Tensor:
    """Index of each slot's entry in the memory, (B, W, K); absent slots point at the last one."""
    columns = view.offsets % memory.ids.shape[1]
    return columns[..., None].expand(*columns.shape, memory.ids.shape[2])


@dataclass(frozen=True, kw_only=True)
class TraceCredit(_CreditRule):
    """Add alpha * log(1 + C) to the logits of tokens that won the position before.

        C[i, v] <- beta * C[i, v] + [v = argmax_u p(i, u)] * p(i, v) ** gamma      (first this)
        l'[i, v] = l[i, v] + alpha * log(1 + C[i, v])                              (then this)

    for every open position i, with p the prediction as it arrives here (no temperature, no noise;
    banned ids have probability 0, so the mask id can never earn credit).

    Source: CreditDecoding, arXiv 2510.06133, equations 6 and 7. Deviation from the authors'
    released code: the mask id earns nothing, and nothing outlives the request.

    Args:
        alpha: strength [nats per nat of log(1 + C)], [0, 100]; 0 switches it off.
        beta: share of the credit that is kept per step, [0, 1].
        gamma: exponent of the winner's probability, [0, 10].
        slots: K tokens remembered per position, 1 or more; exact from the number of steps in a
            block on. Where all K are taken, the token with the least credit is forgotten.
        scope: `block` (credit starts anew with every block) or `request` (kept for the whole
            request, and earned at every open column of the canvas).
        identity: False is the control without token identity, where a position has one credit
            that always belongs to its present winner.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode import Pipeline
        >>> from dllm_decode.models.toy import Shuffle
        >>> from dllm_decode.strategies.threshold import ConfidenceThreshold
        >>> plain = Pipeline(ConfidenceThreshold(0.6))
        >>> Shuffle(n=6).answer(plain, "abcdef")  # any order of the items is right
        ('feadbc', 7)
        >>> trusting = Pipeline(ConfidenceThreshold(0.6), {"credit": TraceCredit(alpha=2.0)})
        >>> Shuffle(n=6).answer(trusting, "abcdef")  # fewer passes, and one item twice
        ('cfaead', 5)
    """

    alpha: float = 0.65
    beta: float = 0.70
    gamma: float = 0.20
    request_parameters: ClassVar[tuple[str, ...]] = ("alpha", "beta")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in_range("alpha", self.alpha, 0.0, 100.0)
        require_in_range("beta", self.beta, 0.0, 1.0)
        require_in_range("gamma", self.gamma, 0.0, 10.0)

    def adjust(self, view: StepView, memory: CreditMemory) -> Prediction:
        """The biased prediction; with alpha 0 the one that came in, unchanged."""
        alpha = view.parameter("alpha", self.alpha, memory.credit)
        off = not isinstance(alpha, Tensor) and alpha == 0.0
        return view.pred if off else super().adjust(view, memory)

    def strengths(self, view: StepView) -> tuple[Tensor | float, Tensor | float, float]:
        """The constants; alpha and beta are those of the row where it sets its own."""
        return self._strength(view, "alpha"), self._strength(view, "beta"), self.gamma

    def _strength(self, view: StepView, name: str) -> Tensor | float:
        own = view.parameter(name, getattr(self, name), _EXACT)
        return own[:, 0] if isinstance(own, Tensor) else own


@dataclass(frozen=True, kw_only=True)
class AdaptiveCredit(_CreditRule):
    """Credit whose strength follows the share of decided columns; no constants to tune.

        gamma = 1,   alpha = beta = 1 - eta,   eta = undecided columns / all columns

    with eta taken before this step's commits, so that the first step of a block is plain decoding.

    Source: CreditDecoding, arXiv 2510.06133, section 4.3, which does not say which columns eta
    counts.

    Args:
        ratio_over: columns that eta counts: `block` (the current window) or `canvas` (all live
            generated columns).
        slots: as in `TraceCredit`.
        scope: as in `TraceCredit`.
        identity: as in `TraceCredit`.

    Raises:
        ConfigError: for other words, and fewer slots than 1.

    Examples:
        >>> from dllm_decode import Pipeline
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Copy(n=4).answer(Pipeline(TopK(2), {"credit": AdaptiveCredit()}), "abcd")
        ('abcd', 3)
    """

    ratio_over: str = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("ratio_over", self.ratio_over, ("block", "canvas"))

    def strengths(self, view: StepView) -> tuple[Tensor, Tensor, float]:
        """Alpha and beta, both 1 - eta, and gamma, which is 1."""
        eta = view.mask_ratio if self.ratio_over == "block" else view.snapshot.mask_ratio
        share = 1.0 - eta.double()
        return share, share, 1.0


@dataclass(frozen=True, kw_only=True)
class FullCredit(Transform):
    """Credit for every token, as much as its probability: the whole distribution is remembered.

        C[i, v] <- beta * C[i, v] + p(i, v) ** gamma                               (first this)
        l'[i, v] = l[i, v] + alpha * log(1 + C[i, v])                              (then this)

    for every open position i and every token v that is not banned. With a small gamma all tokens
    earn nearly the same, so that what is left is a preference for those that stayed likely. It
    keeps a number per column and token of the vocabulary: 8 V bytes per column.

    Source: CreditDecoding, arXiv 2510.06133, equation 13, as summaries of it have it; none says
    whether the constants stay.

    Args:
        alpha: strength [nats per nat of log(1 + C)], [0, 100].
        beta: share of the credit that is kept per step, [0, 1].
        gamma: exponent of the probabilities, [0, 10].

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode import Pipeline
        >>> from dllm_decode.models.toy import Shuffle
        >>> from dllm_decode.strategies.threshold import ConfidenceThreshold
        >>> trusting = Pipeline(ConfidenceThreshold(0.6), {"credit": FullCredit(gamma=1.0)})
        >>> Shuffle(n=6).answer(trusting, "abcdef")
        ('feadbc', 7)
    """

    alpha: float = 0.65
    beta: float = 0.70
    gamma: float = 0.20

    needs_window = True

    def __post_init__(self) -> None:
        require_in_range("alpha", self.alpha, 0.0, 100.0)
        require_in_range("beta", self.beta, 0.0, 1.0)
        require_in_range("gamma", self.gamma, 0.0, 10.0)

    def begin(self, request: Request, snapshot: Snapshot) -> ColumnMemory:
        """A memory in which no token has earned credit yet."""
        return ColumnMemory.of(snapshot, 0.0, snapshot.vocab.size, dtype=torch.float64)

    def adjust(self, view: StepView, memory: ColumnMemory) -> Prediction:
        """The prediction whose logits have the bonus of every token."""
        before = memory.read(view).masked_fill(view.fresh[:, None, None], 0.0)
        share = view.pred.probs.double()
        # a token that cannot be proposed earns nothing; one whose probability is too small to be
        # told from 0 keeps what it has
        earns = (view.open & view.pred.healthy)[..., None] & ~torch.isneginf(view.pred.logits)
        credit = torch.where(earns, self.beta * before + share**self.gamma, 0.0)
        memory.write(view, credit)
        return view.pred.with_logits(view.pred.logits.double() + self.alpha * credit.log1p())
