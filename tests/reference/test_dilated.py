import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_model import Case, Step, cases, decode, plain_steps

from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import WholeCanvas
from dllm_decode.decoding.types import Request
from dllm_decode.errors import ConfigError
from dllm_decode.strategies.dilated import Dilated, Spaced
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.testing import HashDenoiser


@given(cases(), st.integers(2, 4))
def test_dilated_commits_what_the_plain_version_commits(case: Case, base: int) -> None:
    def rule(step: Step) -> list[int]:
        begin = step.columns[0] // case.block_length * case.block_length
        stride = step.opened
        while True:
            stride = max(1, stride // base)
            level = [column for column in step.columns if (column - begin) % stride == 0]
            if level:
                return level

    result = decode(case.table, Dilated(base), case.block_length)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


def test_a_block_of_32_takes_five_levels_that_double() -> None:
    steps = decode(torch.zeros(1, 32, 2), Dilated(), 32).step_of[0]
    assert [steps.count(level) for level in range(5)] == [2, 2, 4, 8, 16]
    assert [column for column in range(32) if steps[column] == 1] == [8, 24]


def test_rows_of_another_width_do_not_change_the_grid() -> None:
    decoder = Decoder(HashDenoiser(), Dilated(), WholeCanvas())
    together = decoder.decode(Request(((1,), (2,)), (5, 16))).step_of
    alone = decoder.decode(Request(((1,),), 5)).step_of
    assert together[0] == alone[0]


@given(cases(), st.integers(1, 4))
def test_spaced_keeps_what_the_plain_version_keeps(case: Case, gap: int) -> None:
    def rule(step: Step) -> list[int]:
        kept: list[int] = []
        for column in step.best(len(step.columns)):
            if step.confidence[column] >= 0.4 and all(abs(column - k) >= gap for k in kept):
                kept.append(column)
        return kept

    filters = {"spaced": Spaced(gap)}
    result = decode(case.table, ConfidenceThreshold(0.4), case.block_length, filters=filters)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


@pytest.mark.parametrize(("part", "key", "value"), [(Dilated, "base", 1), (Spaced, "gap", 0)])
def test_bad_settings_name_the_key_and_the_value(part: type, key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} .* got {value}"):
        part(value)
