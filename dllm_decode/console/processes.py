"""Signals and child processes: whatever ends the command line ends all of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED, TERMINATED = 130, 143  # exit codes: 128 + SIGINT, 128 + SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM; a task does for it what it does for Ctrl-C.

    Examples:
        >>> issubclass(Terminated, KeyboardInterrupt)
        True
    """


@contextmanager
def termination_as_interrupt() -> Iterator[list[int]]:
    """Let SIGTERM, as job schedulers and `kill` send it, end a run as Ctrl-C does: in order.

    Yields the signals that came so far. Does nothing outside of the main thread, which alone may
    handle signals, or where the program has a handler of its own.
    """
    caught: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) == 1:  # partial results are being written when a second one comes
            raise Terminated

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield caught
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def ended_in_order(run: Callable[[], int]) -> int:
    """Run a command; Ctrl-C and SIGTERM end it with its child processes and one word.

    Args:
        run: Gives the exit code.

    Returns:
        Its exit code, or 130 for Ctrl-C and 143 for SIGTERM.
    """
    with termination_as_interrupt() as signals:
        try:
            code = run()
        except KeyboardInterrupt as stop:
            end_children()
            print("interrupted", file=sys.stderr)
            code = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
        return TERMINATED if code == INTERRUPTED and signals else code


@contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of being interrupted; a second one interrupts at once.

    For work that must not stop between two steps. Yields the signals that came so far.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) > 1:
            raise_for(caught)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_for(caught: list[int]) -> None:
    """Raise the exception that belongs to the first of some signals, if there is one."""
    if caught:
        raise Terminated if caught[0] == signal.SIGTERM else KeyboardInterrupt


def leave_signals_to_parent() -> None:
    """In a child process: the parent decides when to stop, and the child ends with it at last.

    A terminal sends Ctrl-C to all processes, `kill` to one; either way the parent stops the others
    in order. When the parent dies without a word (SIGKILL), so does the child.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """In a child process: end when the parent does, whatever ended it."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def end_children() -> None:
    """End all child processes of this one that are still there."""
    for child in multiprocessing.active_children():
        child.kill()
        child.join(5)
