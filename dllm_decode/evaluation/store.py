"""Folders of finished and unfinished evaluation jobs: written as they go, resumable, checkable."""

from __future__ import annotations

import gc
import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from filelock import FileLock, Timeout

from dllm_decode import storage
from dllm_decode.errors import ConfigError, DllmDecodeError
from dllm_decode.evaluation import validation
from dllm_decode.evaluation.metrics import Sample, Samples, gathered, in_order

SAMPLES, RESULTS, JOB, FAILURE = "samples.jsonl", "results.json", "job.json", "failure.json"
LOCK = ".lock"
LONGEST_NAME, LONGEST_REASON = 120, 1000  # characters that tables and figures show

# Core modules whose source decides which tokens come out.
_CORE = (
    "decoding.batch",
    "decoding.calls",
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

    Args:
        description: Plain JSON values; the order of keys does not matter.
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
    """Write a JSON object whole or not at all; raises `StoreError` where that cannot be done.

    Args:
        path: The file.
        values: What JSON can hold.
    """
    text = json.dumps(storage.plain(values), indent=1, sort_keys=True) + "\n"
    try:
        storage.write_text(path, text)
    except OSError as error:
        raise _unwritable(path, error) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `StoreError` naming the file."""
    return storage.read_json(path, StoreError)


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path} cannot be written ({error.strerror or error}); what was finished is kept, and the "
        "same command goes on with it"
    )


def parse_samples(path: Path) -> tuple[list[Sample], int]:
    """The samples of a file and the number of bytes they take.

    A last line without its end, as a killed job leaves it, is not counted; any other line that
    cannot be read raises `StoreError` naming file, line and key.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from None
    complete = data[: data.rfind(b"\n") + 1]
    lines = complete.split(b"\n")[:-1]
    with _uncollected():
        return _all_at_once(lines) or list(_one_by_one(path, lines)), len(complete)


def _all_at_once(lines: Sequence[bytes]) -> list[Sample] | None:
    """The samples of many lines, None where one of them needs a closer look."""
    samples: list[Sample] = []
    for begin in range(0, len(lines), _LINES):
        some = lines[begin : begin + _LINES]
        try:
            found = Sample.from_records([storage.parse_json(line) for line in some])
        except ValueError:
            return None
        if found is None:
            return None
        samples += found
    return samples


_LINES = 128  # that are read at once: what they hold should fit into a core's cache


def _one_by_one(path: Path, lines: Sequence[bytes]) -> Iterator[Sample]:
    """The same with an error that names the line."""
    for number, line in enumerate(lines, start=1):
        try:
            yield _sample(storage.parse_json(line))
        except ValueError as error:  # ConfigError is one
            raise StoreError(f"{path}, line {number} cannot be read: {error}") from None


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's search for circles, which goes through all samples again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _sample(record: object) -> Sample:
    if not isinstance(record, dict):
        raise ConfigError(f"a sample must be an object, got {validation.shown(record)}")
    return Sample.from_record(record)


@dataclass
class JobFolder:
    """One job on disk: open it, append samples, finish it. Use as a context manager.

    `job.json` says what the job is, `samples.jsonl` grows line by line, `results.json` appears when
    all problems are done. Only one process works on a job at a time.

    Attributes:
        path: The folder, made where it is not there.
        description: What `job.json` says.
        samples: Those that are done, in the order in which they finished.
        fresh: Whether what an earlier run left is dropped instead of continued.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     with JobFolder(Path(place) / "job", {"strategy": "x"}) as job:
        ...         job.finish({"accuracy": 1.0})
        ...     sorted(file.name for file in job.path.glob("*.json*"))
        ['job.json', 'results.json', 'samples.jsonl']
    """

    path: Path
    description: Mapping[str, Any]
    fresh: bool = False
    samples: list[Sample] = field(default_factory=list)
    _file: TextIO | None = None
    _lock: FileLock | None = None

    def __enter__(self) -> JobFolder:
        """Take over what is there; raises `StoreError` if another process works on it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / LOCK)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(f"{self.path} is in use by another process") from None
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            raise ConfigError(f"task.runs must be a writable folder: {error}") from None
        try:
            if self.fresh:
                for name in (RESULTS, SAMPLES, FAILURE):
                    (self.path / name).unlink(missing_ok=True)
            self._resume()
            write_json(self.path / JOB, self.description)
        except BaseException:
            self._close()
            raise
        return self

    def _resume(self) -> None:
        """Keep whole samples; drop half a line, repeated problems and those that failed."""
        path = self.path / SAMPLES
        try:
            found, size = parse_samples(path)
        except StoreError as error:
            raise StoreError(f"{error}; task.resume=false does the whole job again") from None
        kept = {sample.problem: sample for sample in found if not sample.error}
        self.samples = list(kept.values())
        try:
            if len(kept) < len(found):
                # into another file first: a full disk must not cost what is finished
                storage.write_text(path, "".join(map(_line, self.samples)))
                size = path.stat().st_size
            self._file = path.open("a", encoding="utf-8", newline="\n")
            self._file.truncate(size)
        except OSError as error:
            raise _unwritable(path, error) from None

    def append(self, sample: Sample) -> None:
        """Add one sample, which a reader sees when this returns; raises `StoreError`."""
        assert self._file is not None
        try:
            self._file.write(_line(sample))
            self._file.flush()
        except OSError as error:
            raise _unwritable(self.path / SAMPLES, error) from None
        self.samples.append(sample)

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
        try:
            if isinstance(error, Exception):
                with suppress(StoreError):  # a full disk: the error itself says so
                    self.fail(f"{type(error).__name__}: {error}")
        finally:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what was not written is not counted as done
                self._file.close()
        if self._lock is not None:
            self._lock.release()


def _line(sample: Sample) -> str:
    return json.dumps(storage.plain(sample.to_record())) + "\n"


def note_failure(folder: Path, reason: str) -> None:
    """Note in a folder of its own that a job could not even begin, for reports to list.

    Args:
        folder: Of the job; made where it is not there.
        reason: What was wrong.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"task.runs must be a writable folder: {error}") from None
    write_json(folder / FAILURE, {"reason": reason})


