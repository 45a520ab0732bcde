"""Weights in fewer bits as transformers makes them, and the experts, which it leaves as they are.

Experts are packed as they are read and unpacked a layer at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

from dllm_decode.models.quantization import INT4_GROUP, NF4_BLOCK, holds_experts

_LARGEST = 2**30  # numbers that are unpacked by one call of bitsandbytes, which counts in 32 bits


class Int8(nn.Module):
    """Numbers in 8 bits: q * s, where s = max |w| / 127 of a row.

    Args:
        weight: Experts (E, rows, columns).

    Examples:
        >>> weight = torch.tensor([[[1.0, -127.0], [0.5, 0.25]]])
        >>> packing = Int8(weight)
        >>> packing.packed.tolist(), packing(packing.packed)[0, 0].tolist()
        ([[[1, -127], [127, 64]]], [1.0, -127.0])
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape, self.dtype = weight.shape, weight.dtype
        # expert by expert, as what is made on the way would be larger than all of them
        parts = [self._of_one(expert) for expert in weight]
        self.packed = torch.stack([packed for packed, _ in parts])
        # no buffer: transformers empties those that it did not read
        self.scale = torch.stack([scale for _, scale in parts])

    @staticmethod
    def _of_one(expert: Tensor) -> tuple[Tensor, Tensor]:
        scale = expert.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / 127
        return (expert / scale).round_().to(torch.int8), scale

    def forward(self, packed: Tensor) -> Tensor:
        """The weights in the dtype that they had."""
        whole = torch.empty(self.shape, dtype=self.dtype, device=packed.device)
        return torch.mul(packed, self.scale, out=whole)


