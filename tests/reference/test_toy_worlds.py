"""Closed forms: what decoding rules must score where the model is exact.

The formulas are those of ParallelBench (arXiv 2510.04767, section 3) and what follows from them;
accuracies are measured on drawn instances and must lie within four standard errors.
"""

import math
from dataclasses import dataclass
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.sampling import Categorical, Greedy
from dllm_decode.decoding.schedule import Blocks, WholeCanvas
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, Memory, Request
from dllm_decode.models.toy import (
    Copy,
    Markov,
    ReplaceIndex,
    ReplaceRandom,
    Reverse,
    Shuffle,
    Table,
)
from dllm_decode.strategies.entropy import EntropyThreshold
from dllm_decode.strategies.entropy_bound import EntropyBound
from dllm_decode.strategies.factor import Factor
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.threshold import ConfidenceThreshold

EXACT = {"noise": 0.0, "floor": 0.0}
CHAIN = Markov(
    n=3,
    initial=(0.5, 0.3, 0.2),
    transition=((0.6, 0.3, 0.1), (0.2, 0.0, 0.8), (0.25, 0.25, 0.5)),
    **EXACT,
)
TABLE = Table(outcomes={"aab": 3.0, "aba": 1.0, "b": 2.0, "cab": 4.0}, **EXACT)


def outcomes(world, prompt):
    """The joint distribution, written down naively: answer -> probability."""
    items = prompt.rstrip(">") or world.default_prompt
    if isinstance(world, Copy):
        return {items: 1.0}
    if isinstance(world, Reverse):
        return {items[::-1]: 1.0}
    if isinstance(world, Shuffle):
        found = list(permutations(items))
        return {"".join(answer): 1 / len(found) for answer in found}
    if isinstance(world, ReplaceIndex | ReplaceRandom):
        *old, new = items
        chosen = [world.index] if isinstance(world, ReplaceIndex) else range(len(old))
        answers = ["".join([*old[:place], new, *old[place + 1 :]]) for place in chosen]
        return {answer: 1 / len(answers) for answer in answers}
    if isinstance(world, Table):
        total = sum(world.outcomes.values())
        return {answer: weight / total for answer, weight in world.outcomes.items()}
    chain = {"": 1.0}
    for column in range(world.n):
        chain = {
            text + world.symbols[state]: chance
            * (world.initial[state] if column == 0 else step[world.symbols.index(text[-1])][state])
            for text, chance in chain.items()
            for step in [world.transition]
            for state in range(len(world.initial))
        }
    return {answer: chance for answer, chance in chain.items() if chance > 0}


def ids_of(world, answer, length):
    end = world.vocab.eot_ids[0]
    return [world.symbols.index(s) for s in answer] + [end] * (length - len(answer))


def probabilities(world, prompt, answer):
    """What the model predicts at the answer columns; answer: token ids, mask id for undecided."""
    prompt = world.tokenizer.encode(prompt) if prompt else []
    tokens = torch.tensor([prompt + list(answer)])
    index = torch.arange(len(prompt), tokens.shape[1])[None]
    logits = world(tokens, torch.ones_like(tokens, dtype=torch.bool), index, Plan())
    return logits.softmax(-1)[0]


def decode(world, select, rows, sampler=Greedy(), seed=0, **request):  # noqa: B008
    prompts = world.sample_prompts(rows, seed)
    ids = tuple(tuple(world.tokenizer.encode(prompt)) for prompt in prompts)
    decoder = Decoder(world, select, WholeCanvas(), sampler=sampler)
    seeds = tuple(range(1000 * seed, 1000 * seed + rows))
    result = decoder.decode(Request(ids, world.n, seeds=seeds, **request))
    texts = [world.tokenizer.decode(list(sequence)) for sequence in result.sequences]
    return prompts, texts, result


def is_right(world, prompt, text):
    items = prompt.rstrip(">")
    if isinstance(world, Shuffle):
        return sorted(items) == sorted(text)
    if isinstance(world, ReplaceRandom):
        *old, new = items
        return text.count(new) == 1 and all(a in (b, new) for a, b in zip(text, old, strict=True))
    return text in outcomes(world, prompt)


