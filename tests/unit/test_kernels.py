"""The fused kernels without a GPU: under Triton's interpreter, and compiled ahead of time."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from drawing import profile

from dllm_decode.decoding.prediction import Prediction
from dllm_decode.errors import ConfigError
from dllm_decode.kernels import dispatch, reference

HERE = Path(__file__).parent


def test_the_kernels_do_what_the_definition_says_under_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "kernels_interpreted.py"],
        cwd=HERE,
        env={**os.environ, "TRITON_INTERPRET": "1", "HYPOTHESIS_PROFILE": profile()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


# What callers launch at real sizes: tensors without memory go in, launches are written down and
# compiled as they would be on a GPU. Shared memory of a block on sm_90 [bytes].
SHARED = 227 * 1024
LLADA, WIDTH = 126_464, 4096
PROGRAMS = ("scan_rows", "finish_rows", "credit_rows", "select_rows", "scan_head", "gather_head")


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def ids(*shape):
    return empty(*shape, dtype=torch.int64)


def doubles(*shape):
    return empty(*shape, dtype=torch.float64)


def flags(*shape):
    return empty(*shape, dtype=torch.bool)


def statistics_of(rows, dtype):
    values = (empty(rows, dtype=dtype) for _ in range(3))
    return reference.RowStatistics(ids(rows), *values)


def slots(rows, count=8):
    one = doubles(rows)
    return reference.Slots(ids(rows, count), doubles(rows, count), one, one, 0.2, flags(rows))


def a_greedy_step(fused, rows):
    raw = fused.row_statistics(empty(rows, LLADA), ids(2), 2)
    fused.credit_update(empty(rows, LLADA), slots(rows), ids(2), raw)


def a_step_before_the_head(fused, rows):
    hidden, head = empty(rows, WIDTH), empty(LLADA, WIDTH)
    raw = fused.head_statistics(hidden, head, ids(2))
    values = fused.head_logits_at(hidden, head, ids(rows, 8), ids(2))
    fused.credit_from(values, raw, slots(rows))


def what_follows_a_raised_prediction(fused):
    fused.credit_from(doubles(64, 8), statistics_of(64, torch.float64), slots(64))


def selections(fused):
    for strict, dtype in ((False, torch.float32), (True, torch.float64)):
        scores = empty(32, 64, dtype=dtype)
        fused.threshold_selection(scores, flags(32, 64), empty(32, dtype=dtype), strict)
    scores = empty(1, 1, dtype=torch.float32)
    fused.threshold_selection(scores, flags(1, 1), empty(1, dtype=torch.float32))


def other_dtypes(fused):
    fused.credit_update(empty(64, LLADA, dtype=torch.float32), slots(64))
    fused.row_statistics(empty(64, LLADA, dtype=torch.float16), None, 0, ids(64, 5))
    fused.head_statistics(*(empty(n, 64, dtype=torch.float32) for n in (4, 300)))
    fused.top_k(empty(1, 157_184), 32)


def sizes_of_one(fused):
    """Triton treats arguments that are 1 as constants."""
    fused.gumbel_statistics(empty(1, 1), ids(1), 1.0, None, 1)
    fused.head_statistics(empty(1, 1), empty(1, 1))
    fused.head_logits_at(empty(1, 1), empty(1, 1), ids(1, 1))
    fused.credit_update(empty(1, 1), slots(1, 1))


def rarely(name, calls):
    """Other sizes of the same programs: compiling takes a second or two for each."""
    return pytest.param(calls, id=name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param(lambda fused: a_greedy_step(fused, 1), id="greedy, 1 row"),
        rarely("greedy, 2048 rows", lambda fused: a_greedy_step(fused, 2048)),
        pytest.param(
            lambda fused: fused.gumbel_statistics(empty(64, LLADA), ids(64), 0.8, ids(2), 2),
            id="draw, 64 rows",
        ),
        rarely("head, 4 rows", lambda fused: a_step_before_the_head(fused, 4)),
        pytest.param(lambda fused: a_step_before_the_head(fused, 64), id="head, 64 rows"),
        rarely("head, 2048 rows", lambda fused: a_step_before_the_head(fused, 2048)),
        what_follows_a_raised_prediction,
        selections,
        rarely("other dtypes", other_dtypes),
        rarely("sizes of one", sizes_of_one),
    ],
)
def test_what_is_launched_at_real_sizes_compiles_for_sm_90_without_a_gpu(calls, monkeypatch):
    pytest.importorskip("triton", reason="Triton is published for Linux only")
    from dllm_decode.kernels import fused, programs

    launched = []
    monkeypatch.setattr(fused, "_check_device", lambda tensor: None)
    for name in PROGRAMS:
        monkeypatch.setattr(programs, name, Launches(getattr(programs, name), launched))
    calls(fused)
    assert launched
    for program, grid, given in launched:
        # the limit of CUDA on all dimensions of a grid but the first
        assert all(size <= 65_535 for size in grid[1:])
        kernel = compiled(program, given)
        assert kernel.asm["cubin"][:4] == b"\x7fELF"
        assert kernel.metadata.shared <= SHARED


class Launches:
    """Stands in for a program and writes down what it is launched with."""

    def __init__(self, program, launched):
        self.program = program
        self.launched = launched

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            given = dict(zip(self.program.arg_names, args, strict=False)) | kwargs
            self.launched.append((self.program, grid, given))

        return launch


def compiled(program, given):
    """A launch as Triton would compile it: by dtype, ones as constants, and what 16 divides."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {
        **{torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"},
        **{torch.float64: "*fp64", torch.int64: "*i64", torch.int32: "*i32", torch.int8: "*i8"},
        torch.bool: "*i1",
    }
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(program.params):
        name, value = parameter.name, given[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = kinds[value.dtype]
        else:
            assert isinstance(value, float) or value < 2**31
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    options = {name: given[name] for name in ("num_warps", "num_stages") if name in given}
    source = ASTSource(program, signature, constants, attributes)
    return compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def test_an_unknown_choice_of_kernels_is_refused():
    with pytest.raises(ConfigError, match="kernels must be one of auto, reference, triton; got 7"):
        dispatch.choose(7)
    assert dispatch.chosen() == "auto"


def test_a_choice_of_kernels_ends_with_its_block():
    with pytest.raises(KeyError), dispatch.using("reference"):
        assert dispatch.chosen() == "reference"
        raise KeyError
    assert dispatch.chosen() == "auto"


def test_tensors_on_the_cpu_take_the_definition_in_silence(caplog):
    with caplog.at_level(logging.INFO):
        Prediction.of(torch.zeros(1, 2, 3)).topk(2)
    assert not caplog.records
    assert not dispatch.uses_triton(torch.zeros(1))


def test_kernels_asked_for_on_the_cpu_fall_back_with_a_reason(caplog):
    pytest.importorskip("triton", reason="Triton is published for Linux only")
    dispatch._said.clear()
    logits = torch.randn(2, 3, 5)
    with dispatch.using("triton"), caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = Prediction.of(logits).entropy
    assert torch.equal(found, Prediction.of(logits).entropy)
    assert len(caplog.records) == 1
    assert "a tensor on cpu; the kernels run on CUDA devices" in caplog.text


def test_a_missing_triton_falls_back_with_one_logged_reason(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "dllm_decode.kernels.fused", None)
    dispatch._triton.cache_clear()
    dispatch._said.clear()
    try:
        with dispatch.using("triton"), caplog.at_level(logging.WARNING):
            for _ in range(2):
                stats = dispatch.row_statistics(torch.zeros(1, 4))
    finally:
        dispatch._triton.cache_clear()
    assert stats.total.item() == 4.0
    assert [record.message for record in caplog.records] == [caplog.records[0].message]
    assert "Triton cannot be imported" in caplog.text


def test_kernels_that_cannot_be_started_fall_back_with_one_logged_reason(monkeypatch, caplog):
    """Triton is there, but has no C compiler, or the driver is too old."""
    pytest.importorskip("triton", reason="Triton is published for Linux only")
    from dllm_decode.kernels import fused

    def broken(*given):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(fused, "row_statistics", broken)
    monkeypatch.setattr(dispatch.torch, "zeros", lambda *shape, device: torch.empty(shape))
    gpu = torch.device("cuda", 7)
    dispatch._starts.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert not dispatch.fuses_head(gpu, "")
        assert not dispatch._runs_on(gpu)
    dispatch._starts.cache_clear()
    assert len(caplog.records) == 1
    assert "no kernel starts on cuda:7 (Failed to find C compiler)" in caplog.text


def test_the_twins_have_the_signatures_of_the_definition():
    pytest.importorskip("triton", reason="Triton is published for Linux only")
    import inspect

    from dllm_decode.kernels import fused

    names = (
        "row_statistics top_k gumbel_statistics credit_update credit_from threshold_selection "
        "head_statistics head_logits_at"
    )
    for name in names.split():
        expected = inspect.signature(getattr(reference, name))
        assert inspect.signature(getattr(fused, name)) == expected
        assert inspect.signature(getattr(dispatch, name)) == expected
