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
from unittest.mock import patch

import torch
from torch import Tensor

from dllm_decode.decoding import loop
from dllm_decode.decoding.cache import CachePolicy, Plan, Refresh, Store
from dllm_decode.decoding.denoiser import Capabilities, Denoiser
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder, Run
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.prediction import HiddenStates, Prediction
from dllm_decode.decoding.sampling import Sampler
from dllm_decode.decoding.settle import Faults, settle
from dllm_decode.decoding.strategy import Progress, Strategy
from dllm_decode.decoding.types import Change, Decision, Memory, Request, Snapshot, StepView
from dllm_decode.kernels.noise import Noise

PARTS = ("forward", "statistics", "strategy", "settle", "cache", "loop", "engine")


@dataclass(frozen=True)
class Contender:
    """One thing to time.

    Attributes:
        name: Within its group.
        engine: Decodes the request.
        request: What is decoded.
        tokens: How many count, None for all that are delivered.
    """

    name: str
    engine: Engine
    request: Request
    tokens: int | None = None


@dataclass(frozen=True)
class Timing:
    """What one variant took.

    Attributes:
        group: In which it was compared.
        name: Of the variant.
        seconds: Wall time of each round.
        tokens: Delivered in a round.
        forwards: Of all rows in a round.
        ratio: Tokens per second relative to the group's first variant, from medians.

    Examples:
        >>> timing = Timing("batch", "8 at once", (2.0, 4.0, 3.0), tokens=60, forwards=9, ratio=1.0)
        >>> timing.tokens_per_second
        20.0
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
    variants: Sequence[Contender],
    rounds: int,
    tick: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time the variants of a group in turns.

    Args:
        group: What to call the comparison.
        variants: The first one is what the others are compared with.
        rounds: How often each variant is timed, after one run that does not count; 1 or more.
        tick: Called after each run.
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
            tokens=variant.tokens or sum(map(len, results[variant.name].sequences)),
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
    """The request with lengths drawn evenly from an interval.

    Args:
        request: Its prompts are kept.
        shortest: Fewest generated columns of a row.
        longest: Most generated columns of a row.
        seed: Of the draw.
    """
    draw = random.Random(seed)
    lengths = tuple(draw.randint(shortest, longest) for _ in range(request.rows))
    return replace(request, max_new_tokens=lengths)


def repeated(prompts: Sequence[Sequence[int]], rows: int, length: int) -> Request:
    """A request that goes through some prompts again and again.

    Args:
        prompts: Token ids of each.
        rows: How many rows the request has.
        length: Generated columns per row.
    """
    chosen = tuple(tuple(prompts[row % len(prompts)]) for row in range(rows))
    return Request(chosen, length)


def padded_to_the_slowest(request: Request, batch: int) -> Request:
    """The request as it costs in batches whose finished rows stay: each row as long as the longest.

    Args:
        request: Its prompts are kept.
        batch: Rows that are decoded together, in request order.
    """
    lengths = request.lengths
    slowest = [max(lengths[row - row % batch :][:batch]) for row in range(request.rows)]
    return replace(request, max_new_tokens=tuple(slowest))


@dataclass(frozen=True)
class Target:
    """A figure to be reached.

    Attributes:
        what: In words.
        measured: The figure.
        low: Its lower limit.
        high: Its upper limit.

    Examples:
        >>> target = Target("speedup", 1.4, low=1.3)
        >>> target.met, target.goal
        (True, 'at least 1.3')
    """

    what: str
    measured: float
    low: float = 0.0
    high: float = float("inf")

    @property
    def met(self) -> bool:
        """Whether the figure lies within its limits."""
        return self.low <= self.measured <= self.high

    @property
    def goal(self) -> str:
        """The interval in words."""
        if self.high == float("inf"):
            return f"at least {self.low:.3g}"
        bound = f"at most {self.high:.3g}"
        return bound if self.low == 0.0 else f"at least {self.low:.3g}, {bound}"


def targets(step: Mapping[str, Mapping[str, float]], timings: Sequence[Timing]) -> Iterator[Target]:
    """The targets that can be judged from what was measured.

    Args:
        step: Shares of a step by rows at once, see `shares`.
        timings: Of the groups of `task=bench`.
    """
    for rows, high in (("1", 15.0), ("32", 8.0)):
        if rows in step:
            outside = 100 * (1 - step[rows]["forward"])
            yield Target(f"time outside the forward pass at batch {rows} [%]", outside, high=high)
    rate = {(one.group, one.name): one.tokens_per_second for one in timings}

    def ratio(group: str, name: str, base: str) -> float | None:
        pair = (group, name), (group, base)
        return rate[pair[0]] / rate[pair[1]] if all(one in rate for one in pair) else None

    for group, name, base, low in (
        ("batch", "32 at once", "1 at once", 2.3),
        ("batching", "continuous", "static, finished rows stay", 1.3),
        ("batching", "continuous", "static", 1.3),
        ("cache", "DualCache", "NoCache", 1.5),
    ):
        if (measured := ratio(group, name, base)) is not None:
            yield Target(f"{group}: {name} against {base} [tokens/s]", measured, low=low)
    prefix, dual = (ratio("cache", name, "NoCache") for name in ("PrefixCache", "DualCache"))
    if prefix is not None and dual is not None:
        yield Target("cache: PrefixCache against NoCache [tokens/s]", prefix, low=1.0, high=dual)


# Where a step spends its time: every part is wrapped in one that looks at the clock.


class Clock:
    """Seconds per part; what is timed inside a part counts for the inner one only.

    Args:
        denoiser: On its device pending work is waited for before the time is read.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> clock = Clock(Copy(n=3))
        >>> with clock.part("warming"):
        ...     pass
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.times: dict[str, int] = defaultdict(int)
        self._denoiser = denoiser
        self._inner = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block of code.

        Args:
            name: Of the part that its time belongs to.
        """
        begun = _now(self._denoiser)
        self._inner.append(0.0)
        try:
            yield
        finally:
            taken = _now(self._denoiser) - begun
            self.spent[name] += taken - self._inner.pop()
            self.times[name] += 1
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

    @property
    def before_head(self) -> Callable[..., HiddenStates] | None:
        return self._timed(Capabilities.of(self.inner).before_head)

    @property
    def states(self) -> Callable[..., Tensor] | None:
        return self._timed(Capabilities.of(self.inner).states)

    def _timed(self, inner: Callable[..., Any] | None) -> Callable[..., Any] | None:
        def timed(*given: Any) -> Any:
            assert inner is not None
            with self.clock.part("forward"):
                return inner(*given)

        return inner and timed


@dataclass(frozen=True)
class _TimedSampler(Sampler):
    inner: Sampler
    clock: Clock

    @property
    def reshapes(self) -> bool:
        return self.inner.reshapes

    @property
    def takes_hidden(self) -> bool:
        return self.inner.takes_hidden

    def predict(self, logits: Any, banned: Tensor, noise: Noise) -> Prediction:
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

    @property
    def revocable(self) -> bool:  # type: ignore[override]
        return self.inner.revocable

    @property
    def revises(self) -> bool:  # type: ignore[override]
        return self.inner.revises

    @property
    def always_commits(self) -> bool:  # type: ignore[override]
        return self.inner.always_commits

    @property
    def ranks(self) -> bool:  # type: ignore[override]
        return self.inner.ranks

    def begin(self, request: Request, snapshot: Snapshot) -> Memory | None:
        return self.inner.begin(request, snapshot)

    def lingers(
        self, snapshot: Snapshot, view: StepView, change: Change, memory: Any
    ) -> Tensor | None:
        with self.clock.part("strategy"):
            return self.inner.lingers(snapshot, view, change, memory)

    def decide(self, view: StepView, memory: Any) -> Decision:
        with self.clock.part("strategy"):
            return self.inner.decide(view, memory)

    def horizon(self, snapshot: Snapshot, view: StepView, change: Change, memory: Any) -> Tensor:
        with self.clock.part("strategy"):
            return self.inner.horizon(snapshot, view, change, memory)


@dataclass(frozen=True)
class _TimedCache(CachePolicy):
    inner: CachePolicy
    clock: Clock

    @property
    def stores(self) -> bool:  # type: ignore[override]
        return self.inner.stores

    def begin(self, request: Request, snapshot: Snapshot) -> Memory | None:
        return self.inner.begin(request, snapshot)

    def plan(self, snapshot: Snapshot, index: Tensor, fresh: Tensor, memory: Any) -> Refresh | None:
        with self.clock.part("cache"):
            return self.inner.plan(snapshot, index, fresh, memory)

    def recompute(self, step: Any) -> Tensor:
        return self.inner.recompute(step)

    def note(self, change: Change, memory: Any) -> None:
        with self.clock.part("cache"):
            self.inner.note(change, memory)


class _TimedRun(Run):
    clock: Clock

    def step(self) -> None:
        with self.clock.part("loop"):
            super().step()


@contextmanager
def _timed_settle(clock: Clock) -> Iterator[None]:
    """`settle` is no plugin that could be wrapped, so it is replaced in the loop."""
    plain = settle

    def timed(view: StepView, decision: Decision, strategy: Strategy) -> tuple[Change, Faults]:
        with clock.part("settle"):
            return plain(view, decision, strategy)

    with patch.object(loop, "settle", timed):
        yield


@dataclass(frozen=True)
class _TimedDecoder(Decoder):
    clock: Clock | None = None

    def begin(self, request: Request, capacity: int | None = None) -> Run:
        assert self.clock is not None
        run = _TimedRun(self, request, capacity)
        run.clock = self.clock
        return run


def shares(decoder: Decoder, request: Request, max_batch: int, rounds: int) -> Mapping[str, float]:
    """Share of the time of a decode that each part takes, summing to 1.

    Args:
        decoder: The parts.
        request: What is decoded.
        max_batch: Rows at once.
        rounds: See `step_seconds`.
    """
    seconds = step_seconds(decoder, request, max_batch, rounds)
    whole = sum(seconds.values())
    return {part: spent / whole for part, spent in seconds.items()}


def step_seconds(
    decoder: Decoder, request: Request, max_batch: int, rounds: int
) -> Mapping[str, float]:
    """Seconds that each part of a step takes, averaged over the forward passes of a decode.

    Parts: `forward`, `statistics` (of the rows of logits, with the output head where it is fused),
    `strategy` (transforms, selection, stop rules), `settle` (decision to change), `cache` (plans),
    `loop` (schedule, canvas, bookkeeping, the sync) and `engine` (rows that join).

    Args:
        decoder: The parts.
        request: What is decoded.
        max_batch: Rows at once.
        rounds: Decodes of which the median counts, after one that does not.
    """
    clock = Clock(decoder.denoiser)
    timed = _TimedDecoder(
        denoiser=_TimedDenoiser(decoder.denoiser, clock),
        strategy=_TimedStrategy(decoder.strategy, clock),
        schedule=decoder.schedule,
        cache=_TimedCache(decoder.cache, clock),
        sampler=_TimedSampler(decoder.sampler, clock),
        sync_every=decoder.sync_every,
        clock=clock,
    )
    engine = Engine(timed, max_batch)
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    for number in range(rounds + 1):
        clock.spent.clear()
        clock.times.clear()
        with clock.part("engine"), _timed_settle(clock):
            engine.decode(request)
        for part in PARTS if number else ():
            found[part].append(clock.spent[part] / clock.times["forward"])
    return {part: statistics.median(seconds) for part, seconds in found.items()}
