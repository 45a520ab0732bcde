"""Places that results go to, checked before the work whose results they are."""

from __future__ import annotations

import os
from pathlib import Path

from dllm_decode.errors import ConfigError


def require_folder(name: str, path: Path) -> None:
    """Check that a folder can be written to, or made where it is not there.

    Args:
        name: The setting.
        path: What was given.

    Raises:
        ConfigError: It or a folder above it is a file, or may not be written to.
    """
    there = _nearest(path)
    if not there.is_dir():
        where = "which" if there == path else f"where {there}"
        raise ConfigError(f"{name} must be a folder, got {path}, {where} is a file")
    _require_access(name, path, there)


def require_file(name: str, path: Path) -> None:
    """Check that a file can be written, with the folders above it.

    Args:
        name: The setting.
        path: What was given.

    Raises:
        ConfigError: It is a folder, a pipe or a device, a folder above it is a file, or may not be
            written to.
    """
    if os.path.isdir(path):
        raise ConfigError(f"{name} must be a file, got {path}, which is a folder")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ConfigError(f"{name} must be a file, got {path}, which is a pipe or a device")
    path = Path(os.path.realpath(path)) if os.path.islink(path) else path
    there = _nearest(path.parent)
    if not there.is_dir():
        raise ConfigError(f"{name} must be a file in a folder, got {path}, where {there} is a file")
    _require_access(name, path, there)


def _nearest(path: Path) -> Path:
    """The path, or the first above it that is there."""
    # unlike Path.exists, this answers for names that the file system refuses, too
    return next((place for place in (path, *path.parents) if os.path.exists(place)), Path())


def _require_access(name: str, path: Path, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{name}: {path} cannot be written: no permission to write to {folder}")
