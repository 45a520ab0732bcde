"""A model whose prediction changes with every commit, and views of a step made by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.types import Change, Request, Snapshot, StepView, Vocab
from dllm_decode.kernels.noise import Noise, fold, unit_interval
from dllm_decode.models.toy import row_state

VOCAB = Vocab(size=12, mask_id=11, eot_ids=(10,))


@dataclass(frozen=True)
class ChangingModel:
    """Logits that are a lasting part per prompt and column plus a part that any commit changes.

    Both parts are drawn by a hash, so rows do not depend on each other. lasting, passing: sizes of
    the two parts; favourite: a token that gets 20 on top everywhere.
    """

    vocab: Vocab = VOCAB
    lasting: float = 6.0
    passing: float = 4.0
    seed: int = 0
    favourite: int | None = None
    fingerprint: str | None = None

    max_length = None
    device = torch.device("cpu")

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        columns = torch.arange(tokens.shape[1])
        first = torch.where(live, columns, tokens.shape[1]).amin(1, keepdim=True)
        slot = index - first
        whole = row_state(tokens, live, self.seed)[:, None]
        # what never changes while decoding: the first live token, which is the prompt's
        root = tokens.gather(1, first)
        ids = torch.arange(self.vocab.size)
        lasting = unit_interval(fold(fold(fold(root, self.seed + 1), slot)[..., None], ids))
        passing = unit_interval(fold(fold(whole, slot)[..., None], ids))
        logits = self.lasting * lasting + self.passing * passing
        if self.favourite is not None:
            logits[..., self.favourite] += 20.0
        return logits


def board_of(
    tokens: Tensor,
    decided: Tensor,
    *,
    editable: Tensor | None = None,
    start: int = 0,
    vocab: Vocab | None = None,
    horizon: int | None = None,
) -> Snapshot:
    """A snapshot of given tokens (B, L) and decided columns (B, L); all rows reach to the end."""
    rows, width = tokens.shape
    columns = torch.arange(width)
    if editable is None:
        editable = (columns >= start).expand(rows, width)
    return Snapshot(
        tokens=tokens,
        editable=editable,
        decided=decided,
        first=torch.zeros(rows, dtype=torch.long),
        start=start,
        end=torch.full((rows,), width),
        horizon=torch.full((rows,), width if horizon is None else horizon),
        vocab=vocab or VOCAB,
        rows=torch.arange(rows),
    )


def view_of(
    logits: Tensor,
    open_slots: Tensor,
    *,
    fresh: bool = False,
    banned: tuple[int, ...] = (),
    snapshot: Snapshot | None = None,
) -> StepView:
    """One step on a canvas that is one window: logits (B, W, V), open_slots (B, W) bool."""
    rows, width, size = logits.shape
    vocab = Vocab(size=size + 1, mask_id=size)
    index = torch.arange(width).expand(rows, width)
    counts = open_slots.sum(1)
    zero = torch.zeros(rows, dtype=torch.long)
    tokens = torch.where(open_slots, vocab.mask_id, 0)
    return StepView(
        step=zero,
        index=index,
        pred=Prediction.of(logits, torch.tensor(banned, dtype=torch.long)),
        tokens=tokens,
        active=torch.ones_like(open_slots),
        open=open_slots,
        masked=open_slots,
        settled=~open_slots,
        fresh=torch.full((rows,), fresh),
        window_step=zero,
        window_open=counts,
        steps_left=counts,
        snapshot=snapshot or board_of(tokens, ~open_slots, vocab=vocab),
        noise=Noise(zero, zero, index),
    )


def change_of(view: StepView, commit: Tensor, tokens: Tensor, **notes: Tensor) -> Change:
    """What a step did, for stop rules."""
    blank = torch.zeros_like(commit)
    return Change(
        rows=torch.arange(commit.shape[0]),
        step=view.step,
        index=view.index - view.snapshot.start,
        commit=commit,
        remask=blank,
        tokens=tokens,
        confidence=view.pred.confidence,
        probability=view.pred.confidence,
        scores=view.pred.confidence,
        forced=blank.any(1),
        horizon=view.snapshot.horizon - view.snapshot.start,
        probes=0,
        notes=notes,
    )


def a_request(rows: int = 2, length: int = 12, **options: object) -> Request:
    """Prompts of different lengths."""
    prompts = tuple(tuple(range(1, 2 + row)) for row in range(rows))
    return Request(prompts, max_new_tokens=length, **options)  # type: ignore[arg-type]
