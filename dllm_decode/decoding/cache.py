"""Cache policies: which columns a forward pass recomputes, and which stored ones it may attend to.

A key/value store holds every canvas column of every layer. A forward pass overwrites the columns it
recomputes and attends over all valid ones, so a policy is one function: which columns this step.
With full attention every policy but `NoCache` is an approximation, because undecided columns behind
a column change its keys and values. With block-causal attention `BlockExact` is exact.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from dllm_decode.decoding.renamed import say_renamed
from dllm_decode.decoding.returned import check_plane, kind_of, named
from dllm_decode.decoding.selection import numbers
from dllm_decode.decoding.types import Change, Memory, Request, Snapshot, lowest_column
from dllm_decode.errors import PluginError, require_count, require_in_range
from dllm_decode.kernels.lazy import LazyFields, later
from dllm_decode.kernels.reference import cast

MEMORIES = ("age", "passes", "certainty")  # what a `StoreMemory` may keep
_UNDERFLOW = 14.5  # exp(-x * x / 2) is 0 in float32 from here on


@runtime_checkable
class Store(Protocol):
    """Keys and values of every canvas column, allocated by `Denoiser.allocate`.

    Examples:
        >>> from dllm_decode.testing import StoringHashDenoiser
        >>> store: Store = StoringHashDenoiser().allocate(rows=2, columns=16)
    """

    def take(self, rows: Sequence[int]) -> None:
        """Keep the given rows, in that order."""

    def join(self, count: int) -> None:
        """Make room for `count` more rows behind the present ones, empty."""


@dataclass(frozen=True)
class Plan:
    """The work of one forward pass.

    Attributes:
        columns: (B, Q) canvas columns to recompute, rising, -1 for none; None for all live columns
            without a store.
        valid: (B, L) bool, columns that may be attended to, recomputed ones included; None
            together with `columns`.
        store: the model's key/value store, which the pass reads and writes.
        complete: whether every column of every row is live and valid, so that the pass needs no
            attention mask; None where that is not known without a sync.
        start: the first generated column of the canvas that comes with it; what lies in front of it
            is padding and prompt.
        extents: where each row begins and ends among the columns of a pass without a store, as the
            host knows it; None where it would have to ask.
        runs: `columns` as slices, one for all rows or one for each; None where they are not, or
            where the host would have to ask.

    Examples:
        >>> import torch
        >>> Plan(torch.tensor([[0, 4, 5]]), torch.tensor([[True, True, False]])).places()
        tensor([[0, 4, 5]])
        >>> Plan().columns is None  # everything
        True
    """

    columns: Tensor | None = None
    valid: Tensor | None = None
    store: Store | None = None
    complete: bool | None = None
    start: int = 0
    extents: tuple[tuple[int, int], ...] | None = None
    runs: tuple[slice, ...] | None = None

    def places(self) -> Tensor:
        """The columns with the empty slots repeating the row's last one, (B, Q).

        A slot that repeats a column computes the same keys and values once more, so it can be
        written without a mask.
        """
        assert self.columns is not None
        if self.runs is not None:
            return self.columns
        last = self.columns.amax(1, keepdim=True).clamp(min=0)
        return torch.where(self.columns >= 0, self.columns, last)


@dataclass(frozen=True)
class Refresh:
    """What a policy asks of the next pass.

    Attributes:
        columns: (B, L) bool, the columns to recompute.
        valid: (B, L) bool, the columns that may be attended to, recomputed ones included.

    Examples:
        >>> import torch
        >>> Refresh(torch.tensor([[4, 5]]), torch.tensor([[True, False]])).valid
        tensor([[ True, False]])
    """

    columns: Tensor
    valid: Tensor


def mask_of(columns: Tensor, width: int) -> Tensor:
    """Column numbers as a mask, (B, width) bool.

    Args:
        columns: (B, Q), -1 for none.
        width: columns of the mask.
    """
    hit = torch.zeros(columns.shape[0], width + 1, dtype=torch.bool, device=columns.device)
    slots = columns.masked_fill(columns < 0, width)
    return hit.scatter_(1, slots, True)[:, :width]


def columns_of(mask: Tensor, count: int | None = None) -> Tensor:
    """A mask as rising column numbers, (B, Q) int64, -1 behind each row's last.

    Args:
        mask: (B, L) bool.
        count: the most columns any row has, Q; None finds it out, which costs a sync.
    """
    width = mask.shape[1]
    packed = torch.where(mask, numbers(width, mask.device), width).sort(dim=1).values
    packed = packed[:, : max(1, int(mask.sum(1).max()) if count is None else count)]
    return packed.masked_fill(packed == width, -1)


def spread(plane: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """A copy of a plane with values written at some columns, (B, L).

    Args:
        plane: (B, L).
        columns: (B, Q) where to write, -1 for nowhere.
        values: (B, Q) what to write.
    """
    width = plane.shape[1]
    slots = torch.where(columns >= 0, columns, width)
    room = torch.cat([plane, plane[:, :1]], 1)
    return room.scatter_(1, slots, values.to(plane.dtype))[:, :width]


@dataclass
class StoreMemory(Memory):
    """What a policy knows about the stored columns; of the last three what it `remembers`.

    Attributes:
        valid: (B, L) bool, the column has been computed at least once.
        changed: (B, L + 1) bool, what `stale` says; the last entry takes what belongs nowhere.
        start: first generated column.
        aged: (B,) what `age` says.
        passed: (B,) what `passes` says.
        seen: (B, G + 1) float32, what `certainty` says of the G generated columns; the last entry
            takes what slots without a column write.
        policy: whose memory it is, for messages.

    Examples:
        >>> import torch
        >>> from dllm_decode.decoding.canvas import Canvas
        >>> from dllm_decode.decoding.types import Request, Vocab
        >>> request = Request(((7, 8),), max_new_tokens=3)
        >>> memory = StoreMemory.of(Canvas.of(request, Vocab(mask_id=9, size=10)).snapshot())
        >>> memory.valid
        tensor([[False, False, False, False, False]])
    """

    valid: Tensor
    changed: Tensor
    start: int
    aged: Tensor | None = None
    passed: Tensor | None = None
    seen: Tensor | None = None
    policy: str = "cache"

    @staticmethod
    def of(
        snapshot: Snapshot, remembers: Collection[str] = MEMORIES, policy: str = "cache"
    ) -> StoreMemory:
        """The memory before the first pass, when nothing is stored.

        Args:
            snapshot: the canvas.
            remembers: what is kept beside `valid` and `stale`, of `MEMORIES`.
            policy: whose memory it is, for messages.
        """
        nothing = torch.zeros_like(snapshot.decided)
        changed = functional.pad(nothing, (0, 1))
        memory = StoreMemory(nothing, changed, snapshot.start, policy=policy)
        if "age" in remembers:
            memory.aged = torch.full_like(snapshot.horizon, 2**62)
        if "passes" in remembers:
            memory.passed = torch.zeros_like(snapshot.horizon)
        if "certainty" in remembers:
            memory.seen = functional.pad(nothing[:, snapshot.start :].float(), (0, 1))
        return memory

    @property
    def stale(self) -> Tensor:
        """Columns whose token has changed since they were computed, (B, L) bool."""
        return self.changed[:, :-1]

    @property
    def age(self) -> Tensor:
        """Steps since all columns of the row were recomputed, (B,); 2**62 where they never were."""
        return self._kept(self.aged, "age")

    @property
    def passes(self) -> Tensor:
        """Passes since the row entered its window, (B,)."""
        return self._kept(self.passed, "passes")

    @property
    def certainty(self) -> Tensor:
        """The confidence last seen at each column, in [0, 1], (B, L) float32."""
        seen = self._kept(self.seen, "certainty")
        return functional.pad(seen[:, :-1], (self.start, 0))

    def _kept(self, value: Tensor | None, name: str) -> Tensor:
        if value is None:
            raise PluginError(
                f"{self.policy} reads memory.{name}, which it does not keep; name {name!r} in its "
                f"`remembers`, which may hold {', '.join(MEMORIES)}"
            )
        return value

    def plan(self, mask: Tensor, live: Tensor) -> None:
        """Take in that a pass recomputes some columns (B, L) of those that are live (B, L)."""
        if self.aged is not None:
            self.aged = (self.aged + 1).masked_fill_((mask == live).all(1), 0)
        if self.passed is not None:
            self.passed = self.passed + 1
        self.valid = self.valid | mask
        # what has been computed is recomputed as soon as it is stale; the rest is new when it is
        self.changed = torch.zeros_like(self.changed)

    def note(self, change: Change) -> None:
        """Take in what a step changed."""
        beyond = self.changed.shape[1] - 1
        columns = torch.where(change.touched, change.index + self.start, beyond)
        self.changed = self.changed.scatter(1, columns, True)
        if self.seen is not None:
            slots = change.index % self.seen.shape[1]
            self.seen = self.seen.scatter(1, slots, cast(change.confidence, torch.float))

    def distrust(self, columns: Tensor) -> None:
        """Mark what a pass over other tokens (a probe) has overwritten: recompute it next time.

        Args:
            columns: (B, L) bool.
        """
        self.changed = self.changed | functional.pad(columns, (0, 1))


@dataclass(frozen=True)
class Step(LazyFields):
    """What a policy decides by: the canvas, and where each row is.

    Attributes:
        snapshot: the canvas.
        index: (B, W) columns of the row's window, -1 for none.
        window: (B, L) bool, the same as a mask.
        fresh: (B,) bool, the row has just entered it.
        memory: what is stored.

    Examples:
        >>> import torch
        >>> from dllm_decode.decoding.canvas import Canvas
        >>> from dllm_decode.decoding.types import Request, Vocab
        >>> canvas = Canvas.of(Request(((7, 8),), max_new_tokens=3), Vocab(mask_id=9, size=10))
        >>> now = canvas.snapshot()
        >>> index = torch.tensor([[2, 3, 4]])
        >>> step = Step(now, index, now.undecided, torch.tensor([True]), StoreMemory.of(now))
        >>> int(DualCache().recompute(step).sum())  # all five columns on entering a window
        5
    """

    snapshot: Snapshot
    index: Tensor
    window: Tensor
    fresh: Tensor
    memory: StoreMemory
    lazy: ClassVar[tuple[str, ...]] = ("window",)

    @property
    def first(self) -> Tensor:
        """The lowest column of each row's window, L where it has none, (B, 1)."""
        return lowest_column(self.index, self.snapshot.tokens.shape[1])[:, None]

    @property
    def board(self) -> Snapshot:
        """The old name of `snapshot`; warns."""
        say_renamed("Step.board", "Step.snapshot")
        return self.snapshot


