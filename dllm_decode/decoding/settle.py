"""Decision to change: the invariants of decoding, and nothing else.

Whatever a plugin asks for, what leaves here is legal: commits lie inside the open slots, no mask
or control token is ever committed, nothing else than settled slots is re-masked and only by
strategies that declared it, and each live row makes progress.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm_decode.decoding import calls
from dllm_decode.decoding.returned import named
from dllm_decode.decoding.selection import best
from dllm_decode.decoding.strategy import Budget, Progress, Strategy, complete
from dllm_decode.decoding.types import Change, Decision, StepView
from dllm_decode.errors import DecisionError


def settle(view: StepView, decision: Decision, strategy: Strategy) -> tuple[Change, Faults]:
    """Turn a decision into a legal change, and say what in it was not legal.

    Nothing here waits for the device: whoever wants to know whether there are faults asks for
    `Faults.count`, and raises `Faults.error()`.

    Args:
        view: the step.
        decision: what the strategy asked for; what it left out is filled in from the view.
        strategy: who asked; says whether re-masking was declared and which progress rule holds.

    Returns:
        The change, in which whatever is illegal is left out, and the faults.

    Raises:
        DecisionError: for planes of a wrong shape or type, which can be seen without the device.
    """
    if not decision.author:  # made by hand, not by a call of `calls.decide`
        decision = calls.check_decision(decision, view, named(view.part, strategy))
    decision = complete(decision, view)
    planes = faults_of(view, decision, strategy.revocable)
    change = legal_change(view, decision, strategy.progress)
    return change, Faults(view, decision, strategy, change, planes)


@dataclass(frozen=True)
class Faults:
    """What was not legal in a decision.

    Attributes:
        view: the step.
        decision: the complete decision.
        strategy: who made it.
        change: the legal change that was made of it.
        planes: (5, B, W) bool, one plane per kind; see `faults_of`.

    Examples:
        >>> from dllm_decode.decoding.loop import Decoder
        >>> from dllm_decode.decoding.types import Decision, Request
        >>> from dllm_decode.errors import DecisionError
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> class Twice(TopK):
        ...     def decide(self, view, memory):
        ...         return Decision(~view.open)  # what is decided already, for good
        >>> try:
        ...     Copy(n=3).answer(Twice(1), "abc")
        ... except DecisionError as fault:
        ...     print(str(fault)[:40])
        strategy (Twice) committed a position th
    """

    view: StepView
    decision: Decision
    strategy: Strategy
    change: Change
    planes: Tensor

    @property
    def count(self) -> Tensor:
        """How many there are, a number on the device."""
        return self.planes.sum()

    def error(self, sampler: str = "sampler") -> DecisionError:
        """The first fault in words, with plugin, row, column and step; asks the device.

        Args:
            sampler: what to call the sampler, if it is its fault.
        """
        view, tokens = self.view, self.decision.tokens
        assert tokens is not None
        kind, row, slot = self.planes.nonzero()[0].tolist()
        token = int(tokens[row, slot])
        reason = (
            "committed a position that is not open",
            f"committed token {token}, which lies outside the vocabulary of "
            f"{view.snapshot.vocab.size}"
            + ("; -1 says that every token has been removed" if token == -1 else ""),
            f"committed token {token}, a mask or control token that is never generated",
            "re-masked a position that is not settled"
            if self.strategy.revocable
            else "re-masked a position, but does not declare revocable = True",
            "gave a score that is NaN",
        )[kind]
        who = self.decision.author
        if kind in (1, 2, 4):  # a token or a score that somebody else may have proposed
            who = calls.author(view, self.decision, row, slot, None if kind == 4 else token)
            who = sampler if who == "sampler" else who
        return DecisionError(f"{who} {reason}: {where(view, row, slot)}")


def where(view: StepView, row: int, slot: int) -> str:
    """Row of the request, generated column and step of a slot, in words; asks the device."""
    column = int(view.index[row, slot])
    place = "no column" if column < 0 else f"generated column {column - view.snapshot.start}"
    return f"row {int(view.snapshot.rows[row])}, {place}, step {int(view.step[row])}"


def legal_change(view: StepView, decision: Decision, progress: Progress) -> Change:
    """The change that follows from a complete decision; whatever is illegal in it is left out."""
    scores, confidence = decision.scores, decision.confidence
    assert decision.tokens is not None and scores is not None and confidence is not None
    tokens = decision.tokens.clamp(0, view.snapshot.vocab.size - 1)
    remask = (
        torch.zeros_like(view.open) if decision.remask is None else decision.remask & view.settled
    )
    # a row that is done stays done, also while the host has not looked yet
    remask = remask & view.open.any(1, keepdim=True)
    decision = replace(decision, commit=decision.commit & view.open)
    commit, remask, forced = _with_progress(view, decision, remask, progress)
    # what a strategy says about positions it does not choose need not be legal
    unfit = (tokens != decision.tokens) | torch.isin(tokens, view.snapshot.never_generated)
    tokens = torch.where(unfit & commit & ~decision.commit, view.pred.token, tokens)
    return Change(
        rows=view.snapshot.rows,
        step=view.step,
        index=torch.where(view.index >= 0, view.index - view.snapshot.start, -1),
        commit=commit,
        remask=remask,
        tokens=tokens,
        confidence=confidence,
        probability=view.pred.prob_of(tokens[..., None])[..., 0],
        scores=scores,
        forced=forced,
        horizon=view.snapshot.horizon - view.snapshot.start,
        probes=0,
        notes=decision.notes,
    )


def faults_of(view: StepView, decision: Decision, revocable: bool) -> Tensor:
    """Everything a complete decision asks for and may not have, (5, B, W) bool.

    One tensor for all kinds, so that a legal step costs the host one number.
    """
    assert decision.tokens is not None and decision.scores is not None
    vocab = view.snapshot.vocab
    outside = (decision.tokens < 0) | (decision.tokens >= vocab.size)
    remask = torch.zeros_like(view.open) if decision.remask is None else decision.remask
    allowed = view.settled if revocable else torch.zeros_like(view.settled)
    never = torch.isin(decision.tokens, view.snapshot.never_generated)
    return torch.stack(
        [
            decision.commit & ~view.open,
            decision.commit & outside,
            decision.commit & never,
            remask & ~allowed,
            view.open & decision.scores.isnan(),
        ]
    )


def _with_progress(
    view: StepView, decision: Decision, remask: Tensor, progress: Progress
) -> tuple[Tensor, Tensor, Tensor]:
    """Commits, re-masks and the rows in which something had to be forced."""
    assert decision.scores is not None
    if isinstance(progress, Budget):
        closing = view.step >= progress.steps - 1
        commit = decision.commit | (view.open & closing[:, None])
        remask = remask & ~closing[:, None]
        return commit, remask, (commit & ~decision.commit).any(1)
    live = view.open.any(1)
    stuck = live & (decision.commit.sum(1) - remask.sum(1) < 1)
    remask = remask & ~stuck[:, None]
    # a row that committed something only has to give up its re-masks
    needs_commit = stuck & ~decision.commit.any(1)
    forced = best(decision.scores, view.open) & needs_commit[:, None]
    return decision.commit | forced, remask, needs_commit
