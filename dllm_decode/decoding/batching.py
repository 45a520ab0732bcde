"""How many rows are decoded together, and how often; checked here, where torch is not needed."""

from __future__ import annotations

from collections.abc import Sequence

from dllm_decode.errors import require, require_choice, require_count

BATCHINGS = ("continuous", "static")
VOTES = ("majority", "longer_half", "block_lengths", "agreed")


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


def check_voting(n: int, vote: str, block_lengths: Sequence[int] | None) -> None:
    """Check the settings of several decodes that vote; see `voting.Voting`.

    Args:
        n: decodes per row, 1 or more.
        vote: one of `VOTES`.
        block_lengths: None, or n lengths for `vote=block_lengths`.

    Raises:
        ConfigError: one of them is out of range; names it.
    """
    require_count("n", n)
    require_choice("vote", vote, VOTES)
    compares = vote not in ("majority", "block_lengths")  # the others are what is usual at 1
    require(n > 1 or not compares, f"vote={vote} needs n of 2 or more decodes, got n={n}")
    if block_lengths is None:
        return
    require(vote == "block_lengths", f"block_lengths needs vote=block_lengths, got vote={vote}")
    require(
        isinstance(block_lengths, Sequence) and not isinstance(block_lengths, str),
        f"block_lengths must be a list of lengths, got {block_lengths!r}",
    )
    require(
        len(block_lengths) == n,
        f"block_lengths must have n = {n} entries, got {list(block_lengths)!r}",
    )
    for length in block_lengths:
        require_count("block_lengths", length)
