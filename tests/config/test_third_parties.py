"""Configuration packages of other distributions: announced, or given on the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dllm_decode import ConfigError, load
from dllm_decode.cli import main

STRATEGY = '''
from dataclasses import dataclass

from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision


@dataclass(frozen=True)
class EveryOther(Strategy):
    """Commit every other open position."""

    offset: int = 0

    def decide(self, view, memory):
        return Decision(commit=view.open & (view.index % 2 == self.offset))
'''
OPTION = """
defaults:
  - pipeline
  - override select: every_other
  - _self_
"""


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a strategy and its configuration, not announced."""
    package = tmp_path / "acme_decoding"
    (package / "conf" / "strategy" / "select").mkdir(parents=True)
    for place in (package, package / "conf"):
        (place / "__init__.py").write_text("")
    (package / "rules.py").write_text(STRATEGY)
    (package / "conf" / "strategy" / "acme.yaml").write_text(OPTION)
    (package / "conf" / "strategy" / "select" / "every_other.yaml").write_text(
        "_target_: acme_decoding.rules.EveryOther\noffset: 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("acme_decoding")]:
        del sys.modules[name]


def announce(place: Path) -> None:
    info = place / "acme_decoding-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-decoding\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dllm_decode.conf]\nacme = acme_decoding.conf\n")


@pytest.mark.slow
def test_an_announced_package_adds_options_by_being_installed(acme: Path, capsys) -> None:
    announce(acme)
    decoder = load("toy_copy", "acme")
    assert type(decoder.decoder.strategy.select).__name__ == "EveryOther"
    assert decoder.generate("abcd").texts == ("abcd",)
    words = ["model=toy_copy", "strategy=acme", "display=none", f"hydra.run.dir={acme / 'run'}"]
    assert main(words) == 0
    assert main([*words, "strategy.select.ofset=1"]) == 2
    assert "did you mean strategy.select.offset?" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="strategy has acme, "):
        load("toy_copy", "absent")


@pytest.mark.slow
def test_a_search_path_on_the_command_line_is_enough(acme: Path) -> None:
    with pytest.raises(ConfigError, match="unknown option strategy=acme"):
        load("toy_copy", "acme")
    search = "hydra.searchpath=[pkg://acme_decoding.conf]"
    assert load("toy_copy", "acme", overrides=[search]).generate("abcd").texts == ("abcd",)
    words = ["model=toy_copy", "strategy=acme", "display=none", search]
    assert main([*words, f"hydra.run.dir={acme / 'run'}"]) == 0


@pytest.mark.slow
def test_a_folder_of_options_on_the_command_line_is_enough(acme: Path) -> None:
    folder = str(acme / "acme_decoding" / "conf")
    words = ["--config-dir", folder, "model=toy_copy", "strategy=acme", "display=none"]
    assert main([*words, f"hydra.run.dir={acme / 'run'}"]) == 0
