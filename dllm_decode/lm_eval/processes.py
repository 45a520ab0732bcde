"""Sharing the requests of an evaluation among several processes (torchrun)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from omegaconf import DictConfig
from torch import distributed

from dllm_decode.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """The processes that share the requests; each has a model of its own.

    Attributes:
        rank: Number of this one, from 0.
        size: How many there are.
        device: Where this one's model goes, None for no choice.

    Examples:
        >>> Processes(rank=1, size=4).rank
        1
    """

    rank: int = 0
    size: int = 1
    device: str | None = None

    @classmethod
    def of_environment(cls, cfg: DictConfig) -> Processes:
        """What the launcher said in `RANK`, `WORLD_SIZE` and `LOCAL_RANK`.

        With `model.tensor_parallel` all processes share one model, and every one of them gets all
        requests.

        Raises:
            ConfigError: Where the launcher's variables are not whole numbers that belong together.
        """
        size = _number("WORLD_SIZE", 1)
        if size <= 1 or cfg.model.get("tensor_parallel") is not None:
            return cls()
        rank, local = _number("RANK", 0), _number("LOCAL_RANK", 0)
        if not 0 <= rank < size:
            raise ConfigError(f"RANK must lie in [0, {size - 1}] (WORLD_SIZE {size}), got {rank}")
        if "MASTER_ADDR" not in os.environ:
            raise ConfigError(
                f"WORLD_SIZE is {size}, but MASTER_ADDR is not set: start the processes with "
                "torchrun, or unset WORLD_SIZE"
            )
        if not distributed.is_initialized():
            # counts and samples are exchanged, no tensors of the model; a process may have to wait
            # for the others as long as they decode
            distributed.init_process_group("gloo", timeout=timedelta(weeks=52))
        return cls(rank, size, f"cuda:{local}" if torch.cuda.is_available() else None)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, one behind the other."""
        if self.size == 1:
            return tensor
        found = [torch.zeros_like(tensor) for _ in range(self.size)]
        distributed.all_gather(found, tensor)
        return torch.stack(found) if tensor.dim() == 0 else torch.cat(found)

    def gather_object(self, value: Any, to: int = 0) -> list[Any] | None:
        """The values of all processes on process `to`, None elsewhere."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.rank == to else None
        distributed.gather_object(value, found, dst=to)
        return found


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name}, which the launcher sets, must be a whole number, got {text!r}")
    return int(text)
