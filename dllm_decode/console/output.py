"""Standard output and error: anything can be written to them."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

# What stands for a sign that the encoding of a terminal or file does not have.
_SIMPLER = {"∎": "#", "·": ".", "✓": "ok", "✗": "x", "→": "->", "…": "...", "↵": "|"}


def _simplified(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_SIMPLER.get(sign, "?") for sign in text), error.end


class LastingStream:
    """A stream that cannot end a run: what nobody can read any more is dropped.

    A pipe is closed by `| head`, a disk is full, a terminal is gone; the results of the run lie in
    its folder all the same.

    Args:
        stream: Standard output or error; None where the process has none.

    Attributes:
        fault: Why nothing is written any more, None as long as it is.

    Examples:
        >>> import io
        >>> shown = LastingStream(io.StringIO())
        >>> shown.write("done"), shown.getvalue(), shown.fault
        (4, 'done', None)
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.fault: Exception | None = None

    def write(self, text: str) -> int:
        """Write what can be written; returns the length of the text."""
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Whether somebody watches."""
        return self._stream is not None and self.fault is None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, act: Callable[[TextIO], object]) -> None:
        if self._stream is None or self.fault is not None:
            return
        try:
            act(self._stream)
        except (OSError, ValueError) as error:  # the latter: it has been closed
            self.fault = error
            with suppress(OSError, ValueError):  # what is left in its buffer goes nowhere
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Let standard output and error take any text, whatever their encoding and wherever they lead.

    A sign they do not have, as the end of text in cp1252, is written as a simpler one, and where
    nothing can be written any more, work goes on in silence: see `LastingStream`.
    """
    codecs.register_error("dllm_decode.simplified", _simplified)
    streams = [s for s in (sys.stdout, sys.stderr) if hasattr(s, "reconfigure")]
    errors = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="dllm_decode.simplified")
    before = sys.stdout, sys.stderr
    shown, told = LastingStream(sys.stdout), LastingStream(sys.stderr)
    sys.stdout, sys.stderr = cast(TextIO, shown), cast(TextIO, told)
    try:
        yield
    finally:
        shown.flush()
        if shown.fault is not None and not isinstance(shown.fault, BrokenPipeError):
            print(f"warning: standard output could not be written: {shown.fault}", file=sys.stderr)
        told.flush()
        sys.stdout, sys.stderr = before
        for stream, own in zip(streams, errors, strict=True):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors=own)
