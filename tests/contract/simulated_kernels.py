"""Decodes with the Triton programs on a simulated GPU, under the interpreter.

`test_on_a_simulated_gpu.py` runs this in a subprocess: the interpreter is chosen when the kernels
are imported.
"""

from collections import Counter

import pytest
from drawing import number
from test_on_a_simulated_gpu import PAIRS, check, composed, decoder_of
from test_strategies import fits

import dllm_decode.models.adapter as adapter
from dllm_decode.kernels import fused

PROGRAMS = ("scan_rows", "finish_rows", "credit_rows", "select_rows", "scan_head", "gather_head")


@pytest.fixture(autouse=True)
def every_head(monkeypatch):
    """Float32 heads too, whose tokens can be compared with the processor's."""
    assert fused.INTERPRETED

    def obstacle(model, vocabulary):
        return "it has hooks" if model.lm_head._forward_pre_hooks else ""

    monkeypatch.setattr(adapter, "head_obstacle", obstacle)


def decoded(name, cache="none", sampler="greedy", devices=1):
    strategy = composed(name, stop="eot" if fits(name, "eot") else "never")
    decoder = decoder_of(strategy, cache, sampler)
    return [] if decoder is None else check(decoder, devices, programs=PROGRAMS)


def test_a_greedy_credit_decode_is_five_programs_from_the_head_to_the_selection():
    steps = decoded("credit")
    assert steps
    for step in steps:
        programs = Counter({name: n for name, n in step.items() if name in PROGRAMS})
        assert programs == Counter(name for name in PROGRAMS if name != "scan_rows")


def test_a_draw_is_one_read_with_the_statistics():
    steps = decoded("threshold", sampler="categorical")
    assert steps and all(step["scan_rows"] == 1 for step in steps)


@pytest.mark.parametrize("place", range(0, len(PAIRS), 8))
def test_every_strategy_with_every_cache_and_every_sampler_decodes_there_as_here(place):
    chosen = PAIRS[place : place + 8]
    # one program takes seconds under the interpreter: of eight, another one each time
    for case in chosen if number(0, 1) else chosen[place // 8 % len(chosen) :][:1]:
        decoded(*case)


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_two_devices_decode_as_the_processor(cache):
    assert decoded("credit", cache, devices=2)
