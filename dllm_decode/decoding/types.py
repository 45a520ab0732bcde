"""The values that pass between the loop and its plugins; nothing here decides anything.

Letters used throughout: B rows, L canvas columns, W window slots, V vocabulary, K sparse slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from numbers import Integral
from typing import Any, ClassVar, Protocol, TypeGuard

import torch
from torch import Tensor

from dllm_decode.decoding.prediction import (
    Prediction,
    PredictionError,
    check_flags,
    check_tokens,
)
from dllm_decode.decoding.renamed import renamed_names, say_renamed
from dllm_decode.errors import ConfigError, require_count
from dllm_decode.kernels.lazy import LazyFields, copied, once
from dllm_decode.kernels.noise import Noise


@dataclass(frozen=True)
class Vocab:
    """The token ids a decoder has to know.

    Attributes:
        size: number of ids V, 1 or more.
        mask_id: the id that stands on an undecided column.
        eot_ids: ids that end a text; the first one is written behind the end.
        pad_id: left padding, None where the model has none.
        banned_ids: further control tokens that must never be generated (the mask id never is).

    Raises:
        ConfigError: for ids outside the vocabulary, and a mask that ends a text as well.

    Examples:
        >>> Vocab(size=12, mask_id=11, eot_ids=(10,), banned_ids=(9,)).never_generated
        (9, 11)
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


LONGEST = 2**20  # generated columns of a row; no model reads as many, and a canvas has to fit

_MAPPING = "a mapping or None"
_ENTRIES = {  # fields of a request that have one per row
    "seeds": "a whole number",
    "fixed": _MAPPING,
    "reference": "a sequence of token ids",
    "parameters": _MAPPING,
}


