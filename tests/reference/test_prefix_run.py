from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_model import Case, Step, TableModel, cases, decode, plain_steps

from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import WholeCanvas
from dllm_decode.errors import ConfigError
from dllm_decode.strategies.prefix_run import PrefixRun

PROBABILITIES = st.one_of(st.floats(0, 1), st.sampled_from([0.25, 0.5, 1.0]))


@given(cases(), PROBABILITIES)
def test_the_prefix_run_commits_what_the_plain_version_commits(
    case: Case, threshold: float
) -> None:
    def rule(step: Step) -> list[int]:
        sure = takewhile(lambda column: step.confidence[column] >= threshold, step.columns)
        return list(sure) or step.columns[:1]

    result = decode(case.table, PrefixRun(threshold), case.block_length)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)
    assert all(list(steps) == sorted(steps) for steps in result.step_of)


@given(cases())
def test_tokens_given_in_advance_do_not_end_a_run(case: Case) -> None:
    model = TableModel(case.table)
    request = model.request(fixed=({0: 0},) * len(case.table))
    result = Decoder(model, PrefixRun(0.0), WholeCanvas()).decode(request)
    assert max(result.forwards) <= 1


@pytest.mark.parametrize("threshold", [-0.5, 1.5])
def test_a_bad_threshold_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match=rf"^threshold .* got {threshold}"):
        PrefixRun(threshold)
