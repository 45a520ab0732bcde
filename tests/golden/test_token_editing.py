"""Token editing as released code does it: states after every step, from runs of that code."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import WholeCanvas
from dllm_decode.decoding.types import Request, Vocab
from dllm_decode.strategies.joint_threshold import JointThreshold
from dllm_decode.strategies.t2m import TokenToMask
from dllm_decode.testing import Recorder

RECORDED = json.loads((Path(__file__).parent / "token_editing.json").read_text())
CASES = RECORDED["cases"]


class Table:
    """Logits by step, row and column, whatever stands on the canvas; the prompt is the row."""

    max_length = None
    device = torch.device("cpu")
    vocab = Vocab(size=9, mask_id=8)

    def __init__(self, logits):
        whole = torch.tensor(logits, dtype=torch.float32) / 64
        self.logits = torch.nn.functional.pad(whole, (0, 1), value=50.0)  # the mask, everywhere
        self.step = -1

    def __call__(self, tokens, live, index, plan):
        self.step += 1
        return self.logits[self.step][tokens[:, :1], (index - 1).clamp(min=0)]


def states_of(rule, case):
    """Decode a case, and compare the canvas with what was recorded after every step."""
    recorder, rows = Recorder(), len(case["states"][0])
    model = Table(case["logits"])
    decoder = Decoder(model, rule, WholeCanvas(), observers=(recorder,))
    request = Request(tuple((row,) for row in range(rows)), len(case["states"][0][0]))
    with warnings.catch_warnings(action="ignore"):
        try:
            decoder.decode(request)
        except IndexError:  # a row goes on where the recording ends
            assert model.step == len(case["states"])
    for step, (change, after) in enumerate(
        zip(recorder.changes, recorder.snapshots[1:], strict=False)
    ):
        for place, row in enumerate(change.rows.tolist()):
            assert after.tokens[place, 1:].tolist() == case["states"][step][row], (step, row)
    return recorder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["source"].split()[0])
def test_the_states_are_those_of_the_released_step(case):
    """The mask is the first choice everywhere here, which the released code does not survive."""
    rule = JointThreshold(
        case["threshold"], case["edit_threshold"], case["post_steps"] or 16, case["steps_per_block"]
    )
    recorder = states_of(rule, case)
    rows = len(case["states"][0])
    if case["finished"] is not None:
        for row in range(rows):
            steps = max(s for s, change in enumerate(recorder.changes) if row in change.rows)
            last = case["states"][-1][row]
            assert case["states"][steps][row] == last, "it ended with what the released loop gives"


@pytest.mark.parametrize("case", RECORDED["t2m"], ids=lambda case: case["detector"])
def test_what_is_opened_again_is_what_the_released_detectors_open(case):
    names = ("threshold", "detector", "remask_threshold", "share", "revisions", "post_steps")
    recorder = states_of(TokenToMask(**{name: case[name] for name in names}), case)
    assert len(recorder.changes) == len(case["states"])
