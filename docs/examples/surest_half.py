from dataclasses import dataclass

from dllm_decode import Decision, Strategy
from dllm_decode.decoding.selection import best


@dataclass(frozen=True)
class SurestHalf(Strategy):
    def decide(self, view, memory):
        half = (view.open.sum(1) + 1) // 2
        return Decision(best(view.pred.certainty, view.open, half))
