"""Conversations: every usual form of a message, templates that misbehave, and control tokens."""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dllm_decode import load
from dllm_decode.console.prompts import PromptsError, read_prompts
from dllm_decode.errors import CheckpointError, ConfigError
from dllm_decode.models import doctor, templates
from dllm_decode.models.chat import plain_messages
from dllm_decode.models.locate import ASSETS
from dllm_decode.models.templates import render
from dllm_decode.models.text import CheckpointTokenizer, load_tokenizer

FOLDER = ASSETS / "llada-tiny"
USER = {"role": "user", "content": "Copy: 1 Ada 2 Ben"}
# Qwen's and Llama's way: closed turns, a header on request, a switch for the caller.
HEADERS = (
    "{%- for m in messages -%}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>' + "
    "m.content | trim + '<|eot_id|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{ ' off' }}{%- endif -%}"
    "{%- endif -%}"
)
# LLaDA's way: the header of the reply comes in any case.
ALWAYS = HEADERS.replace("{%- if add_generation_prompt -%}", "").replace(
    "{%- endif -%}{%- endif -%}", "{%- endif -%}"
)


@pytest.fixture(scope="module")
def bundled():
    return load("llada", "threshold", overrides=["model.device=cpu"])


@pytest.fixture(scope="module")
def plain():
    return load_tokenizer(FOLDER)


def with_template(tokenizer, template, **changes):
    """The same tokenizer with another chat template."""
    import copy

    backend = copy.copy(tokenizer.backend)
    backend.chat_template = template
    return replace(tokenizer, backend=backend, **changes)


# Messages.


def test_content_may_be_parts_or_null_and_further_keys_go_to_the_template(plain):
    text = plain.encode_chat([USER])
    parts = [{"type": "text", "text": "Copy:"}, {"type": "text", "text": "1 Ada"}]
    assert plain.encode_chat([{**USER, "content": [{"type": "text", "text": USER["content"]}]}]) \
        == text  # fmt: skip
    assert plain_messages([{"role": "user", "content": parts}])[0]["content"] == "Copy:\n1 Ada"
    assert plain_messages([{"role": "user", "content": ["a", "b"]}])[0]["content"] == "a\nb"
    assert plain_messages([{"role": "assistant", "content": None}])[0]["content"] == ""
    assert "None" not in plain.decode(plain.encode_chat([USER, {**USER, "content": None}]))
    assert plain.encode_chat([{**USER, "name": "Eva", "tool_calls": None}]) == text
    named = with_template(plain, "{{ messages[0].name }}")
    assert named.encode_chat([{**USER, "name": "Eva"}]) == plain.encode("Eva")


WRONG = [
    ("text", "a chat is a list of messages"),
    ([], "a chat is a list of messages"),
    ({"role": "user", "content": "x"}, "a chat is a list of messages"),
    (["x"], "message 0 of the chat must be an object"),
    ([USER, {"role": "user"}], "message 1 of the chat has no content; a chat message has the keys"),
    ([{"content": "x"}], "has the keys role and content"),
    ([{"role": None, "content": "x"}], "message 0 of the chat needs a role"),
    ([{"role": "", "content": "x"}], "message 0 of the chat needs a role"),
    ([{"role": "user", "content": 3}], "content must be a text, a list of text parts or null"),
    ([{"role": "user", "content": {"text": "x"}}], "content must be a text, a list of text parts"),
    ([{"role": "user", "content": [3]}], "this model reads no 'int'"),
    ([{"role": "user", "content": [{"type": "text"}]}], "a part of its content must be"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "reads no 'image_u"),
    ([{"role": "user", "content": "x", "name": object()}], "must hold plain JSON values"),
]


