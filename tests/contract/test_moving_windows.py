"""What holds for every strategy holds under the schedules that choose their window as they go."""

from collections.abc import Sequence

from dllm_decode import Pipeline
from dllm_decode.decoding.schedule import AdaptiveBlocks, Schedule, UndecidedColumns
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Request
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.history_stable import HistoryStable
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.testing import Case, StrategyContract


class TestUnderMovingWindows(StrategyContract):
    def strategies(self) -> Sequence[Strategy]:
        return [
            ConfidenceThreshold(0.4),
            Pipeline(ConfidenceThreshold(0.4), {"credit": TraceCredit()}),
            HistoryStable(0.6, 0.3),
        ]

    def schedule(self, case: Case, strategy: Strategy, request: Request) -> Schedule:
        if case.schedule == "sliding":
            return UndecidedColumns(case.width)
        return AdaptiveBlocks(case.width, 0.1, 0.7, delimiters=(1, 4))
