from dataclasses import dataclass

import torch

from dllm_decode import Decision, Revisions, Strategy
from dllm_decode.decoding.selection import best


@dataclass(frozen=True)
class SecondLook(Strategy):
    doubt: float = 0.2
    times: int = 2
    revises = True  # it writes over settled tokens
    revocable = True  # and opens some again
    needs_window = True  # it reads predictions where tokens stand

    @property
    def progress(self):
        return Revisions(self.times)  # per column, so that every decode ends

    def decide(self, view, memory):
        other = view.settled & (view.pred.token != view.tokens)
        sure = other & (view.pred.confidence > 0.9)
        own = view.pred.prob_of(view.tokens[..., None])[..., 0]
        opened = other & ~sure & (own < self.doubt)
        return Decision(best(view.pred.certainty, view.open, 2) | sure, remask=opened)

    def lingers(self, snapshot, view, change, memory):
        return torch.ones_like(view.live)  # once more, while the last step changed something
