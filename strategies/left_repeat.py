"""A penalty for saying again what stands directly in front."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.strategy import Transform
from dllm_decode.decoding.types import StepView, gather_columns
from dllm_decode.errors import require_in_range


@dataclass(frozen=True)
class LeftRepeat(Transform):
    """Lower the logit of the token that stands one column to the left.

        l'[i, v] = l[i, v] - penalty * [v = x(i - 1)]    where column i - 1 holds a token

    Source: SGLang's joint threshold decoding (`penalty_lambda`). Deviation: the first column of a
    block sees the token in front of the block, the last one of the prompt included.

    Args:
        penalty: [nats], [0, 100]; 0 switches it off.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode import Pipeline
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Copy(n=4).answer(Pipeline(TopK(1)), "aabb")
        ('aabb', 5)
        >>> varied = Pipeline(TopK(1), {"left_repeat": LeftRepeat(100.0)})
        >>> "aa" in Copy(n=4).answer(varied, "aabb")[0]
        False
    """

    penalty: float = 1.0
    request_parameters: ClassVar[tuple[str, ...]] = ("penalty",)

    def __post_init__(self) -> None:
        require_in_range("penalty", self.penalty, 0.0, 100.0)

    def adjust(self, view: StepView, memory: None) -> Prediction:
        """The biased prediction; with penalty 0 the one that came in, unchanged."""
        penalty = view.parameter("penalty", self.penalty, view.pred.confidence)
        if not isinstance(penalty, Tensor) and penalty == 0.0:
            return view.pred
        left = view.index - 1
        held = gather_columns(view.snapshot.decided & view.snapshot.live, left) & (left >= 0)
        tokens = torch.where(held, gather_columns(view.snapshot.tokens, left), -1)
        delta = torch.zeros_like(view.pred.confidence) - penalty
        return view.pred.with_logit_bias(tokens[..., None], delta[..., None])
