"""Tokenizers: ids as lists, chat templates of every kind, and no questions asked."""

import builtins
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace

from dllm_decode.errors import CheckpointError, ConfigError
from dllm_decode.models import load_model
from dllm_decode.models.spec import LLADA_HEADER
from dllm_decode.models.text import load_tokenizer

LLADA = Path(__file__).parents[1] / "golden" / "checkpoints" / "llada"
SPECIAL = [
    "<|mdm_mask|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
]
WORDS = ["[UNK]", "user", "assistant", "Hello", "you", "there", "\n\n"]
# Like LLaDA's: the assistant header is appended whatever add_generation_prompt says.
ALWAYS = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
ON_REQUEST = (
    ALWAYS.replace(
        "{{ '<|start_header_id|>ass", "{% if add_generation_prompt %}{{ '<|start_header_id|>ass"
    )
    + "{% endif %}"
)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder with a word tokenizer that names remote code."""

    def write(template=ALWAYS):
        words = {word: number for number, word in enumerate(WORDS + SPECIAL)}
        words["\n\n"] = words.pop("\n\n")
        backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
        backend.pre_tokenizer = Whitespace()
        backend.add_special_tokens(SPECIAL)
        backend.save(str(tmp_path / "tokenizer.json"))
        config = {
            "tokenizer_class": "MadeUpTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_made_up.MadeUpTokenizer", None]},
            "eos_token": "<|endoftext|>",
            "chat_template": template,
        }
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        (tmp_path / "tokenization_made_up.py").write_text("raise SystemExit('remote code ran')\n")
        shutil.copy(LLADA / "config.json", tmp_path)
        return tmp_path

    return write


TURNS = [
    {"role": "user", "content": "Hello you"},
    {"role": "assistant", "content": "Hello there"},
    {"role": "user", "content": "you there"},
]


def test_a_tokenizer_with_remote_code_is_read_without_running_it_or_asking(folder, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda *a: pytest.fail("asked on stdin"))
    tokenizer = load_tokenizer(folder())
    assert tokenizer.encode("Hello there") == [3, 5]
    assert type(tokenizer.encode("Hello")) is list
    assert tokenizer.decode([3, 5, 8]) == "Hello there"
    assert "<|endoftext|>" in tokenizer.decode([3, 5, 8], keep_special=True)
    assert (tokenizer.id_of("<|mdm_mask|>"), tokenizer.id_of("nothing")) == (7, None)
    assert (tokenizer.end_id, tokenizer.size) == (8, 12)


@pytest.mark.parametrize("template", [ALWAYS, ON_REQUEST])
def test_a_conversation_becomes_a_list_of_ids_with_one_open_reply(folder, template):
    tokenizer = load_tokenizer(folder(template), LLADA_HEADER)
    ids = tokenizer.encode_chat(TURNS)
    assert type(ids) is list and all(type(token) is int for token in ids)
    text = tokenizer.decode(ids, keep_special=True)
    assert text.count("<|start_header_id|>") == 4  # three turns and the open reply
    assert ids[-3:] == [10, 2, 11]


@pytest.mark.parametrize("template", [ALWAYS, ON_REQUEST])
def test_a_closed_conversation_has_no_open_reply(folder, template):
    tokenizer = load_tokenizer(folder(template), LLADA_HEADER)
    ids = tokenizer.encode_chat(TURNS[:2], open_reply=False)
    assert ids[-1] == 9  # end of turn
    assert tokenizer.decode(ids, keep_special=True).count("<|start_header_id|>") == 2


def test_without_a_chat_template_conversations_are_refused(folder):
    tokenizer = load_tokenizer(folder(template=None))
    assert not tokenizer.has_chat_template
    with pytest.raises(ConfigError, match=r"has no chat template .* give the prompt as text"):
        tokenizer.encode_chat(TURNS)


def test_without_a_tokenizer_text_is_refused(tmp_path):
    tokenizer = load_tokenizer(tmp_path)
    assert not tokenizer.has_chat_template and tokenizer.size is None
    for call in (lambda: tokenizer.encode("a"), lambda: tokenizer.decode([1])):
        with pytest.raises(CheckpointError, match=r"has no tokenizer .* give prompts as token"):
            call()


def test_a_damaged_tokenizer_is_reported(folder):
    path = folder()
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* cannot be read"):
        load_tokenizer(path)


def test_vocab_and_merges_make_a_qwen2_tokenizer(tmp_path):
    backend = Tokenizer(BPE({"H": 0, "e": 1, "He": 2, "Ġ": 3}, [("H", "e")]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "DreamTokenizer", "mask_token": "<|mask|>"})
    )
    tokenizer = load_tokenizer(tmp_path)
    assert type(tokenizer.backend).__name__.startswith("Qwen2")
    assert tokenizer.encode("He") == [2]
    assert tokenizer.id_of("<|mask|>") is not None


def test_ids_come_from_the_tokenizer_where_config_json_has_none(folder):
    path = folder()
    config = json.loads((LLADA / "config.json").read_text())
    del config["mask_token_id"], config["eos_token_id"]
    (path / "config.json").write_text(json.dumps(config))
    shutil.copy(LLADA / "model.safetensors", path)
    vocab = load_model(str(path), device="cpu").denoiser.vocab
    assert (vocab.mask_id, vocab.eot_ids) == (7, (8, 9))


def test_a_saved_checkpoint_keeps_its_tokenizer(folder, tmp_path_factory):
    path = folder()
    config = json.loads((LLADA / "config.json").read_text()) | {"mask_token_id": 7}
    (path / "config.json").write_text(json.dumps(config))
    shutil.copy(LLADA / "model.safetensors", path)
    target = tmp_path_factory.mktemp("saved")
    load_model(str(path), device="cpu").save_pretrained(target)
    assert load_model(str(target), device="cpu").tokenizer.encode_chat(TURNS)
