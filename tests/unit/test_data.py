"""Question sources: bundled families, and files with what can be wrong in them."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from dllm_decode.errors import ConfigError
from dllm_decode.evaluation import data
from dllm_decode.problems import grading

GOOD = {
    "gsm8k": {"question": "1 + 1?", "answer": "It is 2.\n#### 2"},
    "math500": {"problem": "Half of 1?", "answer": "\\frac{1}{2}", "solution": "\\boxed{\\frac12}"},
    "humaneval": {
        "task_id": "x/0", "prompt": "def one():\n", "test": "def check(f):\n    assert f() == 1\n",
        "entry_point": "one", "canonical_solution": "    return 1\n",
    },
    "mbpp": {
        "task_id": 2, "text": "Return one.", "code": "def one(): return 1",
        "test_setup_code": "", "test_list": ["assert one() == 1"],
    },
    "countdown": {"input": "15,44,79,50", "output": "44-15=29,79-29=50"},
    "sudoku": {"input": "1000\n0002\n4003\n0000", "output": "1234\n3412\n4123\n2341"},
}  # fmt: skip


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", GOOD)
def test_a_format_is_told_from_its_keys_and_its_label_is_right(name, tmp_path):
    (question,) = data.from_file(write(tmp_path / "a.jsonl", GOOD[name]), run_code=True)
    assert question.task == name
    assert question.grade(question.label)
    assert not question.grade("nonsense 17")


def test_gzip_is_read_and_count_limits(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    line = json.dumps(GOOD["gsm8k"]) + "\n"
    path.write_bytes(gzip.compress((line * 3).encode()))
    assert [q.key for q in data.from_file(path, count=2)] == ["gsm8k/1", "gsm8k/2"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "has no problems"),
        ("{}\n", "none of the formats"),
        ("{not json\n", "line 1 is not JSON"),
        ("[1]\n", "line 1 must be a JSON object"),
        ('{"question": "?", "answer": "#### 3"}\n{"question": "?"}\n', "line 2 .* needs 'answer'"),
        ('{"question": "?", "answer": "#### 3"}\n\n{"question": 3, "answer": ""}\n',
         "line 3 .* of type str, got int"),
        ('{"question": "?", "answer": "#### 3"}\n{"question": "?", "answer": "3"}\n',
         "line 2 .* no '####'"),
        ('{"question": "?", "answer": "#### 3"}\n{"question": "?", "answer": "#### x"}\n',
         "line 2 .* no number"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused_with_its_line(lines, message, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        data.from_file(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("math500", {"answer": " "}, "the answer is empty"),
        ("countdown", {"input": "1;2"}, "numbers and the target"),
        ("countdown", {"output": "1+1=2"}, "does not solve input"),
        ("sudoku", {"input": "12"}, "four lines of four digits"),
        ("sudoku", {"output": "1111\n1111\n1111\n1111"}, "does not solve"),
        ("humaneval", {"entry_point": "two"}, "does not define 'two'"),
        ("mbpp", {"test_list": []}, "at least one test"),
    ],
)
def test_a_label_that_cannot_be_right_is_refused(name, change, message, tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD[name], {**GOOD[name], **change})
    with pytest.raises(ConfigError, match=f"line 2 .*{message}"):
        data.from_file(path, name, run_code=True)


def test_a_missing_file_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none.jsonl cannot be read"):
        data.from_file(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match=r"task\.format must be one of gsm8k"):
        data.from_file(write(tmp_path / "a.jsonl", GOOD["gsm8k"]), "gsm9k")


def test_code_formats_need_permission(tmp_path):
    with pytest.raises(ConfigError, match=r"allow it with task\.run_code=true"):
        data.from_file(write(tmp_path / "a.jsonl", GOOD["mbpp"]))


def test_shots_are_the_first_records_of_a_file(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD["gsm8k"], GOOD["gsm8k"])
    assert data.shots_from_file(path, 1) == [("1 + 1?", "It is 2.\n#### 2")]
    with pytest.raises(ConfigError, match="asks for 3 examples"):
        data.shots_from_file(path, 3)


def test_bundled_problems_have_keys_and_grade_their_own_answers():
    asked = data.bundled("copy", 5, seed=3)
    assert len({q.key for q in asked}) == 5
    assert all(q.grade(q.label) and not q.grade("") for q in asked)
    with pytest.raises(ConfigError, match=r"task\.families must be names of copy"):
        data.bundled("kopie", 5)


def test_the_digest_sees_every_change():
    first = data.bundled("copy", 3)
    assert data.digest(first) == data.digest(data.bundled("copy", 3))
    assert data.digest(first) != data.digest(data.bundled("copy", 3, seed=1))
    assert data.digest(first) != data.digest(first[:2])


def test_an_answer_is_cut_at_the_first_stop():
    question = data.Question("k", "t", "p", "l", 4, bool, stops=("\n\n", "Q:"))
    assert question.cut("a Q: b\n\nc") == "a "
    assert question.cut("abc") == "abc"


# The published data sets, where somebody has them: DLLM_DECODE_DATA names a folder with gsm8k/,
# math500/, countdown/, sudoku/, humaneval/ and mbpp/.

ROOT = os.environ.get("DLLM_DECODE_DATA")
published = pytest.mark.skipif(ROOT is None, reason="DLLM_DECODE_DATA is not set")


def at(name: str) -> Path:
    return Path(ROOT or "") / name


@published
@pytest.mark.parametrize(
    ("name", "count"),
    [("gsm8k/test.jsonl", 1319), ("gsm8k/train.jsonl", 7473), ("math500/test500.jsonl", 500)]
    + [(f"countdown/cd{n}_test.jsonl", 1000) for n in (3, 4, 5)]
    + [(f"sudoku/sudoku_4x4_{n}.jsonl", 108) for n in range(4, 13)],
)
def test_published_labels_grade_themselves(name, count):
    asked = data.from_file(at(name))
    assert len(asked) == count
    assert all(question.grade(question.label) for question in asked)


@published
def test_gsm8k_agrees_with_all_labelled_model_solutions():
    correct: dict[str, int] = {}
    for _, record in data.read_records(at("gsm8k/example_model_solutions.jsonl")):
        for name, output in record.items():
            if isinstance(output, dict):
                found = grading.same_number(output["solution"], record["ground_truth"])
                assert found == output["is_correct"]
                correct[name] = correct.get(name, 0) + found
    assert sorted(correct.values()) == [286, 458, 515, 742]


@published
def test_math_solutions_box_their_answers():
    for _, record in data.read_records(at("math500/test500.jsonl")):
        assert grading.boxed(record["solution"]) == record["answer"]


@published
def test_every_published_sudoku_has_one_solution():
    for clues in range(4, 13):
        for _, record in data.read_records(at(f"sudoku/sudoku_4x4_{clues}.jsonl")):
            assert grading.sudoku_solutions(record["input"]) == 1


@published
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "key"),
    [("humaneval/HumanEval.jsonl.gz", 164, "canonical_solution"), ("mbpp/mbpp.jsonl", 974, "code")],
)
def test_published_reference_programs_pass(name, count, key):
    asked = data.from_file(at(name), run_code=True)
    assert len(asked) == count
    assert [q.key for q in asked if not q.grade(q.label)] == []


@published
@pytest.mark.slow
def test_a_stub_passes_no_humaneval_test():
    asked = data.from_file(at("humaneval/HumanEval.jsonl.gz"), run_code=True)
    assert not any(question.grade("    pass\n") for question in asked)
