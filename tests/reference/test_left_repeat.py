from itertools import pairwise

import pytest
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import Now, loop_decode, plain_decode, requests

from dllm_decode import Pipeline
from dllm_decode.errors import ConfigError
from dllm_decode.strategies.left_repeat import LeftRepeat
from dllm_decode.strategies.threshold import ConfidenceThreshold


@given(requests(), st.sampled_from([0.5, 3.0, 50.0]))
def test_the_left_neighbour_is_penalised_as_in_the_plain_version(case, penalty: float) -> None:
    def adjust(now: Now) -> list[list[float]]:
        logits = [list(row) for row in now.logits]
        for column in now.open:
            left = now.canvas[now.prompt + column - 1]
            if left is not None:
                logits[column][left] -= penalty
        return logits

    def rule(now: Now) -> list[int]:
        return [column for column in now.open if now.confidence[column] >= 0.3017]

    prompts, length, block = case
    model = ChangingModel(favourite=4)
    rules = Pipeline(ConfidenceThreshold(0.3017), {"left": LeftRepeat(penalty)})
    result = loop_decode(model, prompts, length, rules, block)
    for row, prompt in enumerate(prompts):
        tokens, step_of = plain_decode(model, prompt, length, rule, block, adjust)
        assert (list(result.sequences[row]), list(result.step_of[row])) == (tokens, step_of)


def test_a_model_that_repeats_itself_stops_doing_so() -> None:
    model, one = ChangingModel(favourite=4), ConfidenceThreshold(1.0)
    stuck = loop_decode(model, ((1,),), 6, one, 1).sequences[0]
    varied = Pipeline(one, {"left": LeftRepeat(100.0)})
    free = loop_decode(model, ((1,),), 6, varied, 1).sequences[0]
    assert stuck == (4,) * 6
    assert all(left != right for left, right in pairwise(free))


@pytest.mark.parametrize("penalty", [-1.0, 101.0])
def test_a_bad_penalty_is_refused(penalty: float) -> None:
    with pytest.raises(ConfigError, match=rf"^penalty .* got {penalty}"):
        LeftRepeat(penalty)
