"""Sudoku of 6 x 6 cells with boxes of 2 x 3 and exactly one solution."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from dllm_decode.problems.base import GAP, Family, Problem

_SIZE = 6
_CELLS = _SIZE * _SIZE
_ANY = (1 << _SIZE) - 1  # one bit for each digit
_EMPTY = "."


@dataclass(frozen=True)
class SudokuSix(Family):
    """Fill a 6 x 6 sudoku that has exactly one solution.

    Attributes:
        fewest: The smallest number of cells given.
        most: The largest number of cells given.
        read: Whether the puzzle stands in the prompt. Otherwise the givens stand on the canvas, and
            only the empty cells are decoded: half of the tokens, and a thing that only a masked
            model can do.

    Examples:
        >>> family = SudokuSix("mine", "For people.")
        >>> problem = family.generate(random.Random(0))
        >>> family.grade(problem, problem.answer)
        True
    """

    fewest: int = 10
    most: int = 20
    read: bool = False

    def generate(self, rng: random.Random) -> Problem:
        """Draw a filled grid, then empty cells in random order while it has one solution.

        Fewer cells than `most` stay, down to a number drawn from `fewest` to `most`, where the
        order in which they are emptied allows it.
        """
        while True:
            solved = _filled(rng)
            given = _thinned(solved, rng.randint(self.fewest, self.most), rng)
            if sum(digit > 0 for digit in given) <= self.most:
                break
        return self.problem(given, solved)

    def problem(self, given: list[int], solved: list[int]) -> Problem:
        """The problem of a puzzle.

        Args:
            given: 36 digits, 0 for an empty cell.
            solved: 36 digits, none of them 0.
        """
        if self.read:
            return Problem(self.name, f"Sudoku: {_in_words(given, _EMPTY)}", _in_words(solved))
        cells = [f" {digit}" if digit else GAP for digit in given]
        rows = ("".join(cells[start : start + _SIZE]) for start in range(0, _CELLS, _SIZE))
        return Problem(self.name, "Fill the sudoku", _in_words(solved), form=" /".join(rows))

    def alike(self, problem: Problem, rng: random.Random) -> Problem:
        """Another problem made from one, much sooner than from nothing.

        Digits are renamed, bands of two rows and stacks of three columns change places, and so do
        the rows and columns within them; none of this changes the number of solutions.

        Args:
            problem: Of this family.
            rng: Where the numbers come from.
        """
        shown = (problem.prompt.removeprefix("Sudoku:") if self.read else problem.form).replace(
            GAP, f" {_EMPTY}"
        )
        names = [0, *rng.sample(range(1, _SIZE + 1), _SIZE)]
        rows, columns = _moved(2, rng), _moved(3, rng)
        places = [row * _SIZE + column for row in rows for column in columns]
        grids = ([c for row in _cells(text) for c in row] for text in (shown, problem.answer))
        given, solved = (
            [names[int(cells[place]) if cells[place] != _EMPTY else 0] for place in places]
            for cells in grids
        )
        return self.problem(given, solved)

    def grade(self, problem: Problem, text: str) -> bool:
        """Right is the only solution, digit for digit."""
        return _cells(text) == _cells(problem.answer)


def _cells(text: str) -> list[list[str]]:
    return [row.split() for row in text.split("/")]


def _moved(size: int, rng: random.Random) -> list[int]:
    """Six rows or columns in another order; those of one group of `size` stay together."""
    groups = rng.sample(range(_SIZE // size), _SIZE // size)
    return [group * size + place for group in groups for place in rng.sample(range(size), size)]


def _in_words(cells: list[int], empty: str = "") -> str:
    """36 digits as "1 2 3 4 5 6 / ...": one word per cell."""
    rows = (cells[start : start + _SIZE] for start in range(0, _CELLS, _SIZE))
    return " / ".join(" ".join(str(digit or empty) for digit in row) for row in rows)


@cache
def _peers() -> tuple[tuple[int, ...], ...]:
    """For every cell the others in its row, column and box."""
    place = [(cell // 6, cell % 6, cell // 12 * 2 + cell % 6 // 3) for cell in range(_CELLS)]
    return tuple(
        tuple(o for o in range(_CELLS) if o != c and any(map(int.__eq__, place[o], place[c])))
        for c in range(_CELLS)
    )


def _filled(rng: random.Random) -> list[int]:
    """A filled grid, drawn by backtracking from a random first row."""
    options = [_ANY] * _CELLS
    for cell, digit in enumerate(rng.sample(range(_SIZE), _SIZE)):
        if not _put(options, cell, 1 << digit):
            raise AssertionError("a first row always fits")
    solved = _search(options, rng)
    assert solved is not None
    return [option.bit_length() for option in solved]


def _put(options: list[int], cell: int, bit: int) -> bool:
    """Decide one cell and everything that follows for others; False where nothing is left."""
    options[cell] = bit
    waiting = [cell]
    while waiting:
        known = waiting.pop()
        gone = options[known]
        for other in _peers()[known]:
            if options[other] & gone:
                options[other] &= ~gone
                left = options[other]
                if not left:
                    return False
                if not left & (left - 1):
                    waiting.append(other)
    return True


def _search(options: list[int], rng: random.Random) -> list[int] | None:
    """One grid that these options allow; None where there is none."""
    open_cells = [cell for cell in range(_CELLS) if options[cell] & (options[cell] - 1)]
    if not open_cells:
        return options
    cell = min(open_cells, key=lambda c: options[c].bit_count())
    bits = [1 << digit for digit in range(_SIZE) if options[cell] >> digit & 1]
    rng.shuffle(bits)
    for bit in bits:
        trial = options[:]
        if _put(trial, cell, bit) and (found := _search(trial, rng)) is not None:
            return found
    return None


def _options(given: list[int]) -> list[int] | None:
    """The digits that every cell can still hold, each as a bit; None where givens contradict."""
    options = [_ANY] * _CELLS
    for cell, digit in enumerate(given):
        if digit and not (options[cell] >> (digit - 1) & 1 and _put(options, cell, 1 << digit - 1)):
            return None
    return options


def _thinned(solved: list[int], count: int, rng: random.Random) -> list[int]:
    """The grid with cells emptied in random order until `count` are left or none can go."""
    given, left = solved[:], _CELLS
    for cell in rng.sample(range(_CELLS), _CELLS):
        if left == count:
            break
        given[cell] = 0
        options = _options(given)
        assert options is not None, "a filled grid has no contradictions"
        others = options[cell] & ~(1 << solved[cell] - 1)
        # Any other solution differs from the one before in this cell.
        if others and _other(options, cell, others, rng):
            given[cell] = solved[cell]
        else:
            left -= 1
    return given


def _other(options: list[int], cell: int, bits: int, rng: random.Random) -> bool:
    """Whether some grid holds one of these digits in a cell."""
    for digit in range(_SIZE):
        if bits >> digit & 1:
            trial = options[:]
            if _put(trial, cell, 1 << digit) and _search(trial, rng) is not None:
                return True
    return False


def solutions(given: list[int], limit: int = 2) -> int:
    """Number of ways to fill a puzzle, counted up to a limit.

    Args:
        given: 36 digits, 0 for an empty cell.
        limit: Where counting stops.
    """
    options = _options(given)
    return 0 if options is None else _count(options, limit)


def _count(options: list[int], limit: int) -> int:
    open_cells = [cell for cell in range(_CELLS) if options[cell] & (options[cell] - 1)]
    if not open_cells:
        return 1
    cell, found = min(open_cells, key=lambda c: options[c].bit_count()), 0
    for digit in range(_SIZE):
        if options[cell] >> digit & 1 and found < limit:
            trial = options[:]
            if _put(trial, cell, 1 << digit):
                found += _count(trial, limit - found)
    return found
