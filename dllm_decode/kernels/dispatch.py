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

import torch
from torch import Tensor

from dllm_decode.errors import require_choice
from dllm_decode.kernels import reference
from dllm_decode.kernels.reference import CreditUpdate, RowStatistics, Slots
from dllm_decode.kernels.shards import VocabularyShard

CHOICES = ("auto", "reference", "triton")
HEADS = ("auto", "apart")
_log = logging.getLogger(__name__)
_setting = "auto"
_head = "auto"
_said: set[str] = set()
# Kernels that did not start, by name and device; the others go on.
_broken: set[tuple[str, torch.device]] = set()
# What torch says of a device whose context is gone.
_LOST = (
    "CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "cuDNN error", "HIP error", "device-side assert",
)  # fmt: skip


def choose(kernels: str, head: str = "auto") -> None:
    """Set the implementation for this process: the configuration keys `kernels` and `head`.

    What Triton cannot do falls back to plain torch, with the reason logged once.

    Args:
        kernels: `auto` (Triton for CUDA tensors where it is installed, else plain torch),
            `reference` (plain torch everywhere) or `triton` (as `auto`, and says so where it cannot
            run).
        head: `auto` (wherever the kernels run, the output head is one with the statistics) or
            `apart` (logits first, then statistics).

    Raises:
        ConfigError: Another word was given.
    """
    global _setting, _head
    require_choice("kernels", kernels, CHOICES)
    require_choice("head", head, HEADS)
    _setting, _head = kernels, head


def chosen() -> str:
    """The current setting of `kernels`."""
    return _setting


def chosen_head() -> str:
    """The current setting of `head`."""
    return _head


@contextmanager
def using(kernels: str, head: str | None = None) -> Iterator[None]:
    """Use one implementation in a block.

    Args:
        kernels: As in `choose`.
        head: As in `choose`; None to leave it as it is.

    Raises:
        ConfigError: The word is unknown.

    Examples:
        >>> with using("reference"):
        ...     chosen()
        'reference'
    """
    before = chosen(), chosen_head()
    choose(kernels, _head if head is None else head)
    try:
        yield
    finally:
        choose(*before)


def uses_triton(tensor: Tensor) -> bool:
    """Whether the kernels would be tried for a tensor.

    Args:
        tensor: Its device and dtype decide.
    """
    if not _runs_on(tensor.device):
        return False
    fused = _triton()
    return fused is not None and tensor.dtype in fused.DTYPES


def fuses_head(device: torch.device, obstacle: str) -> bool:
    """Whether head and statistics are one kernel there, so that a pass may stop before the head.

    Args:
        device: Where the pass runs.
        obstacle: Why the head is not a plain product with a matrix, empty where it is; logged once
            where nothing else stands in the way.
    """
    if _head == "apart" or not _runs_on(device):
        return False
    fused = _triton()
    assert fused is not None
    obstacle = obstacle or fused.head_fault(device)
    if obstacle:
        _say_once(f"the output head runs apart from the statistics: {obstacle}")
    return not obstacle


def row_statistics(
    logits: Tensor, banned: Tensor | None = None, k: int = 0, ids: Tensor | None = None
) -> RowStatistics:
    """Argmax, maximum, sum and moment of every row; see `reference.row_statistics`."""
    result: RowStatistics = _run("row_statistics", logits, banned, k, ids)
    return result


