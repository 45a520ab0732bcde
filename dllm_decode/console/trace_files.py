"""The group `trace`: what a run folder keeps of its steps, and the page that plays them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import ClassVar

from dllm_decode.console.runfolder import RunFolder
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.trace import Trace
from dllm_decode.decoding.types import Request
from dllm_decode.models.loaded import LoadedModel


class TraceFormat(ABC):
    """What the group `trace` selects.

    Attributes:
        wanted: Whether a decode has to record its steps.

    Examples:
        >>> class Counted(TraceFormat):
        ...     def write(self, folder, trace):
        ...         folder.write_json("steps.json", len(trace.steps))
        >>> Counted().wanted
        True
    """

    wanted: ClassVar[bool] = True

    @abstractmethod
    def write(self, folder: RunFolder, trace: Trace) -> None:
        """Write the steps of a result into the run folder.

        Args:
            folder: Of the run.
            trace: Its steps.

        Raises:
            OutputError: A file cannot be written.
        """


@dataclass(frozen=True)
class NoTrace(TraceFormat):
    """Steps are not recorded.

    Examples:
        >>> NoTrace().wanted, JsonlTrace().wanted
        (False, True)
    """

    wanted: ClassVar[bool] = False

    def write(self, folder: RunFolder, trace: Trace) -> None:
        """Write no file, since no steps were recorded."""


@dataclass(frozen=True)
class JsonlTrace(TraceFormat):
    """`trace.jsonl`, which `read_trace` reads back.

    Examples:
        >>> JsonlTrace().wanted
        True
    """

    def write(self, folder: RunFolder, trace: Trace) -> None:
        """Write `trace.jsonl`."""
        folder.write_text("trace.jsonl", "\n".join(trace.lines()) + "\n")


@dataclass(frozen=True)
class HtmlTrace(JsonlTrace):
    """`trace.jsonl`, and `trace.html`, a page that plays it in any browser without a network.

    Examples:
        >>> isinstance(HtmlTrace(), JsonlTrace)
        True
    """

    def write(self, folder: RunFolder, trace: Trace) -> None:
        """Write `trace.jsonl` and `trace.html`."""
        super().write(folder, trace)
        folder.write_text("trace.html", player(trace))


def trace_of(request: Request, result: Result, titles: Sequence[str], model: LoadedModel) -> Trace:
    """The steps of a result, with the text of every token that occurs.

    Args:
        request: What was asked.
        result: Its result, with every change recorded.
        titles: The prompts for people, one per row.
        model: Whose tokenizer tells the text of each id.
    """
    vocab = model.denoiser.vocab
    seen = {token for change in result.trace for token in change.tokens[change.commit].tolist()}
    seen |= {token for given in request.fixed or () for token in (given or {}).values()}
    pieces = {token: model.tokenizer.decode([token], keep_special=True) for token in sorted(seen)}
    return Trace.of(request, result, vocab, titles, pieces)


def player(trace: Trace) -> str:
    """A page that plays a trace; everything it needs is inside."""
    page = files("dllm_decode.console").joinpath("player.html").read_text(encoding="utf-8")
    data = "[" + ",".join(trace.lines()) + "]"
    # inside a script element "</" ends the data and "<!--" changes what ends it; in JSON a "<" only
    # stands in texts, where it may be written like this
    return page.replace("/*TRACE*/[]", data.replace("<", "\\u003c"))
