"""A transformers model that is in memory already, as a model that decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dllm_decode.decoding.types import Vocab
from dllm_decode.errors import ConfigError
from dllm_decode.models.adapter import TransformersDenoiser
from dllm_decode.models.blueprint import require_ids
from dllm_decode.models.checks import require_sound
from dllm_decode.models.loaded import Description, LoadedModel
from dllm_decode.models.text import CheckpointTokenizer, control_ids, vocabulary


def adopt(
    model: Any,
    tokenizer: Any = None,
    *,
    mask_id: int | None = None,
    eot_ids: Sequence[int] | None = None,
    pad_id: int | None = None,
    shifted: bool = False,
    block_length: int | None = None,
    max_length: int | None = None,
) -> LoadedModel:
    """A model that decodes, from a transformers model and its tokenizer.

    The model is used as it is, in its dtype and on its device; it is put into evaluation mode.

    Args:
        model: A `...ForCausalLM` of transformers without a causal mask (`config.is_causal=False`).
        tokenizer: Its fast tokenizer; None decodes token ids alone.
        mask_id: Id of the mask; None takes `mask_token_id` of the tokenizer or of `model.config`.
        eot_ids: Ids that end a text; None takes `eos_token_id` of `model.config` or the tokenizer.
        pad_id: Id of padding; None takes `pad_token_id` of `model.config`, if there is one.
        shifted: Whether the logits at column p predict column p + 1, as Dream's do.
        block_length: Columns of a block-causal model's grid; None for full attention.
        max_length: Longest canvas in tokens; None takes `max_position_embeddings`.

    Returns:
        What `load_model` gives for a checkpoint; `load(model=...)` takes it as well.

    Raises:
        ConfigError: The model is not of that kind, or its mask or end of text is not known.
        CheckpointError: The model fails its self-check, for instance because it is causal.
    """
    config = getattr(model, "config", None)
    body = getattr(model, "model", None)
    if config is None or not callable(body) or not hasattr(model, "get_output_embeddings"):
        raise ConfigError(
            "model must be a ...ForCausalLM of transformers, the name of a model or a loaded "
            f"model, got {type(model).__name__}"
        )
    require_ids("mask_id", mask_id)
    require_ids("pad_id", pad_id)
    require_ids("eot_ids", eot_ids, several=True)
    if mask_id is None:
        mask_id = _first(tokenizer, config, "mask_token_id")
    if mask_id is None:
        raise ConfigError(
            f"the mask of {type(model).__name__} is not known: neither the tokenizer nor "
            "model.config has a mask_token_id; set model.mask_id"
        )
    if eot_ids is None:
        found = _first(config, tokenizer, "eos_token_id")
        eot_ids = found if isinstance(found, list | tuple) else [found]
    ends = tuple(int(token) for token in eot_ids if token is not None)
    pad_id = getattr(config, "pad_token_id", None) if pad_id is None else pad_id
    name = str(getattr(config, "name_or_path", "") or type(model).__name__)
    text = CheckpointTokenizer(tokenizer, Path(name))
    vocab = vocabulary(Vocab(int(config.vocab_size), int(mask_id), ends, pad_id), text)
    text = replace(text, special=control_ids(vocab))
    denoiser = TransformersDenoiser(
        model=model.eval(),
        vocab=vocab,
        max_length=max_length or getattr(config, "max_position_embeddings", None),
        shifted=shifted,
        block_length=block_length,
    )
    require_sound(denoiser, text, name)
    description = Description(
        family=type(model).__name__,
        checkpoint=name,
        path=None,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(denoiser.device),
    )
    return LoadedModel(denoiser, text, description, config.to_dict())


def _first(thing: Any, other: Any, name: str) -> Any:
    """The value of an attribute on the first of two objects that has one."""
    value = getattr(thing, name, None)
    return getattr(other, name, None) if value is None else value
