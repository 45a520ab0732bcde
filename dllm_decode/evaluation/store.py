"""Folders of finished and unfinished evaluation jobs: written as they go, resumable, checkable."""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import inspect
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from dllm_decode.errors import ConfigError, DllmDecodeError
from dllm_decode.evaluation.metrics import Sample

SAMPLES, RESULTS, JOB, FAILURE = "samples.jsonl", "results.json", "job.json", "failure.json"

# Core modules whose source decides which tokens come out.
_CORE = (
    "decoding.canvas",
    "decoding.loop",
    "decoding.prediction",
    "decoding.sampling",
    "decoding.schedule",
    "decoding.selection",
    "decoding.settle",
    "decoding.strategy",
    "kernels.noise",
    "kernels.reference",
)


class StoreError(DllmDecodeError):
    """A job folder that cannot be read or is in use; names the file."""


def job_key(description: Mapping[str, Any]) -> str:
    """16 hex digits that stand for everything that matters to a job's figures.

    description: plain JSON values; the order of keys does not matter.
    """
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_version(parts: Iterable[object]) -> str:
    """A hash of the source of the loop and of the modules that the given plugins come from."""
    modules = {f"dllm_decode.{name}" for name in _CORE}
    modules |= {type(part).__module__ for part in parts}
    state = hashlib.sha256()
    for name in sorted(modules):
        try:
            source = inspect.getsource(importlib.import_module(name))
        except (OSError, TypeError):  # made by hand in a session: its name has to do
            source = name
        state.update(f"{name}\n{source}\n".encode())
    return state.hexdigest()[:16]


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object so that readers see the old file or the new one, never half of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `StoreError` naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise StoreError(f"{path} must hold one JSON object")
    return values


def parse_samples(path: Path) -> tuple[list[Sample], int]:
    """The samples of a file and the number of bytes they take.

    A last line without its end, as a killed job leaves it, is not counted; any other line that
    cannot be read raises `StoreError` naming file and line.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from None
    complete = data[: data.rfind(b"\n") + 1]
    samples = []
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            samples.append(Sample.from_record(json.loads(line)))
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(f"{path}, line {number} cannot be read: {error}") from None
    return samples, len(complete)


@dataclass
class JobFolder:
    """One job on disk: open it, append samples, finish it. Use as a context manager.

    `job.json` says what the job is, `samples.jsonl` grows line by line, `results.json` appears when
    all problems are done. Only one process works on a job at a time.
    """

    path: Path
    description: Mapping[str, Any]
    samples: list[Sample] = field(default_factory=list)
    _file: TextIO | None = None

    def __enter__(self) -> JobFolder:
        """Take over what is there; raises `StoreError` if another process works on it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._file = (self.path / SAMPLES).open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"task.runs must be a writable folder: {error}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise StoreError(f"{self.path} is in use by another process") from None
        self._resume()
        write_json(self.path / JOB, self.description)
        return self

    def _resume(self) -> None:
        """Keep whole samples; drop half a line, repeated problems and those that failed."""
        assert self._file is not None
        found, size = parse_samples(self.path / SAMPLES)
        kept = {sample.problem: sample for sample in found if not sample.error}
        self.samples = list(kept.values())
        if len(kept) == len(found):
            self._file.truncate(size)
            return
        self._file.truncate(0)
        for sample in self.samples:
            self._write(sample)

    def append(self, sample: Sample) -> None:
        """Add one sample; it is on disk when this returns."""
        self.samples.append(sample)
        self._write(sample)

    def _write(self, sample: Sample) -> None:
        assert self._file is not None
        self._file.write(json.dumps(sample.to_record()) + "\n")
        self._file.flush()

    def finish(self, results: Mapping[str, Any]) -> None:
        """Mark the job as done."""
        write_json(self.path / RESULTS, results)
        (self.path / FAILURE).unlink(missing_ok=True)

    def fail(self, reason: str) -> None:
        """Note why the job could not be done; the next run tries again."""
        write_json(self.path / FAILURE, {"reason": reason})

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Note a failure, and let go."""
        if isinstance(error, Exception):
            self.fail(f"{type(error).__name__}: {error}")
        if self._file is not None:
            self._file.close()


@dataclass(frozen=True)
class Run:
    """A finished job as a report reads it."""

    path: Path
    results: Mapping[str, Any]
    samples: tuple[Sample, ...]

    @property
    def name(self) -> str:
        """What tables call it."""
        return str(self.results["name"])

    @property
    def settings(self) -> Mapping[str, Any]:
        """The resolved groups: model, strategy, schedule, cache, sampler."""
        settings: Mapping[str, Any] = self.results["settings"]
        return settings

    @property
    def batch_size(self) -> int:
        """Problems decoded together; 0 where that was not recorded."""
        return int(self.results.get("batch_size", 0))

    @property
    def timing(self) -> int:
        """Which repetition of a job that is for its wall time only; 0: an ordinary run."""
        return int(self.results.get("timing", 0))

    def on(self, problems: Collection[str]) -> Run:
        """The run restricted to some problems."""
        return replace(self, samples=tuple(s for s in self.samples if s.problem in problems))

    def of(self, task: str | None) -> tuple[Sample, ...]:
        """The samples of one task, None for all."""
        return tuple(s for s in self.samples if task is None or s.task == task)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of its tasks, in the order in which they were asked."""
        asked: Sequence[str] = self.results["task_names"]
        return tuple(asked)