class Int4(nn.Module):
    """Numbers in 4 bits: q * s + z, where s and z span the values of `INT4_GROUP` columns.

    Args:
        weight: Experts (E, rows, columns), an even number of columns.

    Examples:
        >>> packing = Int4(torch.arange(16.0).view(1, 1, 16))
        >>> packing.packed.shape, packing(packing.packed).flatten().tolist()[:3]
        (torch.Size([1, 1, 1, 8]), [0.0, 1.0, 2.0])
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape, self.dtype = weight.shape, weight.dtype
        parts = [self._of_one(expert) for expert in weight]
        self.packed, self.scale, self.zero = map(torch.stack, zip(*parts, strict=True))

    @staticmethod
    def _of_one(expert: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups = expert.unflatten(-1, (-1, _group(expert.shape[-1])))
        low, high = groups.aminmax(dim=-1, keepdim=True)
        scale = ((high - low) / 15).clamp(min=1e-7)
        first, second = ((groups - low) / scale).round_().clamp_(0, 15).byte().chunk(2, dim=-1)
        return first | second << 4, scale, low

    def forward(self, packed: Tensor) -> Tensor:
        """The weights in the dtype that they had."""
        halves = (*packed.shape[:-1], 2, packed.shape[-1])
        whole = torch.empty(halves, dtype=self.dtype, device=packed.device)
        torch.mul(packed & 15, self.scale, out=whole[..., 0, :])
        torch.mul(packed >> 4, self.scale, out=whole[..., 1, :])
        return whole.add_(self.zero[..., None, :]).view(self.shape)


def _group(columns: int) -> int:
    return INT4_GROUP if columns % INT4_GROUP == 0 else columns


class NF4(nn.Module):
    """Numbers in the 4 bits of bitsandbytes, of which `NF4_BLOCK` share their largest value.

    Args:
        weight: Experts (E, rows, columns).

    Examples:
        >>> NF4(torch.ones(1, 1, 64)).packed.dtype  # doctest: +SKIP
        torch.uint8
    """

    def __init__(self, weight: Tensor) -> None:
        from bitsandbytes.functional import quantize_4bit

        super().__init__()
        self.shape, self.dtype = weight.shape, weight.dtype
        some = max(1, _LARGEST // weight[0].numel())
        parts = [
            quantize_4bit(part, blocksize=NF4_BLOCK, quant_type="nf4")
            for part in weight.split(some)
        ]
        self.packed = torch.cat([packed for packed, _ in parts])
        self.rows = [len(packed) for packed, _ in parts]
        self.states = [state for _, state in parts]

    def forward(self, packed: Tensor) -> Tensor:
        """The weights in the dtype that they had."""
        from bitsandbytes.functional import dequantize_4bit

        if len(self.states) == 1:
            alone: Tensor = dequantize_4bit(packed, self.states[0])
            return alone
        whole = torch.empty(self.shape, dtype=self.dtype, device=packed.device)
        places = whole.split([state.shape[0] for state in self.states])
        for part, state, place in zip(packed.split(self.rows), self.states, places, strict=True):
            place.copy_(dequantize_4bit(part, state))  # processors have no `out`
        return whole


PACKINGS: Mapping[str, type[Int8 | Int4 | NF4]] = {"int8": Int8, "int4": Int4, "nf4": NF4}


def pack(module: nn.Module, name: str, weight: Tensor, kind: str) -> None:
    """Keep a parameter of a module packed; whoever reads it gets it unpacked.

    Args:
        module: That holds the experts of a layer.
        name: Of its parameter.
        weight: What it is to hold.
        kind: One of `PACKINGS`.
    """
    packing = PACKINGS[kind](weight)
    module.register_parameter(name, nn.Parameter(packing.packed, requires_grad=False))
    del packing.packed
    parametrize.register_parametrization(module, name, packing, unsafe=True)


class _Pack(ConversionOps):  # type: ignore[misc]
    """Packs experts as they are read, and leaves other weights to the library one by one."""

    def __init__(self, kind: str, others: ConversionOps) -> None:
        self.kind, self.others = kind, others

    def convert(self, input_dict: dict[str, Any], **options: Any) -> dict[str, Any]:
        """What is left to be set; nothing where the library or `pack` has."""
        left: dict[str, Any] = {}
        # LLaDA2's queries, keys and values are one tensor; torchao would take the first of three
        for place, weight in input_dict.items():
            left |= self._one(place, weight, **options | {"full_layer_name": place})
        return left

    def _one(self, place: str, weight: Any, **options: Any) -> dict[str, Any]:
        where, _, name = place.rpartition(".")
        module = options["model"].get_submodule(where)
        if not holds_experts(module, name):
            found: dict[str, Any] = self.others.convert({place: weight}, **options)
            return found
        pack(module, name, weight[0] if isinstance(weight, list) else weight, self.kind)
        options["missing_keys"].discard(place)
        for one in (module, *module.parameters()):
            one._is_hf_initialized = True  # nothing is drawn for them
        return {}


class _WithExperts:
    """What both libraries' quantisers lack: the experts that a layer holds in one tensor."""

    kind: str

    def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
        where, _, name = param_name.rpartition(".")
        if holds_experts(model.get_submodule(where), name):
            return True
        needed: bool = super().param_needs_quantization(model, param_name, **options)  # type: ignore[misc]
        return needed

    def get_quantize_ops(self) -> ConversionOps:
        return _Pack(self.kind, super().get_quantize_ops())  # type: ignore[misc]


def for_transformers(kind: str, dtype: torch.dtype) -> Any:
    """The settings with which transformers quantises weights as it reads them; never the head.

    Args:
        kind: One of `KINDS`.
        dtype: In which products are computed.
    """
    if kind == "nf4":
        made: Any = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    else:
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

        packing = {"group_size": INT4_GROUP, "int4_packing_format": "tile_packed_to_4d"}
        int8 = kind == "int8"
        made = TorchAoConfig(Int8WeightOnlyConfig() if int8 else Int4WeightOnlyConfig(**packing))
    made.quant_method = _method(kind)
    return made


def _method(kind: str) -> str:
    """The name under which transformers knows the quantiser of a kind that packs experts, too."""
    return f"dllm_decode_{kind}"


for _kind, _library in {
    "int8": TorchAoHfQuantizer,
    "int4": TorchAoHfQuantizer,
    "nf4": Bnb4BitHfQuantizer,
}.items():
    register_quantizer(_method(_kind))(
        type(f"{_kind}WithExperts", (_WithExperts, _library), {"kind": _kind})
    )
