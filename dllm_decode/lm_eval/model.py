"""A decoder as a model of the harness."""

from __future__ import annotations

import hashlib
import logging
import math
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string
from tqdm import tqdm

from dllm_decode.api import TextDecoder, build
from dllm_decode.config.compose import compose_checked
from dllm_decode.decoding.denoiser import Capabilities
from dllm_decode.decoding.outcome import Outcome
from dllm_decode.decoding.sampling import Sampler
from dllm_decode.decoding.types import Request
from dllm_decode.errors import (
    CapabilityError,
    ConfigError,
    DllmDecodeError,
    ModelOutputError,
    require_count,
)
from dllm_decode.lm_eval.answers import Answer, Cost
from dllm_decode.lm_eval.likelihood import log_likelihood, windows
from dllm_decode.lm_eval.options import Options, read_options, whole
from dllm_decode.lm_eval.overrides import as_override, quoted
from dllm_decode.lm_eval.processes import Processes
from dllm_decode.models.stop_texts import cut, tokens_before
from dllm_decode.models.text import CheckpointTokenizer

log = logging.getLogger(__name__)

AUTO_BATCH = 16
_HARNESS_DEVICE = "cuda:0"  # what the harness passes where nobody said anything
_SETTINGS_KEY = "dllm_decode settings"
_REPEAT = 1_000_003  # distance of the seeds of a request's repeats


@dataclass(frozen=True)
class _Pending:
    """A request on its way: its place in the answer list, and what is decoded for it."""

    place: int
    prompt: tuple[int, ...]
    length: int
    seed: int
    dropped: int = 0  # tokens of the context that did not fit


