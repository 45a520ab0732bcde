"""Where a run stands, and which families it draws from next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dllm_decode.evaluation.problems import FAMILIES

_FORGET = 0.97  # per step, of the counts behind the weights
_FLOOR = 0.1  # every family keeps being drawn: those left out are forgotten
_ERROR = 0.2  # share of wrong tokens from which a family gets full weight
_OPEN = 0.6  # weight of families whose answer is not determined: their errors say little


@dataclass
class Course:
    """What changes during a run besides the tensors; saved with each checkpoint.

    step: updates made; seconds: of training; tokens: seen; measured: exact match was measured so
    often; hits, tries: right tokens and all tokens per family where most of the answer was hidden,
    older steps counting less.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    measured: int = 0
    hits: list[float] = field(default_factory=lambda: [0.0] * len(FAMILIES))
    tries: list[float] = field(default_factory=lambda: [0.0] * len(FAMILIES))

    def note(self, tokens: int, tries: Sequence[float], hits: Sequence[float]) -> None:
        """Add the counts of one step."""
        self.step += 1
        self.tokens += tokens
        self.tries = [_FORGET * old + new for old, new in zip(self.tries, tries, strict=True)]
        self.hits = [_FORGET * old + new for old, new in zip(self.hits, hits, strict=True)]

    def error(self, index: int) -> float:
        """Share of wrong tokens of a family; 1 while too little is known."""
        return 1 - self.hits[index] / self.tries[index] if self.tries[index] > 20 else 1.0

    def weights(self, emphasis: Mapping[str, float]) -> dict[str, float]:
        """How often each family is drawn: a floor for all, more where the errors are.

        emphasis: factor for families by name, 1 where absent.
        """
        weights = {}
        for index, family in enumerate(FAMILIES.values()):
            need = min(1.0, self.error(index) / _ERROR) if family.determined else _OPEN
            weights[family.name] = (_FLOOR + need) * emphasis.get(family.name, 1.0)
        return weights