class CachePolicy:
    """Chooses the columns to recompute; override `recompute`, or `plan` for all of it.

    Attributes:
        exact: whether logits are those of recomputing everything, with the attention named in
            `attention`.
        stores: whether it uses a key/value store.
        attention: `any` or `block_causal`.
        logits: where a step has fresh logits: `canvas` (every generated column), `undecided`
            (every undecided one), `window`, or `part` (some of the window).
        remembers: what it reads of its memory beside `valid` and `stale`: `age`, `passes` and
            `certainty` cost a few operations per step each. All of them, unless the class that
            defines `recompute` says otherwise.

    Examples:
        >>> from dataclasses import dataclass
        >>> from dllm_decode.testing import StoringHashDenoiser
        >>> from dllm_decode.decoding.loop import Decoder
        >>> from dllm_decode.decoding.types import Request
        >>> from dllm_decode.strategies.fixed import TopK
        >>> @dataclass(frozen=True)
        ... class WindowOnly(CachePolicy):
        ...     def recompute(self, step: Step) -> Tensor:
        ...         return step.window | step.fresh[:, None] & step.snapshot.live
        >>> decoder = Decoder(StoringHashDenoiser(), TopK(1), cache=WindowOnly())
        >>> decoder.decode(Request(((3, 4, 5),), max_new_tokens=4)).forwards
        (4,)
    """

    exact: ClassVar[bool] = False
    stores: ClassVar[bool] = True
    attention: ClassVar[str] = "any"
    logits: ClassVar[str] = "window"
    remembers: ClassVar[Collection[str]] = MEMORIES

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "recompute" in vars(cls) and "remembers" not in vars(cls):
            cls.remembers = MEMORIES  # not what the policy that it derives from needs

    def begin(self, request: Request, snapshot: Snapshot) -> Memory | None:
        """The memory of one request, None for none; see `Part.begin`."""
        return StoreMemory.of(snapshot, self.remembers, named("cache", self))

    def plan(self, snapshot: Snapshot, index: Tensor, fresh: Tensor, memory: Any) -> Refresh | None:
        """What the next pass recomputes; None for all live columns, without a store.

        Asked as soon as the step before is done, so that rows which have nothing left to decide
        may be among those of the snapshot.

        Args:
            snapshot: the canvas.
            index: (B, W) columns of the window, whose logits are needed, -1 for none.
            fresh: (B,) bool, the row has just entered this window.
            memory: what `begin` returned.

        Raises:
            PluginError: `begin` or `recompute` returned something else than they must.
        """
        if not isinstance(memory, StoreMemory):
            raise PluginError(
                f"{named('cache', self)}: what begin returned is {kind_of(memory)}; plan "
                "needs a StoreMemory, or one of its own"
            )
        window = later(lambda: mask_of(index, snapshot.tokens.shape[1]))
        if memory.passed is not None:
            memory.passed = memory.passed.masked_fill(fresh, 0)
        step = Step(snapshot, index, window, fresh, memory)
        # whatever a policy leaves out, a column whose token changed is never attended to as it was
        wanted = self.recompute(step)
        check_plane(
            f"{named('cache', self)}: what recompute returned",
            wanted, snapshot.live.shape, (torch.bool,), snapshot.live.device,
        )  # fmt: skip
        mask = (wanted | (memory.stale & memory.valid)) & snapshot.live
        memory.plan(mask, snapshot.live)
        return Refresh(mask, memory.valid & snapshot.live)

    def recompute(self, step: Step) -> Tensor:
        """Columns to recompute, (B, L) bool; all live ones where a policy does not say."""
        return step.snapshot.live

    def note(self, change: Change, memory: Any) -> None:
        """Learn what a step changed: the single place where stored columns become stale."""
        if memory is not None:
            memory.note(change)


