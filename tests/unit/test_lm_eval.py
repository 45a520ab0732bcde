"""The harness adapter, offline: requests, options, scores, chats, caches, whole runs."""

from __future__ import annotations

import copy
import functools
import json
import logging
import math
import os
import pickle
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

import lm_eval
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from dllm_decode.api import TextDecoder
from dllm_decode.console.processes import Terminated
from dllm_decode.decoding.sampling import Categorical, Greedy
from dllm_decode.errors import ConfigError, ModelOutputError
from dllm_decode.lm_eval import Answer, HarnessModel, log_likelihood, main, simple_evaluate
from dllm_decode.lm_eval.command import with_device
from dllm_decode.lm_eval.likelihood import windows
from dllm_decode.lm_eval.model import batch_size_of, wanted_device
from dllm_decode.lm_eval.options import LENGTHS, STOPS, read_options
from dllm_decode.lm_eval.overrides import as_override, quoted
from dllm_decode.models.text import CheckpointTokenizer
from dllm_decode.models.toy import Markov, Shuffle, Table

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "dllm_decode" / "models" / "assets" / "llada-tiny"


def asked(context: str, **options) -> Instance:
    return Instance("generate_until", {}, (context, options), 0)


def scored(*args: str) -> Instance:
    kind = "loglikelihood" if len(args) == 2 else "loglikelihood_rolling"
    return Instance(kind, {}, args, 0)


@pytest.fixture(scope="module")
def shuffle() -> HarnessModel:
    return HarnessModel(model="toy_shuffle", strategy="sequential", schedule="whole", batch_size=4)


@pytest.fixture(scope="module")
def copying() -> HarnessModel:
    return HarnessModel(model="toy_copy", strategy="sequential", schedule="whole", batch_size=4)


@pytest.fixture(scope="module")
def bundled() -> HarnessModel:
    return HarnessModel(
        "bundled:llada-tiny", strategy="threshold", schedule="whole", batch_size=4, mc_num=8
    )


@pytest.fixture
def asked_ids(monkeypatch) -> list[tuple[int, ...]]:
    """The prompts of everything that is decoded."""
    seen: list[tuple[int, ...]] = []
    decode = TextDecoder.decode

    def spy(self, request, **options):
        seen.extend(request.prompts)
        return decode(self, request, **options)

    monkeypatch.setattr(TextDecoder, "decode", spy)
    return seen


# Answers.

ANSWER = Answer("ab cd", {"forwards": 3, "tokens": 2})


@pytest.mark.parametrize("gold", ["ab cd", 4, 4.5, None, ["a"], ANSWER, ""])
def test_a_gold_answer_of_any_type_can_be_made_an_answer_as_the_harness_does(gold):
    assert type(ANSWER)(gold) == str(gold)
    assert type(ANSWER)(gold).stats == {}


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy]
    + [
        lambda answer, n=n: pickle.loads(pickle.dumps(answer, n))
        for n in range(pickle.HIGHEST_PROTOCOL + 1)
    ],
)
def test_copies_and_pickles_keep_the_cost(copied):
    again = copied(ANSWER)
    assert (type(again), again, again.stats) == (Answer, "ab cd", ANSWER.stats)


@pytest.mark.parametrize(
    "used",
    [
        str.strip, str.lower, str.split, str.encode, str.title, len, hash, repr, list, json.dumps,
        lambda text: text[1:3], lambda text: text[::-1], lambda text: text + "!",
        lambda text: text * 2, lambda text: f"{text:>9}", lambda text: text.replace("a", "b"),
        lambda text: "-".join([text, text]), lambda text: text == "ab cd",
        lambda text: "b" in text, lambda text: {text: 1}["ab cd"], lambda text: text % (),
    ],
)  # fmt: skip
def test_an_answer_does_what_a_text_does(used):
    assert used(ANSWER) == used("ab cd")


# Options.


def sampler_of(options, configured=None):
    return read_options(options, 8).sampler(configured or Greedy())


GREEDY = [
    {},
    {"temperature": 0},
    {"temperature": 0.0},
    {"temperature": "0"},
    {"temperature": "0.0"},
    {"temperature": 0, "top_p": 1.0},
    {"temperature": 0, "top_p": 0.5, "top_k": 5, "min_p": 0.1},
    {"temperature": 0, "do_sample": True},
    {"temperature": "0.0", "do_sample": "true", "top_k": 50},
    {"do_sample": False},
    {"do_sample": False, "temperature": 0.7, "top_p": 0.9},
    {"do_sample": "False", "temperature": 1},
    {"top_p": 0.9},
    {"top_k": 50, "min_p": 0.1},
    {"temperature": None, "do_sample": None},
]


@pytest.mark.parametrize("options", GREEDY)
def test_a_request_is_greedy_unless_it_asks_for_more(options):
    assert sampler_of(options) == Greedy()


