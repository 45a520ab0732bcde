import warnings

import pytest
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import loop_decode, requests
from plain_revision import Moment, best, plain_revision, same

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.joint_threshold import JointThreshold


def plain_rule(threshold: float, edit: float | None, steps: int | None):
    def rule(now: Moment) -> tuple[dict[int, int], set[int]]:
        sure = [c for c in now.open if now.confidence[c] > threshold]
        if steps is not None:
            count = now.scheduled(steps, now.in_block)
            sure += best({c: now.confidence[c] for c in now.open}, count)
        other = [
            c
            for c in now.settled
            if edit is not None and now.token[c] != now.stands[c] and now.confidence[c] > edit
        ]
        return {c: now.token[c] for c in (*sure, *other)}, set()

    return rule


@given(
    requests(), st.sampled_from([0.2, 0.4]), st.sampled_from([0.0, 0.3, None]),
    st.sampled_from([0, 1, 3]), st.sampled_from([None, 2]), st.integers(1, 3),
)  # fmt: skip
def test_it_decides_and_edits_what_the_plain_version_does(
    case, threshold: float, edit: float | None, post: int, steps: int | None, times: int
) -> None:
    prompts, length, block = case
    model = ChangingModel(passing=5.0)
    strategy = JointThreshold(threshold, edit, post, steps, times)
    with warnings.catch_warnings(action="ignore"):  # says that not all edits were granted
        result = loop_decode(model, prompts, length, strategy, block)
    for place, prompt in enumerate(prompts):
        rule = plain_rule(threshold, edit, steps)
        row = plain_revision(model, prompt, length, rule, block, times, post)
        same(row, result, place)


@given(st.integers(0, 50))
def test_a_model_that_predicts_masks_gets_neither_masks_nor_endless_steps(seed: int) -> None:
    """Two defects of a released step: masks committed for ever, and decided tokens re-masked."""
    model = ChangingModel(seed=seed, favourite=11)
    result = loop_decode(model, ((1,), (2, 3)), 6, JointThreshold(0.6, 0.0, 2), 6)
    for sequence, forwards in zip(result.sequences, result.forwards, strict=True):
        assert model.vocab.mask_id not in sequence and forwards <= 6 + 2


def test_zero_edits_wherever_the_first_choice_differs_and_none_edits_nowhere() -> None:
    model = ChangingModel(passing=6.0)
    edits = {
        edit: sum(loop_decode(model, ((1,), (2,), (3,)), 8, JointThreshold(0.3, edit), 8).edits)
        for edit in (0.0, 1.0, None)
    }
    assert edits[0.0] > 0 and edits[1.0] == 0 and edits[None] == 0


def test_a_full_block_is_looked_at_until_nothing_changes() -> None:
    still = ChangingModel(passing=0.0)
    assert set(loop_decode(still, ((1,),), 4, JointThreshold(0.0), 4).forwards) == {2}
    assert set(loop_decode(still, ((1,),), 4, JointThreshold(0.0, post_steps=0), 4).forwards) == {1}


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        ({"threshold": 1.1}, "threshold", "1.1"),
        ({"edit_threshold": -0.1}, "edit_threshold", "-0.1"),
        ({"post_steps": -1}, "post_steps", "-1"),
        ({"steps_per_block": 0}, "steps_per_block", "0"),
        ({"revisions": 0}, "revisions", "0"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(options: dict, key: str, got: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        JointThreshold(**options)
    assert got in str(caught.value)
