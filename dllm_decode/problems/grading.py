"""Graders: does a text answer the question? Pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction

from dllm_decode.errors import require_choice

# a minus behind a digit is none of a number: "1-2 days"
_NUMBER = re.compile(r"(?:(?<!\d)-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_LONGEST_NUMBER = 1000  # characters


def last_number(text: str) -> Fraction | None:
    r"""The last number of an answer, behind the last "####" or "A:" if there is one.

    Thousands separators, a dollar sign and a closing full stop do not matter.

    Args:
        text: An answer.

    Returns:
        The number, None where there is none.

    Examples:
        >>> last_number("2 + 2 = 4, so\n#### 1,004.")
        Fraction(1004, 1)
    """
    for mark in ("####", "\nA:"):
        if mark in f"\n{text}":
            text = f"\n{text}".rsplit(mark, 1)[1]
            break
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    # Python reads no number of thousands of digits, and no answer has one
    if not found or len(found[-1]) > _LONGEST_NUMBER:
        return None
    return Fraction(found[-1].replace(",", "").replace("$", ""))


def same_number(text: str, label: str) -> bool:
    """GSM8K: whether two texts end with the same number.

    Args:
        text: The decoded answer.
        label: The published answer.
    """
    wanted = last_number(label)
    return wanted is not None and last_number(text) == wanted


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} or \fbox{...}, braces matched.

    Args:
        text: An answer in LaTeX.

    Returns:
        What is in the box, None where there is no box or it is not closed.

    Examples:
        >>> boxed(r"so \boxed{\frac{1}{2}}.")
        '\\frac{1}{2}'
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].split("boxed" if text.startswith("\\boxed", start) else "fbox", 1)[1]
    rest = rest.lstrip()
    if not rest.startswith("{"):  # \boxed 7
        words = rest.split("$")[0].split()
        return words[0] if words else None
    depth = 0
    for place, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[1:place]
    return None


_DROPPED = (
    "\\left", "\\right", "\\!", "\\,", "\\;", "\\:", "\\ ", "\\$", "$", "\\%", "%", "^\\circ",
    "^{\\circ}", "\N{DEGREE SIGN}", "\\displaystyle", "\\mathrm", "\\text{ }",
)  # fmt: skip
# spaces that LaTeX knows, and none that ends a row of a matrix
_SPACE = r"(?:\s|(?<!\\)\\[,;:! ])*"
_SPELLED = (("\\tfrac", "\\frac"), ("\\dfrac", "\\frac"), ("\\cfrac", "\\frac"), ("\n", ""))


def normal_latex(text: str) -> str:
    r"""A mathematical answer in one spelling, for comparison as a string.

    Spaces, sizes, degree and currency signs go; fractions and roots get braces; "0.5" and
    "\frac{1}{2}" stay different: nothing is computed, so that equal strings mean equal answers.

    Args:
        text: An answer in LaTeX.
    """
    for old, new in _SPELLED:
        text = text.replace(old, new)
    # words behind a number are its unit, "5\\text{ cm}" is 5, but morning and evening differ
    unit = r"\\(?:text|mbox)\{(?!\s*[ap]\.?m)[^{}]*\}(?:\^\{?\d\}?)?\s*$"
    text = re.sub(rf"(?i)(?<=\d){_SPACE}{unit}", "", text)
    text = re.sub(r"\\(?:text|mbox|textbf|mathbf)\{([^{}]*)\}", r"\1", text)
    rows = text.split("\\\\")  # of a matrix: what follows their mark is no part of it
    for word in _DROPPED:
        rows = [row.replace(word, "") for row in rows]
    text = "\\\\".join(rows)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"([\^_])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"(?<=\d)\s+(?=\d{1,2}(?:\D|$))", "~", text)  # 3 1/2 is not 31/2
    text = re.sub(r"\s+", "", text).rstrip(".").replace("{,}", ",")  # 1{,}000 is 1,000 as well
    text = re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text)
    text = re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<!\d)\.(?=\d)", "0.", text)
    text = re.sub(r"^(-?\d+)\.0+$", r"\1", text)
    return re.sub(r"^[a-zA-Z]=(?=.)", "", text)


def same_latex(text: str, label: str) -> bool:
    """MATH: whether the last boxed answer (else the whole text) equals the label after normalising.

    Args:
        text: The decoded answer.
        label: The published answer, without its box.
    """
    answer = boxed(text)
    return normal_latex(text if answer is None else answer) == normal_latex(label)


def is_countdown(text: str, numbers: Sequence[int], target: int) -> bool:
    """Countdown: whether the steps use every number once and end in the target.

    Steps are written "44-15=29,79-29=50". Each step takes two numbers that are there (given, or
    results of earlier steps) and is right; divisions leave no remainder. What follows on further
    lines is ignored.

    Args:
        text: The decoded answer.
        numbers: Those given.
        target: The last result.
    """
    steps = text.strip().split("\n")[0].replace(" ", "").rstrip(".").split(",")
    left = Counter(numbers)
    result: int | None = None
    for step in steps:
        found = re.fullmatch(r"(\d{1,18})([-+*/])(\d{1,18})=(-?\d{1,18})", step)
        if found is None:
            return False
        a, sign, b, result = int(found[1]), found[2], int(found[3]), int(found[4])
        for number in (a, b):
            if left[number] == 0:
                return False
            left[number] -= 1
        if not _holds(a, sign, b, result):
            return False
        left[result] += 1
    return result == target and +left == Counter([target])


def _holds(a: int, sign: str, b: int, result: int) -> bool:
    if sign == "/":
        return b != 0 and a == b * result
    return result == {"+": a + b, "-": a - b, "*": a * b}[sign]


def read_grid(text: str, size: int = 4) -> list[list[int]] | None:
    """Read a grid of digits.

    Spaces between digits, and lines of other text around the grid, do not matter.

    Args:
        text: Lines of digits, 0 for an empty cell.
        size: Rows and columns.

    Returns:
        The rows, None for anything that is not a grid.
    """
    lines = [line.replace(" ", "") for line in text.strip().splitlines()]
    rows = [line for line in lines if re.fullmatch(rf"\d{{{size}}}", line)]
    if len(rows) < size:
        return None
    grid = [[int(letter) for letter in row] for row in rows[:size]]
    return grid if all(0 <= cell <= size for row in grid for cell in row) else None


def is_sudoku(text: str, puzzle: str, box: int = 2) -> bool:
    """Whether a grid keeps every clue and holds every digit once in every row, column and box.

    Any valid filling counts, so that puzzles with several solutions are graded fairly.

    Args:
        text: The decoded grid.
        puzzle: Lines of digits, 0 for an empty cell.
        box: Side of a box in cells.
    """
    size = box * box
    grid, clues = read_grid(text, size), read_grid(puzzle, size)
    if grid is None or clues is None:
        return False
    kept = all(
        clue in (0, cell)
        for row, given in zip(grid, clues, strict=True)
        for cell, clue in zip(row, given, strict=True)
    )
    return kept and all(sorted(group) == list(range(1, size + 1)) for group in _groups(grid, box))


def _groups(grid: list[list[int]], box: int) -> list[list[int]]:
    size = box * box
    columns = [[row[place] for row in grid] for place in range(size)]
    boxes = [
        [grid[top + i][left + j] for i in range(box) for j in range(box)]
        for top in range(0, size, box)
        for left in range(0, size, box)
    ]
    return grid + columns + boxes


def sudoku_solutions(puzzle: str, box: int = 2, limit: int = 2) -> int:
    """Number of fillings of a puzzle, counted up to a limit.

    Args:
        puzzle: Lines of digits, 0 for an empty cell.
        box: Side of a box in cells.
        limit: Where counting stops.

    Returns:
        The number; 0 for text that is no puzzle.
    """
    grid = read_grid(puzzle, box * box)
    return 0 if grid is None else _count_fillings(grid, box, limit)


def _count_fillings(grid: list[list[int]], box: int, limit: int) -> int:
    size = box * box
    empty = [(i, j) for i in range(size) for j in range(size) if grid[i][j] == 0]
    if not empty:
        good = all(sorted(group) == list(range(1, size + 1)) for group in _groups(grid, box))
        return int(good)
    i, j = empty[0]
    top, left = i - i % box, j - j % box
    taken = {*grid[i], *(row[j] for row in grid)}
    taken |= {grid[top + a][left + b] for a in range(box) for b in range(box)}
    found = 0
    for digit in set(range(1, size + 1)) - taken:
        grid[i][j] = digit
        found += _count_fillings(grid, box, limit - found)
        grid[i][j] = 0
        if found >= limit:
            break
    return found


ANSWERS = ("text", "number", "boxed")


def answer_in(text: str, what: str | Callable[[str], Hashable | None]) -> Hashable | None:
    """What of a text is its answer, to compare it with others; None where it has none.

    Args:
        text: The whole text.
        what: `text` (all of it, however it is spaced), `number` (the last one), `boxed` (LaTeX), or
            a function.

    Raises:
        ConfigError: `what` is another word.

    Examples:
        >>> answer_in("5 + 3 = 8; 8  lamps", "number"), answer_in("no idea", "number")
        (Fraction(8, 1), None)
    """
    if callable(what):
        return what(text)
    require_choice("answer", what, ANSWERS)
    if what == "number":
        return last_number(text)
    if what == "boxed":
        found = boxed(text)
        return None if found is None else normal_latex(found)
    return " ".join(text.split())
