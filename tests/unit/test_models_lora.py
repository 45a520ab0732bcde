"""LoRA adapters: merged as their files say, under published and stock names, never in silence."""

import json
import shutil

import pytest
import torch
from golden_checkpoints import GOLDEN, OPTIONS
from safetensors.torch import load_file, save_file

from dllm_decode.decoding.cache import Plan
from dllm_decode.errors import CheckpointError, ConfigError
from dllm_decode.models import doctor, load_model


@pytest.fixture(scope="module", autouse=True)
def peft():
    return pytest.importorskip("peft")  # slow to import


TOKENS = torch.tensor([[5, 9, 14, 3, 77, 20, 31, 8]])
# family: the places adapted, as the published class names them
PLACES = {
    "llada": ("model.transformer.blocks.0.q_proj", "model.transformer.blocks.1.ff_out"),
    "dream": ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj", "lm_head"),
    "lladamoe": ("model.layers.0.self_attn.k_proj",),
    "llada2": ("model.layers.1.attention.query_key_value", "model.layers.0.attention.dense"),
}
STOCK = {"model.transformer.blocks.0.q_proj": "model.layers.0.self_attn.q_proj"}


def load(folder, family, **options):
    options = OPTIONS[family] | {"device": "cpu", "dtype": "float32"} | options
    return load_model(str(folder), **options)


def logits(loaded):
    live = torch.ones_like(TOKENS, dtype=torch.bool)
    return loaded.denoiser(TOKENS, live, torch.arange(8)[None], Plan())


def weights(folder):
    return {k: v for file in folder.glob("model*.safetensors") for k, v in load_file(file).items()}


def write_adapter(folder, family, places=None, rank=3, seed=0, names=None, **settings):
    """An adapter as peft writes it; returns what it adds to each published weight."""
    published = weights(GOLDEN / family)
    torch.manual_seed(seed)
    folder.mkdir(exist_ok=True)
    tensors, added = {}, {}
    for place in places or PLACES[family]:
        rows, columns = published[f"{place}.weight"].shape
        down, up = torch.randn(rank, columns) * 0.3, torch.randn(rows, rank) * 0.3
        name = f"base_model.model.{(names or {}).get(place, place)}"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        root = rank**0.5 if settings.get("use_rslora") else rank
        added[f"{place}.weight"] = up @ down * (6.0 / root)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    about = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(GOLDEN / family),
        "r": rank,
        "lora_alpha": 6.0,
        "bias": "none",
        "target_modules": [(names or {}).get(place, place) for place in places or PLACES[family]],
    }
    (folder / "adapter_config.json").write_text(json.dumps(about | settings))
    return added


