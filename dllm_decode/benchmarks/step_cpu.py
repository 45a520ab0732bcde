"""A step without a model: what is left of it when the forward pass is free."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from timeit import timeit
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.loop import Decoder, Run
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Request, Vocab


@dataclass(frozen=True)
class FreeModel:
    """A denoiser whose logits are made once; nothing in them reaches a threshold.

    Attributes:
        logits: (B, W, V), given to every pass.
        max_length: Longest canvas in tokens, None for any.

    Examples:
        >>> model = FreeModel.of(rows=1, window=4, vocabulary=9)
        >>> model.logits.shape, model.vocab.size
        (torch.Size([1, 4, 9]), 9)
    """

    logits: Tensor
    max_length: int | None = None

    @staticmethod
    def of(rows: int, window: int, vocabulary: int) -> FreeModel:
        """The model of some sizes, the same each time."""
        generator = torch.Generator().manual_seed(0)
        return FreeModel(torch.randn(rows, window, vocabulary, generator=generator))

    @property
    def vocab(self) -> Vocab:
        """All ids of the logits; the last one is the mask."""
        size = self.logits.shape[-1]
        return Vocab(size, size - 1)

    @property
    def device(self) -> torch.device:
        """Where the logits are: on the processor."""
        return self.logits.device

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """The logits, whatever is asked."""
        return self.logits


class Operators(TorchDispatchMode):
    """Counts the operators that torch launches, views included.

    Examples:
        >>> with Operators() as operators:
        ...     _ = torch.zeros(3) + 1
        >>> operators.seen.total()
        2
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Count one, and run it."""
        self.seen[str(function)] += 1
        return function(*args, **(kwargs or {}))


def one_read(logits: Tensor) -> None:
    """The least that a rule needs of the logits: maximum and logarithm of the sum."""
    flat = logits.flatten(0, 1)
    flat.max(-1)
    flat.logsumexp(-1)


def measure(
    model: FreeModel, strategies: Mapping[str, Strategy], rounds: int
) -> Iterator[dict[str, Any]]:
    """Time steps of each strategy in turns with one read of the logits.

    Args:
        model: Gives the sizes.
        strategies: By name.
        rounds: Decodes of one window each, of whose steps the medians are taken; 1 or more.

    Returns:
        Per strategy its seconds of processor time per step, those of one read, their ratio, and
        operators per step.
    """
    rows, window, _ = model.logits.shape
    request = Request(((0,),) * rows, window)
    spent: dict[str, list[float]] = {name: [] for name in (*strategies, "")}
    operators: dict[str, int] = {}
    once: Any = {"timer": time.thread_time, "number": 1}
    for number in range(rounds + 1):
        for name, strategy in strategies.items():
            run = Run(Decoder(model, strategy, Blocks(window)), request)
            run.admit(range(rows))
            while run.live:
                if number:
                    spent[name].append(timeit(run.step, **once))
                    spent[""].append(timeit(lambda: one_read(model.logits), **once))
                    continue
                with Operators() as counted:  # the first decode warms up
                    run.step()
                if run.live:
                    operators[name] = counted.seen.total()
    read = statistics.median(spent[""])
    for name in strategies:
        seconds = statistics.median(spent[name])
        yield {
            "strategy": name,
            "rows": rows,
            "seconds": seconds,
            "seconds_one_read": read,
            "ratio": seconds / read,
            "operators": operators[name],
        }
