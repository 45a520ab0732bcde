"""Shipped parts never clash: any selection, transforms, filters, stop rule and sampler together."""

import math
import warnings
from dataclasses import replace

import pytest
from drawing import number
from hypothesis import given, settings
from hypothesis import strategies as st
from test_strategies import FILTERS, STOPS, STRATEGIES, TRANSFORMS, WIDTH, built, fits, new

from dllm_decode import load
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.sampling import Categorical, Greedy
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request
from dllm_decode.testing import FAR, MODELS, VOCAB, HashDenoiser

END = VOCAB.eot_ids[0]
# What a truncation leaves may be a single token, and that one may be the end of text.
TRUNCATIONS = {
    "top_k": {"top_k": 1},
    "top_p": {"top_p": 0.01},
    "min_p": {"min_p": 0.99},
    "top_h": {"top_h": 0.01},
}
SAMPLERS = {
    "greedy": Greedy(),
    "plain": Categorical(),
    **{
        f"{name} {source}": Categorical(confidence_from=source, **setting)
        for name, setting in TRUNCATIONS.items()
        for source in ("untempered", "sampled")
    },
}


def composed(name, transforms=(), filters=(), stop="never"):
    """A shipped strategy with further shipped parts, in the given order.

    Where a strategy stands for a whole rule, they are parts of that rule.
    """
    strategy = new(name, stop=stop)
    more = {
        slot: {
            key: part
            for option in options
            for key, part in getattr(
                built("strategy=threshold", f"strategy/{slot}=[{option}]"), slot
            ).items()
        }
        for slot, options in (("transforms", transforms), ("filters", filters))
    }
    if strategy.select.wraps:
        rule = Pipeline(strategy.select.rule, **more)
        return replace(strategy, select=replace(strategy.select, rule=rule))
    return replace(
        strategy,
        transforms={**strategy.transforms, **more["transforms"]},
        filters={**strategy.filters, **more["filters"]},
    )


def decode(strategy, sampler, *, model="early end", seed=0, pushed=0.0):
    """A decode of three rows; pushed: what is added to the ids that are never generated."""
    given_kind = MODELS[model]
    added = {**given_kind.get("added", {}), **dict.fromkeys(VOCAB.never_generated, pushed)}
    denoiser = HashDenoiser(seed=seed, **{**given_kind, "added": added})
    request = Request(
        ((1, 2, 3), (), (4,)), (8, 7, 5), (seed, 7, 9), reference=((0,) * 8, (1,) * 7, (2,) * 5)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return Decoder(denoiser, strategy, Blocks(WIDTH), sampler=sampler, record=True).decode(
            request
        )


def check(result):
    for row, tokens in enumerate(result.sequences):
        assert not set(tokens) & set(VOCAB.never_generated), f"row {row}: {tokens}"
        assert not result.undecided[row]
        for confidence in result.confidence_of[row]:
            assert 0.0 <= confidence <= 1.0, f"row {row}: {result.confidence_of[row]}"
    for change in result.trace:
        numbers = (change.scores[change.commit], change.probability[change.commit])
        assert not any(math.isnan(value) for part in numbers for value in part.tolist())


@pytest.mark.one_in(24)
@pytest.mark.parametrize("name", STRATEGIES)
def test_no_statistic_is_undefined_where_a_truncation_leaves_only_what_is_taken_away(name):
    # by default three of the samplers, for each strategy others
    first = STRATEGIES.index(name)
    some = [list(SAMPLERS)[(first + 3 * n) % len(SAMPLERS)] for n in range(number(3, 10))]
    for transform in ("defer_eot", "ban_eot"):
        for sampler in (SAMPLERS[key] for key in some):
            result = decode(composed(name, [transform]), sampler)
            check(result)
            if transform == "ban_eot":
                written = {token for row in result.sequences for token in row}
                assert name == "oracle" or END not in written


@pytest.mark.parametrize("order", [("ban_eot", "defer_eot"), ("defer_eot", "ban_eot")])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_banned_is_not_committed_because_it_was_deferred(order, sampler):
    result = decode(composed("entropy", order), SAMPLERS[sampler])
    check(result)
    assert END not in {token for row in result.sequences for token in row}


@settings(max_examples=number(12, 250))
@given(
    name=st.sampled_from(STRATEGIES),
    transforms=st.lists(st.sampled_from(TRANSFORMS), unique=True, max_size=3),
    filters=st.lists(st.sampled_from(FILTERS), unique=True, max_size=1),
    stop=st.sampled_from(STOPS),
    sampler=st.sampled_from(sorted(SAMPLERS)),
    model=st.sampled_from(sorted(MODELS)),
    seed=st.integers(0, 99),
    pushed=st.sampled_from([0.0, FAR, -FAR]),
)
def test_any_shipped_parts_decode_together_and_never_commit_a_banned_id(
    name, transforms, filters, stop, sampler, model, seed, pushed
):
    stop = stop if fits(name, stop) else "eot"
    strategy = composed(name, transforms, filters, stop)
    check(decode(strategy, SAMPLERS[sampler], model=model, seed=seed, pushed=pushed))


@pytest.fixture(scope="module")
def bundled():
    return load(model="llada")


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["entropy", "entropy_bound", "dream", "ccd"])
def test_the_bundled_model_decodes_with_deferral_and_the_nucleus_of_dream(bundled, name):
    loop = bundled.decoder
    strategy = composed(name, ["defer_eot"])
    sampler = Categorical(temperature=0.2, top_p=0.95, confidence_from="sampled")
    decoder = replace(bundled, decoder=replace(loop, strategy=strategy, sampler=sampler))
    result = decoder.generate(
        ["Copy: 1 Ada 2 Ben 3 Cleo", "Reverse: 1 Ada 2 Ben"], max_new_tokens=32, seed=1
    )
    never = set(loop.denoiser.vocab.never_generated)
    assert not any(never & set(tokens) for tokens in result.sequences)
    assert not any(result.undecided)
