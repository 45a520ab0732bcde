"""LoRA adapters: found, translated to the names of the stock class, and merged into the weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dllm_decode.errors import CheckpointError, ConfigError, require
from dllm_decode.models.locate import ADAPTER, Located, cached_adapter, locate, missing_files
from dllm_decode.models.quiet import transformers_output
from dllm_decode.models.spec import LLADA_NAMES
from dllm_decode.storage import read_json

log = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
# Keys of adapter_config.json that say nothing of what the adapted model computes.
_INERT = (
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "inference_mode", "layers_pattern", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "velora_config",
)  # fmt: skip
# Keys that are merged as they say.
_MERGED = (
    "alpha_pattern", "exclude_modules", "init_lora_weights", "layers_to_transform", "lora_alpha",
    "r", "rank_pattern", "target_modules", "task_type", "use_dora", "use_rslora",
)  # fmt: skip
# Ways to begin training that leave the weights of the base as they are.
_HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_MERGE_YOURSELF = "merge it with peft (merge_and_unload) and load the result"
_PREFIX = "base_model.model."
_PART = re.compile(r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.weight)?$")
# Published places whose stock place is another; for LLaDA see `LLADA_NAMES`.
_LLADA2 = {
    "model.word_embeddings": "model.embed_tokens",
    ".attention.dense": ".self_attn.o_proj",
}
_FUSED = ".attention.query_key_value"


@dataclass(frozen=True)
class BaseAndAdapters:
    """A base and the adapters that are to be merged into it.

    Attributes:
        checkpoint: Of the base, as `locate` takes it.
        adapters: Folders, in the order in which they are merged; None where nobody asked, so that
            an adapter beside the base is a question and not an answer.
        named_by: The adapter whose file names the base.

    Examples:
        >>> BaseAndAdapters("bundled:llada-tiny", None).adapters is None
        True
    """

    checkpoint: str | Sequence[str] | None
    adapters: tuple[Path, ...] | None
    named_by: Path | None = None


def wanted(
    checkpoint: str | Sequence[str] | None,
    adapters: Sequence[str] | None,
    *,
    download: bool = False,
) -> BaseAndAdapters:
    """The base and its adapters: a checkpoint that is an adapter alone names its base itself.

    Args:
        checkpoint: As of `load_model`.
        adapters: As of `load_model`.
        download: Whether adapters may be fetched.

    Raises:
        CheckpointError: An adapter is not available or damaged, or does not name its base.
        ConfigError: The names are no list of names.
    """
    named = isinstance(adapters, Sequence) and not isinstance(adapters, str)
    require(
        adapters is None or named,
        f"model.adapters must be a list of folders or Hub ids, got {adapters!r}",
    )
    folders = None if adapters is None else tuple(_find(name, download) for name in adapters)
    alone = cached_adapter(checkpoint) if isinstance(checkpoint, str) and checkpoint else None
    if alone is None or not missing_files(alone):
        return BaseAndAdapters(checkpoint, _once(folders))
    require(
        folders != (),
        f"{alone} holds an adapter and no weights, but model.adapters=[] asks for none; set "
        "model.checkpoint to its base, or model.adapters to null",
    )
    base = read_json(alone / ADAPTER, CheckpointError).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{alone / ADAPTER} does not name the model that it adapts (base_model_name_or_path); "
            f"set model.checkpoint to that model and model.adapters=[{alone}]"
        )
    return BaseAndAdapters(base, _once((alone, *(folders or ()))), alone)


def _once(folders: tuple[Path, ...] | None) -> tuple[Path, ...] | None:
    """The folders; raises `ConfigError` where one would be merged twice."""
    places = [folder.resolve() for folder in folders or ()]
    for place in places:
        require(
            places.count(place) == 1,
            f"model.adapters: {place} is named twice and would be added twice (an adapter that is "
            "model.checkpoint counts, too)",
        )
    return folders


def locate_base(asked: BaseAndAdapters) -> Located:
    """Where the base is; raises `CheckpointError` where it is not, and says who wants it."""
    try:
        return locate(asked.checkpoint)
    except (CheckpointError, ConfigError) as error:
        if asked.named_by is None:
            raise
        raise CheckpointError(
            f"{asked.named_by} holds an adapter for the model {asked.checkpoint!r}: {error}; or "
            f"set model.checkpoint to a folder of that model and model.adapters=[{asked.named_by}]"
        ) from None


def _find(name: str, download: bool) -> Path:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"model.adapters must name folders or Hub ids, got {name!r}")
    folder = cached_adapter(name, download=download)
    if folder is None:
        raise CheckpointError(
            f"adapter {name} is not available: no folder with {ADAPTER}, and no Hub id of one"
        )
    return folder


@dataclass(frozen=True)
class Adapter:
    """One adapter, with the names of the stock class.

    Attributes:
        folder: Where it was read.
        settings: `adapter_config.json`.
        tensors: By module and part (`lora_A`, `lora_B`, `lora_magnitude_vector`).
        alphas: By module.
        published: Names of the modules as the file has them, by module.

    Examples:
        >>> Adapter(Path("mine"), {"use_dora": False}, {}, {}, {}).folder.name
        'mine'
    """

    folder: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]
    alphas: Mapping[str, float]
    published: Mapping[str, str]


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a folder.

    Raises `CheckpointError` for one of another kind, and for whatever it holds beside LoRA.
    """
    file = folder / ADAPTER
    settings = read_json(file, CheckpointError)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{file}: peft_type is {kind!r}, but only LORA is merged here; {_MERGE_YOURSELF}"
        )
    _refuse_settings(file, settings)
    return _translated(folder, settings, _stored(folder))


