"""What a person sees of a training run: a progress bar, or plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

_PLAIN_EVERY = 60.0  # seconds between lines without a terminal


class Reporter:
    """Shows the lines of the training log as they come.

    Args:
        display: `auto` and `live` show a bar in a terminal, `plain` prints lines, `none` is silent.

    Examples:
        >>> Reporter("plain") is not None
        True
    """

    def __init__(self, display: str) -> None:
        self.console = Console(quiet=display == "none", markup=False, emoji=False)
        self._live = display in ("auto", "live") and self.console.is_terminal
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last = -_PLAIN_EVERY

    def __enter__(self) -> Reporter:
        """Start the bar where there is a terminal."""
        if self._live:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=self.console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=1.0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the bar, also on errors."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, line: Mapping[str, object]) -> None:
        """Show one line of the log.

        Args:
            line: As `curves.jsonl` has it.
        """
        exact = line.get("exact_match")
        if isinstance(exact, Mapping):
            self.console.print(self._table(line, exact))
            return
        text = (
            f"step {line['step']}  {line['tokens']:,} tokens  {line['tokens_per_second']:,}/s  "
            f"loss {line['loss']}  rate {line['rate']}"
        )
        if self._bar is not None:
            done = line["progress"]
            assert isinstance(done, float)
            self._bar.update(self._task, completed=done, description=text)
        elif time.monotonic() - self._last >= _PLAIN_EVERY:
            self._last = time.monotonic()
            self.console.print(text, highlight=False)

    @staticmethod
    def _table(line: Mapping[str, object], exact: Mapping[str, float]) -> Table:
        table = Table(
            title=f"exact match after {line['minutes']} minutes, {line['tokens']:,} tokens"
        )
        table.add_column("family")
        table.add_column("%", justify="right")
        for name, share in exact.items():
            table.add_row(name, f"{100 * share:.0f}")
        return table
