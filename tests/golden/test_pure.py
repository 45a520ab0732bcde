"""Row statistics, credit fusion and credit sequences against stored results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dllm_decode.decoding.prediction import Prediction
from dllm_decode.kernels import reference
from dllm_decode.kernels.reference import Slots

PURE = Path(__file__).parent / "pure"


def names(start: str) -> list[str]:
    found = sorted(path.stem for path in PURE.glob(f"{start}*.safetensors"))
    assert found
    return found


def load(name: str) -> tuple[dict[str, Tensor], dict]:
    meta = json.loads((PURE / f"{name}.json").read_text(encoding="utf-8"))
    return load_file(PURE / f"{name}.safetensors"), meta


def assert_within(ours: Tensor, stored: Tensor, absolute: float = 0.0, relative: float = 0.0):
    torch.testing.assert_close(ours.double(), stored.double(), atol=absolute, rtol=relative)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", names("token_stats"))
def test_token_statistics_are_the_stored_ones(name, double):
    case, meta = load(name)
    logits = case["logits"].double() if double else case["logits"]
    pred = Prediction.of(logits[None])
    allowed = meta["tolerances"]
    bound = {key: 1e-12 if double else allowed[key] for key in allowed if key.endswith(("s", "l"))}
    assert torch.equal(pred.top_token[0], case["argmax"].long())
    assert torch.equal(pred.token[0], case["argmax"].long())
    assert_within(pred.confidence[0], case["confidence"], bound["confidence_abs"])
    assert_within(pred.entropy[0], case["entropy"], bound["entropy_abs"])
    assert_within(pred.margin[0], case["margin"], bound["margin_abs"])
    assert_within(pred.logsumexp[0], case["logsumexp"], 0.0, bound["logsumexp_rel"])
    assert_within(pred.probs[0].amax(-1), case["confidence"], bound["confidence_abs"])


@pytest.mark.parametrize("alpha", ["0.65", "0.7", "1.0"])
@pytest.mark.parametrize("name", names("credit_fusion"))
def test_sparse_fusion_gives_the_stored_dense_result(name, alpha):
    case, meta = load(name)
    bonus = float(alpha) * case["credits"].double().log1p()
    for promise in (False, True):
        raised = Prediction.of(case["logits"][None]).with_logit_bias(
            case["ids"].long()[None], bonus[None], never_negative=promise
        )
        assert torch.equal(raised.token[0], case[f"fused_argmax_a{alpha}"].long())
        allowed = meta["tolerances"]["fused_confidence_abs"]
        assert_within(raised.confidence[0], case[f"fused_confidence_a{alpha}"], allowed)
        assert_within(raised.logsumexp[0], case[f"fused_logsumexp_a{alpha}"], allowed)


@pytest.mark.parametrize("name", names("credit_sequence"))
def test_credit_over_several_steps_is_the_stored_one(name):
    case, meta = load(name)
    allowed = meta["tolerances"]
    constants = meta["parameters"]
    steps, rows, vocabulary = case["logits"].shape
    # as many slots as steps hold every token that ever won, so nothing is forgotten
    ids = torch.full((1, rows, steps), -1)
    credit = torch.zeros(1, rows, steps, dtype=torch.float64)
    alpha, beta = (torch.tensor([constants[key]]).double() for key in ("alpha", "beta"))
    for step in range(steps):
        masked = case["masked"][step]
        pred = Prediction.of(case["logits"][step][None])
        done = pred.credited(Slots(ids, credit, alpha, beta, constants["gamma"], masked[None]))
        ids, credit = done.ids, done.credit
        dense = torch.zeros(rows, vocabulary + 1, dtype=torch.float64)
        dense.scatter_(1, ids[0].where(ids[0] >= 0, vocabulary), credit[0])
        kept = dense[masked, :vocabulary]
        assert_within(kept, case["credit"][step][masked], allowed["credit_abs"])
        fused = done.prediction
        assert torch.equal(fused.token[0][masked], case["fused_argmax"][step][masked].long())
        assert_within(
            fused.confidence[0][masked],
            case["fused_confidence"][step][masked],
            allowed["fused_confidence_abs"],
        )


def test_the_mask_id_is_removed_before_the_argmax():
    case, meta = load("mask_id_argmax")
    mask_id = meta["mask_token_id"]
    allowed = meta["tolerances"]["confidence_abs"]
    plain = Prediction.of(case["logits"])
    assert torch.equal(plain.token, case["argmax"].long())
    assert_within(plain.confidence, case["confidence"], allowed)
    sound = Prediction.of(case["logits"], banned=torch.tensor([mask_id]))
    assert (plain.token == mask_id).any(), "the case is about rows that predict the mask id"
    assert torch.equal(sound.token, case["suppressed_argmax"].long())
    assert_within(sound.confidence, case["suppressed_confidence"], allowed)


def test_selection_by_threshold_goes_on_where_the_released_loop_never_ends():
    case, meta = load("mask_id_argmax")
    stuck = ~case["dinfer_selected"].any(1)
    assert stuck.any(), "the case holds a row in which the released rule selects nothing"
    sound = Prediction.of(case["logits"], banned=torch.tensor([meta["mask_token_id"]]))
    threshold = torch.full((case["masked"].shape[0],), meta["parameters"]["threshold"])
    commit, left = reference.threshold_selection(sound.confidence, case["masked"], threshold)
    assert (commit.sum(1) >= case["masked"].any(1)).all()
    assert torch.equal(left, (case["masked"] & ~commit).sum(1))
