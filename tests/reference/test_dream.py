import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_model import Case, Step, TableModel, cases, decode, plain_steps

from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import WholeCanvas
from dllm_decode.decoding.types import Request
from dllm_decode.errors import ConfigError
from dllm_decode.strategies.dream import DreamOrigin, DreamSchedule, transfer_shares

STEPS, EPS = st.integers(1, 14), st.sampled_from([1e-3, 1e-2, 0.3])


def share(steps: int, eps: float, step: int) -> torch.Tensor:
    """The share of one step in 32-bit numbers, one operation at a time."""
    grid = torch.linspace(1, eps, steps + 1)
    return torch.tensor(1.0) if step == steps - 1 else 1 - grid[step + 1] / grid[step]


@given(cases(), STEPS, EPS, st.sampled_from(["confidence", "margin", "entropy"]))
def test_dream_counts_and_orders_as_the_plain_version(
    case: Case, steps: int, eps: float, order: str
) -> None:
    def rule(step: Step) -> list[int]:
        scores = {"confidence": step.certainty, "margin": step.margin}.get(
            order, [-value for value in step.entropy]
        )
        masks = torch.tensor(float(len(step.columns)))
        return step.best(int(masks * share(steps, eps, step.step)), scores)

    result = decode(case.table, DreamSchedule(steps, eps, order))
    assert result.step_of == plain_steps(case.table, rule, may_idle=True)
    assert set(result.finish_reasons) == {"length"}


@given(cases(), STEPS, EPS)
def test_origin_commits_each_position_with_the_share_as_probability(
    case: Case, steps: int, eps: float
) -> None:
    def rule(step: Step) -> list[int]:
        level = float(share(steps, eps, step.step))
        return [column for column in step.columns if step.noise[column] < level]

    result = decode(case.table, DreamOrigin(steps, eps))
    assert result.step_of == plain_steps(case.table, rule, may_idle=True)


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_rows_are_counted_one_by_one(steps: int) -> None:
    model = TableModel(torch.randn(3, 12, 4, generator=torch.Generator().manual_seed(steps)))
    decoder = Decoder(model, DreamSchedule(steps), WholeCanvas())
    request = Request(((0,), (1,), (2,)), max_new_tokens=(12, 3, 7))
    together = decoder.decode(request).step_of
    assert list(together) == [decoder.decode(request.take([row])).step_of[0] for row in range(3)]


@given(cases(), STEPS)
def test_a_row_never_takes_more_steps_than_its_budget(case: Case, steps: int) -> None:
    assert max(decode(case.table, DreamOrigin(steps)).forwards) <= steps


def test_positions_are_drawn_in_proportion_to_the_tempered_scores() -> None:
    """One of three positions in each of 800 rows; within 5 standard deviations."""
    rows, temperature = 800, 0.5
    table = torch.tensor([[4.0, 0.0], [1.0, 0.0], [0.0, 0.0]]).expand(rows, 3, 2)
    strategy = DreamSchedule(2, 1e-3, "confidence", temperature)
    first = [row.index(0) for row in decode(table, strategy).step_of if row.count(0) == 1]
    assert len(first) == rows
    confidence = torch.tensor([4.0, 1.0, 0.0]).sigmoid()
    for place, expected in enumerate(torch.softmax(confidence / temperature, 0).tolist()):
        spread = 5 * math.sqrt(expected * (1 - expected) / rows)
        assert abs(first.count(place) / rows - expected) < spread


def test_the_shares_end_with_everything() -> None:
    shares = transfer_shares(5, 0.1)
    assert shares.dtype == torch.float32
    assert shares[-1] == 1.0
    assert (shares > 0).all()


@pytest.mark.parametrize(
    ("make", "key", "got"),
    [
        (lambda: DreamSchedule(steps=0), "steps", "0"),
        (lambda: DreamSchedule(eps=1.0), "eps", "1.0"),
        (lambda: DreamSchedule(order="origin"), "order", "origin"),
        (
            lambda: DreamSchedule(position_temperature=-1.0),
            "position_temperature",
            "-1.0",
        ),
        (lambda: DreamOrigin(steps=True), "steps", "True"),
        (lambda: DreamOrigin(eps=0.0), "eps", "0.0"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(make, key: str, got: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        make()
    assert got in str(caught.value)
