"""An evaluation over several devices, each with a process of its own: two on the CPU here."""

import json
import queue
import re
from types import SimpleNamespace

import pytest
import torch

from dllm_decode.cli import main
from dllm_decode.config.compose import compose_checked
from dllm_decode.errors import ConfigError, DeviceError
from dllm_decode.tasks import Context, build_task
from dllm_decode.tasks.eval_devices import Answers, merged, placed, shares


def test_every_question_is_answered_once_and_every_process_has_the_same_mixture():
    keys = [f"{family}/{number}" for family in ("copy", "sort") for number in range(5)]
    left = keys[1:]
    found = [set(keys) - done for done in shares(keys, left, 3)]
    assert sorted(key for share in found for key in share) == sorted(left)
    assert all({key[:4] for key in share} == {"copy", "sort"} for share in found)


def test_samples_of_others_are_taken_as_they_come_and_waited_for_at_the_end():
    told = queue.Queue()
    told.put("theirs 1")
    others = Answers([SimpleNamespace(exitcode=None)], told)
    found = []
    for sample in merged(iter(["mine 1", "mine 2"]), others):
        found.append(sample)
        if sample == "mine 2":
            told.put("theirs 2"), told.put(None)
    assert found == ["mine 1", "theirs 1", "mine 2", "theirs 2"]


def test_a_process_that_fails_or_dies_ends_the_evaluation_with_its_reason():
    told = queue.Queue()
    told.put(ConfigError("no such column"))
    with pytest.raises(ConfigError, match="no such column"):
        list(Answers([SimpleNamespace(exitcode=0)], told).rest())
    killed = SimpleNamespace(exitcode=-9, name="cuda:1")
    with pytest.raises(DeviceError, match="process of cuda:1 ended with code -9; the problems"):
        list(Answers([killed], queue.Queue()).rest())


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("task.devices=everything",), "task.devices must be null, all, or a list"),
        (("task.devices=[]",), "task.devices must be null, all, or a list"),
        (("task.devices=all", "task.timing=1"), "task.timing measures one device"),
    ],
)
def test_devices_that_cannot_be_are_refused_by_name(words, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_task(compose_checked(["task=eval", "model=toy_shuffle", *words]))


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("words", "devices", "message"),
    [
        ((), "all", "torch sees none; name devices, as in [cpu,cpu]"),
        (("model.device_map=auto",), "all", "but model.device_map spreads one over several"),
        (("model.device=cpu",), ["cpu"], "leave model.device out"),
        ((), ["cpu", "gpu9"], "task.devices must name cpu or a device of this machine, got 'gpu9'"),
    ],
)
def test_devices_that_are_not_there_and_models_that_are_spread_are_refused(
    words, devices, message, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    context = Context(compose_checked(["task=eval", "model=llada", *words]), (), {}, None, None)
    with pytest.raises(ConfigError, match=re.escape(message)):
        placed(context, devices)


def test_all_gpus_are_one_process_each_and_the_first_is_this_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    context = Context(compose_checked(["task=eval", "model=llada"]), (), {}, None, None)
    same, others = placed(context, "all")
    assert same is context and others == ("cuda:1", "cuda:2")


def samples(folder, *words):
    assert main(["task=eval", "model=llada", "task.families=[copy,sort]", "task.count=5",
                 "batch_size=4", "display=none", "strategy=oracle", "sampler=categorical",
                 "sampler.temperature=2", f"runs={folder / 'runs'}",
                 f"hydra.run.dir={folder / 'out'}", *words]) == 0  # fmt: skip
    (job,) = [path.parent for path in (folder / "runs").rglob("samples.jsonl")]
    lines = [json.loads(line) for line in (job / "samples.jsonl").read_text().splitlines()]
    return job, {line["problem"]: {**line, "seconds": 0} for line in lines}


@pytest.mark.slow
def test_two_processes_give_the_samples_and_figures_of_one_and_go_on_where_one_stopped(tmp_path):
    job, alone = samples(tmp_path / "one")
    job_of_two, shared = samples(tmp_path / "two", "task.devices=[cpu,cpu]")
    assert shared == alone and len(alone) == 10
    assert job.name == job_of_two.name, "devices do not matter to the figures"
    figures = [
        json.loads((folder / "results.json").read_text())["figures"]["all"]
        for folder in (job, job_of_two)
    ]
    assert figures[0]["accuracy"] == figures[1]["accuracy"]
    assert figures[0]["forwards"] == figures[1]["forwards"]
    # a job of which some problems are done
    (job / "results.json").unlink()
    lines = (job / "samples.jsonl").read_text().splitlines(keepends=True)
    (job / "samples.jsonl").write_text("".join(lines[:7]))
    assert samples(tmp_path / "one", "task.devices=[cpu,cpu]")[1] == alone
