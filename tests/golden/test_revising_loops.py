"""RCR and Saber as their released loops decode: tokens and passes of runs of that code.

Made with one block of a pseudo-random model (`HashDenoiser`), by running mdpo e6ae439 and Saber
2f061e2; neither has a licence, so that what they gave is here and nothing of them.
"""

import json
from pathlib import Path

import pytest
import torch

from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import WholeCanvas
from dllm_decode.decoding.types import Request
from dllm_decode.strategies.rcr import RunningConfidence
from dllm_decode.strategies.saber import Saber
from dllm_decode.testing import VOCAB, HashDenoiser

RUNS = json.loads((Path(__file__).parent / "revising_loops.json").read_text())
RULES = {"rcr": lambda run: RunningConfidence(run["steps"]), "saber": lambda run: Saber()}


@pytest.mark.parametrize("name", RULES)
def test_the_tokens_and_passes_are_those_of_the_released_loop(name):
    for run in RUNS[name]:
        added = dict.fromkeys(VOCAB.never_generated, -1e6)
        model = HashDenoiser(seed=run["seed"], dtype=torch.float32, added=added)
        decoder = Decoder(model, RULES[name](run), WholeCanvas())
        result = decoder.decode(Request(((1, 2, 3),), run["length"]))
        assert list(result.sequences[0]) == run["tokens"], run
        assert result.forwards[0] == run["passes"], run
