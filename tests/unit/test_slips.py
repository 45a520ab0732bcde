"""Slips of the hand at the Python interface: a wrong kind of thing is refused where it is given."""

import json

import numpy as np
import pytest

import dllm_decode
from dllm_decode.decoding.cache import DualCache
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.sampling import Greedy
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.types import Request
from dllm_decode.decoding.voting import Voting
from dllm_decode.errors import CapabilityError, ConfigError, require_count, require_in_range
from dllm_decode.strategies.fixed import TopK
from dllm_decode.testing import HashDenoiser

REQUEST = Request(((1, 2), (3,)), 4)
PROMPTS = "prompts must be a sequence of prompts, each a sequence of token ids"


@pytest.fixture(scope="module")
def text_decoder():
    return dllm_decode.load("toy_copy", "threshold")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": (1, 2, 3)}, f"{PROMPTS}; row 0 is 1"),
        ({"prompts": ((1,), "text")}, "prompt 1 must hold token ids"),
        ({"prompts": "text"}, f"{PROMPTS}, got 'text'"),
        ({"prompts": 5}, f"{PROMPTS}, got 5"),
        ({"seeds": 3}, "seeds must be a sequence with a whole number per prompt, got 3"),
        ({"fixed": {0: 3}}, "fixed must be a sequence with a mapping or None per prompt, got {0"),
        ({"fixed": ([3],)}, r"fixed of row 0 must be a mapping or None, got \[3\]"),
        ({"reference": 3}, "reference must be a sequence with a sequence of token ids per prompt"),
        ({"parameters": {"a": 1}}, "parameters must be a sequence with a mapping or None per"),
        ({"parameters": (0.5,)}, r"parameters of row 0 must be a mapping or None, got 0\.5"),
        ({"max_new_tokens": [4, 5]}, r"must be one number or one per prompt \(1\), got 2"),
        ({"max_new_tokens": [0]}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"max_new_tokens": "4"}, "max_new_tokens must be a whole number >= 1, got '4'"),
        ({"max_new_tokens": np.bool_(True)}, "max_new_tokens must be a whole number >= 1, got"),
        ({"max_new_tokens": np.int64(0)}, "max_new_tokens must be a whole number >= 1, got"),
        ({"max_new_tokens": 2**20 + 1}, "max_new_tokens must be at most 1048576, got 1048577"),
    ],
)
def test_a_request_names_what_is_of_the_wrong_kind(values, message):
    with pytest.raises(ConfigError, match=message):
        Request(**{"prompts": ((1,),), "max_new_tokens": 4, **values})


@pytest.mark.parametrize("lengths", [[4, 5], np.array([4, 5]), (np.int64(4), np.int64(5))])
def test_lists_and_numbers_of_numpy_are_kept_as_those_of_python(lengths):
    request = Request([[1], [2]], lengths, seeds=np.array([7, 8]), fixed=[None, {0: 3}])
    assert request == Request([[1], [2]], (4, 5), (7, 8), (None, {0: 3}))
    assert json.dumps((request.max_new_tokens, request.seeds)) == "[[4, 5], [7, 8]]"
    assert type(Request(((1,),), np.int64(4)).max_new_tokens) is int


def test_an_array_of_prompts_is_decoded_as_tuples_are():
    decoder = Decoder(HashDenoiser(), TopK(1))
    expected = decoder.decode(Request(((1, 2), (3, 4)), 4)).sequences
    assert decoder.decode(Request(np.array([[1, 2], [3, 4]]), 4)).sequences == expected


@pytest.mark.parametrize("value", [True, np.bool_(True), 2.0, np.float64(2), "2", None, [2], 0])
def test_only_whole_numbers_are_counts(value):
    with pytest.raises(ConfigError, match="size must be a whole number >= 1, got"):
        require_count("size", value)


