"""How many operators a step launches outside the forward pass: what nobody reads is not computed.

Each is a launch on a GPU, and most of a step's time on a processor. Views are counted as well.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from dllm_decode.decoding.cache import (
    CertaintyCache,
    DelayedCache,
    DualCache,
    NoCache,
    PeriodicCache,
    PrefixCache,
    VicinityCache,
)
from dllm_decode.decoding.loop import Decoder, Run
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.eot import CommittedEot
from dllm_decode.strategies.freedave import FreeDave
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.testing import StoringHashDenoiser


class Operators(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen[str(function)] += 1
        return function(*args, **(kwargs or {}))


class Uncounted(StoringHashDenoiser):
    """A model whose own operators are not counted."""

    def __call__(self, *given):
        with _disable_current_modes():
            return super().__call__(*given)


def steady_steps(strategy, cache=NoCache(), **more):  # noqa: B008
    """The operators of each step in which no row left, nor in the one before."""
    run = Run(Decoder(Uncounted(), strategy, Blocks(8), cache, **more), Request(((1, 2), (3,)), 8))
    run.admit([0, 1])
    steps, before = [], ()
    while run.live:
        steady, before = run.live == before, run.live
        with Operators() as operators:
            run.step()
        if steady and run.live == before:
            steps.append(operators.seen)
    return steps


def threshold(transforms=None):
    return Pipeline(ConfidenceThreshold(0.99), transforms or {}, stop={"eot": CommittedEot()})


BUDGETS = {
    "threshold": (threshold(), NoCache(), 80),
    "credit": (threshold({"credit": TraceCredit()}), NoCache(), 162),
    "dual": (threshold(), DualCache(), 112),
    "prefix": (threshold(), PrefixCache(), 111),
    "vicinity": (threshold(), VicinityCache(2, 2, 1), 122),
    "periodic": (threshold(), PeriodicCache(3), 121),
    "delayed": (threshold(), DelayedCache(3), 115),
    "certainty": (threshold(), CertaintyCache(top=4, every=3), 140),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_a_step_launches_no_more_operators_than_it_may(name):
    strategy, cache, most = BUDGETS[name]
    steps = steady_steps(strategy, cache)
    assert len(steps) >= 3
    assert max(step.total() for step in steps) <= most, steps[0].most_common()


def test_which_rows_a_probe_has_told_about_comes_with_the_sync():
    strategy = FreeDave(ConfidenceThreshold(0.99), drafts=2)
    decoder = Decoder(Uncounted(), strategy, Blocks(8))
    run, looks = decoder.begin(Request(((1, 2), (3,)), 8)), []
    run.admit([0, 1])
    while run.live:
        told = run.batch.next.carried is not None and bool(run.batch.next.carried.rows.any())
        with Operators() as operators:
            run.step()
        looks.append((told, operators.seen["aten.nonzero.default"]))
    assert any(told for told, _ in looks)
    assert {count for _, count in looks} <= {0, 1}  # which rows ask for the probe


@pytest.mark.parametrize("record", [False, True])
def test_what_is_traced_is_computed_for_the_trace_alone(record):
    fewest = min(step.total() for step in steady_steps(threshold(), record=record))
    plain = min(step.total() for step in steady_steps(threshold()))
    assert (fewest > plain) == record


def test_the_counter_counts_what_is_launched_and_nothing_of_the_model():
    with Operators() as operators:
        values = torch.arange(4) + 1
        with _disable_current_modes():
            _ = values * 2
    assert operators.seen == {"aten.arange.default": 1, "aten.add.Tensor": 1}
