"""Docstrings: every public class that plugin authors meet has an example, and the examples run."""

import doctest
import inspect
from dataclasses import fields
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
OTHERS = ["dllm_decode.models.toy", "dllm_decode.testing"]
# What is explained where it is used: records that others fill in.
WITHOUT = {
    "BiasedPrediction", "Budget", "CandidateMemory", "Change", "CreditMemory", "Credited",
    "DensePrediction", "EveryStep", "FilterMemory", "GumbelDraw", "HeadPrediction", "HiddenStates",
    "NeverStop", "Part", "PipelineMemory", "PredictionError", "ReferenceMemory", "Run", "Sampler",
    "Snapshot", "Draw", "DrawError",
}  # fmt: skip


@pytest.mark.parametrize("name", [*STRATEGIES, *DECODING, *OTHERS])
def test_the_examples_of_a_module_give_what_they_say(name):
    found = doctest.testmod(import_module(name))
    assert not found.failed, f"{found.failed} of {found.attempted} examples of {name} fail"


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
