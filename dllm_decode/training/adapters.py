"""Low-rank updates beside the linear layers of a model (LoRA), through peft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dllm_decode.errors import ConfigError


def adapt(model: Any, rank: int, seed: int) -> None:
    """Put low-rank updates beside all linear layers of a model's body; nothing else learns then.

    Args:
        model: A transformers model.
        rank: Of the updates, 1 or more.
        seed: Of their initial weights.

    Raises:
        ConfigError: The model has no such layers, or peft is missing.
    """
    names = [n for n, part in model.model.named_modules() if isinstance(part, nn.Linear)]
    if not names:
        raise ConfigError(
            f"task.lora needs linear layers, and this model ({type(model).__name__}) has none; use "
            "task.lora=0"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise ConfigError("task.lora needs peft; pip install 'dllm_decode[lora]'") from None
    torch.manual_seed(seed)
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), model.model)


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """The model with its low-rank updates added to the weights, in the layers it was loaded with.

    Afterwards everything is as before, to the bit.

    Args:
        model: Adapted or not.
    """
    adapted = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if hasattr(layer, "get_delta_weight")
    ]
    kept: list[tuple[Any, str, Any, Tensor]] = []
    for parent, name, layer in adapted:
        plain = layer.get_base_layer()
        kept.append((parent, name, layer, plain.weight.detach().clone()))
        with torch.no_grad():
            plain.weight += sum(layer.get_delta_weight(own) for own in layer.active_adapters)
        setattr(parent, name, plain)
    try:
        yield
    finally:
        for parent, name, layer, weight in kept:
            with torch.no_grad():
                layer.get_base_layer().weight.copy_(weight)
            setattr(parent, name, layer)