@pytest.mark.parametrize(("messages", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_what_is_no_conversation_is_refused_with_its_place(messages, message, plain):
    with pytest.raises(ConfigError, match=message):
        plain.encode_chat(messages)


def test_a_refused_message_names_its_prompt_and_its_line(bundled, tmp_path):
    with pytest.raises(ConfigError, match="prompt 1: message 0 of the chat needs a role"):
        bundled.generate(["Copy: 1 Ada", [{"role": 3, "content": "x"}]])
    file = tmp_path / "p.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": [7]}]}\n')
    with pytest.raises(PromptsError, match=r"p.jsonl, line 1: messages: message 0 of the chat"):
        read_prompts(str(file))


# The end of a conversation.


@pytest.mark.parametrize("template", [HEADERS, ALWAYS], ids=["on request", "always"])
@pytest.mark.parametrize("begun", ["1 Ada", "1 Ada 2"])
def test_a_last_message_of_the_assistant_is_continued(template, begun, plain):
    tokenizer = with_template(plain, template)
    chat = [USER, {"role": "assistant", "content": begun}]
    header = "<|start_header_id|>assistant<|end_header_id|>"
    ids = tokenizer.encode_chat(chat)
    shown = tokenizer.decode(ids, keep_special=True)
    assert shown.endswith(header + begun) and shown.count(header) == 1
    closed = tokenizer.encode_chat(chat, continue_final=False)
    shown = tokenizer.decode(closed, keep_special=True)
    assert shown.endswith(f"{begun}<|eot_id|>{header}")
    assert tokenizer.encode_chat([USER]) == tokenizer.encode_chat([USER], continue_final=None)


def test_what_was_begun_stands_in_front_of_what_is_decoded(bundled):
    chat = [USER, {"role": "assistant", "content": "1 Ada"}]
    ids = bundled.encode(chat)
    assert ids == (*bundled.encode([USER]), *bundled.model.tokenizer.encode(" 1 Ada"))
    assert bundled.generate([chat], max_new_tokens=32).texts[0]
    closed = bundled.encode(chat, continue_final=False)
    assert closed[: len(ids)] == ids and closed != ids


def test_a_message_that_the_template_does_not_show_cannot_be_continued(plain):
    tokenizer = with_template(plain, "{{ messages[0].content }}")
    with pytest.raises(ConfigError, match="does not show the last message, so it cannot be contin"):
        tokenizer.encode_chat([USER, {"role": "assistant", "content": "x"}])


# Arguments.


@pytest.fixture(scope="module")
def thinking(tmp_path_factory):
    """The bundled model with a template that looks at `enable_thinking`."""
    folder = tmp_path_factory.mktemp("thinking") / "model"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.png", "curves*"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = HEADERS
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_template_arguments_come_from_python_the_configuration_and_prompts_files(
    thinking, tmp_path
):
    words = [f"model.checkpoint={thinking}", "model.device=cpu"]
    usual = load("checkpoint", "threshold", overrides=words)
    quiet = load(
        "checkpoint",
        "threshold",
        overrides=[*words, "model.chat_template_kwargs={enable_thinking: false}"],
    )
    off = (*usual.encode([USER]), *usual.model.tokenizer.encode(" off"))
    assert usual.encode([USER], arguments={"enable_thinking": False}) == off
    assert quiet.encode(USER["content"]) == off
    assert quiet.encode([USER], arguments={"enable_thinking": True}) == usual.encode([USER])
    seen = []
    usual.generate([USER], chat_template_kwargs={"enable_thinking": False}, streamer=Heard(seen))
    assert tuple(seen[0]) == off
    file = tmp_path / "p.jsonl"
    line = {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}}
    file.write_text(json.dumps(line) + "\n")
    (asked,) = read_prompts(str(file))
    assert usual.encode(asked.content, arguments=asked.chat_template_kwargs) == off


class Heard:
    """A streamer that keeps what it is told."""

    def __init__(self, seen):
        self.seen = seen

    def put(self, value):
        self.seen.append(value.tolist())

    def end(self):
        """Nothing."""


