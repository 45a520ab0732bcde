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
    """One question with one right answer.

    family: key of `FAMILIES`; prompt, answer: plain text without special tokens;
    facts: what a grader needs beyond the answer, e.g. the list that was shown; form: for infilling,
    the answer with `GAP` for every token to be found, "" where everything is to be found.
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

    name: the key; title: one sentence for people; determined: exactly one answer is right, given
    the prompt; canvas: slots [tokens] that hold every answer and its end of text;
    shown: the bundled model can do it, so that it belongs in default runs and tables; trained: the
    bundled model is trained on it.
    """

    name: str
    title: str
    determined: bool = True
    canvas: int = 32
    shown: bool = False
    trained: bool = True

    @abstractmethod
    def generate(self, rng: random.Random) -> Problem:
        """Draw one problem; the same state of `rng` gives the same problem."""

    def grade(self, problem: Problem, text: str) -> bool:
        """Whether `text` answers the problem; surrounding and repeated blanks do not matter."""
        return words_of(text) == words_of(problem.answer)

    def form(self, problem: Problem) -> str | None:
        """The answer with `GAP` for every word to be filled in; None if the family has no form."""
        return problem.form or None


def words_of(text: str) -> list[str]:
    """Split at blanks: the unit in which answers are compared."""
    return text.split()


def held_out(shown: str) -> bool:
    """Whether what is shown is kept from training: a fixed hash of it decides, for every seed."""
    return zlib.crc32(shown.encode("utf-8")) % HELD_OUT_SHARE == 0


def draw(family: Family, split: str, rng: random.Random) -> Problem:
    """Draw one problem of a split ("train" or "held_out") by rejection."""
    wanted = split == "held_out"
    while True:
        problem = family.generate(rng)
        if held_out(problem.shown) == wanted:
            return problem


def distinct_problems(family: Family, split: str, count: int, seed: int) -> list[Problem]:
    """Draw `count` problems with different prompts; raises `ConfigError` if there are too few."""
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
