"""What is known of a model before its weights are loaded, which may take minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_decode.decoding.cache import CachePolicy
from dllm_decode.decoding.schedule import Schedule
from dllm_decode.errors import CapabilityError, DllmDecodeError
from dllm_decode.models.adapter import TransformersDenoiser
from dllm_decode.models.fingerprint import fingerprint
from dllm_decode.models.loaded import Description, LoadedModel
from dllm_decode.models.loading import PREPARED, check_words, prepare
from dllm_decode.models.locate import is_absent_hub_name, look_for
from dllm_decode.models.lora import locate_base, wanted
from dllm_decode.models.placement import Placement
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


@dataclass(frozen=True)
class Outline:
    """A denoiser that computes nothing and says of itself what the loaded one would say.

    Attributes:
        vocab: Special ids.
        device: Where it would run.
        max_length: Longest canvas [tokens].
        block_length: Columns of its block grid.
        fingerprint: Of the checkpoint.
        provides: What parts may see of its inside.
        unknown: Stands for what it would compute.

    Examples:
        >>> Outline(None, "cpu", 64).provides >= {"hidden"}
        True
    """

    vocab: Any
    device: Any
    max_length: int | None
    block_length: Any = None
    fingerprint: Any = None
    provides: frozenset[str] = frozenset({"hidden", "embeddings"})
    unknown: Any = None

    def __call__(self, tokens: Any, live: Any, index: Any, plan: Any) -> Any:
        """What stands for logits."""
        return self.unknown

    def allocate(self, rows: int, columns: int) -> Any:
        """What stands for a key/value store; having the method says that there can be one."""
        return self.unknown


Outline.__name__ = TransformersDenoiser.__name__  # messages name what will be loaded


def check_placement(settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a device, a dtype or another word that `load_model` refuses.

    Args:
        settings: Of the group `model`.
    """
    pick = ("compile", "body", "threads", "quantization")
    check_words(**{name: settings[name] for name in pick})
    _ = _placement(settings).device


def foreseen(settings: Mapping[str, Any], unknown: Any) -> LoadedModel:
    """The model that `load_model` would load, without any weight; nothing is fetched.

    Args:
        settings: Of the group `model`, all of them.
        unknown: Stands for what is not known of a model that would have to be fetched.

    Raises:
        ConfigError: As `load_model`.
        CheckpointError: As `load_model`.
    """
    placement = _placement(settings)
    adapters = settings["adapters"] or ()
    there = not any(isinstance(other, str) and is_absent_hub_name(other) for other in adapters)
    asked = wanted(settings["checkpoint"], adapters or settings["adapters"]) if there else None
    base = asked and asked.checkpoint
    if asked is None or (isinstance(base, str) and is_absent_hub_name(base)):
        outline: Any = Outline(unknown, unknown, None, fingerprint=unknown, unknown=unknown)
        return LoadedModel(outline, unknown, Description("", "", None, 0, "", ""))
    ready = prepare(
        asked, locate_base(asked), placement, **{name: settings[name] for name in PREPARED}
    )
    own = fingerprint(ready.found.folder, *ready.merged)
    outline = Outline(
        ready.vocab, unknown, ready.max_length, ready.block_length, own, unknown=unknown
    )
    tokenizer = ready.tokenizer(settings["parse_control_tokens"], settings["chat_template_kwargs"])
    name, family = ready.found.name, ready.plan.spec.family
    about = Description(family, name, ready.found.folder, 0, "", "", edits=settings["edits"])
    return LoadedModel(outline, tokenizer, about)


def _placement(settings: Mapping[str, Any]) -> Placement:
    names = ("dtype", "device", "attn_implementation", "device_map", "tensor_parallel")
    return Placement(*(settings[name] for name in names))
