"""Saving and continuing a run: tensors in safetensors, the rest in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dllm_decode import storage
from dllm_decode.errors import CheckpointError

_RECORD = "checkpoint.json"


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, object]
) -> None:
    """Write a checkpoint and remove older ones.

    The small file is written last and in one go: it makes the tensors count, so that a run that
    is interrupted while saving still has the checkpoint before.

    Args:
        folder: Of the run; it must be there.
        step: Number of updates done, which names the file of the tensors.
        tensors: By name.
        record: Everything else, as JSON has it.
    """
    name = f"checkpoint-{step}.safetensors"
    flat = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(flat, folder / name)
    storage.write_text(folder / _RECORD, json.dumps({"tensors": name, **record}, indent=1) + "\n")
    for old in folder.glob("checkpoint-*.safetensors"):
        if old.name != name:
            old.unlink()


def read(folder: Path) -> dict[str, Any] | None:
    """The record of the checkpoint in a folder, with the name of the file of its tensors.

    Args:
        folder: Of the run.

    Returns:
        The record, None where the folder has no checkpoint.

    Raises:
        CheckpointError: The record is damaged.
    """
    path = folder / _RECORD
    if not path.exists():
        return None
    record = storage.read_json(path, CheckpointError)
    kinds = {"tensors": str, "settings": dict, "course": dict}
    if not all(isinstance(record.get(name), kind) for name, kind in kinds.items()):
        raise CheckpointError(f"the checkpoint {path} must have tensors, settings and course")
    return record


def fill(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into those given, in place.

    Args:
        path: The file of the tensors.
        tensors: Where each goes, by name.

    Raises:
        CheckpointError: The file is missing or truncated, or holds other shapes.
    """
    try:
        saved = load_file(path)
        with torch.no_grad():
            for key, value in tensors.items():
                if saved[key].shape != value.shape:  # a copy would broadcast
                    raise ValueError(f"{key} is {[*saved[key].shape]}, not {[*value.shape]}")
                value.copy_(saved[key])
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error!r}") from error
