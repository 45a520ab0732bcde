"""`task=ablation`: a list of combinations, evaluated one after the other, then reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dllm_decode.errors import ConfigError, DllmDecodeError, require_count
from dllm_decode.tasks import Context, Task
from dllm_decode.tasks.report import Report


@dataclass(frozen=True)
class Ablation(Task):
    """Runs `task=eval` for every job of a list, with one loaded model, then `task=report`.

    A sweep on the command line is a grid; this is a list, where each job may change different
    settings. Finished jobs are skipped and unfinished ones continued, as with `task=eval`.

    jobs: each a line of overrides separated by blanks, e.g. `strategy=threshold
    strategy.select.threshold=0.8`; overrides of the command line other than of `task` and
    `experiment` go to every job, in front of the job's own; families, count, batch_size, resume:
    see `Eval`; runs: folder of the jobs; title, preface, markdown, pages, output,
    figures: see `Report`.
    """

    jobs: list[str] = field(default_factory=list)
    families: str | list[str] = "shown"
    count: int = 100
    batch_size: int = 16
    runs: str = "runs/eval"
    resume: bool = True
    title: str = "Ablation"
    preface: str | None = None
    markdown: str | None = None
    pages: str | None = None
    output: str | None = None
    figures: bool = True

    def __post_init__(self) -> None:
        require_count("task.count", self.count)
        require_count("batch_size", self.batch_size)
        if not self.jobs or any(not str(job).strip() for job in self.jobs):
            raise ConfigError(
                "task.jobs must list at least one line of overrides, e.g. 'strategy=credit'; "
                f"got {list(self.jobs)!r}"
            )
        if len(set(self.jobs)) < len(self.jobs):
            raise ConfigError("task.jobs must not name a job twice")

    def run(self, context: Context) -> int:
        """Evaluate what is not done, report everything; returns 1 if a job failed."""
        failed = self.evaluate(context)
        return max(self.report(context), int(failed > 0))

    def evaluate(self, context: Context) -> int:
        """Evaluate what is not done; returns how many jobs failed.

        `jobs/NN/results.json` in the run folder names the folder of job NN.
        """
        from dllm_decode.config import compose_checked

        composed = [compose_checked(self.overrides(context, job)) for job in self.jobs]
        failed = 0
        for number, (job, cfg) in enumerate(zip(self.jobs, composed, strict=True)):
            context.display.say(f"job {number + 1} of {len(self.jobs)}: {job}")
            try:
                failed += self._evaluate(replace(context, cfg=cfg), job, number)
            except DllmDecodeError as error:
                failed += 1
                context.display.say(f"failed: {error}", "bold")
        return failed

    def report(self, context: Context) -> int:
        """What is made of the finished jobs; returns 1 if results were damaged or failed."""
        report = Report(
            runs=self.runs,
            output=self.output,
            title=self.title,
            preface=self.preface,
            markdown=self.markdown,
            pages=self.pages,
            figures=self.figures,
        )
        return report.run(context)

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
        return ("task=eval", *shared, *own, *job.split())

    def _evaluate(self, context: Context, job: str, number: int) -> int:
        from dllm_decode.build import build_task
        from dllm_decode.runfolder import RunFolder
        from dllm_decode.tasks.eval import Eval

        task = build_task(context.cfg)
        assert isinstance(task, Eval)
        words = job.split()
        choices = {**context.choices, **_choices((*context.overrides, *words))}
        place = RunFolder(context.folder.path / "jobs" / f"{number:02d}")
        job_context = replace(
            context,
            overrides=self.overrides(context, job),
            choices=choices,
            folder=place,
        )
        return task.evaluate(job_context, order=number)


def _choices(overrides: Sequence[str]) -> dict[str, str]:
    """Options of groups among overrides."""
    pairs = [text.lstrip("+").partition("=") for text in overrides]
    return {key: value for key, sign, value in pairs if sign and "." not in key and "/" not in key}
