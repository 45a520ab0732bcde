"""Decode traces of released loops with prefix and dual caches, step for step.

The released loops run one more pass after the one on entering a block, even when that has already
decided the whole block; it commits nothing and changes nothing. Ours does not run it, so such idle
passes are taken out of the stored traces before comparing.
"""

from __future__ import annotations

import json
from functools import cache as remember
from pathlib import Path

import pytest
import torch
from recordings import marks_of
from safetensors.torch import load_file

from dllm_decode.decoding.cache import DualCache, PrefixCache
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request
from dllm_decode.models import load_model
from dllm_decode.strategies.entropy import EntropyThreshold
from dllm_decode.strategies.factor import Factor
from dllm_decode.strategies.fixed import FixedSchedule
from dllm_decode.strategies.threshold import ConfidenceThreshold

FOLDER = Path(__file__).parent

CASES = {
    "fastdllm_fixed_dual": lambda run: FixedSchedule(steps_per_block(run)),
    "fastdllm_fixed_prefix": lambda run: FixedSchedule(steps_per_block(run)),
    "fastdllm_threshold_dual_t80": lambda run: ConfidenceThreshold(0.8),
    "fastdllm_threshold_prefix_t80": lambda run: ConfidenceThreshold(0.8),
    "dparallel_entropy_dual_t50": lambda run: EntropyThreshold(0.5),
    "dparallel_entropy_prefix_t50": lambda run: EntropyThreshold(0.5),
    "factor_copied_dual_f90": lambda run: Factor(0.9, variant="copied"),
}


def steps_per_block(run) -> int:
    return run["steps"] // (run["gen_length"] // run["block_length"])


@remember
def llada():
    return load_model(str(FOLDER / "checkpoints" / "llada"), dtype="float32", device="cpu").denoiser


def runs():
    entries = []
    for case in CASES:
        meta = json.loads((FOLDER / "decode" / f"{case}.json").read_text())
        for number, run in enumerate(meta["runs"]):
            entries.append(
                pytest.param(case, number, run, id=f"{case}-{run['name']}", marks=marks_of(number))
            )
    return entries


def commits_of(tensors, key: str) -> list[list[tuple[int, int]]]:
    """Per pass that commits something: (position, token) in order of position."""
    steps = tensors[f"{key}.commit_step"].tolist()
    entries = list(zip(
        steps,
        tensors[f"{key}.commit_pos"].tolist(),
        tensors[f"{key}.commit_token"].tolist(),
        strict=True,
    ))  # fmt: skip
    return [
        [(position, token) for step, position, token in entries if step == busy]
        for busy in sorted(set(steps))
    ]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("case", "number", "run"), runs())
def test_a_cached_decode_follows_the_released_loop(case, number, run):
    tensors = load_file(FOLDER / "decode" / f"{case}.safetensors")
    prompt = tensors[f"r{number}.prompt"][0].tolist()
    decoder = Decoder(
        llada(),
        Pipeline(CASES[case](run)),
        Blocks(run["block_length"]),
        cache=DualCache() if "dual" in case else PrefixCache(),
        record=True,
    )
    result = decoder.decode(Request((tuple(prompt),), run["gen_length"]))
    assert list(result.sequences[0]) == tensors[f"r{number}.final"][0].tolist()[len(prompt) :]
    expected = commits_of(tensors, f"r{number}")
    assert result.forwards == (len(expected),)
    got, probabilities = [], []
    for change in result.trace:
        slots = change.commit[0].nonzero()[:, 0]
        columns = (change.index[0, slots] + len(prompt)).tolist()
        got.append(list(zip(columns, change.tokens[0, slots].tolist(), strict=True)))
        probabilities += change.probability[0, slots].tolist()
    assert got == expected
    stored = tensors[f"r{number}.commit_prob"]
    torch.testing.assert_close(
        torch.tensor(probabilities, dtype=torch.float64), stored, atol=2e-4, rtol=0
    )
