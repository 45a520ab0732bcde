"""What results depend on besides the configuration: versions and hardware."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def version_of(package: str) -> str | None:
    """The installed version of a distribution, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """The name of the processor, as good as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """Interpreter, system, processor, its cores, torch's threads and the GPUs that it sees.

    Of torch nothing (None) where no work of this process needed it, as that of a report.
    """
    torch = sys.modules.get("torch")
    count = torch.cuda.device_count() if torch and torch.cuda.is_available() else 0
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_cores": os.cpu_count(),
        "threads": torch and torch.get_num_threads(),
        "gpus": torch and [torch.cuda.get_device_name(number) for number in range(count)],
    }
