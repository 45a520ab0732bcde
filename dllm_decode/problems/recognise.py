"""Whether a prompt is of a kind that a model was trained on, told from its words."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from functools import cache

from dllm_decode.problems.base import Family
from dllm_decode.problems.words import CITIES, MOODS, NAMES, NUMBERS, PLACES, SYMBOLS, THINGS, TIMES

_KINDS = {
    word: kind
    for kind, words in {
        "NAME": NAMES, "CITY": CITIES, "THING": THINGS, "PLACE": PLACES, "MOOD": MOODS,
        "TIME": TIMES, "SYMBOL": SYMBOLS, "NUMBER": NUMBERS,
    }.items()
    for word in words
}  # fmt: skip
_IN_VAIN, _MOST = 80, 1000  # draws of a family without a new form, and all together
_WORD = re.compile(r"\w+|[^\w\s]")


def family_of(prompt: str, families: Iterable[Family]) -> Family | None:
    """The first family that asks in this form, None where there is none.

    A prompt has the form of a family where every three neighbouring words occur in prompts that
    the family draws, words of one kind counted as the same, and where it is no shorter and no
    longer than those.

    Args:
        prompt: What is asked.
        families: The kinds to choose from.

    Examples:
        >>> from dllm_decode.problems import FAMILIES
        >>> family_of("Sort: 1 Eva 2 Ben 3 Cleo", FAMILIES.values()).name
        'sort'
        >>> family_of("Hello, how are you?", FAMILIES.values()) is None
        True
    """
    words = _kinds(prompt)
    for family in families:
        known, shortest, longest = _form(family)
        if shortest <= len(words) <= longest and _triples(words) <= known:
            return family
    return None


def _kinds(prompt: str) -> list[str]:
    return [_KINDS.get(word, word) for word in _WORD.findall(prompt)]


def _triples(words: list[str]) -> frozenset[tuple[str, ...]]:
    framed = ["", "", *words, ""]
    return frozenset(zip(framed, framed[1:], framed[2:], strict=False))


@cache
def _form(family: Family) -> tuple[frozenset[tuple[str, ...]], int, int]:
    """What three neighbours occur in prompts of a family, and the fewest and most words."""
    rng = random.Random(family.name)
    known: set[tuple[str, ...]] = set()
    lengths: set[int] = set()
    in_vain = 0
    for _ in range(_MOST):
        words = _kinds(family.generate(rng).prompt)
        triples = _triples(words)
        in_vain = in_vain + 1 if triples <= known and len(words) in lengths else 0
        if in_vain == _IN_VAIN:
            break
        known |= triples
        lengths.add(len(words))
    return frozenset(known), min(lengths), max(lengths)
