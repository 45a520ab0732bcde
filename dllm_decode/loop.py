"""The denoising loop, written once: every decoding idea is a plugin that it calls."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dllm_decode.cache import CachePolicy, NoCache
from dllm_decode.canvas import Canvas
from dllm_decode.denoiser import Denoiser
from dllm_decode.errors import CapabilityError, ConfigError, ModelOutputError
from dllm_decode.noise import Noise
from dllm_decode.prediction import DensePrediction, Prediction
from dllm_decode.sampling import Greedy, Sampler
from dllm_decode.schedule import Blocks, Schedule, Window
from dllm_decode.settle import settle
from dllm_decode.strategy import Budget, Strategy, is_revocable, parts_of
from dllm_decode.types import (
    Board,
    Change,
    Memory,
    Request,
    Result,
    StepView,
    gather_columns,
)


class Observer:
    """Watches a decode; override what you need. Raising from an observer ends the decode."""

    def start(self, request: Request, board: Board) -> None:
        """Called once, before the first forward pass."""

    def step(self, change: Change, board: Board) -> None:
        """Called after each step; `board` has the rows `change.rows` after the step."""

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
    of those names; observers: watch the steps; record: keep all changes in `Result.trace`.
    Raises `CapabilityError` where the parts cannot work together.
    """

    denoiser: Denoiser
    strategy: Strategy
    schedule: Schedule = field(default_factory=Blocks)
    cache: CachePolicy = field(default_factory=NoCache)
    sampler: Sampler = field(default_factory=Greedy)
    observers: tuple[Observer, ...] = ()
    record: bool = False

    def __post_init__(self) -> None:
        check_composition(self.strategy, self.schedule)

    def decode(self, request: Request) -> Result:
        """Decode all rows of a request.

        Raises `ConfigError` for requests that do not fit, `DecisionError` and `ModelOutputError`
        for faults of plugins and models, and `Interrupted` (with the partial result) on Ctrl-C.
        """
        self._check(request)
        run = _Run(self, request)
        for observer in self.observers:
            observer.start(request, run.canvas.board())
        try:
            while run.live():
                run.step()
        except KeyboardInterrupt:
            result = run.result(interrupted=True)
            self._finish(result)
            raise Interrupted(result) from None
        result = run.result()
        self._finish(result)
        return result

    def _finish(self, result: Result) -> None:
        for observer in self.observers:
            observer.finish(result)

    def _check(self, request: Request) -> None:
        self.schedule.check(request)
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
        for key, part in parts_of(self.strategy):
            if part.needs_reference and request.reference is None:
                raise CapabilityError(
                    f"strategy{'.' + key if key else ''} ({type(part).__name__}) needs the tokens "
                    "of a reference decode; give Request.reference, or call generate(), which "
                    "makes one"
                )


def check_composition(strategy: Strategy, schedule: Schedule) -> None:
    """Refuse parts that are valid alone but cannot work together; raises `CapabilityError`."""
    for key, part in parts_of(strategy):
        width = part.window_width
        if width is not None and width != schedule.block_length:
            raise CapabilityError(
                f"strategy{'.' + key if key else ''} ({type(part).__name__}) was made for blocks "
                f"of {width} columns, but schedule has "
                f"{schedule.block_length or 'no block grid'}; use schedule=blocks "
                f"schedule.length={width}"
            )


@dataclass
class _Book:
    """What the loop counts per row; `take` keeps it in step with the canvas."""

    rows: Tensor
    seeds: Tensor
    step: Tensor
    forwards: Tensor
    window_key: Tensor
    window_step: Tensor
    window_open: Tensor
    over_budget: Tensor

    @staticmethod
    def of(request: Request, device: torch.device) -> _Book:
        rows = torch.arange(request.rows, device=device)
        zero = torch.zeros_like(rows)
        seeds = torch.tensor(request.row_seeds, device=device, dtype=torch.long)
        return _Book(rows, seeds, zero, zero, zero - 1, zero, zero, torch.zeros_like(rows).bool())

    def take(self, keep: Tensor) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name)[keep])

    def enter(self, key: Tensor, open_slots: Tensor) -> Tensor:
        """Note the window each row is in; returns the rows that have just entered it."""
        fresh = key != self.window_key
        self.window_key = key
        self.window_step = torch.where(fresh, 0, self.window_step)
        self.window_open = torch.where(fresh, open_slots, self.window_open)
        return fresh


