from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dllm_decode import ConfigError
from dllm_decode.config.signatures import parameters_of
from dllm_decode.console.prompts import PromptsError, one_prompt, read_prompts
from dllm_decode.console.runfolder import OutputError, RunFolder
from dllm_decode.tasks.generate import Generate

BUNDLED = ["model.checkpoint=bundled:llada-tiny"]


def test_a_chat_in_a_file_is_a_chat(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "short"}, {"role": "user", "content": "hello\nyou"}]
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    (asked,) = read_prompts(str(tmp_path / "p.jsonl"))
    assert asked.content == chat
    assert asked.title == "hello you"
    assert asked.source.endswith("p.jsonl, line 1")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(PromptsError, match=r"p\.txt is not UTF-8 text"):
        read_prompts(str(tmp_path / "p.txt"))


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\none\n\ntwo\n")
    assert [asked.source[-1] for asked in read_prompts(str(tmp_path / "p.txt"))] == ["2", "4"]


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match="prompt is empty"):
        one_prompt(" \n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, r"task\.samples must be a whole number >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"prompt": "a", "prompts": "b"}, "exclude each other"),
        ({"prompt": ""}, "prompt is empty"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Generate(**settings)


def test_files_appear_whole_and_without_numbers_that_json_lacks(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b")
    folder.write_json("x.json", {"a": float("nan"), "b": (1, float("inf")), 3: Path("p")})
    assert json.loads((folder.path / "x.json").read_text()) == {"a": None, "b": [1, None], "3": "p"}
    folder.write_jsonl("y.jsonl", [{"a": "ä"}, {"a": 2}])
    assert (folder.path / "y.jsonl").read_text() == '{"a": "ä"}\n{"a": 2}\n'
    assert sorted(path.name for path in folder.path.iterdir()) == ["x.json", "y.jsonl"]


def test_a_file_that_fails_half_way_is_not_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_text("x.txt", "before")
    with pytest.raises(UnicodeEncodeError):
        folder.write_text("x.txt", "after \ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]
    assert (tmp_path / "x.txt").read_text() == "before"


def test_a_folder_in_the_way_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write to the run folder .*file"):
        RunFolder(tmp_path / "file" / "run").write_text("x", "")


def test_parameter_names_come_from_functions_classes_and_their_bases() -> None:
    assert parameters_of("dllm_decode.models.toy.Shuffle") == ("noise", "floor", "seed", "n")
    assert parameters_of("dllm_decode.decoding.strategy.NeverStop") == ()
    assert "checkpoint" in (parameters_of("dllm_decode.models.load_model") or ())


@pytest.mark.parametrize(
    "target",
    ["absent.module.Name", "dllm_decode.decoding.strategy.Absent", "math.sqrt", "dict", "a..b"],
)
def test_what_the_source_does_not_tell_may_be_anything(target: str) -> None:
    assert parameters_of(target) is None


@pytest.mark.slow
def test_a_sample_problem_with_givens_is_decoded_around_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dllm_decode import problems
    from dllm_decode.api import load

    shown = replace(problems.FAMILIES["sudoku6"], shown=True)
    monkeypatch.setattr(problems, "FAMILIES", {"sudoku6": shown})
    task, decoder = Generate(samples=2), load(model="llada", overrides=BUNDLED)
    request = task._request(decoder, task._sample_problems())
    asked = problems.problems("sudoku6", "held_out", 2, 0)
    assert request.lengths == (41, 41) and request.fixed is not None
    for problem, fixed in zip(asked, request.fixed, strict=True):
        assert fixed is not None and len(fixed) == 41 - problem.form.count(problems.GAP)
        right = decoder.model.tokenizer.encode(f" {problem.answer}")
        assert all(right[place] == token for place, token in fixed.items())


def test_candidates_are_kept_of_small_requests_alone() -> None:
    from dllm_decode.api import load
    from dllm_decode.decoding.types import Request
    from dllm_decode.tasks.generate import with_candidates

    decoder = load("toy_copy")
    for rows, columns, kept in ((16, 128, 8), (1, 1000, 8), (64, 256, 0)):
        request = Request(((1,),) * rows, columns)
        assert with_candidates(decoder, 8, request).decoder.candidates == kept


def test_a_form_to_fill_in_is_shown_with_what_is_given() -> None:
    from dllm_decode.console.prompts import GivenPrompt
    from dllm_decode.tasks.generate import Job

    asked = GivenPrompt("Fill the sudoku", source="a sample")
    assert Job(asked, 32).title == "Fill the sudoku"
    assert Job(asked, 4, form=" 3[MASK] /[MASK] 1").title == "Fill the sudoku: 3 · / · 1"
