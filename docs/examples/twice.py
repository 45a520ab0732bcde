from dataclasses import dataclass

import torch

from dllm_decode import Decision, Memory, Strategy


@dataclass
class LastProposals(Memory):
    token: torch.Tensor  # (B, L + 1) by canvas column; the last one is for empty slots


@dataclass(frozen=True)
class SaidTwice(Strategy):
    threshold: float = 0.5
    needs_window = True  # proposals are compared over two steps, so no cache may leave some out

    def begin(self, request, snapshot):
        rows, columns = snapshot.tokens.shape
        return LastProposals(snapshot.tokens.new_full((rows, columns + 1), -1))

    def decide(self, view, memory):
        column = torch.where(view.index >= 0, view.index, memory.token.shape[1] - 1)
        same = memory.token.gather(1, column) == view.pred.token
        memory.token = memory.token.scatter(1, column, view.pred.token)
        return Decision(view.open & same & (view.pred.confidence >= self.threshold))
