"""Text in, text out: what `load` returns, and the command line's tasks use as well."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from numbers import Integral
from typing import Any, Protocol

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from dllm_decode.config import compose as composing
from dllm_decode.config.compose import compose_checked
from dllm_decode.config.instantiate import PARTS, build_model, build_node
from dllm_decode.config.shorthand import answer_in_python, quote
from dllm_decode.console.describe import describe_part, describe_strategy
from dllm_decode.console.watching import ProgressObserver
from dllm_decode.decoding.batching import check_batching
from dllm_decode.decoding.cache import CachePolicy, NoCache
from dllm_decode.decoding.checks import check_is_request
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder, Run
from dllm_decode.decoding.observer import Interrupted, Observer
from dllm_decode.decoding.outcome import Outcome, Result
from dllm_decode.decoding.parameters import check_parameters
from dllm_decode.decoding.picture import StreamStep
from dllm_decode.decoding.sampling import Categorical, Greedy, Sampler
from dllm_decode.decoding.schedule import Schedule
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Change, Request, Snapshot
from dllm_decode.decoding.voting import Decode, Voting
from dllm_decode.errors import ConfigError, DeviceError, require, require_choice
from dllm_decode.kernels import dispatch
from dllm_decode.models import foresee
from dllm_decode.models.adopt import adopt
from dllm_decode.models.chat import plain_messages
from dllm_decode.models.guided import guided
from dllm_decode.models.loaded import LoadedModel
from dllm_decode.models.stop_texts import cut, stop_texts
from dllm_decode.problems.grading import ANSWERS, answer_in

log = logging.getLogger(__name__)

DEFAULT_NEW_TOKENS = 64
_BYTES = bytes | bytearray | memoryview  # sequences of numbers, which are no token ids
MASK_WORD = "[MASK]"
END_SIGN = "∎"

Chat = Sequence[Mapping[str, Any]]
Prompt = str | Chat | Sequence[int]
Overrides = Sequence[str] | Mapping[str, Any]
Infill = str | Sequence[int] | Mapping[int, int]
Parameters = Mapping[str, float]


class Streamer(Protocol):
    """Told by `generate` what is decoded, as it goes on; streamers of transformers fit.

    `put` gets the prompt's ids, then ids that are final, from left to right; `put_draft`, where
    there is one, the whole canvas with masks after each step; `end` comes last.

    Examples:
        >>> import dllm_decode
        >>> class Printer:
        ...     def put(self, value): print(value.shape[0], end=" ")
        ...     def end(self): print("end")
        >>> decoder = dllm_decode.load("toy_copy", strategy="threshold")
        >>> _ = decoder.generate("abc>", max_new_tokens=4, streamer=Printer())
        4 4 end
    """

    def put(self, value: torch.Tensor) -> None:
        """Ids (N,) that will not change any more."""

    def end(self) -> None:
        """Called once, behind the last ids."""


def load(
    model: Any = "llada",
    strategy: str | Strategy = "credit",
    *,
    tokenizer: Any = None,
    schedule: str | Schedule | None = None,
    cache: str | CachePolicy | None = None,
    sampler: str | Sampler | None = None,
    overrides: Overrides = (),
    **groups: Any,
) -> TextDecoder:
    """A decoder from names, as on the command line, or from objects.

        load("llada", "credit", overrides=["strategy.transforms.credit.alpha=0.5"])
        load("llada", MyRule(0.8), schedule=Blocks(16))
        load(network, tokenizer=tokenizer, strategy="threshold")

    Args:
        model: The name of an option, a `LoadedModel`, or a `...ForCausalLM` of transformers with
            its tokenizer; settings of `model=checkpoint` such as `model.mask_id=5` apply to it, see
            `dllm_decode.models.adopt.adopt`.
        strategy: The name of an option or a `Strategy`.
        tokenizer: Of a transformers model given as `model`.
        schedule: The name of an option or a `Schedule`; None for the default.
        cache: The name of an option or a `CachePolicy`; None for the default.
        sampler: The name of an option or a `Sampler`; None for the default.
        overrides: As on the command line, e.g. `["strategy.select.threshold=0.8"]`, or a mapping
            `{"strategy.select.threshold": 0.8}`.
        **groups: Options of further groups by name (`trace="html"`), and settings whose name is
            enough (`threshold=0.8`).

    Raises:
        ConfigError: The configuration does not know a name, or an object is of the wrong kind.
        CapabilityError: The parts do not work together.
        CheckpointError: A checkpoint is missing or damaged.
    """
    parts = {"strategy": strategy, "schedule": schedule, "cache": cache, "sampler": sampler}
    objects = {group: part for group, part in parts.items() if _is_object(group, part)}
    names = {group: part for group, part in parts.items() if isinstance(part, str)}
    if not isinstance(model, str):
        words = [*_words({**names, **groups}), "model=checkpoint", *_lines(overrides)]
        cfg = compose_checked(words)
        return build(cfg, model=lambda: _adopted(model, tokenizer, cfg), parts=objects)
    require(
        tokenizer is None,
        f"tokenizer belongs to a transformers model given as model; {model!r} brings its own",
    )
    words = [*_words({"model": model, **names, **groups}), *_lines(overrides)]
    return build(compose_checked(words), parts=objects)


_KINDS = {"strategy": Strategy, "schedule": Schedule, "cache": CachePolicy, "sampler": Sampler}


def _is_object(group: str, part: Any) -> bool:
    """Whether a part is an object; raises `ConfigError` if it is neither that nor a name."""
    kind = _KINDS[group]
    if part is None or isinstance(part, str):
        return False
    article = "an option's name or a"
    require(
        isinstance(part, kind),
        f"{group} must be {article} {kind.__name__}, got {_shortly(part)}; give single settings as "
        f"overrides=['{group}.key=value']",
    )
    return True


def _shortly(thing: Any) -> str:
    """A value in an error message: its class, and itself where that is short."""
    if isinstance(thing, type):
        return f"the class {thing.__name__} (give an object: {thing.__name__}(...))"
    text = repr(thing)
    return text if len(text) <= 80 else f"an object of {type(thing).__name__}"


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options of groups, and settings without their place, as on the command line."""
    return [_override(name, value) for name, value in options.items()]


