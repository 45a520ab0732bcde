"""Rows of like width share a pass: the cheapest division, and rows that know nothing of it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache as remember
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode import load
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request
from dllm_decode.models import load_model
from dllm_decode.models.adapter import TransformersDenoiser
from dllm_decode.models.grouping import PassCost
from dllm_decode.strategies.eot import CommittedEot
from dllm_decode.strategies.threshold import ConfidenceThreshold

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"
OPTIONS = {"llada": {"body": "lean"}, "dream": {}, "llada2": {"mask_id": 213, "block_length": 8}}
PROMPTS = tuple(tuple(range(1, n + 1)) for n in (3, 17, 1, 9, 24, 5, 12))
REQUEST = Request(PROMPTS, (20, 9, 24, 3, 31, 16, 8))


@remember
def denoiser(family):
    folder = str(GOLDEN / family)
    return load_model(folder, device="cpu", dtype="float32", **OPTIONS[family]).denoiser


def cost_of(groups, widths, cost):
    def row(width):
        return width * (1 + cost.bend * width)

    return sum(cost.fixed + len(g) * row(max(widths[n] for n in g)) for g in groups)


def divisions(rows):
    """All ways to cut a list into runs."""
    if not rows:
        yield []
    for size in range(1, len(rows) + 1):
        for rest in divisions(rows[size:]):
            yield [rows[:size], *rest]


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=7),
    st.sampled_from([0.0, 5.0, 40.0, 400.0]),
    st.sampled_from([0.0, 0.01]),
)
def test_no_division_of_the_rows_is_cheaper(widths, fixed, bend):
    cost = PassCost(fixed, bend)
    found = cost.groups(tuple(widths))
    assert sorted(row for group in found for row in group) == list(range(len(widths)))
    order = sorted(range(len(widths)), key=lambda row: -widths[row])
    cheapest = min(cost_of(groups, widths, cost) for groups in divisions(order))
    assert cost_of(found, widths, cost) <= cheapest * (1 + 1e-9)


def test_a_larger_model_divides_rows_that_a_small_one_keeps_together():
    """What a pass costs however little it holds is less of a large model's column."""
    costs = [PassCost.of(denoiser(family).model) for family in ("llada", "llada2")]
    assert all(cost.fixed > 0 and cost.bend > 0 for cost in costs)
    bundled = PassCost.of(load_model("bundled:llada-tiny", body="lean").denoiser.model)
    assert bundled.fixed < costs[0].fixed
    widths = (60, 40, 42, 58, 44, 62)
    assert (len(bundled.groups(widths)), len(costs[0].groups(widths))) == (2, 1)


def grouped(family, monkeypatch):
    """A model that gives each width a pass of its own; `widths` are those of its passes."""
    monkeypatch.setattr(PassCost, "of", lambda model: PassCost(0.0, 0.0))
    model, widths = replace(denoiser(family)), []
    forward = TransformersDenoiser._forward

    def noted(self, tokens, *others):
        widths.append(tokens.shape)
        return forward(self, tokens, *others)

    monkeypatch.setattr(TransformersDenoiser, "_forward", noted)
    return model, widths


@pytest.mark.one_in(3)
@pytest.mark.parametrize("family", OPTIONS)
def test_rows_decode_in_groups_as_they_do_alone_whoever_joins_or_leaves(family, monkeypatch):
    strategy = Pipeline(ConfidenceThreshold(0.3), stop={"eot": CommittedEot()})
    alone = Decoder(denoiser(family), strategy, Blocks(8))
    expected = [alone.decode(REQUEST.take([row])).rows[0] for row in range(REQUEST.rows)]
    model, shapes = grouped(family, monkeypatch)
    decoder = Decoder(model, strategy, Blocks(8))
    for engine in (Engine(decoder, 7), Engine(decoder, 3), Engine(decoder, 4, batching="static")):
        result = engine.decode(REQUEST)
        assert result.errors == ("",) * REQUEST.rows
        for ours, own in zip(result.rows, expected, strict=True):
            assert (ours.tokens, ours.forwards) == (own.tokens, own.forwards)
    assert len({width for rows, width in shapes if rows < 3}) > 5  # groups, of several widths


def test_a_pass_computes_the_columns_of_its_rows_and_no_padding(monkeypatch):
    model, shapes = grouped("llada", monkeypatch)
    run = Decoder(model, Pipeline(ConfidenceThreshold(0.99)), Blocks(8)).begin(REQUEST)
    run.admit(range(REQUEST.rows))
    run.step()
    live = sum(map(len, PROMPTS)) + sum(REQUEST.lengths)
    assert sum(rows * width for rows, width in shapes) == live


def test_where_the_host_does_not_know_the_widths_it_does_not_ask(monkeypatch):
    model, shapes = grouped("llada", monkeypatch)
    decoder = Decoder(model, Pipeline(ConfidenceThreshold(0.99)), Blocks(8), sync_every=2)
    run = decoder.begin(REQUEST)
    run.admit(range(REQUEST.rows))
    run.step()
    first, shapes[:] = list(shapes), []
    run.step()
    assert len(first) > 1 == len(shapes)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", ["freedave", "wino", "core", "adjust"])
def test_probes_and_drafts_are_grouped_by_the_rows_that_ask(name, monkeypatch):
    # a probe is of some of the rows, or of all of them several times over
    monkeypatch.setattr(PassCost, "of", lambda model: PassCost(0.0, 0.0))
    decoder = load("llada", name)
    prompts = ["Copy: 1 Ada 2 Ben", "Sort: 1 Eva 2 Ben 3 Cleo 4 Ada", "Copy: 1 Ada"]
    lengths = [8, 48, 24]
    together = decoder.generate(prompts, max_new_tokens=lengths)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        alone = decoder.generate(prompt, max_new_tokens=length, seed=row).rows[0]
        ours = together.rows[row]
        assert (ours.tokens, ours.forwards) == (alone.tokens, alone.forwards)
