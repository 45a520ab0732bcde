import math

import pytest
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import Now, loop_decode, plain_decode, requests

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.klass import Klass

BOUNDS = st.sampled_from([0.0013, 0.0217, 0.3011])


def plain_rule(threshold: float, bound: float, history: int, steps: int | None):
    """KLASS with dictionaries for memory."""

    def rule(now: Now) -> list[int]:
        if now.in_block == 0:
            now.kept.clear()
        calm, before = now.kept.setdefault("calm", {}), now.kept.setdefault("before", {})
        for column in now.block:
            moved = math.inf
            if column in before:
                pairs = zip(now.probs[column], before[column], strict=True)
                moved = sum(p * math.log(p / q) for p, q in pairs if p > 0)
            calm[column] = calm.get(column, 0) + 1 if moved < bound else 0
            before[column] = now.probs[column]
        ready = [
            column
            for column in now.open
            if calm[column] >= history and now.confidence[column] > threshold
        ]
        if ready or steps is None:
            return ready
        whole, more = divmod(len(now.block), steps)
        return now.best(whole + (now.in_block < more))

    return rule


@given(
    requests(), st.sampled_from([0.1, 0.6, 4.0]), BOUNDS, st.integers(1, 3),
    st.sampled_from([0.2013, 0.6017]), st.sampled_from([None, 2, 3]),
)  # fmt: skip
def test_klass_commits_what_the_plain_version_commits(
    case, passing: float, bound: float, history: int, threshold: float, steps: int | None
) -> None:
    prompts, length, block = case
    model = ChangingModel(passing=passing)
    strategy = Klass(threshold, bound, history, steps)
    result = loop_decode(model, prompts, length, strategy, block)
    rule = plain_rule(threshold, bound, history, steps)
    for row, prompt in enumerate(prompts):
        tokens, step_of = plain_decode(model, prompt, length, rule, block)
        assert list(result.sequences[row]) == tokens
        assert list(result.step_of[row]) == step_of


@pytest.mark.parametrize("steps", [2, 4])
def test_no_masks_are_left_where_a_step_commits_less_than_its_share(steps: int) -> None:
    """The released loop counts its steps and leaves what they have not decided."""
    prompts = tuple((number, number % 3) for number in range(8))
    model = ChangingModel(passing=0.6)
    result = loop_decode(model, prompts, 12, Klass(0.3, 0.02, 1, steps), 12)
    assert not any(result.undecided)
    assert all(model.vocab.mask_id not in row for row in result.sequences)
    assert max(result.forwards) > steps  # the released loop would have stopped before


def test_nothing_is_stable_before_as_many_steps_as_are_compared() -> None:
    """A model that never moves: one forced token per step until the history is long enough."""
    still = ChangingModel(passing=0.0)
    for history in (1, 2, 3):
        result = loop_decode(still, ((1, 2),), 8, Klass(0.0, 0.01, history), 8)
        assert result.forwards == (history + 1,)
        assert [result.step_of[0].count(step) for step in range(history)] == [1] * history


@pytest.mark.parametrize(
    ("key", "value"),
    [("threshold", 1.5), ("kl", -1.0), ("history", 0), ("steps_per_block", 0)],
)
def test_bad_settings_name_the_key_and_the_value(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} .* got {value}"):
        Klass(**{key: value})
