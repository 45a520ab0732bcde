"""Timing the row statistics: what must move, what the device can move, what each path takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from timeit import repeat
from typing import TypeVar

import torch
from torch import Tensor

from dllm_decode.kernels import dispatch
from dllm_decode.kernels.reference import Slots

Action = Callable[[], object]
Found = TypeVar("Found")
# Sweeps of 256 MiB before each timed run: about a millisecond of work, in which the host queues the
# launches of the run, so that the device is timed and not the host.
SWEEPS = 16


@dataclass(frozen=True)
class KernelCase:
    """One size to time.

    Attributes:
        rows: Rows of logits.
        vocabulary: Logits per row.
        dtype: Of the logits, the hidden states and the head.
        slots: Credited tokens per row.
        width: Of the hidden states.

    Examples:
        >>> KernelCase(rows=2, vocabulary=100, dtype=torch.bfloat16, slots=8, width=16).bytes
        400
    """

    rows: int
    vocabulary: int
    dtype: torch.dtype
    slots: int
    width: int

    @property
    def bytes(self) -> int:
        """Bytes that one read of the logits moves."""
        return self.rows * self.vocabulary * self.dtype.itemsize

    @property
    def head_bytes(self) -> int:
        """Bytes that the head product must read: the weight and the hidden states."""
        return (self.vocabulary + self.rows) * self.width * self.dtype.itemsize


class Stopwatch:
    """Median time of an action in seconds, with cold caches on a GPU.

    Args:
        device: Where the action runs.
        repeats: Timed runs, after two that are not timed.

    Examples:
        >>> watch = Stopwatch(torch.device("cpu"), repeats=3)
        >>> watch(lambda: sum(range(1000))) > 0
        True
    """

    def __init__(self, device: torch.device, repeats: int) -> None:
        self._device = device
        self._repeats = repeats
        # larger than any last-level cache, so that no run finds its input there
        size = 1 << 28 if device.type == "cuda" else 1
        self._sweep = torch.empty(size, dtype=torch.int8, device=device)

    def __call__(self, action: Action) -> float:
        """The median time of an action in seconds.

        Args:
            action: Called without arguments; what it returns is dropped.
        """
        for _ in range(2):
            action()
        if self._device.type != "cuda":
            return median(repeat(action, repeat=self._repeats, number=1))
        return median(self._on_device(action) for _ in range(self._repeats))

    def _on_device(self, action: Action) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(SWEEPS):
            self._sweep.zero_()
        start.record()
        action()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000.0


def copy_bandwidth(watch: Stopwatch, device: torch.device) -> float:
    """Bytes per second that a large copy reads and writes on a device.

    Args:
        watch: Times the copy.
        device: Where it is made.
    """
    size = 1 << (30 if device.type == "cuda" else 26)
    source = torch.zeros(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * size / watch(lambda: target.copy_(source))


@dataclass(frozen=True)
class Inputs:
    """Random inputs of a case; N are its rows, V its vocabulary, K its slots, D its width.

    Attributes:
        logits: (N, V).
        banned: (1,) id that counts as -inf.
        states: (N,) int64, hash states of a draw.
        ids: (N, K) int64, -1 for an empty slot.
        credit: (N, K) float64.
        alpha: (N,) float64.
        beta: (N,) float64.
        open: (N,) bool.
        hidden: (N, D).
        weight: (V, D), the output head.

    Examples:
        >>> case = KernelCase(rows=2, vocabulary=64, dtype=torch.float32, slots=2, width=16)
        >>> Inputs.of(case, torch.device("cpu")).logits.shape
        torch.Size([2, 64])
    """

    logits: Tensor
    banned: Tensor
    states: Tensor
    ids: Tensor
    credit: Tensor
    alpha: Tensor
    beta: Tensor
    open: Tensor
    hidden: Tensor
    weight: Tensor

    @staticmethod
    def of(case: KernelCase, device: torch.device) -> Inputs:
        """Inputs with half of the slots in use; the same numbers each time.

        Args:
            case: The size.
            device: Where they are made.
        """
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=torch.float32)

        rows, slots = case.rows, case.slots
        step = torch.arange(slots, device=device)
        ids = (torch.arange(rows, device=device)[:, None] * 7 + step * 5) % case.vocabulary
        ids = torch.where(step < (slots + 1) // 2, ids, -1)
        one = torch.ones(rows, device=device, dtype=torch.float64)
        logits = torch.empty(rows, case.vocabulary, dtype=case.dtype, device=device)
        weight = torch.empty(case.vocabulary, case.width, dtype=case.dtype, device=device)
        # a few rows at a time: a plane of float32 numbers would be larger than what is made of it
        for plane, at_once, scale in ((logits, 1, 3.0), (weight, 4096, 1 / 64)):
            for part in plane.split(at_once):
                part.copy_(normal(*part.shape) * scale)
        return Inputs(
            logits=logits,
            banned=torch.tensor([case.vocabulary - 1], device=device),
            states=torch.arange(rows, device=device),
            ids=ids,
            credit=(ids >= 0).double(),
            alpha=0.65 * one,
            beta=0.70 * one,
            open=one.bool(),
            hidden=normal(rows, case.width).to(case.dtype),
            weight=weight,
        )


def paths(case: KernelCase, given: Inputs, kernels: str) -> dict[str, Action]:
    """What is timed with one implementation, by name.

    Args:
        case: The size.
        given: Its inputs.
        kernels: `triton` or `reference`; the caller sets it with `dispatch.using` around the calls.
    """
    x, banned = given.logits, given.banned
    slots = Slots(given.ids, given.credit, given.alpha, given.beta, 0.2, given.open)
    scores = x[:, 0].float().reshape(1, -1)
    level = scores.new_full((1,), 0.9)
    return {
        f"statistics {kernels}": lambda: dispatch.row_statistics(x, banned),
        f"statistics and top two {kernels}": lambda: dispatch.row_statistics(
            x, banned, min(2, case.vocabulary)
        ),
        f"draw {kernels}": lambda: dispatch.gumbel_statistics(x, given.states, 0.8, banned),
        f"credit {kernels}": lambda: dispatch.credit_update(x, slots, banned),
        f"selection {kernels}": lambda: dispatch.threshold_selection(
            scores, given.open.reshape(1, -1), level
        ),
        f"head {kernels}": lambda: dispatch.head_statistics(given.hidden, given.weight, banned),
        f"head then statistics {kernels}": lambda: dispatch.row_statistics(
            given.hidden @ given.weight.T, banned
        ),
    }


def naive_paths(given: Inputs) -> dict[str, Action]:
    """The same quantities as common implementations compute them: dense, in float64, sorted.

    Args:
        given: The inputs of a case.
    """
    rows, vocabulary = given.logits.shape
    dense = torch.zeros(rows, vocabulary, dtype=torch.float32, device=given.logits.device)

    def statistics() -> object:
        probs = given.logits.double().softmax(-1)
        ordered = probs.sort(dim=-1, descending=True).values
        entropy = -(probs * (probs + 1e-10).log()).sum(-1)
        return probs.max(-1), entropy, ordered[:, :2]

    def credit() -> object:
        dense.mul_(0.7)
        probs = given.logits.float().softmax(-1)
        top = probs.max(-1, keepdim=True)
        dense.scatter_add_(-1, top.indices, top.values**0.2)
        fused = given.logits + 0.65 * (dense + 1).log()
        token = fused.argmax(-1, keepdim=True)
        return token, fused.double().softmax(-1).gather(-1, token)

    return {"statistics naive": statistics, "credit naive": credit}


def kernels_start(device: torch.device) -> bool:
    """Whether there is something to time besides plain torch.

    Args:
        device: Where it would run.
    """
    with dispatch.using("auto"):
        return dispatch.uses_triton(torch.empty(0, device=device))


def where_it_fits(action: Callable[[], Found]) -> Found | None:
    """What an action gives, None where memory does not suffice for it.

    Args:
        action: Called without arguments.

    Examples:
        >>> where_it_fits(lambda: 3)
        3
    """
    try:
        return action()
    except torch.OutOfMemoryError:
        pass  # what the action held is let go before memory is given back
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def measure(
    case: KernelCase, watch: Stopwatch, device: torch.device
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Seconds of each path of a case, by name; Triton's only where its kernels start.

    Args:
        case: The size.
        watch: Times each path.
        device: Where it runs.

    Returns:
        The seconds, and the names of paths for which memory did not suffice.
    """
    given = where_it_fits(lambda: Inputs.of(case, device))
    if given is None:
        return {}, ("everything",)
    found: dict[str, float | None] = {}
    implementations = ("triton", "reference") if kernels_start(device) else ("reference",)
    for kernels in implementations:
        with dispatch.using(kernels):
            for name, action in paths(case, given, kernels).items():
                found[name] = where_it_fits(partial(watch, action))
    head = partial(torch.matmul, given.hidden, given.weight.T)
    found["head product alone"] = where_it_fits(lambda: watch(head))
    for name, action in (where_it_fits(lambda: naive_paths(given)) or {}).items():
        found[name] = where_it_fits(partial(watch, action))
    for name in ("statistics naive", "credit naive"):
        found.setdefault(name, None)
    seconds = {name: value for name, value in found.items() if value is not None}
    return seconds, tuple(name for name in found if name not in seconds)


def ratios(seconds: Mapping[str, float], limit: float) -> dict[str, float]:
    """How far each path is from the limit, and what the targets compare; 1 is the ideal.

    Args:
        seconds: Of each path by name, see `measure`.
        limit: Seconds that one read of the logits takes.

    Examples:
        >>> ratios({"draw triton": 3.0, "head product alone": 1.0}, limit=2.0)
        {'draw triton / one read': 1.5}
    """
    found = {
        f"{name} / one read": value / limit
        for name, value in seconds.items()
        if name.split()[0] in ("statistics", "draw", "credit")
    }
    for kernels in ("triton", "reference"):
        for name in ("statistics", "credit"):
            if f"{name} {kernels}" in seconds and f"{name} naive" in seconds:
                base = seconds[f"{name} {kernels}"]
                found[f"{name} naive / {kernels}"] = seconds[f"{name} naive"] / base
        for name in ("head", "head then statistics"):
            if f"{name} {kernels}" in seconds and "head product alone" in seconds:
                base = seconds["head product alone"]
                found[f"{name} {kernels} / product alone"] = seconds[f"{name} {kernels}"] / base
    return found
