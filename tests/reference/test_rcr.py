import pytest
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import loop_decode, requests
from plain_revision import Moment, best, plain_revision, same

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.rcr import RunningConfidence


def plain_rule(steps: int):
    def rule(now: Moment) -> tuple[dict[int, int], set[int]]:
        running = now.kept.setdefault("running", {})
        running.update({c: now.confidence[c] for c in now.open})
        count = max(1, now.scheduled(steps, now.in_block))
        again = best({c: -running[c] for c in now.block}, len(now.open) - count)
        written = {c: now.token[c] for c in now.open if c not in again}
        return written, {c for c in again if c in now.settled}

    return rule


@given(requests(), st.integers(1, 6))
def test_what_stays_decided_is_what_the_plain_version_keeps(case, steps: int) -> None:
    prompts, length, block = case
    model = ChangingModel(passing=5.0)
    result = loop_decode(model, prompts, length, RunningConfidence(steps), block)
    for place, prompt in enumerate(prompts):
        row = plain_revision(model, prompt, length, plain_rule(steps), block, times=length)
        same(row, result, place)


def test_it_takes_the_steps_of_its_schedule_and_opens_some_again() -> None:
    result = loop_decode(ChangingModel(passing=6.0), ((1,), (2,), (3,)), 8, RunningConfidence(4), 8)
    assert result.forwards == (4, 4, 4) and sum(result.remasks) > 0
    assert result.not_granted == (0, 0, 0)


def test_bad_settings_name_the_key_and_the_value() -> None:
    with pytest.raises(ConfigError, match=r"steps_per_block .* got 0"):
        RunningConfidence(0)
