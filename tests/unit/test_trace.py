from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode import load
from dllm_decode.console.trace_files import player
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.trace import Trace, TraceError, first_difference, read_trace
from dllm_decode.decoding.types import Request

WORLD = load("toy_shuffle", "credit", overrides=["schedule.length=4"])


def decode(
    prompts: list[str], length: int = 12, *overrides: str, **options
) -> tuple[Trace, Result]:
    world = load("toy_shuffle", "credit", overrides=["schedule.length=4", *overrides])
    ids = tuple(world.encode(prompt) for prompt in prompts)
    request = Request(ids, length, fixed=options.pop("fixed", None))
    result = world.decode(request, record=True, **options)
    return Trace.of(request, result, world.model.denoiser.vocab, prompts), result


words = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True).map("".join)


@given(prompts=st.lists(words, min_size=1, max_size=3), batch=st.sampled_from([None, 1, 2]))
def test_a_trace_replays_to_its_result(prompts: list[str], batch: int | None) -> None:
    request = Request(tuple(WORLD.encode(prompt) for prompt in prompts), 12)
    result = WORLD.decode(request, record=True, batch_size=batch)
    trace = Trace.of(request, result, WORLD.model.denoiser.vocab, prompts)
    replayed = trace.replay()
    assert replayed.sequences == result.sequences
    assert replayed.step_of == result.step_of
    assert replayed.confidence_of == result.confidence_of
    assert replayed.forwards == result.forwards


def test_fixed_tokens_are_part_of_the_trace() -> None:
    trace, result = decode(["abcd"], fixed=({1: 3},))
    assert trace.replay().sequences == result.sequences
    assert trace.replay().sequences[0][1] == 3
    assert trace.replay().confidence_of[0][1] is None


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    trace, _ = decode(["abcd", "ef"])
    (tmp_path / "t.jsonl").write_text("\n".join(trace.lines()) + "\n")
    assert read_trace(tmp_path / "t.jsonl") == trace


def test_two_equal_decodes_have_no_difference() -> None:
    assert first_difference(decode(["abcd"])[0], decode(["abcd"])[0]) is None


def test_the_first_difference_names_row_step_and_column() -> None:
    left, _ = decode(["abcd", "efgh"])
    right, _ = decode(["abcd", "efgh"], 12, "strategy=sequential")
    found = first_difference(left, right)
    assert found is not None
    assert str(found).startswith("row 0, step 1, column 0: token ")
    assert found.right == "nothing"


def test_traces_of_different_prompts_are_not_compared() -> None:
    with pytest.raises(TraceError, match="different prompts"):
        first_difference(decode(["ab"])[0], decode(["cd"])[0])


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [], "not a trace of version 1"),
        (lambda lines: ['{"format": "other"}', *lines[1:]], "not a trace of version 1"),
        (lambda lines: lines[:-1], "incomplete"),
        (lambda lines: [lines[0], "{", *lines[2:]], "line 2: not a JSON document"),
        (lambda lines: [lines[0], "[]", *lines[2:]], "line 2: needs a JSON object"),
        (lambda lines: [lines[0], "{}", *lines[2:]], "line 2: rows is missing"),
    ],
)
def test_a_damaged_trace_is_refused_with_its_line(tmp_path: Path, change, message: str) -> None:
    trace, _ = decode(["ab"])
    (tmp_path / "t.jsonl").write_text("\n".join(change(trace.lines())))
    with pytest.raises(TraceError, match=message):
        read_trace(tmp_path / "t.jsonl")


def test_an_absent_trace_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot read the trace .*no\.jsonl"):
        read_trace(tmp_path / "no.jsonl")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_confidence_that_is_no_number_is_refused(tmp_path: Path, number: str) -> None:
    lines = decode(["ab"])[0].lines()
    step = json.loads(lines[1])
    step["commits"][0][3] = "here"
    lines[1] = json.dumps(step).replace('"here"', number)
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(TraceError, match=r"t\.jsonl, line 2: commits must be a list of"):
        read_trace(tmp_path / "t.jsonl")


def test_what_is_no_path_is_refused() -> None:
    with pytest.raises(TraceError, match="the path of a file, got None"):
        read_trace(None)  # type: ignore[arg-type]


def test_a_result_that_was_not_recorded_has_no_trace() -> None:
    request = Request((tuple(WORLD.encode("abcd")),), 12)
    with pytest.raises(TraceError, match="decode with record=True"):
        Trace.of(request, WORLD.decode(request), WORLD.model.denoiser.vocab)


def test_the_player_cannot_be_ended_by_what_a_model_wrote() -> None:
    trace, _ = decode(["ab"])
    page = player({"a": Trace(**{**vars(trace), "titles": ("</script><b>",)})})
    assert "</script><b>" not in page and "\\u003c/script>\\u003cb>" in page


WRONG = [None, True, -1, 10**30, 0.5, float("nan"), "x", [], [[]], [None], [[1]], {}, {"a": 1}]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_a_wrong_value_of_any_key_is_refused_or_replays(tmp_path: Path, value: object) -> None:
    trace, _ = decode(["ab"])
    records = [json.loads(line) for line in trace.lines()]
    for number, record in enumerate(records):
        for key in record:
            changed = [*records[:number], {**record, key: value}, *records[number + 1 :]]
            (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, changed)))
            try:
                read_trace(tmp_path / "t.jsonl").replay()
            except TraceError as error:
                assert "t.jsonl" in str(error) and len(str(error)) < 400
                assert any(name in str(error) for name in record) or "version" in str(error)


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfe", b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}", b"\x00", b"{}", b"[]"],
    ids=["bytes", "deep", "huge number", "zero", "object", "list"],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.jsonl").write_bytes(data)
    with pytest.raises(TraceError, match=r"t\.jsonl"):
        read_trace(tmp_path / "t.jsonl")


TEXTS = ["\u2028", "\x85", "\n", "\r", "\ud800", "<!--<script>", "\x00", "'"]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_any_text_comes_back_from_a_trace(tmp_path: Path, text: str) -> None:
    trace, _ = decode(["ab"])
    pieces = {token: f"{text}{piece}" for token, piece in trace.pieces.items()}
    odd = replace(trace, titles=(text,), pieces=pieces or {1: text})
    (tmp_path / "t.jsonl").write_text("\n".join(odd.lines()) + "\n", encoding="utf-8")
    assert read_trace(tmp_path / "t.jsonl") == odd