def _lines(overrides: Overrides) -> tuple[str, ...]:
    """Overrides as on the command line; raises `ConfigError` for what cannot be any."""
    if isinstance(overrides, Mapping):
        try:
            return tuple(f"{key}={json.dumps(value)}" for key, value in overrides.items())
        except TypeError as error:
            raise ConfigError(f"overrides must hold texts, numbers and lists: {error}") from None
    require(
        isinstance(overrides, Sequence),
        f"overrides must be a list of texts like 'key=value', or a mapping, got {overrides!r}",
    )
    lines = (overrides,) if isinstance(overrides, str) else tuple(overrides)
    for line in lines:
        require(
            isinstance(line, str), f"overrides must be texts like 'key=value', got {_shortly(line)}"
        )
    return lines


def parts_from(parts: Mapping[str, Any], overrides: Overrides = ()) -> dict[str, Any]:
    """Strategy, schedule, cache and sampler as objects, each given as one or by its option's name.

    Args:
        parts: Group to object or name; None is left out.
        overrides: Settings of the parts that are given by name.

    Raises:
        ConfigError: The configuration does not know a name, or an object is of the wrong kind.
    """
    new = {group: part for group, part in parts.items() if _is_object(group, part)}
    names = {group: part for group, part in parts.items() if isinstance(part, str)}
    lines = _lines(overrides)
    for word in lines:
        group = word.lstrip("+~").partition("=")[0].partition(".")[0].partition("/")[0]
        require(
            group in names,
            f"overrides must be settings of the parts given by name ({', '.join(names)}), "
            f"got {word!r}",
        )
    if names:
        cfg = compose_checked((*_words(names), *lines))
        new |= {group: build_node(cfg, group) for group in names}
    return new


def _adopted(model: Any, tokenizer: Any, cfg: DictConfig) -> LoadedModel:
    """A model given as an object."""
    if isinstance(model, LoadedModel):
        return model
    names = ("mask_id", "eot_ids", "pad_id", "block_length", "max_length")
    settings = OmegaConf.to_container(cfg.model)
    assert isinstance(settings, dict)
    return adopt(model, tokenizer, **{name: settings[name] for name in names})


def build(
    cfg: DictConfig,
    *,
    model: Callable[[], LoadedModel] | None = None,
    parts: Mapping[str, Any] | None = None,
) -> TextDecoder:
    """The decoder that a configuration describes.

    Args:
        cfg: The composed configuration.
        model: Gives the model, None to load the configured one; it is asked last, so that faults
            in the other parts answer first.
        parts: Objects that stand in for the configured strategy, schedule, cache or sampler.

    Raises:
        ConfigError: A setting is wrong; the message names its key.
        CapabilityError: The parts do not work together.
        CheckpointError: The checkpoint is missing or damaged.
    """
    dispatch.choose(cfg.kernels, cfg.head)
    given = parts or {}
    built = {name: given.get(name) or build_node(cfg, name) for name in PARTS}
    if model is None:
        check_before_loading(cfg, built)
    loaded = build_model(cfg) if model is None else model()
    _say_published(loaded, built["strategy"])
    loop = {"sync_every": cfg.sync_every, "debug": cfg.debug}
    return TextDecoder(loaded, Decoder(guided(loaded.denoiser, cfg.guidance), **built, **loop))


def _say_published(model: LoadedModel, strategy: Strategy) -> None:
    """Warn where a model that was trained to edit is decoded by a rule that never does."""
    if model.description.edits and not strategy.revises:
        warnings.warn(
            f"{model.description.checkpoint} was trained to write over its own tokens, which this "
            "strategy never does; it was published with strategy=joint_threshold",
            UserWarning,
            stacklevel=4,
        )


