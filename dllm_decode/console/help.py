"""What `--help` says on one screen, and what `--help=GROUP` and `--help=GROUP.OPTION` say more."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from dllm_decode.errors import ConfigError, did_you_mean

CONF = "dllm_decode.conf"
# A setting, or a group in the list of defaults, with the comment behind it.
_SETTING = re.compile(r"^(\w+): ([^#$\n]*?) *# (.+)$", re.MULTILINE)
_DEFAULT = re.compile(r"^  - (\w+): (\w+) *# (.+)$", re.MULTILINE)
# What most people set; --help=settings shows the others as well.
_FIRST = ("prompt", "prompts", "max_new_tokens", "seed", "batch_size", "compare", "runs")
_EXAMPLES = """
  python -m dllm_decode strategy=credit model=llada
  python -m dllm_decode strategy=threshold threshold=0.8 prompt="Sort: 1 Eva 2 Ben 3 Cleo"
  python -m dllm_decode model=GSAI-ML/LLaDA-8B-Instruct temperature=0.7
  python -m dllm_decode -m strategy=threshold,credit threshold=0.7,0.9     (a sweep)"""
_FLAGS = """
  --help=strategy          the options of a group, a line each
  --help=strategy.credit   an option: every setting, range, default
  --help=settings          every setting of the whole program
  --cfg job, --version     the composed configuration; the version
  -m, --config-dir FOLDER  a sweep over values with commas; more options
  debug=true               errors with their traceback"""
_MORE = "more: docs/cli.md, docs/configuration.md; Hydra's flags: --hydra-help"


def help_text(groups: Sequence[str], options: Callable[[str], Sequence[str]]) -> str:
    """The text of `--help`: one screen.

    Args:
        groups: Every group, inner ones included.
        options: Gives the options of a group, those of other packages included.
    """
    width = _width()
    lines = ["dllm_decode: decoding strategies for diffusion language models", ""]
    lines += [f"usage: python -m dllm_decode [group=option ...] [key=value ...]{_EXAMPLES}"]
    lines += ["", "Groups (group=option)"]
    chosen = {group: (option, about) for group, option, about in _DEFAULT.findall(_text("config"))}
    for group in groups:
        option, about = chosen.get(group, ("", ""))
        if "/" not in group:
            lines.append(_options(group, options(group), option, about, width))
    inner = [group for group in groups if "/" in group]
    lines.append(f"  {', '.join(inner)}")
    lines += ["", "Settings (key=value)"]
    for key, value, about in _SETTING.findall(_text("config")):
        if key in _FIRST:
            lines.append(_line(f"{key}={value}", about, width))
    return "\n".join([*lines, "", f"Flags{_FLAGS}", _MORE])


def help_about(
    name: str,
    groups: Sequence[str],
    options: Callable[[str], Sequence[str]],
    compose: Callable[[list[str]], Mapping[str, Any]],
    describe: Callable[[str], tuple[str, Mapping[str, str]]],
) -> str:
    """The text of `--help=NAME`.

    Args:
        name: `settings`, a group, or a group and one of its options behind a dot.
        groups: Every group.
        options: Gives the options of a group.
        compose: The configuration of some overrides, as plain values.
        describe: What the docstring behind a `_target_` says, in a sentence and of each argument.

    Raises:
        ConfigError: There is no such thing.
    """
    if name == "settings":
        found = _SETTING.findall(_text("config"))
        return "\n".join(line for k, v, text in found for line in _wrapped(f"{k}={v}", text, 30))
    path = name.replace("/", ".").strip(".")
    known = {group.replace("/", "."): group for group in groups}
    group = max((g for g in known if f"{path}.".startswith(f"{g}.")), key=len, default="")
    if not group:
        raise ConfigError(
            f"--help={name}: there is no such group{did_you_mean(path, list(known))}; there are "
            f"settings, {', '.join(known)}"
        )
    option = path[len(group) + 1 :]
    there = options(known[group])
    if not option:
        lines = [line for own in there for line in _wrapped(own, _about(known[group], own), 22)]
        return "\n".join([f"{known[group]}=OPTION", "", *lines, "", f"more: --help={group}.OPTION"])
    if option not in there:
        raise ConfigError(
            f"--help={name}: {known[group]} has no {option}{did_you_mean(option, list(there))}; it "
            f"has {', '.join(there)}"
        )
    return "\n".join(_explained(known[group], option, compose, describe))


def _explained(
    group: str,
    option: str,
    compose: Callable[[list[str]], Mapping[str, Any]],
    describe: Callable[[str], tuple[str, Mapping[str, str]]],
) -> Iterator[str]:
    """An option: what it is, and every setting of every part that it consists of."""
    yield f"{group}={option}"
    yield from textwrap.wrap(_about(group, option), _width())
    if group == "experiment":
        yield f"what it sets: --cfg job experiment={option}"
        return
    several = group.rpartition("/")[2] in ("transforms", "filters", "stop")
    words = [f"{group}=[{option}]" if several else f"{group}={option}"]
    if group.startswith("strategy/"):
        words.insert(0, "strategy=pipeline")
    place = group.replace("/", ".")
    if group == "bench":  # what one command measures: its options are that command's settings
        words.insert(0, "task=bench")
        place = "task"
    node: Any = compose(words)
    for key in place.split("."):
        node = node[key]
    if several and option in node:
        node, place = node[option], f"{place}.{option}"
    example = ""
    for path, part in _parts(place, node):
        summary, arguments = describe(str(part["_target_"]))
        settings = [
            (key, value)
            for key, value in part.items()
            if key != "_target_" and not _has_parts(value)
        ]
        yield ""
        yield from textwrap.wrap(f"{path}: {summary}", _width())
        for key, value in settings:
            example = f"{path}.{key}={_shown(value)}"
            yield from _wrapped(f".{key}={_shown(value)}", arguments.get(key, ""), 28)
    if example:
        yield from ("", f"a setting is written with the path of its part: {example}")


def _has_parts(value: Any) -> bool:
    """Whether something in a value has a class behind it, or could have."""
    if not isinstance(value, Mapping):
        return False
    return not value or "_target_" in value or any(map(_has_parts, value.values()))


def _shown(value: Any) -> str:
    """A value as it is written on the command line."""
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _parts(path: str, node: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every part of a configuration with a class behind it."""
    if "_target_" in node:
        yield path, node
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _parts(f"{path}.{key}", value)


