"""The house: which room may know which, read from the imports."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import dllm_decode

PACKAGE = Path(dllm_decode.__file__).parent

# From the roof to the cellar; a room may import from rooms further down. Rooms of one floor may not
# know each other.
FLOORS = (
    ("cli",),
    ("tasks",),
    ("lm_eval",),
    ("training", "benchmarks", "integrations"),
    ("api",),
    ("evaluation",),
    ("config", "console", "testing"),
    ("strategies",),
    ("models",),
    ("decoding",),
    ("kernels", "problems"),
    ("environment", "storage"),
    ("errors",),
)
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}


def module_name(path: Path) -> str:
    parts = ("dllm_decode", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {
    module_name(path): path
    for place in (PACKAGE, PACKAGE / "strategies")  # a link, which rglob does not follow
    for path in place.rglob("*.py")
    if "conf" not in path.relative_to(PACKAGE).parts
}


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, anywhere in it, also for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{a.name}" for a in node.names] + [node.module or ""]
        yield from (name for name in names if name in MODULES and name != "dllm_decode")


@cache
def imports() -> dict[str, list[str]]:
    """What each module of the package imports of the others."""
    return {name: sorted(set(imported(path)) - {name}) for name, path in MODULES.items()}


def room(module: str) -> str:
    """The folder, or the file at the top, in which a module lives."""
    return module.split(".")[1] if "." in module else module


def test_every_room_has_a_floor():
    rooms = {room(module) for module in MODULES} - {"dllm_decode", "__main__"}
    assert rooms == set(LEVEL)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"dllm_decode", "dllm_decode.__main__"}))
def test_imports_run_down_only(module):
    own = room(module)
    for other in imports()[module]:
        assert room(other) == own or LEVEL[room(other)] > LEVEL[own], f"{module} imports {other}"


def test_decoding_imports_only_kernels_and_errors():
    known = {
        room(other)
        for module, others in imports().items()
        if room(module) == "decoding"
        for other in others
    }
    assert known == {"decoding", "kernels", "errors"}


def test_only_configuration_names_strategies():
    guilty = [
        module
        for module, others in imports().items()
        if room(module) != "strategies" and any(room(other) == "strategies" for other in others)
    ]
    assert not guilty


def circles(imports: dict[str, list[str]]) -> list[list[str]]:
    """Groups of modules that import each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in imports[module]:
            if other not in index:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            found.extend([sorted(group)] if len(group) > 1 else [])

    for module in imports:
        if module not in index:
            visit(module)
    return found


def test_no_modules_import_each_other_in_a_circle():
    assert circles(imports()) == []


def test_a_circle_would_be_found():
    assert circles({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["a"]}) == [["b", "c"]]


DESIGN = (Path(__file__).parents[2] / "docs" / "design.md").read_text(encoding="utf-8")


def test_the_design_names_every_room():
    for name in set(LEVEL) | {"conf"}:
        shown = (f"`{name}`", f"`{name}/`", f"`{name}.py`")
        assert any(form in DESIGN for form in shown), name


def test_the_design_gives_the_floors_in_their_order():
    text = DESIGN.partition("nowhere in a circle:")[2].partition("Folders between")[0]
    shown = [tuple(sorted(re.findall(r"`(\w+)`", floor))) for floor in text.split("→")]
    assert shown == [tuple(sorted(floor)) for floor in FLOORS]


def test_things_happen_where_the_design_says():
    table = DESIGN.partition("## Where things happen")[2].partition("\n## ")[0]
    named = re.findall(r"((?:`[\w.]+`(?: and )?)+) in `([\w/]+\.py)`", table)
    assert len(named) >= 10
    for functions, file in named:
        text = (PACKAGE / file).read_text(encoding="utf-8")
        for function in re.findall(r"`([\w.]+)`", functions):
            for part in function.split("."):
                assert re.search(rf"^ *(def|class) {part}\b", text, re.M), f"{function} in {file}"


@pytest.mark.slow
def test_no_class_name_stands_for_two_things():
    homes = defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                homes[node.name.lstrip("_")].append(module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}
