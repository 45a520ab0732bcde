"""Examples in docstrings run, and give what they say."""

import doctest
import re
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
        if re.search(r"^ *>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
    )


@pytest.mark.parametrize("name", modules())
def test_examples_give_what_they_say(name: str) -> None:
    if name.startswith("dllm_decode.lm_eval"):
        pytest.importorskip("lm_eval", reason="the harness is an extra")
    finder, report = doctest.DocTestFinder(exclude_empty=True), []
    examples = [found for found in finder.find(import_module(name)) if found.examples]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in examples:
        runner.run(example, out=report.append)
    assert examples and not runner.failures, "".join(report)
