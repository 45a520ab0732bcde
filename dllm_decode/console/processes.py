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


# What ends a program from outside: `kill` and job schedulers, and a terminal that goes.
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP; a task does for it what it does for Ctrl-C.

    Examples:
        >>> issubclass(Terminated, KeyboardInterrupt)
        True
    """


@contextmanager
def termination_as_interrupt() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP, as `kill` and a closed terminal send them, end a run in order.

    Yields the signals that came so far. Does nothing outside of the main thread, which alone may
    handle signals, or where the program has a handler of its own (`nohup` ignores SIGHUP).
    """
    caught: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) == 1:  # partial results are being written when a second one comes
            raise Terminated

    main = threading.current_thread() is threading.main_thread()
    ours = [n for n in _ENDING if main and signal.getsignal(n) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield caught
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def ended_in_order(run: Callable[[], int]) -> int:
    """Run a command; Ctrl-C and SIGTERM end it with its child processes and one word.

    Args:
        run: Gives the exit code.

    Returns:
        Its exit code, or 130 for Ctrl-C, 143 for SIGTERM and 129 for SIGHUP.
    """
    with termination_as_interrupt() as signals:
        try:
            code = run()
        except KeyboardInterrupt as stop:
            end_children()
            print("interrupted", file=sys.stderr)
            code = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
        ended = signals and code in (INTERRUPTED, TERMINATED)
        return 128 + signals[0] if ended else code


@contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP instead of being interrupted by the first of them.

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
    # nohup ignores SIGHUP for good; a SIGINT that a shell ignores for its background jobs counts
    ignored = {number for number in _ENDING if signal.getsignal(number) is signal.SIG_IGN}
    numbers = {signal.SIGINT, *_ENDING} - ignored
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_for(caught: list[int]) -> None:
    """Raise the exception that belongs to the first of some signals, if there is one."""
    if caught:
        raise KeyboardInterrupt if caught[0] == signal.SIGINT else Terminated


def leave_signals_to_parent() -> None:
    """In a child process: the parent decides when to stop, and the child ends with it at last.

    A terminal sends Ctrl-C to all processes, `kill` to one; either way the parent stops the others
    in order. When the parent dies without a word (SIGKILL), so does the child.
    """
    for number in (signal.SIGINT, *_ENDING):
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
