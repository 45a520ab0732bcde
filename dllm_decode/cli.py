"""The command line: Hydra composes, everything unknown is refused, one task runs."""

from __future__ import annotations

import os
import platform
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dllm_decode.config.compose import CONF, check, explain, register_search_path
from dllm_decode.console.runfolder import RunFolder, unwritable
from dllm_decode.errors import ConfigError, DllmDecodeError

INTERRUPTED = 130
_FREE_TEXT = ("prompt", "prompts")
_PACKAGES = ("dllm_decode", "torch", "transformers", "hydra-core", "omegaconf", "safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code.

    argv: arguments without the program's name, None for the process's own. 0: done; 1: a fault
    while running; 2: a setting that cannot be; 130: Ctrl-C. Errors are one message on standard
    error, with a traceback only under `debug=true` or `hydra.verbose=true`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run([quoted(word) for word in words])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # argparse and Hydra's own commands end this way
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        return _report(error, words)


def _run(words: list[str]) -> int:
    arguments = get_args_parser().parse_args(words)
    search: list[str] = []
    if arguments.config_dir is not None:
        search.append(f"hydra.searchpath=[file://{Path(arguments.config_dir).absolute()}]")
    codes: list[int] = []

    def job(cfg: DictConfig) -> None:
        # an exception that reached Hydra would end a sweep, and Hydra would print it as well
        try:
            codes.append(_job(cfg, search))
        except Exception as error:
            codes.append(_report(error, words))

    plain = {name for name, value in vars(arguments).items() if value} <= {"overrides", "run"}
    with _hydra_set_up(words):
        if not (plain and _run_once(arguments.overrides, job)):
            hydra.main(version_base="1.3", config_path=f"pkg://{CONF}", config_name="config")(job)()
    return max(codes, default=0)


def _run_once(overrides: list[str], job: Callable[[DictConfig], None]) -> bool:
    """What Hydra does for a single run, but checked before a folder for the run is made.

    Returns False, and nothing is done, where the configuration itself asks for a sweep.
    """
    setbase("1.3")
    search_path = create_config_search_path(f"pkg://{CONF}")
    application = Hydra.create_main_hydra2("dllm_decode", search_path)
    try:
        cfg = application.compose_config("config", overrides, RunMode.RUN, from_shell=True)
        if cfg.hydra.mode == RunMode.MULTIRUN:
            return False
        check(cfg, overrides)
        context = HydraContext(application.config_loader, Callbacks(cfg))
        run_job(job, cfg, "hydra.run.dir", None, context)
        return True
    finally:
        GlobalHydra.instance().clear()


@contextmanager
def _hydra_set_up(words: list[str]) -> Iterator[None]:
    """Hydra reads `sys.argv`, and hands on exceptions when it is told to show them in full."""
    register_search_path()
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["dllm_decode", *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


def _job(cfg: DictConfig, search: Sequence[str]) -> int:
    """One run: of the command line, or of a sweep. search: overrides of the search path."""
    from dllm_decode.console.allocator import keep_freed_memory
    from dllm_decode.console.display import make_display
    from dllm_decode.tasks import Context, build_task

    keep_freed_memory()
    state = HydraConfig.get()
    paths = [word for word in state.overrides.hydra if word.startswith("hydra.searchpath")]
    overrides = [*search, *paths, *state.overrides.task]
    rank = int(os.environ.get("RANK", "0"))  # set by torchrun; the first rank speaks for all
    place = Path(state.runtime.output_dir)
    folder = RunFolder(place / f"rank-{rank}" if rank else place)
    try:
        check(cfg, overrides)
        display = make_display("none" if rank else cfg.display)
        with _warnings_as_words():
            task = build_task(cfg)
            context = Context(cfg, tuple(overrides), dict(state.runtime.choices), folder, display)
            folder.write_text("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            code = task.run(context)
            folder.write_json("env.json", environment(overrides, context))
            return code
    except BaseException:
        _remove_traces_of_failure(folder.path)
        raise


def _remove_traces_of_failure(folder: Path) -> None:
    """A failed run leaves nothing half-written: without results there is no folder."""
    if any((folder / name).exists() for name in ("results.json", "samples.jsonl", "env.json")):
        return
    try:
        (folder / "config.yaml").unlink(missing_ok=True)
        folder.rmdir()
        folder.parent.rmdir()
    except OSError:  # other files are there, or other runs of the same day
        return


def environment(overrides: Sequence[str], context: Any) -> dict[str, Any]:
    """What a result depends on besides the configuration."""
    import torch

    from dllm_decode.decoding.denoiser import Capabilities

    model = vars(context).get("model")
    cuda = torch.cuda.is_available()
    return {
        "overrides": list(overrides),
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        if cuda
        else [],
        "checkpoint": model and model.description.checkpoint,
        "fingerprint": model and Capabilities.of(model.denoiser).fingerprint,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@contextmanager
def _warnings_as_words() -> Iterator[None]:
    """Warnings are one line each, without file and line."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def quoted(word: str) -> str:
    """Prompts are free text: quote them for Hydra's grammar where people did not.

    word: one argument, e.g. `prompt=What is 2 + 2, please?`. Raises `ConfigError` for `${`, which
    is an interpolation wherever it stands in a configuration.
    """
    key, sign, value = word.partition("=")
    whole = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if key.lstrip("+") not in _FREE_TEXT or not sign or whole or value in ("", "null"):
        return word
    if "${" in value:
        raise ConfigError(
            f"{key} cannot hold ${{ on the command line; put it into a file, prompts=FILE"
        )
    # in Hydra's grammar a backslash is special only before a quote
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + m[2].replace("'", "\\'"), value)
    return f"{key}='{escaped}'"


def _report(error: Exception, words: Sequence[str]) -> int:
    """Print one message; returns the exit code."""
    asked = {word.lstrip("+") for word in words}
    if {"debug=true", "debug=True", "hydra.verbose=true", "hydra.verbose=True"} & asked:
        traceback.print_exception(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        error = explain(error, [word for word in words if "=" in word])
    if isinstance(error, DllmDecodeError):
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        error = unwritable(Path(str(error.filename)), error)
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"error: {type(error).__name__}: {error} (a fault of the program; debug=true shows where)",
        file=sys.stderr,
    )
    return 1