def by_hand(folder, family, *additions):
    """A copy of the checkpoint with the products added to its published weights."""
    shutil.copytree(GOLDEN / family, folder)
    tensors = weights(folder)
    for added in additions:
        for name, product in added.items():
            tensors[name] = (tensors[name].float() + product).to(tensors[name].dtype)
    for file in folder.glob("model*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.one_in(4)
@pytest.mark.parametrize("family", PLACES)
def test_an_adapter_adds_its_product_to_the_published_weights(family, tmp_path):
    added = write_adapter(tmp_path / "a", family)
    merged = load(GOLDEN / family, family, adapters=[str(tmp_path / "a")])
    expected = load(by_hand(tmp_path / "by_hand", family, added), family)
    assert torch.allclose(logits(merged), logits(expected), atol=1e-4)
    assert not torch.allclose(logits(merged), logits(load(GOLDEN / family, family)), atol=1e-2)
    assert f"with {tmp_path / 'a'}" in str(merged.description)
    assert merged.denoiser.fingerprint != expected.denoiser.fingerprint


@pytest.mark.slow
def test_several_adapters_add_up_and_an_adapter_alone_finds_its_base(tmp_path):
    first = write_adapter(tmp_path / "a", "llada", use_rslora=True)
    second = write_adapter(tmp_path / "b", "llada", rank=2, seed=1)
    expected = logits(load(by_hand(tmp_path / "by_hand", "llada", first, second), "llada"))
    both = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert torch.allclose(
        logits(load(GOLDEN / "llada", "llada", adapters=both)), expected, atol=1e-4
    )
    alone = load(tmp_path / "a", "llada", adapters=both[1:])
    assert torch.allclose(logits(alone), expected, atol=1e-4)
    assert alone.description.adapters == tuple(both)
    alone.save_pretrained(tmp_path / "saved")
    assert torch.allclose(logits(load(tmp_path / "saved", "llada")), expected, atol=1e-4)


def test_patterns_tell_modules_apart_by_their_published_names(tmp_path):
    added = write_adapter(tmp_path / "a", "llada", alpha_pattern={r"blocks\.1\.ff_out": 12.0})
    added["model.transformer.blocks.1.ff_out.weight"] *= 2
    merged = load(tmp_path / "a", "llada")
    expected = load(by_hand(tmp_path / "by_hand", "llada", added), "llada")
    assert torch.allclose(logits(merged), logits(expected), atol=1e-4)


def test_an_adapter_trained_on_the_stock_class_is_the_same(tmp_path):
    places = PLACES["llada"][:1]
    write_adapter(tmp_path / "a", "llada", places)
    write_adapter(tmp_path / "b", "llada", places, names=STOCK)
    assert torch.equal(logits(load(tmp_path / "a", "llada")), logits(load(tmp_path / "b", "llada")))


def test_an_adapter_beside_a_base_has_to_be_asked_for_or_declined(tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(GOLDEN / "llada", folder)
    added = write_adapter(folder, "llada")
    with pytest.raises(CheckpointError, match=r"beside its weights: model.adapters=\[.*both\] dec"):
        load(folder, "llada")
    findings = doctor.examine({"checkpoint": str(folder), "device": "cpu"}).findings
    assert any("beside its weights" in finding.text for finding in findings)
    plain, with_it = (load(folder, "llada", adapters=a) for a in ([], [str(folder)]))
    assert torch.equal(logits(plain), logits(load(GOLDEN / "llada", "llada")))
    expected = load(by_hand(tmp_path / "by_hand", "llada", added), "llada")
    assert torch.allclose(logits(with_it), logits(expected), atol=1e-4)


@pytest.mark.one_in(12)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', but only LORA"),
        ({"bias": "all"}, "bias='all' is not merged"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not merged"),
        ({"r": "x"}, "'r' must be a number above 0"),
        ({"lora_alpha": None}, "'lora_alpha' must be a number above 0"),
        ({"lora_alpha": float("inf")}, "'lora_alpha' must be a number above 0"),
        ({"lora_bias": True}, "lora_bias=True is not merged"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices=\[3\] is not merged"),
        ({"layer_replication": [[0, 2]]}, "layer_replication=.* is not merged"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens=.* is not merged"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters=.* is not merged"),
        ({"a_key_of_next_year": 1}, "a_key_of_next_year=1 is not merged"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' has changed"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' has changed the weights"),
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS' is for another kind of model"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern\.\( is no regular expression"),
        ({"alpha_pattern": {"q": "x"}}, r"'alpha_pattern\.q' must be a number above 0"),
        ({"rank_pattern": 3}, "'rank_pattern' must be an object"),
        ({"r": 4}, "has the rank 3, but adapter_config.json says 4"),
        ({"use_dora": True}, "has lora_A, lora_B, but needs lora_A, lora_B, lora_magnitude_vector"),
        ({"base_model_name_or_path": None}, r"does not name the model .*model.adapters=\["),
        ({"base_model_name_or_path": "/no/where"}, r"for the model '/no/where': .*adapters=\["),
    ],
)
def test_what_an_adapter_asks_for_and_is_not_done_is_refused_by_key(settings, message, tmp_path):
    write_adapter(tmp_path / "a", "llada", **settings)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "a", "llada")
    report = doctor.examine({"checkpoint": str(tmp_path / "a"), "device": "cpu"})
    assert not report.healthy


NAME = "base_model.model.model.layers.0.self_attn.v_proj.lora_"
OTHER = NAME.replace("v_proj", "w_proj")
ODD = [
    ({"base_model.model.lm_head.weight": torch.ones(2, 2)}, "is no part of a LoRA"),
    ({f"{NAME}B.weight": None}, "has lora_A, but needs lora_A, lora_B"),
    ({f"{NAME}B.weight": torch.ones(2, 3)}, "but the layer has .* inputs"),
    ({f"{OTHER}{part}.weight": torch.ones(3, 2) for part in "AB"}, "the model has no such layer"),
    ({f"{NAME}A.weight": torch.full((3, 32), torch.nan)}, "something else than numbers"),
    ({f"{NAME}A.weight": torch.ones(3, 32, dtype=torch.int32)}, "something else than numbers"),
    ({f"{NAME}magnitude_vector": torch.ones(16)}, r"but needs lora_A, lora_B \(use_dora=False\)"),
    ({f"{NAME}A.weight": torch.tensor(1.0)}, "holds no matrix"),
    ({f"{NAME}{part}.weight": None for part in "AB"}, "holds no tensors"),
]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("edit", "message"), ODD)
def test_tensors_that_do_not_fit_are_refused_by_name(edit, message, tmp_path):
    write_adapter(tmp_path / "a", "dream", PLACES["dream"][:1])
    file = tmp_path / "a" / "adapter_model.safetensors"
    changed = {k: v for k, v in (load_file(file) | edit).items() if v is not None}
    save_file(changed, file)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "a", "dream")


