import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_model import Case, Step, cases, decode, plain_steps

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.relaxing import RelaxingThreshold
from dllm_decode.strategies.threshold import ConfidenceThreshold

# no share of a coarse table's probabilities comes this close to their products by rounding
THRESHOLDS, RELIEFS = st.sampled_from([0.3123, 0.6017, 0.9041]), st.sampled_from([0.0, 0.3011, 1.0])


@given(cases(), THRESHOLDS, RELIEFS)
def test_the_threshold_gives_way_as_in_the_plain_version(
    case: Case, threshold: float, relief: float
) -> None:
    def rule(step: Step) -> list[int]:
        decided = 1 - len(step.columns) / step.opened
        level = threshold * (1 - relief * decided)
        return [column for column in step.columns if step.confidence[column] >= level]

    result = decode(case.table, RelaxingThreshold(threshold, relief), case.block_length)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


@given(cases(), THRESHOLDS)
def test_without_relief_it_is_the_plain_threshold(case: Case, threshold: float) -> None:
    relaxing = decode(case.table, RelaxingThreshold(threshold, 0.0), case.block_length)
    plain = decode(case.table, ConfidenceThreshold(threshold), case.block_length)
    assert relaxing.step_of == plain.step_of


@pytest.mark.parametrize("key", ["threshold", "relief"])
def test_bad_settings_name_the_key_and_the_value(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} .* got 1\.5"):
        RelaxingThreshold(**{key: 1.5})
