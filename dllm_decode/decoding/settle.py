"""Decision to change: the invariants of decoding, and nothing else.

Whatever a plugin asks for, what leaves here is legal: commits lie inside the open slots, no mask
or control token is ever committed, nothing else than settled slots is re-masked or written over and
only by strategies that declared it, and each live row makes progress.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dllm_decode.decoding import calls
from dllm_decode.decoding.returned import named
from dllm_decode.decoding.selection import best
from dllm_decode.decoding.strategy import Budget, Progress, Revisions, Strategy, complete
from dllm_decode.decoding.types import Change, Decision, Snapshot, StepView
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
    planes = faults_of(view, decision, strategy)
    change = legal_change(view, decision, strategy)
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
            "committed a position that is neither open nor settled"
            if self.strategy.revises
            else "committed a position that is not open",
            f"committed token {token}, which lies outside the vocabulary of "
            f"{view.snapshot.vocab.size}"
            + ("; -1 says that every token has been removed" if token == -1 else ""),
            f"committed token {token}, a mask or control token that is never generated",
            "re-masked a position, but does not declare revocable = True"
            if not self.strategy.revocable
            else "re-masked a position that is not settled"
            if not bool(view.settled[row, slot])
            else "re-masked a position and wrote to it in the same step",
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


class Slots(NamedTuple):
    """What is to happen at the slots of a step, (B, W) bool each; None: never, by this strategy.

    Attributes:
        commit: open slots to decide.
        edit: settled slots to write over.
        remask: settled slots to open again.
    """

    commit: Tensor
    edit: Tensor | None
    remask: Tensor | None


def legal_change(view: StepView, decision: Decision, strategy: Strategy) -> Change:
    """The change that follows from a complete decision; whatever is illegal in it is left out."""
    scores, confidence = decision.scores, decision.confidence
    assert decision.tokens is not None and scores is not None and confidence is not None
    tokens = decision.tokens.clamp(0, view.snapshot.vocab.size - 1)
    asked = _asked(view, decision, tokens, strategy)
    granted, forced = _with_progress(view, scores, asked, strategy.progress)
    # what a strategy says about positions it does not choose need not be legal
    unfit = (tokens != decision.tokens) | torch.isin(tokens, view.snapshot.never_generated)
    tokens = torch.where(unfit & granted.commit & ~decision.commit, view.pred.token, tokens)
    remask = torch.zeros_like(view.open) if granted.remask is None else granted.remask
    return Change(
        rows=view.snapshot.rows,
        step=view.step,
        index=torch.where(view.index >= 0, view.index - view.snapshot.start, -1),
        commit=granted.commit,
        edit=granted.edit,
        remask=remask,
        not_granted=_not_granted(asked, granted),
        tokens=tokens,
        confidence=confidence,
        probability=view.pred.prob_of(tokens[..., None])[..., 0],
        scores=scores,
        forced=forced,
        horizon=view.snapshot.horizon - view.snapshot.start,
        live=view.live,
        steps=None if decision.steps is None else decision.steps.clamp(min=1),
        notes=decision.notes,
    )


def _asked(view: StepView, decision: Decision, tokens: Tensor, strategy: Strategy) -> Slots:
    """What a decision asks for and may have, but for the progress that a row has to make."""
    commit = decision.commit & view.open
    edit = remask = None
    if strategy.revises:
        edit = decision.commit & view.settled & (tokens != view.tokens)
    if strategy.revocable and decision.remask is not None:
        remask = decision.remask & view.settled
        remask = remask if edit is None else remask & ~edit
    if decision.close is not None:
        commit = commit | (view.masked & decision.close[:, None])
    # a row that is done stays done, also while the host has not looked yet
    live = view.live[:, None]
    return Slots(commit, *(None if slots is None else slots & live for slots in (edit, remask)))


def _not_granted(asked: Slots, granted: Slots) -> Tensor | None:
    """Edits and re-masks that were asked for in vain, (B,); None for strategies without any."""
    counts = [
        (before & ~after).sum(1)
        for before, after in zip(asked[1:], granted[1:], strict=True)
        if before is not None and after is not None
    ]
    return sum(counts[1:], counts[0]) if counts else None


def faults_of(view: StepView, decision: Decision, strategy: Strategy) -> Tensor:
    """Everything a complete decision asks for and may not have, (5, B, W) bool.

    One tensor for all kinds, so that a legal step costs the host one number.
    """
    assert decision.tokens is not None and decision.scores is not None
    vocab = view.snapshot.vocab
    outside = (decision.tokens < 0) | (decision.tokens >= vocab.size)
    writable = view.open | view.settled if strategy.revises else view.open
    remask = torch.zeros_like(view.open) if decision.remask is None else decision.remask
    if strategy.revocable:
        remask = remask & (~view.settled | decision.commit)
    never = torch.isin(decision.tokens, view.snapshot.never_generated)
    return torch.stack(
        [
            decision.commit & ~writable,
            decision.commit & outside,
            decision.commit & never,
            remask,
            view.open & decision.scores.isnan(),
        ]
    )


def _with_progress(
    view: StepView, scores: Tensor, asked: Slots, progress: Progress
) -> tuple[Slots, Tensor]:
    """What is granted, and the rows in which something had to be forced."""
    if isinstance(progress, Budget):
        closing = (view.step >= progress.steps - 1)[:, None]
        commit = asked.commit | (view.open & closing)
        remask = None if asked.remask is None else asked.remask & ~closing
        return Slots(commit, asked.edit, remask), (commit & ~asked.commit).any(1)
    gain, remask = asked.commit.sum(1), asked.remask
    if remask is not None and not isinstance(progress, Revisions):
        stuck = gain - remask.sum(1) < 1
        remask = remask & ~stuck[:, None]
    # a row that committed something only has to give up its re-masks
    needs_commit = view.open.any(1) & (gain < 1)
    commit = asked.commit | (best(scores, view.open) & needs_commit[:, None])
    granted = Slots(commit, asked.edit, remask)
    if isinstance(progress, Revisions):
        granted = _bounded(view, granted, progress)
    return granted, needs_commit


def _bounded(view: StepView, asked: Slots, progress: Revisions) -> Slots:
    """Revisions of columns that have some left, as far as the row can still end in time."""
    assert view.snapshot.revised is not None
    some_left = view.gather(view.snapshot.revised) < progress.per_column
    edit = None if asked.edit is None else asked.edit & some_left
    if asked.remask is None:
        return Slots(asked.commit, edit, None)
    remask = asked.remask & some_left
    open_after = view.snapshot.undecided.sum(1) - asked.commit.sum(1) + remask.sum(1)
    in_time = view.step + 1 + open_after <= _most_steps(view.snapshot, progress)
    return Slots(asked.commit, edit, remask & in_time[:, None])


def _most_steps(snapshot: Snapshot, progress: Revisions) -> Tensor:
    """L(1 + k): what a row of L columns may take, (B,)."""
    return (snapshot.end - snapshot.start) * (1 + progress.per_column)


def staying(
    asked: Tensor | None, after: Snapshot, view: StepView, change: Change, progress: Revisions
) -> tuple[Tensor, Tensor]:
    """Rows that stay in their window although it is full, and all that have not left it, (B,) bool.

    A row stays in a full window while its strategy asks for it, but only behind a step that changed
    something, and only while a step without a commit still leaves it enough of them.

    Args:
        asked: (B,) bool, what `Strategy.lingers` said; None for no row.
        after: the canvas after the change.
        view: the step.
        change: what it did.
        progress: the strategy's rule.
    """
    unfinished = (view.gather(after.undecided) & view.active).any(1)
    if asked is None:
        return torch.zeros_like(unfinished), unfinished
    in_time = view.step + 2 + after.undecided.sum(1) <= _most_steps(after, progress)
    stays = asked & ~unfinished & in_time & view.live & change.touched.any(1)
    return stays, unfinished | stays
