import pytest
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import Now, loop_decode, plain_decode, requests

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.history_stable import HistoryStable
from dllm_decode.strategies.threshold import ConfidenceThreshold

PROBABILITIES = st.sampled_from([0.1517, 0.3011, 0.6017, 0.9041])


@given(
    requests(), st.sampled_from([0.5, 2.0, 6.0]), PROBABILITIES, PROBABILITIES, st.integers(1, 3)
)
def test_history_stable_commits_what_the_plain_version_commits(
    case, passing: float, threshold: float, low: float, history: int
) -> None:
    def rule(now: Now) -> set[int]:
        said = now.kept.setdefault("said", {})
        if now.in_block == 0:
            said.clear()
        for column in now.block:
            said.setdefault(column, []).append(now.token[column])
        sure = {column for column in now.open if now.confidence[column] >= threshold}
        stable = {
            column
            for column in now.open
            if now.confidence[column] >= low
            and len(said[column]) >= history
            and len(set(said[column][-history:])) == 1
        }
        return stable | (sure or set(now.best(1)))

    prompts, length, block = case
    model = ChangingModel(passing=passing)
    result = loop_decode(model, prompts, length, HistoryStable(threshold, low, history), block)
    for row, prompt in enumerate(prompts):
        tokens, step_of = plain_decode(model, prompt, length, rule, block)
        assert (list(result.sequences[row]), list(result.step_of[row])) == (tokens, step_of)


@given(requests(), PROBABILITIES)
def test_one_proposal_is_stable_at_once(case, low: float) -> None:
    prompts, length, block = case
    model = ChangingModel()
    stable = loop_decode(model, prompts, length, HistoryStable(1.0, low, 1), block)
    plain = loop_decode(model, prompts, length, ConfidenceThreshold(low), block)
    assert stable.step_of == plain.step_of


@pytest.mark.parametrize(
    ("key", "value"), [("threshold", 1.5), ("low_threshold", -0.5), ("history", 0)]
)
def test_bad_settings_name_the_key_and_the_value(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} .* got {value}"):
        HistoryStable(**{key: value})
