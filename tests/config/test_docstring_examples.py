"""Examples in docstrings run, and give what they say."""

import ast
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


@pytest.mark.one_in(4)
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


# Public by name, but made and read inside the package only: nobody would write such a line.
INTERNAL = {
    *("Pass", "PendingCheck", "NextStep", "CreditUpdate", "Claim", "Contender", "Blueprint"),
    *("Written", "Chosen", "ReportPage", "Row", "EvalRun", "Decoded", "Format", "ModelSpec"),
    *("Kind", "State", "Worker", "LLaDAModelLM", "LLaDAAttention", "LLaDARotaryEmbedding"),
    *("LLaDA2MoeModelLM", "TemplateOverrun", "TemplateRefusal", "SlotChanges", "ExtraPasses"),
    *("KeptPrediction", "Passes", "Followed", "Sketch", "HostedStep", "Rollout", "FittedFilter"),
    "Masked",
    # of engines that take seconds to import; test_integrations_*.py decodes with them
    *("DllmDecode", "BlockState", "StrategyScheduler"),
}


def classes() -> list[tuple[str, ast.ClassDef]]:
    return [
        (str(path.relative_to(PACKAGE)), node)
        for place in (PACKAGE, PACKAGE / "strategies")
        for path in sorted(place.rglob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]


@pytest.mark.slow
def test_every_public_class_has_an_example() -> None:
    without = {
        node.name: path for path, node in classes() if ">>> " not in (ast.get_docstring(node) or "")
    }
    kept = {
        node.name for _, node in classes() for base in node.bases if "Memory" in ast.unparse(base)
    }
    assert {
        name: path
        for name, path in without.items()
        if name not in INTERNAL | kept and not name.endswith("Error")
    } == {}
    assert set(without) >= INTERNAL
