"""What a checkpoint folder holds, read from the headers of its safetensors files alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from dllm_decode.errors import CheckpointError
from dllm_decode.models.lean import LeanModel
from dllm_decode.models.locate import SINGLE, missing_files, weight_map
from dllm_decode.storage import parse_json

_LENGTH_BYTES = 8  # a safetensors file begins with the length of its header, little endian
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
# Bits of one number, by the format's names.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
FLOATS = ("F64", "F32", "BF16", "F16")  # the weights that can be loaded


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint.

    Attributes:
        file: The shard it is in.
        shape: Its sides.
        dtype: As safetensors names it.
        begin: Its first byte in the file.
        bytes: Their number.

    Examples:
        >>> from pathlib import Path
        >>> StoredTensor(Path("model.safetensors"), (4, 2), "F32", begin=128, bytes=32).shape
        (4, 2)
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    begin: int
    bytes: int


def metadata(file: Path) -> dict[str, str]:
    """What stands in a safetensors file beside its tensors, whose header `read_header` has read."""
    from safetensors import safe_open

    with safe_open(str(file), framework="np") as content:  # the one that asks for no torch
        return dict(content.metadata() or {})


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint by their published names.

    Raises `CheckpointError` for files that are missing, truncated or no safetensors, and for an
    index that names tensors its shards do not hold.
    """
    missing = missing_files(folder)
    if missing:
        raise CheckpointError(f"{folder} has no {', '.join(missing)}")
    single = folder / SINGLE
    if single.is_file():
        return read_header(single)
    shards = weight_map(folder)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(shards.values())):
        tensors |= read_header(folder / shard)
    lost = sorted(name for name in shards if name not in tensors)
    if lost:
        raise CheckpointError(
            f"{folder}: the index names tensors that no shard holds: {some_of(lost)}"
        )
    return tensors


def some_of(names: list[str], most: int = 5) -> str:
    """The first few of many names.

    Args:
        names: One or more.
        most: How many to name.
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, by name; nothing of the weights is read.

    Raises `CheckpointError` for a file that is truncated, or whose header does not describe it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _LONGEST_HEADER):
                raise CheckpointError(
                    f"{path} is truncated or not a safetensors file ({size} bytes); copy it again"
                )
            header = _header_of(path, file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    _check_notes(path, header.pop("__metadata__", None))
    start = _LENGTH_BYTES + length
    tensors = {name: _stored(path, name, entry, start) for name, entry in header.items()}
    _check_layout(path, tensors, start, size)
    return tensors


def _header_of(path: Path, content: bytes) -> dict[str, Any]:
    try:
        header = parse_json(content)
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}); copy it again"
        ) from None
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{path} is not a safetensors file (its header is no JSON object); copy it again"
        )
    return header


def _check_notes(path: Path, notes: Any) -> None:
    """Refuse what stands beside the tensors where the format's own reader would."""
    texts = isinstance(notes, dict) and all(isinstance(value, str) for value in notes.values())
    if notes is not None and not texts:
        raise CheckpointError(
            f"the header of {path} is damaged: '__metadata__' must map names to texts, got "
            f"{str(notes)[:80]}; copy the file again"
        )


def _stored(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    """One entry of a header whose tensors begin at byte `start`; refuses what cannot be true."""

    def wrong(what: str) -> CheckpointError:
        return CheckpointError(
            f"the header of {path} is damaged: tensor {name[:80]!r} {what}; copy the file again"
        )

    if not isinstance(entry, dict):
        raise wrong("is described by no object")
    kind, shape, span = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or kind not in _BITS:
        raise wrong(f"has a 'dtype' that the format does not know: {str(kind)[:40]!r}")
    if not _are_counts(shape):
        raise wrong("has no 'shape', a list of whole numbers >= 0")
    if not _are_counts(span) or len(span) != 2:
        raise wrong("has no 'data_offsets', two whole numbers >= 0")
    begin, end = span
    if (end - begin) * 8 != math.prod(shape) * _BITS[kind]:
        raise wrong(f"has 'data_offsets' of {end - begin} bytes, which its shape does not take")
    return StoredTensor(path, tuple(shape), kind, start + begin, end - begin)


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    """Whether JSON values are a list of sizes; their product cannot become huge to compute."""
    return (
        isinstance(values, list)
        and len(values) <= 16
        and all(type(value) is int and 0 <= value < 2**63 for value in values)
    )


def _check_layout(path: Path, tensors: Mapping[str, StoredTensor], start: int, size: int) -> None:
    """Refuse tensors that overlap, leave gaps, or end elsewhere than the file."""
    ordered = sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].bytes))
    wanted = max((tensor.begin + tensor.bytes for tensor in tensors.values()), default=start)
    if size < wanted:
        raise CheckpointError(
            f"{path} is truncated: {size - start} of {wanted - start} bytes of weights are there; "
            "copy it again"
        )
    place = start
    for name, tensor in ordered:
        if tensor.begin != place:
            raise CheckpointError(
                f"the header of {path} is damaged: tensor {name[:80]!r} begins at byte "
                f"{tensor.begin - start}, the one in front of it ends at {place - start}"
            )
        place += tensor.bytes
    if place != size:
        raise CheckpointError(f"{path} has {size - place} bytes behind its last tensor")


@dataclass(frozen=True)
class Fit:
    """How the tensors of a checkpoint fit a model; names are those in the checkpoint's files.

    Attributes:
        expected: Number of tensors the model needs.
        missing: Names that no file holds.
        unexpected: Names that the model does not have.
        mismatched: Names with both shapes, in words.

    Examples:
        >>> fit = Fit(expected=3, missing=["norm.weight"], unexpected=[], mismatched=[])
        >>> fit.matched, fit.complete
        (2, False)
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

    Args:
        tensors: What the files hold, by name.
        model: Without weights.
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
    if isinstance(model, LeanModel):
        return model.published_state()
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
    """Bytes the weights take at a dtype.

    Args:
        tensors: What the files hold, by name.
        bytes_per_number: Of the dtype.
    """
    return sum(math.prod(tensor.shape) * bytes_per_number for tensor in tensors.values())