def test_arguments_that_are_none_are_refused_and_unread_ones_are_told_once(plain, caplog):
    tokenizer = with_template(plain, HEADERS)
    for name in ("messages", "add_generation_prompt", "continue_final_message"):
        with pytest.raises(ConfigError, match=f"must not hold '{name}'"):
            tokenizer.encode_chat([USER], arguments={name: True})
    with pytest.raises(ConfigError, match="must hold plain JSON values, got object"):
        tokenizer.encode_chat([USER], arguments={"x": object()})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            tokenizer.encode_chat([USER], arguments={"enable_thinkng": False})
    assert caplog.text.count("does not look at enable_thinkng") == 1


@pytest.mark.parametrize(
    "record",
    [{"chat_template_kwargs": 3}, {"chat_template_kwargs": []}, {"continue_final_message": "yes"}],
    ids=str,
)
def test_a_line_with_arguments_of_another_type_is_refused(record, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"messages": [USER], **record}))
    with pytest.raises(PromptsError, match=f"line 1: {next(iter(record))} must be"):
        read_prompts(str(file))


# Control tokens in a text.

WORDS = ["<|mdm_mask|>", "<|eot_id|>", "<|endoftext|>", "<|start_header_id|>", "<|startoftext|>"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("template", [None, HEADERS])
def test_control_tokens_of_the_user_are_text_unless_asked_for(word, template, bundled):
    tokenizer = bundled.model.tokenizer
    tokenizer = tokenizer if template is None else with_template(tokenizer, template)
    number = tokenizer.id_of(word)
    content = f"Copy: 1 Ada {word} 2 Ben{word}"
    for chat in ([{"role": "user", "content": content}], [{"role": f"user{word}", "content": "a"}]):
        ids = tokenizer.encode_chat(chat)
        base = tokenizer.encode_chat([{"role": "user", "content": "Copy: 1 Ada 2 Ben"}])
        assert ids.count(number) == base.count(number)
    ids = tokenizer.encode(content)
    assert number not in ids and tokenizer.decode(ids, keep_special=True) == content
    assert tokenizer.encode(content, control=True).count(number) == 2
    parsing = replace(tokenizer, parse_control=True)
    assert parsing.encode(content).count(number) == 2
    own = tokenizer.encode_chat([USER]).count(number)
    assert parsing.encode_chat([{"role": "user", "content": content}]).count(number) == own + 2
    assert parsing.encode(content, control=False) == ids


def test_a_text_without_control_tokens_has_the_ids_it_always_had(plain):
    for text in ("Copy: 1 Ada 2 Ben", "<|", "<|eot_id|", "a\ufdd0b", "é ✓ 🙂", ""):
        assert plain.encode(text) == plain.backend(text)["input_ids"]


def test_half_a_character_is_refused_with_its_place(plain):
    for action in (
        lambda: plain.encode("ab\ud800"),
        lambda: plain.encode("<|eot_id|>\udfff"),
        lambda: plain.encode_chat([{"role": "user", "content": "ab\ud800"}]),
    ):
        with pytest.raises(ConfigError, match=r"is half a surrogate pair \(U\+D[8F]"):
            action()


def test_words_that_only_join_when_a_template_cuts_stay_text(plain):
    tokenizer = with_template(plain, "{{ messages[0].content.replace('#', '') }}")
    number = tokenizer.id_of("<|eot_id|>")
    tokenizer = with_template(tokenizer, "{{ messages[0].content.split('<|eot_id|>') | join }}")
    ids = tokenizer.encode_chat([{"role": "user", "content": "<|eot<|eot_id|>_id|>"}])
    assert number not in ids


def test_the_setting_of_the_model_turns_control_tokens_on():
    decoder = load("llada", overrides=["model.device=cpu", "model.parse_control_tokens=true"])
    mask = decoder.model.denoiser.vocab.mask_id
    assert mask in decoder.encode("Copy: 1 <|mdm_mask|>")
    assert mask in decoder.encode("Copy: 1 <|mdm_mask|>", chat=False)


def test_a_beginning_that_tokenizer_and_text_both_write_is_there_once(plain):
    import copy

    from tokenizers.processors import TemplateProcessing

    backend = copy.deepcopy(plain.backend)
    backend.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|startoftext|> $A", special_tokens=[("<|startoftext|>", 2)]
    )
    begins = CheckpointTokenizer(backend, FOLDER)
    assert begins.encode("Ada") == [2, *plain.encode("Ada")]
    assert begins.encode("Ada", framed=False) == plain.encode("Ada")
    assert begins.encode("<|startoftext|>Ada", control=True) == begins.encode("Ada")
    assert begins.encode("<|eot_id|>")[0] == 2
    chat = with_template(begins, "<|startoftext|>{{ messages[0].content }}")
    assert chat.encode_chat([{"role": "user", "content": "Ada"}]) == begins.encode("Ada")


