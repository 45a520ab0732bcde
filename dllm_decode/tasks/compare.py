"""`task=compare`: decodes of the same prompts side by side, and where they part."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_decode.errors import ConfigError, TraceError, require_count
from dllm_decode.tasks import Context, Task
from dllm_decode.tasks.rehearsed import refuse_absent, refuse_early

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dllm_decode.decoding.trace import Difference, Trace
    from dllm_decode.decoding.types import Request
    from dllm_decode.tasks.generate import Generate, Job

_SHOWN = 20  # prompts that are told one by one
_SHARED = ("prompt", "prompts", "max_new_tokens", "task", "display", "trace", "hydra", "runs")


@dataclass(frozen=True)
class Compare(Task):
    """Plays decodes of the same prompts in sync, and marks where they first differ.

    Attributes:
        runs: Folders of runs, or trace files, two or more; each is compared with the first.
        against: Instead of runs, overrides of a second decode that is made here and now, as on the
            command line, e.g. "batch_size=1" or "model.dtype=bfloat16".
        prompt: What the two decode; see `Generate`, also for the next five.
        prompts: A file.
        max_new_tokens: Columns per prompt.
        seed: Of the first prompt.
        batch_size: Prompts decoded together.
        samples: Number of sample problems.

    Raises:
        ConfigError: Neither or both of `runs` and `against` are given, or a setting is out of
            range.

    Examples:
        >>> Compare(against="batch_size=1").samples
        6
    """

    runs: str | list[str] = "runs/eval"
    against: str | None = None
    prompt: str | None = None
    prompts: str | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    batch_size: int = 16
    samples: int = 6

    def __post_init__(self) -> None:
        several = isinstance(self.runs, list)
        if several == (self.against is not None):
            raise ConfigError(
                "task=compare needs either runs=[a,b], the folders of runs, or "
                'task.against="...", what a second decode changes, such as batch_size=1'
            )
        if several and len(self.runs) < 2:
            raise ConfigError(f"runs must be two folders or more, got {self.runs}")
        require_count("task.samples", self.samples)

    def run(self, context: Context) -> int:
        """Compare, show, write `compare.html` and `compare.json`."""
        traces = self._recorded() if isinstance(self.runs, list) else self._decoded(context)
        from dllm_decode.console.trace_files import player
        from dllm_decode.decoding.trace import differences

        names = list(traces)
        try:
            found = {name: differences(traces[names[0]], traces[name]) for name in names[1:]}
        except TraceError as error:
            raise ConfigError(f"{', '.join(names)}: {error}") from None
        context.folder.write_text("compare.html", player(traces, self._right(names)))
        context.folder.write_json("compare.json", _record(traces, found))
        _show(context, traces, found)
        return 0

    def _recorded(self) -> dict[str, Trace]:
        places = [Path(place).expanduser() for place in self.runs]
        files = [place / "trace.jsonl" if place.is_dir() else place for place in places]
        names = _names(places)
        refuse_absent(files)
        from dllm_decode.decoding.trace import read_trace

        return dict(zip(names, map(read_trace, files), strict=True))

    def _right(self, names: Sequence[str]) -> dict[str, list[bool | None]]:
        """Which answers of recorded runs are right, as far as that is known."""
        from dllm_decode.tasks.export import graded

        if not isinstance(self.runs, list):
            return {}
        known = [graded(Path(place).expanduser()).get("") for place in self.runs]
        return {name: [*right] for name, right in zip(names, known, strict=True) if right}

    def _decoded(self, context: Context) -> dict[str, Trace]:
        """Both decodes, of the configuration and of what is changed about it."""
        words = self._words(context)
        sides = self._sides(context, words)
        ways = [self._generate(cfg) for cfg in sides.values()]
        asked = ways[0].asked()
        for cfg in sides.values():
            refuse_early(cfg, lambda decoder: ways[0].prepare(decoder, asked))
        from dllm_decode.api import build
        from dllm_decode.console.trace_files import trace_of
        from dllm_decode.tasks.generate import with_candidates

        jobs, request = ways[0].prepare(context.decoder, asked)
        shared = not any(word.startswith("model") for word in words)
        _, other = sides.values()
        changed = build(other, model=(lambda: context.model) if shared else None)
        titles = [job.title for job in jobs]
        traces: dict[str, Trace] = {}
        for name, way, side in zip(sides, ways, (context.decoder, changed), strict=True):
            decoder = with_candidates(side, context.trace.candidates, request)
            with context.display.working(f"decoding with {name}"):
                seeded = _with_seed(request, jobs, way.seed)
                result = decoder.decode(
                    seeded,
                    batch_size=way.batch_size,
                    max_tokens_in_flight=way.max_tokens_in_flight,
                    batching=way.batching,
                    record=True,
                )
            traces[name] = trace_of(seeded, result, titles, decoder.model)
        return traces

    def _words(self, context: Context) -> list[str]:
        """What `against` changes, each key written out."""
        from dllm_decode.config.compose import without_shorthands

        try:
            given = [*context.overrides, *shlex.split(self.against or "")]
        except ValueError as error:  # a quote that does not end
            raise ConfigError(f"task.against cannot be read: {error}, got {self.against}") from None
        words = without_shorthands(given)[len(context.overrides) :]
        for key in map(_key, words):
            if key.partition(".")[0] in _SHARED:
                raise ConfigError(
                    f"task.against cannot change {key}: both decodes have the same prompts and one "
                    "display; it takes parts, their settings, seed and batch_size"
                )
        return words

    def _sides(self, context: Context, words: Sequence[str]) -> dict[str, DictConfig]:
        """The two configurations, by what differs."""
        from omegaconf import OmegaConf

        from dllm_decode.config.compose import compose_checked

        other = compose_checked((*context.overrides, *words))
        sides: dict[str, DictConfig] = {}
        for cfg, chosen in ((context.cfg, context.choices), (other, _choices(words, context))):
            values = {key: OmegaConf.select(cfg, key) for key in map(_key, words)}
            name = ", ".join(f"{key}={chosen.get(key, value)}" for key, value in values.items())
            sides[name] = cfg
        if len(sides) < 2:
            raise ConfigError(
                f"task.against must change something, got {self.against!r}, which is so already"
            )
        return sides

    def _generate(self, cfg: DictConfig) -> Generate:
        """The prompts, and how a side decodes them."""
        from dllm_decode.tasks.generate import Generate

        return Generate(
            self.prompt,
            self.prompts,
            self.max_new_tokens,
            cfg.task.seed,
            cfg.task.batch_size,
            cfg.max_tokens_in_flight,
            cfg.batching,
            samples=self.samples,
        )


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


def _with_seed(request: Request, jobs: Sequence[Job], seed: int) -> Request:
    """The request with another first seed; prompts that have one of their own keep it."""
    own = [job.prompt.seed for job in jobs]
    return replace(
        request, seeds=tuple(seed + row if s is None else s for row, s in enumerate(own))
    )


def _choices(words: Sequence[str], context: Context) -> dict[str, str]:
    """The option of each group with overrides behind those of the command line."""
    pairs = (word.lstrip("+").partition("=") for word in words)
    return {**context.choices, **{k: v for k, _, v in pairs if k in context.choices}}


def _names(places: Sequence[Path]) -> list[str]:
    """What the runs did differently, else where they are."""
    overrides = [_overrides(place) for place in places]
    common = set(overrides[0]).intersection(*overrides[1:])
    names = [" ".join(word for word in words if word not in common) for words in overrides]
    if "" in names or len(set(names)) < len(names):
        names = [str(place) for place in places]
    if len(set(names)) < len(names):
        raise ConfigError(f"runs must be different folders, got {', '.join(names)}")
    return names


def _overrides(place: Path) -> list[str]:
    folder = place if place.is_dir() else place.parent
    try:
        words = json.loads((folder / "env.json").read_text(encoding="utf-8"))["overrides"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    quiet = ("hydra.", "display", "trace", "compare")
    return [str(word) for word in words if not str(word).startswith(quiet)]


def _record(
    traces: Mapping[str, Trace], found: Mapping[str, Mapping[int, Difference]]
) -> dict[str, Any]:
    """What `compare.json` holds."""
    replayed = {name: trace.replay() for name, trace in traces.items()}
    return {
        "prompts": next(iter(traces.values())).titles,
        "forwards": {name: done.forwards for name, done in replayed.items()},
        "first_differences": {
            name: [asdict(difference) for difference in rows.values()]
            for name, rows in found.items()
        },
        "same_tokens": {
            name: [
                a == b
                for a, b in zip(
                    next(iter(replayed.values())).sequences, replayed[name].sequences, strict=True
                )
            ]
            for name in found
        },
    }


def _show(
    context: Context, traces: Mapping[str, Trace], found: Mapping[str, Mapping[int, Difference]]
) -> None:
    """The first difference of each prompt, the race of the first that has one, and the sum."""
    from dllm_decode.console.race import Heat, Lane, run_race

    display, record = context.display, _record(traces, found)
    first, *others = traces
    rows = range(len(traces[first].titles))
    parted = sorted({row for name in others for row in found[name]})
    if parted:
        row = parted[0]
        place = min((found[n][row] for n in others if row in found[n]), key=lambda d: d.step)
        lanes = tuple(Lane.of(name, trace, row) for name, trace in traces.items())
        run_race([Heat(traces[first].titles[row], lanes, (place.step + 1, place.column))], display)
    for name in others:
        display.say(f"{first} against {name}", "bold")
        for row in [row for row in rows if row in found[name]][:_SHOWN]:
            difference = found[name][row]
            display.say(
                f"  prompt {row + 1}: from step {difference.step + 1}, column "
                f"{difference.column}: {difference.left} against {difference.right}"
            )
        if len(found[name]) > _SHOWN:
            display.say(f"  ... and {len(found[name]) - _SHOWN} more")
        passes = [sum(record["forwards"][which]) for which in (first, name)]
        display.say(
            f"{len(rows) - len(found[name])} of {len(rows)} prompts are decoded in the same way, "
            f"{sum(record['same_tokens'][name])} end in the same tokens; "
            f"{passes[0]} against {passes[1]} passes"
        )
    display.say(f"player: {context.folder.path / 'compare.html'}")
