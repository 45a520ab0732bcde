import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_model import Case, Step, TableModel, cases, decode, plain_steps
from torch import Tensor

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import WholeCanvas
from dllm_decode.errors import ConfigError
from dllm_decode.strategies.ccd import ReleasedCCD
from dllm_decode.strategies.fixed import TopK


class Plain:
    """The rule for one row, with lists for memory; proposals of a table never change."""

    def __init__(self, columns: int, ratio: float, warm: int, seek: bool) -> None:
        self.columns, self.ratio, self.warm, self.seek = columns, ratio, warm, seek

    def __call__(self, step: Step) -> list[int]:
        if step.step == 0:
            self.width, self.runners = 1, []
        if len(step.columns) <= 0.1 * self.columns:
            self.width = 1
        grown = min(self.width + 1, 1 + int(self.ratio))
        self.width = 1 if step.step < self.warm - 1 else grown
        line = step.best(len(step.columns), [-value for value in step.entropy])
        matched = [column for column in line[: self.width] if column in self.runners]
        taken = line[:1]
        if step.step >= self.warm and line[0] in self.runners and matched:
            taken = matched if self.seek else matched[:1]
        self.runners = [column for column in line if column not in taken][: self.width]
        return taken


class Flipping(TableModel):
    """Swaps its first two tokens in every other pass."""

    passes = 0

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        self.passes += 1
        logits = super().__call__(tokens, live, index, plan)
        ids = torch.arange(logits.shape[-1])
        ids[:2] = torch.tensor([1, 0]) if self.passes % 2 else torch.tensor([0, 1])
        return logits[..., ids]


@given(cases(), st.sampled_from([0.0, 1.5, 2.0, 4.0]), st.integers(1, 6), st.booleans())
def test_ccd_commits_what_the_plain_version_commits(
    case: Case, ratio: float, warm: int, seek: bool
) -> None:
    result = decode(case.table, ReleasedCCD(ratio, warm, seek))
    assert result.step_of == plain_steps(case.table, Plain(case.table.shape[1], ratio, warm, seek))


def test_a_position_whose_proposal_flipped_waits() -> None:
    table = torch.zeros(1, 12, 3)
    table[..., 0] = torch.linspace(6, 3, 12)
    forwards = []
    for model in (TableModel(table), Flipping(table)):
        decoder = Decoder(model, ReleasedCCD(warm_up_steps=1), WholeCanvas())
        forwards.append(decoder.decode(model.request()).forwards[0])
    assert forwards[0] < 12
    assert forwards[1] == 12


@given(cases())
def test_without_candidates_it_is_one_token_per_step(case: Case) -> None:
    alone = decode(case.table, ReleasedCCD(expand_ratio=0.0)).step_of
    assert alone == decode(case.table, TopK(1, "entropy")).step_of


@given(cases())
def test_the_uniform_budget_commits_one_token_per_step(case: Case) -> None:
    result = decode(case.table, ReleasedCCD(seek=False, warm_up_steps=1))
    assert set(result.forwards) == {case.table.shape[1]}


@given(cases())
def test_rows_do_not_see_each_other(case: Case) -> None:
    strategy = ReleasedCCD(warm_up_steps=1)
    together = decode(case.table, strategy).step_of
    alone = [decode(case.table[row : row + 1], strategy).step_of[0] for row in range(len(together))]
    assert list(together) == alone


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        ({"expand_ratio": -1.0}, "expand_ratio", "-1.0"),
        ({"warm_up_steps": 0}, "warm_up_steps", "0"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(options: dict, key: str, got: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        ReleasedCCD(**options)
    assert got in str(caught.value)
