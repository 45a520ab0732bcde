"""Graders on hand-written answers, right and wrong."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode.problems import grading

PUZZLE = "1000\n0002\n4003\n0000"
FILLED = "1234\n3412\n4123\n2341"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7.", 7),
        ("#### 1,234", 1234),
        ("He pays $12.50", Fraction("12.5")),
        ("it is -3", -3),
        ("first 5\n#### 8 (not 9)", 9),
        ("no number", None),
        ("A: 18", 18),
        ("10 apples\nA: 4\n", 4),
        ("$.75", Fraction("0.75")),
        ("in 1-2 days", 2),
        ("12-7", 7),
        ("it is \N{MINUS SIGN}18", -18),
        ("it is -$5", -5),
    ],
)
def test_the_last_number_of_an_answer(text, number):
    assert grading.last_number(text) == number


@given(st.integers(-(10**9), 10**9))
def test_thousands_separators_do_not_matter(number):
    assert grading.last_number(f"{number:,}") == grading.last_number(str(number)) == number


def test_same_number_needs_a_number_on_both_sides():
    assert grading.same_number("I get 7.0", "#### 7")
    assert not grading.same_number("I get 8", "#### 7")
    assert not grading.same_number("I do not know", "#### 7")
    assert not grading.same_number("no", "no")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"$\boxed 9$.", "9"),
        (r"\fbox{x}", "x"),
        (r"\boxed {7}", "7"),
        (r"\boxed{open", None),
        ("nothing", None),
    ],
)
def test_the_last_box(text, content):
    assert grading.boxed(text) == content


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (r"\boxed{\dfrac{1}{2}}", r"\frac12"),
        (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"(3,\frac{\pi}{2})"),
        (r"\boxed{1,000}", "1000"),
        (r"\boxed{90^\circ}", "90"),
        (r"\boxed{5\text{ cm}}", "5"),
        (r"\boxed{x=3}", "3"),
        (r"\boxed{1/2}", r"\frac{1}{2}"),
        (r"\boxed{-1/2}", r"-\frac{1}{2}"),
        (r"\boxed{1{,}000}", "1000"),
        (r"\boxed{\sqrt2}", r"\sqrt{2}"),
        ("2.0", "2"),
        (r"\boxed{\$12}", "12"),
        (r"\boxed{\text{Evelyn}}", "Evelyn"),
        (r"\boxed{\begin{pmatrix}-7\\16\end{pmatrix}}", r"\begin{pmatrix} -7 \\ 16 \end{pmatrix}"),
        (r"\boxed{x^{2}}", "x^2"),
        (r"\boxed{4210_5}", "4210_{5}"),
        (r"\boxed{\frac{1}2}", r"\frac12"),
        ("\\boxed{90\N{DEGREE SIGN}}", r"90^\circ"),
        (r"\boxed{5\,\text{cm}^2}", "5"),
        (r"\boxed{1 000}", "1000"),
        (r"\boxed{3 1/2}", "3 1/2"),
    ],
)
def test_equal_answers_in_other_spellings(answer, label):
    assert grading.same_latex(answer, label)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (r"\boxed{3}", "4"),
        (r"\boxed{-3}", "3"),
        (r"\boxed{(1,2)}", "(2,1)"),
        ("", "1"),
        (r"\boxed{3 1/2}", r"\frac{31}{2}"),
        (r"\boxed{1 2}", "12"),
        (r"\boxed{10\text{ AM}}", r"10\text{ PM}"),
        (r"\boxed{10\text{ a.m.}}", "10"),
        (r"\boxed{\begin{pmatrix}-7\\16\end{pmatrix}}", r"\begin{pmatrix} -7 \\ 61 \end{pmatrix}"),
    ],
)
def test_different_answers(answer, label):
    assert not grading.same_latex(answer, label)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("44-15=29,79-29=50", True),
        ("79 - 29 = 50", False),  # 29 is not there
        ("44-15=29", False),  # not all numbers, and not the target
        ("44-15=29,79-29=51", False),  # wrong arithmetic
        ("15-44=29,79-29=50", False),
        ("79-44=35,35+15=50", True),
        ("44-15=29,79-29=50\nDone.", True),
        ("fifty", False),
        ("", False),
    ],
)
def test_countdown(text, right):
    assert grading.is_countdown(text, [15, 44, 79], 50) is right


def test_countdown_divides_without_remainder_and_never_by_zero():
    assert grading.is_countdown("6/3=2", [6, 3], 2)
    assert not grading.is_countdown("7/3=2", [7, 3], 2)
    assert not grading.is_countdown("7/0=0", [7, 0], 0)


def test_a_sudoku_is_graded_by_validity():
    assert grading.is_sudoku(FILLED, PUZZLE)
    assert grading.is_sudoku("Answer:\n" + FILLED.replace("", " "), PUZZLE)
    swapped = FILLED.splitlines()
    swapped[0], swapped[1] = swapped[1], swapped[0]
    assert not grading.is_sudoku("\n".join(swapped), PUZZLE)  # clues moved
    assert not grading.is_sudoku("1234\n3412\n4123", PUZZLE)
    assert not grading.is_sudoku("1234\n2341\n3412\n4123", "0000\n" * 4)  # boxes repeat


def test_any_valid_filling_of_an_open_puzzle_counts():
    empty = "0000\n0000\n0000\n0000"
    assert grading.is_sudoku(FILLED, empty)
    assert grading.sudoku_solutions(empty) == 2  # counted up to the limit
    assert grading.sudoku_solutions(empty, limit=1000) == 288
    assert grading.sudoku_solutions(PUZZLE) == 1
    assert grading.sudoku_solutions("1100\n0000\n0000\n0000") == 0
    assert grading.sudoku_solutions("no puzzle") == 0
