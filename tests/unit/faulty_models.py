"""Exact worlds that go wrong at a known call, to see what the command line makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dllm_decode.decoding.cache import Plan
from dllm_decode.models.toy import Copy


@dataclass(frozen=True, kw_only=True)
class _Counting(Copy):
    """after: passes that go well."""

    after: int = 2
    calls: list[int] = field(default_factory=list, init=False, repr=False, compare=False)

    def fault(self, logits: Tensor) -> Tensor:
        return logits

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        self.calls.append(len(self.calls))
        logits = super().__call__(tokens, live, index, plan)
        return self.fault(logits) if len(self.calls) > self.after else logits


@dataclass(frozen=True, kw_only=True)
class NanWorld(_Counting):
    def fault(self, logits: Tensor) -> Tensor:
        return torch.full_like(logits, float("nan"))


def _ctrl_c() -> None:
    raise KeyboardInterrupt


INTERRUPT = _ctrl_c


@dataclass(frozen=True, kw_only=True)
class InterruptedWorld(_Counting):
    def fault(self, logits: Tensor) -> Tensor:
        INTERRUPT()
        return logits


@dataclass(frozen=True, kw_only=True)
class BrokenWorld(_Counting):
    def fault(self, logits: Tensor) -> Tensor:
        raise ZeroDivisionError("a bug")


@dataclass(frozen=True, kw_only=True)
class ShortWorld(Copy):
    @property
    def max_length(self) -> int:  # type: ignore[override]
        return 70
