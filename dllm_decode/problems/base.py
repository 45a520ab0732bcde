"""What a problem and a family of problems are, and the split into training and held-out prompts."""

from __future__ import annotations

import random
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from dllm_decode.errors import ConfigError, require_choice, require_count

SPLITS = ("train", "held_out")
GAP = "[MASK]"  # stands for one open column in a form
HELD_OUT_SHARE = 16  # one prompt in this many is never trained on
_IN_VAIN = 300  # draws in a row without a new prompt: the family has hardly any left


@dataclass(frozen=True)
class Problem:
    """One question, and an answer to it that is right.

    Attributes:
        family: Key of `FAMILIES`.
        prompt: The question, plain text without special tokens.
        answer: Plain text; families with several right answers show one of them.
        facts: What a grader needs beyond the answer, e.g. the list that was shown.
        form: For infilling, the answer with `GAP` for every token to be found; "" where everything
            is to be found.

    Examples:
        >>> Problem("copy", "Copy: 1 Ada", "1 Ada", form=" 1" + GAP).shown
        'Copy: 1 Ada 1[MASK]'
    """

    family: str
    prompt: str
    answer: str
    facts: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    form: str = ""

    @property
    def shown(self) -> str:
        """All that a model is given: the prompt, and behind it what stands on the canvas."""
        return f"{self.prompt}{self.form}"


@dataclass(frozen=True)
class Family(ABC):
    """A kind of problem: how to make one and how to grade an answer.

    Attributes:
        name: The key.
        title: One sentence for people.
        determined: Whether, given the prompt, exactly one answer is right.
        canvas: Columns that hold every answer and its end of text.
        shown: Whether the bundled model can do it, so that it belongs in default runs and tables.
        trained: Whether the bundled model is trained on it.

    Examples:
        >>> from dllm_decode.problems.lists import Sort
        >>> family = Sort("sort", "Put names into alphabetical order.")
        >>> problem = family.generate(random.Random(0))
        >>> family.grade(problem, problem.answer), family.grade(problem, "")
        (True, False)
    """

    name: str
    title: str
    determined: bool = True
    canvas: int = 32
    shown: bool = False
    trained: bool = True

    @abstractmethod
    def generate(self, rng: random.Random) -> Problem:
        """Draw one problem.

        Args:
            rng: Where the numbers come from; the same state gives the same problem.
        """

    def grade(self, problem: Problem, text: str) -> bool:
        """Whether a text answers the problem; surrounding and repeated spaces do not matter.

        Args:
            problem: A problem of this family.
            text: What was decoded, without special tokens.
        """
        return words_of(text) == words_of(problem.answer)

    def grade_strictly(self, problem: Problem, text: str) -> bool:
        """The same for the one form that was asked for; families with one form have one grader.

        Args:
            problem: A problem of this family.
            text: What was decoded, without special tokens.
        """
        return self.grade(problem, text)

    def form(self, problem: Problem) -> str | None:
        """The answer with `GAP` for every word to be found; None if the family has no such form.

        Args:
            problem: A problem of this family.
        """
        return problem.form or None


def words_of(text: str) -> list[str]:
    """Split a text at spaces and line ends: the unit in which answers are compared.

    Args:
        text: Any text.
    """
    return text.split()


def held_out(shown: str) -> bool:
    """Whether a problem is kept from training: a fixed hash decides, whatever the seed.

    Args:
        shown: `Problem.shown`, all that a model is given.
    """
    return zlib.crc32(shown.encode("utf-8")) % HELD_OUT_SHARE == 0


def draw(family: Family, split: str, rng: random.Random) -> Problem:
    """Draw one problem of a split by rejection.

    Args:
        family: The kind of problem.
        split: `train` or `held_out`.
        rng: Where the numbers come from.
    """
    wanted = split == "held_out"
    while True:
        problem = family.generate(rng)
        if held_out(problem.shown) == wanted:
            return problem


def distinct_problems(family: Family, split: str, count: int, seed: int) -> list[Problem]:
    """Draw problems with different prompts.

    Args:
        family: The kind of problem.
        split: `train` or `held_out`.
        count: Number of problems, 1 or more.
        seed: Of the draw.

    Raises:
        ConfigError: The split is unknown, or the family has fewer prompts than `count`.
    """
    require_choice("split", split, SPLITS)
    require_count("count", count)
    rng = random.Random(f"{seed}/{family.name}/{split}")
    found: dict[str, Problem] = {}
    in_vain = 0
    while in_vain < _IN_VAIN:
        problem = draw(family, split, rng)
        in_vain = in_vain + 1 if problem.shown in found else 0
        found.setdefault(problem.shown, problem)
        if len(found) == count:
            return list(found.values())
    raise ConfigError(
        f"count must be at most the number of {split} prompts of family {family.name!r}: "
        f"got {count}, found {len(found)}"
    )
