"""A canvas as HTML for notebooks: one cell per token, coloured by the confidence of its commit.

Outcomes and results are not named in signatures here, because they show themselves with this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from dllm_decode.decoding.colours import GIVEN, INK, colour_of

MOST_ROWS = 20  # of a result
OPEN = "·"
_CELL = "border-radius:3px;padding:0 .25em;margin:1px;white-space:pre;display:inline-block"


@dataclass(frozen=True, repr=False)
class StreamStep:
    """The canvas of one row after one step of `TextDecoder.stream`.

    Attributes:
        number: Of the step, counted from 1.
        forwards: Passes so far, probes included.
        tokens: Id per generated column, None where it is open.
        pieces: Text of each, "" where it is open.
        confidence: Probability with which each was committed; None where it is open or given.
        fresh: Columns that were written in this step.
        result: The `Result` of the decode, with the last step; None before.

    Examples:
        >>> step = StreamStep(1, 1, (7, None), ("Ada", ""), (0.9, None), frozenset({0}))
        >>> step.text
        'Ada·'
    """

    number: int
    forwards: int
    tokens: tuple[int | None, ...]
    pieces: tuple[str, ...]
    confidence: tuple[float | None, ...]
    fresh: frozenset[int]
    result: Any = None

    @property
    def text(self) -> str:
        """The canvas as text, a dot for each open column."""
        pairs = zip(self.tokens, self.pieces, strict=True)
        return "".join(OPEN if token is None else piece for token, piece in pairs)

    def __repr__(self) -> str:
        return f"StreamStep({self.number}, {self.text!r})"

    def __str__(self) -> str:
        return f"{self.number:3d} | {self.text}"

    def _repr_html_(self) -> str:
        cells = [
            _cell(piece, share, f"column {column}", column in self.fresh)
            if token is not None
            else f'<span style="{_CELL};color:#888">{OPEN}</span>'
            for column, (token, piece, share) in enumerate(
                zip(self.tokens, self.pieces, self.confidence, strict=True)
            )
        ]
        return _canvas("".join(cells), f"step {self.number}")


def outcome_html(outcome: Any) -> str:
    """The tokens of a row, each with its step and confidence on hover."""
    pieces = outcome.pieces or tuple(f" {token}" for token in outcome.tokens)
    shares = outcome.confidence_of or (None,) * len(pieces)
    steps = outcome.step_of or (-1,) * len(pieces)
    cells = [
        _cell(piece, share, f"column {column}, " + (f"step {step + 1}" if step >= 0 else "given"))
        for column, (piece, share, step) in enumerate(zip(pieces, shares, steps, strict=True))
        if column <= outcome.end
    ]
    passes = f"{outcome.forwards} forward{'' if outcome.forwards == 1 else 's'}"
    error = f": {outcome.error}" if outcome.error else ""
    return _canvas("".join(cells), f"{passes}, {outcome.finish_reason}{error}")


def result_html(result: Any) -> str:
    """The rows of a result below one another."""
    rows = [outcome_html(row) for row in result.rows[:MOST_ROWS]]
    more = len(result.rows) - MOST_ROWS
    rows += [f"<div>... and {more} more rows</div>"] if more > 0 else []
    return "".join(rows) or "<div>no rows</div>"


def _cell(piece: str, share: float | None, title: str, fresh: bool = False) -> str:
    known = share is not None and not math.isnan(share)
    colour = colour_of(share) if known else GIVEN
    said = f"{title}, confidence {share:.3f}" if known else title
    edge = f";outline:2px solid {INK}" if fresh else ""
    return (
        f'<span title="{escape(said)}" style="{_CELL};color:{INK};background:{colour}{edge}">'
        f"{escape(piece)}</span>"
    )


def _canvas(cells: str, said: str) -> str:
    return (
        f'<div style="font-family:monospace;margin:.3em 0">{cells}'
        f' <span style="opacity:.7;font-size:85%">{escape(said)}</span></div>'
    )


def summary(rows: Sequence[Any]) -> str:
    """Rows in a few words: how many, passes, and why they ended."""
    reasons = [row.finish_reason for row in rows]
    told = ", ".join(f"{reason} {reasons.count(reason)}" for reason in dict.fromkeys(reasons))
    passes = sum(row.forwards for row in rows)
    return f"{len(rows)} row{'' if len(rows) == 1 else 's'}, {passes} forwards, {told or 'nothing'}"
