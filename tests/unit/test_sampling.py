import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode.decoding.sampling import Categorical, Greedy
from dllm_decode.errors import ConfigError
from dllm_decode.kernels.noise import Noise

NOTHING = torch.tensor([], dtype=torch.long)


def noise(rows, step=0, slots=1):
    index = torch.arange(slots).expand(rows, -1)
    return Noise(torch.arange(rows), torch.full((rows,), step), index)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"temperature": -0.1},
            r"temperature must lie in .*, got -0\.1",
        ),
        ({"temperature": float("nan")}, r"temperature must lie in"),
        ({"top_k": -1}, r"top_k must be a whole number >= 0, got -1"),
        ({"top_p": 0.0}, r"top_p must lie in \(0\.0, 1\.0\], got 0\.0"),
        ({"min_p": 1.0}, r"min_p must lie in \[0\.0, 1\.0\), got 1\.0"),
        ({"top_h": 0.0}, r"top_h must lie in \(0\.0, 1\.0\], got 0\.0"),
        ({"top_h_rule": "x"}, r"top_h_rule must be one of bound, released"),
        ({"confidence_from": "x"}, r"confidence_from must be one of untempered, sampled"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Categorical(**values)


# Truncation, against a plain version of one row.


def order_of(row):
    return sorted(range(len(row)), key=lambda token: (-row[token], token))


def naive_top_k(row, k):
    return set(order_of(row)[:k])


def naive_top_p(row, top_p):
    probs = torch.tensor(row, dtype=torch.float64).softmax(0).tolist()
    kept, mass = set(), 0.0
    for token in order_of(row):
        if mass >= top_p:
            break
        kept.add(token)
        mass += probs[token]
    return kept


def naive_min_p(row, min_p):
    probs = torch.tensor(row, dtype=torch.float64).softmax(0)
    return set((probs >= min_p * probs.max() - 1e-15).nonzero()[:, 0].tolist())


def entropy_of(probs):
    total = sum(probs)
    return -sum(p / total * math.log(p / total) for p in probs if p > 0)


def naive_top_h(row, share):
    probs = torch.tensor(row, dtype=torch.float64).softmax(0).tolist()
    order = order_of(row)
    kept = 1
    while kept < len(row):
        if entropy_of([probs[t] for t in order[: kept + 1]]) > share * entropy_of(probs) + 1e-9:
            break
        kept += 1
    return set(order[:kept])


rows = st.lists(st.sampled_from([0.0, 0.7, 0.7, 1.9, -1.3, 4.1, -6.0]), min_size=2, max_size=7)


def kept_by(sampler, row):
    logits = torch.tensor([[row]], dtype=torch.float64)
    return set(sampler.truncated(logits)[0, 0].isfinite().nonzero()[:, 0].tolist())


@given(row=rows, k=st.integers(1, 8))
def test_top_k_keeps_the_k_most_likely(row, k):
    assert kept_by(Categorical(top_k=k), row) == naive_top_k(row, k)


@given(row=rows, top_p=st.sampled_from([0.013, 0.31, 0.5003, 0.9001, 0.99999]))
def test_top_p_keeps_the_smallest_sufficient_set(row, top_p):
    assert kept_by(Categorical(top_p=top_p), row) == naive_top_p(row, top_p)


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_top_p_stops_where_the_mass_is_reached_exactly(top_p, kept):
    assert kept_by(Categorical(top_p=top_p), [0.0] * 4) == set(range(kept))


@given(row=rows, min_p=st.sampled_from([0.011, 0.2, 0.73, 0.999]))
def test_min_p_keeps_what_is_near_the_top(row, min_p):
    assert kept_by(Categorical(min_p=min_p), row) == naive_min_p(row, min_p)


@given(row=rows, share=st.sampled_from([0.0301, 0.4, 0.803, 0.97]))
def test_top_h_grows_the_nucleus_up_to_a_share_of_the_entropy(row, share):
    assert kept_by(Categorical(top_h=share), row) == naive_top_h(row, share)


def terms(probs):
    """Of the entropy, -sum p log p, whatever the probabilities sum up to."""
    return -sum(p * math.log(p) for p in probs if p > 0)


@given(row=rows, share=st.sampled_from([0.05, 0.4, 0.8]))
def test_the_entropy_of_the_nucleus_of_top_h_keeps_the_bound_of_the_paper(row, share):
    probs = torch.tensor(row, dtype=torch.float64).softmax(0).tolist()
    kept = kept_by(Categorical(top_h=share), row)
    assert entropy_of([probs[t] for t in kept]) <= share * entropy_of(probs) + 1e-9
    left = [t for t in order_of(row) if t not in kept]
    if left:  # the next token would break it
        grown = [probs[t] for t in (*kept, left[0])]
        assert entropy_of(grown) > share * entropy_of(probs) - 1e-9


@given(row=rows, share=st.sampled_from([0.05, 0.4, 0.8]))
def test_the_released_top_h_bounds_the_terms_of_the_entropy_instead(row, share):
    probs = torch.tensor(row, dtype=torch.float64).softmax(0).tolist()
    order, kept = order_of(row), []
    for place, token in enumerate(order):
        kept.append(token)
        after = terms(probs[t] for t in order[: place + 2])
        if place + 1 == len(order) or after > share * terms(probs) + 1e-9:
            break
    assert kept_by(Categorical(top_h=share, top_h_rule="released"), row) == set(kept)


@pytest.mark.parametrize(
    ("probs", "bound", "released"), [([0.01] * 100, 6, 40), ([0.9] + [0.01] * 10, 4, 3)]
)
def test_neither_rule_of_top_h_is_always_the_stricter_one(probs, bound, released):
    row = [math.log(p) for p in probs]
    assert len(kept_by(Categorical(top_h=0.4), row)) == bound
    assert len(kept_by(Categorical(top_h=0.4, top_h_rule="released"), row)) == released


@given(row=rows, temperature=st.sampled_from([0.5, 2.0]))
def test_truncation_acts_on_the_tempered_row(row, temperature):
    tempered = [value / temperature for value in row]
    sampler = Categorical(temperature=temperature, top_p=0.7001)
    assert kept_by(sampler, row) == naive_top_p(tempered, 0.7001)


def test_truncations_follow_each_other_on_what_is_left():
    row = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist()
    assert kept_by(Categorical(top_k=2, top_p=0.5), row) == {0}
    assert kept_by(Categorical(top_p=0.5), row) == {0, 1}


# Drawing.


def frequencies(sampler, probs, draws=4000, banned=NOTHING):
    logits = torch.tensor(probs, dtype=torch.float64).log().expand(draws, 1, -1)
    tokens = sampler.predict(logits, banned, noise(draws)).token.flatten()
    return torch.bincount(tokens, minlength=len(probs)) / draws


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_are_drawn_with_their_tempered_probabilities(temperature):
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    expected = (probs.log() / temperature).softmax(0)
    got = frequencies(Categorical(temperature=temperature), probs.tolist())
    assert ((got - expected).abs() < 4 * (expected * (1 - expected) / 4000).sqrt()).all()


def test_what_is_truncated_or_banned_is_never_drawn():
    got = frequencies(Categorical(top_k=2), [0.4, 0.35, 0.25])
    assert got[2] == 0 and abs(got[0] - 0.4 / 0.75) < 0.04
    banned = frequencies(Categorical(), [0.9, 0.06, 0.04], banned=torch.tensor([0]))
    assert banned[0] == 0 and abs(banned[1] - 0.6) < 0.04


def test_temperature_zero_is_greedy():
    logits = torch.tensor([[[0.0, 1.0, 1.0]]])
    for sampler in (Categorical(temperature=0.0), Greedy()):
        assert sampler.predict(logits, NOTHING, noise(1)).token.item() == 1


def test_a_row_draws_the_same_token_in_any_batch():
    logits = torch.zeros(3, 2, 9)
    together = Categorical().predict(logits, NOTHING, noise(3, slots=2)).token
    for row in range(3):
        part = Noise(torch.tensor([row]), torch.tensor([0]), torch.tensor([[0, 1]]))
        alone = Categorical().predict(logits[:1], NOTHING, part).token
        assert torch.equal(alone[0], together[row])


def test_another_step_draws_again():
    logits = torch.zeros(50, 1, 9)
    first = Categorical().predict(logits, NOTHING, noise(50)).token
    second = Categorical().predict(logits, NOTHING, noise(50, step=1)).token
    assert not torch.equal(first, second)


def test_confidence_is_the_models_own_unless_the_sampled_one_is_asked_for():
    logits = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()[None, None]
    for seed in range(5):
        part = Noise(torch.tensor([seed]), torch.tensor([0]), torch.tensor([[0]]))
        own = Categorical(temperature=0.5, top_k=2).predict(logits, NOTHING, part)
        sampled = Categorical(temperature=0.5, top_k=2, confidence_from="sampled")
        fed = sampled.predict(logits, NOTHING, part)
        assert own.token.item() == fed.token.item()
        assert own.confidence.item() == pytest.approx([0.6, 0.3][own.token.item()])
        assert fed.confidence.item() == pytest.approx([0.8, 0.2][fed.token.item()])


@pytest.mark.parametrize("confidence_from", ["untempered", "sampled"])
@pytest.mark.parametrize("temperature", [1e-20, 1e-37, 1e-38, 1e-46, 5e-324])
def test_the_coldest_temperatures_propose_the_argmax(temperature, confidence_from):
    logits = torch.tensor([[[5.0, 10.0, 0.0], [-3.0, -2.0, -60.0]]])
    sampler = Categorical(temperature, confidence_from=confidence_from)
    rows = torch.zeros(1, dtype=torch.long)
    noise = Noise(rows, rows, torch.tensor([[0, 1]]))
    prediction = sampler.predict(logits, rows[:0], noise)
    assert prediction.token.tolist() == [[1, 1]]
    assert bool(prediction.confidence.isfinite().all())
