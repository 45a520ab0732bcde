import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_model import Case, Step, cases, decode, plain_steps

from dllm_decode.decoding.prediction import Prediction
from dllm_decode.errors import ConfigError
from dllm_decode.strategies.entropy import EntropyThreshold


@st.composite
def cases_and_thresholds(draw: st.DrawFn) -> tuple[Case, float]:
    """Half of the thresholds equal an entropy of the table exactly."""
    case = draw(cases())
    present = Prediction.of(case.table).entropy.flatten().tolist()
    return case, draw(st.one_of(st.floats(0, 2), st.sampled_from(present)))


@given(cases_and_thresholds(), st.booleans())
def test_the_entropy_threshold_commits_what_the_plain_version_commits(
    drawn: tuple[Case, float], strict: bool
) -> None:
    case, threshold = drawn

    def rule(step: Step) -> list[int]:
        return [
            column
            for column in step.columns
            if step.entropy[column] < threshold
            or (step.entropy[column] == threshold and not strict)
            or column == step.best(1, [-value for value in step.entropy])[0]
        ]

    strategy = EntropyThreshold(threshold, strict)
    result = decode(case.table, strategy, case.block_length)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


def test_the_threshold_counts_nats() -> None:
    table = torch.zeros(1, 4, 2)
    assert decode(table, EntropyThreshold(math.log(2) + 1e-3), 4).forwards == (1,)
    assert decode(table, EntropyThreshold(math.log(2) - 1e-3), 4).forwards == (4,)


def test_entropy_ignores_a_shift_of_all_logits() -> None:
    table = torch.randn(2, 8, 4)
    shifted = decode(table + 3.0, EntropyThreshold(0.8), 8).step_of
    assert shifted == decode(table, EntropyThreshold(0.8), 8).step_of


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        ({"threshold": -0.1}, "threshold must lie in .* nats", "-0.1"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(options: dict, key: str, got: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        EntropyThreshold(**options)
    assert got in str(caught.value)
