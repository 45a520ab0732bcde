"""Measure again every figure of the bundled model's card.

    python docs/tools/model_card model.checkpoint=runs/pretrain/model task.card=card.md

Takes what `python -m dllm_decode` takes; the settings of its own stand in `conf/task`.
"""

import sys
from pathlib import Path

from dllm_decode.cli import main

if __name__ == "__main__":
    place = Path(__file__).parent / "conf"
    sys.exit(main(["--config-dir", str(place), "task=model_card", *sys.argv[1:]]))
