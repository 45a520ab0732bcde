import warnings

import pytest
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import loop_decode, requests
from plain_revision import Moment, best, plain_revision, same

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.t2m import DETECTORS, TokenToMask


def plain_rule(threshold: float, detector: str, level: float, share: float, times: int):
    def rule(now: Moment) -> tuple[dict[int, int], set[int]]:
        past = now.kept.get("before", {})
        doubt = {}
        for c in now.settled:
            own = now.own(c)
            if detector == "low_prob" and own < level:
                doubt[c] = -own
            elif detector == "t2t_remask":
                if now.token[c] != now.stands[c] and now.confidence[c] > level:
                    doubt[c] = now.confidence[c]
            elif detector == "logit_diff" and c in past:
                moved = past[c][now.stands[c]] - own
                if moved > level:
                    doubt[c] = moved
        now.kept["before"] = {c: now.probs[c] for c in now.block if now.settled}
        doubt = {c: value for c, value in doubt.items() if now.revised[c] < times}
        most = max(1, int(len(now.settled) * share))
        sure = [c for c in now.open if now.confidence[c] > threshold]
        return {c: now.token[c] for c in sure}, set(best(doubt, most))

    return rule


@pytest.mark.one_in(3)
@pytest.mark.parametrize("detector", sorted(DETECTORS))
@given(
    requests(), st.sampled_from([0.2, 0.4]), st.sampled_from([0.1503, 0.3502]),
    st.sampled_from([0.26, 1.0]), st.integers(1, 3), st.sampled_from([0, 3]),
)  # fmt: skip
def test_it_opens_again_what_the_plain_version_does(
    detector: str, case, threshold: float, level: float, share: float, times: int, post: int
) -> None:
    prompts, length, block = case
    model = ChangingModel(passing=5.0)
    strategy = TokenToMask(threshold, detector, level, share, times, post)
    with warnings.catch_warnings(action="ignore"):
        result = loop_decode(model, prompts, length, strategy, block)
    for place, prompt in enumerate(prompts):
        rule = plain_rule(threshold, detector, level, share, times)
        same(plain_revision(model, prompt, length, rule, block, times, post), result, place)


def test_each_detector_opens_something_and_no_mask_is_left() -> None:
    model = ChangingModel(passing=6.0)
    for detector in DETECTORS:
        strategy = TokenToMask(0.3, detector, 0.3, share=0.5, revisions=2)
        result = loop_decode(model, ((1,), (2,), (3,)), 8, strategy, 8)
        assert sum(result.remasks) > 0, detector
        assert all(model.vocab.mask_id not in sequence for sequence in result.sequences)
        assert max(result.forwards) <= 8 * 3


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        ({"threshold": 1.1}, "threshold", "1.1"),
        ({"detector": "doubt"}, "detector", "'doubt'"),
        ({"remask_threshold": 2.0}, "remask_threshold", "2.0"),
        ({"share": 0.0}, "share", "0.0"),
        ({"revisions": 0}, "revisions", "0"),
        ({"post_steps": -1}, "post_steps", "-1"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(options: dict, key: str, got: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        TokenToMask(**options)
    assert got.strip("'") in str(caught.value)
