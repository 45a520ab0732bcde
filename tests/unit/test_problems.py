"""The problem families: right answers, wrong answers, seeds and splits."""

from __future__ import annotations

import random
import re

import pytest
from drawing import number

from dllm_decode.errors import ConfigError
from dllm_decode.evaluation import data
from dllm_decode.problems import (
    FAMILIES,
    GAP,
    TRAINED,
    Family,
    Problem,
    Variant,
    distinct_problems,
    held_out,
    problems,
)
from dllm_decode.problems.grading import is_countdown, read_grid, sudoku_solutions
from dllm_decode.problems.lists import Labelled, read_labelled
from dllm_decode.problems.sudoku import SudokuSix, solutions
from dllm_decode.problems.words import MOVES, OPERATIONS

EVERY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


@EVERY
def test_own_answer_is_right(family: Family) -> None:
    for problem in problems(family.name, "train", number(50, 200), seed=3):
        assert problem.family == family.name
        assert family.grade(problem, problem.answer)
        assert family.grade(problem, f"  {problem.answer.replace(' ', '  ')} \n")


@pytest.mark.one_in(5)
@EVERY
def test_corrupted_answer_is_wrong(family: Family) -> None:
    rng = random.Random(1)
    for problem in problems(family.name, "train", number(40, 100), seed=4):
        words = problem.answer.split()
        place = rng.randrange(len(words))
        without = words[:place] + words[place + 1 :]
        assert not family.grade(problem, " ".join(without))
        assert not family.grade(problem, " ".join([*words, words[-1]]))
        words[place] = "Nobody"
        assert not family.grade(problem, " ".join(words))
    assert not family.grade(problem, "")


@pytest.mark.one_in(3)
@EVERY
def test_same_seed_same_problems(family: Family) -> None:
    first = problems(family.name, "held_out", 6, seed=5)
    assert first == problems(family.name, "held_out", 6, seed=5)
    assert first != problems(family.name, "held_out", 6, seed=6)


@pytest.mark.one_in(3)
@EVERY
def test_splits_are_disjoint_and_prompts_distinct(family: Family) -> None:
    # the large sudokus take long to make
    count = number(15, 60) if isinstance(family, SudokuSix) else number(100, 500)
    kept = {problem.shown for problem in problems(family.name, "held_out", count, seed=0)}
    seen = {problem.shown for problem in problems(family.name, "train", count, seed=0)}
    assert len(kept) == len(seen) == count
    assert all(map(held_out, kept))
    assert not any(map(held_out, seen))


@pytest.mark.slow
def test_prompts_name_their_family() -> None:
    """No prompt may belong to two families, or one could be trained on in the other."""
    drawn = [
        {problem.shown for problem in problems(name, "train", number(100, 300), seed=1)}
        for name in FAMILIES
        if not name.endswith("-long")
    ]
    assert len(set().union(*drawn)) == sum(map(len, drawn))


def _graded(name: str, text: str, shown: tuple[str, ...], spare: str = "Zoe") -> bool:
    problem = Problem(name, "", "", {"names": shown, "spare": spare})
    return FAMILIES[name].grade(problem, text)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("1 Ben 2 Ada 3 Cleo", True),
        ("1 Cleo 2 Ada 3 Ben", True),
        ("1 Ada 2 Ben 3 Cleo", False),  # unchanged
        ("1 Ben 2 Ben 3 Cleo", False),
        ("1 Ben 2 Ada", False),
        ("2 Ben 1 Ada 3 Cleo", False),  # labels out of order
        ("Ben Ada Cleo", False),
    ],
)
def test_shuffle_accepts_any_other_order(text: str, right: bool) -> None:
    assert _graded("shuffle", text, ("Ada", "Ben", "Cleo")) is right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("1 Zoe 2 Ben 3 Cleo", True),
        ("1 Ada 2 Ben 3 Zoe", True),
        ("1 Ada 2 Ben 3 Cleo", False),
        ("1 Zoe 2 Zoe 3 Cleo", False),
        ("1 Ada 2 Dan 3 Cleo", False),
        ("1 Ada 2 Ben 3 Cleo 4 Zoe", False),
    ],
)
def test_replace_one_accepts_any_place(text: str, right: bool) -> None:
    assert _graded("replace-one", text, ("Ada", "Ben", "Cleo")) is right


