"""How long decoding takes, and where a step spends its time.

Machines are shared and noisy, so the variants of a group take turns, round by round, and what is
quoted are medians and their ratios to the group's first variant.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dllm_decode.cache import CachePolicy, Plan, Store
from dllm_decode.denoiser import Denoiser
from dllm_decode.engine import Engine
from dllm_decode.loop import Decoder
from dllm_decode.noise import Noise
from dllm_decode.prediction import Prediction
from dllm_decode.sampling import Sampler
from dllm_decode.strategy import Progress, Strategy
from dllm_decode.types import Board, Change, Decision, Memory, Request, Result, StepView

PARTS = ("forward", "statistics", "strategy", "cache", "loop")


@dataclass(frozen=True)
class Variant:
    """One thing to time: a name within its group, and an engine with a request to decode."""

    name: str
    engine: Engine
    request: Request


@dataclass(frozen=True)
class Timing:
    """What one variant took.

    seconds: wall time of each round; tokens: delivered in a round; forwards: of all rows in a
    round; ratio: tokens per second relative to the group's first variant, from medians.
    """

    group: str
    name: str
    seconds: tuple[float, ...]
    tokens: int
    forwards: int
    ratio: float

    @property
    def tokens_per_second(self) -> float:
        """Delivered tokens over the median wall time of a round."""
        return self.tokens / statistics.median(self.seconds)


def compare(
    group: str,
    variants: Sequence[Variant],
    rounds: int,
    tick: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time the variants of a group in turns.

    rounds: times each variant is run after one that does not count, 1 or more; tick: called after
    each run.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    results: dict[str, Result] = {}
    for number in range(rounds + 1):
        for variant in variants:
            begun = _now(variant.engine.decoder.denoiser)
            results[variant.name] = variant.engine.decode(variant.request)
            taken = _now(variant.engine.decoder.denoiser) - begun
            if number:
                seconds[variant.name].append(taken)
            tick()
    timings = [
        Timing(
            group=group,
            name=variant.name,
            seconds=tuple(seconds[variant.name]),
            tokens=sum(map(len, results[variant.name].sequences)),
            forwards=sum(results[variant.name].forwards),
            ratio=1.0,
        )
        for variant in variants
    ]
    base = timings[0].tokens_per_second
    return [replace(timing, ratio=timing.tokens_per_second / base) for timing in timings]


def _now(denoiser: Denoiser) -> float:
    if denoiser.device.type == "cuda":
        torch.cuda.synchronize(denoiser.device)
    return time.perf_counter()


def spread_request(request: Request, shortest: int, longest: int, seed: int = 0) -> Request:
    """The request with lengths drawn evenly from [shortest, longest] [tokens], seeded."""
    draw = random.Random(seed)
    lengths = tuple(draw.randint(shortest, longest) for _ in range(request.rows))
    return replace(request, max_new_tokens=lengths)


def repeated(prompts: Sequence[Sequence[int]], rows: int, length: int) -> Request:
    """A request of `rows` rows that cycles through prompts; length: columns generated per row."""
    chosen = tuple(tuple(prompts[row % len(prompts)]) for row in range(rows))
    return Request(chosen, length)


# Where a step spends its time: every part is wrapped in one that looks at the clock.


class Clock:
    """Seconds per part; what is timed inside a part counts for the inner one only."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._denoiser = denoiser
        self._inner = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block of code."""
        begun = _now(self._denoiser)
        self._inner.append(0.0)
        try:
            yield
        finally:
            taken = _now(self._denoiser) - begun
            self.spent[name] += taken - self._inner.pop()
            self._inner[-1] += taken


@dataclass(frozen=True)
class _TimedDenoiser:
    inner: Any
    clock: Clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def allocate(self, rows: int, columns: int) -> Store:
        store: Store = self.inner.allocate(rows, columns)
        return store

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        with self.clock.part("forward"):
            logits: Tensor = self.inner(tokens, live, index, plan)
        return logits


@dataclass(frozen=True)
class _TimedSampler(Sampler):
    inner: Sampler
    clock: Clock

    def predict(self, logits: Tensor, banned: Tensor, noise: Noise) -> Prediction:
        with self.clock.part("statistics"):
            pred = self.inner.predict(logits, banned, noise)
            _ = pred.confidence  # statistics are lazy: ask here, so that they are timed here
        return pred


@dataclass(frozen=True)
class _TimedStrategy(Strategy):
    inner: Strategy
    clock: Clock

    @property
    def progress(self) -> Progress:
        return self.inner.progress

    def begin(self, request: Request, board: Board) -> Memory | None:
        return self.inner.begin(request, board)

    def decide(self, view: StepView, memory: Any) -> Decision:
        with self.clock.part("strategy"):
            return self.inner.decide(view, memory)

    def horizon(self, board: Board, view: StepView, change: Change, memory: Any) -> Tensor:
        with self.clock.part("strategy"):
            return self.inner.horizon(board, view, change, memory)


@dataclass(frozen=True)
class _TimedCache(CachePolicy):
    inner: CachePolicy
    clock: Clock

    @property
    def stores(self) -> bool:  # type: ignore[override]
        return self.inner.stores

    def begin(self, request: Request, board: Board) -> Memory | None:
        return self.inner.begin(request, board)

    def plan(self, board: Board, index: Tensor, fresh: Tensor, memory: Any) -> Plan:
        with self.clock.part("cache"):
            return self.inner.plan(board, index, fresh, memory)

    def recompute(self, step: Any) -> Tensor:
        return self.inner.recompute(step)

    def note(self, change: Change, memory: Any) -> None:
        with self.clock.part("cache"):
            self.inner.note(change, memory)


def shares(decoder: Decoder, request: Request, max_batch: int, rounds: int) -> Mapping[str, float]:
    """Share of the time of a decode that each part takes, summing to 1.

    Parts: `forward`, `statistics` (of the rows of logits), `strategy` (selection and stop rules),
    `cache` (plans), and `loop` (schedule, settle, canvas, bookkeeping, engine).
    max_batch: rows at once; rounds: decodes that are added up, after one that does not count.
    """
    clock = Clock(decoder.denoiser)
    timed = replace(
        decoder,
        denoiser=_TimedDenoiser(decoder.denoiser, clock),
        strategy=_TimedStrategy(decoder.strategy, clock),
        sampler=_TimedSampler(decoder.sampler, clock),
        cache=_TimedCache(decoder.cache, clock),
    )
    engine = Engine(timed, max_batch)
    for number in range(rounds + 1):
        if number == 1:
            clock.spent.clear()
        with clock.part("loop"):
            engine.decode(request)
    whole = sum(clock.spent.values())
    return {part: clock.spent[part] / whole for part in PARTS}
