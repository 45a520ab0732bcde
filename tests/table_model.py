"""A model whose logits stand in a table, and a plain-Python decode to compare strategies with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.schedule import Blocks, WholeCanvas
from dllm_decode.decoding.strategy import Filter, Pipeline, Strategy, Transform
from dllm_decode.decoding.types import Request, Vocab
from dllm_decode.kernels.noise import Noise


class TableModel:
    """Predicts table[row, column] whatever stands on the canvas; the prompt is the row number.

    table: (N, G, V) logits of ordinary tokens. The ids behind them are never predicted, the last
    one is the mask.
    """

    max_length = None
    device = torch.device("cpu")

    def __init__(self, table: Tensor, eot_ids: tuple[int, ...] = ()) -> None:
        rows, columns, ordinary = table.shape
        size = max(rows, ordinary) + 1
        self.table = torch.full((rows, columns, size), float("-inf"), dtype=table.dtype)
        self.table[..., :ordinary] = table
        self.vocab = Vocab(size=size, mask_id=size - 1, eot_ids=eot_ids)

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        columns = (index - 1).clamp(min=0)
        return self.table[tokens[:, :1], columns]

    def request(self, **options: object) -> Request:
        """All rows of the table, full length."""
        rows, columns, _ = self.table.shape
        prompts = tuple((row,) for row in range(rows))
        return Request(prompts, max_new_tokens=columns, **options)  # type: ignore[arg-type]


def decode(
    table: Tensor,
    strategy: Strategy,
    block_length: int | None = None,
    *,
    transforms: dict[str, Transform] | None = None,
    filters: dict[str, Filter] | None = None,
    eot_ids: tuple[int, ...] = (),
) -> Result:
    """Decode every row of a table; block_length None opens the whole canvas."""
    model = TableModel(table, eot_ids)
    schedule = WholeCanvas() if block_length is None else Blocks(block_length)
    pipeline = Pipeline(strategy, transforms or {}, filters or {})
    return Decoder(model, pipeline, schedule, record=True).decode(model.request())


@dataclass
class Step:
    """What a rule knows in plain numbers: open columns and per-column statistics of one row.

    Confidences are held against thresholds; columns are ranked by certainty and margin, which are
    minus odds.
    """

    columns: list[int]
    confidence: list[float]
    certainty: list[float]
    margin: list[float]
    entropy: list[float]
    noise: list[float]
    opened: int
    in_block: int
    step: int

    def best(self, count: int, scores: list[float] | None = None) -> list[int]:
        """The `count` open columns with the largest scores, lower ones first on ties."""
        scores = self.certainty if scores is None else scores
        return sorted(self.columns, key=lambda column: (-scores[column], column))[:count]


Rule = Callable[[Step], Iterable[int]]


def plain_steps(
    table: Tensor,
    rule: Rule,
    block_length: int | None = None,
    *,
    forced: Callable[[Step], list[float]] = lambda step: step.certainty,
    may_idle: bool = False,
) -> tuple[tuple[int, ...], ...]:
    """The step at which each column is committed, row by row, in plain Python.

    forced: scores of the column that is taken where the rule takes none; may_idle: such a step
    commits nothing instead.
    """
    pred = Prediction.of(table)
    columns = table.shape[1]
    length = columns if block_length is None else block_length
    rows = []
    for row in range(table.shape[0]):
        step_of = [-1] * columns
        step = 0
        for begin in range(0, columns, length):
            block = range(begin, min(begin + length, columns))
            in_block = 0
            while any(step_of[column] < 0 for column in block):
                noise = Noise(
                    torch.tensor([row]), torch.tensor([step]), torch.arange(columns)[None]
                )
                now = Step(
                    columns=[column for column in block if step_of[column] < 0],
                    confidence=pred.confidence[row].tolist(),
                    certainty=pred.certainty[row].tolist(),
                    margin=pred.margin_certainty[row].tolist(),
                    entropy=pred.entropy[row].tolist(),
                    noise=noise.uniform()[0].tolist(),
                    opened=len(block),
                    in_block=in_block,
                    step=step,
                )
                chosen = set(rule(now))
                if not chosen and not may_idle:
                    chosen = set(now.best(1, forced(now)))
                for column in chosen:
                    step_of[column] = step
                step += 1
                in_block += 1
        rows.append(tuple(step_of))
    return tuple(rows)


@dataclass(frozen=True)
class Case:
    """A drawn table and block length."""

    table: Tensor = field(repr=False)
    block_length: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Tables of 1 to 3 rows; coarse logits, so that equal confidences are frequent."""
    rows, columns, ordinary = (draw(st.integers(*span)) for span in ((1, 3), (1, 10), (2, 4)))
    values = st.integers(-2, 6).map(lambda number: number * 0.75)
    table = draw(
        st.lists(values, min_size=rows * columns * ordinary, max_size=rows * columns * ordinary)
    )
    return Case(
        torch.tensor(table).reshape(rows, columns, ordinary),
        draw(st.integers(1, columns)),
    )
