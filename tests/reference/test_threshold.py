import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_model import Case, Step, cases, decode, plain_steps

from dllm_decode.decoding.prediction import Prediction
from dllm_decode.errors import ConfigError
from dllm_decode.strategies.threshold import ConfidenceThreshold


@st.composite
def cases_and_thresholds(draw: st.DrawFn) -> tuple[Case, float]:
    """Half of the thresholds equal a confidence of the table exactly."""
    case = draw(cases())
    present = Prediction.of(case.table).confidence.flatten().tolist()
    return case, min(1.0, draw(st.one_of(st.floats(0, 1), st.sampled_from(present))))


@given(cases_and_thresholds(), st.booleans(), st.integers(1, 4), st.none() | st.integers(1, 6))
def test_the_threshold_commits_what_the_plain_version_commits(
    drawn: tuple[Case, float], strict: bool, at_least: int, steps: int | None
) -> None:
    case, threshold = drawn

    def rule(step: Step) -> set[int]:
        least = at_least
        if steps is not None:
            extra = 1 if step.in_block < step.opened % steps else 0
            least = max(least, step.opened // steps + extra)
        high = {
            column
            for column in step.columns
            if step.confidence[column] > threshold
            or (step.confidence[column] == threshold and not strict)
        }
        return high if len(high) >= least else set(step.best(least))

    strategy = ConfidenceThreshold(threshold, strict, at_least, steps)
    result = decode(case.table, strategy, case.block_length)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


@given(cases_and_thresholds(), st.sampled_from([0.0, 1e-5, 0.1]))
def test_slack_lowers_the_threshold_to_just_below_the_best(
    drawn: tuple[Case, float], slack: float
) -> None:
    case, threshold = drawn

    def rule(step: Step) -> list[int]:
        top = max(step.confidence[column] for column in step.columns)
        bar = min(threshold, float(torch.tensor(top) - slack))
        return [column for column in step.columns if step.confidence[column] >= bar]

    strategy = ConfidenceThreshold(threshold, tie_slack=slack)
    result = decode(case.table, strategy, case.block_length)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


def test_positions_that_tie_with_the_best_go_alone_or_together() -> None:
    table = torch.zeros(1, 4, 3)
    assert decode(table, ConfidenceThreshold(0.9), 4).forwards == (4,)
    assert decode(table, ConfidenceThreshold(0.9, tie_slack=1e-5), 4).forwards == (1,)
    assert decode(table, ConfidenceThreshold(0.9, tie_slack=0.0), 4).forwards == (1,)


def test_a_confidence_equal_to_the_threshold_passes_unless_strict() -> None:
    table = torch.zeros(1, 4, 2)
    assert decode(table, ConfidenceThreshold(0.5), 4).forwards == (1,)
    assert decode(table, ConfidenceThreshold(0.5, strict=True), 4).forwards == (4,)


@given(cases_and_thresholds(), st.integers(1, 6))
def test_a_schedule_bounds_the_steps_of_a_block(drawn: tuple[Case, float], steps: int) -> None:
    case, threshold = drawn
    result = decode(case.table, ConfidenceThreshold(threshold, steps_per_block=steps))
    assert max(result.forwards) <= steps


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        ({"threshold": 1.1}, "threshold", "1.1"),
        ({"threshold": float("nan")}, "threshold", "nan"),
        ({"threshold": "0.9"}, "threshold", "'0.9'"),
        ({"at_least": 0}, "at_least", "0"),
        ({"steps_per_block": 0}, "steps_per_block", "0"),
        ({"tie_slack": -0.1}, "tie_slack", "-0.1"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(options: dict, key: str, got: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        ConfidenceThreshold(**options)
    assert got in str(caught.value)
