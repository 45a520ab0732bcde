"""Published leaderboard values, from the published points of their curves."""

from __future__ import annotations

import pytest

from dllm_decode.evaluation.curves import aup, pbx

# Average over 17 tasks of ParallelBench's site: tokens per step, accuracy [%]; rounded to two and
# one digits there, hence the tolerance.
CURVES = {
    "LLaDA-1.5 threshold": [
        (1.33, 86.4), (3.42, 83.8), (4.53, 77.5), (5.62, 68.3), (6.55, 57.9), (8.27, 47.2),
    ],
    "LLaDA-1.5 factor": [(3.95, 80.5), (4.58, 77.5), (5.12, 74.1), (5.62, 70.2), (6.26, 65.9)],
    "LLaDA-1.5 wino": [(5.01, 84.6), (5.92, 80.0), (6.59, 73.0), (8.16, 62.3)],
    "Dream threshold": [(1.40, 89.8), (4.12, 87.4), (5.50, 80.8), (6.81, 72.5), (9.81, 56.2)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("curve", "published"),
    [
        ("LLaDA-1.5 threshold", 4.087),
        ("LLaDA-1.5 factor", 4.052),
        ("LLaDA-1.5 wino", 5.916),
        ("Dream threshold", 5.625),
    ],
)
def test_pb80_of_adaptive_rules(curve, published):
    assert pbx(CURVES[curve], 80.0) == pytest.approx(published, abs=0.012)


def test_pbx_of_fixed_numbers_of_tokens_is_a_measured_point():
    top_k = [(1, 86.4), (2, 74.4), (4, 58.9), (8, 41.1), (16, 29.9), (32, 14.4)]
    assert pbx(top_k, 80.0, interpolate=False) == 1
    assert pbx(top_k, 70.0, interpolate=False) == 2


def test_aup_of_a_single_point_at_one_token_per_forward_is_its_accuracy():
    # d3LLM's table for GSM8K: LLaDA at 72.55 %, AUP 72.55, whoever else is compared
    for best in (72.55, 74.68, 84.0):
        assert aup([(1.0, 72.55)], best_accuracy=best) == pytest.approx(72.55)


# d3LLM's table for GSM8K-CoT: tokens per forward and accuracy [%], as published with the table.
GSM8K_COT = {
    "LLaDA": [(1.0, 72.55)],
    "Fast-dLLM": [(1.0, 74.79), (2.77, 74.68)],
    "D2F": [(1.0, 74.98), (2.88, 74.39)],
    "dParallel": [(1.0, 74.0), (5.14, 72.63)],
}


@pytest.mark.parametrize(
    ("method", "published"),
    [("LLaDA", 72.55), ("Fast-dLLM", 205.78), ("D2F", 213.76), ("dParallel", 358.14)],
)
def test_aup_of_the_published_table(method, published):
    best = max(accuracy for points in GSM8K_COT.values() for _, accuracy in points)
    assert aup(GSM8K_COT[method], best) == pytest.approx(published, abs=0.005)
