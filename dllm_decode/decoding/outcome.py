"""What a decode delivers: one `Outcome` per row, and the `Result` that holds them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, overload

from dllm_decode.decoding import picture
from dllm_decode.decoding.types import Change
from dllm_decode.errors import ConfigError


@dataclass(frozen=True, repr=False)
class Outcome:
    """What became of one row of a request.

    Attributes:
        tokens: generated ids up to the end of text (inclusive) or the requested length; an
            interrupted row has mask ids where nothing was decided.
        forwards: forward passes the row took part in, probes included: the rows that the model
            computed for it.
        probes: of them, those over other tokens that a part asked for (`StepView.probe`).
        passes: forward passes one after the other; several alternatives probed at once are one.
        drafts: calls of a drafter, which are no forward passes.
        edits: settled tokens that were written over.
        remasks: settled columns that were opened again.
        not_granted: edits and re-masks that the strategy asked for and its progress rule did not
            allow.
        finish_reason: `eot` (a stop rule ended the row), `length`, `budget` (closing commits were
            forced), `interrupted`, or `error` (only from an engine; `error` says what happened).
        step_of: step at which each token was committed, counted from 0; -1 for fixed tokens.
        confidence_of: probability with which each token was committed; NaN for fixed ones.
        undecided: tokens left open, 0 unless the row was interrupted.
        surplus_forwards: passes that the row did not need, run after it was done because
            `sync_every` looks only now and then, or beside rows that probed with a key/value
            store; not part of `forwards`.
        error: what happened to a row with finish reason `error`, else empty.
        eot_ids: ids that end a text.
        last_fixed: the last generated column whose token the request gave in advance, or -1.
        text: the delivered tokens as a string, empty without a tokenizer.
        reference_forwards: forwards of the reference decode that `strategy=oracle` needs, else 0.
        candidates: the decodes that this row was chosen from by voting, in their order; none
            without voting. `forwards` are then those of all of them.
        votes: how many of them voted for its answer.
        pieces: text of each token, empty without a tokenizer.

    In a notebook it shows its canvas, coloured by confidence.

    Examples:
        >>> Outcome(tokens=(7, 8, 2, 2), eot_ids=(2,)).delivered
        (7, 8)
    """

    tokens: tuple[int, ...] = ()
    forwards: int = 0
    finish_reason: str = "length"
    step_of: tuple[int, ...] = ()
    confidence_of: tuple[float, ...] = ()
    undecided: int = 0
    surplus_forwards: int = 0
    error: str = ""
    eot_ids: tuple[int, ...] = ()
    last_fixed: int = -1
    text: str = ""
    reference_forwards: int = 0
    probes: int = 0
    passes: int = 0
    drafts: int = 0
    edits: int = 0
    remasks: int = 0
    not_granted: int = 0
    candidates: tuple[Outcome, ...] = ()
    votes: int = 0
    pieces: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        """Whether every field is the same, NaN in the same place included."""
        if not isinstance(other, Outcome):
            return NotImplemented
        return self._compared == other._compared

    def __hash__(self) -> int:
        return hash(self._compared)

    @property
    def _compared(self) -> tuple[Any, ...]:
        # NaN equals nothing, and its hash is that of the object
        sure = tuple(None if math.isnan(share) else share for share in self.confidence_of)
        return tuple(
            sure if own.name == "confidence_of" else getattr(self, own.name) for own in fields(self)
        )

    def __repr__(self) -> str:
        what = repr(self.text) if self.text else f"{len(self.tokens)} tokens"
        return f"Outcome({what}, {self.forwards} forwards, {self.finish_reason})"

    def _repr_html_(self) -> str:
        return picture.outcome_html(self)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Natural logarithm of `confidence_of`: of each token when it was committed; NaN if given.

        They are those of the path that was taken, each under the canvas of its own step; their sum
        is no likelihood of the text.
        """
        return tuple(map(_log, self.confidence_of))

    @property
    def step_map(self) -> tuple[int, ...]:
        """`step_of`, as trainers on trajectories (TraceRL and its relatives) call it."""
        return self.step_of

    @cached_property
    def end(self) -> int:
        """Place of the end of text, or the number of tokens where there is none.

        In front of a token that the caller fixed (infilling) an end of text ends nothing: it says
        that the gap needs no more tokens.
        """
        places = range(max(0, self.last_fixed), len(self.tokens))
        return next((at for at in places if self.tokens[at] in self.eot_ids), len(self.tokens))

    @cached_property
    def delivered_places(self) -> tuple[int, ...]:
        """Where the delivered tokens stand: before the end of text, and no end of text itself."""
        return tuple(at for at in range(self.end) if self.tokens[at] not in self.eot_ids)

    @property
    def delivered(self) -> tuple[int, ...]:
        """The tokens that a reader gets, and that are counted."""
        return tuple(self.tokens[at] for at in self.delivered_places)


def _log(share: float) -> float:
    """Its logarithm; NaN stays NaN, and what is below 0 is no probability."""
    if share == 0:
        return -math.inf
    return math.log(share) if share > 0 else math.nan


