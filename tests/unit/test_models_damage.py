"""Damaged and hostile checkpoints: every outcome is an error that names the file, in bounded time.

The damage is drawn by kind, not by case: every key of every family gets every wrong type, every
file of a checkpoint gets every content that is no such file.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import published_configs as sizes
import pytest
import torch
from safetensors.torch import load_file, save_file

from dllm_decode.decoding.types import Vocab
from dllm_decode.errors import CheckpointError, ConfigError, DllmDecodeError
from dllm_decode.models import doctor, load_model
from dllm_decode.models.acceptance import AcceptanceFilter
from dllm_decode.models.blueprint import (
    Blueprint,
    blueprint,
    build_on_meta,
    check_sizes,
    special_ids,
)
from dllm_decode.models.files import stored_tensors
from dllm_decode.models.fingerprint import fingerprint
from dllm_decode.models.quantization import published_method
from dllm_decode.models.spec import Published, spec_of
from dllm_decode.models.text import load_tokenizer, vocabulary

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"
BUNDLED = Path(load_model.__code__.co_filename).parent / "assets" / "llada-tiny"
DEEP = b"[" * 100_000
SECONDS = 5.0  # what looking at a folder of this size may take at most; it takes milliseconds

WRONG = [
    "x", "", "1", [], [1], ["x"], {}, {"a": 1}, True, False, -1, 0, 1.5, 2**62, 10**400,
    float("nan"), float("inf"), -float("inf"), [[[]]], "\ud800",
]  # fmt: skip
CONFIGS = {
    "llada": sizes.LLADA_8B,
    "llada_moe": sizes.LLADA_MOE,
    "llada2": sizes.LLADA2_MINI,
    "dream": sizes.DREAM_7B,
    **{
        name: sizes.TINY[name]
        for name in ("illada", "sdar", "sdar_moe", "fast_dllm", "rnd1", "wedlm", "open_dcoder")
    },
}


def examined(folder: Path) -> None:
    """Everything that is done with a folder before its weights are read."""
    plan = blueprint(folder)
    tensors = stored_tensors(folder)
    check_sizes(plan, tensors)
    special_ids(plan, mask_id=0, eot_ids=(1,))
    build_on_meta(plan)
    fingerprint(folder)


def refused_or_fine(action, *names: str) -> str:
    """The message of an error of our own that names all `names`, "" where all went well."""
    start = time.process_time()
    try:
        action()
    except (CheckpointError, ConfigError) as error:
        assert all(name in str(error) for name in names), str(error)
        assert len(str(error)) < 2000
        return str(error)
    finally:
        assert time.process_time() - start < SECONDS
    return ""


@pytest.fixture
def llada(tmp_path):
    return Path(shutil.copytree(GOLDEN / "llada", tmp_path / "llada"))


@pytest.fixture
def sharded(tmp_path):
    return Path(shutil.copytree(GOLDEN / "lladamoe", tmp_path / "lladamoe"))


# config.json.


@pytest.mark.parametrize("family", CONFIGS)
def test_every_key_of_config_json_with_every_wrong_value_is_used_or_refused_by_name(family):
    values = CONFIGS[family] | {"rope_parameters": None, "layer_types": None}
    named = 0

    def read(given):
        spec = spec_of(given, "F/config.json")
        published_method(given, "F/config.json")
        published = Published(given, frozenset(), "F/config.json")
        settings = spec.translate(published)
        published.finish()
        plan = Blueprint(Path("F"), spec, published, settings, load_tokenizer(Path("F")))
        spec.block_length(published)
        special_ids(plan, mask_id=0, eot_ids=(1,))
        published.token("mask_token_id", 7), published.tokens("eos_token_id", 7)

    for key in values:
        for wrong in WRONG:
            message = refused_or_fine(lambda: read(values | {key: wrong}), "config.json")  # noqa: B023
            named += key in message
    assert named > len(values) * len(WRONG) / 3


@pytest.mark.slow
@pytest.mark.one_in(4)
@pytest.mark.parametrize("family", ["llada", "lladamoe", "llada2", "dream"])
def test_sizes_that_the_files_do_not_hold_are_refused_before_a_model_is_built(family, tmp_path):
    folder = Path(shutil.copytree(GOLDEN / family, tmp_path / "copy"))
    values = json.loads((folder / "config.json").read_text())
    examined(folder)  # imports take their time once
    huge = []
    for key in values:
        for wrong in (0, 2**62):
            (folder / "config.json").write_text(json.dumps(values | {key: wrong}))
            if not refused_or_fine(lambda: examined(folder), str(folder)) and wrong:
                huge.append(key)
    assert {"max_sequence_length", "max_position_embeddings"} & {*huge}  # takes no memory
    unused = {"max_window_layers"}
    assert not {key for key in huge if "size" in key or "layers" in key or "heads" in key} - unused


ROPES = [
    {"rope_parameters": wrong} for wrong in (3, "x", [], [1], {"rope_theta": "x"}, {"factor": 2.0})
] + [
    {"rope_parameters": {"rope_theta": 2.0, "rope_type": "yarn"}},
    {"rope_parameters": {"rope_theta": -1.0}},
    {"rope_parameters": {"rope_theta": float("nan")}},
    {"rope_parameters": {"full_attention": 3}},
    {"rope_parameters": {"sliding_attention": {"rope_theta": 2.0}}},
    {"rope_parameters": {"rope_theta": 2.0}},  # another one than the key of its own
    {"rope_scaling": {"type": "linear", "factor": 2}},
    {"layer_types": ["sliding_attention", "full_attention"]},
    {"layer_types": ["full_attention"]},
    {"layer_types": "full_attention"},
]


@pytest.mark.parametrize("change", ROPES, ids=str)
@pytest.mark.parametrize("family", ["llada", "dream", "llada2", "lladamoe"])
def test_positions_and_layers_that_are_not_implemented_are_refused_by_key(family, change):
    values = json.loads((GOLDEN / family / "config.json").read_text()) | change
    published = Published(values, frozenset(), "F/config.json")
    with pytest.raises(CheckpointError, match=rf"F/config.json .*{next(iter(change))}"):
        spec_of(values).translate(published)


JUNK = {
    "empty": b"",
    "not JSON": b"{",
    "cut off": b'{"architectures": ["LLaDAModelLM"',
    "list": b"[]",
    "text": b'"x"',
    "number": b"3",
    "null": b"null",
    "deep": DEEP,
    "deep object": b'{"a":' * 100_000,
    "twice": b'{"a": 1, "a": 2}',
    "binary": bytes(range(256)) * 4,
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "zeros": b"\0" * 64,
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
}


@pytest.mark.one_in(30)
@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors.index.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "adapter_config.json",
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused_by_name(name, junk, llada, sharded):
    folder = sharded if "index" in name else llada
    if "token" in name:
        for file in BUNDLED.glob("*token*.json"):
            shutil.copy(file, folder)
    (folder / name).write_bytes(junk)

    def load():
        load_model(str(folder), device="cpu", mask_id=20)

    message = refused_or_fine(load, str(folder))
    if not name.startswith(("generation", "tokenizer", "special")):  # not read, or by others
        assert name in message
    assert refused_or_fine(lambda: doctor.examine({"checkpoint": str(folder)})) == ""


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_in_the_place_of_a_file_is_refused(name, llada):
    (llada / name).unlink(missing_ok=True)
    (llada / name).mkdir()
    message = refused_or_fine(lambda: load_model(str(llada), device="cpu"), str(llada))
    assert bool(message) == (name != "tokenizer.json")


def test_a_byte_order_mark_does_no_harm(llada):
    config = llada / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert load_model(str(llada), device="cpu").denoiser.vocab.mask_id == 252


# Headers.


def header(folder: Path, change) -> None:
    """Rewrite the header of the weights."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    values = json.loads(content[8 : 8 + length])
    values = change(values) or values
    text = json.dumps(values).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


