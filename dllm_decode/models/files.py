"""What a checkpoint folder holds, read from the headers of its safetensors files alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_decode.errors import CheckpointError
from dllm_decode.models.locate import missing_files, read_json

_LENGTH_BYTES = 8  # a safetensors file begins with the length of its header, little endian


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint. file: the shard it is in; dtype: as safetensors names it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    bytes: int


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint by their published names.

    Raises `CheckpointError` for files that are missing, truncated or no safetensors, and for an
    index that names tensors its shards do not hold.
    """
    missing = missing_files(folder)
    if missing:
        raise CheckpointError(f"{folder} has no {', '.join(missing)}")
    single = folder / "model.safetensors"
    if single.is_file():
        return _read_header(single)
    weight_map = read_json(folder / "model.safetensors.index.json").get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(f"{folder / 'model.safetensors.index.json'} has no 'weight_map'")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        tensors |= _read_header(folder / shard)
    lost = sorted(name for name in weight_map if name not in tensors)
    if lost:
        raise CheckpointError(
            f"{folder}: the index names tensors that no shard holds: {some_of(lost)}"
        )
    return tensors


def some_of(names: list[str], most: int = 5) -> str:
    """The first few of many names."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise CheckpointError(
                f"{path} is truncated or not a safetensors file ({size} bytes); copy it again"
            )
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError:
            raise CheckpointError(f"{path} is not a safetensors file; copy it again") from None
    header.pop("__metadata__", None)
    body = size - _LENGTH_BYTES - length
    wanted = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if body < wanted:
        raise CheckpointError(
            f"{path} is truncated: {body} of {wanted} bytes of weights are there; copy it again"
        )
    return {
        name: StoredTensor(
            file=path,
            shape=tuple(entry["shape"]),
            dtype=str(entry["dtype"]),
            bytes=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


@dataclass(frozen=True)
class Fit:
    """How the tensors of a checkpoint fit a model. Names are those in the checkpoint's files.

    expected: number of tensors the model needs; missing, unexpected: names; mismatched: name with
    both shapes, in words.
    """

    expected: int
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    @property
    def matched(self) -> int:
        """Tensors that are there in the right shape."""
        return self.expected - len(self.missing) - len(self.mismatched)

    @property
    def complete(self) -> bool:
        """Nothing is missing, left over, or of another shape."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.mismatched),
        )
        return "; ".join(f"{word}: {some_of(names)}" for word, names in parts if names)


def fit(tensors: Mapping[str, StoredTensor], model: Any) -> Fit:
    """Compare a checkpoint with a model that was built on the meta device.

    Published names and the stock class's own names are both accepted (ports for other runtimes use
    the latter); a head that is tied to the embedding may be left out.
    """
    stock = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layouts = [published_shapes(model), stock]
    shapes = max(layouts, key=lambda layout: len(layout.keys() & tensors.keys()))
    needed = shapes.keys() - _tied(model)
    return Fit(
        expected=len(needed),
        missing=sorted(needed - tensors.keys()),
        unexpected=sorted(tensors.keys() - shapes.keys()),
        mismatched=sorted(
            f"{name} is {_by(tensors[name].shape)}, config.json asks for {_by(shapes[name])}"
            for name in shapes.keys() & tensors.keys()
            if tensors[name].shape != shapes[name]
        ),
    )


def published_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a model built on the meta device has on disk."""
    return {name: tuple(tensor.shape) for name, tensor in published_state(model).items()}


def published_state(model: Any) -> dict[str, Any]:
    """The state of a model under its published names."""
    from transformers.core_model_loading import revert_weight_conversion

    state: dict[str, Any] = revert_weight_conversion(model, model.state_dict())
    return state


def _tied(model: Any) -> set[str]:
    """Names of the head where it shares the embedding's weights."""
    if not model.config.tie_word_embeddings:
        return set()
    return {"lm_head.weight", "model.transformer.ff_out.weight"}


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def memory_of(tensors: Mapping[str, StoredTensor], bytes_per_number: int) -> int:
    """Bytes the weights take at a dtype."""
    return sum(math.prod(tensor.shape) * bytes_per_number for tensor in tensors.values())
