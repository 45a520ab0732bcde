import pytest
import torch
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import requests

from dllm_decode.decoding.cache import DualCache
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.sampling import Categorical, Greedy
from dllm_decode.decoding.schedule import Blocks, WholeCanvas
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request
from dllm_decode.errors import CapabilityError, ConfigError
from dllm_decode.models.toy import Copy, Shuffle
from dllm_decode.strategies.at_most import AtMost
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.entropy_bound import EntropyBound
from dllm_decode.strategies.eot import CommittedEot
from dllm_decode.strategies.fixed import FixedSchedule, TopK
from dllm_decode.strategies.freedave import FreeDave
from dllm_decode.strategies.rcr import RunningConfidence
from dllm_decode.strategies.suppress import BanTokens
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.testing import StoringHashDenoiser

RULES = {
    "threshold": lambda: ConfidenceThreshold(0.3),
    "scheduled threshold": lambda: ConfidenceThreshold(0.5, steps_per_block=3),
    "schedule": lambda: FixedSchedule(3),
    "one": lambda: TopK(1),
    "random": lambda: TopK(2, "random"),
    "entropy bound": lambda: EntropyBound(1.0),
    "pipeline": lambda: Pipeline(TopK(3), {"ban": BanTokens()}, {"two": AtMost(2)}),
}
SAMPLERS = (Greedy(), Categorical(1.0), Categorical(0.7, top_p=0.9, confidence_from="sampled"))


@pytest.mark.one_in(7)
@pytest.mark.parametrize("name", RULES)
@given(requests(), st.integers(1, 5), st.sampled_from(SAMPLERS), st.sampled_from([1.0, 4.0]))
def test_it_gives_the_tokens_of_the_rule_it_wraps_in_no_more_passes(
    name: str, case, drafts: int, sampler, passing: float
) -> None:
    prompts, length, block = case
    model, request = ChangingModel(passing=passing), Request(prompts, length)
    parts = {"schedule": Blocks(block), "sampler": sampler}
    rule = Decoder(model, RULES[name](), **parts).decode(request)
    drafted = Decoder(model, FreeDave(RULES[name](), drafts), record=True, **parts).decode(request)
    assert drafted.sequences == rule.sequences
    for place, passes in enumerate(drafted.passes):
        assert passes <= rule.forwards[place]
        assert passes <= drafted.forwards[place]
        steps = [change.steps[change.rows == place] for change in drafted.trace]
        assert int(torch.cat(steps).sum()) == rule.forwards[place], "as many steps as the rule"


def test_drafts_that_hold_save_passes_where_a_sampler_draws_as_well() -> None:
    world = Copy(n=8)
    request = Request((tuple(world.tokenizer.encode("abcdefgh")),), 9)
    for sampler in (Greedy(), Categorical(1.0)):
        rule = Decoder(world, TopK(2), sampler=sampler).decode(request)
        drafted = Decoder(world, FreeDave(TopK(2), 4), sampler=sampler).decode(request)
        assert drafted.sequences == rule.sequences
        assert drafted.passes < rule.passes == rule.forwards


def test_a_pass_that_was_carried_is_not_paid_twice() -> None:
    world = Shuffle(n=6)
    request = Request((tuple(world.tokenizer.encode("abcdef")),), 7)
    decoder = Decoder(world, FreeDave(ConfidenceThreshold(0.9), 2), WholeCanvas(), record=True)
    result = decoder.decode(request)
    carried = sum(
        int(change.carried.sum()) for change in result.trace if change.carried is not None
    )
    assert carried == len(result.trace) - 1, "every step but the first begins with a probe's"
    assert result.forwards[0] == 1 + result.probes[0]


def test_with_a_key_value_store_it_still_gives_the_tokens_of_the_rule() -> None:
    request = Request(((1, 2), (3,)), 6)
    for seed in range(4):
        decoder = [
            Decoder(StoringHashDenoiser(seed=seed), strategy, Blocks(3), DualCache())
            for strategy in (TopK(1), FreeDave(TopK(1), 1))
        ]
        rule, drafted = (each.decode(request) for each in decoder)
        assert all(len(a) == len(b) for a, b in zip(rule.sequences, drafted.sequences, strict=True))
        assert drafted.undecided == (0, 0)


def test_a_stop_rule_beside_it_ends_rows_with_the_same_text() -> None:
    model, request = ChangingModel(favourite=10, passing=25.0), Request(((1,), (2, 3)), 8)
    one, many = (
        Decoder(model, Pipeline(rule, stop={"eot": CommittedEot()}), Blocks(4)).decode(request)
        for rule in (TopK(1), FreeDave(TopK(1), 3))
    )
    assert one.sequences == many.sequences and "eot" in one.finish_reasons


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FreeDave(TopK(1), 0), "drafts must be a whole number >= 1, got 0"),
        (lambda: FreeDave(RunningConfidence(2)), r"rule \(RunningConfidence\) cannot be drafted"),
        (lambda: FreeDave(3), "rule must be a Strategy, got int"),
        (
            lambda: FreeDave(Pipeline(TopK(1), stop={"eot": CommittedEot()})),
            "stop rules belong beside freedave",
        ),
        (
            lambda: Pipeline(FreeDave(TopK(1)), filters={"two": AtMost(2)}),
            r"strategy\.select \(FreeDave\) stands for a whole rule; put two into it",
        ),
    ],
)
def test_what_cannot_be_drafted_is_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_rule_with_a_memory_is_refused_when_the_decode_begins() -> None:
    rule = Pipeline(TopK(1), {"credit": TraceCredit()})
    with pytest.raises(CapabilityError, match=r"rule \(Pipeline\) remembers earlier steps"):
        Decoder(ChangingModel(), FreeDave(rule)).decode(Request(((1,),), 4))