@pytest.mark.parametrize("options", [o for o in GREEDY if {"temperature", "do_sample"} & set(o)])
def test_temperature_zero_is_greedy_for_a_sampler_that_draws_as_well(options):
    if any(value is not None for value in options.values()):
        assert sampler_of(options, Categorical(0.7, top_p=0.9)) == Categorical(0.0, top_p=0.9)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"do_sample": True}, Categorical(1.0)),
        ({"do_sample": "true"}, Categorical(1.0)),
        ({"do_sample": True, "top_p": 0.9}, Categorical(1.0, top_p=0.9)),
        ({"temperature": 0.7}, Categorical(0.7)),
        ({"temperature": "0.7", "top_k": "50"}, Categorical(0.7, top_k=50)),
        ({"temperature": 1, "top_k": -1}, Categorical(1.0, top_k=0)),
        ({"temperature": 0.7, "min_p": 0.1, "top_k": 5.0}, Categorical(0.7, top_k=5, min_p=0.1)),
    ],
)
def test_do_sample_or_a_temperature_draws(options, expected):
    assert sampler_of(options) == expected
    assert type(sampler_of(options).top_k) is int


def test_a_configured_sampler_gives_what_a_request_leaves_open():
    configured = Categorical(0.2, top_p=0.95, confidence_from="sampled")
    assert sampler_of({}, configured) is configured
    assert sampler_of({"do_sample": True}, configured) == configured
    assert sampler_of({"top_k": 5}, configured) == replace(configured, top_k=5)
    assert sampler_of({"temperature": 0.7}, configured) == replace(configured, temperature=0.7)
    silent = replace(configured, temperature=0.0)
    assert sampler_of({"do_sample": True}, silent) == replace(configured, temperature=1.0)


def test_truncations_that_change_nothing_are_said(caplog):
    assert sampler_of({"min_p": 0.1, "top_p": 0.9}) == Greedy()  # said once, so in no other test
    assert "top_p, min_p without temperature or do_sample: true changes nothing" in caplog.text


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": 3}, "unknown option 'colour'"),
        ({"num_beams": 10}, "num_beams is not supported, got 10"),
        ({"max_length": 64}, "max_length counts the context"),
        ({"model.dtype": "float16"}, r"unknown option 'model\.dtype'"),
        ({"temperature": "warm"}, "temperature must be a number, got 'warm'"),
        ({"temperature": True}, "temperature must be a number, got True"),
        ({"temperature": [1]}, "temperature must be a number"),
        ({"temperature": -1}, "temperature must lie in"),
        ({"temperature": math.nan}, "temperature must lie in"),
        ({"temperature": 1, "top_p": 0}, "top_p must lie in"),
        ({"temperature": 1, "top_k": 2.5}, "top_k must be a whole number"),
        ({"do_sample": "perhaps"}, "do_sample must be true or false, got 'perhaps'"),
        ({"do_sample": 3}, "do_sample must be true or false, got 3"),
        ({"until": 3}, "until must be a text or a list of texts, got 3"),
        ({"stop": ["a", 3]}, r"stop must be a text or a list of texts, got \['a', 3\]"),
        *(
            ({"max_gen_toks": value}, "max_gen_toks must be a whole number >= 1")
            for value in (0, -1, 1.5, "many", True, math.inf, math.nan, [4])
        ),
        ({"strategy.select.treshold": 1}, "treshold"),
        ({"strategy": "credits"}, "did you mean strategy=credit"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_decoded(
    shuffle, asked_ids, options, message
):
    with pytest.raises(ConfigError, match=message):
        shuffle.generate_until([asked("abc>", max_gen_toks=3), asked("abc>", **options)])
    assert asked_ids == []


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"repetition_penalty": 1.0}])
def test_options_that_ask_for_nothing_are_fine(options):
    assert read_options(options, 8) == read_options({}, 8)


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("value", [6, "6", 6.0])
def test_a_length_goes_by_every_name_it_has_in_the_harness(name, value):
    assert read_options({name: value}, 8).length == 6
    assert read_options({name: None}, 8).length == 8


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", STOPS)
@pytest.mark.parametrize("value", ["c", ["zz", "c"], ("c",), ["", "d", "c"], ["c", "d"]])
def test_an_answer_ends_at_the_first_stop_text_by_every_name(copying, name, value):
    (answer,) = copying.generate_until([asked("abcd>", max_gen_toks=4, **{name: value})])
    assert (answer, answer.stats["tokens"], answer.stats["slots"]) == ("ab", 2, 4)


# Generation.


def test_the_model_is_registered():
    assert get_model("dllm_decode") is HarnessModel


def test_answers_carry_their_forwards_and_survive_a_cache(shuffle):
    (answer,) = shuffle.generate_until([asked("abcdef>", max_gen_toks=6)])
    assert sorted(answer) == list("abcdef")
    assert answer.stats == {"forwards": 6, "tokens": 6, "slots": 6, "finish_reason": "length"}
    again = pickle.loads(pickle.dumps(answer))
    assert (again, again.stats) == (answer, answer.stats)


def test_requests_of_different_lengths_and_options_keep_their_places(shuffle):
    requests = [
        asked("abc>", max_gen_toks=3),
        asked("abcdef>", max_gen_toks=6, **{"strategy.select.tokens_per_step": 6}),
        asked("abcd>", max_new_tokens=4),
    ]
    answers = shuffle.generate_until(requests)
    assert [answer.stats["forwards"] for answer in answers] == [3, 1, 4]
    assert [answer.stats["slots"] for answer in answers] == [3, 6, 4]


@pytest.mark.slow
def test_a_batch_does_not_change_an_answer(shuffle):
    requests = [asked("abcdef>", max_gen_toks=6, temperature=1.0) for _ in range(5)]
    small = HarnessModel(model="toy_shuffle", strategy="sequential", schedule="whole", batch_size=1)
    assert shuffle.generate_until(requests) == small.generate_until(requests)
    assert len(set(shuffle.generate_until(requests))) > 1