def forget_failure(folder: Path) -> None:
    """Remove what `note_failure` wrote, now that the job has begun."""
    with suppress(OSError):  # it was not there, or holds something else by now
        (folder / FAILURE).unlink()
        folder.rmdir()


@dataclass(frozen=True)
class EvalRun:
    """A finished job as a report reads it.

    Attributes:
        path: Its folder.
        results: Content of its `results.json`.
        samples: Its problems, decoded and graded.
    """

    path: Path
    results: Mapping[str, Any]
    samples: Samples

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", gathered(self.samples))

    @cached_property
    def name(self) -> str:
        """What tables call it: one line, and not endless."""
        return _short(self.results["name"])

    @property
    def settings(self) -> Mapping[str, Any]:
        """The resolved groups: model, strategy, schedule, cache, sampler."""
        settings: Mapping[str, Any] = self.results["settings"]
        return settings

    @property
    def order(self) -> int:
        """Its place in the sweep or list that it belongs to."""
        return int(self.results["order"])

    @property
    def batch_size(self) -> int:
        """Problems decoded together; 0 where that was not recorded."""
        return int(self.results.get("batch_size", 0))

    @property
    def timing(self) -> int:
        """Which repetition of a job that is for its wall time only; 0: an ordinary run."""
        return int(self.results.get("timing", 0))

    def on(self, problems: Collection[str]) -> EvalRun:
        """The run restricted to some problems."""
        kept = self.keys.intersection(problems)
        if len(kept) == len(self.keys):
            return self
        places = [i for i, key in enumerate(self.samples.column("problem")) if key in kept]
        return replace(self, samples=self.samples.part(places))

    def of(self, family: str | None) -> Samples:
        """The samples of one family, None for all."""
        return self.samples if family is None else self._by_family.get(family, Samples())

    @cached_property
    def _by_family(self) -> Mapping[str, Samples]:
        found: dict[str, list[int]] = {}
        for place, family in enumerate(self.samples.column("family")):
            found.setdefault(family, []).append(place)
        return {family: self.samples.part(places) for family, places in found.items()}

    @property
    def keys(self) -> frozenset[str]:
        """The keys of its problems."""
        return self.samples.problems

    @cached_property
    def computed(self) -> dict[Any, Any]:
        """What tables have computed from this run, which figures show again."""
        return {}

    @property
    def families(self) -> tuple[str, ...]:
        """Names of its families, in the order in which they were asked."""
        asked: Sequence[str] = self.results["families"]
        return tuple(asked)