@dataclass(frozen=True)
class NoCache(CachePolicy):
    """Recompute every live column in every step; exact for every model.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Copy(n=3).answer(TopK(2), "abc", cache=NoCache())
        ('abc', 2)
    """

    exact: ClassVar[bool] = True
    stores: ClassVar[bool] = False
    logits: ClassVar[str] = "canvas"

    def begin(self, request: Request, snapshot: Snapshot) -> None:
        """None, because every pass starts from the tokens alone."""
        return

    def plan(self, snapshot: Snapshot, index: Tensor, fresh: Tensor, memory: Any) -> None:
        """None, which stands for all live columns."""
        return


def _all_if(rows: Tensor, step: Step, otherwise: Tensor) -> Tensor:
    """All live columns in some rows, a mask in the others."""
    return torch.where(rows[:, None], step.snapshot.live, otherwise)


@dataclass(frozen=True)
class PrefixCache(CachePolicy):
    """Keep what lies before the block: all columns on entering a block, then block and suffix.

    Source: Fast-dLLM, arXiv 2505.22618, section 3.2. Unlike its released loop, no further pass is
    run when the pass on entering a block already decides all of it.

    Examples:
        >>> from dllm_decode.testing import columns_computed
        >>> columns_computed(PrefixCache())  # prompt of 4, two blocks of 2, one token per step
        [8, 4, 8, 2]
    """

    logits: ClassVar[str] = "canvas"
    remembers: ClassVar[Collection[str]] = ()

    def recompute(self, step: Step) -> Tensor:
        """All columns, or those from the window's first column on."""
        return _all_if(step.fresh, step, step.snapshot.columns >= step.first)


