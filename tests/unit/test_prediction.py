import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from dllm_decode.decoding.prediction import BiasedPrediction, Prediction, PredictionError

INF = float("inf")


def dense(logits, banned):
    """Every statistic of a row of float64 logits, written down naively."""
    row = [-INF if token in banned else float(value) for token, value in enumerate(logits)]
    probs = torch.tensor(row, dtype=torch.float64).softmax(0)
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    surprise = [-(p * p.log()).item() if p > 0 else 0.0 for p in probs]
    return {
        "logits": row,
        "probs": probs.tolist(),
        "order": order,
        "logsumexp": torch.tensor(row, dtype=torch.float64).logsumexp(0).item(),
        "entropy": sum(surprise),
        "margin": (probs[order[0]] - (probs[order[1]] if len(row) > 1 else 0)).item(),
    }


def check(pred, row, expected, exact=1e-12):
    """All statistics of one slot against the naive ones."""
    size = len(expected["logits"])
    close = {"rel": exact, "abs": exact}
    top = expected["order"][0]
    assert pred.top_token[0, row] == top and pred.token[0, row] == top
    assert pred.confidence[0, row] == pytest.approx(expected["probs"][top], **close)
    assert pred.top_confidence[0, row] == pytest.approx(expected["probs"][top], **close)
    assert pred.logsumexp[0, row] == pytest.approx(expected["logsumexp"], **close)
    assert pred.entropy[0, row] == pytest.approx(expected["entropy"], rel=1e-9, abs=1e-9)
    assert pred.margin[0, row] == pytest.approx(expected["margin"], **close)
    assert pred.probs[0, row].tolist() == pytest.approx(expected["probs"], **close)
    assert pred.logits[0, row].tolist() == pytest.approx(expected["logits"], **close)
    ids = torch.arange(-1, size).expand(*pred.shape[:2], -1)
    assert pred.logit_of(ids)[0, row].tolist() == pytest.approx([-INF, *expected["logits"]])
    assert pred.prob_of(ids)[0, row].tolist() == pytest.approx([0.0, *expected["probs"]], **close)
    for k in range(1, size + 1):
        values, found = pred.topk(k)
        wanted = [expected["logits"][token] for token in expected["order"][:k]]
        assert values[0, row].tolist() == pytest.approx(wanted, **close)
        real = [place for place, value in enumerate(wanted) if value > -INF]
        assert found[0, row][real].tolist() == [expected["order"][place] for place in real]


def exact_odds(logits):
    """Odds against the winner and the margin, and the entropy, (N,) float64, without cancelling."""
    probs = logits.double().softmax(-1).sort(-1, descending=True).values
    others = probs[:, 1:].sum(-1)
    surprise = torch.special.entr(probs[:, 1:]).sum(-1) - probs[:, 0] * torch.log1p(-others)
    margin = probs[:, 0] - probs[:, 1]
    return others / probs[:, 0], (others + probs[:, 1]) / margin, surprise


def assert_falling(scores, exact):
    """The larger what is exact, the smaller the score, where logits of 32 bits can tell."""
    scores, apart = scores.double(), exact[:, None] > exact[None, :] * (1 + 2e-5)
    assert apart.float().mean() > 0.4
    assert (scores[:, None] < scores[None, :])[apart].all()


@pytest.mark.parametrize("kind", ["dense", "raised", "drawn", "rounded"])
def test_what_is_rounded_to_1_keeps_its_order(kind):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(200, 40, generator=generator)
    winner = torch.randint(40, (200, 1), generator=generator)
    gap = torch.linspace(0, 60, 200)[torch.randperm(200, generator=generator)]
    logits.scatter_add_(1, winner, gap[:, None])
    pred, expected = Prediction.of(logits[None]), logits.double()
    if kind == "raised":
        ids = torch.cat([winner, (winner + 1) % 40], 1)
        delta = torch.rand(200, 2, generator=generator) * 9
        pred = pred.with_logit_bias(ids[None], delta[None])
        expected = expected.scatter_add(1, ids, delta.double())
    elif kind == "drawn":
        pred = Prediction.of(logits[None], draw=lambda known: known.top_token)
    elif kind == "rounded":
        pred, expected = Prediction.of(logits.bfloat16()[None]), logits.bfloat16().double()
    assert (pred.confidence == 1).float().mean() > 0.5
    odds, margin, entropy = exact_odds(expected)
    assert_falling(pred.certainty[0], odds)
    assert_falling(pred.margin_certainty[0], margin)
    assert_falling(-pred.entropy[0], entropy)


