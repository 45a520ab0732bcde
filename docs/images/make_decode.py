"""Draws docs/images/decode.svg from a real decode: python docs/images/make_decode.py."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console
from rich.text import Text

from dllm_decode import load
from dllm_decode.console.display import CanvasView
from dllm_decode.console.watching import CanvasObserver

PROMPT = "Latin square of K Q X Z"


def main() -> None:
    """One line per step, new tokens in bold, for one token per step and for credit."""
    console = Console(record=True, width=118, file=io.StringIO(), highlight=False)
    for name, every in (("sequential", 3), ("credit", 1)):
        decoder = load(model="llada", strategy=name)
        view = CanvasView([PROMPT], decoder.piece)
        lines: list[Text] = []
        view.on_step = lambda row, v=view, out=lines: out.append(
            Text(f"{v.rows[row].step + 1:3d} ", style="dim") + v.text(row)
        )
        result = decoder.generate(PROMPT, max_new_tokens=32, observers=[CanvasObserver(view)])
        console.print(f"strategy={name}: {result.forwards[0]} forwards", style="bold")
        shown = [*lines[:-1:every], lines[-1]]
        for line in shown:
            console.print(line, no_wrap=True)
        console.print()
    target = Path(__file__).with_name("decode.svg")
    page = console.export_svg(title="one prompt, two strategies")
    # any monospaced font will do; the picture must not ask the network for one
    page = re.sub(r"@font-face \{.*?\}\s*", "", page, flags=re.DOTALL)
    target.write_text(re.sub(r"<!--.*?-->\s*", "", page, flags=re.DOTALL))


if __name__ == "__main__":
    main()
