"""A short name for the weights of a checkpoint, cheap enough to compute at every load."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dllm_decode.errors import CheckpointError
from dllm_decode.models.files import StoredTensor, read_header
from dllm_decode.storage import read_json

_SAMPLE = 4096


def fingerprint(folder: Path) -> str:
    """The first 16 hex digits of a SHA-256 over a checkpoint's configuration and weights.

    Hashed are config.json (keys sorted) and, in the order of their names, every tensor's name,
    dtype, shape and first and last 4096 bytes. How the tensors are spread over files does not
    matter, nor do the folder and the tokenizer. Reading samples keeps the cost at milliseconds for
    billions of parameters; training touches every tensor, so that a change does not hide.

    Args:
        folder: holds config.json and safetensors files.

    Raises:
        CheckpointError: For damaged files.
    """
    state = hashlib.sha256()
    try:
        config = read_json(folder / "config.json", CheckpointError)
        state.update(json.dumps(config, sort_keys=True).encode())
        samples = [
            _sample(name, tensor)
            for file in folder.glob("*.safetensors")
            for name, tensor in read_header(file).items()
        ]
    except (OSError, CheckpointError) as error:
        raise CheckpointError(f"{folder} cannot be read for its fingerprint: {error}") from None
    for sample in sorted(samples):
        state.update(b"\0".join(sample))
    return state.hexdigest()[:16]


def _sample(name: str, tensor: StoredTensor) -> tuple[bytes, bytes, bytes]:
    """Name, kind, and first and last bytes of a tensor."""
    size = min(_SAMPLE, tensor.bytes)
    with tensor.file.open("rb") as content:
        content.seek(tensor.begin)
        head = content.read(size)
        content.seek(tensor.begin + tensor.bytes - size)
        tail = content.read(size)
    return name.encode(), f"{tensor.dtype} {list(tensor.shape)}".encode(), head + tail
