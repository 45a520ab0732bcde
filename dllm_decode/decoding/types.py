"""The values that pass between the loop and its plugins; nothing here decides anything.

Letters used throughout: B rows, L canvas columns, W window slots, V vocabulary, K sparse slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.renamed import renamed_names, say_renamed
from dllm_decode.errors import ConfigError
from dllm_decode.kernels.noise import Noise


@dataclass(frozen=True)
class Vocab:
    """The token ids a decoder has to know.

    size: number of ids V, 1 or more; mask_id: the undecided token; eot_ids: ids that end a text,
    the first one is written behind the end; pad_id: left padding; banned_ids: further control
    tokens that must never be generated (the mask id is always banned).
    """

    size: int
    mask_id: int
    eot_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    banned_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        padding = () if self.pad_id is None else (self.pad_id,)
        for name, ids in (
            ("mask_id", (self.mask_id,)),
            ("eot_ids", self.eot_ids),
            ("pad_id", padding),
            ("banned_ids", self.banned_ids),
        ):
            for token in ids:
                if not 0 <= token < self.size:
                    raise ConfigError(f"{name} must lie in [0, {self.size - 1}], got {token}")
        if self.mask_id in self.eot_ids:
            raise ConfigError(f"the mask id {self.mask_id} cannot end a text as well")

    @property
    def never_generated(self) -> tuple[int, ...]:
        """Ids removed before every argmax and draw, ascending."""
        return tuple(sorted({self.mask_id, *self.banned_ids}))

    @property
    def filler(self) -> int:
        """The id written behind the end of a row: end of text, else padding, else the mask."""
        if self.eot_ids:
            return self.eot_ids[0]
        return self.mask_id if self.pad_id is None else self.pad_id


@dataclass(frozen=True)
class Request:
    """What to decode: one entry per row.

    prompts: token ids per row, of any lengths from 0 up; max_new_tokens: columns generated per row,
    one number for all or one per row, 1 or more; seeds: one per row (None: row i gets seed i);
    fixed: per row None or {offset: token id}, tokens given in advance at offsets 0, 1, ... behind
    the prompt (infilling); reference: per row the tokens another decode gave, for strategies that
    need one (`strategy=oracle`); parameters: per row None or {full key: value}, parameters of the
    strategy that this row sets for itself, e.g. {"strategy.select.threshold": 0.8}; see
    `Part.request_parameters`.
    Raises `ConfigError` for empty requests, bad lengths and offsets outside the canvas.
    """

    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int | tuple[int, ...] = 128
    seeds: tuple[int, ...] | None = None
    fixed: tuple[Mapping[int, int] | None, ...] | None = None
    reference: tuple[Sequence[int], ...] | None = None
    parameters: tuple[Mapping[str, float] | None, ...] | None = None

    def __post_init__(self) -> None:
        rows = len(self.prompts)
        if rows == 0:
            raise ConfigError("a request needs at least one prompt, got none")
        for name in ("seeds", "fixed", "reference", "parameters"):
            value = getattr(self, name)
            if value is not None and len(value) != rows:
                raise ConfigError(
                    f"{name} must have one entry per prompt ({rows}), got {len(value)}"
                )
        if isinstance(self.max_new_tokens, tuple) and len(self.max_new_tokens) != rows:
            raise ConfigError(
                f"max_new_tokens must be one number or one per prompt ({rows}), "
                f"got {len(self.max_new_tokens)}"
            )
        for length in self.lengths:
            if isinstance(length, bool) or not isinstance(length, int) or length < 1:
                raise ConfigError(f"max_new_tokens must be a whole number >= 1, got {length!r}")
        for row, tokens in enumerate(self.fixed or ()):
            for offset in tokens or {}:
                if not 0 <= offset < self.lengths[row]:
                    raise ConfigError(
                        f"fixed token of row {row} must have an offset in "
                        f"[0, {self.lengths[row] - 1}], got {offset}"
                    )

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.prompts)

    @property
    def lengths(self) -> tuple[int, ...]:
        """`max_new_tokens` of each row."""
        if isinstance(self.max_new_tokens, tuple):
            return self.max_new_tokens
        return (self.max_new_tokens,) * len(self.prompts)

    @property
    def last_fixed(self) -> tuple[int, ...]:
        """The last offset whose token is given in advance in each row, -1 where none is."""
        given = self.fixed or (None,) * self.rows
        return tuple(max(tokens or {}, default=-1) for tokens in given)

    def take(self, rows: Sequence[int]) -> Request:
        """The request restricted to some rows, in the given order."""

        def pick(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
            return None if values is None else tuple(values[row] for row in rows)

        prompts = pick(self.prompts)
        assert prompts is not None
        return Request(
            prompts=prompts,
            max_new_tokens=tuple(self.lengths[row] for row in rows),
            seeds=pick(self.row_seeds),
            fixed=pick(self.fixed),
            reference=pick(self.reference),
            parameters=pick(self.parameters),
        )

    @property
    def row_seeds(self) -> tuple[int, ...]:
        """The seed of each row; row i has seed i where none were given."""
        return tuple(range(self.rows)) if self.seeds is None else self.seeds


@dataclass
class Memory:
    """What a plugin remembers during one request; the loop owns it.

    Subclass it as a dataclass. Tensor fields have the rows in dimension 0, so that `take` can
    keep, drop and reorder rows; nested memories and mappings of memories follow.
    """

    def take(self, rows: Tensor) -> None:
        """Keep the given rows, in that order; rows: (B',) int64."""
        for entry in fields(self):
            setattr(self, entry.name, _take(getattr(self, entry.name), rows))

    def join(self, other: Memory) -> None:
        """Append the rows of another memory of the same plugin (rows that join a running batch)."""
        for entry in fields(self):
            own, new = getattr(self, entry.name), getattr(other, entry.name)
            setattr(self, entry.name, _join(own, new))


def _take(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, Memory):
        value.take(rows)
    if isinstance(value, dict):
        return {key: _take(entry, rows) for key, entry in value.items()}
    return value


def _join(own: Any, new: Any) -> Any:
    if isinstance(own, Tensor):
        return torch.cat([own, new])
    if isinstance(own, Memory):
        own.join(new)
    if isinstance(own, dict):
        return {key: _join(entry, new[key]) for key, entry in own.items()}
    return own


@dataclass(frozen=True)
class Snapshot:
    """A frozen copy of the canvas for schedules, caches, stop rules and observers.

    tokens (B, L): prompt (left-padded), then the generated columns, undecided ones hold the mask
    id; editable (B, L): columns a strategy may decide; decided (B, L): columns that hold their
    token (never inferred from tokens == mask_id); first (B,): first column of the row's prompt;
    start: first generated column, the same for all rows; end (B,): one past the row's last column
    as requested; horizon (B,): one past the last column still worth decoding; vocab: special ids;
    rows (B,): which row of the request each one is.
    """

    tokens: Tensor
    editable: Tensor
    decided: Tensor
    first: Tensor
    start: int
    end: Tensor
    horizon: Tensor
    vocab: Vocab
    rows: Tensor

    @cached_property
    def columns(self) -> Tensor:
        """0, 1, ... L-1, (L,) int64."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device)

    @cached_property
    def live(self) -> Tensor:
        """Columns that still exist: behind the padding, before the horizon, (B, L) bool."""
        return (self.columns >= self.first[:, None]) & (self.columns < self.horizon[:, None])

    @cached_property
    def undecided(self) -> Tensor:
        """Columns that still have to be decided, (B, L) bool."""
        return self.editable & ~self.decided & (self.columns < self.horizon[:, None])

    @cached_property
    def never_generated(self) -> Tensor:
        """Ids that are never committed, (M,) int64."""
        return self.ids(self.vocab.never_generated)

    def ids(self, ids: Sequence[int]) -> Tensor:
        """Token ids as a tensor on the canvas's device, uploaded once, (N,) int64."""
        return _ids_on(tuple(ids), self.tokens.device)

    @cached_property
    def mask_ratio(self) -> Tensor:
        """Undecided share of the live generated columns, (B,) in [0, 1]."""
        live = (self.live & (self.columns >= self.start)).sum(1)
        return self.undecided.sum(1) / live.clamp(min=1)


@lru_cache(maxsize=64)
def _ids_on(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """Ids on a device, uploaded once: an upload in every step would make the host wait."""
    return torch.tensor(ids, device=device, dtype=torch.long)


@dataclass(frozen=True)
class StepView:
    """Everything a plugin may know about one step; read-only.

    step (B,): steps the row has done; index (B, W): canvas column of each slot, -1 where the row
    has none; pred: the prediction at the slots; tokens (B, W): what stands there; active (B, W):
    slots of the row's current window (all slots, unless a part asked to see the whole canvas);
    open (B, W): slots that may be committed now; masked (B, W): undecided slots, also outside the
    window; settled (B, W): slots decided by an earlier step, which revocable strategies may
    re-mask; fresh (B,): the row has just entered this window; window_step (B,): steps done in this
    window; window_open (B,): open slots when it was entered; steps_left (B,): steps until the row's
    budget ends, or its undecided columns where there is none; snapshot: the canvas before this
    step;
    noise: random numbers of this step; prober: see `probe`; parameters, part: see `parameter`.
    """

    step: Tensor
    index: Tensor
    pred: Prediction
    tokens: Tensor
    active: Tensor
    open: Tensor
    masked: Tensor
    settled: Tensor
    fresh: Tensor
    window_step: Tensor
    window_open: Tensor
    steps_left: Tensor
    snapshot: Snapshot
    noise: Noise
    prober: Callable[[Tensor], Prediction] | None = field(default=None, repr=False)
    parameters: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    part: str = "strategy"

    @cached_property
    def mask_ratio(self) -> Tensor:
        """Undecided share of the current window, (B,) in [0, 1]."""
        size = (self.active & (self.index >= 0)).sum(1)
        return (self.active & self.masked).sum(1) / size.clamp(min=1)

    def probe(self, tokens: Tensor) -> Prediction:
        """One more forward pass with other tokens in the window, counted in `forwards`.

        tokens: (B, W) ids to put into the open slots for this pass only. Other slots are kept.
        """
        if self.prober is None:
            raise ConfigError("this view was made by hand and has no model to probe")
        return self.prober(torch.where(self.open, tokens, self.tokens))

    def parameter(self, name: str, default: float, like: Tensor) -> Tensor | float:
        """A setting of the part that asks: the default, or (B, 1) where rows set their own.

        name: a field that the part lists in `request_parameters`; default: its value; like: tensor
        of the precision in which it is used.
        """
        own = self.parameters.get(f"{self.part}.{name}")
        return default if own is None else own.to(like.dtype)

    @property
    def board(self) -> Snapshot:
        """The old name of `snapshot`; warns."""
        say_renamed("StepView.board", "StepView.snapshot")
        return self.snapshot

    def knob(self, name: str, default: float, like: Tensor) -> Tensor | float:
        """The old name of `parameter`; warns."""
        say_renamed("StepView.knob", "StepView.parameter")
        return self.parameter(name, default, like)

    def for_part(self, place: str) -> StepView:
        """The step as a part of a pipeline sees it. place: its key below the pipeline's own."""
        return replace(self, part=f"{self.part}.{place}")

    def with_prediction(self, pred: Prediction) -> StepView:
        """The same step with another prediction, as transforms produce it."""
        return replace(self, pred=pred)

    def gather(self, plane: Tensor) -> Tensor:
        """Values of a canvas plane at the slots: (B, L, ...) to (B, W, ...)."""
        return gather_columns(plane, self.index)


def gather_columns(plane: Tensor, index: Tensor) -> Tensor:
    """Values of a canvas plane at the slots; slots without a column (-1) read column 0.

    plane: (B, L, ...); index: (B, W). Returns (B, W, ...).
    """
    safe = index.clamp(min=0)
    if plane.dim() > 2:
        extra = (1,) * (plane.dim() - 2)
        safe = safe.reshape(*safe.shape, *extra).expand(*index.shape, *plane.shape[2:])
    return plane.gather(1, safe)


@dataclass(frozen=True)
class Decision:
    """A strategy's decision for one step.

    commit (B, W) bool: slots to decide; tokens (B, W): with what (None: the prediction's `token`);
    remask (B, W) bool: settled slots to open again (revocable strategies only); scores (B, W):
    which open slot is taken when progress must be forced, largest first (None: the confidence);
    confidence (B, W): what is recorded beside each token (None: the prediction's); notes: tensors
    (B, ...) for traces and stop rules; predictions, author: for messages, what each transform made
    of the prediction and which part decided; the loop fills them in.
    """

    commit: Tensor
    tokens: Tensor | None = None
    remask: Tensor | None = None
    scores: Tensor | None = None
    confidence: Tensor | None = None
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    predictions: tuple[tuple[str, Prediction], ...] = field(default=(), repr=False, compare=False)
    author: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True)
class Change:
    """What one step did; also the record of a trace: replaying all changes gives the result.

    rows (B,): request rows; step (B,); index (B, W): columns relative to the first generated one,
    -1 for none; commit, remask (B, W) bool; tokens (B, W); confidence (B, W): as the rule saw it;
    probability (B, W): as the model gave it; scores (B, W); forced (B,): progress was forced;
    horizon (B,): generated columns still worth decoding after the step; probes: extra forwards of
    the step per row; notes: see `Decision`.
    """

    rows: Tensor
    step: Tensor
    index: Tensor
    commit: Tensor
    remask: Tensor
    tokens: Tensor
    confidence: Tensor
    probability: Tensor
    scores: Tensor
    forced: Tensor
    horizon: Tensor
    probes: int
    notes: Mapping[str, Tensor]

    def take(self, rows: Tensor) -> Change:
        """The change restricted to some of its rows; rows: (B',) int64 positions."""
        values: dict[str, Any] = {
            entry.name: value[rows] if isinstance(value, Tensor) else value
            for entry in fields(self)
            if (value := getattr(self, entry.name)) is not self.notes
        }
        notes = {name: note[rows] for name, note in self.notes.items()}
        return Change(**values, notes=notes)


__getattr__ = renamed_names(__name__, {"Board": "Snapshot"}, globals())
