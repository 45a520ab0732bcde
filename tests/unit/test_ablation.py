"""Ablations take hours: what they would refuse at their end they refuse at their beginning."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dllm_decode.cli import main
from dllm_decode.errors import ConfigError
from dllm_decode.tasks.ablation import Ablation

JOB = ["task=ablation", "model=toy_copy", 'task.jobs=["strategy=topk"]', "task.count=2"]


def refused(place: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> bool:
    """Whether a command is refused before a job begins."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(Ablation, "_one", lambda *_: pytest.fail("a job has begun"))
    plain = ["task.figures=false", "display=plain", "hydra.run.dir=out"]
    return main([*JOB, *plain, *words]) == 2


@pytest.mark.one_in(11)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.preface=nope.md"], "task.preface: nope.md cannot be read: No such file"),
        (["task.output=a_file"], "task.output must be a folder, got a_file, which is a file"),
        (["task.output=a_file/x"], "must be a folder, got a_file/x, where a_file is a file"),
        (["task.markdown=page.txt"], "task.markdown must end with .md, got 'page.txt'"),
        (["task.markdown=page.md"], "task.markdown must be a file, got page.md, which is a folder"),
        (
            ["task.markdown=a_file.md"],
            "place of the figures of task.markdown must be a folder, got a_file, which is a file",
        ),
        (["task.answers=-1"], "task.answers must be a whole number >= 0, got -1"),
        (["runs=a_file"], "runs must be a folder, got a_file, which is a file"),
        (["task.sections=[foo]"], "task.sections must be one of copy; got 'foo'"),
        (
            ["model=llada", "task.families=[sort,add]", "task.sections=[sort,copy]"],
            "task.sections must be one of add, sort; got 'copy'",
        ),
        (['task.jobs=["task.count=0"]'], "task.count must be a whole number >= 1, got 0"),
    ],
)
def test_what_the_report_would_refuse_is_refused_before_the_first_job(
    words, message, tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / "a_file").touch()
    (tmp_path / "page.md").mkdir()
    assert refused(tmp_path, monkeypatch, *words)
    assert message in capsys.readouterr().err


def test_figures_without_matplotlib_are_refused_before_the_first_job(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert refused(tmp_path, monkeypatch, "task.figures=true")
    assert "figures need matplotlib" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_that_may_not_be_written_to_is_refused_before_the_first_job(
    tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / "theirs").mkdir()
    monkeypatch.setattr("os.access", lambda place, mode: Path(place).name != "theirs")
    for word in ("task.output=theirs/x", "task.markdown=theirs/x.md"):
        assert refused(tmp_path, monkeypatch, word)
        key, _, place = word.partition("=")
        message = f"{key}: {place} cannot be written: no permission to write to theirs"
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_sections_may_be_of_jobs_that_are_done_or_whose_families_nobody_knows_yet(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["task.figures=false", "task.answers=0", "display=none"]
    assert main([*JOB, *words, "hydra.run.dir=one"]) == 0
    monkeypatch.setattr(Ablation, "_one", lambda *_: 0)
    words += ["task.sections=[copy]", "hydra.run.dir=two"]
    assert main([*JOB, *words, "model=toy_shuffle"]) == 0
    assert main([*JOB, *words, 'task.jobs=["task.data=mine.jsonl"]']) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"jobs": ["strategy=topk", 5]},
            r"jobs: entry 2 must be a line of overrides \(text\), got 5",
        ),
        ({"jobs": "strategy=topk"}, "jobs must be a list of lines, got the text 'strategy=topk'"),
        (
            {"jobs": ["strategy=topk task=report"]},
            "entry 1 may not change task, .* got task=report",
        ),
        ({"jobs": ["strategy=topk"], "common": "task=bench"}, r"task\.common may not change task"),
    ],
)
def test_a_job_is_a_line_of_overrides_that_leaves_the_task_alone(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Ablation(**settings)


@pytest.mark.parametrize("jobs", [[5], ["task=report"]])
def test_the_command_line_names_the_entry(jobs, tmp_path, monkeypatch, capsys) -> None:
    assert refused(tmp_path, monkeypatch, f"task.jobs={json.dumps(jobs)}")
    assert "error: task.jobs: entry 1 m" in capsys.readouterr().err


def test_a_job_may_name_the_task_that_it_has() -> None:
    assert Ablation(jobs=["task=eval strategy=topk"]).lines() == ["task=eval strategy=topk"]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("task.sections=[a,5]", "task.sections: entry 2 must be a text, got 5 (int)"),
        ("task.families=[5]", "task.families: entry 1 must be a text, got 5 (int)"),
        ("task.families=5", "task.families must be a text or a list, got 5 (int)"),
    ],
)
def test_of_a_list_the_wrong_entry_is_named(word, message, tmp_path, monkeypatch, capsys) -> None:
    assert refused(tmp_path, monkeypatch, word)
    assert message in capsys.readouterr().err
