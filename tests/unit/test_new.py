"""`task=new` writes a package whose tests pass as they are."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dllm_decode.cli import main
from dllm_decode.config.compose import compose
from dllm_decode.errors import ConfigError
from dllm_decode.tasks.new import KINDS, New


def written(place: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.chdir(place)
    return main(["task=new", *words, "hydra.run.dir=run", "display=plain"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_tests_of_a_new_package_pass_as_they_are(kind: str, tmp_path, monkeypatch) -> None:
    assert written(tmp_path, monkeypatch, "name=my_rule", f"kind={kind}") == 0
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "my_rule",
        env={**os.environ, "HYPOTHESIS_PROFILE": "default"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["select", "stop"])
def test_what_its_readme_says_to_type_runs(kind: str, tmp_path, monkeypatch) -> None:
    assert written(tmp_path, monkeypatch, "name=my_rule", f"kind={kind}") == 0
    readme = (tmp_path / "my_rule" / "README.md").read_text(encoding="utf-8")
    [line] = [line for line in readme.splitlines() if "hydra.searchpath" in line]
    words = line.strip().replace("python", sys.executable, 1) + " task.samples=2 compare=false"
    done = subprocess.run(
        words, shell=True, cwd=tmp_path / "my_rule", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.one_in(6)
@pytest.mark.parametrize("kind", KINDS)
def test_what_its_readme_says_of_several_values_is_a_sweep_over_its_field(
    kind: str, tmp_path, monkeypatch
) -> None:
    assert written(tmp_path, monkeypatch, "name=my_rule", f"kind={kind}") == 0
    readme = (tmp_path / "my_rule" / "README.md").read_text(encoding="utf-8")
    [line] = [line for line in readme.splitlines() if "dllm_decode -m" in line]
    [(key, values)] = re.findall(r" ([\w.]+)=([\d.]+,[\d.]+) ", line)
    field = key.rpartition(".")[2]
    options = tmp_path / "my_rule" / "my_rule" / "conf"
    words = [word for word in shlex.split(line)[4:] if word not in ("-m", f"{key}={values}")]
    for value in values.split(","):
        place = f"hydra.searchpath=['file://{options}']"
        cfg = compose([place, *words, f"{key}={value}"])
        assert OmegaConf.select(cfg, key) == float(value)
    assert f"    {field}: " in (tmp_path / "my_rule" / "my_rule" / "__init__.py").read_text()


@pytest.mark.slow
def test_every_file_is_there_and_python_reads_it(tmp_path, monkeypatch, capsys) -> None:
    assert written(tmp_path, monkeypatch, "name=my_rule", "kind=transform") == 0
    said = capsys.readouterr().out
    for place in New(name="my_rule", kind="transform").files:
        assert (tmp_path / "my_rule" / place).is_file() and place in said
    for kind in KINDS:
        for place, text in New(name="my_rule", kind=kind).files.items():
            assert "$" not in text
            if place.endswith(".py"):
                compile(text, place, "exec")


@pytest.mark.parametrize("name", ["MyRule", "my-rule", "class", "3rd", "", "../x", 7])
def test_a_name_that_cannot_be_is_refused(name: object) -> None:
    with pytest.raises(ConfigError, match=r"task\.name must be small letters"):
        New(name=name)


def test_a_missing_name_and_a_wrong_kind_are_named() -> None:
    with pytest.raises(ConfigError, match=r"task\.name is missing"):
        New()
    with pytest.raises(ConfigError, match=r"task\.kind must be one of select, transform"):
        New(name="my_rule", kind="selct")


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["name=threshold"], "task.name=threshold is the name of an option"),
        (["name=credit"], "task.name=credit is the name of an option of the group strategy;"),
        (["name=credit", "kind=cache"], "task.name=credit is the name of an option of the group"),
        (["name=json", "kind=cache"], "task.name=json is the name of a module"),
        (["name=my_rule", "task.output=there"], "task.output: there exists already"),
        (["name=my_rule", "task.output=a_file/my_rule"], "a_file/my_rule cannot be written"),
    ],
)
def test_nothing_is_written_over(words, message, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "a_file").write_text("mine")
    assert written(tmp_path, monkeypatch, *words) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"there", "a_file", "run"}
