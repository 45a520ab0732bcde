"""Writes in place to what plugins only may read, found by the version counters of tensors.

Views, snapshots and predictions are not copied for every plugin, which would cost more than the
rest of the step. With `debug=True` every call of a plugin, an observer or the model is followed by
a look at the version counters of all tensors that it was given: some hundred reads in Python per
step, nothing on the device.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from dllm_decode.decoding.cache import Store
from dllm_decode.decoding.composition import Composition
from dllm_decode.decoding.observer import Observer
from dllm_decode.decoding.returned import named
from dllm_decode.decoding.types import Memory
from dllm_decode.errors import PluginError
from dllm_decode.kernels.lazy import LazyFields

Parts = TypeVar("Parts", bound=Composition)
Part = TypeVar("Part")
Record = TypeVar("Record", bound=LazyFields)

# Methods that are handed tensors; `probe` runs the model, which has a guard of its own.
_METHODS = (
    "begin", "decide", "adjust", "keep", "horizon", "lingers", "closes", "window", "plan", "note",
    "predict",
)  # fmt: skip


def guarded(parts: Parts) -> Parts:
    """The same parts, each of which is refused as soon as it writes to what it was handed."""

    def twin(key: str, part: Part) -> Part:
        return _twin(f"strategy.{key}" if key else "strategy", part)

    return replace(
        parts,
        strategy=parts.strategy.with_parts(twin),
        schedule=_twin("schedule", parts.schedule),
        cache=_twin("cache", parts.cache),
        sampler=_twin("sampler", parts.sampler),
        observers=tuple(_GuardedObserver(observer) for observer in parts.observers),
    )


def with_own_planes(record: Record) -> Record:
    """A copy none of whose planes has a second name, and none of which is still to be computed.

    A tensor that is made while a plugin is at work has no version from before.
    """
    values = vars(record.known())
    planes = {name: value.clone() for name, value in values.items() if isinstance(value, Tensor)}
    copied: Record = record.but(**planes)
    return copied


def read_only(call: Callable[..., Any], who: str) -> Callable[..., Any]:
    """A call that raises `PluginError` in somebody's name if it writes to its arguments.

    Args:
        call: a method of a plugin.
        who: the plugin, for messages.
    """

    @functools.wraps(call)
    def checked(*given: Any) -> Any:
        given = tuple(with_own_planes(v) if isinstance(v, LazyFields) else v for v in given)
        before = [
            (name, plane, plane._version) for value in given for name, plane in _planes(value)
        ]
        answer = call(*given)
        for name, plane, version in before:
            if plane._version != version:
                raise PluginError(
                    f"{who} wrote to {name or 'a tensor'} that it was handed; only memories may "
                    "be written to in place: use clone(), or functions that make new tensors"
                )
        return answer

    return checked


def _planes(value: Any, name: str = "", depth: int = 4) -> Iterator[tuple[str, Tensor]]:
    """The tensors in an argument, each with the name under which the plugin reached it."""
    if isinstance(value, Tensor):
        if not value.is_inference():
            yield name, value
        return
    inside = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
    if depth == 0 or inside is None or isinstance(value, Memory | Store):
        return
    for key, entry in list(inside.items()):
        yield from _planes(entry, f"{name}.{key}" if name else str(key), depth - 1)


def _twin(place: str, part: Part) -> Part:
    """A copy whose methods are watched; parts are frozen, so that a copy does the same."""
    twin = copy.copy(part)
    for name in _METHODS if hasattr(twin, "__dict__") else ():
        method = getattr(part, name, None)
        if callable(method):
            object.__setattr__(twin, name, read_only(method, named(place, part)))
    return twin


class _GuardedObserver(Observer):
    """Passes everything on, watched."""

    def __init__(self, inner: Observer) -> None:
        who = named("observer", inner)
        self.start = read_only(inner.start, who)  # type: ignore[method-assign]
        self.step = read_only(inner.step, who)  # type: ignore[method-assign]
        self.finish = inner.finish  # type: ignore[method-assign]
