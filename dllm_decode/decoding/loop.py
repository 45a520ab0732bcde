"""The denoising loop, written once: every decoding idea is a plugin that it calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from dllm_decode.decoding import calls
from dllm_decode.decoding.cache import (
    CachePolicy,
    NoCache,
    Plan,
    Store,
    StoreMemory,
    columns_of,
    mask_of,
    spread,
)
from dllm_decode.decoding.canvas import Canvas
from dllm_decode.decoding.denoiser import Denoiser, StoringDenoiser
from dllm_decode.decoding.parameters import check_parameters, columns_of_parameters
from dllm_decode.decoding.prediction import DensePrediction, HiddenStates, Prediction
from dllm_decode.decoding.sampling import Greedy, Sampler
from dllm_decode.decoding.schedule import Blocks, Schedule, Window
from dllm_decode.decoding.settle import checked, faults_of, legal_change, raise_fault
from dllm_decode.decoding.strategy import Budget, Strategy
from dllm_decode.decoding.types import (
    Change,
    Decision,
    Memory,
    Request,
    Result,
    Snapshot,
    StepView,
    gather_columns,
)
from dllm_decode.errors import CapabilityError, ConfigError, ModelOutputError, require_count
from dllm_decode.kernels import dispatch
from dllm_decode.kernels.noise import Noise


class Observer:
    """Watches a decode; override what you need. Raising from an observer ends the decode."""

    def start(self, request: Request, snapshot: Snapshot) -> None:
        """Called when rows join: once before the first pass, more often under an engine."""

    def step(self, change: Change, snapshot: Snapshot) -> None:
        """Called after each step; `snapshot` has the rows `change.rows` after the step."""

    def finish(self, result: Result) -> None:
        """Called once with the result, also when the decode was interrupted."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a decode; `result` holds what was decided, finish reason `interrupted`."""

    def __init__(self, result: Result) -> None:
        super().__init__("decoding was interrupted")
        self.result = result


@dataclass(frozen=True)
class Decoder:
    """One model, one strategy, one loop.

    denoiser: the model; strategy: usually a `Pipeline`; schedule, cache, sampler: see the modules
    of those names; observers: watch the steps; record: keep all changes in `Result.trace`;
    sync_every: steps between two looks of the host at the device, 1 or more. More than 1 saves
    synchronisations on a GPU; rows that finish in between take part in surplus passes, which are
    counted apart, and faults are reported up to so many steps later. Tokens are the same. Policies
    with a key/value store look in every step, because the width of the next pass comes with it.
    Raises `CapabilityError` where the parts cannot work together.
    """

    denoiser: Denoiser
    strategy: Strategy
    schedule: Schedule = field(default_factory=Blocks)
    cache: CachePolicy = field(default_factory=NoCache)
    sampler: Sampler = field(default_factory=Greedy)
    observers: tuple[Observer, ...] = ()
    record: bool = False
    sync_every: int = 1

    def __post_init__(self) -> None:
        require_count("sync_every", self.sync_every)
        grid = getattr(self.denoiser, "block_length", None)
        object.__setattr__(self, "schedule", self.schedule.on_grid(grid))
        check_composition(self.denoiser, self.strategy, self.schedule, self.cache)

    def decode(self, request: Request) -> Result:
        """Decode all rows of a request.

        Raises `ConfigError` for requests that do not fit, `DecisionError` and `ModelOutputError`
        for faults of plugins and models, and `Interrupted` (with the partial result) on Ctrl-C.
        """
        self.check(request)
        run = self.begin(request)
        run.admit(range(request.rows))
        try:
            while run.live:
                run.step()
        except KeyboardInterrupt:
            run.interrupt()
            raise Interrupted(run.result()) from None
        return run.result()

    def begin(self, request: Request, capacity: int | None = None) -> Run:
        """A batch without rows; see `Run`."""
        return Run(self, request, capacity)

    def check(self, request: Request) -> None:
        """Raise `ConfigError` where model, schedule or strategy cannot serve a request."""
        self.schedule.check(request)
        check_parameters(self.strategy, request)
        longest = max(map(len, request.prompts)) + max(request.lengths)
        limit = self.denoiser.max_length
        if limit is not None and longest > limit:
            raise ConfigError(
                f"prompt and max_new_tokens together need {longest} positions, the model has "
                f"{limit}; shorten the prompt or lower max_new_tokens"
            )
        size = self.denoiser.vocab.size
        for row, prompt in enumerate(request.prompts):
            wrong = [token for token in prompt if not 0 <= token < size]
            if wrong:
                raise ConfigError(
                    f"prompt {row} contains token id {wrong[0]}; the model knows 0 to {size - 1}"
                )
        for row, fixed in enumerate(request.fixed or ()):
            for token in (fixed or {}).values():
                if not 0 <= token < size or token == self.denoiser.vocab.mask_id:
                    raise ConfigError(
                        f"fixed token of row {row} must be a token id in [0, {size - 1}] and not "
                        f"the mask, got {token}"
                    )
        for key, part in self.strategy.parts():
            if part.needs_reference and request.reference is None:
                raise CapabilityError(
                    f"strategy{'.' + key if key else ''} ({type(part).__name__}) needs the tokens "
                    "of a reference decode; give Request.reference, or call generate(), which "
                    "makes one"
                )


