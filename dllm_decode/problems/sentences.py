"""Graders of free text that need no model: words that occur, length, loops, overlap, grammar."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from dllm_decode.errors import ConfigError, DllmDecodeError

# By level; each inner tuple is a scene that words are drawn from together.
WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "easy": (
        ("dog", "park", "ball", "run", "tree", "leash", "bench", "grass"),
        ("bread", "oven", "flour", "knife", "butter", "table", "bowl", "warm"),
        ("boat", "river", "fish", "net", "wind", "shore", "rope", "sail"),
        ("train", "ticket", "platform", "suitcase", "window", "late", "seat", "city"),
        ("teacher", "chalk", "lesson", "desk", "question", "bell", "book", "class"),
    ),
    "medium": (
        ("candle", "bridge", "violin", "harvest", "mirror", "garden", "letter", "storm"),
        ("engine", "painter", "village", "compass", "thread", "market", "shadow", "glacier"),
        ("orchard", "captain", "lantern", "puzzle", "ribbon", "cellar", "whistle", "desert"),
    ),
    "hard": (
        ("entropy", "loyalty", "threshold", "nostalgia", "symmetry", "verdict", "inertia", "myth"),
        ("paradox", "solitude", "currency", "resonance", "heresy", "gravity", "candour", "statute"),
    ),
}

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")  # with the apostrophe of typesetters
_MOST_WORDS = 40
_DISTINCT = 0.5  # share of the words that differ from all before them


def words_in(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation.

    Args:
        text: Any text.

    Examples:
        >>> words_in("Don't stop: well-known dogs.")
        ["don't", 'stop', 'well-known', 'dogs']
    """
    return [word.lower() for word in _WORD.findall(text)]


def holds_words(text: str, words: Sequence[str], *, exact: bool = False) -> bool:
    """Whether all words occur in a text, also inside of longer words ("run" in "running").

    Args:
        text: An answer.
        words: What it has to hold.
        exact: Whether capital and small letters have to be as given.
    """
    shown = text if exact else text.lower()
    return all((word if exact else word.lower()) in shown for word in words)


def is_sentence(text: str, most: int = _MOST_WORDS) -> bool:
    """Whether a text has the length and the variety of words of a sentence.

    At least 4 and at most `most` words, half of them different, and no word twice in a row. This
    finds the loops and leftovers that parallel decoding writes; it does not judge grammar.

    Args:
        text: An answer.
        most: The largest number of words.
    """
    words = words_in(text)
    looped = any(a == b for a, b in pairwise(words))
    enough = 4 <= len(words) <= most and len(set(words)) >= _DISTINCT * len(words)
    return enough and not looped


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L F1: how much of two texts is the same words in the same order.

        2 P R / (P + R),   P = LCS / words of the text,   R = LCS / words of the reference

    Source: Lin, ROUGE (2004), without stemming.

    Args:
        text: An answer.
        reference: What it is compared with.

    Returns:
        A number in [0, 1]; 0 where one of them has no words.

    Examples:
        >>> round(rouge_l("the dog sat", "the dog sat down"), 3)
        0.857
    """
    ours, theirs = words_in(text), words_in(reference)
    longest = [0] * (len(theirs) + 1)  # common subsequence with the first so many words
    for word in ours:
        before = 0
        for place, other in enumerate(theirs, start=1):
            kept = longest[place]
            longest[place] = before + 1 if word == other else max(kept, longest[place - 1])
            before = kept
    return 2 * longest[-1] / (len(ours) + len(theirs)) if ours and theirs else 0.0


def shared_words(text: str, source: str) -> float:
    """Share of the words of a text that its source has, each as often as there.

    Args:
        text: An answer.
        source: What it should keep to.

    Returns:
        A share in [0, 1]; 0 for a text without words.
    """
    ours, theirs = Counter(words_in(text)), Counter(words_in(source))
    return sum((ours & theirs).values()) / sum(ours.values()) if ours else 0.0


def is_summary(text: str, document: str, summary: str) -> bool:
    """Whether a text is shorter than a document and agrees with its published summary.

    At most half as many words as the document, no loops, ROUGE-L of 0.2 or more with the summary.
    The bounds are ours: the paper grades grammar, and by ROUGE-L itself in its first version.

    Args:
        text: An answer.
        document: What is summarised.
        summary: The published one.
    """
    return is_sentence(text, most=max(4, len(words_in(document)) // 2)) and (
        rouge_l(text, summary) >= 0.2
    )


def is_paraphrase(text: str, source: str) -> bool:
    """Whether a text says with other words, or in another order, what a source says.

    Half to twice as many words, no loops, a third of its words from the source, and ROUGE-L with
    it below 0.9. The bounds are ours; meaning is not graded.

    Args:
        text: An answer.
        source: What it says again.
    """
    ours, theirs = len(words_in(text)), len(words_in(source))
    fits = theirs <= 2 * ours and ours <= 2 * theirs and is_sentence(text, most=max(4, ours))
    return fits and shared_words(text, source) >= 1 / 3 and rouge_l(text, source) < 0.9


def grammar_faults(text: str, server: str, language: str = "en-US", timeout: float = 30.0) -> int:
    """What a LanguageTool server finds wrong with a text; matters of style do not count.

    Args:
        text: An answer.
        server: Its address, e.g. `http://localhost:8081`.
        language: Of the text.
        timeout: Seconds to wait.

    Raises:
        ConfigError: The address is none.
        DllmDecodeError: The server does not answer as one.
    """
    if not server.startswith(("http://", "https://")):
        raise ConfigError(
            f"task.language_tool must be the address of a LanguageTool server, such as "
            f"http://localhost:8081, got {server!r}"
        )
    asked = urllib.parse.urlencode({"text": text, "language": language}).encode()
    try:
        with urllib.request.urlopen(f"{server.rstrip('/')}/v2/check", asked, timeout) as answer:
            found = json.load(answer)["matches"]
        return sum(match["rule"]["issueType"] != "style" for match in found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DllmDecodeError(
            f"task.language_tool: {server} does not answer as a LanguageTool server does "
            f"({type(error).__name__}: {error})"
        ) from None
