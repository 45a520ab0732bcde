"""Builds and installs the package in every way people do, and runs it from several places."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ("-m", "dllm_decode", "model=toy_copy", "task.samples=1", "compare=false", "display=plain")
WAYS = ("editable", "plain", "wheel")

pytestmark = pytest.mark.packaging


def call(*words: str | Path, cwd: Path) -> str:
    done = attempt(*words, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def attempt(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def build(source: Path, target: Path, kind: str) -> Path:
    """A distribution made by the build backend that pyproject.toml names."""
    script = f"import setuptools.build_meta as b; print(b.build_{kind}({str(target)!r}))"
    name = call(sys.executable, "-c", script, cwd=source).splitlines()[-1]
    return target / name


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, links kept, without what building leaves behind."""
    target = tmp_path_factory.mktemp("checkout") / "repository"
    unwanted = shutil.ignore_patterns(
        ".git", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "runs", ".venv"
    )
    shutil.copytree(ROOT, target, symlinks=True, ignore=unwanted)
    return target


@pytest.fixture(scope="session")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="session")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="session")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    return next(place.iterdir())


def environment(place: Path) -> Path:
    """A fresh environment that sees this one's dependencies, but not its installed package."""
    venv.create(place)
    libraries = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # the .pth files of a folder added this way are not read, so an editable install stays hidden
    (libraries / "site-packages" / "dependencies.pth").write_text("\n".join(sorted(here)))
    return place / "bin" / "python"


@pytest.fixture(scope="session", params=WAYS)
def installed(request, tmp_path_factory, checkout: Path, wheel: Path):
    python = environment(tmp_path_factory.mktemp("environment"))
    what: list[str | Path] = {
        "editable": ["-e", checkout],
        "plain": [checkout],
        "wheel": [wheel],
    }[request.param]
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps")
    call(
        *pip, "--no-build-isolation", "--no-compile", "--ignore-installed", *what, cwd=wheel.parent
    )
    return request.param, python


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_modules_yaml_assets_and_the_typing_mark(wheel: Path) -> None:
    names = names_in(wheel)
    package = ROOT / "dllm_decode"
    wanted = {
        str(Path(folder, name).relative_to(ROOT))
        for folder, _, files in os.walk(package, followlinks=True)
        for name in files
        if "__pycache__" not in folder
    }
    assert wanted - names == set()
    assert {"dllm_decode/py.typed", "dllm_decode/conf/config.yaml"} <= names
    assert "dllm_decode/strategies/credit.py" in names


def test_the_wheel_installs_one_top_level_name(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in names_in(wheel)}
    assert tops == {"dllm_decode", "dllm_decode-0.1.0.dist-info"}


def test_the_source_distribution_gives_the_same_wheel(wheel: Path, unpacked: Path) -> None:
    again = build(unpacked, unpacked / "again", "wheel")
    assert names_in(again) == names_in(wheel)


def test_it_runs_from_the_root_of_the_repository(installed, checkout: Path, tmp_path: Path) -> None:
    _, python = installed
    out = call(python, *RUN, f"hydra.run.dir={tmp_path / 'run'}", cwd=checkout)
    assert "exact toy world" in out


def test_it_runs_elsewhere_beside_folders_of_the_same_names(installed, tmp_path: Path) -> None:
    way, python = installed
    for name in ("strategies", "conf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong folder')")
    assert "exact toy world" in call(python, *RUN, cwd=tmp_path)
    where = "import dllm_decode.strategies.credit as c; print(c.__file__)"
    file = Path(call(python, "-c", where, cwd=tmp_path).strip())
    assert (way == "editable") == ("repository" in file.parts)


def test_the_bundled_model_is_found_after_installation(installed, tmp_path: Path) -> None:
    _, python = installed
    words = ("-m", "dllm_decode", "task.samples=1", "max_new_tokens=32", "compare=false")
    assert "bundled:llada-tiny" in call(python, *words, cwd=tmp_path)


def test_the_command_is_installed_beside_python(installed, tmp_path: Path) -> None:
    _, python = installed
    out = call(python.parent / "dllm_decode", "--help", cwd=tmp_path)
    assert "usage: python -m dllm_decode" in out


@pytest.fixture
def without_links(checkout: Path, tmp_path: Path) -> Path:
    """A clone made with `core.symlinks=false`: links are files that hold where they lead."""
    place = tmp_path / "without links"
    shutil.copytree(checkout, place, symlinks=True)
    for name in ("conf", "strategies"):
        link = place / "dllm_decode" / name
        target = os.readlink(link)
        link.unlink()
        link.write_text(target)
    return place


@pytest.mark.parametrize("kind", ["wheel", "editable", "sdist"])
def test_a_clone_without_links_says_what_to_do_instead_of_building_half(
    kind: str, without_links: Path, tmp_path: Path
) -> None:
    script = f"import setuptools.build_meta as b; b.build_{kind}({str(tmp_path / 'out')!r})"
    done = attempt(sys.executable, "-c", script, cwd=without_links)
    assert done.returncode != 0 and "git clone -c core.symlinks=true" in done.stderr
    assert not list(tmp_path.glob("out/*"))


def test_pip_shows_what_to_do_with_a_clone_without_links(
    without_links: Path, tmp_path: Path
) -> None:
    words = ("install", "--no-deps", "--no-build-isolation", "--target", tmp_path / "there")
    done = attempt(sys.executable, "-m", "pip", *words, without_links, cwd=tmp_path)
    assert done.returncode != 0 and "git clone -c core.symlinks=true" in done.stdout + done.stderr
    assert not (tmp_path / "there").exists()


def test_a_clone_without_links_says_so_when_it_is_run(without_links: Path) -> None:
    done = attempt(sys.executable, "-m", "dllm_decode", cwd=without_links)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "git clone -c core.symlinks=true" in done.stderr
