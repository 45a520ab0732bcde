"""How long decoding takes, and where a step spends its time.

Machines are shared and noisy, so the variants of a group take turns, round by round, and what is
quoted are medians and their ratios to the group's first variant.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any
from unittest.mock import patch

from torch.utils.benchmark import timer

from dllm_decode.decoding import loop, replay
from dllm_decode.decoding.cache import (
    BlockExact,
    CertaintyCache,
    DelayedCache,
    DualCache,
    NoCache,
    PeriodicCache,
    PrefixCache,
    VicinityCache,
)
from dllm_decode.decoding.denoiser import Capabilities
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder, Run
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.passes import ModelPasses
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.types import Request

BATCHES = (1, 4, 8, 16, 32)
CANVASES = (64, 128, 256, 512)
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
            begun = timer()
            results[variant.name] = variant.engine.decode(variant.request)
            taken = timer() - begun
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


def batch_sizes(decoder: Decoder, prompts: Sequence[Sequence[int]], rows: int) -> list[Contender]:
    """Prompts of mixed lengths, one to 32 at once.

    Args:
        decoder: The parts.
        prompts: Token ids of each.
        rows: Of the request, and the most at once.
    """
    request = repeated(prompts, rows, 32)
    sizes = [batch for batch in BATCHES if batch <= rows]
    return [Contender(f"{batch} at once", Engine(decoder, batch), request) for batch in sizes]


def ways_to_batch(
    decoder: Decoder, prompts: Sequence[Sequence[int]], rows: int, batch: int = 8
) -> list[Contender]:
    """Answers of 2 to 100 tokens: static with finished rows that stay, static, and continuous.

    Args:
        decoder: The parts.
        prompts: Token ids of each.
        rows: Of the request.
        batch: Rows at once.
    """
    request = spread_request(repeated(prompts, rows, 100), 2, 100)
    stay = padded_to_the_slowest(request, batch)
    static = Engine(decoder, batch, batching="static")
    return [
        Contender("static, finished rows stay", static, stay, sum(request.lengths)),
        Contender("static", static, request),
        Contender("continuous", Engine(decoder, batch), request),
    ]


def cache_policies(
    decoder: Decoder, prompts: Sequence[Sequence[int]], columns: int
) -> list[Contender]:
    """Every policy that fits the model, on one canvas.

    Args:
        decoder: The parts.
        prompts: Token ids of each; the first one is decoded.
        columns: Generated columns.
    """
    grid = Capabilities.of(decoder.denoiser).block_length
    policies = [
        NoCache(), PrefixCache(), DualCache(), VicinityCache(), PeriodicCache(), DelayedCache(),
        CertaintyCache(), *([BlockExact(grid)] if grid else []),
    ]  # fmt: skip
    request = repeated(prompts, 1, columns)
    return [
        Contender(type(policy).__name__, Engine(replace(decoder, cache=policy), 1), request)
        for policy in policies
    ]


def canvas_lengths(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> list[Contender]:
    """No cache and `DualCache`, on canvases of 64 to 512 columns.

    Args:
        decoder: The parts.
        prompts: Token ids of each; the first one is decoded.
    """
    plain, dual = (Engine(replace(decoder, cache=cache), 1) for cache in (NoCache(), DualCache()))
    return [
        Contender(f"{name}, {length}", engine, repeated(prompts, 1, length))
        for length in CANVASES
        for name, engine in (("none", plain), ("dual", dual))
    ]


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
        ("batching", "continuous", "static", 1.0),
        ("cache", "DualCache", "NoCache", 1.5),
    ):
        if (measured := ratio(group, name, base)) is not None:
            yield Target(f"{group}: {name} against {base} [tokens/s]", measured, low=low)
    prefix, dual = (ratio("cache", name, "NoCache") for name in ("PrefixCache", "DualCache"))
    if prefix is not None and dual is not None:
        yield Target("cache: PrefixCache against NoCache [tokens/s]", prefix, low=1.0, high=dual)


# Where a step spends its time: what it calls is timed in the places where it is called.


class Clock:
    """Seconds per part; what is timed inside a part counts for the inner one only.

    A device has finished its work whenever the time is read.

    Attributes:
        spent: Seconds of each part.
        times: How often each was timed.

    Examples:
        >>> clock = Clock()
        >>> with clock.part("warming"):
        ...     pass
        >>> dict(clock.times)
        {'warming': 1}
    """

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.times: dict[str, int] = defaultdict(int)
        self._inner = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block of code.

        Args:
            name: Of the part that its time belongs to.
        """
        begun = timer()
        self._inner.append(0.0)
        try:
            yield
        finally:
            taken = timer() - begun
            self.spent[name] += taken - self._inner.pop()
            self.times[name] += 1
            self._inner[-1] += taken

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed.

        Args:
            name: Of the part that its time belongs to.
            call: Any function or method.
        """

        @wraps(call)
        def looked_at(*given: Any, **named: Any) -> Any:
            with self.part(name):
                return call(*given, **named)

        return looked_at


@contextmanager
def watched(decoder: Decoder, clock: Clock) -> Iterator[None]:
    """Time the parts of every step of a decoder, which itself stays as it is.

    Args:
        decoder: Its methods are replaced in their classes, so nothing else should decode meanwhile.
        clock: Counts the seconds.
    """
    sampler, model_pass = type(decoder.sampler), ModelPasses._pass_of

    def predicted(*given: Any) -> Prediction:
        pred = plain_predict(*given)
        _ = pred.confidence  # statistics are lazy: ask here, so that they are timed here
        return pred

    plain_predict = sampler.predict
    calls: list[tuple[Any, str, Callable[..., Any]]] = [
        (ModelPasses, "_pass_of", lambda *given: clock.timed("forward", model_pass(*given))),
        (sampler, "predict", clock.timed("statistics", predicted)),
        # a graph on the device could not be looked into
        (replay, "replay_obstacle", lambda parts: None),
    ]
    for part, owner, names in (
        ("strategy", type(decoder.strategy), ("decide", "horizon", "lingers")),
        ("settle", loop, ("settle",)),
        ("cache", type(decoder.cache), ("plan", "note")),
        ("loop", Run, ("advance",)),
    ):
        calls += [(owner, name, clock.timed(part, getattr(owner, name))) for name in names]
    with ExitStack() as stack:
        for owner, name, call in calls:
            stack.enter_context(patch.object(owner, name, call))
        yield


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
    clock, engine = Clock(), Engine(decoder, max_batch)
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    for number in range(rounds + 1):
        clock.spent.clear()
        clock.times.clear()
        with clock.part("engine"), watched(decoder, clock):
            engine.decode(request)
        for part in PARTS if number else ():
            found[part].append(clock.spent[part] / clock.times["forward"])
    return {part: statistics.median(seconds) for part, seconds in found.items()}
