"""One line that says how far a sweep is: "job 9 of 24, about 12 min left"."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median

from rich.console import RenderableType
from rich.text import Text

from dllm_decode.console.display import Display


@dataclass(frozen=True)
class Hushed(Display):
    """The display of one job of a sweep: what it says stands behind the line of the sweep.

    Attributes:
        tell: Takes the last thing said.

    Examples:
        >>> from rich.console import Console
        >>> said = []
        >>> Hushed("none", Console(), tell=said.append).say("3 of 10")
        >>> said
        ['3 of 10']
    """

    tell: Callable[[str], None] = lambda text: None

    def say(self, text: str, style: str | None = None) -> None:
        self.tell(text.strip().split("\n")[0])

    def paragraph(self, text: str, style: str | None = None) -> None:
        pass

    def show(self, thing: RenderableType) -> None:
        pass


class SweepLine:
    """Tells of the jobs of a sweep: repainted in a terminal, else a line per job.

    Args:
        total: How many there are.
        clock: Seconds, for tests.

    Examples:
        >>> SweepLine(24).title(0, ["strategy=credit"])
        'job 1 of 24: strategy=credit'
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.clock = clock
        self._seconds: list[float] = []  # that each job took

    def title(self, number: int, overrides: Sequence[str]) -> str:
        """What a job is called while it runs.

        Args:
            number: Of the job, from 0.
            overrides: That make it up.
        """
        left = ""
        if self._seconds:
            # the first job loads the model, and jobs that are done already take no time
            pace = median(self._seconds[1:] or self._seconds)
            left = f", about {_time(pace * (self.total - number))} left"
        return f"job {number + 1} of {self.total}{left}: {' '.join(overrides)}"

    @contextmanager
    def job(self, display: Display, number: int, overrides: Sequence[str]) -> Iterator[Display]:
        """The display of a job while it runs.

        Args:
            display: Of the sweep.
            number: Of the job, from 0.
            overrides: That make it up.
        """
        title = self.title(number, overrides)
        room = display.console.width - 3  # beside the spinner
        status = display.console.status(_line(title, room)) if display.mode == "live" else None
        if status is None:
            display.say(title)

        def tell(text: str) -> None:
            if status is not None:
                status.update(_line(f"{title} | {text}", room))

        begin = self.clock()
        with status or nullcontext():
            yield Hushed("none", display.console, tell=tell)
        self._seconds.append(self.clock() - begin)


def _line(text: str, room: int) -> Text:
    """A text in one line: what does not fit is cut."""
    return Text(text if len(text) <= room else f"{text[: room - 1]}…")


def _time(seconds: float) -> str:
    """A time as people say it: "40 s", "12 min", "3 h"."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{round(seconds / 3600)} h"
