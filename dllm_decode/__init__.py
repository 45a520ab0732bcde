"""A pluggable decoding-strategy framework for diffusion language models.

    from dllm_decode import load
    decoder = load(model="llada", strategy="credit")
    result = decoder.generate(["..."], max_new_tokens=64)

Names are imported when they are first used, so that `import dllm_decode` does not import torch.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dllm_decode.api import TextDecoder, load
    from dllm_decode.decoding.engine import Engine
    from dllm_decode.decoding.loop import Decoder
    from dllm_decode.decoding.observer import Interrupted, Observer
    from dllm_decode.decoding.outcome import Outcome, Result
    from dllm_decode.decoding.prediction import Prediction
    from dllm_decode.decoding.strategy import (
        Filter,
        NeverStop,
        Part,
        Pipeline,
        Revisions,
        StopRule,
        Strategy,
        Transform,
    )
    from dllm_decode.decoding.types import (
        Carry,
        Change,
        ColumnMemory,
        Decision,
        Memory,
        Request,
        Snapshot,
        StepView,
        Vocab,
    )
    from dllm_decode.errors import (
        CapabilityError,
        CheckpointError,
        ConfigError,
        DecisionError,
        DllmDecodeError,
        ModelOutputError,
    )

__version__ = "0.1.0"

_HOME = {
    "api": ("TextDecoder", "load"),
    "decoding.engine": ("Engine",),
    "errors": (
        "CapabilityError",
        "CheckpointError",
        "ConfigError",
        "DecisionError",
        "DllmDecodeError",
        "ModelOutputError",
    ),
    "decoding.loop": ("Decoder",),
    "decoding.observer": ("Interrupted", "Observer"),
    "decoding.outcome": ("Outcome", "Result"),
    "decoding.prediction": ("Prediction",),
    "decoding.strategy": (
        "Filter",
        "NeverStop",
        "Part",
        "Pipeline",
        "Revisions",
        "StopRule",
        "Strategy",
        "Transform",
    ),
    "decoding.types": (
        "Snapshot",
        "Carry",
        "Change",
        "ColumnMemory",
        "Decision",
        "Memory",
        "Request",
        "StepView",
        "Vocab",
    ),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "CapabilityError",
    "Carry",
    "Change",
    "CheckpointError",
    "ColumnMemory",
    "ConfigError",
    "Decision",
    "DecisionError",
    "Decoder",
    "DllmDecodeError",
    "Engine",
    "Filter",
    "Interrupted",
    "Memory",
    "ModelOutputError",
    "NeverStop",
    "Observer",
    "Outcome",
    "Part",
    "Pipeline",
    "Prediction",
    "Request",
    "Result",
    "Revisions",
    "Snapshot",
    "StepView",
    "StopRule",
    "Strategy",
    "TextDecoder",
    "Transform",
    "Vocab",
    "load",
]


_RENAMED = {"Board": "Snapshot"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(
            f"dllm_decode.{name} is now dllm_decode.{new}", DeprecationWarning, stacklevel=2
        )
        return __getattr__(new)
    if name not in _WHERE:
        raise AttributeError(f"module 'dllm_decode' has no attribute {name!r}")
    return getattr(import_module(f"dllm_decode.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


# Modules of the first edition that plugins of other people import, and where they are now.
_MOVED = {
    **{
        name: f"decoding.{name}"
        for name in (
            "cache",
            "denoiser",
            "engine",
            "loop",
            "prediction",
            "sampling",
            "schedule",
            "selection",
            "strategy",
            "trace",
            "types",
        )
    },
    "noise": "kernels.noise",
}


# Names that have left a module since.
_MOVED_NAMES = {
    "loop": {
        "Interrupted": "observer",
        "Observer": "observer",
        "Outcome": "outcome",
        "check_composition": "checks",
    },
    "types": {"Result": "outcome"},
}


class _MovedModules(MetaPathFinder, Loader):
    """Answers `import dllm_decode.selection` with `dllm_decode.decoding.selection` and says so."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, module = name.rpartition(".")
        return ModuleSpec(name, self) if package == "dllm_decode" and module in _MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = spec.name.rpartition(".")[2]
        home = f"dllm_decode.{_MOVED[module]}"
        warnings.warn(f"{spec.name} is now {home}", DeprecationWarning, stacklevel=2)
        moved = _MOVED_NAMES.get(module, {})
        others = {
            name: getattr(import_module(f"dllm_decode.decoding.{where}"), name)
            for name, where in moved.items()
        }
        return _Alias(spec.name, import_module(home), others)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do: names are looked up in the module's new place."""


class _Alias(ModuleType):
    """The old name of a module; everything is looked up under the new one."""

    def __init__(self, name: str, home: ModuleType, others: Mapping[str, Any]) -> None:
        super().__init__(name, f"Now {home.__name__}.")
        self.__dict__.update(others)
        self.__dict__["__all__"] = [n for n in {**vars(home), **others} if not n.startswith("_")]
        self.__dict__["_home"] = home

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_home"], name)


sys.meta_path.append(_MovedModules())
