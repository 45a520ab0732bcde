"""Problems that are worked out in order: every step needs the one before."""

from __future__ import annotations

import random
from dataclasses import dataclass

from dllm_decode.problems.base import Family, Problem
from dllm_decode.problems.lists import labelled
from dllm_decode.problems.words import SYMBOLS, THINGS

# Of a chain. Every sum, difference, product and quotient is learned as a fact of its own; there are
# five hundred of them up to here, and two thousand up to 99 with operands up to 9.
_LARGEST, _OPERAND = 50, 5


@dataclass(frozen=True)
class Chain(Family):
    """Arithmetic in which every step takes the result of the one before.

    Steps carry letters, because a small model with rotary positions finds "the seventh step" by a
    label and not by counting; and the answer repeats a step as it is asked, the result behind it,
    because a label that stands right in front of what is looked up is found first.

    Attributes:
        shortest: Steps of the shortest chain.
        longest: Steps of the longest chain, 26 at most.

    Examples:
        >>> family = Chain("mine", "For people.")
        >>> problem = family.generate(random.Random(0))
        >>> family.grade(problem, problem.answer)
        True
    """

    shortest: int = 6
    longest: int = 20

    def generate(self, rng: random.Random) -> Problem:
        """Draw steps whose results stay within 0 to 50 without remainder."""
        start = value = rng.randint(1, 30)
        asked, steps, before = [], [], value
        for label in SYMBOLS[: rng.randint(self.shortest, self.longest)]:
            sign, operand, result = _step(value, before, rng)
            asked.append(f"{label} {sign} {operand}")
            steps.append(f"{asked[-1]} = {result}")
            before, value = value, result
        return Problem(self.name, f"Chain from {start}: {' '.join(asked)}", ", ".join(steps))


def _step(value: int, before: int, rng: random.Random) -> tuple[str, int, int]:
    """A sign, an operand and the result. Times and divided by come where they are possible.

    before: the value one step earlier, to which times and divided by do not lead back.
    """
    possible = [("*", n, value * n) for n in (2, 3) if 0 < value * n <= _LARGEST]
    possible += [("/", n, value // n) for n in (2, 3) if value > 5 and value % n == 0]
    possible = [step for step in possible if step[2] != before]
    if possible and rng.random() < 0.4:
        return rng.choice(possible)
    operand = rng.randint(2, _OPERAND)
    less = value >= operand and (value + operand > _LARGEST or rng.random() < 0.5)
    return ("-", operand, value - operand) if less else ("+", operand, value + operand)


@dataclass(frozen=True)
class Track(Family):
    """Things in a row change places, two at a time; behind every exchange stands the row after it.

    Attributes:
        places: Things in the row.
        shortest: Exchanges of the shortest problem.
        longest: Exchanges of the longest problem, 26 at most.

    Examples:
        >>> family = Track("mine", "For people.")
        >>> problem = family.generate(random.Random(0))
        >>> family.grade(problem, problem.answer)
        True
    """

    places: int = 4
    shortest: int = 6
    longest: int = 15

    def generate(self, rng: random.Random) -> Problem:
        """Draw different things and, for every exchange, two places, the smaller one first."""
        row = rng.sample(THINGS, self.places)
        shown, moves, rows, pair = labelled(row), [], [], (0, 0)
        for label in SYMBOLS[: rng.randint(self.shortest, self.longest)]:
            before = pair
            while pair == before:  # the same exchange twice would undo itself
                first, second = pair = _pair(self.places, rng)
            row[first], row[second] = row[second], row[first]
            moves.append(f"{label} {first + 1} {second + 1}")
            rows.append(f"{moves[-1]} {' '.join(row)}")
        return Problem(self.name, f"Track {shown}: {' '.join(moves)}", " / ".join(rows))


def _pair(places: int, rng: random.Random) -> tuple[int, int]:
    """Two different places counted from 0, the smaller one first."""
    first, second = sorted(rng.sample(range(places), 2))
    return first, second
