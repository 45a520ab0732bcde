"""Short stories about two people who own something: many are right, as long as they agree."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

from dllm_decode.problems.base import Family, Problem
from dllm_decode.problems.words import (
    CITIES,
    MOODS,
    NAMES,
    PLACES,
    THINGS,
    TIMES,
    is_man,
)

_LEAST, _MOST = 2, 30  # of the thing that one person owns; never one, since all words are plural


@dataclass(frozen=True)
class Kind:
    """Sentences that say the same in different words, and what they change.

    {X} is the person named first and {Y} the other one; {he} and {his} are said of X, {He} and
    {His} likewise at the start of a sentence. {x} and {y} are what X and Y own afterwards, {all} is
    both together, {k} a number. {things} and {city} belong to the tale; {place} is any, {there} the
    one named last; {mood} and {time} are any; {boy} is "boy" or "girl".

    Attributes:
        ways: The sentences, with these gaps in braces.
        gain: Sign with which `k` changes what X owns.
        other: Sign with which `k` changes what Y owns.
    """

    ways: tuple[str, ...]
    gain: int = 0
    other: int = 0


OPENINGS = Kind(
    (
        "{X} was a {boy} from {city}.",
        "In {city} lived a {boy} called {X}.",
        "Once there was a {boy} in {city} and {his} name was {X}.",
        "This tale is about {X}, a {boy} from {city}.",
        "Long ago {X} lived in {city}.",
        "{X} lived in a small house in {city}.",
    )
)
OWNED = Kind(
    (
        "{He} had {x} {things}.",
        "{X} kept {x} {things} in a box.",
        "{He} owned {x} {things} and was {mood}.",
        "In {his} room there were {x} {things}.",
        "{His} uncle had left {X} {x} {things}.",
        "Few people knew that {he} had {x} {things}.",
    )
)
FRIENDS = Kind(
    (
        "{His} friend {Y} had {y} {things}.",
        "Next door lived {Y} with {y} {things}.",
        "{Y}, {his} best friend, had only {y} {things}.",
        "{X} knew {Y}, who owned {y} of them.",
        "At the {place} {he} met {Y}, who had {y} {things}.",
        "One {time} {Y} came to the {place} with {y} {things}.",
    )
)
# Every sentence that changes what somebody owns says what is owned then, so that the next one needs
# no sum over several.
EVENTS = (
    Kind(
        (
            "{X} gave {Y} {k} {things} and kept {x}, so {Y} had {y}.",
            "One {time} {X} gave {k} {things} to {Y}, who then had {y}, and kept {x}.",
            "{X} was {mood} and gave {Y} {k} of {his} {things}, so they had {x} and {y}.",
            "At the {place} {X} lost {k} {things} to {Y} in a game and had {x} left, {Y} {y}.",
            "{Y} asked for {k} {things}, and {X} said yes, so {Y} had {y} and {X} {x}.",
        ),
        -1,
        1,
    ),
    Kind(
        (
            "{X} found {k} {things} at the {place} and now had {x}.",
            "Near the {there} {he} found {k} more, so {X} had {x} {things}.",
            "A stranger at the {place} gave {X} {k} {things}, which made {x}.",
            "{X} bought {k} {things} at the {place}, which made {x}.",
            "That {time} {X} got {k} more {things}, had {x} and was not {mood} any more.",
        ),
        1,
    ),
    Kind(
        (
            "{X} lost {k} {things} near the {place} and had {x} left.",
            "{X} sold {k} {things} at the {place}, so {x} were left.",
            "One {time} {k} of the {things} of {X} fell into the river, so {he} had {x}.",
            "A thief took {k} {things} from {X}, so {he} had {x} and was {mood}.",
            "On the way to the {place} {X} lost {k} of {his} {things} and had {x} left.",
        ),
        -1,
    ),
    Kind(
        (
            "One {time} {X} went to the {place} with {Y}.",
            "It was a cold {time}, and {X} was {mood}.",
            "{X} waited at the {place} for {Y}.",
            "{Y} told {X} a story about the {place}.",
            "Then {X} and {Y} walked from the {there} to the {place}.",
            "All {time} {X} was {mood}, but {Y} was {mood}.",
            "{X} wrote a long letter to {Y} about {his} {things}.",
        )
    ),
)
ENDINGS = Kind(
    (
        "In the end {X} had {x} {things} and {Y} had {y}.",
        "Back home in {city} {X} counted {x} {things} and {Y} {y}.",
        "So {X} with {x} and {Y} with {y} had {all} {things} together, and {X} was {mood}.",
        "And that is how {X} came to have {x} {things} in {city}.",
        "Now there were {x} {things} of {X} and {y} of {Y}, {all} in all.",
        "{X} went home with {x} {things}, and {Y} stayed at the {there} with {y}.",
    )
)

# Every word of the sentences that is no gap.
WORDS: tuple[str, ...] = tuple(
    sorted(
        {
            word
            for kind in (OPENINGS, OWNED, FRIENDS, *EVENTS, ENDINGS)
            for way in kind.ways
            for word in re.findall(r"\w+", re.sub(r"\{\w+\}", "", way))
        }
    )
)


@dataclass
class State:
    """What is known while a tale is told.

    Attributes:
        owned: Who owns how many.
        there: The place named last, "" before the first one.
    """

    owned: dict[str, int] = field(default_factory=dict)
    there: str = ""


@dataclass(frozen=True)
class Tale(Family):
    """Tell a story of given people, a thing and a city.

    Attributes:
        fewest: Events in the middle of the shortest tale.
        most: Events in the middle of the longest tale.
        pool: Names to draw from.

    Examples:
        >>> family = Tale("mine", "For people.")
        >>> problem = family.generate(random.Random(0))
        >>> family.grade(problem, problem.answer)
        True
    """

    fewest: int = 3
    most: int = 6
    pool: tuple[str, ...] = NAMES

    def generate(self, rng: random.Random) -> Problem:
        """Draw who, what and where, then sentence after sentence what the state allows."""
        hero, friend = rng.sample(self.pool, 2)
        given = MappingProxyType(
            {"names": (hero, friend), "things": rng.choice(THINGS), "city": rng.choice(CITIES)}
        )
        state = State({hero: rng.randint(5, 20), friend: rng.randint(2, 15)})
        told = [_told(kind, hero, 0, given, state, rng) for kind in (OPENINGS, OWNED, FRIENDS)]
        for _ in range(rng.randint(self.fewest, self.most)):
            told.append(_event(given, state, rng))
        told.append(_told(ENDINGS, rng.choice((hero, friend)), 0, given, state, rng))
        prompt = f"Tell a tale of {hero} and {friend}, {given['things']} and {given['city']}"
        return Problem(self.name, prompt, " ".join(told), given)

    def grade(self, problem: Problem, text: str) -> bool:
        """Right is a tale in which every sentence is of a known kind and agrees with all before it.

        First come the person named first in the prompt and what both own, then at least `fewest`
        events, then an end. Names, pronouns, numbers and places must agree.
        """
        sentences = [f"{part.strip()}." for part in text.strip().split(".")]
        if sentences.pop() != "." or len(sentences) < self.fewest + 4:
            return False
        people = problem.facts["names"]
        assert isinstance(people, tuple)
        hero, state = people[0], State(dict.fromkeys(people, 0))
        *head, end = sentences
        opening = zip(head[:3], (OPENINGS, OWNED, FRIENDS), strict=True)
        return (
            all(_holds(one, (kind,), problem.facts, state, hero) for one, kind in opening)
            and all(_holds(one, EVENTS, problem.facts, state) for one in head[3:])
            and _holds(end, (ENDINGS,), problem.facts, state)
        )


def _event(given: Mapping[str, object], state: State, rng: random.Random) -> str:
    """One sentence from the middle; what everybody owns stays between 2 and 30."""
    while True:
        kind, person, change = rng.choice(EVENTS), rng.choice(list(state.owned)), rng.randint(2, 9)
        after = _after(kind, person, change, state.owned)
        if all(_LEAST <= count <= _MOST for count in after.values()):
            state.owned = after
            return _told(kind, person, change, given, state, rng)


def _after(kind: Kind, person: str, change: int, owned: Mapping[str, int]) -> dict[str, int]:
    """What both own behind a sentence."""
    return {
        name: count + change * (kind.gain if name == person else kind.other)
        for name, count in owned.items()
    }


def _told(
    kind: Kind,
    person: str,
    change: int,
    given: Mapping[str, object],
    state: State,
    rng: random.Random,
) -> str:
    """A sentence of a kind, chosen among those that the state allows."""
    way = rng.choice([w for w in kind.ways if state.there or "{there}" not in w])
    free = {"place": PLACES, "mood": MOODS, "time": TIMES}
    values = _fixed(person, change, given, state.owned) | {"there": state.there}

    def fill(gap: re.Match[str]) -> str:
        name = gap[1]
        value = values[name] if name in values else rng.choice(free[name])
        state.there = value if name == "place" else state.there
        return value

    return re.sub(r"\{(\w+)\}", fill, way)


def _fixed(
    person: str, change: int, given: Mapping[str, object], owned: Mapping[str, int]
) -> dict[str, str]:
    """The gaps of a sentence that are not free, by name."""
    (other,) = (name for name in owned if name != person)
    he, his, boy = ("he", "his", "boy") if is_man(person) else ("she", "her", "girl")
    return {
        "X": person,
        "Y": other,
        "he": he,
        "his": his,
        "He": he.capitalize(),
        "His": his.capitalize(),
        "boy": boy,
        "k": str(change),
        "x": str(owned[person]),
        "y": str(owned[other]),
        "all": str(sum(owned.values())),
        "things": str(given["things"]),
        "city": str(given["city"]),
    }


@cache
def _pattern(way: str) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """A sentence with gaps as a pattern, and the names of its gaps in order."""
    names = tuple(re.findall(r"\{(\w+)\}", way))
    parts = re.split(r"\{\w+\}", way)
    return re.compile(r"(\w+)".join(map(re.escape, parts))), names


def _holds(
    sentence: str,
    kinds: tuple[Kind, ...],
    given: Mapping[str, object],
    state: State,
    hero: str | None = None,
) -> bool:
    """Whether a sentence is of one of these kinds and agrees; then the state moves on.

    hero: who must be X, None: either.
    """
    words = " ".join(sentence.split())
    for kind in kinds:
        for way in kind.ways:
            pattern, names = _pattern(way)
            found = pattern.fullmatch(words)
            if found is None:
                continue
            gaps = list(zip(names, found.groups(), strict=True))
            if _agrees(kind, gaps, given, state, hero):
                return True
    return False


def _agrees(
    kind: Kind,
    gaps: list[tuple[str, str]],
    given: Mapping[str, object],
    state: State,
    hero: str | None,
) -> bool:
    """Whether the values of a sentence's gaps fit; then the state moves on."""
    values, owned = dict(gaps), dict(state.owned)
    person = values.get("X", hero)
    if person not in owned or person != (hero or person):
        return False
    (other,) = (name for name in owned if name != person)
    if kind is OWNED:
        owned[person] = _number(values["x"])
    if kind is FRIENDS:
        owned[other] = _number(values["y"])
    change = _number(values.get("k", "0"))
    after = _after(kind, person, change, owned)
    if any(count < 0 for count in after.values()):
        return False
    return _fits(gaps, _fixed(person, change, given, after), after, state)


def _fits(
    gaps: list[tuple[str, str]], fixed: Mapping[str, str], after: dict[str, int], state: State
) -> bool:
    free, there = {"place": PLACES, "mood": MOODS, "time": TIMES}, state.there
    for name, value in gaps:
        if name in free:
            if value not in free[name]:
                return False
            there = value if name == "place" else there
        elif value != (there if name == "there" else fixed[name]):
            return False
    state.owned, state.there = after, there
    return True


def _number(text: str) -> int:
    """A number, -1 for any other word."""
    return int(text) if text.isdecimal() else -1
