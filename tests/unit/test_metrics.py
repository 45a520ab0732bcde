"""Every figure against numbers worked out by hand, and against properties."""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode.decoding.outcome import Outcome
from dllm_decode.errors import ConfigError
from dllm_decode.evaluation import metrics
from dllm_decode.evaluation.curves import above_curve, aup, pareto_front, pbx
from dllm_decode.evaluation.data import Question
from dllm_decode.evaluation.metrics import Sample
from dllm_decode.evaluation.statistics import (
    bootstrap_ratio,
    kendall_tau,
    orders,
    paired_bootstrap,
    resampled,
    wilson,
)
from dllm_decode.models import laws

EOT = 9


def sample(steps=(0, 1), **changes) -> Sample:
    values = dict(problem="p", family="t", prompt="?", text="!", correct=True, forwards=4, slots=8)
    return Sample(**{**values, "steps": tuple(steps), **changes})


def made(sequence, step_of, forwards=5, slots=6, **more) -> Sample:
    outcome = Outcome(
        tuple(sequence), forwards, "eot", tuple(step_of), (1.0,) * len(sequence), eot_ids=(EOT,)
    )
    question = Question("p", "t", "", "", slots, "".__eq__)
    return metrics.sample_of(question, metrics.DecodedRow(outcome, slots, **more), correct=True)


def test_tokens_at_and_behind_the_first_end_of_text_are_not_delivered():
    found = made([3, 4, EOT, 5], [0, 2, 1, 3])
    assert (found.delivered, found.steps, found.end_step, found.spent) == (2, (0, 2), 1, 1)


def test_commits_behind_the_end_of_text_are_spent_from_the_first_step_on():
    assert made([3, EOT, 5, 6], [1, 2, 0, 3]).spent == 2
    assert made([3, EOT, 5, 6], [1, 2, -1, -1]).spent == 0  # given in advance
    assert made([3, 5], [0, 1]).spent == 0


def test_tokens_given_in_advance_are_not_delivered():
    found = made([3, 4, 5, EOT], [0, -1, 1, 2])
    assert found.steps == (0, 1)


def test_an_answer_without_end_of_text_is_delivered_whole():
    found = made([3, 4], [1, 0])
    assert (found.delivered, found.end_step, found.spent) == (2, -1, 0)


def test_tokens_per_forward_divides_sums_and_not_means():
    samples = [sample(range(1), forwards=1), sample(range(10), forwards=2)]
    assert metrics.tokens_per_forward(samples).value == pytest.approx(11 / 3)
    assert metrics.mean_of_ratios(samples) == pytest.approx(3.0)
    assert metrics.slots_per_forward(samples) == pytest.approx(16 / 3)


def test_a_forward_is_wasted_if_it_decides_neither_a_delivered_token_nor_its_end():
    assert metrics.wasted_forwards([sample((0, 0, 3), end_step=1, forwards=6)]) == 3
    assert metrics.wasted_forwards([sample((0, 1), end_step=2, forwards=3)]) == 0


def test_rates_and_ratios():
    samples = [sample((0,), seconds=0.5), sample((0, 1, 2), seconds=1.5)]
    assert metrics.tokens_per_second(samples) == 2.0
    assert metrics.seconds_per_problem(samples) == 1.0
    assert metrics.effective_token_ratio(samples) == 4 / 16


def test_decoding_order_is_one_from_left_to_right_and_minus_one_the_other_way():
    assert metrics.decoding_order([sample(range(5))]) == 1.0
    assert metrics.decoding_order([sample((4, 3, 2, 1, 0))]) == -1.0
    assert math.isnan(metrics.decoding_order([sample((0, 0, 0))]))


def test_commits_per_step_average_over_the_problems_still_running():
    samples = [sample((0, 0), forwards=1), sample((0, 1), forwards=2)]
    assert metrics.commits_per_step(samples) == [1.5, 1.0]
    assert metrics.commits_per_step([]) == []
    # a draft is a step of the decode, although it is no pass
    assert metrics.commits_per_step([*samples, sample((2,), forwards=1, drafts=2)]) == [
        1.0,
        0.5,
        1.0,
    ]


def test_temporal_redundancy_counts_tokens_proposed_before_their_commit():
    found = sample((0, 2, 5), ready=(0, 1, 1))
    assert metrics.temporal_redundancy([found]) == pytest.approx(2 / 3)
    assert metrics.temporal_redundancy([found], steps=4) == pytest.approx(1 / 3)
    assert math.isnan(metrics.temporal_redundancy([sample()]))


