"""The command line: Hydra composes, everything unknown is refused, one task runs."""

from __future__ import annotations

import math
import os
import re
import sys
import time
import traceback
import warnings
from argparse import ArgumentError, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dllm_decode import __version__
from dllm_decode.config.compose import (
    CONF,
    all_groups,
    check,
    compose,
    compose_with_hydra,
    expand_homes,
    explain,
    hydra_application,
    register_search_path,
    written_out,
)
from dllm_decode.config.early import check_values
from dllm_decode.config.hydra_application import (
    REFUSALS,
    Application,
    Sweep,
    argument_parser,
)
from dllm_decode.config.shorthand import quote
from dllm_decode.config.signatures import described
from dllm_decode.console.help import help_about, help_text
from dllm_decode.console.output import tolerant_output
from dllm_decode.console.processes import INTERRUPTED, TERMINATED, ended_in_order
from dllm_decode.console.runfolder import CONFIG, RunFolder, claim, unwritable
from dllm_decode.environment import hardware, version_of
from dllm_decode.errors import ConfigError, DllmDecodeError, did_you_mean

if TYPE_CHECKING:
    from dllm_decode.console.display import Display
    from dllm_decode.console.sweep_line import SweepLine
    from dllm_decode.tasks import Context, Task

_FREE_TEXT = ("prompt", "prompts", "against", "task.against")
# Names of settings that hold paths and titles, which may hold anything that Hydra's grammar does
# not take unquoted.
_PATHS = ("checkpoint", "dir", "data", "output", "runs", "shots", "weights", "markdown", "preface",
          "pages", "title", "card")  # fmt: skip
_PACKAGES = ("dllm_decode", "torch", "transformers", "hydra-core", "omegaconf", "safetensors")
# What Hydra's parser takes and this module handles; everything else is Hydra's own business.
_OURS = {"overrides", "run", "multirun", "config_dir", "config_name"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Errors are one message on standard error, with a traceback only under `debug=true` or
    `hydra.verbose=true`.

    Args:
        argv: Arguments without the program's name, None for the process's own.

    Returns:
        The exit code: 0 for done, 1 for a fault while running, 2 for a wrong setting,
        130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """
    words = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        try:
            return _run([quoted(word) for word in words])
        except SystemExit as stop:  # argparse and Hydra's own commands end this way
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception as error:
            return _report(error, words)

    with tolerant_output():
        return ended_in_order(run)


def _run(words: list[str]) -> int:
    """One command line, as a run, a sweep, or one of Hydra's own commands."""
    # argparse takes beginnings of flags too, and would answer with the version of Hydra
    if any(word.startswith("--v") and "--version".startswith(word) for word in words):
        print(f"dllm_decode {__version__}")
        return 0
    asked = [word.partition("=")[2] for word in words if word.startswith("--help=")]
    arguments = _parsed([word for word in words if not word.startswith("--help=")])
    overrides = [*_searched(arguments.config_dir), *arguments.overrides]
    if arguments.help or asked:
        _help(asked, overrides)
        return 0
    name = arguments.config_name or "config"
    if {key for key, value in vars(arguments).items() if value} <= _OURS:
        place = arguments.config_dir if arguments.config_name else None
        app = hydra_application(Path(place).expanduser().absolute() if place else None)
        if arguments.multirun:
            return _sweep(app, name, overrides, words)
        overrides = written_out(app, overrides)
        cfg = compose_with_hydra(app, overrides, name)
        if cfg.hydra.mode == RunMode.MULTIRUN:  # the configuration itself asks for it
            return _sweep(app, name, overrides, words)
        check(cfg, overrides)
        check_values(cfg)
        with claim(_place(cfg, "run"), fresh=_fresh("run", overrides)) as held:
            code = app.run(cfg, _HydraJob(words), held.path).code
            if code:
                held.undo()
            return int(code)
    return _hydra_command(arguments, words)


def _help(asked: Sequence[str], overrides: Sequence[str]) -> None:
    """Print what `--help` says, or what it says about some groups and options."""
    found = hydra_application()

    def options(group: str) -> list[str]:
        return found.options(group, overrides)

    def composed(words: list[str]) -> Any:
        return OmegaConf.to_container(
            compose([*(w for w in overrides if w.startswith("hydra.searchpath")), *words]),
            resolve=True,
        )

    def describe(target: str) -> tuple[str, Mapping[str, str]]:
        about = described(target)
        return about.summary, about.arguments

    if not asked:
        print(help_text(all_groups(), options))
    for name in asked:
        print(help_about(name, all_groups(), options, composed, describe))


def _parsed(words: list[str]) -> Namespace:
    """What Hydra's parser makes of the words; raises `ConfigError` for what it does not know."""
    parser = argument_parser()
    parser.exit_on_error = False
    try:
        arguments, unknown = parser.parse_known_intermixed_args(words)
    except ArgumentError as error:
        raise ConfigError(f"{error}; --help shows what there is") from None
    flags = [flag for action in parser._actions for flag in action.option_strings]
    for word in [*unknown, *arguments.overrides]:
        sign = "=" in word
        if word.startswith("-") and sign:
            raise ConfigError(
                f"settings and options have no dashes; write {word.lstrip('-')} instead of {word}"
            )
        if word.startswith("-"):
            hint = did_you_mean(word, flags)
            raise ConfigError(f"there is no flag {word}{hint}; there are {', '.join(flags)}")
        if not sign and not word.startswith("~"):
            hint = f"; did you mean --{word}?" if f"--{word}" in flags else ""
            raise ConfigError(
                f"cannot read {word!r}{hint}; write key=value or group=option, --help shows them"
            )
    return arguments


def _searched(config_dir: str | None) -> list[str]:
    """`--config-dir` as an override, so that whatever composes again finds the options, too."""
    if config_dir is None:
        return []
    folder = Path(config_dir).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"--config-dir must be a folder of options, got {config_dir}")
    return [f"hydra.searchpath=[{quote(f'file://{folder}')}]"]


