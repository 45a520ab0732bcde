"""Certainty-forcing distillation of a model on its own decodes; see `task=distill`.

Recipe: dParallel, arXiv 2509.26488: the model learns to write what it wrote itself, from a half
hidden block with everything behind it hidden, and to be certain where it is right.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dllm_decode import storage
from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.types import Vocab
from dllm_decode.errors import CheckpointError

_NEVER = -1e9  # logit of ids that are never proposed


@dataclass(frozen=True)
class Trajectory:
    """What the teacher wrote for a prompt.

    Attributes:
        prompt: Ids of the prompt.
        tokens: Ids of the whole canvas, what fills it behind the answer included.
        family: What it is an example of.

    Examples:
        >>> Trajectory((5, 6), (7, 0, 0)).length
        5
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    family: str = ""

    @property
    def length(self) -> int:
        """Tokens of prompt and canvas."""
        return len(self.prompt) + len(self.tokens)


def write_trajectories(path: Path, found: Sequence[Trajectory], about: Mapping[str, Any]) -> None:
    """Write a data set, one JSON line each behind one that says how it was made.

    Args:
        path: The file.
        found: Its rows.
        about: Model, strategy, seed and so on.
    """
    lines = [dict(about), *(asdict(each) for each in found)]
    storage.write_text(path, "".join(json.dumps(storage.plain(line)) + "\n" for line in lines))


def read_trajectories(path: Path) -> tuple[list[Trajectory], dict[str, Any]]:
    """A data set and how it was made.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is damaged; names the line.
    """
    rows: list[dict[str, Any]] = []
    found: list[Trajectory] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            rows.append(dict(json.loads(line)))
            if len(rows) > 1:
                prompt, tokens = (tuple(map(int, rows[-1][name])) for name in ("prompt", "tokens"))
                found.append(Trajectory(prompt, tokens, str(rows[-1]["family"])))
        return found, rows[0]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: line {len(found) + 1 + (len(rows) > 0)} is no trajectory: {error!r}; remove "
            "the file to write it again"
        ) from None


@dataclass(frozen=True)
class Masked:
    """A batch with two complementary halves of its active blocks hidden.

    Attributes:
        tokens: (2 B, L) the canvases, the second B with the other half hidden.
        live: (2 B, L) bool, columns that exist.
        hidden: (2 B, L) bool, the hidden columns of the active blocks, which are learned.
        target: (2 B, L) what the teacher wrote.
    """

    tokens: Tensor
    live: Tensor
    hidden: Tensor
    target: Tensor


