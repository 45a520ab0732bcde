"""What followed the same words before is likely to follow them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.strategy import Transform
from dllm_decode.decoding.types import StepView, gather_columns
from dllm_decode.errors import require_count, require_in_range


@dataclass(frozen=True)
class CopyPrior(Transform):
    """Raise the logit of the token that followed an earlier copy of the words to the left.

        e = the nearest column left of i that holds a token,  d = i - e <= ahead
        j = the last column before e with x(j - k) = x(e - k), k = 0 ... span - 1,
            and a token at j + d
        l'[i, v] = l[i, v] + alpha * [v = x(j + d)]

    Columns are those of the row's prompt and answer; only tokens that stand there count. So a run
    of undecided columns behind a repeated span is offered the next `ahead` tokens of the copy.

    Source: the idea of CopySpec, arXiv 2502.08923, which drafts the copied tokens for an
    autoregressive model; here they are a bias on the prediction, and nothing is verified.

    Args:
        span: tokens that have to be the same, 1 or more.
        ahead: columns behind the span that are offered a token, 1 or more.
        alpha: [nats], [0, 100]; 0 switches it off.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode import Pipeline
        >>> from dllm_decode.models.toy import Shuffle
        >>> from dllm_decode.strategies.fixed import TopK
        >>> copying = Pipeline(TopK(1), {"copy": CopyPrior(span=1, alpha=9.0)})
        >>> Shuffle(n=4).answer(copying, "abcd")  # any order is right; that of the prompt is liked
        ('abcd', 5)
    """

    span: int = 3
    ahead: int = 4
    alpha: float = 2.0
    request_parameters: ClassVar[tuple[str, ...]] = ("alpha",)

    def __post_init__(self) -> None:
        require_count("span", self.span)
        require_count("ahead", self.ahead)
        require_in_range("alpha", self.alpha, 0.0, 100.0)

    def adjust(self, view: StepView, memory: None) -> Prediction:
        """The biased prediction; with alpha 0 the one that came in, unchanged."""
        alpha = view.parameter("alpha", self.alpha, view.pred.confidence)
        if not isinstance(alpha, Tensor) and alpha == 0.0:
            return view.pred
        delta = torch.zeros_like(view.pred.confidence) + alpha
        ids = self.copied(view)[..., None]
        return view.pred.with_logit_bias(ids, delta[..., None], never_negative=True)

    def copied(self, view: StepView) -> Tensor:
        """The token that each undecided slot is offered, -1 for none, (B, W) int64."""
        snapshot = view.snapshot
        held = snapshot.decided & snapshot.live
        # tokens that nobody holds are all different, so that they match nothing
        tokens = torch.where(held, snapshot.tokens, -1 - snapshot.columns)
        nearest = torch.where(held, snapshot.columns, -1).cummax(1).values
        end = gather_columns(nearest, view.index)
        distance = view.index - end
        source = snapshot.columns + distance[..., None]  # (B, W, L): where the copy goes on
        inside = source.clamp(0, tokens.shape[1] - 1)
        follows = tokens[:, None].expand(-1, source.shape[1], -1).gather(2, inside)
        same = (follows >= 0) & (source == inside) & (snapshot.columns < end[..., None])
        for back in range(min(self.span, tokens.shape[1] + 1)):  # a longer one matches nothing
            own = torch.where(end >= back, gather_columns(tokens, end - back), -1)
            earlier = torch.full_like(tokens, -1)
            earlier[:, back:] = tokens[:, : tokens.shape[1] - back]
            same = same & (own[..., None] == earlier[:, None]) & (own >= 0)[..., None]
        usable = view.masked & (distance <= self.ahead) & same.any(2)
        last = torch.where(same, snapshot.columns, 0).amax(2, keepdim=True)
        return torch.where(usable, follows.gather(2, last)[..., 0], -1)