def top_k(logits: Tensor, k: int, banned: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest logits of every row and their ids; see `reference.top_k`."""
    result: tuple[Tensor, Tensor] = _run("top_k", logits, k, banned)
    return result


def gumbel_statistics(
    logits: Tensor, states: Tensor, temperature: float, banned: Tensor | None = None, k: int = 0
) -> tuple[RowStatistics, Tensor]:
    """The row statistics and a draw; see `reference.gumbel_statistics`."""
    result: tuple[RowStatistics, Tensor]
    result = _run("gumbel_statistics", logits, states, temperature, banned, k)
    return result


def gumbel_argmax(
    logits: Tensor, states: Tensor, temperature: float, banned: Tensor | None = None
) -> Tensor:
    """The draw alone; see `reference.gumbel_argmax`."""
    result: Tensor = _run("gumbel_argmax", logits, states, temperature, banned)
    return result


def credit_update(
    logits: Tensor,
    slots: Slots,
    banned: Tensor | None = None,
    raw: RowStatistics | None = None,
) -> CreditUpdate:
    """Credit after a step and the logits it raises; see `reference.credit_update`."""
    result: CreditUpdate
    result = _run("credit_update", logits, slots, banned, raw)
    return result


def credit_from(
    values: Tensor,
    raw: RowStatistics,
    slots: Slots,
) -> CreditUpdate:
    """The same where the logits needed are known; see `reference.credit_from`."""
    result: CreditUpdate
    result = _run("credit_from", values, raw, slots)
    return result


def threshold_selection(
    scores: Tensor,
    open: Tensor,
    threshold: Tensor,
    strict: bool = False,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Open slots that reach a threshold; see `reference.threshold_selection`."""
    given = (scores, open, threshold, strict, order)
    result: tuple[Tensor, Tensor] = _run("threshold_selection", *given)
    return result


def head_statistics(
    hidden: Tensor, weight: Tensor | VocabularyShard, banned: Tensor | None = None
) -> RowStatistics:
    """The row statistics of hidden @ weight.T; see `reference.head_statistics`.

    In one kernel, or in slabs of the library's product; which and why is logged once.
    """
    if isinstance(weight, VocabularyShard):
        return weight.merged(head_statistics(hidden, weight.weight, weight.own(banned)))
    if _runs_on(hidden.device) and (fused := _triton()) is not None:
        way, why = fused.head_plan(hidden.shape[0])
        if way == "slabs":
            _say_once(
                f"the output head of {hidden.shape[0]} rows runs in slabs: {why}", logging.INFO
            )
    result: RowStatistics = _run("head_statistics", hidden, weight, banned)
    return result


def head_logits_at(
    hidden: Tensor, weight: Tensor | VocabularyShard, ids: Tensor, banned: Tensor | None = None
) -> Tensor:
    """Logits of some ids from hidden states; see `reference.head_logits_at`."""
    if isinstance(weight, VocabularyShard):
        own, here = weight.own(banned), weight.own_ids(ids)
        return weight.largest(head_logits_at(hidden, weight.weight, here, own))
    result: Tensor = _run("head_logits_at", hidden, weight, ids, banned)
    return result


def _run(name: str, tensor: Tensor, *rest: Any) -> Any:
    if _runs_on(tensor.device) and (name, tensor.device) not in _broken:
        fused = _triton()
        assert fused is not None
        try:
            return getattr(fused, name)(tensor, *rest)
        except fused.Unsupported as reason:
            _say_once(f"{name} runs in plain torch: no Triton kernel for {reason}")
        except Exception as reason:  # whatever a compiler or driver raises, plain torch still works
            if isinstance(reason, torch.OutOfMemoryError) or lost_device(reason):
                raise
            _broken.add((name, tensor.device))
            why = (str(reason).strip() or type(reason).__name__).splitlines()[0]
            where = tensor.device
            _say_once(f"{name} runs in plain torch: its kernel does not start on {where} ({why})")
    return getattr(reference, name)(tensor, *rest)


def lost_device(error: BaseException) -> bool:
    """Whether an error says that a GPU's context is gone, so that nothing can run there any more.

    After an illegal access or a failed assertion on the device every later call fails as well, and
    only a new process helps; out of memory is not of this kind.

    Args:
        error: What was raised.
    """
    text = str(error)
    memory = "out of memory" in text or "ALLOC_FAILED" in text
    if memory or isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(sign in text for sign in _LOST)


def _runs_on(device: torch.device) -> bool:
    if _setting == "reference" or (_setting == "auto" and device.type != "cuda"):
        return False
    return _triton() is not None and (device.type != "cuda" or _starts(device))


@cache
def _starts(device: torch.device) -> bool:
    """Whether a kernel can be compiled and launched at all; Triton also needs a C compiler."""
    fused = _triton()
    assert fused is not None
    try:
        fused.row_statistics(torch.zeros(1, 16, device=device))
    except Exception as reason:  # whatever a toolchain raises, plain torch still works
        if isinstance(reason, torch.OutOfMemoryError) or lost_device(reason):
            raise
        _say_once(f"row statistics run in plain torch: no kernel starts on {device} ({reason})")
        return False
    return True


@cache
def _triton() -> ModuleType | None:
    try:
        return import_module("dllm_decode.kernels.fused")
    except ImportError as missing:
        _say_once(f"row statistics run in plain torch: Triton cannot be imported ({missing})")
        return None


def _say_once(reason: str, level: int = logging.WARNING) -> None:
    if reason not in _said:
        _said.add(reason)
        _log.log(level, reason)
