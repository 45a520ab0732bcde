"""Prompts files: every kind is read as its name says, or refused with file and line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from dllm_decode.console.prompts import PromptsError, read_prompts

ODD = ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb", "a\x0cb", "a\x1cb", "  indented", "tail "]


def read(tmp_path: Path, name: str, data: str | bytes) -> list[str]:
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return [asked.content for asked in read_prompts(str(path))]


@pytest.mark.parametrize("text", ODD, ids=ascii)
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=ascii)
def test_lines_end_at_a_line_feed_and_nowhere_else(tmp_path: Path, text: str, ending: str) -> None:
    line = json.dumps({"prompt": text}, ensure_ascii=False) + ending
    assert read(tmp_path, "p.jsonl", 2 * line) == [text, text]
    assert read(tmp_path, "p.txt", 2 * (text + ending)) == [text, text]


RECORDS = '[{"prompt": "cab", "seed": 3}, "deaf", {"messages": [{"role": "user", "content": "x"}]}]'


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("p.jsonl", b'\xef\xbb\xbf{"prompt": "cab"}\n', ["cab"]),
        ("p.txt", b"\xef\xbb\xbfcab\ndeaf", ["cab", "deaf"]),
        ("p.json", b'\xef\xbb\xbf["cab"]', ["cab"]),
        ("P.JSONL", b'{"prompt": "cab"}', ["cab"]),
        ("p.ndjson", b'{"prompt": "cab"}', ["cab"]),
        ("P.TXT", b"cab", ["cab"]),
        ("prompts", b"cab", ["cab"]),
        ("p.json", b'{"prompt": "cab"}', ["cab"]),
        ("p.json", b'{"prompt": "cab"}\n\n{"prompt": "deaf"}\n', ["cab", "deaf"]),
        ("p.json", RECORDS.encode(), ["cab", "deaf", [{"role": "user", "content": "x"}]]),
    ],
)
def test_byte_order_marks_lists_and_capitals_are_read(
    tmp_path: Path, name: str, data: bytes, expected: list[object]
) -> None:
    assert read(tmp_path, name, data) == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("pyproject.toml", "a = 1", r"called \.jsonl, \.json or \.txt, got .*pyproject\.toml"),
        ("run.py", "import os", r"got .*run\.py"),
        ("p.csv", "a,b", r"got .*p\.csv"),
        ("p.txt", '{"prompt": "a"}\n', r"p\.txt, line 1: is a JSON object"),
        ("p.jsonl", "[" * 100_000, r"p\.jsonl, line 1: not a JSON document"),
        ("p.json", "[1,", r"p\.json: not a JSON document"),
        ("p.json", "[1]", r"p\.json, entry 1: needs an object"),
        ("p.json", '["a", ""]', r"p\.json, entry 2: prompt must be a text"),
        ("p.json", "[]", r"p\.json holds no prompts"),
        ("p.jsonl", '{"prompt": 3}', r"line 1: prompt must be a text .*got 3"),
        ("p.jsonl", '{"prompt": ["a"]}', r"line 1: prompt must be a text"),
        ("p.jsonl", '{"prompt": "a", "messages": []}', r"line 1: prompt and messages exclude"),
        ("p.jsonl", '{"prompt": "\\ud800"}', r"line 1: holds half a character"),
        ("p.jsonl", '{"messages": [{"role": "user"}]}', r"line 1: messages: message 0 of the chat"),
        ("p.jsonl", '{"prompt": "a", "seed": "x"}', r"line 1: seed must be"),
        ("p.jsonl", '{"prompt": "a", "continue_final_message": 1}', "line 1: continue_final_mess"),
        ("p.jsonl", '\n{"prompt": "a", "max_new_tokens": 1.5}', r"line 2: max_new_tokens must be"),
        ("p.jsonl", '{"prompt": "a", "max_new_tokens": true}', "line 1: max_new_tokens must be"),
        ("p.jsonl", '{"prompt": "a", "seed": -1}', "line 1: seed must be a whole number >= 0"),
        ("p.jsonl", '{"prompt": "a", "seed": 9223372036854775808}', "line 1: seed must be at most"),
        ("p.jsonl", '{"prompt": "a", "parameters": [1]}', "line 1: parameters must be an object"),
        ("p.jsonl", '{"prompt": "a", "parameters": {"x": "y"}}', "line 1: parameters must be"),
        ("p.jsonl", '{"messages": "x"}', "line 1: messages: a chat is a list"),
        ("p.jsonl", '{"messages": []}', "line 1: messages: a chat is a list"),
        ("p.jsonl", '{"messages": [{"role": 1, "content": "x"}]}', "line 1: messages: message 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_prompts_file_is_named(
    tmp_path: Path, name: str, data: str, message: str
) -> None:
    with pytest.raises(PromptsError, match=message):
        read(tmp_path, name, data)


@pytest.mark.parametrize("data", ["cab\n", '{"prompt": "cab"}\n', '["cab"]', "\ufeffcab"])
def test_standard_input_is_what_it_looks_like_whatever_the_terminal(
    data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(data.encode()), encoding="ascii")
    monkeypatch.setattr("sys.stdin", stream)
    assert [asked.content for asked in read_prompts("-")] == ["cab"]
