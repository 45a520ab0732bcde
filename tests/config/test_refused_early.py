"""Values that a part refuses are told from its source, before torch is imported."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run

import pytest
from omegaconf import OmegaConf

from dllm_decode.config.compose import compose_checked
from dllm_decode.config.early import check_values, fault_of
from dllm_decode.config.instantiate import build_node
from dllm_decode.errors import ConfigError

REFUSED = [
    "strategy.select.threshold=7",
    "strategy=credit strategy.transforms.credit.alpha=-1",
    "strategy=factor strategy.select.factor=-1",
    "schedule.length=0",
    "cache=vicinity cache.before=-1",
    "sampler=categorical sampler.temperature=-1",
    "model=toy_copy model.n=-1",
    "prompt=a prompts=b",
]


def part_of(words):
    """The group whose part a setting belongs to."""
    last = words.split()[-1].partition("=")[0].partition(".")[0]
    return last if last in ("strategy", "schedule", "cache", "sampler", "model") else "task"


@pytest.mark.parametrize("words", REFUSED)
def test_the_message_is_the_one_that_building_gives(words):
    cfg = compose_checked(words.split())
    with pytest.raises(ConfigError) as early:
        check_values(cfg)
    with pytest.raises(ConfigError) as built:
        build_node(cfg, part_of(words))
    assert str(early.value) == str(built.value)


def test_no_option_of_any_group_is_refused():
    import dllm_decode.conf as package

    (folder,) = package.__path__
    for group in ("strategy", "schedule", "cache", "sampler", "model", "task"):
        for file in sorted((Path(folder) / group).glob("*.yaml")):
            if file.stem == "new":  # asks for a name, and has none
                continue
            node = OmegaConf.create({group: OmegaConf.load(file)})
            node[group].pop("defaults", None)
            check_values(node)


SOURCE = """
from __future__ import annotations
import math
from dataclasses import dataclass
import torch
from dllm_decode.errors import ConfigError, require_count
MOST = 5
@dataclass
class Base:
    a: int = 1
    def __post_init__(self) -> None:
        require_count("a", self.a)
        if self.a > MOST or math.isinf(self.a):
            raise ConfigError(f"a must be at most {MOST}")
@dataclass
class Heir(Base):
    b: object = None
@dataclass
class Busy(Base):
    def __post_init__(self) -> None:
        torch.empty(self.a)
        super().__post_init__()
"""


def test_what_the_source_does_not_tell_is_left_to_building(tmp_path, monkeypatch):
    (tmp_path / "their_early.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    assert str(fault_of("their_early.Heir", {"a": 0})) == "a must be a whole number >= 1, got 0"
    assert str(fault_of("their_early.Heir", {"a": 6})) == "a must be at most 5"
    for target, values in (
        ("their_early.Heir", {}),  # the default is fine
        ("their_early.Heir", {"a": 0, "b": {"_target_": "x.Y"}}),  # a part, and no value yet
        ("their_early.Busy", {"a": 0}),  # needs torch
        ("their_early.Missing", {"a": 0}),
        ("no_such_module.Thing", {"a": 0}),
    ):
        assert fault_of(target, values) is None
    assert "their_early" not in sys.modules


def test_a_refused_value_is_told_without_torch(tmp_path):
    script = (
        "import sys, dllm_decode.cli as c\n"
        "codes = [c.main(w.split()) for w in ('strategy.select.threshold=7', 'length=0')]\n"
        "assert codes == [2, 2], codes\n"
        "print('torch' in sys.modules)"
    )
    done = run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "False", done.stderr
    assert "strategy.select.threshold must lie in" in done.stderr and not list(tmp_path.iterdir())
