"""The folder of one run: one process has it, and every file in it appears complete or not."""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dllm_decode import storage
from dllm_decode.errors import DllmDecodeError
from dllm_decode.storage import plain

CONFIG = "config.yaml"
_LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OutputError(DllmDecodeError):
    """An output folder or file that cannot be written."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes: `config.yaml`, `env.json`, `results.json`, `samples.jsonl` and so on.

    Attributes:
        path: The folder, made when the first file is written.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     RunFolder(Path(place)).write_json("results.json", {"forwards": 3}).name
        'results.json'
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


@dataclass(frozen=True)
class Claim:
    """A run folder that no other process writes to while this one holds it.

    Attributes:
        path: The folder.
        made: Folders that were made for it, innermost first.
        before: Names that were in it already, with their times of change.
        config: The `config.yaml` that was in it already, None without one.
    """

    path: Path
    made: tuple[Path, ...]
    before: Mapping[str, int]
    config: bytes | None

    def undo(self) -> None:
        """Take back what a failed run made, unless it left more than its configuration.

        Nothing that was there before is touched: no file, no parent folder, however empty.
        """
        with suppress(OSError):
            written = _entries(self.path).items() - self.before.items()
            names = {name for name, _ in written}
            if names - {CONFIG, "multirun.yaml"}:
                return
            for name in names - self.before.keys():
                (self.path / name).unlink()
            if CONFIG in names and self.config is not None:
                (self.path / CONFIG).write_bytes(self.config)

    def remove_if_empty(self) -> None:
        """Remove the folders that were made for the run, as far as nothing is in them."""
        with suppress(OSError):
            for folder in self.made:
                folder.rmdir()


@contextmanager
def claim(wanted: Path, *, fresh: bool) -> Iterator[Claim]:
    """Hold a run folder; where an exception passes, what the run made is taken back.

    Args:
        wanted: The folder, made where it is not there.
        fresh: Whether it must be a new one; `-2`, `-3` and so on is put behind its name until it
            is. Otherwise a folder that is there is used.

    Raises:
        OutputError: It cannot be written, or another process holds it.
    """
    try:
        try:
            path, made = _make(wanted, fresh)
        except FileNotFoundError:  # a failed run has just removed the parent it had made
            path, made = _make(wanted, fresh)
        lock = FileLock(path / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            f"the run folder {wanted} is in use by another process; choose another with "
            "hydra.run.dir=..., or wait until it is done"
        ) from None
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise unwritable(wanted, error) from None
    held = _look_at(path, made)
    try:
        yield held
    except BaseException:
        held.undo()
        raise
    finally:
        with suppress(OSError):  # still held, so that nobody can have it open and believe in it
            (path / _LOCK).unlink()
        lock.release()
        held.remove_if_empty()


def _look_at(path: Path, made: tuple[Path, ...]) -> Claim:
    config = path / CONFIG
    return Claim(path, made, _entries(path), config.read_bytes() if config.is_file() else None)


def _entries(folder: Path) -> dict[str, int]:
    """What is in a folder, with times of change."""
    return {
        entry.name: entry.lstat().st_mtime_ns for entry in folder.iterdir() if entry.name != _LOCK
    }


def _make(wanted: Path, fresh: bool) -> tuple[Path, tuple[Path, ...]]:
    """The folder, and those that were made for it, innermost first."""
    made = [folder for folder in reversed(wanted.parents) if _made(folder)][::-1]
    if not fresh:
        return wanted, (*([wanted] if _made(wanted) else []), *made)
    for number in itertools.count(1):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        if _made(path):
            return path, (path, *made)
    raise AssertionError("unreachable")


def _made(folder: Path) -> bool:
    """Make one folder; False if it is there already."""
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
        return False
    except OSError:  # a parent that may only be looked at, a drive
        if not folder.is_dir():
            raise
        return False
    return True


def unwritable(path: Path, error: Exception) -> OutputError:
    """The error for a folder that cannot be written.

    Args:
        path: The folder or a file in it.
        error: What the system said.
    """
    reason = getattr(error, "strerror", None) or str(error)
    if getattr(error, "errno", None) in _FULL:
        return OutputError(f"cannot write to {path} ({reason}); free some space and run it again")
    return OutputError(
        f"cannot write to the run folder {path} ({reason}); choose another with hydra.run.dir=..."
    )