@pytest.mark.parametrize("family", ["llada", pytest.param("llada2", marks=pytest.mark.slow)])
def test_a_file_that_lacks_layers_which_were_adapted_is_refused(family, tmp_path):
    places = {"llada": ("blocks.0.attn_out", "blocks.1.attn_out"), "llada2": PLACES["llada2"][1:]}
    places = [place.replace("blocks", "model.transformer.blocks", 1) for place in places[family]]
    target = [places[0].rpartition(".")[2]]
    write_adapter(tmp_path / "a", family, places[:1], target_modules=target)
    with pytest.raises(CheckpointError, match=r"has nothing for .*(attn_out|dense), which"):
        load(tmp_path / "a", family)
    some = {"target_modules": target, "layers_to_transform": [0]}
    write_adapter(tmp_path / "a", family, places[:1], **some)
    load(tmp_path / "a", family)


def test_an_adapter_that_was_trained_with_peft_gives_what_peft_computes(tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = load(GOLDEN / "dream", "dream").denoiser.model
    config = LoraConfig(
        r=4, target_modules=["q_proj", "up_proj"], use_dora=True, use_rslora=True,
        rank_pattern={"up_proj": 2}, task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        if "magnitude" in name:
            parameter.data *= 1.2
    model.eval()
    model.save_pretrained(tmp_path / "a")
    wanted = model(TOKENS).logits
    merged = load(GOLDEN / "dream", "dream", adapters=[str(tmp_path / "a")]).denoiser.model
    assert torch.allclose(merged(TOKENS).logits, wanted, atol=1e-4)


def test_another_base_than_the_one_that_an_adapter_names_is_said(tmp_path, caplog):
    write_adapter(tmp_path / "a", "llada", base_model_name_or_path="GSAI-ML/LLaDA-8B-Base")
    load(GOLDEN / "llada", "llada", adapters=[str(tmp_path / "a")])
    assert "was trained on GSAI-ML/LLaDA-8B-Base and is merged into" in caplog.text


def test_an_adapter_is_neither_added_twice_nor_added_where_none_was_asked_for(tmp_path):
    write_adapter(tmp_path / "a", "llada")
    for checkpoint, adapters in ((GOLDEN / "llada", 2), (tmp_path / "a", 1)):
        with pytest.raises(ConfigError, match="a is named twice"):
            load(checkpoint, "llada", adapters=[str(tmp_path / "a")] * adapters)
    with pytest.raises(ConfigError, match=r"holds an adapter and no weights, but .* asks for none"):
        load(tmp_path / "a", "llada", adapters=[])


def test_single_experts_of_a_mixture_are_refused_with_the_way_out(tmp_path):
    write_adapter(tmp_path / "a", "lladamoe", ("model.layers.0.mlp.experts.1.up_proj",))
    with pytest.raises(CheckpointError, match="keeps the experts of a layer in one tensor; merge"):
        load(tmp_path / "a", "lladamoe")


def test_names_and_settings_that_cannot_work_are_refused(tmp_path, monkeypatch):
    write_adapter(tmp_path / "a", "llada")
    adapters = [str(tmp_path / "a")]
    with pytest.raises(ConfigError, match=r"model\.adapters must be a list"):
        load(GOLDEN / "llada", "llada", adapters=adapters[0])
    with pytest.raises(ConfigError, match="must name folders or Hub ids, got 3"):
        load(GOLDEN / "llada", "llada", adapters=[3])
    with pytest.raises(CheckpointError, match="adapter /no/where is not available"):
        load(GOLDEN / "llada", "llada", adapters=["/no/where"])
    with pytest.raises(ConfigError, match=r"body=lean cannot be used: adapters are merged"):
        load(GOLDEN / "llada", "llada", adapters=adapters, body="lean")
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"has no adapter_model.safetensors; other formats"):
        load(GOLDEN / "llada", "llada", adapters=adapters)
    monkeypatch.setattr("dllm_decode.models.lora.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "dllm_decode\[lora\]"'):
        load(GOLDEN / "llada", "llada", adapters=adapters)
