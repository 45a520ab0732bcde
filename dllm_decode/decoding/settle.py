"""Decision to change: the invariants of decoding, and nothing else.

Whatever a plugin asks for, what leaves here is legal: commits lie inside the open slots, no mask
or control token is ever committed, nothing else than settled slots is re-masked or written over and
only by strategies that declared it, and each live row makes progress.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dllm_decode.decoding import calls
from dllm_decode.decoding.prediction import DensePrediction
from dllm_decode.decoding.returned import named
from dllm_decode.decoding.selection import best
from dllm_decode.decoding.strategy import (
    Budget,
    EveryStep,
    Progress,
    Revisions,
    Strategy,
    complete,
)
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
    unfit = unfit_tokens(view, decision)
    change = legal_change(view, decision, strategy, unfit)
    wrong = faulty(view, decision, strategy, unfit)
    for inner in decision.within:
        wrong = wrong | inner.wrong
    return change, Faults(view, decision, strategy, wrong)


@dataclass(frozen=True)
class Faults:
    """What was not legal in a decision.

    Attributes:
        view: the step.
        decision: the complete decision.
        strategy: who made it.
        wrong: (B, W) bool, slots at which something is not legal; what, is only asked when it is.

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
    wrong: Tensor

    @property
    def count(self) -> Tensor:
        """At how many slots there are any, a number on the device."""
        return self.wrong.sum()

    def error(self, sampler: str = "sampler") -> DecisionError:
        """The first fault in words, with plugin, row, column and step; asks the device.

        Args:
            sampler: what to call the sampler, if it is its fault.
        """
        for inner in self.decision.within:
            if bool(inner.wrong.any()):
                fault: DecisionError = inner.error(sampler)
                return fault
        view, tokens = self.view, self.decision.tokens
        assert tokens is not None
        planes = faults_of(view, self.decision, self.strategy)
        kind, row, slot = planes.nonzero()[0].tolist()
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
            "recorded a confidence that is not finite",
        )[kind]
        who = self.decision.author
        if kind in (1, 2, 4, 5):  # what somebody else may have proposed
            who = calls.author(view, self.decision, row, slot, None if kind > 3 else token)
            who = sampler if who == "sampler" else who
        return DecisionError(f"{who} {reason}: {where(view, row, slot)}")


def where(view: StepView, row: int, slot: int) -> str:
    """Row of the request, generated column and step of a slot, in words; asks the device.

    Args:
        view: of the step.
        row: of the batch.
        slot: of the window.
    """
    column = int(view.index[row, slot])
    place = "no column" if column < 0 else f"generated column {column - view.snapshot.start}"
    return f"row {int(view.snapshot.rows[row])}, {place}, step {int(view.step[row])}"


def unfit_tokens(view: StepView, decision: Decision) -> Tensor | None:
    """Slots whose token can never be committed, (B, W) bool; None where there can be none.

    A decision that takes over what a prediction proposes needs no look at its tokens: what is never
    generated is gone before the argmax.

    Args:
        view: of the step.
        decision: with its tokens filled in.
    """
    tokens = decision.tokens
    assert tokens is not None
    for pred in (view.pred, *map(itemgetter(1), decision.predictions)):
        if vars(pred).get("token") is tokens and pred.never_proposes(view.banned, view.pred):
            return None
    known = tokens.clamp(0, view.snapshot.vocab.size - 1)
    return (known != tokens) | torch.isin(tokens, view.snapshot.never_generated)


class SlotChanges(NamedTuple):
    """What is to happen at the slots of a step, (B, W) bool each; None: nothing.

    Attributes:
        commit: open slots to decide.
        edit: settled slots to write over.
        remask: settled slots to open again.
    """

    commit: Tensor
    edit: Tensor | None = None
    remask: Tensor | None = None


