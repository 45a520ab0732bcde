"""The processes that train one model together, one per device.

They are started by `accelerate launch --num_processes 4 -m dllm_decode task=distill ...`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dllm_decode.errors import ConfigError


@dataclass(frozen=True)
class Devices:
    """What a process knows of the others.

    Attributes:
        rank: Its number.
        count: How many there are.
        state: accelerate's, None for a process that trains alone.

    Examples:
        >>> alone = Devices()
        >>> alone.first, alone.mine(["a", "b"])
        (True, ['a', 'b'])
    """

    rank: int = 0
    count: int = 1
    state: Any = None

    @staticmethod
    def found() -> Devices:
        """Those that `accelerate launch` has started; a process alone where it was not used.

        Raises:
            ConfigError: There are several processes, and accelerate is not installed.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return Devices()
        try:
            from accelerate import PartialState
        except ModuleNotFoundError:
            raise ConfigError(
                "training in several processes needs the package accelerate; "
                "pip install 'dllm_decode[multi]'"
            ) from None
        state = PartialState()
        return Devices(state.process_index, state.num_processes, state)

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def mine(self, rows: list[Any]) -> list[Any]:
        """This process's share of the rows of a batch."""
        return rows[self.rank :: self.count]

    def wait(self) -> None:
        """Until all have come here."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def mean(self, flat: Tensor) -> Tensor:
        """The mean of a vector over all processes."""
        if self.state is None:
            return flat
        torch.distributed.all_reduce(flat)
        return flat / self.count
