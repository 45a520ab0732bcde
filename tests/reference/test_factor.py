import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_model import Case, Step, cases, decode, plain_steps

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.factor import Factor


def published(falling: list[float], factor: float) -> int:
    passing = [n for n, c in enumerate(falling, 1) if (n + 1) * (1 - c) < factor]
    return max(passing, default=1)


def copied(falling: list[float], factor: float) -> int:
    last = len(falling)
    for n, confidence in enumerate(falling, 1):
        if n > 1 and confidence < 1 - factor / (n + 1):
            return last if n == last else n - 1
    return last


def d2cache(falling: list[float], factor: float) -> int:
    for n, confidence in enumerate(falling, 1):
        if (n + 1) * (1 - confidence) >= factor:
            return max(n - 1, 1)
    return max(len(falling) - 1, 1)


COUNTS = {"published": published, "copied": copied, "d2cache": d2cache}


@given(cases(), st.sampled_from([0.0, 0.3, 0.5, 1.0, 1.5, 2.0, 5.0]), st.sampled_from([*COUNTS]))
def test_every_variant_commits_what_its_plain_version_commits(
    case: Case, factor: float, variant: str
) -> None:
    def rule(step: Step) -> list[int]:
        falling = sorted((step.confidence[column] for column in step.columns), reverse=True)
        return step.best(COUNTS[variant](falling, factor))

    result = decode(case.table, Factor(factor, variant), case.block_length)
    assert result.step_of == plain_steps(case.table, rule, case.block_length)


def first_commits(probabilities: list[float], factor: float, variant: str) -> int:
    """How many positions go in the first step, at the given confidences."""
    sure = torch.tensor(probabilities, dtype=torch.float64)
    table = torch.stack([sure.log(), (1 - sure).log() - 2.0, (1 - sure).log() - 2.0], -1)
    table[..., 1:] += torch.log(torch.tensor(0.5 * 2.718281828459045**2))
    return decode(table[None], Factor(factor, variant)).step_of[0].count(0)


def test_the_copied_code_commits_a_failing_last_position_and_the_rule_does_not() -> None:
    assert first_commits([0.99, 0.98, 0.40], 0.7, "copied") == 3
    assert first_commits([0.99, 0.98, 0.40], 0.7, "published") == 2


def test_the_d2cache_variant_leaves_one_out_when_all_pass() -> None:
    assert first_commits([0.999] * 6, 1.0, "published") == 6
    assert first_commits([0.999] * 6, 1.0, "d2cache") == 5


@pytest.mark.parametrize(("variant", "forwards"), [("published", 4), ("copied", 2), ("d2cache", 4)])
def test_only_the_copied_code_accepts_equality(variant: str, forwards: int) -> None:
    """Confidences of 1/2 and a factor of 3/2: the second position meets the bound exactly."""
    assert decode(torch.zeros(1, 4, 2), Factor(1.5, variant)).forwards == (forwards,)


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        ({"factor": -1.0}, "factor", "-1.0"),
        ({"variant": "fastdllm"}, "variant", "fastdllm"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(options: dict, key: str, got: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        Factor(**options)
    assert got in str(caught.value)
