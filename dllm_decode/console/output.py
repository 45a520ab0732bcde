"""Standard output and error: anything can be written to them."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# What stands for a sign that the encoding of a terminal or file does not have.
_SIMPLER = {"∎": "#", "·": ".", "✓": "ok", "✗": "x", "→": "->", "…": "...", "↵": "|"}


def _simplified(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_SIMPLER.get(sign, "?") for sign in text), error.end


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Let standard output and error take any text, whatever their encoding.

    A sign they do not have, as the end of text in cp1252, is written as a simpler one: what is
    shown to people must not be able to end a run.
    """
    codecs.register_error("dllm_decode.simplified", _simplified)
    streams = [s for s in (sys.stdout, sys.stderr) if hasattr(s, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="dllm_decode.simplified")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)
