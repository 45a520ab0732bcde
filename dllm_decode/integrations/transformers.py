"""A strategy inside transformers: what `generate(custom_generate=...)` calls.

from dllm_decode.integrations.transformers import StrategyGeneration

ids = model.generate(**inputs, max_new_tokens=64, custom_generate=StrategyGeneration("credit"))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.generation import (
    EosTokenCriteria,
    GenerateDecoderOnlyOutput,
    MaxLengthCriteria,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dllm_decode.api import TextDecoder, load
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.errors import CapabilityError, ConfigError, require

# What `generate` makes of its settings, and what is done here otherwise.
_OWN_PROCESSORS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)
_OWN_CRITERIA = (MaxLengthCriteria, EosTokenCriteria)

# What a custom function is handed and a strategy cannot follow, and what to do in its place.
_DRAFT = "drafts from left to right; a strategy decides several tokens in one pass as it is"
_INPUTS = {
    "inputs_embeds": "holds no token ids, which a strategy works on; give the prompt as input_ids",
    "assistant_model": _DRAFT,
    "negative_prompt_ids": "guides from left to right; set guidance=0.5 in StrategyGeneration",
}
_SETTINGS = {
    "prompt_lookup_num_tokens": _DRAFT,
    "assistant_early_exit": _DRAFT,
    "use_mtp": _DRAFT,
    "penalty_alpha": "searches from left to right; a strategy's transforms change probabilities",
    "dola_layers": "needs logits of single layers; leave it out",
    "constraints": "asks for beams; a strategy's filters say what may be written",
    "force_words_ids": "asks for beams; a strategy's filters say what may be written",
}
_SCORES = "has one entry per token from left to right; see the result's confidence_of instead"
_RECORDED = {"output_scores": _SCORES, "output_logits": _SCORES}


class StrategyGeneration:
    """A strategy for a model of transformers without causal mask, its settings those of `load`.

    `max_new_tokens`, `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`, `eos_token_id` and
    `return_dict_in_generate` of `generate` mean what they mean there. What works from left to right
    (further logits processors and stopping criteria, beams, drafting, scores) is refused by name.

    Attributes:
        result: of the last call, with forwards and finish reasons; None before the first.

    Examples:
        >>> from dllm_decode.models.loading import load_model
        >>> tiny = load_model("bundled:llada-tiny")
        >>> prompt = torch.tensor([tiny.tokenizer.encode("Copy: 1 Ada 2 Ben")])
        >>> decoding = StrategyGeneration(
        ...     "threshold", overrides={"model.mask_id": tiny.denoiser.vocab.mask_id}
        ... )
        >>> ids = tiny.denoiser.model.generate(prompt, max_new_tokens=8, custom_generate=decoding)
        >>> ids.shape[0], decoding.result.forwards[0] <= 8
        (1, True)
    """

    def __init__(self, strategy: str | Strategy = "credit", **settings: Any) -> None:
        """Settings are looked at when the first model comes.

        Args:
            strategy: the name of an option or a `Strategy`.
            **settings: of `dllm_decode.load`: `tokenizer`, `schedule`, `cache`, `sampler`,
                `overrides` (`{"model.mask_id": 5}` where neither model nor tokenizer names it).
        """
        self.result: Result | None = None
        self._strategy, self._settings = strategy, settings
        self._decoders: dict[tuple[int, tuple[int, ...]], TextDecoder] = {}

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Iterable[Any] = (),
        stopping_criteria: Iterable[Any] = (),
        generation_config: Any = None,
        **model_kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """What `generate` calls in place of its own loop.

        Args:
            model: the model.
            input_ids: (B, L) prompts, padded on the left.
            logits_processor: prepared by `generate`.
            stopping_criteria: likewise.
            generation_config: likewise.
            **model_kwargs: of the forward pass of a causal model, of which `attention_mask` (B, L)
                says where the prompts are.

        Returns:
            (B, L + N) ids, prompt and answer, padded on the right.

        Raises:
            CapabilityError: for what works from left to right.
            ConfigError: for prompts padded on the right, and as `load` does.
        """
        own = generation_config
        _refuse("logits_processor", logits_processor, _OWN_PROCESSORS)
        _refuse("stopping_criteria", stopping_criteria, _OWN_CRITERIA)
        _refuse_given(model_kwargs, _INPUTS)
        _refuse_given(vars(own), _SETTINGS | (_RECORDED if own.return_dict_in_generate else {}))
        require((own.num_beams or 1) == 1, f"num_beams must be 1, got {own.num_beams}")
        ends = own.eos_token_id
        ends = () if ends is None else tuple(ends) if isinstance(ends, list | tuple) else (ends,)
        decoder = self._decoder(model, ends)
        drawn: dict[str, Any] = {"temperature": 0.0}
        if own.do_sample:
            names = ("temperature", "top_k", "top_p", "min_p")
            drawn = {name: value for name in names if (value := getattr(own, name)) is not None}
            drawn = {"temperature": 1.0, "seed": int(torch.randint(2**62, (1,))), **drawn}
        self.result = result = decoder.generate(
            _prompts(input_ids, model_kwargs.get("attention_mask")),
            max_new_tokens=own.max_length - input_ids.shape[1],
            **drawn,
        )
        filler = decoder.decoder.denoiser.vocab.filler
        padding = filler if own.pad_token_id is None else own.pad_token_id
        sequences = torch.cat([input_ids, _padded(result.sequences, padding, input_ids)], 1)
        if own.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=sequences)
        return sequences

    def _decoder(self, model: Any, ends: tuple[int, ...]) -> TextDecoder:
        """The decoder of a model, made once."""
        key = (id(model), ends)
        if key not in self._decoders:
            found = load(model, self._strategy, **self._with_ends(ends))
            self._decoders = {key: found}  # of one model at a time, so that none is kept for good
        return self._decoders[key]

    def _with_ends(self, ends: tuple[int, ...]) -> dict[str, Any]:
        """The settings, with the ids that `generate` takes for the end of a text."""
        given = self._settings.get("overrides", ())
        if isinstance(given, dict):
            lines: Any = {**({"model.eot_ids": list(ends)} if ends else {}), **given}
        else:
            own = (given,) if isinstance(given, str) else tuple(given)
            lines = (*([f"model.eot_ids={list(ends)}"] if ends else []), *own)
        return {**self._settings, "overrides": lines}


def _refuse(name: str, given: Iterable[Any], known: tuple[type, ...]) -> None:
    """Refuse processors and criteria that are not understood here."""
    for part in given:
        if not isinstance(part, known):
            raise CapabilityError(
                f"{name} holds a {type(part).__name__}, which works on text that is written from "
                "left to right; a strategy does the same with transforms, filters and stop rules"
            )


def _refuse_given(given: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    """Refuse what would be ignored, each with its reason."""
    for name, reason in reasons.items():
        value = given.get(name)
        if isinstance(value, Tensor) or value:
            raise CapabilityError(f"{name} of generate does not work with a strategy: it {reason}")


def _prompts(ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    """The prompts without their padding."""
    lines = ids.tolist()
    if mask is None:
        return lines
    lengths = mask.sum(1).tolist()
    for row, flags in enumerate(mask.bool().tolist()):
        if flags != sorted(flags):
            raise ConfigError(
                f"prompt {row} must be padded on the left: set padding_side='left' of the tokenizer"
            )
    return [line[len(line) - length :] for line, length in zip(lines, lengths, strict=True)]


def _padded(rows: Iterable[tuple[int, ...]], padding: int, like: Tensor) -> Tensor:
    """Rows of different lengths as one tensor."""
    lines = [list(row) for row in rows]
    width = max(map(len, lines))
    return like.new_tensor([line + [padding] * (width - len(line)) for line in lines])
