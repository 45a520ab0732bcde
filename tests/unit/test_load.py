"""`load` and `with_`: names, objects, and models that are in memory already."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dllm_decode import CheckpointError, ConfigError, Request, load
from dllm_decode.decoding.cache import DualCache
from dllm_decode.decoding.sampling import Categorical
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.models import load_model
from dllm_decode.models.adapter import TransformersDenoiser
from dllm_decode.models.adopt import adopt
from dllm_decode.strategies.threshold import ConfidenceThreshold

PROMPT = "Copy: 1 Ada 2 Ben 3 Cleo"


@pytest.fixture(scope="module")
def bundled():
    return load_model("bundled:llada-tiny")


def network(**changes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 24,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "is_causal": False,
        "eos_token_id": 1,
        "bos_token_id": None,
        "pad_token_id": 0,
    }
    config = LlamaConfig(**(sizes | changes))
    config.mask_token_id = 2
    return LlamaForCausalLM(config)


def test_objects_decode_like_the_names_of_the_same_parts():
    named = load("toy_copy", "threshold", schedule="blocks", overrides=["schedule.length=4"])
    given = load("toy_copy", named.decoder.strategy, schedule=Blocks(4))
    assert given.decoder.strategy is named.decoder.strategy
    assert given.decoder.schedule == named.decoder.schedule
    assert given.generate("cab") == named.generate("cab")


def test_every_part_can_be_an_object():
    rule, blocks, dual, sampler = ConfidenceThreshold(0.8), Blocks(8), DualCache(), Categorical(0.5)
    decoder = load("llada", rule, schedule=blocks, cache=dual, sampler=sampler).decoder
    parts = (decoder.strategy, decoder.schedule, decoder.cache, decoder.sampler)
    assert parts == (rule, blocks, dual, sampler)


def test_with_exchanges_what_is_given_and_keeps_the_rest():
    decoder = load("toy_copy", "credit", schedule=Blocks(4))
    other = decoder.with_(strategy=ConfidenceThreshold(0.7))
    assert other.model is decoder.model
    assert other.decoder.schedule == Blocks(4)
    assert other.decoder.strategy == ConfidenceThreshold(0.7)
    assert decoder.decoder.strategy != other.decoder.strategy


def test_with_takes_names_and_their_settings():
    decoder = load("toy_copy").with_(
        strategy="threshold", overrides={"strategy.select.threshold": 0.6}
    )
    assert decoder.decoder.strategy.select.threshold == 0.6
    with pytest.raises(
        ConfigError, match=r"parts given by name \(strategy\), got 'model.mask_id=1'"
    ):
        decoder.with_(strategy="threshold", overrides=["model.mask_id=1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": 3}, "strategy must be an option's name or a Strategy, got 3"),
        ({"strategy": ConfidenceThreshold}, "got the class ConfidenceThreshold .give an object"),
        ({"schedule": ConfidenceThreshold(0.5)}, "schedule must be an option's name or a Schedule"),
        ({"cache": ["dual"]}, "cache must be an option's name or a CachePolicy"),
        ({"trace": 1}, "trace must be the name of an option, got 1"),
        ({"overrides": [1]}, "overrides must be texts like 'key=value', got 1"),
        ({"model": 5}, "model must be a ...ForCausalLM of transformers.*got int"),
        ({"tokenizer": object()}, "tokenizer belongs to a transformers model given as model"),
    ],
)
def test_what_is_neither_a_name_nor_the_right_object_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        load(**({"model": "toy_copy"} | arguments))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("group", ["strategy", "schedule", "cache", "sampler"])
def test_an_empty_name_is_no_default(group):
    message = f"^unknown option {group}=; {group} has"
    with pytest.raises(ConfigError, match=message):
        load("toy_copy", **{group: ""})
    with pytest.raises(ConfigError, match=message):
        load("toy_copy", "threshold").with_(**{group: ""})


def test_overrides_may_be_a_mapping_or_one_text():
    for overrides in ({"schedule.length": 4}, ["schedule.length=4"], "schedule.length=4"):
        assert load("toy_copy", overrides=overrides).decoder.schedule.length == 4


def test_a_loaded_model_is_used_as_it_is(bundled):
    decoder = load(bundled, "threshold")
    assert decoder.model is bundled
    assert decoder.generate(PROMPT, max_new_tokens=32).texts == (" 1 Ada 2 Ben 3 Cleo",)


def test_a_transformers_model_with_its_tokenizer_decodes_like_the_checkpoint(bundled):
    assert isinstance(bundled.denoiser, TransformersDenoiser)
    vocab = bundled.denoiser.vocab
    ids = [f"model.mask_id={vocab.mask_id}", f"model.eot_ids={list(vocab.eot_ids)}"]
    own = load(bundled.denoiser.model, tokenizer=bundled.tokenizer.backend, overrides=ids)
    theirs = load(bundled)
    assert own.generate(PROMPT).sequences == theirs.generate(PROMPT).sequences


def test_a_model_without_a_tokenizer_decodes_ids():
    model = adopt(network())
    request = Request(prompts=((5, 6, 7),), max_new_tokens=32)
    result = load(model).decoder.decode(request)
    assert len(result.sequences[0]) <= 32
    assert model.denoiser.vocab.mask_id not in result.sequences[0]


def test_a_causal_model_is_refused():
    with pytest.raises(CheckpointError, match="self-check"):
        adopt(network(is_causal=True))


def test_a_model_without_a_mask_is_refused():
    model = network()
    model.config.mask_token_id = None
    with pytest.raises(ConfigError, match=r"mask of LlamaForCausalLM is not known.*model.mask_id"):
        adopt(model)


def test_a_model_that_was_trained_to_edit_says_so_where_the_strategy_never_does(recwarn):
    checkpoint = Path(__file__).parents[1] / "golden" / "checkpoints" / "llada2"
    words = [f"model.checkpoint={checkpoint}", "model.edits=true", "model.mask_id=213"]
    words += ["model.block_length=8", "schedule.length=8"]
    with pytest.warns(UserWarning, match=r"was trained to write over its own tokens.*joint_thresh"):
        load("checkpoint", "threshold", overrides=words)
    recwarn.clear()
    decoder = load("checkpoint", "joint_threshold", overrides=words)
    assert not recwarn.list and decoder.model.description.edits
    assert decoder.generate([[3, 4, 5]], max_new_tokens=8).undecided == (0,)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("name", "words"), [("llada-tiny-1", 536), ("llada-early", 676), ("llada-tiny", 676)]
)
def test_every_bundled_checkpoint_decodes_a_list(name, words):
    decoder = load("checkpoint", "threshold", overrides=[f"model.checkpoint=bundled:{name}"])
    assert decoder.model.denoiser.vocab.size == words
    assert decoder.generate([PROMPT], max_new_tokens=32).texts == (" 1 Ada 2 Ben 3 Cleo",)


def test_the_half_trained_model_has_a_name_of_its_own(bundled):
    early = load("llada_early", "credit").model
    assert early.denoiser.fingerprint != bundled.denoiser.fingerprint
    assert early.tokenizer.encode(PROMPT) == bundled.tokenizer.encode(PROMPT)


def test_rows_that_each_fit_the_model_are_decoded_together():
    decoder = load("llada", "threshold")  # 256 positions
    prompts, lengths = ([5] * 200, [6] * 10), (10, 200)
    together = decoder.generate(list(prompts), max_new_tokens=list(lengths), batch_size=2)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        alone = decoder.generate(prompt, max_new_tokens=length)
        assert together[row].tokens == alone[0].tokens
    with pytest.raises(ConfigError, match="together need 260 positions, the model has 256"):
        decoder.generate([[5] * 200, [6] * 10], max_new_tokens=[60, 200])


def test_an_override_without_a_key_is_refused_in_python_as_on_the_command_line():
    with pytest.raises(ConfigError, match="cannot read '=3'; write key=value or group=option"):
        load("toy_copy", "threshold", overrides=["=3"])
