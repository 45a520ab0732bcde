"""A strategy inside another engine: the loop's own steps, over logits that the engine computed.

An engine that decodes block by block runs the model, keeps the keys and values and owns the text;
it asks here, step by step, what stands in the block next. The loop is the same as everywhere: the
strategy's memory goes on from step to step, and what is not legal is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dllm_decode.api import Overrides, parts_from
from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.loop import Decoder, Run
from dllm_decode.decoding.observer import Observer
from dllm_decode.decoding.returned import named
from dllm_decode.decoding.sampling import Greedy, Sampler
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Budget, Revisions, StopRule, Strategy
from dllm_decode.decoding.types import Change, Request, Snapshot, Vocab, gather_columns
from dllm_decode.errors import CapabilityError, ConfigError, require, require_count


@dataclass
class HostedModel:
    """The engine's model, as far as the loop sees it: logits that are handed over once per step.

    Attributes:
        vocab: special ids.
        device: of the logits.
        host: the engine's name, for messages.
        asks: the strategy's name, for messages.
        max_length: none, the engine has checked it.

    Examples:
        >>> model = HostedModel(Vocab(mask_id=4, size=5), torch.device("cpu"), "SGLang", "strategy")
        >>> model.hand_over(torch.zeros(1, 2, 5), torch.tensor([0]))
        >>> tokens = torch.full((1, 2), 4)
        >>> model(tokens, tokens > 0, torch.tensor([[0, 1]]), Plan()).shape
        torch.Size([1, 2, 5])
    """

    vocab: Vocab
    device: torch.device
    host: str
    asks: str
    max_length: int | None = None
    _given: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def hand_over(self, logits: Tensor, first: Tensor) -> None:
        """What the next pass gives.

        Args:
            logits: (B, W, V) of the rows that are still decoded.
            first: (B,) the column of the pass at which a row's block begins.
        """
        self._given = logits, first

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """The logits at the columns `index` (B, W), (B, W, V).

        Raises:
            CapabilityError: where a part asks for a pass of its own.
        """
        given, self._given = self._given, None
        if given is None:
            raise self.cannot_probe()
        logits, first = given
        return gather_columns(logits, index - first[:, None])

    def cannot_probe(self) -> CapabilityError:
        """What is said to strategies that ask for more passes."""
        return CapabilityError(
            f"{self.asks} asks the model again within a step (a probe), which {self.host} "
            "cannot do; decode it with dllm_decode's own loop, or choose another strategy"
        )


class _Last(Observer):
    """What the last step did."""

    change: Change
    snapshot: Snapshot

    def step(self, change: Change, snapshot: Snapshot) -> None:
        """Keep what it did, and what stands there."""
        self.change, self.snapshot = change, snapshot


@dataclass(frozen=True)
class HostedStep:
    """What a step did to a block; every plane has a column for each of the block's.

    Attributes:
        commit: (B, W) bool, columns that were decided.
        revised: (B, W) bool, decided columns that were written over or opened again.
        tokens: (B, W) int64, what the rule would write there, whether it did or not.
        confidence: (B, W) float32, how sure it was of them.
    """

    commit: Tensor
    revised: Tensor
    tokens: Tensor
    confidence: Tensor


class HostedBlock:
    """The rows of one block on their way through the loop.

    What stands in front of a row's first open column is its prompt; on the loop's canvas prompts
    end in the same column, so that blocks may begin in different ones.

    Attributes:
        tokens: (B, W) ids as they stand.
        done: which rows have nothing left to decide.

    Examples:
        >>> from dllm_decode.strategies.fixed import TopK
        >>> rules = HostedStrategy.of(TopK(3), mask_id=4, host="my engine")
        >>> block = rules.begin(torch.tensor([[1, 4, 4, 4]]), vocabulary=5)
        >>> _ = block.step(torch.eye(5)[[0, 2, 3, 1]][None])
        >>> block.tokens, block.done
        (tensor([[1, 2, 3, 1]]), (True,))
    """

    def __init__(self, decoder: Decoder, tokens: Tensor, open: Tensor, seed: int) -> None:
        """A block before its first step; the host waits once, to see what stands in it.

        Args:
            decoder: around a `HostedModel`.
            tokens: (B, W) ids as the engine holds them.
            open: (B, W) bool, columns to decide.
            seed: of the first row.
        """
        self.tokens, self._open = tokens.clone(), open
        self._last = _Last()
        self._model: Any = decoder.denoiser
        lines, flags = tokens.tolist(), open.tolist()
        # rows of the engine that have something to decide: those of the request
        self._rows = [row for row, flag in enumerate(flags) if any(flag)]
        self._run: Run | None = None
        if not self._rows:
            return
        request = _request([(row, lines[row], flags[row]) for row in self._rows], self._mask, seed)
        decoder.check(request)
        prompts = torch.tensor([len(prompt) for prompt in request.prompts])
        self._prompts = prompts.to(tokens.device)
        self._first = request.start - self._prompts  # canvas column of a row's first one here
        self._run = Run(replace(decoder, observers=(self._last,)), request)
        self._run.admit(range(request.rows))

    @property
    def _mask(self) -> int:
        mask: int = self._model.vocab.mask_id
        return mask

    @property
    def _live(self) -> list[int]:
        """Rows of the engine that are being decoded, in the order of the loop's batch."""
        return [self._rows[row] for row in self._run.live] if self._run is not None else []

    @property
    def done(self) -> tuple[bool, ...]:
        """Which rows have nothing left to decide."""
        live = set(self._live)
        return tuple(row not in live for row in range(self.tokens.shape[0]))

    def step(self, logits: Tensor) -> HostedStep:
        """One step of all rows that are not done.

        Args:
            logits: (B, W, V) of the block.

        Raises:
            CapabilityError: where a part asks for more than logits.
            DecisionError: for faults of the strategy.
            ModelOutputError: for logits of another shape, and such that hold no number.
        """
        nothing = torch.zeros_like(self.tokens)
        run, live = self._run, self._live
        if run is None or not live:
            return HostedStep(nothing.bool(), nothing.bool(), self.tokens, nothing.float())
        everyone = live == list(range(len(logits)))
        rows, places = (
            torch.tensor(numbers).to(logits.device, non_blocking=True)
            for numbers in (live, list(run.live))
        )
        first = self._first[places]
        self._model.hand_over(logits if everyone else logits[rows], first - run.batch.span.start)
        run.step()
        if self._last.change.probes is not None:  # also where this time no row asked
            raise self._model.cannot_probe()
        before = self.tokens
        self._write(rows, first)
        return self._step_of(before, rows, self._prompts[places])

    def _write(self, rows: Tensor, first: Tensor) -> None:
        """Take over what stands on the canvas; behind the end of a text stands its sign."""
        snapshot, columns = self._last.snapshot, torch.arange(self.tokens.shape[1])
        at = first[:, None] + columns.to(first.device)
        behind = at >= snapshot.horizon[:, None]
        stands = torch.where(behind, snapshot.vocab.filler, gather_columns(snapshot.tokens, at))
        own = torch.where(self._open[rows], stands, self.tokens[rows])
        self.tokens = self.tokens.index_copy(0, rows, own)

    def _step_of(self, before: Tensor, rows: Tensor, prompts: Tensor) -> HostedStep:
        """The last change, from slots of the rows that took part to columns of all.

        What was written behind the end of a text counts as committed.
        """
        change, width = self._last.change, self.tokens.shape[1]
        # one column behind the block takes what empty slots hold
        at = torch.where(change.index < 0, width, change.index + prompts[:, None])

        def spread(plane: Tensor, rest: Tensor) -> Tensor:
            wide = torch.cat([rest, rest[:, :1]], 1)
            own = wide[rows].scatter(1, at, plane.to(rest.dtype))
            return wide.index_copy(0, rows, own)[:, :-1]

        nothing, written = torch.zeros_like(self.tokens), before != self.tokens
        revised = spread(change.touched & ~change.commit, nothing.bool())
        return HostedStep(
            commit=spread(change.commit, nothing.bool()) | (written & ~revised),
            revised=revised,
            tokens=torch.where(written, self.tokens, spread(change.tokens, self.tokens)),
            confidence=spread(change.confidence, nothing.float()),
        )


