"""The fused kernels without a GPU: under Triton's interpreter, and compiled ahead of time."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dllm_decode.errors import ConfigError
from dllm_decode.kernels import dispatch, reference
from dllm_decode.prediction import Prediction

HERE = Path(__file__).parent


def test_the_kernels_do_what_the_definition_says_under_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "kernels_interpreted.py"],
        cwd=HERE,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


INTEGERS = ("stride", "hidden_stride", "weight_stride", "rows", "vocabulary", "columns")
BANS_AND_PARTS = {"BANS": 3, "PARTS": 31, "PART_WIDTH": 32}
SCAN = {"BANS": 3, "BLOCK": 2048, "CHUNK": 126_976, "K": 2, "WIDTH": 2, "DRAW": False}
HEAD = {"DEPTH": 4096, "BANS": 3, "CHUNK": 1024, "BLOCK": 128, "INNER": 64, "UPCAST": False}
PARTS_IN = {"tokens": "*i32", "keys": "*i64", "noisy": "*fp64", "drawn": "*i32"}
SCAN_OUT = {"token_out": "*i32", "keys_out": "*i64", "noisy_out": "*fp64", "drawn_out": "*i32"}
FINISH_OUT = {"token_out": "*i64", "id_out": "*i64", "drawn_out": "*i64"}
CREDIT = {
    **{"opened": "*i8", "old_ids": "*i64", "old_credit": "*fp64", "alphas": "*fp64"},
    **{"betas": "*fp64", "ids_out": "*i64", "credit_out": "*fp64", "delta_out": "*fp64"},
    **{"token_out": "*i64", "fused_token": "*i64", "fused_maximum": "*fp64"},
    **{"fused_total": "*fp64", "fused_moment": "*fp64"},
}


@pytest.mark.parametrize(
    ("program", "types", "constants"),
    [
        ("scan_rows", {**SCAN_OUT, "logits": "*bf16"}, SCAN),
        ("scan_rows", {**SCAN_OUT, "logits": "*fp16"}, {**SCAN, "K": 0, "WIDTH": 1}),
        ("scan_rows", {**SCAN_OUT, "logits": "*fp32"}, {**SCAN, "K": 8, "WIDTH": 8}),
        ("scan_rows", {**SCAN_OUT, "logits": "*bf16"}, {**SCAN, "BLOCK": 1024, "DRAW": True}),
        (
            "finish_rows",
            {**PARTS_IN, **FINISH_OUT, "logits": "*bf16"},
            {**BANS_AND_PARTS, "K": 2, "WIDTH": 2, "SLOTS": 8, "SLOT_WIDTH": 8, "DRAW": True},
        ),
        (
            "credit_rows",
            {**CREDIT, "tokens": "*i32", "logits": "*bf16"},
            {**BANS_AND_PARTS, "SLOTS": 8, "SLOT_WIDTH": 8},
        ),
        (
            "credit_rows",
            {**CREDIT, "tokens": "*i64", "logits": "*fp32"},
            {"BANS": 0, "PARTS": 1, "PART_WIDTH": 1, "SLOTS": 5, "SLOT_WIDTH": 8},
        ),
        (
            "select_rows",
            {"opened": "*i8", "commit_out": "*i8", "left_out": "*i64"},
            {"STRICT": False, "WIDTH": 64},
        ),
        (
            "scan_head",
            {"hidden": "*bf16", "weight": "*bf16", "token_out": "*i32"},
            {**HEAD, "ROWS": 64},
        ),
        ("scan_head", {"token_out": "*i32"}, {**HEAD, "ROWS": 16, "UPCAST": True}),
    ],
)
def test_every_kernel_compiles_for_sm_90_without_a_gpu(program, types, constants):
    pytest.importorskip("triton", reason="Triton is published for Linux only")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dllm_decode.kernels import programs

    function = getattr(programs, program)
    signature = {}
    for name in function.arg_names:
        usual = "i32" if name in INTEGERS else "fp32" if name in ("temperature", "gamma") else None
        usual = usual or ("*i64" if name in ("banned", "states", "wanted") else "*fp32")
        signature[name] = "constexpr" if name in constants else types.get(name, usual)
    source = ASTSource(function, signature, constexprs=constants)
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert kernel.asm["cubin"][:4] == b"\x7fELF"


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


def test_the_twins_have_the_signatures_of_the_definition():
    pytest.importorskip("triton", reason="Triton is published for Linux only")
    import inspect

    from dllm_decode.kernels import fused

    names = (
        "row_statistics top_k gumbel_statistics credit_update threshold_selection head_statistics"
    )
    for name in names.split():
        expected = inspect.signature(getattr(reference, name))
        assert inspect.signature(getattr(fused, name)) == expected
        assert inspect.signature(getattr(dispatch, name)) == expected
