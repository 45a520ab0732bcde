"""`task=ablation`: a list of combinations, evaluated one after the other, then reported."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_decode.config.outputs import require_folder
from dllm_decode.console.processes import end_children
from dllm_decode.errors import ConfigError, DllmDecodeError, require_choice, require_count
from dllm_decode.tasks import Context, Task
from dllm_decode.tasks.report import Report

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Ablation(Task):
    """Runs `task=eval` for every job of a list, with one loaded model, then `task=report`.

    A sweep on the command line is a grid; this is a list, where each job may change different
    settings. Finished jobs are skipped and unfinished ones continued, as with `task=eval`.
    Overrides of the command line other than those of `task` and `experiment` go to every job as
    well, behind the common ones and in front of the job's own.

    Attributes:
        jobs: Each a line of overrides separated by spaces, e.g. `strategy=threshold
            strategy.select.threshold=0.8`.
        common: A line of overrides for all jobs.
        families: See `Eval`.
        count: See `Eval`.
        batch_size: See `Eval`.
        runs: Folder of the jobs.
        resume: See `Eval`.
        timed_batches: Batch sizes at which every job is done again for its wall time,
            after all others and one at a time. Within a repetition all take turns, so that what
            else the machine does hits none of them alone.
        timed_count: Problems per family for these, a full batch at least.
        timed_repeats: How often each of these is done.
        workers: Processes that share all jobs but the timed ones, each with a model of its own and
            its share of the cores.
        title: See `Report`.
        preface: See `Report`.
        markdown: See `Report`.
        output: See `Report`.
        figures: See `Report`.
        answers: See `Report`.
        sections: See `Report`.

    Examples:
        >>> Ablation(jobs=["strategy=threshold", "strategy=credit"], count=20).count
        20
    """

    jobs: list[str] = field(default_factory=list)
    common: str = ""
    families: str | list[str] = "shown"
    count: int = 100
    batch_size: int = 16
    runs: str = "runs/eval"
    resume: bool = True
    timed_batches: list[int] = field(default_factory=list)
    timed_count: int = 10
    timed_repeats: int = 3
    workers: int = 1
    title: str = "Ablation"
    preface: str | None = None
    markdown: str | None = None
    output: str | None = None
    figures: bool = True
    answers: int = 300
    sections: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_count("task.count", self.count)
        require_count("batch_size", self.batch_size)
        require_count("task.timed_count", self.timed_count)
        require_count("task.timed_repeats", self.timed_repeats)
        require_count("task.workers", self.workers)
        for size in self.timed_batches:
            require_count("task.timed_batches", size)
        given: object = self.jobs
        if isinstance(given, str):
            raise ConfigError(f"task.jobs must be a list of lines, got the text {given!r}")
        entries = [(f"task.jobs: entry {n}", job) for n, job in enumerate(self.jobs, start=1)]
        for place, line in [("task.common", self.common), *entries]:
            if not isinstance(line, str):
                raise ConfigError(f"{place} must be a line of overrides (text), got {line!r}")
            for word in line.split():
                if word.lstrip("+~").partition("=")[0] == "task" and word != "task=eval":
                    raise ConfigError(
                        f"{place} may not change task, which is eval for all jobs, got {word}"
                    )
        if not self.jobs or any(not job.strip() for job in self.jobs):
            raise ConfigError(
                "task.jobs must list at least one line of overrides, e.g. 'strategy=credit'; "
                f"got {list(self.jobs)!r}"
            )
        if len(set(self.jobs)) < len(self.jobs):
            raise ConfigError("task.jobs must not name a job twice")

    def run(self, context: Context) -> int:
        """Evaluate what is not done, report everything; returns 1 if a job failed."""
        require_folder("runs", Path(self.runs))
        self._report().check()
        failed = self.evaluate(context)
        return max(self.report(context), int(failed > 0))

    def evaluate(self, context: Context) -> int:
        """Evaluate what is not done; returns how many jobs failed.

        `jobs/NN/results.json` in the run folder names the folder of job NN.
        """
        lines, timed = self.lines(), self.timed_lines()
        self._check_jobs(context, lines)
        failed = self._shared(context, lines) if self.workers > 1 else 0
        every = [*lines, *timed]
        begin = len(lines) if self.workers > 1 else 0
        return failed + sum(self._one(context, every, n) for n in range(begin, len(every)))

    def _check_jobs(self, context: Context, lines: Sequence[str]) -> None:
        """Refuse a mistake in any of the jobs before the first one starts."""
        from dllm_decode.config.compose import compose_checked

        asked: set[str] = set()
        for line in lines:
            families = _families(compose_checked(self.overrides(context, line)))
            asked |= families or set(self.sections)  # the report checks what nobody knows yet
        if not asked.issuperset(self.sections):
            asked |= _families_before(Path(self.runs))
        for name in self.sections:
            require_choice("task.sections", name, tuple(sorted(asked)))

    def lines(self) -> list[str]:
        """The jobs in the order in which they are done."""
        return _oracles_last(self.jobs)

    def timed_lines(self) -> list[str]:
        """The same once more for their wall time: repetition by repetition, size by size."""
        lines = []
        for repetition in range(1, self.timed_repeats + 1):
            for size in self.timed_batches:
                count = min(max(self.timed_count, size), self.count)
                own = f"task.count={count} batch_size={size}"
                jobs = [f"{job} {own} task.timing={repetition}" for job in self.jobs]
                lines += _oracles_last(jobs)
        return lines

    def _one(self, context: Context, lines: Sequence[str], number: int) -> int:
        """One job; returns 1 if it failed, and says why."""
        from dllm_decode.config.compose import compose_checked

        context.display.say(f"job {number + 1} of {len(lines)}: {lines[number]}")
        cfg = compose_checked(self.overrides(context, lines[number]))
        try:
            return self._evaluate(replace(context, cfg=cfg), lines[number], number)
        except DllmDecodeError as error:
            context.display.say(f"failed: {error}", "bold")
            return 1

    def _shared(self, context: Context, lines: Sequence[str]) -> int:
        """All jobs, among worker processes; returns how many failed."""
        pool = ProcessPoolExecutor(
            self.workers, get_context("spawn"), _share_cores, initargs=(self.workers,)
        )
        plain = (context.overrides, dict(context.choices), context.folder.path)
        jobs = {
            pool.submit(_in_worker, self, *plain, lines, number): number
            for number in range(len(lines))
        }
        failed = 0
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                error = job.result()
                failed += error is not None
                words = f"{done} of {len(lines)} done: {lines[jobs[job]]}"
                context.display.say(words + (f"; failed: {error}" if error else ""))
        except KeyboardInterrupt:  # what is decoded is on disk, and the same command goes on
            end_children()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return failed

    def report(self, context: Context) -> int:
        """What is made of the finished jobs; returns 1 if results were damaged or failed."""
        return self._report().run(context)

    def _report(self) -> Report:
        return Report(
            runs=self.runs,
            output=self.output,
            title=self.title,
            preface=self.preface,
            markdown=self.markdown,
            figures=self.figures,
            answers=self.answers,
            sections=self.sections,
        )

    def overrides(self, context: Context, job: str) -> tuple[str, ...]:
        """The command line of one job."""
        shared = [
            text
            for text in context.overrides
            if text.lstrip("+~").partition("=")[0].split(".")[0] not in ("task", "experiment")
        ]
        families = json.dumps(self.families) if isinstance(self.families, list) else self.families
        own = [
            f"task.families={families}",
            f"task.count={self.count}",
            f"batch_size={self.batch_size}",
        ]
        own += [f"runs='{self.runs}'", f"task.resume={str(self.resume).lower()}"]
        return ("task=eval", *self.common.split(), *shared, *own, *job.split())

    def _evaluate(self, context: Context, job: str, number: int) -> int:
        from dllm_decode.config.compose import without_shorthands
        from dllm_decode.console.runfolder import RunFolder
        from dllm_decode.tasks import build_task
        from dllm_decode.tasks.eval import Eval

        task = build_task(context.cfg)
        assert isinstance(task, Eval)
        words = (*self.common.split(), *context.overrides, *job.split())
        choices = {**context.choices, **_choices(words)}
        place = RunFolder(context.folder.path / "jobs" / f"{number:02d}")
        job_context = replace(
            context,
            overrides=tuple(without_shorthands(self.overrides(context, job))),
            choices=choices,
            folder=place,
        )
        return task.evaluate(job_context, order=number)


def _families(cfg: DictConfig) -> set[str]:
    """What a job will ask; empty where only its file or a model of somebody else knows it."""
    from dllm_decode.tasks import build_task
    from dllm_decode.tasks.eval import Eval

    task, model = build_task(cfg), str(cfg.model._target_)
    assert isinstance(task, Eval)
    if task.data is not None or not model.startswith("dllm_decode."):
        return set()
    toy = model.startswith("dllm_decode.models.toy.")
    return {model.rpartition(".")[2].lower()} if toy else set(task.family_names())


def _families_before(runs: Path) -> set[str]:
    """What the finished jobs of a folder have asked."""
    from dllm_decode.evaluation.store import collect

    try:
        return {name for run in collect(runs).runs for name in run.families}
    except ConfigError:  # there are none
        return set()


def _oracles_last(lines: Sequence[str]) -> list[str]:
    """The lines, so that oracles find the sequential run that they imitate."""
    return sorted(lines, key=lambda line: "strategy=oracle" in line)


def _choices(overrides: Sequence[str]) -> dict[str, str]:
    """Options of groups among overrides."""
    pairs = [text.lstrip("+").partition("=") for text in overrides]
    return {key: value for key, sign, value in pairs if sign and "." not in key and "/" not in key}


def _share_cores(workers: int) -> None:
    """Start of a worker process."""
    import torch

    from dllm_decode.console.allocator import keep_freed_memory
    from dllm_decode.console.processes import leave_signals_to_parent
    from dllm_decode.console.threads import chosen_by_user

    leave_signals_to_parent()
    keep_freed_memory()
    if not chosen_by_user():
        share = max(1, (os.cpu_count() or 1) // workers)
        torch.set_num_threads(share)
        os.environ["OMP_NUM_THREADS"] = str(share)  # nobody in this process chooses again


def _in_worker(
    task: Ablation,
    overrides: tuple[str, ...],
    choices: Mapping[str, str],
    folder: Path,
    lines: Sequence[str],
    number: int,
) -> str | None:
    """One job in a process of its own; returns why it failed, None if it did not."""
    from dllm_decode.config.compose import compose_checked
    from dllm_decode.console.display import make_display
    from dllm_decode.console.runfolder import RunFolder

    shown = make_display("none")
    context = Context(compose_checked(()), overrides, choices, RunFolder(folder), shown)
    cfg = compose_checked(task.overrides(context, lines[number]))
    try:
        failed = task._evaluate(replace(context, cfg=cfg), lines[number], number)
        return "some problems could not be decoded" if failed else None
    except DllmDecodeError as error:
        return str(error)
