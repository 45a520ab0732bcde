"""A checkpoint that was looked at but not loaded: its family, its sizes, its special ids."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from dllm_decode.decoding.types import Vocab
from dllm_decode.errors import CheckpointError, ConfigError, require
from dllm_decode.models.files import StoredTensor
from dllm_decode.models.lean import LeanModel
from dllm_decode.models.locate import ADAPTER
from dllm_decode.models.quantization import published_method, require_apart
from dllm_decode.models.quiet import transformers_output
from dllm_decode.models.spec import (
    EDIT_TOKENS,
    ModelSpec,
    Published,
    Settings,
    spec_of,
)
from dllm_decode.models.text import CheckpointTokenizer, load_tokenizer, vocabulary
from dllm_decode.storage import read_json


@dataclass(frozen=True)
class Blueprint:
    """A checkpoint that was looked at but not loaded.

    Attributes:
        folder: Where it is.
        spec: Its family.
        published: Its config.json.
        settings: Those of the stock config class.
        tokenizer: Read from the same folder.
        lean: Whether `models.lean` computes it, in place of the stock class.
        method: By which its weights are quantised, None where they are plain.
    """

    folder: Path
    spec: ModelSpec
    published: Published
    settings: Settings
    tokenizer: CheckpointTokenizer
    lean: bool = False
    method: str | None = None


def blueprint(
    folder: Path,
    ignore_settings: Sequence[str] = (),
    is_lean: Callable[[ModelSpec], bool] = lambda spec: False,
    adapters: Sequence[Path] | None = None,
) -> Blueprint:
    """Read config.json and the tokenizer of a checkpoint.

    Args:
        folder: Where it is.
        ignore_settings: Keys of config.json that are known to be harmless.
        is_lean: Whether `models.lean` is to compute a family.
        adapters: Those that were asked for; None where nobody said.

    Raises:
        CheckpointError: Something in it is damaged or not handled; the message names file and key.
    """
    file = folder / "config.json"
    values = read_json(file, CheckpointError)
    spec = spec_of(values, file)
    method = published_method(values, file)
    if adapters is None:
        refuse_adapter(folder)
    known = {*ignore_settings, *(["quantization_config"] if method else [])}
    published = Published(values, frozenset(known), file)
    settings = spec.translate(published)
    published.finish()
    lean = is_lean(spec) and method is None
    tokenizer = load_tokenizer(folder, spec.reply_header, lean=lean)
    return Blueprint(folder, spec, published, settings, tokenizer, lean, method)


def build_on_meta(plan: Blueprint) -> Any:
    """The model without memory for its weights.

    Raises `CheckpointError` where config.json describes none; `check_sizes` goes first.
    """
    try:
        if plan.lean and plan.spec.lean is not None:
            with torch.device("meta"):
                return LeanModel(plan.settings, plan.spec.lean)
        with transformers_output(progress=False), torch.device("meta"):
            return import_class(plan.spec.model_class)(make_config(plan.spec, plan.settings))
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{plan.published.where} describes no model that can be built: {first_line(error)}"
        ) from error


def check_sizes(plan: Blueprint, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse sizes that the weight files cannot hold, before a model of that size is built.

    Every layer has tensors of its own, and every side of a matrix has numbers.

    Args:
        plan: The checkpoint.
        tensors: What its files hold, by name.
    """
    require_apart(plan.method, tensors, plan.published.where)
    numbers = sum(math.prod(tensor.shape) for tensor in tensors.values())
    settings = plan.settings
    layers = settings["num_hidden_layers"]
    if layers > len(tensors):
        raise CheckpointError(
            f"{plan.published.where} asks for {layers} layers, but the weight files hold only "
            f"{len(tensors)} tensors"
        )
    width = settings["hidden_size"]
    for name in ("vocab_size", "intermediate_size", "moe_intermediate_size"):
        if settings.get(name, 1) * width > numbers:
            raise CheckpointError(
                f"{plan.published.where} asks for {name}={settings[name]} and a width of {width}, "
                f"but the weight files hold only {numbers} numbers"
            )
    for name in ("num_attention_heads", "head_dim", "num_experts", "n_routed_experts"):
        if settings.get(name, 1) > numbers:
            raise CheckpointError(
                f"{plan.published.where} asks for {name}={settings[name]}, but the weight files "
                f"hold only {numbers} numbers"
            )