def test_a_drawn_token_is_as_certain_as_its_own_odds_say():
    logits = torch.tensor([[[2.0, 1.0, -40.0, -float("inf")]] * 4])
    drawn = torch.tensor([[0, 1, 2, 3]])
    pred = Prediction.of(logits, draw=lambda known: drawn)
    probs = logits[0, 0].double().softmax(0)
    assert pred.certainty[0].double().tolist() == pytest.approx((-(1 - probs) / probs).tolist())
    assert pred.confidence[0].tolist() == pytest.approx(probs.tolist())


@st.composite
def rows_of_logits(draw):
    size = draw(st.integers(1, 6))
    values = st.sampled_from([0.0, 1.0, 1.0, -2.5, 3.0, 40.0, -INF])
    rows = draw(st.lists(st.lists(values, min_size=size, max_size=size), min_size=1, max_size=3))
    banned = draw(st.sets(st.integers(0, size - 1), max_size=size - 1))
    for row in rows:
        assume(any(v > -INF and token not in banned for token, v in enumerate(row)))
    return rows, banned


def predicted(rows, banned, dtype=torch.float64):
    ids = torch.tensor(sorted(banned), dtype=torch.long)
    return Prediction.of(torch.tensor([rows], dtype=dtype), ids)


@given(case=rows_of_logits())
def test_all_statistics_of_a_prediction_are_those_of_its_rows(case):
    rows, banned = case
    pred = predicted(rows, banned)
    assert pred.healthy.all()
    for row, logits in enumerate(rows):
        check(pred, row, dense(logits, banned))


@given(case=rows_of_logits(), data=st.data())
def test_raised_equals_the_dense_computation(case, data):
    rows, banned = case
    size, slots = len(rows[0]), data.draw(st.integers(1, 4))
    deltas = [0.0, 0.5, 1.0, 8.0]
    if data.draw(st.booleans()):
        deltas += [-1.0, -INF]
    pred, expected = predicted(rows, banned), [list(row) for row in rows]
    for _ in range(data.draw(st.integers(1, 2))):
        ids, additions = [], []
        for row in expected:
            pairs = data.draw(
                st.lists(
                    st.tuples(st.integers(-1, size - 1), st.sampled_from(deltas)),
                    min_size=slots,
                    max_size=slots,
                )
            )
            ids.append([token for token, _ in pairs])
            additions.append([delta for _, delta in pairs])
            for token, delta in pairs:
                if token >= 0:
                    row[token] += delta
        pred = pred.with_logit_bias(
            torch.tensor([ids]), torch.tensor([additions], dtype=torch.float64)
        )
    for row in expected:
        assume(any(v > -INF and token not in banned for token, v in enumerate(row)))
    for row, logits in enumerate(expected):
        check(pred, row, dense(logits, banned))


@given(case=rows_of_logits(), data=st.data())
def test_banning_later_equals_banning_at_once(case, data):
    rows, banned = case
    more = data.draw(st.sets(st.integers(0, len(rows[0]) - 1)))
    for row in rows:
        allowed = set(range(len(row))) - banned - more
        assume(any(row[token] > -INF for token in allowed))
    pred = predicted(rows, banned).suppress(torch.tensor(sorted(more), dtype=torch.long))
    for row, logits in enumerate(rows):
        check(pred, row, dense(logits, banned | more))


def test_among_removed_tokens_an_empty_slot_is_never_a_result():
    pred = Prediction.of(torch.tensor([[[1.0, 2.0, 3.0, 0.0]]]), torch.tensor([0, 2]))
    biased = pred.with_logit_bias(torch.tensor([[[-1, 3, -1]]]), torch.tensor([[[0.0, 5.0, 0.0]]]))
    values, ids = biased.topk(4)
    assert values[0, 0].tolist() == [5.0, 2.0, -INF, -INF]
    assert ids[0, 0].tolist() == [3, 1, 0, 2]


def test_a_raise_of_nothing_changes_nothing():
    pred = predicted([[0.0, 1.0, -1.0]], set())
    same = pred.with_logit_bias(torch.tensor([[[-1, 2]]]), torch.tensor([[[5.0, 0.0]]]))
    for name in ("token", "confidence", "entropy", "margin", "logsumexp"):
        assert torch.equal(getattr(same, name), getattr(pred, name))


