"""Wish to change: the invariants of decoding, and nothing else.

Whatever a plugin asks for, what leaves here is legal: commits lie inside the open slots, no mask
or control token is ever committed, nothing else than settled slots is re-masked and only by
strategies that declared it, and each live row makes progress.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_decode.errors import DecisionError
from dllm_decode.selection import best
from dllm_decode.strategy import Budget, Progress, complete
from dllm_decode.types import Change, Decision, StepView


def settle(
    view: StepView,
    wish: Decision,
    *,
    rows: Tensor,
    plugin: str,
    revocable: bool = False,
    progress: Progress,
    probes: int = 0,
) -> Change:
    """Turn a wish into a legal change.

    rows (B,): request rows, for messages and the trace; plugin: who made the wish; revocable:
    whether re-masking was declared; progress: `EveryStep` or `Budget`; probes: extra forwards.
    Raises `DecisionError` for wishes that are not legal, naming plugin, row, column and step.
    """
    _check_shapes(view, wish, plugin)
    wish = complete(wish, view)
    assert wish.tokens is not None and wish.scores is not None and wish.confidence is not None
    remask = torch.zeros_like(view.open) if wish.remask is None else wish.remask
    _check_values(view, wish, remask, rows, plugin, revocable)
    commit, remask, forced = _with_progress(view, wish, remask, progress)
    return Change(
        rows=rows,
        step=view.step,
        index=torch.where(view.index >= 0, view.index - view.board.start, -1),
        commit=commit,
        remask=remask,
        tokens=wish.tokens,
        confidence=wish.confidence,
        probability=view.pred.prob_of(wish.tokens.clamp(min=0)[..., None])[..., 0],
        scores=wish.scores,
        forced=forced,
        horizon=view.board.horizon - view.board.start,
        probes=probes,
        notes=wish.notes,
    )


def _check_shapes(view: StepView, wish: Decision, plugin: str) -> None:
    expected = tuple(view.open.shape)
    for name in ("commit", "remask", "tokens", "scores", "confidence"):
        value = getattr(wish, name)
        if value is None:
            continue
        if not isinstance(value, Tensor) or tuple(value.shape) != expected:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise DecisionError(
                f"{plugin} returned {name} of shape {got}; it must be a tensor of shape {expected}"
            )
        if name in ("commit", "remask") and value.dtype != torch.bool:
            raise DecisionError(f"{plugin} returned {name} of type {value.dtype}; it must be bool")
    if wish.tokens is not None and wish.tokens.dtype.is_floating_point:
        raise DecisionError(
            f"{plugin} returned tokens of type {wish.tokens.dtype}; they must be integers"
        )


def _check_values(
    view: StepView, wish: Decision, remask: Tensor, rows: Tensor, plugin: str, revocable: bool
) -> None:
    """All checks in one tensor, so that a legal step costs one host synchronisation."""
    assert wish.tokens is not None and wish.scores is not None
    vocab = view.board.vocab
    never = torch.tensor(vocab.never_generated, device=wish.tokens.device)
    outside = (wish.tokens < 0) | (wish.tokens >= vocab.size)
    allowed = view.settled if revocable else torch.zeros_like(view.settled)
    faults = torch.stack(
        [
            wish.commit & ~view.open,
            wish.commit & outside,
            wish.commit & torch.isin(wish.tokens, never),
            remask & ~allowed,
            view.open & wish.scores.isnan(),
        ]
    )
    if not bool(faults.any()):
        return
    kind, row, slot = (int(number) for number in faults.nonzero()[0])
    token = int(wish.tokens[row, slot])
    remask_reason = (
        "re-masked a position that is not settled"
        if revocable
        else "re-masked a position, but does not declare revocable = True"
    )
    reason = (
        "committed a position that is not open",
        f"committed token {token}, which lies outside the vocabulary of {vocab.size}",
        f"committed token {token}, a mask or control token that is never generated",
        remask_reason,
        "gave a score that is NaN",
    )[kind]
    column = int(view.index[row, slot]) - view.board.start
    where = "no column" if int(view.index[row, slot]) < 0 else f"generated column {column}"
    raise DecisionError(
        f"{plugin} {reason}: row {int(rows[row])}, {where}, step {int(view.step[row])}"
    )


def _with_progress(
    view: StepView, wish: Decision, remask: Tensor, progress: Progress
) -> tuple[Tensor, Tensor, Tensor]:
    """Commits, re-masks and the rows in which something had to be forced."""
    assert wish.scores is not None
    if isinstance(progress, Budget):
        closing = view.step >= progress.steps - 1
        commit = wish.commit | (view.open & closing[:, None])
        remask = remask & ~closing[:, None]
        return commit, remask, (commit & ~wish.commit).any(1)
    live = view.open.any(1)
    stuck = live & (wish.commit.sum(1) - remask.sum(1) < 1)
    remask = remask & ~stuck[:, None]
    # a row that committed something only has to give up its re-masks
    needs_commit = stuck & ~wish.commit.any(1)
    forced = best(wish.scores, view.open) & needs_commit[:, None]
    return wish.commit | forced, remask, needs_commit
