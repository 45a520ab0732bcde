"""The values that pass between the loop and its plugins; nothing here decides anything.

Letters used throughout: B rows, L canvas columns, W window slots, V vocabulary, K sparse slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding.prediction import Prediction, check_tokens
from dllm_decode.decoding.renamed import renamed_names, say_renamed
from dllm_decode.decoding.selection import first_column
from dllm_decode.errors import ConfigError
from dllm_decode.kernels.lazy import LazyFields
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


@dataclass(frozen=True)
class Request:
    """What to decode: one entry per row.

    Attributes:
        prompts: token ids per row, of any lengths from 0 up.
        max_new_tokens: columns generated per row, one number for all or one per row, 1 or more.
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
        for row, prompt in enumerate(self.prompts):
            _require_whole(prompt, f"prompt {row} must hold token ids")
        for row, seed in enumerate(self.seeds or ()):
            _require_whole([seed], f"the seed of row {row} must be a whole number")
            if not -(2**63) <= seed < 2**63:
                raise ConfigError(f"the seed of row {row} must lie in [-2**63, 2**63), got {seed}")
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

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """`max_new_tokens` of each row."""
        if isinstance(self.max_new_tokens, tuple):
            return self.max_new_tokens
        return (self.max_new_tokens,) * len(self.prompts)

    @cached_property
    def start(self) -> int:
        """The first generated column: the length of the longest prompt."""
        return max(map(len, self.prompts))

    @cached_property
    def width(self) -> int:
        """Canvas columns: those of the longest prompt and of the longest answer."""
        return self.start + max(self.lengths)

    @cached_property
    def last_fixed(self) -> tuple[int, ...]:
        """The last offset whose token is given in advance in each row, -1 where none is."""
        given = self.fixed or (None,) * self.rows
        return tuple(max(tokens or {}, default=-1) for tokens in given)

    def take(self, rows: Sequence[int]) -> Request:
        """The request of some of its rows, in the given order; rows keep their seeds."""

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

    @cached_property
    def row_seeds(self) -> tuple[int, ...]:
        """The seed of each row; row i has seed i where none were given."""
        return tuple(range(self.rows)) if self.seeds is None else self.seeds


