"""Decision to change: the invariants of decoding, and nothing else.

Whatever a plugin asks for, what leaves here is legal: commits lie inside the open slots, no mask
or control token is ever committed, nothing else than settled slots is re-masked and only by
strategies that declared it, and each live row makes progress.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor

from dllm_decode.decoding import calls
from dllm_decode.decoding.calls import author
from dllm_decode.decoding.selection import best
from dllm_decode.decoding.strategy import Budget, Progress, complete
from dllm_decode.decoding.types import Change, Decision, StepView
from dllm_decode.errors import DecisionError


def settle(
    view: StepView,
    decision: Decision,
    *,
    rows: Tensor,
    plugin: str,
    revocable: bool = False,
    progress: Progress,
    probes: int = 0,
) -> Change:
    """Turn a decision into a legal change.

    rows (B,): request rows, for messages and the trace; plugin: who made the decision; revocable:
    whether re-masking was declared; progress: `EveryStep` or `Budget`; probes: extra forwards.
    Raises `DecisionError` for decisions that are not legal, naming plugin, row, column and step.
    """
    decision = checked(view, decision, plugin)
    faults = faults_of(view, decision, revocable)
    if bool(faults.any()):
        raise_fault(view, decision, faults, rows=rows, plugin=plugin, revocable=revocable)
    return legal_change(view, decision, rows=rows, progress=progress, probes=probes)


def checked(view: StepView, decision: Decision, plugin: str) -> Decision:
    """The decision with everything it left out filled in; raises for wrong shapes and types."""
    return complete(calls.check_decision(decision, view, plugin), view)


def legal_change(
    view: StepView, decision: Decision, *, rows: Tensor, progress: Progress, probes: int = 0
) -> Change:
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
        rows=rows,
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
        probes=probes,
        notes=decision.notes,
    )


def faults_of(view: StepView, decision: Decision, revocable: bool) -> Tensor:
    """Everything a complete decision asks for and may not have, (5, B, W) bool.

    One tensor for all kinds, so that a legal step costs the host one look at one number.
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


def raise_fault(
    view: StepView,
    decision: Decision,
    faults: Tensor,
    *,
    rows: Tensor,
    plugin: str,
    revocable: bool,
) -> NoReturn:
    """Raise `DecisionError` for the first fault of a step; see `faults_of`."""
    assert decision.tokens is not None
    kind, row, slot = (int(number) for number in faults.nonzero()[0])
    token = int(decision.tokens[row, slot])
    remask_reason = (
        "re-masked a position that is not settled"
        if revocable
        else "re-masked a position, but does not declare revocable = True"
    )
    reason = (
        "committed a position that is not open",
        f"committed token {token}, which lies outside the vocabulary of {view.snapshot.vocab.size}"
        + ("; -1 says that every token has been removed" if token == -1 else ""),
        f"committed token {token}, a mask or control token that is never generated",
        remask_reason,
        "gave a score that is NaN",
    )[kind]
    if decision.author:
        plugin = decision.author
        if kind in (1, 2, 4):
            plugin = author(view, decision, row, slot, None if kind == 4 else token)
    column = int(view.index[row, slot]) - view.snapshot.start
    where = "no column" if int(view.index[row, slot]) < 0 else f"generated column {column}"
    raise DecisionError(
        f"{plugin} {reason}: row {int(rows[row])}, {where}, step {int(view.step[row])}"
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
