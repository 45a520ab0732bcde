"""The kernel properties on a real GPU at real shapes: `python -m pytest -m gpu`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is published for Linux only")

import kernel_properties as properties

from dllm_decode.benchmarks.step import Size, random_model, random_request
from dllm_decode.config.compose import compose_checked
from dllm_decode.console.display import make_display
from dllm_decode.console.runfolder import RunFolder
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.prediction import HeadPrediction, HiddenStates, Prediction
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.selection import reaching
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.kernels import dispatch, fused, reference
from dllm_decode.kernels.reference import Slots
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.tasks import Context
from dllm_decode.tasks.bench import KernelBench
from dllm_decode.tasks.bench_step import StepBench

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = "cuda"
# Every shape is compiled anew, in seconds, so shapes are few: tests/unit/test_gpu_cases.py holds
# that all of it takes minutes and that a small card holds every case.
ROWS = st.sampled_from((0, 1, 17, 64, 512))
VOCABULARY = st.sampled_from((1, 40, 1000, 50_257, 126_464))
few = settings(max_examples=10, deadline=None, derandomize=True, database=None)
CASES = properties.cases(ROWS, VOCABULARY)


@few
@given(CASES, st.sampled_from((0, 2, 32)))
def test_statistics_equal_the_definition(case, k):
    properties.check_statistics(case, GPU, k)


@few
@given(
    properties.cases(st.sampled_from((1, 70)), st.sampled_from((5, 300, 20_000))),
    st.sampled_from((16, 1024)),
    st.sampled_from((1, 3)),
)
def test_however_a_row_is_split_the_result_is_the_same(case, block, blocks):
    properties.check_parts_agree(case, GPU, block, blocks)


@few
@given(CASES)
def test_a_rows_numbers_do_not_depend_on_its_place(case):
    properties.check_permutation(case, GPU)


@few
@given(
    properties.cases(st.sampled_from((0, 64)), st.sampled_from((40, 126_464))),
    st.sampled_from((0.05, 0.7, 1.0, 3.0)),
)
def test_draws_equal_those_of_the_definition_on_the_cpu(case, temperature):
    properties.check_draws(case, GPU, temperature)


def test_draws_follow_the_tempered_distribution():
    properties.check_frequencies(GPU, rows=100_000, limit=20.5)


@few
@given(
    CASES,
    st.sampled_from((1, 8, 32)),
    st.sampled_from((0.0, 0.2, 1.0, 2.0)),
    st.sampled_from(("nothing", "statistics", "logits")),
)
def test_credit_equals_the_definition(case, slots, gamma, known):
    properties.check_credit(case, GPU, slots, gamma, known)


@few
@given(st.integers(0, 70), st.sampled_from((1, 40, 2048)), st.booleans(), st.integers(0, 2**32))
def test_selection_equals_the_definition(rows, columns, strict, seed):
    properties.check_selection(rows, columns, strict, seed, GPU)


@few
@given(
    properties.cases(st.sampled_from((0, 1, 16, 64, 200)), st.sampled_from((40, 20_000))),
    st.sampled_from((1, 512)),
)
def test_head_and_statistics_in_one_equal_the_definition(case, depth):
    half = torch.bfloat16 if case.dtype == torch.float32 else case.dtype  # others are refused
    properties.check_head(replace(case, dtype=half), depth, GPU)


def test_unusable_rows_are_told_from_usable_ones():
    properties.check_unusable_rows(GPU)


@few
@given(properties.cases(st.sampled_from((1, 64)), st.sampled_from((3, 5000))))
def test_a_prediction_says_the_same_with_both_implementations(case):
    properties.check_prediction(case, GPU)


def test_the_kernels_are_what_runs_on_a_gpu():
    logits = torch.randn(2, 3, 100, device=GPU)
    assert dispatch._starts(torch.device(GPU)), "see the warning that was logged"
    assert dispatch.uses_triton(logits)
    assert dispatch.fuses_head(torch.device(GPU), "")
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


def pass_with_logits():
    return torch.randn(4, 32, 5000, device=GPU)


def pass_without():
    hidden = torch.randn(4, 32, 256, device=GPU, dtype=torch.bfloat16)
    return HiddenStates(hidden, torch.randn(5000, 256, device=GPU, dtype=torch.bfloat16))


@pytest.mark.parametrize("forward", [pass_with_logits, pass_without])
def test_a_step_of_statistics_credit_and_selection_never_waits_for_the_device(forward):
    logits = forward()
    banned = torch.tensor([0], device=GPU)
    slots = torch.full((4, 32, 4), -1, device=GPU)
    credit = torch.zeros(4, 32, 4, dtype=torch.float64, device=GPU)
    alpha = torch.full((4,), 0.65, device=GPU)
    opened = torch.ones(4, 32, dtype=torch.bool, device=GPU)
    before = Slots(slots, credit, alpha, alpha, 0.2, opened)

    def step() -> None:
        done = Prediction.of(logits, banned).credited(before)
        assert done.prediction.token.is_cuda
        reaching(done.prediction.confidence, opened, 0.9)

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_definition_takes_the_lowest_id_on_ties_on_this_device():
    values = torch.randint(0, 3, (300, 70_000), device=GPU).float()
    assert torch.equal(reference.lowest_argmax(values)[1].cpu(), values.cpu().max(-1).indices)


@pytest.mark.parametrize("temperature", [0.05, 0.7, 0.8, 3.0])
def test_plain_torch_draws_the_same_here_as_on_the_cpu(temperature):
    case = properties.Case(40, 30_011, torch.float32, "ties", spare=0, bans=4, seed=5)
    (logits, banned), states = case.logits(GPU), case.states(GPU)
    here = reference.gumbel_argmax(logits, states, temperature, banned)
    there = reference.gumbel_argmax(logits.cpu(), states.cpu(), temperature, banned.cpu())
    assert torch.equal(here.cpu(), there)


@pytest.mark.parametrize("columns", [4096, 4097, 32_768])
def test_wide_windows_are_selected_as_the_definition_says(columns):
    properties.check_selection(3, columns, False, 7, GPU)


def test_a_pass_without_logits_takes_less_memory_than_they_would():
    hidden = torch.randn(1, 512, 1024, device=GPU, dtype=torch.bfloat16)
    weight = torch.randn(126_464, 1024, device=GPU, dtype=torch.bfloat16)
    ids = torch.randint(126_464, (1, 512, 8), device=GPU)
    banned = torch.tensor([7], device=GPU)

    def ask() -> Prediction:
        pred = Prediction.of(HiddenStates(hidden, weight), banned)
        _ = pred.confidence, pred.entropy, pred.prob_of(ids), pred.healthy
        return pred

    ask()  # compiles
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    pred = ask()
    logits = 512 * 126_464 * hidden.element_size()
    assert torch.cuda.max_memory_allocated() - before < logits / 8
    dense = Prediction.of(torch.mm(hidden[0], weight.T, out_dtype=torch.float32)[None], banned)
    assert isinstance(pred, HeadPrediction)
    properties.assert_close(pred.logsumexp, dense.logsumexp, 1e-3, 1e-3)
    torch.testing.assert_close(pred.logit_of(ids), dense.logit_of(ids), rtol=1e-3, atol=1e-3)


def test_a_decode_is_the_same_in_one_kernel_and_in_plain_torch():
    """Small sizes, so that no two logits are nearer than their rounding."""
    size = Size(vocabulary=500, width=128, inner=256, layers=2, heads=4, positions=64)
    denoiser = random_model(size, "bfloat16", torch.device(GPU)).denoiser
    strategy = Pipeline(ConfidenceThreshold(0.01), transforms={"credit": TraceCredit()})
    request = random_request(size, rows=5, prompt=9, tokens=32)
    decoder = Decoder(denoiser, strategy, Blocks(16))
    with dispatch.using("auto", "auto"):
        fused_result = decoder.decode(request)
    with dispatch.using("reference", "apart"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "fuses_head", lambda device, obstacle: True)
        plain = decoder.decode(request)
    assert fused_result.sequences == plain.sequences
    assert fused_result.step_of == plain.step_of


def test_both_benchmarks_run_here(tmp_path):
    cfg = compose_checked(["schedule.length=8"])
    context = Context(cfg, (), {}, RunFolder(tmp_path), make_display("plain"))
    KernelBench(
        batches=(1,), windows=(2,), vocabularies=(1000,), width=64, repeats=2, device=GPU
    ).run(context)
    assert "head then statistics triton" in (tmp_path / "kernels.json").read_text()
    size = {"vocabulary": 300, "width": 64, "inner": 64, "layers": 1, "heads": 2}
    StepBench(**size, batches=(2,), prompt=3, tokens=8, rounds=1, device=GPU).run(context)
    assert '"head": "auto"' in (tmp_path / "step.json").read_text()
