"""What happened in each step, as a file: writing, reading, replaying, comparing.

A trace is JSON lines: a header, one line per step of the batch, and a line with the finish reasons.
Replaying it gives the result, which makes it a complete account of a decode.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from dllm_decode.decoding.candidates import FRESH, IDS, OPEN, PROBABILITIES
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.types import Change, Request, Vocab
from dllm_decode.errors import TraceError

FORMAT = "dllm_decode.decoding.trace"
VERSION = 1


_OPTIONAL = ("edits", "not_granted", "fresh", "candidates", "drafts")
_LEAST = 0.001  # candidates that are less likely are not kept


@dataclass(frozen=True)
class Commit:
    """One token that was written: decided, or written over another one.

    Attributes:
        row: of the request.
        column: counted from the first generated one.
        token: its id.
        confidence: as the rule saw it, in [0, 1].
        probability: as the model gave it, in [0, 1].

    Examples:
        >>> Commit(row=0, column=5, token=7, confidence=0.9, probability=0.9).column
        5
    """

    row: int
    column: int
    token: int
    confidence: float
    probability: float


@dataclass(frozen=True)
class Offer:
    """What the model offered at one open column.

    Attributes:
        row: of the request.
        column: counted from the first generated one.
        pairs: (token id, probability), the likeliest first; what is below 0.001 is left out, except
            the likeliest.

    Examples:
        >>> Offer(0, 4, ((7, 0.75), (9, 0.2))).record()
        [0, 4, 7, 0.75, 9, 0.2]
    """

    row: int
    column: int
    pairs: tuple[tuple[int, float], ...]

    def record(self) -> list[int | float]:
        """[row, column, token, probability, token, probability, ...]."""
        return [self.row, self.column, *(value for pair in self.pairs for value in pair)]


@dataclass(frozen=True)
class StepRecord:
    """One step of the batch.

    Attributes:
        rows: request rows that took part.
        steps: for each of them, how many steps it had done before.
        horizon: for each, generated columns that are still worth decoding afterwards.
        forced: for each, whether progress had to be forced.
        forwards: for each, forward passes, probes included; 0 where a probe of the step before
            had said everything, and for rows that are done.
        probes: for each, those among them that asked about other tokens.
        drafts: for each, calls of a drafter, which are no forward passes; empty for none.
        commits: the tokens that were decided.
        edits: the tokens that were written over settled ones.
        remasks: (row, column) pairs that were opened again.
        not_granted: for each, edits and re-masks that were asked for in vain; empty for none.
        fresh: for each row, whether it had just entered its window; empty where candidates were
            not recorded.
        candidates: what the model offered at the open columns, where that was recorded.

    Examples:
        >>> step = StepRecord((0,), (3,), (9,), (False,), (1,), (0,), (Commit(0, 5, 7, 0.9, 0.9),))
        >>> step.record()["steps"]
        (3,)
    """

    rows: tuple[int, ...]
    steps: tuple[int, ...]
    horizon: tuple[int, ...]
    forced: tuple[bool, ...]
    forwards: tuple[int, ...]
    probes: tuple[int, ...]
    commits: tuple[Commit, ...]
    edits: tuple[Commit, ...] = ()
    remasks: tuple[tuple[int, int], ...] = ()
    not_granted: tuple[int, ...] = ()
    fresh: tuple[bool, ...] = ()
    candidates: tuple[Offer, ...] = ()
    drafts: tuple[int, ...] = ()

    @staticmethod
    def of(change: Change) -> StepRecord:
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

        def written(slots: Tensor | None) -> tuple[Commit, ...]:
            found = [] if slots is None else slots.nonzero().tolist()
            return tuple(
                Commit(rows[row], *(plane[row][slot] for plane in values)) for row, slot in found
            )

        def each(count: Tensor | int | None) -> tuple[int, ...]:
            known = count.tolist() if isinstance(count, Tensor) else [count or 0] * len(rows)
            return tuple(map(int, known))

        return StepRecord(
            rows=tuple(rows),
            steps=tuple(change.step.tolist()),
            horizon=tuple(change.horizon.tolist()),
            forced=tuple(change.forced.tolist()),
            forwards=each(change.forwards),
            probes=each(change.probes),
            commits=written(change.commit),
            edits=written(change.edit),
            remasks=tuple(
                (rows[row], values[0][row][slot]) for row, slot in change.remask.nonzero().tolist()
            ),
            not_granted=each(change.not_granted),
            fresh=tuple(change.notes[FRESH].tolist()) if FRESH in change.notes else (),
            candidates=tuple(_offers(change, rows, values[0])) if IDS in change.notes else (),
            drafts=() if change.drafts is None else each(change.drafts),
        )

    def record(self) -> dict[str, Any]:
        """The JSON object; tokens written are [row, column, token, confidence, probability]."""
        written = {"commits": self.commits, "edits": self.edits}
        kept = {
            **asdict(replace(self, candidates=())),
            **{name: [list(asdict(c).values()) for c in found] for name, found in written.items()},
            "candidates": [offer.record() for offer in self.candidates],
        }
        return {name: value for name, value in kept.items() if value or name not in _OPTIONAL}


def _offers(change: Change, rows: Sequence[int], columns: list[list[int]]) -> Iterator[Offer]:
    """The candidates that a change carries in its notes, at the slots that were open."""
    ids, probabilities = change.notes[IDS].tolist(), change.notes[PROBABILITIES].tolist()
    for row, slot in change.notes[OPEN].nonzero().tolist():
        pairs = [
            (token, float(f"{probability:.9g}"))  # all that a float32 can tell
            for token, probability in zip(ids[row][slot], probabilities[row][slot], strict=True)
        ]
        likely = [pair for number, pair in enumerate(pairs) if pair[1] >= _LEAST or not number]
        yield Offer(rows[row], columns[row][slot], tuple(likely))


@dataclass(frozen=True)
class Replayed:
    """The result that a trace leads to, per row and column.

    Attributes:
        sequences: token ids.
        step_of: step that committed each of them, -1 where none did.
        confidence_of: with what confidence, None where none did.
        forwards: passes that each row took part in.

    Examples:
        >>> replayed = Replayed(((7, 3),), ((-1, 0),), ((None, 0.9),), (1,))
        >>> replayed.sequences
        ((7, 3),)
    """

    sequences: tuple[tuple[int, ...], ...]
    step_of: tuple[tuple[int, ...], ...]
    confidence_of: tuple[tuple[float | None, ...], ...]
    forwards: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """A decode, step by step.

    Attributes:
        titles: the prompts for people, one per row.
        prompts: their token ids.
        lengths: generated columns per row.
        fixed: tokens given in advance per row, by column.
        mask_id: what stands in undecided columns.
        eot_ids: ids that end a text.
        pieces: text of every id that occurs.
        steps: of the batch, in order.
        finish_reasons: per row, as in `Outcome`.

    Examples:
        >>> from dllm_decode.decoding.loop import Decoder
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> world = Copy(n=3)
        >>> request = Request((tuple(world.tokenizer.encode("abc>")),), max_new_tokens=4)
        >>> result = Decoder(world, TopK(2), record=True).decode(request)
        >>> trace = Trace.of(request, result, world.vocab)
        >>> len(trace.steps), trace.replay().sequences == result.sequences
        (2, True)
    """

    titles: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    fixed: tuple[Mapping[int, int], ...]
    mask_id: int
    eot_ids: tuple[int, ...]
    pieces: Mapping[int, str]
    steps: tuple[StepRecord, ...]
    finish_reasons: tuple[str, ...]

    @staticmethod
    def of(
        request: Request,
        result: Result,
        vocab: Vocab,
        titles: Sequence[str] = (),
        pieces: Mapping[int, str] | None = None,
    ) -> Trace:
        """The trace of a result that was decoded with `record=True`.

        Args:
            request: what was asked.
            result: its result.
            vocab: of the model.
            titles: one per row; none of them: "prompt 0", "prompt 1", ...
            pieces: text of every id that occurs, None to leave them out.

        Raises:
            TraceError: the result was not recorded.
        """
        if not result.trace and any(result.forwards):
            raise TraceError(
                "the result holds no steps to make a trace of: decode with record=True"
            )
        return Trace(
            titles=tuple(titles) or tuple(f"prompt {row}" for row in range(request.rows)),
            prompts=request.prompts,
            lengths=request.lengths,
            fixed=tuple(dict(given or {}) for given in request.fixed or (None,) * request.rows),
            mask_id=vocab.mask_id,
            eot_ids=next((row.eot_ids for row in result if row.eot_ids), vocab.eot_ids),
            pieces=dict(pieces or {}),
            steps=tuple(StepRecord.of(change) for change in result.trace),
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
            for c in (*step.commits, *step.edits):
                tokens[c.row][c.column], step_of[c.row][c.column] = c.token, number[c.row]
                confidence[c.row][c.column] = c.confidence
            for row, horizon, passes in zip(step.rows, step.horizon, step.forwards, strict=True):
                ends[row] = horizon
                forwards[row] += passes

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
        # ASCII, so that no character of a prompt or token is the end of a line to any reader
        return [json.dumps(record, allow_nan=False) for record in records]


def read_trace(path: str | Path) -> Trace:
    """Read a trace file.

    Args:
        path: A file that holds the lines of `Trace.lines`.

    Raises:
        TraceError: It cannot be read, or is not a trace; names the file, the line and the key.
    """
    if not isinstance(path, str | PathLike):
        raise TraceError(f"a trace is read from the path of a file, got {_shown(path)}")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise TraceError(
            f"cannot read the trace {path}: there is no such file; trace=html and trace=jsonl "
            "write trace.jsonl into the folder of a run"
        ) from None
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TraceError(f"the trace {path} is not UTF-8 text: {error.reason}") from None
    if lines == [""]:
        raise TraceError(f"{path} is not a trace of version {VERSION}: it is empty")
    records = [_Record.of(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1)]
    header, *steps, end = records if len(records) > 1 else (records[0], _Record({}, ""))
    if header.values.get("format") != FORMAT or header.values.get("version") != VERSION:
        raise TraceError(f"{path} is not a trace of version {VERSION} (line 1 says what it is)")
    if "finish_reasons" not in end.values:
        raise TraceError(f"{path} is incomplete: the line with the finish reasons is missing")
    prompts = header.get("prompts", _is_list_of(_is_ints), "a list of lists of token ids")
    rows = len(prompts)
    lengths = header.get("lengths", _is_counts, "a list of whole numbers >= 0", rows)
    finish_reasons = end.get("finish_reasons", _is_list_of(_is_text), "a list of texts", rows)
    return Trace(
        titles=tuple(header.get("titles", _is_list_of(_is_text), "a list of texts", rows)),
        prompts=tuple(tuple(prompt) for prompt in prompts),
        lengths=tuple(lengths),
        fixed=tuple(
            _by_number(given)
            for given in header.get("fixed", _is_fixed(lengths), "columns and their ids", rows)
        ),
        mask_id=header.get("mask_id", _is_int, "a token id"),
        eot_ids=tuple(header.get("eot_ids", _is_ints, "a list of token ids")),
        pieces=_by_number(header.get("pieces", _is_pieces, "token ids and their texts")),
        steps=tuple(step.step(lengths) for step in steps),
        finish_reasons=tuple(finish_reasons),
    )


@dataclass(frozen=True)
class _Record:
    """One line of a trace.

    Attributes:
        values: its JSON object.
        place: file and line, for messages.
    """

    values: Mapping[str, Any]
    place: str

    @staticmethod
    def of(line: str, place: str) -> _Record:
        """The record of a line; raises `TraceError` where it is no JSON object."""
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{place}: not a JSON document ({error})") from None
        if not isinstance(values, dict):
            raise TraceError(f"{place}: needs a JSON object")
        return _Record(values, place)

    def get(
        self, key: str, fits: Callable[[Any], bool], kind: str, count: int | None = None
    ) -> Any:
        """A value; raises `TraceError` where it is missing or not of its kind.

        Args:
            key: Its name.
            fits: Whether a value is of the kind.
            kind: What it has to be, in words.
            count: How many entries it has to have, None where any number will do.
        """
        if key not in self.values:
            raise TraceError(f"{self.place}: {key} is missing")
        value = self.values[key]
        if not fits(value):
            raise TraceError(f"{self.place}: {key} must be {kind}, got {_shown(value)}")
        if count is not None and len(value) != count:
            raise TraceError(f"{self.place}: {key} must have {count} entries, has {len(value)}")
        return value

    def optional(
        self, key: str, fits: Callable[[Any], bool], kind: str, count: int | None = None
    ) -> Any:
        """Like `get`, and an empty list where the key is missing."""
        return self.get(key, fits, kind, count) if key in self.values else []

    def counts(self, key: str, rows: Sequence[int], default: Sequence[int]) -> tuple[int, ...]:
        """One count for each row; the default in traces written before rows were counted apart."""
        if key not in self.values:
            return tuple(default)
        return tuple(self.get(key, _is_counts, _COUNTS, len(rows)))

    def written(self, key: str, rows: Sequence[int], lengths: Sequence[int]) -> tuple[Commit, ...]:
        """Tokens that a step wrote in its rows."""
        found = self.get(
            key,
            _is_list_of(lambda entry: _is_cell(entry, 5, lengths) and entry[0] in rows),
            "a list of [row, column, token, confidence, probability] in this step's rows",
        )
        return tuple(Commit(*commit) for commit in found)

    def probes(self, rows: Sequence[int]) -> tuple[int, ...]:
        """Probes of each row; one number stands for all of them."""
        probes = self.get("probes", _is_probes, "whole numbers >= 0, one per row")
        probes = [probes] * len(rows) if _is_int(probes) else probes
        if len(probes) != len(rows):
            raise TraceError(f"{self.place}: probes must have {len(rows)} entries")
        return tuple(probes)

    def offers(self, rows: Sequence[int], lengths: Sequence[int]) -> tuple[Offer, ...]:
        """What the model proposed at open columns."""
        found = self.optional(
            "candidates",
            _is_list_of(lambda entry: _is_offer(entry, lengths) and entry[0] in rows),
            "a list of [row, column, token, probability, ...] in this step's rows",
        )
        return tuple(
            Offer(row, column, tuple(zip(pairs[::2], pairs[1::2], strict=True)))
            for row, column, *pairs in found
        )

    def step(self, lengths: Sequence[int]) -> StepRecord:
        """The step of a line; raises `TraceError` where it does not fit rows of these lengths."""

        def is_row(value: Any) -> bool:
            return _is_int(value) and 0 <= value < len(lengths)

        rows = self.get("rows", _is_list_of(is_row), f"a list of rows below {len(lengths)}")
        ends = self.get("horizon", _is_counts, _COUNTS, len(rows))
        if any(end > lengths[row] for row, end in zip(rows, ends, strict=True)):
            raise TraceError(
                f"{self.place}: horizon is beyond the end of a row, got {_shown(ends)}"
            )
        probes, flags = self.probes(rows), _is_list_of(_is_bool)
        remasks = self.get(
            "remasks",
            _is_list_of(lambda entry: _is_cell(entry, 2, lengths)),
            "a list of [row, column]",
        )
        return StepRecord(
            rows=tuple(rows),
            steps=tuple(self.get("steps", _is_counts, _COUNTS, len(rows))),
            horizon=tuple(ends),
            forced=tuple(self.get("forced", flags, "a list of flags", len(rows))),
            forwards=self.counts("forwards", rows, [1 + number for number in probes]),
            probes=probes,
            commits=self.written("commits", rows, lengths),
            edits=self.written("edits", rows, lengths) if "edits" in self.values else (),
            remasks=tuple((row, column) for row, column in remasks),
            not_granted=self.counts("not_granted", rows, [0] * len(rows)),
            fresh=tuple(self.optional("fresh", flags, "a list of flags", len(rows))),
            candidates=self.offers(rows, lengths),
            drafts=self.counts("drafts", rows, ()),
        )


_COUNTS = "a list of whole numbers >= 0"


def _shown(value: Any, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]} ..."


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_cell(entry: Any, size: int, lengths: Sequence[int]) -> bool:
    """Whether an entry is a row, a column, and so many numbers in all."""
    numbers = isinstance(entry, list) and len(entry) == size and all(map(_is_number, entry))
    whole = numbers and _is_ints(entry[: min(size, 3)])
    return whole and _inside(entry[0], entry[1], lengths)


def _is_list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


_is_ints = _is_list_of(_is_int)
_is_counts = _is_list_of(lambda value: _is_int(value) and value >= 0)


def _is_probes(value: Any) -> bool:
    """Whether a value counts probes: row by row, or one number for all of them."""
    return (_is_int(value) and value >= 0) or _is_counts(value)


def _inside(row: int, column: int, lengths: Sequence[int]) -> bool:
    return 0 <= row < len(lengths) and 0 <= column < lengths[row]


def _is_offer(entry: Any, lengths: Sequence[int]) -> bool:
    """Whether a value is [row, column, token, probability, token, probability, ...]."""
    numbers = isinstance(entry, list) and len(entry) >= 4 and all(map(_is_number, entry))
    if not numbers or len(entry) % 2:
        return False
    return _is_ints([*entry[:2], *entry[2::2]]) and _inside(entry[0], entry[1], lengths)


def _is_pieces(value: Any) -> bool:
    """Whether a value is an object from numbers to texts."""
    return isinstance(value, dict) and all(_is_id(k) and _is_text(v) for k, v in value.items())


def _is_id(key: str) -> bool:
    return key.isdecimal() and len(key) < 20


def _is_fixed(lengths: Sequence[int]) -> Callable[[Any], bool]:
    """Whether a value is a list of objects from columns of its row to token ids."""

    def fits(value: Any) -> bool:
        objects = _is_list_of(lambda given: isinstance(given, dict))(value)
        return objects and all(
            _is_id(column) and _is_int(token) and _inside(row, int(column), lengths)
            for row, given in enumerate(value)
            for column, token in given.items()
        )

    return fits


def _by_number(mapping: Mapping[str, Any]) -> dict[int, Any]:
    return {int(key): value for key, value in mapping.items()}


@dataclass(frozen=True)
class Difference:
    """Where two traces first differ.

    Attributes:
        row: of the request.
        step: of that row, from 0.
        column: counted from the first generated one.
        left: what the first trace did there.
        right: what the second one did.

    Examples:
        >>> Difference(row=0, step=3, column=7, left="a", right="b").step
        3
    """

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

    Compared are commits, edits, re-masks and the length of a row's decode; confidences are not.

    Args:
        left: one decode.
        right: another decode of the same prompts.

    Returns:
        The difference, None where there is none.

    Raises:
        TraceError: the traces are of different prompts.
    """
    found = differences(left, right)
    return min(found.values(), key=lambda d: (d.step, d.row, d.column), default=None)