# Templates that misbehave.


def tried(tokenizer):
    tokenizer.encode_chat([USER])


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("{% if %}", CheckpointError, "cannot be read: line 1: Expected an expression"),
        ("{% for m in messages %}", CheckpointError, "cannot be read: line 1"),
        ("\n\n{{ x }", CheckpointError, "cannot be read: line 3"),
        ("{% nothing %}", CheckpointError, "cannot be read: line 1"),
        ("{{ raise_exception('only users') }}", ConfigError, "refuses these messages: only users"),
        ("{{ 1 / 0 }}", CheckpointError, "does not work with these messages: ZeroDivisionError"),
        ("{{ nothing.at.all }}", CheckpointError, "these messages: UndefinedError: 'nothing' is"),
        ("{% include 'x' %}", CheckpointError, "does not work with these messages"),
        ("{{ ''.__class__.__mro__ }}", CheckpointError, "messages: SecurityError"),
        ("{{ messages.append(1) }}", CheckpointError, "messages: SecurityError"),
        ("{% set n = namespace(_x=1) %}", CheckpointError, "messages: SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('x') }}", CheckpointError, "does not work"),
    ],
)
def test_a_template_that_fails_is_reported_with_its_file(template, error, message, plain):
    with pytest.raises(error, match=r"tokenizer_config.json .*" + message):
        tried(with_template(plain, template))


@pytest.mark.parametrize(
    "template",
    [
        "{{ '{0.__class__}'.format(1) }}",
        "{{ messages.__class__ }}",
        "{{ ('' | attr('__class__')) }}",
        "{{ namespace.__init__ }}",
        "{{ dict.__class__ }}",
        "{{ (1).real.__class__ }}",
        "{{ messages | map(attribute='__class__') | join }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
    ],
)
def test_nothing_of_python_shows_through_a_template(template):
    shown = render(template, {"messages": [USER]})
    assert "class" not in shown and "built-in" not in shown


LARGE = "{% set n = namespace(s='x') %}{% for i in range(99) %}"
ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for m in messages recursive %}{{ loop([m]) }}{% endfor %}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ 10 ** 10 * 'x' }}",
    "{{ [1] * 10 ** 10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ 'x' | center(10 ** 10) }}",
    "{{ 'x'.ljust(10 ** 10) }}",
    "{{ 'x' | indent(10 ** 10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (10 ** 10, 1) }}",
    "{{ '{:10000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=10 ** 10) }}",
    "{{ '%010000000000d' | format(1) }}",
    "{{ [1] | batch(10 ** 10, 1) | list }}",
    "{{ messages | tojson(indent=10 ** 10) }}",
    "{{ range(10 ** 10) | list }}",
    "{{ ('x' * 10 ** 6).replace('', 'x' * 10 ** 6) }}",
    "{{ ('x' * 10 ** 6) | replace('', 'x' * 10 ** 6) }}",
    "{{ ('x' * 10 ** 6) | list | join('x' * 10 ** 6) }}",
    LARGE + "{% set n.s = n.s ~ n.s %}{% endfor %}",
    LARGE + "{% set n.s = n.s + n.s %}{% endfor %}",
    LARGE + "{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
    LARGE.replace("'x'", "[1]") + "{% set n.s = n.s + n.s %}{% endfor %}",
    LARGE.replace("'x'", "3") + "{% set n.s = n.s * n.s %}{% endfor %}",
    "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "{#" + "x" * 2**21 + "#}",
]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("template", ENDLESS, ids=lambda text: text[:50])
def test_a_template_that_would_not_end_is_stopped(template, plain, monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0.1)
    start = time.thread_time()
    with pytest.raises(CheckpointError, match=r"chat template in .*tokenizer_config.json"):
        tried(with_template(plain, template))
    assert time.thread_time() - start < 3


