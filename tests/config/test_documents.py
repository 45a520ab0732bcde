"""What README and docs say: commands, links, included files, the example strategy."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

from dllm_decode import load, problems
from dllm_decode.cli import main, quoted
from dllm_decode.config.compose import compose_checked
from dllm_decode.config.instantiate import PARTS, build_node
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.tasks import build_task
from dllm_decode.testing import StrategyContract

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
sys.path.insert(0, str(EXAMPLES))

from second_look import SecondLook  # noqa: E402
from surest_half import SurestHalf  # noqa: E402
from twice import SaidTwice  # noqa: E402


def blocks(language: str) -> list[tuple[str, str, str]]:
    """(page, words behind the language, text) of every fenced block."""
    return [
        (str(page.relative_to(ROOT)), words.strip(), text)
        for page in PAGES
        for kind, words, text in BLOCK.findall(page.read_text())
        if kind == language
    ]


COMMANDS = sorted(
    {
        (page, words, line.removeprefix("$ ").removeprefix("python -m dllm_decode").strip())
        for page, words, text in blocks("console")
        for line in text.replace("\\\n", " ").splitlines()
        if line.removeprefix("$ ").startswith("python -m dllm_decode") and words != "elsewhere"
    }
)
# console: runs in seconds, except for tasks other than generate; console long: takes minutes;
# console elsewhere: not in the root of the repository
SHORT = [c for c in COMMANDS if c[1] == "" and ("task=" not in c[2] or "task=generate" in c[2])]


def test_there_are_commands_in_the_documents() -> None:
    pages = {page for page, _, _ in COMMANDS}
    assert {"README.md", "docs/cli.md", "docs/configuration.md", "docs/traces.md"} <= pages


@pytest.mark.one_in(18)
@pytest.mark.parametrize(("page", "words", "command"), COMMANDS)
def test_a_documented_command_composes_and_builds(page: str, words: str, command: str) -> None:
    overrides = [quoted(word) for word in shlex.split(command, comments=True) if "=" in word]
    if command.startswith(("-m ", "--multirun ")):
        overrides = [word.split(",")[0] for word in overrides]
    cfg = compose_checked([word for word in overrides if not word.startswith("hydra.")])
    build_task(cfg)
    for node in PARTS:
        assert build_node(cfg, node) is not None


@pytest.mark.slow
@pytest.mark.parametrize(("page", "words", "command"), SHORT)
def test_a_documented_command_runs(
    page: str, words: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = [family for family in problems.demanding() if family.canvas <= 48]
    monkeypatch.setattr(problems, "demanding", lambda: quick)  # a tale takes 144 passes
    assert main(shlex.split(command, comments=True)) == 0


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in link:
            assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize("page", [p for p in PAGES if "<!-- included from" in p.read_text()])
def test_an_included_file_is_what_the_page_shows(page: Path) -> None:
    parts = re.findall(
        r"<!-- included from (\S+?);?[ ;].*?-->\n```\w+\n(.*?)```", page.read_text(), re.DOTALL
    )
    assert parts
    for name, text in parts:
        assert (ROOT / name).read_text() == text


def test_one_step_shows_the_loop_as_it_is() -> None:
    page = (ROOT / "docs" / "one-step.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    source = ast.parse((ROOT / "dllm_decode" / "decoding" / "loop.py").read_text())
    (run,) = [node for node in source.body if getattr(node, "name", "") == "Run"]
    loop = {node.name: node for node in ast.walk(run) if isinstance(node, ast.FunctionDef)}
    for node in ast.parse(shown).body:
        code = loop[node.name]
        if ast.get_docstring(code):
            code.body = code.body[1:]
        assert ast.unparse(node) == ast.unparse(code)


def test_the_example_strategy_is_twelve_lines_or_fewer() -> None:
    assert len((EXAMPLES / "surest_half.py").read_text().splitlines()) <= 12


class TestTheExampleStrategy(StrategyContract):
    def strategies(self) -> list[Strategy]:
        return [SurestHalf()]


class TestTheExampleWithMemory(StrategyContract):
    def strategies(self) -> list[Strategy]:
        return [SaidTwice(), SecondLook()]


@pytest.mark.slow
def test_both_forms_of_the_page_run_the_example_alone_with_the_default_stop_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLES)
    (command,) = [text for _, _, text in blocks("console") if "options strategy=surest" in text]
    words = shlex.split(command.removeprefix("python -m dllm_decode"))
    run = tmp_path / "run"
    more = ["prompt=Copy: 1 Ada 2 Ben 3 Cleo", "max_new_tokens=32", "compare=false"]
    assert main([*words, *more, "display=none", f"hydra.run.dir={run}"]) == 0
    results = json.loads((run / "results.json").read_text())
    (sample,) = [json.loads(line) for line in (run / "samples.jsonl").open()]
    assert list(results["runs"]) == ["surest_half"]

    names: dict[str, object] = {}
    (text,) = [text for _, _, text in blocks("python") if "Pipeline(SurestHalf()" in text]
    exec(compile(text.rpartition("print(")[0], "write-a-strategy.md", "exec"), names)
    result = names["decoder"].generate("Copy: 1 Ada 2 Ben 3 Cleo", max_new_tokens=32)
    assert result.texts == (sample["text"],)
    assert result.forwards == (sample["forwards"],)
    assert result.finish_reasons == (sample["finish_reason"],) == ("eot",)


PUSH = """
from dataclasses import dataclass
from dllm_decode import Filter, StopRule, Transform

