"""Evaluations of a sweep that could not even begin: listed by `task=report` like those that broke.

`task=eval` notes in the job's folder what goes wrong while it decodes. A job that cannot be
composed or built never gets that far; its folder is named by its settings, or by its overrides
where they compose to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_decode.storage import plain

if TYPE_CHECKING:
    from omegaconf import DictConfig

# What makes no other job of the same settings.
_NEUTRAL = ("hydra", "display", "trace", "compare", "debug", "runs")


def note_failed_evaluation(
    overrides: Sequence[str], cfg: DictConfig | None, reason: str, since: float
) -> None:
    """Leave a folder with the reason among the evaluation jobs; nothing for other tasks.

    Args:
        overrides: Of the job.
        cfg: What they compose to, None where they do not.
        reason: Why it could not run.
        since: When it began [seconds of `time.time`]; where the evaluation has noted the same
            reason since then, once is enough.
    """
    from dllm_decode.evaluation.store import FAILURE, forget_failure, note_failure, read_json

    folders = _folders(overrides, cfg)
    for path in folders:
        forget_failure(path)  # of an earlier sweep, in which it may not have composed
    for path in folders[:1]:
        for noted in path.parent.glob(f"*/{FAILURE}"):
            if noted.stat().st_mtime >= since and reason in str(read_json(noted).get("reason")):
                return
        note_failure(path, reason)


def forget_failed_evaluation(overrides: Sequence[str], cfg: DictConfig) -> None:
    """Remove what `note_failed_evaluation` left for a job that has now been done.

    Args:
        overrides: Of the job, under which it was noted if they did not compose then.
        cfg: What they compose to.
    """
    for path in _folders(overrides, cfg):
        from dllm_decode.evaluation.store import forget_failure

        forget_failure(path)


def _folders(overrides: Sequence[str], cfg: DictConfig | None) -> list[Path]:
    """Where a failure may be noted, the best place first; none for a job that is no evaluation."""
    from omegaconf.errors import OmegaConfBaseException

    words = _words(overrides)
    named = words.get("task.runs", words.get("runs", "runs/eval"))
    runs: str | None = named if words.get("task") == "eval" else None
    own = sorted(text for text in overrides if not text.startswith("hydra."))
    jobs: list[dict[str, Any]] = [{"overrides": own}]
    try:
        settings = _settings(cfg) if cfg is not None else None
    except OmegaConfBaseException:  # something in it leads nowhere
        settings = None
    if settings is not None:
        task = settings.get("task") or {}
        runs = task.pop("runs", None) if str(task.get("_target_")).endswith(".Eval") else None
        task.pop("resume", None)
        jobs.insert(0, {"settings": settings})
    if not runs:
        return []
    from dllm_decode.evaluation.store import job_key

    return [Path(runs).expanduser() / f"failed-{job_key(job)}" for job in jobs]


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """The values of a configuration, as far as they matter to what a job computes."""
    from omegaconf import OmegaConf

    values = plain(OmegaConf.to_container(cfg, resolve=True))
    return {name: value for name, value in values.items() if name not in _NEUTRAL}


def _words(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (text.lstrip("+").partition("=") for text in overrides)
    return {key: value.strip("'\"") for key, _, value in pairs}
