"""Programs that misbehave do no harm, and are told from those that work."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dllm_decode.errors import ConfigError
from dllm_decode.evaluation.sandbox import Limits, isolation, run_python

QUICK = Limits(seconds=2.0)


def test_a_program_that_reaches_its_end_passes():
    assert run_python("import math, json\nassert math.sqrt(9) == 3", QUICK).passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("raise ValueError('no')", "ValueError: no"),
        ("syntax error", "SyntaxError"),
        ("import sys; sys.exit(0)", "ended early"),
        ("import os; os._exit(0)", "ended early"),
        ("input()", "EOFError"),
        ("b = bytearray(10 * 2**30)", "MemoryError"),
        ("open('big', 'w').write('x' * (1 << 22))", "File too large"),
        ("import os\nwhile True: os.fork()", "os.fork is not allowed"),
        ("import subprocess; subprocess.run(['ls'])", "not allowed"),
        ("import os; os.system('ls')", "not allowed"),
        ("import socket; socket.socket()", "not allowed"),
        ("import ctypes", "not allowed"),
        ("import multiprocessing as m; m.Process(target=print).start()", "not allowed"),
    ],
)
def test_a_program_that_misbehaves_fails_with_its_reason(program, reason):
    verdict = run_python(program, QUICK)
    assert not verdict.passed
    assert reason in verdict.reason


@pytest.mark.parametrize(
    "attack",
    [
        "import os; os.remove({path!r})",
        "import pathlib; pathlib.Path({path!r}).unlink()",
        "open({path!r}, 'w').close()",
        "import os; os.rename({path!r}, 'here')",
        "import os; os.truncate({path!r}, 0)",
        "import shutil; shutil.rmtree(__import__('os').path.dirname({path!r}))",
        "import os; os.close(os.open({path!r}, os.O_WRONLY | os.O_TRUNC))",
    ],
)
def test_files_outside_cannot_be_deleted_or_changed(attack, tmp_path: Path):
    victim = tmp_path / "precious.txt"
    victim.write_text("keep me")
    assert not run_python(attack.format(path=str(victim)), QUICK).passed
    assert victim.read_text() == "keep me"


def test_its_own_folder_is_there_to_write_in_and_gone_afterwards():
    program = "import os\nopen('a', 'w').write('x')\nassert open('a').read() == 'x'\nos.remove('a')"
    assert run_python(program, QUICK).passed


@pytest.mark.parametrize(
    "program",
    ["while True: pass", "import time; time.sleep(60)",
     "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass"],
)  # fmt: skip
def test_an_endless_program_is_ended(program):
    begin = time.monotonic()
    verdict = run_python(program, Limits(seconds=0.7))
    assert (verdict.passed, verdict.reason) == (False, "timed out")
    assert time.monotonic() - begin < 10


def test_a_thread_bomb_stays_within_its_limit():
    program = (
        "import threading, time\n"
        "for _ in range(500):\n    threading.Thread(target=time.sleep, args=(9,)).start()"
    )
    assert not run_python(program, Limits(seconds=1.5)).passed


def test_no_descriptor_is_left_open():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run_python("x = 1", QUICK)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("SOME_SECRET", "hunter2")
    assert run_python("import os; assert 'SOME_SECRET' not in os.environ", QUICK).passed


def test_limits_are_checked_and_isolation_is_told():
    with pytest.raises(ConfigError, match="seconds must lie in"):
        Limits(seconds=0)
    with pytest.raises(ConfigError, match="memory must be a whole number"):
        Limits(memory=0)
    assert isolation()