@dataclass(frozen=True)
class Request:
    """What to decode: one entry per row.

    Attributes:
        prompts: token ids per row, of any lengths from 0 up.
        max_new_tokens: columns generated per row, one number for all or one per row, 1 to 2^20.
        seeds: one per row; None gives row i the seed i.
        fixed: per row None or {offset: token id}, tokens given in advance at offsets 0, 1, ...
            behind the prompt (infilling).
        reference: per row the tokens that another decode gave, for strategies that need one
            (`strategy=oracle`).
        parameters: per row None or {full key: value}, parameters of the strategy that this row
            sets for itself, e.g. {"strategy.select.threshold": 0.8}; see
            `Part.request_parameters`.

    Raises:
        ConfigError: for empty requests, bad lengths and offsets outside the canvas.

    Examples:
        >>> Request(((1, 2, 3), (4,)), max_new_tokens=8).lengths
        (8, 8)
    """

    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int | tuple[int, ...] = 128
    seeds: tuple[int, ...] | None = None
    fixed: tuple[Mapping[int, int] | None, ...] | None = None
    reference: tuple[Sequence[int], ...] | None = None
    parameters: tuple[Mapping[str, float] | None, ...] | None = None

    def __post_init__(self) -> None:
        _check_prompts(self.prompts)
        object.__setattr__(self, "max_new_tokens", self._checked_lengths())
        for name, entry in _ENTRIES.items():
            self._check_entries(name, entry)
        for row, seed in enumerate(self.seeds or ()):
            _require_whole([seed], f"the seed of row {row} must be a whole number")
            if not -(2**63) <= seed < 2**63:
                raise ConfigError(f"the seed of row {row} must lie in [-2**63, 2**63), got {seed}")
        if self.seeds is not None:
            object.__setattr__(self, "seeds", tuple(map(int, self.seeds)))
        self._check_fixed()

    def _checked_lengths(self) -> int | tuple[int, ...]:
        """`max_new_tokens` as numbers of Python's own."""
        given = self.max_new_tokens
        if not _is_sequence(given):
            return _length(given)
        if len(given) != self.rows:
            raise ConfigError(
                f"max_new_tokens must be one number or one per prompt ({self.rows}), "
                f"got {len(given)}"
            )
        return tuple(map(_length, given))

    def _check_entries(self, name: str, entry: str) -> None:
        """A field with an entry per row is kept as a tuple."""
        given = getattr(self, name)
        if given is None:
            return
        if not _is_sequence(given):
            raise ConfigError(f"{name} must be a sequence with {entry} per prompt, got {given!r}")
        if len(given) != self.rows:
            raise ConfigError(
                f"{name} must have one entry per prompt ({self.rows}), got {len(given)}"
            )
        for row, own in enumerate(given):
            if entry == _MAPPING and not (own is None or isinstance(own, Mapping)):
                raise ConfigError(f"{name} of row {row} must be {entry}, got {own!r}")
        object.__setattr__(self, name, tuple(given))

    def _check_fixed(self) -> None:
        for row, tokens in enumerate(self.fixed or ()):
            _require_whole((tokens or {}).values(), f"fixed tokens of row {row} must be token ids")
            _require_whole(
                tokens or (), f"offsets of row {row}'s fixed tokens must be whole numbers"
            )
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

    @once
    def lengths(self) -> tuple[int, ...]:
        """`max_new_tokens` of each row."""
        if isinstance(self.max_new_tokens, tuple):
            return self.max_new_tokens
        return (self.max_new_tokens,) * len(self.prompts)

    @once
    def start(self) -> int:
        """The first generated column: the length of the longest prompt."""
        return max(map(len, self.prompts))

    @once
    def width(self) -> int:
        """Canvas columns: those of the longest prompt and of the longest answer."""
        return self.start + max(self.lengths)

    @once
    def last_fixed(self) -> tuple[int, ...]:
        """The last offset whose token is given in advance in each row, -1 where none is."""
        given = self.fixed or (None,) * self.rows
        return tuple(max(tokens or {}, default=-1) for tokens in given)

    def take(self, rows: Sequence[int]) -> Request:
        """The request of some of its rows, in the given order; rows keep their seeds."""

        def pick(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
            return None if values is None else tuple(values[row] for row in rows)

        return copied(  # what was checked once needs no second look
            self,
            prompts=pick(self.prompts),
            max_new_tokens=tuple(self.lengths[row] for row in rows),
            seeds=pick(self.row_seeds),
            fixed=pick(self.fixed),
            reference=pick(self.reference),
            parameters=pick(self.parameters),
        )

    @once
    def row_seeds(self) -> tuple[int, ...]:
        """The seed of each row; row i has seed i where none were given."""
        return tuple(range(self.rows)) if self.seeds is None else self.seeds


def _is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether something has entries in an order: a list, a tuple, an array, but no text."""
    listed = isinstance(value, Sequence) or getattr(value, "ndim", 0) > 0
    return listed and not isinstance(value, str | bytes | bytearray | memoryview)


def _check_prompts(prompts: object) -> None:
    what = "prompts must be a sequence of prompts, each a sequence of token ids"
    if not _is_sequence(prompts):
        raise ConfigError(f"{what}, got {prompts!r}")
    if not len(prompts):
        raise ConfigError("a request needs at least one prompt, got none")
    for row, prompt in enumerate(prompts):
        if not _is_sequence(prompt) and not isinstance(prompt, str):
            raise ConfigError(f"{what}; row {row} is {prompt!r}")
        _require_whole(prompt, f"prompt {row} must hold token ids")


def _length(value: object) -> int:
    length = require_count("max_new_tokens", value)
    if length > LONGEST:
        raise ConfigError(f"max_new_tokens must be at most {LONGEST}, got {length}")
    return length


def _require_whole(values: Iterable[object], what: str) -> None:
    for value in values:
        if type(value) is int:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ConfigError(f"{what}, got {value!r}")


@dataclass
class Memory:
    """What a plugin remembers during one request.

    Subclass it as a dataclass and return one from `begin`; the loop owns it, hands it to every
    call, and drops it when the request ends. Every tensor has the rows of the batch in its first
    dimension, so that `take` and `join` can follow the batch when rows leave and join; nested
    memories and dicts are followed as well. Anything else a memory holds stays as it is.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Calm(Memory):
        ...     steps: Tensor  # (B,) steps in which nothing changed
        >>> calm = Calm(torch.tensor([4, 0, 2]))
        >>> calm.take(torch.tensor([0, 2]))
        >>> calm.steps
        tensor([4, 2])
    """

    def take(self, rows: Tensor) -> None:
        """Keep the given rows (B',) int64, in that order."""
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
    """The canvas at one moment, read-only: for schedules, caches, stop rules and observers.

    Attributes:
        tokens: (B, L) ids: padding, prompt, then the generated columns; undecided ones hold the
            mask id.
        editable: (B, L) bool, columns that a strategy may decide.
        decided: (B, L) bool, columns that hold their token (never inferred from the token).
        first: (B,) first column of the row's prompt, behind the padding.
        start: first generated column, the same for all rows.
        end: (B,) one past the row's last column as requested.
        horizon: (B,) one past the last column still worth decoding.
        vocab: special token ids.
        rows: (B,) which row of the request each one is.
        revised: (B, L) how often a column has been opened again or written over; None unless the
            strategy's progress rule is `Revisions`.

    Examples:
        >>> from dllm_decode.decoding.canvas import Canvas
        >>> request = Request(((7, 8),), max_new_tokens=3)
        >>> snapshot = Canvas.of(request, Vocab(mask_id=9, size=10)).snapshot()
        >>> snapshot.undecided
        tensor([[False, False,  True,  True,  True]])
        >>> snapshot.mask_ratio
        tensor([1.])
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
    revised: Tensor | None = None

    @once
    def columns(self) -> Tensor:
        """0, 1, ... L-1, (L,) int64."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device)

    @once
    def live(self) -> Tensor:
        """Columns that still exist: behind the padding, before the horizon, (B, L) bool."""
        return (self.columns >= self.first[:, None]) & self._near

    @once
    def undecided(self) -> Tensor:
        """Columns that still have to be decided, (B, L) bool."""
        return (self.editable > self.decided) & self._near

    @once
    def left(self) -> Tensor:
        """How many columns each row still has to decide, (B,) int64."""
        return self.undecided.sum(1)

    @once
    def first_undecided(self) -> Tensor:
        """The first column that each row still has to decide, L where none is left, (B,) int64."""
        return first_column(self.undecided)

    @once
    def behind_fixed(self) -> Tensor:
        """Generated columns from the last one on that the request fixed, (B, L) bool."""
        generated = self.columns >= self.start
        fixed = generated & self.live & ~self.editable
        last = torch.where(fixed, self.columns, -1).amax(1, keepdim=True)
        return generated & (self.columns >= last)

    @once
    def _near(self) -> Tensor:
        """Columns before the horizon, (B, L) bool."""
        return self.columns < self.limit

    @once
    def limit(self) -> Tensor:
        """The horizons as a column, (B, 1)."""
        return self.horizon.unsqueeze(1)

    def written(
        self, tokens: Tensor, decided: Tensor, revised: Tensor | None = None, *, opened: bool = True
    ) -> Snapshot:
        """The snapshot after a write; horizons, and what follows from them alone, are the same.

        Args:
            tokens: (B, L) ids.
            decided: (B, L) bool.
            revised: (B, L) see above.
            opened: whether decided columns may have been opened again.
        """
        after = copied(self, tokens=tokens, decided=decided, revised=revised)
        if not opened and "undecided" in vars(self):
            vars(after)["undecided"] = self.undecided > decided
        return self._hand_on(after, "columns", "behind_fixed", "live", "_near", "limit")

    def _hand_on(self, after: Snapshot, *names: str) -> Snapshot:
        """A later snapshot with what is already known and still holds."""
        own, new = vars(self), vars(after)
        for name in names:
            if name in own:
                new[name] = own[name]
        return after

    def narrowed(self, horizon: Tensor) -> Snapshot:
        """The snapshot with horizons (B,) that are as near as before, or nearer."""
        after = self._hand_on(copied(self, horizon=horizon), "columns", "behind_fixed")
        near = after._near
        vars(after).update(live=self.live & near, undecided=self.undecided & near)
        if "first_undecided" in vars(self):
            first, width = self.first_undecided, self.tokens.shape[1]
            vars(after)["first_undecided"] = first.masked_fill(first >= horizon, width)
        return after

    @once
    def never_generated(self) -> Tensor:
        """Ids that are never committed, (M,) int64."""
        return self.ids(self.vocab.never_generated)

    def ids(self, ids: Sequence[int]) -> Tensor:
        """Token ids as a tensor on the canvas's device, uploaded once, (N,) int64."""
        return ids_on(tuple(ids), self.tokens.device)

    @once
    def mask_ratio(self) -> Tensor:
        """Undecided share of the live generated columns, (B,) in [0, 1]."""
        live = (self.live & (self.columns >= self.start)).sum(1)
        return self.undecided.sum(1) / live.clamp(min=1)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def ids_on(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """Ids on a device, uploaded once: an upload in every step would make the host wait.

    Args:
        ids: token ids.
        device: where they are needed.
    """
    return torch.tensor(ids, device=device, dtype=torch.long)


@dataclass(frozen=True)
class StepView(LazyFields):
    """Everything a plugin may know about one step; read-only.

    A view has B rows and W slots. Each slot looks at one column of the canvas; where a row has
    fewer columns to offer, its last slots are empty. Shifted prompts, padding and block offsets are
    dealt with before: whatever is `(B, W)` here can be compared slot by slot.

    Attributes:
        step: (B,) steps the row has done, 0 in its first.
        index: (B, W) canvas column of each slot, -1 for an empty slot.
        pred: the prediction at the slots, as the transforms before have left it.
        tokens: (B, W) what stands at the slots; the mask id where undecided.
        active: (B, W) bool, slots of the row's current window; all that are not empty, unless a
            part asked to see the whole canvas.
        open: (B, W) bool, slots that may be committed now.
        masked: (B, W) bool, undecided slots, also outside the window.
        settled: (B, W) bool, slots of the window decided in an earlier step, which strategies that
            declare it may open again (`revocable`) or write over (`revises`).
        fresh: (B,) bool, the row has just entered this window.
        window_step: (B,) steps done in this window.
        window_open: (B,) open slots when the window was entered.
        steps_left: (B,) steps until the row's budget ends, or its undecided columns where there
            is none.
        snapshot: the canvas before this step.
        noise: random numbers of this step, the same for a row in any batch.
        lingering: (B,) bool, rows that stay in a window that is full, because the strategy wants to
            look at it once more; None for strategies that never do.
        hidden: (B, W, D) the model's states at the slots, from which its head makes the logits;
            None unless a part declares `needs = {"hidden"}`.
        passes: what `probe`, `head` and `draft` call; None in views made by hand.
        parameters: what rows set for themselves, full key to (B, 1); see `parameter`.
        window: (B, W') columns of the row's window, -1 for none, where a cache gives no predictions
            for some of them, so that no slot looks there; None where slots are all of it.
        part: place of the part that looks, e.g. "strategy.select".
        banned: (M,) ids that the sampler was told never to propose; None in views made by hand.

    Examples:
        A rule that commits what is more likely than not:

        >>> def decide(view: StepView) -> Decision:
        ...     return Decision(view.open & (view.pred.confidence > 0.5))
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
    lingering: Tensor | None = None
    hidden: Tensor | None = field(default=None, repr=False)
    passes: Passes | None = field(default=None, repr=False)
    parameters: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    part: str = "strategy"
    banned: Tensor | None = field(default=None, repr=False)
    window: Tensor | None = field(default=None, repr=False)
    lazy: ClassVar[tuple[str, ...]] = ("tokens", "settled", "window_step", "steps_left")

    @once
    def offsets(self) -> Tensor:
        """The columns counted from the first generated one, -1 for an empty slot, (B, W) int64."""
        return (self.index - self.snapshot.start).clamp_(min=-1)

    @once
    def mask_ratio(self) -> Tensor:
        """Undecided share of the current window, (B,) in [0, 1]."""
        if self.window is None:
            size, undecided = (self.active & (self.index >= 0)).sum(1), self.active & self.masked
        else:
            inside = self.window >= 0
            size = inside.sum(1)
            undecided = inside & gather_columns(self.snapshot.undecided, self.window)
        return undecided.sum(1) / size.clamp(min=1)

    @once
    def window_columns(self) -> Tensor:
        """The columns of the row's window, with and without a prediction, -1 for none, (B, W')."""
        return torch.where(self.active, self.index, -1) if self.window is None else self.window

    @once
    def window_first(self) -> Tensor:
        """The lowest column of the row's window, L where it has none, (B,) int64."""
        return lowest_column(self.window_columns, self.snapshot.tokens.shape[1])

    @once
    def live(self) -> Tensor:
        """Rows that are not done: something in them is open, or they linger, (B,) bool."""
        opened = self.open.any(1)
        return opened if self.lingering is None else opened | self.lingering

    def probe(
        self,
        tokens: Tensor | Sequence[Tensor],
        *,
        where: Tensor | None = None,
        rows: Tensor | None = None,
        ahead: int | Sequence[int] = 0,
    ) -> Any:
        """What the model would predict if other tokens stood at some slots.

        One alternative is one forward pass of the rows that ask; several are asked in one pass
        (with a key/value store: one after the other). Each counts as a forward of every row that
        asked, and of no other.

        Args:
            tokens: (B, W) ids for this pass only, the mask id for a slot to be predicted anew; or
                K of them, as a sequence or stacked (B, K, W).
            where: (B, W) bool, the slots that hold them, open or settled; None for the open ones.
                All others keep what they hold.
            rows: (B,) bool, the rows that ask, or (B, K) for each alternative; None for all that
                are not done. What the others are given means nothing.
            ahead: by how many steps the random numbers of an alternative are ahead of this step's,
                one number or one per alternative; matters where a sampler draws.

        Returns:
            The prediction of that pass, before any transform; a tuple of them for several.

        Raises:
            ConfigError: where the view was made by hand.
            PredictionError: for tokens of another shape or type, or outside the vocabulary.
        """
        if self.passes is None:
            raise ConfigError("this view was made by hand and has no model to probe")
        given, alone = _alternatives(tokens)
        many = ahead if isinstance(ahead, Sequence) else (ahead,) * len(given)
        steps = tuple(_steps_ahead("probe", step) for step in many)
        if not given or len(steps) != len(given):
            raise PredictionError(
                f"probe needs one alternative or more, and as many numbers in `ahead`; got "
                f"{len(given)} and {len(steps)}"
            )
        where = self.open if where is None else where
        for alternative in given:
            check_tokens("probe needs", alternative, self.tokens, self.snapshot.vocab.size)
        check_flags("probe needs where as", where, self.open)
        held = where & (self.index >= 0)
        canvases = [torch.where(held, alternative, self.tokens) for alternative in given]
        found = self.passes.probe(canvases, self._asking(rows, len(given)), rows is None, steps)
        return found[0] if alone else found

    def _asking(self, rows: Tensor | None, count: int) -> list[Tensor]:
        """The rows that ask each of some alternatives, (B,) bool each."""
        if rows is None:
            return [self.live] * count
        each = isinstance(rows, Tensor) and rows.dim() == 2
        like = self.live[:, None].expand(-1, count) if each else self.live
        check_flags("probe needs rows as", rows, like)
        return [asked & self.live for asked in (rows.unbind(1) if each else [rows] * count)]

    def later(self, steps: int) -> Prediction:
        """This step's prediction with the random numbers of a later one; no forward pass.

        The proposals differ where a sampler draws, the probabilities nowhere.

        Args:
            steps: how many steps later, 0 or more.

        Raises:
            ConfigError: where the view was made by hand.
        """
        if self.passes is None:
            raise ConfigError("this view was made by hand and has no model to ask")
        return self.pred if _steps_ahead("later", steps) == 0 else self.passes.later(steps)

    def head(self, hidden: Tensor) -> Prediction:
        """What the model's output head makes of states (B, W, D); no forward pass.

        Raises:
            ConfigError: unless a part declares `needs = {"hidden"}`.
        """
        if self.passes is None or self.hidden is None:
            raise ConfigError('the states of the model are not shown; declare needs = {"hidden"}')
        return self.passes.head(hidden)

    def draft(self, tokens: Tensor, *, rows: Tensor | None = None, ahead: int = 0) -> Prediction:
        """What the part's drafter predicts once other tokens stand at the open slots.

        Each call goes on from the states of the one before, the first from those of this step's
        forward pass. It is no forward pass, and counted apart.

        Args:
            tokens: (B, W) ids, the mask id where a slot stays open.
            rows: (B,) bool, the rows for which it counts; None for all that are not done.
            ahead: by how many steps its random numbers are ahead of this step's, 0 or more.

        Raises:
            ConfigError: for parts without a drafter.
            PredictionError: for tokens of another shape or type, or outside the vocabulary.
        """
        if self.passes is None or not self.passes.drafts:
            raise ConfigError("the strategy has no drafter (`Part.drafter`)")
        check_tokens("draft needs", tokens, self.tokens, self.snapshot.vocab.size)
        if rows is not None:
            check_flags("draft needs rows as", rows, self.live)
        asking = self.live if rows is None else rows & self.live
        canvas = torch.where(self.open, tokens, self.tokens)
        return self.passes.draft(canvas, asking, _steps_ahead("draft", ahead))

    def parameter(self, name: str, default: float, like: Tensor) -> Tensor | float:
        """A setting of the part that asks: the default, or (B, 1) where rows set their own.

        Args:
            name: a field that the part lists in `request_parameters`.
            default: its value.
            like: a tensor of the dtype in which it is used.
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
        """The step as the part at a place of this one's pipeline sees it, e.g. "filters.mine"."""
        twin: StepView = self.but(part=f"{self.part}.{place}")
        return twin

    def with_prediction(self, pred: Prediction) -> StepView:
        """The same step with another prediction, as transforms produce it."""
        twin: StepView = self.but(pred=pred)
        return twin

    def gather(self, plane: Tensor) -> Tensor:
        """Values of a canvas plane at the slots: (B, L, ...) to (B, W, ...)."""
        return gather_columns(plane, self.index)


def _alternatives(tokens: Any) -> tuple[tuple[Any, ...], bool]:
    """What a probe was given, one by one, and whether it was one alone and no sequence."""
    if isinstance(tokens, Tensor) and tokens.dim() == 3:
        return tokens.unbind(1), False
    if isinstance(tokens, list | tuple) and all(isinstance(one, Tensor) for one in tokens):
        return tuple(tokens), False
    return (tokens,), True


class Passes(Protocol):
    """What a view asks of the model; the loop's side of `probe`, `head` and `draft`."""

    @property
    def drafts(self) -> bool:
        """Whether a part has a drafter."""

    def probe(
        self,
        canvases: Sequence[Tensor],
        rows: Sequence[Tensor],
        everyone: bool,
        ahead: Sequence[int],
    ) -> tuple[Prediction, ...]:
        """The predictions with other tokens (B, W) at the slots; `everyone`: all rows ask."""

    def later(self, steps: int) -> Prediction:
        """The step's prediction with the random numbers of a later one."""

    def probed(self, prediction: Prediction) -> bool:
        """Whether a prediction is that of a probe of this step."""

    def head(self, hidden: Tensor) -> Prediction:
        """The prediction of states (B, W, D)."""

    def draft(self, tokens: Tensor, rows: Tensor, ahead: int) -> Prediction:
        """The drafter's prediction with tokens (B, W) at the slots."""


def _steps_ahead(who: str, steps: Any) -> int:
    """How many steps ahead random numbers are; raises `PredictionError` for no such number."""
    if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps < 2**31:
        raise PredictionError(
            f"{who} needs a whole number of steps ahead, 0 or more, got {steps!r}"
        )
    return steps


def first_column(flags: Tensor) -> Tensor:
    """Lowest column that is set in each row, L where none is, (B,) int64.

    Args:
        flags: (B, L) bool.
    """
    # of equal ones, max takes the first
    found, column = flags.max(1)
    return torch.where(found, column, flags.shape[1])


def lowest_column(columns: Tensor, width: int) -> Tensor:
    """Lowest of some columns in each row, the width of the canvas where there is none, (B,) int64.

    Args:
        columns: (B, W), -1 for none.
        width: L.
    """
    return torch.where(columns >= 0, columns, width).amin(1)


def gather_columns(plane: Tensor, index: Tensor) -> Tensor:
    """Values of a canvas plane (B, L, ...) at slots (B, W): (B, W, ...).

    Slots without a column (-1) read column 0.

    Args:
        plane: (B, L, ...).
        index: (B, W) columns, -1 for none.
    """
    safe = index.clamp(min=0)
    if plane.dim() > 2:
        extra = (1,) * (plane.dim() - 2)
        safe = safe.reshape(*safe.shape, *extra).expand(*index.shape, *plane.shape[2:])
    return plane.gather(1, safe)


@dataclass
class ColumnMemory(Memory):
    """A memory of one value (or one tensor of values) per generated column.

    A window moves, a column does not: what a plugin remembers of a column it writes with the slots
    of one view and reads with those of another. Use it as a memory, or as a field of one.

    Attributes:
        values: (B, G + 1, ...) by column, counted from the first generated one; the last entry
            takes what empty slots write.

    Examples:
        >>> from dllm_decode import Request
        >>> from dllm_decode.decoding.canvas import Canvas
        >>> snapshot = Canvas.of(Request(((1, 2),), 4), Vocab(size=9, mask_id=8)).snapshot()
        >>> ColumnMemory.of(snapshot, -1).values
        tensor([[-1, -1, -1, -1, -1]])
    """

    values: Tensor

    @classmethod
    def of(
        cls,
        snapshot: Snapshot,
        fill: float | bool,
        *size: int,
        dtype: torch.dtype | None = None,
    ) -> ColumnMemory:
        """One value everywhere.

        Args:
            snapshot: as `begin` is given it.
            fill: what stands in every column that nothing has been written to; its kind (flag,
                whole number, float32) is that of the memory.
            size: shape of what belongs to one column, nothing for a number.
            dtype: another type.
        """
        rows, width = snapshot.tokens.shape
        kind = {bool: torch.bool, int: torch.long}.get(type(fill), torch.float32)
        shape = (rows, width - snapshot.start + 1, *size)
        return cls(torch.full(shape, fill, dtype=dtype or kind, device=snapshot.tokens.device))

    def read(self, view: StepView) -> Tensor:
        """The values at the slots of a step, (B, W, ...)."""
        return gather_columns(self.values, self._places(view))

    def write(self, view: StepView, values: Tensor, where: Tensor | None = None) -> None:
        """Keep new values of the columns of a step.

        Args:
            view: the step.
            values: (B, W, ...).
            where: (B, W) bool, the slots to write; None for all of them.
        """
        places = self._places(view)
        if where is not None:
            places = torch.where(where, places, self.values.shape[1] - 1)
        extra = (1,) * (values.dim() - 2)
        places = places.reshape(*places.shape, *extra).expand(values.shape)
        self.values = self.values.scatter(1, places, values.to(self.values.dtype))

    def _places(self, view: StepView) -> Tensor:
        spare = self.values.shape[1] - 1
        return torch.where(view.index >= 0, view.index - view.snapshot.start, spare)


@dataclass(frozen=True)
class Carry:
    """Predictions of probes that the next step starts from, instead of a forward pass of its own.

    A row's is used where the probe held exactly what stands on the canvas after the step, and the
    next window is the present one; elsewhere, and with a key/value store, the next step runs its
    pass as always.

    Attributes:
        predictions: of this step's probes, as `view.probe` returned them.
        choice: (B,) int64, which of them each row keeps; -1 for none.

    Examples:
        >>> from dllm_decode.decoding.prediction import Prediction
        >>> probes = [Prediction.of(torch.zeros(2, 3, 5)) for _ in range(2)]
        >>> Carry(probes, choice=torch.tensor([1, -1])).choice  # the second row runs its pass
        tensor([ 1, -1])
    """

    predictions: Sequence[Prediction]
    choice: Tensor


@dataclass(frozen=True)
class Decision:
    """What a strategy would like to do in one step; `settle` turns it into a legal change.

    Attributes:
        commit: (B, W) bool, slots to decide; a subset of `view.open`. Strategies that declare
            `revises` may also name settled slots, whose tokens are then written over (edits).
        tokens: (B, W) int64, with what; None for the prediction's `token`. Read at committed
            slots only.
        remask: (B, W) bool, settled slots to open again; only from revocable strategies.
        scores: (B, W), which open slot is taken when a row must gain one and commits none: the
            one with the largest score, lowest column first; None for the certainty of what the
            prediction proposes, or the probability of other tokens.
        confidence: (B, W) floating point, what is recorded beside each token; None for the
            probability of the token in the prediction.
        close: (B,) bool, rows whose undecided columns are all committed now, as far as the view
            shows them; None for none. A `Pipeline` fills in what its stop rules say.
        steps: (B,) int64, how many steps of the rule this one stands for (1 or more), by which the
            row's step counter and so its random numbers go on; None for 1.
        carry: what the next step starts from; None for a forward pass.
        notes: tensors (B, ...) by name, for traces and for stop rules that read them.
        predictions: for messages: what each transform made of the prediction. A `Pipeline` fills
            it in.
        author: for messages: the part that decided. The loop fills it in.
        within: what was not legal in decisions that this one carries out (`settle.Faults`, each
            with `wrong` (B, W) bool): it is refused as if they had been made by themselves.

    Examples:
        >>> open = torch.tensor([[True, True, False]])
        >>> Decision(commit=open, scores=torch.tensor([[0.1, 0.9, 0.0]])).tokens is None
        True
    """

    commit: Tensor
    tokens: Tensor | None = None
    remask: Tensor | None = None
    scores: Tensor | None = None
    confidence: Tensor | None = None
    close: Tensor | None = None
    steps: Tensor | None = None
    carry: Carry | None = None
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    predictions: tuple[tuple[str, Prediction], ...] = field(default=(), repr=False, compare=False)
    author: str = field(default="", repr=False, compare=False)
    within: tuple[Any, ...] = field(default=(), repr=False, compare=False)


def _of_inference(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_inference()


@dataclass(frozen=True)
class Change(LazyFields):
    """What one step did, and all that a trace keeps: replaying the changes gives the result.

    Attributes:
        rows: (B,) rows of the request.
        step: (B,) the row's own step, counted from 0.
        index: (B, W) columns relative to the first generated one, -1 for an empty slot.
        commit: (B, W) bool, slots that were decided.
        edit: (B, W) bool, settled slots whose token was written over; None for none.
        remask: (B, W) bool, settled slots that were opened again.
        not_granted: (B,) edits and re-masks that were asked for and that the progress rule did not
            allow; None for none.
        tokens: (B, W) what was written at `commit` and `edit`.
        confidence: (B, W) as the rule saw it.
        probability: (B, W) of the tokens, as the model (and the sampler) gave it.
        scores: (B, W) of the decision.
        forced: (B,) bool, the row was given a commit that its strategy had not asked for.
        horizon: (B,) generated columns still worth decoding after the step.
        live: (B,) bool, the row was not done yet; None for all.
        probes: (B,) further forward passes of the row in this step, one number for all rows or
            None for none.
        carried: (B,) bool, the step began with the prediction of a probe of the step before, and
            had no pass of its own; None for none.
        drafts: (B,) calls of a drafter; None for none.
        steps: (B,) steps of its rule that the row has done in this one; None for one.
        passes_per_call: forward passes of a call of the model, 2 with guidance.
        notes: tensors (B, ...) by name; see `Decision`.

    Examples:
        >>> from dllm_decode.decoding.loop import Decoder
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> world = Copy(n=3)
        >>> request = Request((tuple(world.tokenizer.encode("abc>")),), max_new_tokens=4)
        >>> changes = Decoder(world, TopK(3), record=True).decode(request).trace
        >>> [int(change.commit.sum()) for change in changes]
        [3, 1]
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
    probes: Tensor | int | None = None
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    edit: Tensor | None = None
    not_granted: Tensor | None = None
    # a default on the class would hide the value that is computed when it is asked for
    live: Tensor | None = field(default_factory=lambda: None)
    carried: Tensor | None = None
    drafts: Tensor | None = None
    steps: Tensor | None = None
    passes_per_call: int = 1
    lazy: ClassVar[tuple[str, ...]] = (
        "index", "remask", "probability", "forced", "horizon", "live"
    )  # fmt: skip

    @once
    def written(self) -> Tensor:
        """Slots that hold another token since: commits and edits, (B, W) bool."""
        return self.commit if self.edit is None else self.commit | self.edit

    @once
    def touched(self) -> Tensor:
        """Slots at which anything happened: commits, edits and re-masks, (B, W) bool."""
        return self.written | self.remask

    @once
    def forwards(self) -> Tensor:
        """Forward passes of each row in this step, probes included, (B,); 0 for rows done."""
        own = torch.ones_like(self.step) if self.live is None else self.live.long()
        own = own if self.carried is None else own - self.carried.long()
        own = own if self.passes_per_call == 1 else own * self.passes_per_call
        return own if self.probes is None else own + self.probes

    @torch.inference_mode(False)
    def for_keeps(self) -> Change:
        """The change, complete, in tensors that may be used outside the loop like any other."""
        values = vars(self.known())
        planes = {name: value.clone() for name, value in values.items() if _of_inference(value)}
        notes = {
            name: note.clone() if _of_inference(note) else note for name, note in self.notes.items()
        }
        kept: Change = self.but(**planes, notes=notes)
        return kept

    def take(self, rows: Tensor) -> Change:
        """The change restricted to some of its rows.

        Args:
            rows: (B',) int64 positions in `Change.rows`.
        """
        values: dict[str, Any] = {
            entry.name: value[rows] if isinstance(value, Tensor) else value
            for entry in fields(self)
            if (value := getattr(self, entry.name)) is not self.notes
        }
        notes = {name: note[rows] for name, note in self.notes.items()}
        return Change(**values, notes=notes)


__getattr__ = renamed_names(__name__, {"Board": "Snapshot"}, globals())
