"""The kernel properties under Triton's interpreter; `test_kernels.py` runs this in a subprocess.

The interpreter is chosen when the kernels are imported, so it cannot be switched on in a process
that may have imported them already.
"""

from __future__ import annotations

import logging
from unittest import mock

import kernel_properties as properties
import pytest
import torch
from drawing import examples, number
from hypothesis import given
from hypothesis import strategies as st
from simulated_gpu import SimulatedGpu

from dllm_decode.decoding.loop import Decoder, Run
from dllm_decode.decoding.prediction import DensePrediction, HiddenStates, Prediction
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request, Vocab
from dllm_decode.kernels import dispatch, fused
from dllm_decode.kernels.reference import Slots
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.threshold import ConfidenceThreshold

CPU = "cpu"
PROGRAMS = ("scan_rows", "finish_rows", "credit_rows", "select_rows", "scan_head", "gather_head")
# few long rows or many short ones: the interpreter takes milliseconds for every block of every row
LONG = number(300, 1000)
FEW = properties.cases(st.integers(0, 4), st.one_of(st.integers(1, 40), st.integers(1, LONG)))
MANY = properties.cases(st.integers(5, number(20, 70)), st.integers(1, 24))
CASES = st.integers(0, 5).flatmap(lambda number: MANY if number == 5 else FEW)


def test_the_interpreter_is_on():
    assert fused.INTERPRETED


@examples(3)
@given(CASES, st.sampled_from((0, 1, 2, 5, 32)))
def test_statistics_equal_the_definition(case, k):
    properties.check_statistics(case, CPU, k)


@pytest.mark.slow
def test_statistics_of_many_rows_equal_the_definition():
    case = properties.Case(20, 200, torch.bfloat16, "ties", spare=1, bans=4, seed=3)
    properties.check_statistics(case, CPU, k=2)


@pytest.mark.slow
@examples(3)
@given(
    properties.cases(st.integers(1, 2), st.integers(1, 250)),
    st.sampled_from((16, 32, 128)),
    st.integers(1, 3),
)
def test_however_a_row_is_split_the_result_is_the_same(case, block, blocks):
    properties.check_parts_agree(case, CPU, block, blocks)


@examples(3)
@given(FEW)
def test_a_rows_numbers_do_not_depend_on_its_place(case):
    properties.check_permutation(case, CPU)


@examples(5)
@given(CASES, st.sampled_from((0.05, 0.7, 1.0, 3.0)))
def test_draws_equal_those_of_the_definition(case, temperature):
    properties.check_draws(case, CPU, temperature)


@examples(5)
@given(
    CASES,
    st.integers(1, 8),
    st.sampled_from((0.0, 0.2, 1.0, 2.0)),
    st.sampled_from(("nothing", "statistics", "logits")),
)
def test_credit_equals_the_definition(case, slots, gamma, known):
    properties.check_credit(case, CPU, slots, gamma, known)


@examples(3)
@given(st.integers(0, 70), st.integers(1, 70), st.booleans(), st.integers(0, 2**32))
def test_selection_equals_the_definition(rows, columns, strict, seed):
    properties.check_selection(rows, columns, strict, seed, CPU)


@examples(5)
@given(properties.cases(st.integers(0, 20), st.integers(1, 300)), st.integers(1, 100))
def test_head_and_statistics_in_one_equal_the_definition(case, depth):
    properties.check_head(case, depth, CPU)


@pytest.mark.slow
@examples(3)
@given(properties.cases(st.integers(0, 20), st.integers(1, 300)), st.integers(1, 40))
def test_a_head_in_slabs_equals_the_definition(case, depth):
    with mock.patch.multiple(fused, MANY_ROWS=0, SCRATCH=0):
        properties.check_head(case, depth, CPU)


@pytest.mark.slow
def test_unusable_rows_are_told_from_usable_ones():
    properties.check_unusable_rows(CPU)


@pytest.mark.slow
@examples(3)
@given(properties.cases(st.integers(1, 3), st.integers(3, 300)))
def test_a_prediction_says_the_same_with_both_implementations(case):
    properties.check_prediction(case, CPU)


def test_a_head_prediction_agrees_with_the_dense_one():
    hidden, weight = torch.randn(2, 3, 32), torch.randn(50, 32) / 4
    banned = torch.tensor([49])
    dense = Prediction.of(hidden @ weight.T, banned)
    ids = torch.tensor([0, 49, -1]).expand(2, 3, 3)
    with dispatch.using("triton"):
        head = Prediction.of(HiddenStates(hidden, weight), banned)
        assert torch.equal(head.top_token, dense.top_token)
        torch.testing.assert_close(head.entropy, dense.entropy)
        torch.testing.assert_close(head.prob_of(ids), dense.prob_of(ids))
        assert "_rows" not in vars(head), "the logits were written"
        torch.testing.assert_close(head.margin, dense.margin)
        torch.testing.assert_close(head.probs, dense.probs)


