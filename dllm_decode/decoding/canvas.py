"""The canvas: the only mutable picture of a decode, private to the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_decode.decoding.types import Change, Memory, Request, Snapshot, Vocab


@dataclass
class Canvas(Memory):
    """Tokens, what is decided, and how far each row still matters.

    Only `apply` and `narrow` write. Rows leave and join as in any memory.

    Attributes:
        rows: (B,) which row of the request each one is.
        tokens: (B, L) ids, the mask id in undecided columns.
        editable: (B, L) bool, columns that a strategy may decide.
        decided: (B, L) bool, columns that hold their token.
        first: (B,) first column of the row's prompt, behind the padding.
        start: first generated column, the same for all rows.
        end: (B,) one past the row's last column as requested.
        horizon: (B,) one past the last column still worth decoding.
        vocab: special token ids.
        step_of: (B, L) step at which a column was committed, -1 before.
        confidence_of: (B, L) with what confidence, NaN before.
        kept: (B,) one past the last column that the request fixed, in front of which no row is
            cut; None where no row of the request has such a column.

    Examples:
        >>> from dllm_decode.decoding.types import Request, Vocab
        >>> canvas = Canvas.of(Request(((7, 8),), max_new_tokens=3), Vocab(mask_id=9, size=10))
        >>> canvas.tokens, canvas.decided
        (tensor([[7, 8, 9, 9, 9]]), tensor([[ True,  True, False, False, False]]))
    """

    rows: Tensor

    tokens: Tensor
    editable: Tensor
    decided: Tensor
    first: Tensor
    start: int
    end: Tensor
    horizon: Tensor
    step_of: Tensor
    confidence_of: Tensor
    kept: Tensor | None
    vocab: Vocab

    @staticmethod
    def of(
        request: Request,
        vocab: Vocab,
        device: torch.device | str = "cpu",
        rows: Sequence[int] | None = None,
    ) -> Canvas:
        """The canvas before the first step: left-padded prompts, fixed tokens, masks.

        Args:
            request: every row that may ever join, which sets start and width of the canvas.
            vocab: special ids.
            device: where the planes lie.
            rows: the rows that the canvas holds, None for all of them.
        """
        start, width = request.start, request.width
        rows = range(request.rows) if rows is None else rows
        infills = max(request.last_fixed) >= 0
        request = request.take(rows)
        pad = vocab.filler if vocab.pad_id is None else vocab.pad_id
        tokens = torch.full((request.rows, width), vocab.mask_id, dtype=torch.long)
        editable = torch.zeros(request.rows, width, dtype=torch.bool)
        for row, (prompt, length) in enumerate(zip(request.prompts, request.lengths, strict=True)):
            tokens[row, : start - len(prompt)] = pad
            tokens[row, start - len(prompt) : start] = torch.tensor(prompt, dtype=torch.long)
            tokens[row, start + length :] = vocab.filler
            editable[row, start : start + length] = True
            given = request.fixed[row] if request.fixed is not None else None
            for offset, token in (given or {}).items():
                tokens[row, start + offset] = token
                editable[row, start + offset] = False
        end = start + torch.tensor(request.lengths)
        return Canvas(
            rows=torch.tensor(list(rows), device=device),
            tokens=tokens.to(device),
            editable=editable.to(device),
            decided=~editable.to(device),
            first=(start - torch.tensor([len(p) for p in request.prompts])).to(device),
            start=start,
            end=end.to(device),
            horizon=end.clone().to(device),
            step_of=torch.full(tokens.shape, -1, device=device),
            confidence_of=torch.full(tokens.shape, float("nan"), device=device),
            kept=start + 1 + torch.tensor(request.last_fixed, device=device) if infills else None,
            vocab=vocab,
        )

    def snapshot(self) -> Snapshot:
        """What plugins and observers may see; the planes are replaced, never written to."""
        return Snapshot(
            tokens=self.tokens,
            editable=self.editable,
            decided=self.decided,
            first=self.first,
            start=self.start,
            end=self.end,
            horizon=self.horizon,
            vocab=self.vocab,
            rows=self.rows,
        )

    def apply(self, change: Change, *, revocable: bool = True) -> None:
        """Write one legal change; `change.index` counts from the first generated column.

        Args:
            change: of the rows of this canvas.
            revocable: False skips the re-masks of strategies that have none.
        """
        if revocable:
            hit = self._columns(change, change.remask)[1]
            self.tokens = self.tokens.masked_fill(hit, self.vocab.mask_id)
            self.decided = self.decided & ~hit
            self.step_of = self.step_of.masked_fill(hit, -1)
            self.confidence_of = self.confidence_of.masked_fill(hit, float("nan"))
        columns, hit = self._columns(change, change.commit)
        self.tokens = torch.where(hit, self._spread(columns, change.tokens), self.tokens)
        self.decided = self.decided | hit
        self.step_of = torch.where(hit, change.step[:, None], self.step_of)
        confidence = self._spread(columns, change.confidence.float())
        self.confidence_of = torch.where(hit, confidence, self.confidence_of)

    def _columns(self, change: Change, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Canvas columns of slots (others: one past the canvas), and the plane they cover."""
        width = self.tokens.shape[1]
        columns = torch.where(slots, change.index + self.start, width)
        return columns, self._spread(columns, slots)

    def _spread(self, columns: Tensor, values: Tensor) -> Tensor:
        """Values (B, W) on a plane (B, L) of zeros; column L takes what belongs nowhere."""
        rows, width = self.tokens.shape
        return values.new_zeros(rows, width + 1).scatter_(1, columns, values)[:, :width]

    def narrow(self, horizon: Tensor) -> None:
        """Shrink the horizons.

        Values beyond the present ones are ignored, and so are those in front of a fixed column: an
        end in front of what the caller wrote ends nothing.

        Args:
            horizon: (B,) canvas columns.
        """
        nearer = torch.minimum(self.horizon, horizon).clamp(min=self.start)
        if self.kept is not None:
            nearer = torch.where(nearer < self.kept, self.horizon, nearer)
        self.horizon = nearer
