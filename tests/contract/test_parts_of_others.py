"""A part of each kind that somebody else might write keeps the contract."""

from outside_decoding.rules import (
    Corrects,
    Deep,
    Doubts,
    Drafts,
    Enough,
    LeavesOut,
    LooksAhead,
)

from dllm_decode import Pipeline
from dllm_decode.strategies.fixed import TopK
from dllm_decode.testing import StrategyContract


class TestRulesThatRevise(StrategyContract):
    def strategies(self):
        return [Corrects(), Doubts(), Corrects(times=1)]


class TestRulesThatProbe(StrategyContract):
    def strategies(self):
        return [LooksAhead(), LeavesOut()]

    probing = strategies


class TestRulesThatLookInside(StrategyContract):
    def strategies(self):
        return [Deep(), Drafts(), Pipeline(TopK(1), stop={"enough": Enough()})]
