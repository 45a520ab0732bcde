"""The tasks of ParallelBench asked in plain English, for checkpoints that follow instructions.

The bundled families speak the shorthand of the bundled model ("Shuffle: 1 Ada 2 Ben"). Here a
question is an instruction with one worked example before it, and an answer is a list like
`["Ada Holm", "Ben Ray"]`, lines of a grid, or a sentence. Every family has two graders: `grade`
forgives the form, `grade_strictly` does not.

Rules: ParallelBench, arXiv 2510.04767; words, names and graders are our own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from dllm_decode.problems.base import Family, Problem
from dllm_decode.problems.grading import is_sudoku
from dllm_decode.problems.puzzles import Sudoku
from dllm_decode.problems.sentences import WORDS, holds_words, is_sentence
from dllm_decode.problems.texts import LatinSquare
from dllm_decode.problems.words import NAMES, SURNAMES

_SHORT, _LONG = 64, 128  # columns for lists of up to six entries, and for longer ones
_QUOTES = " \t\n\"'\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
_ENTRY = r'"[^"\[\]]+"'
_STRICT_LIST = re.compile(rf"\[{_ENTRY}(?:, {_ENTRY})*\]")


def written(entries: Sequence[str]) -> str:
    """A list as questions show it and answers should.

    Args:
        entries: Texts without quotes and brackets.

    Examples:
        >>> written(["Ada Holm", "Ben Ray"])
        '["Ada Holm", "Ben Ray"]'
    """
    return "[" + ", ".join(f'"{entry}"' for entry in entries) + "]"


def read_list(text: str, *, strict: bool = False) -> list[str] | None:
    """The last list in a text.

    Args:
        text: An answer.
        strict: Whether it must be written as `written` does; otherwise quotes and spaces do not
            matter, and the list may lack its closing bracket.

    Returns:
        Its entries, None where there is no list.

    Examples:
        >>> read_list("So: [Ada Holm,'Ben Ray'"), read_list("[Ada]", strict=True)
        (['Ada Holm', 'Ben Ray'], None)
    """
    begin = text.rfind("[")
    if begin < 0:
        return None
    inside, closed, _ = text[begin + 1 :].partition("]")
    if strict and _STRICT_LIST.fullmatch(f"[{inside}{closed}") is None:
        return None
    entries = [entry.strip(_QUOTES) for entry in inside.split(",")]
    return entries if all(entries) else None


Listed = tuple[str, list[str]]  # an instruction and a right answer
_Operation = Callable[[list[str], str, random.Random], Listed]


def _insert(names: list[str], spare: str, rng: random.Random) -> Listed:
    place = rng.randint(1, len(names) + 1)
    order = f'Insert "{spare}" so that it becomes entry number {place} of the list.'
    return order, [*names[: place - 1], spare, *names[place - 1 :]]


def _remove(names: list[str], spare: str, rng: random.Random) -> Listed:
    place = rng.randint(1, len(names))
    return f"Remove entry number {place} of the list.", names[: place - 1] + names[place:]


def _replace(names: list[str], spare: str, rng: random.Random) -> Listed:
    place = rng.randint(1, len(names))
    order = f'Replace entry number {place} of the list with "{spare}".'
    return order, [*names[: place - 1], spare, *names[place:]]


def _insert_one(names: list[str], spare: str, rng: random.Random) -> Listed:
    place = rng.randint(0, len(names))
    order = f'Insert "{spare}" at any position of the list.'
    return order, [*names[:place], spare, *names[place:]]


def _remove_one(names: list[str], spare: str, rng: random.Random) -> Listed:
    place = rng.randrange(len(names))
    return "Remove any one entry of the list.", names[:place] + names[place + 1 :]


def _replace_one(names: list[str], spare: str, rng: random.Random) -> Listed:
    place = rng.randrange(len(names))
    order = f'Replace any one entry of the list with "{spare}".'
    return order, [*names[:place], spare, *names[place + 1 :]]


def _shuffle(names: list[str], spare: str, rng: random.Random) -> Listed:
    result = list(names)
    while result == names:
        rng.shuffle(result)
    return "Put the list into any order other than the one it has.", result


_OPERATIONS: dict[str, _Operation] = {
    "copy": lambda names, spare, rng: ("Repeat the list as it is.", names),
    "reverse": lambda names, spare, rng: ("Reverse the order of the list.", names[::-1]),
    "sort": lambda names, spare, rng: ("Sort the list alphabetically.", sorted(names)),
    "insert": _insert,
    "remove": _remove,
    "replace": _replace,
    "insert-one": _insert_one,
    "remove-one": _remove_one,
    "replace-one": _replace_one,
    "shuffle": _shuffle,
}


def _is_inserted(found: list[str], names: list[str], spare: str) -> bool:
    return found.count(spare) == 1 and [name for name in found if name != spare] == names


def _is_removed(found: list[str], names: list[str], spare: str) -> bool:
    return found in [names[:place] + names[place + 1 :] for place in range(len(names))]


def _is_replaced(found: list[str], names: list[str], spare: str) -> bool:
    changed = [new for new, old in zip(found, names, strict=False) if new != old]
    return len(found) == len(names) and changed == [spare]


def _is_shuffled(found: list[str], names: list[str], spare: str) -> bool:
    return sorted(found) == sorted(names) and found != names


# Whether a list answers, where several do; the others have one answer.
_RULES: dict[str, Callable[[list[str], list[str], str], bool]] = {
    "insert-one": _is_inserted,
    "remove-one": _is_removed,
    "replace-one": _is_replaced,
    "shuffle": _is_shuffled,
}


@dataclass(frozen=True)
class InstructedList(Family):
    """One of the ten list operations on full names.

    Attributes:
        operation: A key of the operations, e.g. `shuffle`.
        shortest: Entries of the shortest list.
        longest: Entries of the longest list.

    Examples:
        >>> family = INSTRUCTED["sort"]
        >>> problem = family.generate(random.Random(1))
        >>> family.grade(problem, problem.answer.replace('"', "")), problem.answer
        (True, '["Carl Quill", "Dora Nash", "Iris West", "Seth Page"]')
    """

    operation: str = "copy"
    shortest: int = 3
    longest: int = 6

    def generate(self, rng: random.Random) -> Problem:
        """Draw different names and apply the operation."""
        count = rng.randint(self.shortest, self.longest) + 1
        pairs = zip(rng.sample(NAMES, count), rng.sample(SURNAMES, count), strict=True)
        *names, spare = [" ".join(pair) for pair in pairs]
        order, result = _OPERATIONS[self.operation](names, spare, rng)
        prompt = (
            "You keep the list of people who wait in a queue.\n\n"
            f"{order}\n\n{written(names)}\n\nAnswer with the new list and nothing else."
        )
        facts = MappingProxyType({"names": tuple(names), "spare": spare, "result": tuple(result)})
        return Problem(self.name, prompt, written(result), facts)

    def grade(self, problem: Problem, text: str) -> bool:
        """Right is a list that follows the instruction, however it is written."""
        return self._right(problem, read_list(text))

    def grade_strictly(self, problem: Problem, text: str) -> bool:
        """The same for lists written as in the question, with nothing around them."""
        alone = _STRICT_LIST.fullmatch(text.strip()) is not None
        return alone and self._right(problem, read_list(text, strict=True))

    def _right(self, problem: Problem, found: list[str] | None) -> bool:
        names, spare, result = (problem.facts[key] for key in ("names", "spare", "result"))
        assert isinstance(names, tuple) and isinstance(spare, str) and isinstance(result, tuple)
        if found is None:
            return False
        rule = _RULES.get(self.operation)
        return found == list(result) if rule is None else rule(found, list(names), spare)


@dataclass(frozen=True)
class InstructedLatin(LatinSquare):
    r"""A Latin square, written in lines.

    Examples:
        >>> family = INSTRUCTED["latin"]
        >>> problem = family.generate(random.Random(0))
        >>> text = f"Here it is:\n{problem.answer}"
        >>> family.grade(problem, text), family.grade_strictly(problem, text)
        (True, False)
    """

    def generate(self, rng: random.Random) -> Problem:
        """As the bundled one, asked in words."""
        drawn = super().generate(rng)
        symbols = drawn.facts["symbols"]
        assert isinstance(symbols, tuple)
        prompt = (
            f"Write a Latin square of size {self.size} with the symbols {', '.join(symbols)}: "
            "every symbol once in every row and once in every column.\n\n"
            f"Answer with {self.size} lines of symbols, separated by commas, and nothing else."
        )
        lines = [",".join(row.split()) for row in drawn.answer.split("/")]
        return Problem(self.name, prompt, "\n".join(lines), drawn.facts)

    def grade(self, problem: Problem, text: str) -> bool:
        """Right are the first lines whose words are the symbols, if they are a square."""
        symbols = problem.facts["symbols"]
        assert isinstance(symbols, tuple)
        rows = [re.findall(r"\w+", line) for line in text.splitlines()]
        rows = [row for row in rows if sorted(row) == sorted(symbols)][: self.size]
        return super().grade(problem, " / ".join(" ".join(row) for row in rows))

    def grade_strictly(self, problem: Problem, text: str) -> bool:
        """The same with nothing around the lines."""
        lines = text.strip().splitlines()
        plain = all(re.fullmatch(r"\S(?:,\S)*", line) for line in lines)
        return len(lines) == self.size and plain and self.grade(problem, text)


@dataclass(frozen=True)
class InstructedSudoku(Sudoku):
    """A 4 x 4 sudoku, written in lines.

    Examples:
        >>> family = INSTRUCTED["sudoku"]
        >>> problem = family.generate(random.Random(0))
        >>> family.grade(problem, problem.answer), problem.answer.splitlines()[0]
        (True, '3412')
    """

    clues: int = 12

    def generate(self, rng: random.Random) -> Problem:
        """As the bundled one, asked in words."""
        drawn = super().generate(rng)
        prompt = (
            "Fill the empty cells (0) of this 4 x 4 sudoku with 1 to 4, so that every row, column "
            f"and 2 x 2 box has each digit once.\n\n{drawn.facts['puzzle']}\n\n"
            "Answer with the four lines and nothing else."
        )
        answer = "\n".join(row.replace(" ", "") for row in drawn.answer.split("/"))
        return Problem(self.name, prompt, answer, drawn.facts)

    def grade(self, problem: Problem, text: str) -> bool:
        """Right are four lines of digits that keep the clues and obey the rules."""
        return is_sudoku(text, str(problem.facts["puzzle"]))

    def grade_strictly(self, problem: Problem, text: str) -> bool:
        """The same with nothing around the lines."""
        plain = re.fullmatch(r"\d{4}(?:\n\d{4}){3}", text.strip()) is not None
        return plain and self.grade(problem, text)


@dataclass(frozen=True)
class WordsToSentence(Family):
    """One sentence that holds four given words.

    Attributes:
        level: `easy` (words of one scene), `medium` (of several) or `hard` (abstract ones).

    Examples:
        >>> family = INSTRUCTED["sentence-easy"]
        >>> problem = family.generate(random.Random(0))
        >>> family.grade(problem, problem.answer), family.grade(problem, "It is raining.")
        (True, False)
    """

    level: str = "easy"

    def generate(self, rng: random.Random) -> Problem:
        """Draw the words; the answer shown is a list of them in a frame, and one of very many."""
        pool = WORDS[self.level]
        words = rng.sample(rng.choice(pool), 4)
        prompt = (
            f"Write one sentence that uses all of these words: {', '.join(words)}.\n\nAnswer with "
            "the sentence and nothing else."
        )
        answer = f"They spoke about {words[0]}, {words[1]} and {words[2]} before {words[3]}."
        return Problem(self.name, prompt, answer, MappingProxyType({"words": tuple(words)}))

    def grade(self, problem: Problem, text: str) -> bool:
        """Right is a sentence of fitting length, without loops, in which the words occur."""
        return is_sentence(text) and holds_words(text, self._words(problem))

    def grade_strictly(self, problem: Problem, text: str) -> bool:
        """The same for words written as given, in one sentence with a mark at its end."""
        whole = re.fullmatch(r"[^.!?\n]+[.!?]", text.strip()) is not None
        return whole and is_sentence(text) and holds_words(text, self._words(problem), exact=True)

    def _words(self, problem: Problem) -> tuple[str, ...]:
        words = problem.facts["words"]
        assert isinstance(words, tuple)
        return words


def _list(operation: str, title: str) -> InstructedList:
    return InstructedList(
        operation, title, determined=operation not in _RULES, canvas=_SHORT, trained=False,
        operation=operation,
    )  # fmt: skip


def list_canvas(longest: int) -> int:
    """Columns for an answer: 64 for up to six names, 128 for each 15 of longer lists.

    Published are 32 and 128, and 32 cut a list of six full names short with some tokenizers.

    Args:
        longest: Entries of the longest list.
    """
    return _SHORT if longest <= 6 else _LONG * -(-longest // 15)


INSTRUCTED: dict[str, Family] = {
    family.name: family
    for family in (
        _list("copy", "Write a list again."),
        _list("reverse", "Write a list backwards."),
        _list("sort", "Put a list into alphabetical order."),
        _list("insert", "Insert a name at a position."),
        _list("remove", "Remove the name at a position."),
        _list("replace", "Replace the name at a position."),
        _list("insert-one", "Insert a name at any position."),
        _list("remove-one", "Remove any one name."),
        _list("replace-one", "Replace any one name."),
        _list("shuffle", "Put a list into any other order."),
        InstructedLatin(
            "latin", "Write a 4 x 4 Latin square.", determined=False, canvas=64, trained=False
        ),
        InstructedSudoku("sudoku", "Fill a 4 x 4 sudoku.", canvas=64, trained=False),
        *(
            WordsToSentence(
                f"sentence-{level}", f"Use four {level} words in a sentence.", determined=False,
                canvas=64, trained=False, level=level,
            )
            for level in WORDS
        ),
    )
}  # fmt: skip


@cache
def worked_example(family: Family) -> tuple[str, str]:
    """One question of a family with a right answer, the same for every evaluation.

    Args:
        family: One of `INSTRUCTED`, or a variant of it.
    """
    problem = family.generate(random.Random(f"example/{family.name}"))
    return problem.prompt, problem.answer