def test_a_long_conversation_is_no_overrun(plain):
    chat = [{"role": "user", "content": "word " * 2000}] * 200
    assert len(render(HEADERS, {"messages": chat, "add_generation_prompt": True})) > 2_000_000


def test_the_language_of_templates_is_that_of_transformers():
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (
        "{%- set n = namespace(seen=0) -%}\n  {% for m in messages %}\n"
        "    {%- if loop.first %}{% continue %}{% endif %}\n"
        "    {% generation %}{{ m['content'] | trim }}{% endgeneration %}\n"
        "    {%- set n.seen = n.seen + 1 %}\n  {% endfor %}\n"
        "{{ n.seen }}{{ messages | tojson(indent=1) }}{{ strftime_now('%Y') }}"
        "{{ dict(a='<é>') | tojson }}{{ messages[::-1][0].content[1:] }}{{ x ~ 3 }}"
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    )
    chat = [{"role": "user", "content": " a<b "}, {"role": "assistant", "content": "c é "}]
    (expected,), _ = render_jinja_template([chat], chat_template=source, x="y")
    assert render(source, {"messages": chat, "x": "y", "add_generation_prompt": False}) == expected


def test_one_of_several_templates_is_chosen_by_name(plain):
    several = {"rag": "{{ 'rag' }}", "tool_use": "{{ 'tool' }}"}
    tokenizer = with_template(plain, several)
    with pytest.raises(ConfigError, match=r"'default' is not in .*it has 'rag', 'tool_use'"):
        tokenizer.encode_chat([USER])
    with pytest.raises(ConfigError, match=r"'other' is not in .*it has 'rag', 'tool_use'"):
        tokenizer.encode_chat([USER], arguments={"chat_template": "other"})
    chosen = tokenizer.encode_chat([USER], arguments={"chat_template": "rag"})
    assert chosen == plain.encode("rag")
    usual = with_template(plain, several | {"default": "{{ 'usual' }}"})
    assert usual.encode_chat([USER]) == plain.encode("usual")


@pytest.mark.parametrize("template", [3, ["x"], {"default": 3}, True], ids=str)
def test_a_template_that_is_no_text_is_refused(template, plain):
    with pytest.raises(ConfigError, match=r"chat template 'default' is not in .*tokenizer_config"):
        tried(with_template(plain, template))


def test_the_doctor_reads_the_template(thinking, tmp_path):
    folder = Path(shutil.copytree(thinking, tmp_path / "broken"))
    (folder / "chat_template.jinja").write_text("{% if %}")
    report = doctor.examine({"checkpoint": str(folder), "device": "cpu"})
    assert any("chat_template.jinja cannot be read: line 1" in f.text for f in report.findings)


# Without a tokenizer, and without a prompt.


@pytest.fixture(scope="module")
def ids_only():
    golden = Path(__file__).parents[1] / "golden" / "checkpoints" / "llada"
    words = [f"model.checkpoint={golden}", "model.device=cpu", "schedule.length=8"]
    return load("checkpoint", "threshold", overrides=words)


