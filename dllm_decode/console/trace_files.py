"""The group `trace`: what a run folder keeps of its steps, and the page that plays them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from dllm_decode.console.runfolder import RunFolder
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.trace import Trace
from dllm_decode.decoding.types import Request
from dllm_decode.errors import require_count
from dllm_decode.models.loaded import LoadedModel


class TraceFormat(ABC):
    """What the group `trace` selects."""

    @abstractmethod
    def records(self, prompts: int) -> bool:
        """Whether the steps of a run are recorded.

        Args:
            prompts: How many the run has.
        """

    @abstractmethod
    def write(self, folder: RunFolder, traces: Mapping[str, Trace]) -> None:
        """Write the steps of a run into its folder.

        Args:
            folder: Of the run.
            traces: By the name of the strategy, the run's own first.

        Raises:
            OutputError: A file cannot be written.
        """


@dataclass(frozen=True)
class NoTrace(TraceFormat):
    """Steps are not recorded."""

    def records(self, prompts: int) -> bool:
        """No run is recorded."""
        return False

    def write(self, folder: RunFolder, traces: Mapping[str, Trace]) -> None:
        """Write no file, since no steps were recorded."""


@dataclass(frozen=True)
class JsonlTrace(TraceFormat):
    """`trace.jsonl`, which `read_trace` reads back, and one like it per further strategy."""

    def records(self, prompts: int) -> bool:
        """Every run is recorded."""
        return True

    def write(self, folder: RunFolder, traces: Mapping[str, Trace]) -> None:
        """Write `trace.jsonl` for the run's own strategy, `trace-NAME.jsonl` for others."""
        for number, (name, trace) in enumerate(traces.items()):
            file = f"trace-{file_name(name)}.jsonl" if number else "trace.jsonl"
            folder.write_text(file, "\n".join(trace.lines()) + "\n")


@dataclass(frozen=True)
class HtmlTrace(JsonlTrace):
    """`trace.jsonl`, and `trace.html`, a page that plays it in any browser without a network.

    Attributes:
        prompts: Runs of more prompts than this are not recorded, 1 or more.

    Raises:
        ConfigError: The number is out of range.
    """

    prompts: int = 64

    def __post_init__(self) -> None:
        require_count("prompts", self.prompts)

    def records(self, prompts: int) -> bool:
        """Where the run has no more prompts than that."""
        return prompts <= self.prompts

    def write(self, folder: RunFolder, traces: Mapping[str, Trace]) -> None:
        """Write `trace.jsonl` and `trace.html`."""
        super().write(folder, traces)
        folder.write_text("trace.html", player(next(iter(traces.values()))))


def file_name(words: str) -> str:
    """A name as part of the name of a file."""
    return re.sub(r"[^\w.=-]+", "_", words)


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
