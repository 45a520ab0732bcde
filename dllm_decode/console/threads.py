"""How many threads a processor computes with: timed on the loaded model, not guessed.

Threads share out one product and then wait for each other by spinning. On free cores that pays for
all but the smallest models; beside other work the same threads wait for cores that they are kept
from, and a pass takes ten times as long as with one.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm_decode.models.loaded import LoadedModel

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_THREAD_LIMIT")
_COLUMNS = 64  # of the pass that is timed
_LARGEST = 10**8  # numbers in a body; a larger one always gains by threads, and takes long to time
_GAIN = 0.95  # of the time with one thread that several have to beat
_SLOWER = 3.0  # times the usual pass, for the choice to be made again
_PASSES = 8  # of which the median counts


def chosen_by_user() -> str:
    """The environment variable that sets the number of threads, "" where none does."""
    return next((name for name in VARIABLES if os.environ.get(name)), "")


@dataclass
class ThreadWatch:
    """Chooses the number of threads, and again when passes have become several times slower.

    Attributes:
        timed: Seconds of one pass with a number of threads, and what nobody waits longer for.
        use: Makes torch use a number of threads.
        most: The number that torch would use by itself.
        say: Takes what was found, in one line.
        fixed: What a pass costs however little it holds, in columns; see `PassCost`.
        why: The times that decided.

    Examples:
        >>> used, times = [], {1: 0.010, 4: 0.004}
        >>> watch = ThreadWatch(lambda n, most: times[n], used.append, most=4, say=print)
        >>> watch.choose()
        4 threads: a pass takes 4.0 ms, with 1 it takes 10.0 ms
        >>> used
        [4]
    """

    timed: Callable[[int, float], float]
    use: Callable[[int], None]
    most: int
    say: Callable[[str], None]
    fixed: float = 0.0
    why: str = ""
    _usual: float = 0.0
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=_PASSES))

    def choose(self) -> None:
        """Time a pass with one thread and with all; the faster stays."""
        one = self.timed(1, math.inf)
        all_ = self.timed(self.most, _SLOWER * one)
        best = self.most if all_ < _GAIN * one else 1
        self.use(best)
        taken, other = (all_, one) if best > 1 else (one, all_)
        word = "thread" if best == 1 else "threads"
        self.why = (
            f"{best} {word}: a pass takes {1e3 * taken:.1f} ms, with "
            f"{self.most if best == 1 else 1} it takes {1e3 * other:.1f} ms"
        )
        self._usual = 0.0
        self._recent.clear()
        self.say(self.why)

    def __call__(self, columns: int, seconds: float) -> None:
        """Take in a pass of the decode.

        Args:
            columns: Of all its rows.
            seconds: It took, on the wall.
        """
        self._recent.append(seconds / (self.fixed + columns))
        if len(self._recent) < _PASSES:
            return
        now = statistics.median(self._recent)
        if not self._usual:
            self._usual = now
        elif now > _SLOWER * self._usual:
            self.choose()


def timed_threads(loaded: LoadedModel, say: Callable[[str], None]) -> LoadedModel:
    """The model, computing with as many threads as are fastest now and watching that they stay so.

    It is left as it is on a GPU, with one core, where it is no transformers model or too large to
    be timed, and where the user has set the number of threads (see `chosen_by_user`).

    Args:
        loaded: The model.
        say: Takes what was found, in one line.
    """
    import torch

    from dllm_decode.models.adapter import TransformersDenoiser
    from dllm_decode.models.grouping import PassCost

    denoiser, most = loaded.denoiser, torch.get_num_threads()
    if most < 2 or chosen_by_user() or not isinstance(denoiser, TransformersDenoiser):
        return loaded
    if denoiser.device.type != "cpu" or loaded.description.parameters > _LARGEST:
        return loaded
    width = min(_COLUMNS, denoiser.max_length or _COLUMNS)
    tokens = torch.zeros(1, width, dtype=torch.long)

    def seconds_with(threads: int, most: float) -> float:
        torch.set_num_threads(threads)
        found: list[float] = []
        while len(found) < 4 and (not found or found[-1] <= most):
            begin = time.perf_counter()
            denoiser.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool), complete=True)
            found.append(time.perf_counter() - begin)
        return statistics.median(found[1:] or found)  # the first one starts the threads

    fixed = PassCost.of(denoiser.model).fixed
    watch = ThreadWatch(seconds_with, torch.set_num_threads, most, say, fixed)
    watch.choose()
    return replace(loaded, denoiser=replace(denoiser, watch=watch))