def test_a_document_is_decoded_with_its_own_seed_whatever_stands_beside_it(shuffle):
    def of(number: int) -> Instance:
        options = {"max_gen_toks": 6, "temperature": 1.0}
        return Instance("generate_until", {}, ("abcdef>", options), 0, ("t", number, 1))

    all_of_them = [of(number) for number in range(6)]
    together = shuffle.generate_until(all_of_them)
    assert shuffle.generate_until(all_of_them[3:]) == together[3:]  # the others came from a cache
    assert shuffle.generate_until(all_of_them[1::2]) == together[1::2]  # another process has them
    repeated = shuffle.generate_until([all_of_them[0]] * 6)
    assert repeated[0] == together[0] and len(set(repeated)) > 1


@pytest.mark.one_in(3)
@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_length_that_fits_alone_fits_in_company(shuffle, length):
    alone = shuffle.generate_until([asked("abcdef>", max_gen_toks=length)])
    beside = shuffle.generate_until(
        [asked("abc>", max_gen_toks=64), asked("abcdef>", max_gen_toks=length)]
    )
    assert beside[1] == alone[0] and len(alone[0]) == length


class Limited(Shuffle):
    """A world whose model takes ten positions."""

    max_length = 10


@pytest.fixture
def limited(shuffle) -> HarnessModel:
    world = Limited(n=6)
    model = copy.copy(shuffle)
    decoder = replace(shuffle.text.decoder, denoiser=world)
    model.text = replace(shuffle.text, model=world, decoder=decoder)
    model._decoders, model.costs = {(): model.text}, {}
    return model


