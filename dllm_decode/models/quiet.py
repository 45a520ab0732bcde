"""Silence around transformers: its bars and warnings say nothing that a person here needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def transformers_output(*, progress: bool) -> Iterator[None]:
    """Silence what transformers prints; its bars stay for checkpoints that take a while.

    Its warnings about tensors are errors here, and those about generation settings do not apply.
    """
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not progress:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
