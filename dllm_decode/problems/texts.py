"""Sentences to read and puzzles to fill."""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import MappingProxyType

from dllm_decode.problems.base import Family, Problem, words_of
from dllm_decode.problems.words import CITIES, NAMES, SYMBOLS

_SENTENCES = (
    "{name} is {age} and lives in {city}.",
    "{name} lives in {city} and is {age} years old.",
    "{name}, aged {age}, comes from {city}.",
    "In {city} lives {name}, who is {age}.",
)


@dataclass(frozen=True)
class Records(Family):
    """Sentences about people become lines of fields.

    Attributes:
        most: People in the longest text.
        pool: Names to draw from.

    Examples:
        >>> family = Records("mine", "For people.")
        >>> problem = family.generate(random.Random(0))
        >>> family.grade(problem, problem.answer)
        True
    """

    most: int = 3
    pool: tuple[str, ...] = NAMES

    def generate(self, rng: random.Random) -> Problem:
        """Draw different people and cities, and a wording for each sentence."""
        count = rng.randint(1, self.most)
        told, lines = [], []
        people = zip(rng.sample(self.pool, count), rng.sample(CITIES, count), strict=True)
        for name, city in people:
            age = rng.randint(18, 90)
            told.append(rng.choice(_SENTENCES).format(name=name, age=age, city=city))
            lines.append(f"name = {name}; age = {age}; city = {city}.")
        return Problem(self.name, f"List the people: {' '.join(told)}", " ".join(lines))


@dataclass(frozen=True)
class LatinSquare(Family):
    """Fill a square so that no symbol occurs twice in a row or column: 576 answers are right.

    Attributes:
        size: Rows and columns.

    Examples:
        >>> family = LatinSquare("mine", "For people.")
        >>> problem = family.generate(random.Random(0))
        >>> family.grade(problem, problem.answer)
        True
    """

    size: int = 4

    def generate(self, rng: random.Random) -> Problem:
        """Draw the symbols, then row after row by rejection (some next row always exists)."""
        symbols = rng.sample(SYMBOLS, self.size)
        rows: list[list[str]] = []
        while len(rows) < self.size:
            row = rng.sample(symbols, self.size)
            if all(a != b for old in rows for a, b in zip(old, row, strict=True)):
                rows.append(row)
        return Problem(
            self.name,
            f"Latin square of {' '.join(symbols)}",
            " / ".join(" ".join(row) for row in rows),
            MappingProxyType({"symbols": tuple(symbols)}),
        )

    def grade(self, problem: Problem, text: str) -> bool:
        """Right is a square whose every row and column holds every symbol once."""
        symbols = problem.facts["symbols"]
        assert isinstance(symbols, tuple)
        rows = [words_of(row) for row in text.split("/")]
        if len(rows) != self.size or any(len(row) != self.size for row in rows):
            return False
        lines = rows + [list(column) for column in zip(*rows, strict=True)]
        return all(sorted(line) == sorted(symbols) for line in lines)
