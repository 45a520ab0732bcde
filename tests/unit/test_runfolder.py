"""Run folders: one process each, taken back whole or not at all; signals end all of a run."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dllm_decode.cli import main
from dllm_decode.console.processes import Terminated
from dllm_decode.console.runfolder import OutputError, RunFolder, claim

TOY = ("model=toy_copy", "task.samples=2", "display=none", "compare=false")


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    wanted = tmp_path / "a" / "run"
    with claim(wanted, fresh=True) as one, claim(wanted, fresh=True) as two:
        for held in (one, two):
            RunFolder(held.path).write_text("results.json", "{}")
    with claim(wanted, fresh=True) as three:
        RunFolder(three.path).write_text("results.json", "{}")
    assert [held.path.name for held in (one, two, three)] == ["run", "run-2", "run-3"]
    assert [list(held.path.iterdir()) for held in (one, two)] == [
        [held.path / "results.json"] for held in (one, two)
    ]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param((), id="runs"),
        pytest.param(("-m", "strategy=credit,topk"), id="sweeps", marks=pytest.mark.slow),
    ],
)
def test_command_lines_of_one_second_lose_nothing(
    kind: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = "hydra.sweep.dir" if kind else "hydra.run.dir"
    (tmp_path / "options").mkdir()
    (tmp_path / "options" / "still.yaml").write_text(
        f"defaults: [config, _self_]\nhydra: {{{where.split('.')[1]}: {{dir: out/noon}}}}\n"
    )
    words = ["--config-dir", "options", "--config-name", "still", *kind, *TOY]
    assert [main(words), main(words)] == [0, 0]
    assert sorted(place.name for place in (tmp_path / "out").iterdir()) == ["noon", "noon-2"]
    done = len(list((tmp_path / "out").rglob("results.json")))
    assert done == (4 if kind else 2)


@pytest.mark.slow
def test_a_folder_that_another_process_holds_is_refused(tmp_path: Path, capsys) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from dllm_decode.console.runfolder import claim\n"
        "with claim(Path(sys.argv[1]), fresh=False): print('held', flush=True); input()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    assert main([*TOY, f"hydra.run.dir={tmp_path / 'run'}"]) == 1
    assert "is in use by another process; choose another" in capsys.readouterr().err
    other.communicate("\n")
    assert main([*TOY, f"hydra.run.dir={tmp_path / 'run'}"]) == 0


@pytest.mark.one_in(15)
@pytest.mark.parametrize(
    ("before", "words"),
    [
        (["prepared/"], "hydra.run.dir=prepared/run"),
        (["prepared/"], "hydra.run.dir=prepared"),
        ([], "hydra.run.dir=."),
        (["config.yaml"], "hydra.run.dir=."),
        (["old/results.json", "old/config.yaml"], "hydra.run.dir=old"),
        ([], "hydra.run.dir=new/deep/run"),
        (["runs/"], ""),
    ],
)
@pytest.mark.parametrize("fault", ["model.device=nope model=llada", "strategy.select.threshold=7"])
def test_a_failed_run_removes_what_it_made_and_nothing_else(
    before: list[str], words: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    for name in before:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).mkdir() if name.endswith("/") else (place / name).write_text("mine\n")
    there = {path: path.is_file() and path.read_text() for path in place.rglob("*")}
    assert main([*TOY, *fault.split(), *words.split()]) == 2
    assert Path.cwd() == place
    assert {path: path.is_file() and path.read_text() for path in place.rglob("*")} == there


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_clear_message_and_leaves_no_part_of_a_file(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.write_text("x.txt", "before")

    def full(path: Path, text: str, **_: object) -> None:
        path.write_bytes(text.encode()[:2])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match=r"cannot write to .*free some space"):
        folder.write_text("x.txt", "after")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.txt", "before")]


def test_a_full_disk_without_a_file_name_is_no_fault_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dllm_decode.tasks.generate.write", full)
    assert main([*TOY, f"hydra.run.dir={tmp_path / 'run'}"]) == 1
    err = capsys.readouterr().err
    assert "No space left" in err and "free some space" in err and "fault of the program" not in err


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_signals_keep_partial_results(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("whoever started the tests has them ignore this signal")
    monkeypatch.setattr("faulty_models.INTERRUPT", lambda: signal.raise_signal(number))
    words = [*TOY, "model._target_=faulty_models.InterruptedWorld", "+model.after=4"]
    words += ["strategy=sequential", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(words) == code
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["runs"]["sequential"]["finish_reasons"] == {"interrupted": 2}
    assert {each: signal.getsignal(each) for each in before} == before


@pytest.mark.slow
def test_a_signal_ends_a_whole_sweep(tmp_path: Path) -> None:
    words = ["-m", *TOY, "model._target_=faulty_models.InterruptedWorld", "+model.after=4"]
    words += ["strategy=sequential,topk", f"hydra.sweep.dir={tmp_path / 's'}"]
    assert main(words) == 130
    assert [p.name for p in (tmp_path / "s").iterdir() if p.is_dir()] == ["0"]
    assert (tmp_path / "s" / "0" / "results.json").exists()


@pytest.mark.slow
@pytest.mark.one_in(2)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_stops_a_training_with_a_checkpoint_of_its_step(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_pretrain import tiny

    from dllm_decode.training.llada_tiny.worker import Worker

    step = Worker._step

    def signalled(worker: Worker, *arguments: object) -> float:
        if worker.course.step == 2:
            signal.raise_signal(number)
        return step(worker, *arguments)

    monkeypatch.setattr(Worker, "_step", signalled)
    with pytest.raises(KeyboardInterrupt) as stopped:
        tiny(tmp_path, steps=50).train()
    assert (stopped.type is Terminated) == (number == signal.SIGTERM)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["checkpoint-3.safetensors"]
    monkeypatch.undo()
    assert tiny(tmp_path, steps=5).train() == tmp_path / "model"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=["SIGINT", "SIGTERM", "SIGKILL"],
)
def test_no_process_of_a_training_outlives_its_parent(
    number: int, code: int, tmp_path: Path
) -> None:
    from test_pretrain import tiny

    settings = {
        **vars(tiny(tmp_path / "p", steps=100_000, workers=2, loaders=1)),
        "display": "none",
    }
    settings.pop("emphasis")
    words = [f"task.{key}={value}" for key, value in settings.items()]
    training = subprocess.Popen(
        [sys.executable, "-m", "dllm_decode", "task=pretrain", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    )
    _until(lambda: (tmp_path / "p" / "curves.jsonl").exists())
    children = _descendants(training.pid)
    training.send_signal(number)
    assert training.wait(60) == code
    _until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    assert len(children) >= 4
    assert (code == -9) != bool(list((tmp_path / "p").glob("checkpoint-*.safetensors")))


def _until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def _descendants(process: int) -> list[int]:
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(status.parent.name)] = int(fields[1])
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]