@register_model("dllm_decode")
class HarnessModel(LM):  # type: ignore[misc]
    """A decoder as a model of the harness.

    Args:
        pretrained: Checkpoint, as `model.checkpoint` takes it; a path is taken word for word.
        model: Option of the configuration group `model`.
        strategy: Option of the configuration group `strategy`.
        batch_size: Requests decoded together; `auto` and `auto:N`: 16. Memory that does not suffice
            halves it.
        max_batch_size: Bounds batch_size.
        device: `model.device`. `auto`, None, and `cuda:0` on a machine without it (the harness's
            own default) choose as the configuration does.
        max_new_tokens: Columns of a request that asks for no length.
        seed: Document i is decoded with seed + i, whatever stands beside it.
        mc_num: Draws per log-likelihood, see `log_likelihood`.
        chat_template_args: What the chat template is given beside the messages, in addition to
            `model.chat_template_kwargs`.
        enable_thinking: One of these, by itself.
        overrides: Options of further groups (`schedule="whole"`), and settings with their full key
            (`strategy.select.threshold=0.8`).

    Raises:
        ConfigError: As the command line does.

    >>> model = HarnessModel(model="toy_copy", strategy="threshold")  # doctest: +SKIP
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        model: str = "llada",
        strategy: str = "credit",
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        max_new_tokens: int = 256,
        seed: int = 0,
        mc_num: int = 128,
        chat_template_args: Mapping[str, Any] | None = None,
        enable_thinking: bool | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__()
        require_count("max_new_tokens", max_new_tokens)
        require_count("mc_num", mc_num)
        self.batch_size = batch_size_of(batch_size, max_batch_size)
        self.max_new_tokens, self.seed, self.mc_num = max_new_tokens, seed, mc_num
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self.template_arguments = {**(chat_template_args or {}), **thinking}
        words = [f"model={model}", f"strategy={strategy}"]
        words += [as_override(key, value) for key, value in overrides.items()]
        if pretrained is not None:
            words.append(f"model.checkpoint={quoted(str(pretrained))}")
        composed = compose_checked(words)
        self.processes = Processes.of_environment(composed)
        device = self.processes.device or wanted_device(device)
        if device is not None and "device" in composed.model:
            words.append(f"model.device={device}")
            composed = compose_checked(words)
        self.words = tuple(words)
        self.text = build(composed)
        self.costs: dict[str, Cost] = {}
        self._decoders: dict[tuple[str, ...], TextDecoder] = {(): self.text}
        self._chats: dict[str, array[int]] = {}
        self._warned = False

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> HarnessModel:
        """A model from the harness's arguments; what stands in `--model_args` goes first."""
        added = {
            key: value for key, value in (additional_config or {}).items() if value is not None
        }
        return cls(**{**added, **arg_dict})

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> HarnessModel:
        """The same from `key=value,key=value`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    # Generation.

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, each an `Answer`, cut at the first of the request's stop texts.

        A request that cannot be decoded (no token ids, no room, a fault while decoding) gets an
        empty answer with `error` in its stats; a context that is too long loses its beginning, and
        `context_cut` says how many tokens. Both are counted and said.

        Args:
            requests: The harness's instances, with a context and `generation_kwargs`; see
                `read_options`.
            disable_tqdm: Show no progress.

        Raises:
            ConfigError: For options that cannot be, before anything is decoded.
        """
        options = [read_options(request.args[1], self.max_new_tokens) for request in requests]
        samplers = [self._sampler(option) for option in options]
        answers: list[Answer | None] = [None] * len(requests)
        groups: dict[tuple[tuple[str, ...], Sampler], list[_Pending]] = {}
        repeats: Counter[int] = Counter()
        for place, request in enumerate(requests):
            number = repeats[id(request)]
            repeats[id(request)] += 1
            try:
                job = self._job(place, request, number, options[place].length)
            except Exception as error:  # a tokenizer may raise anything
                answers[place] = _failed(error, options[place].length)
                continue
            groups.setdefault((options[place].overrides, samplers[place]), []).append(job)
        with tqdm(
            total=len(requests), desc="Decoding", disable=disable_tqdm or self.rank > 0
        ) as bar:
            bar.update(sum(answer is not None for answer in answers))
            for (overrides, sampler), jobs in groups.items():
                # several batches at once: a row that is done makes room for the next
                size = 8 * self.batch_size
                for start in range(0, len(jobs), size):
                    part = jobs[start : start + size]
                    outcomes = self._decoded(overrides, sampler, part)
                    for job, outcome in zip(part, outcomes, strict=True):
                        answer = self._answer(job, outcome, options[job.place])
                        answers[job.place] = answer
                        if "error" not in answer.stats:
                            request = requests[job.place]
                            self.cache_hook.add_partial("generate_until", request.args, answer)
                    bar.update(len(part))
        found = [answer for answer in answers if answer is not None]
        self._count(requests, found)
        return list(found)

    def _sampler(self, options: Options) -> Sampler:
        return options.sampler(self._decoder(options.overrides).decoder.sampler)

    def _decoder(self, overrides: tuple[str, ...]) -> TextDecoder:
        if overrides not in self._decoders:
            cfg = compose_checked((*self.words, *overrides))
            self._decoders[overrides] = build(cfg, model=lambda: self.text.model)
        return self._decoders[overrides]

    def _job(self, place: int, request: Any, number: int, length: int) -> _Pending:
        prompt = self.encode(request.args[0])
        limit = self.text.model.denoiser.max_length
        room = len(prompt) if limit is None else limit - length
        if room < 0 or (room == 0 and prompt):
            raise ConfigError(
                f"{length} columns (max_gen_toks) leave no room for the context; the model has "
                f"{limit} positions"
            )
        dropped = max(0, len(prompt) - room)
        # the document decides the seed, so that neither a cache nor other processes change it
        own = place if request.doc_id is None else request.doc_id
        seed = self.seed + own + _REPEAT * number
        return _Pending(place, prompt[dropped:], length, seed, dropped)

    def _decoded(
        self, overrides: tuple[str, ...], sampler: Sampler, jobs: Sequence[_Pending]
    ) -> list[Outcome]:
        """What became of each job; one that does not fit has an error."""
        request = Request(
            prompts=tuple(job.prompt for job in jobs),
            max_new_tokens=tuple(job.length for job in jobs),
            seeds=tuple(job.seed for job in jobs),
        )
        try:
            result = (
                self._decoder(overrides)
                .with_(sampler=sampler)
                .decode(request, batch_size=self.batch_size)
            )
        except CapabilityError:  # of the configuration, not of a request
            raise
        except ConfigError as error:
            if len(jobs) == 1:
                return [Outcome(finish_reason="error", error=str(error))]
            # one of them does not fit: the others must not notice
            return [row for job in jobs for row in self._decoded(overrides, sampler, [job])]
        return list(result.rows)

    def _answer(self, job: _Pending, outcome: Outcome, options: Options) -> Answer:
        if outcome.error:
            return _failed(outcome.error, job.length)
        text = cut(outcome.text, options.stops)
        held = len(outcome.delivered)
        if len(text) < len(outcome.text):
            held = tokens_before(text, outcome.delivered, self.text.model.tokenizer.decode)
        stats: dict[str, Any] = {
            "forwards": outcome.forwards,
            "tokens": held,
            "slots": job.length,
            "finish_reason": outcome.finish_reason,
        }
        if job.dropped:
            stats["context_cut"] = job.dropped
        return Answer(text, stats)

    def _count(self, requests: Sequence[Any], answers: Sequence[Answer]) -> None:
        """Add up what was decoded, and say what went wrong, once for all requests."""
        counted: Counter[int] = Counter()
        for request, answer in zip(requests, answers, strict=True):
            counted[id(request)] += 1
            # several processes get their last request once more, to have equally many
            if self.world_size == 1 or counted[id(request)] <= request.repeats:
                task = str(request.task_name)
                self.costs.setdefault(task, Cost()).add(answer.stats)
        for key, what in (
            ("context_cut", "had a context longer than the model takes, which lost its beginning"),
            ("error", "could not be decoded and got an empty answer"),
        ):
            where = [place for place, answer in enumerate(answers) if key in answer.stats]
            if where:
                log.warning(
                    "%d of %d requests %s; the first: %s, %s: %s",
                    len(where), len(answers), what, _name(requests[where[0]], where[0]), key,
                    answers[where[0]].stats[key],
                )  # fmt: skip

    # Scores.

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether it is greedy) per (context, continuation).

        The likelihood is `log_likelihood`'s. Greedy means: the decoder, as configured but without
        sampling, writes exactly this continuation when it is given as many columns as that has.
        One decode answers for all continuations of the same context and length.

        A context that is too long loses its beginning; a request that cannot be scored counts as
        impossible (-inf, False). Both are said.
        """
        pairs = [self._tried(self._pair, *request.args) for request in requests]
        written = self._written([pair for pair in pairs if not isinstance(pair, str)])

        def judge(request: Any, place: int) -> tuple[float, bool]:
            prompt, answer = pairs[place]
            score = self._score(prompt, answer, place, request)
            return score, not answer or written.get((prompt, len(answer))) == answer

        return self._scored(requests, pairs, judge, (-math.inf, False), disable_tqdm)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts in nats, without context.

        A text that is longer than the model is scored in parts, see `windows`; one that cannot be
        scored counts as impossible (-inf), which is said.
        """
        texts = [self._tried(self._pair, "", *request.args) for request in requests]

        def judge(request: Any, place: int) -> float:
            prompt, answer = texts[place]
            return self._score(prompt, answer, place, request)

        return self._scored(requests, texts, judge, -math.inf, disable_tqdm)

    @staticmethod
    def _tried(encode: Callable[..., Any], *texts: str) -> Any:
        """Token ids, or a text that says why there are none."""
        try:
            return encode(*texts)
        except Exception as error:  # a tokenizer may raise anything
            return _reason(error)

    def _scored(
        self,
        requests: Sequence[Any],
        encoded: Sequence[Any],
        judge: Callable[[Any, int], Any],
        impossible: Any,
        quiet: bool,
    ) -> list[Any]:
        """What `judge` says of each request; `impossible` of those it cannot be asked about."""
        found: list[Any] = []
        faults: list[tuple[int, str]] = []
        for place, request in enumerate(
            tqdm(requests, desc="Scoring", disable=quiet or self.rank > 0)
        ):
            fault = encoded[place] if isinstance(encoded[place], str) else ""
            try:
                found.append(impossible if fault else judge(request, place))
            except (ConfigError, ModelOutputError) as error:
                fault = str(error)
                found.append(impossible)
            if fault:
                faults.append((place, fault))
            else:
                self.cache_hook.add_partial(request.request_type, request.args, found[-1])
        if faults:
            place, message = faults[0]
            log.warning(
                "%d of %d requests could not be scored and count as impossible; the first: %s: %s",
                len(faults), len(requests), _name(requests[place], place), message,
            )  # fmt: skip
        return found

    def _score(
        self, prompt: Sequence[int], answer: Sequence[int], place: int, request: Any
    ) -> float:
        denoiser = self.text.model.denoiser
        own = place if request.doc_id is None else request.doc_id
        parts = windows(prompt, answer, denoiser.max_length)
        return sum(
            log_likelihood(
                denoiser, context, part,
                draws=self.mc_num, batch=self.batch_size, seed=self.seed + own,
            )
            for context, part in parts
        )  # fmt: skip

    def _pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids of a context and of what continues it."""
        _check_text("continuation", continuation)
        _check_text("context", context)
        if context in self._chats:  # a reply begins a turn of its own
            return self.encode(context), tuple(self._bare(continuation))
        if not context:
            front, bare, _ = self._split(continuation)
            return tuple(front), tuple(bare)
        prompt, together = self._begun(context), self._begun(context + continuation)
        # a tokenizer may join the last word of the context with the continuation
        differ = (at for at, (a, b) in enumerate(zip(prompt, together, strict=False)) if a != b)
        shared = next(differ, min(len(prompt), len(together)))
        return tuple(together[:shared]), tuple(together[shared:])

    def _written(
        self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    ) -> dict[tuple[tuple[int, ...], int], tuple[int, ...]]:
        """What the decoder writes behind each context, by context and length."""
        limit = self.text.model.denoiser.max_length
        jobs: dict[tuple[tuple[int, ...], int], _Pending] = {}
        for prompt, answer in pairs:
            room = len(prompt) if limit is None else limit - len(answer)
            if answer and room >= 0:
                dropped = max(0, len(prompt) - room)
                jobs[prompt, len(answer)] = _Pending(0, prompt[dropped:], len(answer), self.seed)
        if not jobs:
            return {}
        greedy = Options(1, do_sample=False).sampler(self.text.decoder.sampler)
        decoded = self._decoded((), greedy, list(jobs.values()))
        faults = [outcome.error for outcome in decoded if outcome.error]
        if faults:
            log.warning(
                "%d of %d decodes for is_greedy failed and count as different; the first: %s",
                len(faults), len(decoded), faults[0],
            )  # fmt: skip
        return {
            key: outcome.tokens
            for key, outcome in zip(jobs, decoded, strict=True)
            if not outcome.error
        }

    # Texts and chats.

    def encode(self, context: str) -> tuple[int, ...]:
        """Token ids of a context.

        A conversation that `apply_chat_template` wrote has the ids it has everywhere else; so has
        one that comes from a cache of requests, whose text begins as the tokenizer would begin it.
        Any other text gets what the tokenizer puts around texts.
        """
        _check_text("context", context)
        if context in self._chats:
            return tuple(self._chats[context])
        front, bare, back = self._split(context)
        self._look_for_template(bare)
        begun = bool(front) and bare[: len(front)] == front
        return tuple(bare if begun else [*front, *bare, *back])

    def _begun(self, text: str) -> list[int]:
        """Token ids of a text that something follows."""
        front, bare, _ = self._split(text)
        return bare if bare[: len(front)] == front else [*front, *bare]

    def _split(self, text: str) -> tuple[list[int], list[int], list[int]]:
        """Token ids of a text: what the tokenizer puts in front, the text's own, what it adds."""
        ids, bare = self.text.model.tokenizer.encode(text, control=True), self._bare(text)
        places = range(len(ids) - len(bare) + 1)
        at = next((n for n in places if ids[n : n + len(bare)] == bare), None)
        if at is None:  # the tokenizer sees the text otherwise
            return [], ids, []
        return ids[:at], bare, ids[at + len(bare) :]

    def _bare(self, text: str) -> list[int]:
        """Token ids of a text with nothing put around it."""
        return self.text.model.tokenizer.encode(text, control=True, framed=False)

    def _look_for_template(self, ids: Sequence[int]) -> None:
        """Say once that a chat model is asked without its template."""
        tokenizer = self.text.model.tokenizer
        if self._warned or self._chats or not isinstance(tokenizer, CheckpointTokenizer):
            return
        if tokenizer.has_chat_template and not set(tokenizer.backend.all_special_ids) & set(ids):
            self._warned = True
            log.warning(
                "the checkpoint has a chat template, and these requests come without it; a chat "
                "model needs it: --apply_chat_template"
            )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation, up to where the reply begins.

        Args:
            chat_history: Messages with `role` and `content`.
            add_generation_prompt: False: the last message is the beginning of the reply (a task's
                `gen_prefix`) and is continued.
        """
        tokenizer = self.text.model.tokenizer
        ids = tokenizer.encode_chat(
            chat_history,
            open_reply=add_generation_prompt,
            continue_final=not add_generation_prompt and chat_history[-1]["role"] == "assistant",
            arguments=self.template_arguments,
        )
        text = tokenizer.decode(ids, keep_special=True)
        self._chats[text] = array("l", ids)
        return text

    @property
    def tokenizer_name(self) -> str:
        """The name of the checkpoint, under which the harness stores requests."""
        return self.text.model.description.checkpoint.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The checkpoint's template, for the harness's records."""
        tokenizer = self.text.model.tokenizer
        if isinstance(tokenizer, CheckpointTokenizer) and tokenizer.has_chat_template:
            return tokenizer.template(chat_template if isinstance(chat_template, str) else None)
        return ""

    # What the harness asks for besides.

    def get_model_info(self) -> dict[str, Any]:
        """What is recorded in the results' `config`: the model, and what decoding cost per task."""
        return {
            "model_description": str(self.text.model.description),
            "decoder": list(self.words),
            "decoding": {
                task: {**asdict(cost), "tokens_per_forward": cost.tokens_per_forward}
                for task, cost in self.costs.items()
            },
        }

    @property
    def settings(self) -> str:
        """A hash of everything that decides answers, for answer caches."""
        mark = Capabilities.of(self.text.model.denoiser).fingerprint
        numbers = (self.max_new_tokens, self.seed, self.mc_num)
        parts = (*self.words, str(mark), str(numbers), str(self.template_arguments))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Use an answer cache.

        The harness looks answers up by their request alone, so that two strategies would share
        them.

        Raises:
            ConfigError: For a cache that another configuration filled.
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

    # Several processes.

    @property
    def rank(self) -> int:
        """The number of this process among those that share the requests, from 0."""
        return self.processes.rank

    @property
    def world_size(self) -> int:
        """How many processes share the requests."""
        return self.processes.size

    @property
    def device(self) -> torch.device:
        """Where the harness's counts live: the CPU, whatever the model runs on."""
        return torch.device("cpu")

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, one behind the other."""
        return self.processes.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all processes on process `dst`, None elsewhere."""
        return self.processes.gather_object(obj, dst)

    def barrier(self) -> None:
        """Wait for all processes, and let the first know what the others' answers cost."""
        everyone = self.processes.gather_object(self.costs, 0)
        if everyone is not None:
            self.costs = _sum_of(everyone)
        else:
            self.costs = {}  # reported


