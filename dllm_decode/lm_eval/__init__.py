"""The lm-evaluation-harness as a client: `python -m dllm_decode.lm_eval --model dllm_decode ...`.

Needs the extra `lm-eval`. Importing this module registers the model `dllm_decode`; harness versions
that scan the entry point group `lm_eval.models` find it by themselves.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from dllm_decode.api import TextDecoder, build
from dllm_decode.config.compose import compose_checked
from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.denoiser import Denoiser
from dllm_decode.decoding.sampling import Categorical
from dllm_decode.decoding.types import Request
from dllm_decode.errors import ConfigError, ModelOutputError, require_count

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_length")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_SETTINGS_KEY = "dllm_decode settings"


class Answer(str):
    """A text that carries what its decode cost through the harness.

    stats: `forwards`, `tokens` (delivered), `slots`, `finish_reason`. Filters that make a new
    string lose it, so read it in a task's `process_results`. Survives the harness's answer cache.
    """

    stats: dict[str, Any]

    def __new__(cls, text: str, stats: Mapping[str, Any]) -> Answer:
        made = super().__new__(cls, text)
        made.stats = dict(stats)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Answer, (str(self), self.stats)


@register_model("dllm_decode")
class HarnessModel(LM):  # type: ignore[misc]
    """A decoder as a model of the harness.

    pretrained: checkpoint, as `model.checkpoint` takes it; model, strategy, schedule, cache,
    sampler: options of the configuration groups; further arguments: overrides with their full key
    (`strategy.select.threshold=0.8`). batch_size: requests decoded together (`auto`: 16);
    max_new_tokens: columns of a request that asks for no length; seed: request i is decoded with
    seed + i; mc_num: draws per log-likelihood, see `log_likelihood`; device: `model.device`;
    max_batch_size is accepted and bounds batch_size. Raises `ConfigError` as the command line does.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        model: str = "llada",
        strategy: str = "credit",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        max_new_tokens: int = 256,
        seed: int = 0,
        mc_num: int = 128,
        **overrides: Any,
    ) -> None:
        super().__init__()
        require_count("max_new_tokens", max_new_tokens)
        require_count("mc_num", mc_num)
        size = 16 if batch_size in ("auto", None) else _whole("batch_size", batch_size)
        self.batch_size = size if max_batch_size is None else min(size, int(max_batch_size))
        self.max_new_tokens, self.seed, self.mc_num = max_new_tokens, seed, mc_num
        words = [f"model={model}", f"strategy={strategy}", *_words(overrides)]
        if pretrained is not None:
            words.append(f"model.checkpoint='{pretrained}'")
        if device is not None and "device" in compose_checked(words).model:
            words.append(f"model.device={device}")
        self.words = tuple(words)
        self.text = build(compose_checked(words))

    # Generation.

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, each an `Answer`, cut at the first of the request's stop texts.

        A request's options may hold a length (`max_gen_toks`, ...), temperature, top_p, top_k,
        min_p, and overrides with their full key, e.g. `strategy.select.threshold`.
        """
        answers: list[str | None] = [None] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(_shared(request.args[1])), []).append(place)
        for places in groups.values():
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                self._generate(requests, batch, answers)
        return [answer for answer in answers if answer is not None]

    def _generate(
        self, requests: Sequence[Any], places: Sequence[int], answers: list[str | None]
    ) -> None:
        options = [dict(requests[place].args[1]) for place in places]
        sampling, overrides = _shared(options[0])
        decoder = self._decoder(overrides)
        lengths = [self._length(option) for option in options]
        prompts = [decoder.encode(requests[place].args[0], place, chat=False) for place in places]
        request = Request(
            prompts=tuple(prompts),
            max_new_tokens=tuple(lengths),
            seeds=tuple(self.seed + place for place in places),
        )
        sampler = decoder.decoder.sampler
        if sampling:
            known = sampler if isinstance(sampler, Categorical) else Categorical()
            sampler = replace(known, **sampling)
        result = decoder.decode(request, sampler=sampler, batch_size=len(places))
        for row, place in enumerate(places):
            if result.errors[row]:
                raise ModelOutputError(f"request {place} failed: {result.errors[row]}")
            stats = {
                "forwards": result.forwards[row],
                "tokens": len(decoder.delivered(result.sequences[row])),
                "slots": lengths[row],
                "finish_reason": result.finish_reasons[row],
            }
            answer = Answer(_cut(result.texts[row], options[row].get("until")), stats)
            answers[place] = answer
            self.cache_hook.add_partial("generate_until", requests[place].args, answer)

    def _decoder(self, overrides: tuple[str, ...]) -> TextDecoder:
        if not overrides:
            return self.text
        return build(compose_checked((*self.words, *overrides)), model=lambda: self.text.model)

    def _length(self, options: Mapping[str, Any]) -> int:
        given = [options[name] for name in _LENGTHS if options.get(name) is not None]
        return _whole("max_gen_toks", given[0]) if given else self.max_new_tokens

    # Scores.

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, False) per (context, continuation); see `log_likelihood`.

        Whether greedy decoding would give the continuation is not computed: it takes a whole
        decode, and no figure of the harness but `acc` on such tasks asks for it.
        """
        found = []
        for place, request in enumerate(requests):
            context, continuation = request.args
            tokenizer = self.text.model.tokenizer
            whole = tokenizer.encode(context + continuation)
            prompt = tokenizer.encode(context) if context else []
            # a tokenizer may join the last word of the context with the continuation
            pairs = zip(prompt, whole, strict=False)
            shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            score = log_likelihood(
                self.text.model.denoiser,
                whole[:shared],
                whole[shared:],
                draws=self.mc_num,
                batch=self.batch_size,
                seed=self.seed + place,
            )
            found.append((score, False))
            self.cache_hook.add_partial("loglikelihood", request.args, found[-1])
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts in nats, without context."""
        found = []
        for place, request in enumerate(requests):
            ids = self.text.model.tokenizer.encode(request.args[0])
            found.append(
                log_likelihood(
                    self.text.model.denoiser, [], ids,
                    draws=self.mc_num, batch=self.batch_size, seed=self.seed + place,
                )
            )  # fmt: skip
        return found

    # Chats and caches.

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation, up to where the reply begins."""
        tokenizer = self.text.model.tokenizer
        ids = tokenizer.encode_chat(chat_history, open_reply=add_generation_prompt)
        return tokenizer.decode(ids, keep_special=True)

    @property
    def tokenizer_name(self) -> str:
        """The checkpoint's name."""
        return self.text.model.description.checkpoint.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The checkpoint's template, for the harness's records."""
        backend = getattr(self.text.model.tokenizer, "backend", None)
        return str(getattr(backend, "chat_template", None) or "")

    @property
    def settings(self) -> str:
        """A hash of everything that decides answers, for answer caches."""
        mark = getattr(self.text.model.denoiser, "fingerprint", None)
        parts = (*self.words, str(mark), str(self.max_new_tokens), str(self.seed), str(self.mc_num))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Use an answer cache; raises `ConfigError` for one that another configuration filled.

        The harness looks answers up by their request alone, so that two strategies would share
        them.
        """
        stored = getattr(cache_hook, "dbdict", None)
        if stored is not None:
            before = stored.get(_SETTINGS_KEY)
            if before is None and len(stored) == 0:
                stored[_SETTINGS_KEY] = self.settings
            elif before != self.settings:
                raise ConfigError(
                    "the answer cache (--use_cache) holds answers of another configuration; give "
                    "each configuration its own file"
                )
        super().set_cache_hook(cache_hook)


