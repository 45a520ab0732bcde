"""Draws docs/images/race.svg from a real decode: python docs/images/make_race.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dllm_decode.cli import main

TARGET = Path(__file__).with_name("race.svg")


def draw() -> None:
    """Decode the sample problems in both ways, then export the one best to watch."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["strategy=credit", "task.samples=6", "display=none"]
        assert main([*words, f"hydra.run.dir={folder}/run"]) == 0
        picture = [f"runs={folder}/run", "task.format=svg", "task.theme=auto", "task.columns=84"]
        place = f"hydra.run.dir={folder}/export"
        assert main(["task=export", *picture, f"task.output={TARGET}", place, "display=none"]) == 0


if __name__ == "__main__":
    draw()
