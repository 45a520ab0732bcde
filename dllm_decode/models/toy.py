"""Exact toy worlds: models whose joint distribution is known, so that every decode can be checked.

A world is a joint distribution over answers. As a denoiser it returns the exact conditional
marginal of every column given the columns that are decided, which is what a perfectly trained model
would return: whatever a strategy loses on it, the strategy loses and not the model. The list
operations are those of ParallelBench, arXiv 2510.04767, section 3.
"""

from __future__ import annotations

import random
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.types import Request, Vocab
from dllm_decode.errors import ConfigError, require, require_count, require_in_range
from dllm_decode.kernels.noise import fold, mix, unit_interval
from dllm_decode.models.loaded import Description

UNDECIDED, FOREIGN = -1, -2
_LETTERS = string.ascii_letters + string.digits
_SEPARATOR, _SPECIAL = ">", ".> _"


def row_state(tokens: Tensor, live: Tensor, seed: int) -> Tensor:
    """A hash of each row's live tokens and where they stand, (B,) int64.

    Columns count from the row's first live one, so padding, batch and order do not matter.

    Args:
        tokens: (B, L) ids.
        live: (B, L) bool.
        seed: Of the hash.
    """
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    first = torch.where(live, columns, tokens.shape[1]).amin(1, keepdim=True)
    start = mix(torch.tensor(seed, device=tokens.device))
    return (fold(fold(start, columns - first), tokens) * live).sum(1)


@dataclass(frozen=True)
class SymbolTokenizer:
    """One token per printable symbol, then end of text, separator, padding and mask.

    A prompt ends with the separator `>`, which `encode` appends where it is missing.

    Attributes:
        symbols: The symbols in the order of their ids.

    Examples:
        >>> tokenizer = SymbolTokenizer("abc")
        >>> tokenizer.encode("cab>"), tokenizer.decode([2, 0, 1])
        ([2, 0, 1, 4], 'cab')
    """

    symbols: str

    @property
    def reads_text(self) -> bool:
        """True: prompts are symbols."""
        return True

    @property
    def has_chat_template(self) -> bool:
        """Never: a prompt is the items of an instance."""
        return False

    def encode(self, text: str, *, control: bool | None = None, framed: bool = True) -> list[int]:
        """Token ids of a prompt; raises `ConfigError` for symbols that the world does not have.

        Args:
            text: Symbols, with or without the separator behind them.
            control: Without effect: no symbol stands for anything else.
            framed: Without effect: the separator is always there.
        """
        known = self.symbols + _SEPARATOR
        for symbol in text:
            if symbol not in known:
                raise ConfigError(
                    f"the prompt contains {symbol!r}; this world knows the symbols {self.symbols} "
                    f"and the separator {_SEPARATOR}"
                )
        if _SEPARATOR not in text:
            text += _SEPARATOR
        separator = len(self.symbols) + 1
        return [separator if s == _SEPARATOR else self.symbols.index(s) for s in text]

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options: object) -> list[int]:
        """Raise `ConfigError`, since a toy world holds no conversation."""
        raise ConfigError("a toy world has no chat template; give the prompt as text, e.g. abc>")

    def decode(self, ids: list[int], *, keep_special: bool = False) -> str:
        """The symbols of token ids; special ones are `.` end, `>` separator, ` ` pad, `_` mask."""
        shown = self.symbols + _SPECIAL
        return "".join(shown[i] for i in ids if keep_special or i < len(self.symbols))


