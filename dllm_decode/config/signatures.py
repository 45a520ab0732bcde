"""Parameter names of a `_target_`, read from its source without importing it.

Importing a strategy imports torch, which takes seconds; a misspelt key should be answered at once.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_NOT_FIELDS = ("ClassVar", "InitVar", "KW_ONLY")


@dataclass(frozen=True)
class Module:
    """A module as its source tells it.

    Attributes:
        name: In full.
        is_package: Whether modules lie below it.
        body: Its definitions and imports at the top level.

    Examples:
        >>> here = Module("acme.parts", False, [])
        >>> here.absolute(ast.parse("from .rules import Mine").body[0])
        'acme.rules'
    """

    name: str
    is_package: bool
    body: Sequence[ast.stmt]

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that a `from ... import` names."""
        if not node.level:
            return node.module or ""
        base = self.name.split(".")
        base = base[: len(base) - node.level + int(self.is_package)]
        return ".".join([*base, *([node.module] if node.module else [])])


def parameters_of(target: str) -> tuple[str, ...] | None:
    """Names of the arguments that a class or function takes.

    Args:
        target: A dotted path as in `_target_`.

    Returns:
        The names; None where the source does not tell (not found, no Python source, open
        `**kwargs`), which callers take as "anything may be allowed".
    """
    try:
        found = _definition(target)
        return None if found is None else _parameters(*found)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class Described:
    """What the docstring of a class or function says.

    Attributes:
        summary: Its first sentence.
        arguments: What each argument means: unit, range, default where it is not plain.

    Examples:
        >>> described("dllm_decode.strategies.fixed.TopK").arguments["tokens_per_step"][:12]
        'k, 1 or more'
    """

    summary: str
    arguments: Mapping[str, str]


def described(target: str) -> Described:
    """What the docstring behind a `_target_` says, bases included, without importing it.

    Args:
        target: A dotted path; where there is no source, nothing is said.
    """
    try:
        found = _definition(target)
        return Described("", {}) if found is None else _described(*found)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return Described("", {})


def _described(node: ast.stmt, module: Module) -> Described:
    assert isinstance(node, ast.ClassDef | ast.FunctionDef)
    arguments: dict[str, str] = {}
    for base in node.bases if isinstance(node, ast.ClassDef) else ():
        name = base.value if isinstance(base, ast.Subscript) else base
        found = _lookup(name.id, module) if isinstance(name, ast.Name) else None
        if found is not None:
            arguments.update(_described(*found).arguments)
    text = ast.get_docstring(node) or ""
    arguments.update(_documented_arguments(text))
    return Described(" ".join(text.split("\n\n")[0].split()), arguments)


def _documented_arguments(docstring: str) -> dict[str, str]:
    """The entries of the blocks `Args:` and `Attributes:`."""
    found: dict[str, list[str]] = {}
    inside, name = False, ""
    for line in docstring.splitlines():
        if line and not line.startswith(" "):
            inside = line.strip() in ("Args:", "Attributes:")
            continue
        entry = re.match(r"    (\w+): (.*)", line) if inside else None
        if entry:
            name = entry[1]
            found[name] = [entry[2]]
        elif inside and name and line.strip():
            found[name].append(line.strip())
    return {name: " ".join(parts) for name, parts in found.items()}


def _definition(target: str) -> tuple[ast.stmt, Module] | None:
    module_name, _, name = target.rpartition(".")
    module = _module(module_name) if module_name else None
    return None if module is None else _lookup(name, module)


def _lookup(name: str, module: Module) -> tuple[ast.stmt, Module] | None:
    """The class or function that a name stands for in a module, following its imports."""
    for node in _statements(module.body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node, module
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(f"{module.absolute(node)}.{alias.name}")
    return None


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module, with what stands behind `if TYPE_CHECKING` and in a `try`."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])


@cache
def _module(name: str) -> Module | None:
    spec = _spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return Module(name, spec.submodule_search_locations is not None, tree.body)


def _spec(name: str) -> ModuleSpec | None:
    """Like `importlib.util.find_spec`, but parent packages are not imported."""
    top, *rest = name.split(".")
    spec = find_spec(top)
    for depth in range(len(rest)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        path = list(spec.submodule_search_locations)
        spec = PathFinder.find_spec(".".join([top, *rest[: depth + 1]]), path)
    return spec


def _parameters(node: ast.stmt, module: Module) -> tuple[str, ...] | None:
    if isinstance(node, ast.FunctionDef):
        return _arguments(node)
    assert isinstance(node, ast.ClassDef)
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            names = _arguments(member)
            return None if names is None else names[1:]
    names_of_fields: dict[str, bool] = {}
    for base in node.bases:
        name = base.value if isinstance(base, ast.Subscript) else base
        found = _lookup(name.id, module) if isinstance(name, ast.Name) else None
        if found is not None:
            names_of_fields.update(dict.fromkeys(_parameters(*found) or (), True))
    if _is_dataclass(node):
        names_of_fields.update(_fields(node))
    return tuple(name for name, settable in names_of_fields.items() if settable)


def methods_of(
    target: str, name: str
) -> tuple[list[tuple[ast.FunctionDef, Module]], dict[str, Any]]:
    """A method of a dataclass with those that it inherits from, and defaults of the fields.

    Args:
        target: A dotted path as in `_target_`.
        name: Of the method.

    Returns:
        Own method first, each with where it stands; none where the target is no dataclass. Only
        defaults that are literals are told.
    """
    found = _definition(target)
    if found is None or not isinstance(found[0], ast.ClassDef) or not _is_dataclass(found[0]):
        return [], {}
    defaults: dict[str, Any] = {}
    methods = []
    for node, module in _ancestry(found[0], found[1]):
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and member.name == name:
                methods.append((deepcopy(member), module))
            if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                with contextlib.suppress(ValueError):
                    value = ast.literal_eval(member.value or ast.Name("_"))
                    defaults.setdefault(member.target.id, value)
    return methods, defaults


def _ancestry(node: ast.ClassDef, module: Module) -> Iterator[tuple[ast.ClassDef, Module]]:
    """A class and its bases, as far as the source tells, in the order in which they are asked."""
    yield node, module
    for base in node.bases:
        name = base.value if isinstance(base, ast.Subscript) else base
        found = _lookup(name.id, module) if isinstance(name, ast.Name) else None
        if found is not None and isinstance(found[0], ast.ClassDef):
            yield from _ancestry(found[0], found[1])


def nodes(value: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a `_target_`, with its full key.

    Args:
        value: A part of a configuration.
        key: Its full key, "" for the whole.
    """
    if not isinstance(value, dict):
        return
    if "_target_" in value:
        yield key, value
    for name, entry in value.items():
        yield from nodes(entry, f"{key}.{name}" if key else str(name))


def _arguments(node: ast.FunctionDef) -> tuple[str, ...] | None:
    args = node.args
    if args.kwarg is not None:
        return None
    return tuple(arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs))


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, bool]]:
    """Names of a dataclass's own fields, and whether they can be given."""
    for member in node.body:
        if not isinstance(member, ast.AnnAssign) or not isinstance(member.target, ast.Name):
            continue
        if any(word in ast.unparse(member.annotation) for word in _NOT_FIELDS):
            continue
        value = "" if member.value is None else ast.unparse(member.value)
        yield member.target.id, "init=False" not in value
