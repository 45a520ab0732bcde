"""Where a run stands, and which families it draws from next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dllm_decode.errors import CheckpointError
from dllm_decode.problems import TRAINED

_FORGET = 0.97  # per step, of the counts behind the weights
_FLOOR = 0.1  # every family keeps being drawn: those left out are forgotten
_ERROR = 0.2  # share of wrong tokens from which a family gets full weight
_OPEN = 0.6  # weight of families whose answer is not determined: their errors say little


@dataclass
class Course:
    """What changes during a run besides the tensors; saved with each checkpoint.

    Attributes:
        step: Updates done.
        seconds: Of training.
        tokens: Seen so far.
        measured: How often exact match has been measured.
        hits: Right tokens per family where most of the answer was hidden, older steps counting
            less; by name, so that a run can go on when families are added.
        tries: All such tokens per family.

    Examples:
        >>> course = Course()
        >>> course.note(4096, tries=[30.0] * len(TRAINED), hits=[24.0] * len(TRAINED))
        >>> round(course.error("copy"), 3)
        0.2
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    measured: int = 0
    hits: dict[str, float] = field(default_factory=dict)
    tries: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Course:
        """What a checkpoint says; raises `CheckpointError` where that is something else."""
        try:
            return cls(**record)
        except TypeError as error:
            raise CheckpointError(f"the checkpoint's course cannot be read: {error}") from None

    def note(self, tokens: int, tries: Sequence[float], hits: Sequence[float]) -> None:
        """Add the counts of one step.

        Args:
            tokens: In the batches of all workers.
            tries: Tokens where most of the answer was hidden, per family in the order of `TRAINED`.
            hits: Those of them that were right.
        """
        self.step += 1
        self.tokens += tokens
        for counts, more in ((self.tries, tries), (self.hits, hits)):
            for name, new in zip(TRAINED, more, strict=True):
                counts[name] = _FORGET * counts.get(name, 0.0) + new

    def error(self, name: str) -> float:
        """Share of wrong tokens of a family; 1 while too little is known.

        Args:
            name: Of the family.
        """
        tries = self.tries.get(name, 0.0)
        return 1 - self.hits[name] / tries if tries > 20 else 1.0

    def weights(
        self, emphasis: Mapping[str, float], curriculum: Mapping[str, float]
    ) -> dict[str, float]:
        """How often each family is drawn: a floor for all, more where the errors are.

        Args:
            emphasis: Factor for families by name, 1 where absent.
            curriculum: Millions of tokens before a family is drawn for the first time, by name.
        """
        weights = {}
        for family in TRAINED.values():
            need = min(1.0, self.error(family.name) / _ERROR) if family.determined else _OPEN
            begun = self.tokens >= 1e6 * curriculum.get(family.name, 0.0)
            weights[family.name] = begun * (_FLOOR + need) * emphasis.get(family.name, 1.0)
        return weights
