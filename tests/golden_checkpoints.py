"""The small checkpoints of tests/golden, and what has to be said when one is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden" / "checkpoints"
OPTIONS: dict[str, dict[str, Any]] = {
    "llada": {},
    "dream": {},
    "lladamoe": {"mask_id": 197},
    "llada2": {"mask_id": 213, "block_length": 8},
}
