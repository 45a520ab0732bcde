"""A decode in plain Python, one row at a time, for models whose prediction changes as they go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.denoiser import Denoiser
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.schedule import Blocks, Schedule
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Request


@dataclass
class Now:
    """One step of one row, in plain numbers; columns are counted behind the prompt.

    Attributes:
        open: undecided columns of the block.
        block: all columns of the block.
        probs: probability of every id, by column of the whole canvas.
        logits: likewise, -inf for the mask.
        token: most likely id by column.
        confidence: its probability.
        canvas: tokens from the first of the prompt on, None where undecided.
        prompt: length of the prompt.
        step: steps of the row before.
        in_block: steps in this block before.
        kept: what a rule wants to remember; empty at first.
    """

    open: list[int]
    block: list[int]
    probs: list[list[float]]
    logits: list[list[float]]
    token: list[int]
    confidence: list[float]
    canvas: list[int | None]
    prompt: int
    step: int
    in_block: int
    kept: dict[str, Any] = field(default_factory=dict)

    def best(self, count: int, among: list[int] | None = None) -> list[int]:
        """The `count` most confident open columns, lower ones first on ties."""
        columns = self.open if among is None else among
        return sorted(columns, key=lambda column: (-self.confidence[column], column))[:count]


Rule = Callable[[Now], "set[int] | list[int]"]
Adjust = Callable[[Now], list[list[float]]]


def plain_decode(
    model: Denoiser,
    prompt: tuple[int, ...],
    length: int,
    rule: Rule,
    block_length: int | None = None,
    adjust: Adjust | None = None,
) -> tuple[list[int], list[int]]:
    """Tokens of the answer and the step of each; a step that would gain nothing gets the best.

    adjust: other logits, made before the rule looks.
    """
    mask = model.vocab.mask_id
    tokens = [*prompt, *[mask] * length]
    step_of, step, kept = [-1] * length, 0, {}
    width = length if block_length is None else block_length
    index = torch.arange(len(prompt), len(prompt) + length)[None]
    for begin in range(0, length, width):
        block = list(range(begin, min(begin + width, length)))
        in_block = 0
        while any(step_of[column] < 0 for column in block):
            canvas = torch.tensor([tokens])
            raw = model(canvas, torch.ones_like(canvas).bool(), index, Plan())
            logits = raw[0].double()
            logits[:, list(model.vocab.never_generated)] = float("-inf")
            now = Now(
                open=[column for column in block if step_of[column] < 0],
                block=block,
                probs=[], logits=logits.tolist(), token=[], confidence=[],
                canvas=[*prompt, *(tokens[len(prompt) + c] if step_of[c] >= 0 else None
                                   for c in range(length))],
                prompt=len(prompt), step=step, in_block=in_block, kept=kept,
            )  # fmt: skip
            if adjust is not None:
                now.logits = adjust(now)
            probs = torch.tensor(now.logits, dtype=torch.float64).softmax(-1)
            now.probs = probs.tolist()
            now.token = probs.argmax(-1).tolist()
            now.confidence = [now.probs[c][now.token[c]] for c in range(length)]
            for column in set(rule(now)) or now.best(1):
                tokens[len(prompt) + column], step_of[column] = now.token[column], step
            step, in_block = step + 1, in_block + 1
    return tokens[len(prompt) :], step_of


def loop_decode(
    model: Denoiser,
    prompts: tuple[tuple[int, ...], ...],
    length: int,
    strategy: Strategy,
    schedule: int | Schedule,
) -> Result:
    """The same by the loop, all rows in one batch."""
    parts = Blocks(schedule) if isinstance(schedule, int) else schedule
    return Decoder(model, strategy, parts, record=True).decode(Request(prompts, length))


@st.composite
def requests(draw: st.DrawFn) -> tuple[tuple[tuple[int, ...], ...], int, int]:
    """Prompts of different lengths, columns per row, and a block length."""
    token = st.integers(0, 8)
    rows = draw(st.integers(1, 3))
    prompts = tuple(
        tuple(draw(st.lists(token, min_size=1, max_size=6))) for _ in range(rows)
    )  # fmt: skip
    length = draw(st.integers(1, 10))
    return prompts, length, draw(st.integers(1, length))
