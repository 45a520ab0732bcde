import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_model import Case, Step, cases, decode, plain_steps

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.dream_threshold import ScheduledThreshold


@given(cases(), st.floats(0, 1), st.integers(1, 6))
def test_rejected_positions_are_owed_to_later_steps(
    case: Case, threshold: float, per_step: int
) -> None:
    owed = [0]

    def rule(step: Step) -> list[int]:
        if step.in_block == 0:
            owed[0] = 0
        planned = min(per_step, max(step.opened - step.in_block * per_step, 0))
        candidates = step.best(planned + owed[0])
        taken = [
            column
            for place, column in enumerate(candidates)
            if place == 0 or step.confidence[column] >= threshold
        ]
        owed[0] = len(candidates) - len(taken)
        return taken

    strategy = ScheduledThreshold(threshold, per_step)
    result = decode(case.table, strategy, case.block_length)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


@given(cases(), st.floats(0, 1), st.integers(1, 6))
def test_no_step_is_ahead_of_the_schedule(case: Case, threshold: float, per_step: int) -> None:
    for row in decode(case.table, ScheduledThreshold(threshold, per_step)).step_of:
        for step in range(len(row)):
            done = sum(1 for committed in row if committed <= step)
            assert done <= (step + 1) * per_step


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        ({"threshold": 2.0}, "threshold", "2.0"),
        ({"tokens_per_step": 0}, "tokens_per_step", "0"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(options: dict, key: str, got: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        ScheduledThreshold(**options)
    assert got in str(caught.value)
