"""`task=bench bench=step`: a model of any size with random weights, and where its steps go."""

from __future__ import annotations

import json
import re

import pytest
import torch

from dllm_decode.benchmarks import decoding
from dllm_decode.benchmarks.decoding import PARTS
from dllm_decode.benchmarks.step import Size, random_model, random_request
from dllm_decode.config.compose import compose_checked
from dllm_decode.console.display import make_display
from dllm_decode.console.runfolder import RunFolder
from dllm_decode.errors import ConfigError
from dllm_decode.kernels import dispatch
from dllm_decode.models.head import head_obstacle
from dllm_decode.tasks import Context
from dllm_decode.tasks.bench import CPU_NOTE
from dllm_decode.tasks.bench_step import StepBench

TINY = {"vocabulary": 50, "width": 16, "inner": 24, "layers": 1, "heads": 2, "device": "cpu"}
SHORT = {"batches": (1, 2), "prompt": 3, "tokens": 8, "rounds": 1}


def context(folder):
    cfg = compose_checked(["schedule.length=8"])
    return Context(cfg, (), {}, RunFolder(folder), make_display("plain"))


@pytest.mark.slow
def test_on_a_cpu_it_profiles_plain_torch_and_says_so(tmp_path, capsys):
    assert StepBench(**TINY, **SHORT).run(context(tmp_path)) == 0
    report = json.loads((tmp_path / "step.json").read_text())
    assert report["note"] == CPU_NOTE
    assert report["kernels_timed"] is False
    assert report["model"].startswith("LLaDA with random weights")
    assert [(step["batch"], step["kernels"]) for step in report["steps"]] == [
        (1, "reference"),
        (2, "reference"),
    ]
    for step in report["steps"]:
        assert set(step["seconds"]) == set(PARTS)
        assert all(seconds > 0 for seconds in step["seconds"].values())
    assert "aten::mm" in (tmp_path / "step_profile.txt").read_text()
    assert "ms per step" in capsys.readouterr().out
    assert (dispatch.chosen(), dispatch.chosen_head()) == ("auto", "auto")


@pytest.mark.slow
def test_a_batch_that_memory_does_not_suffice_for_costs_itself_only(tmp_path, capsys, monkeypatch):
    def seconds(decoder, request, batch, rounds):
        if batch == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert json.loads((tmp_path / "step.json").read_text())["steps"], "written after each case"
        return dict.fromkeys(PARTS, 0.001)

    monkeypatch.setattr(decoding, "step_seconds", seconds)
    assert StepBench(**TINY, **SHORT).run(context(tmp_path)) == 0
    first, second = json.loads((tmp_path / "step.json").read_text())["steps"]
    assert first["seconds"] is None and second["seconds"]["forward"] == 0.001
    assert "1 rows, kernels=reference head=apart: out of memory" in capsys.readouterr().out


def test_the_default_size_is_that_of_llada_8b_and_needs_a_gpu(tmp_path):
    bench = StepBench(device="cpu")
    shape = (bench.vocabulary, bench.width, bench.inner, bench.layers, bench.heads)
    assert Size(*shape, positions=1).parameters == pytest.approx(8.015e9, rel=1e-3)
    message = "a model of 8e+09 parameters needs a GPU, and there is none; lower task.layers"
    with pytest.raises(ConfigError, match=re.escape(message)):
        bench.run(context(tmp_path))


def test_a_random_model_is_the_same_each_time_and_leaves_the_generator_alone():
    size = Size(50, 16, 24, 1, 2, 32)
    state = torch.get_rng_state()
    models = [random_model(size, "bfloat16", torch.device("cpu")) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (model.denoiser.model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    weight = first["lm_head.weight"]
    assert weight.shape == (50, 16)
    assert weight.dtype == torch.bfloat16
    assert head_obstacle(models[0].denoiser.model, 50) == ""
    assert models[0].description.parameters >= size.parameters


def test_random_prompts_never_hold_the_mask():
    request = random_request(Size(3, 16, 24, 1, 2, 32), rows=4, prompt=50, tokens=2)
    assert {token for prompt in request.prompts for token in prompt} == {0, 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": ()}, "task.batches must not be empty"),
        ({"batches": (0,)}, "task.batches must be a whole number >= 1, got 0"),
        ({"rounds": 0}, "task.rounds must be a whole number >= 1, got 0"),
        ({"vocabulary": 1}, "task.vocabulary must be a whole number >= 2, got 1"),
        ({"width": 30, "heads": 4}, "task.width must be a multiple of 2 * task.heads, got 30 and"),
        ({"dtype": "int8"}, "task.dtype must be one of bfloat16, float16, float32; got 'int8'"),
        ({"device": "tpu"}, "task.device must be one of auto, cpu, cuda; got 'tpu'"),
        ({"compile": "fast"}, "task.compile must be one of default, reduce-overhead, max-autotune"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        StepBench(**settings)