def check_before_loading(cfg: DictConfig, parts: Mapping[str, Any] | None = None) -> None:
    """Refuse a schedule or cache that cannot work with the configured checkpoint; loads nothing.

    Args:
        cfg: The composed configuration.
        parts: Schedule and cache, None for those of the configuration.

    Raises:
        CapabilityError: The parts do not work together.
        ConfigError: A setting is wrong; the message names its key.
    """
    settings = OmegaConf.to_container(cfg.model, resolve=True)
    if isinstance(settings, dict) and "checkpoint" in settings:
        named = {str(key): value for key, value in settings.items()}
        schedule, cache = (
            parts[name] if parts else build_node(cfg, name) for name in ("schedule", "cache")
        )
        foresee.check_before_loading(named, schedule, cache)


def _override(name: str, value: Any) -> str:
    """A group's option, or a setting without its place, as on the command line."""
    group = name in composing.groups()
    if group and not isinstance(value, str):
        raise ConfigError(
            f"{name} must be the name of an option, got {_shortly(value)}; give single settings as "
            f"overrides=['{name}.key=value']"
        )
    if isinstance(value, str):
        plain = re.fullmatch(r"[\w./:-]+", value) is not None
        return f"{name}={value if plain else quote(value)}"
    if isinstance(value, bool | int | float | None):
        return f"{name}={'null' if value is None else str(value).lower()}"
    raise ConfigError(f"{name} must be a text, a number, true, false or None, got {value!r}")


