"""Watching a decode, and what is raised when it is interrupted."""

from __future__ import annotations

from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.types import Change, Request, Snapshot


class Observer:
    """Watches a decode; override what you need.

    Raising from an observer ends the decode; under an engine (`batch_size`), where no row is to
    suffer for another, it ends that of the rows in the batch, which are decoded again, each alone.

    A change can be kept and used like any other value. The tensors of a snapshot are those of the
    loop, which runs in inference mode: clone what a gradient is to flow through later.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> class Counting(Observer):
        ...     def step(self, change, snapshot):
        ...         print(int(change.commit.sum()), "committed")
        >>> world = Copy(n=3)
        >>> world.answer(TopK(2), "abc", observers=(Counting(),))
        2 committed
        2 committed
        ('abc', 2)
    """

    def start(self, request: Request, snapshot: Snapshot) -> None:
        """Called when rows join: once before the first pass, more often under an engine."""

    def step(self, change: Change, snapshot: Snapshot) -> None:
        """Called after each step; `snapshot` has the rows `change.rows` after the step."""

    def finish(self, result: Result) -> None:
        """Called once with the result, also when the decode was interrupted."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a decode; `result` holds what was decided, finish reason `interrupted`.

    Examples:
        >>> issubclass(Interrupted, KeyboardInterrupt)
        True
    """

    def __init__(self, result: Result) -> None:
        super().__init__("decoding was interrupted")
        self.result = result