def accuracy(world, select, rows=800, sampler=Greedy(), seed=0):  # noqa: B008
    prompts, texts, _ = decode(world, select, rows, sampler, seed)
    right = [is_right(world, prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    return sum(right) / rows


def within(measured, expected, rows=800):
    return abs(measured - expected) <= 4 * math.sqrt(expected * (1 - expected) / rows) + 1e-9


# The model itself.


@given(data=st.data())
def test_marginals_are_those_of_the_enumerated_joint(data):
    worlds = [
        Copy(n=3, **EXACT),
        Reverse(n=3, **EXACT),
        ReplaceIndex(n=3, index=1, **EXACT),
        ReplaceRandom(n=4, **EXACT),
        Shuffle(n=4, **EXACT),
        CHAIN,
        TABLE,
    ]
    world = data.draw(st.sampled_from(worlds))
    prompt = data.draw(st.sampled_from(["", *world.sample_prompts(2)]))
    joint = outcomes(world, prompt)
    length = max(map(len, joint)) + data.draw(st.integers(0, 2))
    truth = ids_of(world, data.draw(st.sampled_from(sorted(joint))), length)
    shown = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    mask = world.vocab.mask_id
    canvas = [token if known else mask for token, known in zip(truth, shown, strict=True)]
    expected = torch.zeros(length, world.vocab.size, dtype=torch.float64)
    for answer, chance in joint.items():
        tokens = ids_of(world, answer, length)
        if all(c in (t, mask) for c, t in zip(canvas, tokens, strict=True)):
            expected[torch.arange(length), tokens] += chance
    expected = expected / expected.sum(1, keepdim=True)
    got = probabilities(world, prompt, canvas)
    assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("world", [Shuffle(n=4), ReplaceRandom(n=4), CHAIN, TABLE])
def test_the_probability_of_an_answer_is_that_of_the_joint(world):
    prompt = world.sample_prompts(1)[0]
    joint = outcomes(world, prompt)
    for answer, chance in joint.items():
        assert world.probability(prompt, answer) == pytest.approx(chance, abs=1e-12)
    assert world.probability(prompt, "?") == 0.0
    assert sum(joint.values()) == pytest.approx(1.0)


def test_a_large_shuffle_needs_no_enumeration():
    world = Shuffle(n=20, **EXACT)
    empty = [world.vocab.mask_id] * 20
    assert probabilities(world, "", empty)[:, :20] == pytest.approx(1 / 20)


def test_canvases_that_cannot_be_give_finite_logits_and_the_documented_marginals():
    mask = Shuffle(n=4).vocab.mask_id
    left = probabilities(Shuffle(n=4, **EXACT), "abcd", [0, 0, mask, mask])
    assert left[2, 1:4] == pytest.approx(1 / 3)
    new, old = 4, 2
    both = probabilities(ReplaceRandom(n=4, **EXACT), "abcde", [new, new, mask, mask])
    assert both[2, new] == pytest.approx(1 / 4) and both[2, old] == pytest.approx(3 / 4)
    impossible = probabilities(CHAIN, "", [1, 1, CHAIN.vocab.mask_id])
    alone = probabilities(CHAIN, "", [CHAIN.vocab.mask_id] * 3)
    assert torch.allclose(impossible[2], alone[2])
    unknown = probabilities(TABLE, "", [1, 1, TABLE.vocab.mask_id])
    assert torch.allclose(unknown[2], probabilities(TABLE, "", [TABLE.vocab.mask_id] * 3)[2])
    for world in (Copy(), Shuffle(), ReplaceRandom(), Markov(), Table()):
        tokens = torch.randint(
            world.vocab.size, (20, 9), generator=torch.Generator().manual_seed(0)
        )
        logits = world(tokens, tokens >= 0, torch.arange(9).expand(20, -1), Plan())
        assert bool(logits.isfinite().all())


# The price of parallelism, in bits.


def bits(rows):
    return float(Prediction.of(rows[None].log()).entropy.sum()) / math.log(2)


def lost(world, sizes, truth):
    """Conditional total correlation of a partition: sum of marginal entropies less the joint's."""
    total, known = 0.0, 0
    for size in sizes:
        canvas = [*truth[:known], *[world.vocab.mask_id] * (len(truth) - known)]
        total += bits(probabilities(world, "", canvas)[known : known + size])
        known += size
    return total


@pytest.mark.parametrize(("n", "expected"), [(2, 1.0), (3, 2.16993), (4, 3.41504), (10, 11.42822)])
def test_total_correlation_of_a_shuffle(n, expected):
    world = Shuffle(n=n, **EXACT)
    joint = -math.log2(world.probability("", world.default_prompt))
    assert lost(world, [n], list(range(n))) - joint == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("n", "expected"), [(2, 1.0), (3, 1.16993), (4, 1.24511), (10, 1.36803)])
def test_total_correlation_of_replacing_one(n, expected):
    world = ReplaceRandom(n=n, **EXACT)
    answer = world.default_prompt[-1] + world.default_prompt[1:n]
    joint = -math.log2(world.probability("", answer))
    assert lost(world, [n], [0] * n) - joint == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([6], 6.0179),
        ([3, 3], 3.0179),
        ([4, 2], 2.848),
        ([2, 4], 3.6781),
        ([2, 2, 2], 1.6781),
        ([1] * 6, 0.0),
    ],
)
def test_lower_bound_of_a_partition_of_a_shuffle(sizes, expected):
    world = Shuffle(n=6, **EXACT)
    joint = math.log2(math.factorial(6))
    assert lost(world, sizes, list(range(6))) - joint == pytest.approx(expected, abs=1e-4)