def _refuse_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` for all that an adapter asks for beside adding its products."""
    for key, value in settings.items():
        plain = value in (None, False, [], {}) or (key, value) == ("bias", "none")
        if not plain and key not in (*_INERT, *_MERGED):
            raise CheckpointError(f"{file}: {key}={value!r} is not merged here; {_MERGE_YOURSELF}")
    if settings.get("task_type") not in (None, "CAUSAL_LM", "FEATURE_EXTRACTION"):
        raise CheckpointError(
            f"{file}: task_type={settings['task_type']!r} is for another kind of model than one "
            "that predicts tokens (CAUSAL_LM)"
        )
    start = settings.get("init_lora_weights")
    if start not in _HARMLESS_STARTS:
        raise CheckpointError(
            f"{file}: init_lora_weights={start!r} has changed the weights of the base, too; save "
            "the adapter with peft's path_initial_model_for_weight_conversion, or "
            f"{_MERGE_YOURSELF}"
        )
    for name in ("r", "lora_alpha"):
        _positive(file, name, settings.get(name))
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = settings.get(name) or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{file}: {name!r} must be an object, got {patterns!r}")
        for pattern, value in patterns.items():
            _positive(file, f"{name}.{pattern}", value)
            try:
                re.compile(pattern)
            except re.error as error:
                reason = f"{name}.{pattern} is no regular expression ({error})"
                raise CheckpointError(f"{file}: {reason}") from None


def _positive(file: Path, name: str, value: object) -> None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not 0 < value < float("inf"):  # type: ignore[operator]
        raise CheckpointError(f"{file}: {name!r} must be a number above 0, got {value!r}")


def _stored(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(
            f"{folder} has no {WEIGHTS}; other formats are not read (pickle can run code)"
        )
    try:
        stored: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not stored:
        raise CheckpointError(f"{file} holds no tensors")
    for name, tensor in stored.items():
        if not tensor.is_floating_point() or not bool(tensor.float().isfinite().all()):
            raise CheckpointError(f"{file}: tensor {name!r} holds something else than numbers")
        if tensor.ndim != (1 if "magnitude" in name else 2):
            raise CheckpointError(f"{file}: tensor {name!r} holds no matrix: {tuple(tensor.shape)}")
    return stored


def _translated(folder: Path, settings: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Adapter:
    tensors: dict[str, dict[str, Tensor]] = {}
    published: dict[str, str] = {}
    for name, tensor in stored.items():
        found = _PART.match(name.removeprefix(_PREFIX))
        if found is None:
            raise CheckpointError(
                f"{folder / WEIGHTS}: tensor {name!r} is no part of a LoRA adapter of linear "
                f"layers (lora_A, lora_B, lora_magnitude_vector); {_MERGE_YOURSELF}"
            )
        place = stock_place(found["module"])
        tensors.setdefault(place, {})[found["part"]] = tensor
        published[place] = found["module"]
    whole = {"lora_A", "lora_B", *(["lora_magnitude_vector"] if settings.get("use_dora") else [])}
    for place, parts in tensors.items():
        if parts.keys() != whole:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {published[place]} has {', '.join(sorted(parts))}, but needs "
                f"{', '.join(sorted(whole))} (use_dora={bool(settings.get('use_dora'))})"
            )
        rank = _of_module(settings, "rank_pattern", "r", published[place])
        if len(parts["lora_A"]) != rank:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {published[place]} has the rank {len(parts['lora_A'])}, but "
                f"{ADAPTER} says {rank:g}"
            )
    alphas = {
        place: _of_module(settings, "alpha_pattern", "lora_alpha", name)
        for place, name in published.items()
    }
    return Adapter(folder, settings, tensors, alphas, published)


def _of_module(settings: Mapping[str, Any], patterns: str, usual: str, module: str) -> float:
    """The rank of a module, or what its product is scaled by; patterns tell modules apart."""
    for pattern, value in (settings.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return float(settings[usual])


def stock_place(module: str) -> str:
    """The place in the stock class of a module that a published class names.

    Names of the stock class stay as they are, so that an adapter trained on either is read.
    """
    for ours, theirs in LLADA_NAMES.items():
        number = re.fullmatch(re.escape(theirs).replace(re.escape("{}"), r"(\d+)"), module)
        if number is not None:
            return ours.format(*number.groups())
    for theirs, ours in _LLADA2.items():
        module = module.replace(theirs, ours)
    return module


def published_place(place: str, names: Collection[str]) -> str:
    """The name of a place of the stock class in the published class that an adapter was trained on.

    Args:
        place: Of the stock class.
        names: Those in the adapter's file, which tell the class.
    """
    if any(".attention." in name for name in names):
        for theirs, ours in _LLADA2.items():
            place = place.replace(ours, theirs)
        return re.sub(r"\.self_attn\.[qkv]_proj$", _FUSED, place)
    if any(name.startswith("model.transformer.") for name in names):
        for ours, theirs in LLADA_NAMES.items():
            number = re.fullmatch(re.escape(ours).replace(re.escape("{}"), r"(\d+)"), place)
            if number is not None:
                return theirs.format(*number.groups())
    return place


def apart(adapter: Adapter, model: Any) -> Adapter:
    """The adapter with LLaDA2's fused queries, keys and values as three: they share lora_A."""
    tensors, alphas = dict(adapter.tensors), dict(adapter.alphas)
    published = dict(adapter.published)
    heads = model.config.num_attention_heads, model.config.num_key_value_heads
    for place in [place for place in tensors if place.endswith(_FUSED)]:
        parts = tensors.pop(place)
        size = model.config.head_dim
        rows = [heads[0] * size, heads[1] * size, heads[1] * size]
        if parts["lora_B"].shape[0] != sum(rows):
            raise CheckpointError(
                f"{adapter.folder / WEIGHTS}: {place} has {parts['lora_B'].shape[0]} rows, the "
                f"model has {sum(rows)}"
            )
        for number, letter in enumerate("qkv"):
            own = place.replace(_FUSED, f".self_attn.{letter}_proj")
            alphas[own] = alphas[place]
            tensors[own] = {
                part: tensor if part == "lora_A" else tensor.split(rows)[number]
                for part, tensor in parts.items()
            }
            published[own] = published[place]
    return replace(adapter, tensors=tensors, alphas=alphas, published=published)


def merge(model: Any, folders: Sequence[Path], base: str = "") -> Any:
    """The model with adapters, one after the other.

    Args:
        model: Of the stock class, on one device or several.
        folders: Of the adapters.
        base: Name of the checkpoint, to be compared with the one that an adapter names.

    Raises:
        CheckpointError: An adapter does not fit; the message names file and module.
        ConfigError: peft is not installed.
    """
    if folders and find_spec("peft") is None:
        raise ConfigError('model.adapters needs the package peft; pip install "dllm_decode[lora]"')
    for number, folder in enumerate(folders):
        adapter = apart(read_adapter(folder), model)
        _check(adapter, model)
        _check_complete(adapter, model)
        _say_base(adapter, base)
        model = _adapted(model, adapter, f"adapter_{number}")
    return model.eval().requires_grad_(False)


def _check(adapter: Adapter, model: Any) -> None:
    """Refuse places that the model does not have, and matrices of other sizes."""
    modules = dict(model.named_modules())
    for place, parts in adapter.tensors.items():
        module = modules.get(place)
        module = getattr(module, "base_layer", module)
        if not isinstance(module, nn.Linear):
            why = "has no such layer"
            if ".experts." in place:
                why = "keeps the experts of a layer in one tensor"
            elif module is not None:
                why = f"has a {type(module).__name__} there, no linear layer"
            raise CheckpointError(
                f"{adapter.folder} adapts {place}, but the model {why}; {_MERGE_YOURSELF}"
            )
        down, up = parts["lora_A"].shape, parts["lora_B"].shape
        if down[1:] != (module.in_features,) or up != (module.out_features, down[0]):
            raise CheckpointError(
                f"{adapter.folder} adapts {place} with matrices of {tuple(down)} and {tuple(up)}, "
                f"but the layer has {module.in_features} inputs and {module.out_features} outputs"
            )
        scale = parts.get("lora_magnitude_vector")
        if scale is not None and scale.shape != (module.out_features,):
            raise CheckpointError(
                f"{adapter.folder} scales {place} with {tuple(scale.shape)} numbers, but the layer "
                f"has {module.out_features} outputs"
            )


def _check_complete(adapter: Adapter, model: Any) -> None:
    """Refuse a file that lacks layers which adapter_config.json says were adapted.

    Its names are those of the class that it was trained on, so they are compared there.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    keys = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    given = {key: adapter.settings[key] for key in keys if adapter.settings.get(key)}
    if not isinstance(given.get("target_modules"), list):  # a pattern, or nothing to compare
        return
    asked = LoraConfig(**given)
    for place, module in model.named_modules():
        name = published_place(place, adapter.published.values())
        linear = isinstance(getattr(module, "base_layer", module), nn.Linear)
        if linear and place not in adapter.tensors and check_target_module_exists(asked, name):
            raise CheckpointError(
                f"{adapter.folder / WEIGHTS} has nothing for {name}, which {ADAPTER} says was "
                "adapted: the file is not complete"
            )


def _say_base(adapter: Adapter, base: str) -> None:
    """Warn where an adapter names another base than the one that it is merged into."""
    named = adapter.settings.get("base_model_name_or_path")
    if base and isinstance(named, str) and Path(named).name != Path(base).name:
        log.warning(
            "adapter %s was trained on %s and is merged into %s", adapter.folder, named, base
        )
    revision = adapter.settings.get("revision")
    if revision not in (None, "main"):
        log.warning(
            "adapter %s was trained on revision %s of its base; which one is loaded here is not "
            "compared", adapter.folder, revision,
        )  # fmt: skip


def _adapted(model: Any, adapter: Adapter, name: str) -> Any:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    places = adapter.tensors
    config = LoraConfig(
        r=1,
        target_modules=list(places),
        rank_pattern={re.escape(place): len(parts["lora_A"]) for place, parts in places.items()},
        alpha_pattern={re.escape(place): adapter.alphas[place] for place in places},
        use_rslora=bool(adapter.settings.get("use_rslora")),
        use_dora=bool(adapter.settings.get("use_dora")),
    )
    with transformers_output(progress=False):
        inject_adapter_in_model(config, model, adapter_name=name)
    for place, parts in places.items():
        layer = model.get_submodule(place)
        for part, tensor in parts.items():
            target = getattr(layer, part)[name].weight
            with torch.no_grad():
                target.copy_(tensor)
    for place in places:
        layer = model.get_submodule(place)
        assert isinstance(layer, BaseTunerLayer)
        layer.merge(safe_merge=True, adapter_names=[name])
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config  # nothing is left of it
    return model
