"""Hydra as the command line uses it: one run, or a sweep that goes on without what cannot run.

The only module that imports private names of Hydra; `tests/config/test_hydra_application.py` says
which of them have moved when a version of Hydra has them elsewhere.
"""

from __future__ import annotations

import threading
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.importlib_resources_config_source import (
    ImportlibResourcesConfigSource,
)
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import run_job
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import HydraContext, RunMode
from hydra.version import setbase
from omegaconf import DictConfig, flag_override
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from dllm_decode.errors import ConfigError

# What Hydra raises where a configuration cannot be composed; the last two are about files.
REFUSALS = (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError)
# What the process shares: Hydra keeps its state in one singleton.
_LOCK = threading.RLock()


def argument_parser() -> ArgumentParser:
    """The parser of Hydra's command lines, with `overrides` for everything without dashes."""
    parser: ArgumentParser = get_args_parser()
    return parser


def application(config_module: str, folder: Path | None = None) -> Application:
    """Hydra with the configuration of a package, apart from Hydra's global state.

    An application that runs already, ours or a user's, is there as before.

    Args:
        config_module: The package that holds the groups and `config.yaml`.
        folder: Where a primary configuration of another name is looked for as well.
    """
    with _LOCK:
        state = GlobalHydra.instance()
        outer = state.hydra
        state.clear()
        setbase("1.3")
        try:
            search_path = create_config_search_path(f"pkg://{config_module}")
            if folder is not None:
                last = SearchPathQuery(provider="schema")
                search_path.prepend("command-line", f"file://{folder}", last)
            hydra = Hydra.create_main_hydra2("dllm_decode", search_path)
        finally:
            state.hydra = outer
        repository = hydra.config_loader.repository
        repository.sources = [_once(source, config_module) for source in repository.sources]
        return Application(hydra)


def _once(source: Any, config_module: str) -> Any:
    """The same place; of our package and of Hydra each file is read once in a process.

    Hydra would read and parse some twenty files each time that it composes. Other packages and
    folders may change while the process runs.
    """
    if source.scheme() == "pkg" and source.path in (config_module, "hydra.conf"):
        return _PackageData(source.provider, f"pkg://{source.path}")
    return source


class _PackageData(ImportlibResourcesConfigSource):  # type: ignore[misc] # hydra is untyped here
    """The configuration files of a package, which stay as they are."""

    def load_config(self, config_path: str) -> ConfigResult:
        # Hydra takes the list of defaults out of what it gets
        return deepcopy(_read(self.provider, self.path, config_path))

    def is_config(self, config_path: str) -> bool:
        return _has_file(self.path, config_path)

    def is_group(self, config_path: str) -> bool:
        return _has_folder(self.path, config_path)


@cache
def _read(provider: str, package: str, name: str) -> ConfigResult:
    return ImportlibResourcesConfigSource(provider, f"pkg://{package}").load_config(name)


@cache
def _has_file(package: str, name: str) -> bool:
    return bool(ImportlibResourcesConfigSource("", f"pkg://{package}").is_config(name))


@cache
def _has_folder(package: str, name: str) -> bool:
    return bool(ImportlibResourcesConfigSource("", f"pkg://{package}").is_group(name))


@dataclass(frozen=True)
class Sweep:
    """The jobs of a sweep.

    Attributes:
        total: How many there are, those included that cannot be composed.
        results: What the jobs returned, in their order.
        refused: Overrides of each job that cannot be composed, with the reason.

    Examples:
        >>> Sweep(total=3, results=[0, 0], refused=[(["strategy=x"], ValueError("no such"))]).total
        3
    """

    total: int
    results: list[Any]
    refused: list[tuple[list[str], Exception]]