@pytest.mark.slow
def test_a_checkpoint_without_tokenizer_decodes_ids_and_refuses_texts(ids_only):
    result = ids_only.generate([[5, 6, 7], [8, 9]], max_new_tokens=8)
    assert len(result.sequences) == 2 and result.texts == ("", "")
    assert ids_only.piece(17) == " 17"
    with pytest.raises(CheckpointError, match=r"has no tokenizer .*give prompts as token ids"):
        ids_only.generate("Copy: 1 Ada")


@pytest.mark.slow
def test_numbers_of_numpy_and_torch_are_numbers(ids_only):
    np = pytest.importorskip("numpy")
    expected = ids_only.generate([[5, 6, 7]], max_new_tokens=8, seed=3)
    prompts = [
        np.array([5, 6, 7]), np.array([[5, 6, 7]]), [np.array([5, 6, 7], dtype=np.uint8)],
        [[np.int64(5), np.int32(6), 7]], [torch.tensor([5, 6, 7])], torch.tensor([[5, 6, 7]]),
        [[torch.tensor(5), 6, 7]],
    ]  # fmt: skip
    for prompt in prompts:
        for length in (np.int64(8), torch.tensor(8), np.array([8]), [np.int16(8)]):
            result = ids_only.generate(prompt, max_new_tokens=length, seed=np.int64(3))
            assert result.sequences == expected.sequences
    assert ids_only.generate([[5, 6, 7]], max_new_tokens=8, seed=None).sequences


@pytest.mark.parametrize("value", [32.0, "32", None, True, [8.0], [None], [True]], ids=str)
def test_a_length_that_is_no_whole_number_is_refused(value, ids_only):
    with pytest.raises(ConfigError, match="max_new_tokens must be a whole number >= 1"):
        ids_only.generate([[5, 6]], max_new_tokens=value)


@pytest.mark.parametrize("value", [2**63, 2**63 - 1, -1, 1.5, "1", True, 10**30], ids=str)
def test_a_seed_out_of_range_is_refused_before_anything_is_decoded(value, ids_only):
    with pytest.raises(
        ConfigError, match=r"seed must be a whole number from 0 to 92233720368547758"
    ):
        ids_only.generate([[5, 6], [7]], max_new_tokens=8, seed=value)


@pytest.mark.parametrize("value", [1.5, True, "5", None])
def test_an_id_that_is_no_whole_number_is_refused(value, ids_only):
    with pytest.raises(ConfigError, match="prompt 0 must hold token ids, got"):
        ids_only.generate([[5, value]], max_new_tokens=8)


@pytest.mark.slow
def test_an_empty_prompt_is_no_prompt(bundled, ids_only):
    # which of several equal columns is first may hang on rounding, so no tokens are compared
    assert bundled.encode("") == bundled.encode([]) == ()
    free = bundled.generate(["", "Copy: 1 Ada"], max_new_tokens=32)
    assert free.texts[1] == bundled.generate("Copy: 1 Ada", max_new_tokens=32).texts[0]
    assert free.forwards[0] > 0 and bundled.generate("", max_new_tokens=32).forwards[0] > 0
    empty = ids_only.generate([[], [5, 6, 7], []], max_new_tokens=8)
    assert empty.sequences[1] == ids_only.generate([[5, 6, 7]], max_new_tokens=8).sequences[0]
    assert len(ids_only.generate([[]], max_new_tokens=8).sequences) == 1
    assert load("toy_copy", "threshold").generate("").texts == ("abcdef",)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("family", ["dream", "llada2"])
def test_shifted_and_block_causal_models_write_from_nothing_as_well(family):
    folder = Path(__file__).parents[1] / "golden" / "checkpoints" / family
    words = [f"model.checkpoint={folder}", "model.device=cpu", "schedule.length=8"]
    if family == "llada2":
        words += ["model.mask_id=213", "model.block_length=8"]
    decoder = load("checkpoint", "threshold", overrides=words)
    for prompts in ([[]], [[], [5, 6, 7]]):
        result = decoder.generate(prompts, max_new_tokens=8)
        assert set(result.finish_reasons) <= {"length", "eot"} and result.undecided[0] == 0
