"""Short stories about what somebody owns: many are right, as long as they agree."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
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

_LEAST, _MOST = 2, 30  # of the thing that is owned; never one, since all words are plural
_FIRST = (14, 24)  # what is owned at first: more than most tales take away
# By how much the first way of an event changes what is owned, the second, and so on in turns; free
# changes would have to be worked out from two numbers where the sum is decided first.
_CHANGES = (2, 3, 4, 5)
_FREE = {"place": PLACES, "mood": MOODS, "time": TIMES}  # gaps for any word of a kind


@dataclass(frozen=True)
class Kind:
    """Sentences that say the same in different words, and what they change.

    {X} is whom the sentence is about and {Y} the other one; {he} and {his} are said of X, {He} and
    {His} likewise at the start of a sentence. {o} is what the hero owns before the sentence, {x}
    afterwards, {k} a number.
    {things} and {city} belong to the tale; {place} is any, {there} the same once more; {mood} and
    {time} are any; {boy} is "boy" or "girl".

    Attributes:
        ways: The sentences, with these gaps in braces.
        gain: Sign with which `k` changes what the hero owns.
        either: Whether X may be the friend as well; otherwise X is the hero.
    """

    ways: tuple[str, ...]
    gain: int = 0
    either: bool = False


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
        "{His} best friend was {Y}.",
        "Next door lived {Y}, who was {mood}.",
        "{X} had a friend called {Y}.",
        "{Y} asked to see {his} {things}.",
        "At the {place} {he} met {Y}.",
        "One {time} {Y} came to the {place}.",
    )
)
# Every sentence that changes what the hero owns says what was owned and what is owned then, so that
# a number either repeats the last one or is the sum of the two before it.
EVENTS = (
    Kind(
        (
            "{X} had {o} {things}, gave {k} to {Y} and kept {x}.",
            "One {time} {X} had {o} {things}, gave {Y} {k} and kept {x}.",
            "{X} was {mood} with {o} {things}, gave {Y} {k} and kept {x}.",
            "At the {place} {X} had {o} {things}, lost {k} to {Y} in a game and kept {x}.",
            "{X} had {o} {things}, {Y} asked for {k}, and {X} said yes and kept {x}.",
        ),
        -1,
    ),
    Kind(
        (
            "{X} had {o} {things}, found {k} more at the {place} and now had {x}.",
            "Near the {place} {he} had {o} {things} and found {k} more, so {X} had {x}.",
            "{X} had {o} {things} and {Y} gave {k} more, which made {x}.",
            "A stranger met {X} with {o} {things} and gave {k} more, which made {x}.",
            "{X} had {o} {things} and bought {k} more at the {place}, which made {x}.",
            "That {time} {X} had {o} {things}, got {k} more, had {x} and was not {mood} any more.",
        ),
        1,
    ),
    Kind(
        (
            "{X} had {o} {things}, lost {k} near the {place} and now had {x}.",
            "{X} had {o} {things}, sold {k} at the {place} and kept {x}.",
            "One {time} {X} had {o} {things}, but {k} fell into the river, so {x} were left.",
            "A thief met {X} with {o} {things} and took {k}, so {he} had {x} and was {mood}.",
            "On the way to the {place} {X} had {o} {things}, lost {k} and had {x} left.",
        ),
        -1,
    ),
    Kind(
        (
            "One {time} {X} went to the {place} with {Y}.",
            "It was a cold {time}, and {X} was {mood}.",
            "{X} waited at the {place} for {Y}.",
            "{Y} told {X} a story about the {place}.",
            "Then {X} and {Y} walked to the {place} and home from the {there}.",
            "All {time} {X} was {mood}, but {Y} was {mood}.",
            "{X} wrote a long letter to {Y} about the {things}.",
        ),
        either=True,
    ),
)
ENDINGS = Kind(
    (
        "In the end {X} had {x} {things} and {Y} was {mood}.",
        "Back home in {city} {X} counted {x} {things}.",
        "And that is how {X} came to have {x} {things} in {city}.",
        "So {X} went home with {x} {things}, and {Y} stayed in {city}.",
        "Now there were {x} {things} in the house of {X}, and {he} was {mood}.",
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
        owned: How many the hero owns.
    """

    owned: int = 0


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
    most: int = 5
    pool: tuple[str, ...] = NAMES

    def generate(self, rng: random.Random) -> Problem:
        """Draw who, what and where, then sentence after sentence what the state allows."""
        names = tuple(rng.sample(self.pool, 2))
        given = MappingProxyType(
            {"names": names, "things": rng.choice(THINGS), "city": rng.choice(CITIES)}
        )
        state = State(rng.randint(*_FIRST))
        told = [
            _told(kind, rng.choice(kind.ways), given, state, rng)
            for kind in (OPENINGS, OWNED, FRIENDS)
        ]
        for _ in range(rng.randint(self.fewest, self.most)):
            told.append(_event(given, state, rng))
        told.append(_told(ENDINGS, rng.choice(ENDINGS.ways), given, state, rng))
        hero, friend = names
        prompt = f"Tell a tale of {hero} and {friend}, {given['things']} and {given['city']}"
        return Problem(self.name, prompt, " ".join(told), given)

    def grade(self, problem: Problem, text: str) -> bool:
        """Right is a tale in which every sentence is of a known kind and agrees with all before it.

        First come the hero, who is named first in the prompt, what he or she owns, and the friend,
        then at least `fewest` events, then an end. Names, pronouns, numbers and places must agree.
        """
        sentences = [f"{part.strip()}." for part in text.strip().split(".")]
        if sentences.pop() != "." or len(sentences) < self.fewest + 4:
            return False
        state = State()
        kinds = ((OPENINGS,), (OWNED,), (FRIENDS,), *[EVENTS] * (len(sentences) - 4), (ENDINGS,))
        return all(
            _holds(sentence, allowed, problem.facts, state)
            for sentence, allowed in zip(sentences, kinds, strict=True)
        )


