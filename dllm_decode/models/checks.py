"""What every loaded model must prove before it is used: cheap, and each failure says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dllm_decode.errors import CheckpointError
from dllm_decode.models.adapter import TransformersDenoiser
from dllm_decode.models.text import CheckpointTokenizer

_PROBE_LENGTH = 8
_NOISE = 1e-4  # share of a column's own change below which another's change is rounding


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What was checked.
        problem: What is wrong, empty if nothing is.

    Examples:
        >>> Check("tokenizer").problem == ""
        True
    """

    name: str
    problem: str = ""


def self_check(denoiser: TransformersDenoiser, tokenizer: CheckpointTokenizer) -> list[Check]:
    """All checks with their outcome; see the functions of this module.

    Args:
        denoiser: A loaded model.
        tokenizer: Of its checkpoint.
    """
    checks: dict[str, Callable[[], str]] = {
        "vocabulary": lambda: check_vocabulary(denoiser, tokenizer),
        "rotation table": lambda: check_rotation(denoiser.model),
        "attention": lambda: check_attention(denoiser),
    }
    return [Check(name, check()) for name, check in checks.items()]


def require_sound(
    denoiser: TransformersDenoiser, tokenizer: CheckpointTokenizer, where: object
) -> None:
    """Raise `CheckpointError` that says which checks failed and why.

    Args:
        denoiser: A loaded model.
        tokenizer: Of its checkpoint.
        where: Its folder or name, for messages.
    """
    failed = [check for check in self_check(denoiser, tokenizer) if check.problem]
    if failed:
        listing = "; ".join(f"{check.name}: {check.problem}" for check in failed)
        raise CheckpointError(f"the model loaded from {where} fails its self-check: {listing}")


def check_vocabulary(denoiser: TransformersDenoiser, tokenizer: CheckpointTokenizer) -> str:
    """Embedding and head have one row per id, and the tokenizer knows no further ids.

    Args:
        denoiser: A loaded model.
        tokenizer: Of its checkpoint.
    """
    size = denoiser.model.config.vocab_size
    for name in ("input", "output"):
        rows = getattr(denoiser.model, f"get_{name}_embeddings")().weight.shape[0]
        if rows != size:
            return f"the {name} embedding has {rows} rows, config.json says {size}"
    if tokenizer.size is not None and tokenizer.size > size:
        return f"the tokenizer has ids up to {tokenizer.size - 1}, the model only {size}"
    mask = denoiser.vocab.mask_id
    if tokenizer.size is not None and mask >= tokenizer.size:
        return f"the mask id {mask} is not in the tokenizer, whose last id is {tokenizer.size - 1}"
    return ""


def check_rotation(model: Any) -> str:
    """Each rotation table equals theta ** (-2 i / d), i = 0, 1, ... d/2 - 1.

    A table that was built on the meta device and never filled holds random numbers; the model
    then runs and returns nonsense.
    """
    rope = model.config.rope_parameters
    heads = model.config.num_attention_heads
    size = getattr(model.config, "head_dim", None) or model.config.hidden_size // heads
    rotated = int(size * rope.get("partial_rotary_factor", 1.0))
    exponents = torch.arange(0, rotated, 2, dtype=torch.float64) / rotated
    right = (rope["rope_theta"] ** -exponents).float()
    tables = {
        name: module.inv_freq
        for name, module in model.named_modules()
        if isinstance(getattr(module, "inv_freq", None), Tensor)
    }
    if not tables:
        return "the model has none"
    for name, table in tables.items():
        there = table.detach().float().cpu()
        if there.shape != right.shape or not torch.allclose(there, right, rtol=1e-5, atol=0.0):
            return f"{name}.inv_freq is not theta^(-2i/d) with theta={rope['rope_theta']:g}"
    return ""


def check_attention(denoiser: TransformersDenoiser) -> str:
    """A later column changes an earlier one exactly where the attention kind says so.

    Full attention: the last of 8 random tokens changes the hidden state of the first. Block-causal:
    the last column of a block changes the first one of that block, and the last column of the next
    block changes nothing in front of it. Mixtures of experts round differently when other columns
    take other experts, so changes are compared with each other and not with zero.
    """
    block = denoiser.block_length
    positions = getattr(denoiser.model.config, "max_position_embeddings", denoiser.max_length)
    if block is not None and positions is not None and block > positions:
        # before two such blocks of tokens are made
        return f"model.block_length must not exceed the model's {positions} positions, got {block}"
    length = _PROBE_LENGTH if block is None else 2 * block
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, denoiser.vocab.size, (1, length), generator=generator)
    if denoiser.reordered:
        return _check_order(denoiser, tokens)
    before = _hidden(denoiser, tokens)
    if not bool(before.isfinite().all()):
        return "the model returns NaN or infinite numbers for random tokens"
    last = length - 1 if block is None else block - 1
    moved = _influence(denoiser, tokens, before, last)
    if last > 0 and moved[0] <= _NOISE * moved[last]:
        return f"column {last} does not influence column 0, so the attention is causal"
    if block is None or block == 1:
        return ""
    moved = _influence(denoiser, tokens, before, length - 1)
    leaked, meant = moved[:block].mean(), moved[block:-1].mean()
    if meant <= _NOISE * moved[-1]:
        return f"column {length - 1} does not influence the rest of its block"
    if leaked > 0.5 * meant:
        return f"column {length - 1} influences the block before its own"
    return ""


def _check_order(denoiser: TransformersDenoiser, tokens: Tensor) -> str:
    """The check of a model that reads decided columns first, on 8 random tokens."""
    mask, middle, last = denoiser.vocab.mask_id, _PROBE_LENGTH // 2, _PROBE_LENGTH - 1
    tokens = torch.where(tokens == mask, (mask + 1) % denoiser.vocab.size, tokens)
    tokens[:, middle] = mask
    before = _hidden(denoiser, tokens)
    if not bool(before.isfinite().all()):
        return "the model returns NaN or infinite numbers for random tokens"
    other = next(n for n in range(denoiser.vocab.size) if n not in (mask, int(tokens[0, last])))
    tokens[:, last] = other
    moved = (_hidden(denoiser, tokens) - before).abs().mean(-1)[0]
    if moved[middle] <= _NOISE * moved[last]:
        return f"column {last}, decided, does not influence column {middle}, undecided"
    if moved[:middle].max() > _NOISE * moved[last]:
        return f"column {last} influences decided columns in front of it"
    return ""


def _influence(
    denoiser: TransformersDenoiser, tokens: Tensor, before: Tensor, column: int
) -> Tensor:
    """Mean change of each column's hidden state when the token of one column changes, (L,)."""
    changed = tokens.clone()
    changed[:, column] = (changed[:, column] + 1) % denoiser.vocab.size
    return (_hidden(denoiser, changed) - before).abs().mean(-1)[0]


def _hidden(denoiser: TransformersDenoiser, tokens: Tensor) -> Tensor:
    """Hidden states of all columns in float32, (1, L, D)."""
    tokens = tokens.to(denoiser.device)
    return denoiser.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool)).float()
