"""Cache policies: which columns a forward pass recomputes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dllm_decode.types import Board, Change, Memory, Request


@dataclass(frozen=True)
class Plan:
    """The work of one forward pass.

    columns: (B, Q) canvas columns to recompute, -1 for none, or None for all live columns.
    """

    columns: Tensor | None = None


class CachePolicy(ABC):
    """Chooses the columns to recompute. `exact`: same logits as recomputing everything."""

    exact: ClassVar[bool] = False

    def begin(self, request: Request, board: Board) -> Memory | None:
        """The memory of one request; see `Part.begin`."""
        return None

    @abstractmethod
    def plan(self, board: Board, index: Tensor, memory: Any) -> Plan:
        """The plan for a forward pass that must give fresh logits at index (B, W)."""

    def note(self, change: Change, memory: Any) -> None:
        """Learn what a step changed: the single place where cached columns become stale."""
        return


@dataclass(frozen=True)
class NoCache(CachePolicy):
    """Recompute every live column in every step; exact."""

    exact: ClassVar[bool] = True

    def plan(self, board: Board, index: Tensor, memory: Any) -> Plan:
        """All live columns."""
        return Plan(columns=None)
