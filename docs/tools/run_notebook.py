"""Execute a notebook and keep its output.

    python docs/tools/run_notebook.py docs/notebooks/own_strategy.ipynb

Needs `pip install -e '.[notebook]'`. Times of cells and what goes to standard error (warnings with
the paths of a machine, progress bars) are left out, so that a notebook that gives the same stays
the same file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_SECONDS = 600


def executed(path: Path) -> Any:
    """The notebook of a file, run from its first cell to its last; raises where a cell fails."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=MOST_SECONDS, record_timing=False).execute(
        cwd=str(path.parent)
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    # of the machine that ran it
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    return notebook


def main(words: Sequence[str]) -> int:
    """Run the notebooks; returns the exit code."""
    import nbformat

    for word in words:
        nbformat.write(executed(Path(word)), word)
        print(f"run: {word}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
