import pytest
import torch
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import Now, loop_decode, plain_decode, requests
from table_model import decode

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.slowfast import SlowFast


def plain_rule(threshold: float, explore: float, slow_steps: int, stable: int | None):
    """SlowFast as two phases of one row."""

    def rule(now: Now) -> list[int]:
        state = now.kept
        if now.in_block == 0:
            state.clear()
            state.update(phase="slow", seen=[])
        if state["phase"] == "fast" and not [c for c in now.open if c <= state["last"]]:
            state.update(phase="slow", seen=[])
        among = now.open
        if state["phase"] == "fast":
            among = [column for column in now.open if column <= state["last"]]
        else:
            likely = [column for column in now.open if now.confidence[column] >= explore]
            state["seen"].append(max(likely, default=now.open[0]))
            seen = state["seen"]
            calm = stable is not None and len(seen) > 1 and abs(seen[-1] - seen[-2]) <= stable
            if calm or len(seen) == slow_steps:
                state.update(phase="fast", last=seen[-1])
        sure = [column for column in among if now.confidence[column] >= threshold]
        return sure if len(sure) > 1 else now.best(1, among)

    return rule


@given(
    requests(), st.sampled_from([0.2017, 0.4013]), st.sampled_from([0.1517, 0.3011]),
    st.integers(1, 4), st.sampled_from([None, 0, 1]),
)  # fmt: skip
def test_slowfast_commits_what_the_plain_version_commits(
    case, threshold: float, explore: float, slow_steps: int, stable: int | None
) -> None:
    prompts, length, block = case
    settings = (threshold, explore, slow_steps, stable)
    model = ChangingModel(passing=2.0)
    result = loop_decode(model, prompts, length, SlowFast(*settings), block)
    for row, prompt in enumerate(prompts):
        tokens, step_of = plain_decode(model, prompt, length, plain_rule(*settings), block)
        assert (list(result.sequences[row]), list(result.step_of[row])) == (tokens, step_of)


def test_the_fast_phase_fills_the_span_before_anything_behind_it() -> None:
    """Column 6 is surer than columns 1 and 2, but the span of the first step ends at column 3."""
    best = torch.tensor([0.5, 0.26, 0.26, 0.5, 0.27, 0.27, 0.28, 0.27])
    rest = ((1 - best) / 3)[:, None].expand(8, 3)
    table = torch.cat([best[:, None], rest], 1).log()[None]
    assert decode(table, SlowFast(slow_steps=1), 8).step_of == ((0, 2, 3, 1, 5, 6, 4, 7),)


@pytest.mark.parametrize(
    ("key", "value"), [("threshold", 1.5), ("explore", -0.5), ("slow_steps", 0), ("stable", -1)]
)
def test_bad_settings_name_the_key_and_the_value(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} .* got {value}"):
        SlowFast(**{key: value})
