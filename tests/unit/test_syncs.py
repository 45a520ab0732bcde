"""How often the host waits for the device: once per step, whatever the cache and the padding."""

import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dllm_decode.decoding.cache import (
    BlockExact,
    CertaintyCache,
    DelayedCache,
    DualCache,
    NoCache,
    PeriodicCache,
    PrefixCache,
    VicinityCache,
)
from dllm_decode.decoding.loop import Decoder, Run
from dllm_decode.decoding.sampling import Categorical, Greedy
from dllm_decode.decoding.schedule import AdaptiveBlocks, Blocks, UndecidedColumns
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request
from dllm_decode.models import load_model
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.dilated import Dilated, Spaced
from dllm_decode.strategies.entropy_bound import EntropyBound
from dllm_decode.strategies.eot import CommittedEot
from dllm_decode.strategies.factor import Factor
from dllm_decode.strategies.history_stable import HistoryStable
from dllm_decode.strategies.klass import Klass
from dllm_decode.strategies.local_leap import LocalLeap
from dllm_decode.strategies.prefix_run import PrefixRun
from dllm_decode.strategies.relaxing import RelaxingThreshold
from dllm_decode.strategies.slowfast import SlowFast
from dllm_decode.strategies.threshold import ConfidenceThreshold

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"
WAITS = {
    Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__,
    Tensor.nonzero, torch.nonzero, torch.equal, Tensor.equal, Tensor.cpu, Tensor.numpy,
    Tensor.masked_select, torch.masked_select, torch.unique, Tensor.unique,
}  # fmt: skip


class Looks(TorchFunctionMode):
    """Notes every call for which the host would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in WAITS or self.uploads(function, kwargs) or self.selects(function, args):
            caller = traceback.extract_stack(limit=2)[0]
            name = getattr(function, "__name__", str(function))
            self.seen.append(f"{name} at {Path(caller.filename).name}:{caller.lineno}")
        return function(*args, **kwargs)

    def uploads(self, function, kwargs) -> bool:
        return function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None

    def selects(self, function, args) -> bool:
        if function not in (Tensor.__getitem__, Tensor.__setitem__):
            return False
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in index)


def decoder(family, cache, strategy, sampler):
    net = load_model(str(GOLDEN / family), device="cpu").denoiser
    # a mixture of experts looks for itself, in transformers
    net = replace(net, block_length=8) if isinstance(cache, BlockExact) else net
    return Decoder(net, strategy, Blocks(8), cache, sampler)


CREDIT = Pipeline(ConfidenceThreshold(0.6), {"credit": TraceCredit()}, stop={"eot": CommittedEot()})
CASES = [
    *(("llada", cache, CREDIT, Greedy()) for cache in (
        NoCache(), PrefixCache(), DualCache(), VicinityCache(), PeriodicCache(3), DelayedCache(3),
    )),
    ("llada", CertaintyCache(top=2), Pipeline(EntropyBound()), Categorical(0.5)),
    ("dream", DualCache(), Pipeline(Factor()), Greedy()),
    ("llada", BlockExact(8), CREDIT, Categorical(0.5)),
]  # fmt: skip


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("family", "cache", "strategy", "sampler"),
    CASES,
    ids=[f"{c[0]}-{type(c[1]).__name__}" for c in CASES],
)
def test_a_step_looks_at_the_device_once_and_fetches_rows_that_leave_in_one_go(
    family, cache, strategy, sampler
):
    request = Request(((1, 2, 3), (4,), (5, 6)), (20, 9, 17), parameters=(None, None, None))
    run = Run(decoder(family, cache, strategy, sampler), request)
    run.admit(range(3))
    run.step()  # constants are uploaded once
    while run.live:
        before = len(run.live)
        with Looks() as looks:
            run.step()
        allowed = 1 if len(run.live) == before else 2
        assert len(looks.seen) <= allowed, looks.seen


SPACED = Pipeline(ConfidenceThreshold(0.6), filters={"spaced": Spaced()})
RULES = [
    *(Klass(0.2, 0.5, 1, 4), HistoryStable(), Dilated(), SlowFast(), LocalLeap(), PrefixRun()),
    *(RelaxingThreshold(), SPACED),
]
WINDOWS = [UndecidedColumns(8), AdaptiveBlocks(8, delimiters=(3, 5))]


def test_no_rule_and_no_window_makes_the_host_wait_for_the_device():
    own = decoder("llada", NoCache(), CREDIT, Greedy())
    parts = [*((rule, own.schedule) for rule in RULES), *((CREDIT, window) for window in WINDOWS)]
    for rule, schedule in parts:
        request = Request(((1, 2, 3), (4,)), (20, 20))
        run = Run(Decoder(own.denoiser, rule, schedule, sync_every=9), request)
        run.admit(range(2))
        run.step()  # constants are uploaded once
        with Looks() as looks:
            run.step()
        assert not looks.seen, (rule, schedule, looks.seen)


def test_looking_every_few_steps_leaves_the_steps_between_without_any():
    request = Request(((1, 2, 3), (4,)), (20, 9))
    own = decoder("llada", NoCache(), CREDIT, Greedy())
    run = Run(Decoder(own.denoiser, own.strategy, own.schedule, sync_every=3), request)
    run.admit(range(2))
    for _ in range(3):
        run.step()
    counts = []
    for _ in range(3):
        with Looks() as looks:
            run.step()
        counts.append(len(looks.seen))
    assert counts[:2] == [0, 0] and counts[2] >= 1


def test_the_counter_notices_what_makes_the_host_wait():
    values = torch.arange(3)
    for wait in (
        lambda: bool(values.all()),
        lambda: int(values.max()),
        lambda: values[values > 1],
        lambda: values.nonzero(),
        lambda: values.tolist(),
        lambda: torch.tensor([1], device="cpu"),
    ):
        with Looks() as looks:
            wait()
        assert len(looks.seen) == 1
