"""Model, parts and request are put together before torch is imported; see `config.rehearsal`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dllm_decode.config.instantiate import build_node, check_types, with_key
from dllm_decode.config.rehearsal import MissingValue, Unanswered, refusal
from dllm_decode.config.signatures import nodes
from dllm_decode.errors import DllmDecodeError

if TYPE_CHECKING:
    from dllm_decode.api import TextDecoder
    from dllm_decode.models.loaded import LoadedModel

_LOADER, _TOYS = "dllm_decode.models.load_model", "dllm_decode.models.toy."


def refuse_early(
    cfg: DictConfig,
    then: Callable[[TextDecoder], object] = lambda decoder: None,
    *before: Callable[[], object],
) -> None:
    """Raise what a decoder of a configuration refuses, if that can be known without torch.

    Args:
        cfg: The composed configuration.
        then: What is done with the decoder, which cannot decode.
        before: What may be refused as well, each on its own.

    Raises:
        DllmDecodeError: The same that building and loading would raise.
    """
    if not _ours(cfg):
        return

    def compose() -> None:
        from dllm_decode.api import build, check_before_loading
        from dllm_decode.models.acceptance import AcceptanceFilter
        from dllm_decode.models.drafting import LayerDrafter

        # of learned parts the header of the file tells enough
        AcceptanceFilter.load = AcceptanceFilter.outline  # type: ignore[method-assign]
        LayerDrafter.load = LayerDrafter.outline  # type: ignore[method-assign]
        check_before_loading(cfg)
        then(build(cfg, model=lambda: _outlined(cfg)))

    fault = refusal(*before, lambda: _check_placement(cfg), compose)
    if fault is not None:
        raise fault


def refuse_absent(traces: Iterable[Path]) -> None:
    """Raise what reading traces refuses that are not there.

    Args:
        traces: Their files.

    Raises:
        TraceError: The same that reading would raise.
    """
    absent = [file for file in traces if not file.is_file()]

    def read() -> None:
        from dllm_decode.decoding.trace import read_trace

        for file in absent:
            read_trace(file)

    fault = refusal(read) if absent else None
    if fault is not None:
        raise fault


def _ours(cfg: DictConfig) -> bool:
    """Whether all parts are of this package: importing others may do things, which once must do."""
    parts = nodes(OmegaConf.to_container(cfg, resolve=False), "")
    return all(str(node["_target_"]).startswith("dllm_decode.") for _, node in parts)


def _settings(cfg: DictConfig) -> dict[str, Any]:
    settings = OmegaConf.to_container(cfg.model, resolve=True)
    assert isinstance(settings, dict)
    return {str(name): value for name, value in settings.items()}


def _check_placement(cfg: DictConfig) -> None:
    """Types and places of a model's settings, of which the second may need an answer of torch."""
    from dllm_decode.models import foresee

    settings = _settings(cfg)
    check_types(settings, "model")
    if settings["_target_"] == _LOADER:
        foresee.check_placement(settings)


def _outlined(cfg: DictConfig) -> LoadedModel:
    """The model without its weights."""
    from dllm_decode.models import foresee

    settings = _settings(cfg)
    if settings["_target_"].startswith(_TOYS):
        toy: LoadedModel = build_node(cfg, "model")
        return toy
    if settings["_target_"] != _LOADER:
        raise Unanswered
    try:
        model = foresee.foreseen(settings, MissingValue())
    except DllmDecodeError as error:
        raise type(error)(with_key(str(error), "model", cfg)) from None
    if model.description.path is None and build_node(cfg, "cache").attention == "block_causal":
        raise Unanswered  # nobody knows whether the model has blocks
    return model
