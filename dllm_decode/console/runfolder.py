"""The folder of one run; every file in it appears complete or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_decode import storage
from dllm_decode.errors import DllmDecodeError
from dllm_decode.storage import plain


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
            storage.write_text(target, text)
        except OSError as error:
            raise unwritable(self.path, error) from None
        return target

    def write_json(self, name: str, value: Any) -> Path:
        """Write one JSON document; NaN and infinities become null."""
        return self.write_text(name, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")

    def write_jsonl(self, name: str, records: Iterable[Any]) -> Path:
        """Write one JSON document per line."""
        lines = (json.dumps(plain(record), ensure_ascii=False) for record in records)
        return self.write_text(name, "".join(line + "\n" for line in lines))


def unwritable(path: Path, error: OSError) -> OutputError:
    """The error for a folder that cannot be written."""
    reason = error.strerror or str(error)
    return OutputError(
        f"cannot write to the run folder {path} ({reason}); choose another with hydra.run.dir=..."
    )
