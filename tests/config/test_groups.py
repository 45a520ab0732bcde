"""Every option of every group composes, builds, and repeats the defaults of its class."""

from __future__ import annotations

import inspect
import pkgutil
from collections import defaultdict
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import dllm_decode.conf
from dllm_decode.config.compose import check, compose, groups
from dllm_decode.config.instantiate import build_node, fits
from dllm_decode.config.signatures import parameters_of
from dllm_decode.decoding.strategy import Part, Pipeline
from dllm_decode.errors import ConfigError
from dllm_decode.tasks import Task, build_task

CONF = Path(dllm_decode.conf.__file__).parent
OPTIONS = sorted(
    (str(file.parent.relative_to(CONF)), file.stem)
    for file in CONF.rglob("*.yaml")
    if file.parent != CONF
)


def override(group: str, option: str) -> str:
    """An option as on the command line; groups of named parts take lists."""
    many = group in ("strategy/transforms", "strategy/filters")
    return f"{group}=[{option}]" if many else f"{group}={option}"


@cache
def composed(*overrides: str) -> Any:
    cfg = compose(overrides)
    check(cfg, overrides)
    return cfg


def own_nodes(value: Any) -> list[dict[str, Any]]:
    """The mappings with a target in one option file."""
    if not isinstance(value, dict):
        return []
    value = {key: entry for key, entry in value.items() if key != "defaults"}
    inner = [node for entry in value.values() for node in own_nodes(entry)]
    return [value, *inner] if "_target_" in value else inner


NODES = [
    (f"{group}/{option}", node)
    for group, option in OPTIONS
    for node in own_nodes(OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml")))
]


def lines() -> list[tuple[tuple[str, str], ...]]:
    """Every option but experiments on as few command lines as hold them, since composing is slow.

    Parts of a strategy have lines of their own, behind the default strategy. Experiments are
    composed and built in tests/unit/test_eval.py.
    """
    by_group: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for group, option in OPTIONS:
        by_group[group].append((group, option))
    del by_group["experiment"]
    # the options of `bench` are the tasks that task=bench chooses from
    benches = by_group.pop("bench")
    parts = [by_group.pop(group) for group in list(by_group) if "/" in group]
    # what stands for a whole rule takes no parts beside it
    whole = [pair for group in parts for pair in group if pair == ("strategy/select", "adjust")]
    parts = [[pair for pair in group if pair not in whole] for group in parts]
    together = [*zip_longest(*by_group.values()), *zip_longest(*parts)]
    full = [tuple(pair for pair in line if pair) for line in together]
    return [*full, *((pair,) for pair in whole), *((("task", "bench"), pair) for pair in benches)]


LINES = lines()


@pytest.mark.one_in(20)
@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(map("=".join, line)))
def test_every_option_composes_and_builds(line: tuple[tuple[str, str], ...]) -> None:
    model = () if "model" in dict(line) else ("model=toy_copy",)
    cfg = composed(*model, *(override(group, option) for group, option in line))
    for group, option in line:
        node = "task" if group == "bench" else group.split("/")[0]
        if node == "task":
            try:
                assert isinstance(build_task(cfg), Task)
            except ConfigError as error:  # a setting that only the user can give
                assert "task." in str(error)
        elif node == "strategy":
            assert isinstance(build_node(cfg, node), Pipeline)
        elif node != "model" or option.startswith("toy_"):
            assert build_node(cfg, node) is not None


def test_no_option_is_left_out() -> None:
    seen = {pair for line in LINES for pair in line}
    assert {pair for pair in OPTIONS if pair[0] != "experiment"} <= seen


@pytest.mark.one_in(3)
@pytest.mark.parametrize("place", sorted({place for place, _ in NODES}))
def test_every_key_of_an_option_is_taken_by_its_target(place: str) -> None:
    for name, node in NODES:
        if name == place:
            allowed = parameters_of(node["_target_"])
            assert allowed is not None
            assert set(node) - {"_target_"} <= set(allowed)


TARGETS = sorted({node["_target_"] for _, node in NODES})


@pytest.mark.parametrize("target", TARGETS)
def test_names_read_from_the_source_are_those_of_the_class(target: str) -> None:
    signature = inspect.signature(pkgutil.resolve_name(target))
    assert set(parameters_of(target) or ()) == set(signature.parameters)


def defaults_of(target: str) -> dict[str, Any]:
    parameters = inspect.signature(pkgutil.resolve_name(target)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def plain(value: Any) -> Any:
    """A default as YAML can hold it."""
    if isinstance(value, tuple):
        return [plain(entry) for entry in value]
    return dict(value) if value.__class__.__name__ == "mappingproxy" else value


@pytest.mark.parametrize("target", TARGETS)
def test_one_option_of_each_target_repeats_all_its_defaults_and_the_others_are_presets(
    target: str,
) -> None:
    defaults = {
        name: plain(value)
        for name, value in defaults_of(target).items()
        if type(value).__name__ != "_HAS_DEFAULT_FACTORY_CLASS"
    }
    cfg = composed("model=toy_copy")  # what interpolations in tasks refer to
    misses: dict[str, dict[str, Any]] = defaultdict(dict)
    for place, node in NODES:
        if node["_target_"] == target:
            root = OmegaConf.create({**OmegaConf.to_container(cfg), "node": node})
            values = OmegaConf.to_container(root.node, resolve=True)
            misses[place] = {
                name: (values.get(name, "absent"), default)
                for name, default in defaults.items()
                if values.get(name, "absent") != default
            }
    assert {} in misses.values(), dict(misses)


def test_every_group_is_part_of_the_default_configuration() -> None:
    shown = composed("model=toy_copy")
    # experiment is empty unless chosen; bench belongs to task=bench
    assert set(groups()) - {"experiment", "bench"} <= set(shown)


def test_every_option_file_has_a_comment_or_a_documented_target() -> None:
    for place, node in NODES:
        target = pkgutil.resolve_name(node["_target_"])
        assert (target.__doc__ or "").strip(), place


def test_every_part_is_a_frozen_dataclass() -> None:
    for _, node in NODES:
        target = pkgutil.resolve_name(node["_target_"])
        if inspect.isclass(target) and issubclass(target, Part | Task):
            assert target.__dataclass_params__.frozen, target


@pytest.mark.parametrize(
    ("value", "hint", "answer"),
    [
        (3, float, True),
        (True, float, False),
        (True, int, False),
        ("a", str | None, True),
        (None, int | None, True),
        ("3", int | None, False),
        ([1, 2], tuple[int, ...], True),
        ([1, "x"], tuple[int, ...], False),
        ({"a": 1}, dict[str, int], True),
        ({"_target_": "x.Y"}, Part, True),
    ],
)
def test_a_value_fits_its_annotation(value: Any, hint: Any, answer: bool) -> None:
    assert fits(value, hint) is answer
