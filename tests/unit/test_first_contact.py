"""`task=doctor gpu=true`: its steps on the processor, and what is said of steps that fail."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from simulated_gpu import SimulatedGpu

from dllm_decode.benchmarks import first_contact as module
from dllm_decode.benchmarks.first_contact import Contact, Sizes, first_contact
from dllm_decode.benchmarks.step import Size, random_model
from dllm_decode.cli import main
from dllm_decode.kernels import dispatch, reference
from dllm_decode.strategies.threshold import ConfidenceThreshold

CPU = torch.device("cpu")
TINY = Sizes(
    Size(60, 32, 32, layers=1, heads=2, positions=32),
    rows=(2, 4), batch=2, prompt=3, columns=6, block=3, rounds=1, checked=16,
)  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    """Copies and lists of models that take seconds are left to the slow run."""
    monkeypatch.setattr(module, "copy_bandwidth", lambda *_: 1e9)
    monkeypatch.setattr(module, "experts", lambda problems: iter(["left out"]))


def test_every_step_says_something_and_the_block_holds_all_of_it(quick):
    told = []
    contact = first_contact(CPU, ConfidenceThreshold(0.9), TINY, told.append)
    assert not contact.problems
    assert told == [title for title in contact.found if title != "time taken"]
    assert sum("agrees" in line for line in contact.found["kernels against the definition"]) == 6
    assert len(contact.found["kernels against one read"]) == len(TINY.rows)
    assert "operators in a step" in "\n".join(contact.found["one step"])
    assert "boolean mask: " in contact.found["attention"][0]
    block = contact.block()
    assert all(line in block for said in contact.found.values() for line in said)


def test_a_step_that_fails_is_a_problem_and_the_others_go_on(quick, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(*_):
        raise RuntimeError("no such instruction\nsecond line")

    monkeypatch.setattr(module, "one_step", exhausted)
    monkeypatch.setattr(module, "attention", broken)
    contact = first_contact(CPU, ConfidenceThreshold(0.9), TINY)
    assert contact.found["one step"] == ["failed: out of memory"]
    assert contact.problems == [
        "one step: out of memory",
        "attention: RuntimeError: no such instruction",
    ]
    assert contact.found["waits in three steps"] == ["a processor waits for nobody"]
    assert "problem: attention: RuntimeError" in contact.block()


def test_no_step_goes_on_beyond_its_share_and_all_of_them_take_two_minutes(quick, monkeypatch):
    clock = [0.0]

    def endless(*_):
        while True:
            clock[0] += 20.0  # a kernel that takes very long to compile
            yield "another one"

    monkeypatch.setattr(module, "_now", lambda: clock[0])
    steps = ("agreement", "against_one_read", "head_against_product", "one_step", "waits")
    for name in (*steps, "machine", "attention", "experts"):
        monkeypatch.setattr(module, name, endless)
    contact = first_contact(CPU, ConfidenceThreshold(0.9), TINY)
    assert clock[0] <= 120 and not contact.problems
    assert contact.found["kernels against the definition"][-1] == "stopped here: its 40 s are over"
    assert contact.found["experts"] == ["left out: the steps before have used the time"]
    assert contact.found["time taken"] == [f"{clock[0]:.0f} s"]


def test_kernels_that_differ_or_do_not_start_are_named(monkeypatch):
    class Wrong:
        def __getattr__(self, name):
            def call(*given):
                if name == "credit_update":
                    raise RuntimeError("ptxas failed")
                found = getattr(reference, name)(*given)
                if name == "head_statistics":
                    found = found.but(rest=found.rest * 1.1)
                return found

            return call

    monkeypatch.setattr(module, "_implementation", lambda device: Wrong())
    problems = []
    lines = "\n".join(module.agreement(CPU, TINY, problems))
    assert "credit: does not start: ptxas failed" in lines
    assert "head: DIFFERS (largest difference " in lines
    assert "statistics: agrees" in lines
    assert len(problems) == 2


def test_a_card_of_eight_gigabytes_holds_every_step_by_construction():
    assert Sizes().bytes < 6 * 2**30
    # the model alone is a lower bound, and more rows need more
    assert Sizes().bytes > 2 * Sizes().model.parameters
    assert replace(Sizes(), rows=(64, 16_384)).bytes > Sizes().bytes


@pytest.mark.slow
def test_without_a_gpu_one_line_says_so(tmp_path, capsys):
    words = ["task=doctor", "gpu=true", "model=toy_copy", "display=plain"]
    assert main([*words, f"hydra.run.dir={tmp_path}"]) == 1
    assert "torch sees no GPU on this machine" in capsys.readouterr().out
    assert "gpu" not in json.loads((tmp_path / "doctor.json").read_text())


@pytest.mark.slow
def test_with_a_gpu_the_block_is_shown_and_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    made = Contact({"machine": ["a card"]}, [])
    monkeypatch.setattr(module, "first_contact", lambda *given, **more: made)
    words = ["task=doctor", "gpu=true", "model=toy_copy", "display=plain"]
    assert main([*words, f"hydra.run.dir={tmp_path}"]) == 0
    assert "```text\nfirst contact\nmachine\n  a card\n```" in capsys.readouterr().out
    assert json.loads((tmp_path / "doctor.json").read_text())["gpu"]["found"] == made.found


@pytest.mark.slow
def test_on_a_simulated_gpu_every_step_runs_and_the_host_waits_once_per_step(quick, monkeypatch):
    about = SimpleNamespace(
        name="simulated", major=9, minor=0, total_memory=8 * 2**30, multi_processor_count=1
    )
    nothing = ("reset_peak_memory_stats", "empty_cache", "synchronize", "set_sync_debug_mode")
    for name in nothing:
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: about)

    class Generator(torch.Generator):  # of the processor, wherever it is asked for
        def __new__(cls, *_):
            return super().__new__(cls)

    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(module, "_dtype", lambda device: "float32")  # the processor mixes none
    monkeypatch.setattr(module.Stopwatch, "_on_device", lambda self, action: (action(), 1.0)[1])
    loaded = random_model(TINY.model, "float32", CPU)
    with SimulatedGpu() as gpu, dispatch.using("reference"):
        gpu.place(loaded.denoiser.model)
        monkeypatch.setattr(module, "random_model", lambda *_: loaded)
        monkeypatch.setattr(module, "_implementation", lambda device: reference)
        contact = first_contact(torch.device("cuda:0"), ConfidenceThreshold(0.9), TINY)
        run = module._begun(module.decoder_of(loaded, ConfidenceThreshold(0.9), TINY), TINY)
        gpu.clear()
        run.step()
        assert len(gpu.waits) == 1, gpu.waits
    assert not contact.problems
    assert contact.found["machine"][0].startswith("simulated, compute capability 9.0, 8.0 GiB")
    assert contact.found["peak memory"] == ["1.00 GiB"]


@pytest.mark.slow
def test_every_mixture_of_experts_is_computed_in_groups():
    problems = []
    lines = list(module.experts(problems))
    assert len(lines) >= 3 and not problems
