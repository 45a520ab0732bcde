"""The training log as a picture and in short form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dllm_decode import storage
from dllm_decode.errors import CheckpointError


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a training log; half a last one is what a full disk or a kill leaves.

    Args:
        path: A `curves.jsonl`.

    Raises:
        CheckpointError: Another line is no JSON object with a step.
    """
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            found.append({**record, "step": int(record["step"])})
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path}, line {number}: no line of a log: {error!r}") from None
    return found


def cut(path: Path, step: int) -> None:
    """Drop the lines behind a checkpoint's step, which its continuation writes again.

    Args:
        path: A `curves.jsonl`; nothing happens if it is not there.
        step: Of the checkpoint.
    """
    if path.exists():
        kept = [json.dumps(line) + "\n" for line in read(path) if line["step"] <= step]
        storage.write_text(path, "".join(kept))


def picture(lines: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw loss and exact match over tokens into a PNG.

    Args:
        lines: Of a training log.
        path: The file.

    Returns:
        False where matplotlib is missing and nothing was drawn.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    losses = [line for line in lines if "loss" in line]
    upper.plot([line["tokens"] / 1e6 for line in losses], [line["loss"] for line in losses])
    upper.set(ylabel="loss [nats per answer token]", yscale="log")
    other = upper.twinx()
    rates = [line["rate"] for line in losses]
    other.plot([line["tokens"] / 1e6 for line in losses], rates, color="gray", linestyle=":")
    other.set(ylabel="learning rate [share of the highest]", ylim=(0, 1.05))
    measured = [line for line in lines if "exact_match" in line]
    for number, name in enumerate(measured[-1]["exact_match"] if measured else ()):
        points = [
            (line["tokens"] / 1e6, 100 * line["exact_match"].get(name, 0)) for line in measured
        ]
        style = ("-", "--", ":")[number // 10 % 3]
        lower.plot(*zip(*points, strict=True), label=name, linestyle=style, color=f"C{number % 10}")
    lower.set(xlabel="tokens [millions]", ylabel="exact match on held-out problems [%]")
    if measured:
        lower.legend(ncols=2, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    return True