class Sketch:
    """A model whose hidden states mix the tokens of the row; its head is a matrix."""

    vocab = Vocab(40, 39)
    device = torch.device(CPU)
    max_length = None
    head_obstacle = ""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(40, 24, generator=generator)
        self.weight = torch.randn(40, 24, generator=generator) / 8

    def before_head(self, tokens, live, index, plan):
        states = self.embedding[tokens] * live[..., None]
        hidden = states.sum(1, keepdim=True) / 4 + self.embedding[index.clamp(min=0)]
        return HiddenStates(hidden, self.weight)

    def __call__(self, tokens, live, index, plan):
        return self.before_head(tokens, live, index, plan).logits


@pytest.mark.slow
def test_a_credit_decode_is_the_same_fused_from_the_head_to_the_selection_and_in_plain_torch():
    model, request = Sketch(), Request(((1, 2), (3,)), 6)
    credit = TraceCredit(slots=2)
    strategy = Pipeline(ConfidenceThreshold(threshold=0.15), transforms={"credit": credit})
    plain = Decoder(model, strategy, Blocks(3)).decode(request)
    with SimulatedGpu() as gpu:
        gpu.interpret(PROGRAMS)
        model.device = torch.device("cuda", 0)
        model.embedding, model.weight = model.embedding.to("cuda"), model.weight.to("cuda")
        run = Run(Decoder(model, strategy, Blocks(3)), request)
        run.admit(range(2))
        run.step()
        gpu.clear()
        run.step()
        assert len(gpu.waits) == 1 and not gpu.uploads
        assert gpu.programs == {name: 1 for name in PROGRAMS if name != "scan_rows"}
        while run.live:
            run.step()
        fused = run.result()
    assert fused.sequences == plain.sequences
    assert fused.step_of == plain.step_of
    assert max(fused.forwards) < 6
    assert fused.confidence_of != plain.confidence_of, "the kernels did not run"


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        (torch.zeros(2, 4, dtype=torch.float64), "torch.float64; the kernels take float32"),
        (torch.zeros(4, 2).T, "a contiguous last dimension"),
    ],
)
def test_what_a_kernel_cannot_do_falls_back_with_one_logged_reason(logits, reason, caplog):
    with dispatch.using("triton"), caplog.at_level(logging.WARNING):
        for _ in range(2):
            stats = dispatch.row_statistics(logits)
    assert stats.total.tolist() == [4.0, 4.0] if logits.shape[1] == 4 else stats.total.tolist()
    assert len(caplog.records) == 1
    assert reason in caplog.text


def test_more_of_the_largest_than_the_kernel_finds_come_from_the_definition(caplog):
    pred = Prediction.of(torch.arange(100.0)[None, None])
    assert isinstance(pred, DensePrediction)
    with dispatch.using("triton"), caplog.at_level(logging.WARNING):
        assert pred.topk(40)[1][0, 0].tolist() == list(range(99, 59, -1))
        assert pred.topk(2)[1][0, 0].tolist() == [99, 98]
    assert "the 40 largest logits; the kernel finds up to 32" in caplog.text


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (torch.zeros(1, 4, dtype=torch.float16), "scores of type torch.float16"),
        (torch.zeros(1, 0), "a window of 0 slots"),
    ],
)
def test_selection_refuses_what_it_cannot_do(scores, reason):
    with pytest.raises(fused.Unsupported, match=reason):
        fused.threshold_selection(scores, scores > 0, scores.new_zeros(1))


def test_a_head_of_another_dtype_is_refused():
    message = r"hidden states of torch\.float32 on cpu and a head of torch\.bfloat16 on cpu"
    with pytest.raises(fused.Unsupported, match=message):
        fused.head_statistics(torch.zeros(1, 4), torch.zeros(3, 4, dtype=torch.bfloat16))


def test_statistics_are_defined_where_everything_is_removed():
    logits = torch.tensor([[[1.0, 2.0, 0.5, 0.0], [3.0, 0.0, 0.0, 1.0]]])
    ids = torch.tensor([[[1, -1], [2, -1]]])
    found = []
    for kernels in ("triton", "reference"):
        with dispatch.using(kernels):
            pred = Prediction.of(logits).suppress(torch.arange(4))
            more = pred.with_logit_bias(ids, torch.ones(1, 2, 2), never_negative=True)
            slots = Slots(
                ids, ids.double().clamp(0), torch.ones(1), torch.ones(1), 0.2, ids[..., 0] > 0
            )
            done = pred.credited(slots)
            for one in (pred, more, done.prediction):
                assert one.token.tolist() == [[-1, -1]]
                assert one.confidence.tolist() == one.margin.tolist() == [[0.0, 0.0]]
                torch.testing.assert_close(one.entropy.float(), torch.full((1, 2), 4.0).log())
            found.append((done.ids.tolist(), done.credit.tolist()))
    assert found[0] == found[1] == ([[[-1, -1]] * 2], [[[0.0, 0.0]] * 2])
