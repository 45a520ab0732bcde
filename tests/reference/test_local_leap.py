import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_model import Case, Step, cases, decode, plain_steps

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.local_leap import LocalLeap, distance_to

PROBABILITIES = st.one_of(st.floats(0, 1), st.sampled_from([0.25, 0.5, 1.0]))


@given(cases(), PROBABILITIES, PROBABILITIES, st.integers(1, 4))
def test_local_leap_commits_what_the_plain_version_commits(
    case: Case, threshold: float, relaxed: float, radius: int
) -> None:
    def rule(step: Step) -> list[int]:
        anchors = [column for column in step.columns if step.confidence[column] >= threshold]

        def near(column: int) -> bool:
            return any(abs(column - anchor) <= radius for anchor in anchors)

        return anchors + [
            column
            for column in step.columns
            if step.confidence[column] >= relaxed and near(column)
        ]  # fmt: skip

    result = decode(case.table, LocalLeap(threshold, relaxed, radius), case.block_length)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


def test_distances_are_counted_in_columns_and_not_in_slots() -> None:
    index = torch.tensor([[3, 4, 9, 10], [3, 4, -1, -1]])
    marked = torch.tensor([[False, True, False, False], [False, False, False, False]])
    found = distance_to(marked, index)
    assert found[0].tolist() == [1, 0, 5, 6] and int(found[1, :2].min()) > 2**30


@pytest.mark.parametrize(
    ("key", "value"), [("threshold", 1.5), ("relaxed", -0.5), ("radius", 0), ("radius", 1.5)]
)
def test_bad_settings_name_the_key_and_the_value(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} .* got {value}"):
        LocalLeap(**{key: value})
