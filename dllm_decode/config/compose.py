"""Composing the configuration and refusing what it should not contain, before anything is built."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError  # type: ignore[import-untyped]

from dllm_decode.config.hydra_application import REFUSALS, Application, application
from dllm_decode.config.shorthand import KnownNames, expand
from dllm_decode.config.signatures import nodes, parameters_of
from dllm_decode.errors import ConfigError, did_you_mean, require_count

CONF = "dllm_decode.conf"
_RESERVED = ("_target_", "_args_", "_convert_", "_recursive_", "_partial_")
_RUNNING_CODE = (
    "generated code is run and graded by lm-evaluation-harness: python -m dllm_decode.lm_eval, see "
    "docs/evaluate.md"
)
_GONE = {
    "task.run_code": _RUNNING_CODE,
    "task.code_seconds": _RUNNING_CODE,
    "task.pages": "the pages of the repository are filled by docs/tools/fill_pages.py",
    "task=model_card": "the model card is measured in the repository: python docs/tools/model_card",
}
# Settings that tasks read as paths; those of checkpoints and prompts may begin at a home anyway.
_PATHS = ("runs", "output", "data", "shots", "preface", "markdown")
_LISTS = ("strategy/transforms", "strategy/filters")
_NEEDED = ("task", "model", "schedule", "cache", "sampler", "strategy", "trace", "display")
_SLOTS = ("strategy.transforms", "strategy.filters", "strategy.stop")


class InstalledConfigurations(SearchPathPlugin):  # type: ignore[misc] # hydra is untyped here
    """Adds the configuration packages that installed distributions announce.

    A distribution announces one by an entry point of the group `dllm_decode.conf` whose value is
    the package, e.g. `acme = "acme.conf"`. Nothing of it is imported.

    Examples:
        >>> issubclass(InstalledConfigurations, SearchPathPlugin)
        True
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append every announced package."""
        for entry in entry_points(group=CONF):
            search_path.append(entry.name, f"pkg://{entry.value}")


def register_search_path() -> None:
    """Make Hydra look into the packages that `InstalledConfigurations` finds; may be repeated."""
    Plugins.instance().register(InstalledConfigurations)


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of a command line, without Hydra's own node; may be called in any thread.

    Args:
        overrides: As on the command line, shorthands included.

    Raises:
        ConfigError: For anything Hydra refuses.
    """
    return _composed(overrides)[0]


