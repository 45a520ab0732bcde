"""`task=bench bench=decoding`: what it compares, and how targets are judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dllm_decode.benchmarks.decoding import (
    PARTS,
    Contender,
    Target,
    Timing,
    compare,
    padded_to_the_slowest,
    repeated,
    shares,
    spread_request,
    targets,
)
from dllm_decode.cli import main
from dllm_decode.decoding.cache import DualCache
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.errors import ConfigError
from dllm_decode.strategies.eot import CommittedEot
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.tasks.bench_decoding import DecodingBench
from dllm_decode.testing import VOCAB, StoringHashDenoiser

LLADA = Path(__file__).parents[1] / "golden" / "checkpoints" / "llada"
QUIET = dict.fromkeys(VOCAB.never_generated, -1e6)


def decoder() -> Decoder:
    model = StoringHashDenoiser(added=QUIET, patience=10**6)
    strategy = Pipeline(ConfidenceThreshold(0.7), stop={"eot": CommittedEot()})
    return Decoder(model, strategy, Blocks(4), DualCache())


def test_the_parts_of_a_step_sum_to_the_whole_and_the_decode_is_the_same():
    request = repeated([(1, 2), (3,)], 3, 8)
    found = shares(decoder(), request, 2, 1)
    assert tuple(found) == PARTS and sum(found.values()) == pytest.approx(1.0)
    assert all(share > 0 for share in found.values())


def test_variants_take_turns_and_the_first_one_is_the_measure():
    order = []

    class Noted(Engine):
        def decode(self, request):
            order.append(self.max_batch)
            return super().decode(request)

    request = repeated([(1, 2)], 2, 8)
    variants = [Contender(f"{n}", Noted(decoder(), n), request) for n in (1, 2)]
    timings = compare("batch", variants, 2)
    assert order == [1, 2] * 3
    assert timings[0].ratio == 1.0 and timings[0].forwards == timings[1].forwards
    assert [len(one.seconds) for one in timings] == [2, 2]


def test_rows_that_stay_are_as_long_as_the_slowest_of_their_batch():
    request = spread_request(repeated([(1,)], 5, 8), 2, 100)
    stay = padded_to_the_slowest(request, 2)
    first = [max(request.lengths[:2])] * 2 + [max(request.lengths[2:4])] * 2
    assert stay.lengths == (*first, request.lengths[4])


def timing(group, name, rate):
    return Timing(group, name, (1.0,), rate, rate, 1.0)


def test_targets_follow_from_what_was_measured_and_from_nothing_else():
    step = {"1": {"forward": 0.9}, "32": {"forward": 0.9}}
    timings = [
        timing("batch", "1 at once", 10), timing("batch", "32 at once", 22),
        timing("cache", "NoCache", 10), timing("cache", "PrefixCache", 13),
        timing("cache", "DualCache", 16),
    ]  # fmt: skip
    found = {one.what: one for one in targets(step, timings)}
    assert [one.met for one in found.values()] == [True, False, False, True, True]
    assert found["batch: 32 at once against 1 at once [tokens/s]"].measured == pytest.approx(2.2)
    assert list(targets({}, timings[:1])) == []


def test_a_target_says_what_is_asked():
    assert Target("x", 1.0, low=1.5).goal == "at least 1.5"
    assert Target("x", 1.0, high=8.0).goal == "at most 8"
    assert Target("x", 1.2, 1.0, 1.5).goal == "at least 1, at most 1.5"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": ()}, "task.groups must not be empty"),
        ({"groups": ("speed",)}, "task.groups must be one of step, batch"),
        ({"rounds": 0}, "task.rounds must be a whole number >= 1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DecodingBench(**settings)


@pytest.mark.slow
def test_one_command_measures_judges_and_draws(tmp_path, monkeypatch):
    # this checkpoint has no tokenizer
    monkeypatch.setattr(DecodingBench, "_prompts", lambda self, context: [(1, 2, 3), (4,)])
    words = ["task=bench", "bench=decoding", "task.groups=[batch,canvas,cache]", "task.rounds=1"]
    variants = DecodingBench._variants

    def exhausted(self, context, group):
        if group == "canvas":
            groups = json.loads((tmp_path / "decoding.json").read_text())["timings"]
            assert [one["group"] for one in groups] == ["batch"], "written after each group"
            raise torch.OutOfMemoryError("CUDA out of memory")
        return variants(self, context, group)

    monkeypatch.setattr(DecodingBench, "_variants", exhausted)
    words += [
        "task.rows=1",
        "task.canvas=8",
        "task.block=4",
        "display=none",
        f"hydra.run.dir={tmp_path}",
    ]
    assert main([*words, f"model.checkpoint={LLADA}"]) == 0
    report = json.loads((tmp_path / "decoding.json").read_text())
    groups = [one["group"] for one in report["timings"]]
    assert report["out_of_memory"] == ["canvas"]
    assert groups == ["batch"] + ["cache"] * 7
    assert [one["what"].split(" ")[1] for one in report["targets"]] == ["DualCache", "PrefixCache"]
    assert (tmp_path / "decoding.png").read_bytes()[:4] == b"\x89PNG"