ENTRIES = [
    None, 3, "x", [], {}, {"dtype": "F32"}, {"dtype": "F32", "shape": [2]},
    {"dtype": 3, "shape": [2], "data_offsets": [0, 8]},
    {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": [10**400], "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": [1] * 10_000, "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": [2], "data_offsets": None},
    {"dtype": "F32", "shape": [2], "data_offsets": [0]},
    {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
    {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
    {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]},
    {"dtype": "F32", "shape": [2], "data_offsets": {"0": 8}},
    {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**62]},
    {"dtype": "F32", "shape": [2], "data_offsets": [0.0, 8.0]},
]  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry)[:40])
def test_a_header_with_a_damaged_entry_is_refused_with_file_and_tensor(entry, llada):
    header(llada, lambda values: {**values, "extra": entry})
    for action in (lambda: stored_tensors(llada), lambda: load_model(str(llada), device="cpu")):
        message = refused_or_fine(action, str(llada / "model.safetensors"))
        assert "'extra'" in message or "truncated" in message
    with pytest.raises(CheckpointError, match=r"model.safetensors"):
        fingerprint(llada)


@pytest.mark.parametrize("values", [[], 3, "x", None, [{}]], ids=str)
def test_a_header_that_is_no_object_is_refused(values, llada):
    text = json.dumps(values).encode()
    (llada / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match=r"model.safetensors is .*its header is no JSON obj"):
        stored_tensors(llada)


