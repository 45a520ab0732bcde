"""`task=bench bench=step_cpu`: a step whose forward pass is free."""

import json

import pytest

from dllm_decode.config.compose import compose_checked
from dllm_decode.console.display import make_display
from dllm_decode.console.runfolder import RunFolder
from dllm_decode.errors import ConfigError
from dllm_decode.tasks import Context
from dllm_decode.tasks.bench_step_cpu import StepCpuBench


@pytest.mark.slow
def test_steps_over_given_logits_are_timed_beside_one_read_of_them(tmp_path, capsys):
    context = Context(compose_checked([]), (), {}, RunFolder(tmp_path), make_display("plain"))
    assert StepCpuBench(batches=(1, 2), window=4, vocabulary=11).run(context) == 0
    report = json.loads((tmp_path / "step_cpu.json").read_text())
    assert (report["window"], report["vocabulary"]) == (4, 11)
    steps = report["steps"]
    assert [(step["strategy"], step["rows"]) for step in steps] == [
        (name, rows) for rows in (1, 2) for name in ("threshold", "credit")
    ]
    for step in steps:
        assert step["ratio"] == pytest.approx(step["seconds"] / step["seconds_one_read"])
        assert 60 < step["operators"] <= {"threshold": 120, "credit": 180}[step["strategy"]]
    shown = capsys.readouterr().out
    assert "x one read" in shown and "step_cpu.json" in shown


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batches": ()}, "task.batches must not be empty"),
        ({"batches": (0,)}, "task.batches must be a whole number >= 1, got 0"),
        ({"window": 0}, "task.window must be a whole number >= 1, got 0"),
        ({"rounds": 0}, "task.rounds must be a whole number >= 1, got 0"),
        ({"vocabulary": 1}, "task.vocabulary must be a whole number >= 2, got 1"),
    ],
)
def test_sizes_that_nothing_can_have_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        StepCpuBench(**setting)
