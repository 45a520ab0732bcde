"""What plugins and models return, checked as soon as they do.

A wrong shape or type is refused here in the name of the part that returned it, because further on
it would be an error of torch, or nothing at all. Only what the host knows is looked at: values are
on the device, and asking for them would make the host wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dllm_decode.decoding.prediction import DrawError, HiddenStates, Prediction, PredictionError
from dllm_decode.decoding.sampling import Categorical, Greedy
from dllm_decode.errors import DllmDecodeError, ModelOutputError, PluginError


def named(place: str, part: object) -> str:
    """How messages name a part: its config key and its class.

    Args:
        place: its config key.
        part: what stands there.
    """
    return f"{place} ({type(part).__name__})"


def lay_on(error: Exception, who: str) -> None:
    """Note in an exception which part raised it; ours say so, and the innermost part comes first.

    Args:
        error: whatever a plugin's own code has raised; it stays what it is.
        who: the part, see `named`.
    """
    noted = any(note.startswith("raised by ") for note in getattr(error, "__notes__", ()))
    if not (noted or isinstance(error, DllmDecodeError)):
        error.add_note(f"raised by {who}")


@contextmanager
def blamed(observer: object) -> Iterator[None]:
    """Say in an exception which observer raised it; the exception stays what it is."""
    try:
        yield
    except Exception as error:
        error.add_note(f"raised by {named('observer', observer)}")
        raise


FLAGS = (torch.bool,)
LONG = (torch.long,)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32)


def kind_of(value: object) -> str:
    """What something is, as messages say it."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def plane_fault(
    value: Any, shape: Sequence[int | str], dtypes: Sequence[torch.dtype], device: torch.device
) -> str:
    """What is wrong with a tensor that a part returned, empty if nothing is.

    Args:
        value: what came back.
        shape: the shape it must have; a letter stands for any number of 1 or more.
        dtypes: the types it may have.
        device: where it must be.
    """
    if (
        isinstance(value, Tensor)
        and (value.shape == shape or _fits(value.shape, shape))
        and value.dtype in dtypes
        and value.device == device
        and value.layout == torch.strided
    ):
        return ""
    wanted = f"a tensor of shape ({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
    if not isinstance(value, Tensor):
        return f"{kind_of(value)}; it must be {wanted}"
    if not _fits(value.shape, shape):
        return f"{kind_of(value)}; it must be {wanted}"
    if value.dtype not in dtypes:
        return f"a tensor of type {value.dtype}; it must be {' or '.join(map(str, dtypes))}"
    if value.device != device or value.layout != torch.strided:
        return f"a {value.layout} tensor on {value.device}; it must be a dense one on {device}"
    return ""


def _fits(have: Sequence[int], wanted: Sequence[int | str]) -> bool:
    """Whether a shape is the one wanted, a letter for any number of 1 or more."""
    if len(have) != len(wanted):
        return False
    sizes = zip(have, wanted, strict=True)
    return all(size >= 1 if type(want) is str else size == want for size, want in sizes)


def check_plane(
    what: str,
    value: Any,
    shape: Sequence[int | str],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
    field: str = "",
) -> None:
    """Raise `PluginError` for a tensor that is not what it must be.

    Args:
        what: who returned what, as the message begins.
        value: see `plane_fault`.
        shape: see `plane_fault`.
        dtypes: see `plane_fault`.
        device: see `plane_fault`.
        field: of what was returned, empty where it is the tensor itself.
    """
    if fault := plane_fault(value, shape, dtypes, device):
        raise PluginError(f"{what}{' as ' if field else ''}{field} is {fault}")


def check_logits(model: object, logits: Any, index: Tensor, vocabulary: int) -> None:
    """Raise `ModelOutputError` unless these are logits (B, W, V) for the columns index (B, W).

    Args:
        model: for messages.
        logits: what it returned.
        index: (B, W) columns that it was asked about.
        vocabulary: number of ids, V.
    """
    if isinstance(logits, HiddenStates):
        return
    fault = plane_fault(logits, (*index.shape, vocabulary), FLOATS, index.device)
    if fault:
        raise ModelOutputError(
            f"{named('model', model)} returned logits that cannot be used, {fault}: one row per "
            "row of the batch, one slot per wanted column, one logit per id of its vocabulary"
        )


def check_states(who: object, states: Any, index: Tensor) -> None:
    """Raise `ModelOutputError` unless these are states (B, W, D) for the columns index (B, W).

    Args:
        who: the model or the drafter, for messages.
        states: what it returned.
        index: (B, W) columns that it was asked about.
    """
    fault = plane_fault(states, (*index.shape, "D"), FLOATS, index.device)
    if fault:
        name = who if isinstance(who, str) else type(who).__name__
        raise ModelOutputError(f"{name}: states that cannot be used, {fault}")


def check_prediction(
    sampler: object, prediction: Any, values: Tensor, logits: Tensor | HiddenStates
) -> None:
    """Raise `PluginError` unless this is a prediction of what a pass gave.

    Args:
        sampler: for messages.
        prediction: what it returned.
        values: (B, W, ...) of the pass.
        logits: what it was made of.
    """
    if type(sampler) in (Greedy, Categorical):
        return  # what they propose is looked at when somebody asks for it
    who = f"{named('sampler', sampler)}: what predict returned"
    if not isinstance(prediction, Prediction):
        raise PluginError(f"{who} is {kind_of(prediction)}; it must be a Prediction")
    size = logits.weight.shape[0] if isinstance(logits, HiddenStates) else logits.shape[-1]
    wanted = (*values.shape[:2], size)
    if prediction.shape != wanted:
        raise PluginError(
            f"{who} has shape {tuple(prediction.shape)}; it must have that of the logits, {wanted}"
        )
    try:
        token = prediction.token
    except (PredictionError, DrawError) as error:
        raise PluginError(f"{who} proposes no tokens: {error}") from error
    check_plane(f"{who} as token", token, wanted[:2], (torch.long,), values.device)