def _composed(overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The configuration, and its overrides without shorthands."""
    app = hydra_application()
    words = written_out(app, overrides)
    cfg = compose_with_hydra(app, words)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, words


def without_shorthands(overrides: Sequence[str]) -> list[str]:
    """The overrides of one run as `compose` reads them; raises `ConfigError`."""
    return written_out(hydra_application(), overrides)


def compose_with_hydra(
    app: Application, overrides: Sequence[str], name: str = "config", sweep: bool = False
) -> DictConfig:
    """The configuration with Hydra's own node.

    Args:
        app: Hydra with the package's configuration.
        overrides: Without shorthands.
        name: Of the primary configuration.
        sweep: Whether some of the overrides have several values.

    Raises:
        ConfigError: For anything Hydra refuses.
    """
    try:
        cfg = app.compose(name, overrides, sweep)
    except REFUSALS as error:
        raise explain(error, overrides) from error
    expand_homes(cfg)
    return cfg


def expand_homes(cfg: DictConfig) -> None:
    """Let paths in a configuration that begin with `~` begin at a home folder.

    Args:
        cfg: As Hydra composed it; is changed.
    """
    for key, value in _leaves(OmegaConf.to_container(cfg, resolve=False), ""):
        if key.rpartition(".")[2] not in _PATHS or key.startswith("hydra."):
            continue
        several = value if isinstance(value, list) else [value]
        full = [os.path.expanduser(v) if isinstance(v, str) else v for v in several]
        if full != several:
            OmegaConf.update(cfg, key, full if isinstance(value, list) else full[0])


def hydra_application(folder: Path | None = None) -> Application:
    """Hydra with the configuration of this package and of those that installed ones announce.

    Args:
        folder: One more place for a primary configuration.
    """
    register_search_path()
    if not (files(__package__.rpartition(".")[0]) / "conf").is_dir():
        raise ConfigError(
            "dllm_decode/conf is not a folder: this copy of the project was made without symbolic "
            "links; clone it again with `git clone -c core.symlinks=true` (on Windows in developer "
            "mode), or install a wheel"
        )
    return application(CONF, folder)


def written_out(app: Application, overrides: Sequence[str], sweep: bool = False) -> list[str]:
    """The overrides without shorthands, see `config.shorthand`.

    Args:
        app: Hydra with the package's configuration.
        overrides: As on the command line.
        sweep: Leave those with several values as they are; each job writes out its own.

    Raises:
        ConfigError: A word has no meaning.
    """
    _check_groups(overrides)
    search = _searched(overrides)
    _check_search_path(search)
    several = _swept(overrides) if sweep else []

    def keys(words: list[str]) -> list[str]:
        cfg = compose_with_hydra(app, _first_of_sweeps([*words, *several]))
        with open_dict(cfg):
            del cfg["hydra"]
        return [key for key, _ in _leaves(OmegaConf.to_container(cfg, resolve=False), "")]

    known = KnownNames(
        top=[*_top(), "hydra"],
        options=lambda group: app.options(group, search),
        keys=keys,
    )
    return [*several, *expand((text for text in overrides if text not in several), known)]


def _check_groups(overrides: Sequence[str]) -> None:
    """Raise `ConfigError` where a group is given something else than the names of options."""
    known = set(all_groups())
    for text in overrides:
        name = text.partition("=")[0].lstrip("+")
        if not name.lstrip("~"):
            raise ConfigError(f"cannot read {text!r}; write key=value or group=option")
        if name not in known or not text.partition("=")[1]:
            continue
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:  # a path, or what is explained when the words are composed
            continue
        value = None if override.is_sweep_override() else override.value()
        if override.is_sweep_override() or isinstance(value, str | int | float):
            continue
        several = name in (*_LISTS, "strategy/stop")
        if not (isinstance(value, list) and several):
            what = "one or a list of its options" if several else "one of its options"
            options = ", ".join(hydra_application().options(name, _searched(overrides)))
            raise ConfigError(
                f"{name} must be {what}, got {text.partition('=')[2]}; {name} has {options}"
            )
        _check_apart(name, [option for option in value if isinstance(option, str)])


def _check_apart(group: str, options: Sequence[str]) -> None:
    """Refuse options that fill the same place, of which Hydra would take the last."""
    owner: dict[str, str] = {}
    for option in dict.fromkeys(options):
        file = files(CONF) / group / f"{option}.yaml"
        for key in map(str, OmegaConf.load(str(file)) if file.is_file() else ()):
            if key in owner:
                raise ConfigError(
                    f"{group} has {owner[key]} and {option}, which both are "
                    f"{group.replace('/', '.')}.{key}; give one of them"
                )
            owner[key] = option


@cache
def _top() -> tuple[str, ...]:
    """What may stand at the top of the configuration, groups included."""
    own = OmegaConf.load(str(files(CONF) / "config.yaml"))
    names = [str(name) for name in own if name not in ("defaults", "hydra")]
    return tuple(dict.fromkeys([*names, *groups()]))


def compose_checked(overrides: Sequence[str] = ()) -> DictConfig:
    """Like `compose`, and nothing unknown is in it; raises `ConfigError`."""
    cfg, words = _composed(overrides)
    check(cfg, words)
    return cfg


# What may stand where.


def check(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Refuse unknown keys, also those added with `+`; raises `ConfigError` with a suggestion.

    Args:
        cfg: The composed configuration.
        overrides: The words of the command line that led to it, for suggestions.
    """
    known = [*_top(), "hydra"]
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        first = override.key_or_group.split(".")[0]
        if "/" not in first and first not in known and not override.is_delete():
            raise unknown_key(first, known, "")
    raw = OmegaConf.to_container(cfg, resolve=False)
    _check_needed(raw)
    keys = [key for key, _ in _leaves(raw, "")]
    for key, node in nodes(raw, ""):
        allowed = parameters_of(str(node["_target_"]))
        for name in node:
            if allowed is not None and name not in _RESERVED and name not in allowed:
                kind = str(node["_target_"]).rpartition(".")[2]
                raise unknown_key(f"{key}.{name}", allowed, kind, keys)
    for slot in _SLOTS:
        _check_slot(raw, slot)
    _check_shared(cfg)


def _check_needed(raw: Any) -> None:
    """Every part of a run is there: `~` takes away what can be left out."""
    needed = [name for name in _NEEDED if name not in raw]
    strategy = raw.get("strategy")
    if isinstance(strategy, dict) and str(strategy.get("_target_")).endswith(".Pipeline"):
        needed += [] if "select" in strategy else ["strategy/select"]
    for group in needed:
        options = hydra_application().options(group)
        quiet = f", {group}=none for nothing" if "none" in options else ""
        raise ConfigError(
            f"{group.replace('/', '.')} is needed and cannot be left out; choose an option with "
            f"{group}=...{quiet}; it has {', '.join(options)}"
        )


def _check_shared(cfg: DictConfig) -> None:
    """Settings that stand at the top, by the names that users give them, whoever reads them."""
    for name in ("debug", "compare"):
        value = cfg.get(name, False)
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be true or false, got {value!r}")
    require_count("batch_size", cfg.get("batch_size", 1))


def groups() -> tuple[str, ...]:
    """The top-level configuration groups."""
    return tuple(sorted(e.name for e in files(CONF).iterdir() if e.is_dir() and e.name[0] != "_"))


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield key, value
        return
    for name, entry in value.items():
        if name not in _RESERVED:
            yield from _leaves(entry, f"{key}.{name}" if key else str(name))


def _check_slot(raw: Any, slot: str) -> None:
    """The entries of a slot are parts: a mapping without `_target_` is a misspelt name."""
    parts: Any = raw
    for name in slot.split("."):
        parts = parts.get(name, {}) if isinstance(parts, dict) else {}
    for name, part in parts.items() if isinstance(parts, dict) else ():
        if not isinstance(part, dict) or "_target_" not in part:
            there = [other for other in parts if other != name]
            hint = did_you_mean(name, there, f"{slot}.")
            raise ConfigError(
                f"{slot}.{name} is not a part of this strategy{hint}; "
                f"{slot} holds {', '.join(there) or 'nothing'}; add a part with "
                f"{slot.replace('.', '/')}=[<option>] or +{slot}.{name}={{_target_: ...}}"
            )


def unknown_key(
    key: str, allowed: Iterable[str], owner: str, everywhere: Sequence[str] = ()
) -> ConfigError:
    """The error for a key that does not exist: what was meant, and what there is.

    Args:
        key: The full key.
        allowed: Names that may stand in its place.
        owner: The class that takes them, "" for none.
        everywhere: Full keys of the whole configuration, for suggestions from elsewhere.
    """
    if key in _GONE:
        return ConfigError(f"{key} is gone; {_GONE[key]}")
    parent, _, name = key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    hint = (
        did_you_mean(name, list(allowed), prefix)
        or _elsewhere(key, everywhere)
        or _options_with(key)
    )
    place = parent or "the configuration"
    what = f"{place} ({owner})" if owner else place
    return ConfigError(f"unknown key {key}{hint}; {what} takes {', '.join(allowed) or 'nothing'}")


def _elsewhere(key: str, everywhere: Sequence[str]) -> str:
    """A key of the same group that ends in nearly the same word."""
    group, _, _ = key.partition(".")
    last = {
        full.rpartition(".")[2]: full
        for full in everywhere
        if full.split(".")[0] == group and full != key
    }
    return did_you_mean(key.rpartition(".")[2], last, likeness=0.75)


def _options_with(key: str) -> str:
    """Other options of the group that have a setting: sampler=categorical for its temperature."""
    parent, _, name = key.rpartition(".")
    group = parent.replace(".", "/")
    folder = files(CONF) / group
    having = []
    for file in sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else ():
        if file.name.endswith(".yaml"):
            node = OmegaConf.load(str(file))
            target = OmegaConf.select(node, "_target_")
            if target is not None and name in (parameters_of(target) or ()):
                having.append(f"{group}={file.name.removesuffix('.yaml')}")
    return f"; {', '.join(having)} {'has' if len(having) == 1 else 'have'} it" if having else ""


# What Hydra refuses, in one line each.


def explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """A `ConfigError` that says in one line what Hydra refused.

    Args:
        error: Of Hydra or OmegaConf.
        overrides: Those that were composed.
    """
    if isinstance(error, ConfigError):
        return error
    text = str(error)
    if isinstance(error, YAMLError | UnicodeDecodeError):
        return _unreadable_option(error, overrides)
    if isinstance(error, MissingConfigException):
        return _unknown_option(error, overrides)
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"cannot read the override {error.override!r}; write key=value or group=option, and "
            "quote values with special characters: 'key=\"a, b\"'"
        )
    if unfit := _unfit(text):
        return unfit
    match = re.search(r"Could not override '([^']+)'", text)
    if isinstance(error, ConfigCompositionException) and match:
        return _unknown_override(match[1], overrides)
    if match := re.search(r"Could not append to config. An item is already at '([^']+)'", text):
        return ConfigError(f"{match[1]} is in the configuration already; leave out the + before it")
    cause = error.__cause__
    lines = [text, str(cause)] if isinstance(cause, OmegaConfBaseException) else [text]
    return ConfigError(
        "; ".join(line.strip() for part in lines for line in part.splitlines() if line.strip())
    )


