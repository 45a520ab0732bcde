"""A trace as pictures: what stands on the canvas of one row after each of its passes."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_decode.decoding.trace import Trace


@dataclass(frozen=True)
class Cell:
    """A column that holds a token.

    Attributes:
        token: Its id.
        step: The row's step that wrote it, counted from 0; -1 for tokens given in advance.
        confidence: As the rule saw it, in [0, 1]; None for tokens given in advance.
        kind: `given`, `commit`, `edit` (written over another token) or `forced` (the row had to
            gain a token that its strategy did not ask for).

    Examples:
        >>> Cell(token=7, step=0, confidence=0.95, kind="commit").kind
        'commit'
    """

    token: int
    step: int
    confidence: float | None
    kind: str


@dataclass(frozen=True)
class Frame:
    """The canvas of a row at one moment.

    Attributes:
        cells: One per generated column that is still worth decoding, None where it is open.
        fresh: Columns written in the pass before.
        reopened: Columns that lost their token in it.
        forwards: Passes so far, probes included.

    Examples:
        >>> frame = Frame((Cell(7, 0, 0.95, "commit"), None), fresh=frozenset({0}), forwards=1)
        >>> [cell is None for cell in frame.cells]
        [False, True]
    """

    cells: tuple[Cell | None, ...]
    fresh: frozenset[int] = frozenset()
    reopened: frozenset[int] = frozenset()
    forwards: int = 0


def frames_of(trace: Trace, row: int) -> list[Frame]:
    """The canvas of a row before its first pass and after each.

    Args:
        trace: A decode.
        row: Of its request.
    """
    cells: list[Cell | None] = [None] * trace.lengths[row]
    for column, token in trace.fixed[row].items():
        cells[column] = Cell(token, -1, None, "given")
    frames = [Frame(tuple(cells))]
    forwards = 0
    for record in trace.steps:
        if row not in record.rows:
            continue
        place = record.rows.index(row)
        reopened = [column for which, column in record.remasks if which == row]
        for column in reopened:
            cells[column] = None
        commits = [c for c in (*record.commits, *record.edits) if c.row == row]
        for commit in commits:
            before = cells[commit.column]
            kind = "forced" if record.forced[place] else "commit"
            kind = kind if before is None else "edit"
            step, column = record.steps[place], commit.column
            cells[column] = Cell(commit.token, step, commit.confidence, kind)
        forwards += record.forwards[place]
        frames.append(
            Frame(
                tuple(cells[: record.horizon[place]]),
                frozenset(commit.column for commit in commits),
                frozenset(reopened),
                forwards,
            )
        )
    return frames
