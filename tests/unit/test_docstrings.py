"""Docstrings: every public class that plugin authors meet has an example (tests/config runs it)."""

import ast
import inspect
import re
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import dllm_decode

ROOT = Path(dllm_decode.__file__).parent
STRATEGIES = sorted(
    f"dllm_decode.strategies.{path.stem}"
    for path in (ROOT / "strategies").glob("*.py")
    if path.stem != "__init__"
)
DECODING = [
    f"dllm_decode.decoding.{name}"
    for name in ("loop", "prediction", "sampling", "selection", "strategy", "types")
]
# What is explained where it is used: records that others fill in.
WITHOUT = {
    "BiasedPrediction", "Budget", "CandidateMemory",
    "ContextMemory", "Change", "CreditMemory", "Credited",
    "DensePrediction", "Draw", "DrawError", "EveryStep", "FilterMemory", "FrequencyMemory",
    "GumbelDraw", "HeadPrediction", "HiddenStates", "MovementMemory", "NeverStop", "Part",
    "PhaseMemory", "PipelineMemory", "PredictionError", "ProposalMemory", "ReferenceMemory",
    "Carry", "Confidences", "DeferringPrediction", "Doubts", "LastCommits", "Passes", "PostSteps",
    "Run", "Sampler", "Snapshot",
}  # fmt: skip


def classes(module):
    for name, thing in vars(import_module(module)).items():
        if inspect.isclass(thing) and thing.__module__ == module and not name.startswith("_"):
            yield name, thing


@pytest.mark.parametrize("module", [*STRATEGIES, *DECODING])
def test_every_class_that_is_chosen_or_subclassed_has_an_example(module):
    lacking = [
        name
        for name, thing in classes(module)
        if name not in WITHOUT and ">>> " not in (thing.__doc__ or "")
    ]
    assert not lacking


@pytest.mark.parametrize("module", STRATEGIES)
def test_every_setting_of_a_strategy_has_its_line(module):
    for name, thing in classes(module):
        if not issubclass(thing, import_module("dllm_decode.decoding.strategy").Part):
            continue
        for entry in fields(thing):
            assert f"        {entry.name}: " in thing.__doc__, f"{name}.{entry.name}"


@cache
def written():
    """Every docstring of the package with its place and the names that it may have to explain."""
    found = []
    for folder in (ROOT, ROOT / "strategies"):  # a link, which rglob does not follow
        for path in sorted(folder.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                    place = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                    found.append((place, ast.get_docstring(node), explained(node)))
    return found


def explained(node):
    """Fields of a class, arguments of a function."""
    if isinstance(node, ast.ClassDef):
        fields_ = [entry.target for entry in node.body if isinstance(entry, ast.AnnAssign)]
        return [target.id for target in fields_]
    return [entry.arg for entry in (*node.args.args, *node.args.kwonlyargs)]


def run_on(text, names):
    """Two names or more explained in running text, "name: meaning; name: meaning"."""
    if re.search(r"^(Args|Attributes):", text, re.MULTILINE):
        return False
    found = [name for name in names if re.search(rf"(^|[\s;]){name}( \([^)]*\))?: ", text)]
    return len(found) > 1


@pytest.mark.slow
def test_no_docstring_explains_several_names_in_one_sentence():
    assert [place for place, text, names in written() if run_on(text, names)] == []
    assert run_on("A step. rows: who took part; steps (B,): how many before.", ["rows", "steps"])


def test_every_docstring_says_more_than_two_words():
    # a name in backquotes says what is written or returned
    short = [(place, text) for place, text, _ in written() if len(text.split()) < 3]
    assert [place for place, text in short if "`" not in text] == []


def test_every_entry_of_a_docstring_explains_one_name():
    several = re.compile(r"^    \w+(, \w+)+( \([^)]*\))?: ", re.MULTILINE)
    assert [place for place, text, _ in written() if several.search(text)] == []