def legal_change(
    view: StepView, decision: Decision, strategy: Strategy, unfit: Tensor | None
) -> Change:
    """The change that follows from a complete decision; whatever is illegal in it is left out.

    Args:
        view: of the step.
        decision: with everything filled in, see `strategy.complete`.
        strategy: what it may do.
        unfit: (B, W) bool, see `unfit_tokens`.
    """
    scores, confidence = decision.scores, decision.confidence
    assert decision.tokens is not None and scores is not None and confidence is not None
    tokens: Tensor = decision.tokens
    asked = granted = _asked(view, decision, strategy)
    waiting: dict[str, Callable[[], Any]] = {
        "index": lambda: view.offsets,
        "probability": lambda: view.pred.prob_of(tokens[..., None])[..., 0],
        "horizon": lambda: view.snapshot.horizon - view.snapshot.start,
        "live": lambda: view.live,
    }
    given: dict[str, Tensor] = {}
    if asked.remask is not None or not takes_its_word(strategy):
        granted, given["forced"] = _with_progress(view, scores, asked, strategy.progress)
    else:
        waiting["forced"] = lambda: torch.zeros_like(view.fresh)
    if unfit is not None:
        # what a strategy says about positions it does not choose need not be legal
        tokens = torch.where(unfit & (granted.commit > decision.commit), view.pred.token, tokens)
        tokens = tokens.clamp(0, view.snapshot.vocab.size - 1)
    if granted.remask is not None:
        given["remask"] = granted.remask
    else:
        waiting["remask"] = lambda: torch.zeros_like(asked.commit)
        written = granted.commit if granted.edit is None else granted.commit | granted.edit
        given["written"] = given["touched"] = written  # what follows, and is known already
    change: Change = Change.made(
        waiting,
        rows=view.snapshot.rows,
        step=view.step,
        commit=granted.commit,
        edit=granted.edit,
        not_granted=_not_granted(asked, granted),
        tokens=tokens,
        confidence=confidence,
        scores=scores,
        steps=None if decision.steps is None else decision.steps.clamp(min=1),
        notes=decision.notes,
        **given,
    )
    return change


def _asked(view: StepView, decision: Decision, strategy: Strategy) -> SlotChanges:
    """What a decision asks for and may have, but for the progress that a row has to make."""
    commit = decision.commit & view.open
    if decision.close is not None:
        commit = commit | (view.masked & decision.close[:, None])
    edit = remask = None
    # a row that is done stays done, also before the next sync
    if strategy.revises:
        edit = decision.commit & view.settled & (decision.tokens != view.tokens)
        edit = edit & view.live[:, None]
    if strategy.revocable and decision.remask is not None:
        remask = decision.remask & view.settled & view.live[:, None]
        remask = remask if edit is None else remask & ~edit
    return SlotChanges(commit, edit, remask)


def _not_granted(asked: SlotChanges, granted: SlotChanges) -> Tensor | None:
    """Edits and re-masks that were asked for in vain, (B,); None where none were asked for."""
    if asked.edit is None and asked.remask is None:
        return None
    counts = [
        (before > after).sum(1)
        for before, after in zip(asked[1:], granted[1:], strict=True)
        if before is not None and after is not None
    ]
    return sum(counts[1:], counts[0]) if counts else None


def takes_its_word(strategy: Strategy) -> bool:
    """Whether the loop need not look for a slot that a row may gain."""
    return strategy.always_commits and isinstance(strategy.progress, EveryStep)


def faulty(view: StepView, decision: Decision, strategy: Strategy, unfit: Tensor | None) -> Tensor:
    """Slots at which any of `faults_of` is set, (B, W) bool, by looking at no more than need be.

    Args:
        view: of the step.
        decision: with everything filled in, see `strategy.complete`.
        strategy: what it may do.
        unfit: (B, W) bool, see `unfit_tokens`.
    """
    wrong = decision.commit > _writable(view, strategy)
    if unfit is not None:
        wrong = wrong | (decision.commit & unfit)
    if decision.remask is not None:
        wrong = wrong | _wrong_remasks(view, decision.remask, decision, strategy)
    if not _own_confidence(view, decision):
        wrong = wrong | _unrecordable(decision)
    assert decision.scores is not None
    # where the model's own ranking is no number, its logits are refused
    own = vars(view.pred) if isinstance(view.pred, DensePrediction) else {}
    for name in ("certainty", "top_certainty", "margin_certainty", "confidence"):
        if decision.scores is own.get(name):
            return wrong
    return wrong | (view.open & decision.scores.isnan())


