"""Beginning a run with the weights of another model of the same sizes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dllm_decode.errors import CheckpointError
from dllm_decode.training.llada_tiny.export import published_config
from dllm_decode.training.llada_tiny.network import Network
from dllm_decode.training.llada_tiny.tokenizer import vocabulary

_PREFIX = "model.transformer."
_SAME = ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "rope_theta")
_BLANK = "\u0120"  # in front of a word
# New words that begin as known ones: the answers to both repeat a list label by label.
_LIKE = {"Chain": "Copy", "Track": "Copy"}


@torch.no_grad()
def begin_from(network: Network, folder: Path) -> None:
    """Give a network the weights of an exported model.

    Tokens that both know keep their embeddings, whatever their numbers. New ones are drawn from the
    normal distribution, dimension by dimension, of the known words.

    Args:
        network: Of the package's vocabulary; noise comes from the global generator of torch.
        folder: What `export` wrote.

    Raises:
        CheckpointError: A file is missing, or a size differs; names it.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        stored = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"task.start: {folder} cannot be read: {error}") from None
    mine = published_config(network.shape, 0)
    for key in _SAME:
        if config.get(key) != mine[key]:
            raise CheckpointError(
                f"task.start: {key} of {folder} must be {mine[key]}, got {config.get(key)}"
            )
    for name, weight in network.named_parameters():
        old = stored[_PREFIX + name].float()
        weight.copy_(_embedded(old, words["model"]["vocab"]) if name == "wte.weight" else old)


def _embedded(old: Tensor, numbers: dict[str, int]) -> Tensor:
    """Embeddings for the package's vocabulary from those of another."""
    ids = vocabulary()
    known = old[[number for token, number in numbers.items() if token.startswith(_BLANK)]]
    fresh = known.mean(0) + known.std(0) * torch.randn(len(ids), old.shape[1])
    for token, number in ids.items():
        word = token.removeprefix(_BLANK)
        source = token if token in numbers else _BLANK + _LIKE.get(word, word)
        if source in numbers:
            fresh[number] = old[numbers[source]]
    return fresh
