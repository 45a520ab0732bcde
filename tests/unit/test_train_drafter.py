"""Training a draft layer: the states it learns from, its loss, and runs that are continued."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dllm_decode.cli import main
from dllm_decode.errors import CapabilityError, CheckpointError, ConfigError, ModelOutputError
from dllm_decode.models.drafting import DraftLayer, LayerDrafter
from dllm_decode.models.toy import Shuffle
from dllm_decode.tasks.train_drafter import TrainDrafter
from dllm_decode.testing import VOCAB, HashDenoiser
from dllm_decode.training.drafter import (
    Diet,
    Teacher,
    Text,
    divergence,
    drafted,
    drafter_loss,
    measured,
)
from dllm_decode.training.loop import TrainingLoop, prepare
from dllm_decode.training.pace import Pace

TEXTS = [
    Text((1, 2), (3, 4, 5, 6, 7), 8, True, "one"),
    Text((1,), (2, 3, 4), 8, False, "two"),
    Text((5, 6, 7), (), 8, False, "two"),
]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(HashDenoiser(patience=10_000), block=4)


def a_layer(seed: int = 0) -> DraftLayer:
    torch.manual_seed(seed)
    return DraftLayer(width=VOCAB.size, embedding=VOCAB.size, heads=2, hidden=8)


# States.


def test_a_rollout_is_a_decode_of_single_commits_by_the_model_itself(teacher: Teacher) -> None:
    for seed in range(20):
        rollout = teacher.rollout(TEXTS, extra=3, depth=3, seed=seed)
        assert rollout.live.sum(1).tolist() == [10, 9, 11], "prompt, longest answer, and 3 more"
        for row, text in enumerate(TEXTS):
            assert rollout.tokens[0][row][rollout.live[row]][: len(text.prompt)].tolist() == [
                *text.prompt
            ]
        for before, after in zip(rollout.tokens, rollout.tokens[1:], strict=False):
            changed = before != after
            assert bool((before[changed] == VOCAB.mask_id).all()), "commits are final"
            assert not {*after[changed].tolist()} & {*VOCAB.never_generated}
        for tokens, undecided, target in zip(
            rollout.tokens, rollout.open, rollout.targets, strict=True
        ):
            assert bool((tokens[:, -8:][undecided] == VOCAB.mask_id).all())
            assert target.shape == (int(undecided.sum()), VOCAB.size)
        again = teacher.rollout(TEXTS, extra=3, depth=3, seed=seed)
        assert all(torch.equal(a, b) for a, b in zip(rollout.tokens, again.tokens, strict=True))


def test_in_blocks_what_lies_before_stands_and_what_lies_behind_is_hidden(teacher: Teacher) -> None:
    seen = set()
    for seed in range(30):
        rollout = teacher.rollout(TEXTS[:1], extra=3, depth=1, seed=seed)
        answer, undecided = rollout.tokens[0][0, -8:], rollout.open[0][0]
        if bool((answer[4:] == VOCAB.mask_id).all()) and not bool(undecided[4:].any()):
            seen.add("first block")
        if not bool((answer[:4] == VOCAB.mask_id).any()) and bool(undecided[4:].any()):
            seen.add("second block")
    assert seen == {"first block", "second block"}


def test_a_model_without_states_or_embeddings_is_refused_by_name() -> None:
    closed = type("Closed", (HashDenoiser,), {"provides": frozenset({"hidden"})})
    with pytest.raises(CapabilityError, match=r"model's embeddings, which model \(Closed\)"):
        Teacher(closed(), 4)


def test_batches_are_a_function_of_seed_and_number_and_hold_rows_of_like_length() -> None:
    texts = [Text((1,), (2,) * n, 40, n % 2 == 0) for n in range(1, 31)]
    diet = Diet(texts, rows=4, open_share=1.0, fresh=2, passes=3, depth=3)
    assert [diet.number(step) for step in range(8)] == [0, 1, 0, 1, 0, 1, 2, 3]
    depths = set()
    for number in range(12):
        rows, extra, depth, seed = diet.batch(number)
        assert (rows, extra, depth, seed) == diet.batch(number)
        assert all(text.open for text in rows) and 1 <= extra <= 32
        assert max(text.length for text in rows) - min(text.length for text in rows) <= 20
        depths.add(depth)
    assert depths == {1, 2, 3}
    deep = Diet(texts, rows=4, depth=3, least=3)
    assert {deep.batch(number)[2] for number in range(12)} == {3}


# The loss.


def test_divergence_is_zero_for_equals_and_else_what_its_formula_says() -> None:
    draw = torch.Generator().manual_seed(0)
    one, two = (3 * torch.randn(5, 7, generator=draw, dtype=torch.float64) for _ in range(2))
    for row in range(5):
        p = [math.exp(x) / sum(math.exp(y) for y in one[row].tolist()) for x in one[row].tolist()]
        q = [math.exp(x) / sum(math.exp(y) for y in two[row].tolist()) for x in two[row].tolist()]
        wanted = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert float(divergence(one, two)[row]) == pytest.approx(wanted, abs=1e-12)
    assert divergence(one, one + 2.5).abs().max() < 1e-12
    assert bool((divergence(one, two) > 0).all())


def test_the_loss_is_the_mean_kl_of_each_depth_and_no_gradient_reaches_the_model() -> None:
    world = Shuffle(n=4)
    weight = torch.nn.Parameter(torch.ones(()))
    object.__setattr__(world, "head", lambda hidden: hidden * weight)
    teacher = Teacher(world, None)
    texts = [Text(tuple(world.tokenizer.encode("abcd")), (0, 1, 2, 3), 6)]
    rollout = teacher.rollout(texts, 1, 2, 5)
    torch.manual_seed(0)
    layer = DraftLayer(rollout.states.shape[-1], world.vocab.size, 1, 8)
    weight.requires_grad_(False)
    loss, figures = drafter_loss(teacher, layer, rollout)
    parts = drafted(teacher, layer, rollout)
    assert float(loss) == pytest.approx(sum(float(part.mean()) for part in parts if len(part)))
    assert figures["kl_1"] == pytest.approx(float(parts[0].mean()))
    torch.autograd.backward(loss)
    assert all(w.grad is not None and bool(w.grad.isfinite().all()) for w in layer.parameters())
    assert not rollout.states.requires_grad and not rollout.targets[0].requires_grad


def test_a_layer_that_says_what_the_model_says_has_no_loss(teacher: Teacher) -> None:
    from dllm_decode.decoding.cache import Plan

    rollout = teacher.rollout(TEXTS, 3, 3, 1)
    canvases = iter(rollout.tokens)

    def knows(embedded: Any, states: Any, live: Any) -> Any:
        tokens = next(canvases)
        everywhere = torch.arange(tokens.shape[1]).expand_as(tokens)
        assert teacher.own.states is not None
        return teacher.own.states(tokens, live, everywhere, Plan())

    loss, figures = drafter_loss(teacher, knows, rollout)  # type: ignore[arg-type]
    assert float(loss) < 1e-6
    assert figures["marginal_3"] > 0.01


def test_what_is_measured_are_means_over_the_open_slots_of_each_group(teacher: Teacher) -> None:
    found = measured(teacher, a_layer().requires_grad_(False), TEXTS, 3, 2, 0)
    assert {*found} == {"determined", "one", "open", "two"}
    assert found["open"] == found["one"] and found["determined"] == found["two"]
    for level in (*found["one"], *found["two"]):
        assert level["slots"] > 0 and level["drafter"] >= 0 and level["marginal"] >= 0
    nameless = [Text(text.prompt, text.answer, text.canvas) for text in TEXTS]
    assert {*measured(teacher, a_layer().requires_grad_(False), nameless, 3, 2, 0)} == {"all"}


# Runs.


def a_loop(folder: Path, **changes: Any) -> tuple[TrainingLoop, torch.nn.Linear]:
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    pace = Pace(steps=8, **{"warmup": 2, "log_every": 2, **changes})
    return TrainingLoop(folder, dict(network.named_parameters()), pace, {"seed": 0}), network


def of_a_step(network: torch.nn.Linear, step: int) -> Any:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    loss = (network(x) - x[:, :2]).square().mean()
    return loss, {"number": float(step)}


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, network = a_loop(tmp_path / "whole")
    assert whole.run(lambda step: of_a_step(network, step))
    for halt in (3, 7, 0):
        part, other = a_loop(tmp_path / "parts", halt=halt)
        assert part.run(lambda step, own=other: of_a_step(own, step)) == (halt == 0)
    assert torch.equal(network.weight, other.weight) and torch.equal(network.bias, other.bias)
    lines = [whole.log(), part.log()]
    for line in [*lines[0], *lines[1]]:
        del line["minutes"]
    assert [line["step"] for line in lines[1]] == [2, 4, 6, 8]
    assert lines[0][0] == lines[1][0] and lines[0][0]["number"] == 0.5
    with pytest.raises(CheckpointError, match=r"seed must be 0 to continue the run in .*, got 1"):
        TrainingLoop(tmp_path / "parts", dict(other.named_parameters()), part.pace, {"seed": 1})


def test_a_folder_that_holds_a_run_or_cannot_be_made_is_refused(tmp_path: Path) -> None:
    assert prepare(str(tmp_path / "new"), resume=False).is_dir()
    loop, network = a_loop(tmp_path, halt=1)
    loop.run(lambda step: of_a_step(network, step))
    assert prepare(str(tmp_path), resume=True) == tmp_path
    with pytest.raises(ConfigError, match=r"a new folder with task.resume=false; .* holds"):
        prepare(str(tmp_path), resume=False)
    with pytest.raises(ConfigError, match=r"must be a writable folder, got .*file/run"):
        (tmp_path / "file").write_text("")
        prepare(str(tmp_path / "file" / "run"), resume=True)
    with pytest.raises(ConfigError, match="must name a folder, got an empty text"):
        prepare("", resume=True)


def test_a_loss_that_is_no_number_ends_the_run_and_says_what_to_do(tmp_path: Path) -> None:
    loop, network = a_loop(tmp_path)
    with pytest.raises(ModelOutputError, match=r"loss became nan at update 1; lower task\.rate"):
        loop.run(lambda step: (network.weight.sum() * math.nan, {}))


def test_a_start_of_another_width_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "drafter.safetensors"
    LayerDrafter(DraftLayer(width=8, embedding=6, heads=2, hidden=5)).save(file, {})
    world = Shuffle(n=4)
    texts = Text(tuple(world.tokenizer.encode("abcd")), (0, 1, 2, 3), 6)
    size = world.vocab.size
    message = rf"task\.start must be .* width {size} and embeddings of {size}, got one for 8 and 6"
    with pytest.raises(ConfigError, match=message):
        TrainDrafter(start=str(file))._layer(Teacher(world, None), texts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "resumed", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["whole", "resumed"]
)
def test_a_run_on_an_exact_world_leaves_a_layer_that_decodes_and_resumes_exactly(
    tmp_path: Path, resumed: bool
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{''.join(x)}>\n" for x in ("abcd", "efgh", "abef", "cdgh")))

    def run(output: str, *words: str) -> int:
        return main([
            "task=train_drafter", "model=toy_shuffle", f"prompts={prompts}", "max_new_tokens=5",
            "task.steps=3", "task.rows=3", "task.held_out=1", "task.fresh=2", "task.heads=1",
            "task.passes=2", "task.hidden=8", "display=none", f"task.output={tmp_path / output}",
            f"hydra.run.dir={tmp_path / 'run'}", *words,
        ])  # fmt: skip

    assert run("whole") == 0
    if resumed:
        assert run("parts", "task.halt=2") == 0
        assert not (tmp_path / "parts" / "drafter.safetensors").exists()
        assert run("parts") == 0
        one, two = (load_file(tmp_path / n / "drafter.safetensors") for n in ("whole", "parts"))
        assert {*one} == {*two} and all(torch.equal(one[name], two[name]) for name in one)
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert report["updates"] == 3 and report["kl"]["all"][0]["marginal"] >= 0
    assert (tmp_path / "whole" / "curves.jsonl").exists()
    assert LayerDrafter.load(tmp_path / "whole" / "drafter.safetensors").layer.heads == 1
    file = tmp_path / "whole" / "drafter.safetensors"
    words = ["task.hidden=null", "task.heads=null", "task.steps=1", f"task.start={file}"]
    assert run("on", *words, "task.rate=1e-9", "task.least_depth=3") == 0
    on = load_file(tmp_path / "on" / "drafter.safetensors")
    assert all(torch.equal(on[name], weight) for name, weight in load_file(file).items())
    weights = f"strategy.select.weights={file}"
    words = ["model=toy_shuffle", "strategy=adjust", weights, "prompt=abcd", "display=none"]
    assert main([*words, f"hydra.run.dir={tmp_path / 'decode'}"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problems": 0}, r"task\.problems must be a whole number >= 1, got 0"),
        ({"depth": 0}, r"task\.depth must be a whole number >= 1, got 0"),
        ({"heads": 0}, r"task\.heads must be a whole number >= 1, got 0"),
        ({"steps": 0}, r"task\.steps must be a whole number >= 1, got 0"),
        ({"halt": -1}, r"task\.halt must be a whole number >= 0, got -1"),
        ({"rate": 0.0}, r"task\.rate must lie in \(0.0, 1.0\], got 0.0"),
        ({"flat": 1.5}, r"task\.flat must lie in \[0.0, 1.0\], got 1.5"),
        ({"clip": 0.0}, r"task\.clip must lie in \(0.0, inf\], got 0.0"),
        ({"betas": (0.9,)}, r"task\.betas must be two numbers, got \[0.9\]"),
        ({"betas": (0.9, 1.0)}, r"task\.betas must lie in \[0.0, 1.0\), got 1.0"),
        ({"open_share": 2.0}, r"task\.open_share must lie in \[0.0, 1.0\], got 2.0"),
        ({"least_depth": 4}, r"task\.least_depth must be at most task\.depth \(3\), got 4"),
        ({"start": "a", "hidden": 4}, r"task\.hidden must not be given with task\.start"),
        ({"prompts": "a.txt", "families": ["copy"]}, r"prompts and task\.families exclude"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainDrafter(**options)
