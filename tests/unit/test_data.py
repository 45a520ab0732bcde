"""Question sources: bundled families, and files with what can be wrong in them."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from dllm_decode.errors import ConfigError
from dllm_decode.evaluation import data
from dllm_decode.problems import grading

GOOD = {
    "gsm8k": {"question": "1 + 1?", "answer": "It is 2.\n#### 2"},
    "math500": {"problem": "Half of 1?", "answer": "\\frac{1}{2}", "solution": "\\boxed{\\frac12}"},
    "countdown": {"input": "15,44,79,50", "output": "44-15=29,79-29=50"},
    "sudoku": {"input": "1000\n0002\n4003\n0000", "output": "1234\n3412\n4123\n2341"},
}  # fmt: skip


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", GOOD)
def test_a_format_is_told_from_its_keys_and_its_label_is_right(name, tmp_path):
    (question,) = data.from_file(write(tmp_path / "a.jsonl", GOOD[name]))
    assert question.family == name
    assert question.grade(question.label)
    assert not question.grade("nonsense 17")


def test_gzip_is_read_and_count_limits(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    line = json.dumps(GOOD["gsm8k"]) + "\n"
    path.write_bytes(gzip.compress((line * 3).encode()))
    assert [q.key for q in data.from_file(path, count=2)] == ["gsm8k/1", "gsm8k/2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no problems"),
        (b"\n \n", "has no problems"),
        (b"{}\n", "none of the formats"),
        (b"{not json\n", "line 1 is not JSON"),
        (b"[1]\n", "line 1 must be a JSON object"),
        (b"[]", "line 1 must be a JSON object"),
        (b"[" * 100_000, "line 1 is not JSON that can be read: nested too deep"),
        (b'{"question": "?"}\n{"question": 3}\n', "line 1 has the keys question, which fit none"),
        ('{"question": "?", "answer": "#### 3"}'.encode("utf-16"), "line 1 is not UTF-8"),
        (gzip.compress(b'{"question": "?", "answer": "#### 3"}', mtime=0)[:20], "cannot be read"),
    ],
)
def test_a_file_without_a_good_line_is_refused_with_its_first(content, message, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"task.data.*a.jsonl.*{message}"):
        data.from_file(path)


NAMELESS = '{"question": "?"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json", "is not JSON"),
        (b'{"question": "?", "answer": "#### 3"', "is not JSON"),
        (b"[1]", "must be a JSON object, got list"),
        (b"null", "must be a JSON object, got NoneType"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"question": "\xff", "answer": "#### 3"}', "is not UTF-8 text"),
        (b'{"question": "?"}', r"\(gsm8k\) needs 'answer' of type str, got nothing"),
        (b'{"question": 3, "answer": "#### 3"}', "needs 'question' of type str, got int"),
        (b'{"question": null, "answer": "#### 3"}', "of type str, got NoneType"),
        (b'{"question": " ", "answer": "#### 3"}', "needs 'question' with some text in it"),
        (rb'{"question": "\ud83d", "answer": "#### 3"}', "half a surrogate pair in 'question'"),
        (b'{"question": "?", "answer": "3"}', "no '####'"),
        (b'{"question": "?", "answer": "#### x"}', "no number"),
        (b'{"question": "?", "answer": "#### ' + b"9" * 5000 + b'"}', "no number"),
    ],
)
@pytest.mark.parametrize("place", [1, 2])
def test_a_broken_line_costs_itself_only(line, message, place, tmp_path):
    good = json.dumps(GOOD["gsm8k"]).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([line, good, good] if place == 1 else [good, line, good]))
    asked = data.from_file(path)
    assert [bool(question.refused) for question in asked] == [n == place for n in (1, 2, 3)]
    broken = asked[place - 1]
    assert re.search(rf"a\.jsonl, line {place} .*{message}", broken.refused)
    assert broken.source == f"{path}, line {place}"
    assert not broken.grade(GOOD["gsm8k"]["answer"])
    assert len({question.key for question in asked}) == 3


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("math500", {"answer": "$ $"}, "the answer is empty"),
        ("countdown", {"input": "1;2"}, "numbers and the target"),
        ("countdown", {"input": "²,3,5"}, "numbers and the target"),
        ("countdown", {"output": "1+1=2"}, "does not solve input"),
        ("countdown", {"output": "1" * 5000 + "+1=2"}, "does not solve input"),
        ("sudoku", {"input": "12"}, "four lines of four digits"),
        ("sudoku", {"output": "1111\n1111\n1111\n1111"}, "does not solve"),
    ],
)
def test_a_problem_whose_label_cannot_be_right_costs_itself_only(name, change, message, tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD[name], {**GOOD[name], **change})
    good, bad = data.from_file(path, name)
    assert not good.refused
    assert re.search(f"line 2 .*cannot be graded: .*{message}", bad.refused)


def test_a_solution_that_is_no_text_does_not_matter(tmp_path):
    path = write(tmp_path / "a.jsonl", {**GOOD["math500"], "solution": 3})
    assert data.from_file(path)[0].label == GOOD["math500"]["answer"]


LINE = json.dumps(GOOD["gsm8k"])


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\x0c"])
def test_lines_end_at_line_feeds_and_nowhere_else(separator, tmp_path):
    text = f"a{separator}b"
    path = tmp_path / "a.jsonl"
    shown = text if separator in "\u2028\u2029\x85" else json.dumps(text)[1:-1]
    path.write_text(f'{{"question": "{shown}", "answer": "#### 3"}}\n{LINE}\n', encoding="utf-8")
    assert [question.prompt for question in data.from_file(path)] == [text, "1 + 1?"]


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + f"{LINE}\n{LINE}\n".encode(),
        f"{LINE}\r\n{LINE}\r\n".encode(),
        f"\n  {LINE}\n\n{LINE}".encode(),
        f"[{LINE}, {LINE}]".encode(),
        codecs.BOM_UTF8 + json.dumps([GOOD["gsm8k"]] * 2, indent=2).encode(),
        gzip.compress(codecs.BOM_UTF8 + f"{LINE}\n{LINE}\n".encode()),
    ],
    ids=["mark", "returns", "blanks", "array", "marked array", "gzip"],
)
@pytest.mark.parametrize("name", ["a.jsonl", "A.JSONL", "a.json", "a"])
def test_every_way_of_writing_records_is_read_alike(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    asked = data.from_file(tmp_path / name)
    assert [(q.prompt, q.refused) for q in asked] == [("1 + 1?", "")] * 2


def test_a_broken_element_of_an_array_costs_itself_only(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(f"[{LINE}, 3, {NAMELESS}, {LINE}]")
    refused = [question.refused for question in data.from_file(path)]
    assert refused[0] == refused[3] == ""
    assert "a.json, element 2 must be a JSON object, got int" in refused[1]
    assert "a.json, element 3 (gsm8k) needs 'answer'" in refused[2]


def test_count_counts_lines_that_are_refused_as_well(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{LINE}\n{NAMELESS}\n{LINE}\n")
    assert [bool(question.refused) for question in data.from_file(path, count=2)] == [False, True]


def test_a_missing_file_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none.jsonl cannot be read: No such file or directory$"):
        data.from_file(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match=r"task\.format must be one of gsm8k"):
        data.from_file(write(tmp_path / "a.jsonl", GOOD["gsm8k"]), "gsm9k")


CODE = {
    "humaneval": {"task_id": "x/0", "prompt": "def f():", "test": "", "entry_point": "f"},
    "mbpp": {"text": "Return one.", "code": "", "test_list": ["assert f() == 1"]},
}


@pytest.mark.parametrize("name", CODE)
@pytest.mark.parametrize("said", [True, False])
def test_formats_that_run_generated_code_point_to_the_harness(name, said, tmp_path):
    path = write(tmp_path / "a.jsonl", CODE[name])
    with pytest.raises(ConfigError, match=rf"{name}.*running generated code.*dllm_decode\.lm_eval"):
        data.from_file(path, name if said else None)


def test_shots_are_the_first_records_of_a_file(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD["gsm8k"], GOOD["gsm8k"])
    assert data.shots_from_file(path, 1) == [("1 + 1?", "It is 2.\n#### 2")]
    with pytest.raises(ConfigError, match="asks for 3 examples"):
        data.shots_from_file(path, 3)
    path.write_text(f"{LINE}\n{NAMELESS}\n")
    with pytest.raises(ConfigError, match=r"task\.shots: .*a.jsonl, line 2 .* needs 'answer'"):
        data.shots_from_file(path, 2)
    with pytest.raises(ConfigError, match=r"task\.shots: .*none.jsonl cannot be read"):
        data.shots_from_file(tmp_path / "none.jsonl", 2)


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
    assert data.digest(first) != data.digest([replace(first[0], refused="no"), *first[1:]])


def test_an_answer_is_cut_at_the_first_stop():
    question = data.Question("k", "t", "p", "l", 4, bool, stops=("\n\n", "Q:"))
    assert question.cut("a Q: b\n\nc") == "a "
    assert question.cut("abc") == "abc"


# The published data sets, where somebody has them: DLLM_DECODE_DATA names a folder with gsm8k/,
# math500/, countdown/ and sudoku/.

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
