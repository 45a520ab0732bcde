"""One canvas and its model, for published loops that are written down again for a single row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dllm_decode.decoding.cache import Plan


@dataclass
class Canvas:
    """One row and its model: `tokens` shrinks where the row is cut, -1 in `step_of` is open."""

    model: Any
    prompt: tuple[int, ...]
    length: int
    tokens: list[int] = field(init=False)
    step_of: list[int] = field(init=False)
    passes: int = 0

    def __post_init__(self) -> None:
        self.tokens = [*self.prompt, *[self.model.vocab.mask_id] * self.length]
        self.step_of = [-1] * self.length

    def __len__(self) -> int:
        return len(self.tokens) - len(self.prompt)

    def open(self, begin: int = 0, end: int | None = None) -> list[int]:
        end = len(self) if end is None else min(end, len(self))
        return [column for column in range(begin, end) if self.step_of[column] < 0]

    def distributions(self) -> Tensor:
        """What the model predicts at every generated column without the mask id, (G, V) float64."""
        tokens = torch.tensor([self.tokens])
        index = torch.arange(len(self.prompt), tokens.shape[1])[None]
        plan = Plan(start=len(self.prompt))
        logits = self.model(tokens, torch.ones_like(tokens).bool(), index, plan)[0].double()
        logits[:, list(self.model.vocab.never_generated)] = -math.inf
        self.passes += 1
        return logits.softmax(-1)

    def predict(self) -> tuple[list[int], list[float], list[float]]:
        """Most likely token, its probability, and the entropy, at every generated column."""
        p = self.distributions()
        entropy = torch.special.entr(p).sum(-1)
        return p.argmax(-1).tolist(), p.amax(-1).tolist(), entropy.tolist()

    def commit(self, columns: list[int], tokens: list[int]) -> None:
        for column in columns:
            self.tokens[len(self.prompt) + column] = tokens[column]
            self.step_of[column] = self.passes - 1

    def cut_behind(self, column: int) -> None:
        del self.tokens[len(self.prompt) + column + 1 :]

    def blocks(self, length: int) -> Iterator[tuple[int, int]]:
        begin = 0
        while begin < len(self):
            yield begin, begin + length
            begin += length


def surest(columns: list[int], scores: list[float], count: int) -> list[int]:
    return sorted(columns, key=lambda column: (-scores[column], column))[:count]