def test_speedup_keeps_forwards_and_wall_time_apart():
    before = [sample((0, 1), forwards=8, seconds=4.0, end_step=2)]
    after = [sample((0, 1), forwards=2, seconds=2.0)]
    gain = metrics.speedup(after, before)
    assert (gain.forwards, gain.wall_time, gain.tokens) == (4.0, 2.0, 1.0)
    # five of the six saved passes had decided nothing in the sequential run
    assert gain.padding == pytest.approx(5 / 6)
    assert gain.useful == pytest.approx(3 / 2)


def test_passes_saved_are_no_padding_where_the_faster_run_idles_more():
    before = [sample((0, 1, 2, 3), forwards=8, end_step=4)]  # three idle passes
    after = [sample((0, 0, 0, 0), forwards=7)]  # six
    gain = metrics.speedup(after, before)
    assert gain.padding == 0.0 and gain.useful == 5.0
    # and a run that saves nothing saved no padding
    assert metrics.speedup(before, after).padding == 0.0


@pytest.mark.parametrize("apart", [{"commits": False}, {"probes": 3}, {"remasks": 1}, {"edits": 1}])
def test_passes_that_decide_nothing_are_padding_only_where_nothing_else_is(apart):
    before = [sample((0, 1, 2, 3), forwards=8, end_step=4)]
    gain = metrics.speedup([sample((0, 0, 1, 1), forwards=5, **apart)], before)
    assert gain.forwards == 1.6 and math.isnan(gain.padding) and math.isnan(gain.useful)
    assert metrics.speedup([sample((0, 0, 1, 1), forwards=5)], before).useful == 2.5


def test_of_more_passes_than_were_saved_no_more_than_all_are_padding():
    before = [sample((0, 1), forwards=8)]  # six idle passes
    gain = metrics.speedup([sample((0, 1, 2, 3), forwards=4)], before)
    assert gain.padding == 1.0


def test_headroom_compares_the_problems_that_both_decoded():
    run = [sample(forwards=4), sample(problem="q", forwards=0, steps=(), error="too long")]
    oracle = [sample(forwards=1), sample(problem="q", steps=range(2), forwards=2)]
    assert metrics.headroom(run, oracle) == 0.25
    silent = [sample(steps=(), forwards=1), sample(problem="q", steps=(), forwards=1)]
    assert math.isnan(metrics.headroom(silent, silent))  # an oracle without a token


def test_what_a_decode_costs_is_told_by_the_problems_that_were_decoded():
    good = [
        sample(problem=f"p{n}", steps=range(n + 1), forwards=n + 4, seconds=1) for n in range(4)
    ]
    failed = [
        sample(problem=f"f{n}", steps=(), forwards=0, correct=False, error="too long")
        for n in range(12)
    ]
    for metric in metrics.METRICS:
        if metric.name.startswith("accuracy"):
            continue
        alone, among = metric.of(good), metric.of([*good, *failed])
        assert among == alone or math.isnan(alone), metric.name
        if metric.interval is not None:
            assert metric.interval([*good, *failed]) == metric.interval(good)
    assert metrics.accuracy([*good, *failed]).value == 4 / 16
    nothing = metrics.tokens_per_forward(failed)
    assert math.isnan(nothing.value) and math.isnan(nothing.low)


def test_a_speedup_compares_problems_that_both_runs_decoded():
    slow = [sample(problem=f"p{n}", forwards=8) for n in range(4)]
    fast = [sample(problem=f"p{n}", forwards=2) for n in range(4)]
    fast[3] = sample(problem="p3", steps=(), forwards=0, error="too long")
    assert metrics.speedup(fast, slow).forwards == 4.0


def test_runs_on_different_problems_have_no_speedup_and_no_headroom():
    for compare in (metrics.speedup, metrics.headroom):
        with pytest.raises(ConfigError, match="same problems; these two differ"):
            compare([sample()], [sample(problem="q")])


def test_headroom_is_the_share_of_the_oracles_tokens_per_forward():
    assert metrics.headroom([sample(forwards=4)], [sample(forwards=1)]) == 0.25


def test_a_sample_survives_its_record():
    found = sample((0, 3), ready=(0, 1), end_step=2, error="no", commits=False)
    assert Sample.from_record(found.to_record()) == found


def test_a_record_with_other_keys_is_refused():
    record = sample().to_record()
    del record["forwards"]
    with pytest.raises(ConfigError, match="check \\['forwards'\\]"):
        Sample.from_record(record)