def differences(left: Trace, right: Trace) -> dict[int, Difference]:
    """The first difference of each row that has one; see `first_difference`.

    Args:
        left: one decode.
        right: another decode of the same prompts.
    """
    if (left.prompts, left.lengths, left.fixed) != (right.prompts, right.lengths, right.fixed):
        raise TraceError("the traces belong to different prompts and cannot be compared")
    mine, theirs = _events(left), _events(right)
    found: dict[int, Difference] = {}
    for key in sorted(mine.keys() | theirs.keys()):
        step, row, column = key
        if row not in found and mine.get(key) != theirs.get(key):
            words = [_words(events.get(key), t) for events, t in ((mine, left), (theirs, right))]
            found[row] = Difference(row, step, column, *words)
    return found


_END, _REMASK = -1, -2


def _events(trace: Trace) -> dict[tuple[int, int, int], int]:
    """(step, row, column) to the committed id, `_REMASK`, or `_END` behind the row."""
    events: dict[tuple[int, int, int], int] = {}
    for step in trace.steps:
        number = dict(zip(step.rows, step.steps, strict=True))
        events.update({(number[row], row, column): _REMASK for row, column in step.remasks})
        written = (*step.commits, *step.edits)
        events.update({(number[c.row], c.row, c.column): c.token for c in written})
        events.update(
            {
                (number[row], row, horizon): _END
                for row, horizon in zip(step.rows, step.horizon, strict=True)
                if horizon < trace.lengths[row]
            }
        )
    return events


def _words(event: int | None, trace: Trace) -> str:
    if event is None:
        return "nothing"
    signs = {_END: "the end of the row", _REMASK: "a re-mask"}
    return signs.get(event) or f"token {event} {trace.pieces.get(event, '')!r}"
