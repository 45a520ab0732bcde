"""The acceptance filter: which positions of a block are already right, told from confidences.

The network and its file format; `strategy=learn2pd` decodes with it, `task=train_filter` trains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dllm_decode import storage
from dllm_decode.errors import CheckpointError
from dllm_decode.models.files import FLOATS, StoredTensor, metadata, read_header
from dllm_decode.models.locate import Shelf

SHELF = Shelf("filter", "filters/{}.safetensors", "train_filter", "strategy.select.weights")
_NAMES = ("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias")


@dataclass(frozen=True, eq=False)
class AcceptanceFilter:
    """A two-layer network on the confidences of one block.

        z = W2 relu(W1 c + b1) + b2,     position i is accepted where sigmoid(z_i) > tau

    Learn2PD, arXiv 2509.25188 (there N = H = 32).

    Attributes:
        weight1: (H, N) float32, N the block length in columns.
        bias1: (H,) float32.
        weight2: (N, H) float32.
        bias2: (N,) float32.
        fingerprint: Of the model it was trained for, None where the file does not say.
        doubt: Why it is no improvement over plain confidence, None where the file does not say.

    Examples:
        >>> import torch
        >>> one = AcceptanceFilter(torch.eye(2), torch.zeros(2), torch.eye(2), torch.zeros(2))
        >>> one.block_length, one.logits(torch.tensor([[0.9, 0.2]]))
        (2, tensor([[0.9000, 0.2000]]))
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    fingerprint: str | None = None
    doubt: str | None = None

    @property
    def block_length(self) -> int:
        """Number of columns the filter looks at, N."""
        return self.weight1.shape[1]

    def to(self, device: torch.device) -> AcceptanceFilter:
        """The filter with its weights on a device."""
        one, two, three, four = (weight.to(device) for weight in self.weights())
        return AcceptanceFilter(one, two, three, four, self.fingerprint, self.doubt)

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors, in the order of their names in the file."""
        return self.weight1, self.bias1, self.weight2, self.bias2

    def logits(self, confidence: Tensor) -> Tensor:
        """The z of every column, (B, N); confidence (B, N), 0 for columns that do not exist."""
        hidden = (confidence.float() @ self.weight1.T + self.bias1).relu()
        return hidden @ self.weight2.T + self.bias2

    @staticmethod
    def load(path: str | Path) -> AcceptanceFilter:
        """Read a safetensors file; `bundled:NAME` is one that ships with the package.

        The tensors are linear1.weight, linear1.bias, linear2.weight and linear2.bias, as in the
        published weights; the metadata block_length, model_fingerprint and doubt are optional.
        Raises `CheckpointError` for files that are missing, damaged or of other shapes.
        """
        file, stored = _header(path)
        try:
            with safe_open(str(file), framework="pt") as content:
                about: Mapping[str, str] = content.metadata() or {}
                _check_shapes(file, [stored[name] for name in _NAMES], about.get("block_length"))
                tensors = [content.get_tensor(name).float() for name in _NAMES]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"filter {file} cannot be read: {error}") from None
        for name, tensor in zip(_NAMES, tensors, strict=True):
            if not bool(tensor.isfinite().all()):
                raise CheckpointError(f"filter {file}: {name} holds NaN or infinite numbers")
        one, two, three, four = tensors
        known = about.get("model_fingerprint"), about.get("doubt")
        return AcceptanceFilter(one, two, three, four, *known)

    @staticmethod
    def outline(path: str | Path) -> AcceptanceFilter:
        """What a file says of its filter, with shapes in place of weights.

        Args:
            path: As of `load`, also what it raises.
        """
        file, stored = _header(path)
        about = metadata(file)
        shapes = [stored[name] for name in _NAMES]
        _check_shapes(file, shapes, about.get("block_length"))
        one, two, three, four = cast(list[Any], shapes)
        known = about.get("model_fingerprint"), about.get("doubt")
        return AcceptanceFilter(one, two, three, four, *known)

    def save(self, path: Path, about: Mapping[str, str]) -> None:
        """Write the weights with block length, fingerprint and further metadata, all or nothing."""
        notes = {**about, "block_length": str(self.block_length)}
        if self.fingerprint is not None:
            notes["model_fingerprint"] = self.fingerprint
        if self.doubt is not None:
            notes["doubt"] = self.doubt
        tensors = {
            name: weight.contiguous().clone()
            for name, weight in zip(_NAMES, self.weights(), strict=True)
        }
        with storage.replacing(path) as partial:
            partial.write_bytes(save(tensors, metadata=notes))


def _header(path: str | Path) -> tuple[Path, Mapping[str, StoredTensor]]:
    """The file of a filter and what it holds, the four tensors among it."""
    file = SHELF.find(path)
    try:
        stored = read_header(file)
    except CheckpointError as error:
        raise CheckpointError(f"filter {file} cannot be read: {error}") from None
    absent = [name for name in _NAMES if name not in stored]
    if absent:
        raise CheckpointError(f"filter {file} has no tensor {', '.join(absent)}")
    return file, stored


def _check_shapes(file: Path, stored: list[StoredTensor], block_length: str | None) -> None:
    for name, tensor in zip(_NAMES, stored, strict=True):
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"filter {file}: {name} must be stored as {', '.join(FLOATS)}, got {tensor.dtype}"
            )
    shapes = [tensor.shape for tensor in stored]
    hidden, width = shapes[0] if len(shapes[0]) == 2 else (0, 0)
    expected = [(hidden, width), (hidden,), (width, hidden), (width,)]
    if shapes != expected or width == 0 or hidden == 0:
        listing = ", ".join(map(str, shapes))
        raise CheckpointError(
            f"filter {file} has tensors of shapes {listing}; a two-layer filter for N columns has "
            "(H, N), (H,), (N, H), (N,)"
        )
    if block_length is not None and block_length != str(width):
        raise CheckpointError(
            f"filter {file} says block_length={block_length[:20]}, but its weights are for {width}"
        )
