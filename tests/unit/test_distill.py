"""Distillation: masks and loss against naive versions, and runs that are continued."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import dllm_decode
from dllm_decode.cli import main
from dllm_decode.console import display
from dllm_decode.errors import CheckpointError, ConfigError
from dllm_decode.tasks.distill import Distill, _verdict, gain
from dllm_decode.testing import VOCAB
from dllm_decode.training.adapters import adapt, merged
from dllm_decode.training.devices import Devices
from dllm_decode.training.distill import (
    Trajectory,
    batch_of,
    batches,
    certainty_forcing,
    frontier,
    masked,
    read_trajectories,
    write_trajectories,
)

# Masks.


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.integers(1, 11),
    st.integers(1, 5),
    st.integers(0, 999),
)
def test_each_column_of_one_block_is_hidden_once_and_all_behind_it_always(
    prompts: list[int], columns: int, block: int, seed: int
) -> None:
    rows = [
        Trajectory((1,) * size, tuple(range(2, 2 + min(columns, 7))) + (3,) * (columns - 7))
        for size in prompts
    ]
    draw = torch.Generator().manual_seed(seed)
    batch, count, ahead = masked(rows, block, VOCAB, draw), len(rows), max(prompts)
    for row, text in enumerate(rows):
        first = ahead - len(text.prompt)
        own = {"one": row, "other": row + count}
        for place in own.values():
            assert batch.live[place].tolist() == [c >= first for c in range(ahead + columns)]
            assert batch.target[place][first:].tolist() == [*text.prompt, *text.tokens]
        one, other = (batch.hidden[place] for place in own.values())
        assert not bool((one & other).any()), "complementary"
        active = (one | other).nonzero()[:, 0].tolist()
        assert active, "blocks that have no columns are not drawn"
        begin = active[0] - ahead
        assert begin % block == 0 and begin >= 0, "a whole block, behind the prompt"
        assert active == [*range(active[0], ahead + min(begin + block, columns))]
        for place, hidden in zip(own.values(), (one, other), strict=True):
            for column in range(first, ahead + columns):
                covered = bool(hidden[column]) or column > active[-1]
                token = int(batch.tokens[place, column])
                assert token == (VOCAB.mask_id if covered else int(batch.target[place, column]))


def test_about_half_of_a_block_is_hidden_and_all_blocks_are_drawn() -> None:
    rows = [Trajectory((1,), tuple([2] * 12))] * 400
    batch = masked(rows, 4, VOCAB, torch.Generator().manual_seed(0))
    assert float(batch.hidden[:400].sum()) / 1600 == pytest.approx(0.5, abs=0.03)
    blocks = (batch.hidden[:400] | batch.hidden[400:])[:, 1:].view(400, 3, 4).all(2).float().mean(0)
    assert blocks.tolist() == pytest.approx([1 / 3] * 3, abs=0.08)


# The loss.


def naively(logits: Any, target: Any, beta: float, temperature: float) -> float:
    """Number by number."""
    total, entropies = 0.0, []
    for row, wanted in zip(logits.tolist(), target.tolist(), strict=True):
        total -= row[wanted] - math.log(sum(math.exp(x) for x in row))
        if max(range(len(row)), key=row.__getitem__) == wanted:
            powers = [math.exp(x / temperature) for x in row]
            shares = [power / sum(powers) for power in powers]
            entropies.append(-sum(p * math.log(p) for p in shares if p))
    certainty = sum(entropies) / len(entropies) if entropies else 0.0
    return total / len(target) + beta * certainty


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 999), st.floats(0, 3))
def test_the_loss_is_what_its_formula_says(rows: int, ids: int, seed: int, beta: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, ids, generator=draw, dtype=torch.float64)
    target = torch.randint(ids, (rows,), generator=draw)
    loss, figures = certainty_forcing(logits, target, beta=beta, temperature=0.5)
    assert float(loss) == pytest.approx(naively(logits, target, beta, 0.5), abs=1e-9)
    assert 0 <= figures["certainty"] <= math.log(ids) + 1e-9
    moved, _ = certainty_forcing(logits + 3.0, target, beta=beta, temperature=0.5)
    assert float(moved) == pytest.approx(float(loss), abs=1e-9)
    plain, _ = certainty_forcing(logits, target, beta=0.0, temperature=0.5)
    assert float(plain) == pytest.approx(figures["consistency"], abs=1e-9)


def test_certainty_asks_only_what_is_right_and_vanishes_where_all_is_known() -> None:
    logits = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]], dtype=torch.float64)
    target = torch.tensor([0, 0])  # right, wrong
    first = certainty_forcing(logits, target, beta=2.0, temperature=0.5)[1]["certainty"]
    logits[1] = torch.tensor([0.0, 9.0, 1.0])
    assert certainty_forcing(logits, target, beta=2.0, temperature=0.5)[1]["certainty"] == first
    none, told = certainty_forcing(logits[1:], target[1:], beta=2.0, temperature=0.5)
    assert told["certainty"] == 0.0 and bool(none.isfinite())
    known, _ = certainty_forcing(1e3 * torch.eye(3)[:2], torch.arange(2), beta=2.0, temperature=0.5)
    assert float(known) == pytest.approx(0.0, abs=1e-6)
    empty, told = certainty_forcing(torch.ones(0, 3), target[:0], beta=2.0, temperature=0.5)
    assert float(empty) == 0.0 and told == {}


def test_gradients_go_through_both_terms_and_to_hidden_columns_alone() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    target = logits.detach().argmax(-1)
    for beta in (0.0, 2.0):
        loss, _ = certainty_forcing(logits[:2], target[:2], beta=beta, temperature=0.5)
        (found,) = torch.autograd.grad(loss, logits)
        assert not bool(found[2:].any()) and bool(found[:2].any())
    only, _ = certainty_forcing(logits, target, beta=1.0, temperature=0.5)
    plain, _ = certainty_forcing(logits, target, beta=0.0, temperature=0.5)
    (certain,) = torch.autograd.grad(only - plain, logits)
    assert bool(certain.any())


# Data.


def test_a_data_set_comes_back_with_what_it_was_made_of(tmp_path: Path) -> None:
    rows = [Trajectory((1, 2), (3, 4), "sort"), Trajectory((), (5,))]
    path = tmp_path / "data.jsonl"
    write_trajectories(path, rows, {"strategy": "threshold"})
    assert read_trajectories(path) == (rows, {"strategy": "threshold"})


@pytest.mark.parametrize(
    ("text", "line"),
    [("", 1), ("nothing", 1), ('{"a": 1}\n{"prompt": [1]}', 2), ('{"a": 1}\n3', 2),
     ('{}\n{"prompt": [1], "tokens": [2], "family": ""}\n{"prompt": ["x"], "tokens": []}', 3)],
)  # fmt: skip
def test_a_damaged_data_set_is_refused_with_the_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=rf"data\.jsonl: line {line} is no trajectory"):
        read_trajectories(path)


def test_batches_have_canvases_of_one_length_and_are_a_function_of_seed_and_step() -> None:
    rows = [Trajectory((1,) * (n % 7), (2,) * (4 if n % 2 else 8)) for n in range(60)]
    for step in range(8):
        batch, seed = batch_of(rows, 5, 0, step)
        assert (batch, seed) == batch_of(rows, 5, 0, step)
        assert len({len(row.tokens) for row in batch}) == 1 and len(batch) == 5
    everything = [row for batch in batches(rows, 7) for row in batch]
    assert sorted(map(str, everything)) == sorted(map(str, rows))


# The verdict.


def curve(*points: tuple[float, float]) -> dict[str, Any]:
    return {"curve": [{"forwards": f, "accuracy": a} for f, a in points]}


def test_a_gain_is_fewer_forwards_at_equal_accuracy_the_best_that_is_reached_afterwards() -> None:
    before = curve((2.0, 50.0), (4.0, 90.0), (5.0, 99.0), (6.0, 99.0))
    assert frontier(before["curve"], 90.0) == 4.0
    assert frontier(before["curve"], 70.0) == pytest.approx(3.0)
    assert frontier(before["curve"], 99.5) is None
    found = gain(before, curve((1.5, 40.0), (2.5, 98.0), (4.0, 99.0)))
    assert found["accuracy"] == 98.0 and found["after"] == 2.5
    assert found["factor"] == pytest.approx((4 + 8 / 9) / 2.5)
    assert (
        _verdict(found)
        == "at 98.0 % accuracy 4.89 forwards before and 2.50 after: 1.96 times fewer"
    )
    found = gain(before, curve((1.0, 60.0), (3.0, 90.0)))
    assert (found["wanted"], found["accuracy"]) == (98.0, 90.0)
    assert found["factor"] == pytest.approx(4 / 3)
    assert _verdict(found).startswith("no threshold reaches 98.0 % afterwards; at 90.0 % accuracy ")
    found = gain(before, curve((4.0, 50.0)))
    assert _verdict(found).endswith("2.00 forwards before and 4.00 after: 2.00 times as many")


# Runs.


def run(tmp_path: Path, output: str, *words: str) -> int:
    return main([
        "task=distill", "model=llada", "strategy=threshold", "task.families=[story]",
        "task.problems=4", "task.held_out=2", "task.rows=2", "task.steps=3", "task.warmup=1",
        "task.measure_every=2", "task.tolerance=100", "task.thresholds=[0.9]", "task.rate=0.001",
        "display=none", f"task.output={tmp_path / output}",
        f"hydra.run.dir={tmp_path / 'run'}", *words,
    ])  # fmt: skip


def weights_of(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_in_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    assert run(tmp_path, "whole") == 0
    assert run(tmp_path, "parts", "task.halt=1") == 0
    assert not (tmp_path / "parts" / "report.json").exists()
    assert run(tmp_path, "parts") == 0
    one, two = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert {*one} == {*two} and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_a_run_writes_a_model_in_the_published_format_and_a_report(tmp_path: Path) -> None:
    assert run(tmp_path, "whole") == 0
    one = weights_of(tmp_path / "whole")
    shipped = Path(dllm_decode.__file__).parent / "models/assets/llada-tiny"
    published = load_file(shipped / "model.safetensors")
    assert {*one} == {*published}
    assert any(not torch.equal(one[n], published[n].to(one[n].dtype)) for n in one)
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert report["updates"] == 3 and report["before"]["curve"][0]["threshold"] == 0.9
    assert {*report["gain"]} == {"wanted", "accuracy", "before", "after", "factor"}
    assert report["after"]["calibration"]["intervals"]
    lines = (tmp_path / "whole" / "curves.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "accuracy" in line] == [2, 3]


@pytest.mark.slow
def test_it_says_how_far_its_decodes_are(tmp_path: Path, capsys, monkeypatch) -> None:
    for name in ("_QUIET_SECONDS", "_LINE_SECONDS"):
        monkeypatch.setattr(display, name, 0.0)
    assert run(tmp_path, "whole", "task.steps=1", "display=plain") == 0
    said = "".join(capsys.readouterr())
    for what in ("writing answers", "writing held-out answers", "measuring at threshold 0.9"):
        assert f"{what}: 100 %" in said


@pytest.mark.slow
def test_a_folder_with_the_decodes_of_another_run_is_refused(tmp_path: Path) -> None:
    assert run(tmp_path, "whole", "task.steps=1") == 0
    (tmp_path / "whole" / "checkpoint.json").unlink()  # as if it had stopped before the first one
    data = (tmp_path / "whole" / "trajectories.jsonl").read_bytes()
    for other in ("task.families=[copy]", "task.thresholds=[0.5]", "task.held_out=3", "seed=1"):
        assert run(tmp_path, "whole", "task.steps=1", other) == CheckpointError.exit_code
    assert (tmp_path / "whole" / "trajectories.jsonl").read_bytes() == data


@pytest.mark.slow
def test_prompts_of_a_file_keep_their_columns_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"Copy: 1 Ada 2 {name}", "max_new_tokens": length}) + "\n"
            for name, length in (("Ben", 8), ("Eva", 16), ("Cleo", 24))
        )
    )
    words = (f"prompts={path}", "task.held_out=1", "task.steps=1", "task.families=[copy]")
    assert run(tmp_path, "own", *words) == 0
    found = [
        len(text.tokens)
        for name in ("held_out-trajectories.jsonl", "trajectories.jsonl")
        for text in read_trajectories(tmp_path / "own" / name)[0]
    ]
    assert found == [8, 16, 24]
    path.write_text(path.read_text().replace("Eva", "Zoe"))
    assert run(tmp_path, "own", *words) == CheckpointError.exit_code


@pytest.mark.slow
def test_low_rank_updates_learn_and_are_merged_into_the_published_weights(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    assert run(tmp_path, "lora", "task.lora=2") == 0
    assert (tmp_path / "lora" / "model" / "config.json").exists()
    names = {*weights_of(tmp_path / "lora")}
    assert not [name for name in names if "lora" in name or "base_layer" in name]


@pytest.mark.slow  # imports peft
def test_merged_weights_are_only_lent() -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    x, before = torch.randn(5, 3), {n: w.clone() for n, w in model.state_dict().items()}
    adapt(model, 2, 0)
    for name, weight in model.named_parameters():
        assert weight.requires_grad == ("lora" in name)
        if weight.requires_grad:
            torch.nn.init.normal_(weight)
    learned = model.model(x)
    with merged(model):
        assert {*model.state_dict()} == {*before}
        torch.testing.assert_close(model.model(x), learned)
    assert "model.0.base_layer.weight" in model.state_dict()
    assert torch.equal(model.state_dict()["model.0.base_layer.weight"], before["model.0.weight"])


def test_low_rank_updates_need_linear_layers() -> None:
    with pytest.raises(ConfigError, match=r"this model \(Module\) has none; use task.lora=0"):
        model = torch.nn.Module()
        model.model = torch.nn.Sequential(torch.nn.Tanh())
        adapt(model, 2, 0)


@pytest.mark.slow
def test_what_has_no_weights_or_no_blocks_is_refused_before_anything_is_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "toy", "model=toy_copy") == 2
    assert "model (Copy) has none" in capsys.readouterr().err
    assert run(tmp_path, "lean", "model.body=lean") == 2
    assert "model.body=lean computes no gradients" in capsys.readouterr().err
    assert run(tmp_path, "whole", "schedule=whole") == 2
    assert "needs a block grid" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/trajectories.jsonl"))


def test_a_process_alone_shares_nothing_and_several_share_the_rows_of_a_batch() -> None:
    assert Devices.found() == Devices()
    rows = list(range(7))
    assert sorted(n for rank in range(3) for n in Devices(rank, 3).mine(rows)) == rows


@pytest.mark.slow
def test_two_processes_share_a_run_and_one_of_them_writes(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    words = [
        "task=distill", "model=llada", "model.threads=1", "strategy=threshold", "task.steps=2",
        "task.families=[story]", "task.problems=4", "task.held_out=2", "task.rows=4",
        "task.measure_every=2", "task.tolerance=100", "task.thresholds=[0.9]",
        f"task.output={tmp_path / 'run'}",
    ]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*launch, "-m", "dllm_decode", *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        check=True,
        capture_output=True,
        timeout=600,
    )
    record = json.loads((tmp_path / "run" / "checkpoint.json").read_text())
    assert record["settings"]["number of processes"] == 2
    lines = (tmp_path / "run" / "curves.jsonl").read_text().splitlines()
    assert len([line for line in lines if "accuracy" in line]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, r"task\.beta must lie in \[0.0, 1000.0\], got -1.0"),
        ({"temperature": 0.0}, r"task\.temperature must lie in \(0.0, 10.0\], got 0.0"),
        ({"lora": -1}, r"task\.lora must be a whole number >= 0, got -1"),
        ({"rows": 0}, r"task\.rows must be a whole number >= 1, got 0"),
        ({"tolerance": 101.0}, r"task\.tolerance must lie in \[0.0, 100.0\] points, got 101.0"),
        ({"threshold": 1.5}, r"task\.threshold must lie in \[0.0, 1.0\], got 1.5"),
        ({"thresholds": (1.5,)}, r"task\.thresholds must lie in \[0.0, 1.0\], got 1.5"),
        ({"thresholds": ()}, r"task\.thresholds must name at least one threshold, got an empty"),
        ({"measure_every": 0}, r"task\.measure_every must be a whole number >= 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Distill(**options)