def one_line(text: str, most: int = LONGEST_REASON) -> str:
    """A text without line breaks and control characters, cut where it is very long.

    Args:
        text: Any.
        most: Characters to keep.
    """
    line = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text[: 2 * most]).strip()
    return line if len(line) <= most else f"{line[:most]}..."


def _short(name: str) -> str:
    """A name as tables and figures can show it; two that begin alike stay two."""
    line = one_line(name, LONGEST_NAME)
    cut = line.endswith("...") or len(name) > 2 * LONGEST_NAME
    return f"{line} ({hashlib.sha256(name.encode()).hexdigest()[:6]})" if cut else line


@dataclass(frozen=True)
class RunCollection:
    """What a runs folder holds.

    Attributes:
        runs: The finished ones that can be read, in the order of their sweep.
        broken: A sentence for each finished job with a damaged file, naming file and key.
        failed: A sentence for each job that ended with an error.
        unfinished: A sentence for each job that was begun and can go on.

    Examples:
        >>> broken = ("job 3: results.json is no JSON",)
        >>> RunCollection((), broken, failed=(), unfinished=()).runs
        ()
    """

    runs: tuple[EvalRun, ...]
    broken: tuple[str, ...]
    failed: tuple[str, ...]
    unfinished: tuple[str, ...]

    @property
    def counts(self) -> str:
        """How many of how many jobs can be shown, "" where all can."""
        parts = [
            f"{len(found)} {word}"
            for found, word in (
                (self.failed, "failed"),
                (self.broken, "damaged"),
                (self.unfinished, "unfinished"),
            )
            if found
        ]
        total = len(self.runs) + len(self.left_out)
        return f"{len(self.runs)} of {total} jobs done, {', '.join(parts)}" if parts else ""

    @property
    def left_out(self) -> tuple[str, ...]:
        """What no table can show, a sentence each."""
        return (*self.broken, *self.failed, *self.unfinished)


def collect(folder: str | Path) -> RunCollection:
    """All jobs below a folder, also those that failed before they could begin.

    Raises `ConfigError` if there is none at all.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"task.runs must be a folder of evaluation runs, got {root}")
    runs: list[EvalRun] = []
    broken: list[str] = []
    failed: list[str] = []
    unfinished: list[str] = []
    marks = (JOB, FAILURE, SAMPLES)
    paths = {found.parent for name in marks for found in root.rglob(name)}
    with _uncollected():
        for path in sorted(paths):
            if (path / SAMPLES).exists() and not (path / JOB).exists():
                broken.append(f"{path}: no {JOB}, which says what was evaluated")
            elif not (path / RESULTS).exists():
                if (path / FAILURE).exists():
                    failed.append(f"{path}: {_reason(path / FAILURE)}")
                else:
                    unfinished.append(f"{path}: no {RESULTS}; the same command goes on with it")
            elif (path / JOB).exists():
                try:
                    runs.append(read_run(path))
                except StoreError as error:
                    broken.append(str(error))
    if not (runs or broken or failed or unfinished):
        raise ConfigError(f"task.runs: {root} holds no evaluation runs (no {JOB} below it)")
    runs.sort(key=lambda run: (run.order, run.name))
    return RunCollection(tuple(runs), tuple(broken), tuple(failed), tuple(unfinished))


def _reason(path: Path) -> str:
    try:
        reason = read_json(path).get("reason", "failed")
    except StoreError as error:
        return str(error)
    return "failed" if validation.text(reason) else one_line(reason)


_PARTS = validation.optional(validation.mapping_of(validation.mapping({})))
_SETTINGS = validation.mapping(
    {
        "strategy": validation.mapping(
            {
                "select": validation.optional(validation.mapping({})),
                "transforms": _PARTS,
                "filters": _PARTS,
                "stop": _PARTS,
            }
        )
    },
    "strategy",
)
_MODEL = validation.mapping(
    {"description": validation.label, "fingerprint": validation.optional(validation.label)},
    "description",
)
_JOB_CHECKS: Mapping[str, validation.Check] = {
    "name": validation.name,
    "settings": _SETTINGS,
    "model": _MODEL,
    "code": validation.text,
    "problems": validation.text,
}
_RESULT_CHECKS: Mapping[str, validation.Check] = {
    "name": validation.name,
    "order": validation.whole(0),
    "settings": _SETTINGS,
    "families": validation.names,
    "problems": validation.whole(1),
    "digest": validation.name,
    "model": _MODEL,
    "figures": validation.mapping({}),
    "manner": validation.optional(validation.mapping_of(validation.text)),
    "batch_size": validation.whole(0),
    "timing": validation.whole(0),
    "seed": validation.whole(0, 2**63 - 1),
    "template": validation.text,
    "errors": validation.whole(0),
    "environment": validation.mapping_of(validation.scalar),
}
_NEEDED = ("name", "order", "settings", "families", "problems", "digest", "model", "figures")


def read_run(path: Path) -> EvalRun:
    """A finished job; raises `StoreError` naming file and key of what is missing or damaged."""
    _checked(path / JOB, _JOB_CHECKS)
    results = _checked(path / RESULTS, _RESULT_CHECKS, _NEEDED, {"task_names": "families"})
    samples = Samples(in_order(parse_samples(path / SAMPLES)[0]))
    if not len(samples.problems) == len(samples) == results["problems"]:
        raise StoreError(
            f"{path / SAMPLES} holds {len(samples)} samples of the {results['problems']} that "
            f"{RESULTS} counts"
        )
    asked, found = set(results["families"]), set(samples.column("family"))
    if asked != found:
        raise StoreError(
            f"{path / RESULTS}: 'families' and the samples differ in "
            f"{validation.shown(sorted(asked ^ found))}"
        )
    return EvalRun(path, results, samples)


def _checked(
    path: Path,
    checks: Mapping[str, validation.Check],
    needed: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The JSON object of a file whose values may come from anywhere.

    renamed: keys that earlier versions wrote, with what they are called today.
    """
    values = read_json(path)
    for old, new in (renamed or {}).items():
        if old in values and new not in values:
            values[new] = values.pop(old)
    missing = [key for key in needed if key not in values]
    if missing:
        raise StoreError(f"{path} has no {', '.join(missing)}")
    if validation.too_deep(values):
        raise StoreError(f"{path} cannot be read: nested too deep")
    fault = validation.fault_in(values, checks)
    if fault:
        raise StoreError(f"{path}: {fault}")
    return values