@dataclass(frozen=True)
class DualCache(CachePolicy):
    """Keep what lies before and behind the block: all columns on entering it, then the block.

    Source: Fast-dLLM, arXiv 2505.22618, section 3.2 (DualCache); same deviation as `PrefixCache`.

    Examples:
        >>> from dllm_decode.testing import columns_computed
        >>> columns_computed(DualCache())
        [8, 2, 8, 2]
    """

    remembers: ClassVar[Collection[str]] = ()

    def recompute(self, step: Step) -> Tensor:
        """All columns, or the window."""
        return _all_if(step.fresh, step, step.window)


@dataclass(frozen=True)
class VicinityCache(CachePolicy):
    """The block and its neighbours, with a few full passes first (dInfer, arXiv 2510.08666).

    Args:
        before: columns recomputed in front of the block, 0 or more.
        after: columns recomputed behind it, 0 or more.
        warmup: full passes on entering a block, 1 or more.

    Examples:
        >>> from dllm_decode.testing import columns_computed
        >>> columns_computed(VicinityCache(before=1, after=1, warmup=1))
        [8, 4, 8, 3]
    """

    before: int = 16
    after: int = 16
    warmup: int = 4
    remembers: ClassVar[Collection[str]] = ("passes",)

    def __post_init__(self) -> None:
        require_count("before", self.before, minimum=0)
        require_count("after", self.after, minimum=0)
        require_count("warmup", self.warmup)

    def recompute(self, step: Step) -> Tensor:
        """All columns while warming up, else the window widened on both sides."""
        columns = step.snapshot.columns
        last = step.index.amax(1, keepdim=True)
        near = (columns >= step.first - self.before) & (columns <= last + self.after)
        return _all_if(step.memory.passes < self.warmup, step, near)


