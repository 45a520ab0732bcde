"""What has to be in a wheel is named in pyproject.toml; tests/packaging builds one."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_file_that_is_not_python_is_named_as_package_data() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    covered = {
        file
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    shipped = {
        Path(folder, name)
        for folder, _, names in os.walk(ROOT / "dllm_decode", followlinks=True)
        for name in names
        if not name.endswith((".py", ".pyc"))
    }
    assert shipped - covered == set()
    assert ROOT / "dllm_decode" / "py.typed" in shipped


def test_every_folder_with_modules_is_a_package() -> None:
    for folder, _, names in os.walk(ROOT / "dllm_decode", followlinks=True):
        if any(name.endswith(".py") for name in names):
            assert "__init__.py" in names, folder


def test_strategies_and_conf_are_relative_links_to_the_top_level() -> None:
    for name in ("strategies", "conf"):
        assert os.readlink(ROOT / "dllm_decode" / name) == f"../{name}"
