import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_model import Case, Step, cases, decode, plain_steps

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.at_most import AtMost
from dllm_decode.strategies.entropy import EntropyThreshold
from dllm_decode.strategies.threshold import ConfidenceThreshold


@given(cases(), st.integers(1, 4))
def test_the_best_commits_survive_the_cap(case: Case, tokens: int) -> None:
    def rule(step: Step) -> list[int]:
        high = [column for column in step.columns if step.confidence[column] >= 0.4]
        return [column for column in step.best(len(step.columns)) if column in high][:tokens]

    filters = {"at_most": AtMost(tokens)}
    result = decode(case.table, ConfidenceThreshold(0.4), case.block_length, filters=filters)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


@given(cases())
def test_the_cap_ranks_by_the_scores_of_the_selection(case: Case) -> None:
    def rule(step: Step) -> list[int]:
        return step.best(1, [-value for value in step.entropy])

    filters = {"at_most": AtMost(1)}
    result = decode(case.table, EntropyThreshold(9.0), case.block_length, filters=filters)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


def test_a_cap_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokens .* got 0"):
        AtMost(0)