def log_likelihood(
    denoiser: Denoiser,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    draws: int = 128,
    batch: int = 16,
    seed: int = 0,
) -> float:
    """The Monte-Carlo estimate of log p(answer | prompt) in nats, as LLaDA defines it.

        E_{k ~ U{1..L}, S ~ subsets of size k}  (L / k) sum_{i in S} log p(answer_i | rest)

    which is the exact log joint for a denoiser with exact conditionals. draws: samples of (k, S),
    k stratified; where there are no more subsets than draws, all of them are weighed instead and
    the result is exact; batch: canvases per forward; seed: of the draws.
    Source: LLaDA, arXiv 2502.09992, appendix B.5. Deviation: the enumeration, and no greedy check.
    Raises `ConfigError` for what is longer than the model.
    """
    length = len(answer)
    if length == 0:
        return 0.0
    limit = denoiser.max_length
    if limit is not None and len(prompt) + length > limit:
        raise ConfigError(
            f"context and continuation need {len(prompt) + length} positions, the model has {limit}"
        )
    total = 0.0
    chosen = list(_subsets(length, draws, seed))
    for start in range(0, len(chosen), batch):
        part = chosen[start : start + batch]
        scores = _masked_scores(denoiser, prompt, answer, [places for places, _ in part])
        total += sum(weight * score for (_, weight), score in zip(part, scores, strict=True))
    return total