@dataclass
class _Row:
    """The outcome of a finished row."""

    sequence: tuple[int, ...]
    forwards: int
    reason: str
    step_of: tuple[int, ...]
    confidence_of: tuple[float, ...]
    undecided: int


class _Run:
    """One request on its way through the loop."""

    def __init__(self, decoder: Decoder, request: Request) -> None:
        self.decoder = decoder
        self.request = request
        denoiser = decoder.denoiser
        self.vocab = denoiser.vocab
        self.canvas = Canvas.of(request, self.vocab, denoiser.device)
        self.book = _Book.of(request, denoiser.device)
        self.banned = torch.tensor(self.vocab.never_generated, device=denoiser.device)
        board = self.canvas.board()
        self.memory = decoder.strategy.begin(request, board)
        self.cache_memory = decoder.cache.begin(request, board)
        self.sees_canvas = any(part.sees_canvas for _, part in parts_of(decoder.strategy))
        self.finished: dict[int, _Row] = {}
        self.trace: list[Change] = []
        self.warned = False
        self._retire(board)

    def live(self) -> bool:
        """Whether any row still has something to decide."""
        return self.book.rows.numel() > 0

    # One step, in the order of the algorithm box.

    def step(self) -> None:
        """One forward pass and the change that follows from it."""
        decoder, board = self.decoder, self.canvas.board()
        window = decoder.schedule.window(board)
        index, active = self._seen(board, window)
        logits = self._forward(board.tokens, board, index)
        noise = Noise(self.book.seeds, self.book.step, index - board.start)
        pred = decoder.sampler.predict(logits, self.banned, noise)
        probes: list[Tensor] = []
        view = self._view(board, window, index, active, pred, noise, probes)
        self._check_health(view)
        wish = decoder.strategy.decide(view, self.memory)
        change = settle(
            view,
            wish,
            rows=self.book.rows,
            plugin=type(decoder.strategy).__name__,
            revocable=is_revocable(decoder.strategy),
            progress=decoder.strategy.progress,
            probes=len(probes),
        )
        self.canvas.apply(change)
        after = self.canvas.board()
        self.canvas.narrow(decoder.strategy.horizon(after, view, change, self.memory))
        self._note(change)

    def _seen(self, board: Board, window: Window) -> tuple[Tensor, Tensor]:
        """Columns whose logits are wanted, and which of them lie in the row's window."""
        if not self.sees_canvas:
            return window.index, window.index >= 0
        begin = board.start
        columns = board.columns[begin:].expand(board.tokens.shape[0], -1)
        index = torch.where(columns < board.horizon[:, None], columns, -1)
        inside = (index[:, :, None] == window.index[:, None, :]).any(-1)
        return index, inside & (index >= 0)

    def _forward(self, tokens: Tensor, board: Board, index: Tensor) -> Tensor:
        width = int(board.horizon.max())
        plan = self.decoder.cache.plan(board, index, self.cache_memory)
        return self.decoder.denoiser(tokens[:, :width], board.live[:, :width], index, plan)

    def _view(
        self,
        board: Board,
        window: Window,
        index: Tensor,
        active: Tensor,
        pred: Prediction,
        noise: Noise,
        probes: list[Tensor],
    ) -> StepView:
        real = index >= 0
        masked = gather_columns(board.undecided, index) & real
        opened = masked & active
        settled = gather_columns(board.editable & board.decided, index) & real & active
        fresh = self.book.enter(window.key, opened.sum(1))

        def prober(tokens: Tensor) -> Prediction:
            probes.append(tokens)
            canvas = board.tokens.clone()
            rows, slots = real.nonzero(as_tuple=True)
            canvas[rows, index[rows, slots]] = tokens[rows, slots]
            logits = self._forward(canvas, board, index)
            return self.decoder.sampler.predict(logits, self.banned, noise)

        return StepView(
            step=self.book.step,
            index=index,
            pred=pred,
            tokens=gather_columns(board.tokens, index),
            active=active,
            open=opened,
            masked=masked,
            settled=settled,
            fresh=fresh,
            window_step=self.book.window_step,
            window_open=self.book.window_open,
            steps_left=self._steps_left(board),
            board=board,
            noise=noise,
            prober=prober,
        )

    def _steps_left(self, board: Board) -> Tensor:
        progress = self.decoder.strategy.progress
        if isinstance(progress, Budget):
            return (progress.steps - self.book.step).clamp(min=0)
        return board.undecided.sum(1)

    def _check_health(self, view: StepView) -> None:
        """Refuse logits that no rule can use; warn where confidences cannot rank positions."""
        pred = view.pred
        if not isinstance(pred, DensePrediction):
            return
        sick = view.masked & ~pred.healthy
        ties = (pred.top_confidence >= 1.0) & view.open
        counts = torch.stack([sick.sum(), ties.sum(), view.open.sum()]).tolist()
        if counts[0]:
            self._raise_unhealthy(view, sick)
        if counts[1] > 1 and 2 * counts[1] > counts[2] and not self.warned:
            self.warned = True
            warnings.warn(
                f"{counts[1]} of {counts[2]} candidate positions have confidence exactly 1, so "
                "their order is decided by the column alone; a low temperature with "
                "sampler.confidence_from=sampled or low-precision logits do this",
                RuntimeWarning,
                stacklevel=4,
            )

    def _raise_unhealthy(self, view: StepView, sick: Tensor) -> None:
        row, slot = (int(number) for number in sick.nonzero()[0])
        raise ModelOutputError(
            f"the model returned logits that cannot be used (NaN, infinite, or every allowed token "
            f"at -inf): row {int(self.book.rows[row])}, generated column "
            f"{int(view.index[row, slot]) - view.board.start}, step {int(view.step[row])}"
        )

    # Bookkeeping after the step.

    def _note(self, change: Change) -> None:
        board = self.canvas.board()
        change = replace(change, horizon=board.horizon - board.start)
        self.decoder.cache.note(change, self.cache_memory)
        book = self.book
        book.forwards = book.forwards + 1 + change.probes
        book.step = book.step + 1
        book.window_step = book.window_step + 1
        if isinstance(self.decoder.strategy.progress, Budget):
            book.over_budget = book.over_budget | change.forced
        if self.decoder.record:
            self.trace.append(change)
        for observer in self.decoder.observers:
            observer.step(change, board)
        self._retire(board)

    def _retire(self, board: Board) -> None:
        """Move rows with nothing left to decide out of the batch."""
        done = ~board.undecided.any(1)
        if not bool(done.any()):
            return
        for position in done.nonzero()[:, 0].tolist():
            self._record(position, interrupted=False)
        keep = (~done).nonzero()[:, 0]
        self.canvas = self.canvas.take(keep)
        self.book.take(keep)
        for memory in (self.memory, self.cache_memory):
            if isinstance(memory, Memory):
                memory.take(keep)

    def _record(self, position: int, *, interrupted: bool) -> None:
        canvas, book = self.canvas, self.book
        span = slice(canvas.start, int(canvas.horizon[position]))
        open_left = int((canvas.editable & ~canvas.decided)[position, span].sum())
        reason = "length"
        if canvas.horizon[position] < canvas.end[position]:
            reason = "eot"
        if book.over_budget[position]:
            reason = "budget"
        if interrupted:
            reason = "interrupted"
        self.finished[int(book.rows[position])] = _Row(
            sequence=tuple(canvas.tokens[position, span].tolist()),
            forwards=int(book.forwards[position]),
            reason=reason,
            step_of=tuple(canvas.step_of[position, span].tolist()),
            confidence_of=tuple(canvas.confidence_of[position, span].tolist()),
            undecided=open_left,
        )

    def result(self, *, interrupted: bool = False) -> Result:
        """The result in request order."""
        for position in range(self.book.rows.numel()):
            self._record(position, interrupted=interrupted)
        rows: Sequence[_Row] = [self.finished[row] for row in range(self.request.rows)]
        return Result(
            sequences=tuple(row.sequence for row in rows),
            forwards=tuple(row.forwards for row in rows),
            finish_reasons=tuple(row.reason for row in rows),
            step_of=tuple(row.step_of for row in rows),
            confidence_of=tuple(row.confidence_of for row in rows),
            undecided=tuple(row.undecided for row in rows),
            reference_forwards=(0,) * len(rows),
            trace=tuple(self.trace),
        )
