"""What happened in each step, as a file: writing, reading, replaying, comparing.

A trace is JSON lines: a header, one line per step of the batch, and a line with the finish reasons.
Replaying it gives the result, which makes it a complete account of a decode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.types import Change, Request, Vocab
from dllm_decode.errors import DllmDecodeError

FORMAT = "dllm_decode.decoding.trace"
VERSION = 1


class TraceError(DllmDecodeError):
    """A trace file that cannot be read; names file and line."""


@dataclass(frozen=True)
class Commit:
    """One decided token.

    row: of the request; column: counted from the first generated one; token: id; confidence: as the
    rule saw it; probability: as the model gave it.
    """

    row: int
    column: int
    token: int
    confidence: float
    probability: float


@dataclass(frozen=True)
class Step:
    """One step of the batch.

    rows: request rows that took part; steps: how many steps each had done before; horizon:
    generated columns of each still worth decoding afterwards; forced: whether progress had to be
    forced; probes: extra forward passes; commits; remasks: (row, column) pairs opened again.
    """

    rows: tuple[int, ...]
    steps: tuple[int, ...]
    horizon: tuple[int, ...]
    forced: tuple[bool, ...]
    probes: int
    commits: tuple[Commit, ...]
    remasks: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def of(change: Change) -> Step:
        """The record of a change."""
        rows = change.rows.tolist()
        values = [
            tensor.tolist()
            for tensor in (
                change.index,
                change.tokens,
                change.confidence.float(),
                change.probability,
            )
        ]
        commits = [
            Commit(rows[row], *(plane[row][slot] for plane in values))
            for row, slot in change.commit.nonzero().tolist()
        ]
        remasks = [
            (rows[row], values[0][row][slot]) for row, slot in change.remask.nonzero().tolist()
        ]
        return Step(
            rows=tuple(rows),
            steps=tuple(change.step.tolist()),
            horizon=tuple(change.horizon.tolist()),
            forced=tuple(change.forced.tolist()),
            probes=change.probes,
            commits=tuple(commits),
            remasks=tuple(remasks),
        )

    def record(self) -> dict[str, Any]:
        """The JSON object; commits are [row, column, token, confidence, probability]."""
        return {
            **asdict(self),
            "commits": [list(asdict(commit).values()) for commit in self.commits],
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Step:
        """The step of a JSON object."""
        return Step(
            rows=tuple(record["rows"]),
            steps=tuple(record["steps"]),
            horizon=tuple(record["horizon"]),
            forced=tuple(record["forced"]),
            probes=record["probes"],
            commits=tuple(Commit(*commit) for commit in record["commits"]),
            remasks=tuple((row, column) for row, column in record["remasks"]),
        )


@dataclass(frozen=True)
class Replayed:
    """What a trace amounts to; the fields are those of `Result`."""

    sequences: tuple[tuple[int, ...], ...]
    step_of: tuple[tuple[int, ...], ...]
    confidence_of: tuple[tuple[float | None, ...], ...]
    forwards: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """A decode, step by step.

    titles: the prompts for people; prompts: token ids; lengths: generated columns per row; fixed:
    tokens given in advance per row; mask_id: what stands in undecided columns; eot_ids: what ends a
    text; pieces: text of every id that occurs; steps; finish_reasons: per row.
    """

    titles: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    fixed: tuple[Mapping[int, int], ...]
    mask_id: int
    eot_ids: tuple[int, ...]
    pieces: Mapping[int, str]
    steps: tuple[Step, ...]
    finish_reasons: tuple[str, ...]

    @staticmethod
    def of(
        request: Request,
        result: Result,
        vocab: Vocab,
        titles: Sequence[str] = (),
        pieces: Mapping[int, str] | None = None,
    ) -> Trace:
        """The trace of a result that was decoded with `record=True`."""
        return Trace(
            titles=tuple(titles) or tuple(f"prompt {row}" for row in range(request.rows)),
            prompts=request.prompts,
            lengths=request.lengths,
            fixed=tuple(dict(given or {}) for given in request.fixed or (None,) * request.rows),
            mask_id=vocab.mask_id,
            eot_ids=vocab.eot_ids,
            pieces=dict(pieces or {}),
            steps=tuple(Step.of(change) for change in result.trace),
            finish_reasons=result.finish_reasons,
        )

    def replay(self) -> Replayed:
        """Apply every step to empty canvases."""
        tokens = [[self.mask_id] * length for length in self.lengths]
        step_of = [[-1] * length for length in self.lengths]
        confidence: list[list[float | None]] = [[None] * length for length in self.lengths]
        ends, forwards = list(self.lengths), [0] * len(self.lengths)
        for row, given in enumerate(self.fixed):
            for column, token in given.items():
                tokens[row][column] = token
        for step in self.steps:
            number = dict(zip(step.rows, step.steps, strict=True))
            for row, column in step.remasks:
                tokens[row][column], step_of[row][column] = self.mask_id, -1
                confidence[row][column] = None
            for c in step.commits:
                tokens[c.row][c.column], step_of[c.row][c.column] = c.token, number[c.row]
                confidence[c.row][c.column] = c.confidence
            for row, horizon in zip(step.rows, step.horizon, strict=True):
                ends[row] = horizon
                forwards[row] += 1 + step.probes

        def cut(planes: list[list[Any]]) -> tuple[tuple[Any, ...], ...]:
            return tuple(tuple(plane[:end]) for plane, end in zip(planes, ends, strict=True))

        return Replayed(cut(tokens), cut(step_of), cut(confidence), tuple(forwards))

    def lines(self) -> list[str]:
        """The file, line by line."""
        header = {
            "format": FORMAT,
            "version": VERSION,
            "titles": self.titles,
            "prompts": self.prompts,
            "lengths": self.lengths,
            "fixed": self.fixed,
            "mask_id": self.mask_id,
            "eot_ids": self.eot_ids,
            "pieces": self.pieces,
        }
        end = {"finish_reasons": self.finish_reasons}
        records = [header, *(step.record() for step in self.steps), end]
        return [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]


def read_trace(path: str | Path) -> Trace:
    """Read a trace file; raises `TraceError` naming the line for anything that is not one."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror}") from None
    records = [_json(line, path, number) for number, line in enumerate(lines, start=1)]
    header = records[0] if records else {}
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise TraceError(f"{path} is not a trace of version {VERSION} (line 1 says what it is)")
    if len(records) < 2 or "finish_reasons" not in records[-1]:
        raise TraceError(f"{path} is incomplete: the line with the finish reasons is missing")
    steps = []
    for number, record in enumerate(records[1:-1], start=2):
        try:
            steps.append(Step.from_record(record))
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{path}, line {number}: not a step ({error!r})") from None
    return Trace(
        titles=tuple(header["titles"]),
        prompts=tuple(tuple(prompt) for prompt in header["prompts"]),
        lengths=tuple(header["lengths"]),
        fixed=tuple(_ints(given) for given in header["fixed"]),
        mask_id=header["mask_id"],
        eot_ids=tuple(header["eot_ids"]),
        pieces=_ints(header["pieces"]),
        steps=tuple(steps),
        finish_reasons=tuple(records[-1]["finish_reasons"]),
    )


