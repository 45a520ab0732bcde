"""Calls of plugin methods, each with a check of what came back.

A wrong answer is refused here, in the name of the part that gave it: further on it would be a
torch error, or silently broadcast. Only what the host knows is checked (types, shapes, devices);
values are the business of `settle`, because looking at them would make the host wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from dllm_decode.decoding.prediction import Prediction, PredictionError
from dllm_decode.decoding.returned import FLOATS, INTEGERS, kind_of, lay_on, named, plane_fault
from dllm_decode.decoding.types import (
    Carry,
    Change,
    Decision,
    Memory,
    Request,
    Snapshot,
    StepView,
)
from dllm_decode.errors import ConfigError, DecisionError
from dllm_decode.kernels.lazy import copied
from dllm_decode.kernels.reference import cast

Decide = TypeVar("Decide", bound=Callable[..., Decision])

# Parts are untyped here: their classes stand in `strategy`, which calls them through this module.

# What a plane may hold.
_TYPES: Mapping[str, Sequence[torch.dtype]] = {
    "commit": (torch.bool,),
    "remask": (torch.bool,),
    "keep": (torch.bool,),
    "tokens": INTEGERS,
    "horizon": INTEGERS,
    "lingers": (torch.bool,),
    "closes": (torch.bool,),
    "close": (torch.bool,),
    "steps": INTEGERS,
    "carry.choice": INTEGERS,
    "scores": (*FLOATS, *INTEGERS),
    "confidence": FLOATS,
}
_PLANES = ("commit", "remask", "tokens", "scores", "confidence")


def begin(part: Any, place: str, request: Request, snapshot: Snapshot) -> Memory | None:
    """The part's memory of a request; raises `DecisionError` for one that cannot follow rows.

    Args:
        part: whose memory it is.
        place: its config key, for messages.
        request: the rows that join.
        snapshot: their canvas.
    """
    who = named(place, part)
    try:
        memory = part.begin(request, snapshot)
    except Exception as error:
        _place(error, who)
        raise
    if memory is not None and not isinstance(memory, Memory):
        raise DecisionError(
            f"{who}: begin returned {kind_of(memory)}; it must return None or a Memory"
        )
    if memory is not None:
        _check_memory(memory, snapshot.horizon.shape[0], f"{who}: the memory's")
    return memory


def check_rows(memory: Memory | None, rows: int, who: str) -> None:
    """Raise `DecisionError` where a part has written into its memory what cannot follow rows.

    Args:
        memory: of the part; None for none.
        rows: of the batch.
        who: the part, see `named`.
    """
    if memory is not None:
        _check_memory(memory, rows, f"{who}: the memory's")


def check_alike(own: Any, new: Any, whose: str) -> None:
    """Raise `DecisionError` where rows that join have a memory of another kind than those before.

    Args:
        own: of the rows before; None for no memory.
        new: of the rows that join.
        whose: the part, and the place in its memory, for messages.
    """
    kinds = (Memory, Tensor, dict)
    held = [next((kind for kind in kinds if isinstance(one, kind)), None) for one in (own, new)]
    if held[0] is not held[1] or (held[0] is Memory and type(own) is not type(new)):
        raise DecisionError(
            f"{whose} is {kind_of(own)} for the rows before and {kind_of(new)} for rows that join; "
            "begin must return the same kind for all"
        )
    if held[0] is dict:
        for key in own.keys() | new.keys():
            check_alike(own.get(key), new.get(key), f"{whose}[{key!r}]")
    elif held[0] is Memory:
        for entry in fields(own):
            mine, theirs = getattr(own, entry.name), getattr(new, entry.name)
            check_alike(mine, theirs, f"{whose}.{entry.name}")


def checks_itself(decide: Decide) -> Decide:
    """Mark a `decide` that makes its decision of checked answers alone, to be checked no more.

    The mark is the method's: a class that overrides it has none.
    """
    decide.checks_itself = True  # type: ignore[attr-defined]
    return decide


def decide(strategy: Any, view: StepView, memory: Any) -> Decision:
    """The strategy's decision, planes of the right shapes and types in it.

    Args:
        strategy: whose decision it is.
        view: of the step.
        memory: of the strategy.
    """
    try:
        decision: Decision = strategy.decide(view, memory)
    except Exception as error:
        _blame(error, strategy, view)
        raise
    if getattr(type(strategy).decide, "checks_itself", False):
        return decision
    return check_decision(decision, view, named(view.part, strategy))


def author(view: StepView, decision: Decision, row: int, slot: int, token: int | None) -> str:
    """The part to blame for a faulty slot.

    It is the first part whose prediction already has the fault, else the selection.

    Args:
        view: as the loop made it, so that its prediction is the sampler's.
        decision: as `decide` returned it.
        row: of the batch.
        slot: of the view.
        token: the id that must not be there; None where the fault is a score that is NaN.

    Returns:
        The part's place and class, as messages name it.
    """
    for name, pred in (("sampler", view.pred), *decision.predictions):
        if token is None:
            wrong = bool((pred.confidence[row, slot] + pred.entropy[row, slot]).isnan())
        else:
            wrong = int(pred.token[row, slot]) == token
        if wrong:
            return name
    return decision.author


def adjust(transform: Any, view: StepView, memory: Any) -> Prediction:
    """The transform's prediction, of the shape of the one it was given.

    Args:
        transform: what changes the prediction.
        view: of the step.
        memory: of the transform.
    """
    try:
        pred = transform.adjust(view, memory)
    except Exception as error:
        _blame(error, transform, view)
        raise
    if not isinstance(pred, Prediction):
        raise DecisionError(
            f"{named(view.part, transform)}: adjust returned {kind_of(pred)}; it must return a "
            f"Prediction, such as view.pred.with_logit_bias(ids, delta){_when(view)}"
        )
    if pred.shape != view.pred.shape:
        raise DecisionError(
            f"{named(view.part, transform)}: adjust returned a prediction of shape {pred.shape}; "
            f"it must have the shape of view.pred, {view.pred.shape}{_when(view)}"
        )
    return pred


def keep(part: Any, view: StepView, decision: Decision, memory: Any) -> Tensor:
    """The slots whose commit a filter does not veto, (B, W) bool.

    Args:
        part: the filter.
        view: of the step.
        decision: what is to be committed.
        memory: of the filter.
    """
    try:
        kept = part.keep(view, decision, memory)
    except Exception as error:
        _blame(error, part, view)
        raise
    return _checked("keep", kept, view.open, named(view.part, part), view)


def horizon(part: Any, snapshot: Snapshot, view: StepView, change: Change, memory: Any) -> Tensor:
    """The horizon that a part asks for, (B,) int64.

    Args:
        part: a stop rule or a strategy.
        snapshot: the canvas behind the step.
        view: of the step.
        change: what the step did.
        memory: of the part.
    """
    try:
        asked = part.horizon(snapshot, view, change, memory)
    except Exception as error:
        _blame(error, part, view)
        raise
    if asked is snapshot.horizon:  # most parts of most pipelines leave it where it is
        return asked
    who = named(view.part, part)
    return cast(_checked("horizon", asked, snapshot.horizon, who, view), torch.long)


def lingers(
    part: Any, snapshot: Snapshot, view: StepView, change: Change, memory: Any
) -> Tensor | None:
    """The rows that a strategy wants to look at once more, (B,) bool.

    Args:
        part: the strategy.
        snapshot: the canvas behind the step.
        view: of the step.
        change: what the step did.
        memory: of the strategy.
    """
    try:
        asked = part.lingers(snapshot, view, change, memory)
    except Exception as error:
        _blame(error, part, view)
        raise
    if asked is None:
        return None
    return _checked("lingers", asked, view.live, named(view.part, part), view)


def closes(part: Any, view: StepView, memory: Any) -> Tensor | None:
    """The rows that a stop rule ends now, (B,) bool.

    Args:
        part: the stop rule.
        view: of the step.
        memory: of the stop rule.
    """
    try:
        asked = part.closes(view, memory)
    except Exception as error:
        _blame(error, part, view)
        raise
    if asked is None:
        return None
    return _checked("closes", asked, view.live, named(view.part, part), view)


def check_decision(decision: Any, view: StepView, who: str) -> Decision:
    """A decision in which all has its shape and type; raises `DecisionError` in the name of `who`.

    Tokens come back as int64, and `author` says who decided.

    Args:
        decision: as a plugin returned it.
        view: of the step.
        who: the plugin, for messages.
    """
    if not isinstance(decision, Decision):
        raise DecisionError(
            f"{who}: decide returned {kind_of(decision)}; it must return a Decision{_when(view)}"
        )
    for name in _PLANES:
        value = getattr(decision, name)
        if value is not None or name == "commit":
            _checked(name, value, view.open, who, view)
    for name in ("close", "steps"):
        value = getattr(decision, name)
        if value is not None:
            _checked(name, value, view.step, who, view)
    if decision.carry is not None:
        _check_carry(decision.carry, view, who)
    if type(decision.notes) is not dict or decision.notes:
        _check_notes(decision.notes, view, who)
    tokens = None if decision.tokens is None else cast(decision.tokens, torch.long)
    return copied(decision, tokens=tokens, author=decision.author or who)


def _check_carry(carry: Any, view: StepView, who: str) -> None:
    if not isinstance(carry, Carry):
        raise DecisionError(
            f"{who} returned carry, {kind_of(carry)}; it must be a Carry{_when(view)}"
        )
    _checked("carry.choice", carry.choice, view.step, who, view)
    if not carry.predictions:
        raise DecisionError(
            f"{who} returned carry without predictions; give those of probes of this step, or no "
            f"carry{_when(view)}"
        )
    for prediction in carry.predictions:
        if view.passes is None or not view.passes.probed(prediction):
            raise DecisionError(
                f"{who} returned carry with {kind_of(prediction)} that no probe of this step "
                f"made{_when(view)}"
            )


def _check_notes(notes: Any, view: StepView, who: str) -> None:
    if not isinstance(notes, Mapping):
        raise DecisionError(
            f"{who} returned notes, {kind_of(notes)}; they must be a mapping from names to tensors"
            f"{_when(view)}"
        )
    rows = view.open.shape[0]
    for name, note in notes.items():
        if not isinstance(note, Tensor) or note.dim() == 0 or note.shape[0] != rows:
            raise DecisionError(
                f"{who} returned the note {name!r}, {kind_of(note)}; it must be a tensor with the "
                f"{rows} rows of the batch in front{_when(view)}"
            )


def _checked(name: str, value: Any, like: Tensor, who: str, view: StepView) -> Tensor:
    """One plane of an answer, of the shape and on the device of another."""
    if fault := plane_fault(value, like.shape, _TYPES[name], like.device):
        raise DecisionError(f"{who} returned {name}, {fault}{_when(view)}")
    plane: Tensor = value
    return plane


def _check_memory(memory: Memory, rows: int, whose: str) -> None:
    known = {entry.name for entry in fields(memory)}
    loose = sorted(set(vars(memory)) - known)
    if loose:
        raise DecisionError(
            f"{whose} class {type(memory).__name__} must be a dataclass, or rows that leave the "
            f"batch stay in {', '.join(loose)}"
        )
    for name in known:
        _check_entry(getattr(memory, name), rows, f"{whose} {name}")


def _check_entry(value: Any, rows: int, whose: str) -> None:
    if isinstance(value, Memory):
        _check_memory(value, rows, f"{whose}:")
    elif isinstance(value, dict):
        for key, entry in value.items():
            _check_entry(entry, rows, f"{whose}[{key!r}]")
    elif isinstance(value, Tensor):
        if value.dim() == 0 or value.shape[0] != rows:
            raise DecisionError(
                f"{whose} has shape {tuple(value.shape)}; the {rows} rows of the batch must stand "
                "in its first dimension"
            )
    elif isinstance(value, list | tuple | set | frozenset) and any(map(_has_rows, value)):
        raise DecisionError(
            f"{whose} is a {type(value).__name__} of tensors, whose rows cannot follow the batch; "
            "use one tensor, or a dict"
        )


def _has_rows(value: Any) -> bool:
    """Whether something holds rows of the batch, directly or within."""
    if isinstance(value, dict):
        return any(map(_has_rows, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_has_rows, value))
    return isinstance(value, Tensor | Memory)


def _blame(error: Exception, part: Any, view: StepView) -> None:
    """Raise what a part, or one of its predictions, refuses in its name; note it in all others."""
    who = named(view.part, part)
    if isinstance(error, PredictionError):
        raise DecisionError(f"{who}: {error}{_when(view)}") from error
    _place(error, who)


def _place(error: Exception, who: str) -> None:
    """What a part itself refuses, with the part's place; a part inside it may have said its own."""
    if isinstance(error, ConfigError) and not str(error).startswith("strategy"):
        raise type(error)(f"{who}: {error}") from error
    lay_on(error, who)


def _when(view: StepView) -> str:
    """The step, as messages say it; only asked when something is refused."""
    return f" (step {int(view.step.max())})" if view.step.numel() else ""
