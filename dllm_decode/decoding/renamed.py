"""Names that plugins of other people may still use, each answered with a message."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any


def say_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that a name has changed; the warning points at the line that used it.

    Args:
        old: what was written.
        new: what it is called now.
        stacklevel: frames from the warning to the line that used the name.
    """
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=stacklevel)


def renamed_names(
    module: str, names: Mapping[str, str], where: Mapping[str, Any]
) -> Callable[[str], Any]:
    """The `__getattr__` of a module in which some names have changed.

    Args:
        module: the module's name.
        names: old name to new name.
        where: the module's names, usually `globals()`.
    """

    def look_up(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        say_renamed(f"{module}.{name}", names[name])
        return where[names[name]]

    return look_up