def whole_and_parts(runs: Sequence[EvalRun]) -> tuple[list[EvalRun], list[EvalRun]]:
    """Runs on the same problems, and runs on some of these problems, asked in the same way.

    Raises `ConfigError` for runs that are neither, see `check_comparable`.
    """
    largest = max(runs, key=lambda run: len(run.samples))
    parts = [run for run in runs if _is_part(run, largest)]
    whole = [run for run in runs if run not in parts]
    check_comparable(whole)
    return whole, parts


def _is_part(run: EvalRun, largest: EvalRun) -> bool:
    asked, same = (r.results.get("manner") for r in (run, largest))
    if len(run.samples) >= len(largest.samples) or not asked or not same:
        return False
    alike = all(
        run.results.get(key) == largest.results.get(key) for key in ("model", "template", "seed")
    )
    known = _questions(largest)
    return (
        alike
        and all(same.get(family) == how for family, how in asked.items())
        and _questions(run) <= known
    )


def _questions(run: EvalRun) -> set[tuple[str, str]]:
    return set(zip(run.samples.column("problem"), run.samples.column("prompt"), strict=True))


def check_comparable(runs: Sequence[EvalRun]) -> None:
    """Refuse runs that no table should mix; raises `ConfigError` that says what differs.

    All must be of the same model and the same problems.
    """
    for name, key in (("model", "model"), ("problems", "digest")):
        seen: dict[str, list[str]] = {}
        for run in runs:
            seen.setdefault(json.dumps(run.results[key], sort_keys=True), []).append(run.path.name)
        if len(seen) > 1:
            groups = "; ".join(_group(key, value, paths) for value, paths in seen.items())
            raise ConfigError(
                f"the runs differ in their {name}, so that one table cannot hold them ({groups}); "
                "choose some with task.only=TEXT, or give a folder that holds one kind"
            )


def _group(key: str, value: str, folders: Sequence[str]) -> str:
    """Some of the runs that have a value in common: "MODEL: FOLDER, FOLDER and 3 more"."""
    kept = json.loads(value)
    label = kept[:8] if key == "digest" else value[:LONGEST_REASON]
    more = f" and {len(folders) - 3} more" if len(folders) > 3 else ""
    return f"{label}: {', '.join(folders[:3])}{more}"
