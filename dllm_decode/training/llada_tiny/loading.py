"""Batches made ahead by other processes, for devices that one process cannot feed."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor

from dllm_decode.console.processes import leave_signals_to_parent
from dllm_decode.training.llada_tiny.batches import Batches, Mixture, TrainingBatch

_made: Batches | None = None  # of this loader process


def _prepare(mixture: Mixture, seed: int, rank: int) -> None:
    global _made
    leave_signals_to_parent()
    _made = Batches(mixture, seed, rank)


def _make(step: int, weights: Mapping[str, float]) -> TrainingBatch:
    assert _made is not None
    return _made.batch(step, weights)


class Loader:
    """Gives the batches of consecutive steps.

    Processes that work ahead use the family weights of the moment a step was ordered. A resumed run
    then equals an uninterrupted one only in distribution.

    Args:
        mixture: How examples are laid out and masked.
        seed: Of the whole run.
        rank: Of the worker that trains on the batches.
        processes: How many work ahead, each of them two steps; 0 makes each batch when it is asked
            for.

    Examples:
        >>> from dllm_decode.problems import TRAINED
        >>> loader = Loader(Mixture(batch_tokens=256), seed=0, rank=0, processes=0)
        >>> loader.batch(0, {name: 1.0 for name in TRAINED}).tokens.dtype
        dtype('int64')
        >>> loader.close()
    """

    def __init__(self, mixture: Mixture, seed: int, rank: int, processes: int) -> None:
        self._own = Batches(mixture, seed, rank)
        self._ahead = 2 * processes
        self._orders: deque[Future[TrainingBatch]] = deque()
        self._next = -1
        self._pool: ProcessPoolExecutor | None = None
        if processes:
            self._pool = ProcessPoolExecutor(
                processes,
                multiprocessing.get_context("spawn"),
                initializer=_prepare,
                initargs=(mixture, seed, rank),
            )

    def batch(self, step: int, weights: Mapping[str, float]) -> TrainingBatch:
        """The batch of one step.

        Args:
            step: One more than at the last call.
            weights: Relative frequency of each family by name.
        """
        if self._pool is None:
            return self._own.batch(step, weights)
        if not self._orders:
            self._next = step
        while len(self._orders) <= self._ahead:
            self._orders.append(self._pool.submit(_make, self._next, dict(weights)))
            self._next += 1
        return self._orders.popleft().result()

    def close(self) -> None:
        """End the processes, if there are any; nothing can be asked for afterwards."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