def test_the_logits_of_a_model_are_never_written_to():
    logits = torch.zeros(1, 1, 3)
    pred = Prediction.of(logits, torch.tensor([0]))
    _ = (
        pred.with_logit_bias(torch.tensor([[[1]]]), torch.tensor([[[2.0]]])).probs,
        pred.probs,
        pred.entropy,
    )
    assert not logits.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_logits_are_read_in_float32(dtype):
    pred = predicted([[0.0, 0.25, -3.0]], set(), dtype)
    assert pred.confidence.dtype == pred.entropy.dtype == torch.float32
    check(pred, 0, dense([0.0, 0.25, -3.0], set()), exact=1e-6)


@pytest.mark.parametrize("logits", [[0.0, float("nan")], [0.0, INF], [-INF, -INF]])
def test_rows_that_no_rule_can_use_are_unhealthy(logits):
    pred = Prediction.of(torch.tensor([[[0.0, 1.0], logits]]))
    assert pred.healthy.tolist() == [[True, False]]


def test_a_row_in_which_everything_is_banned_is_unhealthy():
    assert not predicted([[1.0, 2.0]], {0, 1}).healthy.any()


def test_where_transforms_remove_every_token_all_probabilities_are_zero():
    pred = predicted([[1.0, -INF]], set()).with_logit_bias(
        torch.tensor([[[0]]]), torch.tensor([[[-INF]]], dtype=torch.float64)
    )
    assert pred.prob_of(torch.tensor([[[0, 1]]])).tolist() == [[[0.0, 0.0]]]


def test_a_proposal_that_is_drawn_has_its_own_confidence_and_survives_a_raise():
    drawn = Prediction.of(
        torch.tensor([[[2.0, 0.0]]]), None, lambda pred: torch.ones(pred.shape[:2]).long()
    )
    assert drawn.token.item() == 1 and drawn.top_token.item() == 0
    assert drawn.confidence.item() == pytest.approx(1 / (1 + torch.e**2))
    raised = drawn.with_logit_bias(torch.tensor([[[1]]]), torch.tensor([[[2.0]]]))
    assert isinstance(raised, BiasedPrediction) and raised.token.item() == 1
    assert raised.confidence.item() == pytest.approx(0.5)


@given(rows_of_logits(), rows_of_logits(), st.sampled_from([torch.float64, torch.float32]))
def test_kl_from_is_the_divergence_that_a_loop_over_tokens_finds(now, before, dtype):
    (rows, banned), (old, _) = now, before
    size = min(len(rows[0]), len(old[0]))
    new = torch.tensor(rows[0][:size], dtype=dtype)
    past = torch.tensor(old[0][:size], dtype=dtype)
    pred = Prediction.of(new.view(1, 1, -1), torch.tensor([b for b in banned if b < size]).long())
    assume(pred.healthy.all())
    p = pred.logits[0, 0].double().softmax(0).tolist()
    q = past.double().softmax(0).tolist() if past.amax() > -INF else [0.0] * size
    wanted = 0.0
    for mine, yours in zip(p, q, strict=True):
        if mine > 0:
            wanted += mine * (torch.tensor(mine).log() - torch.tensor(yours).log()).item()
    got = pred.kl_from(past.view(1, 1, -1)).item()
    assert got == pytest.approx(wanted, rel=1e-4, abs=1e-5) and got >= 0


def test_kl_from_refuses_another_shape_and_type():
    pred = Prediction.of(torch.zeros(1, 2, 3))
    with pytest.raises(PredictionError, match=r"previous must have shape \(1, 2, 3\), got"):
        pred.kl_from(torch.zeros(1, 2, 4))
    with pytest.raises(PredictionError, match="previous must be floating-point numbers"):
        pred.kl_from(torch.zeros(1, 2, 3, dtype=torch.long))
    assert pred.kl_from(torch.full((1, 2, 3), -INF)).tolist() == [[INF, INF]]


def test_what_proposed_before_it_was_deferred_is_proposed_with_other_logits_too():
    pred = Prediction.of(torch.tensor([[[3.0, 2.0, 1.0, 0.0]]]))
    deferred = pred.deferring(torch.tensor([0]))
    other = deferred.with_logits(torch.tensor([[[0.0, 0.0, 5.0, 0.0]]]))
    ids, delta = torch.tensor([[[1]]]), torch.tensor([[[9.0]]])
    for made in (other, other.with_logit_bias(ids, delta), other.deferring(torch.tensor([2]))):
        assert made.token.tolist() == [[0]]
    assert other.suppress(torch.tensor([0])).token.tolist() == [[1]]
    assert other.top_token.tolist() == [[2]]