def _subsets(length: int, draws: int, seed: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Masked places and the weight of their sum of log-probabilities; weights include 1 / draws."""
    if 2**length - 1 <= draws:
        for size in range(1, length + 1):
            for places in itertools.combinations(range(length), size):
                # 1/L for the size, one of so many subsets, L/k from the estimator
                yield places, 1 / (math.comb(length, size) * size)
        return
    draw = random.Random(seed)
    offset = draw.random()
    for number in range(draws):
        size = 1 + int(length * ((number + offset) / draws % 1.0))
        yield tuple(sorted(draw.sample(range(length), size))), length / size / draws


@torch.no_grad()
def _masked_scores(
    denoiser: Denoiser,
    prompt: Sequence[int],
    answer: Sequence[int],
    masked: Sequence[tuple[int, ...]],
) -> list[float]:
    """Sum of log p(answer_i | rest) over the masked places of each canvas."""
    start, device = len(prompt), denoiser.device
    tokens = torch.tensor([*prompt, *answer], device=device).repeat(len(masked), 1)
    width = max(map(len, masked))
    index = torch.full((len(masked), width), -1, device=device)
    for row, places in enumerate(masked):
        columns = torch.tensor(places, device=device) + start
        tokens[row, columns] = denoiser.vocab.mask_id
        index[row, : len(places)] = columns
    live = torch.ones_like(tokens, dtype=torch.bool)
    logits = denoiser(tokens, live, index, Plan()).double()
    logits[..., denoiser.vocab.mask_id] = -torch.inf
    truth = torch.tensor([*prompt, *answer], device=device)[index.clamp(min=0)]
    scores = logits.log_softmax(-1).gather(-1, truth[..., None])[..., 0]
    sums: list[float] = torch.where(index >= 0, scores, 0.0).sum(1).tolist()
    return sums


def _words(overrides: Mapping[str, Any]) -> list[str]:
    """Keyword arguments as overrides: `strategy.select.threshold=0.8`, `schedule=whole`."""
    return [f"{key}={_word(value)}" for key, value in overrides.items()]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _shared(options: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What requests of one batch must have in common: sampling, and overrides."""
    sampling = {
        name: options[name] for name in _SAMPLING if options.get(name) not in (None, 0, 0.0)
    }
    if options.get("do_sample") is False:
        sampling = {}
    own = {key: value for key, value in options.items() if "." in key or key in _GROUPS}
    known = (*_LENGTHS, *_SAMPLING, *own, "until", "do_sample")
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"gen_kwargs has the unknown option {unknown[0]!r}; known are {', '.join(_LENGTHS)}, "
            f"{', '.join(_SAMPLING)}, do_sample, until, and overrides (strategy.select.threshold)"
        )
    return sampling, tuple(_words(own))


_GROUPS = ("strategy", "schedule", "cache", "sampler")


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    """The text up to the first of the stop texts."""
    stops = [until] if isinstance(until, str) else list(until or ())
    ends = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _whole(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or number != float(value):
        raise ConfigError(f"{name} must be a whole number >= 1, got {value!r}")
    return number


def main() -> None:
    """The harness's own command line, with the model `dllm_decode` registered.

    With `--use_cache PATH` each configuration gets a file of its own: the harness looks answers up
    by their request alone.
    """
    from lm_eval.__main__ import cli_evaluate

    from dllm_decode.console.allocator import keep_freed_memory

    keep_freed_memory()
    sys.argv = _with_own_cache(sys.argv)
    cli_evaluate()


def _with_own_cache(argv: list[str]) -> list[str]:
    """The arguments with a hash of the model's arguments behind the cache path."""
    argv = list(argv)
    names = ("--model_args", "-a", "--batch_size", "-b", "--device")
    model = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word in names]
    mark = hashlib.sha256("\n".join(model).encode()).hexdigest()[:12]
    for place, word in enumerate(argv):
        if word in ("--use_cache", "-c") and place + 1 < len(argv):
            argv[place + 1] = f"{argv[place + 1]}-{mark}"
        elif word.startswith("--use_cache="):
            argv[place] = f"{word}-{mark}"
    return argv