GOOD = asked("abc>", max_gen_toks=3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (asked("a?c>", max_gen_toks=3), "contains '?'"),
        (asked(None, max_gen_toks=3), "the context must be a text, got None"),
        (asked(["abc>"], max_gen_toks=3), "must be a text"),
        (asked("\ud83d", max_gen_toks=3), "contains"),
        (asked("abc>", max_gen_toks=10), "leave no room for the context"),
        (asked("abc>", max_gen_toks=11), "leave no room for the context"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_request_that_cannot_be_decoded_costs_itself_only(limited, caplog, bad, message, place):
    requests = [GOOD, asked("bca>", max_gen_toks=3)]
    expected = limited.generate_until(requests)
    requests.insert(place, bad)
    answers = limited.generate_until(requests)
    answer = answers.pop(place)
    assert answers == expected
    assert (answer, answer.stats["finish_reason"], answer.stats["tokens"]) == ("", "error", 0)
    assert message in answer.stats["error"]
    assert "1 of 3 requests could not be decoded" in caplog.text and message in caplog.text
    assert limited.costs["None"].failed == 1


def test_a_row_that_fails_while_decoding_costs_itself_only(limited, monkeypatch, caplog):
    call = Shuffle.__call__

    def fails(self, tokens, live, index, plan):
        logits = call(self, tokens, live, index, plan)
        bad = (tokens == 5).any(1)  # rows with an f in them
        return torch.where(bad[:, None, None], torch.nan, logits)

    monkeypatch.setattr(Shuffle, "__call__", fails)
    stored: dict = {}
    limited.set_cache_hook(Hook(stored))
    found = limited.generate_until([asked("abf>", max_gen_toks=3), GOOD, GOOD])
    assert [key for key in stored if "abf" in str(key)] == [] and "abc" in str(stored)
    assert "error" in found[0].stats and found[0] == ""
    assert [sorted(answer) for answer in found[1:]] == [list("abc")] * 2


def test_a_context_that_is_too_long_loses_its_beginning(limited, asked_ids, caplog):
    fits, long = asked("abcd>", max_gen_toks=4), asked("f" * 6 + "abcd>", max_gen_toks=4)
    answers = limited.generate_until([fits, long])
    assert asked_ids[1] == limited.encode("fabcd>")
    assert answers[1].stats["context_cut"] == 5
    assert answers[0].stats.keys() == {"forwards", "tokens", "slots", "finish_reason"}
    assert "1 of 2 requests had a context longer than the model takes" in caplog.text
    assert limited.costs["None"].contexts_cut == 1


@pytest.mark.slow
def test_an_empty_context_is_a_context(bundled, asked_ids):
    one, two = bundled.generate_until([asked("", max_gen_toks=32), asked("Ada", max_gen_toks=32)])
    assert "error" not in one.stats and "error" not in two.stats
    assert asked_ids[0] == ()


# Log-likelihoods.


@pytest.mark.parametrize(
    ("world", "answers"),
    [
        (Table(outcomes={"ab": 4, "ba": 4, "aa": 2}, noise=0.0, floor=0.0), ("ab", "aa")),
        (Table(outcomes={"abc": 5, "bca": 3, "aab": 1, "cab": 1}, noise=0.0, floor=0.0),
         ("abc", "aab", "bca")),
        (Shuffle(n=4, noise=0.0, floor=0.0), ("abcd", "dcba")),
        (Markov(noise=0.0, floor=0.0), ()),
    ],
)  # fmt: skip
def test_enumerated_log_likelihood_equals_the_exact_log_joint(world, answers):
    prompt = world.tokenizer.encode(world.default_prompt)
    for answer in answers or (world.default_prompt[:3] or world.symbols[:1] * 3,):
        ids = [world.symbols.index(symbol) for symbol in answer]
        chance = world.probability(world.default_prompt, answer)
        if chance == 0 or len(answer) < int(world.lengths(_items(world))[0]):
            continue
        assert log_likelihood(world, prompt, ids) == pytest.approx(math.log(chance), abs=1e-9)


def _items(world):
    return torch.tensor([[world.symbols.index(s) for s in world.default_prompt] or [-1]])


@pytest.mark.slow
def test_the_random_estimate_agrees_with_the_exact_value():
    world = Table(outcomes={"abc": 5, "bca": 3, "aab": 1, "cab": 1}, noise=0.0, floor=0.0)
    ids = [world.symbols.index(symbol) for symbol in "abc"]
    draws = [log_likelihood(world, [], ids, draws=6, seed=seed) for seed in range(400)]
    exact = math.log(0.5)
    mean = sum(draws) / len(draws)
    spread = math.sqrt(sum((d - mean) ** 2 for d in draws) / len(draws) / (len(draws) - 1))
    assert abs(mean - exact) < 4.5 * spread
    assert len(set(draws)) > 1


def test_an_empty_continuation_is_certain(shuffle):
    assert log_likelihood(Shuffle(n=3), [], []) == 0.0


def test_what_is_longer_than_the_model_is_refused():
    with pytest.raises(ConfigError, match="need 11 positions, the model has 10"):
        log_likelihood(Limited(n=6), [0], [0] * 10)


def test_a_model_that_gives_nan_is_named(monkeypatch):
    monkeypatch.setattr(Shuffle, "__call__", lambda *_: torch.full((1, 1, 99), torch.nan))
    with pytest.raises(ModelOutputError, match="NaN for a log-likelihood"):
        log_likelihood(Shuffle(n=6), [], [0])


def test_log_likelihoods_of_requests(shuffle):
    ((score, _),) = shuffle.loglikelihood([scored("abc>", "bca")])
    assert score == pytest.approx(math.log(1 / 6), abs=1e-4)
    (rolling,) = shuffle.loglikelihood_rolling([scored("abc")])
    assert rolling < 0


@pytest.mark.parametrize(
    ("prompt", "length", "limit", "expected"),
    [
        ([1, 2], 2, None, [([1, 2], [10, 11])]),
        ([1, 2], 2, 4, [([1, 2], [10, 11])]),
        ([1, 2], 2, 3, [([2], [10, 11])]),
        ([1, 2], 2, 2, [([], [10, 11])]),
        ([1, 2], 5, 3, [([], [10, 11, 12]), ([12], [13, 14])]),
        ([], 6, 3, [([], [10, 11, 12]), ([], [13, 14, 15])]),
        ([], 7, 3, [([], [10, 11, 12]), ([], [13, 14, 15]), ([14, 15], [16])]),
        ([1], 0, 3, [([1], [])]),
    ],
)
def test_long_texts_are_scored_in_windows_each_token_once(prompt, length, limit, expected):
    answer = list(range(10, 10 + length))
    found = windows(prompt, answer, limit)
    assert found == expected
    assert [token for _, part in found for token in part] == answer


@pytest.mark.parametrize("text", ["", "abc", "abcdefabcd", "abcdefabcdefabcdefabc"])
def test_a_rolling_likelihood_is_the_sum_of_its_windows(limited, text):
    ids = limited.encode(text)
    expected = sum(
        log_likelihood(Limited(n=6), context, part, batch=4)
        for context, part in windows((), ids, 10)
    )
    assert limited.loglikelihood_rolling([scored(text)]) == [pytest.approx(expected)]
    assert math.isfinite(expected)


@pytest.mark.parametrize("bad", [("a?c>", "abc"), (None, "abc"), ("abc>", "?")])
def test_a_request_that_cannot_be_scored_costs_itself_only(limited, caplog, bad):
    good = scored("abc>", "bca")
    expected = limited.loglikelihood([good])
    assert limited.loglikelihood([scored(*bad), good]) == [(-math.inf, False), *expected]
    assert "1 of 2 requests could not be scored" in caplog.text
    assert limited.loglikelihood_rolling([scored(bad[0] or "?"), scored("abc")])[1] < 0


def test_long_contexts_and_continuations_are_scored(limited):
    long = scored("f" * 20 + "abc>", "abc")
    cut = scored("fffabc>", "abc")
    assert limited.loglikelihood([long]) == limited.loglikelihood([cut])
    ((score, greedy),) = limited.loglikelihood([scored("abc>", "abcdef" * 4)])
    assert math.isfinite(score) and greedy is False


@pytest.mark.slow
@pytest.mark.one_in(3)
@pytest.mark.parametrize("strategy", ["sequential", "threshold", "credit"])
def test_greedy_is_what_the_decoder_writes_itself(strategy):
    model = HarnessModel(model="toy_shuffle", strategy=strategy, schedule="whole", batch_size=4)
    contexts = ["abcdef>", "abc>", "fedcba>"]
    lengths = [len(context) - 1 for context in contexts]
    own = model.generate_until(
        [asked(c, max_gen_toks=n) for c, n in zip(contexts, lengths, strict=True)]
    )
    requests = [scored(context, answer) for context, answer in zip(contexts, own, strict=True)]
    requests += [
        scored(context, answer[::-1]) for context, answer in zip(contexts, own, strict=True)
    ]
    requests += [scored("abc>", ""), scored("abc>", own[1][:2])]
    (shorter,) = model.generate_until([asked("abc>", max_gen_toks=2)])
    expected = [True] * 3 + [False] * 3 + [True, shorter == own[1][:2]]
    assert [greedy for _, greedy in model.loglikelihood(requests)] == expected
    drawing = HarnessModel(
        model="toy_shuffle", strategy=strategy, schedule="whole", sampler="categorical"
    )
    assert [greedy for _, greedy in drawing.loglikelihood(requests)] == expected


def test_one_decode_answers_for_all_choices_of_a_question(shuffle, asked_ids):
    shuffle.loglikelihood([scored("abc>", choice) for choice in ("abc", "bca", "cab", "ab", "b")])
    assert len(asked_ids) == 3  # one for each length


def test_the_last_word_of_a_context_may_join_the_continuation(bundled):
    prompt, answer = bundled._pair("1 A", "da 2 Ben")
    whole = bundled.encode("1 Ada 2 Ben")
    assert prompt + answer == whole and prompt == whole[: len(prompt)]
    assert bundled._pair("", "1 Ada") == ((), bundled.encode("1 Ada"))


@pytest.mark.parametrize("context", ["", "1 Ada"])
def test_what_a_tokenizer_puts_around_texts_is_never_scored(bundled, context):
    model = with_tokenizer(bundled, template_writes=False, tokenizer_writes=True, ends=True)
    around = model.text.model.tokenizer.encode("")
    prompt, answer = model._pair(context, " 2 Ben")
    assert len(around) == 2 and prompt == (around[0], *bundled.encode(context))
    assert answer == bundled.encode(" 2 Ben")
    bare = bundled.loglikelihood_rolling([scored(" 2 Ben")])
    assert model.loglikelihood_rolling([scored(" 2 Ben")]) != bare  # given the beginning of text
    assert model.loglikelihood_rolling([scored("")]) == [0.0]


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": "many"}, "batch_size must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"batch_size": 2.5}, "batch_size must be"),
        ({"max_batch_size": "x"}, "max_batch_size must be"),
        ({"mc_num": 0}, "mc_num must be"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"strategy": "credits"}, "did you mean strategy=credit"),
        ({"dtype": "float16"}, "unknown key dtype"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        HarnessModel(**{"model": "toy_shuffle", **arguments})


@pytest.mark.parametrize(
    ("given", "limit", "size"),
    [
        (3, None, 3), ("3", None, 3), (None, None, 16), ("auto", None, 16), ("auto:4", None, 16),
        ("auto", 8, 8), ("auto:4", "8", 8), (3, 8, 3), (30, 8, 8),
    ],
)  # fmt: skip
def test_batch_sizes_as_the_harness_passes_them(given, limit, size):
    assert batch_size_of(given, limit) == size


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_enough(caplog):
    for nobody in (None, "auto", ""):
        assert wanted_device(nobody) is None
    assert (wanted_device("cpu"), wanted_device("cuda:7")) == ("cpu", "cuda:7")
    made = HarnessModel("bundled:llada-tiny", device="cuda:0")
    assert str(made.text.model.denoiser.device) == "cpu"
    assert "there is no cuda:0" in caplog.text
    with pytest.raises(ConfigError, match=r"model\.device must be"):
        HarnessModel("bundled:llada-tiny", device="cuda:7")


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (["run", "--model", "dllm_decode"], True),
        (["--model=dllm_decode"], True),
        (["run", "--model", "dllm_decode", "--device", "cuda:0"], False),
        (["run", "--model", "dllm_decode", "--device=cpu"], False),
        (["run", "--model", "hf"], False),
        (["run", "-M", "dllm_decode", "-C", "device.yaml"], False),
        (["run", "-C", "device.yaml"], False),
        (["run", "--config=plain.yaml"], True),
        (["run", "--config", "missing.yaml"], False),
        (["ls", "tasks"], False),
        (["run", "--help"], False),
        ([], False),
    ],
)
def test_the_harnesss_default_device_is_nobodys_choice(words, added, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "device.yaml").write_text("device: cpu\n")
    (tmp_path / "plain.yaml").write_text("model: dllm_decode\n")
    assert with_device(words) == [*words, *(["--device", "auto"] if added else [])]


