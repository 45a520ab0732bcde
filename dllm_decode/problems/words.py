"""The words the problems are made of; each becomes one token of the bundled tokenizer."""

from __future__ import annotations

NAMES: tuple[str, ...] = (
    "Abel", "Ada", "Ben", "Beth", "Carl", "Cleo", "Dan", "Dora", "Eva", "Ezra", "Faye", "Finn",
    "Greta", "Gus", "Hana", "Hugo", "Iris", "Ivan", "Jack", "Jade", "Kai", "Kira", "Lena", "Leo",
    "Max", "Mila", "Nils", "Nora", "Olga", "Otis", "Paul", "Pia", "Quin", "Rosa", "Ruth", "Sam",
    "Seth", "Tara", "Tess", "Ulf", "Uma", "Vera", "Vito", "Wanda", "Will", "Xena", "Yara", "Zoe",
)  # fmt: skip

# For checkpoints with a large vocabulary alone: not words of the bundled tokenizer.
SURNAMES: tuple[str, ...] = (
    "Abbot", "Adler", "Baker", "Boyd", "Carter", "Cole", "Dale", "Drake", "Ellis", "Evans", "Ford",
    "Frost", "Grant", "Gray", "Hale", "Holm", "Irwin", "Jensen", "Kerr", "Knight", "Lang", "Lowe",
    "Marsh", "Moss", "Nash", "North", "Olsen", "Owen", "Page", "Price", "Quill", "Ray", "Reed",
    "Shaw", "Stone", "Thorn", "Tracy", "Upton", "Vance", "Voss", "Wade", "West", "Yates", "York",
    "Young", "Zane", "Zeller", "Zimmer",
)  # fmt: skip

# Of these "he" is said, of the other names "she".
MEN: tuple[str, ...] = (
    "Abel", "Ben", "Carl", "Dan", "Ezra", "Finn", "Gus", "Hugo", "Ivan", "Jack", "Kai", "Leo",
    "Max", "Nils", "Otis", "Paul", "Quin", "Sam", "Seth", "Ulf", "Vito", "Will",
)  # fmt: skip

CITIES: tuple[str, ...] = (
    "Athens", "Bergen", "Cairo", "Delhi", "Geneva", "Hanoi", "Kyoto", "Lagos", "Lima", "Lisbon",
    "Madrid", "Nairobi", "Oslo", "Paris", "Quito", "Riga", "Rome", "Seoul", "Sofia", "Tunis",
)  # fmt: skip

SYMBOLS: tuple[str, ...] = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

THINGS: tuple[str, ...] = (
    "apples", "books", "cards", "coins", "eggs", "keys", "lamps", "pears", "pens", "shells",
    "stamps", "stones",
)  # fmt: skip

# Where people of a tale go within their city.
PLACES: tuple[str, ...] = (
    "bridge", "garden", "harbour", "library", "market", "museum", "park", "river", "school",
    "station", "theatre", "tower",
)  # fmt: skip

MOODS: tuple[str, ...] = (
    "angry", "bored", "brave", "calm", "glad", "hungry", "lonely", "proud", "sad", "shy", "tired",
    "worried",
)  # fmt: skip

TIMES: tuple[str, ...] = ("morning", "afternoon", "evening", "day", "summer", "winter")

# Everything else that occurs in a prompt or an answer.
PHRASES: tuple[str, ...] = (
    "Copy", "Reverse", "Sort", "Insert", "Remove", "Replace", "Swap", "Shuffle", "Count", "Tally",
    "Add", "Latin", "square", "of", "at", "with", "and", "any", "one", "from", "to", "by", "up",
    "down", "Who", "is", "Where", "the", "List", "people", "lives", "in", "In", "years", "old",
    "comes",
    "aged", "name", "age", "city", "has", "finds", "buys", "gets", "loses", "sells", "gives",
    "away", "more", "then", "How", "many", "are", "left", "total", "carry", "so", "write", "it",
    "a", "I", "for", "who",
    "Chain", "Track", "Sudoku", "Fill", "sudoku", "Tell", "tale", "he", "He", "she", "She", "his",
    "His", "her", "Her", "boy", "girl",
)  # fmt: skip

PUNCTUATION: tuple[str, ...] = ("=", "+", "-", "*", "/", "|", ".")  # used with a space in front

# What a chain does with a number, and which two of four places a track exchanges.
OPERATIONS: tuple[str, ...] = (
    "+2", "+3", "+4", "+5", "-2", "-3", "-4", "-5", "*2", "*3", "/2", "/3",
)  # fmt: skip
MOVES: dict[str, tuple[int, int]] = {
    "left": (0, 1), "middle": (1, 2), "right": (2, 3), "outer": (0, 3),
}  # fmt: skip

NUMBERS: tuple[str, ...] = tuple(str(number) for number in range(100))


def is_man(name: str) -> bool:
    """Whether "he" is said of a name; for unknown names, the last letter decides.

    Args:
        name: With a capital letter.
    """
    return name in MEN if name in NAMES else not name.endswith(("a", "e", "i"))
