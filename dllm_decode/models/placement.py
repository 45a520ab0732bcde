"""Where a model runs: device, dtype, attention, and how it is spread over several devices."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch

from dllm_decode.errors import ConfigError, require, require_choice, require_count

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # made by accelerate
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flex_attention")
_SLOW = 3.0  # times a product of float32, from which on a dtype is worth a word


@dataclass(frozen=True)
class Placement:
    """Where a model runs.

    Attributes:
        dtype_name: `float32`, `bfloat16`, `float16`, or `auto`: float32 on the CPU, bfloat16
            elsewhere.
        device_name: `cpu`, `cuda`, `cuda:1`, ..., or `auto`: CUDA where there is one.
        attention: As transformers names it.
        device_map: As transformers takes it, instead of a device.
        tensor_parallel: Number of ranks started by torchrun, instead of `device_map`.

    Examples:
        >>> Placement(dtype_name="float32", device_name="cpu").dtype
        torch.float32
    """

    dtype_name: str = "auto"
    device_name: str = "auto"
    attention: str = "sdpa"
    device_map: str | Mapping[str, Any] | None = None
    tensor_parallel: int | None = None

    def __post_init__(self) -> None:
        require_choice("model.dtype", self.dtype_name, ("auto", *DTYPES))
        require_choice("model.attn_implementation", self.attention, ATTENTION)
        require(
            self.device_map is None or self.tensor_parallel is None,
            "model.device_map and model.tensor_parallel exclude each other; set one of them to "
            "null",
        )
        if self.tensor_parallel is not None:
            require_count("model.tensor_parallel", self.tensor_parallel, minimum=2)
            require(
                torch.distributed.is_torchelastic_launched(),
                f"model.tensor_parallel={self.tensor_parallel} needs as many processes; start with "
                f"torchrun --nproc-per-node {self.tensor_parallel} -m dllm_decode ...",
            )
            started = os.environ.get("WORLD_SIZE", "1")
            require(
                started == str(self.tensor_parallel),
                f"model.tensor_parallel={self.tensor_parallel} needs as many processes, but "
                f"torchrun has started {started}",
            )
        check_map(self.device_map)
        if self.attention == "flash_attention_2":
            self._require_flash()
        if self.is_spread and find_spec("accelerate") is None:
            name = "device_map" if self.device_map is not None else "tensor_parallel"
            raise ConfigError(f"model.{name} needs the package accelerate; pip install accelerate")

    def _require_flash(self) -> None:
        name = "model.attn_implementation=flash_attention_2"
        require(self.device.type == "cuda", f"{name} runs on GPUs alone; use sdpa")
        require(
            self.dtype != torch.float32,
            f"{name} needs model.dtype=bfloat16 or float16, got float32",
        )
        if find_spec("flash_attn") is None:
            raise ConfigError(
                f"{name} needs the package flash-attn; pip install flash-attn, or use sdpa"
            )

    @property
    def is_spread(self) -> bool:
        """Whether the model lies on several devices, or on several ranks."""
        return self.device_map is not None or self.tensor_parallel is not None

    @cached_property
    def device(self) -> torch.device:
        """The device; raises `ConfigError` for one that is not there."""
        return pick_device(self.device_name)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return pick_dtype(self.dtype_name, self.device)

    def for_transformers(self) -> dict[str, Any]:
        """Arguments of `from_pretrained`."""
        options: dict[str, Any] = {
            "dtype": self.dtype,
            "attn_implementation": self.attention,
            "device_map": self.device_map,
        }
        if self.attention == "flash_attention_2":
            from dllm_decode.models.varlen import NAME

            options["attn_implementation"] = NAME
        if self.tensor_parallel is not None:
            from transformers.distributed import DistributedConfig

            options["distributed_config"] = DistributedConfig(tp_size=self.tensor_parallel)
        return options


def check_map(device_map: object) -> None:
    """Refuse a `model.device_map` that names no devices of this machine.

    Args:
        device_map: As configured.

    Raises:
        ConfigError: It is of another kind, or a device is not there.
    """
    if device_map is None or device_map in MAPS:
        return
    if isinstance(device_map, str):
        pick_device(device_map, f"model.device_map must be {', '.join(MAPS)}, a mapping,")
        return
    places = dict(device_map) if isinstance(device_map, Mapping) else {}
    if not places or not all(isinstance(name, str) for name in places):
        raise ConfigError(
            f"model.device_map must be one of {', '.join(MAPS)}, or a mapping from names of "
            f"modules ('' for all) to devices, got {device_map!r}"
        )
    for name, device in places.items():
        if device == "disk":
            continue
        number = type(device) is int and device >= 0
        where = f"model.device_map[{name!r}] must be disk, the number of a GPU,"
        pick_device(f"cuda:{device}" if number else device, where)


def check_map_names(device_map: object, model: Any) -> None:
    """Refuse a map with names that the model does not have, or that leaves out some of it.

    Args:
        device_map: As configured.
        model: Built without memory for its weights.

    Raises:
        ConfigError: A name is unknown, or a weight has no place; the embedding must have a device.
    """
    if not isinstance(device_map, Mapping):
        return
    known = {name for name, _ in model.named_modules()} | {n for n, _ in model.named_parameters()}
    for name in device_map:
        require(
            name in known,
            f"model.device_map names {name!r}, which the model does not have; it has, e.g., "
            f"{', '.join(name for name, _ in model.named_children())}, model.layers.0",
        )

    def place(name: str) -> object:
        parts = name.split(".")
        found = (".".join(parts[:count]) for count in range(len(parts), -1, -1))
        return next((device_map[prefix] for prefix in found if prefix in device_map), None)

    for name, parameter in model.named_parameters():
        require(place(name) is not None, f"model.device_map says nothing about {name}")
        require(
            place(name) != "disk" or parameter is not model.get_input_embeddings().weight,
            "model.device_map sends the embedding to the disk, where a pass cannot begin; give "
            f"{name.removesuffix('.weight')} a device",
        )


def pick_device(
    device: str, where: str = "model.device must be auto, cpu or a device of this machine"
) -> torch.device:
    """The device for a setting; raises `ConfigError` for one that is not there.

    Args:
        device: As configured.
        where: The beginning of the message.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        reason = reason if len(reason) <= 80 else "torch on this machine cannot use it"
    else:
        reason = "it holds no numbers" if place.type == "meta" else ""
    if reason:
        where = where if where.endswith("machine") else f"{where} cpu or a device of this machine"
        raise ConfigError(f"{where}, got {device!r} ({reason})")
    return place


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype for a setting on a device.

    Args:
        dtype: `auto` or the name of a dtype.
        device: Where the model runs.
    """
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return DTYPES[dtype]


def slow_on_processor(dtype: torch.dtype, device: torch.device) -> str:
    """That a processor has no products of a dtype, in words, "" where it has or is none.

    Such products are computed number by number, many times slower than those of float32. Which
    processors have them depends on torch, its libraries and the machine, so that a product is
    timed (some milliseconds).

    Args:
        dtype: Of the weights.
        device: Where the model runs.
    """
    if device.type != "cpu" or dtype == torch.float32:
        return ""
    ratio = _product_seconds(dtype) / _product_seconds(torch.float32)
    if ratio < _SLOW:
        return ""
    name = str(dtype).removeprefix("torch.")
    return f"this processor multiplies {name} matrices {ratio:.0f} times slower than float32 ones"


def _product_seconds(dtype: torch.dtype) -> float:
    """What a small product takes: the best of three, of which the first warms up."""
    left, right = torch.ones(128, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        torch.nn.functional.linear(left, right)
        times.append(time.perf_counter() - begun)
    return min(times)
