"""Sweeps: jobs that cannot run leave their reason, the others go on, one line sums up."""

from __future__ import annotations

import csv
import io
import json
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console
from rich.text import Text

from dllm_decode.cli import Done, main
from dllm_decode.console.display import make_display
from dllm_decode.console.sweep_line import Hushed, SweepLine

TOY = ("-m", "model=toy_copy", "display=none", "compare=false", "task.samples=1")


def reasons(place: Path) -> dict[str, str]:
    """Folder to reason of every job that failed."""
    return {
        path.parent.name: json.loads(path.read_text())["reason"]
        for path in sorted(place.rglob("failure.json"))
    }


@pytest.mark.slow
def test_a_sweep_runs_what_it_can_and_sums_up_the_rest(tmp_path: Path, capsys) -> None:
    words = ["strategy.select.threshold=0.5,7", "strategy=threshold,topk,zzz"]
    assert main([*TOY, *words, f"hydra.sweep.dir={tmp_path / 's'}"]) == 2
    told = capsys.readouterr()
    summary = told.err.splitlines()[-1]
    assert summary.startswith("1 of 6 jobs done, 5 failed: folder 1: strategy.select.threshold")
    assert "folder 2, 4: unknown key strategy.select.threshold" in summary
    assert "folder 3, 5: unknown option strategy=zzz" in summary and told.out == ""
    found = reasons(tmp_path / "s")
    assert set(found) == {"1", "2", "3", "4", "5"}
    assert found["3"].startswith("ConfigError: unknown option strategy=zzz")
    assert (tmp_path / "s" / "0" / "results.json").exists()


@pytest.mark.slow
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


@pytest.mark.slow
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
    words += ["strategy=threshold,zzz,mine", "strategy.select.threshold=0.5,7"]
    assert main(words) == 2
    capsys.readouterr()
    assert main(["task=report", "task.figures=false", "display=plain"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    for reason in ("must lie in [0.0, 1.0], got 7", "strategy=zzz", "strategy=mine"):
        assert reason in out
    assert len(reasons(tmp_path / "runs" / "eval")) == 5

    place = tmp_path / "options" / "strategy"
    place.mkdir(parents=True)
    (place / "mine.yaml").write_text("defaults: [threshold, _self_]\n")
    assert main([*words, "--config-dir", "options"]) == 2
    left = reasons(tmp_path / "runs" / "eval").values()
    assert sum("strategy=mine" in reason for reason in left) == 0


@pytest.mark.slow
def test_a_sweep_tells_in_one_line_how_much_is_left_and_ends_with_one_table(
    tmp_path: Path, capsys
) -> None:
    common = ["model=toy_copy", "task=eval", "task.count=2", "display=plain"]
    assert main([*common, "strategy=topk", f"runs={tmp_path / 'other'}"]) == 0  # no job of it
    capsys.readouterr()
    words = ["-m", *common, "strategy=threshold,topk", f"runs={tmp_path / 'r'}"]
    assert main([*words, f"hydra.sweep.dir={tmp_path / 's'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and sum("tokens/forward" in line for line in lines) == 1
    assert lines[0] == "job 1 of 2: strategy=threshold"  # and not what all jobs share
    assert re.fullmatch(r"job 2 of 2, about \d+ s left: strategy=topk", lines[1])
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


def test_the_line_of_a_sweep_is_one_line_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=60)
    line = SweepLine(3)
    with line.job(make_display("live", console), 0, ["strategy=" + "x" * 90]) as hushed:
        hushed.say("12/300, accuracy 98.0 %")
    told = [part for part in re.split(r"[\r\n]", Text.from_ansi(written.getvalue()).plain) if part]
    assert any("job 1 of 3: strategy=xxx" in part for part in told)
    assert max(map(len, told)) <= 60


def test_what_a_job_says_stands_behind_the_line_of_the_sweep_in_a_terminal() -> None:
    told: list[str] = []
    hushed = Hushed("none", make_display("none").console, tell=told.append)
    hushed.say("3/10, accuracy 100 %\nmore")
    hushed.paragraph("long")
    hushed.show("a table")
    assert told == ["3/10, accuracy 100 %"]


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("hydra/sweeper=optuna", "optuna"),
        ("experiment=search", "optuna"),
        ("hydra/launcher=joblib", "joblib"),
        ("hydra/launcher=submitit_slurm", "submitit"),
        ("hydra/launcher=ray", "ray"),
    ],
)
def test_a_plugin_of_hydra_that_is_not_installed_is_named_with_its_extra(
    words: str, extra: str, capsys
) -> None:
    plugin = {"optuna": "optuna_sweeper"}.get(extra, f"{extra}_launcher")
    if find_spec("hydra_plugins") and find_spec(f"hydra_plugins.hydra_{plugin}"):
        pytest.skip("it is installed")
    assert main(["-m", words]) == 2
    assert f"needs pip install 'dllm_decode[{extra}]'" in capsys.readouterr().err


def test_a_search_looks_for_speed_among_what_is_accurate_enough(tmp_path: Path) -> None:
    from dllm_decode.console.runfolder import RunFolder
    from dllm_decode.tasks.eval import Eval

    found = {"accuracy": {"value": 0.96}, "tokens_per_forward": {"value": 7.5}}
    folder = RunFolder(tmp_path)
    folder.write_json("results.json", {"figures": {"all": found}})
    context = SimpleNamespace(folder=folder)
    assert Eval(at_least=0.95).objective(context) == 7.5
    assert Eval(at_least=0.97).objective(context) == pytest.approx(-0.01)
    assert float(Done(0, "", 7.5)) == 7.5
    for nothing in (Done(2, "a wrong setting", 7.5), Done(0)):
        with pytest.raises(ValueError, match=r"a wrong setting|nothing that a search"):
            float(nothing)


@pytest.mark.slow
def test_optunas_sweeper_finds_the_fastest_setting_that_is_accurate_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="an extra")
    monkeypatch.chdir(tmp_path)
    words = ["experiment=search", "hydra.sweeper.n_trials=8", "task.count=4", "display=plain"]
    words += ["task.families=[copy,shuffle]", "task.at_least=0.95"]
    assert main(["-m", *words]) == 0
    out = capsys.readouterr().out
    assert "job 8 of 8, about" in out
    told = re.search(r"best at 95 % or more: (.*), ([\d.]+) tokens per forward", out)
    # the same runs in a report, where the best is that of all
    assert main(["task=report", "runs=runs/search", "task.figures=false", "display=plain"]) == 0
    rows = list(csv.DictReader(next(Path("runs").rglob("table.csv")).open()))
    rows = [row for row in rows if row["family"] == "all families"]
    good = [row for row in rows if float(row["accuracy"]) >= 0.95]
    best = max(good, key=lambda row: float(row["tokens_per_forward"]))
    assert float(told[2]) == pytest.approx(float(best["tokens_per_forward"]), abs=0.01)
    assert {"factor: threshold", "factor: length"} <= set(best), sorted(best)
    assert len(rows) >= 6
    found = yaml.safe_load(next(Path("runs").rglob("optimization_results.yaml")).read_text())
    assert found["best_value"] == pytest.approx(float(best["tokens_per_forward"]))