def test_latin_square_is_graded_by_validity() -> None:
    grade = FAMILIES["latin"].grade
    problem = Problem("latin", "", "", {"symbols": tuple("ABCD")})
    assert grade(problem, "A B C D / B A D C / C D A B / D C B A")
    assert grade(problem, "A B C D/B C D A/C D A B/D A B C")
    assert not grade(problem, "A B C D / A B C D / A B C D / A B C D")
    assert not grade(problem, "A B C D / B A D C / C D B A / D C B A")
    assert not grade(problem, "A B C D / B A D C / C D A B")


def test_arithmetic_is_right() -> None:
    for problem in problems("add", "train", 200):
        steps, total = problem.answer.split("; total ")
        for step in steps.split(", "):
            left, right = step.split(" = ")
            assert sum(map(int, left.split(" + "))) == int(right)
        upper, lower = problem.prompt.removeprefix("Add ").replace(" ", "").split("+")
        assert int(upper) + int(lower) == int(total.replace(" ", ""))
    for problem in problems("story", "train", 200):
        for step in problem.answer.split("; ")[0].split(", "):
            left, right = step.split(" = ")
            first, sign, second = left.split()
            assert int(first) + int(sign + second) == int(right) >= 0


def test_every_step_of_a_chain_takes_the_result_before() -> None:
    lengths, operations = set(), set()
    for problem in problems("chain", "train", 300):
        asked, start = problem.prompt.removeprefix("Chain ").split(" from ")
        value, steps = int(start), problem.answer.split(", ")
        lengths.add(len(steps))
        assert asked == " ".join(step.split(" = ")[0] for step in steps)
        for place, step in enumerate(steps, start=1):
            label, operation, _, result = step.split()
            assert int(label) == place
            operations.add(operation)
            value, left = {
                "+": lambda a, b: (a + b, 0),
                "-": lambda a, b: (a - b, 0),
                "*": lambda a, b: (a * b, 0),
                "/": divmod,
            }[operation[0]](value, int(operation[1:]))
            assert int(result) == value and 0 <= value <= 30 and not left
    assert lengths == set(range(8, 21)) and operations == set(OPERATIONS)


def test_every_row_of_a_track_is_one_exchange_away_from_the_row_before() -> None:
    lengths, exchanged = set(), {}
    for problem in problems("track", "train", 300):
        asked, start = problem.prompt.removeprefix("Track ").split(" from ")
        row, rows = start.split(), problem.answer.split(", ")
        lengths.add(len(rows))
        assert asked == " ".join(" ".join(text.split()[:2]) for text in rows)
        for place, text in enumerate(rows, start=1):
            label, move, *after = text.split()
            places = tuple(i for i in range(4) if row[i] != after[i])
            assert int(label) == place and len(places) == 2
            assert [row[i] for i in places] == [after[i] for i in reversed(places)]
            assert exchanged.setdefault(move, places) == places
            row = after
    assert lengths == set(range(6, 16)) and exchanged == MOVES


def _puzzle(problem: Problem) -> str:
    return problem.form.replace(GAP, " .") or problem.prompt.removeprefix("Sudoku: ")


def _grid(text: str) -> list[int]:
    return [int(w) if w.isdigit() else 0 for w in text.replace("/", " ").split()]


def test_givens_that_contradict_each_other_have_no_solution() -> None:
    assert solutions([1, 1] + [0] * 34) == 0


@pytest.mark.parametrize("name", ["sudoku6", "sudoku6-read"])
def test_a_sudoku_made_from_another_has_one_solution_as_well(name: str) -> None:
    family, rng = FAMILIES[name], random.Random(3)
    assert isinstance(family, SudokuSix)
    first = problems(name, "train", 1)[0]
    made = [family.alike(first, rng) for _ in range(20)]
    assert len({problem.shown for problem in made}) == 20
    for problem in made:
        given, solved = _grid(_puzzle(problem)), _grid(problem.answer)
        assert sum(map(bool, given)) == sum(map(bool, _grid(_puzzle(first))))
        assert all(digit in (0, right) for digit, right in zip(given, solved, strict=True))
        assert solutions(given) == 1


