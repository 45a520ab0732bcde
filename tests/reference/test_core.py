import warnings

import pytest
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import loop_decode, requests
from plain_revision import Moment, best, plain_revision, same

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.core import Core

MASK = ChangingModel().vocab.mask_id


def margin(row: list[float]) -> float:
    first, second, *_ = sorted(row, reverse=True)
    return first - second


def plain_rule(steps: int, every: int, masked: int, reopen: int, level: float, spare: int, k: int):
    def rule(now: Moment) -> tuple[dict[int, int], set[int]]:
        count = max(1, now.scheduled(steps, now.in_block))
        written = {c: now.token[c] for c in best({c: now.confidence[c] for c in now.open}, count)}
        asked: list[int] = []
        if now.in_block % every == 0 and int(0.2 * steps) <= now.in_block < int(0.8 * steps):
            early = now.block[: max(0, len(now.block) - spare)]
            weak = {c: -margin(now.probs[c]) for c in now.settled if c in early}
            asked = best(weak, masked)
        if asked:
            probs = now.ask(dict.fromkeys(asked, MASK))
            other = {
                c: -now.own(c, probs)
                for c in asked
                if probs[c].index(max(probs[c])) != now.stands[c]
                and max(probs[c]) >= level
                and now.revised[c] < k
            }
            for c in best(other, min(reopen, count)):
                written[c] = probs[c].index(max(probs[c]))
        return written, set()

    return rule


@given(
    requests(), st.integers(1, 5), st.integers(1, 2), st.integers(1, 4), st.integers(1, 2),
    st.sampled_from([0.1, 0.3]), st.integers(0, 2), st.integers(1, 2),
)  # fmt: skip
def test_it_questions_and_writes_what_the_plain_version_does(
    case, steps: int, every: int, masked: int, reopen: int, level: float, spare: int, times: int
) -> None:
    prompts, length, block = case
    model = ChangingModel(passing=6.0)
    strategy = Core(steps, every, masked, reopen, level, spare, 0.2, 0.8, times)
    with warnings.catch_warnings(action="ignore"):
        result = loop_decode(model, prompts, length, strategy, block)
    for place, prompt in enumerate(prompts):
        rule = plain_rule(steps, every, masked, reopen, level, spare, times)
        same(plain_revision(model, prompt, length, rule, block, times), result, place)


@pytest.mark.parametrize("key", ["steps_per_block", "every", "masked", "reopen", "revisions"])
def test_bad_counts_name_the_key_and_the_value(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} .* got 0"):
        Core(**{key: 0})


@pytest.mark.parametrize("key", ["confidence", "begin_share", "end_share"])
def test_bad_shares_name_the_key_and_the_value(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key} .* got 1\.5"):
        Core(**{key: 1.5})
