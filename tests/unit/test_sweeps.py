"""Sweeps: jobs that cannot run leave their reason, the others go on, one line sums up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dllm_decode.cli import main

TOY = ("-m", "model=toy_copy", "display=none", "compare=false", "task.samples=1")


def reasons(place: Path) -> dict[str, str]:
    """Folder to reason of every job that failed."""
    return {
        path.parent.name: json.loads(path.read_text())["reason"]
        for path in sorted(place.rglob("failure.json"))
    }


def test_a_sweep_runs_what_it_can_and_sums_up_the_rest(tmp_path: Path, capsys) -> None:
    words = ["strategy.select.threshold=0.5,7", "strategy=threshold,topk,nope"]
    assert main([*TOY, *words, f"hydra.sweep.dir={tmp_path / 's'}"]) == 2
    told = capsys.readouterr()
    summary = told.err.splitlines()[-1]
    assert summary.startswith("1 of 6 jobs done, 5 failed: folder 1: strategy.select.threshold")
    assert "folder 2, 4: unknown key strategy.select.threshold" in summary
    assert "folder 3, 5: unknown option strategy=nope" in summary and told.out == ""
    found = reasons(tmp_path / "s")
    assert set(found) == {"1", "2", "3", "4", "5"}
    assert found["3"].startswith("ConfigError: unknown option strategy=nope; strategy has ccd")
    assert (tmp_path / "s" / "0" / "results.json").exists()


def test_a_sweep_in_which_no_job_composes_is_one_error_and_leaves_nothing(
    tmp_path: Path, capsys
) -> None:
    words = ["strategy.select.treshold=0.5,0.9", f"hydra.sweep.dir={tmp_path / 'a' / 's'}"]
    assert main([*TOY, *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sweep_without_failures_says_nothing_more(tmp_path: Path, capsys) -> None:
    assert main([*TOY, "strategy=threshold,topk", f"hydra.sweep.dir={tmp_path / 's'}"]) == 0
    assert capsys.readouterr() == ("", "")


def test_each_job_of_a_sweep_says_which_of_how_many_it_is(tmp_path: Path, capsys) -> None:
    words = [word for word in TOY if not word.startswith("display")]
    words += ["display=plain", "strategy=threshold,topk", f"hydra.sweep.dir={tmp_path / 's'}"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "job 1 of 2: strategy=threshold" in out and "job 2 of 2: strategy=topk" in out
    assert "HYDRA" not in out


@pytest.mark.slow
def test_a_report_lists_evaluations_that_could_not_begin_until_they_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", "model=toy_copy", "task=eval", "task.count=1", "schedule=whole", "display=none"]
    words += ["strategy=threshold,nope,mine", "strategy.select.threshold=0.5,7"]
    assert main(words) == 2
    capsys.readouterr()
    assert main(["task=report", "task.figures=false", "display=plain"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    for reason in ("must lie in [0.0, 1.0], got 7", "strategy=nope", "strategy=mine"):
        assert reason in out
    assert len(reasons(tmp_path / "runs" / "eval")) == 5

    place = tmp_path / "options" / "strategy"
    place.mkdir(parents=True)
    (place / "mine.yaml").write_text("defaults: [threshold, _self_]\n")
    assert main([*words, "--config-dir", "options"]) == 2
    left = reasons(tmp_path / "runs" / "eval").values()
    assert sum("strategy=mine" in reason for reason in left) == 0
