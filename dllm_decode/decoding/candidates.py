"""What the model offered at each open column, kept beside a change for traces."""

from __future__ import annotations

from dataclasses import replace

from dllm_decode.decoding.types import Change, StepView

IDS, PROBABILITIES, OPEN, FRESH = (
    f"candidates.{name}" for name in ("ids", "probabilities", "open", "fresh")
)


def with_candidates(change: Change, view: StepView, most: int) -> Change:
    """The change with the likeliest tokens of each open slot in its notes.

    Probabilities are the model's own, before any transform.

    Args:
        change: What the step did.
        view: What the strategy saw; `view.pred` is the prediction as it came from the model.
        most: Tokens per slot, 1 or more.
    """
    _, ids = view.pred.topk(most)
    notes = {
        IDS: ids,
        PROBABILITIES: view.pred.prob_of(ids),
        OPEN: view.open,
        FRESH: view.fresh,
    }
    return replace(change, notes={**change.notes, **notes})
