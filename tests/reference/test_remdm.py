import pytest
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import loop_decode, requests
from plain_revision import Moment, best, plain_revision, same

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.remdm import ReMdm


def plain_rule(steps: int, refine: int, reopen: int, share: float):
    def rule(now: Moment) -> tuple[dict[int, int], set[int]]:
        if now.in_block == 0:
            now.kept["sure"] = {}
        first = max(1, min(steps, int(now.opened * share)))
        refining = first <= now.in_block < first + refine
        ordinary = now.in_block if now.in_block < first else now.in_block - refine
        count = reopen if refining else now.scheduled(steps, ordinary)
        chosen = best({c: now.confidence[c] for c in now.open}, count)
        sure = now.kept["sure"]
        sure.update({c: now.confidence[c] for c in chosen})
        again: list[int] = []
        if first <= now.in_block + 1 < first + refine:
            again = best({c: -sure[c] for c in [*now.settled, *chosen]}, reopen)
        written = {c: now.token[c] for c in chosen if c not in again}
        return written, {c for c in again if c in now.settled}

    return rule


@given(requests(), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2))
def test_it_refines_as_the_plain_version_does(case, steps: int, refine: int, reopen: int) -> None:
    prompts, length, block = case
    model = ChangingModel(passing=5.0)
    result = loop_decode(model, prompts, length, ReMdm(steps, refine, reopen, 0.75), block)
    for place, prompt in enumerate(prompts):
        rule = plain_rule(steps, refine, reopen, 0.75)
        same(plain_revision(model, prompt, length, rule, block, refine), result, place)


@given(requests(), st.integers(1, 3))
def test_fewer_steps_than_columns_leave_no_mask_in_any_block(case, steps: int) -> None:
    """The released loop ends in an assertion there."""
    prompts, length, block = case
    model = ChangingModel()
    result = loop_decode(model, prompts, length, ReMdm(steps, 2, 1), block)
    assert all(model.vocab.mask_id not in sequence for sequence in result.sequences)
    assert result.undecided == (0,) * len(prompts)


@pytest.mark.parametrize("key", ["steps_per_block", "refine_steps", "reopen", "refine_from"])
def test_bad_settings_name_the_key_and_the_value(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}.* got 0"):
        ReMdm(**{key: 0})
