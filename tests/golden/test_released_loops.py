"""CORE, ReMDM and FreeDave as their released loops decode: what every pass reads, and the tokens.

The file says which loop of which commit was run, on the models here; none of its code is here. A
canvas is a character per column, "." for a mask.
"""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from changing_model import ChangingModel
from torch import Tensor

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.sampling import Categorical, Greedy
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Request
from dllm_decode.strategies.core import Core
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.freedave import FreeDave
from dllm_decode.strategies.remdm import ReMdm

LOOPS = json.loads((Path(__file__).parent / "released_loops.json").read_text())
SIGNS = "0123456789a."
PROMPT = (1, 2, 3)


def line(tokens) -> str:
    return "".join(SIGNS[token] for token in tokens)


@dataclass(frozen=True)
class Seen(ChangingModel):
    """Keeps what each pass reads; `sharpens`: surer, the more of the canvas is decided."""

    sharpens: bool = False
    inputs: list[list[str]] = field(default_factory=list)

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        self.inputs.append([line(row) for row in tokens[:, len(PROMPT) :].tolist()])
        logits = super().__call__(tokens, live, index, plan)
        if self.sharpens:
            decided = (tokens != self.vocab.mask_id).double().mean(1)
            logits = logits * (0.2 + decided)[:, None, None]
        return logits


def decoded(model: Seen, rule: Strategy, run: dict, draws: bool = False) -> Result:
    sampler = Categorical(1.0) if draws else Greedy()
    decoder = Decoder(model, rule, Blocks(run["block"]), sampler=sampler, record=True)
    return decoder.decode(Request((PROMPT,), run["length"]))


def commits_nothing(inputs: list[str]) -> int:
    """The first pass whose input has no token where the one before had a mask; or their number."""
    pairs = itertools.pairwise(inputs)
    gains = [any(a == "." != b for a, b in zip(*pair, strict=True)) for pair in pairs]
    return gains.index(False) + 1 if False in gains else len(inputs)


@pytest.mark.parametrize("run", LOOPS["core"]["runs"], ids=lambda run: f"seed {run['seed']}")
def test_core_reads_and_writes_what_the_released_loop_does(run) -> None:
    model = Seen(seed=run["seed"], passing=4.0)
    rule = Core(run["steps"], run["every"], run["masked"], run["reopen"], revisions=9)
    result = decoded(model, rule, run)
    assert [row for [row] in model.inputs] == run["inputs"]
    assert line(result.sequences[0]) == run["tokens"]
    assert result.edits[0] == run["written_over"] > 0
    assert result.forwards[0] == len(run["inputs"])


def test_remdm_reads_what_the_released_loop_does_until_a_step_there_gains_nothing() -> None:
    whole = 0
    for run in LOOPS["remdm"]["runs"]:
        model = Seen(seed=run["seed"], passing=8.0, sharpens=True)
        rule = ReMdm(run["block"], run["block"], run["reopen"])
        result = decoded(model, rule, run, run["draws"])
        inputs, until = [row for [row] in model.inputs], commits_nothing(run["inputs"])
        assert inputs[:until] == run["inputs"][:until]
        assert until > run["length"], "several refining steps were compared"
        if until == len(run["inputs"]):
            whole += 1
            assert len(inputs) == until
            assert line(result.sequences[0]) == run["tokens"]
    assert whole >= 5


@pytest.mark.parametrize("run", LOOPS["freedave"]["runs"], ids=lambda run: f"seed {run['seed']}")
def test_freedave_verifies_and_accepts_what_the_released_loop_does(run) -> None:
    model = Seen(seed=run["seed"], passing=2.0)
    result = decoded(model, FreeDave(TopK(1), run["drafts"]), run)
    round_of = torch.zeros(run["length"], dtype=torch.long)
    for number, change in enumerate(result.trace):
        round_of[change.index[change.commit]] = number
    assert line(result.sequences[0]) == run["tokens"]
    assert round_of.tolist() == run["round_of"]
    assert result.passes[0] == len(model.inputs) == run["passes"]
    for ours, theirs in zip(model.inputs, run["inputs"], strict=True):
        # the last draft is not computed here where it leaves no mask in the block
        assert ours == theirs[: len(ours)] and len(theirs) - len(ours) <= 1
