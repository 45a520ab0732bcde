"""What the command line takes from Hydra's private modules; fails when a version moves it."""

from __future__ import annotations

import ast
import inspect
import threading
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict

import dllm_decode
from dllm_decode import load
from dllm_decode.config.compose import compose, hydra_application

CORE = Path(dllm_decode.__file__).parent


@pytest.mark.slow
def test_one_module_alone_imports_private_names_of_hydra() -> None:
    users = {
        file.name
        for file in CORE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hydra._internal")
    }
    assert users == {"hydra_application.py"}


@pytest.mark.parametrize(
    ("place", "parameters"),
    [
        ("hydra._internal.utils:get_args_parser", []),
        ("hydra._internal.utils:create_config_search_path", ["search_path_dir"]),
        ("hydra._internal.hydra:Hydra.create_main_hydra2", ["task_name", "config_search_path"]),
        ("hydra._internal.hydra:Hydra.compose_config", ["config_name", "overrides", "run_mode"]),
        ("hydra._internal.callbacks:Callbacks.__init__", ["config"]),
        (
            "hydra._internal.config_loader_impl:ConfigLoaderImpl.get_group_options",
            ["group_name", "config_name", "overrides"],
        ),
        (
            "hydra._internal.config_loader_impl:ConfigLoaderImpl.load_sweep_config",
            ["master_config", "sweep_overrides"],
        ),
        (
            "hydra._internal.core_plugins.basic_sweeper:BasicSweeper.split_arguments",
            ["overrides", "max_batch_size"],
        ),
        (
            "hydra._internal.core_plugins.basic_sweeper:BasicSweeper.split_overrides_to_chunks",
            ["lst", "n"],
        ),
        ("hydra.plugins.sweeper:Sweeper.validate_batch_is_legal", ["batch"]),
        ("hydra.plugins.config_source:ConfigSource.__init__", ["provider", "path"]),
        ("hydra.plugins.config_source:ConfigSource.load_config", ["config_path"]),
        ("hydra.plugins.config_source:ConfigSource.is_config", ["config_path"]),
        ("hydra.plugins.config_source:ConfigSource.is_group", ["config_path"]),
        (
            "hydra.core.utils:run_job",
            ["task_function", "config", "job_dir_key", "job_subdir_key", "hydra_context"],
        ),
    ],
)
def test_hydra_still_has_what_runs_and_sweeps_are_made_of(
    place: str, parameters: list[str]
) -> None:
    import pkgutil

    found = inspect.signature(pkgutil.resolve_name(place)).parameters
    assert [name for name in parameters if name not in found] == []


def test_composing_leaves_a_hydra_application_of_the_user_alone() -> None:
    state = GlobalHydra.instance()
    state.hydra = mine = object()  # type: ignore[assignment]
    try:
        hydra_application().compose("config", ["model=toy_copy"])
        assert state.hydra is mine
    finally:
        state.clear()


def test_files_of_the_package_are_read_once_and_every_configuration_is_its_own(monkeypatch) -> None:
    first = compose(["model=toy_copy"])
    kept = OmegaConf.to_yaml(first)
    with open_dict(first):
        first.clear()
    monkeypatch.setattr(OmegaConf, "load", None)
    assert OmegaConf.to_yaml(compose(["model=toy_copy"])) == kept


@pytest.mark.slow
def test_load_works_in_many_threads_at_once() -> None:
    found: list[object] = []

    def one(number: int) -> None:
        try:
            decoder = load("toy_copy", "threshold", threshold=0.5 + number / 100)
            found.append(round(decoder.decoder.strategy.select.threshold, 2))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, found)) == [f"{0.5 + number / 100:g}" for number in range(8)]
