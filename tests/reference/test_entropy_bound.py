import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_model import Case, Step, cases, decode, plain_steps

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.entropy_bound import EntropyBound

# sums of few coarse entropies never come this close to these bounds by rounding
BOUNDS = st.sampled_from([0.0123, 0.1017, 0.3041, 0.777, 1.9113, 50.0])
ORDERS, UNITS = st.sampled_from(["entropy", "confidence"]), st.sampled_from(["nats", "bits"])


@given(
    cases(), BOUNDS, st.sampled_from(["entropy", "confidence"]), st.sampled_from(["nats", "bits"])
)
def test_the_entropy_bound_commits_what_the_plain_version_commits(
    case: Case, bound: float, order: str, unit: str
) -> None:
    def rule(step: Step) -> list[int]:
        low = [-value for value in step.entropy]
        line = step.best(len(step.columns), low if order == "entropy" else step.certainty)
        nats = bound * (math.log(2) if unit == "bits" else 1.0)
        count = 1
        for size in range(1, len(line) + 1):
            taken = [step.entropy[column] for column in line[:size]]
            if sum(taken) - max(taken) <= nats:
                count = size
        return line[:count]

    result = decode(case.table, EntropyBound(bound, unit, order), case.block_length)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


@given(cases())
def test_a_bound_of_nothing_still_commits_one_and_a_huge_bound_commits_all(case: Case) -> None:
    assert max(decode(case.table, EntropyBound(1e6)).forwards) == 1
    flat = torch.zeros_like(case.table)
    assert set(decode(flat, EntropyBound(0.0)).forwards) == {flat.shape[1]}


def test_a_bound_of_nothing_commits_everything_that_is_certain() -> None:
    certain = torch.tensor([200.0, 0.0]).expand(1, 6, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # all are committed, so their order decides nothing
        assert decode(certain, EntropyBound(0.0)).forwards == (1,)


def test_the_order_of_the_rows_changes_nothing() -> None:
    table = torch.randn(4, 8, 5) * 2
    strategy = EntropyBound(0.5, order="confidence")
    forward = decode(table, strategy, 8).step_of
    assert decode(table.flip(0), strategy, 8).step_of == forward[::-1]


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        ({"bound": -1.0}, "bound must lie in .* nats", "-1.0"),
        ({"bound": -1.0, "unit": "bits"}, "bound must lie in .* bits", "-1.0"),
        ({"unit": "hartleys"}, "unit", "hartleys"),
        ({"order": "margin"}, "order", "margin"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(options: dict, key: str, got: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        EntropyBound(**options)
    assert got in str(caught.value)