def _unfit(text: str) -> ConfigError | None:
    """What Hydra says about a value of a kind that its place does not take, None for the rest."""
    if match := re.search(r"Error merging override \+*(hydra\.(?:run|sweep)\.dir)=(.*)", text):
        return ConfigError(f"{match[1]} must name a folder, got {match[2]}")
    if match := re.search(r"Error merging override \+*((strategy\.\w+)=\[.*)", text):
        return ConfigError(
            f"{match[1]}: {match[2]} is a mapping from names to parts; choose options with "
            f"{match[2].replace('.', '/')}=[<option>]"
        )
    return None


def _unreadable_option(
    error: YAMLError | UnicodeDecodeError, overrides: Sequence[str]
) -> ConfigError:
    """The error for a file of options that holds no YAML."""
    if isinstance(error, UnicodeDecodeError):
        place = _holding(error.object, overrides)
        return ConfigError(f"{place} is not UTF-8 text: {error.reason}; save it as UTF-8")
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if mark is None:
        return ConfigError(f"an option is no YAML: {' '.join(str(error).split())}")
    assert isinstance(error, MarkedYAMLError)
    return ConfigError(f"{mark.name}, line {mark.line + 1} is no YAML: {error.problem}")


def _holding(data: bytes, overrides: Sequence[str]) -> str:
    """The file of options that holds some bytes, which an error about them does not name."""
    folders = re.findall(r"file://([^'\",\]]+)", " ".join(_searched(overrides)))
    for path in (path for folder in folders for path in sorted(Path(folder).rglob("*.yaml"))):
        if data in path.read_bytes():
            return str(path)
    return "a file of options"


