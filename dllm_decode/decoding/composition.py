"""The parts of a decode, put together and checked."""

from __future__ import annotations

import warnings
from dataclasses import InitVar, dataclass, field
from functools import cached_property

from dllm_decode.decoding.cache import CachePolicy, NoCache
from dllm_decode.decoding.checks import check_composition, check_kinds, check_observers
from dllm_decode.decoding.denoiser import Capabilities, Denoiser
from dllm_decode.decoding.observer import Observer
from dllm_decode.decoding.sampling import Greedy, Sampler
from dllm_decode.decoding.schedule import Blocks, Schedule
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.errors import require_count


@dataclass(frozen=True)
class Composition:
    """One model and the plugins around it.

    Attributes:
        denoiser: the model.
        strategy: usually a `Pipeline`.
        schedule: which columns are open.
        cache: which columns a pass recomputes.
        sampler: how a token is proposed.
        observers: watch the steps.
        record: keep all changes in `Result.trace`.
        candidates: tokens that the model offered at each open slot and that are kept with a
            recorded change, likeliest first; 0 for none.
        sync_every: steps between two syncs of the host with the device, 1 or more. More than 1
            saves waiting for a GPU; rows that finish in between take part in surplus passes, which
            are counted apart, and faults are reported up to so many steps later. Tokens are the
            same. Policies with a key/value store sync in every step, because the width of the next
            pass comes with it.
        debug: name whoever writes in place to what it was handed; see `guard` for the cost.

    Raises:
        CapabilityError: where the parts cannot work together.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Composition(Copy(n=3), TopK(2)).schedule
        Blocks(length=32, origin='auto')
    """

    denoiser: Denoiser
    strategy: Strategy
    schedule: Schedule = field(default_factory=Blocks)
    cache: CachePolicy = field(default_factory=NoCache)
    sampler: Sampler = field(default_factory=Greedy)
    observers: tuple[Observer, ...] = ()
    record: bool = False
    sync_every: int = 1
    debug: bool = False
    candidates: int = 0
    check_every: InitVar[int | None] = None  # what `sync_every` was called

    def __post_init__(self, check_every: int | None) -> None:
        if check_every is not None:
            warnings.warn("check_every is now sync_every", DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "sync_every", check_every)
        for name, minimum in (("sync_every", 1), ("candidates", 0)):
            number = require_count(name, getattr(self, name), minimum=minimum)
            object.__setattr__(self, name, number)
        check_kinds(self.strategy, self.schedule, self.cache, self.sampler)
        object.__setattr__(self, "schedule", self.schedule.on_grid(self.able.block_length))
        check_composition(self.denoiser, self.strategy, self.schedule, self.cache)
        check_observers(self.observers)

    @cached_property
    def able(self) -> Capabilities:
        """What the model declares, asked once: some answers take a walk through its modules."""
        return Capabilities.of(self.denoiser)