def masked(rows: Sequence[Trajectory], block: int, vocab: Vocab, draw: torch.Generator) -> Masked:
    """Hide a half of one block of each row, once this half and once the other, and all behind it.

    Args:
        rows: With canvases of one length.
        block: Columns of a block.
        vocab: Special ids.
        draw: Where the blocks and halves come from.
    """
    columns = len(rows[0].tokens)
    ahead = max(len(row.prompt) for row in rows)
    padded = [(vocab.filler,) * (ahead - len(row.prompt)) + row.prompt + row.tokens for row in rows]
    target = torch.tensor(padded)
    first = torch.tensor([ahead - len(row.prompt) for row in rows])[:, None]
    place = torch.arange(ahead + columns)
    live = place >= first
    number = torch.randint(-(-columns // block), (len(rows), 1), generator=draw)
    begin = ahead + block * number
    active = (place >= begin) & (place < begin + block)
    behind = place >= begin + block
    half = active & (torch.rand(target.shape, generator=draw) < 0.5)
    hidden = torch.cat([half, active & ~half])
    twice = target.repeat(2, 1)
    tokens = torch.where(hidden | behind.repeat(2, 1), vocab.mask_id, twice)
    return Masked(tokens, live.repeat(2, 1), hidden, twice)


def certainty_forcing(
    logits: Tensor, target: Tensor, *, beta: float, temperature: float
) -> tuple[Tensor, dict[str, float]]:
    """The loss of some hidden columns, and what it is made of.

        L = mean_i -log p_i(y_i) + beta mean_(i right) H(softmax(z_i / T))
        i right: argmax z_i = y_i

    The certainty term is 0 where nothing is right; gradients go through both terms.

    Source: dParallel, arXiv 2509.26488, equations 4 to 8.

    Args:
        logits: (N, V).
        target: (N,) what the teacher wrote.
        beta: Weight of the certainty term, 0 or more.
        temperature: T, more than 0.

    Returns:
        The loss, and `consistency`, `certainty` [nats] and `right` [share].
    """
    if not len(target):
        return logits.sum(), {}
    consistency = functional.cross_entropy(logits, target)
    right = logits.detach().argmax(-1) == target
    logs = (logits / temperature).log_softmax(-1)
    entropy = -(logs.exp() * logs).sum(-1)
    certainty = (entropy * right).sum() / right.sum().clamp(min=1)
    figures = {
        "consistency": float(consistency.detach()),
        "certainty": float(certainty.detach()),
        "right": float(right.float().mean()),
    }
    return consistency + beta * certainty, figures


class Student:
    """The model that learns, asked for logits with gradients.

    Args:
        denoiser: The loaded model.
        block: Columns of a block.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> Student(Copy(n=3), block=4).vocab.size
        66
    """

    def __init__(self, denoiser: Any, block: int) -> None:
        self.denoiser, self.block = denoiser, block
        self.vocab, self.device = denoiser.vocab, denoiser.device
        self._never = torch.tensor(self.vocab.never_generated, device=self.device)

    def logits(self, batch: Masked) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, V) of the hidden columns, their targets (N,), and their rows (N,)."""
        tokens, live, hidden = (
            plane.to(self.device) for plane in (batch.tokens, batch.live, batch.hidden)
        )
        everywhere = torch.arange(tokens.shape[1], device=self.device).expand_as(tokens)
        states = self.denoiser.states(tokens, live, everywhere, Plan())
        row = hidden.nonzero()[:, 0]
        logits = self.denoiser.head(states[hidden][None])[0].float()
        logits = logits.index_fill(-1, self._never, _NEVER)
        return logits, batch.target.to(self.device)[hidden], row

    def loss(
        self, rows: Sequence[Trajectory], seed: int, *, beta: float, temperature: float
    ) -> tuple[Tensor, dict[str, float]]:
        """The sum of the losses of both halves, and their mean figures.

        Args:
            rows: With canvases of one length.
            seed: Of blocks and halves.
            beta: See `certainty_forcing`.
            temperature: See `certainty_forcing`.
        """
        draw = torch.Generator().manual_seed(seed)
        logits, target, row = self.logits(masked(rows, self.block, self.vocab, draw))
        total, figures = logits.new_zeros(()), []
        for half in (row < len(rows), row >= len(rows)):
            loss, told = certainty_forcing(
                logits[half], target[half], beta=beta, temperature=temperature
            )
            total = total + loss
            figures.append(told)
        names = {name for told in figures for name in told}
        mean = {n: sum(t.get(n, 0.0) for t in figures) / len(figures) for n in sorted(names)}
        return total, mean

    @torch.no_grad()
    def calibration(self, rows: Sequence[Trajectory], count: int, bins: int = 10) -> dict[str, Any]:
        """How often the likeliest token is the teacher's, by its confidence.

        Args:
            rows: That were not learned from.
            count: Rows of a batch.
            bins: Number of equal intervals of confidence.

        Returns:
            `error`, the mean distance of confidence and share, and per interval `columns`,
            `confidence` and `right`.
        """
        sums = torch.zeros(bins, 3, dtype=torch.float64)
        for number, batch in enumerate(batches(rows, count)):
            draw = torch.Generator().manual_seed(number)
            logits, target, _ = self.logits(masked(batch, self.block, self.vocab, draw))
            confidence, token = logits.softmax(-1).max(-1)
            place = (confidence * bins).long().clamp(max=bins - 1).cpu()
            facts = torch.stack([torch.ones_like(confidence), confidence, token == target], 1)
            sums.index_add_(0, place, facts.double().cpu())
        filled = sums[sums[:, 0] > 0]
        total = float(filled[:, 0].sum())
        error = float((filled[:, 1] - filled[:, 2]).abs().sum()) / max(total, 1.0)
        intervals = [
            {"columns": int(n), "confidence": float(c / n), "right": float(r / n)}
            for n, c, r in filled
        ]
        return {"error": error, "intervals": intervals}


def batches(rows: Sequence[Trajectory], count: int) -> Iterator[list[Trajectory]]:
    """All rows in batches of canvases of one length and prompts of like length.

    Args:
        rows: In any order.
        count: Rows of a batch.
    """
    groups: dict[int, list[Trajectory]] = {}
    for row in sorted(rows, key=lambda row: row.length):
        groups.setdefault(len(row.tokens), []).append(row)
    for group in groups.values():
        for begin in range(0, len(group), count):
            yield group[begin : begin + count]


def batch_of(
    rows: Sequence[Trajectory], count: int, seed: int, step: int
) -> tuple[list[Trajectory], int]:
    """Rows of one update, with canvases of one length, and a seed.

    A first row is drawn from all; the others are those with the most alike prompts of a draw of
    four times as many with canvases of its length.

    Args:
        rows: All of them.
        count: Rows of a batch.
        seed: Of the run.
        step: Number of the update.
    """
    rng = random.Random(f"{seed}/{step}")
    first = rng.choice(rows)
    alike = [row for row in rows if len(row.tokens) == len(first.tokens)]
    drawn = [first, *(rng.choice(alike) for _ in range(4 * count - 1))]
    near = sorted(drawn, key=lambda row: abs(row.length - first.length))[:count]
    return near, rng.getrandbits(40)


def frontier(curve: Sequence[Mapping[str, float]], floor: float) -> float | None:
    """The fewest forwards at which a curve is at least so accurate, between its points as well.

    Args:
        curve: Points with `accuracy` and `forwards`.
        floor: Accuracy to keep.

    Returns:
        None where no point is.
    """
    points = sorted((point["forwards"], point["accuracy"]) for point in curve)
    found = [forwards for forwards, accuracy in points if accuracy >= floor]
    if not found:
        return None
    best = min(found)
    before = [(f, a) for f, a in points if f < best]
    if before:
        (f0, a0), a1 = before[-1], max(a for f, a in points if f == best)
        best = f0 + (best - f0) * (floor - a0) / (a1 - a0)
    return best