@dataclass(frozen=True)
class Found:
    """What a runs folder holds. broken, failed, unfinished: sentences that name the folder."""

    runs: tuple[Run, ...]
    broken: tuple[str, ...]
    failed: tuple[str, ...]
    unfinished: tuple[str, ...]


def collect(folder: str | Path) -> Found:
    """All jobs below a folder; raises `ConfigError` if there is none at all."""
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"task.runs must be a folder of evaluation runs, got {root}")
    runs: list[Run] = []
    broken: list[str] = []
    failed: list[str] = []
    unfinished: list[str] = []
    for path in sorted(found.parent for found in root.rglob(JOB)):
        if not (path / RESULTS).exists():
            if (path / FAILURE).exists():
                failed.append(f"{path}: {_reason(path / FAILURE)}")
            else:
                unfinished.append(f"{path}: no {RESULTS}; the same command goes on with it")
            continue
        try:
            runs.append(read_run(path))
        except StoreError as error:
            broken.append(str(error))
    if not (runs or broken or failed or unfinished):
        raise ConfigError(f"task.runs: {root} holds no evaluation runs (no {JOB} below it)")
    runs.sort(key=lambda run: (int(run.results["order"]), run.name))
    return Found(tuple(runs), tuple(broken), tuple(failed), tuple(unfinished))


def _reason(path: Path) -> str:
    try:
        return str(read_json(path).get("reason", "failed"))
    except StoreError as error:
        return str(error)


def read_run(path: Path) -> Run:
    """A finished job; raises `StoreError` naming what is missing or damaged."""
    results = read_json(path / RESULTS)
    wanted = ("name", "order", "settings", "task_names", "problems", "digest", "model", "figures")
    missing = [key for key in wanted if key not in results]
    if missing:
        raise StoreError(f"{path / RESULTS} has no {', '.join(missing)}")
    samples, _ = parse_samples(path / SAMPLES)
    if not len({s.problem for s in samples}) == len(samples) == results["problems"]:
        raise StoreError(
            f"{path / SAMPLES} holds {len(samples)} samples of the {results['problems']} that "
            f"{RESULTS} counts"
        )
    return Run(path, results, tuple(samples))


def whole_and_parts(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Runs on the same problems, and runs on some of these problems, asked in the same way.

    Raises `ConfigError` for runs that are neither, see `check_comparable`.
    """
    largest = max(runs, key=lambda run: len(run.samples))
    parts = [run for run in runs if _is_part(run, largest)]
    whole = [run for run in runs if run not in parts]
    check_comparable(whole)
    return whole, parts


def _is_part(run: Run, largest: Run) -> bool:
    asked, same = (r.results.get("manner") for r in (run, largest))
    if len(run.samples) >= len(largest.samples) or not asked or not same:
        return False
    alike = all(
        run.results.get(key) == largest.results.get(key) for key in ("model", "template", "seed")
    )
    known = {(s.problem, s.prompt) for s in largest.samples}
    return (
        alike
        and all(same.get(task) == how for task, how in asked.items())
        and all((s.problem, s.prompt) in known for s in run.samples)
    )


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that no table should mix; raises `ConfigError` that says what differs.

    All must be of the same model and the same problems.
    """
    for name, key in (("model", "model"), ("problems", "digest")):
        seen: dict[str, list[str]] = {}
        for run in runs:
            seen.setdefault(json.dumps(run.results[key], sort_keys=True), []).append(run.path.name)
        if len(seen) > 1:
            groups = "; ".join(
                f"{value if name == 'model' else value[1:9]}: {', '.join(paths[:3])}"
                + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
                for value, paths in seen.items()
            )
            raise ConfigError(
                f"the runs differ in their {name}, so that one table cannot hold them ({groups}); "
                "choose some with task.only=TEXT, or give a folder that holds one kind"
            )