@pytest.mark.parametrize("notes", [["format"], {"format": 3}, "pt", 3], ids=str)
def test_a_header_whose_notes_are_no_texts_is_refused_by_key(notes, llada):
    header(llada, lambda values: {**values, "__metadata__": notes})
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged: '__metadata__' must"):
        stored_tensors(llada)


def test_tensors_that_overlap_or_leave_gaps_are_refused(llada):
    def move(values):
        name = max(
            (n for n in values if n != "__metadata__"), key=lambda n: values[n]["data_offsets"][0]
        )
        size = values[name]["data_offsets"][1] - values[name]["data_offsets"][0]
        values[name]["data_offsets"] = [0, size]

    header(llada, move)
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged: tensor '.*' begins"):
        stored_tensors(llada)


def test_a_header_as_long_as_the_format_forbids_is_not_read(llada):
    with (llada / "model.safetensors").open("r+b") as file:
        file.write((2**40).to_bytes(8, "little"))
        file.truncate(2**41)  # a sparse file: no disk is used
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        stored_tensors(llada)


def test_weights_of_whole_numbers_are_refused_by_name(llada):
    tensors = load_file(llada / "model.safetensors")
    name = "model.transformer.ln_f.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, llada / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"stored as I8 is {name}"):
        load_model(str(llada), device="cpu")


# The index.

MAPS = [None, 3, "x", [], {}, [["a", "b"]], {"a": 3}, {"a": None}, {"a": []}, {"a": {}},
        {"a": ""}, {"a": "config.json"}, {"a": "x" * 5000}]  # fmt: skip
OUTSIDE = [
    "../outside.safetensors", "sub/../../outside.safetensors", "/etc/outside.safetensors",
    "..\\outside.safetensors", "C:\\outside.safetensors", "C:outside.safetensors",
    "\\\\host\\share\\outside.safetensors", "\\outside.safetensors", "a\0.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("shards", MAPS, ids=lambda value: str(value)[:30])
def test_an_index_that_is_no_mapping_to_files_is_refused(shards, sharded):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    message = refused_or_fine(lambda: load_model(str(sharded), mask_id=20), "index.json")
    assert "weight_map" in message


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_cannot_name_a_file_outside_of_its_folder(name, sharded):
    shutil.copy(GOLDEN / "llada" / "model.safetensors", sharded.parent / "outside.safetensors")
    index = sharded / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(values))
    for action in (
        lambda: stored_tensors(sharded),
        lambda: load_model(str(sharded), mask_id=20, device="cpu"),
    ):
        assert "outside of the folder" in refused_or_fine(action, "index.json")


