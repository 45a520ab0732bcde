"""The model card: how its figures are computed, and that the shipped model still gives them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import card_dynamics as dynamics
import card_text as card
import pytest
import torch
from card_dynamics import Dynamics
from card_history import Redundancy
from card_task import ModelCard
from safetensors.torch import load_file

import dllm_decode.models
from dllm_decode.api import load
from dllm_decode.errors import ConfigError
from dllm_decode.evaluation import metrics
from dllm_decode.evaluation.metrics import Sample
from dllm_decode.evaluation.statistics import wilson
from dllm_decode.evaluation.store import EvalRun
from dllm_decode.models.placement import slow_on_processor
from dllm_decode.problems import FAMILIES, problems

BUNDLED = Path(dllm_decode.models.__file__).parent / "assets" / "llada-tiny"
GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints" / "llada"
EOT = 0


def sample(task: str, number: int, tokens: list[int], *, correct: bool, forwards: int = 4, **more):
    steps = tuple(range(len(tokens)))
    values = {
        "problem": f"{task}/held_out/0/{number}", "family": task, "prompt": "", "text": "",
        "correct": correct, "forwards": forwards, "slots": 8, "steps": steps,
        "ready": tuple(max(0, step - 2) for step in steps), "tokens": (*tokens, EOT),
        "confidence": (0.95,) * len(tokens),
    }  # fmt: skip
    return Sample(**values | more)


def run(*samples: Sample) -> EvalRun:
    return EvalRun(Path(), {"families": list(dict.fromkeys(s.family for s in samples))}, samples)


@pytest.fixture
def found() -> card.Measured:
    sequential = run(
        sample("copy", 0, [5, 6], correct=True),
        sample("copy", 1, [5, 7], correct=False),
        sample("shuffle", 0, [6, 5, 4, 3], correct=True, forwards=8),
    )
    quick = run(
        sample("copy", 0, [5, 6], correct=True, forwards=1),
        sample("copy", 1, [7, 7], correct=False, forwards=1, confidence=(0.25, 0.35)),
        sample("shuffle", 0, [6, 6, 6, 6], correct=False, forwards=2),
    )
    weak = run(sample("latin", 0, [1], correct=False, forwards=1))
    return card.Measured(sequential, weak, ((2, quick),), ((0.5, quick), (0.9, sequential)))


DETERMINED = {"copy": True, "shuffle": False, "latin": False}
ANSWERS = {"copy/held_out/0/0": [5, 6], "copy/held_out/0/1": [5, 6], "shuffle/held_out/0/0": [1]}


def test_confidences_are_binned_by_width_and_compared_with_the_share_of_right_tokens():
    tokens = [(0.15, False), (0.19, True), (1.0, True), (0.95, True)]
    bins = metrics.calibration(tokens)
    assert [entry.count for entry in bins] == [2, 2]
    assert bins[0].confidence == pytest.approx(0.17) and bins[0].right == 0.5
    assert metrics.calibration_error(bins) == pytest.approx((2 * 0.33 + 2 * 0.025) / 4)
    assert math.isnan(metrics.calibration_error([]))


def test_a_confidence_outside_of_zero_to_one_is_refused():
    with pytest.raises(ConfigError, match=r"a confidence must be in \[0, 1\], got 1.5"):
        metrics.calibration([(1.5, True)])


def test_only_tokens_with_one_right_value_count_for_calibration(found):
    pairs = card.right_tokens(found.sequential, DETERMINED, ANSWERS)
    assert pairs == [(0.95, True), (0.95, True), (0.95, True), (0.95, False)]


def test_the_card_names_every_family_with_its_share_answer_length_and_forwards(found):
    text = card.text(found, DETERMINED, ANSWERS)
    assert "| copy | one | 2 | 50.0 [9.5, 90.5] | 2.0 | 4.0 | shown |" in text
    assert "| shuffle | many | 1 | 100.0 [20.7, 100.0] | 4.0 | 8.0 | shown |" in text
    assert "| latin | many | 1 | 0.0 [0.0, 79.3] | 1.0 | 1.0 | weak |" in text
    assert "Average over the 1 families with one right answer: 50.0 %, lowest copy" in text
    assert "An answer has 2.7 tokens before its end of text and takes 5.3 forwards." in text


def test_the_card_shows_what_parallel_decoding_costs_and_what_a_threshold_saves(found):
    text = card.text(found, DETERMINED, ANSWERS)
    assert "| family | K = 1 | K = 2 |" in text
    assert "| shuffle | 100.0 [20.7, 100.0] | 0.0 [0.0, 79.3] |" in text
    assert "| 0.5 | 33.3 [6.1, 79.2] | 1.33 | 6.00 |" not in text  # tokens count, not columns
    assert "| 0.5 | 33.3 [6.1, 79.2] | 1.33 | 2.00 |" in text


def test_the_card_shows_how_long_tokens_were_proposed_before_they_were_committed(found):
    # gaps of the sequential run: 0 1, 0 1, 0 1 2 2
    row = "| sequential | 62.5 | 25.0 | 0.0 | 0.0 |"
    assert row in card.text(found, DETERMINED, ANSWERS)


@pytest.fixture
def hard() -> Dynamics:
    def of(share: int, passes: int, delay: int = 0) -> EvalRun:
        return run(
            *(
                sample(
                    task, n, [5, 6, 7, 8], correct=n < share, forwards=passes,
                    ready=tuple(max(0, step - delay) for step in range(4)),
                )
                for task in ("chain", "tale")
                for n in range(10)
            )
        )  # fmt: skip

    orders = tuple((order, of(share, 20)) for order, share in (("random", 4), ("margin", 10)))
    return Dynamics(
        sequential=of(10, 40),
        thresholds=((0.5, of(3, 4)), (0.9, of(9, 12, delay=2)), (0.95, of(10, 16))),
        oracle=of(10, 8),
        orders=orders,
        history={"chain": Redundancy(500, 0.6, 0.7, 0.725), "tale": None},
    )


def test_the_hard_families_show_accuracy_at_passes_for_every_threshold(hard: Dynamics) -> None:
    text = dynamics.text(hard)
    row = "| 4.0 | 100.0 @ 40.0 | 30.0 @ 4.0 | 90.0 @ 12.0 | 100.0 @ 16.0 | 100.0 @ 8.0 | 50.0 |"
    assert f"| chain {row}" in text and f"| all {row}" in text
    assert (
        "From threshold 0.5 to 0.95 accuracy moves by +70.0 points and passes by a factor of 4.00"
        in text
    )
    assert "as the oracle to within a point, 0.95, takes 2.00 times its passes." in text


def test_the_card_tells_where_no_threshold_reaches_the_oracle(hard: Dynamics) -> None:
    poor = replace(hard, thresholds=hard.thresholds[:2])
    assert "No threshold is as accurate as the oracle to within a point." in dynamics.text(poor)


def test_the_card_shows_the_order_of_cells_and_what_age_says(hard: Dynamics) -> None:
    text = dynamics.text(hard)
    assert "| random | 40.0 [21.9, 61.3] | 20.0 |" in text
    assert "| margin | 100.0 [83.9, 100.0] | 20.0 |" in text
    assert "| chain | 500 | 60.0 | 0.700 | 0.725 | +0.025 |" in text
    assert "| tale | too few |" in text


@pytest.mark.slow
def test_the_pictures_are_drawn(found, tmp_path):
    drawn = card.draw(found, DETERMINED, ANSWERS, tmp_path)
    assert [path.name for path in drawn] == ["dynamics.png", "calibration.png"]
    assert all(path.stat().st_size > 5000 for path in drawn)


def test_figures_go_between_the_marks_of_a_page(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{card.BEGIN}\nold\n{card.END}\nafter\n")
    card.insert(page, "new")
    assert page.read_text() == f"before\n{card.BEGIN}\n\nnew\n\n{card.END}\nafter\n"


def test_a_page_without_marks_or_that_is_not_there_is_refused(tmp_path):
    page = tmp_path / "README.md"
    with pytest.raises(ConfigError, match=r"task\.card: .*README.md cannot be read"):
        card.insert(page, "new")
    page.write_text("no marks")
    with pytest.raises(ConfigError, match=r"task\.card: .*must hold the lines <!-- figures: begin"):
        card.insert(page, "new")
    assert page.read_text() == "no marks"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens_per_step": [1]}, "task.tokens_per_step must be a whole number >= 2, got 1"),
        ({"thresholds": [1.5]}, "task.thresholds must lie in"),
        ({"thresholds": []}, "must hold at least one value each"),
        ({"card": "page.txt"}, "task.card must end with .md, got 'page.txt'"),
        ({"weak_count": -1}, "task.weak_count must be"),
        ({"hard_count": -1}, "task.hard_count must be"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ModelCard(**changes)


# The shipped model.


SAMPLED = ("chain", "sudoku6", "tale")  # families decoded again and compared with the card


def shown_in_card() -> dict[str, tuple[float, float]]:
    """Interval of the accuracy of every shown family, in percent, as the card has it."""
    row = r"^\| ([a-z0-9-]+) \| (?:one|many) \| [\d,]+ \| [\d.]+ \[([\d.]+), ([\d.]+)\] .*shown \|$"
    page = (BUNDLED / "README.md").read_text(encoding="utf-8")
    found = re.findall(row, page, re.MULTILINE)
    return {name: (float(low), float(high)) for name, low, high in found}


def test_the_card_has_a_row_for_every_family_that_is_shown():
    assert set(shown_in_card()) == {name for name, family in FAMILIES.items() if family.shown}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "count"),
    [
        ("float32", 1),
        pytest.param("float32", 8, marks=pytest.mark.slow),
        pytest.param("bfloat16", 20, marks=pytest.mark.slow),
    ],
)
def test_new_problems_agree_with_the_card(dtype, count):
    if slow := slow_on_processor(getattr(torch, dtype), torch.device("cpu")):
        pytest.skip(slow)
    checkpoint = ["model.checkpoint=bundled:llada-tiny", f"model.dtype={dtype}"]
    decoder = load(model="llada", strategy="sequential", overrides=checkpoint)
    asked = {name: problems(name, "held_out", count, seed=1) for name in SAMPLED}
    every = [problem for family in asked.values() for problem in family]
    texts = iter(
        decoder.generate(
            [problem.prompt for problem in every],
            max_new_tokens=[FAMILIES[problem.family].canvas for problem in every],
            infill=[problem.form or None for problem in every],
        ).texts
    )
    for name, family in asked.items():
        right = sum(FAMILIES[name].grade(problem, next(texts)) for problem in family)
        sampled, (low, high) = wilson(right, count), shown_in_card()[name]
        assert 100 * sampled.low <= high and 100 * sampled.high >= low, f"{name}: {right} right"


def test_the_bundled_folder_has_the_keys_and_tensor_names_of_published_checkpoints():
    # the golden checkpoint was written by the published model code
    configs = [json.loads((place / "config.json").read_text()) for place in (BUNDLED, GOLDEN)]
    assert configs[0].keys() == configs[1].keys()
    names = []
    for place in (BUNDLED, GOLDEN):
        tensors = load_file(place / "model.safetensors")
        names.append({re.sub(r"\d+", "N", name) for name in tensors})
    assert names[0] == names[1]


@pytest.mark.slow
def test_the_whole_card_is_measured_by_one_command(tmp_path, monkeypatch):
    from dllm_decode.cli import main
    from dllm_decode.tasks.pretrain import Pretrain
    from dllm_decode.training.llada_tiny.export import export
    from dllm_decode.training.llada_tiny.network import Network

    shape = Pretrain(width=16, layers=1, heads=2, hidden=24).shape()
    export(Network(shape).state_dict(), shape, tmp_path / "model", 256)
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "card.md"
    page.write_text(f"{card.BEGIN}\n{card.END}\n")
    place = Path(card.__file__).parent / "conf"
    words = [
        "--config-dir",
        str(place),
        "task=model_card",
        f"model.checkpoint='{tmp_path / 'model'}'",
        "display=none",
    ]
    words += ["task.count=2", "task.weak_count=1", "task.thresholds=[0.5]"]
    words += ["task.tokens_per_step=[8]", "task.hard_count=2", f"task.card='{page}'", "runs=runs"]
    assert main(words) == 0
    text = page.read_text()
    for name, family in FAMILIES.items():
        assert (f"| {name} |" in text) == family.trained
    assert all(f"| {order} |" in text for order in ("random", "confidence", "margin"))
    assert (tmp_path / "calibration.png").exists()


def test_the_command_of_the_card_composes_and_is_gone_from_the_package(capsys):
    from dllm_decode.cli import main

    place = Path(card.__file__).parent / "conf"
    assert main(["--config-dir", str(place), "task=model_card", "--cfg", "job"]) == 0
    assert "_target_: card_task.ModelCard" in capsys.readouterr().out
    assert main(["task=model_card"]) == 2
    said = capsys.readouterr().err
    assert "task=model_card is gone" in said and "python docs/tools/model_card" in said


@pytest.mark.one_in(2)
@pytest.mark.parametrize("task", ["report", "ablation"])
def test_filling_pages_is_gone_from_the_package(capsys, task):
    from dllm_decode.cli import main

    assert main([f"task={task}", "task.pages=docs"]) == 2
    said = capsys.readouterr().err
    assert "task.pages is gone" in said and "docs/tools/fill_pages.py" in said