def check_composition(
    denoiser: Denoiser, strategy: Strategy, schedule: Schedule, cache: CachePolicy
) -> None:
    """Refuse parts that are valid alone but cannot work together; raises `CapabilityError`."""
    kind = type(cache).__name__
    if cache.stores and not isinstance(denoiser, StoringDenoiser):
        raise CapabilityError(
            f"cache ({kind}) needs keys and values to store, but model "
            f"({type(denoiser).__name__}) has none; use cache=none"
        )
    block = getattr(denoiser, "block_length", None)
    if cache.attention == "block_causal" and block is None:
        raise CapabilityError(
            f"cache ({kind}) is exact for block-causal models only, but model "
            f"({type(denoiser).__name__}) attends to the whole canvas; use "
            "cache=none, prefix or dual"
        )
    for key, part in strategy.parts():
        name = f"strategy{'.' + key if key else ''} ({type(part).__name__})"
        width = part.window_width
        if width is not None and width != schedule.block_length:
            raise CapabilityError(
                f"{name} was made for blocks of {width} columns, but schedule has "
                f"{schedule.block_length or 'no block grid'}; use schedule=blocks "
                f"schedule.length={width}"
            )
        made_for, own = part.model_fingerprint, getattr(denoiser, "fingerprint", None)
        if made_for is not None and made_for != own:
            raise CapabilityError(
                f"{name} was trained for the model with fingerprint {made_for}, but model has "
                f"{own or 'none'}; use that checkpoint, or train for this one "
                "(task=train_filter)"
            )
        if part.sees_canvas and cache.logits != "canvas":
            raise CapabilityError(
                f"{name} reads predictions outside the current window, where cache ({kind}) "
                "computes none; use cache=none or cache=prefix, or limit its scope to the block"
            )
        if part.needs_window and cache.logits == "part":
            raise CapabilityError(
                f"{name} reads the prediction at every column of the window, but cache ({kind}) "
                "computes only some; use cache=none, prefix or dual"
            )


@dataclass
class _Book(Memory):
    """What the loop counts per row."""

    rows: Tensor
    seeds: Tensor
    step: Tensor
    forwards: Tensor
    window_key: Tensor
    window_step: Tensor
    window_open: Tensor
    surplus: Tensor
    over_budget: Tensor
    parameters: Mapping[str, Tensor]

    @staticmethod
    def of(rows: Tensor, seeds: Tensor, parameters: Mapping[str, Tensor]) -> _Book:
        zero = torch.zeros_like(rows)
        return _Book(rows, seeds, zero, zero, zero - 1, zero, zero, zero, zero.bool(), parameters)

    def enter(self, key: Tensor, opened: Tensor) -> Tensor:
        """Note the window each row is in; returns the rows that have just entered it."""
        fresh = key != self.window_key
        self.window_key = key
        self.window_step = torch.where(fresh, 0, self.window_step)
        self.window_open = torch.where(fresh, opened.sum(1), self.window_open)
        return fresh


