import math

import pytest
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import loop_decode, requests
from plain_revision import Moment, plain_revision

from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.errors import ConfigError
from dllm_decode.strategies.early import Prophet, Sched
from dllm_decode.strategies.fixed import TopK


def gap(row: list[float]) -> float:
    first, second, *_ = sorted(row, reverse=True)
    return first - second


def plain_rule(level, begin: int, count: int | None, length: int, steps: int | None):
    """One token per step, the surest of its block, until the gap is large enough; then the rest."""

    def rule(now: Moment) -> tuple[dict[int, int], set[int]]:
        if begin >= length:  # an answer that the row has no columns for
            return {}, set()
        open_now = [c for c in range(length) if now.kept.get(c) is None]
        end = length if count is None else begin + count
        answer = [c for c in open_now if begin <= c < end]
        mean = sum(gap(now.logits[c]) for c in answer) / len(answer) if answer else math.inf
        progress = min(1.0, (now.step + 1) / (length if steps is None else steps))
        if mean >= level(progress):
            return {c: now.token[c] for c in open_now}, set()
        return {}, set()

    return rule


def thirds(progress: float) -> float:
    return 1.2 if progress <= 1 / 3 else 0.8 if progress <= 2 / 3 else 0.4


CURVES = {
    "linear": lambda p: 1.5 + (0.5 - 1.5) * p,
    "cosine": lambda p: 0.5 + (1.5 - 0.5) * (1 + math.cos(math.pi * p)) / 2,
    "exponential": lambda p: 0.5 + (1.5 - 0.5) * math.exp(-2.0 * p),
}


@given(requests(), st.integers(0, 3), st.sampled_from([None, 2]), st.sampled_from([None, 4]))
def test_prophet_closes_a_row_where_the_plain_version_does(
    case, begin: int, count: int | None, steps: int | None
) -> None:
    prompts, length, _ = case
    stop = Prophet(steps=steps, begin_column=begin, columns=count, levels=(1.2, 0.8, 0.4))
    check(prompts, length, stop, plain_rule(thirds, begin, count, length, steps))


@pytest.mark.parametrize("curve", CURVES)
@given(requests(), st.sampled_from([None, 4]))
def test_sched_closes_a_row_where_the_plain_version_does(
    curve: str, case, steps: int | None
) -> None:
    prompts, length, _ = case
    stop = Sched(steps=steps, high=1.5, low=0.5, curve=curve, rate=2.0)
    check(prompts, length, stop, plain_rule(CURVES[curve], 0, None, length, steps))


def check(prompts, length: int, stop, rule) -> None:
    model = ChangingModel()
    pipeline = Pipeline(TopK(1), stop={"early": stop})
    result = loop_decode(model, prompts, length, pipeline, length)

    def noting(now: Moment) -> tuple[dict[int, int], set[int]]:
        now.kept.clear()
        now.kept.update(dict.fromkeys(now.settled, True))
        return rule(now)

    for place, prompt in enumerate(prompts):
        row = plain_revision(model, prompt, length, noting, length, 1)
        assert list(result.sequences[place]) == row.tokens
        assert list(result.step_of[place]) == row.step_of
        assert result.forwards[place] == row.steps


def test_what_lies_behind_the_block_is_committed_as_well() -> None:
    stop = Sched(high=0.0, low=0.0)
    result = loop_decode(ChangingModel(), ((1,), (2,)), 9, Pipeline(TopK(1), stop={"s": stop}), 3)
    assert result.forwards == (1, 1) and set(result.step_of[0]) == {0}
    assert all(11 not in sequence for sequence in result.sequences)


def test_gaps_that_never_suffice_change_nothing() -> None:
    stop = Prophet(levels=(1e6, 1e6, 1e6), columns=None)
    plain = loop_decode(ChangingModel(), ((1,),), 6, TopK(2), 3)
    result = loop_decode(ChangingModel(), ((1,),), 6, Pipeline(TopK(2), stop={"s": stop}), 3)
    assert result.sequences == plain.sequences and result.forwards == plain.forwards


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prophet(begin_column=-1), "begin_column .* got -1"),
        (lambda: Prophet(columns=0), "columns .* got 0"),
        (lambda: Prophet(levels=(1.0, 2.0)), r"levels must be three numbers >= 0, got \(1\.0, 2"),
        (lambda: Prophet(levels="high"), "levels must be three numbers >= 0, got 'high'"),
        (lambda: Prophet(steps=0), "steps .* got 0"),
        (lambda: Sched(high=-1.0), r"high .* got -1\.0"),
        (lambda: Sched(low=math.inf), "low .* got inf"),
        (lambda: Sched(curve="step"), "curve must be one of linear, cosine, exponential"),
        (lambda: Sched(rate=0.0), r"rate .* got 0\.0"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
