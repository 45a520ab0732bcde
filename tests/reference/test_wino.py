import warnings

import pytest
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import loop_decode, requests
from plain_revision import Moment, best, plain_revision, same

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.wino import Wino

MASK = ChangingModel().vocab.mask_id


def plain_rule(threshold: float, level: float, groups: int):
    def rule(now: Moment) -> tuple[dict[int, int], set[int]]:
        before = 30 if now.in_block == 0 else now.kept["count"]
        sure = {c: now.confidence[c] for c in now.open if now.confidence[c] > threshold}
        sure = sure or {c: now.confidence[c] for c in best(dict_of(now), 1)}
        chosen = best(sure, min(max(int(len(now.open) * 0.7), 5), 20))
        now.kept["count"] = len(chosen)
        opened: set[int] = set()
        if len(chosen) > 1 and before > 1:
            weak = {}
            for group in range(groups):
                members = [c for place, c in enumerate(now.settled) if place % groups == group]
                if members:
                    probs = now.ask(dict.fromkeys(members, MASK))
                    weak |= {c: now.own(c, probs) for c in members}
            failing = {c: -own for c, own in weak.items() if own < level}
            opened = set(best(failing, before - 1))
        return {c: now.token[c] for c in chosen}, opened

    return rule


def dict_of(now: Moment) -> dict[int, float]:
    return {c: now.confidence[c] for c in now.open}


@given(
    requests(), st.sampled_from([0.2, 0.4]), st.sampled_from([0.3, 0.9]), st.integers(1, 3),
    st.integers(1, 2),
)  # fmt: skip
def test_it_commits_and_opens_again_what_the_plain_version_does(
    case, threshold: float, level: float, groups: int, times: int
) -> None:
    prompts, length, block = case
    model = ChangingModel(passing=5.0)
    with warnings.catch_warnings(action="ignore"):
        strategy = Wino(threshold, level, groups, times)
        result = loop_decode(model, prompts, length, strategy, block)
    for place, prompt in enumerate(prompts):
        rule = plain_rule(threshold, level, groups)
        same(plain_revision(model, prompt, length, rule, block, times), result, place)


def test_as_many_groups_as_columns_leave_out_one_at_a_time() -> None:
    model = ChangingModel(passing=6.0)
    one = loop_decode(model, ((1,), (2,)), 10, Wino(0.2, 0.9, 1), 10)
    each = loop_decode(model, ((1,), (2,)), 10, Wino(0.2, 0.9, 10), 10)
    assert sum(each.probes) > sum(one.probes) > 0
    for result in (one, each):
        for forwards, probes, passes in zip(
            result.forwards, result.probes, result.passes, strict=True
        ):
            assert passes - (forwards - probes) <= forwards - probes, "one more pass per step"


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        ({"threshold": 1.1}, "threshold", "1.1"),
        ({"verify_threshold": -1.0}, "verify_threshold", "-1.0"),
        ({"groups": 0}, "groups", "0"),
        ({"revisions": 0}, "revisions", "0"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(options: dict, key: str, got: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        Wino(**options)
    assert got in str(caught.value)
