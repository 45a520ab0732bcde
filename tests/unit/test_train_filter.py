"""Training a filter: what a record is, that prompts are kept apart, and what a run leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from dllm_decode.cli import main
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.types import Request
from dllm_decode.errors import ConfigError
from dllm_decode.models.acceptance import AcceptanceFilter
from dllm_decode.models.toy import Markov
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.oracle import Oracle
from dllm_decode.tasks.train_filter import TrainFilter
from dllm_decode.training.filter import (
    FilterRecipe,
    FilterRecorder,
    FilterRecords,
    compared,
    doubt,
    fit,
    loss,
    measured,
    precision_at,
    split,
    transfer,
)

WORLD = Markov(n=6, noise=1e-3)


def some_records(count: int = 200, width: int = 4, seed: int = 0) -> FilterRecords:
    """Ten prompts whose columns are right where the confidence exceeds 0.6; two are missing."""
    confidence = torch.rand(count, width, generator=torch.Generator().manual_seed(seed))
    exists = torch.ones(count, width, dtype=torch.bool)
    exists[::5, 2:] = False
    confidence = confidence * exists
    prompt = torch.arange(count) % 10
    return FilterRecords(confidence, (confidence > 0.6) & exists, exists, exists, prompt)


def oracle_records(rows: int = 3, length: int = 8) -> tuple[FilterRecords, Request]:
    """Records of blocks of 3 columns on an exact world."""
    request = Request(((),) * rows, length)
    schedule = Blocks(3)
    reference = Decoder(WORLD, TopK(1), schedule).decode(request).sequences
    request = replace(request, reference=reference)
    recorder = FilterRecorder()
    Decoder(WORLD, Oracle("block"), schedule, observers=(recorder,)).decode(request)
    return recorder.records(), request


# FilterRecords.


def test_the_first_record_is_the_models_view_of_the_first_block() -> None:
    records, request = oracle_records(1)
    assert request.reference is not None
    tokens = torch.full((1, 8), WORLD.vocab.mask_id)
    index = torch.arange(3)[None]
    from dllm_decode.decoding.cache import Plan

    logits = WORLD(tokens, torch.ones(1, 8, dtype=torch.bool), index, Plan())
    pred = Prediction.of(logits, torch.tensor(WORLD.vocab.never_generated))
    assert torch.allclose(records.confidence[0], pred.top_confidence[0].float())
    labels = [int(pred.top_token[0, c]) == request.reference[0][c] for c in range(3)]
    assert records.correct[0].tolist() == labels
    assert records.open[0].tolist() == [True] * 3


def test_every_forward_is_a_record_and_decided_columns_are_labelled_too() -> None:
    records, _ = oracle_records()
    assert records.prompts == [0, 1, 2]
    assert (records.exists.sum(1) >= records.open.sum(1)).all()
    decided = records.exists & ~records.open
    assert records.correct[decided].all()  # a world predicts what is decided
    last = records.exists.sum(1) == 2  # 8 columns in blocks of 3
    assert bool(last.any())
    assert not records.confidence[last][:, 2].any()


def test_records_do_not_depend_on_the_batch() -> None:
    together, request = oracle_records()
    assert request.reference is not None
    parts = []
    for row in range(3):
        recorder = FilterRecorder()
        decoder = Decoder(WORLD, Oracle("block"), Blocks(3), observers=(recorder,))
        decoder.decode(request.take([row]))
        parts.append(recorder.records())
    assert torch.equal(together.confidence, torch.cat([part.confidence for part in parts]))
    assert torch.equal(together.correct, torch.cat([part.correct for part in parts]))


@pytest.mark.parametrize(("share", "kept"), [(0.2, 2), (0.01, 1), (0.99, 9)])
def test_no_prompt_is_on_both_sides(share: float, kept: int) -> None:
    records = some_records()
    learned, measuring = split(records, share, seed=3)
    assert len(measuring.prompts) == kept
    assert not set(learned.prompts) & set(measuring.prompts)
    assert sorted(learned.prompts + measuring.prompts) == list(range(10))
    assert len(learned) + len(measuring) == len(records)


# Training.


def test_a_filter_learns_what_can_be_learned() -> None:
    learned, kept = split(some_records(500, width=8), 0.2, seed=0)
    network = fit(learned, FilterRecipe(300, 0.02, 0.0)).network
    before = fit(learned, FilterRecipe(1, 1e-9, 0.0)).network
    assert float(loss(network, kept)) < 0.5 * float(loss(before, kept))
    quality = measured(network, kept, [0.5])[0]["filter"]
    assert quality["precision"] > 0.75
    assert quality["recall"] > 0.75


def test_the_seed_decides_the_weights() -> None:
    def weights(seed: int) -> list[float]:
        recipe = FilterRecipe(3, 0.01, batch=16, seed=seed)
        return fit(some_records(), recipe).network.weight1.flatten().tolist()

    assert weights(1) == weights(1) != weights(2)


def test_columns_that_do_not_exist_carry_no_loss() -> None:
    records = some_records()
    network = fit(records, FilterRecipe(1, 0.01, 0.0)).network
    flipped = torch.where(records.exists, records.correct, ~records.correct)
    assert float(loss(network, records)) == float(loss(network, replace(records, correct=flipped)))


def test_precision_and_recall_count_open_columns_alone() -> None:
    eye = torch.eye(2)
    network = AcceptanceFilter(eye, torch.zeros(2), 100 * eye, torch.full((2,), -50.0))
    confidence = torch.tensor([[0.9, 0.9], [0.9, 0.1], [0.2, 0.9]])
    correct = torch.tensor([[True, True], [False, True], [True, True]])
    opened = torch.tensor([[True, False], [True, True], [True, False]])
    ones = torch.ones_like(opened)
    records = FilterRecords(confidence, correct, ones, opened, torch.arange(3))
    found = measured(network, records, [0.5, 1.0])
    half = {"precision": 1 / 2, "recall": 1 / 3, "accepted": 2 / 4}
    both = {"filter": half, "confidence": half, "at_equal_speed": 1 / 2}
    assert found[0] == {"threshold": 0.5, **both}
    assert found[1]["at_equal_speed"] is None
    assert found[1]["filter"] == {"precision": None, "recall": 0.0, "accepted": 0.0}


@pytest.mark.slow
def test_the_weights_with_the_smallest_watched_loss_are_kept() -> None:
    """Labels drawn by chance can be learned by heart, which the watched records notice."""
    chance = torch.rand(120, 8, generator=torch.Generator().manual_seed(5)) > 0.5
    records = replace(some_records(120, width=8), correct=chance)
    learned, watched = split(records, 0.3, seed=0)
    recipe = FilterRecipe(200, 0.05, 0.0)
    fitted = fit(learned, recipe, watched)
    unseen = {step: loss_ for step, _, loss_ in fitted.curve}
    assert [step for step, _, _ in fitted.curve] == list(range(0, 201, 4))
    assert fitted.curve[-1][1] < fitted.curve[0][1]  # what is learned goes down
    assert fitted.kept < 200 and unseen[fitted.kept] == min(unseen.values()) < unseen[200]
    assert float(loss(fitted.network, watched)) == pytest.approx(unseen[fitted.kept])
    last = fit(learned, recipe)
    assert last.kept == 200 and float(loss(last.network, watched)) == pytest.approx(unseen[200])


# Against the plain confidence.


def judged(score: torch.Tensor, right: torch.Tensor) -> tuple[float, dict[str, Any]]:
    """AUC by comparing every pair, and what `compared` says of a filter that hands scores on."""
    width = score.shape[1]
    eye = torch.eye(width)
    network = AcceptanceFilter(eye, torch.zeros(width), eye, torch.zeros(width))
    ones = torch.ones_like(right)
    prompt = torch.arange(len(score)) // 2
    found = compared(network, FilterRecords(score, right, ones, ones, prompt))
    good, bad = score[right][:, None], score[~right][None]
    return float(((good > bad).double() + (good == bad).double() / 2).mean()), found


def test_auc_is_the_chance_that_a_right_column_is_scored_above_a_wrong_one() -> None:
    generator = torch.Generator().manual_seed(1)
    score = torch.randint(0, 6, (20, 3), generator=generator) / 6  # many ties
    right = torch.rand(20, 3, generator=generator) < score * 0.7 + 0.1
    auc, found = judged(score, right)
    assert found["auc"]["filter"] == pytest.approx(auc)
    assert found["auc"]["confidence"] == pytest.approx(auc)
    assert found["auc"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    said = doubt(found)
    assert said is not None and "difference +0.000 [+0.000, +0.000]" in said


def test_columns_that_are_all_right_say_nothing() -> None:
    score = torch.rand(4, 3)
    _, found = judged(score, torch.ones(4, 3, dtype=torch.bool))
    assert found["auc"]["filter"] is None and found["right"] == 1.0
    assert "no right and wrong columns" in (doubt(found) or "")


def test_a_filter_that_is_better_than_its_input_is_not_doubted() -> None:
    """A column is right where the OTHER one is sure, which its own confidence cannot tell."""
    confidence = torch.rand(80, 2, generator=torch.Generator().manual_seed(3))
    right = confidence.flip(1) > 0.5
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    network = AcceptanceFilter(swap, torch.zeros(2), torch.eye(2), torch.zeros(2))
    ones = torch.ones_like(right)
    found = compared(network, FilterRecords(confidence, right, ones, ones, torch.arange(80)))
    assert found["auc"]["filter"] == 1.0 and found["auc"]["difference"]["low"] > 0
    assert doubt(found) is None
    assert found["at_recall"][0]["filter"] == 1.0 > found["at_recall"][0]["confidence"]


def test_at_equal_speed_as_many_of_the_surest_columns_are_accepted() -> None:
    """The filter accepts the two columns on the right, of which one is right."""
    flip = torch.eye(4).flip(0)
    network = AcceptanceFilter(flip, torch.zeros(4), 100 * torch.eye(4), torch.full((4,), -50.0))
    confidence = torch.tensor([[0.9, 0.8, 0.3, 0.3]])
    correct = torch.tensor([[True, True, True, False]])
    ones = torch.ones_like(correct)
    records = FilterRecords(confidence, correct, ones, ones, torch.zeros(1, dtype=torch.int64))
    (found,) = measured(network, records, [0.5])
    assert (found["filter"]["precision"], found["at_equal_speed"]) == (0.5, 1.0)
    level = replace(records, confidence=torch.full((1, 4), 0.7))  # ties count by their mean
    assert measured(network, level, [0.5])[0]["at_equal_speed"] == 0.75


def test_precision_at_a_recall_accepts_equal_scores_together() -> None:
    score = torch.tensor([0.9, 0.8, 0.8, 0.8, 0.1])
    right = torch.tensor([True, True, False, False, True])
    assert precision_at(score, right, 0.3) == 1.0
    assert precision_at(score, right, 0.6) == 2 / 4
    assert precision_at(score, right, 1.0) == 3 / 5
    assert precision_at(score, torch.zeros(5, dtype=torch.bool), 0.5) is None


@pytest.mark.slow
def test_a_group_that_is_left_out_is_measured_by_a_filter_that_never_saw_it() -> None:
    """The left-out prompts are labelled the other way round, which nobody else can know."""
    records = some_records(400, width=4)
    odd = records.prompt >= 7
    records = replace(records, correct=records.correct ^ (odd[:, None] & records.exists))
    groups = {"odd": {7, 8, 9}, "few": {0}, "all": set(range(10)), "none": set()}
    found = transfer(records, groups, FilterRecipe(150, 0.02, 0.0), watch=0.2)
    assert [(entry["left_out"], entry["prompts"]) for entry in found] == [("odd", 3), ("few", 1)]
    assert found[0]["auc"]["filter"] < 0.3  # as wrong as can be


# The task.


def run(tmp_path: Path, name: str, *words: str) -> tuple[int, Path]:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("abab>\nbaba>\naaaa>\nbbbb>\nabba>\n")
    folder = tmp_path / name
    code = main(
        [
            "task=train_filter",
            "model=toy_markov",
            f"prompts={prompts}",
            "max_new_tokens=8",
            "task.steps=20",
            "display=none",
            f"hydra.run.dir={folder}",
            *(words or ["schedule.length=4"]),
        ]
    )
    return code, folder


@pytest.mark.slow
def test_a_run_leaves_a_filter_that_decodes_and_a_report(tmp_path: Path) -> None:
    code, folder = run(tmp_path, "first")
    assert code == 0
    report = json.loads((folder / "report.json").read_text())
    assert report["block_length"] == 4
    assert report["trained_on"]["prompts"] == 3  # and one is watched
    assert report["held_out"]["prompts"] == 1
    assert report["curve"][-1]["step"] == 20 and report["recipe"]["batch"] == 1024
    assert report["transfer"] == [] and report["doubt"]
    assert [row["threshold"] for row in report["held_out"]["at"]][:2] == [0.5, 0.7]
    with safe_open(str(folder / "filter.safetensors"), framework="pt") as content:
        assert content.metadata()["block_length"] == "4"
        assert content.metadata()["doubt"] == report["doubt"]
    words = "schedule.length=4", "batch_size=2", "task.reference=0.999"
    again, second = run(tmp_path, "second", *words)
    assert again == 0
    assert json.loads((second / "report.json").read_text())["reference"] == 0.999
    assert report["reference"] is None
    one, other = (AcceptanceFilter.load(f / "filter.safetensors") for f in (folder, second))
    for mine, theirs in zip(one.weights(), other.weights(), strict=True):
        assert torch.equal(mine, theirs)  # the batch does not matter, nor several at once
    decoding = [
        "strategy=learn2pd",
        f"strategy.select.weights={folder / 'filter.safetensors'}",
        "model=toy_markov",
        "max_new_tokens=8",
        "display=none",
        f"hydra.run.dir={tmp_path / 'decode'}",
    ]
    assert main([*decoding, "schedule.length=4"]) == 0
    assert main([*decoding, "schedule.length=8"]) == 2  # made for another block length


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["schedule=whole"], "needs a block grid; use schedule=blocks"),
        (
            ["schedule.length=4", "task.held_out=1.0"],
            "task.held_out must lie in (0.0, 1.0), got 1.0",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, folder = run(tmp_path, "run", *words)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (folder / "filter.safetensors").exists()


def test_one_prompt_is_not_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.txt").write_text("ab>\n")
    words = ["task=train_filter", "model=toy_markov", f"prompts={tmp_path / 'one.txt'}"]
    assert main([*words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "needs two prompts or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problems": 0}, r"task\.problems must be a whole number >= 1, got 0"),
        ({"problems": {"copy": 0}}, r"task\.problems\.copy must be a whole number >= 1, got 0"),
        ({"problems": {"copy": 1}, "families": ["copy"]}, r"task\.problems names families"),
        ({"steps": 0}, r"task\.steps must be a whole number >= 1, got 0"),
        ({"batch_records": 0}, r"task\.batch_records must be a whole number >= 1, got 0"),
        ({"rate": 0.0}, r"task\.rate must lie in \(0.0, 1.0\], got 0.0"),
        ({"weight_decay": 2.0}, r"task\.weight_decay must lie in \[0.0, 1.0\], got 2.0"),
        ({"thresholds": (1.5,)}, r"task\.thresholds must lie in \[0.0, 1.0\], got 1.5"),
        ({"thresholds": ()}, r"task\.thresholds must name at least one threshold, got an empty"),
        ({"reference": 0.0}, r"task\.reference must lie in \(0.0, 1.0\], got 0.0"),
        ({"prompts": "a.txt", "families": ["copy"]}, r"prompts and task\.families exclude"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainFilter(**options)