def test_the_links_of_the_hub_cache_and_subfolders_are_followed(tmp_path, sharded):
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True), snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(sharded.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    assert load_model(str(snapshot), mask_id=197, device="cpu").description.family == "LLaDA-MoE"
    index = json.loads((snapshot / "model.safetensors.index.json").read_text())
    index["weight_map"] = {k: f"sub/{v}" for k, v in index["weight_map"].items()}
    folder = tmp_path / "moved"
    (folder / "sub").mkdir(parents=True)
    for file in snapshot.iterdir():
        shutil.copy(file, folder / "sub" if file.suffix == ".safetensors" else folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(stored_tensors(folder)) == len(index["weight_map"])


# What is there and is not what it seems.


@pytest.mark.parametrize(
    ("key", "method"),
    [("quantization_config", "hqq"), ("compression_config", "gptq"), ("quantization", "awq")],
)
@pytest.mark.parametrize("ignored", [(), ("quantization_config", "quantization")])
def test_unknown_quantised_weights_are_refused_and_cannot_be_waived(key, method, ignored, llada):
    config = json.loads((llada / "config.json").read_text()) | {key: {"quant_method": method}}
    (llada / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"weights are quantised .*{method}") as caught:
        load_model(str(llada), device="cpu", ignore_settings=ignored)
    assert "ignore_settings" not in str(caught.value)


def test_an_adapter_alone_or_beside_weights_is_refused_by_name(llada):
    about = {"base_model_name_or_path": "/no/LLaDA-8B-Instruct", "peft_type": "LORA"}
    (llada / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=r"adapter \(adapter_config.json\) beside its weigh"):
        load_model(str(llada), device="cpu")
    findings = doctor.examine({"checkpoint": str(llada), "device": "cpu"}).findings
    assert any("adapter_config.json" in finding.text for finding in findings)
    (llada / "config.json").unlink(), (llada / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"an adapter for the model '/no/LLaDA-8B-In"):
        load_model(str(llada), device="cpu")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "m.gguf"])
def test_other_weight_formats_are_named_as_not_read(name, llada):
    (llada / "model.safetensors").rename(llada / name)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read here .*only safetensors"):
        load_model(str(llada), device="cpu")


def test_an_empty_tokenizer_is_refused(llada):
    for file in BUNDLED.glob("*token*.json"):
        shutil.copy(file, llada)
    values = json.loads((llada / "tokenizer.json").read_text())
    values["added_tokens"], values["model"]["vocab"], values["model"]["merges"] = [], {}, []
    (llada / "tokenizer.json").write_text(json.dumps(values))
    (llada / "tokenizer_config.json").unlink()
    (llada / "special_tokens_map.json").unlink()
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* knows no tokens"):
        load_model(str(llada), device="cpu")


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("junk", ["[]", "{}", "null", '{"model": 3}', '{"a"'])
def test_a_tokenizer_that_is_none_is_refused_with_its_file(junk, lean, llada):
    for file in BUNDLED.glob("*token*.json"):
        shutil.copy(file, llada)
    (llada / "tokenizer.json").write_text(junk)
    with pytest.raises(CheckpointError, match=r"/tokenizer\.json (must|has|cannot)"):
        load_tokenizer(llada, lean=lean)


def test_further_special_tokens_that_are_no_list_are_refused_with_or_without_transformers(llada):
    for file in BUNDLED.glob("*token*.json"):
        shutil.copy(file, llada)
    settings = json.loads((llada / "tokenizer_config.json").read_text())
    settings["additional_special_tokens"] = 3
    (llada / "tokenizer_config.json").write_text(json.dumps(settings))
    for lean in (False, True):
        with pytest.raises(CheckpointError, match="special_tokens must be a list"):
            load_tokenizer(llada, lean=lean)