def test_whole_numbers_of_numpy_are_settings_and_come_out_the_same(text_decoder):
    assert type(require_count("size", np.int32(2))) is int
    require_in_range("threshold", np.int64(1), 0, 1)
    decoder = Decoder(HashDenoiser(), TopK(np.int64(1)), sync_every=np.int64(2))
    assert type(decoder.sync_every) is int and type(decoder.candidates) is int
    engine = Engine(decoder, np.int64(2), np.int64(64))
    assert type(engine.max_batch) is int and type(engine.max_tokens_in_flight) is int
    assert engine.decode(REQUEST).sequences == decoder.decode(REQUEST).sequences
    texts = ["abc>", "cab>"]
    plain = text_decoder.generate(texts, max_new_tokens=4, batch_size=2, n=2, temperature=1.0)
    two = np.int64(2)
    same = text_decoder.generate(
        texts, max_new_tokens=np.int64(4), batch_size=two, n=two, temperature=1.0
    )
    assert same == plain
    assert Voting(two, "block_lengths", (two, two)).n == 2


def test_an_engine_needs_a_decoder_and_a_size(text_decoder):
    with pytest.raises(ConfigError, match=r"needs a Decoder, got a TextDecoder; .* decoder$"):
        Engine(text_decoder, 2)
    with pytest.raises(ConfigError, match="max_batch must be a whole number >= 1, got None"):
        Engine(text_decoder.decoder, None)


@pytest.mark.parametrize("given", ["text", None, [[1, 2]]])
def test_what_is_decoded_is_a_request(text_decoder, given):
    inner = text_decoder.decoder
    for decode in (text_decoder.decode, inner.decode, Engine(inner, 2).decode):
        with pytest.raises(ConfigError, match=r"decode needs a Request .*, got .*generate"):
            decode(given)


@pytest.mark.parametrize(
    ("place", "kind", "part", "got"),
    [
        ("strategy", "Strategy", None, "None"),
        ("strategy", "Strategy", TopK, r"the class TopK; give an object, TopK\(...\)"),
        ("strategy", "Strategy", Blocks(4), "a Blocks"),
        ("schedule", "Schedule", "blocks", "'blocks'; names of options are for dllm_decode.load"),
        ("schedule", "Schedule", Blocks, "the class Blocks; give"),
        ("schedule", "Schedule", TopK(1), "a TopK"),
        ("cache", "CachePolicy", "dual", "'dual'; names"),
        ("cache", "CachePolicy", DualCache, "the class DualCache; give"),
        ("cache", "CachePolicy", None, "None"),
        ("sampler", "Sampler", "greedy", "'greedy'; names"),
        ("sampler", "Sampler", Greedy, "the class Greedy; give"),
        ("sampler", "Sampler", 3, "a int"),
    ],
)
def test_a_part_is_an_object_of_its_kind(place, kind, part, got):
    message = f"^{place} must be an instance of a subclass of {kind}, or .*, got {got}"
    with pytest.raises(CapabilityError, match=message):
        Decoder(HashDenoiser(), **{"strategy": TopK(1), place: part})


def test_a_part_that_inherits_nothing_is_taken_for_what_it_can_do():
    class Borrowed:
        def __init__(self, part):
            self.part = part

        def __getattr__(self, name):
            return getattr(self.part, name)

    own = Decoder(HashDenoiser(), TopK(1), sampler=Borrowed(Greedy()))
    assert (
        own.decode(REQUEST).sequences == Decoder(HashDenoiser(), TopK(1)).decode(REQUEST).sequences
    )


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("text", [b"abc>", b""])
def test_bytes_are_no_prompt(text_decoder, kind, text):
    given = kind(text)
    message = f"prompt 0 must be a text, .* got {kind.__name__}; decode bytes to a text first"
    for call in (text_decoder.generate, text_decoder.stream, text_decoder.encode):
        with pytest.raises(ConfigError, match=message):
            list(call(given))
    with pytest.raises(ConfigError, match=message):
        text_decoder.generate([given])


def test_bytes_are_no_infill(text_decoder):
    for given in (b"abc", [b"abc"]):
        with pytest.raises(ConfigError, match=r"infill of prompt 0 must be .*, got b'abc'"):
            text_decoder.generate("abc>", infill=given)


@pytest.mark.parametrize("given", [3, "thinking", ["a"]])
def test_what_a_chat_template_is_given_has_names(text_decoder, given):
    with pytest.raises(ConfigError, match=r"chat_template_kwargs must be a mapping such as .*got"):
        text_decoder.generate("abc>", chat_template_kwargs=given)