@pytest.mark.parametrize(
    "path",
    [
        "/x/it's", "/x/a=b", "/x/a b", "/x/(a)", "/x/a,b", "/x/[a]", "/x/{a}", "/x/a#b", "/x/a'",
        "C:\\x\\y", "C:\\x\\", "/x/a\\'b", '/x/"a"', "/x/ä", "null", "8", "true", "[a,b]", "a: b",
    ],
)  # fmt: skip
def test_a_path_is_taken_word_for_word(path):
    def read(word: str) -> object:
        return OverridesParser.create().parse_override(word).value()

    assert read(f"model.checkpoint={quoted(path)}") == path
    if path not in ("null", "8", "true", "[a,b]", "/x/[a]"):  # which mean something
        assert str(read(as_override("model.checkpoint", path))) == path


@pytest.mark.slow
def test_a_checkpoint_in_a_folder_with_any_name_is_found(tmp_path):
    folder = tmp_path / "it's a=b (x), [y]"
    folder.symlink_to(BUNDLED, target_is_directory=True)
    made = HarnessModel.create_from_arg_obj({"pretrained": str(folder)}, {"device": "cpu"})
    assert made.text.model.description.path == folder


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (True, "k=true"), (None, "k=null"), (0.8, "k=0.8"), ("[credit]", "k=[credit]"),
        ("a=b", "k='a=b'"), ("it's", "k='it\\'s'"), ("1,2", "k='1,2'"), (["a"], "k=['a']"),
    ],
)  # fmt: skip
def test_arguments_are_read_as_on_the_command_line(value, word):
    assert as_override("k", value) == word


