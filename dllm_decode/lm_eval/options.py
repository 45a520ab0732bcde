"""What a request of the harness asks for, read from its `generation_kwargs`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lm_eval.utils import warning_once

from dllm_decode.decoding.sampling import Categorical, Greedy, Sampler
from dllm_decode.errors import ConfigError
from dllm_decode.lm_eval.overrides import GROUPS, as_override
from dllm_decode.models.stop_texts import stop_texts

log = logging.getLogger(__name__)

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
STOPS = ("until", "stop", "stop_strings", "stop_sequences")
SAMPLING = ("temperature", "top_p", "top_k", "min_p")
# Options of other models' search that say "nothing of the kind".
NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1}


@dataclass(frozen=True)
class Options:
    """What one request asks for.

    Attributes:
        length: Columns to decode [tokens], at least 1.
        stops: Texts that end the answer.
        sampling: Values of `SAMPLING` that were given.
        do_sample: Whether tokens are drawn; None: not said.
        overrides: Settings of the decoder, as on the command line.

    Examples:
        >>> Options(length=64, stops=(";",)).stops
        (';',)
    """

    length: int
    stops: tuple[str, ...] = ()
    sampling: tuple[tuple[str, float], ...] = ()
    do_sample: bool | None = None
    overrides: tuple[str, ...] = ()

    def sampler(self, configured: Sampler) -> Sampler:
        """The sampler of this request.

        `temperature: 0` and `do_sample: false` are greedy whatever stands beside them;
        `do_sample: true` or a temperature draws, at temperature 1 if none is given or configured;
        without either, the configured sampler decides, and truncations alone (`top_p`) draw
        nothing, as everywhere in the harness.

        Args:
            configured: The decoder's own.

        Raises:
            ConfigError: For values that cannot be, and for samplers that have no temperature.
        """
        given: dict[str, Any] = dict(self.sampling)
        if self.do_sample is False or given.get("temperature") == 0:
            if isinstance(configured, Categorical):
                return replace(configured, temperature=0.0)
            return Greedy()
        silent = self.do_sample is None and "temperature" not in given
        if silent and not isinstance(configured, Categorical):
            if given:
                warning_once(
                    log,
                    f"generation_kwargs: {', '.join(given)} without temperature or do_sample: true "
                    "changes nothing; tokens are proposed greedily",
                )
            return configured
        if not given and self.do_sample is None:
            return configured
        if not isinstance(configured, Categorical | Greedy):
            raise ConfigError(
                f"generation_kwargs: {', '.join(given) or 'do_sample'} cannot be set for the "
                f"sampler {type(configured).__name__}; use sampler=categorical"
            )
        base = configured if isinstance(configured, Categorical) else Categorical()
        if base.temperature == 0 and self.do_sample:
            base = replace(base, temperature=1.0)
        try:
            return replace(base, **given)
        except ConfigError as error:
            raise ConfigError(f"generation_kwargs: {error}") from None


def read_options(options: Mapping[str, Any], default_length: int) -> Options:
    """The options of one request.

    Args:
        options: The request's `generation_kwargs`: a length (`max_gen_toks`, ...), stop texts
            (`until`, ...), temperature, top_p, top_k, min_p, do_sample, and overrides with their
            full key, e.g. `strategy.select.threshold`. None counts as not given.
        default_length: Columns where no length is given.

    Raises:
        ConfigError: For options that are unknown or have values that cannot be.
    """
    given = {key: value for key, value in options.items() if value is not None}
    own = {key: value for key, value in given.items() if _group_of(key) in GROUPS}
    for key, value in given.items():
        if key not in (*LENGTHS, *STOPS, *SAMPLING, *own, "do_sample"):
            _check_foreign(key, value)
    lengths = [whole(f"generation_kwargs: {key}", given[key]) for key in LENGTHS if key in given]
    sampling = {key: _number(key, given[key]) for key in SAMPLING if key in given}
    if sampling.get("top_k", 0) == -1:  # "off" elsewhere
        sampling["top_k"] = 0
    if "top_k" in sampling and sampling["top_k"] == int(sampling["top_k"]):
        sampling["top_k"] = int(sampling["top_k"])
    return Options(
        length=lengths[0] if lengths else default_length,
        stops=tuple(
            text
            for key in STOPS
            for text in stop_texts(f"generation_kwargs: {key}", given.get(key))
        ),
        sampling=tuple(sampling.items()),
        do_sample=_truth("do_sample", given.get("do_sample")),
        overrides=tuple(as_override(key, value) for key, value in own.items()),
    )


def whole(name: str, value: Any, minimum: int = 1) -> int:
    """A whole number that may come as a text or a float; raises `ConfigError` for others.

    Args:
        name: Of the option, for messages.
        value: What was given.
        minimum: Smallest number.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not minimum <= number < math.inf or number != math.floor(number):
        raise ConfigError(f"{name} must be a whole number >= {minimum}, got {value!r}")
    return int(number)


def _group_of(key: str) -> str:
    return key.lstrip("+~").replace("/", ".").split(".")[0]


def _check_foreign(key: str, value: Any) -> None:
    if key in NEUTRAL and value == NEUTRAL[key]:
        return
    if key in NEUTRAL:
        raise ConfigError(f"generation_kwargs: {key} is not supported, got {value!r}")
    if key == "max_length":
        raise ConfigError(
            "generation_kwargs: max_length counts the context in some places and not in others; "
            "give max_gen_toks, the number of columns to decode"
        )
    raise ConfigError(
        f"generation_kwargs: unknown option {key!r}; known are {', '.join(LENGTHS)}, "
        f"{', '.join(STOPS)}, {', '.join(SAMPLING)}, do_sample, and settings of "
        f"{', '.join(GROUPS)} with their full key (strategy.select.threshold)"
    )


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"generation_kwargs: {name} must be a number, got {value!r}") from None


def _truth(name: str, value: Any) -> bool | None:
    words = {"true": True, "false": False}
    if value is None or isinstance(value, bool):
        return value
    if str(value).lower() in words:
        return words[str(value).lower()]
    raise ConfigError(f"generation_kwargs: {name} must be true or false, got {value!r}")
