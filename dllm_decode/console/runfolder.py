"""The folder of one run; every file in it appears complete or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_decode.errors import DllmDecodeError


class OutputError(DllmDecodeError):
    """An output folder or file that cannot be written."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes: `config.yaml`, `env.json`, `results.json`, `samples.jsonl` and so on.

    path: the folder, made when the first file is written.
    """

    path: Path

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file in one step; raises `OutputError` where that is not possible."""
        target = self.path / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(target, text)
        except OSError as error:
            raise unwritable(self.path, error) from None
        return target

    def write_json(self, name: str, value: Any) -> Path:
        """Write one JSON document; NaN and infinities become null."""
        return self.write_text(name, json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")

    def write_jsonl(self, name: str, records: Iterable[Any]) -> Path:
        """Write one JSON document per line."""
        lines = (json.dumps(_plain(record), ensure_ascii=False) for record in records)
        return self.write_text(name, "".join(line + "\n" for line in lines))


def unwritable(path: Path, error: OSError) -> OutputError:
    """The error for a folder that cannot be written."""
    reason = error.strerror or str(error)
    return OutputError(
        f"cannot write to the run folder {path} ({reason}); choose another with hydra.run.dir=..."
    )


def _replace(target: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes files for the owner alone; results are as readable as any other file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _plain(value: Any) -> Any:
    """The value with tuples as lists and without numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
