"""The prompts that help, README and pages show are ones that the bundled model answers rightly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dllm_decode import load
from dllm_decode.console import help as help_pages
from dllm_decode.problems import FAMILIES
from dllm_decode.problems.lists import labelled, read_labelled
from dllm_decode.problems.recognise import family_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), Path(help_pages.__file__)]
ASKED = re.compile(r'(Sort|Copy|Reverse): ((?:\d+ [A-Z][a-z]+ ?)+)"')
ANSWERS = {"Sort": sorted, "Copy": list, "Reverse": lambda names: names[::-1]}


def examples() -> list[tuple[str, str]]:
    found = {match.groups() for page in PAGES for match in ASKED.finditer(page.read_text())}
    return sorted((kind, text.strip()) for kind, text in found)


@pytest.mark.slow
def test_every_prompt_of_help_and_pages_is_answered_rightly() -> None:
    shown = examples()
    assert {"Sort", "Copy", "Reverse"} <= {kind for kind, _ in shown}
    decoder = load("llada", "credit", overrides=["model.checkpoint=bundled:llada-tiny"])
    prompts = [f"{kind}: {names}" for kind, names in shown]
    result = decoder.generate(prompts, max_new_tokens=32)
    right = [labelled(ANSWERS[kind](read_labelled(names) or [])) for kind, names in shown]
    assert [text.split() for text in result.texts] == [answer.split() for answer in right]


def test_every_prompt_of_help_and_pages_is_of_a_kind_that_the_model_knows() -> None:
    known = [family for family in FAMILIES.values() if family.shown]
    assert all(family_of(f"{kind}: {names}", known) for kind, names in examples())
