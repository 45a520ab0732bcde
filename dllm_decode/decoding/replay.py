"""What follows a forward pass, captured once per shape as a CUDA graph and replayed.

After the pass a step is a function of tensors: what stands in the batch and what the model gave go
in, what stands there afterwards and the numbers of the host's one sync come out. Its operators are
few and small, so that on a GPU the host takes longer to launch them than the device to run them. A
graph launches them at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, Protocol

import torch
from torch import Tensor

from dllm_decode.decoding.batch import Batch
from dllm_decode.decoding.composition import Composition
from dllm_decode.decoding.monitor import PendingCheck
from dllm_decode.decoding.types import Memory
from dllm_decode.kernels.dispatch import lost_device

log = logging.getLogger(__name__)


SHAPES = 64  # steps of different shapes before replays are given up


def say(why: str) -> None:
    """Log why steps are not replayed."""
    log.warning("steps are not replayed as CUDA graphs: %s", why)


class Followed(Protocol):
    """A run, as far as this module is concerned."""

    batch: Batch

    def follow(self, values: Tensor) -> PendingCheck:
        """What follows from what a pass gave."""


class CannotReplay(Exception):
    """Why a step cannot be replayed.

    Examples:
        >>> str(CannotReplay("a part asks the model"))
        'a part asks the model'
    """


class ReplayedSteps:
    """Calls `follow` of a run as a graph, where it can be one.

    The first step of a shape runs as it is, which compiles kernels and uploads constants; the
    second is captured. Where that fails, all steps run as they are from then on, and the log says
    why once.

    Args:
        obstacle: why nothing is to be captured, empty for nothing in the way.

    Attributes:
        replays: steps that were replayed.

    Examples:
        >>> ReplayedSteps("it is a processor").replays
        0
    """

    def __init__(self, obstacle: str = "") -> None:
        self.replays = 0
        self._obstacle = obstacle
        self._met: set[object] = set()
        self._graphs: dict[object, _Graph] = {}

    def __call__(self, run: Followed, values: Tensor) -> PendingCheck:
        """What follows from a pass, `run.follow(values)`.

        Args:
            run: the decode, the same in every call. It is not kept: a run that holds on to itself
                would stay in memory until Python looks for such circles.
            values: (B, W, ...) logits, or the states in front of the output head.
        """
        if self._obstacle:
            return run.follow(values)
        batch = run.batch
        key = (values.shape, *(tensor.shape for part in batch.state for tensor in leaves(part)))
        if key in self._graphs:
            self.replays += 1
            return self._graphs[key].replay(values)
        if key not in self._met:
            self._met.add(key)
            if len(self._met) > SHAPES and not self._graphs:
                self._give_up(f"no shape of a step came twice in {SHAPES}")
            return run.follow(values)
        try:
            self._graphs[key] = _Graph(run, values)
        except (CannotReplay, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or lost_device(error):
                raise
            self._give_up(str(error).splitlines()[0])
            return run.follow(values)
        self.replays += 1
        return self._graphs[key].check

    def _give_up(self, why: str) -> None:
        self._obstacle = why
        say(why)


class _Graph:
    """One captured step, and the memory it reads and writes."""

    def __init__(self, run: Followed, values: Tensor) -> None:
        batch = run.batch
        self._batch = batch
        self._values = values.clone()
        before = dict(vars(batch))
        own = [tensor for part in batch.state for tensor in leaves(part)]
        was, self._buffers = _shape(batch), [tensor.clone() for tensor in own]
        self._settle(self._buffers)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph):
                batch.renew_noise()
                self.check = run.follow(self._values)
                after = [tensor for part in batch.state for tensor in leaves(part)]
                if batch.asked:
                    raise CannotReplay("a part asks the model for further passes")
                if _shape(batch) != was:
                    raise CannotReplay("a part changes what it remembers in number, shape or kind")
                pairs = zip(self._buffers, after, strict=True)
                changed = [(own, new.clone()) for own, new in pairs if own is not new]
                for buffer, new in changed:
                    buffer.copy_(new)
        except BaseException:
            vars(batch).update(before)
            self._settle(own)
            raise
        self._settle(self._buffers)
        self._graph.replay()

    def replay(self, values: Tensor) -> PendingCheck:
        """The step with other numbers; what it returns is written again by the next replay."""
        batch = self._batch
        now = (tensor for part in batch.state for tensor in leaves(part))
        for buffer, tensor in zip(self._buffers, now, strict=True):
            if tensor is not buffer:
                buffer.copy_(tensor)
        self._values.copy_(values)
        self._graph.replay()
        self._settle(self._buffers)
        batch.count_step()
        return self.check

    def _settle(self, tensors: list[Tensor]) -> None:
        """Let the batch stand on these tensors; nothing that was derived from others is left."""
        rest = iter(tensors)
        for part in self._batch.state:
            fill(part, rest)
        self._batch.forget_snapshot()


def leaves(part: Any) -> Iterator[Tensor]:
    """The tensors of a memory, nested memories and dicts included, in a fixed order."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, Memory):
        for entry in fields(part):
            yield from leaves(getattr(part, entry.name))
    elif isinstance(part, dict):
        for value in part.values():
            yield from leaves(value)


def fill(part: Any, tensors: Iterator[Tensor]) -> Any:
    """Put tensors in the places that `leaves` names; memories are written, dicts made anew.

    Args:
        part: a memory, a dict, a tensor or any other value.
        tensors: what to put there, in the order of `leaves`.
    """
    if isinstance(part, Tensor):
        return next(tensors)
    if isinstance(part, Memory):
        for entry in fields(part):
            setattr(part, entry.name, fill(getattr(part, entry.name), tensors))
    if isinstance(part, dict):
        return {name: fill(value, tensors) for name, value in part.items()}
    return part


def _shape(batch: Batch) -> list[object]:
    """What must be the same after a step: where tensors are, their shapes, and all other values."""

    def described(part: Any) -> object:
        if isinstance(part, Tensor):
            return tuple(part.shape), part.dtype
        if isinstance(part, Memory):
            entries = (entry.name for entry in fields(part) if not entry.name.startswith("_"))
            return type(part), [(name, described(getattr(part, name))) for name in entries]
        if isinstance(part, dict):
            return [(name, described(value)) for name, value in part.items()]
        return part

    return [described(part) for part in batch.state]


def replay_obstacle(parts: Composition) -> str | None:
    """Why the steps of a decode cannot be replayed, "" where they can, None where nobody asked.

    Args:
        parts: the model, which says whether it asks for replays, and the plugins.
    """
    if not parts.able.replays or parts.denoiser.device.type != "cuda":
        return None
    if parts.sync_every > 1 and not parts.cache.stores:
        return f"sync_every={parts.sync_every} keeps steps until the next sync; use 1"
    if parts.record or parts.observers:
        return "the trace and observers keep what a step changed; decode without them"
    if parts.debug:
        return "debug=true looks at every step on the host"
    return ""


def follower(parts: Composition) -> Callable[[Followed, Tensor], PendingCheck]:
    """How a run follows its passes: `run.follow`, replayed where that is asked for and possible.

    Args:
        parts: the model, which says whether it asks for replays, and the plugins.
    """
    obstacle = replay_obstacle(parts)
    if obstacle:
        say(obstacle)
    return _follow if obstacle is None or obstacle else ReplayedSteps()


def _follow(run: Followed, values: Tensor) -> PendingCheck:
    return run.follow(values)
