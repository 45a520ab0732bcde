"""The passes of one decode: the step's own, probes with other tokens, drafts from its states.

A pass gives values from which logits follow: the logits themselves, or the states in front of the
output head, where a kernel makes statistics of them or a part wants to see them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dllm_decode.decoding.batch import Batch, Carried, of_one_width
from dllm_decode.decoding.cache import Plan, spread
from dllm_decode.decoding.composition import Composition
from dllm_decode.decoding.denoiser import MovableDrafter
from dllm_decode.decoding.guard import read_only
from dllm_decode.decoding.prediction import HiddenStates, Prediction, PredictionError
from dllm_decode.decoding.returned import (
    check_logits,
    check_prediction,
    check_states,
    lay_on,
    named,
)
from dllm_decode.decoding.selection import numbers
from dllm_decode.decoding.types import Carry, StepView, gather_columns, ids_on
from dllm_decode.errors import PluginError
from dllm_decode.kernels import dispatch
from dllm_decode.kernels.noise import Noise


@dataclass(frozen=True)
class Probed:
    """A probe of this step.

    Attributes:
        prediction: what the part was given.
        values: (B, W, ...) of the pass.
        canvas: (B, L) the tokens it looked at.
        rows: (B,) bool, the rows that asked.

    Examples:
        >>> logits = torch.zeros(1, 2, 3)
        >>> everything = torch.tensor([True])
        >>> Probed(Prediction.of(logits), logits, torch.zeros(1, 4).long(), everything).rows
        tensor([True])
    """

    prediction: Prediction
    values: Tensor
    canvas: Tensor
    rows: Tensor


class ModelPasses:
    """What the model is asked in one decode; `types.Passes` is the side that views show.

    Args:
        parts: the model and the plugins.
        batch: the rows that are decoded.

    Attributes:
        banned: (M,) ids that the sampler is told never to propose.

    Examples:
        >>> from dllm_decode.decoding.loop import Decoder, Run
        >>> from dllm_decode.decoding.types import Request
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> run = Run(Decoder(Copy(n=3), TopK(2)), Request(((0, 1, 2, 63),), max_new_tokens=4))
        >>> run.admit([0])
        >>> run.passes.predict(run.batch.plan())[0].token.shape
        torch.Size([1, 32])
    """

    def __init__(self, parts: Composition, batch: Batch) -> None:
        self.batch = batch
        self._model, self._sampler = parts.denoiser, parts.sampler
        self._debug = parts.debug
        self._own = parts.able
        inside = [part for _, part in parts.strategy.parts() if part.needs or part.drafter]
        self._drafter = next((part.drafter for part in inside if part.drafter), None)
        if self._drafter is not None and isinstance(self._drafter, MovableDrafter):
            self._drafter = self._drafter.to(batch.device)
        self._shows_hidden = bool(inside)
        self._run = self._pass_of(parts)
        self.banned = ids_on(tuple(_banned_ids(parts)), batch.device).clone()  # views show it
        self._weight: Any = None  # of the head, where a pass stops in front of it
        self._whole: Tensor | None = None  # (B, L', D) states of the pass, where a drafter is
        self._states: Tensor | None = None  # those that the drafter goes on from
        self._probes: list[Probed] = []
        self._plan: Plan
        self._last: Tensor | None = None  # what the step's own pass gave

    def _pass_of(self, parts: Composition) -> Callable[..., Tensor | HiddenStates]:
        """The pass: it stops before the head where its states are shown, or one with statistics."""
        run: Callable[..., Tensor | HiddenStates] = parts.denoiser
        if self._shows_hidden:
            assert self._own.states is not None  # checked when the decoder was composed
            run = self._own.states
        elif self._own.before_head is not None and parts.sampler.takes_hidden:
            obstacle = self._own.head_obstacle
            fused = self._own.head_shared or dispatch.fuses_head(self.batch.device, obstacle)
            run = self._own.before_head if fused else run
        return read_only(run, named("model", parts.denoiser)) if parts.debug else run

    # The step's own pass.

    def predict(self, plan: Plan) -> tuple[Prediction, Tensor | None]:
        """What is predicted for the step, and the states it was made of where they are shown."""
        return self.read(self.ask(plan))

    def ask(self, plan: Plan) -> Tensor:
        """The step's forward pass: (B, W, ...) logits, or states in front of the head."""
        batch, carried = self.batch, self.batch.next.carried
        self._plan = plan
        if carried is not None:
            return self._missing(carried, plan)
        return self._values(batch.tokens, batch.snapshot.live, batch.next.index, plan)

    def read(self, values: Tensor) -> tuple[Prediction, Tensor | None]:
        """What a pass predicts, and the states it was made of where they are shown.

        A step begins here, also one that is followed once more because it could not be captured.
        """
        self._last, self._states, self._probes = values, self._whole, []
        prediction = self._prediction(values, self.batch.noise)
        return prediction, values if self._shows_hidden else None

    def _missing(self, carried: Carried, plan: Plan) -> Tensor:
        """What probes have said, and a pass of the rows about which they have said nothing."""
        batch = self.batch
        if batch.missing == 0:
            return carried.values
        rows = rows_of(~carried.rows, batch.missing)
        if not len(rows):
            return carried.values
        tokens, live, index = batch.tokens[rows], batch.snapshot.live[rows], batch.next.index[rows]
        fresh = self._values(tokens, live, index, _plan_of(plan, rows))
        return carried.values.to(fresh.dtype).index_copy(0, rows, fresh)

    def _values(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """One forward pass; tokens, live (B, L), index (B, W)."""
        span = self.batch.span
        if span.start:
            index = (index - span.start).clamp_(min=-1)
        if span != slice(0, tokens.shape[1]):
            tokens, live = tokens[:, span], live[:, span]
        if self._drafter is not None:
            everywhere = torch.arange(tokens.shape[1], device=index.device).expand_as(tokens)
            self._whole = self._checked(self._run(tokens, live, everywhere, plan), everywhere)
            return gather_columns(self._whole, index)
        return self._checked(self._run(tokens, live, index, plan), index)

    def _checked(self, made: Tensor | HiddenStates, index: Tensor) -> Tensor:
        """What a pass gave, of the right shape, and without gradient."""
        if self._shows_hidden:
            check_states(self._model, made, index)
        else:
            check_logits(self._model, made, index, self._model.vocab.size)
        if isinstance(made, HiddenStates):
            self._weight, made = made.weight, made.hidden
        # a model may ask for gradients itself, and plugins may keep what they saw
        return made if made.is_inference() else made.detach()

    def _prediction(self, values: Tensor, noise: Noise) -> Prediction:
        logits: Tensor | HiddenStates = values
        if self._shows_hidden:
            assert self._own.head is not None
            logits = self._own.head(values)
            check_logits(self._model, logits, values[..., 0], self._model.vocab.size)
        elif self._weight is not None:
            logits = HiddenStates(values, self._weight)
        try:
            prediction = self._sampler.predict(logits, self.banned, noise)
        except PredictionError as error:  # inside a probe it would be laid on the part that asked
            raise PluginError(f"{named('sampler', self._sampler)}: {error}") from error
        except Exception as error:
            lay_on(error, named("sampler", self._sampler))
            raise
        check_prediction(self._sampler, prediction, values, logits)
        if self._debug:  # what a plugin makes while it is at work has no version before
            _ = prediction.token, prediction.confidence
        return prediction

    # What views ask.

    @property
    def drafts(self) -> bool:
        """Whether a part has a drafter."""
        return self._drafter is not None

    def probed(self, prediction: Prediction) -> bool:
        """Whether a prediction is that of a probe of this step."""
        return any(probe.prediction is prediction for probe in self._probes)

    def probe(
        self,
        canvases: Sequence[Tensor],
        rows: Sequence[Tensor],
        everyone: bool,
        ahead: Sequence[int],
    ) -> tuple[Prediction, ...]:
        """The predictions with other tokens (B, W) at the slots; see `StepView.probe`."""
        batch, states = self.batch, self._states
        planes = [spread(batch.tokens, batch.next.index, tokens) for tokens in canvases]
        stored = self._plan.store is not None
        values = self._one_by_one(planes) if stored else self._together(planes, rows, everyone)
        self._states = states
        batch.count_probe(torch.stack([*rows], 1), unasked=stored and not everyone)
        found = []
        for plane, value, asked, steps in zip(planes, values, rows, ahead, strict=True):
            prediction = self._prediction(value, self._noise(steps))
            self._probes.append(Probed(prediction, value, plane, asked))
            found.append(prediction)
        return tuple(found)

    def _noise(self, ahead: int) -> Noise:
        noise = self.batch.noise
        ahead_of: Noise = noise.but(step=noise.step + ahead) if ahead else noise
        return ahead_of

    def later(self, steps: int) -> Prediction:
        """The step's prediction with other random numbers; see `StepView.later`."""
        assert self._last is not None
        return self._prediction(self._last, self._noise(steps))

    def _one_by_one(self, planes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """A pass of all rows for each alternative: a key/value store holds no second batch."""
        live, index = self.batch.snapshot.live, self.batch.next.index
        return tuple(self._values(plane, live, index, self._plan) for plane in planes)

    def _together(
        self, planes: Sequence[Tensor], rows: Sequence[Tensor], everyone: bool
    ) -> tuple[Tensor, ...]:
        """All alternatives of the rows that ask for them in one pass, (B, W, ...) each."""
        live, index, count = self.batch.snapshot.live, self.batch.next.index, len(planes)
        tokens, places = torch.cat([*planes]), numbers(len(live), live.device).repeat(count)
        live, index = live.repeat(count, 1), index.repeat(count, 1)
        if everyone:
            plan = _plan_of(self._plan, places)
            return self._values(tokens, live, index, plan).chunk(count)
        asking = torch.cat([*rows]).nonzero()[:, 0]  # the host waits, and saves the other passes
        if not len(asking):
            assert self._last is not None
            return (self._last,) * count
        plan = _plan_of(self._plan, places[asking])
        found = self._values(tokens[asking], live[asking], index[asking], plan)
        whole = found.new_zeros(len(tokens), *found.shape[1:]).index_copy(0, asking, found)
        return whole.chunk(count)

    def head(self, hidden: Tensor) -> Prediction:
        """The prediction of states (B, W, D); see `StepView.head`."""
        check_states("view.head", hidden, self.batch.next.index)
        return self._prediction(hidden, self.batch.noise)

    def draft(self, tokens: Tensor, rows: Tensor, ahead: int) -> Prediction:
        """The drafter's prediction with tokens (B, W) at the slots; see `StepView.draft`."""
        batch, span = self.batch, self.batch.span
        assert self._drafter is not None and self._states is not None
        canvas = spread(batch.tokens, batch.next.index, tokens)[:, span]
        states = self._drafter(self._own, self._states, canvas, batch.snapshot.live[:, span])
        everywhere = canvas
        check_states(self._drafter, states, everywhere)
        self._states = states.detach()
        batch.count_drafts(rows)
        index = batch.next.index
        inside = torch.where(index >= 0, index - span.start, -1)
        return self._prediction(gather_columns(self._states, inside), self._noise(ahead))

    # What the next step starts from.

    def carry(self, carry: Carry | None, view: StepView) -> None:
        """Keep the probes that say what the next step would ask, and no other logits."""
        made, self._probes, self._last = self._probes, [], None
        if carry is None or self.batch.store is not None or self.drafts:
            return
        probes = [
            probe for chosen in carry.predictions for probe in made if probe.prediction is chosen
        ]
        self._keep(carry, probes, view)

    def _keep(self, carry: Carry, probes: Sequence[Probed], view: StepView) -> None:
        batch = self.batch
        upcoming, after = batch.next, batch.snapshot
        pick = carry.choice.clamp(0, len(probes) - 1)
        row = torch.arange(len(pick), device=pick.device)
        before, now = of_one_width(view.index, upcoming.index, -1)
        canvas = torch.stack([probe.canvas for probe in probes])[pick, row]
        asked = torch.stack([probe.rows for probe in probes])[pick, row]
        same = (canvas == after.tokens).all(1) & (before == now).all(1)
        same = same & (after.horizon == view.snapshot.horizon)
        values = torch.stack([probe.values for probe in probes])[pick, row]
        carried = Carried((carry.choice == pick) & asked & same, values)
        carried.fit(upcoming.index.shape[1])
        upcoming.carried = carried


def rows_of(flags: Tensor, count: int | None) -> Tensor:
    """Where flags (B,) are set, rising, (N,) int64.

    Args:
        flags: which ones.
        count: how many they are; None to wait for the device to say so.
    """
    if count is None:
        return flags.nonzero()[:, 0]
    rows = len(flags)
    return torch.where(flags, numbers(rows, flags.device), rows).sort().values[:count]


def _plan_of(plan: Plan, rows: Tensor) -> Plan:
    """The plan of a pass without a store over other rows: (N,) of the step's, in any number."""
    if plan.extents is None:
        return plan
    # only a pass on a processor reads them, and to look there waits for nobody
    extents = tuple(plan.extents[row] for row in rows.tolist()) if rows.is_cpu else None
    return replace(plan, extents=extents)


def _banned_ids(parts: Composition) -> list[int]:
    """Ids that are never proposed; those of the parts only where a sampler reshapes.

    Elsewhere a transform removes them itself, and the model's own probabilities stay as they are.
    """
    vocab = parts.denoiser.vocab
    banned = set(vocab.never_generated)
    if parts.sampler.reshapes:
        for _, part in parts.strategy.parts():
            banned.update(part.banned_ids(vocab))
    return sorted(banned)
