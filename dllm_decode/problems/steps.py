"""Problems that are worked out in order: every step needs the one before."""

from __future__ import annotations

import random
from dataclasses import dataclass

from dllm_decode.problems.base import Family, Problem
from dllm_decode.problems.words import MOVES, OPERATIONS, THINGS

# Of a chain. Every sum, difference, product and quotient is learned as a fact of its own; there are
# some 270 of them up to here.
_LARGEST = 30


@dataclass(frozen=True)
class Chain(Family):
    """Arithmetic in which every step takes the result of the one before.

    Steps are numbered like the names of a list, because a small model with rotary positions finds
    "the seventh step" by a label and not by counting, and an operation is one word, the one behind
    the label. What a chain starts from stands at the end of the prompt, where every other step
    has the result before it.

    Attributes:
        shortest: Steps of the shortest chain.
        longest: Steps of the longest chain.

    Examples:
        >>> family = Chain("mine", "For people.")
        >>> problem = family.generate(random.Random(0))
        >>> family.grade(problem, problem.answer)
        True
    """

    shortest: int = 8
    longest: int = 20

    def generate(self, rng: random.Random) -> Problem:
        """Draw steps whose results stay within 0 to 30 without remainder."""
        start = value = rng.randint(1, _LARGEST)
        asked, steps, before = [], [], value
        for label in range(1, 1 + rng.randint(self.shortest, self.longest)):
            operation, result = _step(value, before, rng)
            asked.append(f"{label} {operation}")
            steps.append(f"{asked[-1]} = {result}")
            before, value = value, result
        return Problem(self.name, f"Chain {' '.join(asked)} from {start}", ", ".join(steps))


def _step(value: int, before: int, rng: random.Random) -> tuple[str, int]:
    """An operation and its result. Times and divided by come where they are possible.

    before: the value one step earlier, to which no step leads back.
    """
    results = [(operation, applied(operation, value)) for operation in OPERATIONS]
    possible = [(name, result) for name, result in results if result not in (None, value, before)]
    rare = [step for step in possible if step[0][0] in "*/"]
    chosen: tuple[str, int] = rng.choice(rare if rare and rng.random() < 0.25 else possible)
    return chosen


def applied(operation: str, value: int) -> int | None:
    """What an operation makes of a number; None outside 0 to 30 or with a remainder.

    Args:
        operation: One of `OPERATIONS`.
        value: The number.
    """
    sign, operand = operation[0], int(operation[1:])
    if sign == "/" and value % operand:
        return None
    result = {
        "+": value + operand,
        "-": value - operand,
        "*": value * operand,
        "/": value // operand,
    }[sign]
    return result if 0 <= result <= _LARGEST else None


@dataclass(frozen=True)
class Track(Family):
    """Four things in a row change places, two at a time; behind every move stands the row after it.

    `left` exchanges the first two, `middle` those between, `right` the last two, and `outer` the
    first and the last. The row at the start stands at the end of the prompt, where every other move
    has the row before it.

    Attributes:
        shortest: Moves of the shortest problem.
        longest: Moves of the longest problem.

    Examples:
        >>> family = Track("mine", "For people.")
        >>> problem = family.generate(random.Random(0))
        >>> family.grade(problem, problem.answer)
        True
    """

    shortest: int = 6
    longest: int = 15

    def generate(self, rng: random.Random) -> Problem:
        """Draw different things and moves, none of them twice in a row."""
        start = row = rng.sample(THINGS, 4)
        asked, rows, move = [], [], ""
        for label in range(1, 1 + rng.randint(self.shortest, self.longest)):
            move = rng.choice([other for other in MOVES if other != move])  # twice undoes itself
            row = moved(row, move)
            asked.append(f"{label} {move}")
            rows.append(f"{asked[-1]} {' '.join(row)}")
        prompt = f"Track {' '.join(asked)} from {' '.join(start)}"
        return Problem(self.name, prompt, ", ".join(rows))


def moved(row: list[str], move: str) -> list[str]:
    """The row behind a move.

    Args:
        row: Four things.
        move: A key of `MOVES`.
    """
    first, second = MOVES[move]
    after = row[:]
    after[first], after[second] = row[second], row[first]
    return after
