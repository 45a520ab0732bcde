"""Which model a card holds, as docs/models.md says: every figure is computed again."""

import inspect
import re
from functools import cache
from pathlib import Path

import published_configs as sizes
import pytest

from dllm_decode.models import load_model
from dllm_decode.models.blueprint import Blueprint, build_on_meta
from dllm_decode.models.quantization import Verdict, memory_by_kind
from dllm_decode.models.spec import Published, spec_of

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
CONFIGS = {
    "tiny_a2d_0_6b_bd3lm": sizes.A2D_QWEN3_0_6B,
    "sdar_1_7b": sizes.SDAR_1_7B,
    "llada_8b_instruct": sizes.LLADA_8B,
    "dream_7b_instruct": sizes.DREAM_7B,
    "llada_moe_instruct": sizes.LLADA_MOE,
    "llada2_1_mini": sizes.LLADA2_MINI,
    "sdar_30b_a3b": sizes.SDAR_30B_A3B,
    "llada2_1_flash": sizes.LLADA2_FLASH,
}
USABLE = 0.95  # of a card's nominal memory, in GiB per GB: the driver and torch take the rest


def rows():
    lines = PAGE.read_text().splitlines()
    start = lines.index("| memory | command | weights | left |")
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


@cache
def memory_of(name, kind):
    values = CONFIGS[name]
    spec, published = spec_of(values), Published(values)
    return memory_by_kind(
        build_on_meta(Blueprint(None, spec, published, spec.translate(published), None))
    )[kind]


@pytest.mark.one_in(9)
@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row[0])
def test_a_card_holds_what_the_table_says_with_the_figures_that_are_computed(row):
    memory, command, weights, left = row
    options = dict(re.findall(r"([\w.]+)=(\S+?)[ `]", command))
    kind = options.get("model.quantization") or options.get("model.dtype", "bfloat16")
    needed = memory_of(options["model"], kind) / 2**30
    count, _, size = memory.partition(" x ") if " x " in memory else ("1", "", memory)
    there = USABLE * int(count) * float(re.match(r"\d+", size)[0])
    assert str(Verdict(needed, there)) == "fits"
    assert weights == f"{needed:.1f} GiB"
    assert left == f"{there - needed:.1f} GiB"
    settings = {key.removeprefix("model.") for key in options if key.startswith("model.")}
    assert settings <= set(inspect.signature(load_model).parameters)
    assert (PAGE.parents[1] / "conf" / "model" / f"{options['model']}.yaml").is_file()


def test_every_common_size_of_card_has_a_row_and_nothing_claims_to_have_run():
    named = {row[0].split()[0] for row in rows()}
    assert {"8", "12", "16", "24", "48", "80", "141"} <= named
    assert "None of these has been run on hardware" in PAGE.read_text()
