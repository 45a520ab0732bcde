from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from dllm_decode import ConfigError, load
from dllm_decode.decoding.counterfactual import Credit, Threshold, would_commit
from dllm_decode.decoding.trace import Trace, TraceError, read_trace
from dllm_decode.decoding.types import Request


@cache
def decode(strategy: str, *overrides: str, candidates: int = 8) -> Trace:
    loaded = load("toy_shuffle", strategy, overrides=["schedule.length=4", *overrides])
    decoder = replace(loaded, decoder=replace(loaded.decoder, candidates=candidates))
    ids = tuple(tuple(decoder.encode(prompt)) for prompt in ("abcdefg", "cab"))
    request = Request(ids, 12)
    result = decoder.decode(request, record=True)
    return Trace.of(request, result, decoder.model.denoiser.vocab)


def committed(trace: Trace, row: int) -> list[list[int]]:
    return [
        sorted(commit.column for commit in step.commits if commit.row == row)
        for step in trace.steps
        if row in step.rows
    ]


def threshold() -> Trace:
    return decode("threshold", "threshold=0.6")


def bare_threshold() -> Trace:
    return decode("threshold", "threshold=0.6", candidates=0)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("trace", "rule"),
    [
        (threshold, Threshold(0.6)),
        (lambda: decode("credit", "threshold=0.6"), Credit(0.6)),
    ],
)
def test_a_rule_would_have_committed_what_it_did_commit(
    trace: Callable[[], Trace], rule: Threshold
) -> None:
    for row in range(2):
        assert would_commit(trace(), row, rule) == committed(trace(), row)


def test_a_lower_threshold_would_have_committed_more_and_a_row_never_stands_still() -> None:
    low, high = (would_commit(threshold(), 0, Threshold(t)) for t in (0.1, 0.99))
    assert all(set(b) <= set(a) and b for a, b in zip(low, high, strict=True))
    assert sum(map(len, low)) > sum(map(len, high))


def test_candidates_are_the_model_s_own_likeliest_tokens_of_open_columns(tmp_path: Path) -> None:
    first = threshold().steps[0]
    assert first.fresh == (True, True)
    assert {(offer.row, offer.column) for offer in first.candidates} == {
        (row, column) for row in range(2) for column in range(4)
    }
    for offer in first.candidates:
        chances = [chance for _, chance in offer.pairs]
        assert chances == sorted(chances, reverse=True) and 0.99 < sum(chances) <= 1.0001
    (tmp_path / "t.jsonl").write_text("\n".join(threshold().lines()) + "\n")
    assert read_trace(tmp_path / "t.jsonl") == threshold()


def test_recording_candidates_changes_nothing_else() -> None:
    bare = tuple(replace(step, fresh=(), candidates=()) for step in threshold().steps)
    assert replace(threshold(), steps=bare) == bare_threshold()


@pytest.mark.parametrize(
    "wrong",
    ["1", "[1]", "[[0, 0, 1]]", "[[0, 0, 0.5, 0.5]]", "[[0, 99, 1, 0.5]]", "[[9, 0, 1, 1]]"],
)
def test_damaged_candidates_are_refused_by_key_and_line(tmp_path: Path, wrong: str) -> None:
    lines = bare_threshold().lines()
    lines[1] = f'{lines[1][:-1]}, "candidates": {wrong}}}'
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(TraceError, match=r"t\.jsonl, line 2: candidates must be a list"):
        read_trace(tmp_path / "t.jsonl")


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="threshold must"):
        Threshold(1.5)
    with pytest.raises(ConfigError, match="candidates must be a whole number >= 0"):
        decode("threshold", candidates=-1)
