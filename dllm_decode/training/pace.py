"""How fast a training learns, how long it lasts, and how often it saves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dllm_decode.errors import require, require_count, require_in_range


@dataclass(frozen=True)
class Pace:
    """How fast a training learns, how long it lasts, and how often it saves.

    Attributes:
        steps: Updates in all.
        rate: Highest learning rate of AdamW, (0, 1].
        warmup: Updates until the rate is at its highest.
        flat: Share of the updates before the rate falls in a straight line, [0, 1].
        final: What is left of the rate at the end, as a share, [0, 1].
        betas: Of AdamW, two numbers in [0, 1).
        weight_decay: Of AdamW, [0, 1].
        clip: Largest norm of the gradient, more than 0.
        log_every: Updates between two lines of the log.
        checkpoint_minutes: Minutes between two checkpoints, 0 or more.
        halt: If not 0, stop after this many updates in all, as an interruption would.

    Raises:
        ConfigError: A value is out of range.

    Examples:
        >>> pace = Pace(steps=100, warmup=10, flat=0.5, final=0.0)
        >>> [round(pace.share(step), 2) for step in (0, 9, 49, 75, 99)]
        [0.1, 1.0, 1.0, 0.5, 0.02]
    """

    steps: int
    rate: float = 1e-3
    warmup: int = 30
    flat: float = 0.5
    final: float = 0.05
    betas: Sequence[float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 1.0
    log_every: int = 20
    checkpoint_minutes: float = 2.0
    halt: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "warmup", "log_every"):
            require_count(f"task.{name}", getattr(self, name))
        require_count("task.halt", self.halt, minimum=0)
        require_in_range("task.rate", self.rate, 0.0, 1.0, open_low=True)
        for name in ("flat", "final", "weight_decay"):
            require_in_range(f"task.{name}", getattr(self, name), 0.0, 1.0)
        require(len(self.betas) == 2, f"task.betas must be two numbers, got {list(self.betas)}")
        for beta in self.betas:
            require_in_range("task.betas", beta, 0.0, 1.0, open_high=True)
        require_in_range("task.clip", self.clip, 0.0, math.inf, open_low=True)
        require_in_range(
            "task.checkpoint_minutes", self.checkpoint_minutes, 0, 100_000, unit="minutes"
        )

    def share(self, step: int) -> float:
        """Share of the highest learning rate at an update, (0, 1].

        Args:
            step: Its number, from 0.
        """
        fall = self.steps * (1 - self.flat)
        behind = max(0.0, step - self.steps * self.flat)
        left = 1.0 - (1.0 - self.final) * behind / fall if fall else 1.0
        return min(1.0, (step + 1) / self.warmup) * left