@dataclass(frozen=True)
class PeriodicCache(CachePolicy):
    """The block alone, and all columns on entering it and every `every` steps (dInfer).

    Args:
        every: steps between full passes, 1 or more; 1 recomputes everything always.

    Examples:
        >>> from dllm_decode.testing import columns_computed
        >>> columns_computed(PeriodicCache(every=1))
        [8, 8, 8, 8]
    """

    every: int = 8
    remembers: ClassVar[Collection[str]] = ("age",)

    def __post_init__(self) -> None:
        require_count("every", self.every)

    def recompute(self, step: Step) -> Tensor:
        """All columns when it is time, else the window."""
        due = step.fresh | (step.memory.age >= self.every - 1)
        return _all_if(due, step, step.window)


@dataclass(frozen=True)
class DelayedCache(CachePolicy):
    """Keep decided columns, one step late: recompute the undecided and the just committed ones.

    A column's keys and values change most when its token is decided, so they are stored one step
    later.

    Source: dKV-Cache, arXiv 2505.15781 (dKV-Cache-Decode).

    Args:
        every: steps between full passes, 1 or more.

    Examples:
        >>> from dllm_decode.testing import columns_computed
        >>> columns_computed(DelayedCache(every=3))
        [8, 4, 3, 8]
    """

    every: int = 8
    logits: ClassVar[str] = "undecided"
    remembers: ClassVar[Collection[str]] = ("age",)

    def __post_init__(self) -> None:
        require_count("every", self.every)

    def recompute(self, step: Step) -> Tensor:
        """All columns when it is time, else undecided ones; just committed ones are stale."""
        return _all_if(step.memory.age >= self.every - 1, step, step.snapshot.undecided)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _bell(reach: int, sigma: float, device: torch.device) -> Tensor:
    """exp(-d^2 / (2 sigma^2)) for d = -reach ... reach, made once, float32."""
    offsets = torch.arange(-reach, reach + 1, device=device)
    return torch.exp(-(offsets**2) / (2 * sigma**2)).float()


