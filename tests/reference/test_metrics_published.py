"""Published leaderboard values, from the published points of their curves."""

from __future__ import annotations

import math

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
    "Dream factor": [
        (4.7598, 82.235), (5.3158, 79.588), (5.9961, 76.706), (6.6530, 74.412), (7.3758, 70.353),
    ],
}  # fmt: skip


# PB80, PB75 and PB70 of the site's snapshot at that time.
BOARD = {
    "LLaDA-1.5 threshold": (4.0874, 4.8240, 5.4176),
    "LLaDA-1.5 factor": (4.0519, 4.9698, 5.6552),
    "LLaDA-1.5 wino": (5.9163, 6.3981, None),  # its curve above lacks a point between the last two
    "Dream threshold": (5.6250, 6.4167, None),  # likewise
    "Dream factor": (
        None,
        6.4845,
        7.3758,
    ),  # of its first version; the snapshot's 5.1706 is of a later
}


@pytest.mark.parametrize(
    ("curve", "share", "published"),
    [
        (curve, share, value)
        for curve, values in BOARD.items()
        for share, value in zip((80.0, 75.0, 70.0), values, strict=True)
        if value is not None
    ],
)
def test_pbx_of_adaptive_rules(curve, share, published):
    assert pbx(CURVES[curve], share) == pytest.approx(published, abs=0.012)


# Dream on the site as it is later, where the averages stand in the files with four digits, and the
# snapshot with two; 0 stands for a share that no point reaches.
LATER = {
    "threshold": [
        (2.8249, 81.6558), (9.3061, 79.8954), (11.253, 73.7364), (12.8173, 65.9455),
        (14.3011, 58.1743), (16.4441, 50.1569),
    ],
    "factor": [
        (8.5849, 75.4423), (9.495, 72.7908), (10.2674, 69.7996), (11.1847, 67.6405),
        (11.8987, 63.3181),
    ],
    "entropy bound": [
        (1.0218, 81.0763), (1.0232, 81.0806), (1.0383, 79.9673), (1.2712, 75.6144),
        (2.4549, 66.7996), (4.2068, 51.5011), (20.1568, 25.488),
    ],
    "top k": [
        (1.0, 78.6558), (2.0, 74.0218), (4.0, 52.3595), (8.0, 38.1786), (16.0, 23.756),
        (32.0, 16.8693),
    ],
}  # fmt: skip
LATER_BOARD = {
    "threshold": (8.92, 10.85, 12.0),
    "factor": (0.0, 8.74, 10.22),
    "entropy bound": (1.04, 1.35, 2.03),
    "top k": (0.0, 1.79, 2.37),
}


@pytest.mark.parametrize("curve", LATER)
def test_pbx_of_the_later_board_to_its_last_digit(curve):
    found = [pbx(LATER[curve], share) for share in (80.0, 75.0, 70.0)]
    assert [0.0 if math.isnan(value) else value for value in found] == pytest.approx(
        LATER_BOARD[curve], abs=0.0051
    )


def test_pbx_of_fixed_numbers_of_tokens_is_a_measured_point():
    top_k = [(1, 86.4), (2, 74.4), (4, 58.9), (8, 41.1), (16, 29.9), (32, 14.4)]
    assert pbx(top_k, 80.0, interpolate=False) == 1
    assert pbx(top_k, 70.0, interpolate=False) == 2


def test_aup_of_a_single_point_at_one_token_per_forward_is_its_accuracy():
    # d3LLM's table for GSM8K: LLaDA at 72.55 %, AUP 72.55, whoever else is compared
    for best in (72.55, 74.68, 84.0):
        assert aup([(1.0, 72.55)], best_accuracy=best) == pytest.approx(72.55)


# d3LLM's tables for GSM8K-CoT: tokens per forward and accuracy [%], as published with the tables
# (AUP_leaderboard, data_llada.yaml and data_dream.yaml, before their revision of d3LLM's own rows).
OF_LLADA = {
    "Qwen-2.5-7B": [(1.0, 74.1)],
    "LLaDA": [(1.0, 72.55)],
    "Fast-dLLM": [(1.0, 74.79), (2.77, 74.68)],
    "D2F": [(1.0, 74.98), (2.88, 74.39)],
    "dParallel": [(1.0, 74.0), (5.14, 72.63)],
    "d3LLM": [(1.0, 74.02), (9.11, 73.09)],
}
OF_DREAM = {
    "Dream": [(1.0, 83.94)],
    "EAGLE-3": [(1.0, 76.57), (5.12, 76.57)],
    "Fast-dLLM-v2": [(1.0, 82.82), (2.21, 81.48)],
    "d3LLM": [(1.0, 83.47), (4.94, 81.36)],
}


@pytest.mark.parametrize(
    ("table", "method", "published"),
    [
        (OF_LLADA, "LLaDA", 72.55),
        (OF_LLADA, "Fast-dLLM", 205.78),
        (OF_LLADA, "D2F", 213.76),
        (OF_LLADA, "dParallel", 358.14),
        (OF_LLADA, "d3LLM", 637.65),
        (OF_DREAM, "EAGLE-3", 318.99),
    ],
)
def test_aup_of_the_published_tables(table, method, published):
    best = max(accuracy for points in table.values() for _, accuracy in points)
    assert aup(table[method], best) == pytest.approx(published, abs=0.005)
