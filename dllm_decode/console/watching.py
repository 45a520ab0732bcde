"""Observers that feed the display; kept apart from it because they need torch."""

from __future__ import annotations

import time
from collections.abc import Callable

from dllm_decode.console.display import CanvasView
from dllm_decode.decoding.observer import Observer
from dllm_decode.decoding.types import Change, Snapshot


class CanvasObserver(Observer):
    """Copies the generated columns into a view after each step.

    Attributes:
        view: What is drawn.
        pause: Seconds to wait after each step, so that an eye can follow.
        seconds: Time spent here, so that timings of the decode can leave it out.

    Examples:
        >>> from dllm_decode.console.display import CanvasView
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> world = Copy(n=3)
        >>> view = CanvasView(["abc"], piece=lambda token: world.tokenizer.decode([token]))
        >>> _ = world.answer(TopK(2), "abc", observers=(CanvasObserver(view),))
        >>> view.line(0)
        'step   2 | abc'
    """

    def __init__(self, view: CanvasView, pause: float = 0.0) -> None:
        self.view = view
        self.pause = pause
        self.seconds = 0.0

    def step(self, change: Change, snapshot: Snapshot) -> None:
        """The canvases of all rows that took part in the step."""
        begin = time.perf_counter()
        tokens, decided = snapshot.tokens.tolist(), snapshot.decided.tolist()
        horizon, steps = snapshot.horizon.tolist(), change.step.tolist()
        sure: dict[int, dict[int, float]] = {}
        places = change.written.nonzero()
        columns = change.index[change.written].tolist()
        values = change.confidence[change.written].tolist()
        for (position, _), column, value in zip(places.tolist(), columns, values, strict=True):
            sure.setdefault(position, {})[column] = value
        for position, row in enumerate(change.rows.tolist()):
            span = range(snapshot.start, horizon[position])
            cells = [tokens[position][c] if decided[position][c] else None for c in span]
            self.view.update(row, steps[position], cells, sure.get(position))
        if self.pause:
            time.sleep(self.pause)
        self.seconds += time.perf_counter() - begin


class ProgressObserver(Observer):
    """Reports how many columns need no more work.

    Args:
        columns: Of all rows together.
        report: Takes the number that is done so far.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> done = []
        >>> _ = Copy(n=3).answer(TopK(2), "abc", observers=(ProgressObserver(4, done.append),))
        >>> done
        [2, 4]
    """

    def __init__(self, columns: int, report: Callable[[float], None]) -> None:
        self.columns = columns
        self.report = report
        self.left: dict[int, int] = {}
        self.entered = 0
        self.seconds = 0.0

    def step(self, change: Change, snapshot: Snapshot) -> None:
        """Count what is left in the rows of this step."""
        begin = time.perf_counter()
        for position, row in enumerate(change.rows.tolist()):
            if row not in self.left:
                self.entered += int(snapshot.end[position]) - snapshot.start
            self.left[row] = int(snapshot.undecided[position].sum())
        self.report(self.entered - sum(self.left.values()))
        self.seconds += time.perf_counter() - begin
