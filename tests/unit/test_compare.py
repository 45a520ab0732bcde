from __future__ import annotations

import json
from pathlib import Path

import pytest

from dllm_decode import ConfigError
from dllm_decode.cli import main
from dllm_decode.tasks.compare import Compare

TOY = ("model=toy_shuffle", "sampler=categorical", "schedule.length=4", "max_new_tokens=8")


def run(folder: Path, *words: str) -> int:
    return main([*words, "display=plain", f"hydra.run.dir={folder}"])


@pytest.mark.slow
def test_two_recorded_runs_are_compared_where_they_part(tmp_path: Path, capsys) -> None:
    for name, rule in (("a", "topk"), ("b", "sequential")):
        words = [*TOY, f"strategy={rule}", "task.samples=2", "compare=false"]
        assert run(tmp_path / name, *words) == 0
    capsys.readouterr()
    both = f"runs=[{tmp_path / 'a'},{tmp_path / 'b'}]"
    assert run(tmp_path / "c", "task=compare", both) == 0
    told = capsys.readouterr().out
    assert "strategy=topk against strategy=sequential" in told
    assert "prompt 1: from step 1, column " in told and "   1* |" in told
    written = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [d["row"] for d in written["first_differences"]["strategy=sequential"]] == [0, 1]
    page = (tmp_path / "c" / "compare.html").read_text()
    assert '"name": "strategy=topk", "correct": [' in page and page.count('"finish_reasons"') == 2
    files = f"runs=[{tmp_path / 'a' / 'trace.jsonl'},{tmp_path / 'a'}]"
    assert run(tmp_path / "d", "task=compare", files) == 0
    assert "2 of 2 prompts are decoded in the same way" in capsys.readouterr().out


@pytest.mark.slow
def test_a_second_configuration_may_be_written_in_short(tmp_path: Path, capsys) -> None:
    assert run(tmp_path, "task=compare", *TOY, "against='threshold=0.1'", "task.samples=1") == 0
    assert "strategy.select.threshold=0.1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "names", "same"),
    [
        ("batch_size=1", "batch_size=16 against batch_size=1", True),
        pytest.param(
            "strategy=sequential",
            "strategy=credit against strategy=sequential",
            False,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "model.noise=0.4",
            "model.noise=1e-06 against model.noise=0.4",
            False,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "seed=3 batch_size=2",
            "seed=0, batch_size=16 against seed=3, batch_size=2",
            False,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_second_configuration_is_decoded_and_compared(
    tmp_path: Path, capsys, change: str, names: str, same: bool
) -> None:
    assert run(tmp_path, "task=compare", *TOY, f"against={change}", "task.samples=2") == 0
    told = capsys.readouterr().out
    assert names in told
    assert ("2 of 2 prompts are decoded in the same way" in told) == same


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"needs either runs=\[a,b\]"),
        ({"runs": ["a"]}, r"runs must be two folders or more, got \['a'\]"),
        ({"runs": ["a", "b"], "against": "seed=1"}, r"needs either runs=\[a,b\]"),
        ({"against": "seed=1", "samples": 0}, r"task\.samples must be"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Compare(**settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs=[nowhere,there]"], "cannot read the trace nowhere"),
        (["against=batch_size=16", *TOY], "task.against must change something"),
        (["against=", *TOY], "task.against must change something"),
        (["against=stratgy=factor", *TOY], "did you mean"),
        (
            ['against=batch_size="1', *TOY],
            'task.against cannot be read: No closing quotation, got batch_size="1',
        ),
        (["against=prompt=ab", *TOY], "task.against cannot change prompt"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys, words, message: str) -> None:
    assert run(tmp_path / "out", "task=compare", *words) in (1, 2)
    out, error = capsys.readouterr()
    assert message in error and "Traceback" not in error and "decoding" not in out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_runs_of_different_prompts_are_named(tmp_path: Path, capsys) -> None:
    for name, seed in (("a", 0), ("b", 7)):
        words = [*TOY, f"seed={seed}", "task.samples=1", "compare=false"]
        assert run(tmp_path / name, *words) == 0
    both = f"runs=[{tmp_path / 'a'},{tmp_path / 'b'}]"
    assert run(tmp_path / "c", "task=compare", both) == 2
    assert "seed=7: the traces belong to different prompts" in capsys.readouterr().err
