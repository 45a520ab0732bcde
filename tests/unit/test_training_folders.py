"""The folder of a training: whose it is, who writes to it, and what a continuation finds there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dllm_decode.console.prompts import PromptsError, prompts_to_learn_from, read_prompts
from dllm_decode.errors import CheckpointError, ConfigError
from dllm_decode.tasks.distill import Distill
from dllm_decode.tasks.token_frequencies import CountTokens
from dllm_decode.tasks.train_drafter import TrainDrafter
from dllm_decode.tasks.train_filter import TrainFilter
from dllm_decode.training import loop
from dllm_decode.training.devices import Devices
from dllm_decode.training.llada_tiny import checkpoint, curves
from dllm_decode.training.llada_tiny.course import Course
from dllm_decode.training.llada_tiny.recipe import Recipe
from dllm_decode.training.pace import Pace


def training(folder: Path, **identity: object) -> tuple[loop.TrainingLoop, torch.Tensor]:
    weight = torch.ones(2, requires_grad=True)
    return loop.TrainingLoop(folder, {"w": weight}, Pace(steps=4, warmup=1), identity), weight


def test_a_folder_belongs_to_one_run_from_its_first_file_on(tmp_path: Path) -> None:
    loop.claim(tmp_path, {"task.seed": 1, "task.families": ("copy",)}, Devices())
    loop.claim(tmp_path, {"task.seed": 1, "task.families": ["copy"]}, Devices())  # as JSON has it
    with pytest.raises(CheckpointError, match=r"task\.families must be \['copy'\] .* got \['sort'"):
        loop.claim(tmp_path, {"task.seed": 1, "task.families": ["sort"]}, Devices())
    with pytest.raises(ConfigError, match=r"task\.output must be a new folder .* holds a run"):
        loop.prepare(str(tmp_path), resume=False)
    (tmp_path / loop.RUN).write_text("[1]")
    with pytest.raises(CheckpointError, match=r"run\.json must hold one JSON object, got list"):
        loop.claim(tmp_path, {}, Devices())


def test_one_process_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    with (
        loop.occupied(tmp_path),
        pytest.raises(ConfigError, match=r"task\.output=.* is in use by another process"),
        loop.occupied(tmp_path),
    ):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match="must be a writable folder"),
        loop.occupied(tmp_path / "file" / "below"),
    ):
        pass


def test_a_run_that_was_ended_does_not_go_on(tmp_path: Path) -> None:
    first, weight = training(tmp_path)
    assert first.run(lambda step: ((weight**2).sum(), {}), enough=lambda: True)
    assert first.step == 1
    again, learned = training(tmp_path)
    assert again.run(lambda step: pytest.fail("it learned on"))
    assert again.step == 1 and torch.equal(learned, weight)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("course", {"seconds": 1.0}, r"must say how many updates and seconds .*course\.step"),
        ("course", {"step": "many", "seconds": 1.0}, r"course\.step, course\.seconds"),
        ("course", [1], "must have tensors, settings and course"),
        ("settings", "none", "must have tensors, settings and course"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, key: str, value: object, message: str) -> None:
    first, weight = training(tmp_path)
    first.run(lambda step: ((weight**2).sum(), {}))
    record = json.loads((tmp_path / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps(record | {key: value}))
    with pytest.raises(CheckpointError, match=message):
        training(tmp_path)


def test_a_course_with_words_of_another_version_is_refused() -> None:
    assert Course.of({"step": 3}).step == 3
    with pytest.raises(CheckpointError, match=r"course cannot be read: .*'pace'"):
        Course.of({"pace": 3})


def test_tensors_of_another_shape_are_refused_and_not_broadcast(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"w": torch.ones(1)}, {"settings": {}, "course": {}})
    wide = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"w is \[1\], not \[3\]"):
        checkpoint.fill(tmp_path / "checkpoint-1.safetensors", {"w": wide})
    assert not wide.any()


def test_half_a_last_line_of_a_log_is_dropped_and_any_other_fault_is_named(tmp_path: Path) -> None:
    log = tmp_path / "curves.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert curves.read(log) == [{"step": 1, "loss": 2.0}]
    curves.cut(log, 1)
    assert log.read_text() == '{"step": 1, "loss": 2.0}\n'
    for line in ("{", "[]", '{"loss": 1.0}', '{"step": "x"}'):
        log.write_text(f'{{"step": 1}}\n{line}\n')
        with pytest.raises(CheckpointError, match=r"curves\.jsonl, line 2: no line of a log"):
            curves.read(log)


def test_a_figure_without_points_has_no_legend(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip("matplotlib")
    lines = [{"step": 1, "loss": 2.0}]
    assert loop.picture(lines, {"loss": ["loss"], "none": ["absent"]}, tmp_path / "one.png")
    assert not recwarn.list


@pytest.mark.parametrize("key", ["seed", "parameters"])
def test_a_prompt_to_learn_from_has_no_settings_of_its_own(tmp_path: Path, key: str) -> None:
    value = {"seed": 1, "parameters": {"strategy.select.threshold": 0.5}}[key]
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "max_new_tokens": 8}\n')
    assert prompts_to_learn_from(str(path)) == read_prompts(str(path))
    path.write_text(path.read_text() + json.dumps({"prompt": "b", key: value}) + "\n")
    with pytest.raises(PromptsError, match=rf"line 2: a training takes no {key} of a single"):
        prompts_to_learn_from(str(path))


@pytest.mark.parametrize("task", [Distill, TrainDrafter, TrainFilter, CountTokens])
def test_an_empty_list_of_families_is_refused(task: type) -> None:
    with pytest.raises(ConfigError, match=r"task\.families must name at least one family"):
        task(families=[])


def test_a_mixture_that_nothing_can_be_drawn_from_is_refused() -> None:
    from dllm_decode.problems import TRAINED

    with pytest.raises(ConfigError, match=r"task\.curriculum must leave a family"):
        Recipe(curriculum=dict.fromkeys(TRAINED, 1.0))
    for made in (lambda each: Recipe(emphasis=each), lambda each: TrainDrafter(emphasis=each)):
        with pytest.raises(ConfigError, match=r"task\.emphasis\.copy must lie in \(0"):
            made({"copy": float("inf")})