def test_a_summary_holds_every_metric_and_refuses_nothing_at_all():
    figures = metrics.summary([sample()])
    assert {metric.name for metric in metrics.METRICS} <= set(figures)
    with pytest.raises(ConfigError, match="at least one problem, got none"):
        metrics.summary([])


def test_the_order_in_which_answers_arrive_changes_no_interval():
    found = [sample(range(n), problem=f"p{n}", forwards=n % 4 + 1) for n in range(1, 12)]
    assert (
        metrics.summary(found)
        == metrics.summary(found[::-1])
        == metrics.summary(found[::2] + found[1::2])
    )


def test_every_metric_says_what_it_is():
    for name, unit, definition in metrics.definitions():
        assert name and unit and len(definition) > 20


# Intervals.


def test_wilson_reproduces_published_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263, 15/148, 0/20, 1/29
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
    ):  # fmt: skip
        found = wilson(successes, trials)
        assert (found.low, found.high) == (
            pytest.approx(low, abs=5e-5),
            pytest.approx(high, abs=5e-5),
        )


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_brackets_the_share_within_zero_and_one(pair):
    found = wilson(*pair)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1, 0), "trials must be a whole number >= 1"), ((3, 2), "successes must lie in"),
     ((1, 2, 1.0), "level must lie in")],
)  # fmt: skip
def test_wilson_refuses_what_cannot_be(arguments, message):
    with pytest.raises(ConfigError, match=message):
        wilson(*arguments)


def test_bootstrap_is_seeded_and_brackets_the_ratio():
    top, bottom = [1, 2, 3, 4], [2, 2, 2, 2]
    found = bootstrap_ratio(top, bottom, seed=3)
    assert found == bootstrap_ratio(top, bottom, seed=3)
    assert found.low <= found.value == 1.25 <= found.high


def test_bootstrap_of_a_constant_has_no_width():
    found = bootstrap_ratio([2.0] * 9, [1.0] * 9)
    assert (found.low, found.value, found.high) == (2.0, 2.0, 2.0)


def test_statistics_refuse_unequal_and_empty_values():
    for use in (bootstrap_ratio, paired_bootstrap, kendall_tau):
        with pytest.raises(ConfigError, match="same length, got 1 and 2"):
            use([1], [1, 2])
        with pytest.raises(ConfigError, match="at least one problem, got none"):
            use([], [])


@pytest.mark.parametrize("problems", [1, 7, 300])
@pytest.mark.parametrize("draws", [1, 255, 256, 600])
def test_sums_by_counts_are_those_of_drawing_problems(problems, draws):
    random = np.random.default_rng(problems)
    values = random.integers(0, 90, size=(3, problems)).astype(float)
    drawn = np.random.default_rng(5).integers(0, problems, size=(draws, problems))
    assert np.array_equal(resampled(values, draws, 5), values[:, drawn].sum(2))


def test_intervals_are_those_of_the_plain_bootstrap():
    random = np.random.default_rng(1)
    top, bottom = random.integers(0, 30, 200), random.integers(1, 30, 200)
    drawn = np.random.default_rng(0).integers(0, 200, size=(2000, 200))
    low, high = np.quantile(top[drawn].sum(1) / bottom[drawn].sum(1), [0.025, 0.975])
    found = bootstrap_ratio(top, bottom)
    assert (found.low, found.high) == (low, high)
    right = [random.integers(0, 2, 200).astype(float) for _ in range(2)]
    drawn = np.random.default_rng(0).integers(0, 200, size=(10_000, 200))
    means = (right[0] - right[1])[drawn].mean(1)
    found = paired_bootstrap(*right)
    assert (found.difference.low, found.difference.high) == tuple(
        np.quantile(means, [0.025, 0.975])
    )
    assert found.p_value == 2 * min((means <= 0).mean(), (means >= 0).mean())


@given(st.lists(st.lists(st.integers(0, 6), max_size=7), max_size=8))
def test_orders_of_many_answers_are_those_of_each(sequences):
    for sequence, found in zip(sequences, orders(sequences), strict=True):
        pairs = list(itertools.combinations(sequence, 2))
        signs = [(b > a) - (b < a) for a, b in pairs]
        scale = math.sqrt(len(pairs) * sum(map(abs, signs)))
        expected = sum(signs) / scale if scale else math.nan
        assert found == expected or (math.isnan(found) and math.isnan(expected))


