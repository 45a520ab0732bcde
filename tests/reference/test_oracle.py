"""The oracle: it always ends at the reference, and shows how few forwards that takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from changing_model import ChangingModel, a_request
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.schedule import Blocks, Schedule, WholeCanvas
from dllm_decode.decoding.strategy import Pipeline, Strategy
from dllm_decode.decoding.types import Request
from dllm_decode.errors import CapabilityError, ConfigError
from dllm_decode.strategies.eot import CommittedEot
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.oracle import Oracle

decodes = examples(5)
SEEDS = st.integers(0, 500)
STOP = {"eot": CommittedEot()}


def decode(
    model: ChangingModel, select: Strategy, request: Request, schedule: Schedule, **options: Any
) -> Result:
    pipeline = Pipeline(select, **options)
    return Decoder(model, pipeline, schedule, record=True).decode(request)


def with_reference(
    model: ChangingModel, request: Request, schedule: Schedule, **options: Any
) -> Request:
    reference = decode(model, TopK(1), request, schedule, **options)
    return replace(request, reference=reference.sequences)


@decodes
@given(SEEDS, st.sampled_from([Blocks(5), WholeCanvas()]), st.sampled_from(["one", "block"]))
def test_the_result_is_the_reference(seed: int, schedule: Schedule, stuck: str) -> None:
    model = ChangingModel(seed=seed)
    request = a_request(3, (12, 9, 12))
    for options in ({}, {"stop": STOP}):
        given_one = with_reference(model, request, schedule, **options)
        result = decode(model, Oracle(stuck), given_one, schedule, **options)
        assert result.sequences == given_one.reference


@decodes
@given(SEEDS)
def test_each_step_commits_exactly_what_the_model_gets_right(seed: int) -> None:
    model, schedule = ChangingModel(seed=seed), Blocks(5)
    request = with_reference(model, a_request(2, 12), schedule)
    assert request.reference is not None
    result = decode(model, Oracle(), request, schedule)
    for change in result.trace:
        for row in range(change.rows.numel()):
            commits = change.commit[row]
            tokens = [
                request.reference[int(change.rows[row])][c] for c in change.index[row][commits]
            ]
            assert change.tokens[row][commits].tolist() == tokens
            if change.forced[row]:
                assert int(commits.sum()) == 1


@decodes
@given(SEEDS)
def test_it_takes_no_more_forwards_than_columns_and_filling_the_block_no_more_than_that(
    seed: int,
) -> None:
    model, schedule = ChangingModel(seed=seed), Blocks(6)
    request = with_reference(model, a_request(2, 12), schedule)
    one = decode(model, Oracle(), request, schedule)
    block = decode(model, Oracle("block"), request, schedule)
    assert all(forwards <= 12 for forwards in (*one.forwards, *block.forwards))
    for change in block.trace:
        assert not change.forced.any()
        agree = change.notes["correct"] & change.notes["open"]
        stuck = ~agree.any(1, keepdim=True)
        assert torch.equal(change.commit, torch.where(stuck, change.notes["open"], agree))


def test_a_model_that_is_always_right_takes_one_forward_per_block() -> None:
    model = ChangingModel(passing=0.0)
    request = with_reference(model, a_request(2, 12), Blocks(6))
    assert decode(model, Oracle(), request, Blocks(6)).forwards == (2, 2)


def test_a_model_that_is_always_wrong_takes_one_forward_per_token_or_block() -> None:
    model = ChangingModel(favourite=4)
    request = replace(a_request(2, 12), reference=((5,) * 12, (6,) * 12))
    assert decode(model, Oracle(), request, Blocks(6)).forwards == (12, 12)
    assert decode(model, Oracle("block"), request, Blocks(6)).forwards == (2, 2)


def test_where_it_is_stuck_the_reference_token_the_model_likes_best_is_written() -> None:
    model = ChangingModel(favourite=4)
    request = replace(a_request(1, 6), reference=((5, 6, 7, 8, 9, 5),))
    change = decode(model, Oracle(), request, WholeCanvas()).trace[0]
    assert bool(change.forced[0])
    assert int(change.scores[0].argmax()) == int(change.commit[0].int().argmax())


def test_behind_the_end_of_a_short_reference_stands_the_end_of_text() -> None:
    model = ChangingModel(favourite=10)
    request = replace(a_request(1, 8), reference=((3, 10),))
    result = decode(model, Oracle(), request, Blocks(8))
    assert result.sequences == ((3, 10, 10, 10, 10, 10, 10, 10),)
    assert decode(model, Oracle(), request, Blocks(8), stop=STOP).sequences == ((3, 10),)


def test_fixed_tokens_stay() -> None:
    model = ChangingModel(seed=3)
    request = with_reference(model, a_request(1, 8, fixed=({2: 7},)), Blocks(8))
    assert request.reference is not None
    assert request.reference[0][2] == 7
    assert decode(model, Oracle(), request, Blocks(8)).sequences == request.reference


def test_a_fixed_token_may_be_one_that_is_never_generated() -> None:
    model = ChangingModel(seed=3)
    request = with_reference(model, a_request(1, 8, fixed=({2: 9},)), Blocks(8))
    assert request.reference is not None and request.reference[0][2] == 9
    assert decode(model, Oracle(), request, Blocks(8)).sequences == request.reference


# What is refused.


def test_a_request_without_a_reference_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"strategy\.select \(Oracle\) needs the tokens"):
        decode(ChangingModel(), Oracle(), a_request(), Blocks(6))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ((1,) * 13, r"reference of row 0 has 13 tokens; it must have 12 \(max_new_tokens\)"),
        ((1, 2), "reference of row 0 has 2 tokens; .* end with an end-of-text token"),
        ((1,) * 11 + (11,), "reference of row 0 contains token 11, which is never generated"),
        ((1,) * 11 + (99,), "reference of row 0 contains token 99"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(reference: tuple[int, ...], message: str) -> None:
    request = a_request(1, 12, reference=(reference,))
    with pytest.raises(ConfigError, match=message):
        decode(ChangingModel(), Oracle(), request, Blocks(6))


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stuck must be one of one, block"):
        Oracle("all")
