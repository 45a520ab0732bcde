"""From a checkpoint folder to a model that decodes, with every tensor accounted for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dllm_decode.decoding.types import Vocab
from dllm_decode.errors import CheckpointError, require, require_choice, require_count
from dllm_decode.models.adapter import TransformersDenoiser
from dllm_decode.models.blueprint import (
    Blueprint,
    blueprint,
    build_on_meta,
    check_sizes,
    editing_ids,
    import_class,
    make_config,
    special_ids,
)
from dllm_decode.models.checks import require_sound
from dllm_decode.models.compiled import MODES, CompiledBody
from dllm_decode.models.files import FLOATS, fit, some_of, stored_tensors
from dllm_decode.models.fingerprint import fingerprint
from dllm_decode.models.lean import LeanModel
from dllm_decode.models.loaded import Description, LoadedModel
from dllm_decode.models.locate import Located, licence_of
from dllm_decode.models.lora import BaseAndAdapters, locate_base, merge, wanted
from dllm_decode.models.placement import Placement, check_map_names, slow_on_processor
from dllm_decode.models.quantization import (
    KINDS,
    as_published,
    require_quantization,
    say_how_experts_run,
)
from dllm_decode.models.quiet import transformers_output
from dllm_decode.models.spec import ModelSpec
from dllm_decode.models.text import CheckpointTokenizer, control_ids
from dllm_decode.storage import read_json

log = logging.getLogger(__name__)
BODIES = ("auto", "stock", "lean")
# Arguments of `load_model` that `prepare` takes.
PREPARED = (
    "body", "quantization", "mask_id", "eot_ids", "pad_id", "banned_ids", "edit_ids",
    "block_length", "max_length", "ignore_settings",
)  # fmt: skip
# A smaller checkpoint loads at once and needs no progress bar [bytes].
_BAR_FROM = 2**28
# transformers loads an adapter beside the weights by itself where peft is installed, its tensors
# under whatever names they have; it looks for it in this folder of the checkpoint instead.
_NO_ADAPTER = "no-adapter"


def load_model(
    checkpoint: str | Sequence[str] | None = None,
    *,
    adapters: Sequence[str] | None = None,
    quantization: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attn_implementation: str = "sdpa",
    device_map: str | Mapping[str, Any] | None = None,
    tensor_parallel: int | None = None,
    mask_id: int | None = None,
    eot_ids: Sequence[int] | None = None,
    pad_id: int | None = None,
    banned_ids: Sequence[int] | None = None,
    block_length: int | None = None,
    max_length: int | None = None,
    licence: str | None = None,
    ignore_settings: Sequence[str] = (),
    compile: str | None = None,
    body: str = "stock",
    threads: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    parse_control_tokens: bool = False,
    edits: bool = False,
    edit_ids: Sequence[int] | None = None,
) -> LoadedModel:
    """Load a published checkpoint into stock transformers classes, and prove that it works.

    With `body` other than `stock` some families need none of transformers.

    Args:
        checkpoint: A folder, a Hub id or `bundled:NAME`, which must be there or be fetched; or
            several in order of preference, of which the first available one is taken and none is
            fetched. A folder with an adapter alone is loaded with the base that it names.
        adapters: Folders or Hub ids of LoRA adapters, which are merged into the weights one after
            the other; [] for none, though one lies beside the weights.
        quantization: `int8` or `int4` (torchao), `nf4` (bitsandbytes) for experts and for linear
            layers but the head; None for the weights as they are.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` (float32 on the CPU, else bfloat16).
        device: `cpu`, `cuda`, `cuda:1`, ..., or `auto` (CUDA where there is one).
        attn_implementation: As transformers names it.
        device_map: As transformers takes it, instead of `device`.
        tensor_parallel: Number of ranks started by torchrun, instead of `device_map`.
        mask_id: The undecided token; None for what config.json or the tokenizer says, also for the
            next two.
        eot_ids: Ids that end a text.
        pad_id: Left padding.
        banned_ids: Further ids that are never generated.
        block_length: Columns of a block-causal model's grid; None for the published one. For
            families that are trained with either attention, it says that this one is block-causal.
        max_length: Longest canvas in tokens; None for the published one.
        licence: Of the weights; None for what the model card says.
        ignore_settings: Keys of config.json that are known to be harmless.
        compile: Mode of torch.compile for the forward pass (`default`, `reduce-overhead`, which
            uses CUDA graphs, `max-autotune`); None to run it as it is. What cannot be compiled runs
            as it is, with a warning.
        body: What computes the layers: the `stock` class of transformers, which is the definition;
            `lean`, the same function in fewer operations for dense models of Llama's kind with
            SDPA on one device (`dllm_decode.models.lean`); `auto`, lean on a processor.
        threads: Of torch in this process, for models on a processor; None leaves them as they are
            (the command lines then time one pass with one thread and with all).
        chat_template_kwargs: What the chat template is given beside the messages, e.g.
            `{"enable_thinking": False}`.
        parse_control_tokens: Whether control tokens in prompts become what they stand for, instead
            of being text.
        edits: Whether the model was trained to write over its own tokens, and was published with a
            decoding that does; decoding it otherwise says so.
        edit_ids: Ids with which the model inserts and deletes, which is not done here: they are
            never generated, and loading says so. None for what config.json says.

    Raises:
        ConfigError: A setting cannot work; the message names its key.
        CheckpointError: The checkpoint is missing, damaged, does not fit, or fails its self-check.
    """
    placement = Placement(dtype, device, attn_implementation, device_map, tensor_parallel)
    check_words(compile, body, threads, quantization)
    if threads is not None:
        torch.set_num_threads(threads)
    number = placement.dtype  # a device that is not there answers before anything is read
    if slow := slow_on_processor(number, placement.device):
        log.warning("%s; model.dtype=auto is faster, in twice the memory", slow)
    asked = wanted(checkpoint, adapters, download=True)
    ready = prepare(
        asked, locate_base(asked), placement,
        body=body, quantization=quantization, mask_id=mask_id, eot_ids=eot_ids, pad_id=pad_id,
        banned_ids=banned_ids, edit_ids=edit_ids, block_length=block_length, max_length=max_length,
        ignore_settings=ignore_settings,
    )  # fmt: skip
    found, plan, vocab, merged = ready.found, ready.plan, ready.vocab, ready.merged
    if never := editing_ids(plan, edit_ids):
        log.warning(
            "%s is decoded without insert and delete: the ids with which it edits its own text "
            "(%s) are never generated", found.name, ", ".join(map(str, never)),
        )  # fmt: skip
    parameters = _check_tensors(plan, device_map)
    denoiser = TransformersDenoiser(
        model=load_lean(plan, placement)
        if plan.lean
        else merge(_load_weights(plan, placement, quantization), merged, found.name),
        vocab=vocab,
        max_length=ready.max_length,
        shifted=plan.spec.shifted,
        block_length=ready.block_length,
        reordered=plan.spec.reordered,
        routes_blocks=plan.settings.get("expert_capacity") is not None,
        fingerprint=fingerprint(found.folder, *merged),
    )
    tokenizer = ready.tokenizer(parse_control_tokens, chat_template_kwargs)
    require_sound(denoiser, tokenizer, plan.folder)
    if compile is not None:
        denoiser = compiled(denoiser, compile, placement.is_spread)
    description = Description(
        family=plan.spec.family,
        checkpoint=found.name,
        path=found.folder,
        parameters=parameters,
        dtype=str(number).removeprefix("torch."),
        device=str(denoiser.device),
        licence=licence or licence_of(found.folder),
        passed_over=found.passed_over,
        edits=edits,
        adapters=tuple(map(str, merged)),
        quantization=quantization or plan.method,
    )
    return LoadedModel(denoiser, tokenizer, description, plan.published.values)


def check_words(
    compile: str | None, body: str, threads: int | None, quantization: str | None
) -> None:
    """Check what needs no checkpoint; arguments as of `load_model`; raises `ConfigError`."""
    if compile is not None:
        require_choice("model.compile", compile, MODES)
    require_choice("model.body", body, BODIES)
    if threads is not None:
        require_count("model.threads", threads)
    if quantization is not None:
        require_choice("model.quantization", quantization, tuple(KINDS))


@dataclass(frozen=True)
class Ready:
    """A checkpoint of which everything is known but its weights.

    Attributes:
        found: Where it is.
        plan: Its family and its settings.
        vocab: Special ids.
        merged: Adapters that belong to it.
        block_length: Columns of its block grid, None for full attention.
        max_length: Longest canvas [tokens].

    Examples:
        >>> from dllm_decode.models.locate import locate
        >>> from dllm_decode.models.lora import wanted
        >>> from dllm_decode.models.placement import Placement
        >>> name, place = "bundled:llada-tiny", Placement("float32", "cpu")
        >>> prepare(wanted(name, None), locate(name), place, body="lean").max_length
        256
    """

    found: Located
    plan: Blueprint
    vocab: Vocab
    merged: tuple[Path, ...]
    block_length: int | None
    max_length: int

    def tokenizer(
        self, parse_control: bool, arguments: Mapping[str, Any] | None
    ) -> CheckpointTokenizer:
        """The tokenizer with its settings, the last two arguments of `load_model` about it."""
        return replace(
            self.plan.tokenizer,
            special=control_ids(self.vocab),
            parse_control=parse_control,
            arguments=dict(arguments or {}),
        )


def prepare(
    asked: BaseAndAdapters,
    found: Located,
    placement: Placement,
    *,
    body: str = "stock",
    quantization: str | None = None,
    mask_id: int | None = None,
    eot_ids: Sequence[int] | None = None,
    pad_id: int | None = None,
    banned_ids: Sequence[int] | None = None,
    edit_ids: Sequence[int] | None = None,
    block_length: int | None = None,
    max_length: int | None = None,
    ignore_settings: Sequence[str] = (),
) -> Ready:
    """All that is decided before weights are read, for which no tensor is needed.

    Args:
        asked: Base and adapters.
        found: The base.
        placement: Where the model is to run.
        body: As of `load_model`, also the others.
        quantization: See there.
        mask_id: See there.
        eot_ids: See there.
        pad_id: See there.
        banned_ids: See there.
        edit_ids: See there.
        block_length: See there.
        max_length: See there.
        ignore_settings: See there.

    Raises:
        ConfigError: A setting cannot work; the message names its key.
        CheckpointError: The checkpoint is damaged or does not fit.
    """
    merged = asked.adapters or ()
    require(
        not merged or placement.tensor_parallel is None,
        "model.adapters cannot be merged with model.tensor_parallel; merge them first, or use "
        "model.device_map",
    )
    altered = "adapters are merged into the stock class" if merged else ""
    altered = altered or ("only the stock class is quantised" if quantization else "")
    plan = blueprint(
        found.folder,
        ignore_settings,
        lambda spec: chooses_lean(body, spec, placement, altered),
        asked.adapters,
    )
    require_quantization(quantization, plan.method, placement)
    require(
        body != "lean" or plan.method is None,
        f"model.body=lean cannot be used: the checkpoint is quantised ({plan.method}); use "
        "model.body=stock",
    )
    require(
        not merged or not (quantization or plan.method),
        "model.adapters cannot be merged into quantised weights; merge them into the plain ones "
        "(save_pretrained) and quantise the result",
    )
    heads, ranks = plan.settings["num_key_value_heads"], placement.tensor_parallel
    require(
        heads % (ranks or 1) == 0,
        f"model.tensor_parallel={ranks} must divide the {heads} key/value heads of the model",
    )
    block = _block_length(plan, block_length, placement.attention)
    vocab = special_ids(plan, mask_id, eot_ids, pad_id, banned_ids or (), edit_ids)
    return Ready(found, plan, vocab, merged, block, _longest(plan, max_length))


def chooses_lean(body: str, spec: ModelSpec, placement: Placement, altered: str = "") -> bool:
    """Whether the lean body computes a family; raises `ConfigError` where it is asked for in vain.

    Args:
        body: One of `BODIES`.
        spec: Of the family.
        placement: Where the model is to run.
        altered: Why its weights are not those of the checkpoint, "" where they are.
    """
    obstacle = altered or _lean_obstacle(spec, placement)
    require(
        body != "lean" or not obstacle,
        f"model.body=lean cannot be used: {obstacle}; use model.body=stock",
    )
    on_processor = body == "auto" and placement.device.type == "cpu"  # measured nowhere else
    return (body == "lean" or on_processor) and not obstacle


def _lean_obstacle(spec: ModelSpec, placement: Placement) -> str:
    """Why the lean body cannot compute a family there, "" where it can."""
    if spec.lean is None:
        return f"{spec.family} is no dense model of Llama's kind"
    if placement.attention != "sdpa":
        return f"it has no model.attn_implementation={placement.attention}, only sdpa"
    if placement.is_spread:
        return "it runs on one device; set model.device_map and model.tensor_parallel to null"
    return ""


def load_lean(plan: Blueprint, placement: Placement) -> LeanModel:
    """The lean model with all of its weights, read tensor by tensor to where they stay.

    Args:
        plan: The checkpoint.
        placement: Dtype and device.
    """
    from safetensors import SafetensorError, safe_open

    assert plan.spec.lean is not None
    with placement.device:
        model = LeanModel(plan.settings, plan.spec.lean, placement.dtype)
    places = model.state_dict() | model.published_state()
    try:
        for file in sorted({tensor.file for tensor in stored_tensors(plan.folder).values()}):
            with safe_open(file, framework="pt") as content:
                for name in content.keys():  # noqa: SIM118 - it is no mapping
                    places[name].copy_(content.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{plan.folder} cannot be loaded: {error}") from error
    return model.to(placement.device).eval().requires_grad_(False)


def compiled(denoiser: TransformersDenoiser, mode: str, spread: bool) -> TransformersDenoiser:
    """The denoiser with a compiled body; as it is, with a warning, where that is not supported.

    Args:
        denoiser: As loaded.
        mode: Of torch.compile.
        spread: The model lies on several devices, or on several ranks.
    """
    if spread:
        log.warning("the model runs uncompiled: it is spread over several devices")
        return denoiser
    if denoiser.routes_blocks:
        log.warning("the model runs uncompiled: its experts are chosen by whole blocks")
        return denoiser
    return replace(denoiser, compiled=CompiledBody(denoiser.model, mode))


def _block_length(plan: Blueprint, asked: int | None, attn_implementation: str) -> int | None:
    """Columns of the block grid; refuses a grid for models without one."""
    published = plan.spec.block_length(plan.published)
    if published is None and not (plan.spec.either and asked is not None):
        require(
            asked is None,
            f"model.block_length is for block-causal models; {plan.spec.family} attends to the "
            "whole canvas (for the blocks of the schedule set schedule.length)",
        )
        if not plan.spec.reordered:
            return None
    kind = "reordered" if plan.spec.reordered else "block-causal"
    takes = ("sdpa",) if plan.spec.reordered else ("sdpa", "flex_attention")
    require(
        attn_implementation in takes,
        f"model.attn_implementation must be {' or '.join(takes)} for {plan.spec.family}, whose "
        f"{kind} mask the others cannot take, got {attn_implementation!r}",
    )
    if asked is not None:
        require_count("model.block_length", asked)
        positions = plan.settings["max_position_embeddings"]
        require(
            asked <= positions,
            f"model.block_length must not exceed the model's {positions} positions, got {asked}",
        )
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


def _check_tensors(plan: Blueprint, device_map: object) -> int:
    """Compare the files with the model, name by name; returns the number of parameters."""
    tensors = stored_tensors(plan.folder)
    check_sizes(plan, tensors)
    model = build_on_meta(plan)
    check_map_names(device_map, model)
    parameters: int = sum(parameter.numel() for parameter in model.parameters())
    if plan.method is not None:  # its tensors are packed; loading says what does not fit
        return parameters
    odd = sorted(name for name, tensor in tensors.items() if tensor.dtype not in FLOATS)
    if odd:
        raise CheckpointError(
            f"{tensors[odd[0]].file}: weights must be stored as {', '.join(FLOATS)}; stored as "
            f"{tensors[odd[0]].dtype} is {some_of(odd)}"
        )
    result = fit(tensors, model)
    if not result.complete:
        raise CheckpointError(f"the tensors in {plan.folder} do not fit its config.json: {result}")
    return parameters


def _load_weights(plan: Blueprint, placement: Placement, kind: str | None) -> Any:
    """The model with all of its weights; raises `CheckpointError` naming what does not fit."""
    model_class = import_class(plan.spec.model_class)
    config = make_config(plan.spec, plan.settings)
    options = placement.for_transformers()
    if kind is not None:
        from dllm_decode.models.experts import for_transformers

        options["quantization_config"] = for_transformers(kind, placement.dtype)
    if plan.method is not None:
        config.quantization_config = as_published(plan.published.values)
    quantised = kind is not None or plan.method is not None
    if quantised and placement.device_map is None:  # packed for the device while they are read
        options["device_map"] = {"": str(placement.device)}
    size = sum(file.stat().st_size for file in plan.folder.glob("*.safetensors"))
    source: dict[str, Any] = {"pretrained_model_name_or_path": plan.folder}
    if placement.tensor_parallel is not None and hasattr(model_class, "lazy_state"):
        files = {name: tensor.file for name, tensor in stored_tensors(plan.folder).items()}
        state = model_class.lazy_state(files, config)
        source = {"pretrained_model_name_or_path": None, "state_dict": state}
    try:
        with transformers_output(progress=size >= _BAR_FROM):
            model, report = model_class.from_pretrained(
                **source,
                **options,
                config=config,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                adapter_kwargs={"subfolder": _NO_ADAPTER},
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # readers in native code raise classes of their own
        reason = str(error)
        if "CONVERSION" in reason:  # transformers points to a report that nobody sees
            reason = f"transformers cannot convert its tensors (quantised: {plan.method or kind})"
        generation = plan.folder / "generation_config.json"
        if "is not a mapping" in reason and generation.is_file():
            read_json(generation, CheckpointError)  # says so with the file's name
        raise CheckpointError(f"{plan.folder} cannot be loaded: {reason}") from error
    problems = [f"{kind.replace('_', ' ')}: {names}" for kind, names in report.items() if names]
    if problems:
        raise CheckpointError(f"{plan.folder} was not loaded completely: {'; '.join(problems)}")
    if kind is not None:
        say_how_experts_run(build_on_meta(plan), kind)
    return model if placement.is_spread or quantised else model.to(placement.device)
