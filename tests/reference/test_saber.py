import math

import pytest
import torch
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import loop_decode, requests
from plain_revision import Moment, best, plain_revision, same
from table_model import decode

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.saber import Saber


def plain_rule(least: int, one_of: int):
    committed: dict[int, float] = {}
    last: dict[int, float] = {}

    def rule(now: Moment) -> tuple[dict[int, int], set[int]]:
        level = sum(committed.values()) / len(committed) if committed else 1.0
        chosen = {c for c in now.open if now.confidence[c] > level}
        chosen |= set(best({c: now.confidence[c] for c in now.open}, least))
        committed.update({c: now.confidence[c] for c in chosen})
        fall = {c: last.get(c, 0.0) - now.confidence[c] for c in [*now.settled, *chosen]}
        last.update({c: now.confidence[c] for c in now.block})
        count = min(max(least // 2, math.ceil(len(chosen) / one_of)), len(chosen) - 1)
        count = count if len(now.open) > len(chosen) else 0
        again = best(fall, count)
        written = {c: now.token[c] for c in chosen if c not in again}
        return written, {c for c in again if c in now.settled}

    return rule


@given(requests(), st.integers(1, 4), st.integers(1, 3))
def test_it_commits_and_opens_again_what_the_plain_version_does(
    case, least: int, one_of: int
) -> None:
    prompts, length, block = case
    model = ChangingModel(passing=5.0)
    result = loop_decode(model, prompts, length, Saber(least, one_of), block)
    for place, prompt in enumerate(prompts):
        rule = plain_rule(least, one_of)
        same(plain_revision(model, prompt, length, rule, block, times=length), result, place)


def test_the_mean_is_that_of_the_commits_and_not_of_columns_that_have_none() -> None:
    """No column is surer than those before it, so each step commits the one that it has to."""
    sure = torch.linspace(0.9, 0.6, 8)
    table = torch.stack([sure, 1 - sure], -1).log()[None]
    result = decode(table, Saber(at_least=1, one_of=1))
    assert result.step_of == ((0, 1, 2, 3, 4, 5, 6, 7),)
    together = torch.cat([table, torch.full_like(table, 0.0)])
    assert decode(together, Saber(at_least=1, one_of=1)).step_of[0] == result.step_of[0]


@pytest.mark.parametrize("key", ["at_least", "one_of"])
def test_bad_settings_name_the_key_and_the_value(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} .* got 0"):
        Saber(**{key: 0})
