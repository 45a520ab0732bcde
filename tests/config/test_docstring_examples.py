"""Examples in docstrings run, and give what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import dllm_decode

PACKAGE = Path(dllm_decode.__file__).parent


def modules() -> list[str]:
    """Modules with an example; found in the text, so that nothing else is imported."""
    places = (PACKAGE, PACKAGE / "strategies")  # a link, which rglob does not follow
    files = {path for place in places for path in place.rglob("*.py")}
    return sorted(
        ".".join(("dllm_decode", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for path in files
        if ">>> " in path.read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("name", modules())
def test_examples_give_what_they_say(name: str) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in doctest.DocTestFinder(exclude_empty=True).find(import_module(name)):
        runner.run(example, out=report.append)
    assert runner.tries and not runner.failures, "".join(report)
