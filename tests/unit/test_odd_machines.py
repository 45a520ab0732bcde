"""Odd terminals, and Windows by simulation: no `fcntl`, `resource`, `fork`, and cp1252 output."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import dllm_decode
from dllm_decode.cli import main
from dllm_decode.console.display import make_display
from dllm_decode.console.output import tolerant_output
from dllm_decode.console.trace_files import player
from dllm_decode.decoding.trace import Trace

CORE = Path(dllm_decode.__file__).parent
WINDOWS = """
import os, signal, sys, warnings
warnings.filterwarnings("ignore", "only soft file lock")  # on Windows filelock has its own
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("fork", "forkpty", "getuid", "killpg", "setsid"):
    delattr(os, name)
for name in ("SIGALRM", "SIGKILL", "SIGHUP", "setitimer", "alarm"):
    delattr(signal, name)
from dllm_decode.cli import main
words = ["model=toy_copy", "schedule=whole", "compare=false"]
for command in (
    ["task=generate", "hydra.run.dir=runs/first", *words],
    ["task=eval", "hydra.run.dir=runs/second", "task.count=1", *words],
    ["task=report", "hydra.run.dir=runs/third", "task.figures=false"],
):
    if (code := main(command)) != 0:
        sys.exit(f"{command}: {code}")
"""


def run(encoding: str, script: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(["-c", script] if script else ["-m", "dllm_decode"]), *words]
    return subprocess.run(command, capture_output=True, cwd=cwd, env=env, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoding",
    [
        "ascii",
        pytest.param("cp1252", marks=pytest.mark.slow),
        pytest.param("latin-1", marks=pytest.mark.slow),
    ],
)
def test_signs_that_the_output_does_not_have_fail_no_row(encoding: str, tmp_path: Path) -> None:
    words = ("model=toy_copy", "task.samples=2", "compare=false", "hydra.run.dir=run")
    done = run(encoding, "", *words, cwd=tmp_path)
    text = done.stdout.decode(encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "#" in text and "ok" in text and (tmp_path / "run" / "results.json").exists()


def test_output_that_is_half_a_character_is_written_all_the_same(capsys) -> None:
    with tolerant_output():
        print("a\ud800b")
    assert sys.stdout.errors != "dllm_decode.simplified"


class Full(io.StringIO):
    """A disk or a pipe that takes nothing."""

    def __init__(self, error: OSError | ValueError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (None, ""),
        (Full(BrokenPipeError()), ""),
        (Full(OSError(28, "No space left on device")), "could not be written: .*No space left"),
        (Full(ValueError("I/O operation on closed file")), "could not be written: .*closed file"),
    ],
    ids=["closed", "pipe", "full", "gone"],
)
def test_where_nothing_can_be_shown_a_run_goes_on(
    stream: Full | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    words = ["model=toy_copy", "task.samples=2", "display=plain", f"hydra.run.dir={tmp_path}/run"]
    assert main(words) == 0
    assert sys.stdout is stream and (tmp_path / "run" / "results.json").exists()
    told = capsys.readouterr().err
    assert re.search(said, told) if said else "could not be written" not in told


@pytest.mark.slow
def test_standard_input_that_is_closed_is_said_and_ends_a_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    words = ["model=toy_copy", "display=none", f"hydra.run.dir={tmp_path}/run"]
    assert main([*words, "prompts=-"]) == 1
    assert "prompts=- reads standard input, which is closed" in capsys.readouterr().err
    assert main([*words, "task=chat"]) == 0


@pytest.mark.slow
def test_a_simulated_windows_runs_generate_eval_and_report(tmp_path: Path) -> None:
    done = run("cp1252", WINDOWS, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    made = {file.name for file in (tmp_path / "runs").rglob("*")}
    assert {"results.json", "report.md"} <= made


UNIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "pty"}


@pytest.mark.slow
def test_no_module_imports_what_windows_lacks() -> None:
    for file in CORE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not UNIX_ONLY & {alias.name for alias in node.names}, file
            if isinstance(node, ast.ImportFrom):
                assert node.module not in UNIX_ONLY, file


@pytest.mark.parametrize("width", [20, 40, 110])
def test_the_header_is_wrapped_between_words(width: int, capsys) -> None:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    make_display("plain", console).paragraph("trace credit (alpha 0.65, beta 0.7) -> threshold 0.9")
    text = console.file.getvalue()
    assert {"0.65,", "0.7)", "->"} <= set(text.split())
    assert max(map(len, text.splitlines())) <= width


class Scripts(HTMLParser):
    """Script elements as a browser sees them, the double-escaped state included."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.count += tag == "script"


@pytest.mark.parametrize("text", ["<!--<script>", "</script>", "<!--", "<script", "]]>", "&lt;"])
def test_no_prompt_ends_the_data_of_the_player(text: str) -> None:
    trace = Trace(
        titles=(text,),
        prompts=((1,),),
        lengths=(1,),
        fixed=({},),
        mask_id=0,
        eot_ids=(2,),
        pieces={1: text},
        steps=(),
        finish_reasons=("length",),
    )
    page = player({"a": trace})
    parser = Scripts()
    parser.feed(page)
    data = page.partition('id="trace">')[2].partition("</script>")[0]
    assert parser.count == 2 and "<" not in data
    assert json.loads(data)["traces"][0]["records"][0]["titles"] == [text]
