"""What goes back to the harness: answers that carry their cost, and the sums over a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class Answer(str):
    """A text that carries what its decode cost through the harness.

    It is an ordinary string: what its methods, slices and filters make of it is plain, and lacks
    the cost, so read that in a task's `process_results`. Copies, pickles and the harness's answer
    cache keep it.

    Args:
        text: The answer.
        stats: `forwards`, `tokens` (of the text), `slots` (columns decoded), `finish_reason`, and
            where there is something to say `context_cut` (tokens of the context that were left
            out) and `error` (why there is no answer). None for an answer that nobody decoded.

    >>> Answer("4", {"forwards": 2}).stats
    {'forwards': 2}
    """

    stats: dict[str, Any]

    def __new__(cls, text: object = "", stats: Mapping[str, Any] | None = None) -> Answer:
        made = super().__new__(cls, text)
        made.stats = dict(stats or {})
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Answer, (str(self), self.stats)


@dataclass
class Cost:
    """What the answers of one task cost together.

    Attributes:
        requests: Answers that were decoded; those from an answer cache are not counted.
        forwards: Forward passes.
        tokens: Tokens of their texts.
        contexts_cut: Requests whose context was too long and lost its beginning.
        failed: Requests that got an empty answer because they could not be decoded.

    Examples:
        >>> Cost().tokens_per_forward
        0.0
    """

    requests: int = 0
    forwards: int = 0
    tokens: int = 0
    contexts_cut: int = 0
    failed: int = 0

    def add(self, stats: Mapping[str, Any]) -> None:
        """Count one more answer."""
        self.requests += 1
        self.forwards += stats["forwards"]
        self.tokens += stats["tokens"]
        self.contexts_cut += "context_cut" in stats
        self.failed += "error" in stats

    @property
    def tokens_per_forward(self) -> float:
        """Tokens of all texts by all forward passes; 0 without any."""
        return self.tokens / self.forwards if self.forwards else 0.0
