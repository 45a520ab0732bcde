"""The denoising loop, written once: every decoding idea is a plugin that it calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from dllm_decode.decoding import calls
from dllm_decode.decoding.batch import Batch
from dllm_decode.decoding.canvas import Canvas
from dllm_decode.decoding.checks import check_request
from dllm_decode.decoding.composition import Composition
from dllm_decode.decoding.guard import guarded
from dllm_decode.decoding.monitor import DeviceFaultsEndIt, Monitor, PendingCheck
from dllm_decode.decoding.observer import Interrupted
from dllm_decode.decoding.outcome import Outcome, Result
from dllm_decode.decoding.passes import ModelPasses
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.replay import follower
from dllm_decode.decoding.returned import blamed
from dllm_decode.decoding.settle import settle, staying
from dllm_decode.decoding.strategy import Budget, Revisions
from dllm_decode.decoding.types import (
    Change,
    Memory,
    Request,
    Snapshot,
    StepView,
    gather_columns,
)


class Decoder(Composition):
    """One model, one strategy, one loop; the fields are those of `Composition`.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.threshold import ConfidenceThreshold
        >>> world = Copy(n=3)
        >>> prompt = tuple(world.tokenizer.encode("cab"))
        >>> decoder = Decoder(world, ConfidenceThreshold(0.9))
        >>> decoder.decode(Request((prompt,), max_new_tokens=4)).forwards
        (1,)
    """

    def decode(self, request: Request) -> Result:
        """Decode all rows of a request.

        Raises:
            ConfigError: for requests that do not fit.
            DecisionError: for faults of the strategy.
            ModelOutputError: for faults of the model.
            Interrupted: on Ctrl-C, with the partial result.
        """
        self.check(request)
        run = self.begin(request)
        try:
            run.admit(range(request.rows))
            while run.live:
                run.advance()
        except KeyboardInterrupt:
            run.interrupt()
            raise Interrupted(run.result()) from None
        return run.result()

    def begin(self, request: Request, capacity: int | None = None) -> Run:
        """A batch without rows; see `Run`."""
        return Run(self, request, capacity)

    def check(self, request: Request) -> None:
        """Raise `ConfigError` where model, schedule or strategy cannot serve a request."""
        check_request(self.denoiser, self.strategy, self.schedule, request)


def _without_gradients(method: Callable[..., None]) -> Callable[..., None]:
    """A method of a run in inference mode, in which small operators cost a sixth less.

    Its tensors have no versions, which the guard of `debug` reads: with it, without gradients only.
    """

    @wraps(method)
    def quiet(run: Run, *given: Any) -> None:
        mode = torch.no_grad() if run.decoder.debug else torch.inference_mode()
        with mode, DeviceFaultsEndIt():
            method(run, *given)

    return quiet


class Run:
    """A decode on its way through the loop: rows join, step together, and leave when done.

    Attributes:
        strategy: whose decisions are carried out.
        batch: the rows that are decoded together at the moment.
        monitor: what the host has seen of them, and the outcomes of those that are done.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> world = Copy(n=3)
        >>> prompts = tuple(tuple(world.tokenizer.encode(text)) for text in ("abc>", "cab>"))
        >>> run = Run(Decoder(world, TopK(2)), Request(prompts, max_new_tokens=4))
        >>> run.admit([0, 1])
        >>> while run.live:
        ...     run.step()
        >>> run.outcomes[1].forwards
        2
    """

    def __init__(self, decoder: Decoder, request: Request, capacity: int | None = None) -> None:
        """A decode without rows.

        Args:
            decoder: the parts.
            request: every row that may ever join, which sets the width of the canvas.
            capacity: rows that are decoded at once, for the key/value store; None for all.
        """
        decoder = guarded(decoder) if decoder.debug else decoder
        self.decoder = decoder
        self.strategy = decoder.strategy
        self.request = request
        self.batch = Batch(decoder, request, capacity)
        self.monitor = Monitor(self.batch)
        self.passes = ModelPasses(decoder, self.batch)
        self._revises = decoder.strategy.revocable or decoder.strategy.revises
        self._leaves_out = decoder.cache.logits in ("undecided", "part")
        self._follow = follower(decoder)

    @property
    def live(self) -> tuple[int, ...]:
        """Rows of the request that are being decoded."""
        return self.batch.rows

    @property
    def canvas(self) -> Canvas:
        """The canvas of these rows; only `step` writes to it."""
        return self.batch.canvas

    @property
    def memory(self) -> Memory | None:
        """What the strategy remembers of the rows."""
        return self.batch.memory

    @property
    def outcomes(self) -> dict[int, Outcome]:
        """What became of the rows that are done."""
        return self.monitor.outcomes

    @_without_gradients
    def admit(self, rows: Sequence[int]) -> None:
        """Let rows of the request join."""
        self.batch.admit(rows)
        self.monitor.sync()

    @_without_gradients
    def advance(self) -> None:
        """Steps until a row is done."""
        live = self.live
        while self.live == live:
            self._step()

    @_without_gradients
    def step(self) -> None:
        """One forward pass and the change that follows from it."""
        self._step()

    def _step(self) -> None:
        values = self.passes.ask(self.batch.plan())
        self.monitor.check(self._follow(self, values))

    def follow(self, values: Tensor) -> PendingCheck:
        """What follows from a forward pass: a function of tensors, for which nobody waits.

        Args:
            values: (B, W, ...) logits, or the states in front of the output head.
        """
        canvas = self.batch.canvas
        prediction, hidden = self.passes.read(values)
        view = self.view(prediction, hidden)
        decision = calls.decide(self.strategy, view, self.batch.memory)
        change, faults = settle(view, decision, self.strategy)
        canvas.apply(change, view.index, revocable=self._revises)
        horizon, lingering = self._outlook(canvas.snapshot(), view, change)
        canvas.narrow(horizon)
        self.batch.note(change, view, lingering)
        self.passes.carry(decision.carry, view)
        return PendingCheck.of(view, change, faults)

    def view(self, prediction: Prediction, hidden: Tensor | None = None) -> StepView:
        """Everything the strategy may know about this step."""
        batch = self.batch
        snapshot, upcoming, counters = batch.snapshot, batch.next, batch.counters
        index, active = upcoming.index, upcoming.active
        step, entered = counters.step, counters.window_entered

        def settled() -> Tensor:
            decided = gather_columns(snapshot.editable & snapshot.decided, index)
            return decided & (index >= 0) & active

        def steps_left() -> Tensor:
            progress = self.strategy.progress
            if isinstance(progress, Budget):
                return (progress.steps - step).clamp(min=0)
            return snapshot.left

        waiting = {
            "tokens": lambda: gather_columns(snapshot.tokens, index),
            "settled": settled,
            "window_step": lambda: step - entered,
            "steps_left": steps_left,
        }
        view: StepView = StepView.made(
            waiting,
            step=step,
            index=index,
            pred=prediction,
            active=active,
            open=upcoming.open,
            masked=upcoming.masked,
            fresh=upcoming.fresh,
            window_open=counters.window_open,
            snapshot=snapshot,
            noise=batch.noise,
            lingering=upcoming.lingering,
            hidden=hidden,
            passes=self.passes,
            parameters=counters.parameters,
            banned=self.passes.banned,
            window=upcoming.window if self._leaves_out else None,
        )
        return view

    def _outlook(
        self, after: Snapshot, view: StepView, change: Change
    ) -> tuple[Tensor, Tensor | None]:
        """How far the rows are still worth decoding, and which of them stay in a full window.

        What may still be revised ends nothing: under `Revisions`, horizons shrink when a row leaves
        its window.
        """
        horizon = calls.horizon(self.strategy, after, view, change, self.batch.memory)
        progress = self.strategy.progress
        if not isinstance(progress, Revisions):
            return horizon, None
        asked = calls.lingers(self.strategy, after, view, change, self.memory)
        lingering, busy = staying(asked, after, view, change, progress)
        return torch.where(busy, after.horizon, horizon), lingering

    def interrupt(self) -> None:
        """End all rows of the batch as they are, with finish reason `interrupted`."""
        known = self.outcomes  # also of rows that were about to leave
        going = [place for place, row in enumerate(self.live) if row not in known]
        if going:
            self.monitor.record(going, "interrupted")
        self.batch.abandon()

    def result(self) -> Result:
        """The result in request order; rows that never joined count as interrupted."""
        rows = tuple(
            self.outcomes.get(row, Outcome(finish_reason="interrupted", undecided=length))
            for row, length in enumerate(self.request.lengths)
        )
        result = Result(rows, tuple(self.batch.trace))
        for observer in self.decoder.observers:
            with blamed(observer):
                observer.finish(result)
        return result