# Greedy decoding.


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("n", "k", "expected"),
    [
        (6, 1, 1.0),
        (6, 2, 0.3125),
        (6, 3, 0.12346),
        (6, 6, 0.015432),
        (8, 2, 0.2734375),
        (8, 3, 0.1575),
        (8, 8, 0.0024),
        (10, 2, 0.24609),
    ],
)
def test_greedy_top_k_on_a_shuffle(n, k, expected):
    product, left = 1.0, n
    while left:
        step = min(k, left)
        product *= math.perm(left, step) / left**step
        left -= step
    assert product == pytest.approx(expected, rel=2e-3)
    assert within(accuracy(Shuffle(n=n), TopK(k)), product)


@pytest.mark.parametrize(
    ("n", "k", "expected"),
    [(6, 1, 1.0), (6, 2, 0.5), (6, 3, 0.0), (6, 6, 0.0), (7, 3, 1.0), (8, 3, 0.5), (8, 5, 0.0)],
)
def test_greedy_top_k_on_replacing_one(n, k, expected):
    assert within(accuracy(ReplaceRandom(n=n), TopK(k)), expected)


@pytest.mark.parametrize("world", [Copy(n=6), Reverse(n=6), ReplaceIndex(n=6, index=3)])
@pytest.mark.parametrize(
    "select",
    [TopK(1), TopK(2), TopK(6), ConfidenceThreshold(0.9), Factor(), EntropyBound(0.1)],
    ids=lambda part: type(part).__name__,
)
def test_nothing_is_lost_where_nothing_depends_on_anything(world, select):
    _, texts, result = decode(world, select, 20)
    assert accuracy(world, select, rows=20) == 1.0
    if not isinstance(select, TopK):
        assert set(result.forwards) == {1}
    assert len(texts) == 20


@pytest.mark.parametrize(
    ("world", "threshold", "expected"),
    [
        (Shuffle(n=6), 0.6, 1.0),
        (Shuffle(n=6), 0.4, 0.5),
        (ReplaceRandom(n=6), 0.85, 1.0),
        (ReplaceRandom(n=6), 0.8, 0.0),
    ],
)
def test_greedy_threshold(world, threshold, expected):
    assert within(accuracy(world, ConfidenceThreshold(threshold)), expected)


def test_the_boundary_of_the_threshold_belongs_to_it_unless_strict():
    world = Shuffle(n=2, **EXACT)
    assert decode(world, ConfidenceThreshold(0.5), 1)[2].forwards == (1,)
    assert decode(world, ConfidenceThreshold(0.5, strict=True), 1)[2].forwards == (2,)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("factor", "variant", "expected"),
    [
        *((factor, "published", 1.0) for factor in (0.7, 1.0, 1.3)),
        *((factor, "published", 0.5) for factor in (1.6, 1.9)),
        *((factor, "copied", 0.5) for factor in (0.7, 1.0, 1.3)),
    ],
)
def test_the_factor_rule_on_a_shuffle(factor, variant, expected):
    assert within(accuracy(Shuffle(n=6), Factor(factor, variant)), expected)


def test_the_factor_rule_keeps_the_last_two_apart_up_to_three_halves():
    world = Shuffle(n=2, **EXACT)
    assert decode(world, Factor(1.5), 1)[2].forwards == (2,)
    assert decode(world, Factor(1.51), 1)[2].forwards == (1,)


@pytest.mark.parametrize(
    ("rule", "together"),
    [
        (EntropyThreshold(math.log(2) - 0.01), False),
        (EntropyThreshold(math.log(2) + 0.01), True),
        (EntropyBound(math.log(2) - 0.01), False),
        (EntropyBound(math.log(2) + 0.01), True),
        (EntropyBound(0.99, unit="bits"), False),
        (EntropyBound(1.01, unit="bits"), True),
    ],
)
def test_entropy_rules_take_the_last_two_of_a_shuffle_together_from_one_bit_on(rule, together):
    expected = 0.5 if together else 1.0
    assert within(accuracy(Shuffle(n=6), rule), expected)


def test_exact_ties_give_one_token_everywhere():
    _, texts, _ = decode(Shuffle(n=6, **EXACT), TopK(6), 5)
    assert all(len(set(text)) == 1 for text in texts)


# Sampling at temperature 1.


