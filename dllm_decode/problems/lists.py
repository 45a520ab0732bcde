"""Operations on labelled lists of names, such as "1 Ada 2 Ben 3 Cleo"."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from dllm_decode.problems.base import GAP, Family, Problem, words_of
from dllm_decode.problems.words import NAMES


def labelled(names: Sequence[str]) -> str:
    """Write names with labels from 1.

    Args:
        names: In the order in which they are shown.

    Examples:
        >>> labelled(["Ada", "Ben"])
        '1 Ada 2 Ben'
    """
    return " ".join(f"{label} {name}" for label, name in enumerate(names, start=1))


def read_labelled(text: str) -> list[str] | None:
    """Read a list with labels back to its names.

    Args:
        text: Such as "1 Ada 2 Ben".

    Returns:
        The names; None if the labels are not 1, 2, 3 ... in order.
    """
    words = words_of(text)
    names = words[1::2]
    if len(words) % 2 or words[0::2] != [str(label) for label in range(1, len(names) + 1)]:
        return None
    return names


@dataclass(frozen=True)
class Labelled(Family):
    """A family that shows a list with labels.

    Attributes:
        shortest: Names in the shortest list.
        longest: Names in the longest list.
        pool: Names to draw from, more than `longest`.

    Examples:
        >>> family = CopyNames("copy", "Write a list again.", shortest=2, longest=2)
        >>> family.generate(random.Random(0)).prompt
        'Copy: 1 Nils 2 Ben'
    """

    shortest: int = 3
    longest: int = 9
    pool: tuple[str, ...] = NAMES

    def form(self, problem: Problem) -> str | None:
        """The labels of the answer; every name is a gap, with the space in front of it.

        Args:
            problem: A problem of this family.
        """
        return "".join(f" {label}{GAP}" for label in words_of(problem.answer)[::2])


@dataclass(frozen=True)
class ListFamily(Labelled):
    """A family whose problems turn one list into another.

    Examples:
        >>> Sort("mine", "For people.").apply(["Eve", "Ada"], "Tom", random.Random(0))[1]
        ['Ada', 'Eve']
    """

    def generate(self, rng: random.Random) -> Problem:
        """Draw different names and apply the operation."""
        count = rng.randint(self.shortest, self.longest)
        *names, spare = rng.sample(self.pool, count + 1)
        order, result = self.apply(names, spare, rng)
        return Problem(
            self.name,
            f"{order}: {labelled(names)}",
            labelled(result),
            MappingProxyType({"names": tuple(names), "spare": spare}),
        )

    @abstractmethod
    def apply(self, names: list[str], spare: str, rng: random.Random) -> tuple[str, list[str]]:
        """The operation on one list.

        Args:
            names: The list that is shown.
            spare: A name that is not in the list.
            rng: Where positions come from.

        Returns:
            The order in words, and the resulting list.
        """


@dataclass(frozen=True)
class CopyNames(ListFamily):
    """The list as it is.

    Examples:
        >>> CopyNames("mine", "For people.").apply(["Eve", "Ada"], "Tom", random.Random(0))[1]
        ['Eve', 'Ada']
    """

    def apply(self, names: list[str], spare: str, rng: random.Random) -> tuple[str, list[str]]:
        """The result is the list itself."""
        return "Copy", names


@dataclass(frozen=True)
class ReverseNames(ListFamily):
    """The list from its end to its beginning.

    Examples:
        >>> ReverseNames("mine", "For people.").apply(["Eve", "Ada"], "Tom", random.Random(0))[1]
        ['Ada', 'Eve']
    """

    def apply(self, names: list[str], spare: str, rng: random.Random) -> tuple[str, list[str]]:
        """The last name comes first."""
        return "Reverse", names[::-1]


@dataclass(frozen=True)
class Sort(ListFamily):
    """The names in alphabetical order.

    Examples:
        >>> Sort("mine", "For people.").apply(["Eve", "Ada"], "Tom", random.Random(0))[1]
        ['Ada', 'Eve']
    """

    def apply(self, names: list[str], spare: str, rng: random.Random) -> tuple[str, list[str]]:
        """Names are ordered by all of their letters."""
        return "Sort", sorted(names)


@dataclass(frozen=True)
class Insert(ListFamily):
    """A new name at a position; what stood there and behind moves on by one.

    Examples:
        >>> Insert("mine", "For people.").apply(["Eve", "Ada"], "Tom", random.Random(0))
        ('Insert Tom at 2', ['Eve', 'Tom', 'Ada'])
    """

    def apply(self, names: list[str], spare: str, rng: random.Random) -> tuple[str, list[str]]:
        """The position is drawn from 1 to n + 1."""
        place = rng.randint(1, len(names) + 1)
        return f"Insert {spare} at {place}", [*names[: place - 1], spare, *names[place - 1 :]]


@dataclass(frozen=True)
class Remove(ListFamily):
    """The list without the name at a position.

    Examples:
        >>> Remove("mine", "For people.").apply(["Eve", "Ada"], "Tom", random.Random(0))
        ('Remove 2', ['Eve'])
    """

    def apply(self, names: list[str], spare: str, rng: random.Random) -> tuple[str, list[str]]:
        """The position is drawn from 1 to n."""
        place = rng.randint(1, len(names))
        return f"Remove {place}", names[: place - 1] + names[place:]


@dataclass(frozen=True)
class Replace(ListFamily):
    """A new name instead of the one at a position.

    Examples:
        >>> Replace("mine", "For people.").apply(["Eve", "Ada"], "Tom", random.Random(0))
        ('Replace 2 with Tom', ['Eve', 'Tom'])
    """

    def apply(self, names: list[str], spare: str, rng: random.Random) -> tuple[str, list[str]]:
        """The position is drawn from 1 to n."""
        place = rng.randint(1, len(names))
        return f"Replace {place} with {spare}", [*names[: place - 1], spare, *names[place:]]


@dataclass(frozen=True)
class Swap(ListFamily):
    """Swap: the list again, with two of its names in each other's place.

    Examples:
        >>> Swap("mine", "For people.").apply(["Eve", "Ada", "Ben"], "Tom", random.Random(0))
        ('Swap 2 and 3', ['Eve', 'Ben', 'Ada'])
    """

    def apply(self, names: list[str], spare: str, rng: random.Random) -> tuple[str, list[str]]:
        """Two different positions are drawn; the smaller one is named first."""
        first, second = sorted(rng.sample(range(len(names)), 2))
        result = list(names)
        result[first], result[second] = names[second], names[first]
        return f"Swap {first + 1} and {second + 1}", result


@dataclass(frozen=True)
class ShuffleNames(ListFamily):
    """Any order but the one shown: many answers are right.

    Examples:
        >>> family = ShuffleNames("mine", "For people.")
        >>> problem = family.generate(random.Random(0))
        >>> problem.prompt
        'Shuffle: 1 Max 2 Nils 3 Ben 4 Iris 5 Quin 6 Pia 7 Mila 8 Jade 9 Paul'
        >>> family.grade(problem, problem.answer)
        True
    """

    def apply(self, names: list[str], spare: str, rng: random.Random) -> tuple[str, list[str]]:
        """The order is drawn uniformly from all but the one shown."""
        result = list(names)
        while result == names:
            rng.shuffle(result)
        return "Shuffle", result

    def grade(self, problem: Problem, text: str) -> bool:
        """Right is a list of the same names, labels in order, that is not the one shown."""
        shown = [str(name) for name in _facts(problem, "names")]
        found = read_labelled(text)
        return found is not None and sorted(found) == sorted(shown) and found != shown


@dataclass(frozen=True)
class ReplaceOne(ListFamily):
    """A new name instead of any one of the list: n answers are right.

    Examples:
        >>> ReplaceOne("mine", "For people.").apply(["Eve", "Ada"], "Tom", random.Random(0))
        ('Replace any one with Tom', ['Eve', 'Tom'])
    """

    def apply(self, names: list[str], spare: str, rng: random.Random) -> tuple[str, list[str]]:
        """The position is drawn uniformly."""
        place = rng.randrange(len(names))
        return f"Replace any one with {spare}", [*names[:place], spare, *names[place + 1 :]]

    def grade(self, problem: Problem, text: str) -> bool:
        """Right is a list that differs in exactly one position, where the new name stands."""
        shown = [str(name) for name in _facts(problem, "names")]
        found = read_labelled(text)
        if found is None or len(found) != len(shown):
            return False
        changed = [new for new, old in zip(found, shown, strict=True) if new != old]
        return changed == [problem.facts["spare"]]


@dataclass(frozen=True)
class InsertOne(ListFamily):
    """A new name at any position: n + 1 answers are right.

    Examples:
        >>> InsertOne("mine", "For people.").apply(["Eve", "Ada"], "Tom", random.Random(0))
        ('Insert Tom at any', ['Eve', 'Tom', 'Ada'])
    """

    def apply(self, names: list[str], spare: str, rng: random.Random) -> tuple[str, list[str]]:
        """The position is drawn uniformly."""
        place = rng.randint(0, len(names))
        return f"Insert {spare} at any", [*names[:place], spare, *names[place:]]

    def grade(self, problem: Problem, text: str) -> bool:
        """Right is a list that is the one shown once the new name is taken out."""
        found, spare = read_labelled(text), problem.facts["spare"]
        if found is None or found.count(str(spare)) != 1:
            return False
        return [name for name in found if name != spare] == list(_facts(problem, "names"))


@dataclass(frozen=True)
class RemoveOne(ListFamily):
    """The list without any one of its names: n answers are right.

    Examples:
        >>> RemoveOne("mine", "For people.").apply(["Eve", "Ada"], "Tom", random.Random(0))
        ('Remove any one', ['Eve'])
    """

    def apply(self, names: list[str], spare: str, rng: random.Random) -> tuple[str, list[str]]:
        """The position is drawn uniformly."""
        place = rng.randrange(len(names))
        return "Remove any one", names[:place] + names[place + 1 :]

    def grade(self, problem: Problem, text: str) -> bool:
        """Right is the list with exactly one name missing and the others in their order."""
        shown = list(_facts(problem, "names"))
        rest = [shown[:place] + shown[place + 1 :] for place in range(len(shown))]
        return read_labelled(text) in rest


@dataclass(frozen=True)
class Who(Labelled):
    """The name at a position, with its label.

    Examples:
        >>> Who("mine", "For people.").generate(random.Random(0)).answer
        '6 Pia'
    """

    def generate(self, rng: random.Random) -> Problem:
        """Draw names and ask for one of the positions 1 to n."""
        names = rng.sample(self.pool, rng.randint(self.shortest, self.longest))
        place = rng.randint(1, len(names))
        prompt = f"Who is {place}: {labelled(names)}"
        return Problem(self.name, prompt, f"{place} {names[place - 1]}")


@dataclass(frozen=True)
class Where(Labelled):
    """The position of a name, with the name.

    Examples:
        >>> Where("mine", "For people.").generate(random.Random(0)).answer
        '6 Pia'
    """

    def generate(self, rng: random.Random) -> Problem:
        """Draw names and ask for the position of one of them."""
        names = rng.sample(self.pool, rng.randint(self.shortest, self.longest))
        place = rng.randrange(len(names))
        prompt = f"Where is {names[place]}: {labelled(names)}"
        return Problem(self.name, prompt, f"{place + 1} {names[place]}")


@dataclass(frozen=True)
class Pick(Labelled):
    """Any few names of the list with their labels, in the order of the list.

    Attributes:
        most: The largest number of names that is asked for.

    Examples:
        >>> Pick("mine", "For people.").generate(random.Random(0)).answer
        '3 Ben 4 Iris'
    """

    most: int = 3

    def generate(self, rng: random.Random) -> Problem:
        """Ask for 1 to `most` names; the answer shown is one of many."""
        names = rng.sample(self.pool, rng.randint(self.shortest, self.longest))
        count = rng.randint(1, self.most)
        places = sorted(rng.sample(range(len(names)), count))
        answer = " ".join(f"{place + 1} {names[place]}" for place in places)
        facts = MappingProxyType({"names": tuple(names), "count": count})
        return Problem(self.name, f"List any {count}: {labelled(names)}", answer, facts)

    def grade(self, problem: Problem, text: str) -> bool:
        """Right are as many entries of the list as asked for, each once, in its order."""
        words = words_of(text)
        entries = list(zip(words[0::2], words[1::2], strict=False))
        shown = [(str(label), name) for label, name in enumerate(_facts(problem, "names"), 1)]
        whole = len(words) == 2 * len(entries) == 2 * _count(problem)
        return whole and entries == [entry for entry in shown if entry in entries]


def _count(problem: Problem) -> int:
    """How many entries are asked for."""
    count = problem.facts["count"]
    assert isinstance(count, int)
    return count


def _facts(problem: Problem, key: str) -> Sequence[object]:
    """A fact that is a sequence."""
    value = problem.facts[key]
    assert isinstance(value, tuple)
    return value