def test_paired_bootstrap_sees_what_unpaired_intervals_hide():
    first = [1.0] * 60 + [0.0] * 40
    second = [1.0] * 50 + [0.0] * 50
    found = paired_bootstrap(first, second)
    assert found.difference.value == pytest.approx(0.1)
    assert found.difference.low > 0 and found.p_value < 0.01


def test_paired_bootstrap_of_equal_runs_is_zero():
    found = paired_bootstrap([1.0, 0.0], [1.0, 0.0])
    assert (found.difference.value, found.p_value) == (0.0, 1.0)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12))
def test_kendall_tau_is_odd_in_each_argument(values):
    other = list(range(len(values)))
    tau, mirrored = kendall_tau(values, other), kendall_tau([-v for v in values], other)
    assert (math.isnan(tau) and math.isnan(mirrored)) or tau == pytest.approx(-mirrored)
    assert math.isnan(tau) or -1 <= tau <= 1


def test_kendall_tau_with_ties_by_hand():
    # pairs of (1, 2, 2) with (1, 2, 3): two concordant, one tied in the first
    assert kendall_tau([1, 2, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(2 * 3))
    assert kendall_tau([1, 2, 3], [1, 2, 2]) == pytest.approx(2 / math.sqrt(2 * 3))


# Curves.


def test_the_pareto_front_leaves_out_what_is_beaten():
    points = [(1.0, 90.0), (2.0, 80.0), (1.5, 70.0), (3.0, 85.0), (3.0, 85.0)]
    assert pareto_front(points) == [0, 3]


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0, 100)), min_size=1, max_size=12))
def test_every_point_is_on_the_front_or_beaten_by_it(points):
    front = [points[i] for i in pareto_front(points)]
    assert all(any(x >= a and y >= b for x, y in front) for a, b in points)


def test_aup_by_hand():
    # 2 * 80 + (4 - 2) * (80 + 76 * exp(-0.15)) / 2
    expected = 160 + 80 + 76 * math.exp(-0.15)
    assert aup([(4.0, 76.0), (2.0, 80.0)]) == pytest.approx(expected)


def test_aup_leaves_out_points_that_fell_by_more_than_five():
    assert aup([(1.0, 80.0), (9.0, 74.9)]) == 80.0


def test_aup_refuses_no_points_and_a_best_below_them():
    with pytest.raises(ConfigError, match="at least one point"):
        aup([])
    with pytest.raises(ConfigError, match="best_accuracy must be"):
        aup([(1.0, 80.0)], best_accuracy=70.0)


def test_pbx_without_interpolation_is_the_best_measured_point():
    points = [(1.0, 90.0), (2.0, 70.0)]
    assert pbx(points, 80.0, interpolate=False) == 1.0
    assert pbx(points, 80.0) == 1.5
    assert math.isnan(pbx(points, 95.0))


def test_pbx_takes_the_fastest_point_that_is_accurate_enough():
    # the curve falls below 80 between 1 and 2 and comes back at 3
    assert pbx([(1.0, 90.0), (2.0, 70.0), (3.0, 85.0)], 80.0, interpolate=False) == 3.0


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 10)), min_size=1, max_size=6),
    st.integers(0, 14),
)
def test_what_is_above_a_curve_is_measured_at_equal_cost(points, twice):
    """Against numpy's interpolation through the best point of every cost."""
    best = dict(sorted(points))
    costs, shares = [twice / 2, *(x for x, _ in points)], [5.0, *(float(y) for _, y in points)]
    (found,) = above_curve(np.array([costs]), np.array([shares]))
    reached = np.interp(twice / 2, list(best), list(best.values()), left=math.nan)
    assert found == pytest.approx(5 - reached, nan_ok=True)


def test_pbx_takes_the_better_of_equal_speeds():
    assert pbx([(2.0, 60.0), (2.0, 90.0)], 80.0) == 2.0
    with pytest.raises(ConfigError, match="accuracy must lie in"):
        pbx([(1.0, 1.0)], 0.0)


# Exact laws.

SHUFFLE = {order: 1 / 6 for order in itertools.permutations(range(3))}
REPLACE = {tuple(9 if i == j else i for i in range(4)): 1 / 4 for j in range(4)}


def shuffle_of(n: int) -> dict[tuple[int, ...], float]:
    orders = list(itertools.permutations(range(n)))
    return {order: 1 / len(orders) for order in orders}


@pytest.mark.parametrize(("n", "total"), [(2, 1.0), (3, 2.16993), (4, 3.41504)])
def test_one_step_loses_the_total_correlation_of_a_shuffle(n, total):
    law = laws.law_of_partition(shuffle_of(n), [list(range(n))])
    assert laws.kl_divergence(shuffle_of(n), law) == pytest.approx(total, abs=5e-6)


