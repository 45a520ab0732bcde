"""Freed memory stays with the process, unless the user said otherwise."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from dllm_decode.cli import main
from dllm_decode.console import allocator

GLIBC = platform.libc_ver()[0] == "glibc"
OPTIONS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

# takes and frees 40 blocks of 8 MiB, as a pass does with its tensors; prints the page faults
FAULTS = """
import ctypes, resource, sys
from dllm_decode.console.allocator import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    blocks = [c.malloc(8 << 20) for _ in range(2)]
    for block in blocks:
        ctypes.memset(block, 1, 8 << 20)
    for block in blocks:
        c.free(block)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[str, int]:
    plain = {name: value for name, value in os.environ.items() if name not in OPTIONS}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], env=plain, capture_output=True, text=True, check=True
    )
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.slow
@pytest.mark.skipif(not GLIBC, reason="only glibc has these settings")
def test_the_next_pass_finds_the_memory_of_the_last_one():
    (untouched, before), (kept, after) = faults("leave"), faults("keep")
    assert (untouched, kept) == ("False", "True")
    if before < 40_000:
        pytest.skip("with huge pages there is little to be saved")
    # 40 blocks of 2,048 pages, against two that are used again and again
    assert after < 10_000


@pytest.mark.parametrize("name", OPTIONS)
def test_what_the_user_set_stays(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("glibc was asked all the same"))
    assert not allocator.keep_freed_memory()


@pytest.mark.slow
def test_the_command_line_keeps_it(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: asked.append(True))
    words = ["task=report", f"task.runs={tmp_path / 'none'}", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(words) == 2
    assert asked == [True]


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_without_glibc_nothing_happens(monkeypatch, error):
    def missing(_: object) -> None:
        raise error("no such thing")

    for name in OPTIONS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not allocator.keep_freed_memory()