@pytest.mark.parametrize("junk", ["[]", "null", "3"])
def test_generation_settings_that_are_no_object_are_refused_with_their_file(junk, llada):
    (llada / "generation_config.json").write_text(junk)
    with pytest.raises(CheckpointError, match=r"generation_config\.json must hold one JSON object"):
        load_model(str(llada), device="cpu")


BROKEN = [
    None, 3, "x", [], [1], {}, {"a": 1}, True, -1, 2**62, float("nan"), [[[]]], {"content": 3},
    {"__type": "AddedToken", "content": 5}, [{"name": 1}], {"0": 3}, {"x": {"content": "y"}},
]  # fmt: skip
PARTS = {
    "tokenizer_config.json": (
        "bos_token", "eos_token", "pad_token", "mask_token", "additional_special_tokens",
        "extra_special_tokens", "added_tokens_decoder", "tokenizer_class", "model_max_length",
        "chat_template", "auto_map",
    ),
    "tokenizer.json": ("added_tokens", "model", "pre_tokenizer", "decoder", "post_processor"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_a_tokenizer_with_a_wrong_value_anywhere_is_read_or_refused(name, tmp_path):
    for file in BUNDLED.glob("*token*.json"):
        shutil.copy(file, tmp_path)
    values = json.loads((tmp_path / name).read_text())
    chat = [{"role": "user", "content": "hi <|eot_id|>"}]

    def read():
        tokenizer = load_tokenizer(tmp_path)
        vocabulary(Vocab(676, 1, (0,), tokenizer.pad_id), tokenizer)
        tokenizer.encode(f"a {tokenizer.end_id}"), tokenizer.encode_chat(chat)

    refused = 0
    for key in PARTS[name]:
        for wrong in BROKEN:
            (tmp_path / name).write_text(json.dumps(values | {key: wrong}))
            refused += bool(refused_or_fine(read))
    assert refused > 20


# Filters.


@pytest.fixture
def weights(tmp_path):
    return tmp_path / "filter.safetensors"


def tensors(**changed):
    good = {
        "linear1.weight": torch.zeros(3, 4),
        "linear1.bias": torch.zeros(3),
        "linear2.weight": torch.zeros(4, 3),
        "linear2.bias": torch.zeros(4),
    }
    return good | {name.replace("_", "."): value for name, value in changed.items()}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", sorted(tensors()))
def test_a_filter_with_numbers_that_are_none_is_refused_by_tensor(name, number, weights):
    values = tensors()
    values[name].view(-1)[-1] = number
    save_file(values, weights)
    with pytest.raises(CheckpointError, match=rf"filter.safetensors: {name} holds NaN or inf"):
        AcceptanceFilter.load(weights)


@pytest.mark.parametrize(
    "values",
    [
        {},
        tensors(linear1_weight=torch.zeros(4)),
        tensors(linear1_weight=torch.zeros(0, 4)),
        tensors(linear2_bias=torch.zeros(5)),
        tensors(linear1_weight=torch.zeros(3, 4, dtype=torch.int64)),
        tensors(linear1_bias=torch.zeros(3, dtype=torch.bool)),
    ],
    ids=lambda value: str(len(value)),
)
def test_a_filter_of_other_tensors_is_refused(values, weights):
    save_file(values, weights)
    with pytest.raises(CheckpointError, match=r"filter.safetensors"):
        AcceptanceFilter.load(weights)


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_a_filter_that_is_no_safetensors_file_is_refused(junk, weights):
    weights.write_bytes(junk)
    with pytest.raises(DllmDecodeError, match=r"filter.safetensors"):
        AcceptanceFilter.load(weights)