def refuse_adapter(folder: Path) -> None:
    """Raise `CheckpointError` for a LoRA adapter beside the weights, as either may be meant."""
    if (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{folder} holds an adapter ({ADAPTER}) beside its weights: model.adapters=[{folder}] "
            "decodes with it, model.adapters=[] with the weights alone"
        )


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def import_class(where: str) -> Any:
    """The class at `module:Class`."""
    module, name = where.split(":")
    return getattr(importlib.import_module(module), name)


def make_config(spec: ModelSpec, settings: Settings) -> Any:
    """The stock configuration of a model: never causal, never caching by itself.

    Args:
        spec: Of the family.
        settings: In the words of the stock class.
    """
    return import_class(spec.config_class)(
        **settings,
        is_causal=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def require_ids(key: str, asked: Any, several: bool = False) -> None:
    """Check that special ids that were asked for are whole numbers; None asks for none.

    Args:
        key: Of the group `model`.
        asked: What was given.
        several: Whether it must be a list of them.

    Raises:
        ConfigError: They are not.
    """
    ids = asked if several else [asked]
    whole = isinstance(ids, Collection) and all(
        isinstance(token, Integral) and not isinstance(token, bool) for token in ids
    )
    if asked is not None and not whole:
        kind = "a list of token ids" if several else "a token id"
        raise ConfigError(f"model.{key} must be {kind}, got {asked!r}")


def special_ids(
    plan: Blueprint,
    mask_id: int | None = None,
    eot_ids: Sequence[int] | None = None,
    pad_id: int | None = None,
    banned_ids: Sequence[int] = (),
    edit_ids: Sequence[int] | None = None,
) -> Vocab:
    """Special ids: what was asked for, else config.json, else the tokenizer's words.

    Args:
        plan: The checkpoint.
        mask_id: The undecided token; None to find out, also for the next two.
        eot_ids: Ids that end a text.
        pad_id: Left padding.
        banned_ids: Further ids that are never generated.
        edit_ids: Those with which the checkpoint edits its own text; None for config.json's.

    Raises:
        CheckpointError: No mask id is to be found, or config.json names an id outside of the head.
        ConfigError: An id that was asked for lies outside of the head, or is banned and ends texts.
    """
    published, tokenizer, spec = plan.published, plan.tokenizer, plan.spec
    size = plan.settings["vocab_size"]
    require_ids("mask_id", mask_id)
    require_ids("pad_id", pad_id)
    require_ids("eot_ids", eot_ids, several=True)
    if mask_id is None:
        mask_id = published.token("mask_token_id", size)
    if mask_id is None and spec.mask_token is not None:
        mask_id = tokenizer.id_of(spec.mask_token)
    mask_id = tokenizer.mask_id if mask_id is None else mask_id
    if mask_id is None:
        word = "has a mask token" if spec.mask_token is None else f"knows {spec.mask_token!r}"
        raise CheckpointError(
            f"no mask token: config.json has no mask_token_id, and {plan.folder} has no tokenizer "
            f"that {word}; set model.mask_id"
        )
    if eot_ids is None:
        eot_ids = end_ids(plan)
    if pad_id is None:
        pad_id = published.token("pad_token_id", size)
    for key, ids in (("banned_ids", banned_ids), ("edit_ids", edit_ids or ())):
        require(isinstance(ids, Collection), f"model.{key} must be a list of ids, got {ids!r}")
        for token in ids:
            if type(token) is not int or not 0 <= token < size:
                raise ConfigError(f"model.{key} must be ids from 0 to {size - 1}, got {token!r}")
            require(token not in eot_ids, f"model.{key} must not hold {token}, which ends a text")
    banned = tuple(sorted({*editing_ids(plan, edit_ids), *banned_ids}))
    return vocabulary(Vocab(size, mask_id, tuple(eot_ids), pad_id, banned), tokenizer)


def editing_ids(plan: Blueprint, asked: Sequence[int] | None = None) -> list[int]:
    """Ids with which the checkpoint edits its own text, as LLaDA2.2 does.

    Args:
        plan: The checkpoint.
        asked: `model.edit_ids`, in place of what config.json says.
    """
    size = plan.settings["vocab_size"]
    found = (plan.published.token(key, size) for key in EDIT_TOKENS)
    return sorted({token for token in asked or found if token is not None})


def end_ids(plan: Blueprint) -> tuple[int, ...]:
    """Ids that end a text: config.json's, else the tokenizer's, and those that end a turn."""
    end = plan.published.tokens("eos_token_id", plan.settings["vocab_size"])
    found: list[int | None] = [plan.tokenizer.end_id] if end is None else list(end)
    found += [plan.tokenizer.id_of(word) for word in plan.spec.turn_end]
    return tuple(dict.fromkeys(token for token in found if token is not None))