def _place(cfg: DictConfig, kind: str) -> Path:
    """The folder of a run or of a sweep."""
    HydraConfig.instance().set_config(cfg)
    named = OmegaConf.select(cfg, f"hydra.{kind}.dir")
    if not named:
        raise ConfigError(f"hydra.{kind}.dir must name a folder, got an empty text")
    place = Path(str(named)).expanduser().absolute()
    rank = int(os.environ.get("RANK", "0"))  # set by torchrun; the first rank speaks for all
    return place / f"rank-{rank}" if rank and kind == "run" else place


def _fresh(kind: str, overrides: Sequence[str]) -> bool:
    """Whether the folder must be a new one: not where the user named it, or ranks share it."""
    named = any(text.lstrip("+").startswith(f"hydra.{kind}.dir=") for text in overrides)
    return not named and os.environ.get("WORLD_SIZE", "1") == "1"


def _hydra_command(arguments: Namespace, words: list[str]) -> int:
    """`--help`, `--cfg`, `--info` and so on, which Hydra answers from `sys.argv`."""
    rerun = arguments.experimental_rerun
    if rerun and not Path(rerun).is_file():
        raise ConfigError(f"--experimental-rerun must be the file of a run, got {rerun}")
    path = arguments.config_path
    if path and "://" not in path and not (Path(__file__).parent / path).is_dir():
        raise ConfigError(
            "--config-path must be the full path of a folder with a configuration of its own, "
            f"got {path}; --config-dir adds a folder of options"
        )
    written = list(arguments.overrides)
    if not arguments.shell_completion:  # whose words are no settings: install=bash
        written = written_out(hydra_application(), written, sweep=True)
    flags = [word for word in words if word not in arguments.overrides]
    register_search_path()
    try:
        with _arguments_of_the_process([*flags, *written]):
            hydra.main(version_base="1.3", config_path=f"pkg://{CONF}", config_name="config")(
                _HydraJob(words)
            )()
    except REFUSALS as error:
        raise explain(error, [*_searched(arguments.config_dir), *written]) from error
    except ValueError as error:  # flags that do not go together
        if isinstance(error, DllmDecodeError):
            raise
        raise ConfigError(str(error).replace("shell_completion", "shell-completion")) from error
    return 0