@pytest.mark.parametrize(("n", "expected"), [(6, 0.40188), (10, 0.38742)])
def test_one_step_sampling_on_replacing_one(n, expected):
    assert (1 - 1 / n) ** (n - 1) == pytest.approx(expected, abs=1e-5)
    assert within(accuracy(ReplaceRandom(n=n), TopK(n), sampler=Categorical()), expected)


@pytest.mark.parametrize(("order", "expected"), [("random", 0.7335), ("confidence", 0.532)])
def test_two_at_a_time_sampling_on_replacing_one(order, expected):
    rows = 2000
    measured = accuracy(ReplaceRandom(n=6), TopK(2, order), rows, Categorical())
    assert within(measured, expected, rows)


@pytest.mark.parametrize(("n", "k"), [(6, 1), (6, 2), (6, 4), (7, 3)])
def test_random_top_k_sampling_on_replacing_one(n, k):
    expected, missed, left = 0.0, 1.0, n
    while left:
        step = min(k, left)
        expected += missed * step / left * (1 - 1 / left) ** (step - 1)
        missed *= (1 - 1 / left) ** step
        left -= step
    measured = accuracy(ReplaceRandom(n=n), TopK(k, "random"), sampler=Categorical())
    assert within(measured, expected)


def test_sampling_a_shuffle_scores_like_greedy_decoding():
    assert within(accuracy(Shuffle(n=6), TopK(2), sampler=Categorical()), 0.3125)


@dataclass
class Given(Memory):
    """The tokens of the request's reference, (B, N)."""

    tokens: torch.Tensor


@dataclass(frozen=True)
class InOrder(Strategy):
    """Commits the tokens of the reference one at a time in a given order."""

    order: tuple[int, ...]

    def begin(self, request, snapshot):
        return Given(torch.tensor(request.reference))

    def decide(self, view, memory):
        column = torch.tensor(self.order)[view.step]
        return Decision(view.index == column[:, None] + view.snapshot.start, tokens=memory.tokens)


@pytest.mark.filterwarnings("ignore:.*confidence exactly 1:RuntimeWarning")
@pytest.mark.parametrize("world", [Shuffle(n=4, **EXACT), CHAIN, TABLE])
def test_one_at_a_time_the_loop_gives_every_answer_its_probability_in_every_order(world):
    joint = outcomes(world, "")
    length = max(map(len, joint))
    reference = tuple(tuple(ids_of(world, answer, length)) for answer in joint)
    request = Request(((),) * len(joint), length, reference=reference)
    for order in permutations(range(length)):
        result = Decoder(world, InOrder(order), WholeCanvas()).decode(request)
        assert result.sequences == reference
        for chance, confidences in zip(joint.values(), result.confidence_of, strict=True):
            assert math.prod(confidences) == pytest.approx(chance, rel=1e-5)


@pytest.mark.one_in(2)
@pytest.mark.filterwarnings("ignore:.*confidence exactly 1:RuntimeWarning")
@pytest.mark.parametrize("world", [Shuffle(n=3), CHAIN, TABLE], ids=["shuffle", "chain", "table"])
@pytest.mark.parametrize("order", ["random", "entropy", "left to right"])
def test_one_at_a_time_sampling_reproduces_the_joint(world, order):
    rows = 1500
    schedule = Blocks(1) if order == "left to right" else WholeCanvas()
    select = TopK(1) if order == "left to right" else TopK(1, order)
    joint = outcomes(world, "")
    length = max(map(len, joint))
    decoder = Decoder(world, select, schedule, sampler=Categorical())
    result = decoder.decode(Request(((),) * rows, length))
    texts = [world.tokenizer.decode(list(sequence)) for sequence in result.sequences]
    assert set(texts) <= set(joint)
    expected = {answer: rows * chance for answer, chance in joint.items()}
    chi_square = sum((texts.count(a) - e) ** 2 / e for a, e in expected.items())
    freedom = len(joint) - 1
    # four standard deviations of a chi-square distribution above its mean
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)
    for sequence, confidences in zip(result.sequences, result.confidence_of, strict=True):
        answer = world.tokenizer.decode(list(sequence))
        assert math.prod(confidences) == pytest.approx(joint[answer], rel=1e-4)


def test_choosing_by_the_confidence_of_the_sample_prefers_likely_tokens():
    world = Table(outcomes={"aa": 0.49, "ab": 0.21, "ba": 0.21, "bb": 0.09})
    rows = 1500
    decoder = Decoder(world, TopK(1, "confidence"), WholeCanvas(), sampler=Categorical())
    result = decoder.decode(Request(((),) * rows, 2))
    share = result.sequences.count((0, 0)) / rows
    # the first commit is an a unless both columns drew a b, the second is drawn anew
    assert within(share, (1 - 0.3**2) * 0.7, rows)
