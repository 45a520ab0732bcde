"""LoRA adapters: found, translated to the names of the stock class, and merged into the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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

WEIGHTS = "adapter_model.safetensors"
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
        return BaseAndAdapters(checkpoint, folders)
    base = read_json(alone / ADAPTER, CheckpointError).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{alone / ADAPTER} does not name the model that it adapts (base_model_name_or_path); "
            f"set model.checkpoint to that model and model.adapters=[{alone}]"
        )
    return BaseAndAdapters(base, (alone, *(folders or ())), alone)


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

    Examples:
        >>> Adapter(Path("mine"), {"use_dora": False}, {}, {}).folder.name
        'mine'
    """

    folder: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]
    alphas: Mapping[str, float]


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a folder.

    Raises `CheckpointError` for one of another kind, and for whatever it holds beside LoRA.
    """
    file = folder / ADAPTER
    settings = read_json(file, CheckpointError)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{file}: peft_type is {kind!r}, but only LORA is merged here; merge it with peft "
            "(merge_and_unload) and load the result"
        )
    for key, plain in (("bias", "none"), ("modules_to_save", None), ("fan_in_fan_out", False)):
        if settings.get(key) not in (plain, None, []):
            raise CheckpointError(
                f"{file}: {key}={settings[key]!r} is not merged here; merge it with peft "
                "(merge_and_unload) and load the result"
            )
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    for name, value in (("r", rank), ("lora_alpha", alpha)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise CheckpointError(f"{file}: {name!r} must be a number above 0, got {value!r}")
    return _translated(folder, settings, _stored(folder))


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
    return stored


def _translated(folder: Path, settings: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Adapter:
    tensors: dict[str, dict[str, Tensor]] = {}
    published: dict[str, str] = {}
    for name, tensor in stored.items():
        found = _PART.match(name.removeprefix(_PREFIX))
        if found is None:
            raise CheckpointError(
                f"{folder / WEIGHTS}: tensor {name!r} is no part of a LoRA adapter "
                "(lora_A, lora_B, lora_magnitude_vector)"
            )
        place = stock_place(found["module"])
        tensors.setdefault(place, {})[found["part"]] = tensor
        published[place] = found["module"]
    for place, parts in tensors.items():
        if not {"lora_A", "lora_B"} <= parts.keys():
            raise CheckpointError(
                f"{folder / WEIGHTS}: {published[place]} has {', '.join(sorted(parts))}, but needs "
                "lora_A and lora_B"
            )
    alphas = {place: _alpha_of(settings, name) for place, name in published.items()}
    return Adapter(folder, settings, tensors, alphas)


def _alpha_of(settings: Mapping[str, Any], module: str) -> float:
    """What the product of a module is scaled by, times its rank; patterns tell modules apart."""
    for pattern, alpha in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(alpha)
    return float(settings["lora_alpha"])


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


def apart(adapter: Adapter, model: Any) -> Adapter:
    """The adapter with LLaDA2's fused queries, keys and values as three: they share lora_A."""
    tensors, alphas = dict(adapter.tensors), dict(adapter.alphas)
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
    return replace(adapter, tensors=tensors, alphas=alphas)


def merge(model: Any, folders: Sequence[Path], *, keep_apart: bool = False) -> Any:
    """The model with adapters, one after the other.

    Args:
        model: Of the stock class, on one device or several.
        folders: Of the adapters.
        keep_apart: Leave them beside weights that cannot be added to, as quantised ones.

    Raises:
        CheckpointError: An adapter does not fit; the message names file and module.
        ConfigError: peft is not installed.
    """
    if folders and find_spec("peft") is None:
        raise ConfigError('model.adapters needs the package peft; pip install "dllm_decode[lora]"')
    for number, folder in enumerate(folders):
        adapter = apart(read_adapter(folder), model)
        _check(adapter, model)
        model = _adapted(model, adapter, f"adapter_{number}", keep_apart)
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
                f"{adapter.folder} adapts {place}, but the model {why}; merge the adapter with "
                "peft (merge_and_unload) and load the result"
            )
        down, up = parts["lora_A"].shape, parts["lora_B"].shape
        if down[1:] != (module.in_features,) or up != (module.out_features, down[0]):
            raise CheckpointError(
                f"{adapter.folder} adapts {place} with matrices of {tuple(down)} and {tuple(up)}, "
                f"but the layer has {module.in_features} inputs and {module.out_features} outputs"
            )


def _adapted(model: Any, adapter: Adapter, name: str, keep_apart: bool) -> Any:
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
        if keep_apart:
            layer.set_adapter(list(layer.lora_A))
    if keep_apart:
        return model
    for place in places:
        layer = model.get_submodule(place)
        assert isinstance(layer, BaseTunerLayer)
        layer.merge(safe_merge=True, adapter_names=[name])
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config  # nothing is left of it
    return model
