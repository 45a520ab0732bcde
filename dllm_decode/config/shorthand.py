"""What people type for a setting or an option, and what it is called here.

`temperature=0.7` on the command line, `load(threshold=0.8)` and `generate(gen_length=32)` are
answered from one table: a word whose meaning is unique for the chosen parts stands for the full
key, any other is refused with what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dllm_decode.errors import ConfigError, did_you_mean

# What other projects, and other places of this one, call an option of ours.
SAME = {
    "gen_length": "max_new_tokens",
    "gen_len": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "max_gen_toks": "max_new_tokens",
    "block_length": "schedule.length",
    "block_size": "schedule.length",
    "alg_temp": "strategy.select.position_temperature",
    "eos_token_id": "model.eot_ids",
    "mask_token_id": "model.mask_id",
    "torch_dtype": "model.dtype",
    "check_every": "sync_every",
    "device": "model.device",
}

# Settings of a sampler that draws, which the default one does not.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h")

# What is said or done in another way here.
OTHERWISE = {
    "do_sample": "give temperature=..., or choose sampler=categorical",
    "max_length": "give max_new_tokens, which does not count the prompt",
    "steps": "give strategy.select.steps (Dream's strategies), strategy.select.steps_per_block "
    "(low_confidence, random) or strategy.select.tokens_per_step (topk)",
    "remasking": "choose the strategy: strategy=low_confidence or strategy=random",
    "alg": "choose the strategy: strategy=dream, dream_maskgit_plus, dream_topk_margin, "
    "dream_origin",
    "input_ids": "give the token ids as the prompt",
    "num_return_sequences": "give the prompt several times, each has a seed of its own, or let "
    "several decodes vote (task=eval task.n=...)",
    "cfg_scale": "give guidance=..., which is the same scale",
}

# Nodes of the configuration that a bare word is looked up in.
_PLACES = ("strategy", "schedule", "cache", "sampler", "model", "task")
_WORD = re.compile(r"(?P<mark>[+~]{0,2})(?P<key>[^=]*)(?P<sign>=?)(?P<value>.*)", re.DOTALL)
# A folder, or the id of a repository on the Hub: no option of the group `model` looks like one.
_CHECKPOINT = re.compile(
    r"""^(['"]?)(bundled:.+|[.~]?[/\\].*|\.{1,2}|~.*|[A-Za-z]:[/\\].*|.*/.*)\1$"""
)


@dataclass(frozen=True)
class KnownNames:
    """What `expand` has to know of the configuration.

    Attributes:
        top: Names that may stand at the top of the configuration, groups included.
        options: Gives the options of a group, those of other packages included.
        keys: Gives the full keys of the configuration that overrides compose.

    Examples:
        >>> rules = ("credit", "threshold")
        >>> known = KnownNames(("seed",), lambda group: rules, lambda overrides: ("seed",))
        >>> list(known.options("strategy"))
        ['credit', 'threshold']
    """

    top: Sequence[str]
    options: Callable[[str], Sequence[str]]
    keys: Callable[[list[str]], Sequence[str]]


def expand(overrides: Iterable[str], known: KnownNames) -> list[str]:
    """The overrides with every shorthand written out.

    `model=FOLDER` and `model=HUB/ID` choose the checkpoint; `strategy=RULE` for a bare selection
    rule, and `strategy/select=RULE` without a strategy, run it in a pipeline with the default stop
    rule and nothing in front of it; a setting without its place, such as `threshold=0.8`, gets it.

    Args:
        overrides: As on the command line.
        known: The configuration that they belong to.

    Raises:
        ConfigError: A word has no meaning, or several, with the parts that are chosen.
    """
    words = [found for text in overrides for found in _option(text, known)]
    words = _bare_selection(words)
    bare = [text for text in words if _is_bare(text, known.top)]
    if not bare:
        return words
    rest = [text for text in words if text not in bare]
    if any(_parsed(text)["key"] in SAMPLING for text in bare):
        rest = _drawing(rest, [_parsed(text)["key"] for text in bare])
    keys = known.keys(rest)
    return [*rest, *(_placed(text, keys, known.top) for text in bare)]


def _parsed(text: str) -> Mapping[str, str]:
    found = _WORD.fullmatch(text)
    assert found is not None
    return found.groupdict()


def _chooses(words: Iterable[str], *groups: str) -> bool:
    """Whether one of the words chooses an option of one of the groups."""
    return any(_parsed(text)["key"] in groups and _parsed(text)["sign"] for text in words)


def _option(text: str, known: KnownNames) -> list[str]:
    """One word; two for an option that is short for a choice in an inner group."""
    parts = _parsed(text)
    group, value = parts["key"], parts["value"]
    if not parts["sign"] or group not in ("model", "strategy") or parts["mark"] == "~":
        return [text]
    if group == "model" and _CHECKPOINT.fullmatch(value) and value not in known.options(group):
        path = value if value[0] in "'\"" else quote(value)
        return ["model=checkpoint", f"model.checkpoint={path}"]
    if group == "model" or value in known.options("strategy"):
        return [text]
    if value in known.options("strategy/select"):
        return ["strategy=pipeline", f"strategy/select={value}"]
    return [text]


def quote(text: str) -> str:
    """A text as a value of Hydra's grammar, in which a backslash is special only before a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + m[2].replace("'", "\\'"), text)
    return f"'{escaped}'"


def _bare_selection(words: list[str]) -> list[str]:
    """A selection rule alone does not run behind the transforms of the default strategy."""
    if _chooses(words, "strategy/select") and not _chooses(words, "strategy", "experiment"):
        return ["strategy=pipeline", *words]
    return words


def _is_bare(text: str, top: Sequence[str]) -> bool:
    """Whether a word sets something at the top that is not there."""
    parts = _parsed(text)
    key = parts["key"]
    plain = parts["sign"] and not parts["mark"] and re.fullmatch(r"\w+", key)
    return bool(plain) and key not in top


def _drawing(words: list[str], asked: Sequence[str]) -> list[str]:
    """The words with a sampler that draws, where none was chosen."""
    greedy = [text for text in words if text in ("sampler=greedy", "sampler='greedy'")]
    if greedy:
        name = next(key for key in asked if key in SAMPLING)
        raise ConfigError(f"{name} is nothing for sampler=greedy; use sampler=categorical")
    return words if _chooses(words, "sampler", "experiment") else ["sampler=categorical", *words]


def _placed(text: str, keys: Sequence[str], top: Sequence[str]) -> str:
    """A setting with its full key; raises `ConfigError` where that is not one key."""
    parts = _parsed(text)
    name = parts["key"]
    ours = SAME.get(name, "")
    found = [ours] if ours in top or ours in keys else _ending_in(ours or name, name, keys)
    if found == [ours] and ours not in top:
        found += _ending_in(ours, name, keys, ("task",))  # `device` of a task that has its own
    if len(found) == 1 and not (ours and found != [ours]):
        return f"{found[0]}={parts['value']}"
    raise ConfigError(f"unknown key {name}; {_answer(name, found, keys, top)}")


def _ending_in(
    key: str, name: str, keys: Sequence[str], places: Sequence[str] = _PLACES
) -> list[str]:
    """Full keys with the same last name."""
    if name in OTHERWISE:  # another project's meaning is nearer than that of our model's setting
        places = [place for place in places if place != "model"]
    last = key.rpartition(".")[2]
    return [k for k in keys if k.rpartition(".")[2] == last and k.partition(".")[0] in places]


def _answer(name: str, found: Sequence[str], keys: Sequence[str], top: Sequence[str]) -> str:
    """What to write instead of a word that has no meaning of its own."""
    if len(found) > 1:
        return f"several parts have it, so say which: {', '.join(found)}"
    if name in SAME:
        near = f"; did you mean {found[0]}?" if found else ""
        return f"it is called {SAME[name]}, which the chosen parts do not have{near}"
    if name in OTHERWISE:
        return OTHERWISE[name]
    last = {key.rpartition(".")[2]: key for key in keys if key.partition(".")[0] in _PLACES}
    near = did_you_mean(name, top) or did_you_mean(name, last, likeness=0.75)
    return f"{near}; the configuration takes {', '.join(top)}".removeprefix("; ")


def answer_in_python(name: str, allowed: Sequence[str]) -> str:
    """What to write instead of a keyword that a function does not take, "" where that is not known.

    Args:
        name: The keyword.
        allowed: Keywords that the function takes.
    """
    ours = SAME.get(name)
    if ours in allowed:
        return f"; it is called {ours}"
    if ours is not None:
        return f"; it is a setting: load(..., overrides=['{ours}=...'])"
    if name in OTHERWISE:
        return f"; {OTHERWISE[name]}"
    return did_you_mean(name, allowed)


__all__ = [
    "OTHERWISE",
    "SAME",
    "SAMPLING",
    "KnownNames",
    "answer_in_python",
    "expand",
    "quote",
]
