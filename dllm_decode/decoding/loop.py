"""The denoising loop, written once: every decoding idea is a plugin that it calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dllm_decode.decoding import calls
from dllm_decode.decoding.batch import Batch
from dllm_decode.decoding.cache import Plan, spread
from dllm_decode.decoding.canvas import Canvas
from dllm_decode.decoding.checks import check_request
from dllm_decode.decoding.composition import Composition
from dllm_decode.decoding.denoiser import Capabilities
from dllm_decode.decoding.guard import guarded, read_only
from dllm_decode.decoding.monitor import Monitor, device_faults_end_it
from dllm_decode.decoding.observer import Interrupted
from dllm_decode.decoding.outcome import Outcome, Result
from dllm_decode.decoding.prediction import HiddenStates, Prediction
from dllm_decode.decoding.returned import blamed, check_logits, check_prediction, named
from dllm_decode.decoding.settle import settle
from dllm_decode.decoding.strategy import Budget
from dllm_decode.decoding.types import Memory, Request, StepView, gather_columns
from dllm_decode.kernels import dispatch
from dllm_decode.kernels.lazy import Later


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
        check_request(self.denoiser, self.strategy, self.schedule, request)


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
        self._forward = _forward_of(decoder)
        if decoder.debug:
            self._forward = read_only(self._forward, named("model", decoder.denoiser))
        self._banned = torch.tensor(_banned_ids(decoder), device=decoder.denoiser.device)
        self._revocable = decoder.strategy.revocable

    @property
    def live(self) -> tuple[int, ...]:
        """Rows of the request that are being decoded."""
        return self.batch.rows

    @property
    def canvas(self) -> Canvas:
        """What stands there; written by `step` alone."""
        return self.batch.canvas

    @property
    def memory(self) -> Memory | None:
        """What the strategy remembers of the rows."""
        return self.batch.memory

    @property
    def outcomes(self) -> dict[int, Outcome]:
        """What became of the rows that are done."""
        return self.monitor.outcomes

    @torch.no_grad()
    @device_faults_end_it()
    def admit(self, rows: Sequence[int]) -> None:
        """Let rows of the request join."""
        self.batch.admit(rows)
        self.monitor.sync()

    @torch.no_grad()
    @device_faults_end_it()
    def step(self) -> None:
        """One forward pass and the change that follows from it."""
        plan = self.batch.plan()
        prediction = self.predict(self.batch.tokens, plan)
        view = self.view(prediction, plan)
        decision = calls.decide(self.strategy, view, self.memory)
        change, faults = settle(view, decision, self.strategy)
        self.canvas.apply(change, revocable=self._revocable)
        after = self.canvas.snapshot()
        self.canvas.narrow(calls.horizon(self.strategy, after, view, change, self.memory))
        self.batch.note(change)
        self.monitor.check(view, faults)

    def predict(self, tokens: Tensor, plan: Plan) -> Prediction:
        """One forward pass over the given tokens (B, L); row statistics are computed when read."""
        batch, span = self.batch, self.batch.span
        index, live = batch.next.index, batch.snapshot.live
        if span.start:
            index = (index - span.start).clamp_(min=-1)
        if span != slice(0, tokens.shape[1]):
            tokens, live = tokens[:, span], live[:, span]
        model, sampler = self.decoder.denoiser, self.decoder.sampler
        logits = self._forward(tokens, live, index, plan)
        check_logits(model, logits, index, model.vocab.size)
        # a model may ask for gradients itself, and plugins may keep what they saw
        logits = logits.detach() if isinstance(logits, Tensor) else logits
        prediction = sampler.predict(logits, self._banned, batch.noise)
        check_prediction(sampler, prediction, index, logits)
        if self.decoder.debug:  # what a plugin makes while it is at work has no version before
            _ = prediction.token, prediction.confidence
        return prediction

    def view(self, prediction: Prediction, plan: Plan) -> StepView:
        """Everything the strategy may know about this step."""
        batch = self.batch
        snapshot, upcoming, counters = batch.snapshot, batch.next, batch.counters
        index, active, progress = upcoming.index, upcoming.active, self.strategy.progress
        step, entered = counters.step, counters.window_entered

        def prober(tokens: Tensor) -> Prediction:
            batch.count_probe()
            return self.predict(spread(snapshot.tokens, index, tokens), plan)

        def settled() -> Tensor:
            decided = gather_columns(snapshot.editable & snapshot.decided, index)
            return decided & (index >= 0) & active

        def steps_left() -> Tensor:
            if isinstance(progress, Budget):
                return (progress.steps - step).clamp(min=0)
            return snapshot.left

        view = StepView(
            step=step,
            index=index,
            pred=prediction,
            tokens=Later(lambda: gather_columns(snapshot.tokens, index)),
            active=active,
            open=upcoming.open,
            masked=upcoming.masked,
            settled=Later(settled),
            fresh=upcoming.fresh,
            window_step=Later(lambda: step - entered),
            window_open=counters.window_open,
            steps_left=Later(steps_left),
            snapshot=snapshot,
            noise=batch.noise,
            prober=prober,
            parameters=counters.parameters,
            banned=self._banned,
        )
        vars(view)["offsets"] = batch.noise.index  # they are known already
        return view

    def take_over(self, other: Run, again: Sequence[int]) -> None:
        """Take over what another run of the request has done, less the rows decoded again."""
        self.outcomes.update(other.outcomes)
        gone = torch.tensor(list(again), device=self.batch.device)
        for change in other.batch.trace:
            keep = (~torch.isin(change.rows, gone)).nonzero()[:, 0]
            if keep.numel():
                self.batch.trace.append(change.take(keep))

    def interrupt(self) -> None:
        """End all rows of the batch as they are, with finish reason `interrupted`."""
        if self.live:
            self.monitor.record(range(len(self.live)), "interrupted")
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


def _forward_of(decoder: Decoder) -> Callable[..., Tensor | HiddenStates]:
    """The model's pass; it stops before the output head where head and statistics are one."""
    own = Capabilities.of(decoder.denoiser)
    if own.before_head is None or not decoder.sampler.takes_hidden:
        return decoder.denoiser
    fused = dispatch.fuses_head(decoder.denoiser.device, own.head_obstacle)
    return own.before_head if fused else decoder.denoiser


def _banned_ids(decoder: Decoder) -> list[int]:
    """Ids that are never proposed; those of the parts only where a sampler reshapes.

    Elsewhere a transform removes them itself, and the model's own probabilities stay as they are.
    """
    vocab = decoder.denoiser.vocab
    banned = set(vocab.never_generated)
    if decoder.sampler.reshapes:
        for _, part in decoder.strategy.parts():
            banned.update(part.banned_ids(vocab))
    return sorted(banned)