@dataclass(frozen=True, repr=False)
class Result:
    """What a decode delivered: its rows, one after the other.

        for row in result:                 # or result[0], len(result)
            print(row.text, row.forwards)
        result.to_pandas()                 # a line per row

    Attributes:
        rows: one outcome per row of the request, in its order.
        trace: every change, where recording was asked for.

    Each field of the outcomes is also here as a column, one entry per row: `sequences` (their
    tokens), `texts`, `forwards`, `finish_reasons`, `step_of`, `confidence_of`, `undecided`,
    `surplus_forwards`, `reference_forwards`, `probes`, `passes`, `drafts`, `edits`, `remasks`,
    `not_granted`, `errors`, `candidates`, `votes`, `pieces`, `logprobs`, `step_map`. In a notebook
    a result shows its canvases, coloured by confidence.

    Examples:
        >>> result = Result((Outcome((7, 2), 1), Outcome((8,), 3)))
        >>> result.forwards, [row.forwards for row in result]
        ((1, 3), [1, 3])
        >>> result
        Result(2 rows, 4 forwards, length 2)
    """

    rows: tuple[Outcome, ...]
    trace: tuple[Change, ...] = field(default=(), compare=False)  # tensors are not compared so

    def __repr__(self) -> str:
        return f"Result({picture.summary(self.rows)})"

    def _repr_html_(self) -> str:
        return picture.result_html(self)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self.rows)

    @overload
    def __getitem__(self, place: int) -> Outcome: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Outcome, ...]: ...

    def __getitem__(self, place: int | slice) -> Outcome | tuple[Outcome, ...]:
        return self.rows[place]

    def to_pandas(self) -> Any:
        """A pandas data frame with a line per row.

        Its columns are text, forwards, delivered (a count), tokens_per_forward, finish_reason,
        error, and as lists with an entry per token tokens, pieces, step_map, confidence, logprobs.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ConfigError("to_pandas needs pandas: pip install pandas") from None
        return pandas.DataFrame([_record(row) for row in self.rows], columns=list(_COLUMNS))

    def _column(self, name: str) -> tuple[Any, ...]:
        return tuple(getattr(row, name) for row in self.rows)

    @property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """`Outcome.tokens` of each row."""
        return self._column("tokens")

    @property
    def texts(self) -> tuple[str, ...]:
        """`Outcome.text` of each row."""
        return self._column("text")

    @property
    def forwards(self) -> tuple[int, ...]:
        """`Outcome.forwards` of each row."""
        return self._column("forwards")

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """`Outcome.finish_reason` of each row."""
        return self._column("finish_reason")

    @property
    def step_of(self) -> tuple[tuple[int, ...], ...]:
        """`Outcome.step_of` of each row."""
        return self._column("step_of")

    @property
    def confidence_of(self) -> tuple[tuple[float, ...], ...]:
        """`Outcome.confidence_of` of each row."""
        return self._column("confidence_of")

    @property
    def pieces(self) -> tuple[tuple[str, ...], ...]:
        """`Outcome.pieces` of each row."""
        return self._column("pieces")

    @property
    def logprobs(self) -> tuple[tuple[float, ...], ...]:
        """`Outcome.logprobs` of each row."""
        return self._column("logprobs")

    @property
    def step_map(self) -> tuple[tuple[int, ...], ...]:
        """`Outcome.step_map` of each row."""
        return self._column("step_map")

    @property
    def undecided(self) -> tuple[int, ...]:
        """`Outcome.undecided` of each row."""
        return self._column("undecided")

    @property
    def surplus_forwards(self) -> tuple[int, ...]:
        """`Outcome.surplus_forwards` of each row."""
        return self._column("surplus_forwards")

    @property
    def reference_forwards(self) -> tuple[int, ...]:
        """`Outcome.reference_forwards` of each row."""
        return self._column("reference_forwards")

    @property
    def probes(self) -> tuple[int, ...]:
        """`Outcome.probes` of each row."""
        return self._column("probes")

    @property
    def passes(self) -> tuple[int, ...]:
        """`Outcome.passes` of each row."""
        return self._column("passes")

    @property
    def drafts(self) -> tuple[int, ...]:
        """`Outcome.drafts` of each row."""
        return self._column("drafts")

    @property
    def edits(self) -> tuple[int, ...]:
        """`Outcome.edits` of each row."""
        return self._column("edits")

    @property
    def remasks(self) -> tuple[int, ...]:
        """`Outcome.remasks` of each row."""
        return self._column("remasks")

    @property
    def not_granted(self) -> tuple[int, ...]:
        """`Outcome.not_granted` of each row."""
        return self._column("not_granted")

    @property
    def errors(self) -> tuple[str, ...]:
        """`Outcome.error` of each row."""
        return self._column("error")

    @property
    def candidates(self) -> tuple[tuple[Outcome, ...], ...]:
        """`Outcome.candidates` of each row."""
        return self._column("candidates")

    @property
    def votes(self) -> tuple[int, ...]:
        """`Outcome.votes` of each row."""
        return self._column("votes")


_COLUMNS = ("text", "forwards", "delivered", "tokens_per_forward", "finish_reason", "error",
            "tokens", "pieces", "step_map", "confidence", "logprobs")  # fmt: skip


def _record(row: Outcome) -> dict[str, Any]:
    """A line of `Result.to_pandas`."""
    delivered = len(row.delivered)
    return {
        "text": row.text,
        "forwards": row.forwards,
        "delivered": delivered,
        "tokens_per_forward": delivered / row.forwards if row.forwards else 0.0,
        "finish_reason": row.finish_reason,
        "error": row.error,
        "tokens": list(row.tokens),
        "pieces": list(row.pieces),
        "step_map": list(row.step_map),
        "confidence": list(row.confidence_of),
        "logprobs": list(row.logprobs),
    }
