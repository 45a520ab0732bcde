"""Weights of fewer bits: made while loading, or as the checkpoint has them; and what they take."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from dllm_decode.errors import CheckpointError, ConfigError, require, require_choice
from dllm_decode.models.placement import Placement

log = logging.getLogger(__name__)

INT4_GROUP, NF4_BLOCK = 128, 64  # weights that share a scale
# Settings of `model.quantization` with the package that makes them.
KINDS = {"int8": "torchao", "int4": "torchao", "nf4": "bitsandbytes"}
# Methods of published checkpoints that transformers loads into stock classes, with what they need.
PUBLISHED = {
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "fp8": "accelerate",
    "gptq": "gptqmodel",
    "torchao": "torchao",
}
# Methods whose weights are unpacked while they are read, so that they take what plain ones do:
# compressed-tensors would unpack them at the first call of the whole model, which is never made.
UNPACKED = ("compressed-tensors",)
# Keys under which weights of fewer bits are announced; only the first is transformers' own.
_KEYS = ("quantization_config", "compression_config", "quantization")


def published_method(values: Mapping[str, Any], file: object = "config.json") -> str | None:
    """The method by which a checkpoint is quantised, None where its weights are plain.

    Args:
        values: Its config.json.
        file: What to name in messages.

    Raises:
        CheckpointError: The method is not one that transformers loads into a stock class.
    """
    for key in _KEYS:
        settings = values.get(key)
        if not settings:
            continue
        about = settings if isinstance(settings, dict) else {}
        method = about.get("quant_method") or about.get("format") or "unnamed method"
        if key == _KEYS[0] and isinstance(method, str) and method in PUBLISHED:
            return method
        raise CheckpointError(
            f"{file}: the weights are quantised ({key!r}: {str(method)[:60]!r}), which cannot be "
            f"loaded here; 'quantization_config' with {', '.join(PUBLISHED)} can, so use one of "
            "those or the checkpoint that it was made from"
        )
    return None


def require_apart(method: str | None, names: Iterable[str], file: object) -> None:
    """Refuse quantised weights of LLaDA2: transformers takes apart its one matrix of three.

    It does so for plain weights alone, as scales and codes would have to be parted, too.

    Args:
        method: By which the checkpoint is quantised.
        names: Of its tensors.
        file: What to name in messages.

    Raises:
        CheckpointError: The checkpoint is quantised and has such a matrix.
    """
    if method is not None and any("query_key_value" in name for name in names):
        raise CheckpointError(
            f"{file}: the weights are quantised ({method}), with queries, keys and values in one "
            "matrix, which can be taken apart for plain weights only; use the checkpoint that it "
            "was made from, with model.quantization=int8 or nf4"
        )


def unpacks(method: str, device: torch.device) -> bool:
    """Whether published weights of fewer bits take what plain ones do once they are there.

    Args:
        method: One of `PUBLISHED`.
        device: Where the model is to run; fp8 is computed with by GPUs of capability 8.9.
    """
    if method != "fp8":
        return method in UNPACKED
    return device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)


def as_published(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under which transformers reads the weights of a checkpoint.

    Args:
        values: Its config.json.
    """
    settings = dict(values[_KEYS[0]])
    if settings.get("quant_method") in UNPACKED:
        settings["dequantize"] = True
    return settings


