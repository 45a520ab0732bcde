"""Draws docs/images/race.svg from a real decode: python docs/images/make_race.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dllm_decode.cli import main

PROMPT = "Latin square of K Q X Z"
TARGET = Path(__file__).with_name("race.svg")


def draw() -> None:
    """Decode one prompt in both ways, then export the recording."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["strategy=credit", f"prompt={PROMPT}", "max_new_tokens=32", "display=none"]
        assert main([*words, f"hydra.run.dir={folder}/run"]) == 0
        picture = [f"runs={folder}/run", "task.format=svg", "task.theme=auto", "task.columns=84"]
        place = f"hydra.run.dir={folder}/export"
        assert main(["task=export", *picture, f"task.output={TARGET}", place, "display=none"]) == 0


if __name__ == "__main__":
    draw()
