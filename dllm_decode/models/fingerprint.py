"""A short name for the weights of a checkpoint, cheap enough to compute at every load."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dllm_decode.errors import CheckpointError
from dllm_decode.models.files import StoredTensor, read_header
from dllm_decode.models.locate import ADAPTER
from dllm_decode.storage import read_json

_SAMPLE = 4096


def fingerprint(folder: Path, *adapters: Path) -> str:
    """The first 16 hex digits of a SHA-256 over a checkpoint's configuration and weights.

    Hashed are config.json (keys sorted) and, in the order of their names, every tensor's name,
    dtype, shape and first and last 4096 bytes. How the tensors are spread over files does not
    matter, nor do the folder and the tokenizer. Reading samples keeps the cost at milliseconds for
    billions of parameters; training touches every tensor, so that a change does not hide.

    Args:
        folder: holds config.json and safetensors files.
        adapters: what was merged into the weights, in this order; each with adapter_config.json.

    Raises:
        CheckpointError: For damaged files.
    """
    state = hashlib.sha256()
    try:
        for place, name in ((folder, "config.json"), *((one, ADAPTER) for one in adapters)):
            config = read_json(place / name, CheckpointError)
            state.update(json.dumps(config, sort_keys=True).encode())
            files = [file for file in place.glob("*.safetensors") if _belongs(file, name)]
            headers = [read_header(file).items() for file in files]
            samples = [_sample(*entry) for header in headers for entry in header]
            for sample in sorted(samples):
                state.update(b"\0".join(sample))
    except (OSError, CheckpointError) as error:
        raise CheckpointError(f"{folder} cannot be read for its fingerprint: {error}") from None
    return state.hexdigest()[:16]


def _belongs(file: Path, settings: str) -> bool:
    """Whether a file is of the adapter or of the base, as the name of the settings says."""
    return file.name.startswith("adapter") == (settings == ADAPTER)


def _sample(name: str, tensor: StoredTensor) -> tuple[bytes, bytes, bytes]:
    """Name, kind, and first and last bytes of a tensor."""
    size = min(_SAMPLE, tensor.bytes)
    with tensor.file.open("rb") as content:
        content.seek(tensor.begin)
        head = content.read(size)
        content.seek(tensor.begin + tensor.bytes - size)
        tail = content.read(size)
    return name.encode(), f"{tensor.dtype} {list(tensor.shape)}".encode(), head + tail
