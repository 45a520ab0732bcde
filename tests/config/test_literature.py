"""The page of methods and commands: what it tells people to type is there, nothing is left out."""

import re
from pathlib import Path

import pytest

from dllm_decode.config.compose import compose_checked
from dllm_decode.config.instantiate import PARTS, build_node

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PAGE = (ROOT / "docs" / "literature.md").read_text(encoding="utf-8")
TYPED = sorted(
    {
        command
        for line in PAGE.splitlines()
        if line.startswith("| ") and line.count("|") == 4
        for command in re.findall(r"`([^`]*=[^`]*)`", line.split("|")[3])
        if not command.startswith("generate(")
    }
)
GROUPS = ("strategy", "schedule", "cache", "sampler", "task")
SLOTS = ("strategy/transforms", "strategy/filters", "strategy/stop")


def options(command: str) -> list[tuple[str, str]]:
    """The options that a command names, as (group, option)."""
    pairs = [word.partition("=") for word in command.split()]
    return [
        (group, option)
        for group, _, value in pairs
        if group in (*GROUPS, *SLOTS)
        for option in value.strip("[]").split(",")
    ]


def test_every_option_that_the_page_names_is_there() -> None:
    assert len(TYPED) > 40
    for command in TYPED:
        for group, option in options(command):
            assert (CONF / group / f"{option}.yaml").is_file(), f"{command}: {group}={option}"


@pytest.mark.parametrize("group", ["strategy", "schedule", "strategy/transforms", "cache"])
def test_every_option_has_a_row(group: str) -> None:
    named = {option for command in TYPED for kind, option in options(command) if kind == group}
    there = {path.stem for path in (CONF / group).glob("*.yaml")}
    assert there - {"pipeline", "none"} - named == OWN[group]


# What no publication has another name for.
OWN = {
    "strategy": {"oracle", "sequential", "topk"},
    "schedule": set(),
    "strategy/transforms": {"credit_adaptive"},
    "cache": set(),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", TYPED)
def test_a_command_of_the_page_composes_and_builds(command: str) -> None:
    words = command.split()
    if all(word.startswith("strategy.") for word in words):
        pytest.skip("a further setting of the command in front of it")
    cfg = compose_checked(words)
    assert all(build_node(cfg, node) is not None for node in PARTS)