def _unknown_option(error: MissingConfigException, overrides: Sequence[str]) -> ConfigError:
    found = re.search(
        r"(?:Could not (?:find|load)|Cannot find primary config) '([^']+)'", str(error)
    )
    group, _, option = (error.missing_cfg_file or (found[1] if found else "")).rpartition("/")
    option = option.removesuffix(".yaml")
    options = error.options or hydra_application().options(group, _searched(overrides))
    if not group:
        hint = did_you_mean(option, [name for name in options if name != option])
        return ConfigError(f"there is no configuration {option!r}{hint}; use config, as is default")
    form = "{}=[{}]" if group in _LISTS else "{}={}"
    typed = form.format(group, option)
    if typed in _GONE:
        return ConfigError(f"{typed} is gone; {_GONE[typed]}")
    extra = _EXTRAS.get(f"{group}={option.partition('_')[0]}")
    if extra:
        return ConfigError(f"{typed} needs pip install 'dllm_decode[{extra}]'")
    shown = {name: form.format(group, name) for name in options}
    return ConfigError(
        f"unknown option {typed}{did_you_mean(option, shown)}; {group} has {', '.join(options)}"
    )


# Options that come with a package of their own, by the extra that brings it.
_EXTRAS = {
    "hydra/sweeper=optuna": "optuna",
    "hydra/launcher=joblib": "joblib",
    "hydra/launcher=submitit": "submitit",
    "hydra/launcher=ray": "ray",
}