class Told:
    def __post_init__(self):
        print(f"delta {self.delta}")
"""
ROLES = {
    "transforms": ("Transform", "adjust(self, view, memory): return view.pred"),
    "filters": ("Filter", "keep(self, view, decision, memory): return decision.commit"),
    "stop": ("StopRule", "horizon(self, snapshot, view, change, memory): return snapshot.horizon"),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("role", ROLES)
def test_the_yaml_of_a_part_with_a_name_is_that_of_the_page(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (text,) = [text for _, _, text in blocks("yaml") if "push.Push" in text]
    options = tmp_path / "options" / "strategy" / role
    options.mkdir(parents=True)
    (options / "push.yaml").write_text(text)
    kind, method = ROLES[role]
    own = f"@dataclass(frozen=True)\nclass Push(Told, {kind}):\n    delta: float = 0.1\n"
    (tmp_path / "push.py").write_text(f"{PUSH}{own}    def {method}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "push", raising=False)
    words = ["--config-dir", "options", "model=toy_copy", "strategy=threshold", "prompt='abc>'"]
    words += [f"strategy/{role}=[push]", f"strategy.{role}.push.delta=0.8"]
    assert main([*words, "compare=false", "display=none", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    assert "delta 0.8" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "text"),
    [(page, text) for page, words, text in blocks("python") if page == "docs/configuration.md"],
)
def test_a_documented_python_example_runs(page: str, text: str, capsys) -> None:
    exec(compile(text, page, "exec"), {})
    assert "1 Ada 2 Ben 3 Cleo" in capsys.readouterr().out


SHOWN = re.compile(r'"((?:Copy|Reverse|Sort): 1 [^"\\]*)"')


def solved(prompt: str) -> str:
    """The answer to a list problem."""
    kind, _, items = prompt.partition(": ")
    names = re.split(r" ?\d ", items)[1:]
    order = {"Copy": names, "Reverse": names[::-1], "Sort": sorted(names)}[kind]
    return "".join(f" {number} {name}" for number, name in enumerate(order, start=1))


@pytest.mark.slow
def test_the_bundled_model_solves_every_list_problem_that_is_shown_to_people(capsys) -> None:
    assert main(["--help"]) == 0
    pages = [page.read_text() for page in PAGES] + [capsys.readouterr().out]
    prompts = sorted({prompt for page in pages for prompt in SHOWN.findall(page)})
    assert len(prompts) >= 3
    for strategy in ("credit", "threshold"):
        found = load("llada", strategy).generate(prompts, max_new_tokens=32, batch_size=8)
        assert found.texts == tuple(map(solved, prompts)), strategy


@pytest.mark.parametrize(
    ("page", "text"),
    [(page, text) for page, _, text in blocks("python") if "from dllm_decode" in text],
)
def test_a_documented_python_example_imports_what_is_there(page: str, text: str) -> None:
    if "dllm_decode.lm_eval" in text:
        pytest.importorskip("lm_eval", reason="the harness is an extra")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dllm_decode"):
            module = import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{page}: {node.module}.{name.name}"
