"""Quantised weights: made while loading, as published, refused by name, and what they take."""

import json
import logging
import sys
from pathlib import Path

import published_configs as sizes
import pytest
import torch
from safetensors.torch import load_file, save_file

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request
from dllm_decode.errors import CheckpointError, ConfigError
from dllm_decode.models import doctor, experts, load_model, quantization
from dllm_decode.models.blueprint import blueprint, build_on_meta, make_config
from dllm_decode.models.placement import Placement
from dllm_decode.models.quantization import Verdict, memory_by_kind, require_quantization
from dllm_decode.models.quiet import transformers_output
from dllm_decode.strategies.threshold import ConfidenceThreshold

TOKENS = torch.arange(5, 25)[None]
WIDE = {"hidden_size": 128, "intermediate_size": 256}  # as bitsandbytes packs for processors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small checkpoint with matrices of the sizes that both libraries take."""
    place = tmp_path_factory.mktemp("quantised") / "a2d"
    values = sizes.TINY["a2d_qwen2"] | WIDE
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sizes.TINY, "wide", values)
        return sizes.write_tiny("wide", place)


@pytest.fixture(scope="module")
def exact(folder):
    return logits(load(folder))


def load(folder, **options):
    return load_model(str(folder), **({"device": "cpu", "dtype": "float32"} | options))


def logits(loaded):
    live = torch.ones_like(TOKENS, dtype=torch.bool)
    return loaded.denoiser(TOKENS, live, torch.arange(20)[None], Plan())


def is_near(found, exact, most):
    return float((found - exact).norm() / exact.norm()) < most


@pytest.mark.parametrize(
    ("kind", "package", "most"),
    [
        ("int8", "torchao", 0.02),
        pytest.param("nf4", "bitsandbytes", 0.25, marks=pytest.mark.slow),
    ],
)
def test_a_quantised_model_is_near_the_exact_one_and_decodes(kind, package, most, folder, exact):
    pytest.importorskip(package)
    loaded = load(folder, quantization=kind)
    found = logits(loaded)
    assert is_near(found, exact, most) and not torch.equal(found, exact)
    assert f"{kind} and float32 on cpu" in str(loaded.description)
    head = loaded.denoiser.model.get_output_embeddings()
    assert type(head.weight) is torch.nn.Parameter  # so that head and statistics can be one
    decoder = Decoder(loaded.denoiser, Pipeline(ConfidenceThreshold(0.5)), Blocks(8))
    assert len(decoder.decode(Request(((1, 2, 3), (4,)), 16)).sequences) == 2
    with pytest.raises(ConfigError, match=rf"quantised \({kind}\) and cannot be saved"):
        loaded.save_pretrained(folder.parent / "saved")


@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 2), ("float32", 4)])
def test_the_memory_that_is_told_is_the_memory_that_is_taken(dtype, width, folder):
    pytest.importorskip("torchao")
    told = memory_by_kind(build_on_meta(blueprint(folder)), width)
    model = load(folder, quantization="int8", dtype=dtype).denoiser.model
    taken = 0
    for parameter in model.parameters():
        parts = [parameter]
        if hasattr(parameter, "qdata"):
            parts = [parameter.qdata, parameter.scale]
        taken += sum(part.numel() * part.element_size() for part in parts)
    assert taken == told["int8"]
    plain = load(folder, dtype="bfloat16").denoiser.model
    assert told["bfloat16"] == sum(2 * parameter.numel() for parameter in plain.parameters())
    assert told["nf4"] < told["int8"] < width * told["bfloat16"] / 2


def in_rows(tensor, most):
    scale = tensor.abs().amax(1, keepdim=True) / most
    return tensor / scale, scale


def packed_int8(name, tensor):
    levels, scale = in_rows(tensor, 127)
    levels = levels.round().to(torch.int32) + 128  # 0 to 255, the first lowest
    four = levels.unflatten(1, (-1, 4)) << torch.arange(0, 32, 8)
    parts = {"packed": four.sum(2).to(torch.int32), "scale": scale}
    return {f"{name}_{part}": one for part, one in parts.items()} | {
        f"{name}_shape": torch.tensor(tensor.shape)
    }


def packed_int4(name, tensor):
    groups = tensor.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1) / 7
    levels = (groups / scale[..., None]).round().to(torch.int32).flatten(-2) + 8
    eight = levels.unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)
    parts = {"packed": eight.sum(2).to(torch.int32), "scale": scale}
    return {f"{name}_{part}": one for part, one in parts.items()} | {
        f"{name}_shape": torch.tensor(tensor.shape)
    }