def _event(given: Mapping[str, object], state: State, rng: random.Random) -> str:
    """One sentence from the middle; what is owned stays between 2 and 30."""
    while True:
        kind = rng.choice(EVENTS)
        way = rng.choice(kind.ways)
        after = state.owned + kind.gain * _change(kind, way)
        if _LEAST <= after <= _MOST:
            state.owned = after
            return _told(kind, way, given, state, rng)


def _change(kind: Kind, way: str) -> int:
    """By how much a sentence changes what is owned, if its kind does."""
    return _CHANGES[kind.ways.index(way) % len(_CHANGES)]


def _told(
    kind: Kind, way: str, given: Mapping[str, object], state: State, rng: random.Random
) -> str:
    """A sentence after which so many are owned as the state says."""
    person = rng.choice(_names(given)) if kind.either else _names(given)[0]
    counts = _counts(kind, _change(kind, way), state.owned)
    values = _fixed(person, given) | counts

    def fill(gap: re.Match[str]) -> str:
        name = gap[1]
        value = values[name] if name in values else rng.choice(_FREE[name])
        if name == "place":
            values["there"] = value
        return value

    return re.sub(r"\{(\w+)\}", fill, way)


def _names(given: Mapping[str, object]) -> tuple[str, str]:
    """The hero and the friend."""
    names = given["names"]
    assert isinstance(names, tuple)
    hero, friend = names
    return hero, friend


def _counts(kind: Kind, change: int, owned: int) -> dict[str, str]:
    """The numbers of a sentence after which so many are owned, by name."""
    return {"o": str(owned - kind.gain * change), "k": str(change), "x": str(owned)}


def _fixed(person: str, given: Mapping[str, object]) -> dict[str, str]:
    """The gaps of a sentence that are neither free nor numbers, by name."""
    (other,) = (name for name in _names(given) if name != person)
    he, his, boy = ("he", "his", "boy") if is_man(person) else ("she", "her", "girl")
    return {
        "X": person,
        "Y": other,
        "he": he,
        "his": his,
        "He": he.capitalize(),
        "His": his.capitalize(),
        "boy": boy,
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
    sentence: str, kinds: tuple[Kind, ...], given: Mapping[str, object], state: State
) -> bool:
    """Whether a sentence is of one of these kinds and agrees; then the state moves on."""
    words = " ".join(sentence.split())
    for kind in kinds:
        for way in kind.ways:
            pattern, names = _pattern(way)
            found = pattern.fullmatch(words)
            if found is None:
                continue
            gaps = list(zip(names, found.groups(), strict=True))
            if _agrees(kind, gaps, given, state):
                return True
    return False


def _agrees(
    kind: Kind, gaps: list[tuple[str, str]], given: Mapping[str, object], state: State
) -> bool:
    """Whether the values of a sentence's gaps fit; then the state moves on."""
    values, hero = dict(gaps), _names(given)[0]
    person = values.get("X", hero)
    if person not in (_names(given) if kind.either else (hero,)):
        return False
    change = _number(values.get("k", "0"))
    owned = _number(values["x"]) if kind is OWNED else state.owned + kind.gain * change
    fixed = _fixed(person, given) | _counts(kind, change, owned)
    fixed["there"] = values.get("place", "")
    if owned < 0 or change < 0 or not all(_fits(name, value, fixed) for name, value in gaps):
        return False
    state.owned = owned
    return True


def _fits(name: str, value: str, fixed: Mapping[str, str]) -> bool:
    """Whether a gap may have a value: a word of its kind where it is free."""
    return value in _FREE[name] if name in _FREE else value == fixed[name]


def _number(text: str) -> int:
    """A number of a few digits, -1 for any other word."""
    return int(text) if text.isdecimal() and len(text) < 10 else -1
