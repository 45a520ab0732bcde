"""The problem families: right answers, wrong answers, seeds and splits."""

from __future__ import annotations

import random

import pytest

from dllm_decode.errors import ConfigError
from dllm_decode.evaluation.problems import FAMILIES, Family, Problem, held_out, problems

EVERY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


@EVERY
def test_own_answer_is_right(family: Family) -> None:
    for problem in problems(family.name, "train", 200, seed=3):
        assert problem.family == family.name
        assert family.grade(problem, problem.answer)
        assert family.grade(problem, f"  {problem.answer.replace(' ', '  ')} \n")


@EVERY
def test_corrupted_answer_is_wrong(family: Family) -> None:
    rng = random.Random(1)
    for problem in problems(family.name, "train", 100, seed=4):
        words = problem.answer.split()
        place = rng.randrange(len(words))
        without = words[:place] + words[place + 1 :]
        assert not family.grade(problem, " ".join(without))
        assert not family.grade(problem, " ".join([*words, words[-1]]))
        words[place] = "Nobody"
        assert not family.grade(problem, " ".join(words))
    assert not family.grade(problem, "")


@EVERY
def test_same_seed_same_problems(family: Family) -> None:
    first = problems(family.name, "held_out", 30, seed=5)
    assert first == problems(family.name, "held_out", 30, seed=5)
    assert first != problems(family.name, "held_out", 30, seed=6)


@EVERY
def test_splits_are_disjoint_and_prompts_distinct(family: Family) -> None:
    kept = {problem.prompt for problem in problems(family.name, "held_out", 500, seed=0)}
    seen = {problem.prompt for problem in problems(family.name, "train", 500, seed=0)}
    assert len(kept) == len(seen) == 500
    assert all(map(held_out, kept))
    assert not any(map(held_out, seen))


def test_prompts_name_their_family() -> None:
    """No prompt may belong to two families, or one could be trained on in the other."""
    drawn = [
        {problem.prompt for problem in problems(name, "train", 300, seed=1)}
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


def test_answers_span_short_and_long() -> None:
    lengths = {
        name: max(len(problem.answer.split()) for problem in problems(name, "train", 300))
        for name in FAMILIES
    }
    assert lengths["who"] == 2
    assert min(lengths["copy-long"], lengths["reverse-long"]) >= 40
    assert lengths["count"] > 60


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