@dataclass(frozen=True, kw_only=True)
class World(ABC):
    """A joint distribution over answers, usable wherever a model is: `Decoder(Shuffle(n=6), ...)`.

        logit[i, v] = ln max(P(y_i = v | decided columns), floor) + noise * U,   U uniform on (0, 1)

    The answer begins behind the last separator of the row (or at its first column) and ends with
    end of text. Symbols in front of the separator are the instance; a row without any has the
    world's default instance. Decided columns predict their own token.

    Decided columns may contradict the joint, which is the price of parallel decoding. Then the
    columns still open get marginals that ignore what cannot be explained: `Shuffle` the items not
    used yet, every other world the marginals of an empty canvas.

    Attributes:
        noise: Size of the tie-break noise, 0 or more; independent for every canvas, column and
            token. Without it equal marginals tie exactly and an argmax takes the same token at
            every column.
        floor: Probability given to what cannot happen, in [0, 1), so that all logits are finite; 0
            makes them -inf.
        seed: Of the noise.
        source: The config.json that a checkpoint would have; empty.

    Examples:
        >>> from dllm_decode.strategies.fixed import TopK
        >>> world = Shuffle(n=3)
        >>> world.answer(TopK(1), "abc")[1], round(world.probability("abc>", "cab"), 3)
        (4, 0.167)
    """

    noise: float = 1e-6
    floor: float = 1e-9
    seed: int = 0
    source: Mapping[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        require_in_range("model.noise", self.noise, 0.0, 1.0)
        require_in_range("model.floor", self.floor, 0.0, 1.0, open_high=True)

    def answer(self, strategy: Any, items: str = "", **parts: Any) -> tuple[str, int]:
        """Decode one instance; for examples and for a first look at a strategy.

        Args:
            strategy: the strategy.
            items: the instance, by default the world's own.
            parts: further fields of the `Decoder`, such as the schedule.

        Returns:
            The answer, and the forward passes that it took.

        Examples:
            >>> from dllm_decode.strategies.fixed import TopK
            >>> Reverse(n=4).answer(TopK(2), "abcd")
            ('dcba', 3)
        """
        from dllm_decode.decoding.loop import Decoder

        prompt = tuple(self.tokenizer.encode(items or self.default_prompt))
        result = Decoder(self, strategy, **parts).decode(Request((prompt,), len(prompt)))
        return self.tokenizer.decode(list(result.sequences[0])), result.forwards[0]

    @property
    @abstractmethod
    def symbols(self) -> str:
        """The symbols that answers and instances are made of."""

    @property
    @abstractmethod
    def default_prompt(self) -> str:
        """The instance of a row without one."""

    @abstractmethod
    def lengths(self, items: Tensor) -> Tensor:
        """Length of each row's answer without end of text, (B,).

        Args:
            items: See `marginals`.
        """

    @abstractmethod
    def marginals(self, items: Tensor, answer: Tensor) -> Tensor:
        """P(y_i = v | decided answer columns), (B, N, S + 1) float64, S the number of symbols.

        Args:
            items: (B, M) symbol ids of the instance, -1 behind the last.
            answer: (B, N) symbol ids, S for end of text, `UNDECIDED`, or `FOREIGN` for a token that
                no answer contains.
        """

    def sample_prompts(self, count: int = 4, seed: int = 0) -> list[str]:
        """Prompts to try the world with.

        Args:
            count: How many.
            seed: Of the draws, for worlds whose instances are drawn.
        """
        return [self.default_prompt + _SEPARATOR] * count

    # What a loaded model has.

    @property
    def denoiser(self) -> World:
        """The world itself, which is its own model."""
        return self

    @cached_property
    def tokenizer(self) -> SymbolTokenizer:
        """Symbols to ids and back."""
        return SymbolTokenizer(self.symbols)

    @property
    def description(self) -> Description:
        """What the first line of output says."""
        name = type(self).__name__
        return Description("exact toy world", name, None, 0, "float64", "cpu")

    # What the loop needs of a model.

    @cached_property
    def vocab(self) -> Vocab:
        """Symbols, end of text, separator (never generated), padding, mask."""
        end = len(self.symbols)
        return Vocab(end + 4, end + 3, (end,), end + 2, (end + 1, end + 2))

    @property
    def device(self) -> torch.device:
        """The processor, where the exact marginals are computed."""
        return torch.device("cpu")

    @property
    def max_length(self) -> None:
        """None: answers may be of any length."""
        return

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """Logits (B, W, V) in float64, as `World` defines them."""
        items, start = self._instance(tokens, live)
        size = self.lengths(items)
        answer = self._answer(tokens, live, start, int(size.max()))
        probs = self._complete(self.marginals(items, answer), answer, size)
        offset = (index - start[:, None]).clamp(min=0)
        slot = offset.clamp(max=probs.shape[1] - 1)
        # behind its own end all of an answer is alike, however long the batch's longest is
        offset = torch.minimum(offset, size[:, None])
        wanted = probs.gather(1, slot[..., None].expand(-1, -1, probs.shape[2]))
        logits = wanted.clamp(min=self.floor).log()
        return logits + self.noise * self._uniform(tokens, live, offset)

    @property
    def provides(self) -> frozenset[str]:
        """States are the logits, and embeddings are one-hot: a world has nothing inside."""
        return frozenset({"hidden", "embeddings"})

    @property
    def width(self) -> int:
        """Of the states: one number per id; see `Capabilities`."""
        return self.vocab.size

    def states(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """The logits (B, W, V), impossible tokens at -100; see `Capabilities`."""
        return self(tokens, live, index, plan).clamp(min=-100.0)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of states: themselves."""
        return hidden

    def embed(self, tokens: Tensor) -> Tensor:
        """One-hot embeddings (B, L, V) of tokens."""
        return torch.nn.functional.one_hot(tokens, self.vocab.size).float()

    def _instance(self, tokens: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
        """Symbols of each row's instance (B, M), -1 behind, and its first answer column (B,)."""
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        first = torch.where(live, columns, tokens.shape[1]).amin(1)
        separator = torch.where((tokens == len(self.symbols) + 1) & live, columns, -1).amax(1)
        start = torch.where(separator >= 0, separator + 1, first)
        inside = live & (columns < start[:, None]) & (tokens < len(self.symbols))
        items = torch.where(inside, tokens, -1)
        items = items.gather(1, (~inside).int().sort(dim=1, stable=True).indices)
        default = torch.tensor(
            [self.symbols.index(s) for s in self.default_prompt], device=tokens.device
        )
        width = max(items.shape[1], len(self.default_prompt))
        items = torch.nn.functional.pad(items, (0, width - items.shape[1]), value=-1)
        default = torch.nn.functional.pad(default, (0, width - default.shape[0]), value=-1)
        return torch.where(inside.any(1, keepdim=True), items, default), start

    def _answer(self, tokens: Tensor, live: Tensor, start: Tensor, width: int) -> Tensor:
        """The answer columns of each row, (B, width)."""
        columns = start[:, None] + torch.arange(width, device=tokens.device)
        inside = columns < tokens.shape[1]
        columns = columns.clamp(max=tokens.shape[1] - 1)
        answer = tokens.gather(1, columns)
        unknown = ~inside | ~live.gather(1, columns) | (answer == self.vocab.mask_id)
        answer = torch.where(answer > len(self.symbols), FOREIGN, answer)
        return torch.where(unknown, UNDECIDED, answer)

    def _complete(self, probs: Tensor, answer: Tensor, size: Tensor) -> Tensor:
        """Marginals of all ids, (B, N + 1, V): decided columns, end of text behind the answer."""
        end = len(self.symbols)
        own = torch.nn.functional.one_hot(answer.clamp(min=0), end + 1).to(probs.dtype)
        probs = torch.where((answer >= 0)[..., None], own, probs)
        probs = torch.nn.functional.pad(probs, (0, self.vocab.size - end - 1, 0, 1))
        slots = torch.arange(probs.shape[1], device=probs.device)
        ending = torch.zeros(self.vocab.size, dtype=probs.dtype, device=probs.device)
        ending[end] = 1.0
        return torch.where((slots >= size[:, None])[..., None], ending, probs)

    def _uniform(self, tokens: Tensor, live: Tensor, slot: Tensor) -> Tensor:
        state = fold(row_state(tokens, live, self.seed)[:, None], slot)
        ids = torch.arange(self.vocab.size, device=tokens.device)
        return unit_interval(fold(state[..., None], ids))

    def probability(self, prompt: str, answer: str) -> float:
        """P(answer | prompt), by the chain rule over the marginals, without noise and floor.

        Args:
            prompt: As `encode` takes it.
            answer: Symbols, without end of text.
        """
        ids = torch.tensor([self.tokenizer.encode(prompt)])
        items, _ = self._instance(ids, torch.ones_like(ids, dtype=torch.bool))
        width = max(int(self.lengths(items).max()), len(answer))
        end = len(self.symbols)
        wanted = [self.symbols.find(s) for s in answer] + [end] * (width - len(answer))
        state = torch.full((1, width), UNDECIDED)
        chance = 1.0
        for column, token in enumerate(wanted):
            if token < 0:
                return 0.0
            probs = self._complete(self.marginals(items, state), state, self.lengths(items))
            chance *= float(probs[0, column, token])
            if chance == 0.0:
                return 0.0
            state[0, column] = token
        return chance


@dataclass(frozen=True, kw_only=True)
class ListWorld(World):
    """An operation on a list of distinct items, which the prompt holds: `cab>`.

    Attributes:
        n: Items of the default instance and of the sample prompts, 1 or more; the items of a prompt
            may be any symbols and any number.

    Examples:
        >>> Copy(n=4).default_prompt, Copy(n=4).symbols
        ('abcd', 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789')
    """

    n: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("model.n", self.n)
        most = len(_LETTERS) - self._words
        require(self.n <= most, f"model.n must be at most {most}, got {self.n}")

    @property
    def _words(self) -> int:
        """Symbols of the instance behind the list."""
        return 0

    @property
    def symbols(self) -> str:
        """All letters and digits, whatever n is."""
        return _LETTERS

    @property
    def default_prompt(self) -> str:
        """The first n symbols, and what stands behind the list."""
        return _LETTERS[: self.n + self._words]

    def sample_prompts(self, count: int = 4, seed: int = 0) -> list[str]:
        """Lists of n items drawn without replacement."""
        draw = random.Random(seed)
        size = self.n + self._words
        return ["".join(draw.sample(_LETTERS, size)) + _SEPARATOR for _ in range(count)]

    def lengths(self, items: Tensor) -> Tensor:
        """One answer column per item."""
        return ((items >= 0).sum(1) - self._words).clamp(min=0)

    def _one_hot(self, ids: Tensor) -> Tensor:
        hot = torch.nn.functional.one_hot(ids.clamp(min=0), len(_LETTERS) + 1)
        return hot.to(torch.float64)

    def _fit(self, ids: Tensor, width: int) -> Tensor:
        return torch.nn.functional.pad(ids, (0, max(0, width - ids.shape[1])), value=-1)[:, :width]


@dataclass(frozen=True, kw_only=True)
class Copy(ListWorld):
    """y = x. Nothing depends on anything: every strategy solves it in any number of steps.

    Examples:
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Copy(n=4).answer(TopK(5), "dbca")  # all at once, the end of text included
        ('dbca', 1)
    """

    def marginals(self, items: Tensor, answer: Tensor) -> Tensor:
        """P(y_i = x_i) = 1; see `World.marginals`."""
        return self._one_hot(self._fit(items, answer.shape[1]))


@dataclass(frozen=True, kw_only=True)
class Reverse(ListWorld):
    """y_i = x_(n-1-i). As parallel as `Copy`.

    Examples:
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Reverse(n=4).answer(TopK(5), "dbca")
        ('acbd', 1)
    """

    def marginals(self, items: Tensor, answer: Tensor) -> Tensor:
        """P(y_i = x_(n-1-i)) = 1; see `World.marginals`."""
        slots = torch.arange(answer.shape[1], device=items.device)
        mirrored = self.lengths(items)[:, None] - 1 - slots
        return self._one_hot(items.gather(1, mirrored.clamp(min=0)))


@dataclass(frozen=True, kw_only=True)
class _ReplaceWorld(ListWorld):
    """What both replacements share: the last symbol in front of the separator is the new item."""

    @property
    def _words(self) -> int:
        return 1

    def _replaced(self, items: Tensor, answer: Tensor, chance: Tensor) -> Tensor:
        """Marginals where column i holds the new item with probability chance[i], (B, N, S + 1)."""
        size = self.lengths(items)
        word = items.gather(1, size[:, None])
        old = self._one_hot(self._fit(items, answer.shape[1]))
        new = self._one_hot(word.expand(-1, answer.shape[1]))
        return chance[..., None] * new + (1 - chance[..., None]) * old


@dataclass(frozen=True, kw_only=True)
class ReplaceIndex(_ReplaceWorld):
    """The item at `index` is replaced by the last symbol of the prompt. As parallel as `Copy`.

    Attributes:
        index: 0-based, 0 or more; lists that are too short stay as they are.

    Examples:
        >>> from dllm_decode.strategies.fixed import TopK
        >>> ReplaceIndex(n=3, index=1).answer(TopK(4), "abcd")
        ('adc', 2)
    """

    index: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("model.index", self.index, minimum=0)

    def marginals(self, items: Tensor, answer: Tensor) -> Tensor:
        """P(y_i = new) = 1 at i = `index`, P(y_i = x_i) = 1 elsewhere; see `World.marginals`."""
        slots = torch.arange(answer.shape[1], device=items.device)
        chance = (slots == self.index).to(torch.float64).expand(answer.shape)
        return self._replaced(items, answer, chance)


@dataclass(frozen=True, kw_only=True)
class ReplaceRandom(_ReplaceWorld):
    """One item, any one, is replaced by the last symbol of the prompt: n answers, equally likely.

    With J the replaced column, P(J = j | decided) is uniform over the j that explain the decided
    columns, and P(y_i = new) = P(J = i | decided).

    Examples:
        >>> world = ReplaceRandom(n=3)
        >>> [round(world.probability("abcd>", answer), 3) for answer in ("dbc", "adc", "ddc")]
        [0.333, 0.333, 0.0]
    """

    def marginals(self, items: Tensor, answer: Tensor) -> Tensor:
        """P(y_i = new) = P(J = i | decided), P(y_i = x_i) the rest; see `World.marginals`."""
        width = answer.shape[1]
        size = self.lengths(items)
        slots = torch.arange(width, device=items.device)
        inside = slots < size[:, None]
        word = items.gather(1, size[:, None])[:, None, :]
        old = self._fit(items, width)[:, None, :]
        outcome = torch.where(torch.eye(width, dtype=torch.bool), word, old)
        free = (answer == UNDECIDED) | ~inside
        explained = ((outcome == answer[:, None, :]) | free[:, None, :]).all(2) & inside
        explained = torch.where(explained.any(1, keepdim=True), explained, inside)
        chance = explained / explained.sum(1, keepdim=True).clamp(min=1).to(torch.float64)
        return self._replaced(items, answer, chance)


@dataclass(frozen=True, kw_only=True)
class Shuffle(ListWorld):
    """Any order of the items, equally likely (the identity included).

    With m items left, each open column holds each of them with probability 1 / m.

    Examples:
        >>> from dllm_decode.strategies.fixed import TopK
        >>> text, forwards = Shuffle(n=4).answer(TopK(1), "abcd")
        >>> sorted(text)
        ['a', 'b', 'c', 'd']
    """

    def marginals(self, items: Tensor, answer: Tensor) -> Tensor:
        """P(y_i = v) = 1 / m for the m items that are left; see `World.marginals`."""
        have = (self._one_hot(items) * (items >= 0)[..., None]).sum(1)
        used = (self._one_hot(answer) * (answer >= 0)[..., None]).sum(1)
        left = (have - used).clamp(min=0)
        share = left / left.sum(1, keepdim=True).clamp(min=1)
        return share[:, None, :].expand(-1, answer.shape[1], -1)


@dataclass(frozen=True, kw_only=True)
class Markov(World):
    """A Markov chain of n symbols: `P(y) = initial[y_0] * prod transition[y_(t-1)][y_t]`.

    The marginals come from the forward-backward recursions with the decided columns as evidence.

    Attributes:
        n: Length, 1 or more.
        initial: P(y_0), one probability per state; states are called a, b, c ...
        transition: One row of probabilities per state.

    Examples:
        >>> round(Markov(n=2).probability(">", "aa"), 3)  # 0.5 * 0.9
        0.45
    """

    n: int = 8
    initial: Sequence[float] = (0.5, 0.5)
    transition: Sequence[Sequence[float]] = ((0.9, 0.1), (0.2, 0.8))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("model.n", self.n)
        states = len(self.initial)
        require(
            0 < states <= len(_LETTERS),
            f"model.initial must have 1 to {len(_LETTERS)} entries, got {states}",
        )
        rows = list(self.transition)
        square = len(rows) == states and all(len(row) == states for row in rows)
        require(square, f"model.transition must have {states} rows of {states} numbers")
        for name, row in (("initial", self.initial), *(("transition", row) for row in rows)):
            proper = min(row) >= 0 and abs(sum(row) - 1) < 1e-6
            require(proper, f"model.{name} must hold probabilities that add up to 1, got {row}")

    @property
    def symbols(self) -> str:
        """One letter per state."""
        return _LETTERS[: len(self.initial)]

    @property
    def default_prompt(self) -> str:
        """There is only one instance."""
        return ""

    def lengths(self, items: Tensor) -> Tensor:
        """n, since every answer has the length of the chain."""
        return torch.full((items.shape[0],), self.n, device=items.device)

    def marginals(self, items: Tensor, answer: Tensor) -> Tensor:
        """Forward times backward message, normalised; see `World.marginals`."""
        states = len(self.initial)
        one_hot = torch.nn.functional.one_hot(answer.clamp(min=0), states + 1)[..., :states]
        allowed = torch.where(
            (answer == UNDECIDED)[..., None], 1, one_hot * (answer >= 0)[..., None]
        )
        both = self._messages(allowed.to(torch.float64))
        impossible = (both.sum(2, keepdim=True) == 0).any(1, keepdim=True)
        both = torch.where(impossible, self._messages(torch.ones_like(both)), both)
        return torch.nn.functional.pad(both / both.sum(2, keepdim=True), (0, 1))

    def _messages(self, allowed: Tensor) -> Tensor:
        """Product of both messages, (B, N, states); each is scaled to sum 1 where it can be."""
        step = torch.tensor([list(row) for row in self.transition], dtype=torch.float64)
        state = torch.tensor(list(self.initial), dtype=torch.float64).expand_as(allowed[:, 0])
        forward = []
        for column in range(allowed.shape[1]):
            state = _scaled(state * allowed[:, column])
            forward.append(state)
            state = (state[:, :, None] * step).sum(1)
        state = torch.ones_like(allowed[:, 0])
        backward = []
        for column in reversed(range(allowed.shape[1])):
            backward.append(state)
            state = _scaled((step * (state * allowed[:, column])[:, None, :]).sum(2))
        return torch.stack(forward, 1) * torch.stack(backward[::-1], 1)


def _scaled(message: Tensor) -> Tensor:
    total = message.sum(1, keepdim=True)
    return message / torch.where(total == 0, 1.0, total)


@dataclass(frozen=True, kw_only=True)
class Table(World):
    """Any joint distribution, as a table.

    Attributes:
        outcomes: Mapping from an answer to its weight, 0 or more; they need not add up to 1, and
            shorter answers end in end of text.

    Examples:
        >>> round(Table(outcomes={"ab": 0.9, "ba": 0.1}).probability(">", "ba"), 3)
        0.1
    """

    outcomes: Mapping[str, float] = field(default_factory=lambda: {"ab": 0.4, "ba": 0.4, "aa": 0.2})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            sum(self.outcomes.values()) > 0 and min(self.outcomes.values()) >= 0,
            f"model.outcomes needs weights >= 0 with a sum above 0, got {dict(self.outcomes)}",
        )
        require(
            not set("".join(self.outcomes)) & set(_SPECIAL),
            f"model.outcomes must not contain any of the symbols {_SPECIAL!r}",
        )

    @property
    def symbols(self) -> str:
        """Every symbol of the table, sorted."""
        return "".join(sorted(set("".join(self.outcomes))))

    @property
    def default_prompt(self) -> str:
        """There is only one instance."""
        return ""

    @cached_property
    def _rows(self) -> Tensor:
        """The answers, (T, N), padded with end of text."""
        symbols, longest = self.symbols, max(map(len, self.outcomes))
        end = len(symbols)
        return torch.tensor(
            [
                [symbols.index(s) for s in text] + [end] * (longest - len(text))
                for text in self.outcomes
            ],
            dtype=torch.long,
        )

    def lengths(self, items: Tensor) -> Tensor:
        """The longest answer; shorter ones hold their end of text themselves."""
        return torch.full((items.shape[0],), self._rows.shape[1], device=items.device)

    def marginals(self, items: Tensor, answer: Tensor) -> Tensor:
        """Weights of the answers that agree with the decided columns, added up by symbol."""
        weights = torch.tensor(list(self.outcomes.values()), dtype=torch.float64)
        agree = (answer == UNDECIDED)[:, None, :] | (answer[:, None, :] == self._rows)
        posterior = agree.all(2) * weights
        total = posterior.sum(1, keepdim=True)
        posterior = torch.where(total > 0, posterior, weights)
        posterior = posterior / posterior.sum(1, keepdim=True)
        one_hot = torch.nn.functional.one_hot(self._rows, len(self.symbols) + 1)
        return (posterior[:, :, None, None] * one_hot).sum(1)
