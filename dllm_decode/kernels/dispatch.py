"""Picks the implementation per call: Triton kernels on CUDA tensors, plain torch elsewhere.

The functions have the signatures and meaning of those of the same name in `reference`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor

from dllm_decode.errors import require_choice
from dllm_decode.kernels import reference
from dllm_decode.kernels.reference import CreditUpdate, RowStatistics

CHOICES = ("auto", "reference", "triton")
_log = logging.getLogger(__name__)
_setting = "auto"
_said: set[str] = set()


def choose(kernels: str) -> None:
    """Set the implementation for this process, the configuration key `kernels`.

    kernels: `auto` (Triton for CUDA tensors where it is installed, else plain torch), `reference`
    (plain torch everywhere), `triton` (as auto, and says so where it cannot be). What Triton cannot
    do falls back to plain torch, with the reason logged once. Raises `ConfigError` for other words.
    """
    global _setting
    require_choice("kernels", kernels, CHOICES)
    _setting = kernels


def chosen() -> str:
    """The current setting."""
    return _setting


@contextmanager
def using(kernels: str) -> Iterator[None]:
    """The setting for a `with` block; raises `ConfigError` for unknown words."""
    before = chosen()
    choose(kernels)
    try:
        yield
    finally:
        choose(before)


def uses_triton(tensor: Tensor) -> bool:
    """Whether the kernels would be tried for this tensor."""
    if _setting == "reference" or (_setting == "auto" and not tensor.is_cuda):
        return False
    return _triton() is not None


def row_statistics(
    logits: Tensor, banned: Tensor | None = None, k: int = 0, ids: Tensor | None = None
) -> RowStatistics:
    """As `reference.row_statistics`."""
    result: RowStatistics = _run("row_statistics", logits, banned, k, ids)
    return result


def top_k(logits: Tensor, k: int, banned: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `reference.top_k`."""
    result: tuple[Tensor, Tensor] = _run("top_k", logits, k, banned)
    return result


def gumbel_statistics(
    logits: Tensor, states: Tensor, temperature: float, banned: Tensor | None = None, k: int = 0
) -> tuple[RowStatistics, Tensor]:
    """As `reference.gumbel_statistics`."""
    result: tuple[RowStatistics, Tensor]
    result = _run("gumbel_statistics", logits, states, temperature, banned, k)
    return result


def credit_update(
    logits: Tensor,
    ids: Tensor,
    credit: Tensor,
    alpha: Tensor,
    beta: Tensor,
    gamma: float,
    open: Tensor,
    banned: Tensor | None = None,
    raw: RowStatistics | None = None,
) -> CreditUpdate:
    """As `reference.credit_update`."""
    result: CreditUpdate
    result = _run("credit_update", logits, ids, credit, alpha, beta, gamma, open, banned, raw)
    return result


def threshold_selection(
    scores: Tensor, open: Tensor, threshold: Tensor, strict: bool = False
) -> tuple[Tensor, Tensor]:
    """As `reference.threshold_selection`."""
    result: tuple[Tensor, Tensor] = _run("threshold_selection", scores, open, threshold, strict)
    return result


def head_statistics(hidden: Tensor, weight: Tensor, banned: Tensor | None = None) -> RowStatistics:
    """As `reference.head_statistics`."""
    result: RowStatistics = _run("head_statistics", hidden, weight, banned)
    return result


def _run(name: str, tensor: Tensor, *rest: Any) -> Any:
    if uses_triton(tensor):
        fused = _triton()
        assert fused is not None
        try:
            return getattr(fused, name)(tensor, *rest)
        except fused.Unsupported as reason:
            _say_once(f"{name} runs in plain torch: no Triton kernel for {reason}")
    return getattr(reference, name)(tensor, *rest)


@cache
def _triton() -> ModuleType | None:
    try:
        return import_module("dllm_decode.kernels.fused")
    except ImportError as missing:
        _say_once(f"row statistics run in plain torch: Triton cannot be imported ({missing})")
        return None


def _say_once(reason: str) -> None:
    if reason not in _said:
        _said.add(reason)
        _log.warning(reason)
