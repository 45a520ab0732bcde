"""Sweeps: jobs that cannot run leave their reason, the others go on, one line sums up."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dllm_decode.cli import main
from dllm_decode.console.display import make_display
from dllm_decode.console.sweep_line import Hushed, SweepLine

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
    assert "job 1 of 2: strategy=threshold" in out
    assert re.search(r"job 2 of 2, about \d+ s left: strategy=topk", out)
    assert "HYDRA" not in out and out.count("strategy=topk") == 2  # once more in the table


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


def test_a_sweep_tells_in_one_line_how_much_is_left_and_ends_with_one_table(
    tmp_path: Path, capsys
) -> None:
    words = ["-m", "model=toy_copy", "task=eval", "task.count=2", "display=plain"]
    words += ["strategy=threshold,topk", f"runs={tmp_path / 'r'}"]
    assert main([*words, f"hydra.sweep.dir={tmp_path / 's'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and sum("tokens/forward" in line for line in lines) == 1
    assert lines[0].startswith("job 1 of 2: strategy=threshold")
    assert re.match(r"job 2 of 2, about \d+ s left: strategy=topk", lines[1])
    assert [line.split()[0] for line in lines if "100.0 [" in line] == ["threshold", "topk"]


@pytest.mark.parametrize(("seconds", "told"), [(5, "15 s"), (200, "10 min"), (4000, "3 h")])
def test_the_time_left_is_the_usual_time_of_a_job_for_those_to_come(
    seconds: float, told: str
) -> None:
    times = [0.0, 100.0, 100.0, 100.0 + seconds]  # the first job loads the model
    line = SweepLine(5, clock=lambda: times.pop(0))
    display = make_display("none")
    for number in (0, 1):
        with line.job(display, number, ["a=1"]):
            pass
    assert line.title(2, ["a=3"]) == f"job 3 of 5, about {told} left: a=3"


def test_what_a_job_says_stands_behind_the_line_of_the_sweep_in_a_terminal() -> None:
    told: list[str] = []
    hushed = Hushed("none", make_display("none").console, tell=told.append)
    hushed.say("3/10, accuracy 100 %\nmore")
    hushed.paragraph("long")
    hushed.show("a table")
    assert told == ["3/10, accuracy 100 %"]
