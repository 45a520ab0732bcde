"""The kernel properties on a real GPU at real shapes: `python -m pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is published for Linux only")

import kernel_properties as properties

from dllm_decode.kernels import dispatch, fused, reference
from dllm_decode.prediction import Prediction

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = "cuda"
ROWS = st.one_of(st.integers(0, 70), st.sampled_from((64, 2048)))
# LLaDA, Dream and LLaDA2 vocabularies among odd sizes
VOCABULARY = st.one_of(
    st.integers(1, 1000), st.integers(1, 130_000), st.sampled_from((126_464, 151_936, 157_184))
)
few = settings(max_examples=25, deadline=None, derandomize=True)


def small(case: properties.Case) -> bool:
    """Whether the float64 definition of a case fits beside everything else (2 GiB)."""
    return case.rows * case.vocabulary <= 2**28


CASES = properties.cases(ROWS, VOCABULARY).filter(small)


@few
@given(CASES, st.sampled_from((0, 1, 2, 5, 32)))
def test_statistics_equal_the_definition(case, k):
    properties.check_statistics(case, GPU, k)


@few
@given(
    properties.cases(st.integers(1, 70), st.integers(1, 20_000)),
    st.sampled_from((16, 128, 1024)),
    st.integers(1, 4),
)
def test_however_a_row_is_split_the_result_is_the_same(case, block, blocks):
    properties.check_parts_agree(case, GPU, block, blocks)


@few
@given(CASES)
def test_a_rows_numbers_do_not_depend_on_its_place(case):
    properties.check_permutation(case, GPU)


@few
@given(
    properties.cases(st.integers(0, 70), st.integers(1, 130_000)),
    st.sampled_from((0.05, 0.7, 1.0, 3.0)),
)
def test_draws_equal_those_of_the_definition_on_the_cpu(case, temperature):
    properties.check_draws(case, GPU, temperature)


def test_draws_follow_the_tempered_distribution():
    properties.check_frequencies(GPU, rows=100_000, limit=20.5)


@few
@given(CASES, st.integers(1, 32), st.sampled_from((0.0, 0.2, 1.0, 2.0)), st.booleans())
def test_credit_equals_the_definition(case, slots, gamma, given):
    properties.check_credit(case, GPU, slots, gamma, given)


@few
@given(st.integers(0, 70), st.integers(1, 2048), st.booleans(), st.integers(0, 2**32))
def test_selection_equals_the_definition(rows, columns, strict, seed):
    properties.check_selection(rows, columns, strict, seed, GPU)


@few
@given(
    properties.cases(st.sampled_from((0, 1, 16, 17, 64, 200)), st.integers(1, 20_000)),
    st.sampled_from((1, 40, 512, 4096)),
)
def test_head_and_statistics_in_one_equal_the_definition(case, depth):
    properties.check_head(case, depth, GPU)


def test_unusable_rows_are_told_from_usable_ones():
    properties.check_unusable_rows(GPU)


@few
@given(properties.cases(st.integers(1, 64), st.integers(3, 5000)))
def test_a_prediction_says_the_same_with_both_implementations(case):
    properties.check_prediction(case, GPU)


def test_the_kernels_are_what_runs_on_a_gpu():
    logits = torch.randn(2, 3, 100, device=GPU)
    assert dispatch.uses_triton(logits)
    with dispatch.using("reference"):
        assert not dispatch.uses_triton(logits)


def test_row_offsets_beyond_two_gibi_elements_are_reached():
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    rows, vocabulary = 17_000, 130_000
    logits = torch.zeros(rows, vocabulary, dtype=torch.bfloat16, device=GPU)
    logits[-1, -1] = 5.0
    found = fused.row_statistics(logits)
    assert found.token[-1].item() == vocabulary - 1
    assert found.maximum[-1].item() == 5.0


def test_a_step_of_statistics_credit_and_selection_never_waits_for_the_device():
    logits = torch.randn(4, 32, 5000, device=GPU)
    banned = torch.tensor([0], device=GPU)
    slots = torch.full((4, 32, 4), -1, device=GPU)
    credit = torch.zeros(4, 32, 4, dtype=torch.float64, device=GPU)
    alpha = torch.full((4,), 0.65, device=GPU)
    opened = torch.ones(4, 32, dtype=torch.bool, device=GPU)

    def step() -> None:
        done = Prediction.of(logits, banned).credited(slots, credit, alpha, alpha, 0.2, opened)
        threshold = torch.full((4,), 0.9, device=GPU)
        dispatch.threshold_selection(done.prediction.confidence, opened, threshold)

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_definition_takes_the_lowest_id_on_ties_on_this_device():
    values = torch.randint(0, 3, (300, 70_000), device=GPU).float()
    assert torch.equal(reference.lowest_argmax(values)[1].cpu(), values.cpu().max(-1).indices)
