"""conf/model: every option composes, fits `load_model`, and has its line in the documentation."""

import inspect
import re
from functools import cache
from pathlib import Path

import published_configs as sizes
import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from dllm_decode.models import load_model

ROOT = Path(__file__).parents[2]
OPTIONS = sorted(
    path.stem
    for path in (ROOT / "conf" / "model").glob("*.yaml")
    if not path.stem.startswith("toy_")
)
VOCABULARY = {
    "llada_8b": sizes.LLADA_8B,
    "llada_1_5": sizes.LLADA_8B,
    "illada": sizes.ILLADA_8B,
    "llada_moe": sizes.LLADA_MOE,
    "llada2": sizes.LLADA2_MINI,
    "dream": sizes.DREAM_7B,
    "diffucoder": sizes.DREAM_7B,
    "sdar": sizes.SDAR_8B,
    "fast_dllm": sizes.FAST_DLLM_1_5B,
    "stable_diffcoder": sizes.STABLE_DIFFCODER_8B,
    "rnd1": sizes.RND1_BASE,
    "trado": sizes.SDAR_8B,
    "dmax": sizes.LLADA2_MINI,
    "wedlm": sizes.WEDLM_7B,
    "tiny_a2d_0": sizes.A2D_QWEN3_0_6B,
    "tiny_a2d_coder": sizes.A2D_QWEN2_0_5B,
    "open_dcoder": sizes.OPEN_DCODER_0_5B,
}


@cache
def compose_once(option):
    with initialize_config_module("dllm_decode.conf", version_base="1.3"):
        return OmegaConf.to_container(compose(f"model/{option}").model, resolve=True)


@cache
def read(option):
    """The values of an option without Hydra: those of `checkpoint` under its own."""
    folder = ROOT / "conf" / "model"
    own = yaml.safe_load((folder / f"{option}.yaml").read_text())
    assert own.pop("defaults", ["checkpoint", "_self_"]) == ["checkpoint", "_self_"]
    return yaml.safe_load((folder / "checkpoint.yaml").read_text()) | own


def composed(option):
    return dict(compose_once(option))


@pytest.mark.one_in(51)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_sets_every_argument_of_load_model_and_no_other(option):
    node = composed(option)
    assert node.pop("_target_") == "dllm_decode.models.load_model"
    assert set(node) == set(inspect.signature(load_model).parameters)
    assert node == {key: value for key, value in read(option).items() if key != "_target_"}


def test_the_defaults_of_the_configuration_are_those_of_the_function():
    node = composed("checkpoint")
    del node["_target_"]
    parameters = inspect.signature(load_model).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters}
    assert node == defaults | {"ignore_settings": []}


@pytest.mark.parametrize(
    "option", [name for name in OPTIONS if name not in ("llada", "llada_early", "checkpoint")]
)
def test_published_ids_exist_in_the_published_vocabulary(option):
    node = read(option)
    (values,) = [v for prefix, v in VOCABULARY.items() if option.startswith(prefix)]
    for token in (node["mask_id"], node["pad_id"], *(node["eot_ids"] or ())):
        assert token is None or 0 <= token < values["vocab_size"]
    named = values.get("mask_token_id")
    assert node["mask_id"] is None or named in (None, node["mask_id"])


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "checkpoint"])
def test_every_option_has_its_line_in_the_documentation(option):
    node = read(option)
    lines = (ROOT / "docs" / "models.md").read_text().splitlines()
    (line,) = [text for text in lines if re.match(rf"\| `model={option}[ `]", text)]
    names = node["checkpoint"] if isinstance(node["checkpoint"], list) else [node["checkpoint"]]
    assert all(name in line for name in names)
    if option != "llada":
        assert f"| {node['mask_id'] or 'its own'} |" in line
        for token in node["eot_ids"] or ():
            assert str(token) in line