@contextmanager
def _arguments_of_the_process(words: list[str]) -> Iterator[None]:
    """Let Hydra find some words as the command line of the process, and raise what it refuses."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["dllm_decode", *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra lets exceptions through
    try:
        yield
    finally:
        sys.argv = before
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


# Sweeps.


def _sweep(app: Application, name: str, overrides: list[str], words: list[str]) -> int:
    """All jobs of a sweep, and a summary; a job that cannot run leaves its reason."""
    overrides = written_out(app, overrides, sweep=True)
    cfg = compose_with_hydra(app, overrides, name, sweep=True)
    with claim(_place(cfg, "sweep"), fresh=_fresh("sweep", overrides)) as held:
        place = f"hydra.sweep.dir={quote(str(held.path))}"
        cfg = compose_with_hydra(app, [*overrides, place], name, sweep=True)
        job = _HydraJob(words, sweep=True, common=frozenset(overrides))
        done = app.sweep(cfg, job, each=lambda words: written_out(app, words), begin=job.expect)
        if done.total and len(done.refused) == done.total:
            held.undo()  # a mistake of the command line, not of a job
            job_words, error = done.refused[0]
            raise explain(error, job_words)
        job.conclude()
        if not done.total:  # another sweeper than Hydra's own, whose jobs have told what they did
            done = Sweep(len(job.told), job.told, [])
        return _summary(done, RunFolder(held.path))


def _summary(done: Sweep, folder: RunFolder) -> int:
    """Say how a sweep went; returns its exit code, the worst of its jobs'."""
    failed: list[tuple[int, int, str]] = [
        (number, job.code, job.reason) for number, job in enumerate(done.results) if job.code
    ]
    for number, (words, error) in enumerate(done.refused, start=len(done.results)):
        reason = explain(error, words)
        _note_failure(RunFolder(folder.path / str(number)), words, None, reason)
        failed.append((number, reason.exit_code, str(reason)))
    if not failed:
        return 0
    numbers: dict[str, list[str]] = {}
    for number, _, why in failed:
        numbers.setdefault(_short(why), []).append(str(number))
    reasons = "; ".join(f"folder {', '.join(jobs)}: {why}" for why, jobs in numbers.items())
    print(
        f"{done.total - len(failed)} of {done.total} jobs done, {len(failed)} failed: {reasons} "
        f"(failure.json in {folder.path}/...)",
        file=sys.stderr,
    )
    return max(code for _, code, _ in failed)


def _short(text: str, most: int = 160) -> str:
    return text if len(text) <= most else f"{text[:most].rstrip()} ..."


def _note_failure(
    folder: RunFolder,
    overrides: Sequence[str],
    cfg: DictConfig | None,
    error: Exception,
    since: float = math.inf,
) -> None:
    """What a job that could not run leaves: `failure.json`, also where reports look for it."""
    from dllm_decode.tasks.failed import note_failed_evaluation

    reason = f"{type(error).__name__}: {error}"
    folder.write_json("failure.json", {"reason": reason, "overrides": list(overrides)})
    note_failed_evaluation(overrides, cfg, str(error), since)


class Done(NamedTuple):
    """What became of one job; as a number, what a search looks for.

    Attributes:
        code: Of its exit.
        reason: Why that is not 0.
        value: The larger, the better; NaN where the task has none.

    Examples:
        >>> float(Done(0, value=7.5))
        7.5
    """

    code: int
    reason: str = ""
    value: float = math.nan

    def __float__(self) -> float:
        if self.code or math.isnan(self.value):
            raise ValueError(self.reason or "this task has nothing that a search could look for")
        return self.value