@dataclass
class _Ahead(Memory):
    """The next step of each row, so far as it is known before the host has looked at this one.

    index (B, W): columns whose logits are wanted, -1 for none; masked (B, W): the undecided ones;
    active (B, W): those in the row's window; fresh (B,): the row enters it; refresh, valid (B, L):
    columns to recompute and columns that may be attended to, None without a store.
    """

    index: Tensor
    masked: Tensor
    active: Tensor
    fresh: Tensor
    refresh: Tensor | None
    valid: Tensor | None

    def join(self, other: Memory) -> None:
        """Append rows whose windows may have another number of slots."""
        assert isinstance(other, _Ahead)
        slots = max(self.index.shape[1], other.index.shape[1])
        for part in (self, other):
            missing = (0, slots - part.index.shape[1])
            part.index = pad(part.index, missing, value=-1)
            part.masked = pad(part.masked, missing, value=False)
            part.active = pad(part.active, missing, value=False)
        super().join(other)


@dataclass(frozen=True)
class Outcome:
    """What became of one row; the fields are those of `Result`, for this row."""

    sequence: tuple[int, ...] = ()
    forwards: int = 0
    finish_reason: str = "length"
    step_of: tuple[int, ...] = ()
    confidence_of: tuple[float, ...] = ()
    undecided: int = 0
    surplus_forwards: int = 0
    error: str = ""


@dataclass(frozen=True)
class _Evidence:
    """A step that the host has not looked at yet."""

    view: StepView
    decision: Decision
    counts: Tensor


def _forward_of(decoder: Decoder) -> Callable[..., Tensor | HiddenStates]:
    """The model's pass; it stops before the output head where head and statistics are one."""
    denoiser = decoder.denoiser
    before_head: Callable[..., HiddenStates] | None = getattr(denoiser, "before_head", None)
    if before_head is None or not decoder.sampler.takes_hidden:
        return denoiser
    fused = dispatch.fuses_head(denoiser.device, getattr(denoiser, "head_obstacle", ""))
    return before_head if fused else denoiser


