"""The output head of a transformers model: whether it is a plain product with a matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

FUSED_DTYPES = (torch.bfloat16, torch.float16)


def head_obstacle(model: Any, vocabulary: int) -> str:
    """Why head and statistics cannot be one kernel for this model, empty if they can.

    The kernel computes hidden @ weight.T of one whole matrix on one device, tied to the embedding
    or not. Quantised and adapted layers, a bias, and hooks (tensor parallelism, a device map) make
    a head something else; float32 products run on another part of the chip, where the kernel is
    slower than two.

    Args:
        model: A `...ForCausalLM` of transformers.
        vocabulary: Ids that are used, V.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return f"it is a {type(head).__name__}, not a plain linear layer"
    weight = head.weight
    if len(list(head.parameters())) > 1:
        return "it has a bias"
    if head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head):
        return "it has hooks, as tensor parallelism and device maps need them"
    if type(weight) is not nn.Parameter or weight.shape[0] < vocabulary:
        return f"this process holds {tuple(weight.shape)} of it as {type(weight).__name__}"
    if weight.device != model.get_input_embeddings().weight.device:
        return f"it is on {weight.device}, the tokens are elsewhere"
    if weight.dtype not in FUSED_DTYPES:
        return f"it is {weight.dtype}; the kernel is for torch.bfloat16 and torch.float16"
    return ""