def plain_int8(name, tensor):
    levels, scale = in_rows(tensor, 127)
    return {name: levels.round().to(torch.int8), f"{name}_scale": scale}


def float8_in_rows(name, tensor):
    levels, scale = in_rows(tensor, 448)
    return {name: levels.to(torch.float8_e4m3fn), f"{name}_scale": scale}


def float8_in_blocks(name, tensor, size=128):
    rows, columns = tensor.shape
    blocks = tensor.new_zeros(-(-rows // size) * size, -(-columns // size) * size)
    blocks[:rows, :columns] = tensor
    blocks = blocks.view(-(-rows // size), size, -(-columns // size), size)
    scale = blocks.abs().amax((1, 3)) / 448
    whole = (blocks / scale[:, None, :, None]).flatten(2).flatten(0, 1)[:rows, :columns]
    levels = whole.contiguous().to(torch.float8_e4m3fn)
    return {name: levels, f"{name}_scale_inv": scale}


def compressed(form, bits, kind="int", **more):
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": "channel"} | more
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
FORMATS = {  # how weights are written, what config.json says of them, largest relative error
    "packed int8": (packed_int8, compressed("pack-quantized", 8), 0.02),
    "packed int4": (
        packed_int4, compressed("pack-quantized", 4, strategy="group", group_size=32), 0.2
    ),
    "int8": (plain_int8, compressed("int-quantized", 8), 0.02),
    "float8": (float8_in_rows, compressed("float-quantized", 8, "float"), 0.05),
    "fp8": (float8_in_blocks, FP8, 0.05),
}  # fmt: skip


def quantised_by_hand(source, folder, form="packed int8"):
    """A checkpoint as one of the libraries publishes it; its projections are quantised."""
    folder.mkdir()
    write, settings, _ = FORMATS[form]
    packed = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        fused = "query_key_value" in name
        packed |= write(name, tensor) if "proj.weight" in name or fused else {name: tensor}
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": settings}))
    return folder


@pytest.mark.parametrize(
    "form", ["fp8", *(pytest.param(f, marks=pytest.mark.slow) for f in FORMATS if f != "fp8")]
)
def test_published_formats_load_and_are_told_with_the_memory_that_they_take(
    form, folder, exact, tmp_path
):
    method = FORMATS[form][1]["quant_method"]
    pytest.importorskip(quantization.PUBLISHED[method])
    published = quantised_by_hand(folder, tmp_path / "published", form)
    loaded = load(published)
    assert is_near(logits(loaded), exact, FORMATS[form][2])
    assert loaded.description.quantization == method
    taken = bytes_of(*loaded.denoiser.model.parameters())
    report = doctor.examine({"checkpoint": str(published), "device": "cpu"})
    assert report.healthy and report.facts["quantised by"] == method
    assert report.facts["memory for weights"].startswith(f"{doctor._gib(taken)} needed")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["packed int4", "float8", "fp8"])
def test_published_formats_load_into_mixtures_of_experts(form, tmp_path, monkeypatch):
    pytest.importorskip("compressed_tensors")
    wide = WIDE | {"moe_intermediate_size": 128}
    monkeypatch.setitem(sizes.TINY, "rnd1", sizes.TINY["rnd1"] | wide)
    plain = sizes.write_tiny("rnd1", tmp_path / "plain")
    published = quantised_by_hand(plain, tmp_path / "published", form)
    assert is_near(logits(load(published)), logits(load(plain)), FORMATS[form][2])


@pytest.mark.slow
def test_tensors_that_transformers_cannot_convert_are_said_to_be_so(tmp_path):
    pytest.importorskip("compressed_tensors")
    plain = sizes.write_tiny("rnd1", tmp_path / "plain")
    published = quantised_by_hand(plain, tmp_path / "published", "int8")
    message = r"published cannot be loaded: .*convert its tensors \(quantised: compressed-tensors"
    with pytest.raises(CheckpointError, match=message):
        load(published)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bitsandbytes", "torchao"])
def test_what_transformers_wrote_with_fewer_bits_is_read(kind, folder, exact, tmp_path):
    library = pytest.importorskip(kind)
    from transformers import BitsAndBytesConfig, Qwen2ForCausalLM, TorchAoConfig

    if kind == "bitsandbytes":
        made = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    else:
        made = TorchAoConfig(library.quantization.Int8WeightOnlyConfig())
    plan = blueprint(folder)
    config = make_config(plan.spec, plan.settings)
    options = {"config": config, "quantization_config": made, "device_map": {"": "cpu"}}
    model = Qwen2ForCausalLM.from_pretrained(folder, **options, dtype=torch.float32)
    model.save_pretrained(tmp_path / "written")
    values = json.loads((folder / "config.json").read_text())
    place = tmp_path / "written" / "config.json"
    said = json.loads(place.read_text())["quantization_config"]
    place.write_text(json.dumps(values | {"quantization_config": said}))
    loaded = load(tmp_path / "written")
    assert is_near(logits(loaded), exact, 0.25)
    assert loaded.description.quantization == kind


def test_a_matrix_of_three_is_not_taken_apart_where_it_is_quantised(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    plain = sizes.write_tiny("llada2_2", tmp_path / "plain")
    published = quantised_by_hand(plain, tmp_path / "published", "fp8")
    message = r"\(fp8\), with queries, keys and values in one matrix, .* model.quantization=int8"
    with pytest.raises(CheckpointError, match=message):
        load(published)
    report = doctor.examine({"checkpoint": str(published), "device": "cpu"})
    assert not report.healthy and any("one matrix" in found.text for found in report.findings)


@pytest.mark.slow
def test_a_checkpoint_that_comes_quantised_is_not_quantised_again(folder, tmp_path):
    pytest.importorskip("compressed_tensors")
    published = quantised_by_hand(folder, tmp_path / "published")
    with pytest.raises(ConfigError, match=r"already \(compressed-tensors\); set it to null"):
        load(published, quantization="nf4")
    with pytest.raises(ConfigError, match=r"body=lean cannot be used: the checkpoint is quant"):
        load(published, body="lean")


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_published_method_whose_library_is_missing_is_refused_with_the_fix(
    method, tmp_path, folder
):
    values = json.loads((folder / "config.json").read_text())
    place = tmp_path / "published"
    place.mkdir()
    (place / "model.safetensors").symlink_to(folder / "model.safetensors")
    about = {"quantization_config": {"quant_method": method, "bits": 4, "group_size": 128}}
    (place / "config.json").write_text(json.dumps(values | about))
    with pytest.raises(
        ConfigError, match=rf"quantised by {method} needs the package gptqmodel; pip"
    ):
        load(place)
    report = doctor.examine({"checkpoint": str(place), "device": "cpu"})
    assert any("gptqmodel" in finding.text for finding in report.findings)


WRONG = [
    ("int3", {}, r"model\.quantization must be one of .*int8.*got 'int3'"),
    ("int4", {}, r"int4 runs on GPUs alone .* use nf4 or int8"),
    ("int8", {"body": "lean"}, "body=lean cannot be used: only the stock class is quantised"),
    ("int8", {"adapters": ["a"]}, "cannot be merged into quantised weights"),
]


@pytest.mark.parametrize(("kind", "options", "message"), WRONG)
def test_settings_that_cannot_work_are_refused(
    kind, options, message, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(quantization, "find_spec", lambda name: object())
    if "adapters" in options:
        (tmp_path / "adapter_config.json").write_text("{}")
        options = {"adapters": [str(tmp_path)]}
    with pytest.raises(ConfigError, match=message):
        load(folder, quantization=kind, **options)


@pytest.mark.parametrize(("kind", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_missing_library_is_named_with_the_fix(kind, package, folder, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=rf'needs the package {package}; .*"dllm_decode\[quant\]"'
    ):
        load(folder, quantization=kind)


class Gpu(Placement):
    """A placement that says it is a GPU."""

    device = torch.device("cuda")


def test_four_bits_on_a_gpu_are_made_by_torchao_in_bfloat16(monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: object())
    require_quantization("int4", None, Gpu("bfloat16"))
    with pytest.raises(ConfigError, match=r"needs model\.dtype=bfloat16, got float16"):
        require_quantization("int4", None, Gpu("float16"))
    pytest.importorskip("torchao")
    made = experts.for_transformers("int4", torch.bfloat16).quant_type
    assert made.group_size == quantization.INT4_GROUP
    assert made.int4_packing_format == "tile_packed_to_4d"


def bytes_of(*tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


MIXTURES = [
    ("rnd1", "int8", "torchao", 0.02),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("rnd1", "nf4", "bitsandbytes", 0.25),
            ("sdar_moe", "int8", "torchao", 0.02),
            ("llada2_2", "int8", "torchao", 0.02),  # with queries, keys and values in one tensor
            ("llada2_2", "nf4", "bitsandbytes", 0.25),
        )
    ),
]


@pytest.mark.parametrize(("family", "kind", "package", "most"), MIXTURES)
def test_the_experts_of_a_mixture_are_packed_and_counted(
    family, kind, package, most, tmp_path, monkeypatch, caplog
):
    pytest.importorskip(package)
    wide = WIDE | {"moe_intermediate_size": 64}
    monkeypatch.setitem(sizes.TINY, family, sizes.TINY[family] | wide)
    place = sizes.write_tiny(family, tmp_path / family)
    exact = logits(load(place))
    loaded = load(place, quantization=kind)
    found = logits(loaded)
    assert is_near(found, exact, most) and not torch.equal(found, exact)
    assert caplog.text.count("keeps the experts packed") == 1
    model = loaded.denoiser.model
    assert model.config._experts_implementation == "grouped_mm"
    packed = [
        (module.parametrizations[name][0], module.parametrizations[name].original, name)
        for module in model.modules()
        if type(module).__name__.startswith("Parametrized")
        for name in ("gate_up_proj", "down_proj")
    ]
    layers = model.config.num_hidden_layers - getattr(model.config, "first_k_dense_replace", 0)
    assert len(packed) == 2 * layers
    numbers = sum(packing.shape.numel() for packing, *_ in packed)
    per_number = {"int8": 1 + 4 / 64, "nf4": 0.5 + 4 / 64}[kind]
    taken = [bytes_of(original) for _, original, _ in packed]
    if kind == "int8":
        taken += [bytes_of(packing.scale) for packing, *_ in packed]
    else:
        taken += [bytes_of(state.absmax) for packing, *_ in packed for state in packing.states]
    assert sum(taken) <= per_number * numbers
    told = memory_by_kind(build_on_meta(blueprint(place)))
    assert told[kind] < told["bfloat16"] + 4 * numbers // layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("kind", "most"),
    [("int8", 0.012), ("int4", 0.12), pytest.param("nf4", 0.12, marks=pytest.mark.slow)],
)
def test_what_is_unpacked_is_near_what_was_packed(kind, most, dtype, monkeypatch):
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    weight = torch.randn(3, 5, 256).to(dtype)
    weight[1, 2] = 0  # a row of zeros stays one
    whole = torch.nn.Module()
    experts.pack(whole, "gate_up_proj", weight, kind)
    found = whole.gate_up_proj
    assert found.dtype == dtype and found.shape == weight.shape
    assert is_near(found.float(), weight.float(), most) and not found[1, 2].any()
    monkeypatch.setattr(experts, "_LARGEST", 5 * 256)  # as experts of more than 2^30 numbers
    parts = torch.nn.Module()
    experts.pack(parts, "gate_up_proj", weight, kind)
    assert torch.equal(parts.gate_up_proj, found)
    assert whole.parametrizations.gate_up_proj.original.numel() <= weight.numel()


def test_the_doctor_tells_for_each_kind_whether_it_fits(folder, monkeypatch):
    told = memory_by_kind(build_on_meta(blueprint(folder)))
    monkeypatch.setattr(doctor, "free_memory", lambda place: told["bfloat16"] / 0.95)
    report = doctor.examine({"checkpoint": str(folder), "device": "cpu", "dtype": "float32"})
    verdicts = {kind: report.facts[f"memory as {kind}"].rpartition(": ")[2] for kind in told}
    assert verdicts["float32"] == "will not fit" and verdicts["bfloat16"] == "tight"
    assert verdicts["nf4"] == "fits"
    assert any("model.quantization" in finding.fix for finding in report.findings)
    assert str(Verdict(1, float("inf"))) == "fits"


@pytest.mark.slow
def test_broken_settings_of_a_published_method_are_the_checkpoint_s_fault(folder, tmp_path):
    pytest.importorskip("compressed_tensors")
    published = quantised_by_hand(folder, tmp_path / "published")
    values = json.loads((published / "config.json").read_text())
    values["quantization_config"]["config_groups"] = 3
    (published / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"published cannot be loaded"):
        load(published)


def test_plain_models_load_no_library_of_quantisation():
    assert "dllm_decode.models.quantization" in sys.modules
    source = Path(quantization.__file__).read_text()
    assert not [
        line for line in source.splitlines() if line.startswith(("import torchao", "from torchao"))
    ]


def test_a_library_that_transformers_imports_by_itself_is_not_heard():
    logger = logging.getLogger("torchao")
    before = logger.level
    with transformers_output(progress=False):
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == before