@dataclass(frozen=True, repr=False)
class TextDecoder:
    """A model and a decoder, with text on both sides.

    Attributes:
        model: Denoiser, tokenizer and description.
        decoder: The loop and its parts.

    Examples:
        >>> import dllm_decode
        >>> decoder = dllm_decode.load("toy_reverse", strategy="threshold")
        >>> decoder.generate("abcdef>").texts
        ('fedcba',)
        >>> decoder.with_(strategy="sequential").generate("abcdef>").forwards
        (8,)
    """

    model: LoadedModel
    decoder: Decoder

    def __repr__(self) -> str:
        loop = self.decoder
        parts = ", ".join(map(describe_part, (loop.schedule, loop.cache, loop.sampler)))
        return f"TextDecoder({self.model.description}; {describe_strategy(loop.strategy)}; {parts})"

    def with_(
        self,
        *,
        strategy: str | Strategy | None = None,
        schedule: str | Schedule | None = None,
        cache: str | CachePolicy | None = None,
        sampler: str | Sampler | None = None,
        overrides: Overrides = (),
    ) -> TextDecoder:
        """The same model with other parts; those left out stay.

            loose = decoder.with_(strategy="factor", overrides=["strategy.select.factor=2"])
            mine = decoder.with_(strategy=MyRule(0.8), schedule=Blocks(16))

        Args:
            strategy: The name of an option or a `Strategy`.
            schedule: The name of an option or a `Schedule`.
            cache: The name of an option or a `CachePolicy`.
            sampler: The name of an option or a `Sampler`.
            overrides: Settings of the parts that are given by name.

        Raises:
            ConfigError: The configuration does not know a name, or an object is of the wrong kind.
            CapabilityError: The parts do not work together.
        """
        parts = {"strategy": strategy, "schedule": schedule, "cache": cache, "sampler": sampler}
        return replace(self, decoder=replace(self.decoder, **parts_from(parts, overrides)))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int | Sequence[int] = DEFAULT_NEW_TOKENS,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        seed: int | None = 0,
        batch_size: int | None = None,
        max_tokens_in_flight: int | None = None,
        batching: str = "continuous",
        parameters: Parameters | Sequence[Parameters | None] | None = None,
        stop: str | Sequence[str] = (),
        streamer: Streamer | None = None,
        infill: Infill | Sequence[Infill | None] | None = None,
        apply_chat_template: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool | None = None,
        observers: Sequence[Observer] = (),
        progress: bool = False,
        record: bool = False,
        n: int = 1,
        vote: str = "majority",
        answer: str | Callable[[str], Hashable | None] = "text",
        block_lengths: Sequence[int] | None = None,
        **unknown: Any,
    ) -> Result:
        """Decode one prompt or many.

        Args:
            prompts: A string, a chat (a list of `{"role", "content"}`), token ids, or a list of
                those. An empty one is no prompt at all: the model writes from nothing.
            max_new_tokens: Columns of each row in tokens, one number or one per prompt.
            temperature: Of the sampling of proposed tokens, in place of the sampler's own; see
                `dllm_decode.decoding.sampling.Categorical`, also for the next three.
            top_p: Share of the probability that may be drawn from, in (0, 1].
            top_k: Number of tokens that may be drawn from.
            min_p: Smallest probability that may be drawn, as a share of the largest.
            seed: Prompt i is decoded with seed + i, from 0 to 2^63 - 1; None is 0.
            batch_size: Rows decoded together, None for all. A batch never changes what a row gets.
                With a batch size a failing row is reported in `Result.errors`; without it an
                exception is raised.
            max_tokens_in_flight: See `Engine`.
            batching: See `Engine`.
            parameters: `{full key: value}` of the strategy for these prompts alone, e.g.
                `{"strategy.select.threshold": 0.8}`; one mapping, or one per prompt.
            stop: Texts that end an answer: `Outcome.text` is cut in front of the first of them.
                Tokens and forwards stay as decoded, because a canvas is not written left to right.
            streamer: For a single prompt, see `Streamer`.
            infill: Tokens given in advance: per prompt a text with `[MASK]` for each open position,
                a list of ids with the mask id for open ones, or `{offset: id}`.
            apply_chat_template: Whether a string becomes a user's message where the model has a
                chat template.
            chat_template_kwargs: What the template is given beside the messages, e.g.
                `{"enable_thinking": False}`.
            continue_final_message: Whether the last message of a chat is continued; None: if it is
                the assistant's.
            observers: Watch the steps.
            progress: Show a bar of the columns that are done, in a notebook as well.
            record: Keep all steps in `Result.trace`.
            n: Decodes of each prompt, of which the one with the most common answer is delivered;
                its `forwards` are those of all, and `candidates` holds them.
            vote: How they differ and who votes: `majority`, `longer_half`, `block_lengths` or
                `agreed`; see `dllm_decode.decoding.voting.Voting`.
            answer: What of a text is compared: `text`, `number` (its last one), `boxed`, or a
                function that gives None for a text without an answer.
            block_lengths: Of `vote="block_lengths"`, n of them; None for 8, 16, 32, ...
            **unknown: Refused by name, with what was probably meant.

        Returns:
            The result, with the text of each row.

        Raises:
            ConfigError: A keyword is not known or a request does not fit.
            Interrupted: On Ctrl-C; it holds the partial result.
        """
        _refuse_unknown(unknown, self.generate)
        require(
            isinstance(chat_template_kwargs, Mapping | None),
            "chat_template_kwargs must be a mapping such as {'enable_thinking': False}, or None, "
            f"got {_shortly(chat_template_kwargs)}",
        )
        many = _as_list(prompts)
        stops = stop_texts("stop", stop)
        ids = tuple(
            self.encode(
                prompt,
                row,
                apply_chat_template,
                continue_final=continue_final_message,
                arguments=chat_template_kwargs,
            )
            for row, prompt in enumerate(many)
        )
        request = self._request(ids, max_new_tokens, infill, seed)
        request = replace(request, parameters=_for_every_row(parameters, len(ids)))
        voting = Voting(n, vote, block_lengths)
        if not callable(answer):
            require_choice("answer", answer, ANSWERS)
        if n > 1:
            for name, given in (("streamer", streamer), ("record", record or None)):
                require(given is None, f"{name} shows one decode of a prompt; leave it out or n=1")
        if streamer is not None:
            observers = (*observers, self._streaming(streamer, ids))
        if progress:
            observers = (*observers, _Bar(request))
        counted = partial(voting.decode, answer=lambda row: self._vote_of(row, stops, answer))
        try:
            result = self._sampling(temperature, top_p, top_k, min_p).decode(
                request,
                batch_size=batch_size,
                max_tokens_in_flight=max_tokens_in_flight,
                batching=batching,
                observers=observers,
                record=record,
                vote=counted if n > 1 else None,
            )
        except Interrupted as stopped:
            raise Interrupted(_cut(stopped.result, stops)) from None
        return _cut(result, stops)

    def _request(
        self, ids: tuple[tuple[int, ...], ...], max_new_tokens: Any, infill: Any, seed: int | None
    ) -> Request:
        """The request of some encoded prompts; see `generate`."""
        length, fixed = self.infilling(infill, max_new_tokens, len(ids))
        return Request(ids, length, seeds=_seeds(seed, len(ids)), fixed=fixed)

    def _streaming(self, streamer: Streamer, prompts: Sequence[Sequence[int]]) -> Observer:
        if len(prompts) > 1:
            raise ConfigError(f"streamer works with one prompt, got {len(prompts)}")
        for name in ("put", "end"):
            require(
                callable(getattr(streamer, name, None)),
                f"streamer must have the methods put and end, got {_shortly(streamer)}",
            )
        rule = self.decoder.strategy
        return _Streaming(streamer, prompts[0], early=not (rule.revocable or rule.revises))

    def _vote_of(
        self, row: Outcome, stops: Sequence[str], answer: str | Callable[[str], Hashable | None]
    ) -> Hashable | None:
        """What a decode of a prompt votes for; what cannot be hashed is compared as it is shown."""
        found = answer_in(cut(self.text(row), stops), answer)
        try:
            hash(found)
        except TypeError:
            return repr(found)
        return found

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        temperature: float | None = None,
        seed: int | None = 0,
        infill: Infill | None = None,
        apply_chat_template: bool = True,
        **unknown: Any,
    ) -> Iterator[StreamStep]:
        """Decode one prompt and give the canvas after every step.

            for step in decoder.stream("Sort: 1 Eva 2 Ben 3 Cleo"):
                print(step)                 # in a notebook: display(step)
            print(step.result[0].forwards)  # the last step brings the result

        Args:
            prompt: See `generate`, also for the others.
            max_new_tokens: Columns in tokens.
            temperature: Of the sampling of proposed tokens.
            seed: Of the random numbers.
            infill: Tokens given in advance.
            apply_chat_template: Whether a text becomes a user's message.
            **unknown: Refused by name, with what was probably meant.

        Raises:
            ConfigError: A keyword is not known or a request does not fit.
        """
        _refuse_unknown(unknown, self.stream)
        many = _as_list(prompt)
        if len(many) != 1:
            raise ConfigError(f"stream takes one prompt, got {len(many)}; generate takes several")
        ids = self.encode(many[0], 0, apply_chat_template)
        request = self._request((ids,), max_new_tokens, infill, seed)
        sampling = self._sampling(temperature, None, None, None)
        request, reference_forwards, _ = sampling._with_reference(request, None)
        canvas = _CanvasWatch(self.piece)
        watched = (*self.decoder.observers, canvas)
        decoder = replace(sampling.decoder, observers=watched)
        decoder.check(request)
        run = decoder.begin(request)
        run.admit([0])
        while run.live:
            run.step()
            if run.live:
                yield canvas.step_now()
        result = self._with_texts(run.result(), reference_forwards)
        yield replace(canvas.step_now(), forwards=result.forwards[0], result=result)

    def _with_reference(
        self, request: Request, batch_size: int | None
    ) -> tuple[Request, tuple[int, ...], tuple[str, ...]]:
        """The request with the reference that its strategy needs; its forwards and its errors."""
        if not self.needs_reference or request.reference is not None:
            return request, (0,) * request.rows, ("",) * request.rows
        plain = replace(request, parameters=None)
        try:
            reference = self.sequential.decode(plain, batch_size=batch_size)
        except Interrupted as stop:  # these are not the tokens that were asked for
            rows = tuple(
                Outcome(finish_reason="interrupted", undecided=length) for length in request.lengths
            )
            nothing = replace(stop.result, rows=rows)
            raise Interrupted(self._with_texts(nothing, stop.result.forwards)) from None
        full = _full_length(reference, request, self.decoder)
        return replace(request, reference=full), reference.forwards, reference.errors

    def decode(
        self,
        request: Request,
        *,
        batch_size: int | None = None,
        max_tokens_in_flight: int | None = None,
        batching: str = "continuous",
        observers: Sequence[Observer] = (),
        record: bool = False,
        vote: Callable[[Decoder, Request, Decode], Sequence[Outcome]] | None = None,
    ) -> Result:
        """Decode a request of token ids, with texts in the result.

        A reference decode is made first where the strategy needs one and the request has none.

        Args:
            request: What is to be decoded.
            batch_size: See `generate`, also for the next two.
            max_tokens_in_flight: See `Engine`.
            batching: See `Engine`.
            observers: Watch the steps.
            record: Keep all steps in `Result.trace`.
            vote: Decodes each row several times and says which outcome it gets, given the parts,
                the request and what decodes a request with them; see `Voting.decode`.

        Raises:
            ConfigError: The request does not fit.
            Interrupted: On Ctrl-C; it holds the partial result.
        """
        check_is_request(request)
        check_batching(batch_size, max_tokens_in_flight, batching)
        require(
            isinstance(observers, Sequence),
            f"observers must be a list of observers, got {_shortly(observers)}",
        )
        decoder = replace(
            self.decoder,
            observers=(*self.decoder.observers, *observers),
            record=record or self.decoder.record,
        )
        request, reference_forwards, lost = self._with_reference(request, batch_size)

        def run(own: Decoder, rows: Request) -> Result:
            if batch_size is None and max_tokens_in_flight is None:
                return own.decode(rows)
            together = rows.rows if batch_size is None else batch_size
            return Engine(own, together, max_tokens_in_flight, batching).decode(rows)

        try:
            if vote is None:
                result = run(decoder, request)
            else:
                result = Result(tuple(vote(decoder, request, run)))
        except Interrupted as stop:
            # of several decodes of a prompt, what the first has come to
            first = replace(stop.result, rows=stop.result.rows[: request.rows])
            partial = self._with_texts(first, reference_forwards)
            raise Interrupted(partial) from None
        rows = tuple(
            Outcome(finish_reason="error", error=f"the reference decode failed: {error}")
            if error
            else row
            for row, error in zip(result.rows, lost, strict=True)
        )
        return self._with_texts(replace(result, rows=rows), reference_forwards)

    @property
    def needs_reference(self) -> bool:
        """Whether a part of the strategy needs the result of a reference decode."""
        return any(part.needs_reference for _, part in self.decoder.strategy.parts())

    @cached_property
    def sequential(self) -> TextDecoder:
        """The baseline: `strategy=sequential` without a cache; model, schedule, sampler as here."""
        decoder = replace(
            self.decoder, strategy=_sequential_strategy(), cache=NoCache(), observers=()
        )
        return replace(self, decoder=decoder)

    def check(self, request: Request, sources: Sequence[str] = ()) -> None:
        """Refuse a request that does not fit, naming the source of its prompt.

        Args:
            request: What is to be decoded.
            sources: Where each prompt came from, for messages.

        Raises:
            ConfigError: Model, schedule or strategy cannot serve it.
        """
        limit = self.model.denoiser.max_length
        for row, source in enumerate(sources):
            prompt, columns = len(request.prompts[row]), request.lengths[row]
            if limit is not None and prompt + columns > limit:
                raise ConfigError(
                    f"{source} has {prompt} tokens; with max_new_tokens={columns} that is more "
                    f"than the {limit} positions of the model"
                )
        self.decoder.schedule.check(request)
        check_parameters(self.decoder.strategy, request, sources)

    def warm_up(
        self, request: Request, batch_size: int, max_tokens_in_flight: int | None = None
    ) -> None:
        """One step of a decode whose result is dropped, so that timings start warm.

        Whatever goes wrong in it is left to the decode itself, which knows what to do about it.

        Args:
            request: What will be decoded.
            batch_size: Rows decoded together.
            max_tokens_in_flight: See `Engine`.

        Raises:
            DeviceError: Nothing can be computed any more.
        """
        bound = (
            request.width * request.rows if max_tokens_in_flight is None else max_tokens_in_flight
        )
        rows = range(min(batch_size, request.rows, max(1, bound // request.width)))
        if self.needs_reference and request.reference is None:
            plain = replace(request, parameters=None)
            self.sequential.warm_up(plain, batch_size, max_tokens_in_flight)
            return
        try:
            run = Run(replace(self.decoder, observers=()), request.take(rows))
            run.admit(rows)
            if run.live:
                run.step()
        except DeviceError:
            raise
        except Exception as error:
            log.debug("the warm-up step failed: %s", error)

    def piece(self, token: int) -> str:
        """The text of one token for a picture of the canvas; end of text is a small square."""
        if token in self.model.denoiser.vocab.eot_ids:
            return END_SIGN
        if not self.model.tokenizer.reads_text:
            return f" {token}"
        return self.model.tokenizer.decode([token], keep_special=True)

    def encode(
        self,
        prompt: Prompt,
        row: int = 0,
        chat: bool = True,
        *,
        continue_final: bool | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """Token ids of a prompt, the same wherever it is given.

        Args:
            prompt: A string, a chat or token ids; an empty one is no prompt at all.
            row: Its number, for messages.
            chat: Whether a string becomes a user's message where there is a chat template.
            continue_final: Whether the last message of a chat is continued; None: if it is the
                assistant's.
            arguments: What the chat template is given beside the messages.

        Raises:
            ConfigError: The prompt is none of these, or the chat template does not take it.
            CheckpointError: The tokenizer or the chat template is missing or damaged.
        """
        tokenizer = self.model.tokenizer
        if isinstance(prompt, str):
            if not (chat and prompt and tokenizer.has_chat_template):
                return tuple(tokenizer.encode(prompt))
            prompt = [{"role": "user", "content": prompt}]
        if isinstance(prompt, _BYTES):
            raise ConfigError(
                f"prompt {row} must be a text, a chat or token ids, got {type(prompt).__name__}; "
                "decode bytes to a text first, e.g. prompt.decode()"
            )
        if not isinstance(prompt, Sequence):
            raise ConfigError(
                f"prompt {row} must be a text, a chat or token ids, got {type(prompt).__name__}"
            )
        if not prompt or not isinstance(prompt[0], Mapping):
            return tuple(_whole(f"prompt {row} must hold token ids", token) for token in prompt)
        try:
            messages = plain_messages(prompt)
            ids = tokenizer.encode_chat(
                messages, continue_final=continue_final, arguments=arguments
            )
        except ConfigError as error:
            raise ConfigError(f"prompt {row}: {error}") from None
        return tuple(ids)

    def _sampling(self, *given: float | int | None) -> TextDecoder:
        """The same parts with these settings of the sampler, None for those that stay."""
        names = ("temperature", "top_p", "top_k", "min_p")
        wanted: dict[str, Any] = {
            name: value for name, value in zip(names, given, strict=True) if value is not None
        }
        sampler = self.decoder.sampler
        if not wanted:
            return self
        if isinstance(sampler, Categorical):
            sampler = replace(sampler, **wanted)
        elif isinstance(sampler, Greedy):
            sampler = Categorical(**wanted)
        else:
            raise ConfigError(
                f"{', '.join(wanted)} cannot be set for the sampler {type(sampler).__name__}; "
                "use load(..., sampler='categorical')"
            )
        return replace(self, decoder=replace(self.decoder, sampler=sampler))

    def infilling(
        self, infill: Any, max_new_tokens: int | Sequence[int], rows: int
    ) -> tuple[int | tuple[int, ...], tuple[Mapping[int, int] | None, ...] | None]:
        """`max_new_tokens` and fixed tokens of a request; a template sets the length of its row.

        Args:
            infill: See `generate`.
            max_new_tokens: See `generate`.
            rows: Number of rows of the request.

        Raises:
            ConfigError: They do not fit.
        """
        length = _lengths(max_new_tokens)
        if infill is None:
            return length, None
        infill = _listed(infill)
        single = isinstance(infill, str | Mapping | _BYTES) or _is_ids(infill)
        templates = [infill] if single or not isinstance(infill, Sequence) else list(infill)
        for row, template in enumerate(templates):
            fits = template is None or isinstance(template, str | Mapping) or _is_ids(template)
            if not fits or template == "":
                raise ConfigError(
                    f"infill of prompt {row} must be a text with {MASK_WORD}, a list of ids, or "
                    f"{{offset: id}}, got {_shortly(template)}"
                )
        if len(templates) != rows:
            raise ConfigError(
                f"infill must have one entry per prompt ({rows}), got {len(templates)}"
            )
        lengths = list(length) if isinstance(length, tuple) else [length] * rows
        fixed: list[Mapping[int, int] | None] = []
        for row, template in enumerate(templates):
            if template is None or isinstance(template, Mapping):
                fixed.append(template)
                continue
            ids = self._template(template) if isinstance(template, str) else list(template)
            lengths[row] = len(ids)
            mask = self.model.denoiser.vocab.mask_id
            fixed.append({place: token for place, token in enumerate(ids) if token != mask})
        return tuple(lengths), tuple(fixed)

    def _template(self, text: str) -> list[int]:
        """Ids of a text in which `[MASK]` stands for each open position."""
        tokenizer, mask = self.model.tokenizer, self.model.denoiser.vocab.mask_id
        ids: list[int] = []
        for number, piece in enumerate(text.split(MASK_WORD)):
            ids += [mask] if number else []
            own = tokenizer.encode(piece, framed=False) if piece else []
            if tokenizer.decode(own, keep_special=True) != piece:
                raise ConfigError(
                    f"infill: {piece!r} has no exact token ids in this model; give ids instead"
                )
            ids += own
        return ids

    def _with_texts(self, result: Result, reference_forwards: tuple[int, ...]) -> Result:
        pieces: dict[int, str] = {}

        def told(row: Outcome) -> Outcome:
            for token in set(row.tokens) - pieces.keys() if self.model.tokenizer.reads_text else ():
                pieces[token] = self.piece(token)
            own = tuple(pieces[token] for token in row.tokens) if pieces else ()
            return replace(row, text=self.text(row), pieces=own)

        rows = [
            replace(
                told(row),
                reference_forwards=forwards,
                candidates=tuple(map(told, row.candidates)),
            )
            for row, forwards in zip(result.rows, reference_forwards, strict=True)
        ]
        return replace(result, rows=tuple(rows))

    def text(self, row: Outcome) -> str:
        """The delivered tokens of a row as text without special tokens; "" without a tokenizer."""
        if not self.model.tokenizer.reads_text:
            return ""
        return self.model.tokenizer.decode(list(row.delivered))


@cache
def _sequential_strategy() -> Strategy:
    strategy: Strategy = build_node(compose_checked(["strategy=sequential"]), "strategy")
    return strategy


def _for_every_row(
    parameters: Parameters | Sequence[Parameters | None] | None, rows: int
) -> tuple[Parameters | None, ...] | None:
    if parameters is None:
        return None
    many = (parameters,) * rows if isinstance(parameters, Mapping) else parameters
    entries = many if isinstance(many, Sequence) else [many]
    for own in entries:
        named = isinstance(own, Mapping) and all(isinstance(key, str) for key in own)
        if own is not None and not named:
            raise ConfigError(
                "parameters must be {'full key': value}, or one of these or None for each prompt, "
                f"got {_shortly(own)}"
            )
    return tuple(entries)


def _cut(result: Result, stops: Sequence[str]) -> Result:
    """The result with each text up to the first stop text in it, those of candidates as well."""
    if not stops:
        return result

    def shortened(row: Outcome) -> Outcome:
        candidates = tuple(map(shortened, row.candidates))
        return replace(row, text=cut(row.text, stops), candidates=candidates)

    return replace(result, rows=tuple(map(shortened, result.rows)))


def _full_length(result: Result, request: Request, decoder: Decoder) -> tuple[tuple[int, ...], ...]:
    """The tokens of a reference decode, with end of text where it had stopped."""
    filler = decoder.denoiser.vocab.filler
    return tuple(
        (*row, *[filler] * (length - len(row)))
        for row, length in zip(result.sequences, request.lengths, strict=True)
    )


def _is_ids(value: Any) -> bool:
    listed = isinstance(value, Sequence) and not isinstance(value, _BYTES)
    return listed and bool(value) and isinstance(value[0], Integral)


def _as_list(prompts: Any) -> list[Prompt]:
    """One prompt as a list of one; tensors and arrays, also inside of it, as lists."""
    prompts = _listed(prompts)
    if isinstance(prompts, str | Mapping | _BYTES) or not isinstance(prompts, Sequence):
        return [prompts]  # type: ignore[list-item]  # what is no prompt is refused by `encode`
    if prompts and isinstance(prompts[0], Integral | Mapping):
        return [prompts]
    return [_listed(prompt) for prompt in prompts]


def _listed(value: Any) -> Any:
    """The values of a tensor or array; anything else as it is."""
    return value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value


def _whole(what: str, value: Any) -> int:
    """A whole number of Python's, numpy's or torch's; raises `ConfigError` for anything else."""
    number = value.item() if isinstance(value, torch.Tensor) and value.dim() == 0 else value
    if isinstance(number, bool | np.bool_) or not isinstance(number, Integral):
        raise ConfigError(f"{what}, got {value!r}")
    return int(number)


def _lengths(given: Any) -> int | tuple[int, ...]:
    """`max_new_tokens` as whole numbers."""
    what = "max_new_tokens must be a whole number >= 1, or one for each prompt"
    values = _listed(given)
    if isinstance(values, Sequence) and not isinstance(values, str):
        return tuple(_whole(what, value) for value in values)
    return _whole(what, values)


def _seeds(seed: Any, rows: int) -> tuple[int, ...]:
    """The seed of each row."""
    what = f"seed must be a whole number from 0 to {2**63 - max(rows, 1)}"
    first = 0 if seed is None else _whole(what, seed)
    if not 0 <= first <= 2**63 - max(rows, 1):
        raise ConfigError(f"{what}, got {seed!r}")
    return tuple(range(first, first + rows))


def _refuse_unknown(unknown: Mapping[str, Any], method: Any) -> None:
    own = ("prompt", "prompts", "unknown", "return")
    names = [name for name in method.__annotations__ if name not in own]
    for name in unknown:
        raise ConfigError(
            f"{method.__name__}() has no option {name!r}{answer_in_python(name, names)}; it takes "
            f"{', '.join(names)}"
        )


class _Streaming(Observer):
    """Tells a streamer: final tokens from left to right, and drafts of the whole canvas."""

    def __init__(self, streamer: Streamer, prompt: Sequence[int], early: bool) -> None:
        self.streamer = streamer
        self.early = early
        self.told = 0
        streamer.put(torch.tensor(prompt, dtype=torch.long))

    def step(self, change: Change, snapshot: Snapshot) -> None:
        """One draft; then what is decided without a gap, where it cannot be taken back."""
        span = slice(snapshot.start, int(snapshot.horizon[0]))
        tokens, decided = snapshot.tokens[0, span].cpu(), snapshot.decided[0, span].cpu()
        draft = getattr(self.streamer, "put_draft", None)
        if draft is not None:
            draft(tokens)
        ready = int(decided.int().cumprod(0).sum())
        if self.early and ready > self.told:
            self.streamer.put(tokens[self.told : ready])
            self.told = ready

    def finish(self, result: Result) -> None:
        """What is left, then the end."""
        rest = result.sequences[0][self.told :]
        if rest and not result.undecided[0]:
            self.streamer.put(torch.tensor(rest))
        self.streamer.end()


class _CanvasWatch(Observer):
    """What stands on the canvas of the only row, with the confidence of every commit."""

    def __init__(self, piece: Callable[[int], str]) -> None:
        self.piece = cache(piece)
        self.number = self.forwards = 0
        self.tokens: list[int | None] = []
        self.sure: dict[int, float] = {}
        self.fresh: frozenset[int] = frozenset()

    def start(self, request: Request, snapshot: Snapshot) -> None:
        """What was given in advance, which may be all there is."""
        self._take_over(snapshot)

    def step(self, change: Change, snapshot: Snapshot) -> None:
        """Take over the canvas after a step."""
        self.number += 1
        self.forwards += int(change.forwards[0])
        self._take_over(snapshot)
        places = change.index[0][change.written[0]].tolist()
        self.sure |= zip(places, change.probability[0][change.written[0]].tolist(), strict=True)
        self.fresh = frozenset(place for place in places if place < len(self.tokens))

    def _take_over(self, snapshot: Snapshot) -> None:
        span = slice(snapshot.start, int(snapshot.horizon[0]))
        decided, ids = snapshot.decided[0, span].tolist(), snapshot.tokens[0, span].tolist()
        self.tokens = [id if there else None for id, there in zip(ids, decided, strict=True)]

    def step_now(self) -> StreamStep:
        """The last step."""
        return StreamStep(
            number=self.number,
            forwards=self.forwards,
            tokens=tuple(self.tokens),
            pieces=tuple("" if token is None else self.piece(token) for token in self.tokens),
            confidence=tuple(
                None if token is None else self.sure.get(place)
                for place, token in enumerate(self.tokens)
            ),
            fresh=self.fresh,
        )


class _Bar(Observer):
    """A progress bar of decided columns, in terminals and notebooks."""

    def __init__(self, request: Request) -> None:
        from tqdm.auto import tqdm

        self.bar = tqdm(total=sum(request.lengths), unit="column", leave=False)
        self.progress = ProgressObserver(sum(request.lengths), self._tell)

    def _tell(self, done: float) -> None:
        self.bar.update(done - self.bar.n)

    def start(self, request: Request, snapshot: Snapshot) -> None:
        self.progress.start(request, snapshot)

    def step(self, change: Change, snapshot: Snapshot) -> None:
        self.progress.step(change, snapshot)

    def finish(self, result: Result) -> None:
        self.bar.close()


__all__ = ["DEFAULT_NEW_TOKENS", "MASK_WORD", "Streamer", "TextDecoder", "build", "load"]
