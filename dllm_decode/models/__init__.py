"""Models: the table of families, loading, adapters, exact toy worlds, the bundled checkpoint.

Names are imported when they are first used: some modules of this package need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dllm_decode.models.loaded import Description, LoadedModel, Tokenizer
    from dllm_decode.models.loading import load_model

__all__ = ["Description", "LoadedModel", "Tokenizer", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dllm_decode.models' has no attribute {name!r}")
    home = "loading" if name == "load_model" else "loaded"
    return getattr(import_module(f"dllm_decode.models.{home}"), name)