@pytest.mark.parametrize("name", ["sudoku6", "sudoku6-read"])
def test_every_large_sudoku_has_one_solution_that_keeps_its_givens(name: str) -> None:
    for problem in problems(name, "train", 40, seed=2):
        given, solved = _grid(_puzzle(problem)), _grid(problem.answer)
        assert len(given) == len(solved) == 36
        assert 10 <= sum(digit > 0 for digit in given) <= 20
        assert all(g in (0, s) for g, s in zip(given, solved, strict=True))
        assert solutions(given) == 1
        lines = [solved[i : i + 6] for i in range(0, 36, 6)]
        boxes = [
            [lines[r + i][c + j] for i in range(2) for j in range(3)]
            for r in (0, 2, 4)
            for c in (0, 3)
        ]
        groups = [*lines, *map(list, zip(*lines, strict=True)), *boxes]
        assert all(sorted(group) == [1, 2, 3, 4, 5, 6] for group in groups)
        swapped = problem.answer.translate(str.maketrans("12", "21"))
        assert not FAMILIES[name].grade(problem, swapped)


@pytest.mark.parametrize(
    ("given", "count"),
    [([0] * 36, 2), ([1, 2, 3, 4, 5, 6] + [0] * 30, 2), ([*range(1, 7), 4, 5, 6] + [0] * 27, 2)],
)
def test_puzzles_with_several_solutions_are_told(given: list[int], count: int) -> None:
    assert solutions(given) == count


def test_an_infilling_is_asked_with_its_form() -> None:
    (question,) = data.bundled("sudoku6", 1)
    (other,) = data.bundled("sudoku6-read", 1)
    assert _grid(question.form.replace(GAP, " .")) != _grid(question.label)
    assert len(_grid(question.form.replace(GAP, " ."))) == 36
    assert other.form == ""


_TALE = (
    "Ada was a girl from Oslo. She had 9 pens. At the park she met Ben. Ada had 9 pens, gave 3 to "
    "Ben and kept 6. Near the park she had 6 pens and found 2 more, so Ada had 8. Ben told Ada a "
    "story about the tower. A thief met Ada with 8 pens and took 5, so she had 3 and was sad. "
    "Then Ben and Ada walked to the river and home from the river. In the end Ada had 3 pens and "
    "Ben was calm."
)


@pytest.mark.parametrize(
    ("old", "new", "right"),
    [
        ("", "", True),
        ("Ada was a girl from Oslo.", "In Oslo lived a girl called Ada.", True),
        ("was sad", "was glad", True),  # any mood
        ("Then Ben and Ada", "Then Ada and Ben", True),
        ("Ben told Ada", "Ada told Ben", True),
        ("Ben told Ada", "Ben told Ben", False),
        ("At the park she met", "At the tower she met", True),  # any place
        ("from the river", "from the park", False),
        ("Ada was a girl", "Ada was a boy", False),
        ("Ada was a girl", "Ben was a boy", False),  # the hero is named first
        ("from Oslo", "from Rome", False),
        ("She had 9", "He had 9", False),
        ("kept 6", "kept 7", False),
        ("9 pens, gave 3 to Ben", "9 pens, gave 3 to Ada", False),
        ("A thief met Ada", "A thief met Ben", False),
        ("A thief met Ada", "A thief met Carl", False),
        ("met Ben", "met Ada", False),
        ("had 9 pens, gave", "had 9 keys, gave", False),
        ("had 9 pens, gave", "had 8 pens, gave", False),  # she had 9
        ("had 6 pens and found", "had 9 pens and found", False),
        ("In the end Ada had 3 pens and Ben was calm.", "", False),  # no end
        ("so Ada had 8", "so Ada had 7", False),
        ("so she had 3", "so he had 3", False),
        ("end Ada had 3", "end Ada had 4", False),
        ("was sad", "was green", False),
        ("took 5,", "took 9,", False),  # Ada has not got so many
        ("took 5,", f"took {'5' * 5000},", False),  # Python reads no such number
    ],
)
def test_a_tale_is_right_as_long_as_it_agrees_with_itself(old: str, new: str, right: bool) -> None:
    facts = {"names": ("Ada", "Ben"), "things": "pens", "city": "Oslo"}
    problem = Problem("tale", "", "", facts)
    assert old in _TALE
    assert FAMILIES["tale"].grade(problem, _TALE.replace(old, new, 1)) is right


