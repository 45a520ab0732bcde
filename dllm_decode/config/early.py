"""Values that a part refuses, told before its module is imported, because that imports torch.

A part checks its fields in `__post_init__`, with functions of `dllm_decode.errors`. That method is
taken from the source (see `config.signatures`) and run over the configured values; what it needs
beyond such functions, standard modules and literals stops it without a word, and the part itself
says what is wrong when it is built.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dllm_decode.config import signatures
from dllm_decode.config.instantiate import with_key
from dllm_decode.errors import DllmDecodeError


def check_values(cfg: DictConfig) -> None:
    """Raise the `ConfigError` of a part that refuses its values, as far as its source tells.

    Args:
        cfg: The composed configuration.
    """
    for name in cfg:
        part = OmegaConf.select(cfg, str(name), throw_on_missing=False) if name != "hydra" else None
        if not isinstance(part, DictConfig):
            continue
        try:
            values = OmegaConf.to_container(part, resolve=True)
        except OmegaConfBaseException:
            continue  # building says where
        for key, node in signatures.nodes(values, str(name)):
            fault = fault_of(str(node["_target_"]), node)
            if fault is not None:
                raise type(fault)(with_key(str(fault), key, cfg))


def fault_of(target: str, values: Mapping[str, Any]) -> DllmDecodeError | None:
    """What the `__post_init__` of a target says against values, None for nothing.

    Args:
        target: A dotted path as in `_target_`.
        values: Of its fields; those that are left out have their defaults.
    """
    given = {name: value for name, value in values.items() if name[0] != "_"}
    if any(_holds_parts(value) for value in given.values()):
        return None  # those are no values yet
    try:
        methods, defaults = signatures.methods_of(target, "__post_init__")
        _run(methods, SimpleNamespace(**{**defaults, **given}))
    except DllmDecodeError as fault:
        return fault
    except Exception:  # it needs more than the source tells
        return None
    return None


def _run(methods: Sequence[tuple[ast.FunctionDef, signatures.Module]], fields: Any) -> None:
    """Run the first of some methods over fields; `super()` leads to the next."""
    if not methods:
        return
    method, module = methods[0]
    names = _names(module)
    names["super"] = lambda: SimpleNamespace(__post_init__=lambda: _run(methods[1:], fields))
    code = ast.Module([ast.parse("from __future__ import annotations").body[0], method], [])
    exec(compile(ast.fix_missing_locations(code), module.name, "exec"), names)
    names["__post_init__"](fields)


def _holds_parts(value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value
    own = isinstance(value, dict) and "_target_" in value
    nested = isinstance(value, dict | list) and any(map(_holds_parts, inside))
    return own or nested


def _names(module: signatures.Module) -> dict[str, Any]:
    """What the top of a module defines by imports of cheap modules and by literals."""
    names: dict[str, Any] = {}
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and module.absolute(node) == "dllm_decode.errors":
            errors = importlib.import_module("dllm_decode.errors")
            names |= {a.asname or a.name: getattr(errors, a.name) for a in node.names}
        elif isinstance(node, ast.Import):
            cheap = [a for a in node.names if a.name in sys.stdlib_module_names]
            names |= {a.asname or a.name: importlib.import_module(a.name) for a in cheap}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                names[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return names
