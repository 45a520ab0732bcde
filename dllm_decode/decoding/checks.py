"""What is refused before anything is decoded: parts that do not fit together, and requests."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from dllm_decode.decoding.cache import MEMORIES, CachePolicy
from dllm_decode.decoding.denoiser import Capabilities, Denoiser, StoringDenoiser
from dllm_decode.decoding.parameters import check_parameters
from dllm_decode.decoding.returned import kind_of, named
from dllm_decode.decoding.schedule import Schedule
from dllm_decode.decoding.strategy import Budget, EveryStep, Part, Revisions, Strategy
from dllm_decode.decoding.types import Request
from dllm_decode.errors import CapabilityError, ConfigError, did_you_mean


def place_of(key: str, part: Part) -> str:
    """How messages name a part of the strategy: its config key and its class.

    Args:
        key: e.g. "strategy.select".
        part: what stands there.
    """
    return named(f"strategy.{key}" if key else "strategy", part)


# What the loop asks of every part of a kind, by which an object that inherits nothing is known.
_KINDS = (
    ("strategy", "Strategy", ("parts", "progress")),
    ("schedule", "Schedule", ("on_grid", "window")),
    ("cache", "CachePolicy", ("stores", "logits")),
    ("sampler", "Sampler", ("predict",)),
)


def check_kinds(*parts: object) -> None:
    """Raise `CapabilityError` for a part that is no object of its kind, such as a class or a name.

    Args:
        *parts: strategy, schedule, cache and sampler.
    """
    for part, (place, kind, names) in zip(parts, _KINDS, strict=True):
        if isinstance(part, type) or not all(hasattr(part, name) for name in names):
            raise CapabilityError(
                f"{place} must be an instance of a subclass of {kind}, or an object that has "
                f"what one has ({', '.join(names)}, ...), got {_shown(part)}"
            )


def _shown(part: object) -> str:
    if isinstance(part, type):
        return f"the class {part.__name__}; give an object, {part.__name__}(...)"
    if isinstance(part, str):
        return f"{part!r}; names of options are for dllm_decode.load"
    return kind_of(part)


def check_composition(
    denoiser: Denoiser, strategy: Strategy, schedule: Schedule, cache: CachePolicy
) -> None:
    """Refuse parts that are valid alone but cannot work together; raises `CapabilityError`.

    Args:
        denoiser: the model.
        strategy: all of its parts are looked at.
        schedule: the windows.
        cache: where logits are fresh.
    """
    for name in ("vocab", "device", "max_length"):
        if not hasattr(denoiser, name):
            raise CapabilityError(
                f"model ({type(denoiser).__name__}) has no {name}; a model needs vocab, device, "
                "max_length and a call, see Denoiser"
            )
    _check_cache(denoiser, cache)
    progress = strategy.progress
    if not isinstance(progress, EveryStep | Budget | Revisions):
        raise CapabilityError(
            f"{place_of('', strategy)}: progress must be EveryStep(), Budget(steps) or "
            f"Revisions(per_column), got {progress!r}"
        )
    if strategy.revises and not isinstance(progress, Revisions):
        raise CapabilityError(
            f"{place_of('', strategy)}: revises = True needs progress = Revisions(per_column), "
            f"which bounds how often a column is written over; got {progress!r}"
        )
    _check_revising(strategy, cache)
    if schedule.sees_canvas:
        _check_sight(named("schedule", schedule), cache)
    for key, part in strategy.parts():
        _check_declared(place_of(key, part), part)
        _check_part(place_of(key, part), part, denoiser, schedule, cache)


def check_observers(observers: object) -> None:
    """Raise `CapabilityError` for anything but a sequence of objects with an observer's methods."""
    if not isinstance(observers, tuple | list):
        raise CapabilityError(f"observers must be a tuple of observers, got {observers!r}")
    for observer in observers:
        methods = [getattr(observer, name, None) for name in ("start", "step", "finish")]
        if isinstance(observer, type) or not all(map(callable, methods)):
            raise CapabilityError(
                "an observer has the methods start, step and finish, such as an instance of a "
                f"subclass of Observer; got {observer!r}"
            )


