"""The harness's own command line and `simple_evaluate`, with what decoding cost in the results."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import lm_eval
from lm_eval.config.evaluate_config import EvaluatorConfig

from dllm_decode.errors import DllmDecodeError

MODEL = "dllm_decode"  # what --model calls it
_simple_evaluate = lm_eval.simple_evaluate  # the harness's own


def simple_evaluate(*args: Any, **options: Any) -> dict[str, Any] | None:
    """The harness's `simple_evaluate`, with forwards and tokens per forward beside every score.

    With `use_cache` each configuration gets a file of its own, as the harness looks answers up by
    their request alone.

    Args:
        args: See `lm_eval.simple_evaluate`.
        options: See `lm_eval.simple_evaluate`.

    Returns:
        Its results; those of a task that generates also hold `forwards` (per request) and
        `tokens_per_forward` (of all requests together), and `undecoded` where requests could not
        be decoded. None on all processes but the first.
    """
    if options.get("use_cache") is not None and isinstance(options.get("model"), str):
        asked = [options.get("model_args"), options.get("device")]
        text = json.dumps(asked, sort_keys=True, default=str)
        options["use_cache"] += f"-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    results: dict[str, Any] | None = _simple_evaluate(*args, **options)
    if results is not None:
        _add_costs(results)
    return results


def _add_costs(results: dict[str, Any]) -> None:
    for task, cost in results["config"].get("decoding", {}).items():
        if task not in results["results"] or not cost["requests"]:
            continue
        figures = results["results"][task]
        figures["forwards,none"] = cost["forwards"] / cost["requests"]
        figures["tokens_per_forward,none"] = cost["tokens_per_forward"]
        better = results["higher_is_better"].setdefault(task, {})
        better.update(forwards=False, tokens_per_forward=True)
        if cost["failed"]:
            figures["undecoded,none"] = cost["failed"]
            better["undecoded"] = False


def main(argv: Sequence[str] | None = None) -> int:
    """The harness's command line, with the model `dllm_decode` registered; returns the exit code.

    The harness's default device, `cuda:0`, is nobody's choice: without `--device` the configuration
    chooses.

    Args:
        argv: Arguments without the program's name, None for the process's own.

    Returns:
        0: done; 1: requests could not be decoded, or another fault; 2: a setting that cannot be;
        130: Ctrl-C; 143: SIGTERM. Errors are one message on standard error, with their traceback
        where the harness logs at DEBUG.
    """
    from lm_eval.__main__ import cli_evaluate

    from dllm_decode.console.allocator import keep_freed_memory
    from dllm_decode.console.processes import ended_in_order

    keep_freed_memory()
    words = list(sys.argv[1:] if argv is None else argv)
    failed: list[int] = []

    def evaluate(*args: Any, **options: Any) -> dict[str, Any] | None:
        results = simple_evaluate(*args, **options)
        costs = results["config"].get("decoding", {}) if results is not None else {}
        failed.append(sum(cost["failed"] for cost in costs.values()))
        return results

    def run() -> int:
        try:
            cli_evaluate()
        except Exception as error:
            return _report(error)
        return int(sum(failed) > 0)

    before, lm_eval.simple_evaluate = sys.argv, evaluate  # the command asks the module for it
    sys.argv = ["python -m dllm_decode.lm_eval", *with_device(words)]
    try:
        return ended_in_order(run)
    finally:
        sys.argv, lm_eval.simple_evaluate = before, _simple_evaluate


def _report(error: Exception) -> int:
    """Print one message; returns the exit code."""
    if logging.getLogger("lm_eval").isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    if isinstance(error, DllmDecodeError):
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(
        f"error: {type(error).__name__}: {error} (LMEVAL_LOG_LEVEL=DEBUG shows where)",
        file=sys.stderr,
    )
    return 1


def with_device(words: Sequence[str]) -> list[str]:
    """The arguments of an evaluation of this model with `--device auto`, where they name none."""
    said = {}
    for word, following in zip(words, [*words[1:], ""], strict=False):
        flag, sign, value = word.partition("=")
        said[flag] = value if sign else following
    file = said.get("--config", said.get("-C"))
    try:
        configured = EvaluatorConfig.load_yaml_config(file) if file is not None else {}
    except (OSError, ValueError, TypeError):  # the harness says what is wrong
        return list(words)
    model = said.get("--model", said.get("-M", configured.get("model")))
    named = "device" in configured or any(flag.startswith("--dev") for flag in said)
    return [*words] if named or model != MODEL else [*words, "--device", "auto"]
