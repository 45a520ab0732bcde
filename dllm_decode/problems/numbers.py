"""Problems about numbers, with the steps written out."""

from __future__ import annotations

import random
from dataclasses import dataclass

from dllm_decode.problems.base import Family, Problem
from dllm_decode.problems.lists import labelled
from dllm_decode.problems.words import NAMES, THINGS


@dataclass(frozen=True)
class Count(Family):
    """Write a run of numbers.

    Attributes:
        longest: Numbers in the longest answer.
        largest_step: The largest difference between two neighbours.

    Examples:
        >>> Count("mine", "For people.").generate(random.Random(0)).answer
        '76 74 72 70 68 66 64 62 60 58 56 54 52 50 48 46 44 42 40 38 36 34 32 30 28 26'
    """

    longest: int = 96
    largest_step: int = 3

    def generate(self, rng: random.Random) -> Problem:
        """Draw a length (log-uniform: short ones often), a step and a direction within 0..99."""
        step = rng.randint(1, self.largest_step)
        limit = min(self.longest, 99 // step + 1)
        count = min(limit, int(3 * (limit / 3 + 1) ** rng.random()))
        start = rng.randint(0, 99 - step * (count - 1))
        run = list(range(start, start + step * count, step))
        way = "up"
        if rng.random() < 0.5:
            way, run = "down", run[::-1]
        prompt = f"Count {way} from {run[0]} to {run[-1]} by {step}"
        return Problem(self.name, prompt, " ".join(map(str, run)))


@dataclass(frozen=True)
class Tally(Family):
    """Count how often a name occurs in a labelled list, with a running total behind every name.

    Attributes:
        shortest: Names in the shortest list.
        longest: Names in the longest list.

    Examples:
        >>> Tally("mine", "For people.").generate(random.Random(0)).answer
        '1 Max = 1, 2 Ben = 1, 3 Ben = 1, 4 Nils = 1, 5 Ben = 1, 6 Max = 2, 7 Max = 3; total 3'
    """

    shortest: int = 3
    longest: int = 8

    def generate(self, rng: random.Random) -> Problem:
        """Draw a few names with repetition; about half of the places hold the name asked for."""
        wanted, *others = rng.sample(NAMES, 4)
        count = rng.randint(self.shortest, self.longest)
        shown = [wanted if rng.random() < 0.5 else rng.choice(others) for _ in range(count)]
        total, steps = 0, []
        for label, name in enumerate(shown, start=1):
            total += name == wanted
            steps.append(f"{label} {name} = {total}")
        prompt = f"Tally {wanted}: {labelled(shown)}"
        return Problem(self.name, prompt, f"{', '.join(steps)}; total {total}")


@dataclass(frozen=True)
class Add(Family):
    """Add two numbers digit by digit from the right, with every carry written out.

    Attributes:
        fewest_digits: Digits of the shortest numbers.
        most_digits: Digits of the longest numbers.

    Examples:
        >>> problem = Add("mine", "For people.").generate(random.Random(0))
        >>> problem.prompt, problem.answer
        ('Add 4 3 0 + 3 4 6', '0 + 6 + 0 = 6, 3 + 4 + 0 = 7, 4 + 3 + 0 = 7; total 7 7 6')
    """

    fewest_digits: int = 2
    most_digits: int = 4

    def generate(self, rng: random.Random) -> Problem:
        """Draw two numbers whose sum has no more digits than they have."""
        digits = rng.randint(self.fewest_digits, self.most_digits)
        total = rng.randrange(10**digits)
        left = rng.randint(0, total)
        columns = list(zip(_digits(left, digits), _digits(total - left, digits), strict=True))
        carry, steps = 0, []
        for upper, lower in reversed(columns):
            column = upper + lower + carry
            steps.append(f"{upper} + {lower} + {carry} = {column}")
            carry = column // 10
        prompt = f"Add {_spaced(left, digits)} + {_spaced(total - left, digits)}"
        return Problem(self.name, prompt, f"{', '.join(steps)}; total {_spaced(total, digits)}")


@dataclass(frozen=True)
class Story(Family):
    """A short story with two or three changes of a number, and a line of arithmetic for each.

    Attributes:
        pool: Names to draw from.

    Examples:
        >>> family = Story("mine", "For people.")
        >>> problem = family.generate(random.Random(0))
        >>> family.grade(problem, problem.answer)
        True
    """

    pool: tuple[str, ...] = NAMES

    def generate(self, rng: random.Random) -> Problem:
        """Draw a story whose numbers stay between 0 and 40, with changes of 1 to 9."""
        name, thing = rng.choice(self.pool), rng.choice(THINGS)
        amount = rng.randint(2, 20)
        told, steps = [f"{name} has {amount} {thing}"], []
        for _ in range(rng.randint(2, 3)):
            change = rng.randint(1, 9)
            less = amount >= change and rng.random() < 0.5
            told.append(f"{rng.choice(_LESS if less else _MORE)} {change}")
            after = amount - change if less else amount + change
            steps.append(f"{amount} {'-' if less else '+'} {change} = {after}")
            amount = after
        *changes, last = told
        prompt = f"{', '.join(changes)} and {last}. How many {thing} are left?"
        return Problem(self.name, prompt, f"{', '.join(steps)}; {amount} {thing}")


_MORE = ("finds", "buys", "gets")
_LESS = ("loses", "sells", "gives away")


def _digits(number: int, count: int) -> list[int]:
    """The decimal digits of a number, filled with zeros in front."""
    return [int(digit) for digit in f"{number:0{count}d}"]


def _spaced(number: int, count: int) -> str:
    """A number with its digits apart: 47 with 3 digits is "0 4 7"."""
    return " ".join(map(str, _digits(number, count)))
