"""Ids that the tokenizer does not know are never committed, however likely the model finds them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dllm_decode import load
from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.types import Request
from dllm_decode.errors import CheckpointError
from dllm_decode.models import doctor, load_model
from dllm_decode.models.locate import ASSETS

ROWS, KNOWN, HOLE = 768, 676, 2
PROMPTS = ["Copy: 1 Ada 2 Ben", "Sort: 1 Eva 2 Ben 3 Ada"]
SAMPLERS = ["greedy", "categorical", "dream"]


@pytest.fixture(scope="module")
def padded(tmp_path_factory) -> Path:
    """The bundled model with rows that nobody trained, which win every argmax.

    One id in the middle is unknown to the tokenizer as well, and wins as often.
    """
    folder = tmp_path_factory.mktemp("padded") / "model"
    shutil.copytree(ASSETS / "llada-tiny", folder, ignore=shutil.ignore_patterns("*.png", "curv*"))
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    for name in ("model.transformer.wte.weight", "model.transformer.ff_out.weight"):
        own = tensors[name]
        extra = torch.randn(ROWS - KNOWN, own.shape[1], dtype=own.dtype)
        tensors[name] = torch.cat([own, 50 * extra])
        tensors[name][HOLE] = 50 * torch.randn(own.shape[1], dtype=own.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def change(name, values):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    change("config.json", {"embedding_size": ROWS, "vocab_size": ROWS})
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["id"] != HOLE]
    words = {word: number for word, number in tokenizer["model"]["vocab"].items() if number != HOLE}
    change("tokenizer.json", tokenizer | {"model": tokenizer["model"] | {"vocab": words}})
    change("tokenizer_config.json", {"bos_token": None})
    (folder / "special_tokens_map.json").unlink()
    return folder


def decoder(folder, *overrides):
    return load(
        "checkpoint",
        "threshold",
        overrides=[
            f"model.checkpoint={folder}",
            "model.device=cpu",
            "strategy.select.threshold=0.5",
            *overrides,
        ],
    )


def test_the_rows_would_win_if_they_counted(padded):
    model = load_model(str(padded), device="cpu").denoiser.model
    tokens = torch.tensor([[5, 9, *[1] * 20]])
    assert (model(tokens).logits.argmax(-1) >= KNOWN).any()


@pytest.mark.one_in(9)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_unknown_ids_are_never_committed(sampler, cache, padded):
    loaded = decoder(padded, f"sampler={sampler}", f"cache={cache}", "schedule.length=8")
    known = loaded.model.tokenizer.ids
    for options in ({}, {"batch_size": 1}, {"temperature": 2.0}):
        if options.get("temperature") and sampler == "dream":
            continue
        result = loaded.generate(PROMPTS, max_new_tokens=16, **options)
        assert all(token in known for row in result.sequences for token in row)
        assert all(len(row) > 0 for row in result.sequences)


# one rule of each kind by default: a transform, a ranking, an entropy; the others are slow
@pytest.mark.parametrize(
    "strategy",
    [
        "credit",
        "topk",
        "entropy",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sequential", "random", "ccd")),
    ],
)
def test_no_strategy_commits_them(strategy, padded):
    loaded = load(
        "checkpoint", strategy, overrides=[f"model.checkpoint={padded}", "model.device=cpu"]
    )
    result = loaded.generate(PROMPTS, max_new_tokens=32)
    assert {token for row in result.sequences for token in row} <= loaded.model.tokenizer.ids


def test_padding_rows_cost_no_logits_and_leave_the_statistics(padded):
    denoiser = load_model(str(padded), device="cpu").denoiser
    assert denoiser.vocab.size == KNOWN and denoiser.vocab.banned_ids == (HOLE,)
    assert denoiser.model.config.vocab_size == ROWS
    tokens = torch.tensor([[5, 9, 1, 1]])
    live, index = torch.ones_like(tokens, dtype=torch.bool), torch.tensor([[2, 3]])
    assert denoiser(tokens, live, index, Plan()).shape == (1, 2, KNOWN)
    assert denoiser.before_head(tokens, live, index, Plan()).weight.shape[0] == KNOWN


def test_the_doctor_names_the_gap(padded):
    report = doctor.examine({"checkpoint": str(padded), "device": "cpu"})
    assert report.facts["token ids"] == (
        "768 in the model, 675 in the tokenizer; 93 are never generated"
    )


def test_a_mask_id_that_the_tokenizer_does_not_know_is_refused(padded):
    with pytest.raises(CheckpointError, match="the mask id 700 is not in the tokenizer"):
        load_model(str(padded), device="cpu", mask_id=700)


@pytest.fixture
def editing(tmp_path):
    """A checkpoint that names ids with which it edits its own text, as LLaDA2.2 does."""
    source = Path(__file__).parents[1] / "golden" / "checkpoints" / "llada2"
    folder = Path(shutil.copytree(source, tmp_path / "editing"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"delete_token_id": 211, "split_token_id": 212, "mask_token_id": 213})
    )
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    for token in (211, 212):
        tensors["lm_head.weight"][token] = 50 * torch.randn(tensors["lm_head.weight"].shape[1])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.one_in(3)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_ids_that_edit_a_text_are_never_committed(sampler, editing):
    loaded = decoder(editing, f"sampler={sampler}", "model.block_length=8", "schedule.length=8")
    assert loaded.model.denoiser.vocab.banned_ids == (211, 212)
    result = loaded.decoder.decode(Request(((5, 6, 7), (8, 9)), 16))
    assert not {211, 212, 213} & {token for row in result.sequences for token in row}
    report = doctor.examine({"checkpoint": str(editing), "device": "cpu"})
    assert "ids 211, 212" in " ".join(f.text for f in report.findings)
