"""Puzzles that are made to be solvable: sudoku with one solution, Countdown with one or more."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from dllm_decode.problems.base import Family, Problem
from dllm_decode.problems.grading import is_countdown, is_sudoku

_LARGEST = 99  # no number of a Countdown problem is larger


@dataclass(frozen=True)
class Sudoku(Family):
    """Fill a 4 x 4 sudoku that has exactly one solution.

    Attributes:
        clues: Cells that are given, 4 to 15.

    Examples:
        >>> family = Sudoku("mine", "For people.")
        >>> problem = family.generate(random.Random(0))
        >>> family.grade(problem, problem.answer), family.grade(problem, problem.answer[::-1])
        (True, False)
    """

    clues: int = 8

    def generate(self, rng: random.Random) -> Problem:
        """Draw one of the 288 filled grids, then empty cells in random order.

        A cell stays where the puzzle would have a second solution without it. A draw that gets
        stuck with more clues than wanted is thrown away; no puzzle has fewer than four.
        """
        while True:
            solved = rng.choice(_grids())
            given = _given(solved, self.clues, rng)
            if len(given) == self.clues:
                puzzle = "".join(solved[place] if place in given else "0" for place in range(16))
                facts = MappingProxyType({"puzzle": _in_lines(puzzle)})
                return Problem(self.name, f"Sudoku: {_in_words(puzzle)}", _in_words(solved), facts)

    def grade(self, problem: Problem, text: str) -> bool:
        """Right is what keeps every clue and has every digit once per row, column and box."""
        rows = text.split("/")
        whole = len(rows) == 4 and all(len(row.split()) == 4 for row in rows)
        return whole and is_sudoku("\n".join(rows), str(problem.facts["puzzle"]))


def _given(solved: str, clues: int, rng: random.Random) -> set[int]:
    """Places that stay: at least `clues` of them, and enough for one solution."""
    given = set(range(16))
    for place in rng.sample(range(16), 16):
        if len(given) == clues:
            break
        if _solutions(solved, given - {place}) == 1:
            given.remove(place)
    return given


def _solutions(solved: str, given: set[int]) -> int:
    """How many of all filled grids agree with one at the given places."""
    agree = -1
    for place in given:
        agree &= _holders()[place, solved[place]]
    return agree.bit_count() if given else len(_grids())


@cache
def _grids() -> tuple[str, ...]:
    """The 288 filled grids."""
    rows = ["".join(row) for row in itertools.permutations("1234")]
    bands = [upper + lower for upper in rows for lower in rows if not {*upper[:2]} & {*lower[:2]}]
    grids = (upper + lower for upper in bands for lower in bands)
    return tuple(grid for grid in grids if is_sudoku(_in_lines(grid), _in_lines("0" * 16)))


@cache
def _holders() -> dict[tuple[int, str], int]:
    """For each place and digit the grids that hold it there, one bit for each grid."""
    return {
        (place, digit): sum(1 << n for n, grid in enumerate(_grids()) if grid[place] == digit)
        for place in range(16)
        for digit in "1234"
    }


def _in_lines(cells: str) -> str:
    return "\n".join(cells[start : start + 4] for start in range(0, 16, 4))


def _in_words(cells: str) -> str:
    """1234... as "1 2 3 4 / ...": one word per cell."""
    return " / ".join(" ".join(line) for line in _in_lines(cells).split("\n"))


@dataclass(frozen=True)
class Countdown(Family):
    """Reach a target from numbers, each used once.

    Attributes:
        count: How many numbers are given.
        largest: The largest of them.

    Examples:
        >>> problem = Countdown("mine", "For people.").generate(random.Random(0))
        >>> problem.prompt, problem.answer
        ('Reach 5 with 13 25 14 2', '25 + 14 = 39, 39 / 13 = 3, 3 + 2 = 5')
    """

    count: int = 4
    largest: int = 25

    def generate(self, rng: random.Random) -> Problem:
        """Draw numbers of 1 to `largest`, then combine two of those left until one is left.

        The two and the operation are drawn uniformly from what stays within 0 to 99 without
        remainder; the last number is the target. The answer shown is one of several.
        """
        given = [rng.randint(1, self.largest) for _ in range(self.count)]
        left, steps = list(given), []
        while len(left) > 1:
            a, sign, b, result = rng.choice(_possible(left))
            left.remove(a)
            left.remove(b)
            left.append(result)
            steps.append(f"{a} {sign} {b} = {result}")
        target = left[0]
        return Problem(
            self.name,
            f"Reach {target} with {' '.join(map(str, given))}",
            ", ".join(steps),
            MappingProxyType({"numbers": tuple(given), "target": target}),
        )

    def grade(self, problem: Problem, text: str) -> bool:
        """Right are steps that hold, use every number once and end in the target."""
        numbers, target = problem.facts["numbers"], problem.facts["target"]
        assert isinstance(numbers, tuple) and isinstance(target, int)
        return is_countdown(text, numbers, target)


def _possible(left: Sequence[int]) -> list[tuple[int, str, int, int]]:
    """Steps that two different places of `left` allow; a difference always is one."""
    pairs = [(a, b) for i, a in enumerate(left) for j, b in enumerate(left) if i != j and a >= b]
    steps = [(a, "-", b, a - b) for a, b in pairs]
    steps += [(a, "+", b, a + b) for a, b in pairs if a + b <= _LARGEST]
    steps += [(a, "*", b, a * b) for a, b in pairs if a * b <= _LARGEST]
    steps += [(a, "/", b, a // b) for a, b in pairs if b > 0 and a % b == 0]
    return steps
