"""The canvas: the only mutable picture of a decode, private to the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_decode.decoding.cache import mask_of
from dllm_decode.decoding.types import Change, Memory, Request, Snapshot, Vocab
from dllm_decode.kernels.reference import cast


@dataclass
class Canvas(Memory):
    """Tokens, what is decided, and how far each row still matters.

    Only `apply` and `narrow` write. Rows leave and join as in any memory.

    Attributes:
        rows: (B,) which row of the request each one is.
        planes: what is written per column, by name; see the properties of the same names. Each is
            (B, L + 1): what belongs nowhere is written to the column behind the canvas.
        editable: (B, L) bool, columns that a strategy may decide.
        first: (B,) first column of the row's prompt, behind the padding.
        start: first generated column, the same for all rows.
        end: (B,) one past the row's last column as requested.
        horizon: (B,) one past the last column still worth decoding.
        vocab: special token ids.
        kept: (B,) one past the last column that the request fixed, in front of which no row is
            cut; None where no row of the request has such a column.
        revised: (B, L) how often a column was opened again or written over; None where nobody
            counts.

    Examples:
        >>> from dllm_decode.decoding.types import Request, Vocab
        >>> canvas = Canvas.of(Request(((7, 8),), max_new_tokens=3), Vocab(mask_id=9, size=10))
        >>> canvas.tokens, canvas.decided
        (tensor([[7, 8, 9, 9, 9]]), tensor([[ True,  True, False, False, False]]))
    """

    rows: Tensor
    planes: dict[str, Tensor]
    editable: Tensor
    first: Tensor
    start: int
    end: Tensor
    horizon: Tensor
    kept: Tensor | None
    vocab: Vocab
    revised: Tensor | None = None
    _seen: Snapshot | None = None

    @staticmethod
    def of(
        request: Request,
        vocab: Vocab,
        device: torch.device | str = "cpu",
        rows: Sequence[int] | None = None,
        *,
        counted: bool = False,
    ) -> Canvas:
        """The canvas before the first step: left-padded prompts, fixed tokens, masks.

        Args:
            request: every row that may ever join, which sets start and width of the canvas.
            vocab: special ids.
            device: where the planes lie.
            rows: the rows that the canvas holds, None for all of them.
            counted: whether revisions are counted.
        """
        rows = range(request.rows) if rows is None else rows
        beyond = request.width
        lines = [_line(request, row, vocab) for row in rows]
        packed = torch.tensor(lines, dtype=torch.long, device=device)  # one upload
        tokens, shape = packed[:, : beyond + 1], (len(lines), beyond + 1)
        decided = packed[:, beyond + 1 : 2 * beyond + 2].bool()
        row, first, end, kept = packed[:, 2 * beyond + 2 :].unbind(1)
        return Canvas(
            rows=row,
            planes={
                "tokens": tokens,
                "decided": decided,
                "step_of": torch.full(shape, -1, device=device),
                "confidence_of": torch.full(shape, float("nan"), device=device),
            },
            editable=~decided[:, :-1],
            first=first,
            start=request.start,
            end=end,
            horizon=end,
            kept=kept if max(request.last_fixed) >= 0 else None,
            vocab=vocab,
            revised=torch.zeros_like(tokens[:, :-1]) if counted else None,
        )

    @property
    def tokens(self) -> Tensor:
        """Ids, the mask id in undecided columns, (B, L)."""
        return self._plane("tokens")

    @property
    def decided(self) -> Tensor:
        """Columns that hold their token, (B, L) bool."""
        return self._plane("decided")

    @property
    def step_of(self) -> Tensor:
        """Step at which a column's token was last written, -1 before, (B, L)."""
        return self._plane("step_of")

    @property
    def confidence_of(self) -> Tensor:
        """With what confidence, NaN before, (B, L)."""
        return self._plane("confidence_of")

    def answers(self) -> dict[str, Tensor]:
        """What stands in the generated columns, when it was written and how surely, (B, G) each."""
        names = ("tokens", "step_of", "confidence_of")
        return {name: self.planes[name][:, self.start : -1] for name in names}

    def _plane(self, name: str) -> Tensor:
        return self.planes[name][:, :-1]

    def snapshot(self) -> Snapshot:
        """What plugins and observers may see; the planes are replaced, never written to."""
        if self._seen is None:
            self._seen = Snapshot(
                tokens=self.tokens,
                editable=self.editable,
                decided=self.decided,
                first=self.first,
                start=self.start,
                end=self.end,
                horizon=self.horizon,
                vocab=self.vocab,
                rows=self.rows,
                revised=self.revised,
            )
        return self._seen

    def forget_snapshot(self) -> None:
        """Forget the snapshot: the planes hold other numbers now."""
        self._seen = None

    def take(self, rows: Tensor) -> None:
        """Keep the given rows (B',) int64, in that order."""
        super().take(rows)
        self._seen = None

    def join(self, other: Memory) -> None:
        """Append the rows of another canvas of the same request."""
        super().join(other)
        self._seen = None

    def apply(
        self, change: Change, columns: Tensor | None = None, *, revocable: bool = True
    ) -> None:
        """Write one legal change.

        Args:
            change: of the rows of this canvas.
            columns: (B, W) canvas columns of its slots; None for those of `change.index`, which
                counts from the first generated one.
            revocable: False skips the re-masks of strategies that have none.
        """
        before = self.snapshot()
        columns = change.index + self.start if columns is None else columns
        beyond = self.editable.shape[1]
        planes = self.planes
        if revocable:
            opened = torch.where(change.remask, columns, beyond)
            planes = _written(planes, opened, self.vocab.mask_id, False, -1, float("nan"))
        decided = torch.where(change.written, columns, beyond)
        step = change.step[:, None].expand_as(decided)
        confidence = cast(change.confidence, torch.float)
        # all at once: an interrupt between two lines must not leave half a step
        self.planes = _written(planes, decided, change.tokens, True, step, confidence)
        if self.revised is not None:
            again = change.remask if change.edit is None else change.remask | change.edit
            self.revised = self.revised + mask_of(torch.where(again, columns, -1), beyond)
        tokens, now = self._plane("tokens"), self._plane("decided")
        self._seen = before.written(tokens, now, self.revised, opened=revocable)

    def narrow(self, horizon: Tensor) -> None:
        """Shrink the horizons.

        Values beyond the present ones are ignored, and so are those in front of a fixed column: an
        end in front of what the caller wrote ends nothing.

        Args:
            horizon: (B,) canvas columns.
        """
        if horizon is self.horizon:
            return
        nearer = torch.minimum(self.horizon, horizon).clamp(min=self.start)
        if self.kept is not None:
            nearer = torch.where(nearer < self.kept, self.horizon, nearer)
        self._seen, self.horizon = self.snapshot().narrowed(nearer), nearer


def _written(
    planes: Mapping[str, Tensor], columns: Tensor, *values: Tensor | float
) -> dict[str, Tensor]:
    """The planes with values (B, W), or one for all, written at columns (B, W), one per plane."""
    return {
        name: plane.scatter(1, columns, value)
        for (name, plane), value in zip(planes.items(), values, strict=True)
    }


def _line(request: Request, row: int, vocab: Vocab) -> list[int]:
    """All that is known of a row before its first step.

    Its tokens, whether each is decided, its number, first column, end, and the end of what is kept.
    One column behind the canvas takes what belongs nowhere.
    """
    start, prompt, length = request.start, request.prompts[row], request.lengths[row]
    padding, behind = start - len(prompt), request.width - start - length
    pad = vocab.filler if vocab.pad_id is None else vocab.pad_id
    tokens = [pad] * padding + list(prompt) + [vocab.mask_id] * length
    tokens += [vocab.filler] * (behind + 1)
    decided = [1] * start + [0] * length + [1] * behind + [0]
    given = request.fixed[row] if request.fixed else None
    for offset, token in (given or {}).items():
        tokens[start + offset], decided[start + offset] = token, 1
    return [*tokens, *decided, row, padding, start + length, start + 1 + request.last_fixed[row]]
