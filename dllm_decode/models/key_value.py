"""The positional key/value store: every layer holds every canvas column of every row."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dllm_decode.decoding.selection import numbers


class PositionalLayer:
    """Keys and values of one layer in preallocated buffers of shape (B, heads, L, size).

    A pass writes the columns it computed, at per-row places, and gets back all columns of the
    canvas; the attention mask says which of them are valid.

    Examples:
        >>> layer = PositionalLayer(capacity=2, columns=8)
        >>> layer.is_initialized  # buffers are made by the first pass
        False
    """

    def __init__(self, capacity: int, columns: int, fixed: bool = False) -> None:
        self.capacity = capacity
        self.columns = columns
        self.fixed = fixed
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.target: tuple[Tensor, Tensor] | None = None  # rows (B, 1), columns (B, Q)
        self.runs: Sequence[slice] | None = None
        self.width = columns

    @property
    def is_initialized(self) -> bool:
        """Whether the buffers are allocated."""
        return self.keys is not None

    def _allocate(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers; sizes and dtype come from the first keys (B, heads, Q, size)."""

        def buffer(states: Tensor) -> Tensor:
            shape = (self.capacity, states.shape[1], self.columns, states.shape[3])
            made = torch.zeros(shape, dtype=states.dtype, device=states.device)
            if self.fixed:  # else what is written in place keeps torch from recording a CUDA graph
                torch._dynamo.mark_static_address(made, guard=False)
            return made

        self.keys, self.values = buffer(key_states), buffer(value_states)

    def update(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values of the pass; returns those of all columns in use."""
        if self.keys is None:
            self._allocate(key_states, value_states)
        assert self.keys is not None and self.values is not None and self.target is not None
        count = key_states.shape[0]
        keys, values = self.keys[:count], self.values[:count]
        if self.runs is not None and (keys.is_cpu or len(self.runs) == 1):
            for buffer, states in ((keys, key_states), (values, value_states)):
                _write_runs(buffer, states, self.runs)
        else:
            # with a device map each layer keeps its share where it is
            rows, columns = (places.to(keys.device) for places in self.target)
            keys[rows, :, columns] = key_states.transpose(1, 2)
            values[rows, :, columns] = value_states.transpose(1, 2)
        return keys[:, :, : self.width], values[:, :, : self.width]

    def forget(self) -> None:
        """Write zeros over what is held."""
        if self.keys is not None and self.values is not None:
            self.keys.zero_()
            self.values.zero_()

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy the stored rows `source` to the places `target`, both on the layer's device."""
        assert self.keys is not None and self.values is not None
        self.keys[target] = self.keys[source]
        self.values[target] = self.values[source]


def _write_runs(buffer: Tensor, states: Tensor, runs: Sequence[slice]) -> None:
    """Write states (B, heads, Q, size) to a run of columns per row, or to one of all rows."""
    if len(runs) == 1:
        buffer[:, :, runs[0]] = states
        return
    for row, run in enumerate(runs):
        buffer[row, :, run] = states[row]


class KeyValueStore:
    """The keys and values of a whole model; see `PositionalLayer`.

    Memory: layers x 2 x rows x columns x key/value heads x head size x bytes per number, allocated
    by the first pass.

    Args:
        layers: Number of layers.
        rows: Most rows at once.
        columns: Of the canvas.
        fixed: Whether the buffers are said to stay where they are, as CUDA graphs need it.

    Examples:
        >>> store = KeyValueStore(layers=2, rows=1, columns=8)
        >>> store.is_ready, store.bytes  # buffers are made by the first pass
        (False, 0)
    """

    def __init__(self, layers: int, rows: int, columns: int, fixed: bool = False) -> None:
        self.positional = [PositionalLayer(rows, columns, fixed) for _ in range(layers)]
        self.for_transformers: Any = None  # see `models.stock_cache`
        self.rows = rows
        self.columns = columns
        self.width = columns
        self.places: Tensor

    def aim(self, places: Tensor, width: int, runs: Sequence[slice] | None = None) -> None:
        """Say where the next pass writes.

        Args:
            places: (B, Q) columns.
            width: Columns in use.
            runs: The same columns as slices, one for all rows or one for each, which a processor
                copies five to ten times as fast; None where they are not known to be slices, and
                under torch.compile, to which other columns must be the same program.
        """
        self.places, self.width = places, width
        target = numbers(len(places), places.device)[:, None], places
        for layer in self.positional:
            layer.target, layer.runs, layer.width = target, runs, width

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, heads, Q, size) of a layer; returns those of all columns."""
        return self.positional[layer].update(keys, values)

    def take(self, rows: Sequence[int]) -> None:
        """Keep the given rows, in that order; only rows that move are copied."""
        moved = [(source, target) for target, source in enumerate(rows) if source != target]
        if not moved:
            return
        places = torch.tensor(moved)
        on: dict[torch.device, Tensor] = {}  # one upload, however many layers a device holds
        for layer in self.positional:
            if layer.keys is not None:
                device = layer.keys.device
                if device not in on:
                    on[device] = places.to(device, non_blocking=True)
                layer.move(*on[device].T)

    def join(self, count: int) -> None:
        """Nothing to do: there is room, and what it held before is never attended to."""

    @property
    def is_ready(self) -> bool:
        """Whether the buffers are allocated."""
        return all(layer.is_initialized for layer in self.positional)

    @property
    def bytes(self) -> int:
        """Bytes allocated so far."""
        return sum(
            buffer.numel() * buffer.element_size()
            for layer in self.positional
            if layer.is_initialized
            for buffer in (layer.keys, layer.values)
            if buffer is not None
        )


class FixedBuffers:
    """The buffers of a model whose passes are replayed as CUDA graphs, from decode to decode.

    A graph reads and writes where it was recorded. A store that lay elsewhere would have it
    recorded anew, so the next store of a size takes over the buffers of the last one, once that is
    gone. The memory stays in use between decodes.

    Examples:
        >>> buffers = FixedBuffers(layers=1)
        >>> first = buffers.store(rows=2, columns=8)
        >>> layer = first.positional[0]
        >>> buffers.store(2, 8).positional[0] is layer  # while the first is in use
        False
    """

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._last: list[PositionalLayer] = []
        self._holder: weakref.ref[KeyValueStore] | None = None

    def store(self, rows: int, columns: int) -> KeyValueStore:
        """A store without rows, its buffers those of the last one where they are free and fit.

        What they held is never attended to, as in a store whose rows have left; but 0 times NaN is
        NaN, so that it is forgotten.
        """
        made = KeyValueStore(self._layers, rows, columns, fixed=True)
        in_use = self._holder is not None and self._holder() is not None
        fits = bool(self._last) and (self._last[0].capacity, self._last[0].columns) == (
            rows,
            columns,
        )
        if fits and not in_use:
            made.positional = self._last
            for layer in made.positional:
                layer.forget()
        if not in_use:
            self._last, self._holder = made.positional, weakref.ref(made)
        return made
