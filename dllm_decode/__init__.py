"""A pluggable decoding-strategy framework for diffusion language models.

    from dllm_decode import load
    decoder = load(model="llada", strategy="credit")
    result = decoder.generate(["..."], max_new_tokens=64)

Names are imported when they are first used, so that `import dllm_decode` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dllm_decode.api import TextDecoder, load
    from dllm_decode.engine import Engine
    from dllm_decode.errors import (
        CapabilityError,
        CheckpointError,
        ConfigError,
        DecisionError,
        DllmDecodeError,
        ModelOutputError,
    )
    from dllm_decode.loop import Decoder, Interrupted, Observer
    from dllm_decode.prediction import Prediction
    from dllm_decode.strategy import (
        Filter,
        NeverStop,
        Part,
        Pipeline,
        StopRule,
        Strategy,
        Transform,
    )
    from dllm_decode.types import (
        Board,
        Change,
        Decision,
        Memory,
        Request,
        Result,
        StepView,
        Vocab,
    )

__version__ = "0.1.0"

_HOME = {
    "api": ("TextDecoder", "load"),
    "engine": ("Engine",),
    "errors": (
        "CapabilityError",
        "CheckpointError",
        "ConfigError",
        "DecisionError",
        "DllmDecodeError",
        "ModelOutputError",
    ),
    "loop": ("Decoder", "Interrupted", "Observer"),
    "prediction": ("Prediction",),
    "strategy": (
        "Filter",
        "NeverStop",
        "Part",
        "Pipeline",
        "StopRule",
        "Strategy",
        "Transform",
    ),
    "types": ("Board", "Change", "Decision", "Memory", "Request", "Result", "StepView", "Vocab"),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Board",
    "CapabilityError",
    "Change",
    "CheckpointError",
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
    "Part",
    "Pipeline",
    "Prediction",
    "Request",
    "Result",
    "StepView",
    "StopRule",
    "Strategy",
    "TextDecoder",
    "Transform",
    "Vocab",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'dllm_decode' has no attribute {name!r}")
    return getattr(import_module(f"dllm_decode.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
