"""A short name for the weights of a checkpoint, cheap enough to compute at every load."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dllm_decode.errors import CheckpointError

_SAMPLE = 4096


def fingerprint(folder: Path) -> str:
    """The first 16 hex digits of a SHA-256 over a checkpoint's configuration and weights.

    Hashed are config.json (keys sorted) and, in the order of their names, every tensor's name,
    dtype, shape and first and last 4096 bytes. How the tensors are spread over files does not
    matter, nor do the folder and the tokenizer. Reading samples keeps the cost at milliseconds for
    billions of parameters; training touches every tensor, so that a change does not hide.
    folder: holds config.json and safetensors files. Raises `CheckpointError` for damaged files.
    """
    state = hashlib.sha256()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        state.update(json.dumps(config, sort_keys=True).encode())
        samples = [part for file in folder.glob("*.safetensors") for part in _samples(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} cannot be read for its fingerprint: {error}") from None
    for sample in sorted(samples):
        state.update(b"\0".join(sample))
    return state.hexdigest()[:16]


def _samples(file: Path) -> list[tuple[bytes, bytes, bytes]]:
    """Name, kind and sampled bytes of each tensor in one safetensors file."""
    found = []
    with file.open("rb") as content:
        size = int.from_bytes(content.read(8), "little")
        if size > file.stat().st_size:
            raise ValueError(f"{file.name} has no safetensors header")
        header = json.loads(content.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            content.seek(8 + size + begin)
            head = content.read(min(_SAMPLE, end - begin))
            content.seek(8 + size + max(begin, end - _SAMPLE))
            tail = content.read(min(_SAMPLE, end - begin))
            kind = f"{entry['dtype']} {entry['shape']}"
            found.append((name.encode(), kind.encode(), head + tail))
    return found