def _own_confidence(view: StepView, decision: Decision) -> bool:
    """Whether the confidence is that of a prediction, whose logits are looked at anyway."""
    made = (view.pred, *map(itemgetter(1), decision.predictions))
    return any(vars(pred).get("confidence") is decision.confidence for pred in made)


def _unrecordable(decision: Decision) -> Tensor:
    """Slots to commit with a confidence that is NaN or infinite, (B, W) bool."""
    assert decision.confidence is not None
    return decision.commit & (decision.confidence - decision.confidence != 0)


def _writable(view: StepView, strategy: Strategy) -> Tensor:
    """Slots that a strategy may commit, edits included."""
    return view.open | view.settled if strategy.revises else view.open


def _wrong_remasks(
    view: StepView, remask: Tensor, decision: Decision, strategy: Strategy
) -> Tensor:
    """Slots that may not be opened again, because of who asks, what stands there, or a commit."""
    if not strategy.revocable:
        return remask
    wrong = remask > view.settled
    return wrong | (remask & decision.commit) if strategy.revises else wrong


def faults_of(view: StepView, decision: Decision, strategy: Strategy) -> Tensor:
    """Everything a complete decision asks for and may not have, (6, B, W) bool, kind by kind.

    Args:
        view: of the step.
        decision: with everything filled in, see `strategy.complete`.
        strategy: what it may do.
    """
    assert decision.tokens is not None and decision.scores is not None
    vocab = view.snapshot.vocab
    outside = (decision.tokens < 0) | (decision.tokens >= vocab.size)
    remask = torch.zeros_like(view.open) if decision.remask is None else decision.remask
    never = torch.isin(decision.tokens, view.snapshot.never_generated)
    return torch.stack(
        [
            decision.commit & ~_writable(view, strategy),
            decision.commit & outside,
            decision.commit & never,
            _wrong_remasks(view, remask, decision, strategy),
            view.open & decision.scores.isnan(),
            _unrecordable(decision),
        ]
    )


def _with_progress(
    view: StepView, scores: Tensor, asked: SlotChanges, progress: Progress
) -> tuple[SlotChanges, Tensor]:
    """What is granted, and the rows in which something had to be forced."""
    remask = asked.remask
    if isinstance(progress, Budget):
        closing = (view.step >= progress.steps - 1)[:, None]
        commit = asked.commit | (view.open & closing)
        if remask is not None:
            remask = remask & ~closing
        return SlotChanges(commit, None, remask), (commit > asked.commit).any(1)
    if remask is not None and isinstance(progress, EveryStep):
        # a row that committed something only has to give up its re-masks
        remask = remask & (asked.commit.sum(1) > remask.sum(1))[:, None]
    stuck = view.open.any(1) > asked.commit.any(1)
    commit = asked.commit | (best(scores, view.open) & stuck[:, None])
    granted = SlotChanges(commit, asked.edit, remask)
    if isinstance(progress, Revisions):
        granted = _bounded(view, granted, progress)
    return granted, stuck


def _bounded(view: StepView, asked: SlotChanges, progress: Revisions) -> SlotChanges:
    """Revisions of columns that have some left, as far as the row can still end in time."""
    assert view.snapshot.revised is not None
    some_left = view.gather(view.snapshot.revised) < progress.per_column
    edit = None if asked.edit is None else asked.edit & some_left
    if asked.remask is None:
        return SlotChanges(asked.commit, edit)
    remask = asked.remask & some_left
    open_after = view.snapshot.left - asked.commit.sum(1) + remask.sum(1)
    in_time = view.step + 1 + open_after <= _most_steps(view.snapshot, progress)
    return SlotChanges(asked.commit, edit, remask & in_time[:, None])


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
    in_time = view.step + 2 + after.left <= _most_steps(after, progress)
    stays = asked & ~unfinished & in_time & view.live & change.touched.any(1)
    return stays, unfinished | stays
