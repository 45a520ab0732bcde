"""Random numbers that a reference run recorded, given back in place of the loop's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.sampling import Categorical, Sampler
from dllm_decode.decoding.strategy import Progress, Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.kernels.noise import Noise

# A short run, one of several blocks and one of a long block of every case; the rest is slow.
IN_EVERY_SUITE = (0, 1, 4)


def marks_of(number: int) -> tuple[pytest.MarkDecorator, ...]:
    """The marks of a case's run, by its number."""
    return () if number in IN_EVERY_SUITE else (pytest.mark.slow,)


@dataclass(frozen=True)
class RecordedNoise(Noise):
    """Uniform numbers by step and generated column: table (S, G), or (S, G, V) for token ids."""

    table: Tensor

    def uniform(self, stream: int = Noise.POSITIONS) -> Tensor:
        return self._recorded()

    def _recorded(self) -> Tensor:
        return self.table[self.step[:, None], self.index].double()

    @staticmethod
    def instead_of(noise: Noise, table: Tensor) -> RecordedNoise:
        return RecordedNoise(noise.seeds, noise.step, noise.index, table)


@dataclass(frozen=True)
class Replayed(Strategy):
    """A strategy that sees recorded numbers instead of fresh ones."""

    inner: Strategy
    table: Tensor

    @property
    def progress(self) -> Progress:
        return self.inner.progress

    def decide(self, view: StepView, memory: Any) -> Decision:
        noise = RecordedNoise.instead_of(view.noise, self.table)
        return self.inner.decide(replace(view, noise=noise), memory)


@dataclass(frozen=True)
class ReplayedSampler(Sampler):
    """A categorical sampler whose Gumbel noise comes from recorded uniform numbers."""

    categorical: Categorical
    table: Tensor

    def predict(self, logits: Tensor, banned: Tensor, noise: Noise) -> Prediction:
        number = RecordedNoise.instead_of(noise, self.table).uniform()

        def draw(prediction: Prediction) -> Tensor:
            tempered = self.categorical.truncated(prediction.logits).double()
            return (tempered - (-number.log()).log()).argmax(-1)

        return Prediction.of(logits, banned, draw)


def by_step(steps: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    """Recorded rows (K, V) as a table (S, G, V); 0.5 where nothing was recorded."""
    table = torch.full((int(steps.max()) + 1, width, values.shape[1]), 0.5, dtype=values.dtype)
    table[steps.long(), columns.long()] = values
    return table
