"""Figures of the house: python docs/tools/house.py [FOLDER ...], a row per folder of the package.

Give several checkouts to compare them, e.g. a worktree of an older commit.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def modules(root: Path) -> dict[str, Path]:
    """Module name to file, `strategies` and `conf` included."""
    package = root / "dllm_decode"
    places = [package, *(package / link for link in ("strategies", "conf"))]
    files = {path for place in places for path in place.rglob("*.py")}
    return {
        ".".join(("dllm_decode", *path.relative_to(package).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in sorted(files)
    }


def code_lines(node: ast.AST) -> int:
    """Lines of a function without its docstring."""
    assert isinstance(node, FUNCTIONS)
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def arguments(node: ast.AST) -> int:
    """Number of a function's arguments without self."""
    assert isinstance(node, FUNCTIONS)
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def comments(text: str) -> int:
    """Number of lines that hold a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})


def imports(files: dict[str, Path]) -> dict[str, set[str]]:
    """Which modules of the package each module imports."""

    def named(tree: ast.AST) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            if isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    return {
        name: {
            other
            for other in named(ast.parse(path.read_text(encoding="utf-8")))
            if other in files and other not in (name, "dllm_decode")
        }
        for name, path in files.items()
    }


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph[name]
        reach[start] = seen
    groups = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in graph if a in reach[a]}
    return [list(group) for group in sorted(groups)]


def room(name: str) -> str:
    """The folder or top-level file of a module."""
    return name.split(".")[1] if "." in name else "(top)"


def folder(name: str, path: Path) -> str:
    """The row of the table a module counts in."""
    parts = name.split(".")
    return (
        parts[1] if len(parts) > 2 or (path.name == "__init__.py" and len(parts) == 2) else "(top)"
    )


def figures(root: Path) -> None:
    """Print the table of one checkout."""
    files = modules(root)
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    lines: dict[str, int] = defaultdict(int)
    for name, path in files.items():
        lines[folder(name, path)] += texts[name].count("\n")
    functions = [
        node
        for text in texts.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, FUNCTIONS)
    ]
    sizes = sorted(code_lines(node) for node in functions)
    counts = sorted(arguments(node) for node in functions)
    total = sum(lines.values())
    graph = imports(files)
    rooms = defaultdict(set)
    for name, others in graph.items():
        for other in others:
            if room(name) != room(other):
                rooms[room(name)].add(room(other))
    both = sum(a in rooms[b] for a in list(rooms) for b in rooms[a]) // 2
    print(f"## {root}\n")
    print("| folder | lines |\n|---|---|")
    for name, count in sorted(lines.items(), key=lambda item: -item[1]):
        print(f"| {name} | {count:,} |")
    tops = [p.name for p in (root / "dllm_decode").glob("*.py")]
    print(f"| all | {total:,} |\n")
    print(f"modules at the top: {len(tops)}")
    print(
        f"functions: {len(functions)}; lines median {median(sizes):.0f}, "
        f"p90 {quantiles(sizes, n=10)[-1]:.0f}, max {sizes[-1]}; "
        f"arguments p90 {quantiles(counts, n=10)[-1]:.0f}, max {counts[-1]}"
    )
    found = sum(comments(text) for text in texts.values())
    print(f"comments per 100 lines: {100 * found / total:.1f}")
    print(f"circles of modules: {circles(graph) or 'none'}")
    print(f"pairs of folders that import each other: {both}\n")


if __name__ == "__main__":
    for place in sys.argv[1:] or ["."]:
        figures(Path(place))
