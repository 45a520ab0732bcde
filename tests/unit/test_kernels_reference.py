"""The plain-torch definition against sums written out in Python, and what predictions add to it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dllm_decode.decoding.prediction import GumbelDraw, HiddenStates, Prediction
from dllm_decode.decoding.sampling import Categorical
from dllm_decode.kernels import reference
from dllm_decode.kernels.noise import Noise, unit_interval
from dllm_decode.kernels.reference import Slots

logit = st.one_of(
    st.integers(-4, 4).map(float), st.floats(-60, 60, width=32), st.just(float("-inf"))
)
rows = st.lists(logit, min_size=1, max_size=12).filter(lambda row: max(row) > float("-inf"))


def expected(row: list[float]) -> tuple[int, float, float, float]:
    """Token, maximum, total and moment of a row, term by term."""
    top = max(row)
    shifted = [value - top for value in row if value > float("-inf")]
    total = math.fsum(math.exp(value) for value in shifted)
    moment = math.fsum(math.exp(value) * value for value in shifted)
    return row.index(top), top, total, moment


@given(rows, st.lists(st.integers(0, 11), max_size=3))
def test_statistics_are_the_sums_that_define_them(row, bans):
    bans = [ban for ban in bans if ban < len(row)]
    left = [float("-inf") if place in bans else value for place, value in enumerate(row)]
    found = reference.row_statistics(
        torch.tensor([row], dtype=torch.float64), torch.tensor(bans, dtype=torch.long)
    )
    assert bool(found.healthy) == (max(left) > float("-inf"))
    if not found.healthy:
        return
    token, top, total, moment = expected(left)
    assert (found.token.item(), found.maximum.item()) == (token, top)
    assert found.total.item() == pytest.approx(total, rel=1e-12)
    others = [math.exp(value - top) for place, value in enumerate(left) if place != token]
    assert found.rest.item() == pytest.approx(math.fsum(others), rel=1e-12)
    assert found.moment.item() == pytest.approx(moment, rel=1e-12, abs=1e-12)
    probabilities = [math.exp(value - top) / total for value in left]
    entropy = -math.fsum(p * math.log(p) for p in probabilities if p > 0)
    assert found.entropy.item() == pytest.approx(entropy, rel=1e-9, abs=1e-9)
    assert found.confidence.item() == pytest.approx(max(probabilities), rel=1e-12)
    assert found.logsumexp.item() == pytest.approx(top + math.log(total), rel=1e-12)


@given(rows, st.integers(1, 14))
def test_the_largest_come_first_and_lower_ids_first_on_ties(row, k):
    values, ids = reference.top_k(torch.tensor([row]), k)
    order = sorted(range(len(row)), key=lambda place: (-row[place], place))[:k]
    assert ids[0].tolist() == order
    assert values[0].tolist() == [row[place] for place in order]


@given(rows, st.data())
def test_sparse_additions_give_the_statistics_of_the_dense_sum(row, data):
    slots = data.draw(st.integers(1, 5))
    ids = data.draw(
        st.lists(st.integers(-1, len(row) - 1), min_size=slots, max_size=slots), label="ids"
    )
    delta = data.draw(
        st.lists(st.floats(0, 900), min_size=slots, max_size=slots), label="additions"
    )
    raised = list(row)
    for place, more in zip(ids, delta, strict=True):
        if place >= 0:
            raised[place] += more
    pred = Prediction.of(torch.tensor([[row]], dtype=torch.float64)).with_logit_bias(
        torch.tensor([[ids]]), torch.tensor([[delta]], dtype=torch.float64)
    )
    token, top, total, moment = expected(raised)
    assert pred.maximum.item() == pytest.approx(top, abs=1e-9)
    # equal up to rounding counts as a tie for the list above, so compare what the ids hold
    assert raised[int(pred.top_token)] == pytest.approx(raised[token], abs=1e-9)
    assert pred.logsumexp.item() == pytest.approx(top + math.log(total), abs=1e-9)
    assert pred.entropy.item() == pytest.approx(math.log(total) - moment / total, abs=1e-7)


def test_additions_that_tie_exactly_leave_the_lowest_id():
    base = Prediction.of(torch.tensor([[[1.0, 3.0, 2.0, 0.0]]]))
    tied = base.with_logit_bias(torch.tensor([[[2, 0, 3]]]), torch.tensor([[[1.0, 2.0, 3.0]]]))
    assert tied.top_token.item() == 0
    assert tied.topk(4)[1][0, 0].tolist() == [0, 1, 2, 3]


def test_a_negative_addition_is_computed_densely_and_right():
    logits = torch.randn(1, 3, 9, dtype=torch.float64)
    ids = logits.argmax(-1, keepdim=True)
    for delta in (-2.0, float("-inf")):
        found = Prediction.of(logits).with_logit_bias(ids, torch.full(ids.shape, delta))
        exact = Prediction.of(logits.scatter_add(-1, ids, torch.full(ids.shape, delta).double()))
        assert torch.equal(found.top_token, exact.top_token)
        torch.testing.assert_close(found.entropy, exact.entropy)
        torch.testing.assert_close(found.logsumexp, exact.logsumexp)


def credit_by_hand(
    logits: Tensor, credit: dict[int, float], alpha: float, beta: float, gamma: float
) -> tuple[dict[int, float], Tensor]:
    """One dense step of the published rule on one row."""
    top = int(logits.argmax())
    credit = {token: beta * value for token, value in credit.items()}
    credit[top] = credit.get(top, 0.0) + float(logits.softmax(0)[top]) ** gamma
    fused = logits.clone()
    for token, value in credit.items():
        fused[token] += alpha * math.log1p(value)
    return credit, fused


@given(st.integers(0, 2**32), st.floats(0, 2), st.floats(0, 1), st.sampled_from((0.0, 0.2, 1.0)))
def test_credit_over_steps_is_the_published_rule(seed, alpha, beta, gamma):
    generator = torch.Generator().manual_seed(seed)
    steps, vocabulary = 6, 5
    ids = torch.full((1, 1, steps), -1)
    credit = torch.zeros(1, 1, steps, dtype=torch.float64)
    held: dict[int, float] = {}
    strength = torch.tensor([alpha]).double()
    for _ in range(steps):
        logits = torch.randn(vocabulary, generator=generator, dtype=torch.float64) * 2
        held, fused = credit_by_hand(logits, held, alpha, beta, gamma)
        done = Prediction.of(logits[None, None]).credited(
            Slots(
                ids, credit, strength, torch.tensor([beta]).double(), gamma, torch.ones(1, 1).bool()
            )
        )
        ids, credit = done.ids, done.credit
        slots = dict(zip(ids[0, 0].tolist(), credit[0, 0].tolist(), strict=True))
        slots.pop(-1, None)
        assert slots == pytest.approx(held)
        exact = Prediction.of(fused[None, None])
        assert torch.equal(done.prediction.token, exact.token)
        for name in ("confidence", "entropy", "logsumexp", "margin"):
            torch.testing.assert_close(getattr(done.prediction, name), getattr(exact, name))


def test_credit_forgets_the_least_where_all_slots_are_taken():
    raw = reference.row_statistics(torch.tensor([[0.0, 0.0, 9.0]]))
    ids, credit = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.25]])
    one = torch.ones(1)
    ids, credit = reference.earned_credit(raw, Slots(ids, credit, one, one, 1.0, one.bool()))
    assert ids.tolist() == [[0, 2]]
    assert credit[0, 1].item() == pytest.approx(raw.confidence.item())


def test_closed_rows_come_back_empty_and_plain():
    logits = torch.randn(1, 2, 7)
    held = torch.tensor([[[3], [3]]])
    one = torch.ones(1)
    done = Prediction.of(logits).credited(
        Slots(held, held.double(), one, one, 0.5, torch.tensor([[True, False]]))
    )
    assert done.ids[0, 1].tolist() == [-1]
    assert done.credit[0, 1].tolist() == [0.0]
    plain = Prediction.of(logits)
    assert done.prediction.confidence[0, 1] == plain.confidence[0, 1]
    assert done.prediction.confidence[0, 0] > plain.confidence[0, 0]


def test_credit_on_a_raised_prediction_builds_on_the_raised_logits():
    logits, one = torch.randn(1, 4, 9, dtype=torch.float64), torch.ones(1)
    more_ids = torch.full((1, 4, 1), 5)
    more = torch.full((1, 4, 1), 2.0)
    ids = torch.full((1, 4, 3), -1)
    slots = Slots(ids, ids.double() * 0, one, one, 0.2, torch.ones(1, 4).bool())
    dense = logits.index_add(-1, torch.tensor([5]), torch.full((1, 4, 1), 2.0).double())
    results = [
        pred.credited(slots)
        for pred in (Prediction.of(logits).with_logit_bias(more_ids, more), Prediction.of(dense))
    ]
    assert torch.equal(results[0].ids, results[1].ids)
    torch.testing.assert_close(results[0].credit, results[1].credit)
    torch.testing.assert_close(results[0].prediction.entropy, results[1].prediction.entropy)


def step_noise(count: int) -> Noise:
    rows = torch.arange(count)
    return Noise(rows, rows * 0 + 3, torch.tensor([[4, 9]]).expand(count, 2))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_a_gumbel_draw_is_what_the_sampler_draws(temperature):
    logits, banned = torch.randn(40, 2, 30), torch.tensor([0, 7])
    noise = step_noise(40)
    ours = Prediction.of(logits, banned, GumbelDraw(noise, temperature))
    theirs = Categorical(temperature).predict(logits, banned, noise)
    assert torch.equal(ours.token, theirs.token)
    assert torch.equal(ours.confidence, theirs.confidence)
    assert not torch.equal(ours.token, ours.top_token)


def test_a_draw_under_additions_is_the_draw_from_the_raised_logits():
    logits, draw = torch.randn(50, 2, 12), GumbelDraw(step_noise(50), 0.7)
    ids = torch.randint(-1, 12, (50, 2, 3))
    for low in (0.0, -3.0):
        delta = torch.rand(50, 2, 3) * 3 + low
        raised = Prediction.of(logits, None, draw).with_logit_bias(ids, delta)
        dense = Prediction.of(raised.logits, None, draw)
        assert torch.equal(raised.token, dense.token)


def test_draws_follow_the_tempered_distribution():
    row = torch.tensor([0.0, 1.0, 0.5, -1.0, 2.0, 1.5])
    noise = Noise(
        torch.arange(100_000), torch.zeros(100_000).long(), torch.zeros(100_000, 1).long()
    )
    drawn = reference.gumbel_argmax(row.expand(100_000, 6), noise.states().flatten(), 0.8)
    counts = torch.bincount(drawn, minlength=6).double()
    share = (row.double() / 0.8).softmax(0) * 100_000
    # the 0.999 quantile of chi-square with 5 degrees of freedom
    assert float(((counts - share) ** 2 / share).sum()) < 20.5


def test_the_unit_interval_is_open_at_both_ends():
    ends = unit_interval(torch.tensor([0, -1]))
    assert 0.0 < ends[0] < ends[1] < 1.0


def test_banning_more_ids_is_the_same_as_banning_them_from_the_start():
    logits, ids = torch.randn(2, 3, 11), torch.tensor([2, 9])
    hidden, weight = torch.randn(2, 3, 4), torch.randn(11, 4)
    slots, delta = torch.tensor([2, 5]).expand(2, 3, 2), torch.ones(2, 3, 2)
    pairs = [
        (Prediction.of(logits).suppress(ids), Prediction.of(logits, ids)),
        (
            Prediction.of(logits, torch.tensor([1])).suppress(ids),
            Prediction.of(logits, torch.tensor([1, 2, 9])),
        ),
        (
            Prediction.of(logits).with_logit_bias(slots, delta).suppress(ids),
            Prediction.of(logits, ids).with_logit_bias(slots, delta),
        ),
        (
            Prediction.of(HiddenStates(hidden, weight)).suppress(ids),
            Prediction.of(HiddenStates(hidden, weight), ids),
        ),
    ]
    for left, right in pairs:
        assert torch.equal(left.token, right.token)
        assert torch.equal(left.probs, right.probs)
        assert torch.equal(left.entropy, right.entropy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_prediction_of_hidden_states_is_that_of_their_logits(dtype):
    hidden, weight = torch.randn(2, 3, 8).to(dtype), torch.randn(20, 8).to(dtype)
    banned = torch.tensor([4])
    head = Prediction.of(HiddenStates(hidden, weight), banned)
    wide = torch.promote_types(dtype, torch.float32)
    dense = Prediction.of(hidden.to(wide) @ weight.to(wide).T, banned)
    ids = torch.tensor([1, 4, -1]).expand(2, 3, 3)
    assert head.shape == dense.shape
    assert torch.equal(head.token, dense.token)
    for name in ("confidence", "entropy", "margin", "logsumexp", "probs", "maximum"):
        torch.testing.assert_close(getattr(head, name), getattr(dense, name))
    torch.testing.assert_close(head.logit_of(ids), dense.logit_of(ids))
    for k in (1, 4):
        assert torch.equal(head.topk(k)[1], dense.topk(k)[1])


@given(st.integers(1, 4), st.integers(1, 12), st.booleans(), st.integers(0, 2**32))
def test_selection_by_threshold_never_leaves_a_live_row_without_a_commit(
    count, width, strict, seed
):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (count, width), generator=generator) / 6
    opened = torch.rand(count, width, generator=generator) < 0.6
    threshold = torch.randint(0, 8, (count,), generator=generator) / 6
    commit, left = reference.threshold_selection(scores, opened, threshold, strict)
    for row in range(count):
        slots = [slot for slot in range(width) if opened[row, slot]]
        level = threshold[row]
        wanted = [
            slot
            for slot in slots
            if (scores[row, slot] > level if strict else scores[row, slot] >= level)
        ]
        if slots and not wanted:
            wanted = [max(slots, key=lambda slot: (float(scores[row, slot]), -slot))]
        assert commit[row].nonzero()[:, 0].tolist() == wanted
        assert left[row] == len(slots) - len(wanted)


@pytest.mark.parametrize(("rows", "vocabulary"), [(7, 70_001), (8, 66_048), (1, 70_001), (5, 9)])
def test_rows_taken_in_blocks_give_the_digits_of_all_rows_at_once(rows, vocabulary):
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, vocabulary, generator=generator).mul(4).round(decimals=1)
    logits[0, :: vocabulary // 3] = 99.0  # ties, the first of them banned
    logits[-1, vocabulary // 2] = float("nan")
    banned = torch.tensor([0, vocabulary - 1])
    allowed = logits.index_fill(-1, banned, float("-inf"))
    maximum, token = allowed.max(-1)
    weights = (allowed - maximum[:, None]).clamp(min=-1e30)
    # a processor takes powers of 2 where rows are long
    powers = weights.exp() if vocabulary < 4096 else (weights * 1.4426950408889634).exp2()
    beside = powers.scatter(1, token[:, None], 0.0)
    found = reference.row_statistics(logits, banned)
    assert torch.equal(found.token, token)
    for got, wanted in (
        (found.maximum, maximum),
        (found.rest, beside.sum(-1)),
        (found.moment, (powers * weights).sum(-1)),
    ):
        assert torch.equal(got.nan_to_num(-1.0), wanted.nan_to_num(-1.0))
    assert found.healthy.tolist() == [True] * (rows - 1) + [False]


@pytest.mark.parametrize("gap", [0.0, 12.0, 60.0])
def test_powers_of_2_give_the_sums_of_exponentials_to_the_rounding_of_the_logits(gap):
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(2)) * 3
    logits[:, 77] += gap
    found, exact = reference.row_statistics(logits), reference.row_statistics(logits.double())
    torch.testing.assert_close(found.rest.double(), exact.rest, rtol=5e-6, atol=0.0)
    torch.testing.assert_close(found.moment.double(), exact.moment, rtol=5e-6, atol=0.0)
    torch.testing.assert_close(found.entropy.double(), exact.entropy, rtol=5e-6, atol=0.0)


@pytest.mark.parametrize(
    ("rows", "vocabulary", "reads"),
    [(3, 5, 0), (1, 140_000, 0), (4, 70_001, 4)],  # all rows in one block, or in more
)
def test_the_entropy_moment_is_summed_when_somebody_asks_and_of_what_is_there_already(
    monkeypatch, rows, vocabulary, reads
):
    asked, read = [], []
    product, blocks = reference._product, reference._blocks
    monkeypatch.setattr(reference, "_product", lambda *given: asked.append(1) or product(*given))
    statistics = reference.row_statistics(torch.randn(rows, vocabulary).bfloat16())
    _ = statistics.confidence, statistics.healthy
    assert not asked

    def reading(*given):
        for block, own in blocks(*given):
            read.append(len(block))
            yield block, own

    monkeypatch.setattr(reference, "_blocks", reading)
    _ = statistics.entropy, statistics.entropy
    assert sum(read) == reads
    assert bool(asked) == (reads == 0)
