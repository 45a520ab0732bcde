"""The API reference names every strategy and everything that the package exports."""

import re
from pathlib import Path

import dllm_decode

ROOT = Path(__file__).parents[2]
PAGES = "\n".join(
    page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")
)
SHOWN = set(re.findall(r"^::: ([\w.]+)$", PAGES, re.M))


def test_every_strategy_file_has_its_entry():
    files = {path.stem for path in (ROOT / "strategies").glob("*.py")} - {"__init__"}
    shown = {name.rpartition(".")[2] for name in SHOWN if ".strategies." in name}
    assert shown == files


def test_every_exported_name_has_its_entry():
    for name in dllm_decode.__all__:
        home = getattr(dllm_decode, name).__module__
        assert {home, f"{home}.{name}"} & SHOWN, f"{name} of {home}"


def test_every_entry_exists():
    from pydoc import locate

    for name in SHOWN:
        assert locate(name) is not None, name
