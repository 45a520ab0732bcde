"""Evaluations of a sweep that could not even begin: listed by `task=report` like those that broke.

`task=eval` notes in the job's folder what goes wrong while it decodes. A job that cannot be
composed or built never gets that far; its folder is named by its overrides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dllm_decode.errors import ConfigError


def note_failed_evaluation(overrides: Sequence[str], reason: str, since: float) -> None:
    """Leave a folder with the reason among the evaluation jobs; nothing for other tasks.

    Args:
        overrides: Of the job.
        reason: Why it could not run.
        since: When it began [seconds of `time.time`]; where the evaluation has noted the same
            reason since then, once is enough.
    """
    from dllm_decode.evaluation.store import FAILURE, forget_failure, note_failure, read_json

    path = _folder(overrides)
    if path is None:
        return
    for noted in path.parent.glob(f"*/{FAILURE}"):
        if noted.stat().st_mtime >= since and reason in str(read_json(noted).get("reason")):
            forget_failure(path)  # of an earlier sweep
            return
    note_failure(path, reason)


def forget_failed_evaluation(overrides: Sequence[str]) -> None:
    """Remove what `note_failed_evaluation` left for a job that has now been done."""
    from dllm_decode.evaluation.store import forget_failure

    path = _folder(overrides)
    if path is not None and path.is_dir():
        forget_failure(path)


def _folder(overrides: Sequence[str]) -> Path | None:
    """Where a failure is noted; None for a job that is no evaluation."""
    from dllm_decode.config.compose import compose
    from dllm_decode.evaluation.store import job_key

    words = _words(overrides)
    try:
        task = compose(overrides).task
        runs = task.get("runs") if task._target_.endswith(".Eval") else None
    except ConfigError:  # what cannot be composed: as the words have it
        runs = words.get("task.runs", words.get("runs", "runs/eval"))
        runs = runs if words.get("task") == "eval" else None
    if not runs:
        return None
    own = sorted(text for text in overrides if not text.startswith("hydra."))
    return Path(runs).expanduser() / f"failed-{job_key({'overrides': own})}"


def _words(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (text.lstrip("+").partition("=") for text in overrides)
    return {key: value.strip("'\"") for key, _, value in pairs}
