"""The rows that are decoded together: how they join, what their next step is, how they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dllm_decode.decoding import calls
from dllm_decode.decoding.cache import (
    CachePolicy,
    Plan,
    Refresh,
    Store,
    StoreMemory,
    columns_of,
    mask_of,
)
from dllm_decode.decoding.candidates import with_candidates
from dllm_decode.decoding.canvas import Canvas
from dllm_decode.decoding.composition import Composition
from dllm_decode.decoding.denoiser import StoringDenoiser
from dllm_decode.decoding.parameters import columns_of_parameters
from dllm_decode.decoding.returned import (
    FLAGS,
    LONG,
    blamed,
    check_plane,
    kind_of,
    lay_on,
    named,
    plane_fault,
)
from dllm_decode.decoding.schedule import Window
from dllm_decode.decoding.selection import numbers
from dllm_decode.decoding.strategy import Budget, Revisions
from dllm_decode.decoding.types import (
    Change,
    Memory,
    Request,
    Snapshot,
    StepView,
    gather_columns,
)
from dllm_decode.errors import PluginError
from dllm_decode.kernels.lazy import later
from dllm_decode.kernels.noise import Noise

# What is counted per row and becomes its outcome.
COUNTS = (
    "step", "jumped", "carried", "joined", "unasked",
    "probes", "waits", "drafts", "edits", "remasks", "not_granted",
)  # fmt: skip


@dataclass
class Counters(Memory):
    """What is counted per row.

    Attributes:
        seeds: (B,) seeds of the rows' random numbers.
        step: (B,) steps the row has done.
        jumped: (B,) of them, those that were no steps of the loop of their own.
        carried: (B,) steps that began with a probe of the step before, without a pass.
        probes: (B,) further passes, over other tokens, that a part asked for.
        waits: (B,) of them, passes one after the other.
        unasked: (B,) passes beside rows that probed.
        drafts: (B,) calls of a drafter.
        edits: (B,) settled tokens written over.
        remasks: (B,) settled columns opened again.
        not_granted: (B,) edits and re-masks that were asked for in vain.
        joined: (B,) steps that the batch had done when it joined.
        window_key: (B,) key of the window it is in.
        window_entered: (B,) its step when it was entered.
        window_open: (B,) open slots then.
        over_budget: (B,) not 0 where closing commits were forced.
        parameters: what rows set for themselves, each (B, 1).

    Examples:
        >>> import torch
        >>> counters = Counters.of(torch.tensor([3, 4]), {})
        >>> counters.step.tolist()
        [0, 0]
    """

    seeds: Tensor
    step: Tensor
    jumped: Tensor
    carried: Tensor
    probes: Tensor
    waits: Tensor
    unasked: Tensor
    drafts: Tensor
    edits: Tensor
    remasks: Tensor
    not_granted: Tensor
    joined: Tensor
    window_key: Tensor
    window_entered: Tensor
    window_open: Tensor
    over_budget: Tensor
    parameters: Mapping[str, Tensor]

    @staticmethod
    def of(seeds: Tensor, parameters: Mapping[str, Tensor], steps: int = 0) -> Counters:
        """The counters of rows that have not done a step.

        Args:
            seeds: (B,) seeds of the rows' random numbers.
            parameters: what rows set for themselves, each (B, 1).
            steps: how many the batch has done.
        """
        zero = torch.zeros_like(seeds)
        counts: dict[str, Any] = dict.fromkeys(Counters.__dataclass_fields__, zero)
        counts |= {"seeds": seeds, "window_key": zero - 1}
        counts |= {"joined": zero + steps if steps else zero, "parameters": parameters}
        return Counters(**counts)

    def add(self, **counts: Tensor | None) -> None:
        """Add to some of the counters, each (B,), by name; None for nothing."""
        for name, count in counts.items():
            if count is not None:
                setattr(self, name, getattr(self, name) + count)

    def enter(self, key: Tensor, opened: Tensor) -> Tensor:
        """Note the window each row is in, and how many slots are open in it, (B,).

        Returns:
            The rows that have just entered it, (B,) bool.
        """
        fresh = key != self.window_key
        self.window_key = key
        self.window_entered = torch.where(fresh, self.step, self.window_entered)
        self.window_open = torch.where(fresh, opened, self.window_open)
        return fresh


def of_one_width(one: Tensor, other: Tensor, value: int | bool) -> tuple[Tensor, Tensor]:
    """Two planes (B, W) with as many slots as the wider one.

    Args:
        one: (B, W).
        other: (B, W') of the same rows.
        value: what the slots that are added hold.
    """
    width = max(one.shape[1], other.shape[1])
    wide = [pad(plane, (0, width - plane.shape[1]), value=value) for plane in (one, other)]
    return wide[0], wide[1]


@dataclass
class Carried(Memory):
    """What probes have said about the canvas that a step begins with.

    Attributes:
        rows: (B,) bool, rows for which there is something.
        values: (B, W, V) logits, or (B, W, D) states from which the head makes them.

    Examples:
        >>> carried = Carried(torch.tensor([True]), torch.zeros(1, 2, 5))
        >>> carried.fit(3)
        >>> carried.values.shape
        torch.Size([1, 3, 5])
    """

    rows: Tensor
    values: Tensor

    def none(self, index: Tensor) -> Carried:
        """Nothing, for the rows of a window (B, W)."""
        empty = self.values.new_zeros(*index.shape, self.values.shape[-1])
        return Carried(torch.zeros_like(index[:, 0], dtype=torch.bool), empty)

    def fit(self, slots: int) -> None:
        """Make as many slots of it as the next window has."""
        self.values = pad(self.values, (0, 0, 0, slots - self.values.shape[1]))


@dataclass
class NextStep(Memory):
    """What is settled about the next step of each row before its logits are there.

    It is known on the device alone: the host need not know yet how the last step went.

    Attributes:
        index: (B, W) columns whose logits are wanted, -1 for none.
        masked: (B, W) the undecided ones.
        active: (B, W) those in the row's window.
        open: (B, W) both: those that may be committed.
        opened: (B,) how many these are.
        fresh: (B,) the row has just entered this window.
        refresh: (B, L) columns to recompute, None without a store.
        valid: (B, L) columns that may be attended to, None without a store.
        window: (B, W') columns of the schedule's window, -1 for none.
        lingering: (B,) the row stays in a full window, None for strategies that never do.
        carried: what was predicted already, None for nothing.
    """

    index: Tensor
    masked: Tensor
    active: Tensor
    open: Tensor
    opened: Tensor
    fresh: Tensor
    refresh: Tensor | None
    valid: Tensor | None
    window: Tensor
    lingering: Tensor | None = None
    carried: Carried | None = None

    def join(self, other: Memory) -> None:
        """Append rows whose windows may have another number of slots."""
        assert isinstance(other, NextStep)
        if (self.refresh is None) != (other.refresh is None):
            raise PluginError(
                "cache: plan returned a Refresh for some rows of a batch and None for rows that "
                "join; it must be one of both for all"
            )
        for name, value in (
            ("index", -1), ("masked", False), ("active", False), ("open", False), ("window", -1)
        ):  # fmt: skip
            planes = of_one_width(getattr(self, name), getattr(other, name), value)
            for part, plane in zip((self, other), planes, strict=True):
                setattr(part, name, plane)
        if self.lingering is not None and other.lingering is None:
            other.lingering = torch.zeros_like(other.fresh)
        if self.carried is not None and other.carried is None:
            other.carried = self.carried.none(other.index)
            self.carried.fit(self.index.shape[1])
        super().join(other)


@dataclass
class ExtraPasses:
    """What parts have asked the model in a step beyond its own pass; None for nothing.

    Attributes:
        probes: (B,) passes with other tokens.
        waits: (B,) of them, passes one after the other.
        unasked: (B,) passes of rows beside those that asked.
        drafts: (B,) calls of a drafter.
    """

    probes: Tensor | None = None
    waits: Tensor | None = None
    unasked: Tensor | None = None
    drafts: Tensor | None = None

    @property
    def any(self) -> bool:
        """Whether anything was asked."""
        return self.probes is not None or self.drafts is not None

    def add(self, name: str, count: Tensor) -> None:
        """Add to what was counted of one kind, (B,)."""
        known = getattr(self, name)
        setattr(self, name, count if known is None else known + count)


@lru_cache(maxsize=64)
def _takes_view(kind: type) -> bool:
    return len(signature(kind.window).parameters) > 2  # type: ignore[attr-defined]


def _window_fault(window: Any, rows: Tensor) -> str:
    """What is wrong with an answer of a schedule, empty if nothing is; rows (B,) of the batch."""
    if not isinstance(window, Window):
        return f"is {kind_of(window)}; it must be a Window"
    count, device, index = rows.shape[0], rows.device, window.index
    width = index.shape[-1] if isinstance(index, Tensor) and index.numel() else "W"
    planes = [("index", index, (count, width), LONG), ("key", window.key, (count,), LONG)]
    if window.inside is not None:
        planes.append(("inside", window.inside, (count, width), FLAGS))
    for name, plane, shape, kinds in planes:
        if fault := plane_fault(plane, shape, kinds, device):
            return f"as {name} is {fault}"
    return ""


def _inside(index: Tensor, key: Tensor, snapshot: Snapshot) -> Window:
    """A window of which it is known which slots have a column, and none of them is beyond."""
    index = index.masked_fill(index >= snapshot.tokens.shape[1], -1)
    return Window(index, key, index >= 0)


def _runs(
    counts: Sequence[int], firsts: Sequence[int], lasts: Sequence[int]
) -> tuple[slice, ...] | None:
    """The columns of rows as slices, one where all are the same; see `Plan.runs`."""
    known = {*zip(counts, firsts, lasts, strict=True)}
    if len({*counts}) != 1 or any(last - first != count - 1 for count, first, last in known):
        return None
    return tuple(
        slice(first, first + counts[0]) for first in (firsts[:1] if len(known) == 1 else firsts)
    )


class Batch:
    """The rows of a request that are decoded together at the moment, and all that is kept of them.

    Attributes:
        rows: which rows of the request, in the order of the batch.
        canvas: what stands in the columns.
        counters: what was counted for each row.
        next: what is known of the next step.
        memory: what the strategy remembers, None for nothing.
        cache_memory: what the cache policy remembers, None for nothing.
        store: the model's key/value store, None where the cache policy needs none.
        snapshot: the canvas as plugins see it.
        noise: the random numbers of the step.
        missing: rows of whose next pass no probe has told anything, None where the host does not
            know how many these are.
        trace: every change, where recording was asked for.

    Examples:
        >>> from dllm_decode.decoding.loop import Decoder, Run
        >>> from dllm_decode.decoding.types import Request
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> run = Run(Decoder(Copy(n=3), TopK(2)), Request(((0, 1, 2, 63),), max_new_tokens=4))
        >>> run.admit([0])
        >>> run.batch.span, run.batch.tokens.shape
        (slice(0, 8, None), torch.Size([1, 8]))
    """

    canvas: Canvas
    counters: Counters
    next: NextStep
    snapshot: Snapshot
    noise: Noise
    missing: int | None = None

    def __init__(self, parts: Composition, request: Request, capacity: int | None = None) -> None:
        """An empty batch.

        Args:
            parts: the model and the plugins.
            request: every row that may ever join, which sets the width of the canvas.
            capacity: rows that are in the batch at once, for the store; None for all.
        """
        self.parts = parts
        self.request = request
        self.device = parts.denoiser.device
        self.capacity = request.rows if capacity is None else min(capacity, request.rows)
        self.rows: tuple[int, ...] = ()
        self.memory: Memory | None = None
        self.cache_memory: Memory | None = None
        self.store: Store | None = None
        self.trace: list[Change] = []
        self._sources, self._per_call = parts.able.sources, parts.able.passes_per_call
        self._sees_canvas = parts.schedule.sees_canvas or any(
            part.sees_canvas for _, part in parts.strategy.parts()
        )
        self._own_plan = type(parts.cache).plan is not CachePolicy.plan
        # schedules that do not look at predictions may do without the second argument
        self._shows_view = _takes_view(type(parts.schedule))
        self._steps = 0  # passes over the batch, probes aside
        self._extra = ExtraPasses()  # what is asked beside them in this step
        self._asked = False  # whether anything was, in the last one
        self._tells = parts.record or bool(parts.observers)  # whether changes are kept or shown
        self._counts_revisions = isinstance(parts.strategy.progress, Revisions)
        self._unseen = 0  # steps since the host last measured the batch
        self._first = 0  # the first column of the longest prompt in the batch
        self._measured: tuple[Sequence[int], Sequence[int]] = ((), ())  # rows, their horizons
        self._reach = 0  # columns up to the furthest horizon
        self._widest = 0  # columns that the next pass recomputes in the row that needs most
        self._extents: tuple[tuple[int, int], ...] = ()  # where rows lie in the span
        self._runs: tuple[slice, ...] | None = None  # what they recompute, see `Plan.runs`
        self._complete = False  # whether every column of every row may be attended to

    # Rows join and leave.

    def admit(self, rows: Sequence[int]) -> None:
        """Let rows of the request join; nothing has changed if a plugin raises in `begin`."""
        parts, request = self.parts, self.request.take(rows)
        canvas = Canvas.of(
            self.request, parts.denoiser.vocab, self.device, rows, counted=self._counts_revisions
        )
        if parts.debug:  # views of one upload share a version, by which the guard tells planes
            canvas.take(torch.arange(len(rows), device=self.device))
        snapshot = canvas.snapshot()
        counters = Counters.of(
            self._seeds(request, canvas.rows),
            columns_of_parameters(parts.strategy, self.request, rows, self.device),
            self._steps,
        )
        memory = calls.begin(parts.strategy, "strategy", request, snapshot)
        cache_memory = calls.begin(parts.cache, "cache", request, snapshot)
        upcoming = self._look_ahead(snapshot, counters, cache_memory)
        if self.rows:
            who = named("strategy", parts.strategy)
            calls.check_alike(self.memory, memory, f"{who}: the memory")
            who = named("cache", parts.cache)
            calls.check_alike(self.cache_memory, cache_memory, f"{who}: the memory")
            self.canvas.join(canvas)
            self.counters.join(counters)
            self.next.join(upcoming)
            for own, new in ((self.memory, memory), (self.cache_memory, cache_memory)):
                if own is not None and new is not None:
                    own.join(new)
        else:
            self.canvas, self.counters, self.next = canvas, counters, upcoming
            self.memory, self.cache_memory = memory, cache_memory
        self.rows = (*self.rows, *rows)
        self._store_rows(len(rows))
        self.snapshot = self.canvas.snapshot()
        for observer in parts.observers:
            with blamed(observer):
                observer.start(request, snapshot)

    def _seeds(self, request: Request, rows: Tensor) -> Tensor:
        """Seeds of rows that join, (B,)."""
        if self.request.seeds is None:  # a row's number, which is there already
            return rows.clone()
        return torch.tensor(request.row_seeds, device=self.device, dtype=torch.long)

    def _store_rows(self, joining: int) -> None:
        if not self.parts.cache.stores:
            return
        if self.store is None:
            denoiser = self.parts.denoiser
            assert isinstance(denoiser, StoringDenoiser)  # checked when the decoder was composed
            self.store = denoiser.allocate(self.capacity, self.canvas.tokens.shape[1])
        self.store.join(joining)

    def remove(self, positions: Sequence[int]) -> list[int]:
        """Take rows out; the last ones close the gaps, so that few stored values have to move.

        Returns:
            Where each row that is left was before.
        """
        stay = [position for position in range(len(self.rows)) if position not in positions]
        spare = [position for position in stay if position >= len(stay)]
        order = [spare.pop() if place in positions else place for place in range(len(stay))]
        rows = tuple(self.rows[position] for position in order)
        if self.store is not None:
            self.store.take(order)
        if not order:  # whatever joins next begins anew
            self.rows = rows
            return order
        count = len(self.rows)
        calls.check_rows(self.memory, count, named("strategy", self.parts.strategy))
        calls.check_rows(self.cache_memory, count, named("cache", self.parts.cache))
        keep = torch.tensor(order, dtype=torch.long).to(self.device, non_blocking=True)
        for part in (self.next, self.memory, self.cache_memory):
            if part is not None:
                part.take(keep)
        canvas, counters = copy(self.canvas), copy(self.counters)
        canvas.take(keep)
        counters.take(keep)
        # all at once: an interrupt between two lines must not give a row the tokens of another
        vars(self).update(rows=rows, canvas=canvas, counters=counters, snapshot=canvas.snapshot())
        return order

    def abandon(self) -> None:
        """Drop all rows and everything that plugins remember of them."""
        self.rows = ()
        self.memory = self.cache_memory = self.store = None

    # The next step.

    def plan(self) -> Plan:
        """What the next pass recomputes; its window and its random numbers are in the batch."""
        self.renew_noise()
        # horizons may have moved since the host last saw them
        complete = self._complete and not self._unseen
        start = self.snapshot.start - self._first  # of what `span` leaves
        if self.next.refresh is None:
            extents = None if self._unseen else self._extents
            return Plan(complete=complete, start=start, extents=extents)
        refresh, runs = self.next.refresh, self._runs
        if runs is not None and len(runs) == 1:
            run = numbers(refresh.shape[1], refresh.device)[runs[0]]
            columns = run.expand(len(refresh), -1)
        else:
            columns = columns_of(refresh, self._widest)
        return Plan(columns, self.next.valid, self.store, complete, start, runs=runs)

    def renew_noise(self) -> None:
        """The random numbers of the step at the slots of its window."""
        index, start = self.next.index, self.snapshot.start
        self.noise = Noise.made(
            {"index": lambda: (index - start).clamp_(min=-1)},
            seeds=self.counters.seeds,
            step=self.counters.step,
        )

    @property
    def tokens(self) -> Tensor:
        """What stands on the canvas, (B, L)."""
        return self.snapshot.tokens

    @property
    def span(self) -> slice:
        """Canvas columns that a pass has to cover: no padding that all rows share."""
        return slice(self._first, self._reach)

    def _look_ahead(
        self,
        snapshot: Snapshot,
        counters: Counters,
        cache_memory: Memory | None,
        view: StepView | None = None,
        lingering: Tensor | None = None,
    ) -> NextStep:
        """Window and plan of the next step, made before the sync so that it can tell their size."""
        window = self._window(snapshot, view)
        if lingering is not None:
            own = torch.where(lingering[:, None], *of_one_width(self.next.window, window.index, -1))
            key = torch.where(lingering, counters.window_key, window.key)
            window = _inside(own, key, snapshot)
        index, active = self._seen(snapshot, window)
        masked = gather_columns(snapshot.undecided, index)
        if self._sees_canvas:
            masked = masked & (index >= 0)
            opened = masked & active
        else:  # every slot that is not empty is in the window
            opened = masked = masked & active
        count = opened.sum(1)
        fresh = counters.enter(window.key, count)
        refresh = self._refresh(snapshot, index, fresh, cache_memory)
        if refresh is None:
            slots = (index, masked, active, opened, count)
            return NextStep(*slots, fresh, None, None, window.index, lingering)
        columns = refresh.columns
        # a column that the plan leaves out has no fresh logits
        computed = gather_columns(columns, index)
        index, masked = torch.where(computed, index, -1), masked & computed
        opened = opened & computed if self._sees_canvas else masked
        sources = index if self._sources is None else self._sources(index, snapshot.live)
        if sources is not index:
            columns = columns | mask_of(sources, snapshot.tokens.shape[1])
        valid = refresh.valid | columns
        seen, count = (index, masked, active, opened), opened.sum(1)
        return NextStep(*seen, count, fresh, columns, valid, window.index, lingering)

    def _window(self, snapshot: Snapshot, view: StepView | None = None) -> Window:
        """The schedule's window, of the right shape, and no column in it beyond the canvas."""
        schedule = self.parts.schedule
        given = (snapshot, view) if self._shows_view else (snapshot,)
        try:
            window = schedule.window(*given)
        except Exception as error:
            lay_on(error, named("schedule", schedule))
            raise
        if fault := _window_fault(window, snapshot.rows):
            raise PluginError(f"{named('schedule', schedule)}: what window returned {fault}")
        if window.inside is None:
            return _inside(window.index, window.key, snapshot)
        return window

    def _refresh(
        self, snapshot: Snapshot, index: Tensor, fresh: Tensor, memory: Memory | None
    ) -> Refresh | None:
        """The cache policy's plan, of the right shape."""
        cache = self.parts.cache
        try:
            refresh = cache.plan(snapshot, index, fresh, memory)
        except Exception as error:
            lay_on(error, named("cache", cache))
            raise
        if refresh is None:
            return None
        who = f"{named('cache', cache)}: what plan returned"
        if not isinstance(refresh, Refresh):
            raise PluginError(f"{who} is {kind_of(refresh)}; it must be a Refresh or None")
        if not cache.stores:
            raise PluginError(f"{who} is a Refresh, which stores = False rules out; return None")
        shape = snapshot.tokens.shape
        check_plane(who, refresh.columns, shape, FLAGS, snapshot.rows.device, "columns")
        check_plane(who, refresh.valid, shape, FLAGS, snapshot.rows.device, "valid")
        if self._own_plan:  # padding and what is cut off are neither computed nor attended to
            return Refresh(refresh.columns & snapshot.live, refresh.valid & snapshot.live)
        return refresh

    def _seen(self, snapshot: Snapshot, window: Window) -> tuple[Tensor, Tensor]:
        """Columns whose logits are wanted, and which of them lie in the row's window."""
        if not self._sees_canvas:
            assert window.inside is not None
            return window.index, window.inside
        begin = snapshot.start
        columns = snapshot.columns[begin:].expand(snapshot.tokens.shape[0], -1)
        index = torch.where(columns < snapshot.horizon[:, None], columns, -1)
        inside = mask_of(window.index, snapshot.tokens.shape[1])[:, begin:]
        return index, inside & (index >= 0)

    # What a step changed, and how it is replayed.

    @property
    def state(self) -> tuple[Memory, ...]:
        """All that a step reads and writes beside what the model gave."""
        parts = (self.canvas, self.counters, self.next, self.memory, self.cache_memory)
        return tuple(part for part in parts if part is not None)

    @property
    def asked(self) -> bool:
        """Whether the last step asked the model for more than its own pass."""
        return self._asked

    def forget_snapshot(self) -> None:
        """Forget what was derived from the tensors of `state`, which hold other numbers now."""
        self.canvas.forget_snapshot()
        self.snapshot = self.canvas.snapshot()
        self._extra = ExtraPasses()

    def count_step(self) -> None:
        """Note one more step."""
        self.missing = None
        self._unseen += 1
        self._steps += 1

    def count_probe(self, rows: Tensor, *, unasked: bool) -> None:
        """Note further passes over other tokens; what they stored is not the canvas's.

        Args:
            rows: (B, K) bool, who asked each of K alternatives.
            unasked: whether the others were computed as well.
        """
        passes = rows.sum(1)
        self._extra.add("probes", passes)
        self._extra.add("waits", passes if self.store is not None else rows.any(1).long())
        if unasked:
            self._extra.add("unasked", rows.shape[1] - passes)
        if isinstance(self.cache_memory, StoreMemory) and self.next.refresh is not None:
            self.cache_memory.distrust(self.next.refresh)

    def count_drafts(self, rows: Tensor) -> None:
        """Note a call of a drafter; rows (B,) bool."""
        self._extra.add("drafts", rows.long())

    def note(self, change: Change, view: StepView, lingering: Tensor | None = None) -> None:
        """Take in what a step changed: counters, cache, trace, observers, and the next step."""
        self.snapshot = snapshot = self.canvas.snapshot()
        extra = self._extra
        self._asked = extra.any
        if self._asked:
            self._extra = ExtraPasses()
        self.count_step()
        if self._asked or self._tells or self.cache_memory is not None or self.next.carried:
            change = self._complete_change(change, extra, view)
        self._count(change, extra)
        self.parts.cache.note(change, self.cache_memory)
        if self._tells:
            self._tell(change, snapshot, view)
        self.next = self._look_ahead(snapshot, self.counters, self.cache_memory, view, lingering)

    def _complete_change(self, change: Change, extra: ExtraPasses, view: StepView) -> Change:
        """The change with what is known of it only now."""
        snapshot, carried, per_call = self.snapshot, self.next.carried, self._per_call
        probes = extra.probes
        if probes is not None and per_call > 1:
            probes = probes * per_call
        whole: Change = change.but(
            horizon=later(lambda: snapshot.horizon - snapshot.start),
            probes=probes,
            passes_per_call=per_call,
            drafts=extra.drafts,
            carried=None if carried is None else carried.rows & view.live,
        )
        return whole

    def _tell(self, change: Change, snapshot: Snapshot, view: StepView) -> None:
        """Hand a change to those who may keep it."""
        told, kept = change.for_keeps(), self.parts.candidates
        if self.parts.record:
            self.trace.append(with_candidates(change, view, kept).for_keeps() if kept else told)
        for observer in self.parts.observers:
            with blamed(observer):
                observer.step(told, snapshot)

    def _count(self, change: Change, extra: ExtraPasses) -> None:
        counters, upcoming = self.counters, self.next
        took_part: Tensor | int = 1  # the host has just taken out whoever would not
        if self._unseen > 1:
            took_part = upcoming.opened > 0
            if upcoming.lingering is not None:
                took_part = took_part | upcoming.lingering
        counters.step = counters.step + took_part
        if change.steps is not None:
            more = (change.steps - 1) * took_part
            counters.step, counters.jumped = counters.step + more, counters.jumped + more
        if self._asked:
            counters.add(**vars(extra))
        if change.carried is not None:
            counters.add(carried=change.carried)
        if change.edit is not None:
            counters.add(edits=change.edit.sum(1))
        if change.not_granted is not None:
            counters.add(remasks=change.remask.sum(1), not_granted=change.not_granted)
        if isinstance(self.parts.strategy.progress, Budget):
            counters.over_budget = counters.over_budget | change.forced

    # What the host wants to know.

    def sizes(self) -> dict[str, Tensor]:
        """What every sync fetches of each row, (B,): what is left, horizon, size of a pass."""
        upcoming, snapshot = self.next, self.snapshot
        facts = {
            "undecided": snapshot.left,
            "open": upcoming.opened,
            "horizon": snapshot.horizon,
        }
        if upcoming.lingering is not None:  # a row that lingers is not done, and not stuck
            facts["undecided"] = facts["undecided"] + upcoming.lingering
            facts["open"] = facts["open"] + upcoming.lingering
        if upcoming.refresh is not None and upcoming.valid is not None:
            facts |= {"refresh": upcoming.refresh.sum(1), "valid": upcoming.valid.sum(1)}
            facts["first"] = upcoming.refresh.max(1).indices
            facts["last"] = (snapshot.columns * upcoming.refresh).amax(1)
        if upcoming.carried is not None:
            facts["carried"] = upcoming.carried.rows
        return facts

    def measure(self, facts: Mapping[str, Sequence[int]]) -> None:
        """Learn from the host how wide the next pass is.

        Args:
            facts: what `sizes` names, as numbers, of the rows that are left.
        """
        self._unseen = 0
        self.missing = facts["carried"].count(0) if "carried" in facts else None
        horizons = facts["horizon"]
        if self._measured == (self.rows, horizons) and "refresh" not in facts:
            return
        self._measured = (self.rows, horizons)
        self._reach = max(horizons, default=0)
        if "refresh" in facts:
            # a store knows columns by their number; a step without one measures anew
            self._first, self._measured = 0, ((), ())
            self._widest = max(facts["refresh"], default=0)
            self._runs = _runs(facts["refresh"], facts["first"], facts["last"])
            self._complete = min(facts["valid"], default=0) == self._reach
            return
        # without a store nothing is tied to a column: padding that all rows share is left out
        lengths = [len(self.request.prompts[row]) for row in self.rows]
        longest = max(lengths, default=0)
        self._first = self.canvas.start - longest
        even = min(lengths, default=0) == longest and min(horizons, default=0) == self._reach
        self._complete = even
        first = self.canvas.start - self._first
        self._extents = tuple(
            (first - length, horizon - self._first)
            for length, horizon in zip(lengths, horizons, strict=True)
        )

    def stuck(self, position: int) -> PluginError:
        """Why a row that has undecided columns cannot decide any of them in its next step."""
        snapshot, schedule, cache = self.snapshot, self.parts.schedule, self.parts.cache
        window = self.next.window
        opened = gather_columns(snapshot.undecided, window) & (window >= 0)
        opened = opened & self.next.active[position].any()
        left = snapshot.undecided[position].nonzero()[:, 0] - snapshot.start
        row, step = self.rows[position], int(self.counters.step[position])
        what = f"undecided column of row {row}, step {step}"
        columns = f"{left.numel()} are left, the first is generated column {int(left[0])}"
        if bool(opened[position].any()):
            who = named("cache", cache)
            return PluginError(f"{who} recomputes no {what}, that its window opens: {columns}")
        return PluginError(f"{named('schedule', schedule)} opens no {what}: {columns}")

    @property
    def steps(self) -> int:
        """Passes over the batch so far, probes aside."""
        return self._steps

    def account(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """What the outcomes of some rows are made of, their rows in dimension 0."""
        canvas, counters = self.canvas, self.counters
        planes = {
            **canvas.answers(),
            "horizon": canvas.horizon,
            "over_budget": counters.over_budget,
            **{name: getattr(counters, name) for name in COUNTS},
        }
        if list(positions) == list(range(len(self.rows))):
            return planes
        at = torch.tensor(list(positions)).to(self.device, non_blocking=True)
        return {name: plane[at] for name, plane in planes.items()}
