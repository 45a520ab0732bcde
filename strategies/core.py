"""CORE: every few steps, ask what the least certain tokens would be if they were masked again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.selection import best, order_scores
from dllm_decode.decoding.strategy import Progress, Revisions, Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.errors import require_count, require_in_range
from dllm_decode.strategies.fixed import scheduled


@dataclass(frozen=True)
class Core(Strategy):
    """A fixed schedule that stress-tests what it has decided.

        commit      the best n(s) open positions
        candidates  the `masked` settled positions of the window with the smallest margin, none of
                    the last `spare` columns
        probe       one further pass in which all of them are masked
        write over  of those whose first choice is another token then, with probability at least
                    `confidence`, the min(reopen, n(s)) ones with the least probability of the old
                    token, with that other token

    in steps s that are multiples of `every`, floor(begin_share * S) <= s < floor(end_share * S).
    The margin is that of the two most likely tokens, n(s) LLaDA's linear schedule of S =
    steps_per_block steps.

    Source: CORE, arXiv 2602.04096. Deviations: a column is written over at most `revisions` times,
    and a step commits at least one position.

    Args:
        steps_per_block: S, steps per window, 1 or more.
        every: steps from one probe to the next, 1 or more.
        masked: positions that a probe masks at most, 1 or more.
        reopen: positions that a probe writes over at most, 1 or more.
        confidence: probability that the new token needs, [0, 1].
        spare: columns at the end of the window that are not questioned, 0 or more.
        begin_share: share of the S steps before the first probe, [0, 1].
        end_share: share from which on none is made, [0, 1].
        revisions: how often a column may be written over, 1 or more.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=4).answer(Core(steps_per_block=4, every=2, spare=0), "abcd")
        ('abcd', 5)
    """

    steps_per_block: int = 32
    every: int = 8
    masked: int = 32
    reopen: int = 1
    confidence: float = 0.3
    spare: int = 16
    begin_share: float = 0.25
    end_share: float = 0.75
    revisions: int = 2
    revises: ClassVar[bool] = True  # type: ignore[misc]
    needs_window: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("steps_per_block", "every", "masked", "reopen", "revisions"):
            require_count(name, getattr(self, name))
        require_count("spare", self.spare, minimum=0)
        for name in ("confidence", "begin_share", "end_share"):
            require_in_range(name, getattr(self, name), 0.0, 1.0)

    @property
    def progress(self) -> Progress:
        """At most `revisions` edits of a column."""
        return Revisions(self.revisions)

    def decide(self, view: StepView, memory: None) -> Decision:
        """The count of the schedule, and what the probe writes over."""
        count = scheduled(view.window_open, self.steps_per_block, view.window_step).clamp(min=1)
        scores = order_scores(view)
        chosen = best(scores, view.open, count)
        candidates = self._candidates(view)
        mask = view.snapshot.vocab.mask_id
        asked = view.tokens.masked_fill(candidates, mask)
        probe = view.probe(asked, where=candidates, rows=candidates.any(1))
        other = self._overwritten(view, probe, candidates, count)
        return Decision(
            chosen | other,
            tokens=torch.where(other, probe.token, view.pred.token),
            scores=scores,
            confidence=torch.where(other, probe.confidence, view.pred.confidence),
        )

    def _candidates(self, view: StepView) -> Tensor:
        """Settled slots that this step questions, (B, W)."""
        step, steps = view.window_step, self.steps_per_block
        due = (step >= int(self.begin_share * steps)) & (step < int(self.end_share * steps))
        due = due & (step % self.every == 0)
        behind = view.active.flip(1).cumsum(1).flip(1)  # columns of the window from here on
        asked = view.settled & (behind > self.spare) & due[:, None]
        return best(-order_scores(view, "margin"), asked, self.masked)

    def _overwritten(
        self, view: StepView, probe: Prediction, candidates: Tensor, count: Tensor
    ) -> Tensor:
        """Candidates that the probe says otherwise about, the least supported ones, (B, W)."""
        own = probe.prob_of(view.tokens[..., None])[..., 0]
        # probes know nothing of transforms: what these have taken away is not written either
        possible = view.pred.prob_of(probe.token[..., None])[..., 0] > 0
        candidates = candidates & possible
        other = candidates & (probe.token != view.tokens) & (probe.confidence >= self.confidence)
        assert view.snapshot.revised is not None
        other = other & (view.gather(view.snapshot.revised) < self.revisions)
        return best(-own, other, count.clamp(max=self.reopen))
