import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_model import Case, Step, cases, decode, plain_steps

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.fixed import FixedSchedule, TopK, scheduled

ORDERS = st.sampled_from(["confidence", "margin", "entropy", "random"])


def scores(step: Step, order: str) -> list[float]:
    table = {
        "confidence": step.certainty,
        "margin": step.margin,
        "entropy": [-value for value in step.entropy],
        "random": step.noise,
    }
    return table[order]


@given(cases(), st.integers(1, 12), ORDERS)
def test_a_fixed_schedule_commits_what_the_plain_version_commits(
    case: Case, steps: int, order: str
) -> None:
    def rule(step: Step) -> list[int]:
        count = step.opened // steps + (1 if step.in_block < step.opened % steps else 0)
        return step.best(count, scores(step, order))

    result = decode(case.table, FixedSchedule(steps, order), case.block_length)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


@given(cases(), st.integers(1, 12), ORDERS)
def test_top_k_commits_what_the_plain_version_commits(case: Case, count: int, order: str) -> None:
    def rule(step: Step) -> list[int]:
        return step.best(count, scores(step, order))

    result = decode(case.table, TopK(count, order), case.block_length)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


@given(cases())
def test_one_token_per_step_takes_as_many_forwards_as_there_are_tokens(case: Case) -> None:
    result = decode(case.table, TopK(1), case.block_length)
    assert set(result.forwards) == {case.table.shape[1]}
    assert all(sorted(row) == list(range(len(row))) for row in result.step_of)


@given(st.integers(1, 64), st.integers(1, 64))
def test_the_scheduled_counts_fill_the_block_in_non_rising_order(masks: int, steps: int) -> None:
    counts = [int(scheduled(torch.tensor([masks]), steps, torch.tensor([s]))) for s in range(steps)]
    assert sum(counts) == masks
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1


def test_random_order_does_not_depend_on_the_model() -> None:
    flat, steep = torch.zeros(1, 8, 3), torch.randn(1, 8, 3)
    strategy = FixedSchedule(4, "random")
    assert decode(flat, strategy, 8).step_of == decode(steep, strategy, 8).step_of


@pytest.mark.parametrize(
    ("make", "key", "got"),
    [
        (lambda: FixedSchedule(steps_per_block=0), "steps_per_block", "0"),
        (lambda: FixedSchedule(order="best"), "order", "best"),
        (lambda: TopK(tokens_per_step=1.5), "tokens_per_step", "1.5"),
        (lambda: TopK(order="left"), "order", "left"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(make, key: str, got: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        make()
    assert got in str(caught.value)