def _sum_of(parts: Sequence[Mapping[str, Cost]]) -> dict[str, Cost]:
    total: dict[str, Cost] = {}
    for part in parts:
        for task, cost in part.items():
            before = asdict(total.get(task, Cost()))
            added = {name: before[name] + value for name, value in asdict(cost).items()}
            total[task] = Cost(**added)
    return total


def batch_size_of(batch_size: int | str | None, limit: int | str | None) -> int:
    """Requests decoded together, as the harness names them: a number, `auto`, `auto:N`.

    Args:
        batch_size: As the command line gives it.
        limit: Largest size that `auto` may take, None for the default.
    """
    auto = batch_size is None or str(batch_size).partition(":")[0] == "auto"
    size = AUTO_BATCH if auto else whole("batch_size", batch_size)
    return size if limit is None else min(size, whole("max_batch_size", limit))


def wanted_device(device: str | None) -> str | None:
    """The device somebody asked for, None where nobody did."""
    if device in (None, "", "auto"):
        return None
    if device == _HARNESS_DEVICE and not torch.cuda.is_available():
        log.warning("there is no cuda:0 (the harness's default device); going on without --device")
        return None
    return str(device)


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ConfigError(f"the {name} must be a text, got {text!r}")


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, DllmDecodeError) else repr(error)


def _failed(error: Exception | str, length: int) -> Answer:
    """The answer to a request that cannot be decoded."""
    reason = error if isinstance(error, str) else _reason(error)
    return Answer(
        "",
        {"forwards": 0, "tokens": 0, "slots": length, "finish_reason": "error", "error": reason},
    )


def _name(request: Any, place: int) -> str:
    """What a warning calls a request."""
    if request.task_name is None:
        return f"request {place}"
    return f"task {request.task_name}, document {request.doc_id}"
