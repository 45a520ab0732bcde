"""Training a draft layer on the states of a model that is left as it is; see `task=train_drafter`.

Recipe: ADJUST, arXiv 2509.22738: the model's distributions after every single commit are the
target, the layer follows the commits from the states of the first pass, and the loss is taken at
every depth.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.denoiser import Capabilities, Denoiser
from dllm_decode.decoding.selection import best
from dllm_decode.errors import CapabilityError
from dllm_decode.models.drafting import DraftLayer

_STATES = 4  # of each text that is measured with
SURE = 0.9  # probability from which a threshold decode would have committed
_NEVER = -1e9  # logit of ids that are never proposed
# Shares of the rows.
_EMPTY, _FILLED, _BLOCKED = 0.2, 0.9, 0.5
_ANY_ORDER, _LIKELIEST, _SEVERAL = 0.5, 0.25, 0.25


@dataclass(frozen=True)
class Text:
    """A prompt with a finished answer, from which states of unfinished ones are made.

    Attributes:
        prompt: Ids of the prompt.
        answer: Ids of the answer without what fills the canvas behind it.
        canvas: Columns of the answer in a decode.
        open: Whether it is one of several right answers.
        family: What it is an example of, for the report.

    Examples:
        >>> Text((5, 6), (7,), canvas=32).length
        3
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    canvas: int
    open: bool = False
    family: str = ""

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Rollout:
    """Some rows of a model's own decode, from an unfinished canvas on, J commits long.

    Attributes:
        live: (B, L) bool, columns that exist.
        states: (B, L, D) of the model for the first canvas.
        tokens: J canvases (B, L), each with more columns committed.
        open: For each of them (B, G) bool, columns of the answer that may be committed next.
        targets: For each of them (N, V) logits of the model at its N open columns.
        marginals: For each of them (N,) KL in nats of what the first pass had said there.
    """

    live: Tensor
    states: Tensor
    tokens: tuple[Tensor, ...]
    open: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    marginals: tuple[Tensor, ...]