@dataclass(frozen=True)
class CertaintyCache(CachePolicy):
    """Recompute the undecided columns that are likely to be decided next, and the just committed.

        score_i = confidence_i * D_i,   D_i = mean over decided j of exp(-(i - j)^2 / (2 sigma^2))

    The `top` columns by score are recomputed and only they can be committed in this step; all
    columns are on the first step of a row and every `every` steps. A confidence is the one last
    seen at the column. Source: the certainty prior of d2Cache, arXiv 2509.23094; deviation: its
    second stage, which follows attention maps, is replaced by the periodic full pass.

    Args:
        top: columns recomputed in a step, 1 or more.
        sigma: how far a decided column lends certainty, in columns, above 0.
        every: steps between full passes, 1 or more.

    Examples:
        >>> from dllm_decode.testing import columns_computed
        >>> columns_computed(CertaintyCache(top=1, every=3))
        [8, 2, 2, 8]
    """

    top: int = 32
    sigma: float = 10.0
    every: int = 8
    logits: ClassVar[str] = "part"
    remembers: ClassVar[Collection[str]] = ("age", "certainty")

    def __post_init__(self) -> None:
        require_count("top", self.top)
        require_in_range("sigma", self.sigma, 0.0, float("inf"), open_low=True)
        require_count("every", self.every)

    def recompute(self, step: Step) -> Tensor:
        """All columns when it is time, else the window's best by certainty."""
        snapshot, memory = step.snapshot, step.memory
        decided = (snapshot.decided & snapshot.live).float()
        density = self._lent(decided) / decided.sum(1, keepdim=True).clamp(min=1)
        candidates = step.window & snapshot.undecided
        score = torch.where(candidates, memory.certainty * density, -1.0)
        order = score.sort(dim=1, descending=True, stable=True).indices
        chosen = torch.zeros_like(candidates).scatter_(1, order[:, : self.top], True)
        return _all_if(memory.age >= self.every - 1, step, candidates & chosen)

    def _lent(self, decided: Tensor) -> Tensor:
        """What the decided columns (B, L) lend to each column, summed; the cost is linear in L."""
        # further away the weight is 0 in float32
        reach = min(decided.shape[1] - 1, math.ceil(min(_UNDERFLOW * self.sigma, 2**31)))
        neighbours = functional.pad(decided, (reach, reach)).unfold(1, 2 * reach + 1, 1)
        return neighbours @ _bell(reach, self.sigma, decided.device)


@dataclass(frozen=True)
class BlockExact(CachePolicy):
    """For block-causal models: the current block, and each finished block once more; exact.

    A finished block is recomputed together with the first pass of the next one, so the exact
    storage costs no forward pass of its own. Prompt blocks are computed once. Nothing behind the
    current block is computed, because nothing may attend to it.
    Source: the block caches of BD3-LM (arXiv 2503.09573), SDAR and LLaDA2.

    Args:
        length: columns per block, 1 or more; must be the model's block length.

    Examples:
        >>> BlockExact(length=4).exact, BlockExact(length=4).attention
        (True, 'block_causal')
    """

    length: int = 32
    exact: ClassVar[bool] = True
    attention: ClassVar[str] = "block_causal"
    remembers: ClassVar[Collection[str]] = ()

    def __post_init__(self) -> None:
        require_count("length", self.length)

    def recompute(self, step: Step) -> Tensor:
        """The window's block, earlier columns never computed, and earlier blocks that changed."""
        snapshot, memory = step.snapshot, step.memory
        position = snapshot.columns - snapshot.first[:, None]
        block = torch.where(position >= 0, position // self.length, -1)
        current = torch.where(step.window, block, -1).amax(1, keepdim=True)
        count = snapshot.tokens.shape[1] // self.length + 2
        changed = torch.zeros(block.shape[0], count, device=block.device)
        changed.scatter_add_(1, block + 1, (memory.stale & memory.valid).float())
        renewed = changed.gather(1, block + 1) > 0
        return (block <= current) & ((block == current) | ~memory.valid | renewed)
