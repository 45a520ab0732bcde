"""Many requests through one running batch: rows join, finish, leave, and are replaced at once."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dllm_decode.decoding.batching import check_batching
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.observer import Interrupted
from dllm_decode.decoding.outcome import Outcome, Result
from dllm_decode.decoding.returned import kind_of
from dllm_decode.decoding.types import Request
from dllm_decode.errors import (
    CapabilityError,
    ConfigError,
    DeviceError,
    DllmDecodeError,
    require_count,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """Decodes the rows of a request in a batch of bounded size.

    A row's tokens, forwards and finish reason are those it has when it is decoded alone, so the
    settings here change speed and memory only. A pass is as wide as the widest row of the batch:
    rows are taken in the order of their width, the widest first.

    Attributes:
        decoder: the parts.
        max_batch: rows in the batch, 1 or more.
        max_tokens_in_flight: canvas columns of all rows in the batch together, 1 or more; None for
            no bound.
        batching: `continuous` (a waiting row joins as soon as one leaves) or `static` (a batch is
            filled again when all of it is done).

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> from dllm_decode.decoding.loop import Decoder
        >>> from dllm_decode.decoding.types import Request
        >>> world = Copy(n=3)
        >>> prompts = tuple(tuple(world.tokenizer.encode(text)) for text in ("abc>", "cab>"))
        >>> engine = Engine(Decoder(world, TopK(2)), max_batch=2)
        >>> engine.decode(Request(prompts, max_new_tokens=4)).forwards
        (2, 2)
        >>> sorted(row for row, outcome in engine.stream(Request(prompts, max_new_tokens=4)))
        [0, 1]
    """

    decoder: Decoder
    max_batch: int = 16
    max_tokens_in_flight: int | None = None
    batching: str = "continuous"

    def __post_init__(self) -> None:
        if not isinstance(self.decoder, Decoder):
            raise ConfigError(
                f"an engine needs a Decoder, got {kind_of(self.decoder)}; what dllm_decode.load "
                "returns has one as its attribute decoder"
            )
        object.__setattr__(self, "max_batch", require_count("max_batch", self.max_batch))
        bound = self.max_tokens_in_flight
        check_batching(self.max_batch, bound, self.batching)
        if bound is not None:
            object.__setattr__(self, "max_tokens_in_flight", int(bound))

    def decode(self, request: Request) -> Result:
        """Decode all rows; the result is in request order.

        A row that fails ends with finish reason `error`, and `Result.errors` says why.

        Raises:
            CapabilityError: where the parts cannot work together.
            ConfigError: for requests that do not fit.
            DeviceError: where nothing can be computed any more.
            Interrupted: on Ctrl-C, with the finished and the partial rows.
        """
        work = _Work(self, request)
        with _told(work):
            for _ in work:
                pass
        return work.result()

    def stream(self, request: Request) -> Iterator[tuple[int, Outcome]]:
        """Decode all rows; yields (row, outcome) as they finish.

        Raises:
            CapabilityError: where the parts cannot work together.
            ConfigError: for requests that do not fit.
            DeviceError: where nothing can be computed any more.
            Interrupted: on Ctrl-C, with the finished and the partial rows.
        """
        work = _Work(self, request)
        with _told(work):
            yield from work
        work.result()  # observers are told the end


@contextmanager
def _told(work: _Work) -> Iterator[None]:
    """Ctrl-C ends in `Interrupted`, with what was decided."""
    try:
        yield
    except KeyboardInterrupt:
        work.run.interrupt()
        raise Interrupted(work.result()) from None


class _Work:
    """The queue of one request and the batch it feeds."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self.engine = engine
        self.request = request
        engine.decoder.check(request)
        self.waiting = deque(sorted(range(request.rows), key=self._width, reverse=True))
        self.suspects: deque[int] = deque()
        self.limit = self._limit()
        self.run = engine.decoder.begin(request, self.limit)
        self.reported: set[int] = set()

    def _width(self, row: int) -> int:
        return len(self.request.prompts[row]) + self.request.lengths[row]

    def _limit(self) -> int:
        """Rows that fit: the batch size, and the bound on canvas columns."""
        width = self.request.width
        bound = self.engine.max_tokens_in_flight
        if bound is None:
            return self.engine.max_batch
        if bound < width:
            raise ConfigError(
                f"max_tokens_in_flight is {bound}, but one row needs {width} canvas columns"
            )
        return min(self.engine.max_batch, bound // width)

    def __iter__(self) -> Iterator[tuple[int, Outcome]]:
        """Rows in the order in which they finish."""
        while self.waiting or self.suspects or self.run.live:
            joining = self._joining()
            try:
                if joining:
                    self.run.admit(joining)
                if self.run.live:
                    self.run.advance()
            except (DeviceError, CapabilityError):
                raise  # no row can be decoded again, or by these parts
            except torch.OutOfMemoryError as error:
                self._shrink(error, self._at_risk(joining))
            except Exception as error:  # whatever a plugin raises must not cost the other rows
                self._isolate(error, self._at_risk(joining))
            yield from self._news()

    def _news(self) -> Iterator[tuple[int, Outcome]]:
        for row in sorted(self.run.outcomes.keys() - self.reported):
            self.reported.add(row)
            yield row, self.run.outcomes[row]

    def _joining(self) -> list[int]:
        """Waiting rows whose turn it is; a row under suspicion is decoded alone."""
        live = len(self.run.live)
        if self.suspects:
            return [] if live else [self.suspects.popleft()]
        if live and self.engine.batching == "static":
            return []
        free = min(self.limit - live, len(self.waiting))
        return [self.waiting.popleft() for _ in range(free)]

    def _at_risk(self, joining: Sequence[int]) -> tuple[int, ...]:
        """The rows of a batch that failed: also those that were about to join, none twice."""
        rows = dict.fromkeys((*self.run.live, *joining))
        return tuple(row for row in rows if row not in self.run.outcomes)

    def _isolate(self, error: Exception, rows: Sequence[int]) -> None:
        """Start the rows of a failed batch again, one by one; the one that fails alone is out."""
        self._restart(rows)
        what = str(error) if isinstance(error, DllmDecodeError) else repr(error)
        what = "; ".join([what, *getattr(error, "__notes__", ())])
        if len(rows) > 1:
            log.warning("a batch of %d rows failed and is decoded row by row: %s", len(rows), what)
            self.suspects.extend(rows)
            return
        for row in rows:
            log.warning("row %d failed: %s", row, what)
            self.run.outcomes[row] = Outcome(finish_reason="error", error=what)

    def _shrink(self, error: torch.OutOfMemoryError, rows: Sequence[int]) -> None:
        """Halve the batch and start its rows again; a single row that does not fit is out."""
        if len(rows) < 2:
            self._isolate(error, rows)
            return
        self.limit = min(self.limit, len(rows)) // 2
        log.warning("out of memory with %d rows; going on with %d at once", len(rows), self.limit)
        self._restart(rows)
        self.waiting.extendleft(reversed(rows))

    def _restart(self, rows: Sequence[int]) -> None:
        """A fresh batch that keeps the outcomes so far; unfinished rows leave no trace."""
        old = self.run
        self.run = self.engine.decoder.begin(self.request, self.limit)
        self.run.outcomes.update(old.outcomes)
        gone = torch.tensor(list(rows), device=old.batch.device)
        for change in old.batch.trace:
            keep = (~torch.isin(change.rows, gone)).nonzero()[:, 0]
            if keep.numel():
                self.run.batch.trace.append(change.take(keep))
        old.batch.abandon()

    def result(self) -> Result:
        """The result in request order, observers told."""
        return self.run.result()