class Run:
    """A batch on its way through the loop: rows join, step together, and leave when done.

    decoder: the parts; request: every row that may ever join, which sets the width of the canvas;
    capacity: rows that are in the batch at once, for the key/value store (default: all).
    """

    def __init__(self, decoder: Decoder, request: Request, capacity: int | None = None) -> None:
        self.decoder = decoder
        self.request = request
        self.vocab = decoder.denoiser.vocab
        self.device = decoder.denoiser.device
        self.start = max(map(len, request.prompts))
        self.width = self.start + max(request.lengths)
        self.capacity = request.rows if capacity is None else capacity
        banned = set(self.vocab.never_generated)
        if decoder.sampler.reshapes:  # else a transform removes them, and the model's own stays
            for _, part in decoder.strategy.parts():
                banned.update(part.banned_ids(self.vocab))
        self.forward = _forward_of(decoder)
        self.banned = torch.tensor(sorted(banned), device=self.device)
        self.sees_canvas = any(part.sees_canvas for _, part in decoder.strategy.parts())
        self.outcomes: dict[int, Outcome] = {}
        self.trace: list[Change] = []
        self.live: tuple[int, ...] = ()
        self._warned = False
        self.revocable = decoder.strategy.revocable
        self.unchecked: list[_Evidence] = []
        self.sync_every = 1 if decoder.cache.stores else decoder.sync_every
        self.first = 0  # the first column of the longest prompt in the batch
        self.reach = 0  # columns up to the furthest horizon
        self.widest = 0  # columns that the next pass recomputes in the row that needs most
        self.complete = False  # whether the next pass may attend to every column of every row
        self.canvas: Canvas
        self.snapshot: Snapshot
        self.book: _Book
        self.ahead: _Ahead
        self.memory: Memory | None = None
        self.cache_memory: Memory | None = None
        self.store: Store | None = None

    def admit(self, rows: Sequence[int]) -> None:
        """Let rows of the request join the batch."""
        request = self.request.take(rows)
        canvas = Canvas.of(request, self.vocab, self.device, self.start, self.width)
        snapshot = canvas.snapshot()
        book = _Book.of(
            torch.tensor(list(rows), device=self.device),
            torch.tensor(request.row_seeds, device=self.device, dtype=torch.long),
            columns_of_parameters(self.decoder.strategy, self.request, rows, self.device),
        )
        memory = calls.begin(self.decoder.strategy, "strategy", request, snapshot)
        cache_memory = self.decoder.cache.begin(request, snapshot)
        ahead = self._look_ahead(snapshot, book, cache_memory)
        if self.live:
            self.canvas.join(canvas)
            self.book.join(book)
            self.ahead.join(ahead)
            for own, new in ((self.memory, memory), (self.cache_memory, cache_memory)):
                if own is not None and new is not None:
                    own.join(new)
        else:
            self.canvas, self.book, self.ahead = canvas, book, ahead
            self.memory, self.cache_memory = memory, cache_memory
        self._store_rows(len(rows))
        self.live = (*self.live, *rows)
        for observer in self.decoder.observers:
            observer.start(request, snapshot)
        self.snapshot = self.canvas.snapshot()
        self._sync()

    def _store_rows(self, joining: int) -> None:
        if not self.decoder.cache.stores:
            return
        if self.store is None:
            denoiser = self.decoder.denoiser
            assert isinstance(denoiser, StoringDenoiser)  # checked when the decoder was composed
            self.store = denoiser.allocate(self.capacity, self.width)
        self.store.join(joining)

    # One step, in the order of the algorithm box.

    def step(self) -> None:
        """One forward pass and the change that follows from it."""
        strategy, snapshot = self.decoder.strategy, self.snapshot
        index, plan = self.ahead.index, self._plan()
        noise = Noise(self.book.seeds, self.book.step, index - snapshot.start)
        pred = self._predict(snapshot.tokens, snapshot, index, plan, noise)
        probes: list[Tensor] = []
        view = self._view(snapshot, pred, noise, plan, probes)
        change, evidence = self._settle(
            view, calls.decide(strategy, view, self.memory), len(probes)
        )
        self.canvas.apply(change, revocable=self.revocable)
        after = self.canvas.snapshot()
        self.canvas.narrow(calls.horizon(strategy, after, view, change, self.memory))
        self._note(change, view)
        self.ahead = self._look_ahead(self.snapshot, self.book, self.cache_memory)
        self.unchecked.append(evidence)
        if len(self.unchecked) >= self.sync_every:
            self._sync()

    def _settle(self, view: StepView, decision: Decision, probes: int) -> tuple[Change, _Evidence]:
        """The legal change that follows from a decision, and what the host will want to see."""
        strategy = self.decoder.strategy
        decision = checked(view, decision, type(strategy).__name__)
        change = legal_change(
            view, decision, rows=self.book.rows, progress=strategy.progress, probes=probes
        )
        return change, _Evidence(view, decision, self._faults(view, decision))

    def _look_ahead(self, snapshot: Snapshot, book: _Book, cache_memory: Memory | None) -> _Ahead:
        """Window and plan of the next step, made before the look so that it can tell their size."""
        decoder = self.decoder
        window = decoder.schedule.window(snapshot)
        index, active = self._seen(snapshot, window)
        masked = gather_columns(snapshot.undecided, index) & (index >= 0)
        fresh = book.enter(window.key, masked & active)
        refresh = decoder.cache.plan(snapshot, index, fresh, cache_memory)
        if refresh is None:
            return _Ahead(index, masked, active, fresh, None, None)
        columns = refresh.columns
        # a column that the plan leaves out has no fresh logits
        computed = gather_columns(columns, index)
        index, masked = torch.where(computed, index, -1), masked & computed
        read_elsewhere = getattr(decoder.denoiser, "sources", None)
        if read_elsewhere is not None:
            sources = read_elsewhere(index, snapshot.live)
            columns = columns | mask_of(sources, snapshot.tokens.shape[1])
        return _Ahead(index, masked, active, fresh, columns, refresh.valid | columns)

    def _plan(self) -> Plan:
        # horizons may have moved since the last look
        complete = self.complete and not self.unchecked
        if self.ahead.refresh is None:
            return Plan(complete=complete)
        columns = columns_of(self.ahead.refresh, self.widest)
        return Plan(columns, self.ahead.valid, self.store, complete)

    def _seen(self, snapshot: Snapshot, window: Window) -> tuple[Tensor, Tensor]:
        """Columns whose logits are wanted, and which of them lie in the row's window."""
        if not self.sees_canvas:
            return window.index, window.index >= 0
        begin = snapshot.start
        columns = snapshot.columns[begin:].expand(snapshot.tokens.shape[0], -1)
        index = torch.where(columns < snapshot.horizon[:, None], columns, -1)
        inside = (index[:, :, None] == window.index[:, None, :]).any(-1)
        return index, inside & (index >= 0)

    def _predict(
        self, tokens: Tensor, snapshot: Snapshot, index: Tensor, plan: Plan, noise: Noise
    ) -> Prediction:
        span = slice(self.first, self.reach)
        if self.first:
            index = torch.where(index >= 0, index - self.first, -1)
        logits = self.forward(tokens[:, span], snapshot.live[:, span], index, plan)
        return self.decoder.sampler.predict(logits, self.banned, noise)

    def _view(
        self, snapshot: Snapshot, pred: Prediction, noise: Noise, plan: Plan, probes: list[Tensor]
    ) -> StepView:
        ahead = self.ahead
        index, masked, active = ahead.index, ahead.masked, ahead.active
        real = index >= 0
        settled = gather_columns(snapshot.editable & snapshot.decided, index) & real & active

        def prober(tokens: Tensor) -> Prediction:
            probes.append(tokens)
            canvas = spread(snapshot.tokens, index, tokens)
            if isinstance(self.cache_memory, StoreMemory) and ahead.refresh is not None:
                self.cache_memory.distrust(ahead.refresh)
            return self._predict(canvas, snapshot, index, plan, noise)

        return StepView(
            step=self.book.step,
            index=index,
            pred=pred,
            tokens=gather_columns(snapshot.tokens, index),
            active=active,
            open=masked & active,
            masked=masked,
            settled=settled,
            fresh=ahead.fresh,
            window_step=self.book.window_step,
            window_open=self.book.window_open,
            steps_left=self._steps_left(snapshot),
            snapshot=snapshot,
            noise=noise,
            prober=prober,
            parameters=self.book.parameters,
        )

    def _steps_left(self, snapshot: Snapshot) -> Tensor:
        progress = self.decoder.strategy.progress
        if isinstance(progress, Budget):
            return (progress.steps - self.book.step).clamp(min=0)
        return snapshot.undecided.sum(1)

    # Bookkeeping after the step.

    def _note(self, change: Change, view: StepView) -> None:
        self.snapshot = self.canvas.snapshot()
        change = replace(change, horizon=self.snapshot.horizon - self.snapshot.start)
        self.decoder.cache.note(change, self.cache_memory)
        book = self.book
        took_part = view.open.any(1)
        book.forwards = book.forwards + took_part * (1 + change.probes)
        book.surplus = book.surplus + ~took_part
        book.step = book.step + took_part
        book.window_step = book.window_step + took_part
        if isinstance(self.decoder.strategy.progress, Budget):
            book.over_budget = book.over_budget | change.forced
        if self.decoder.record:
            self.trace.append(change)
        for observer in self.decoder.observers:
            observer.step(change, self.snapshot)

    def _faults(self, view: StepView, decision: Decision) -> Tensor:
        """Counts of what must not be: (illegal decisions, unusable logits, ties, candidates)."""
        faults = faults_of(view, decision, self.revocable).sum()
        pred = view.pred
        if not isinstance(pred, DensePrediction):
            zero = torch.zeros_like(faults)
            return torch.stack([faults, zero, zero, zero])
        sick = (view.masked & ~pred.healthy).sum()
        ties = ((pred.top_confidence >= 1.0) & view.open).sum()
        return torch.stack([faults, sick, ties, view.open.sum()])

    def _sync(self) -> None:
        """The one look of the host at the device: faults, which rows are done, the next width."""
        snapshot, ahead = self.snapshot, self.ahead
        rows = self.book.rows.numel()
        facts = [snapshot.undecided.any(1).long(), snapshot.horizon]
        if ahead.refresh is not None and ahead.valid is not None:
            facts += [ahead.refresh.sum(1), ahead.valid.sum(1)]
        counts = [evidence.counts for evidence in self.unchecked]
        numbers = torch.cat([*facts, *counts]).tolist()
        for position, evidence in enumerate(self.unchecked):
            self._judge(evidence, numbers[len(facts) * rows + 4 * position :][:4])
        self.unchecked.clear()
        undecided, *sizes = (numbers[rows * n : rows * (n + 1)] for n in range(len(facts)))
        self._retire([not left for left in undecided])
        self._measure([[c for c, n in zip(size, undecided, strict=True) if n] for size in sizes])

    def _measure(self, sizes: Sequence[Sequence[int]]) -> None:
        """What the next pass covers: horizons and, with a store, columns computed and valid."""
        horizons, *stored = sizes
        self.reach = max(horizons, default=0)
        if stored:
            computed, valid = stored
            self.widest = max(computed, default=0)
            self.complete = min(valid, default=0) == self.reach
            return
        # without a store nothing is tied to a column: padding that all rows share is left out
        lengths = [len(self.request.prompts[row]) for row in self.live]
        longest = max(lengths, default=0)
        self.first = self.start - longest
        self.complete = (
            min(lengths, default=0) == longest and min(horizons, default=0) == self.reach
        )

    def _judge(self, evidence: _Evidence, counts: Sequence[int]) -> None:
        """Refuse illegal decisions and unusable logits; warn where confidences rank nothing."""
        illegal, sick, ties, candidates = counts
        view = evidence.view
        if sick:
            self._raise_unhealthy(view)
        if illegal:
            raise_fault(
                view,
                evidence.decision,
                faults_of(view, evidence.decision, self.revocable),
                rows=self.book.rows,
                plugin=type(self.decoder.strategy).__name__,
                revocable=self.revocable,
            )
        if ties > 1 and 2 * ties > candidates and not self._warned:
            self._warned = True
            warnings.warn(
                f"{ties} of {candidates} candidate positions have confidence exactly 1, so "
                "their order is decided by the column alone; a low temperature with "
                "sampler.confidence_from=sampled or low-precision logits do this",
                RuntimeWarning,
                stacklevel=5,
            )

    def _raise_unhealthy(self, view: StepView) -> NoReturn:
        assert isinstance(view.pred, DensePrediction)
        row, slot = (int(number) for number in (view.masked & ~view.pred.healthy).nonzero()[0])
        raise ModelOutputError(
            f"the model returned logits that cannot be used (NaN, infinite, or every allowed token "
            f"at -inf): row {int(self.book.rows[row])}, generated column "
            f"{int(view.index[row, slot]) - view.snapshot.start}, step {int(view.step[row])}"
        )

    def _retire(self, done: Sequence[bool]) -> None:
        """Move rows with nothing left to decide out of the batch."""
        if any(done):
            self._record([position for position, finished in enumerate(done) if finished])
            self._keep(done)

    def _keep(self, done: Sequence[bool]) -> None:
        """Close the gaps with the last rows, so that few stored keys and values have to move."""
        stay = [position for position, finished in enumerate(done) if not finished]
        count = len(stay)
        spare = [position for position in stay if position >= count]
        order = [spare.pop() if done[position] else position for position in range(count)]
        self.live = tuple(self.live[position] for position in order)
        if self.store is not None:
            self.store.take(order)
        keep = torch.tensor(order, dtype=torch.long).to(self.device, non_blocking=True)
        for part in (self.canvas, self.book, self.ahead, self.memory, self.cache_memory):
            if part is not None:
                part.take(keep)
        self.snapshot = self.canvas.snapshot()

    def _record(self, positions: Sequence[int], reason: str | None = None, error: str = "") -> None:
        """Fetch the outcomes of some rows of the batch, all in one go."""
        canvas, book = self.canvas, self.book
        at = torch.tensor(list(positions)).to(self.device, non_blocking=True)
        numbers = (canvas.horizon, canvas.end, book.forwards, book.surplus, book.over_budget)
        planes = (canvas.tokens, canvas.step_of, canvas.editable & ~canvas.decided)
        columns = [p[:, canvas.start :] for p in (*planes, canvas.confidence_of.double())]
        fetched = torch.cat([n[:, None] for n in numbers] + columns, 1)[at].tolist()
        for position, values in zip(positions, fetched, strict=True):
            self.outcomes[self.live[position]] = self._outcome(values, reason, error)

    def _outcome(self, values: Sequence[float], reason: str | None, error: str) -> Outcome:
        horizon, end, forwards, surplus, over_budget = map(int, values[:5])
        width, length = self.width - self.start, horizon - self.start
        tokens, steps, still_open, confidences = (
            values[5 + width * n :][:length] for n in range(4)
        )
        if reason is None:
            reason = "budget" if over_budget else "eot" if horizon < end else "length"
        return Outcome(
            sequence=tuple(map(int, tokens)),
            forwards=forwards,
            finish_reason=reason,
            step_of=tuple(map(int, steps)),
            confidence_of=tuple(confidences),
            undecided=int(sum(still_open)),
            surplus_forwards=surplus,
            error=error,
        )

    def interrupt(self) -> None:
        """End all rows of the batch as they are, with finish reason `interrupted`."""
        if self.live:
            self._record(range(len(self.live)), "interrupted")
        self.abandon()

    def abandon(self) -> None:
        """Drop the batch and everything its plugins remember, without outcomes."""
        self.live = ()
        self.memory = self.cache_memory = self.store = None

    def forget(self, trace: Sequence[Change], rows: Sequence[int]) -> None:
        """Take over a trace without some rows, which are going to be decoded again."""
        gone = torch.tensor(list(rows), device=self.device)
        for change in trace:
            keep = (~torch.isin(change.rows, gone)).nonzero()[:, 0]
            if keep.numel():
                self.trace.append(change.take(keep))

    def result(self) -> Result:
        """The result in request order; rows that never joined count as interrupted."""
        length = self.request.lengths
        result = gather_result(
            [
                self.outcomes.get(row, Outcome(finish_reason="interrupted", undecided=length[row]))
                for row in range(self.request.rows)
            ],
            self.trace,
        )
        for observer in self.decoder.observers:
            observer.finish(result)
        return result


def gather_result(outcomes: Sequence[Outcome], trace: Sequence[Change] = ()) -> Result:
    """The result of a request from the outcomes of its rows."""
    return Result(
        sequences=tuple(row.sequence for row in outcomes),
        forwards=tuple(row.forwards for row in outcomes),
        finish_reasons=tuple(row.finish_reason for row in outcomes),
        step_of=tuple(row.step_of for row in outcomes),
        confidence_of=tuple(row.confidence_of for row in outcomes),
        undecided=tuple(row.undecided for row in outcomes),
        surplus_forwards=tuple(row.surplus_forwards for row in outcomes),
        reference_forwards=(0,) * len(outcomes),
        errors=tuple(row.error for row in outcomes),
        trace=tuple(trace),
    )