@dataclass
class _HydraJob:
    """What Hydra calls with a composed configuration; returns exit code and reason.

    An exception that reached Hydra would end a sweep, and Hydra would print it as well.

    Attributes:
        words: The command line.
        sweep: Whether this is one of several jobs.
        common: Overrides that all of them share.
        line: Says how far the sweep is; None where the number of jobs is not known.
        done: Task and context of the last job that could run.
        told: What became of the jobs of this process.
    """

    words: list[str]
    sweep: bool = False
    common: frozenset[str] = frozenset()
    line: SweepLine | None = None
    done: tuple[Task, Context] | None = None
    told: list[Done] = field(default_factory=list)

    def expect(self, total: int) -> None:
        """Note the number of jobs, 0 where it is not known."""
        from dllm_decode.console.sweep_line import SweepLine

        self.line = SweepLine(total) if total else None

    def conclude(self) -> None:
        """What stands behind the last job of a sweep."""
        if self.done is not None:
            task, context = self.done
            task.conclude(context)

    def __call__(self, cfg: DictConfig) -> Done:
        self.told.append(self._done(cfg))
        return self.told[-1]

    def _done(self, cfg: DictConfig) -> Done:
        from dllm_decode.tasks.failed import forget_failed_evaluation

        state = HydraConfig.get()
        folder = RunFolder(Path(state.runtime.output_dir))
        overrides = [
            *(word for word in state.overrides.hydra if word.startswith("hydra.searchpath")),
            *state.overrides.task,
        ]
        begin = time.time()
        try:
            code = self._run(cfg, overrides, folder, state)
        except Exception as error:
            if self.sweep:
                _note_failure(folder, overrides, cfg, error, begin)
            return Done(_report(error, self.words), str(error))
        if code == 0:
            forget_failed_evaluation(overrides, cfg)
        if self.sweep and code in (INTERRUPTED, TERMINATED):
            raise KeyboardInterrupt  # the whole sweep was meant
        value = self.done[0].objective(self.done[1]) if self.sweep and self.done else math.nan
        return Done(code, "some rows failed" if code else "", value)

    def _run(self, cfg: DictConfig, overrides: Sequence[str], folder: RunFolder, state: Any) -> int:
        """One run: of the command line, or of a sweep."""
        from dllm_decode.config.instantiate import build_node
        from dllm_decode.console.allocator import keep_freed_memory
        from dllm_decode.console.display import make_display
        from dllm_decode.tasks import Context, build_task

        keep_freed_memory()
        expand_homes(cfg)  # Hydra composes the jobs of a sweep itself
        check(cfg, overrides)
        first = os.environ.get("RANK", "0") == "0"
        display = build_node(cfg, "display") if first else make_display("none")
        with _warnings_as_words():
            task = build_task(cfg)
            choices = dict(HydraConfig.get().runtime.choices)
            folder.write_text(CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
            with self._told(task, display, state) as shown:
                context = Context(cfg, tuple(overrides), choices, folder, shown)
                self.done = task, replace(context, display=display)
                code = task.run(context)
            folder.write_json("env.json", environment(overrides, context))
            return code

    @contextmanager
    def _told(self, task: Task, display: Display, state: Any) -> Iterator[Display]:
        """The display of a task; of a job of a sweep, a line that says how far the sweep is."""
        if self.line is None:
            yield display
            return
        words = [word for word in state.overrides.task if word not in self.common]
        with self.line.job(display, int(state.job.num), words) as hushed:
            yield hushed if task.concludes else display


def environment(overrides: Sequence[str], context: Any) -> dict[str, Any]:
    """What a result depends on besides the configuration.

    Args:
        overrides: The command line's.
        context: The task's `Context`, whose model is named if there is one.
    """
    model = vars(context).get("model")
    return {
        "overrides": list(overrides),
        "versions": {name: version_of(name) for name in _PACKAGES},
        **hardware(),
        "threads_chosen": _chosen(context),
        "checkpoint": model and model.description.checkpoint,
        "fingerprint": model and _fingerprint(model),
    }


def _fingerprint(model: Any) -> Any:
    from dllm_decode.decoding.denoiser import Capabilities

    return Capabilities.of(model.denoiser).fingerprint


def _chosen(context: Any) -> str:
    """Why torch has as many threads as it has."""
    from dllm_decode.console.threads import ThreadWatch, chosen_by_user

    denoiser = getattr(vars(context).get("model"), "denoiser", None)
    watch = getattr(denoiser, "watch", None)
    if isinstance(watch, ThreadWatch):
        return watch.why
    if context.cfg.model.get("threads") is not None:
        return "model.threads"
    return chosen_by_user() or ("torch's own number" if "torch" in sys.modules else "no torch")


@contextmanager
def _warnings_as_words() -> Iterator[None]:
    """Warnings are one line each, without file and line."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def quoted(word: str) -> str:
    """Prompts and paths are free text: quote them for Hydra's grammar where people did not.

    A path with a comma is a sweep, unless it is there.

    Args:
        word: One argument, e.g. `prompt=What is 2 + 2, please?`.

    Raises:
        ConfigError: The text holds `${`, an interpolation wherever it stands in a configuration.
    """
    key, sign, value = word.partition("=")
    whole = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    name = key.lstrip("+")
    free = name in _FREE_TEXT or (name.rpartition(".")[2] in _PATHS and _is_path(name, value))
    if not free or not sign or whole or value in ("", "null"):
        return word
    if "${" in value:
        raise ConfigError(
            f"{key} cannot hold ${{ on the command line; put it into a file, prompts=FILE"
        )
    return f"{key}={quote(value)}"


def _is_path(name: str, value: str) -> bool:
    """Whether a value is one path: no list, no interpolation, and no sweep."""
    if value[:1] in ("[", "{") or "${" in value:
        return False
    # Hydra's grammar knows no letters but these
    return re.fullmatch(r"[\w./:+@-]*", value, re.ASCII) is None and (
        "," not in value or name.startswith("hydra.") or Path(value).expanduser().exists()
    )


def _report(error: Exception, words: Sequence[str]) -> int:
    """Print one message; returns the exit code."""
    asked = {word.lstrip("+").lower() for word in words}
    if {"debug=true", "hydra.verbose=true"} & asked:
        traceback.print_exception(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        error = explain(error, [word for word in words if "=" in word])
    if isinstance(error, OSError) and not isinstance(error, DllmDecodeError):
        error = _of_the_machine(error)
    if isinstance(error, DllmDecodeError):
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    # what a plugin's own code raised has a note that says whose
    whose = [note for note in getattr(error, "__notes__", ()) if note.startswith("raised by ")]
    where = f"{whose[0] if whose else 'a fault of the program'}; debug=true shows where"
    print(f"error: {type(error).__name__}: {error} ({where})", file=sys.stderr)
    return 1


def _of_the_machine(error: OSError) -> DllmDecodeError:
    """A file or a disk that does not do what was asked; a full disk names no file."""
    return unwritable(Path(str(error.filename)) if error.filename else Path.cwd(), error)
