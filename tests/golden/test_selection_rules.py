"""Single steps of published selection rules, through one step of the real loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from table_model import TableModel
from torch import Tensor

from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import WholeCanvas
from dllm_decode.decoding.strategy import Pipeline, Strategy
from dllm_decode.strategies.dream import transfer_shares
from dllm_decode.strategies.entropy import EntropyThreshold
from dllm_decode.strategies.entropy_bound import EntropyBound
from dllm_decode.strategies.factor import Factor
from dllm_decode.strategies.fixed import scheduled
from dllm_decode.strategies.hierarchical import Hierarchical
from dllm_decode.strategies.threshold import ConfidenceThreshold

FOLDER = Path(__file__).parent / "pure"
CASE = json.loads((FOLDER / "selection_rules.json").read_text())
STORED = load_file(FOLDER / "selection_rules.safetensors")
COUNTS = json.loads((FOLDER / "schedule_counts.json").read_text())

RULES = {
    "threshold_ge": lambda p: ConfidenceThreshold(p["threshold"]),
    "threshold_gt": lambda p: ConfidenceThreshold(p["threshold"], strict=True),
    "dinfer_threshold": lambda p: ConfidenceThreshold(p["threshold"], tie_slack=1e-5),
    "d2cache_threshold": lambda p: ConfidenceThreshold(
        p["threshold"], at_least=p["num_transfer_tokens"]
    ),
    "factor_published": lambda p: Factor(p["factor"]),
    "factor_copied": lambda p: Factor(p["factor"], "copied"),
    "factor_d2cache": lambda p: Factor(p["factor"], "d2cache"),
    "eb_entropy_order": lambda p: EntropyBound(p["gamma"], p["unit"], "entropy"),
    "eb_confidence_order": lambda p: EntropyBound(p["gamma"], p["unit"], "confidence"),
    "hierarchy": lambda p: Hierarchical(p["threshold"], p["low_threshold"]),
    "entropy_le": lambda p: EntropyThreshold(p["entropy_threshold"]),
}
# References that leave the choice among exactly equal positions open.
OPEN_AMONG_EQUALS = (
    "factor_copied",
    "factor_d2cache",
    "threshold_ge",
    "d2cache",
    "entropy",
    "hier",
)


def first_step(strategy: Strategy) -> Tensor:
    """Positions committed in one step by rows in which the unmasked ones are given, (N, L)."""
    masked, tokens = STORED["masked"], STORED["argmax"]
    model = TableModel(STORED["logits"])
    fixed = tuple(
        {column: int(tokens[row, column]) for column in (~masked[row]).nonzero()[:, 0].tolist()}
        for row in range(len(masked))
    )
    decoder = Decoder(model, Pipeline(strategy), WholeCanvas(), record=True)
    change = decoder.decode(model.request(fixed=fixed)).trace[0]
    selected = torch.zeros_like(masked)
    selected[change.rows] = change.commit
    return selected


@pytest.mark.parametrize("rule", CASE["rules"], ids=lambda rule: rule["name"])
def test_a_rule_selects_the_stored_positions(rule: dict) -> None:
    kind = rule["name"].split("@")[0]
    selected = first_step(RULES[kind](rule["parameters"]))
    expected = STORED[f"select.{rule['name']}"]
    for row in range(len(expected)):
        if STORED["row_has_ties"][row] and kind.startswith(OPEN_AMONG_EQUALS):
            ours, theirs = (
                STORED["confidence"][row][flags[row]].sort().values
                for flags in (selected, expected)
            )
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
        else:
            assert selected[row].tolist() == expected[row].tolist()


def test_every_stored_rule_has_a_counterpart() -> None:
    assert {rule["name"].split("@")[0] for rule in CASE["rules"]} <= set(RULES)


@pytest.mark.parametrize("entry", COUNTS["llada"], ids=lambda e: f"{e['masks']}-{e['steps']}")
def test_the_llada_counts_are_the_stored_ones(entry: dict) -> None:
    masks = torch.full((entry["steps"],), entry["masks"])
    counts = scheduled(masks, entry["steps"], torch.arange(entry["steps"]))
    assert counts.tolist() == entry["counts"]


@pytest.mark.parametrize("entry", COUNTS["dream"], ids=lambda e: f"{e['masks']}-{e['steps']}")
def test_the_dream_counts_are_the_stored_ones(entry: dict) -> None:
    left, counts = entry["masks"], []
    for share in transfer_shares(entry["steps"], entry["eps"]):
        counts.append(int(torch.tensor(float(left)) * share))
        left -= counts[-1]
    assert counts == entry["counts"]
