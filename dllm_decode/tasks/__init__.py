"""One module per `task=`; this file is the convention they share.

A task is `conf/task/<name>.yaml` with the `_target_` of a frozen dataclass that subclasses `Task`:

    # conf/task/count.yaml                    @dataclass(frozen=True)
    _target_: dllm_decode.tasks.count.Count   class Count(Task):
    limit: 100   # problems                       limit: int = 100
                                                  def run(self, context: Context) -> int:
                                                      decoder = context.decoder
                                                      ...
                                                      return 0

Fields are the settings (`task.limit=10`), with the same defaults in YAML and dataclass. Range
checks stand in `__post_init__` and name the key (`task.limit`). `run` returns the exit code, 0 for
success; faults are raised as `DllmDecodeError`. Modules of tasks import torch and transformers
inside functions (or under `TYPE_CHECKING`), so that errors in the configuration answer at once.
Settings that several tasks share stand at the top of the configuration and reach a task by
interpolation (`seed: ${seed}`), the output goes to `context.folder`, words for people to
`context.display`, and nothing is printed directly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from dllm_decode.errors import ConfigError, DllmDecodeError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dllm_decode.api import TextDecoder
    from dllm_decode.console.display import Display
    from dllm_decode.console.runfolder import RunFolder
    from dllm_decode.console.trace_files import TraceFormat
    from dllm_decode.decoding.observer import Observer
    from dllm_decode.decoding.outcome import Result
    from dllm_decode.models.loaded import LoadedModel


@dataclass(frozen=True)
class Context:
    """What a task gets from the command line.

    Model and decoder are built when they are first asked for.

    Attributes:
        cfg: The composed configuration.
        overrides: The command line's, without shorthands.
        choices: The option of each group.
        folder: Where results go.
        display: How people are told.

    Examples:
        >>> from dataclasses import fields
        >>> sorted(field.name for field in fields(Context))
        ['cfg', 'choices', 'display', 'folder', 'overrides']
    """

    cfg: DictConfig
    overrides: tuple[str, ...]
    choices: Mapping[str, str]
    folder: RunFolder
    display: Display

    @cached_property
    def model(self) -> LoadedModel:
        """The model of this configuration, loaded once."""
        from dllm_decode.config.instantiate import build_model
        from dllm_decode.console.threads import timed_threads

        with self.display.working("loading the model"):
            loaded = build_model(self.cfg)
        if self.cfg.model.get("threads") is not None:
            return loaded
        return timed_threads(loaded, lambda line: self.display.say(line, "dim"))

    @cached_property
    def decoder(self) -> TextDecoder:
        """The decoder of this configuration."""
        self.refuse_early()
        from dllm_decode.api import build, check_before_loading

        check_before_loading(self.cfg)
        return build(self.cfg, model=lambda: self.model)

    def refuse_early(
        self,
        then: Callable[[TextDecoder], object] = lambda decoder: None,
        *before: Callable[[], object],
    ) -> None:
        """Raise what model and parts refuse, where no torch is needed to know it.

        Args:
            then: What is done with the decoder, as far as that needs no torch.
            before: What may be refused as well, each on its own.
        """
        from dllm_decode.tasks.rehearsed import refuse_early

        refuse_early(self.cfg, then, *before)

    def decoder_with(self, *overrides: str) -> TextDecoder:
        """The decoder of this configuration with further overrides, sharing the loaded model.

        Args:
            overrides: As on the command line, e.g. `"strategy=factor"`; they come last and win.
        """
        from dllm_decode.config.compose import compose_checked
        from dllm_decode.tasks.rehearsed import refuse_early

        cfg = compose_checked((*self.overrides, *overrides))
        refuse_early(cfg)
        from dllm_decode.api import build

        return build(cfg, model=lambda: self.model)

    def decoded(
        self, title: str, lengths: Sequence[int], decode: Callable[[Observer], Result]
    ) -> Result:
        """What a decode writes, with a bar beside it; for tasks that need every one of its rows.

        Args:
            title: What happens, for the bar and the error.
            lengths: Columns of each row.
            decode: Decodes them in batches, with the observer that it is given.

        Raises:
            DllmDecodeError: Where rows failed.
        """
        from dllm_decode.console.watching import ProgressObserver

        columns = sum(lengths)
        with self.display.progress(title, columns) as report:
            result = decode(ProgressObserver(columns, report))
        failed = [error for error in result.errors if error]
        if failed:
            raise DllmDecodeError(
                f"{title}: {len(failed)} of {len(lengths)} prompts failed, the first: {failed[0]}"
            )
        return result

    def cfg_choice(self, group: str) -> str:
        """The option chosen for a group, for titles."""
        return self.choices.get(group, group)

    @property
    def strategy_name(self) -> str:
        """What tables call the strategy: what runs, not merely what it was derived from."""
        return strategy_name(self.cfg_choice("strategy"), self.overrides)

    @cached_property
    def trace(self) -> TraceFormat:
        """How steps are recorded: the group `trace`."""
        from dllm_decode.config.instantiate import build_node

        kind: TraceFormat = build_node(self.cfg, "trace")
        return kind


def strategy_name(option: str, overrides: Sequence[str]) -> str:
    """The name of a strategy with the parts that were exchanged.

    Args:
        option: The option of the group `strategy`.
        overrides: Of the command line. `strategy=pipeline strategy/select=factor` is "factor",
            `strategy=credit strategy/select=factor` is "credit select=factor".
    """
    pairs = [text.lstrip("+").partition("=") for text in overrides]
    parts = {
        key.removeprefix("strategy/"): value for key, _, value in pairs if "strategy/" in key[:9]
    }
    if option == "pipeline":
        option = parts.pop("select", option)
    return " ".join([option, *(f"{slot}={value}" for slot, value in parts.items())])


class Task(ABC):
    """What `task=` selects: frozen settings and one method.

    Examples:
        >>> from dllm_decode.tasks.doctor import Doctor
        >>> issubclass(Doctor, Task), Doctor().load
        (True, False)
    """

    @abstractmethod
    def run(self, context: Context) -> int:
        """Do it.

        Args:
            context: Configuration, model, run folder and display.

        Returns:
            The exit code, 0 for success.

        Raises:
            DllmDecodeError: A fault, as one message.
        """

    def conclude(self, context: Context) -> None:
        """Show what the jobs of a sweep have in common; a task that does is silent in its jobs.

        Args:
            context: Of the last job that ran.
        """
        return

    def objective(self, context: Context) -> float:
        """What a search such as Optuna's maximizes; NaN for a task without any such figure.

        Args:
            context: Of the job that has just run.
        """
        return math.nan

    @property
    def concludes(self) -> bool:
        """Whether the task sums up a sweep itself."""
        return type(self).conclude is not Task.conclude


def build_task(cfg: DictConfig) -> Task:
    """The task of a configuration; raises `ConfigError` if it is not one."""
    from dllm_decode.config.instantiate import build_node

    task = build_node(cfg, "task")
    if not isinstance(task, Task):
        raise ConfigError(f"task must be a dllm_decode.tasks.Task, got {type(task).__name__}")
    return task
