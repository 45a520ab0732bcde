"""`task=bench bench=kernels`: what it measures, what it writes, what it refuses."""

from __future__ import annotations

import json
import re

import pytest
import torch

from dllm_decode.benchmarks import kernels
from dllm_decode.benchmarks.kernels import KernelCase, ratios
from dllm_decode.console.display import make_display
from dllm_decode.console.runfolder import RunFolder
from dllm_decode.errors import ConfigError
from dllm_decode.tasks import Context
from dllm_decode.tasks.bench import CPU_NOTE, KernelBench


def context(folder, cfg=None):
    return Context(cfg, (), {}, RunFolder(folder), make_display("plain"))


def run(folder, **settings):
    small = {"batches": (1,), "windows": (2, 3), "vocabularies": (50,), "width": 8, "repeats": 1}
    assert KernelBench(**{**small, "device": "cpu", **settings}).run(context(folder)) == 0
    return json.loads((folder / "kernels.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_on_a_cpu_it_times_plain_torch_and_says_that_kernels_need_a_gpu(tmp_path, capsys):
    report = run(tmp_path)
    assert report["note"] == CPU_NOTE
    assert report["kernels_timed"] is False
    assert "figures for them need a GPU" in " ".join(capsys.readouterr().out.split())
    assert [case["rows"] for case in report["cases"]] == [2, 3]
    for case in report["cases"]:
        assert case["bytes"] == case["rows"] * 50 * 2
        assert case["head_bytes"] == (50 + case["rows"]) * 8 * 2
        assert {"statistics reference", "credit naive", "head product alone"} <= {*case["seconds"]}
        assert all(seconds > 0 for seconds in case["seconds"].values())
        assert not any("triton" in name for name in case["seconds"])
        limit = case["bytes"] / report["copy_bytes_per_second"]
        assert case["seconds_one_read"] == pytest.approx(limit)
    assert (tmp_path / "kernels.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_cases_that_are_too_large_are_left_out_and_named(tmp_path, capsys):
    report = run(tmp_path, largest=100)
    assert [case["rows"] for case in report["cases"]] == [2]
    said = " ".join(capsys.readouterr().out.split())
    assert "left out, larger than task.largest=100: 3 rows x 50 ids, bfloat16" in said


def test_without_any_case_it_still_writes_what_it_knows(tmp_path):
    assert run(tmp_path, largest=1)["cases"] == []


@pytest.mark.slow
def test_what_memory_does_not_suffice_for_is_named_and_everything_else_is_written(
    tmp_path, capsys, monkeypatch
):
    whole, written = kernels.Inputs.of, []

    def inputs(case, device):
        if case.rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(case, device)

    def exhausted(given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    plain = RunFolder.write_json
    monkeypatch.setattr(kernels.Inputs, "of", inputs)
    monkeypatch.setattr(kernels, "naive_paths", exhausted)
    monkeypatch.setattr(
        RunFolder,
        "write_json",
        lambda self, name, value: written.append(len(value["cases"])) or plain(self, name, value),
    )
    first, second = run(tmp_path)["cases"]
    assert first["out_of_memory"] == ["statistics naive", "credit naive"]
    assert "statistics reference" in first["seconds"]
    assert second["out_of_memory"] == ["everything"] and second["seconds"] == {}
    assert "3 rows x 50 ids, bfloat16: out of memory: everything" in capsys.readouterr().out
    assert written == [1, 2, 2], "after each case"


def test_ratios_say_how_far_from_the_limit_and_how_far_ahead_of_the_naive_way():
    seconds = {
        **{"statistics triton": 2.0, "statistics naive": 30.0, "credit triton": 4.0},
        **{"credit naive": 100.0, "head triton": 6.0, "head product alone": 5.0},
    }
    found = ratios(seconds, limit=2.0)
    assert found["statistics triton / one read"] == 1.0
    assert found["credit naive / triton"] == 25.0
    assert found["head triton / product alone"] == 1.2
    assert "head triton / one read" not in found


def test_the_bytes_of_a_case_are_one_read_of_its_logits():
    case = KernelCase(2048, 126_464, torch.bfloat16, slots=8, width=4096)
    assert case.bytes == 517_996_544


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": ()}, "task.batches must not be empty"),
        ({"windows": (0,)}, "task.windows must be a whole number >= 1, got 0"),
        ({"vocabularies": (1.5,)}, "task.vocabularies must be a whole number >= 1, got 1.5"),
        (
            {"dtypes": ("int8",)},
            "task.dtypes must be one of bfloat16, float16, float32; got 'int8'",
        ),
        ({"slots": 0}, "task.slots must be a whole number >= 1, got 0"),
        ({"width": 0}, "task.width must be a whole number >= 1, got 0"),
        ({"repeats": 0}, "task.repeats must be a whole number >= 1, got 0"),
        ({"largest": 0}, "task.largest must be a whole number >= 1, got 0"),
        ({"device": "tpu"}, "task.device must be one of auto, cpu, cuda; got 'tpu'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        KernelBench(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"task\.device=cuda needs a CUDA device"):
        KernelBench(device="cuda").run(context(tmp_path))
