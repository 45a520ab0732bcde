"""The notebook of the documentation: executed, and still giving what it shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "own_strategy.ipynb"


def texts(cells) -> list[str]:
    """What the cells printed and returned as text."""
    found = []
    for cell in cells:
        for output in cell.get("outputs", ()):
            said = output.get("text", output.get("data", {}).get("text/plain", ""))
            found.append("".join(said))
    return found


def test_the_committed_notebook_was_executed_from_top_to_bottom_without_errors():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = [output["output_type"] for cell in code for output in cell["outputs"]]
    assert "error" not in kinds
    shown = [output.get("data", {}) for cell in code for output in cell["outputs"]]
    assert any("image/png" in data for data in shown)  # the Pareto curve
    assert any("background:#" in "".join(data.get("text/html", "")) for data in shown)  # canvases
    assert str(Path(__file__).parents[2]) not in NOTEBOOK.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_notebook_gives_what_it_shows():
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("pandas")
    from run_notebook import executed

    shown = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert texts(executed(NOTEBOOK).cells) == texts(shown)