def _require_whole(values: Iterable[object], what: str) -> None:
    for value in values:
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

    @cached_property
    def columns(self) -> Tensor:
        """0, 1, ... L-1, (L,) int64."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device)

    @cached_property
    def live(self) -> Tensor:
        """Columns that still exist: behind the padding, before the horizon, (B, L) bool."""
        return (self.columns >= self.first[:, None]) & self._near

    @cached_property
    def undecided(self) -> Tensor:
        """Columns that still have to be decided, (B, L) bool."""
        return (self.editable > self.decided) & self._near

    @cached_property
    def left(self) -> Tensor:
        """How many columns each row still has to decide, (B,) int64."""
        return self.undecided.sum(1)

    @cached_property
    def first_undecided(self) -> Tensor:
        """The first column that each row still has to decide, L where none is left, (B,) int64."""
        return first_column(self.undecided)

    @cached_property
    def behind_fixed(self) -> Tensor:
        """Generated columns from the last one on that the request fixed, (B, L) bool."""
        generated = self.columns >= self.start
        fixed = generated & self.live & ~self.editable
        last = torch.where(fixed, self.columns, -1).amax(1, keepdim=True)
        return generated & (self.columns >= last)

    @cached_property
    def _near(self) -> Tensor:
        """Columns before the horizon, (B, L) bool."""
        return self.columns < self.horizon[:, None]

    def written(self, tokens: Tensor, decided: Tensor) -> Snapshot:
        """The snapshot after a write; horizons, and what follows from them alone, are the same."""
        after = replace(self, tokens=tokens, decided=decided)
        return self._hand_on(after, "columns", "behind_fixed", "live", "_near")

    def _hand_on(self, after: Snapshot, *names: str) -> Snapshot:
        """A later snapshot with what is already known and still holds."""
        vars(after).update({name: vars(self)[name] for name in names if name in vars(self)})
        return after

    def narrowed(self, horizon: Tensor) -> Snapshot:
        """The snapshot with horizons (B,) that are as near as before, or nearer."""
        after = self._hand_on(replace(self, horizon=horizon), "columns", "behind_fixed")
        near = after._near
        vars(after).update(live=self.live & near, undecided=self.undecided & near)
        if "first_undecided" in vars(self):
            first, width = self.first_undecided, self.tokens.shape[1]
            vars(after)["first_undecided"] = first.masked_fill(first >= horizon, width)
        return after

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
@torch.inference_mode(False)
def _ids_on(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """Ids on a device, uploaded once: an upload in every step would make the host wait."""
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
        settled: (B, W) bool, slots decided in an earlier step, which revocable strategies may
            open again.
        fresh: (B,) bool, the row has just entered this window.
        window_step: (B,) steps done in this window.
        window_open: (B,) open slots when the window was entered.
        steps_left: (B,) steps until the row's budget ends, or its undecided columns where there
            is none.
        snapshot: the canvas before this step.
        noise: random numbers of this step, the same for a row in any batch.
        prober: what `probe` calls; None in views made by hand.
        parameters: what rows set for themselves, full key to (B, 1); see `parameter`.
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
    prober: Callable[[Tensor], Prediction] | None = field(default=None, repr=False)
    parameters: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    part: str = "strategy"
    banned: Tensor | None = field(default=None, repr=False)
    lazy: ClassVar[tuple[str, ...]] = ("tokens", "settled", "window_step", "steps_left")

    @cached_property
    def offsets(self) -> Tensor:
        """The columns counted from the first generated one, -1 for an empty slot, (B, W) int64."""
        return (self.index - self.snapshot.start).clamp_(min=-1)

    @cached_property
    def mask_ratio(self) -> Tensor:
        """Undecided share of the current window, (B,) in [0, 1]."""
        size = (self.active & (self.index >= 0)).sum(1)
        return (self.active & self.masked).sum(1) / size.clamp(min=1)

    def probe(self, tokens: Tensor) -> Prediction:
        """One more forward pass with other tokens at the open slots; counted in `forwards`.

        Args:
            tokens: (B, W) ids for this pass only; slots that are not open keep what they hold.

        Returns:
            The prediction of that pass, before any transform.

        Raises:
            ConfigError: where the view was made by hand.
            PredictionError: for tokens of another shape or type, or outside the vocabulary.
        """
        if self.prober is None:
            raise ConfigError("this view was made by hand and has no model to probe")
        check_tokens("probe needs", tokens, self.tokens, self.snapshot.vocab.size)
        return self.prober(torch.where(self.open, tokens, self.tokens))

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


def gather_columns(plane: Tensor, index: Tensor) -> Tensor:
    """Values of a canvas plane (B, L, ...) at slots (B, W): (B, W, ...).

    Slots without a column (-1) read column 0.
    """
    safe = index.clamp(min=0)
    if plane.dim() > 2:
        extra = (1,) * (plane.dim() - 2)
        safe = safe.reshape(*safe.shape, *extra).expand(*index.shape, *plane.shape[2:])
    return plane.gather(1, safe)


@dataclass(frozen=True)
class Decision:
    """What a strategy would like to do in one step; `settle` turns it into a legal change.

    Attributes:
        commit: (B, W) bool, slots to decide; a subset of `view.open`.
        tokens: (B, W) int64, with what; None for the prediction's `token`. Read at committed
            slots only.
        remask: (B, W) bool, settled slots to open again; only from revocable strategies.
        scores: (B, W), which open slot is taken when a row must gain one and commits none: the
            one with the largest score, lowest column first; None for the confidence.
        confidence: (B, W) floating point, what is recorded beside each token; None for the
            probability of the token in the prediction.
        notes: tensors (B, ...) by name, for traces and for stop rules that read them.
        predictions: for messages: what each transform made of the prediction. A `Pipeline` fills
            it in.
        author: for messages: the part that decided. The loop fills it in.

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
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    predictions: tuple[tuple[str, Prediction], ...] = field(default=(), repr=False, compare=False)
    author: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True)
class Change(LazyFields):
    """What one step did, and all that a trace keeps: replaying the changes gives the result.

    Attributes:
        rows: (B,) rows of the request.
        step: (B,) the row's own step, counted from 0.
        index: (B, W) columns relative to the first generated one, -1 for an empty slot.
        commit: (B, W) bool, slots that were decided.
        remask: (B, W) bool, slots that were opened again.
        tokens: (B, W) what was written at `commit`.
        confidence: (B, W) as the rule saw it.
        probability: (B, W) of the tokens, as the model (and the sampler) gave it.
        scores: (B, W) of the decision.
        forced: (B,) bool, the row was given a commit that its strategy had not asked for.
        horizon: (B,) generated columns still worth decoding after the step.
        probes: further forward passes of the step, the same for all rows.
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
    probes: int
    notes: Mapping[str, Tensor]
    lazy: ClassVar[tuple[str, ...]] = ("remask", "probability", "forced", "horizon")

    @cached_property
    def touched(self) -> Tensor:
        """Slots whose column holds something else than before, (B, W) bool."""
        return self.commit | self.remask

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
