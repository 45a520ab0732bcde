"""From a node of the configuration to its object: the only place where that happens."""

from __future__ import annotations

import inspect
import pkgutil
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dllm_decode.config.signatures import parameters_of
from dllm_decode.errors import ConfigError, DllmDecodeError

if TYPE_CHECKING:
    from dllm_decode.models.loaded import LoadedModel

PARTS = ("strategy", "schedule", "cache", "sampler")
_SEQUENCES = (list, tuple, Sequence, frozenset, set)


def build_model(cfg: DictConfig) -> LoadedModel:
    """The model of a configuration."""
    model: LoadedModel = build_node(cfg, "model")
    return model


def build_node(cfg: DictConfig, key: str) -> Any:
    """The object of one node.

    Parts name their fields ("threshold must ..."); where the part stands is known here, and goes in
    front, whatever names the user gave: "strategy.filters.mine.threshold must ...".

    Args:
        cfg: The composed configuration.
        key: Of the node.

    Raises:
        ConfigError: Something in it is wrong; the message has its full key.
    """
    try:
        node = cfg[key]
        _check_types(cfg, key)
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise _located(error, key, cfg) from error
    except OmegaConfBaseException as error:
        where = error.full_key or key
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}") from error


def _check_types(cfg: DictConfig, key: str) -> None:
    """Like `check_types`, with the name at the top of a setting that several tasks share."""
    try:
        check_types(OmegaConf.to_container(cfg[key], resolve=True), key)
    except ConfigError as error:
        message = str(error)
        raise ConfigError(with_key(message.removeprefix(f"{key}."), key, cfg)) from None


def _located(error: InstantiationException, key: str, cfg: DictConfig) -> DllmDecodeError:
    """The error of our own that stopped an object, else what Hydra says, with the full key."""
    text = str(error)
    key = text.rpartition("full_key: ")[2].strip() if "full_key: " in text else key
    cause = error.__cause__
    if isinstance(cause, DllmDecodeError):
        return type(cause)(with_key(str(cause), key, cfg))
    if isinstance(cause, Exception) and not isinstance(cause, InstantiationException):
        text = str(cause)
    return ConfigError(f"{key} cannot be built: {' '.join(text.partition('full_key:')[0].split())}")


def with_key(message: str, key: str, cfg: DictConfig) -> str:
    """A message about a node of the configuration, with the full key of what it is about.

    Args:
        message: What was wrong, in terms of an object and its fields.
        key: Of the node.
        cfg: The configuration that the node belongs to.
    """
    node = OmegaConf.select(cfg, key)
    values = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else {}
    assert isinstance(values, dict)
    begins = re.match(r"\w+", message)
    field = begins[0] if begins else ""
    known = {*values, *(parameters_of(str(values.get("_target_"))) or ())}
    if field in known:
        elsewhere = re.fullmatch(r"\$\{([\w.]+)\}", str(values.get(field)))
        # a setting that tasks share stands at the top, where the user has given it
        full = elsewhere[1] if elsewhere else f"{key}.{field}"
        return f"{full}{message.removeprefix(field)}"
    return message if key.split(".")[0] in message else f"{message} (in {key})"


def check_types(node: Any, key: str) -> None:
    """Compare the values of a node with the annotations of its target; raises `ConfigError`.

    Args:
        node: A mapping with a `_target_`, with others inside of it.
        key: Its full key.
    """
    if not isinstance(node, Mapping):
        return
    hints = _hints(node.get("_target_"))
    for name, value in node.items():
        if name in hints and not fits(value, hints[name]):
            raise ConfigError(f"{key}.{name}{_misfit(value, hints[name])}")
        check_types(value, f"{key}.{name}")


def _hints(target: Any) -> Mapping[str, Any]:
    """Annotations of a target's arguments, empty where they cannot be had."""
    if not isinstance(target, str):
        return {}
    try:
        thing = pkgutil.resolve_name(target)
        call: Any = thing.__init__ if inspect.isclass(thing) else thing
        return get_type_hints(call)
    except Exception:  # the same fault is reported, with its key, when the object is built
        return {}


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain YAML value can be what an annotation asks for.

    Args:
        value: From the configuration.
        hint: The annotation of the argument that it is for.
    """
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in inside)
    if origin is Literal:
        return value in inside
    if origin in _SEQUENCES:
        wanted = _entry(hint)
        plain = isinstance(value, list | tuple)
        return plain and (wanted is None or all(fits(entry, wanted) for entry in value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if hint is None or hint is type(None):
        return value is None
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, hint) if hint in (bool, int, str) else True


def _misfit(value: Any, hint: Any) -> str:
    """What a value would have to be, behind its key; of a list its first wrong entry is told."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    wanted = next((inside for option in options if (inside := _entry(option))), None)
    if isinstance(value, list | tuple) and wanted:
        number = next(n for n, entry in enumerate(value) if not fits(entry, wanted))
        return f": entry {number + 1}{_misfit(value[number], wanted)}"
    return f" must be {describe_type(hint)}, got {value!r} ({type(value).__name__})"


def _entry(hint: Any) -> Any:
    """The annotation of the entries of a list, None for what is no list of things alike."""
    items = [option for option in get_args(hint) if option is not Ellipsis]
    return items[0] if get_origin(hint) in _SEQUENCES and len(items) == 1 else None


def describe_type(hint: Any) -> str:
    """An annotation in words."""
    words = {
        int: "a whole number", float: "a number", str: "a text", bool: "true or false",
        type(None): "null", Path: "a path",
    }  # fmt: skip
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(option) for option in inside)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inside))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if origin is not None:
        return "a list"
    return words.get(hint, getattr(hint, "__name__", str(hint)))
