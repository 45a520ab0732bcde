from dataclasses import dataclass

from dllm_decode import ColumnMemory, Decision, Strategy


@dataclass(frozen=True)
class SaidTwice(Strategy):
    threshold: float = 0.5
    needs_window = True  # proposals are compared over two steps, so no cache may leave some out

    def begin(self, request, snapshot):
        return ColumnMemory.of(snapshot, -1)

    def decide(self, view, memory):
        same = memory.read(view) == view.pred.token
        memory.write(view, view.pred.token)
        return Decision(view.open & same & (view.pred.confidence >= self.threshold))