def _check_revising(strategy: Strategy, cache: CachePolicy) -> None:
    """Who judges what is decided in the window needs predictions there."""
    judges = strategy.revises or (
        strategy.revocable and any(part.needs_window for _, part in strategy.parts())
    )
    if judges and cache.logits in ("undecided", "part"):
        raise CapabilityError(
            f"{place_of('', strategy)} revises what is decided in the window, where cache "
            f"({type(cache).__name__}) computes no predictions; use cache=none, prefix, dual, "
            "vicinity or periodic"
        )


def _check_sight(name: str, cache: CachePolicy) -> None:
    if cache.logits not in ("canvas", "undecided"):
        raise CapabilityError(
            f"{name} reads predictions outside the current window, where cache "
            f"({type(cache).__name__}) computes none; use cache=none or cache=prefix, or limit its "
            "scope to the block"
        )


# What a cache policy may declare; `part` and `block_causal` decide what it is combined with.
_LOGITS = ("canvas", "undecided", "window", "part")
_ATTENTION = ("any", "block_causal")


def _check_words(cache: CachePolicy) -> None:
    """What a policy's class declares must be words that mean something."""
    who = named("cache", cache)
    for attribute, allowed in (("logits", _LOGITS), ("attention", _ATTENTION)):
        value = getattr(cache, attribute)
        if value not in allowed:
            raise CapabilityError(
                f"{who}: {attribute} must be one of {', '.join(allowed)}; got {value!r}"
            )
    kept = getattr(cache, "remembers", ())
    if not _are_names(kept) or any(name not in MEMORIES for name in kept):
        raise CapabilityError(
            f"{who}: remembers must be a tuple of {', '.join(MEMORIES)}, or (); got {kept!r}"
        )


def _check_cache(denoiser: Denoiser, cache: CachePolicy) -> None:
    kind = type(cache).__name__
    _check_words(cache)
    if cache.stores and not isinstance(denoiser, StoringDenoiser):
        raise CapabilityError(
            f"cache ({kind}) needs keys and values to store, but model "
            f"({type(denoiser).__name__}) has none; use cache=none"
        )
    if cache.attention == "block_causal" and Capabilities.of(denoiser).block_length is None:
        raise CapabilityError(
            f"cache ({kind}) is exact for block-causal models only, but model "
            f"({type(denoiser).__name__}) attends to the whole canvas; use "
            "cache=none, prefix or dual"
        )


def _check_declared(name: str, part: Part) -> None:
    """What a part's class declares must be names, and those of parameters its own fields."""
    for attribute, example in (("needs", '{"hidden"}'), ("request_parameters", '("threshold",)')):
        value = getattr(part, attribute)
        if not _are_names(value):
            raise CapabilityError(
                f"{name}: {attribute} must hold names, such as {example}, got {value!r}"
            )
    own = _settings(part)
    for word in part.request_parameters:
        if word not in own:
            raise CapabilityError(
                f"{name}: request_parameters names {word!r}{did_you_mean(word, own)}; it must be "
                f"a field of the dataclass, which has {', '.join(own) or 'none'}"
            )


def _are_names(value: Any) -> bool:
    """Whether something holds texts and is none itself: a text is a collection of its letters."""
    several = isinstance(value, Collection) and not isinstance(value, str)
    return several and all(isinstance(word, str) for word in value)


def _settings(part: Any) -> list[str]:
    """The fields that a part is made with."""
    return [own.name for own in fields(part) if own.init] if is_dataclass(part) else []


def _check_part(
    name: str, part: Part, denoiser: Denoiser, schedule: Schedule, cache: CachePolicy
) -> None:
    width, kind = part.window_width, type(cache).__name__
    if width is not None and width != schedule.block_length:
        raise CapabilityError(
            f"{name} was made for blocks of {width} columns, but schedule has "
            f"{schedule.block_length or 'no block grid'}; use schedule=blocks "
            f"schedule.length={width}"
        )
    made_for, own = part.model_fingerprint, Capabilities.of(denoiser).fingerprint
    if made_for is not None and made_for != own:
        raise CapabilityError(
            f"{name} was trained for the model with fingerprint {made_for}, but model has "
            f"{own or 'none'}; use that checkpoint, or train for this one "
            f"(task={'train_filter' if part.drafter is None else 'train_drafter'})"
        )
    _check_inside(name, part, denoiser, cache)
    if part.sees_canvas:
        _check_sight(name, cache)
    if part.needs_window and cache.logits == "part":
        raise CapabilityError(
            f"{name} reads the prediction at every column of the window, but cache ({kind}) "
            "computes only some; use cache=none, prefix or dual"
        )
    if part.reads_decided and cache.logits in ("undecided", "part"):
        raise CapabilityError(
            f"{name} reads the predictions at decided columns of the window, where cache ({kind}) "
            "computes none; use cache=none, prefix, dual, vicinity or periodic"
        )