def _json(line: str, path: str | Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise TraceError(f"{path}, line {number}: not a JSON document ({error})") from None
    if not isinstance(record, dict):
        raise TraceError(f"{path}, line {number}: needs a JSON object")
    return record


def _ints(mapping: Mapping[str, Any]) -> dict[int, Any]:
    return {int(key): value for key, value in mapping.items()}


@dataclass(frozen=True)
class Difference:
    """Where two traces first part. row; step: of that row; column; left, right: what each did."""

    row: int
    step: int
    column: int
    left: str
    right: str

    def __str__(self) -> str:
        place = f"row {self.row}, step {self.step}, column {self.column}"
        return f"{place}: {self.left} against {self.right}"


def first_difference(left: Trace, right: Trace) -> Difference | None:
    """The earliest step, then row and column, at which two decodes of the same prompts differ.

    Compared are commits, re-masks and the length of a row's decode; confidences are not. Raises
    `TraceError` for traces of different prompts.
    """
    if (left.prompts, left.lengths, left.fixed) != (right.prompts, right.lengths, right.fixed):
        raise TraceError("the traces belong to different prompts and cannot be compared")
    mine, theirs = _deeds(left), _deeds(right)
    for key in sorted(mine.keys() | theirs.keys()):
        if mine.get(key) != theirs.get(key):
            step, row, column = key
            words = [_words(deeds.get(key), t) for deeds, t in ((mine, left), (theirs, right))]
            return Difference(row, step, column, *words)
    return None


_END, _REMASK = -1, -2


def _deeds(trace: Trace) -> dict[tuple[int, int, int], int]:
    """(step, row, column) to the committed id, `_REMASK`, or `_END` behind the row."""
    deeds: dict[tuple[int, int, int], int] = {}
    for step in trace.steps:
        number = dict(zip(step.rows, step.steps, strict=True))
        deeds.update({(number[row], row, column): _REMASK for row, column in step.remasks})
        deeds.update({(number[c.row], c.row, c.column): c.token for c in step.commits})
        deeds.update(
            {
                (number[row], row, horizon): _END
                for row, horizon in zip(step.rows, step.horizon, strict=True)
                if horizon < trace.lengths[row]
            }
        )
    return deeds


def _words(deed: int | None, trace: Trace) -> str:
    if deed is None:
        return "nothing"
    signs = {_END: "the end of the row", _REMASK: "a re-mask"}
    return signs.get(deed) or f"token {deed} {trace.pieces.get(deed, '')!r}"