@pytest.mark.parametrize(("n", "total"), [(2, 1.0), (3, 1.16993), (4, 1.24511)])
def test_one_step_loses_the_total_correlation_of_a_replacement(n, total):
    joint = {tuple(9 if i == j else i for i in range(n)): 1 / n for j in range(n)}
    law = laws.law_of_partition(joint, [list(range(n))])
    assert laws.kl_divergence(joint, law) == pytest.approx(total, abs=5e-6)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("sizes", "bound"),
    [([6], 6.0179), ([3, 3], 3.0179), ([4, 2], 2.848), ([2, 4], 3.6781), ([2, 2, 2], 1.6781)],
)
def test_a_fixed_partition_of_a_shuffle_loses_the_published_bound(sizes, bound):
    places = iter(range(6))
    steps = [[next(places) for _ in range(size)] for size in sizes]
    joint = shuffle_of(6)
    law = laws.law_of_partition(joint, steps)
    assert laws.kl_divergence(joint, law) == pytest.approx(bound, abs=5e-5)


@given(st.permutations(range(4)))
def test_one_at_a_time_reproduces_the_joint_in_every_order(order):
    law = laws.law_of_partition(REPLACE, [[place] for place in order])
    assert laws.total_variation(REPLACE, law) == pytest.approx(0.0, abs=1e-12)
    assert laws.kl_divergence(REPLACE, law) == pytest.approx(0.0, abs=1e-12)


def test_total_variation_by_hand_and_infinite_divergence():
    assert laws.total_variation({0: 1.0}, {0: 0.25, 1: 0.75}) == 0.75
    assert laws.kl_divergence({0: 0.5, 1: 0.5}, {0: 1.0}) == math.inf


def test_laws_must_be_laws_and_steps_a_partition():
    with pytest.raises(ConfigError, match="target must hold probabilities that sum to 1"):
        laws.kl_divergence({0: 0.4}, {0: 1.0})
    with pytest.raises(ConfigError, match="each position 0 to 2 once"):
        laws.law_of_partition(SHUFFLE, [[0], [0, 1]])


def test_an_empirical_law_counts_outcomes():
    assert laws.empirical_law([[1], [1], [2], [1]]) == {(1,): 0.75, (2,): 0.25}


# Which test stands for which line: each defect is caught by the tests that are for it, and by no
# other.


@dataclass(frozen=True)
class Mutant:
    """A line of a module replaced by a wrong one, and the tests that must fail."""

    module: str
    right: str
    wrong: str
    caught_by: set[Callable[[], None]]