@dataclass(frozen=True)
class Application:
    """One Hydra application, between composing and running.

    Attributes:
        hydra: Hydra's own object.

    Examples:
        >>> cfg = application("dllm_decode.conf").compose("config", ["strategy=threshold"])
        >>> cfg.strategy.select.threshold
        0.9
    """

    hydra: Any

    def compose(self, name: str, overrides: Sequence[str], sweep: bool = False) -> DictConfig:
        """The configuration with Hydra's own node.

        Args:
            name: Of the primary configuration.
            overrides: As on the command line.
            sweep: Leave out those with several values, which jobs get one by one.
        """
        mode = RunMode.MULTIRUN if sweep else RunMode.RUN
        with _LOCK:
            cfg: DictConfig = self.hydra.compose_config(name, list(overrides), mode)
        return cfg

    def options(self, group: str, overrides: Sequence[str] = ()) -> list[str]:
        """The options of a group, those of other packages included.

        Args:
            group: E.g. `strategy/select`.
            overrides: Those of `hydra.searchpath` count.
        """
        loader = self.hydra.config_loader
        with _LOCK:
            found: list[str] = loader.get_group_options(
                group, config_name="config", overrides=list(overrides)
            )
        return found

    def run(self, cfg: DictConfig, job: Callable[[DictConfig], Any], folder: Path) -> Any:
        """Run a job in a folder; returns what it returns."""
        with flag_override(cfg.hydra, "readonly", False):
            cfg.hydra.run.dir = str(folder)
        callbacks = Callbacks(cfg)
        callbacks.on_run_start(config=cfg, config_name="config")
        context = HydraContext(self.hydra.config_loader, callbacks)
        done = run_job(job, cfg, "hydra.run.dir", None, context)
        callbacks.on_run_end(config=cfg, config_name="config", job_return=done)
        return done.return_value

    def sweep(
        self,
        cfg: DictConfig,
        job: Callable[[DictConfig], Any],
        each: Callable[[list[str]], list[str]],
        begin: Callable[[int], None],
    ) -> Sweep:
        """Run the jobs of a sweep.

        Args:
            cfg: Composed with `sweep=True`.
            job: What runs; it has to return rather than raise, so that the others go on.
            each: The overrides of a job as they are to be composed, from those as they were
                written; raises for a job that cannot be.
            begin: Is told the number of jobs before the first one starts, 0 where a sweeper of
                another package does not say it.
        """
        callbacks = Callbacks(cfg)
        callbacks.on_multirun_start(config=cfg, config_name="config")
        context = HydraContext(self.hydra.config_loader, callbacks)
        sweeper = Plugins.instance().instantiate_sweeper(
            config=cfg, hydra_context=context, task_function=job
        )
        own = type(sweeper).__name__ == "BasicSweeper"
        jobs = _Composable(context.config_loader, cfg, each)
        if own:  # Hydra's would end the sweep for one job that cannot be composed
            split = sweeper.split_arguments

            def split_arguments(words: Any, size: int | None) -> list[list[list[str]]]:
                every = [job for batch in split(words, None) for job in batch]
                good = [found for job in every if (found := jobs.composed(job)) is not None]
                begin(len(every))
                return list(sweeper.split_overrides_to_chunks(good, size)) if good else []

            sweeper.split_arguments = split_arguments
            sweeper.validate_batch_is_legal = lambda batch: None
        else:
            begin(int(cfg.hydra.sweeper.get("n_trials") or 0))
        found = sweeper.sweep(arguments=list(cfg.hydra.overrides.task))
        callbacks.on_multirun_end(config=cfg, config_name="config")
        if not own:
            return Sweep(0, [], [])
        results = [done.return_value for batch in found for done in batch]
        return Sweep(len(results) + len(jobs.refused), results, jobs.refused)


@dataclass
class _Composable:
    """Tells the jobs that can be composed from those that cannot, and keeps the reasons."""

    loader: Any
    cfg: DictConfig
    each: Callable[[list[str]], list[str]]
    refused: list[tuple[list[str], Exception]] = field(default_factory=list)

    def composed(self, job: list[str]) -> list[str] | None:
        """The overrides of a job as Hydra takes them, None if it refuses them."""
        try:
            job = self.each(job)
            with _LOCK:
                self.loader.load_sweep_config(self.cfg, job)
        except (*REFUSALS, ConfigError) as error:
            self.refused.append((job, error))
            return None
        return job
