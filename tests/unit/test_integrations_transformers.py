"""A strategy in `generate(custom_generate=...)` of transformers."""

import pytest
import torch
from transformers import GenerationConfig

from dllm_decode import CapabilityError, ConfigError, load
from dllm_decode.models import load_model


def StrategyGeneration(*parts, **settings):
    """The class, imported here: transformers' generation takes seconds."""
    from dllm_decode.integrations.transformers import StrategyGeneration

    return StrategyGeneration(*parts, **settings)


@pytest.fixture(scope="module")
def tiny():
    return load_model("bundled:llada-tiny")


@pytest.fixture(scope="module")
def decoding(tiny):
    return StrategyGeneration("threshold", overrides={"model.mask_id": tiny.denoiser.vocab.mask_id})


@pytest.fixture(scope="module")
def padded(tiny):
    """Two prompts, one longer than the other, padded on the left."""
    texts = ("Copy: 1 Ada 2 Ben 3 Cleo", "Copy: 1 Ada")
    rows = [tiny.tokenizer.encode_chat([{"role": "user", "content": text}]) for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return texts, ids, mask


def test_generate_gives_the_tokens_of_our_own_generate(tiny, decoding, padded):
    texts, ids, mask = padded
    ends = list(tiny.denoiser.vocab.eot_ids)
    made = tiny.denoiser.model.generate(
        ids, attention_mask=mask, max_new_tokens=24, eos_token_id=ends, pad_token_id=9,
        return_dict_in_generate=True, custom_generate=decoding,
    ).sequences  # fmt: skip
    own = load(tiny, "threshold").generate(texts, max_new_tokens=24)
    assert torch.equal(made[:, : ids.shape[1]], ids)
    for line, tokens in zip(made[:, ids.shape[1] :].tolist(), own.sequences, strict=True):
        assert line[: len(tokens)] == list(tokens)
        assert set(line[len(tokens) :]) <= {9}
    assert decoding.result.forwards == own.forwards


@pytest.mark.slow
def test_sampling_follows_torchs_seed_and_several_answers_differ(tiny, decoding, padded):
    def drawn(seed):
        torch.manual_seed(seed)
        return tiny.denoiser.model.generate(
            padded[1][:1], max_new_tokens=8, do_sample=True, temperature=5.0,
            num_return_sequences=3, eos_token_id=None, custom_generate=decoding,
        )  # fmt: skip

    first = drawn(1)
    assert torch.equal(first, drawn(1)) and not torch.equal(first, drawn(2))
    assert first.shape[0] == 3 and len({str(row) for row in first.tolist()}) > 1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"repetition_penalty": 2.0}, CapabilityError, "a RepetitionPenaltyLogitsProcessor, which"),
        ({"max_time": 1.0}, CapabilityError, "stopping_criteria holds a MaxTimeCriteria"),
        ({"num_beams": 2}, ConfigError, "num_beams must be 1, got 2"),
    ],
)
def test_what_works_from_left_to_right_is_refused(tiny, decoding, padded, settings, error, message):
    with pytest.raises(error, match=message):
        tiny.denoiser.model.generate(
            padded[1], max_new_tokens=4, custom_generate=decoding, **settings
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens of generate does not work"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha of generate does not work"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores of .*confidence"),
        ({"return_dict_in_generate": True, "output_logits": True}, "output_logits of .*confidence"),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(tiny, decoding, padded, settings, message):
    with pytest.raises(CapabilityError, match=message):
        tiny.denoiser.model.generate(
            padded[1], max_new_tokens=4, custom_generate=decoding, **settings
        )


def test_embeddings_in_place_of_ids_are_refused(tiny, decoding, padded):
    embedded = tiny.denoiser.model.get_input_embeddings()(padded[1])
    with pytest.raises(CapabilityError, match="give the prompt as input_ids"):
        tiny.denoiser.model.generate(
            inputs_embeds=embedded, max_new_tokens=4, custom_generate=decoding
        )


@pytest.mark.parametrize("name", ["assistant_model", "negative_prompt_ids"])
def test_inputs_that_a_caller_hands_over_itself_are_refused(tiny, decoding, padded, name):
    config, model = GenerationConfig(max_length=40), tiny.denoiser.model
    given = {"assistant_model": model, "negative_prompt_ids": padded[1]}[name]
    with pytest.raises(CapabilityError, match=f"{name} of generate does not work"):
        decoding(model, padded[1], generation_config=config, **{name: given})


def test_prompts_padded_on_the_right_are_refused(tiny, decoding, padded):
    config = GenerationConfig(max_length=40)
    _, ids, mask = padded
    with pytest.raises(ConfigError, match="prompt 1 must be padded on the left"):
        decoding(tiny.denoiser.model, ids, generation_config=config, attention_mask=mask.flip(1))