MUTANTS = {
    "commits of step 0 are not spent": Mutant(
        "metrics", "spent=sum(step >= 0 for", "spent=sum(step > 0 for",
        {test_commits_behind_the_end_of_text_are_spent_from_the_first_step_on},
    ),
    "padding may be negative": Mutant(
        "metrics", "max(0.0, wasted / (before - after))", "wasted / (before - after)",
        {test_passes_saved_are_no_padding_where_the_faster_run_idles_more},
    ),
    "tokens given in advance are delivered": Mutant(
        "metrics", "if outcome.step_of[place] >= 0]", "]",
        {test_tokens_given_in_advance_are_not_delivered},
    ),
    "the end of text is spent": Mutant(
        "metrics", "outcome.step_of[end + 1 :]", "outcome.step_of[end:]",
        {test_tokens_at_and_behind_the_first_end_of_text_are_not_delivered,
         test_commits_behind_the_end_of_text_are_spent_from_the_first_step_on},
    ),
    "the pass that ends the text is wasted": Mutant(
        "metrics", "{-1, *self.steps, self.end_step}", "{-1, *self.steps}",
        {test_a_forward_is_wasted_if_it_decides_neither_a_delivered_token_nor_its_end,
         test_speedup_keeps_forwards_and_wall_time_apart,
         test_passes_saved_are_no_padding_where_the_faster_run_idles_more},
    ),
    "speedups upside down": Mutant(
        "metrics", "forwards=_ratio(before, after)", "forwards=_ratio(after, before)",
        {
            test_speedup_keeps_forwards_and_wall_time_apart,
            test_a_speedup_compares_problems_that_both_runs_decoded,
        },
    ),
    "failures count as decodes": Mutant(
        "metrics", "if any(errors) else None", "if False else None",
        {test_what_a_decode_costs_is_told_by_the_problems_that_were_decoded},
    ),
    "what failed in one run counts in a speedup": Mutant(
        "metrics", "if not failed:", "if True:",
        {
            test_a_speedup_compares_problems_that_both_runs_decoded,
            test_headroom_compares_the_problems_that_both_decoded,
        },
    ),
    "useful speedup without the idle passes of the faster run": Mutant(
        "metrics", "useful=_ratio(before - idle_before, after - idle_after)",
        "useful=_ratio(before - idle_before, after)",
        {test_passes_saved_are_no_padding_where_the_faster_run_idles_more},
    ),
    "headroom upside down": Mutant(
        "metrics", "_speed(samples) / _speed(oracle)", "_speed(oracle) / _speed(samples)",
        {
            test_headroom_is_the_share_of_the_oracles_tokens_per_forward,
            test_headroom_compares_the_problems_that_both_decoded,
        },
    ),
    "a proposal of the same step counts as redundant": Mutant(
        "metrics", 'samples.entries("ready") >= steps', 'samples.entries("ready") >= steps - 1',
        {test_temporal_redundancy_counts_tokens_proposed_before_their_commit},
    ),
    "tokens per second of columns": Mutant(
        "metrics", '_ratio(total(samples, "delivered"), total(samples, "seconds',
        '_ratio(total(samples, "slots"), total(samples, "seconds',
        {test_rates_and_ratios},
    ),
    "commits averaged over all problems": Mutant(
        "metrics", "[_ratio(count, rows) for", "[_ratio(count, len(samples)) for",
        {test_commits_per_step_average_over_the_problems_still_running},
    ),
    "ties count in the order": Mutant(
        "statistics", "pairs, pairs - same)", "pairs, pairs)",
        {test_decoding_order_is_one_from_left_to_right_and_minus_one_the_other_way},
    ),
    "ties count in a correlation": Mutant(
        "statistics", "int(np.count_nonzero(other))", "len(other)",
        {test_kendall_tau_with_ties_by_hand},
    ),
    "intervals of 90 %": Mutant(
        "statistics", "NormalDist().inv_cdf(0.5 + level / 2)", "NormalDist().inv_cdf(level)",
        {test_wilson_reproduces_published_values},
    ),
    "a p-value of one side": Mutant(
        "statistics", "min(1.0, 2 * float(tail))", "float(tail) / 2",
        {test_paired_bootstrap_of_equal_runs_is_zero,
         test_intervals_are_those_of_the_plain_bootstrap},
    ),
    "the first accurate point instead of the fastest": Mutant(
        "curves", "last = reached[-1]", "last = reached[0]",
        {test_pbx_takes_the_fastest_point_that_is_accurate_enough},
    ),
    "points that fell count": Mutant(
        "curves", "point[1] >= curve[0][1] - 5", "point[1] >= 0",
        {test_aup_leaves_out_points_that_fell_by_more_than_five},
    ),
    "equal points are both on the front": Mutant(
        "curves", "points[index][1] > best", "points[index][1] >= best",
        {test_the_pareto_front_leaves_out_what_is_beaten},
    ),
}  # fmt: skip


def caught(monkeypatch, mutant: Mutant) -> set[Callable[[], None]]:
    """The tests of this file, those without parameters, that fail with a mutant."""
    module = importlib.import_module(f"dllm_decode.evaluation.{mutant.module}")
    source = inspect.getsource(module)
    assert source.count(mutant.right) == 1, "the line to replace is gone"
    broken = ModuleType(module.__name__)
    exec(compile(source.replace(mutant.right, mutant.wrong), "mutant", "exec"), vars(broken))
    here = globals()
    for user in (here, vars(metrics)):
        for name, value in vars(broken).items():
            if user.get(name) is not value and user.get(name) is getattr(module, name, broken):
                monkeypatch.setitem(user, name, value)
    if mutant.module == "metrics":
        monkeypatch.setitem(here, "metrics", broken)
    tests = [
        value
        for name, value in list(here.items())
        if name.startswith("test_")
        and not hasattr(value, "hypothesis")
        and not inspect.signature(value).parameters
    ]
    failed = set()
    for test in tests:
        try:
            test()
        except AssertionError:
            failed.add(test)
    return failed


@pytest.mark.one_in(10)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_defect_is_caught_by_the_tests_that_are_for_it(name, monkeypatch):
    with monkeypatch.context() as patch:
        failed = caught(patch, MUTANTS[name])
    assert {test.__name__ for test in failed} == {t.__name__ for t in MUTANTS[name].caught_by}
