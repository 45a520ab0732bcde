from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_model import Case, Step, cases, decode, plain_steps

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.hierarchical import Hierarchical

PROBABILITIES = st.one_of(st.floats(0, 1), st.sampled_from([0.25, 0.5, 1.0]))


@given(cases(), PROBABILITIES, PROBABILITIES)
def test_hierarchical_commits_what_the_plain_version_commits(
    case: Case, threshold: float, low: float
) -> None:
    def rule(step: Step) -> set[int]:
        chosen = {column for column in step.columns if step.confidence[column] > threshold}
        for _, gap in groupby(enumerate(step.columns), lambda pair: pair[1] - pair[0]):
            columns = [column for _, column in gap]
            top = max(step.certainty[column] for column in columns)
            peaks = {c for c in columns if step.certainty[c] == top}
            chosen |= {c for c in peaks if step.confidence[c] > low}
        return chosen | set(step.best(1))

    result = decode(case.table, Hierarchical(threshold, low), case.block_length)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


def test_gaps_split_until_nothing_is_left() -> None:
    """Peaks in the middle of every gap: the number of steps grows with the logarithm."""
    height = [0, 1, 0, 2, 0, 1, 0, 3, 0, 1, 0, 2, 0, 1, 0]
    table = torch.zeros(1, 15, 2)
    table[0, :, 0] = torch.tensor(height) + 1.0
    assert decode(table, Hierarchical(1.0, 0.4)).step_of[0] == tuple(3 - h for h in height)


@pytest.mark.parametrize("key", ["threshold", "low_threshold"])
def test_bad_settings_name_the_key_and_the_value(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} .* got 1\.5"):
        Hierarchical(**{key: 1.5})
