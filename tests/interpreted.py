"""Tests that need Triton's interpreter, which is chosen when the kernels are first imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from drawing import profile


def check_interpreted(file: Path, *words: str, seconds: float) -> None:
    """Run the tests of a file in a process of its own, with the interpreter on."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file.name, *words],
        cwd=file.parent,
        env={**os.environ, "TRITON_INTERPRET": "1", "HYPOTHESIS_PROFILE": profile()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
