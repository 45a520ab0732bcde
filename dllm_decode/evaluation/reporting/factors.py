"""What tells the runs of a report apart: factors, short names, and lines through one rule."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dllm_decode.evaluation.reporting.tables import (
    is_oracle,
    is_sequential,
    stops,
    with_padding_last,
)
from dllm_decode.evaluation.store import EvalRun

Value = str | int | float | bool | None
_SLOTS = ("transforms", "filters", "stop")  # parts by name, of which there may be several
_GROUPS = ("strategy", "schedule", "cache", "sampler")
RULE, CONTROL, ORACLE = "rule", "control", "oracle"

# Kinds of rules by the module that their deciding part comes from; what is not here is its own.
_KINDS = {
    "fixed": "fixed number per pass",
    "threshold": "confidence threshold",
    "factor": "other confidence bounds",
    "entropy": "other confidence bounds",
    "entropy_bound": "other confidence bounds",
    "hierarchical": "other confidence bounds",
    "relaxing": "other confidence bounds",
    "local_leap": "other confidence bounds",
    "prefix_run": "other confidence bounds",
    "klass": "what has stopped moving",
    "history_stable": "what has stopped moving",
    "dilated": "by position",
    "slowfast": "by position",
    "uncode": "by position",
    "wino": "revising",
    "remdm": "revising",
    "rcr": "revising",
    "saber": "revising",
    "t2m": "revising",
    "core": "revising",
    "joint_threshold": "revising",
    "freedave": "verified by a second pass",
    "credit": "credit",
    "dream": "whole canvas",
    "dream_threshold": "whole canvas",
    "ccd": "whole canvas",
    "learn2pd": "learned",
}
_MINOR = ("suppress", "at_most", "copy_prior", "left_repeat")  # parts that go with any rule


@dataclass(frozen=True)
class Traits:
    """How one run differs from the others of its report.

    Attributes:
        name: What tables call it: its strategy and what differs, and nothing that all share.
        rule: The option of the group `strategy`.
        factors: Label to value, of those that the run has.
        line: Runs with the same text differ in `at` alone, one setting of one rule.
        at: Value of that setting, None where no run differs in one.
        kind: The kind of rule, for hues.
        role: `rule`, `control` or `oracle`.

    Examples:
        >>> factors = {"strategy": "threshold", "threshold": 0.9}
        >>> trait = Traits("threshold 0.9", "threshold", factors, "[]", 0.9, "threshold", RULE)
        >>> factor_names([trait])
        ['strategy', 'threshold']
    """

    name: str
    rule: str
    factors: Mapping[str, Value]
    line: str
    at: float | None
    kind: str
    role: str


def traits_of(runs: Sequence[EvalRun]) -> list[Traits]:
    """What tells each of some runs from the others, in their order."""
    rules = [_rule(run) for run in runs]
    flat = [_flat(run) for run in runs]
    paths = _factors(rules, flat)
    labels = _labels(paths)
    names = _names(runs, rules, flat, labels)
    found = []
    for number, run in enumerate(runs):
        rule, own = rules[number], flat[number]
        along = _along(rule, rules, flat, paths)
        rest = {label: own[path] for path, label in labels.items() if path in own and path != along}
        factors = {"strategy": rule} if len(set(rules)) > 1 else {}
        found.append(
            Traits(
                name=names[number],
                rule=rule,
                factors={
                    **factors,
                    **{label: own[path] for path, label in labels.items() if path in own},
                },
                line=json.dumps([rule, rest], sort_keys=True),
                at=_number(own.get(along)) if along else None,
                kind=_kind(run),
                role=_role(run, runs),
            )
        )
    return found


def named(runs: Sequence[EvalRun]) -> list[EvalRun]:
    """The runs under names that say only what differs.

    Args:
        runs: Those that stand in one report.
    """
    return [
        replace(run, results={**run.results, "name": trait.name, "option": trait.rule})
        for run, trait in zip(runs, traits_of(runs), strict=True)
    ]


def factor_names(traits: Sequence[Traits]) -> list[str]:
    """The factors of some runs, in the order of columns."""
    return list(dict.fromkeys(name for trait in traits for name in trait.factors))


def shown(value: object) -> str:
    """A value of a factor as text."""
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rule(run: EvalRun) -> str:
    """The option of the group `strategy`, with which the name of a run begins at first."""
    return str(run.results.get("option") or str(run.results["name"]).split(" ")[0])


def _flat(run: EvalRun) -> dict[str, Value]:
    """Every setting by its path; the class of a part stands under the path of the part."""
    found: dict[str, Value] = {}
    for group, node in {**run.settings, "voting": run.results.get("voting")}.items():
        if isinstance(node, Mapping):
            _walk(node, str(group), found)
        elif node is not None:  # a group that is one value, as guidance is
            found[str(group)] = node
    return found


def _optional(path: str) -> bool:
    """Whether a run may lack this setting because it does nothing of the kind."""
    return path.split(".")[0] not in _GROUPS


def _walk(node: Mapping[str, object], path: str, found: dict[str, Value]) -> None:
    slots = _SLOTS if path == "strategy" else ()
    target = str(node.get("_target_", "")).rpartition(".")[2]
    if target and path.count(".") < 2:
        found[path] = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", target).lower()
    for key, value in node.items():
        if str(key).startswith("_"):
            continue
        place = f"{path}.{key}"
        if key in slots:
            parts = value if isinstance(value, Mapping) else {}
            found[place] = ", ".join(map(str, parts)) or "none"
            for name, part in parts.items():
                if isinstance(part, Mapping):
                    _walk(part, f"{place}.{name}", found)
        elif isinstance(value, Mapping):
            _walk(value, place, found)
        elif value is None or isinstance(value, str | int | float):
            found[place] = value
        else:
            found[place] = json.dumps(value, default=str)


def _factors(rules: Sequence[str], flat: Sequence[Mapping[str, Value]]) -> list[str]:
    """Paths whose values differ: between runs of one rule, or outside of the strategy at all."""
    paths = dict.fromkeys(path for own in flat for path in own)
    return sorted((path for path in paths if _differs(path, rules, flat)), key=_place)


def _place(path: str) -> tuple[int, int]:
    """What is nearest to the rule comes first."""
    group, _, rest = path.partition(".")
    part = rest.partition(".")[0]
    return _index(_GROUPS, group), _index(("select", *_SLOTS), part)


def _index(words: Sequence[str], word: str) -> int:
    return words.index(word) if word in words else len(words)


def _differs(path: str, rules: Sequence[str], flat: Sequence[Mapping[str, Value]]) -> bool:
    if path == "strategy":
        return False
    if _optional(path) and any(path not in own for own in flat):
        return True
    inside = path.startswith("strategy.")
    groups: dict[str, set[str]] = {}
    for rule, own in zip(rules, flat, strict=True):
        if path in own:
            groups.setdefault(rule if inside else "", set()).add(json.dumps(own[path]))
    return any(len(values) > 1 for values in groups.values())


def _tells(
    path: str,
    label: str,
    own: Mapping[str, Value],
    given: Mapping[str, str],
    alike: Sequence[tuple[Mapping[str, Value], Mapping[str, str]]],
) -> bool:
    """Whether a setting belongs into the name of a run.

    Args:
        path: Of the setting, which the run has.
        label: What names call it.
        own: All settings of the run.
        given: Those that it was given by hand.
        alike: Both of every run of the same rule.
    """
    values = Counter(json.dumps(other[path]) for other, _ in alike if path in other)
    lacking = _optional(path) and any(path not in other for other, _ in alike)
    if len(values) + lacking < 2:  # at most other rules have another one
        inside = path.startswith("strategy.")
        return not inside and any(path == key or path.endswith(f".{key}") for key in given)
    # nobody has to be told what nobody had to say: a default goes before what is frequent
    silent = Counter(
        json.dumps(other[path]) for other, its in alike if path in other and label not in its
    )
    usual = (silent or values).most_common(1)[0][0]
    return _number(own[path]) is not None or json.dumps(own[path]) != usual


def _labels(paths: Sequence[str]) -> dict[str, str]:
    """A short name for every path: its last word, or as many as tell it from the others."""
    labels = {}
    for path in paths:
        words = path.split(".")
        for count in range(1, len(words) + 1):
            label = ".".join(words[-count:])
            alike = [p for p in paths if p == label or p.endswith(f".{label}")]
            if len(alike) == 1 and label != "strategy":
                break
        labels[path] = label
    return labels


def _names(
    runs: Sequence[EvalRun],
    rules: Sequence[str],
    flat: Sequence[Mapping[str, Value]],
    labels: Mapping[str, str],
) -> list[str]:
    """Names that say only what differs; those that would not differ keep the one they have."""
    names, several = [], len(set(rules)) > 1
    said = [
        dict(word.split("=", 1) for word in str(run.results["name"]).split() if "=" in word)
        for run in runs
    ]
    for rule, own, given in zip(rules, flat, said, strict=True):
        alike = [
            (other, its) for name, other, its in zip(rules, flat, said, strict=True) if name == rule
        ]
        words = [rule]
        for path, label in labels.items():
            if path not in own or not _tells(path, label, own, given, alike):
                continue
            value = given.get(label, shown(own[path]))  # the word of the command line, e.g. never
            words.append(value if label == rule and several else f"{label}={value}")
        names.append(" ".join(words if several or len(words) == 1 else words[1:]))
    # a job that is there several times, for its wall time say, has one name
    jobs = {(name, json.dumps(own, sort_keys=True)) for name, own in zip(names, flat, strict=True)}
    times = Counter(name for name, _ in jobs)
    return [
        name if times[name] == 1 and _made_of_settings(run) else run.name
        for name, run in zip(names, runs, strict=True)
    ]


def _made_of_settings(run: EvalRun) -> bool:
    """Whether a name is an option and settings, as commands write it, and not free text."""
    first, *words = str(run.results["name"]).split(" ")
    return first.isidentifier() and all("=" in w or w.replace(".", "").isdigit() for w in words)


def _along(
    rule: str,
    rules: Sequence[str],
    flat: Sequence[Mapping[str, Value]],
    paths: Sequence[str],
) -> str | None:
    """The setting of a rule that a line runs along: the number with the most values."""
    counts = {}
    for path in paths:
        values = {
            number
            for name, own in zip(rules, flat, strict=True)
            if name == rule and (number := _number(own.get(path))) is not None
        }
        if path.startswith("strategy.") and len(values) > 1:
            counts[path] = len(values)
    return max(counts, key=lambda path: counts[path]) if counts else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _kind(run: EvalRun) -> str:
    """The kind of rule: told from its transform where it has one, else from its selection."""
    strategy = run.settings["strategy"]
    parts = [*(strategy.get("transforms") or {}).values(), strategy.get("select") or strategy]
    modules = [str(part.get("_target_", "")).split(".")[-2:][0] for part in parts]
    deciding = next((name for name in modules if name not in _MINOR), modules[-1])
    return _KINDS.get(deciding, deciding.replace("_", " "))


def _role(run: EvalRun, runs: Sequence[EvalRun]) -> str:
    if is_oracle(run):
        return ORACLE
    unstopped = not stops(run) and any(stops(other) for other in runs)
    control = is_sequential(run) or with_padding_last(run) is not None or unstopped
    return CONTROL if control else RULE
