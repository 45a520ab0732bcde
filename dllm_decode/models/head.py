"""The output head of a transformers model: whether it is a plain product with a matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dllm_decode.kernels.shards import VocabularyShard

FUSED_DTYPES = (torch.bfloat16, torch.float16)


def head_obstacle(model: Any, vocabulary: int) -> str:
    """Why head and statistics cannot be one kernel for this model, empty if they can.

    The kernel computes hidden @ weight.T of one whole matrix on one device, tied to the embedding
    or not. Quantised and adapted layers, a bias, and hooks (tensor parallelism, offloading) make a
    head something else; those of a device map only move what it is given. float32 products run on
    another part of the chip, where the kernel is slower than two.

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
    hooked = head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head)
    if hooked and not _only_moves(head):
        return "it has hooks, as tensor parallelism and offloading need them"
    if type(weight) is not nn.Parameter or weight.shape[0] < vocabulary:
        return f"this process holds {tuple(weight.shape)} of it as {type(weight).__name__}"
    if weight.device.type == "meta":
        return "it is not in the memory of a device"
    if weight.dtype not in FUSED_DTYPES:
        return f"it is {weight.dtype}; the kernel is for torch.bfloat16 and torch.float16"
    return ""


def vocabulary_shard(model: Any, vocabulary: int) -> VocabularyShard | None:
    """This process's part of a head that tensor parallelism has split by ids, None for a whole one.

    Args:
        model: A `...ForCausalLM` of transformers.
        vocabulary: Ids that are used, V.
    """
    head = model.get_output_embeddings()
    weight: Any = getattr(head, "weight", None)
    if not hasattr(weight, "device_mesh") or getattr(head, "bias", None) is not None:
        return None
    (placement,) = weight.placements
    if not placement.is_shard(0):
        return None
    mesh = weight.device_mesh
    first = mesh.get_local_rank() * -(-weight.shape[0] // mesh.size())  # as torch.chunk splits
    own = weight.to_local().detach()[: max(0, vocabulary - first)]
    return VocabularyShard(own, first, vocabulary, mesh.get_group())


def first_of_all(values: Tensor, group: Any) -> Tensor:
    """The values of the first of some processes, on all of them.

    Args:
        values: Of this one.
        group: The processes.
    """
    from torch import distributed

    shared = values.contiguous()
    distributed.broadcast(shared, group=group, group_src=0)
    return shared


def _only_moves(head: nn.Module) -> bool:
    """Whether all that is hooked to a head is accelerate's moving of its input to its device."""
    hook: Any = getattr(head, "_hf_hook", None)
    if head._forward_hooks or head._forward_pre_hooks or hook is None:
        return False
    return type(hook).__name__ == "AlignDevicesHook" and not hook.offload