def _about(group: str, option: str) -> str:
    """The comment at the top of an option's file, "" for one of another package."""
    try:
        text = _text(f"{group}/{option}")
    except OSError:
        return ""
    found = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            found.append(line.lstrip("# ").strip())
    return " ".join(found)


def _text(name: str) -> str:
    return (files(CONF) / f"{name}.yaml").read_text(encoding="utf-8")


def _width() -> int:
    return max(60, min(120, shutil.get_terminal_size((100, 0)).columns))


def _options(group: str, options: Sequence[str], default: str, about: str, width: int) -> str:
    """A group in one line: what it is for, its default, and as many options as fit."""
    head = f"  {group:<12}" + (f"{about}: " if about else "")
    names = list(dict.fromkeys([*([default] if default else []), *options]))
    for count in range(len(names), 0, -1):
        more = f" ... ({len(options)})" if count < len(names) else ""
        line = head + ", ".join(names[:count]) + more
        if len(line) <= width:
            return line
    return head + default


def _line(key: str, about: str, width: int) -> str:
    line = f"  {key:<24}{about}"
    if len(line) <= width:
        return line
    return f"{line[: width - 3].rpartition(' ')[0].rstrip()} ..."


def _wrapped(key: str, about: str, indent: int) -> list[str]:
    head = f"  {key}  ".ljust(indent)
    lines = textwrap.wrap(
        f"{head}{about}",
        _width(),
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )
    return lines or [head.rstrip()]
