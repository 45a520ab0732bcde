"""Uncode (PC-Sampler): from the left, and rare words before common ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from dllm_decode.decoding.selection import best
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, Memory, Request, Snapshot, StepView
from dllm_decode.errors import ConfigError, require_count, require_in_range
from dllm_decode.models.frequencies import TokenFrequencies
from dllm_decode.strategies.fixed import scheduled

SMALLEST = 1e-9  # added to every frequency, as released


@dataclass
class FrequencyMemory(Memory):
    """What is needed in every step.

    Attributes:
        table: frequencies on the device of the request.
    """

    table: TokenFrequencies


@dataclass(frozen=True)
class Uncode(Strategy):
    """Commit the best n(s) positions by confidence, surprise of the token, and place.

        score(i) = exp(-decay * place(i)) * min(ceiling, -c(i) * log(f(x_i) + 1e-9))

    with c the probability of the proposal x, f its share in a text, place counted from the first
    column of the window, and n(s) the count of LLaDA's linear schedule, 1 without
    `steps_per_block`. A confident but common word ("the", a line break) waits.

    Source: PC-Sampler, arXiv 2508.13021, renamed Uncode; released code. Use schedule=whole, as
    released.

    Args:
        frequencies: JSON file of `task=token_frequencies`, or `bundled:NAME`.
        decay: lambda, how fast the score falls with the place [1 / column], 0 or more; 0 for no
            preference.
        ceiling: alpha, largest value of the second factor [nats], above 0.
        steps_per_block: S, forward passes per window; None for one position per pass.

    Raises:
        ConfigError: for values out of range.
        CheckpointError: for a table that cannot be read.

    Examples:
        >>> round(float(Uncode().table.share.sum()), 4)  # shares of the bundled model's tokens
        1.0
    """

    frequencies: str = "bundled:llada-tiny"
    decay: float = 0.25
    ceiling: float = 10.0
    steps_per_block: int | None = None

    def __post_init__(self) -> None:
        require_in_range("decay", self.decay, 0.0, 1e6)
        require_in_range("ceiling", self.ceiling, 0.0, 1e6, open_low=True)
        if self.steps_per_block is not None:
            require_count("steps_per_block", self.steps_per_block)
        _ = self.table

    @cached_property
    def table(self) -> TokenFrequencies:
        """The frequencies, read once."""
        return TokenFrequencies.load(self.frequencies)

    def begin(self, request: Request, snapshot: Snapshot) -> FrequencyMemory:
        """The table on the device; refuses one of another vocabulary."""
        counted, size = self.table.share.numel(), snapshot.vocab.size
        if counted != size:
            raise ConfigError(
                f"frequencies ({self.frequencies}) are those of a vocabulary of {counted} tokens, "
                f"but the model has {size}; count them anew with task=token_frequencies"
            )
        return FrequencyMemory(self.table.to(snapshot.tokens.device))

    def decide(self, view: StepView, memory: FrequencyMemory) -> Decision:
        """The best n(s) by score."""
        scores = self._scores(view, memory.table.share)
        if self.steps_per_block is None:
            return Decision(best(scores, view.open), scores=scores)
        count = scheduled(view.window_open, self.steps_per_block, view.window_step)
        return Decision(best(scores, view.open, count), scores=scores)

    def _scores(self, view: StepView, share: Tensor) -> Tensor:
        confidence = view.pred.confidence
        # a slot whose tokens have all been removed proposes -1, with confidence 0
        surprise = -(share[view.pred.token.clamp(min=0)] + SMALLEST).log()
        place = (view.index - view.window_first[:, None]).clamp(min=0)
        value = (confidence * surprise.to(confidence.dtype)).clamp(max=self.ceiling)
        return value * (-self.decay * place).exp().to(confidence.dtype)
