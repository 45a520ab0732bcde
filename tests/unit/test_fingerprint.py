"""The fingerprint of a checkpoint: what changes it and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dllm_decode.errors import CheckpointError
from dllm_decode.models.acceptance import AcceptanceFilter
from dllm_decode.models.fingerprint import fingerprint

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(9000), "c": torch.zeros(0)}


def checkpoint(
    folder: Path, tensors: dict[str, torch.Tensor], *, shards: int = 1, **config: object
) -> str:
    folder.mkdir()
    values = {"architectures": ["X"], **config}
    (folder / "config.json").write_text(json.dumps(values))
    names = sorted(tensors)
    for number in range(shards):
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / f"model-{number}.safetensors")
    return fingerprint(folder)


def test_folder_shards_and_tokenizer_do_not_matter(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "one", TENSORS)
    assert one == checkpoint(tmp_path / "two", TENSORS, shards=2)
    (tmp_path / "one" / "tokenizer.json").write_text("{}")
    assert one == fingerprint(tmp_path / "one")
    assert len(one) == 16


@pytest.mark.parametrize("place", [0, -1])
def test_any_tensor_and_any_setting_matters(tmp_path: Path, place: int) -> None:
    one = checkpoint(tmp_path / "one", TENSORS)
    for name in ("a", "b"):
        changed = TENSORS[name].clone()
        changed.view(-1)[place] += 1
        assert checkpoint(tmp_path / name, {**TENSORS, name: changed}) != one
    renamed = {"d" if name == "a" else name: tensor for name, tensor in TENSORS.items()}
    assert checkpoint(tmp_path / "renamed", renamed) != one
    reshaped = {**TENSORS, "a": TENSORS["a"].reshape(3, 2)}
    assert checkpoint(tmp_path / "reshaped", reshaped) != one
    assert checkpoint(tmp_path / "config", TENSORS, rope_theta=2) != one


def test_a_damaged_checkpoint_is_reported(tmp_path: Path) -> None:
    checkpoint(tmp_path / "one", TENSORS)
    (tmp_path / "one" / "model-0.safetensors").write_bytes(b"12345678 no header")
    with pytest.raises(CheckpointError, match="cannot be read for its fingerprint"):
        fingerprint(tmp_path / "one")


@pytest.mark.slow
def test_the_shipped_filter_is_for_the_bundled_model_and_the_default_blocks() -> None:
    from dllm_decode.config.compose import compose
    from dllm_decode.models import load_model

    shipped = AcceptanceFilter.load("bundled:llada-tiny")
    model = load_model("bundled:llada-tiny")
    assert shipped.fingerprint == model.denoiser.fingerprint  # type: ignore[attr-defined]
    assert shipped.block_length == compose(["strategy=learn2pd"]).schedule.length
