"""What rules know of a window is the same whichever of its columns a cache predicts or a schedule
leaves out."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from dllm_decode.decoding.cache import CertaintyCache, DelayedCache, DualCache, NoCache
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import AdaptiveBlocks, Blocks, UndecidedColumns
from dllm_decode.decoding.strategy import Pipeline, Strategy
from dllm_decode.decoding.types import Decision, Request
from dllm_decode.errors import CapabilityError
from dllm_decode.strategies.credit import FullCredit
from dllm_decode.strategies.dilated import Dilated
from dllm_decode.strategies.early import Prophet
from dllm_decode.strategies.fixed import FixedSchedule, TopK
from dllm_decode.strategies.hierarchical import Hierarchical
from dllm_decode.strategies.learn2pd import Learn2PD
from dllm_decode.strategies.relaxing import RelaxingThreshold
from dllm_decode.testing import StoringHashDenoiser

LEAVING_OUT = [DelayedCache(every=100), CertaintyCache(top=3, every=100)]
CACHES = [NoCache(), DualCache(), *LEAVING_OUT]
REQUEST = Request(((1, 2), (3, 4, 5), (6,)), (13, 6, 8))


def name(part) -> str:
    return type(part).__name__


def decode(strategy, *, cache=None, schedule=None, request=REQUEST, seed=1, **options):
    model = StoringHashDenoiser(seed=seed)
    schedule, cache = schedule or Blocks(8), cache or NoCache()
    return Decoder(model, strategy, schedule, cache, **options).decode(request)


@dataclass(frozen=True)
class Looking(Strategy):
    """Commits the best position, and notes what the view says of the window beside what is so."""

    length: int
    seen: list = field(default_factory=list)

    def decide(self, view, memory):
        now, begin = view.snapshot, view.snapshot.start
        for row in range(len(now.tokens)):
            if not view.live[row]:
                continue
            first = int(now.first_undecided[row]) - begin
            first = begin + first // self.length * self.length
            end = min(first + self.length, int(now.horizon[row]))
            share = float(now.undecided[row, first:end].sum()) / (end - first)
            told = float(view.mask_ratio[row]), int(view.window_first[row])
            self.seen.append((told, (pytest.approx(share), first)))
        best = view.pred.confidence.masked_fill(~view.open, -1).argmax(1, keepdim=True)
        return Decision(view.open & torch.zeros_like(view.open).scatter(1, best, True))


@pytest.mark.parametrize("cache", CACHES, ids=name)
def test_the_undecided_share_and_the_first_column_are_those_of_the_whole_window(cache):
    rule = Looking(4)
    decode(rule, cache=cache, schedule=Blocks(4))
    assert len(rule.seen) == 13 + 6 + 8
    for told, so in rule.seen:
        assert told == so


@pytest.mark.parametrize("cache", CACHES[:3], ids=name)
def test_an_order_that_no_prediction_changes_is_the_same_with_every_cache(cache):
    assert decode(Dilated(), cache=cache).step_of == decode(Dilated()).step_of


def test_relaxing_commits_what_its_formula_says_where_decided_columns_have_no_prediction():
    class Spy(RelaxingThreshold):
        def decide(self, view, memory):
            decision = super().decide(view, memory)
            window = slice(view.snapshot.start, view.snapshot.start + 8)
            eta = float(view.snapshot.undecided[0, window].sum()) / 8
            level = self.threshold * (1 - self.relief * (1 - eta))
            confidence = view.pred.confidence[0]
            for slot in view.open[0].nonzero()[:, 0].tolist():
                if confidence[slot] >= level:
                    assert bool(decision.commit[0, slot])
            return decision

    decode(Spy(0.75, relief=0.9), cache=DelayedCache(100), request=Request(((1, 2),), 8), seed=3)


@pytest.mark.parametrize("cache", [NoCache(), DelayedCache(every=100)], ids=name)
def test_a_row_stays_in_an_adaptive_block_until_it_is_full(cache):
    for seed in range(10):
        result = decode(
            FixedSchedule(6), cache=cache, schedule=AdaptiveBlocks(12),
            request=Request(((1, 2),), 12), seed=seed,
        )  # fmt: skip
        assert result.forwards == (6,)


@pytest.mark.parametrize("cache", LEAVING_OUT, ids=name)
def test_a_filter_that_reads_decided_columns_is_refused_where_a_cache_predicts_nothing_there(cache):
    message = (
        rf"strategy .*(decided columns|every column) of the window, .* cache \({name(cache)}\)"
    )
    with pytest.raises(CapabilityError, match=message):
        Decoder(StoringHashDenoiser(), Learn2PD(match_model=False), cache=cache)


@pytest.mark.parametrize("schedule", [Blocks(5), UndecidedColumns(5)], ids=name)
def test_a_gap_of_the_hierarchical_rule_is_a_run_of_columns_not_of_slots(schedule):
    class Spy(Hierarchical):
        def decide(self, view, memory):
            decision = super().decide(view, memory)
            confidence, index = view.pred.confidence, view.index
            for row in range(len(index)):
                slots = view.open[row].nonzero()[:, 0].tolist()
                runs: list[list[int]] = []
                for slot in slots:
                    beside = runs and index[row, runs[-1][-1]] + 1 == index[row, slot]
                    runs[-1].append(slot) if beside else runs.append([slot])
                for run in runs:
                    top = max(run, key=lambda slot: float(view.pred.certainty[row, slot]))
                    assert bool(decision.commit[row, top]) or not confidence[row, top] > 0.2
            return decision

    for seed in range(5):
        decode(Spy(0.9, 0.2), schedule=schedule, seed=seed)


def test_an_answer_that_a_row_has_no_columns_for_never_closes_it():
    rule = Pipeline(TopK(1), stop={"early": Prophet(begin_column=6, levels=(50, 50, 50))})
    result = decode(rule, request=Request(((1, 2), (1, 2)), (6, 8)))
    assert result.forwards[0] == 6


def test_credit_of_every_token_outlives_a_probability_too_small_for_float32():
    model = StoringHashDenoiser(seed=1, added={3: 200.0})
    seen = []

    class Spy(FullCredit):
        def adjust(self, view, memory):
            memory.values[:, :, 4] = 0.5
            adjusted = super().adjust(view, memory)
            seen.append(memory.read(view)[0, :, 4][view.open[0]])
            return adjusted

    rule = Pipeline(TopK(1), {"credit": Spy(beta=1.0, gamma=1.0)})
    Decoder(model, rule).decode(Request(((1, 2),), 4))
    assert len(seen) == 4
    for kept in seen[1:]:  # in the first step the window is new
        assert (kept == 0.5).all()
