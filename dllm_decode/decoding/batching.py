"""How many rows are decoded together, checked in one place; nothing here needs torch."""

from __future__ import annotations

from dllm_decode.errors import require_choice, require_count

BATCHINGS = ("continuous", "static")


def check_batching(
    rows: int | None, max_tokens_in_flight: int | None, batching: str, name: str = "batch_size"
) -> None:
    """Check the settings that say which rows are decoded together; see `Engine`.

    Args:
        rows: most rows in the batch, 1 or more; None for all.
        max_tokens_in_flight: most canvas columns in it, 1 or more; None for no bound.
        batching: one of `BATCHINGS`.
        name: what the first of them is called where it is set.

    Raises:
        ConfigError: one of them is out of range; names it.
    """
    if rows is not None:
        require_count(name, rows)
    if max_tokens_in_flight is not None:
        require_count("max_tokens_in_flight", max_tokens_in_flight)
    require_choice("batching", batching, BATCHINGS)
