"""Files that appear whole or not at all, and JSON whose faults are told with the file's name."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dllm_decode.errors import DllmDecodeError

LARGEST_JSON = 2**27  # bytes; the largest index of a published checkpoint has 3 MB


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new path beside `path` to write to, which takes its place when the block ends.

    Readers see the old file or the new one, never half of it. After an error `path` is as it was
    and nothing is left beside it. A link stays, and what it leads to is replaced.

    Args:
        path: The file to write; its folder must be there.

    Raises:
        OSError: There is something else than a file, such as a pipe or a device.
    """
    require_regular(path)
    path = Path(os.path.realpath(path))
    # short, because `path` may have the longest name that the file system takes
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def require_regular(path: Path) -> None:
    """Raise `OSError` for what a file cannot take the place of.

    Args:
        path: A file, a folder (which the system itself refuses), or nothing yet.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, f"{path.name} is a pipe, a device or a socket", str(path))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; raises `OSError` where that cannot be done.

    Args:
        path: The file.
        text: Its new content.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def plain(value: Any) -> Any:
    """The value as JSON has it: tuples are lists, keys and paths texts, NaN and infinities null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON document from outside.

    Args:
        data: Text, or bytes in UTF-8 with or without a byte order mark.

    Raises:
        ValueError: For everything that is no such document, also for one that is nested too deep
            or has a key twice in one object.
    """
    try:
        text = data.decode() if isinstance(data, bytes) else data
        return _decoder.decode(text.removeprefix("\ufeff"))
    except UnicodeDecodeError as fault:
        raise ValueError(f"it is not UTF-8 text (byte {fault.start})") from None
    except RecursionError:
        raise ValueError("nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} is there twice in one object")
    return values


_decoder = json.JSONDecoder(object_pairs_hook=_once)


def read_json(path: Path, error: type[DllmDecodeError] = DllmDecodeError) -> dict[str, Any]:
    """The JSON object of a file.

    Args:
        path: The file, at most `LARGEST_JSON` bytes.
        error: What is raised, naming the file, where it cannot be read or holds something else.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise error(f"{path} is too large for a JSON file: {size} bytes")
        values = parse_json(path.read_bytes())
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror or fault}") from None
    except ValueError as fault:
        if isinstance(fault, DllmDecodeError):
            raise
        raise error(f"{path} cannot be read: {fault}") from None
    if not isinstance(values, dict):
        raise error(f"{path} must hold one JSON object, got {type(values).__name__}")
    return values
