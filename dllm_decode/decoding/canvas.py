"""The canvas: the only mutable picture of a decode, private to the loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_decode.decoding.types import Change, Request, Snapshot, Vocab


@dataclass
class Canvas:
    """Tokens, what is decided, and how far each row still matters; see `Snapshot` for the fields.

    step_of (B, L): step at which a column was committed, -1 before; confidence_of (B, L): with
    what confidence. Only `apply` and `narrow` write.
    """

    tokens: Tensor
    editable: Tensor
    decided: Tensor
    first: Tensor
    start: int
    end: Tensor
    horizon: Tensor
    step_of: Tensor
    confidence_of: Tensor
    vocab: Vocab

    @staticmethod
    def of(
        request: Request,
        vocab: Vocab,
        device: torch.device | str = "cpu",
        start: int | None = None,
        width: int | None = None,
    ) -> Canvas:
        """The canvas before the first step: left-padded prompts, fixed tokens, masks.

        start: first generated column, at least the longest prompt (the default); width: columns,
        at least start plus the longest answer (the default).
        """
        start = max(len(prompt) for prompt in request.prompts) if start is None else start
        width = start + max(request.lengths) if width is None else width
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
            tokens=tokens.to(device),
            editable=editable.to(device),
            decided=~editable.to(device),
            first=(start - torch.tensor([len(p) for p in request.prompts])).to(device),
            start=start,
            end=end.to(device),
            horizon=end.clone().to(device),
            step_of=torch.full(tokens.shape, -1, device=device),
            confidence_of=torch.full(tokens.shape, float("nan"), device=device),
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
        )

    def apply(self, change: Change, *, revocable: bool = True) -> None:
        """Write one legal change; `change.index` counts from the first generated column.

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
        """Shrink the horizons; larger values are ignored. horizon: (B,) canvas columns."""
        self.horizon = torch.minimum(self.horizon, horizon).clamp(min=self.start)

    _PLANES = (
        "tokens", "editable", "decided", "first", "end", "horizon", "step_of", "confidence_of",
    )  # fmt: skip

    def take(self, rows: Tensor) -> None:
        """Keep some rows, in the given order."""
        for name in self._PLANES:
            setattr(self, name, getattr(self, name)[rows])

    def join(self, other: Canvas) -> None:
        """Append the rows of another canvas of the same width and start."""
        for name in self._PLANES:
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
