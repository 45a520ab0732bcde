"""A decode in plain Python, one row at a time, for rules that take back what they have written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.denoiser import Denoiser


@dataclass
class Moment:
    """One step of one row, in plain numbers; columns are counted behind the prompt.

    Attributes:
        block: all columns of the block.
        open: the undecided ones.
        settled: the decided ones.
        opened: how many were open when the block was entered.
        stands: what stands in each column.
        probs: probability of every id by column.
        logits: likewise.
        step: steps of the row before.
        in_block: steps in this block before.
        revised: how often each column was revised.
        ask: the same with other tokens in some columns, the mask id for a masked one.
        kept: what a rule wants to remember; empty at first.
    """

    block: list[int]
    open: list[int]
    settled: list[int]
    opened: int
    stands: list[int]
    probs: list[list[float]]
    logits: list[list[float]]
    step: int
    in_block: int
    revised: list[int]
    ask: Callable[[dict[int, int]], list[list[float]]]
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def token(self) -> list[int]:
        """The most likely id of each column."""
        return [row.index(max(row)) for row in self.probs]

    @property
    def confidence(self) -> list[float]:
        """Its probability."""
        return [max(row) for row in self.probs]

    def own(self, column: int, probs: list[list[float]] | None = None) -> float:
        """The probability of what stands in a column."""
        return (self.probs if probs is None else probs)[column][self.stands[column]]

    def scheduled(self, steps: int, step: int) -> int:
        """How many a fixed schedule commits."""
        return self.opened // steps + (step < self.opened % steps)


def best(scores: dict[int, float], count: int) -> list[int]:
    """Columns with the largest scores, lower ones first on ties."""
    return sorted(scores, key=lambda column: (-scores[column], column))[: max(0, count)]


# What is written, by column, and what is opened again.
Rule = Callable[[Moment], "tuple[dict[int, int], set[int]]"]


@dataclass
class Plain:
    """What a row got."""

    tokens: list[int]
    step_of: list[int]
    steps: int
    edits: int = 0
    remasks: int = 0
    refused: int = 0
    asked: int = 0


def plain_revision(
    model: Denoiser,
    prompt: tuple[int, ...],
    length: int,
    rule: Rule,
    block_length: int,
    times: int,
    post_steps: int = 0,
) -> Plain:
    """Decode one row.

    times: revisions per column; post_steps: steps in a full block, which end when nothing changes.
    """
    mask, front = model.vocab.mask_id, len(prompt)
    row = Plain([mask] * length, [-1] * length, 0)
    decided, revised, kept = [False] * length, [0] * length, {}
    index = torch.arange(front, front + length)[None]

    def predict(tokens: list[int]) -> torch.Tensor:
        canvas = torch.tensor([[*prompt, *tokens]])
        logits = model(canvas, torch.ones_like(canvas).bool(), index, Plan())[0].double()
        logits[:, list(model.vocab.never_generated)] = float("-inf")
        return logits

    def ask(other: dict[int, int]) -> list[list[float]]:
        row.asked += 1
        tokens = [other.get(column, token) for column, token in enumerate(row.tokens)]
        return predict(tokens).softmax(-1).tolist()

    for begin in range(0, length, block_length):
        block = list(range(begin, min(begin + block_length, length)))
        in_block, post, lingering = 0, 0, False
        while lingering or not all(decided[column] for column in block):
            logits = predict(row.tokens)
            moment = Moment(
                block=block,
                open=[column for column in block if not decided[column]],
                settled=[column for column in block if decided[column]],
                opened=len(block),
                stands=list(row.tokens),
                probs=logits.softmax(-1).tolist(),
                logits=logits.tolist(),
                step=row.steps,
                in_block=in_block,
                revised=list(revised),
                ask=ask,
                kept=kept,
            )
            if in_block == 0:
                kept.clear()
            written, opened = rule(moment)
            if moment.open and not any(column in written for column in moment.open):
                forced = best({c: moment.confidence[c] for c in moment.open}, 1)[0]
                written = {**written, forced: moment.token[forced]}
            edits = {c for c in moment.settled if written.get(c, row.tokens[c]) != row.tokens[c]}
            granted = {c for c in edits if revised[c] < times}
            again = {c for c in opened if revised[c] < times}
            commits = [c for c in moment.open if c in written]
            left = decided.count(False) - len(commits) + len(again)
            if row.steps + 1 + left > length * (1 + times):
                again = set()
            row.refused += len(edits - granted) + len(opened - again)
            for column in again:
                row.tokens[column], row.step_of[column], decided[column] = mask, -1, False
            for column in [*commits, *granted]:
                row.tokens[column], row.step_of[column] = written[column], row.steps
                decided[column] = True
            for column in again | granted:
                revised[column] += 1
            row.edits, row.remasks = row.edits + len(granted), row.remasks + len(again)
            changed = bool(commits or granted or again)
            full = all(decided[column] for column in block)
            post = post + 1 if full else 0
            in_time = row.steps + 2 + decided.count(False) <= length * (1 + times)
            lingering = full and changed and in_time and 0 < post <= post_steps
            row.steps, in_block = row.steps + 1, in_block + 1
    return row


def same(row: Plain, result: Any, place: int, *, steps: bool = True) -> None:
    """Compare a plain row with a row of the loop."""
    assert list(result.sequences[place]) == row.tokens
    assert list(result.step_of[place]) == row.step_of
    counts = (result.edits, result.remasks, result.not_granted, result.probes)
    expected = (row.edits, row.remasks, row.refused, row.asked)
    assert tuple(count[place] for count in counts) == expected
    if steps:
        assert result.forwards[place] - result.probes[place] == row.steps