@pytest.mark.slow
def test_what_stands_in_model_args_goes_before_the_harnesss_flags():
    made = HarnessModel.create_from_arg_obj(
        {"model": "toy_copy", "batch_size": 3}, {"batch_size": 1, "device": "cpu"}
    )
    assert made.batch_size == 3
    made = HarnessModel.create_from_arg_string("model=toy_copy,batch_size=3", {"batch_size": 1})
    assert made.batch_size == 3


# Chats.

CHATS = {
    "one": [{"role": "user", "content": "Copy: 1 Ada 2 Ben 3 Eva"}],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Copy: 1 Ada"},
    ],
    "turns": [
        {"role": "user", "content": "Copy: 1 Ada"},
        {"role": "assistant", "content": " 1 Ada"},
        {"role": "user", "content": "Copy: 1 Ben"},
    ],
}


def with_tokenizer(
    model: HarnessModel, *, template_writes: bool, tokenizer_writes: bool, ends=False
):
    """The model with a tokenizer whose template or post-processor writes a beginning of text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = PreTrainedTokenizerFast.from_pretrained(BUNDLED)
    begin = backend.all_special_tokens[0]
    end = backend.all_special_tokens[1]
    if tokenizer_writes:
        backend.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{begin} $A" + ends * f" {end}",
            special_tokens=[(word, backend.convert_tokens_to_ids(word)) for word in (begin, end)],
        )
    if template_writes:
        backend.chat_template = begin + backend.chat_template
    tokenizer = CheckpointTokenizer(backend, BUNDLED)
    made = copy.copy(model)
    text = replace(model.text, model=replace(model.text.model, tokenizer=tokenizer))
    made.text, made._decoders, made._chats, made._warned = text, {(): text}, {}, False
    return made


@pytest.mark.one_in(12)
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("tokenizer_writes", [False, True])
@pytest.mark.parametrize("template_writes", [False, True])
def test_a_conversation_has_the_ids_of_generate(
    bundled, asked_ids, chat, template_writes, tokenizer_writes
):
    model = with_tokenizer(
        bundled, template_writes=template_writes, tokenizer_writes=tokenizer_writes
    )
    model.text.generate([chat], max_new_tokens=32)
    text = model.apply_chat_template(chat)
    model.generate_until([asked(text, max_gen_toks=32)])
    assert asked_ids[0] == asked_ids[1] == tuple(model.text.model.tokenizer.encode_chat(chat))
    prompt, answer = model._pair(text, " 1 Ada")
    assert prompt == asked_ids[0] and model.text.model.tokenizer.decode(list(answer)) == " 1 Ada"
    if template_writes:  # the text alone says so, where it comes from a cache of requests
        model._chats.clear()
        assert model.encode(text) == asked_ids[0]


def test_a_plain_text_gets_what_the_tokenizer_puts_around_it(bundled):
    model = with_tokenizer(bundled, template_writes=False, tokenizer_writes=True)
    assert model.encode("Ada") == tuple(model.text.model.tokenizer.encode("Ada"))
    assert len(model.encode("Ada")) == 1 + len(bundled.encode("Ada"))


def test_a_reply_that_has_begun_is_continued_as_in_generate(bundled, asked_ids):
    chat = [CHATS["one"][0], {"role": "assistant", "content": "1 Ada"}]
    bundled.text.generate([chat], max_new_tokens=32)
    text = bundled.apply_chat_template(chat, add_generation_prompt=False)
    assert bundled.encode(text) == asked_ids[0]
    assert text.endswith("1 Ada")


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "given", [{"enable_thinking": False}, {"chat_template_args": {"enable_thinking": False}}]
)
def test_a_chat_template_gets_its_arguments(given):
    made = HarnessModel("bundled:llada-tiny", **given)
    backend = copy.deepcopy(made.text.model.tokenizer.backend)
    backend.chat_template = (
        "{% if enable_thinking == false %} no{% endif %}" + backend.chat_template
    )
    tokenizer = CheckpointTokenizer(backend, BUNDLED)
    made.text = replace(made.text, model=replace(made.text.model, tokenizer=tokenizer))
    assert made.apply_chat_template(CHATS["one"]).startswith(" no")
    assert made.settings != HarnessModel("bundled:llada-tiny").settings


def test_chats_are_decoded_and_named(bundled):
    (answer,) = bundled.generate_until(
        [asked(bundled.apply_chat_template(CHATS["one"]), max_gen_toks=32)]
    )
    assert answer == " 1 Ada 2 Ben 3 Eva" and answer.stats["forwards"] >= 1
    assert bundled.chat_template() and bundled.tokenizer_name == "bundled:llada-tiny"


@pytest.mark.slow
def test_a_chat_model_that_is_asked_without_its_template_says_so_once(bundled, caplog):
    def times(*contexts: str) -> int:
        model = with_tokenizer(bundled, template_writes=False, tokenizer_writes=False)
        caplog.clear()
        for context in contexts:
            model.generate_until([asked(context, max_gen_toks=32)])
            model.loglikelihood([scored(context, " 1 Ada")])
        return caplog.text.count("--apply_chat_template")

    assert times("Copy: 1 Ada 2 Ben", "Copy: 1 Ada") == 1
    assert times(bundled.apply_chat_template(CHATS["one"])) == 0  # a task may write it itself


# Answer caches.


class Hook:
    def __init__(self, stored: dict) -> None:
        self.dbdict = stored

    def add_partial(self, kind, args, answer):
        self.dbdict[kind, str(args)] = answer


def test_a_cache_of_another_configuration_is_refused(shuffle):
    stored: dict = {}
    other = HarnessModel(model="toy_shuffle", strategy="topk", schedule="whole")
    mine = copy.copy(shuffle)
    mine.set_cache_hook(Hook(stored))
    mine.set_cache_hook(Hook(stored))  # its own is fine
    with pytest.raises(ConfigError, match="holds answers of another configuration"):
        other.set_cache_hook(Hook(stored))


def test_answers_are_cached_as_they_come_and_failures_are_not(shuffle):
    model, stored = copy.copy(shuffle), {}
    model.set_cache_hook(Hook(stored))
    model.generate_until([GOOD, asked("a?>", max_gen_toks=3)])
    model.loglikelihood([scored("abc>", "abc"), scored("?", "abc")])
    model.loglikelihood_rolling([scored("abc"), scored("?")])
    assert len(stored) == 1 + 3


# Whole runs.


def tasks(folder: Path) -> TaskManager:
    """Tasks of every kind on a local file, without filters and with them."""
    rows = [
        {"q": "abc>", "a": "abc", "b": "aab", "n": 1}, {"q": "bca>", "a": "bca", "b": "bb", "n": 2},
    ]  # fmt: skip
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "score.py").write_text(
        "def grade(doc, results):\n"
        "    answer = results[0]\n"
        "    return {'right': float(sorted(answer) == sorted(doc['a'])),\n"
        "            'passes': answer.stats['forwards']}\n"
    )
    common = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        'test_split: test\ndoc_to_text: "{{q}}"\n'
    )
    generation = (
        "output_type: generate_until\n"
        'generation_kwargs: {until: ["?"], max_gen_toks: 3, temperature: 0.0, top_p: 1.0}\n'
    )
    exact = "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    accuracy = "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    regex = (
        "filter_list: [{name: letters, filter: [{function: regex, regex_pattern: '([a-f]+)'}, "
        "{function: take_first}]}]\n"
    )
    for name, text in {
        "plain": generation + 'doc_to_target: "{{a}}"\n' + exact,
        "column": generation + "doc_to_target: a\n" + exact,
        "number": generation + "doc_to_target: n\n" + exact,
        "several": generation + 'doc_to_target: "{{[a, b]}}"\n' + exact,
        "filtered": generation + 'doc_to_target: "{{a}}"\n' + exact + regex,
        "repeated": generation + 'repeats: 2\ndoc_to_target: "{{a}}"\n' + exact,
        "graded": generation
        + 'doc_to_target: ""\nprocess_results: !function score.grade\n'
        + "metric_list: [{metric: right, aggregation: mean, higher_is_better: true}, "
        + "{metric: passes, aggregation: mean, higher_is_better: false}]\n",
        "choice": 'output_type: multiple_choice\ndoc_to_choice: "{{[b, a]}}"\ndoc_to_target: 1\n'
        + 'target_delimiter: ""\n' + accuracy,
        "last_word": 'output_type: loglikelihood\ndoc_to_target: "{{a}}"\ntarget_delimiter: ""\n'
        + accuracy,
        "wrong_word": 'output_type: loglikelihood\ndoc_to_target: "{{b}}"\ntarget_delimiter: ""\n'
        + accuracy,
    }.items():  # fmt: skip
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}{text}")
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    # it asks pip and the operating system what there is, which takes longer than all the rest
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.mark.slow
def test_tasks_of_every_kind_show_forwards_and_tokens_per_forward(copying, tmp_path, offline):
    model = copy.copy(copying)
    model.costs = {}
    manager = tasks(tmp_path)
    names = ["plain", "column", "number", "several", "filtered", "repeated", "graded"]
    scores = ["choice", "last_word", "wrong_word"]
    results = simple_evaluate(
        model=model, tasks=[*names, *scores], task_manager=manager, bootstrap_iters=0
    )
    found = results["results"]
    for name in ("plain", "column", "several", "repeated"):
        assert found[name]["exact_match,none"] == 1.0, name
    assert found["number"]["exact_match,none"] == 0.0
    assert found["filtered"]["exact_match,letters"] == 1.0
    assert (found["graded"]["right,none"], found["graded"]["passes,none"]) == (1.0, 3.0)
    assert [found[name]["acc,none"] for name in scores] == [1.0, 1.0, 0.0]
    for name in names:
        assert found[name]["forwards,none"] == 3.0
        assert found[name]["tokens_per_forward,none"] == 1.0
        assert "undecoded,none" not in found[name]
    costs = results["config"]["decoding"]
    assert costs["plain"] == {
        "requests": 2, "forwards": 6, "tokens": 6, "contexts_cut": 0, "failed": 0,
        "tokens_per_forward": 1.0,
    }  # fmt: skip
    assert costs["repeated"]["requests"] == 4
    assert "forwards" not in str(found["choice"])


@pytest.fixture
def command(tmp_path, offline, monkeypatch):
    """Runs the command line in this process on the local tasks."""
    tasks(tmp_path)
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", functools.partial(TaskManager, include_defaults=False)
    )
    logger = logging.getLogger("lm_eval")
    for name, value in {"handlers": [], "propagate": True, "level": logging.INFO}.items():
        monkeypatch.setattr(logger, name, value)
    monkeypatch.setattr("lm_eval.utils._LOGGING_CONFIGURED", False)

    def run(*words: str, name: str = "plain", args: str = "strategy=sequential") -> int:
        return main([
            "run", "--model", "dllm_decode",
            "--model_args", f"model=toy_copy,schedule=whole,{args}",
            "--tasks", name, "--include_path", str(tmp_path), *words,
        ])  # fmt: skip

    return run


@pytest.mark.slow
def test_the_command_needs_no_device_and_writes_what_decoding_cost(command, tmp_path, capsys):
    before = sys.argv
    assert command("--output_path", str(tmp_path / "out")) == 0
    shown = capsys.readouterr().out
    assert "exact_match" in shown and "tokens_per_forward" in shown
    (file,) = (tmp_path / "out").rglob("results_*.json")
    written = json.loads(file.read_text())
    assert written["results"]["plain"]["forwards,none"] == 3.0
    assert written["config"]["decoding"]["plain"]["tokens"] == 6
    assert sys.argv is before and lm_eval.simple_evaluate is not simple_evaluate


def documented(language: str) -> str:
    """The block of docs/evaluate.md about the harness in a language."""
    text = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    text = text.partition("## lm-evaluation-harness")[2]
    return text.partition(f"```{language}\n")[2].partition("```")[0]


@pytest.mark.slow
def test_the_documented_command_prints_the_documented_table(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    shown = documented("bash").replace("\\\n", " ").partition("python -m dllm_decode.lm_eval ")[2]
    assert main(shlex.split(shown)) == 0
    assert documented("text") in capsys.readouterr().out


@pytest.mark.slow
def test_the_documented_python_runs(offline, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(compile(documented("python"), "docs/evaluate.md", "exec"), {})
    assert float(capsys.readouterr().out) > 1.0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"args": "strategy=credits"}, 2, "error: unknown option strategy=credits; did you mean"),
        ({"args": "colour=red"}, 2, "error: unknown key colour"),
        ({"name": "plane"}, 1, "error: ValueError: Tasks not found: plane"),
    ],
)
def test_errors_of_the_command_are_one_line(command, capsys, options, code, message):
    assert command(**options) == code
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown


def test_options_that_cannot_be_end_the_command_in_one_line(command, capsys):
    assert command("--gen_kwargs", "colour=3") == 2
    shown = capsys.readouterr().err
    assert "error: generation_kwargs: unknown option 'colour'" in shown
    assert "Traceback" not in shown


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("signal", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_ctrl_c_and_sigterm_end_the_command_with_a_word(command, capsys, monkeypatch, signal, code):
    monkeypatch.setattr(TextDecoder, "decode", lambda *_, **__: (_ for _ in ()).throw(signal))
    assert command() == code
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.slow
def test_a_request_that_cannot_be_decoded_shows_in_table_and_exit_code(command, tmp_path, capsys):
    rows = [{"q": q, "a": q[:3], "b": "", "n": 1} for q in ("abc>", "a?c>", "bca>")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command() == 1
    assert "undecoded" in capsys.readouterr().out


@pytest.mark.slow
def test_each_configuration_has_an_answer_cache_of_its_own(command, tmp_path):
    for args in ("strategy=sequential", "strategy=topk", "strategy=sequential"):
        assert command("--use_cache", str(tmp_path / "answers"), args=args) == 0
    assert len(list(tmp_path.glob("answers-*_rank0.db"))) == 2


# Several processes.


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "MASTER_ADDR is not set: start the processes with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, r"RANK must lie in \[0, 1\]"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE, which the launcher sets, must be a whole number"),
    ],
)
def test_processes_that_do_not_know_each_other_are_refused(variables, message, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        HarnessModel(model="toy_copy")


def run_command(folder: Path, *launcher: str) -> dict:
    words = ["run", "--model", "dllm_decode", "--tasks", "plain,last_word", "--include_path"]
    words += [str(folder), "--batch_size", "4", "--output_path", str(folder / "out")]
    words += ["--model_args", "model=toy_copy,strategy=sequential,schedule=whole"]
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "dllm_decode.lm_eval", *words],
        env={**os.environ, **offline}, cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = (folder / "out").rglob("results_*.json")
    return json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [(), ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")]
)
def test_one_process_and_two_give_the_same_results(launcher, tmp_path):
    tasks(tmp_path)
    rows = [{"q": f"{text}>", "a": text, "b": "", "n": 1} for text in ("abc", "bca", "cab")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = run_command(tmp_path, *launcher)
    assert written["results"]["plain"]["exact_match,none"] == 1.0
    assert written["results"]["last_word"]["acc,none"] == 1.0
    cost = written["config"]["decoding"]["plain"]
    assert (cost["requests"], cost["forwards"], cost["tokens"]) == (3, 9, 9)