def _request(rows: list[tuple[int, list[int], list[bool]]], mask: int, seed: int) -> Request:
    """The loop's request for rows of a block, each with its number, tokens and open columns."""
    prompts, lengths, fixed = [], [], []
    stand_in = int(mask == 0)  # for a mask behind the prompt that is none
    for _, tokens, flags in rows:
        first = flags.index(True)
        prompts.append(tuple(tokens[:first]))
        lengths.append(len(tokens) - first)
        held = [
            (column, stand_in if token == mask else token)
            for column, (token, flag) in enumerate(zip(tokens[first:], flags[first:], strict=True))
            if not flag
        ]
        fixed.append(dict(held))
    seeds = tuple(seed + row for row, *_ in rows)
    return Request(tuple(prompts), tuple(lengths), seeds=seeds, fixed=tuple(fixed))


@dataclass(frozen=True)
class HostedStrategy:
    """A strategy and what it needs to know of the engine's model.

    Attributes:
        strategy: any whose parts need logits and nothing else of the model.
        mask_id: of the model.
        eos_ids: ids that end a text; what stop rules look for.
        banned_ids: ids that are never generated.
        sampler: proposes tokens.
        host: the engine's name, for messages.

    Raises:
        CapabilityError: for stop rules where no id ends a text.
        ConfigError: for ids below 0.

    Examples:
        >>> HostedStrategy.of("threshold", mask_id=4, eos_ids=(3,), host="my engine").most_steps(32)
        32
    """

    strategy: Strategy
    mask_id: int
    eos_ids: tuple[int, ...] = ()
    banned_ids: tuple[int, ...] = ()
    sampler: Sampler = field(default_factory=Greedy)
    host: str = "the engine"

    def __post_init__(self) -> None:
        require_count("mask_token_id", self.mask_id, minimum=0)
        stops = [(key, part) for key, part in self.strategy.parts() if isinstance(part, StopRule)]
        if stops and not self.eos_ids:
            key, part = stops[0]
            raise CapabilityError(
                f"{named(f'strategy.{key}', part)} ends rows where the text ends, but no token is "
                "known to end one; give eos_token_id"
            )

    @staticmethod
    def of(
        strategy: str | Strategy,
        *,
        mask_id: int,
        eos_ids: tuple[int, ...] = (),
        banned_ids: tuple[int, ...] = (),
        sampler: str | Sampler = "greedy",
        overrides: Overrides = (),
        host: str,
    ) -> HostedStrategy:
        """From names as on the command line, or from objects; raises as `load` does."""
        parts = {"strategy": strategy, "sampler": sampler}
        for group, part in parts.items():
            require(part is not None, f"{group} must be an option's name or an object, got None")
        built = parts_from(parts, overrides)
        return HostedStrategy(
            built["strategy"], mask_id, eos_ids, banned_ids, built["sampler"], host
        )

    def most_steps(self, width: int) -> int:
        """After how many steps a block of so many columns is decided at the latest."""
        progress = self.strategy.progress
        if isinstance(progress, Budget):
            return progress.steps
        return width * (1 + progress.per_column) if isinstance(progress, Revisions) else width

    def begin(
        self,
        tokens: Tensor,
        vocabulary: int,
        prompt: Tensor | None = None,
        seed: int = 0,
        sampler: Sampler | None = None,
    ) -> HostedBlock:
        """A block before its first step; the host waits once, to see what stands in it.

        Args:
            tokens: (B, W) ids, the mask id where a column is to be decided.
            vocabulary: ids that the model has logits for.
            prompt: (B, W) bool, columns that are never written to, whatever they hold; None for
                those that hold no mask.
            seed: of the first row; the others have the numbers behind it.
            sampler: for this block, None for its own.

        Raises:
            CapabilityError: where the strategy does not fit the block.
            ConfigError: where ids lie outside the vocabulary.
        """
        vocab = Vocab(
            size=vocabulary,
            mask_id=self.mask_id,
            eot_ids=self.eos_ids,
            banned_ids=self.banned_ids,
        )
        decoder = Decoder(
            HostedModel(vocab, tokens.device, self.host, self._selection),
            self.strategy,
            Blocks(tokens.shape[1], origin="prompt"),
            sampler=self.sampler if sampler is None else sampler,
        )
        open = tokens == self.mask_id
        return HostedBlock(decoder, tokens, open if prompt is None else open & ~prompt, seed)

    @property
    def _selection(self) -> str:
        """The name of the part that chooses."""
        chosen = ((k, part) for k, part in self.strategy.parts() if isinstance(part, Strategy))
        key, part = next(chosen, ("", self.strategy))
        return named(f"strategy.{key}" if key else "strategy", part)

    def rehearse(self, width: int) -> None:
        """Decode a block of random logits, so that what cannot work is refused before it serves.

        What depends on the size of the vocabulary is left to the first block, which brings it.

        Args:
            width: columns of a block.

        Raises:
            CapabilityError: for strategies that the engine cannot carry, in their name.
        """
        ids = (self.mask_id, *self.eos_ids, *self.banned_ids)
        size = max(ids) + 2
        tokens = torch.full((1, width), self.mask_id)
        random = torch.Generator().manual_seed(0)
        logits = 4 * torch.randn(1, width, size, generator=random)
        try:
            block = self.begin(tokens, size)
            for _ in range(self.most_steps(width)):
                if all(block.done):
                    break
                block.step(logits)
        except ConfigError as error:
            if isinstance(error, CapabilityError):
                raise


def ids_of(name: str, value: Any) -> tuple[int, ...]:
    """Token ids from one number, a list of them or None; raises `ConfigError` for anything else."""
    many = [] if value is None else value if isinstance(value, list | tuple) else [value]
    for token in many:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise ConfigError(f"{name} must be a token id or a list of them, got {value!r}")
    return tuple(many)
