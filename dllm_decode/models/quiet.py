"""Silence around transformers: its bars and warnings say nothing that a person here needs."""

from __future__ import annotations

import logging as standard
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# transformers loads with settings of the whole process (the default dtype, its own verbosity), so
# threads take turns; re-entrant, as one loading may be part of another
_ONE_AT_A_TIME = threading.RLock()
# torchao, which transformers imports where it is installed, warns of kernels for other machines
_NEIGHBOURS = ("torchao", "torch.utils._pytree")


@contextmanager
def transformers_output(*, progress: bool) -> Iterator[None]:
    """Silence what transformers prints, one thread at a time.

    Its warnings about tensors are errors here, and those about generation settings do not apply.

    Args:
        progress: Keep its bars, for checkpoints that take a while.
    """
    from transformers.utils import logging

    with _ONE_AT_A_TIME:
        level = logging.get_verbosity()
        bars = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        levels = {name: standard.getLogger(name).level for name in _NEIGHBOURS}
        for name in _NEIGHBOURS:
            standard.getLogger(name).setLevel(standard.ERROR)
        if not progress:
            logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            for name, before in levels.items():
                standard.getLogger(name).setLevel(before)
            if bars:
                logging.enable_progress_bar()
