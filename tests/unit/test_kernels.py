"""The fused kernels without a GPU: under Triton's interpreter, and compiled ahead of time."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from pathlib import Path

import binaries
import pytest
import torch
from binaries import Launches, compiled
from interpreted import check_interpreted

from dllm_decode.decoding.prediction import Prediction
from dllm_decode.errors import ConfigError
from dllm_decode.kernels import dispatch, reference

HERE = Path(__file__).parent


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_kernels_do_what_the_definition_says_under_the_interpreter(which):
    check_interpreted(HERE / "kernels_interpreted.py", "-m", which, seconds=900)


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
    fused.top_k(empty(1, 157_184), 32)


def sizes_of_one(fused):
    """Triton treats arguments that are 1 as constants."""
    fused.gumbel_statistics(empty(1, 1), ids(1), 1.0, None, 1)
    fused.head_statistics(empty(1, 1), empty(1, 1))
    fused.head_logits_at(empty(1, 1), empty(1, 1), ids(1, 1))
    fused.credit_update(empty(1, 1), slots(1, 1))


def rows_of_odd_length(fused):
    """A vocabulary that 16 does not divide, and one that 8 does not either."""
    fused.row_statistics(empty(64, 50_257), ids(2), 2)
    fused.row_statistics(empty(64, 50_257, dtype=torch.float32))
    fused.gumbel_statistics(empty(64, 32_004, dtype=torch.float16), ids(64), 0.8)


def rarely(name, calls):
    """Other sizes of the same programs: compiling takes a second or two for each."""
    return pytest.param(calls, id=name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param(lambda fused: a_greedy_step(fused, 1), id="greedy, 1 row"),
        rarely("greedy, 2048 rows", lambda fused: a_greedy_step(fused, 2048)),
        rarely(
            "draw, 64 rows",
            lambda fused: fused.gumbel_statistics(empty(64, LLADA), ids(64), 0.8, ids(2), 2),
        ),
        rarely("head, 4 rows", lambda fused: a_step_before_the_head(fused, 4)),
        rarely("head, 64 rows", lambda fused: a_step_before_the_head(fused, 64)),
        rarely("head, 2048 rows", lambda fused: a_step_before_the_head(fused, 2048)),
        what_follows_a_raised_prediction,
        selections,
        rarely("other dtypes", other_dtypes),
        rarely("rows of odd length", rows_of_odd_length),
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
        if binaries.tool() is not None:
            check_figures(program.__name__, given, binaries.binary(kernel))


# Instructions per logit of a usual round through the vocabulary, with a draw and without.
PLAIN, DRAWN = 11, 60


def check_figures(name, given, binary):
    """What docs/kernels.md says of the machine code, so that it cannot creep."""
    if name == "scan_rows" and given["BLOCK"] == 1024:
        per_thread = given["BLOCK"] / 32
        assert len(binary.loop("MUFU.EX2")) / per_thread <= (DRAWN if given["DRAW"] else PLAIN)
        assert not [code for code in binary.opcodes if code.startswith("LDG.E.U16")]
        # 16 bytes at once, within the row and at its edges; each logit once in a usual round
        loads = Counter(binaries.opcode(line) for line in binary.loop("MUFU.EX2"))
        assert loads["LDG.E.128"] == per_thread / given["VECTOR"]
    if name in ("scan_rows", "scan_head") and given.get("K", 0) <= 2:
        assert binary.stack == 0, "registers are spilled"


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_the_head_fits_into_the_registers_of_every_device_it_is_offered_for(
    capability, monkeypatch
):
    pytest.importorskip("triton", reason="Triton is published for Linux only")
    from dllm_decode.kernels import fused, programs

    if binaries.tool() is None:
        pytest.skip("this Triton has no cuobjdump")
    launched = []
    monkeypatch.setattr(fused, "_check_device", lambda tensor: None)
    monkeypatch.setattr(programs, "scan_head", Launches(programs.scan_head, launched))
    monkeypatch.setattr(programs, "finish_rows", Launches(programs.finish_rows, []))
    for rows in (4, 64, 512):
        fused.head_statistics(empty(rows, WIDTH), empty(LLADA, WIDTH), ids(2))
    small = {86, 89, 120}  # 99 kB of shared memory in a block
    for program, _, given in launched:
        kernel = compiled(program, given, capability)
        assert binaries.binary(kernel).stack == 0, "registers are spilled"
        assert kernel.metadata.shared <= (99 if capability in small else 163) * 1024


def test_a_head_is_refused_where_its_tiles_would_spill(monkeypatch, caplog):
    pytest.importorskip("triton", reason="Triton is published for Linux only")
    from dllm_decode.kernels import fused

    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(dispatch, "_starts", lambda device: True)
    for capability, works in (((7, 5), False), ((8, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, c=capability: c)
        with caplog.at_level(logging.WARNING):
            assert dispatch.fuses_head(gpu, "") is works
    assert "apart from the statistics: a head on a device of capability 7.5; before 8.0" in (
        caplog.text
    )
    monkeypatch.setattr(fused, "_check_device", lambda tensor: None)
    with pytest.raises(fused.Unsupported, match=r"a head of torch\.float32; its tiles do not fit"):
        fused.head_statistics(*(empty(n, 64, dtype=torch.float32) for n in (4, 300)))


@pytest.mark.parametrize(("rows", "way"), [(1, "fused"), (512, "fused"), (2048, "slabs")])
def test_many_rows_go_through_the_head_in_slabs_of_the_library_s_product(rows, way, monkeypatch):
    pytest.importorskip("triton", reason="Triton is published for Linux only")
    from dllm_decode.kernels import fused, programs

    launched = []
    monkeypatch.setattr(fused, "_check_device", lambda tensor: None)
    for name in PROGRAMS:
        monkeypatch.setattr(programs, name, Launches(getattr(programs, name), launched))
    fused.head_statistics(empty(rows, 64), empty(20_000, 64), ids(2))
    assert fused.head_plan(rows)[0] == way
    names = [program.__name__ for program, *_ in launched]
    assert names == (["scan_head"] if way == "fused" else ["scan_rows"] * 5) + ["finish_rows"]
    if way == "slabs":  # each slab writes its own parts
        starts = [given["first_part"] for _, _, given in launched[:5]]
        ends = [start + grid[1] for start, (_, grid, _) in zip(starts, launched, strict=False)]
        assert starts == [0, *ends[:4]] and ends[4] == launched[0][2]["all_parts"]
        assert [given["first_id"] for _, _, given in launched[:5]] == list(range(0, 20_000, 4096))


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

    def shape(function):
        """Annotations aside: what is dispatched may be a part of a head as well."""
        signature = inspect.signature(function)
        return [(one.name, one.kind, one.default) for one in signature.parameters.values()]

    for name in names.split():
        expected = inspect.signature(getattr(reference, name))
        assert inspect.signature(getattr(fused, name)) == expected
        assert shape(getattr(dispatch, name)) == shape(getattr(reference, name))
