"""What config.json says about a model before its weights are loaded, which may take minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm_decode.decoding.cache import CachePolicy
from dllm_decode.decoding.schedule import Schedule
from dllm_decode.errors import CapabilityError, DllmDecodeError
from dllm_decode.models.locate import look_for
from dllm_decode.models.spec import Published, spec_of
from dllm_decode.storage import read_json


def check_before_loading(
    settings: Mapping[str, Any], schedule: Schedule, cache: CachePolicy
) -> None:
    """Refuse a cache or a schedule that cannot work with the model that is going to be loaded.

    Says nothing about models that are not on this machine or cannot be read; loading them says
    what is wrong.

    Args:
        settings: Of the group `model`.
        schedule: As configured.
        cache: As configured.

    Raises:
        CapabilityError: The parts do not work together.
        ConfigError: The schedule has another block length than the model.
    """
    folder = _folder(settings.get("checkpoint"))
    if folder is None:
        return
    try:
        values = read_json(folder / "config.json")
        spec = spec_of(values)
        published = Published(values, frozenset(settings.get("ignore_settings") or ()))
        block = settings.get("block_length") or spec.block_length(published)
    except DllmDecodeError:
        return
    if cache.attention == "block_causal" and block is None:
        raise CapabilityError(
            f"cache ({type(cache).__name__}) is exact for block-causal models only, but model "
            f"({spec.family}) attends to the whole canvas; use cache=none, prefix or dual"
        )
    schedule.on_grid(block)


def _folder(checkpoint: str | Sequence[str] | None) -> Path | None:
    """The folder that will be loaded, as far as it is on this machine already."""
    names = [checkpoint] if isinstance(checkpoint, str) else list(checkpoint or ())
    try:
        found = (look_for(name)[0] for name in names)
        return next((folder for folder in found if folder is not None), None)
    except DllmDecodeError:
        return None
