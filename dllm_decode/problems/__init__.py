"""Problems with known answers: what the bundled model is trained on and measured with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dllm_decode.errors import require_choice
from dllm_decode.problems.base import (
    GAP,
    HELD_OUT_SHARE,
    SPLITS,
    Family,
    Problem,
    distinct_problems,
    draw,
    held_out,
    words_of,
)
from dllm_decode.problems.instructed import INSTRUCTED
from dllm_decode.problems.lists import (
    CopyNames,
    Insert,
    InsertOne,
    Pick,
    Remove,
    RemoveOne,
    Replace,
    ReplaceOne,
    ReverseNames,
    ShuffleNames,
    Sort,
    Swap,
    Where,
    Who,
)
from dllm_decode.problems.numbers import Add, Count, Story, Tally
from dllm_decode.problems.puzzles import Countdown, Sudoku
from dllm_decode.problems.steps import Chain, Track
from dllm_decode.problems.sudoku import SudokuSix
from dllm_decode.problems.tales import Tale
from dllm_decode.problems.texts import LatinSquare, Records
from dllm_decode.problems.variant import Variant

__all__ = [
    "FAMILIES",
    "GAP",
    "HARD",
    "HELD_OUT_SHARE",
    "INSTRUCTED",
    "SPLITS",
    "STYLES",
    "TRAINED",
    "Family",
    "Problem",
    "Variant",
    "demanding",
    "distinct_problems",
    "draw",
    "families_of",
    "held_out",
    "problems",
    "words_of",
]

_ALL: tuple[Family, ...] = (
    CopyNames("copy", "Write a list of 3 to 9 names again."),
    CopyNames(
        "copy-long", "Write a list of 20 to 24 names again.", canvas=64, shortest=20, longest=24
    ),
    ReverseNames("reverse", "Write a list of 3 to 9 names backwards."),
    ReverseNames(
        "reverse-long",
        "Write a list of 20 to 24 names backwards.",
        canvas=64,
        shortest=20,
        longest=24,
    ),
    Insert("insert", "Insert a name into a list at a position.", longest=8),
    Remove("remove", "Remove the name at a position."),
    Replace("replace", "Replace the name at a position."),
    Swap("swap", "Exchange the names at two positions."),
    Sort("sort", "Put a list of names into alphabetical order.", longest=7),
    Who("who", "Find the name at a position."),
    Records("records", "Turn sentences about people into fields.", canvas=64),
    Count("count", "Count up or down in steps of 1 to 3.", canvas=128),
    Add("add", "Add two numbers digit by digit with carries.", canvas=64),
    Story("story", "Solve a word problem in two or three steps."),
    LatinSquare("latin", "Fill a 4 x 4 Latin square.", determined=False),
    ShuffleNames(
        "shuffle", "Put a list of names into any other order.", determined=False, longest=5
    ),
    ReplaceOne("replace-one", "Replace any one name of a list.", determined=False, longest=5),
    Chain("chain", "Work out 8 to 20 steps of arithmetic.", canvas=128),
    Track("track", "Follow four things through 6 to 15 exchanges.", canvas=128),
    SudokuSix("sudoku6", "Fill the empty cells of a 6 x 6 sudoku.", canvas=48),
    SudokuSix("sudoku6-read", "Write a 6 x 6 sudoku with its solution.", canvas=64, read=True),
    Tale("tale", "Tell a story whose people and numbers agree.", determined=False, canvas=144),
    # The bundled model is not trained on these.
    Where("where", "Find the position of a name.", trained=False),
    Tally("tally", "Count a name with a running total.", trained=False, canvas=64),
    Pick(
        "pick",
        "Take any one or two entries of a list.",
        determined=False,
        trained=False,
        longest=5,
        most=2,
    ),
    InsertOne(
        "insert-one",
        "Insert a name into a list at any position.",
        determined=False,
        trained=False,
        longest=8,
    ),
    RemoveOne("remove-one", "Remove any one name of a list.", determined=False, trained=False),
    Sudoku("sudoku", "Fill a 4 x 4 sudoku with one solution.", trained=False),
    Countdown("countdown", "Reach a number from others.", determined=False, trained=False),
)

# Where decoding is hard: answers are long, found in order or by search, or one of many.
HARD = ("chain", "track", "sudoku6", "sudoku6-read", "tale")

# What the bundled model cannot do, see its card; everything else it is trained on is shown.
_WEAK: tuple[str, ...] = ()

FAMILIES: dict[str, Family] = {
    family.name: replace(family, shown=family.trained and family.name not in _WEAK)
    for family in _ALL
}
# What the bundled model is trained on; the order is part of a training run.
TRAINED: dict[str, Family] = {name: family for name, family in FAMILIES.items() if family.trained}


STYLES = ("shorthand", "instruct")


def families_of(style: str) -> Mapping[str, Family]:
    """The families of a style, by name.

    Args:
        style: `shorthand` of the bundled model, or `instruct` for checkpoints that follow English
            instructions.

    Raises:
        ConfigError: There is no such style.
    """
    require_choice("task.style", style, STYLES)
    return INSTRUCTED if style == "instruct" else FAMILIES


def demanding() -> list[Family]:
    """Families of the bundled model whose answers take many passes, the longest canvas first.

    Those where something has to be worked out in order, or where one of several right answers has
    to be agreed on; everything else is written at once. All shown ones where there are none such.
    """
    shown = [family for family in FAMILIES.values() if family.shown] or list(FAMILIES.values())
    found = [family for family in shown if family.name in HARD or not family.determined]
    return sorted(found or shown, key=lambda family: -family.canvas)


def problems(family: str, split: str, count: int, seed: int = 0) -> list[Problem]:
    """Draw problems of one family with different prompts.

    Args:
        family: A key of `FAMILIES`.
        split: `train` or `held_out`.
        count: Number of problems, 1 or more.
        seed: Of the draw.

    Raises:
        ConfigError: The family or the split is unknown, or there are too few prompts.

    Examples:
        >>> problem = problems("reverse", "held_out", count=1)[0]
        >>> FAMILIES["reverse"].grade(problem, problem.answer)
        True
    """
    require_choice("family", family, tuple(FAMILIES))
    return distinct_problems(FAMILIES[family], split, count, seed)