def test_a_tale_without_three_events_is_too_short() -> None:
    problem = Problem("tale", "", "", {"names": ("Ada", "Ben"), "things": "pens", "city": "Oslo"})
    *head, end = (f"{part}." for part in _TALE.rstrip(".").split(". "))
    lengths = [5, 6, 7]  # of the beginning and its events
    told = [
        " ".join([*head[:length], "Back home in Oslo Ada counted 8 pens."]) for length in lengths
    ]
    assert [FAMILIES["tale"].grade(problem, text) for text in told] == [False, True, False]
    assert "the end" in end


def test_a_tale_has_many_right_answers_and_two_never_read_alike() -> None:
    told = [problem.answer for problem in problems("tale", "train", 200)]
    assert len(set(told)) == 200
    assert 60 <= sum(len(re.findall(r"\w+|[.,]", text)) for text in told) / 200 <= 130


def test_answers_span_short_and_long() -> None:
    lengths = {
        name: max(len(problem.answer.split()) for problem in problems(name, "train", 300))
        for name in ("who", "copy-long", "reverse-long", "count")
    }
    assert lengths["who"] == 2
    assert min(lengths["copy-long"], lengths["reverse-long"]) >= 40
    assert lengths["count"] > 60


def test_the_mixture_of_a_training_run_is_fixed() -> None:
    assert " ".join(TRAINED) == (
        "copy copy-long reverse reverse-long insert remove replace swap sort who records count "
        "add story latin shuffle replace-one chain track sudoku6 sudoku6-read tale"
    )
    untrained = set(FAMILIES) - set(TRAINED)
    assert untrained == {
        "where", "tally", "pick", "insert-one", "remove-one", "sudoku", "countdown"
    }  # fmt: skip
    assert not any(FAMILIES[name].shown for name in untrained)


def test_the_ten_list_operations_do_what_they_say() -> None:
    def first(name: str) -> tuple[str, list[str] | None]:
        problem = problems(name, "train", 1, seed=9)[0]
        return problem.prompt.split(":")[0], read_labelled(problem.answer)

    for name in ("copy", "reverse", "sort", "shuffle", "insert", "remove", "replace"):
        order, answer = first(name)
        assert order.split()[0].lower() == name and answer
    for problem in problems("sort", "train", 50):
        answer = read_labelled(problem.answer)
        assert answer is not None and answer == sorted(answer)
    for problem in problems("remove", "train", 50):  # 1-based
        place = int(problem.prompt.split()[1].rstrip(":"))
        shown = read_labelled(problem.prompt.split(": ")[1])
        assert shown is not None
        assert read_labelled(problem.answer) == shown[: place - 1] + shown[place:]


@pytest.mark.parametrize(
    ("name", "text", "right"),
    [
        ("insert-one", "1 Zoe 2 Ada 3 Ben", True),
        ("insert-one", "1 Ada 2 Ben 3 Zoe", True),
        ("insert-one", "1 Zoe 2 Ada 3 Zoe 4 Ben", False),
        ("insert-one", "1 Zoe 2 Ben 3 Ada", False),
        ("insert-one", "1 Ada 2 Ben", False),
        ("remove-one", "1 Ada", True),
        ("remove-one", "1 Ben", True),
        ("remove-one", "1 Ada 2 Ben", False),
        ("remove-one", "1 Zoe", False),
        ("remove-one", "", False),
    ],
)
def test_operations_at_any_place_accept_every_place(name: str, text: str, right: bool) -> None:
    assert _graded(name, text, ("Ada", "Ben")) is right