def require_quantization(kind: str | None, method: str | None, placement: Placement) -> None:
    """Refuse what cannot be quantised before anything is loaded.

    Args:
        kind: `model.quantization`.
        method: By which the checkpoint is quantised already.
        placement: Where the model is to run.

    Raises:
        ConfigError: The setting cannot work; the message says what does.
    """
    if kind is not None:
        require_choice("model.quantization", kind, tuple(KINDS))
        require(
            method is None,
            f"model.quantization={kind} cannot be applied: the checkpoint is quantised already "
            f"({method}); set it to null",
        )
    if kind is None and method is None:
        return
    require(
        placement.tensor_parallel is None,
        "quantised weights cannot be shared by model.tensor_parallel; use model.device_map",
    )
    places = placement.device_map
    if isinstance(places, Mapping):
        there = {str(place) for place in places.values()}
        require(
            "disk" not in there and ("cpu" not in there or there == {"cpu"}),
            "quantised weights stay where they are computed with: model.device_map must not send "
            f"some of them to the disk or the processor, got {dict(places)}",
        )
    package = KINDS[kind] if kind is not None else PUBLISHED[str(method)]
    for needed in (package, "accelerate"):
        if find_spec(needed) is None:
            what = f"model.quantization={kind}" if kind else f"a checkpoint quantised by {method}"
            extra = 'pip install "dllm_decode[quant]"'
            how = f"pip install {needed} optimum" if needed == "gptqmodel" else extra
            raise ConfigError(f"{what} needs the package {needed}; {how}")
    if kind == "int4":
        require(
            placement.device.type != "cpu",
            "model.quantization=int4 runs on GPUs alone (torchao has no such product for "
            "processors); use nf4 or int8",
        )
        require(
            placement.dtype == torch.bfloat16,
            "model.quantization=int4 needs model.dtype=bfloat16, got "
            f"{str(placement.dtype).removeprefix('torch.')}",
        )


def holds_experts(module: nn.Module, name: str) -> bool:
    """Whether a parameter of a module holds the experts of a layer: (experts, rows, columns)."""
    parameter = module._parameters.get(name)
    return parameter is not None and parameter.ndim == 3


def say_how_experts_run(model: Any, kind: str) -> None:
    """Say once that experts of fewer bits save memory and cost time."""
    if _experts_of_a_layer(model):
        log.warning(
            "model.quantization=%s keeps the experts packed and unpacks those of one layer at a "
            "time, for all of them in every pass: that saves memory and costs time", kind,
        )  # fmt: skip


def memory_by_kind(model: Any, width: int = 2) -> dict[str, int]:
    """Bytes of the weights of a model, built on the meta device, for each dtype and quantisation.

    Linear layers but the head are quantised, and the experts of mixtures; everything else is kept
    as it is. Packed experts need room for those of one layer, twice while they are read.

    Args:
        model: Built on the meta device.
        width: Bytes of a number that is kept, 2 or 4.
    """
    packed = [*_linear(model), *_experts(model)]
    inside = sum(weight.numel() for weight in packed)
    total = _numbers(model)
    rest = width * (total - inside + 2 * _experts_of_a_layer(model))
    rows = sum(weight.numel() // weight.shape[-1] for weight in packed)
    return {
        "float32": 4 * total,
        "bfloat16": 2 * total,
        "int8": rest + inside + 4 * rows,  # a float32 per row
        "int4": rest + inside // 2 + 4 * inside // INT4_GROUP,  # scale and zero per group
        "nf4": rest + inside // 2 + 4 * inside // NF4_BLOCK,  # a float32 per block
    }


def _numbers(model: Any) -> int:
    """Numbers in all weights; those that are tied count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _linear(model: Any) -> Iterator[torch.Tensor]:
    head = model.get_output_embeddings()
    for module in model.modules():
        if type(module) is nn.Linear and module is not head:
            yield module.weight


def _experts(model: Any) -> Iterator[torch.Tensor]:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if holds_experts(module, name):
                yield parameter


def _experts_of_a_layer(model: Any) -> int:
    """Numbers in the experts of the layer that has most, 0 for dense models."""
    most: int = max(
        sum(
            parameter.numel()
            for name, parameter in module.named_parameters(recurse=False)
            if holds_experts(module, name)
        )
        for module in model.modules()
    )
    return most


@dataclass(frozen=True)
class Verdict:
    """Whether weights go into memory.

    Attributes:
        needed: Bytes.
        there: Bytes that are free.

    Examples:
        >>> str(Verdict(needed=10, there=20)), str(Verdict(19, 20)), str(Verdict(21, 20))
        ('fits', 'tight', 'will not fit')
    """

    needed: float
    there: float

    def __str__(self) -> str:
        """`tight` leaves less than a tenth for logits, keys and values."""
        if self.needed > self.there:
            return "will not fit"
        return "fits" if self.needed <= 0.9 * self.there else "tight"
