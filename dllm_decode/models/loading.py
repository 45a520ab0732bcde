"""From a checkpoint folder to a model that decodes, with every tensor accounted for."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dllm_decode.decoding.types import Vocab
from dllm_decode.errors import (
    CheckpointError,
    ConfigError,
    require,
    require_choice,
    require_count,
)
from dllm_decode.models.adapter import TransformersDenoiser
from dllm_decode.models.checks import require_sound
from dllm_decode.models.compiled import MODES, CompiledBody
from dllm_decode.models.files import FLOATS, StoredTensor, fit, some_of, stored_tensors
from dllm_decode.models.fingerprint import fingerprint
from dllm_decode.models.loaded import Description, LoadedModel
from dllm_decode.models.locate import ADAPTER, licence_of, locate
from dllm_decode.models.quiet import transformers_output
from dllm_decode.models.spec import (
    EDIT_TOKENS,
    ModelSpec,
    Published,
    Settings,
    refuse_quantised,
    spec_of,
)
from dllm_decode.models.text import CheckpointTokenizer, control_ids, load_tokenizer, vocabulary
from dllm_decode.storage import read_json

log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flex_attention")
# A smaller checkpoint loads at once and needs no progress bar [bytes].
_BAR_FROM = 2**28


@dataclass(frozen=True)
class Blueprint:
    """A checkpoint that was looked at but not loaded.

    folder: where it is; spec: its family; published: its config.json; settings: those of the stock
    config class; tokenizer: read from the same folder.
    """

    folder: Path
    spec: ModelSpec
    published: Published
    settings: Settings
    tokenizer: CheckpointTokenizer


def load_model(
    checkpoint: str | Sequence[str] | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    attn_implementation: str = "sdpa",
    device_map: str | Mapping[str, Any] | None = None,
    tensor_parallel: int | None = None,
    mask_id: int | None = None,
    eot_ids: Sequence[int] | None = None,
    pad_id: int | None = None,
    block_length: int | None = None,
    max_length: int | None = None,
    licence: str | None = None,
    ignore_settings: Sequence[str] = (),
    compile: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    parse_control_tokens: bool = False,
) -> LoadedModel:
    """Load a published checkpoint into stock transformers classes, and prove that it works.

    checkpoint: a folder, a Hub id or `bundled:NAME`, which must be there or be fetched; or several
    in order of preference, of which the first available one is taken and none is fetched.
    dtype: `float32`, `bfloat16`, `float16`, or `auto` (float32 on the CPU, bfloat16 elsewhere);
    device: `cpu`, `cuda`, `cuda:1` ..., or `auto` (CUDA where there is one); attn_implementation:
    as transformers names it; device_map: as transformers takes it, instead of `device`;
    tensor_parallel: number of ranks started by torchrun, instead of `device_map`; mask_id, eot_ids,
    pad_id: special ids, None for what config.json and the tokenizer say; block_length: of a
    block-causal model's grid [columns], None for the published one; max_length: longest canvas
    [tokens], None for the published one; licence: of the weights, None for what the model card
    says; ignore_settings: keys of config.json that are known to be harmless; compile: mode of
    torch.compile for the forward pass (`default`, `reduce-overhead`, which uses CUDA graphs,
    `max-autotune`), None to run it as it is; what cannot be compiled runs as it is, with a warning;
    chat_template_kwargs: what the chat template is given beside the messages (`enable_thinking`);
    parse_control_tokens: whether control tokens in prompts become what they stand for, instead of
    being text.

    Raises `ConfigError` for settings that cannot work and `CheckpointError` for checkpoints that
    are missing, damaged, do not fit, or fail the self-check.
    """
    _check_settings(dtype, attn_implementation, device_map, tensor_parallel)
    if compile is not None:
        require_choice("model.compile", compile, MODES)
    place = pick_device(device)
    number = pick_dtype(dtype, place)
    found = locate(checkpoint)
    plan = blueprint(found.folder, ignore_settings)
    block = _block_length(plan, block_length, attn_implementation)
    vocab = special_ids(plan, mask_id, eot_ids, pad_id)
    parameters = _check_tensors(plan)
    model = _load_weights(plan, number, attn_implementation, device_map, tensor_parallel)
    if device_map is None and tensor_parallel is None:
        model = model.to(place)
    denoiser = TransformersDenoiser(
        model=model,
        vocab=vocab,
        max_length=_longest(plan, max_length),
        shifted=plan.spec.shifted,
        block_length=block,
        fingerprint=fingerprint(found.folder),
    )
    tokenizer = replace(
        plan.tokenizer,
        special=control_ids(vocab),
        parse_control=parse_control_tokens,
        arguments=dict(chat_template_kwargs or {}),
    )
    require_sound(denoiser, tokenizer, plan.folder)
    if compile is not None:
        denoiser = compiled(denoiser, compile, device_map is not None or bool(tensor_parallel))
    description = Description(
        family=plan.spec.family,
        checkpoint=found.name,
        path=found.folder,
        parameters=parameters,
        dtype=str(number).removeprefix("torch."),
        device=str(denoiser.device),
        licence=licence or licence_of(found.folder),
        passed_over=found.passed_over,
    )
    return LoadedModel(denoiser, tokenizer, description, plan.published.values)


def compiled(denoiser: TransformersDenoiser, mode: str, spread: bool) -> TransformersDenoiser:
    """The denoiser with a compiled body; as it is, with a warning, where that is not supported.

    mode: of torch.compile; spread: the model lies on several devices, or on several ranks.
    """
    if spread:
        log.warning("the model runs uncompiled: it is spread over several devices")
        return denoiser
    return replace(denoiser, compiled=CompiledBody(denoiser.model, mode))


def blueprint(folder: Path, ignore_settings: Sequence[str] = ()) -> Blueprint:
    """Read config.json and the tokenizer of a checkpoint; refuses what is not handled."""
    file = folder / "config.json"
    values = read_json(file, CheckpointError)
    spec = spec_of(values, file)
    refuse_quantised(values, file)
    refuse_adapter(folder)
    published = Published(values, frozenset(ignore_settings), file)
    settings = spec.translate(published)
    published.finish()
    return Blueprint(folder, spec, published, settings, load_tokenizer(folder, spec.reply_header))


def build_on_meta(plan: Blueprint) -> Any:
    """The model without memory for its weights.

    Raises `CheckpointError` where config.json describes none; `check_sizes` goes first.
    """
    try:
        with torch.device("meta"):
            return import_class(plan.spec.model_class)(make_config(plan.spec, plan.settings))
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{plan.published.where} describes no model that can be built: {first_line(error)}"
        ) from error


def check_sizes(plan: Blueprint, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse sizes that the weight files cannot hold, before a model of that size is built.

    Every layer has tensors of its own, and every side of a matrix has numbers.
    """
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
            f"{folder} holds an adapter ({ADAPTER}) beside its weights; adapters are not applied "
            "here, so merge it into the weights (peft: merge_and_unload), or move its files away "
            "to decode with the base weights alone"
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
    """The stock configuration of a model: never causal, never caching by itself."""
    return import_class(spec.config_class)(
        **settings,
        is_causal=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def pick_device(device: str) -> torch.device:
    """The device for a setting; raises `ConfigError` for one that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"model.device must be auto, cpu or a device of this machine, got {device!r} ({reason})"
        ) from None
    return place


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype for a setting on a device."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return DTYPES[dtype]


def special_ids(
    plan: Blueprint,
    mask_id: int | None = None,
    eot_ids: Sequence[int] | None = None,
    pad_id: int | None = None,
) -> Vocab:
    """Special ids: what was asked for, else config.json, else the tokenizer's words."""
    published, tokenizer, spec = plan.published, plan.tokenizer, plan.spec
    size = plan.settings["vocab_size"]
    if mask_id is None:
        mask_id = published.token("mask_token_id", size)
    if mask_id is None and spec.mask_token is not None:
        mask_id = tokenizer.id_of(spec.mask_token)
    if mask_id is None:
        raise CheckpointError(
            f"no mask token: config.json has no mask_token_id, and {plan.folder} has no tokenizer "
            f"that knows {spec.mask_token!r}; set model.mask_id"
        )
    if eot_ids is None:
        eot_ids = end_ids(plan)
    if pad_id is None:
        pad_id = published.token("pad_token_id", size)
    edits = (published.token(key, size) for key in EDIT_TOKENS)
    banned = tuple(token for token in edits if token is not None)
    return vocabulary(size, mask_id, tuple(eot_ids), pad_id, tokenizer, banned)


def end_ids(plan: Blueprint) -> tuple[int, ...]:
    """Ids that end a text: config.json's, else the tokenizer's, and those that end a turn."""
    end = plan.published.tokens("eos_token_id", plan.settings["vocab_size"])
    found: list[int | None] = [plan.tokenizer.end_id] if end is None else list(end)
    found += [plan.tokenizer.id_of(word) for word in plan.spec.turn_end]
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _check_settings(
    dtype: str,
    attn_implementation: str,
    device_map: str | Mapping[str, Any] | None,
    tensor_parallel: int | None,
) -> None:
    require_choice("model.dtype", dtype, ("auto", *DTYPES))
    require_choice("model.attn_implementation", attn_implementation, ATTENTION)
    require(
        device_map is None or tensor_parallel is None,
        "model.device_map and model.tensor_parallel exclude each other; set one of them to null",
    )
    if tensor_parallel is not None:
        require_count("model.tensor_parallel", tensor_parallel, minimum=2)
        require(
            torch.distributed.is_torchelastic_launched(),
            f"model.tensor_parallel={tensor_parallel} needs as many processes; start with "
            f"torchrun --nproc-per-node {tensor_parallel} -m dllm_decode ...",
        )
    spread = "device_map" if device_map is not None else "tensor_parallel"
    if (device_map or tensor_parallel) and importlib.util.find_spec("accelerate") is None:
        raise ConfigError(f"model.{spread} needs the package accelerate; pip install accelerate")


def _block_length(plan: Blueprint, asked: int | None, attn_implementation: str) -> int | None:
    """Columns of the block grid; refuses a grid for models without one."""
    published = plan.spec.block_length(plan.published)
    if published is None:
        require(
            asked is None,
            f"model.block_length is for block-causal models; {plan.spec.family} attends to the "
            "whole canvas (for the blocks of the schedule set schedule.length)",
        )
        return None
    require(
        attn_implementation == "sdpa",
        f"model.attn_implementation must be sdpa for {plan.spec.family}, whose block-causal mask "
        f"the others cannot take, got {attn_implementation!r}",
    )
    if asked is not None:
        require_count("model.block_length", asked)
    return asked or published


def _longest(plan: Blueprint, asked: int | None) -> int:
    """Longest canvas [tokens]: the published length, or a shorter one that was asked for."""
    published: int = plan.settings["max_position_embeddings"]
    if asked is None:
        return published
    require_count("model.max_length", asked)
    require(
        asked <= published,
        f"model.max_length must not exceed the model's {published} positions, got {asked}",
    )
    return asked


def _check_tensors(plan: Blueprint) -> int:
    """Compare the files with the model, name by name; returns the number of parameters."""
    tensors = stored_tensors(plan.folder)
    check_sizes(plan, tensors)
    odd = sorted(name for name, tensor in tensors.items() if tensor.dtype not in FLOATS)
    if odd:
        raise CheckpointError(
            f"{tensors[odd[0]].file}: weights must be stored as {', '.join(FLOATS)}; stored as "
            f"{tensors[odd[0]].dtype} is {some_of(odd)}"
        )
    model = build_on_meta(plan)
    result = fit(tensors, model)
    if not result.complete:
        raise CheckpointError(f"the tensors in {plan.folder} do not fit its config.json: {result}")
    return sum(parameter.numel() for parameter in model.parameters())


def _load_weights(
    plan: Blueprint,
    dtype: torch.dtype,
    attn_implementation: str,
    device_map: str | Mapping[str, Any] | None,
    tensor_parallel: int | None,
) -> Any:
    """The model with all of its weights; raises `CheckpointError` naming what does not fit."""
    model_class = import_class(plan.spec.model_class)
    config = make_config(plan.spec, plan.settings)
    size = sum(file.stat().st_size for file in plan.folder.glob("*.safetensors"))
    source: dict[str, Any] = {"pretrained_model_name_or_path": plan.folder}
    if tensor_parallel is not None and hasattr(model_class, "lazy_state"):
        files = {name: tensor.file for name, tensor in stored_tensors(plan.folder).items()}
        state = model_class.lazy_state(files, config)
        source = {"pretrained_model_name_or_path": None, "state_dict": state}
    try:
        with transformers_output(progress=size >= _BAR_FROM):
            model, report = model_class.from_pretrained(
                **source,
                config=config,
                dtype=dtype,
                attn_implementation=attn_implementation,
                device_map=device_map,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                **_distributed(tensor_parallel),
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # readers in native code raise classes of their own
        raise CheckpointError(f"{plan.folder} cannot be loaded: {error}") from error
    problems = [f"{kind.replace('_', ' ')}: {names}" for kind, names in report.items() if names]
    if problems:
        raise CheckpointError(f"{plan.folder} was not loaded completely: {'; '.join(problems)}")
    return model


def _distributed(tensor_parallel: int | None) -> dict[str, Any]:
    if tensor_parallel is None:
        return {}
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=tensor_parallel)}