@pytest.mark.parametrize("clues", [4, 5, 8, 12, 15])
def test_every_sudoku_has_its_clues_and_one_solution(clues: int) -> None:
    family = Variant(clues=clues).of(FAMILIES["sudoku"])
    for problem in distinct_problems(family, "train", 25, seed=2):
        puzzle = problem.prompt.removeprefix("Sudoku: ").replace(" / ", "\n")
        grid = read_grid(puzzle)
        assert grid is not None and sum(cell > 0 for row in grid for cell in row) == clues
        assert sudoku_solutions(puzzle) == 1
        swapped = problem.answer.translate(str.maketrans("12", "21"))
        assert family.grade(problem, problem.answer) and not family.grade(problem, swapped)


@pytest.mark.parametrize("count", [2, 3, 5, 6])
def test_countdown_is_graded_by_what_the_steps_give(count: int) -> None:
    family = Variant(numbers=count).of(FAMILIES["countdown"])
    for problem in distinct_problems(family, "train", 25, seed=1):
        target, numbers = problem.prompt.removeprefix("Reach ").split(" with ")
        given = [int(number) for number in numbers.split()]
        assert len(given) == count and all(1 <= number <= 25 for number in given)
        assert is_countdown(problem.answer, given, int(target))
        assert all(
            0 <= int(w) <= 99 for w in problem.answer.replace(",", "").split() if w.isdigit()
        )
    problem = Problem("countdown", "", "", {"numbers": (3, 2, 4), "target": 20})
    assert family.grade(problem, "3 + 2 = 5, 5 * 4 = 20")
    assert family.grade(problem, "2+3=5,4*5=20")
    assert not family.grade(problem, "4 * 5 = 20")


@pytest.mark.parametrize("length", [2, 15, [3, 6], 47])
@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if isinstance(f, Labelled)])
def test_lists_have_any_length(name: str, length: int | list[int]) -> None:
    low, high = length if isinstance(length, list) else (length, length)
    family = Variant(length=length).of(FAMILIES[name])
    assert family.name == f"{name}-{low}" if low == high else f"{name}-3-6"
    for problem in distinct_problems(family, "train", 20, seed=0):
        shown = read_labelled(problem.prompt.split(": ")[1])
        assert shown is not None and low <= len(shown) <= high
        assert family.grade(problem, problem.answer)
        assert len(problem.answer.split()) < family.canvas and family.canvas % 32 == 0


@pytest.mark.parametrize("name", ["copy", "remove", "shuffle", "insert-one", "who"])
def test_the_infilling_form_is_the_answer_with_gaps_for_names(name: str) -> None:
    for question in data.bundled(name, 10, variant=Variant(infill=True)):
        assert question.family == f"{name}-infill"
        answer = question.label.split()
        filled = question.form
        for word in answer[1::2]:
            filled = filled.replace(GAP, f" {word}", 1)
        assert filled.split() == answer and GAP not in filled


@pytest.mark.parametrize(
    ("arguments", "family", "message"),
    [
        ({"length": 1}, "copy", r"task\.problems\.length must be a number of names in \[2, 47\]"),
        ({"length": [5, 3]}, "copy", "got \\[5, 3\\]"),
        ({"clues": 3}, "sudoku", r"task\.problems\.clues must lie in \[4, 15\]"),
        ({"numbers": 9}, "countdown", r"task\.problems\.numbers must lie in \[2, 6\]"),
        ({"length": 5}, "records", "task.problems.length is for lists, but .* 'records'"),
        ({"clues": 5}, "copy", "task.problems.clues is for sudokus"),
        ({"numbers": 5}, "copy", "task.problems.numbers is for Countdown problems"),
        ({"infill": True}, "latin", "task.problems.infill is for lists"),
    ],
)
def test_variants_that_mean_nothing_are_refused(
    arguments: dict[str, object], family: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Variant(**arguments).of(FAMILIES[family])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("copi", "train", 1), "family"),
        (("copy", "test", 1), "split"),
        (("copy", "train", 0), "count"),
        (("count", "held_out", 5000), "count"),
    ],
)
def test_bad_requests_name_the_setting(arguments: tuple[str, str, int], word: str) -> None:
    with pytest.raises(ConfigError, match=f"^{word} must be"):
        problems(*arguments)
