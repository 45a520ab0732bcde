"""Draws docs/images/race.svg from a real decode: python docs/images/make_race.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dllm_decode.cli import main

PROMPT = "Chain 1 *3 2 -3 3 /3 4 *2 5 +3 6 +4 7 -3 8 -4 from 8"
TARGET = Path(__file__).with_name("race.svg")


def draw() -> None:
    """Decode a chain of sums in both ways, then export the race."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["strategy=credit", f"prompt={PROMPT}", "max_new_tokens=64", "display=none"]
        assert main([*words, f"hydra.run.dir={folder}/run"]) == 0
        picture = [f"runs={folder}/run", "task.format=svg", "task.theme=auto", "task.columns=84"]
        place = f"hydra.run.dir={folder}/export"
        assert main(["task=export", *picture, f"task.output={TARGET}", place, "display=none"]) == 0


if __name__ == "__main__":
    draw()