def _check_inside(name: str, part: Part, denoiser: Denoiser, cache: CachePolicy) -> None:
    """What a part wants to see of the model's inside must be there."""
    model, kind = f"model ({type(denoiser).__name__})", type(cache).__name__
    own = Capabilities.of(denoiser)
    wanted = {*part.needs} | ({"hidden"} if part.drafter is not None else set())
    missing = sorted(wanted - {*own.provides})
    if missing:
        raise CapabilityError(
            f"{name} looks at the model's {', '.join(missing)}, which {model} does not provide; "
            f"it provides {', '.join(sorted(own.provides)) or 'nothing'}"
        )
    _check_widths(name, part, denoiser, own)
    if part.drafter is not None and cache.stores:
        raise CapabilityError(
            f"{name} has a drafter, which needs the states of the whole canvas in every step, but "
            f"cache ({kind}) recomputes only a part; use cache=none"
        )


def _check_widths(name: str, part: Part, denoiser: Denoiser, own: Capabilities) -> None:
    """A drafter must be for states and embeddings as the model has them, where both say it."""
    wanted = part.drafter_widths
    if wanted is None or own.width is None or own.embed is None:
        return
    one = torch.zeros(1, 1, dtype=torch.long, device=denoiser.device)
    found = own.width, own.embed(one).shape[-1]
    if found != wanted:
        raise CapabilityError(
            f"{name} has a drafter for states of width {wanted[0]} and embeddings of {wanted[1]}, "
            f"but model ({type(denoiser).__name__}) has {found[0]} and {found[1]}; train one for "
            "this model with task=train_drafter"
        )


def check_is_request(request: object) -> None:
    """Raise `ConfigError` for what cannot be decoded because it is no request.

    Args:
        request: what `decode` was given.
    """
    if not isinstance(request, Request):
        raise ConfigError(
            f"decode needs a Request of token ids, got {kind_of(request)}; generate of what "
            "dllm_decode.load returns takes texts"
        )


def check_request(
    denoiser: Denoiser, strategy: Strategy, schedule: Schedule, request: Request
) -> None:
    """Raise `ConfigError` where model, schedule or strategy cannot serve a request.

    Args:
        denoiser: the model.
        strategy: what decides.
        schedule: the windows.
        request: what is to be decoded.
    """
    check_is_request(request)
    schedule.check(request)
    check_parameters(strategy, request)
    _check_length(denoiser, request)
    _check_ids(denoiser, request)
    for key, part in strategy.parts():
        if part.needs_reference and request.reference is None:
            raise CapabilityError(
                f"{place_of(key, part)} needs the tokens of a reference decode; give "
                "Request.reference, or call generate(), which makes one"
            )


def _check_length(denoiser: Denoiser, request: Request) -> None:
    rows = zip(request.prompts, request.lengths, strict=True)  # each counts from its own first
    longest = max(len(prompt) + length for prompt, length in rows)
    limit = denoiser.max_length
    if limit is not None and longest > limit:
        raise ConfigError(
            f"prompt and max_new_tokens together need {longest} positions, the model has "
            f"{limit}; shorten the prompt or lower max_new_tokens"
        )


def _check_ids(denoiser: Denoiser, request: Request) -> None:
    size = denoiser.vocab.size
    for row, prompt in enumerate(request.prompts):
        wrong = [token for token in prompt if not 0 <= token < size]
        if wrong:
            raise ConfigError(
                f"prompt {row} contains token id {wrong[0]}; the model knows 0 to {size - 1}"
            )
    for row, fixed in enumerate(request.fixed or ()):
        for token in (fixed or {}).values():
            if not 0 <= token < size or token == denoiser.vocab.mask_id:
                raise ConfigError(
                    f"fixed token of row {row} must be a token id in [0, {size - 1}] and not "
                    f"the mask, got {token}"
                )
