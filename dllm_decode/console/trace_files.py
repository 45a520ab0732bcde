"""The group `trace`: what a run folder keeps of its steps, and the page that plays them."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import TypeAlias

from dllm_decode.console.runfolder import RunFolder
from dllm_decode.decoding.colours import GIVEN, SCALE, legend
from dllm_decode.decoding.counterfactual import USUAL, would_commit
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.trace import Trace
from dllm_decode.decoding.types import Request
from dllm_decode.errors import require_count
from dllm_decode.models.loaded import LoadedModel

Correct: TypeAlias = Mapping[str, Sequence[bool | None]] | None


class TraceFormat(ABC):
    """What the group `trace` selects.

    Attributes:
        candidates: Tokens to keep of what the model offers at each open column.

    Examples:
        >>> class Counted(TraceFormat):
        ...     candidates = 0
        ...     def records(self, prompts):
        ...         return True
        ...     def write(self, folder, traces, correct=None):
        ...         folder.write_json("steps.json", [len(t.steps) for t in traces.values()])
        >>> Counted().records(prompts=3)
        True
    """

    candidates: int = 0

    @abstractmethod
    def records(self, prompts: int) -> bool:
        """Whether the steps of a run are recorded.

        Args:
            prompts: How many the run has.
        """

    @abstractmethod
    def write(
        self, folder: RunFolder, traces: Mapping[str, Trace], correct: Correct = None
    ) -> None:
        """Write the steps of a run into its folder.

        Args:
            folder: Of the run.
            traces: By the name of the strategy, the run's own first.
            correct: See `player`.

        Raises:
            OutputError: A file cannot be written.
        """


@dataclass(frozen=True)
class NoTrace(TraceFormat):
    """Steps are not recorded.

    Examples:
        >>> NoTrace().records(1), JsonlTrace().records(1000)
        (False, True)
    """

    def records(self, prompts: int) -> bool:
        """No run is recorded."""
        return False

    def write(
        self, folder: RunFolder, traces: Mapping[str, Trace], correct: Correct = None
    ) -> None:
        """Write no file, since no steps were recorded."""


@dataclass(frozen=True)
class JsonlTrace(TraceFormat):
    """`trace.jsonl`, which `read_trace` reads back, and one like it per further strategy.

    Attributes:
        candidates: Tokens kept of what the model offered at each open column, likeliest first; 0
            for none.

    Raises:
        ConfigError: The number is out of range.

    Examples:
        >>> JsonlTrace(candidates=0).records(1000)
        True
    """

    candidates: int = 8

    def __post_init__(self) -> None:
        require_count("candidates", self.candidates, minimum=0)

    def records(self, prompts: int) -> bool:
        """Every run is recorded."""
        return True

    def write(
        self, folder: RunFolder, traces: Mapping[str, Trace], correct: Correct = None
    ) -> None:
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

    Examples:
        >>> HtmlTrace().records(64), HtmlTrace().records(65)
        (True, False)
    """

    prompts: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("prompts", self.prompts)

    def records(self, prompts: int) -> bool:
        """Where the run has no more prompts than that."""
        return prompts <= self.prompts

    def write(
        self, folder: RunFolder, traces: Mapping[str, Trace], correct: Correct = None
    ) -> None:
        """Write `trace.jsonl` and `trace.html`."""
        super().write(folder, traces, correct)
        folder.write_text("trace.html", player(traces, correct))


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
    trace = Trace.of(request, result, model.denoiser.vocab, titles)
    seen = {token for given in trace.fixed for token in given.values()}
    for step in trace.steps:
        seen |= {written.token for written in (*step.commits, *step.edits)}
        seen |= {token for offer in step.candidates for token, _ in offer.pairs}
    pieces = {token: model.tokenizer.decode([token], keep_special=True) for token in sorted(seen)}
    return replace(trace, pieces=pieces)


def player(traces: Mapping[str, Trace], correct: Correct = None) -> str:
    """A page that plays traces of the same prompts in sync; everything it needs is inside.

    Args:
        traces: By the name of their strategy, one or more.
        correct: For each name, whether the answer of each row is right, None where that is not
            known; None for all.
    """
    page = files("dllm_decode.console").joinpath("player.html").read_text(encoding="utf-8")
    parts = [
        f'{{"name": {_json(name)}, "correct": {_json((correct or {}).get(name))}, '
        f'"would": {_json(_would(trace))}, "records": [{",".join(trace.lines())}]}}'
        for name, trace in traces.items()
    ]
    rules = _json([rule.name for rule in USUAL])
    looks = f'"scale": {_json(SCALE)}, "given": {_json(GIVEN)}, "legend": {_json(legend())}'
    data = f'{{"rules": {rules}, {looks}, "traces": [{", ".join(parts)}]}}'
    # inside a script element "</" ends the data and "<!--" changes what ends it; in JSON a "<" only
    # stands in texts, where it may be written like this
    return page.replace("/*TRACE*/[]", data.replace("<", "\\u003c"))


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _would(trace: Trace) -> list[list[list[list[int]]]] | None:
    """Per row, rule and step the columns that would have been committed; None if unknown."""
    if not any(step.candidates for step in trace.steps):
        return None
    return [[would_commit(trace, row, rule) for rule in USUAL] for row in range(len(trace.titles))]
