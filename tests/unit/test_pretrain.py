"""Pretraining: tokenizer, batches, optimiser, resuming, the exported folder."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import dllm_decode
from dllm_decode.errors import CheckpointError, ConfigError
from dllm_decode.models.locate import locate
from dllm_decode.problems import TRAINED, draw, problems
from dllm_decode.problems.lists import read_labelled
from dllm_decode.problems.words import CITIES, MOODS, NAMES, NUMBERS, PLACES
from dllm_decode.tasks.pretrain import Pretrain
from dllm_decode.training.llada_tiny import curves, worker
from dllm_decode.training.llada_tiny.batches import CONTENT, Batches, Mixture, Sketch, strange
from dllm_decode.training.llada_tiny.course import Course
from dllm_decode.training.llada_tiny.export import export
from dllm_decode.training.llada_tiny.muon import orthogonal
from dllm_decode.training.llada_tiny.network import Network, Shape, rotate, turns
from dllm_decode.training.llada_tiny.report import Reporter
from dllm_decode.training.llada_tiny.start import begin_from
from dllm_decode.training.llada_tiny.tokenizer import FastEncoder, save_tokenizer, vocabulary
from dllm_decode.training.llada_tiny.worker import Worker

EVEN = dict.fromkeys(TRAINED, 1.0)


def load_recipe() -> Pretrain:
    from omegaconf import OmegaConf

    file = Path(dllm_decode.__file__).parent / "conf" / "task" / "pretrain.yaml"
    fields = OmegaConf.load(file)
    del fields["_target_"], fields["display"]
    return Pretrain(**OmegaConf.to_container(fields))  # type: ignore[arg-type]


def tiny(folder: Path, **changes: Any) -> Pretrain:
    base: dict[str, Any] = {
        "output": str(folder),
        "start": "",
        "steps": 5,
        "workers": 1,
        "compile": False,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "hidden": 24,
        "batch_tokens": 512,
        "log_every": 1,
        "early": 0,
        "measurements": 0,
        "measured_problems": 0,
        "display": "none",
    }
    return Pretrain(**base | changes)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, 192)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@examples(40)
@given(text=st.text())
def test_any_text_comes_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_words_are_one_token_everywhere(tokenizer: Any) -> None:
    for word in (*NAMES, *CITIES, *NUMBERS):
        alone = tokenizer.encode(f" {word}", add_special_tokens=False)
        assert len(alone) == 1
        inside = tokenizer.encode(f" 1 {word} 2 Ada, Ben.", add_special_tokens=False)
        assert inside[1] == alone[0]


def test_special_tokens(tokenizer: Any) -> None:
    ids = vocabulary()
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == ids["<|endoftext|>"]
    assert tokenizer.convert_tokens_to_ids("<|mdm_mask|>") == ids["<|mdm_mask|>"]
    assert tokenizer.mask_token is None
    text = tokenizer.decode([ids["<|mdm_mask|>"], ids["<|eot_id|>"]], skip_special_tokens=True)
    assert text == ""


def test_chat_template_and_training_layout_agree(tokenizer: Any) -> None:
    encoder = Batches(Mixture(), 0, 0).encoder
    problem = problems("records", "train", 1)[0]
    messages = [{"role": "user", "content": problem.prompt}]
    shown = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.encode(shown, add_special_tokens=False)
    assert ids == encoder.prompt(problem.prompt)
    turns = [*messages, {"role": "assistant", "content": problem.answer}, *messages]
    shown = tokenizer.apply_chat_template(turns, tokenize=False)
    assert shown.count("<|eot_id|>") == 1
    assert shown.count("<|end_header_id|>") == 2


@pytest.mark.parametrize("name", TRAINED)
def test_fast_encoder_equals_tokenizer(tokenizer: Any, name: str) -> None:
    fast, bytes_ = FastEncoder(), range(6, 262)
    for problem in problems(name, "train", 40, seed=2):
        for text in (f" {problem.prompt}", f" {problem.answer}"):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert ids == fast(text)
            spelt = [tokenizer.decode([token]) for token in ids if token in bytes_]
            assert set(spelt) <= set(":,;.?")  # every word is known
        longest = len(fast(f" {problem.answer}")) + 1
        assert longest <= TRAINED[name].canvas


def test_batches_are_a_function_of_seed_worker_and_step() -> None:
    def batch(seed: int = 1, rank: int = 0, step: int = 3) -> Any:
        return Batches(Mixture(batch_tokens=800), seed, rank).batch(step, EVEN)

    first, again = batch(), batch()
    assert np.array_equal(first.tokens, again.tokens)
    assert np.array_equal(first.weight, again.weight)
    assert batch(rank=1).tokens.shape == first.tokens.shape  # workers finish together
    assert not np.array_equal(batch(rank=1).tokens, first.tokens)
    assert any(not np.array_equal(batch(step=s).tokens, first.tokens) for s in (4, 5))


def test_batches_mask_answers_only() -> None:
    batches = Batches(Mixture(batch_tokens=2000), 1, 0)
    mask, header = batches.encoder.mask, batches.encoder.text.special("<|end_header_id|>")
    for step in range(20):
        batch = batches.batch(step, EVEN)
        for row in batch.tokens:
            assert mask not in row[: list(row).index(header)]
        flat = batch.tokens.reshape(-1)
        trained = batch.wanted[batch.weight > 0]
        assert (flat[trained] == mask).all()
        # where more is hidden than a batch predicts, padding is left out
        assert len(trained) >= min(0.98 * (flat == mask).sum(), 0.415 * flat.size)
        assert (batch.target[batch.weight > 0] != mask).all()
        assert batch.hard[batch.weight == 0].sum() == 0


def test_every_family_keeps_a_share() -> None:
    course = Course()
    before = course.weights({}, {})
    right = [100.0 if name == "copy" else 50.0 for name in TRAINED]
    course.note(10, [100.0] * len(TRAINED), right)
    after = course.weights({"sort": 0.5}, {})
    assert 0 < after["copy"] < 0.2 * before["copy"]
    assert after["sort"] == 0.5 * after["swap"] > 0


def test_the_curriculum_draws_a_family_from_its_tokens_on() -> None:
    course = Course(tokens=2_999_999)
    assert course.weights({}, {"tale": 3.0})["tale"] == 0 < course.weights({}, {})["tale"]
    course.note(1, [0.0] * len(TRAINED), [0.0] * len(TRAINED))
    assert course.weights({}, {"tale": 3.0})["tale"] > 0


def test_the_shipped_recipe_begins_with_the_first_release(tmp_path: Path) -> None:
    recipe = load_recipe()
    assert recipe.mixture().buckets[-1] == 256
    assert all(family.canvas < 256 for family in TRAINED.values())
    network = Network(recipe.shape())
    begin_from(network, locate(recipe.start).folder)
    vectors, ids = network.wte.weight, vocabulary()
    assert torch.equal(vectors[ids["\u0120Chain"]], vectors[ids["\u0120Copy"]])  # acts like it
    names = vectors[[ids[f"\u0120{name}"] for name in NAMES]]
    fresh = vectors[[ids[f"\u0120{name}"] for name in (*PLACES, *MOODS)]]
    assert 0.5 < (fresh.norm(dim=1).mean() / names.norm(dim=1).mean()).item() < 2


@pytest.mark.parametrize(
    ("budget", "used"),
    [({"tokens": 2.0}, 0.25), ({"minutes": 4.0}, 0.5), ({"steps": 40}, 0.75)],
    ids=["tokens", "minutes", "steps"],
)
def test_a_budget_is_tokens_minutes_or_steps(
    tmp_path: Path, budget: dict[str, Any], used: float
) -> None:
    settings = tiny(tmp_path, **{"steps": 0} | budget)
    assert settings.progress(Course(step=30, seconds=120.0, tokens=500_000)) == used


def test_a_larger_budget_puts_off_the_fall_of_the_rates(tmp_path: Path) -> None:
    course = Course(tokens=900_000, step=1000)
    rates = [
        s.rate(1000, s.progress(course))
        for s in (tiny(tmp_path, steps=0, tokens=t, flat=0.5) for t in (1.0, 1.2, 1.8))
    ]
    assert rates == pytest.approx([0.2, 0.5, 1.0])


def test_givens_of_an_infilling_are_seen_and_never_trained() -> None:
    batches = Batches(Mixture(batch_tokens=2000), 1, 0)
    only = {name: float(name == "sudoku6") for name in TRAINED}
    mask, eot = batches.encoder.mask, batches.encoder.eot
    slash = batches.encoder.answer("/")[0]
    for step in range(5):
        batch = batches.batch(step, only)
        trained = batch.target[batch.weight > 0]
        assert len(trained) and not {mask, eot, slash} & set(trained.tolist())
        assert ((batch.tokens == slash).sum(1) == 5).all()
        hidden = (batch.tokens == mask).sum(1)
        assert hidden.max() <= 26  # ten cells and more are given


def test_numbers_are_structure_unless_they_are_results() -> None:
    encoder = Batches(Mixture(), 0, 0).encoder
    assert encoder.kinds(encoder.answer("12 + 5 = 17, 3 apples")) == [0, 0, 0, 0, 1, 0, 0, 1]


def test_tokens_are_counted_into_the_worked_step_that_they_belong_to() -> None:
    encoder = Batches(Mixture(), 0, 0).encoder
    rows = [encoder.answer("1 +5 = 12, 2 *2 = 24"), encoder.answer("1 left keys pens, 2 right")]
    steps = encoder.steps(np.array([row[:6] for row in rows]))
    assert steps.tolist() == [[0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]]
    assert encoder.asked(np.array(rows[0])).nonzero()[0].tolist() == [1, 6]
    assert encoder.asked(np.array(rows[1])).nonzero()[0].tolist() == [1, 6]


@pytest.mark.parametrize(("stepwise", "least", "most"), [(1.0, 1.0, 1.0), (0.0, 0.0, 0.3)])
def test_worked_steps_are_hidden_or_shown_as_a_whole_as_often_as_asked(
    stepwise: float, least: float, most: float
) -> None:
    batches = Batches(Mixture(batch_tokens=3000, stepwise=stepwise), 1, 0)
    only = {name: float(name == "track") for name in TRAINED}  # four results per step
    encoder, whole = batches.encoder, []
    for step in range(4):
        batch = batches.batch(step, only)
        clean = batch.tokens.copy().reshape(-1)
        clean[batch.wanted] = batch.target
        clean, eot = clean.reshape(batch.tokens.shape), encoder.eot
        header = encoder.text.special("<|end_header_id|>")
        for row, shown, of in zip(clean, batch.tokens, encoder.steps(clean), strict=True):
            answer = slice(row.tolist().index(header) + 1, row.tolist().index(eot))
            kinds = np.array(encoder.kinds(row[answer].tolist()))
            free = (kinds == CONTENT) & ~encoder.asked(row[answer])
            hidden, steps = (shown[answer] == encoder.mask)[free], of[answer][free]
            pairs = {*zip(steps.tolist(), hidden.tolist(), strict=True)}
            if len(hidden) > 8:
                whole.append(len(pairs) == len(set(steps.tolist())))
    assert len(whole) > 10 and least <= sum(whole) / len(whole) <= most


def test_the_numbers_of_a_tale_that_follow_from_others_are_hidden_on_their_own() -> None:
    encoder = Batches(Mixture(), 0, 0).encoder
    tale = encoder.answer("He had 9 pens. Ben had 9 pens, lost 3 and had 6 left. Ben had 6.")
    assert encoder.results(np.array([tale])).nonzero()[1].tolist() == [7, 11, 14, 19]
    again = encoder.answer("Ada was from Lima. Ben walked to the park and home from the park.")
    assert encoder.results(np.array([again])).nonzero()[1].tolist() == [14]
    assert encoder.sentences(np.array([tale]))[0].tolist() == [0] * 5 + [1] * 12 + [2] * 4
    batches = Batches(Mixture(batch_tokens=2000, counted=1.0), 1, 0)
    only = {name: float(name == "tale") for name in TRAINED}
    ended = 0
    for step in range(3):
        batch = batches.batch(step, only)
        clean = batch.tokens.copy().reshape(-1)
        clean[batch.wanted] = batch.target
        clean = clean.reshape(batch.tokens.shape)
        for row, shown, results in zip(clean, batch.tokens, encoder.results(clean), strict=True):
            # padding and the end of text are hidden at a rate of their own
            hidden = (shown == encoder.mask) & (row != encoder.eot)
            words = np.flatnonzero(hidden & ~results)
            if len(words):  # from a full stop on all is hidden
                told = row[words[0] : row.tolist().index(encoder.eot)]
                assert encoder.text(".") == [row[words[0] - 1]]
                assert hidden[words[0] :].sum() >= len(told) - results[words[0] :].sum()
                ended += 1
    assert ended > 5


def test_sudokus_of_a_batch_are_variations_and_none_is_held_out() -> None:
    batches = Batches(Mixture(batch_tokens=2000), 1, 0)
    only = {name: float(name == "sudoku6-read") for name in TRAINED}
    text = batches.encoder.text
    seen, rows = set(), {}
    for step in (0, 1, 0):
        batch = batches.batch(step, only)
        rows[step] = len(batch.tokens)
        seen |= {
            tuple(row[: row.tolist().index(text.special("<|end_header_id|>"))].tolist())
            for row in batch.tokens
        }
    assert len(seen) == sum(rows.values())  # all differ, and step 0 comes again as it was


@pytest.mark.parametrize(("brief", "longest"), [(1.0, 6), (0.0, 20)])
def test_chains_are_short_as_often_as_asked(brief: float, longest: int) -> None:
    batches = Batches(Mixture(batch_tokens=2000, brief=brief), 1, 0)
    only = {name: float(name == "chain") for name in TRAINED}
    (comma,) = batches.encoder.text(",")
    steps = []
    for step in range(4):
        batch = batches.batch(step, only)
        clean = batch.tokens.copy().reshape(-1)
        clean[batch.wanted] = batch.target
        steps += (clean.reshape(batch.tokens.shape) == comma).sum(1).tolist()
    assert max(steps) < longest and (brief == 1 or max(steps) > 6)


def test_short_lists_and_unknown_names_are_trained_on() -> None:
    rng = random.Random(0)
    drawn = [draw(strange(TRAINED["copy"], rng), "train", rng) for _ in range(60)]
    names = [read_labelled(problem.answer) or [] for problem in drawn]
    assert min(map(len, names)) == 2
    assert any(name not in NAMES for shown in names for name in shown)
    told = [draw(strange(TRAINED["tale"], rng), "train", rng) for _ in range(30)]
    assert any(not set(problem.facts["names"]) <= set(NAMES) for problem in told)
    assert all(TRAINED["tale"].grade(problem, problem.answer) for problem in told)
    assert strange(TRAINED["chain"], rng) is TRAINED["chain"]


def test_a_fifth_of_the_short_lists_have_a_name_that_was_made_up() -> None:
    batches, rng = Batches(Mixture(), seed=0, rank=0), random.Random(0)
    known = [batches.encoder.text(f" {name}")[0] for name in NAMES]
    sketch = Sketch(list(TRAINED).index("reverse"), 0, 0)
    drawn = [batches._example(rng, sketch).answer for _ in range(300)]
    spelled = [len(answer) > 2 * sum(token in known for token in answer) for answer in drawn]
    assert 0.1 < sum(spelled) / len(spelled) < 0.35


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_newton_schulz_levels_singular_values(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for shape in [(3, 8, 8), (2, 8, 20)]:
        values = torch.linalg.svdvals(orthogonal(torch.randn(*shape), dtype=dtype))
        assert values.min() > 0.4
        assert values.max() < 1.4


@pytest.mark.parametrize(("head", "offset"), [(0, -1), (1, 1)])
@pytest.mark.parametrize("layer", [0, 1])
def test_two_heads_begin_by_looking_at_the_neighbours(head: int, offset: int, layer: int) -> None:
    torch.manual_seed(0)
    network = Network(Shape(vocab=300))
    block, size = network.blocks[layer], 48
    x = block.attn_norm(network.wte(torch.randint(300, (1, 30))))
    cos, sin = turns(30, network.shape, torch.device("cpu"))
    rows = slice(head * size, head * size + size)
    q, k = (rotate(p(x)[..., rows], cos, sin) for p in (block.q_proj, block.k_proj))
    share = (q @ k.transpose(1, 2) / size**0.5).softmax(-1)[0]
    assert share.diagonal(offset).min() > 0.5 and share.diagonal(offset).mean() > 0.8


def test_logits_of_wanted_slots_are_those_of_all() -> None:
    torch.manual_seed(0)
    network = Network(Shape(vocab=40, width=16, layers=2, heads=2, hidden=24))
    tokens, wanted = torch.randint(40, (3, 11)), torch.tensor([0, 5, 14, 32])
    torch.testing.assert_close(
        network(tokens, wanted), network(tokens).flatten(0, 1)[wanted], atol=1e-6, rtol=1e-5
    )


def test_network_equals_stock_llama() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    network = Network(Shape(vocab=40, width=16, layers=2, heads=2, hidden=24))
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    config.is_causal = False
    stock = LlamaForCausalLM(config).eval()
    names = {
        "wte": "model.embed_tokens",
        "blocks": "model.layers",
        "ln_f": "model.norm",
        "attn_norm": "input_layernorm",
        "ff_norm": "post_attention_layernorm",
        "attn_out": "self_attn.o_proj",
        "ff_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj",
        "ff_out": "mlp.down_proj",
    } | {f"{x}_proj": f"self_attn.{x}_proj" for x in "qkv"}
    state = {
        ".".join(names.get(part, part) for part in key.split(".")): value
        for key, value in network.state_dict().items()
    }
    missing = stock.load_state_dict(state, strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"]) and not missing.unexpected_keys
    tokens = torch.randint(40, (2, 11))
    mask = torch.zeros(2, 1, 11, 11)
    with torch.no_grad():
        expected = stock(tokens, attention_mask=mask).logits
        torch.testing.assert_close(network(tokens), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_short_run_writes_the_published_format(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "run").train()
    assert folder == tmp_path / "run" / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LLaDAModelLM"] and config["model_type"] == "llada"
    assert config["mask_token_id"] == vocabulary()["<|mdm_mask|>"]
    tensors = load_file(folder / "model.safetensors")
    block = ("attn_norm", "ff_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj")
    expected = {f"model.transformer.{name}.weight" for name in ("wte", "ln_f", "ff_out")} | {
        f"model.transformer.blocks.{number}.{name}.weight"
        for number in range(2)
        for name in (*block, "ff_out")
    }
    assert tensors.keys() == expected
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    shape = tensors["model.transformer.wte.weight"].shape
    assert shape == (config["vocab_size"], config["d_model"])
    lines = curves.read(tmp_path / "run" / "curves.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert set(lines[-1]["token_accuracy"]) & set(TRAINED)
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("slow", "dtype"), [("", torch.bfloat16), ("slow", torch.float32)])
def test_products_of_a_training_are_in_half_the_bits_unless_the_processor_is_slow_at_that(
    slow: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[torch.dtype] = set()

    class Seen(Worker):
        def _loss(self, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            assert self.optimiser.dtype == dtype
            seen.add(torch.matmul(torch.ones(2, 2), torch.ones(2, 2)).dtype)
            return super()._loss(*given)

    monkeypatch.setattr(worker, "slow_on_processor", lambda dtype, device: slow)
    monkeypatch.setattr(worker, "Worker", Seen)
    tiny(tmp_path / "run", halt=1).train()
    assert seen == {dtype}


@pytest.mark.slow
def test_resumed_run_equals_uninterrupted_run(tmp_path: Path) -> None:
    whole = tiny(tmp_path / "whole").train()
    tiny(tmp_path / "parts", halt=2).train()
    parts = tiny(tmp_path / "parts").train()
    left, right = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert all(torch.equal(left[key], right[key]) for key in left)
    lines = [curves.read(tmp_path / name / "curves.jsonl") for name in ("whole", "parts")]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


@pytest.mark.slow
def test_the_model_of_an_early_hour_is_kept(tmp_path: Path) -> None:
    late = tiny(tmp_path, early=0.001).train()  # the second step passes 1,000 tokens
    early = load_file(tmp_path / "early" / "model.safetensors")
    final = load_file(late / "model.safetensors")
    assert early.keys() == final.keys()
    assert any(not torch.equal(early[key], final[key]) for key in early)


def test_a_run_may_begin_with_the_weights_of_another_model(tmp_path: Path) -> None:
    first, shape = tmp_path / "first", tiny(tmp_path).shape()
    export(Network(shape).state_dict(), shape, first, 256)
    words = json.loads((first / "tokenizer.json").read_text())
    weights = load_file(first / "model.safetensors")
    # As if the other model had the tokens in another order and did not know one of them.
    table, numbers = weights["model.transformer.wte.weight"], words["model"]["vocab"]
    order = [token for token in reversed(numbers) if token != "\u0120tale"]
    words["model"]["vocab"] = {token: number for number, token in enumerate(order)}
    (first / "tokenizer.json").write_text(json.dumps(words))
    moved = table[[numbers[token] for token in order]].contiguous()
    save_file(weights | {"model.transformer.wte.weight": moved}, first / "model.safetensors")
    network = Network(shape)
    begin_from(network, first)
    for name, weight in network.named_parameters():
        wanted = weights[f"model.transformer.{name}"].float()
        if name == "wte.weight":
            fresh = numbers["\u0120tale"]
            assert not torch.equal(weight[fresh], wanted[fresh])
            wanted[fresh] = weight[fresh].detach()
        assert torch.equal(weight, wanted)

    settings = tiny(tmp_path / "begun", start=str(first))
    (tmp_path / "begun").mkdir()
    worker = Worker(settings, 0, Reporter("none"), lambda: False)
    name = "blocks.1.ff_out.weight"
    wanted = weights[f"model.transformer.{name}"].float()
    assert torch.equal(dict(worker.named)[name], wanted)
    assert torch.equal(worker.average[name], wanted)


@pytest.mark.parametrize(
    ("broken", "message"),
    [("config.json", "cannot be read"), ("model.safetensors", "cannot be read"), ("", "d_model")],
)
def test_a_start_that_does_not_fit_says_why(tmp_path: Path, broken: str, message: str) -> None:
    folder = tmp_path / "other"
    shape = Shape(vocab=len(vocabulary()), width=32, layers=2, heads=2, hidden=24)
    export(Network(shape).state_dict(), shape, folder, 256)
    if broken:
        (folder / broken).write_text("{")
    with pytest.raises(CheckpointError, match=rf"^task.start: .*{message}"):
        begin_from(Network(tiny(tmp_path).shape()), folder)


@pytest.mark.slow
def test_a_continuation_may_share_its_steps_among_more_workers(tmp_path: Path) -> None:
    tiny(tmp_path, steps=4, halt=2).train()
    tiny(tmp_path, steps=4, workers=2, batch_tokens=256).train()
    lines = curves.read(tmp_path / "curves.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(line["loss"]) for line in lines)


@pytest.mark.slow
def test_two_workers_measure_all_families(tmp_path: Path) -> None:
    folder = tiny(tmp_path, workers=2, steps=2, measured_problems=1).train()
    assert (folder / "model.safetensors").exists()
    lines = curves.read(tmp_path / "curves.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 2]
    assert set(lines[-1]["exact_match"]) == set(TRAINED)


@pytest.mark.slow
def test_loader_processes_give_the_same_batches() -> None:
    from dllm_decode.training.llada_tiny.loading import Loader

    mixture = Mixture(batch_tokens=512)
    ahead, own = Loader(mixture, 1, 0, 1), Loader(mixture, 1, 0, 0)
    try:
        for step in range(4):
            left, right = ahead.batch(step, EVEN), own.batch(step, EVEN)
            assert np.array_equal(left.tokens, right.tokens)
    finally:
        ahead.close()


@pytest.mark.slow
def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    tiny(tmp_path, steps=1).train()
    with pytest.raises(CheckpointError, match=r"^task.width must be 16 .* got 32"):
        tiny(tmp_path, width=32).train()
    with pytest.raises(
        CheckpointError, match=r"^task.workers \* task.batch_tokens must be 512 .* got 1024"
    ):
        tiny(tmp_path, workers=2).train()
    with pytest.raises(ConfigError, match=r"^task.output must be a new folder"):
        tiny(tmp_path, resume=False).train()
    (tmp_path / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        tiny(tmp_path).train()


def test_export_keeps_other_files_and_leaves_no_rubbish(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("card")
    shape = Shape(vocab=len(vocabulary()), width=16, layers=1, heads=2, hidden=24)
    export(Network(shape).state_dict(), shape, folder, 192)
    assert (folder / "README.md").read_text() == "card"
    assert (folder / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "setting",
    [
        {"tokens": 0},
        {"minutes": -1},
        {"steps": -1},
        {"workers": 0},
        {"width": 20, "heads": 6},
        {"batch_tokens": 10},
        {"flat": 1.0},
        {"average": 1.0},
        {"clip": 0},
        {"muon_rate": float("nan")},
        {"display": "loud"},
        {"output": ""},
        {"seed": 1.5},
        {"emphasis": {"juggle": 1.0}},
        {"curriculum": {"juggle": 1.0}},
        {"early": -1},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_bad_settings_name_the_field(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"^(task\.)?{next(iter(setting))} must"):
        Pretrain(**setting)


@pytest.mark.parametrize("device", ["tpu", "meta", "cuda"])
def test_missing_device_is_refused(tmp_path: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match=r"^task.device"):
        tiny(tmp_path, device=device).train()