def _searched(overrides: Sequence[str]) -> list[str]:
    """Those of the overrides that add places where options are looked for."""
    return [text for text in overrides if text.lstrip("+").startswith("hydra.searchpath")]


def _check_search_path(words: Sequence[str]) -> None:
    """Raise `ConfigError` for a place that is not there, which Hydra itself passes over."""
    for word in words:
        try:
            places = OverridesParser.create().parse_override(word).value()
        except HydraException:  # explained when the words are composed
            continue
        for place in places if isinstance(places, list) else ():
            scheme, sign, name = str(place).partition("://")
            there = _is_package(name) if scheme == "pkg" else Path(name if sign else place).is_dir()
            if scheme in ("pkg", "file", place) and not there:
                raise ConfigError(
                    f"hydra.searchpath: there is no {place}; it takes pkg://PACKAGE, which can be "
                    "imported, and file://FOLDER"
                )


def _is_package(name: str) -> bool:
    """Whether a module can be imported, as far as can be told without importing it."""
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _unknown_override(key: str, overrides: Sequence[str]) -> ConfigError:
    """A key that is not there: compose as if it were added, so that `check` can say what is."""
    if "/" in key:
        names = all_groups()
        return ConfigError(
            f"unknown group {key}{did_you_mean(key, names)}; there are {', '.join(names)}"
        )
    if key.startswith("hydra."):
        return _unknown_hydra_key(key, overrides)
    single = _first_of_sweeps(overrides)
    forced = [f"++{text}" if text.split("=")[0] == key else text for text in single]
    try:
        cfg = hydra_application().compose("config", forced)
        with open_dict(cfg):
            del cfg["hydra"]
        check(cfg, forced)
    except ConfigError as error:
        return error
    except (HydraException, OmegaConfBaseException) as error:
        return explain(error, forced)
    return ConfigError(f"{key} is not set in this configuration; add it with +{key}=...")


def _unknown_hydra_key(key: str, overrides: Sequence[str]) -> ConfigError:
    """A key of Hydra's own node: of a launcher, say, whose options depend on which it is."""
    own = [text for text in overrides if text.startswith("hydra/")]
    parent, _, _ = key.rpartition(".")
    try:
        node = OmegaConf.select(hydra_application().compose("config", own), parent)
    except (HydraException, OmegaConfBaseException) as error:
        return explain(error, own)
    names = [str(name) for name in node] if isinstance(node, DictConfig) else []
    chosen = ", ".join(own)
    return unknown_key(key, [name for name in names if name not in _RESERVED], chosen)


def _swept(overrides: Sequence[str]) -> list[str]:
    """The overrides with several values."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    pairs = zip(parsed, overrides, strict=True)
    return [text for override, text in pairs if override.is_sweep_override()]


def _first_of_sweeps(overrides: Sequence[str]) -> list[str]:
    """The overrides of a sweep's first job."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [
        f"{text.split('=')[0]}={next(override.sweep_string_iterator())}"
        if override.is_sweep_override()
        else text
        for override, text in zip(parsed, overrides, strict=True)
    ]


def all_groups() -> list[str]:
    """Every configuration group of this package, e.g. `strategy/select`."""
    found = list(groups())
    for group in tuple(found):
        folder = files(CONF) / group
        found += [f"{group}/{entry.name}" for entry in folder.iterdir() if entry.is_dir()]
    return sorted(found)