class Teacher:
    """The model that a drafter is trained for, asked for states and distributions.

    Args:
        denoiser: The model.
        block: Columns of a block, where canvases are decoded block by block; None for no blocks.

    Raises:
        CapabilityError: The model shows no states or gives no embeddings.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Teacher(Copy(n=3), block=None).logits(torch.zeros(1, 2, 66)).shape
        torch.Size([1, 2, 66])
    """

    def __init__(self, denoiser: Denoiser, block: int | None) -> None:
        self.own, self.block = Capabilities.of(denoiser), block
        missing = sorted({"hidden", "embeddings"} - {*self.own.provides})
        if missing:
            raise CapabilityError(
                f"a draft layer looks at the model's {', '.join(missing)}, which model "
                f"({type(denoiser).__name__}) does not provide"
            )
        self.vocab, self.device = denoiser.vocab, denoiser.device
        self._never = torch.tensor(self.vocab.never_generated, device=self.device)

    def logits(self, states: Tensor) -> Tensor:
        """What the output head makes of states, without the ids that are never proposed."""
        assert self.own.head is not None
        logits = self.own.head(states).float()
        return logits.index_fill(-1, self._never, _NEVER)

    @torch.no_grad()
    def rollout(self, texts: Sequence[Text], extra: int, depth: int, seed: int) -> Rollout:
        """A decode of some rows, `depth` commits long, from a state that decodes go through.

        The first canvas holds a random share of a finished answer, and in nine rows of ten also
        what the model is sure of then, as a threshold decode would have committed it: what is left
        are columns that depend on each other. From there on the
        model writes itself: mostly one column at a time, where its entropy is lowest or anywhere,
        mostly a token drawn from its distribution.

        Args:
            texts: The rows.
            extra: Columns behind the longest answer.
            depth: Commits, J.
            seed: Of everything that is drawn.
        """
        draw = torch.Generator().manual_seed(seed)
        canvas, live, length = self._canvas(texts, extra)
        finished = canvas[:, -length:]
        inside, start = self._start(finished, draw)
        x = torch.cat([canvas[:, :-length], start], 1)
        states, logits = self._pass(x, live, length)
        filled = self._filled(start, logits, inside, draw)
        if not torch.equal(filled, start):
            x = torch.cat([canvas[:, :-length], filled], 1)
            states, logits = self._pass(x, live, length)
        manner = torch.rand(len(texts), 3, generator=draw).to(self.device)
        first, found = logits, Rollout(live, states, (), (), (), ())
        for _ in range(depth):
            answer = self._commit(x[:, -length:], logits, inside, manner, draw)
            x = torch.cat([canvas[:, :-length], answer], 1)
            logits = self._pass(x, live, length)[1]
            undecided = (answer == self.vocab.mask_id) & inside
            target = logits[undecided]
            found = Rollout(
                live,
                states,
                (*found.tokens, x),
                (*found.open, undecided),
                (*found.targets, target),
                (*found.marginals, divergence(target, first[undecided])),
            )
        return found

    def _canvas(self, texts: Sequence[Text], extra: int) -> tuple[Tensor, Tensor, int]:
        """Finished canvases (B, L) padded in front, their live columns, and G."""
        filler = self.vocab.filler
        length = max(len(text.answer) for text in texts) + extra
        ahead = max(len(text.prompt) for text in texts)
        rows = [
            (filler,) * (ahead - len(text.prompt))
            + text.prompt
            + text.answer
            + (filler,) * (length - len(text.answer))
            for text in texts
        ]
        first = torch.tensor([ahead - len(text.prompt) for text in texts], device=self.device)
        live = torch.arange(ahead + length, device=self.device) >= first[:, None]
        return torch.tensor(rows, device=self.device), live, length

    def _start(self, finished: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Columns (B, G) that may be committed, and canvases of which a share stands."""
        rows, length = finished.shape
        dice = torch.rand(rows, 4, generator=draw).to(self.device)
        share = torch.where(dice[:, :1] < _EMPTY, 0.0, dice[:, 1:2])
        stands = torch.rand(rows, length, generator=draw).to(self.device) < share
        inside = torch.ones_like(stands)
        if self.block is not None and length > self.block:
            block = torch.arange(length, device=self.device) // self.block
            chosen = (dice[:, 3:] * -(-length // self.block)).long()
            blocked = dice[:, 2:3] < _BLOCKED
            inside = ~blocked | (block == chosen)
            stands = torch.where(blocked, (block < chosen) | (stands & inside), stands)
        return inside, torch.where(stands, finished, self.vocab.mask_id)

    def _filled(
        self, start: Tensor, logits: Tensor, inside: Tensor, draw: torch.Generator
    ) -> Tensor:
        """In some rows also what the model is sure of, unless nothing would be left to do."""
        chosen = (torch.rand(len(start), 1, generator=draw) < _FILLED).to(self.device)
        confidence, token = logits.softmax(-1).max(-1)
        undecided = (start == self.vocab.mask_id) & inside
        sure = undecided & (confidence >= SURE) & chosen
        sure = sure & (undecided & ~sure).any(1, keepdim=True)
        return torch.where(sure, token, start)

    def _commit(
        self, x: Tensor, logits: Tensor, inside: Tensor, manner: Tensor, draw: torch.Generator
    ) -> Tensor:
        """The canvases (B, G) after one more commit in every row where something is open."""
        undecided = (x == self.vocab.mask_id) & inside
        logs = logits.log_softmax(-1)
        entropy = -(logs.exp() * logs).sum(-1)
        anywhere = torch.rand(x.shape, generator=draw).to(self.device)
        picked = best(torch.where(manner[:, :1] < _ANY_ORDER, anywhere, -entropy), undecided)
        several = undecided & (logs.amax(-1).exp() >= SURE) & (manner[:, 1:2] < _SEVERAL)
        picked = picked | several
        wanted = logs[picked]
        noise = torch.rand(wanted.shape, generator=draw).to(self.device)
        gumbel = -(-noise.clamp(min=1e-20).log()).log()
        likeliest = (manner[:, 2:] < _LIKELIEST).expand_as(picked)[picked]
        token = (wanted + torch.where(likeliest[:, None], 0.0, gumbel)).argmax(-1)
        return x.masked_scatter(picked, token)

    def _pass(self, x: Tensor, live: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """States (B, L, D) of all columns, and logits (B, G, V) of the answer's."""
        assert self.own.states is not None
        everywhere = torch.arange(x.shape[1], device=self.device).expand_as(x)
        states = self.own.states(x, live, everywhere, Plan())
        return states, self.logits(states[:, -length:])


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """KL(target || softmax(logits)) of every slot in nats, (N,).

    Args:
        target: (N, V) logits of what is to be met.
        logits: (N, V).
    """
    wanted, found = target.log_softmax(-1), logits.log_softmax(-1)
    return (wanted.exp() * (wanted - found)).sum(-1)


def drafted(teacher: Teacher, layer: DraftLayer, rollout: Rollout) -> list[Tensor]:
    """KL in nats of what the layer says at the open columns of each canvas, (N,) each.

    Args:
        teacher: The model.
        layer: The draft layer.
        rollout: What it follows.
    """
    assert teacher.own.embed is not None
    states, found = rollout.states, []
    for tokens, undecided, target in zip(
        rollout.tokens, rollout.open, rollout.targets, strict=True
    ):
        with torch.no_grad():
            embedded = teacher.own.embed(tokens)
        states = layer(embedded, states, rollout.live)
        wanted = states[:, -undecided.shape[1] :][undecided].to(rollout.states.dtype)
        found.append(divergence(target, teacher.logits(wanted)))
    return found


def drafter_loss(
    teacher: Teacher, layer: DraftLayer, rollout: Rollout
) -> tuple[Tensor, dict[str, float]]:
    """The sum over the depths of the mean KL at open columns, and figures of each depth.

        L = sum_j mean_i KL(p(. | x_j) || p_draft(. | x_j, h_{j-1}))

    The gradient goes through all drafts before, and not into the model.

    Args:
        teacher: The model.
        layer: What is trained.
        rollout: The rows.

    Returns:
        The loss, and by depth `kl_1`, ... of the layer and `marginal_1`, ... of the first pass, in
        nats; depths at which nothing is open are left out.
    """
    total, figures = torch.zeros((), device=teacher.device), {}
    for depth, each in enumerate(drafted(teacher, layer, rollout)):
        if not len(each):
            break
        total = total + each.mean()
        figures[f"kl_{depth + 1}"] = float(each.detach().mean())
        figures[f"marginal_{depth + 1}"] = float(rollout.marginals[depth].mean())
    return total, figures


@dataclass(frozen=True)
class Diet:
    """Which rows come in which update.

    Attributes:
        texts: To choose from.
        rows: Of a batch.
        open_share: Share of the rows that are drawn from texts with several right answers.
        fresh: Batches that are made before they are gone through.
        passes: How often they are gone through.
        depth: Most commits.
        emphasis: Factor by which texts of a family are drawn more or less often, 1 where absent.
        seed: Of the choice.
        least: Fewest commits.

    Examples:
        >>> diet = Diet([Text((1,), (2, 3), 32), Text((1,), (2,), 32)], rows=2)
        >>> len(diet.batch(0)[0]), diet.batch(0) == diet.batch(0)
        (2, True)
    """

    texts: Sequence[Text]
    rows: int
    open_share: float = 0.85
    fresh: int = 16
    passes: int = 3
    depth: int = 3
    emphasis: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    least: int = 1

    @cached_property
    def _pools(self) -> tuple[tuple[list[Text], list[float]], ...]:
        """Texts with several right answers and the others, with how often each is drawn."""
        pools = [[t for t in self.texts if t.open], [t for t in self.texts if not t.open]]
        if not all(pools):
            pools = [list(self.texts)] * 2
        factors = [[self.emphasis.get(text.family, 1.0) for text in pool] for pool in pools]
        return tuple((p, list(accumulate(f))) for p, f in zip(pools, factors, strict=True))

    def number(self, step: int) -> int:
        """Number of the batch of an update.

        Args:
            step: Number of the update.
        """
        group, place = divmod(step, self.fresh * self.passes)
        return group * self.fresh + place % self.fresh

    def batch(self, number: int) -> tuple[list[Text], int, int, int]:
        """Rows of like length, columns behind the longest answer, commits, and a seed.

        With `least` 1 as many batches are one commit long as two, three, ... so that the first
        drafts, on which the later ones build, are learned first.

        Args:
            number: Of the batch.
        """
        rng = random.Random(f"{self.seed}/{number}")
        drawn = []
        for _ in range(4 * self.rows):
            pool, weights = self._pools[rng.random() >= self.open_share]
            drawn += rng.choices(pool, cum_weights=weights)
        middle = drawn[0].length
        near = sorted(drawn, key=lambda text: abs(text.length - middle))[: self.rows]
        room = max(1, max(t.canvas for t in near) - max(len(t.answer) for t in near))
        extra = min(room, rng.choice((1,) * 6 + (8,) * 3 + (32,)))
        return near, extra, rng.randint(self.least, self.depth), rng.getrandbits(40)


def measured(
    teacher: Teacher, layer: DraftLayer, texts: Sequence[Text], rows: int, depth: int, seed: int
) -> dict[str, Any]:
    """Mean KL to the model per depth, of the layer and of the first pass's marginals, in nats.

    Args:
        teacher: The model.
        layer: The draft layer.
        texts: That it was not trained on.
        rows: Of a batch.
        depth: Commits of a row.
        seed: Of the canvases.

    Returns:
        For each group of texts (their families; `open` and `determined`) and each depth the number
        of `slots`, `drafter` and `marginal`.
    """
    sums: dict[str, list[list[float]]] = {}
    ordered = sorted(texts, key=lambda text: (text.family, text.length))
    for begin in [*range(0, len(ordered), rows)] * _STATES:
        chunk, seed = ordered[begin : begin + rows], seed + 1
        rollout = teacher.rollout(chunk, 1, depth, seed)
        with torch.no_grad():
            found = drafted(teacher, layer, rollout)
        for level, each in enumerate(found):
            numbers = rollout.open[level].nonzero()[:, 0].tolist()
            marginals = rollout.marginals[level].tolist()
            for number, one, two in zip(numbers, each.tolist(), marginals, strict=True):
                text = chunk[number]
                kind = "open" if text.open else "determined"
                for group in (text.family, kind) if text.family else ("all",):
                    levels = sums.setdefault(group, [[0.0, 0.0, 0.0] for _ in range(depth)])
                    for place, value in enumerate((1.0, one, two)):
                        levels[level][place] += value
    return {
        group: [
            {"depth": n + 1, "slots": int(count), "drafter": one / count, "marginal": two / count}
            for n, (count, one, two) in enumerate(levels)
            if count
        ]
        for group, levels in sorted(sums.items())
    }
