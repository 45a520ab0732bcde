"""Errors of parts carry the full key of the place where they stand, whatever names users gave."""

from __future__ import annotations

import sys

import pytest

from dllm_decode import ConfigError
from dllm_decode.config.compose import compose_checked
from dllm_decode.config.instantiate import build_node

PARTS = """
from dataclasses import dataclass, field

from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Filter, Strategy, Transform
from dllm_decode.errors import ConfigError, require_count


class Checked:
    def __post_init__(self):
        require_count("tokens", self.tokens)
        if self.tokens == 13:
            raise ConfigError("thirteen is out of the question")


@dataclass(frozen=True)
class Veto(Checked, Filter):
    tokens: int = 1

    def keep(self, view, decision, memory):
        return view.open


@dataclass(frozen=True)
class Raise(Checked, Transform):
    tokens: int = 1

    def adjust(self, view, memory):
        return view.pred


@dataclass(frozen=True)
class Rule(Checked, Strategy):
    tokens: int = 1

    def decide(self, view, memory):
        raise AssertionError


@dataclass(frozen=True)
class Grid(Checked, Blocks):
    tokens: int = 1
"""


@pytest.fixture(autouse=True, scope="module")
def third_party(tmp_path_factory: pytest.TempPathFactory):
    place = tmp_path_factory.mktemp("third_party")
    (place / "their_parts.py").write_text(PARTS)
    sys.path.insert(0, str(place))
    yield
    sys.path.remove(str(place))
    del sys.modules["their_parts"]


PLACES = {
    "strategy.filters.mine": "+strategy.filters.mine={{_target_: their_parts.Veto, tokens: {}}}",
    "strategy.filters.x2": "+strategy.filters.x2={{_target_: their_parts.Veto, tokens: {}}}",
    "strategy.transforms.threshold": (
        "+strategy.transforms.threshold={{_target_: their_parts.Raise, tokens: {}}}"
    ),
    "strategy.select": "strategy.select._target_=their_parts.Rule +strategy.select.tokens={}",
    "schedule": "schedule._target_=their_parts.Grid +schedule.tokens={}",
}


@pytest.mark.one_in(15)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0", "{}.tokens must be a whole number >= 1, got 0"),
        ("half", "{}.tokens must be a whole number, got 'half' (str)"),
        ("13", "thirteen is out of the question"),
    ],
)
def test_a_part_of_somebody_else_is_named_by_its_place(
    place: str, value: str, message: str
) -> None:
    words = PLACES[place].format(value)
    words = [words] if "{" in words else words.split()
    if place == "strategy.select":  # whose own settings are not those of the new rule
        own = compose_checked(["strategy=entropy_bound"]).strategy.select
        words += ["strategy=entropy_bound"]
        words += [f"~strategy.select.{name}" for name in own if name != "_target_"]
    cfg = compose_checked(["model=toy_copy", *words])
    with pytest.raises(ConfigError) as error:
        build_node(cfg, place.split(".")[0])
    text = str(error.value)
    assert text.startswith(message.format(place)) and place in text


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batch_size=0"], "batch_size must be a whole number >= 1, got 0"),
        (["task.samples=0"], "task.samples must be a whole number >= 1, got 0"),
        (["seed=-1"], "seed must be a whole number >= 0, got -1"),
    ],
)
def test_a_setting_that_tasks_share_is_named_as_it_was_given(
    words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        build_node(compose_checked(["model=toy_copy", *words]), "task")
    assert str(error.value) == message
