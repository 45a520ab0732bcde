"""The published loops, written down again for one row, beside what the strategies here do.

The naive versions know lists, one canvas, and probabilities in float64; the strategies compute in
float32, where most of these confidences are 1. Both see the same logits, and on both sides the
mask id is removed before the softmax, which the published code leaves in. Then every step is the
same, so that "step for step" on the pages of the strategies means this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from changing_model import ChangingModel
from one_row import Canvas, surest
from torch import Tensor

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks, Schedule, WholeCanvas
from dllm_decode.decoding.strategy import Pipeline, Strategy
from dllm_decode.decoding.types import Request
from dllm_decode.models import load_model
from dllm_decode.problems import FAMILIES, problems
from dllm_decode.strategies.ccd import ReleasedCCD
from dllm_decode.strategies.dream import DreamSchedule
from dllm_decode.strategies.eot import PredictedEot
from dllm_decode.strategies.fixed import FixedSchedule, TopK
from dllm_decode.strategies.learn2pd import Learn2PD
from dllm_decode.strategies.threshold import ConfidenceThreshold

PREDICTED = PredictedEot(scope="canvas", trigger="most_confident", threshold=0.0)
RELEASED_EOTP = replace(PREDICTED, accepted_first=True)


@dataclass(frozen=True)
class Sharp(ChangingModel):
    """So sure that float32 rounds most of its confidences to 1."""

    lasting: float = 12.0
    passing: float = 8.0

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        logits = super().__call__(tokens, live, index, plan)
        told = (index * 7 % 11)[..., None]  # an end of text in every eleventh column
        logits.scatter_add_(-1, told, torch.full_like(logits, 26.0))
        return logits.float()


def counts(masks: int, steps: int) -> list[int]:
    return [masks // steps + (step < masks % steps) for step in range(steps)]


def llada(canvas: Canvas, block: int, steps: int) -> None:
    for begin, end in canvas.blocks(block):
        for count in counts(len(canvas.open(begin, end)), steps):
            token, p, _ = canvas.predict()
            canvas.commit(surest(canvas.open(begin, end), p, count), token)


def fast_dllm(canvas: Canvas, block: int, threshold: float) -> None:
    for begin, end in canvas.blocks(block):
        while left := canvas.open(begin, end):
            token, p, _ = canvas.predict()
            sure = [column for column in left if p[column] >= threshold]
            canvas.commit([*{*sure, *surest(left, p, 1)}], token)


def end_of_text(canvas: Canvas, block: int) -> None:
    """One token per pass; the row is cut behind the surest end of text that is predicted."""
    for begin, end in canvas.blocks(block):
        while canvas.open(begin, end):
            token, p, _ = canvas.predict()
            left = canvas.open()
            canvas.commit(surest(canvas.open(begin, end), p, 1), token)
            if ends := [column for column in left if token[column] in canvas.model.vocab.eot_ids]:
                canvas.cut_behind(surest(ends, p, 1)[0])


def learn2pd(canvas: Canvas, block: int, tau: float, eotp: bool = True) -> None:
    network = Learn2PD().network
    for begin, end in canvas.blocks(block):
        while left := canvas.open(begin, end):
            token, p, _ = canvas.predict()
            shown = torch.zeros(1, block)
            inside = p[begin:end]
            shown[0, : len(inside)] = torch.tensor(inside)
            hidden = (shown @ network.weight1.T + network.bias1).relu()
            accept = (hidden @ network.weight2.T + network.bias2).sigmoid()[0].tolist()
            accepted = [column for column in left if accept[column - begin] > tau]
            before = canvas.open()
            canvas.commit([*{*accepted, *surest(left, p, 1)}], token)
            eot = canvas.model.vocab.eot_ids
            resolved = [column for column in accepted if token[column] in eot]
            predicted = [column for column in before if token[column] in eot]
            if eotp and (resolved or predicted):
                canvas.cut_behind(min(resolved) if resolved else surest(predicted, p, 1)[0])


def dream(canvas: Canvas, steps: int, eps: float = 1e-3) -> None:
    times = torch.linspace(1, eps, steps + 1)
    for step in range(steps):
        left = canvas.open()
        token, _, entropy = canvas.predict()
        share = 1 - times[step + 1] / times[step]
        count = int(len(left) * share) if step < steps - 1 else len(left)
        canvas.commit(surest(left, [-value for value in entropy], count), token)


def ccd(canvas: Canvas, seek: bool, ratio: float = 4.0, warm: int = 5) -> None:
    width, runners, said = 1, [], []
    for step in range(canvas.length):
        left = canvas.open()
        if not left:
            return
        token, _, entropy = canvas.predict()
        scores = [-value for value in entropy]
        if len(left) <= 0.1 * canvas.length:
            width = 1
        width = 1 if step < warm - 1 else min(width + 1, 1 + int(ratio))
        line = surest(left, scores, len(left))
        chosen = line[:1]
        if step >= warm and line[0] in runners:
            same = [c for c in line[:width] if c in runners and token[c] == said[c]]
            chosen = (same if seek else same[:1]) or chosen
        canvas.commit(chosen, token)
        runners, said = [column for column in line if column not in chosen][:width], token


@dataclass(frozen=True)
class Loop:
    """A published loop, and what is typed for it here."""

    naive: Callable[[Canvas], None]
    strategy: Callable[[], Strategy]
    schedule: Schedule


LOOPS = {
    "LLaDA": Loop(lambda c: llada(c, 16, 8), lambda: FixedSchedule(8), Blocks(16)),
    "Fast-dLLM, one token": Loop(lambda c: fast_dllm(c, 16, 2.0), lambda: TopK(1), Blocks(16)),
    "Fast-dLLM, threshold": Loop(
        lambda c: fast_dllm(c, 16, 0.9), lambda: ConfidenceThreshold(0.9), Blocks(16)
    ),
    "end of text": Loop(
        lambda c: end_of_text(c, 16), lambda: Pipeline(TopK(1), stop={"eot": PREDICTED}), Blocks(16)
    ),
    "Learn2PD with EoTP": Loop(
        lambda c: learn2pd(c, 32, 0.96),
        lambda: Pipeline(Learn2PD(tau=0.96, match_model=False), stop={"eot": RELEASED_EOTP}),
        Blocks(32),
    ),
    "Dream": Loop(lambda c: dream(c, 12), lambda: DreamSchedule(steps=12), WholeCanvas()),
    "CCD": Loop(lambda c: ccd(c, seek=False), lambda: ReleasedCCD(seek=False), WholeCanvas()),
    "CCD, seek": Loop(lambda c: ccd(c, seek=True), ReleasedCCD, WholeCanvas()),
}


def assert_same_steps(name: str, model: Any, prompt: tuple[int, ...], length: int) -> Canvas:
    loop = LOOPS[name]
    canvas = Canvas(model, prompt, length)
    loop.naive(canvas)
    result = Decoder(model, loop.strategy(), loop.schedule).decode(Request((prompt,), length))
    decided = canvas.step_of[: len(canvas)]
    assert result.forwards == (canvas.passes,)
    assert list(result.step_of[0][: len(canvas)]) == decided
    assert list(result.sequences[0][: len(canvas)]) == canvas.tokens[len(prompt) :]
    return canvas


@pytest.mark.parametrize("name", LOOPS)
def test_a_strategy_does_step_for_step_what_the_published_loop_does(name: str) -> None:
    rounded, seeds = 0, (1, 2)
    for seed in seeds:
        canvas = assert_same_steps(name, Sharp(seed=seed), (3, 1, 4), 40)
        again = Canvas(canvas.model, canvas.prompt, canvas.length)
        rounded += sum(float(torch.tensor(p)) == 1.0 for p in again.predict()[1])
    assert rounded > len(seeds) * 10, "float32 tells them apart"


@cache
def bundled() -> Any:
    return load_model("bundled:llada-tiny", body="lean")


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_so_it_does_on_22_prompts_of_the_bundled_model(name: str) -> None:
    model, lengths = bundled(), (24, 40)
    for number, family in enumerate([*FAMILIES][:22]):
        (problem,) = problems(family, "held_out", 1, 4242)
        prompt = tuple(model.tokenizer.encode(problem.prompt))
        assert_same_steps(name, model.denoiser, prompt, lengths[number % 2])
