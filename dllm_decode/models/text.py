"""The tokenizer of a checkpoint, behind the few calls that decoding needs."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from dllm_decode.decoding.types import Vocab
from dllm_decode.errors import CheckpointError, ConfigError
from dllm_decode.models.chat import plain, plain_messages
from dllm_decode.models.direct import read_directly, unreadable
from dllm_decode.models.quiet import transformers_output
from dllm_decode.models.templates import TemplateOverrun, TemplateRefusal, render, variables

log = logging.getLogger(__name__)
_T = TypeVar("_T")
_OURS = {"messages", "add_generation_prompt", "continue_final_message"}

# Characters that are no text, around what stands for itself in a rendered chat.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_CUT = "\ufdd2"  # where a message that is continued ends


@dataclass(frozen=True)
class CheckpointTokenizer:
    """A fast tokenizer read from a checkpoint folder.

    Attributes:
        backend: The transformers tokenizer, None where the checkpoint has none (token ids only).
        folder: Where it was looked for.
        reply_header: What the chat template appends even when it is asked not to; see `ModelSpec`.
        special: Further ids that count as control tokens, beside those the tokenizer calls so.
        parse_control: Whether control tokens in a text of the user's become what they stand for;
            by default they are plain text.
        arguments: What the chat template is given beside the messages.

    Examples:
        >>> from dllm_decode.models.loading import load_model
        >>> tokenizer = load_model("bundled:llada-tiny").tokenizer
        >>> tokenizer.has_chat_template, tokenizer.decode(tokenizer.encode(" Ada"))
        (True, ' Ada')
    """

    backend: Any
    folder: Path
    reply_header: str | None = None
    special: frozenset[int] = frozenset()
    parse_control: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads_text(self) -> bool:
        """Whether there is a tokenizer at all."""
        return self.backend is not None

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint says how to write a conversation."""
        return self.backend is not None and bool(self.backend.chat_template)

    def _need(self) -> Any:
        if self.backend is None:
            raise CheckpointError(
                f"{self.folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt); "
                "give prompts as token ids"
            )
        return self.backend

    def encode(self, text: str, *, control: bool | None = None, framed: bool = True) -> list[int]:
        """Token ids of a text as it is.

        Args:
            text: Any text.
            control: Whether control tokens in it become what they stand for; None: `parse_control`.
            framed: With what the tokenizer itself puts around a text; a beginning that the text
                already has is not written twice.

        Raises:
            CheckpointError: There is no tokenizer.
        """
        backend = self._need()
        parsed = self.parse_control if control is None else control
        _require_text(text)
        if not parsed and self._control.search(text):
            return self._as_text(text, framed)
        ids = list(backend(text, add_special_tokens=framed)["input_ids"])
        start = backend.bos_token_id
        return ids[1:] if start is not None and ids[:2] == [start, start] else ids

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        open_reply: bool = True,
        continue_final: bool | None = None,
        arguments: Mapping[str, Any] | None = None,
        control: bool | None = None,
    ) -> list[int]:
        """Token ids of a conversation.

        Args:
            messages: Mappings with `role` and `content`; see `models.chat.plain_messages`.
            open_reply: End with the header behind which the assistant's reply is decoded, also
                with templates that always append it.
            continue_final: Leave the last message open, so that it is continued; None: if it is
                the assistant's and a reply is wanted.
            arguments: What the template is given beside the messages (`enable_thinking`, ...),
                added to the tokenizer's own; `chat_template` names one of several templates.
            control: Whether control tokens in the messages become what they stand for; None:
                `parse_control`.

        Raises:
            ConfigError: There is no chat template, or it does not take these messages.
            CheckpointError: The chat template is damaged.
        """
        backend = self._need()
        chat = plain_messages(messages)
        given = plain({**self.arguments, **(arguments or {})}, "the arguments of the chat template")
        source = self.template(given.pop("chat_template", None))
        for name in _OURS & set(given):
            raise ConfigError(
                f"chat_template_kwargs must not hold {name!r}, which is set by the messages and "
                "the options of generate()"
            )
        self._warn_of_unread(source, given)
        if continue_final is None:
            continue_final = open_reply and chat[-1]["role"] == "assistant"
        parsed = self.parse_control if control is None else control
        if not parsed:
            chat, given = self._marked(chat), self._marked(given)
        if continue_final:
            chat[-1] = chat[-1] | {"content": chat[-1]["content"] + _CUT}
        values = {
            **backend.special_tokens_map,
            **given,
            "messages": chat,
            "add_generation_prompt": open_reply and not continue_final,
        }
        text = self._guarded(lambda: render(source, values))
        if continue_final:
            text = self._cut(text)
        elif not open_reply and self.reply_header is not None:
            text = text.removesuffix(self.reply_header)
        return self._encode_marked(text)

    def template(self, name: str | None = None) -> str:
        """The source of the chat template.

        Args:
            name: Of one template among several; None for the one called `default`.

        Raises:
            ConfigError: There is none, or none of that name.
        """
        found = self._need().chat_template
        if not found:
            raise ConfigError(
                f"the tokenizer in {self.folder} has no chat template (a base model?); give the "
                "prompt as text"
            )
        if isinstance(found, str) and name is None:
            return found
        named = found if isinstance(found, dict) else {"default": found}
        chosen = named.get("default" if name is None else name)
        if not isinstance(chosen, str):
            raise ConfigError(
                f"the chat template {name or 'default'!r} is not in {self._template_file}; it has "
                f"{', '.join(map(repr, named))}, one of which is chosen with "
                "chat_template_kwargs={chat_template: <name>}"
            )
        return chosen

    def _warn_of_unread(self, source: str, arguments: Mapping[str, Any]) -> None:
        """Say once which arguments the template never looks at."""
        if not arguments:
            return
        known = self._guarded(lambda: variables(source))
        unread = set(arguments) - known - self._told
        self._told.update(unread)
        if unread:
            log.warning(
                "the chat template in %s does not look at %s", self._template_file,
                ", ".join(sorted(unread)),
            )  # fmt: skip

    @cached_property
    def _told(self) -> set[str]:
        """Arguments that were warned about."""
        return set()

    @property
    def _template_file(self) -> Path:
        """Where the chat template stands."""
        names = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
        return next((self.folder / n for n in names if (self.folder / n).is_file()), self.folder)

    def check_template(self) -> None:
        """Raise `CheckpointError` for a chat template that does not parse."""
        if isinstance(self._need().chat_template, str):
            self._guarded(lambda: variables(self.template()))

    def _guarded(self, work: Callable[[], _T]) -> _T:
        """What a template gives; raises errors of our own for whatever it does."""
        from jinja2 import TemplateSyntaxError

        where = f"the chat template in {self._template_file}"
        try:
            return work()
        except TemplateRefusal as error:
            raise ConfigError(f"{where} refuses these messages: {error}") from None
        except TemplateSyntaxError as error:
            raise CheckpointError(
                f"{where} cannot be read: line {error.lineno}: {error.message}"
            ) from None
        except TemplateOverrun as error:
            raise CheckpointError(f"{where} was stopped: {error}") from None
        except RecursionError:
            raise CheckpointError(f"{where} was stopped: it is nested too deeply") from None
        except Exception as error:  # a template is a program; it can fail in any way
            raise CheckpointError(
                f"{where} does not work with these messages: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from None

    def _cut(self, text: str) -> str:
        """The text of a chat up to the end of its last message."""
        front, found, _ = text.rpartition(_CUT)
        if not found:
            raise ConfigError(
                f"the chat template in {self._template_file} does not show the last message, so it "
                "cannot be continued; end the chat with a message of the user"
            )
        return front

    # Control tokens.

    @cached_property
    def _control_words(self) -> tuple[str, ...]:
        """Words of control tokens, the longest first."""
        if self.backend is None:
            return ()
        added: Mapping[int, Any] = self.backend.added_tokens_decoder
        words = {
            str(token) for number, token in added.items() if token.special or number in self.special
        }
        return tuple(sorted(words - {""}, key=lambda word: (-len(word), word)))

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Finds control tokens in a text."""
        return re.compile("|".join(map(re.escape, self._control_words)) or r"(?!)")

    @cached_property
    def _plain(self) -> Any:
        """The same tokenizer without control tokens."""
        from tokenizers import Tokenizer

        whole = json.loads(self.backend.backend_tokenizer.to_str())
        words = set(self._control_words)
        whole["added_tokens"] = [t for t in whole["added_tokens"] if t["content"] not in words]
        return Tokenizer.from_str(json.dumps(whole))

    def _as_text(self, text: str, framed: bool = False) -> list[int]:
        """Token ids of a text whose control tokens stand for themselves."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=framed).ids
        return ids

    def _marked(self, value: Any) -> Any:
        """The same values with marks around the control tokens in every text."""
        if isinstance(value, str):
            text = value.translate({ord(mark): "\ufffd" for mark in (_OPEN, _CLOSE, _CUT)})
            return self._control.sub(rf"{_OPEN}\g<0>{_CLOSE}", text)
        if isinstance(value, dict):
            return {name: self._marked(entry) for name, entry in value.items()}
        return [self._marked(entry) for entry in value] if isinstance(value, list) else value

    def _encode_marked(self, text: str) -> list[int]:
        """Token ids of a rendered chat: what is marked stands for itself."""
        _require_text(text)
        # a template can cut a text between its marks; a single one still keeps both sides apart
        pieces = re.split(f"{_OPEN}({self._control.pattern}){_CLOSE}|[{_OPEN}{_CLOSE}]", text)
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            encode: Callable[..., list[int]] = self._as_text if number % 2 else self._parsed
            ids += encode(piece) if piece else []
        return ids

    def _parsed(self, text: str) -> list[int]:
        return list(self.backend(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: list[int], *, keep_special: bool = False) -> str:
        """The text of token ids, without special tokens unless asked for."""
        return str(self._need().decode(list(ids), skip_special_tokens=not keep_special))

    def id_of(self, word: str) -> int | None:
        """The id of a special token, None where the tokenizer does not have it."""
        if self.backend is None:
            return None
        number = self.backend.get_vocab().get(word)
        return None if number is None else int(number)

    @property
    def end_id(self) -> int | None:
        """The tokenizer's own end of text, None where it names none."""
        number = None if self.backend is None else self.backend.eos_token_id
        return None if number is None else int(number)

    @property
    def mask_id(self) -> int | None:
        """The tokenizer's own mask, None where it names none."""
        number = getattr(self.backend, "mask_token_id", None)
        return None if number is None else int(number)

    @property
    def pad_id(self) -> int | None:
        """The tokenizer's own padding, None where it names none."""
        number = None if self.backend is None else self.backend.pad_token_id
        return None if number is None else int(number)

    @cached_property
    def ids(self) -> frozenset[int] | None:
        """All ids that stand for something, None without a tokenizer."""
        return None if self.backend is None else frozenset(self.backend.get_vocab().values())

    @property
    def size(self) -> int | None:
        """One more than the largest id, None without a tokenizer."""
        return None if self.ids is None else max(self.ids) + 1

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files, if there is one."""
        if self.backend is not None:
            self.backend.save_pretrained(folder)


def _require_text(text: str) -> None:
    """Refuse halves of a character, which Python and JSON can hold and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"character {error.start} of the text is half a surrogate pair "
            f"(U+{ord(text[error.start]):04X}), which is no character; decode the text properly, "
            "e.g. with errors='replace'"
        ) from None


def load_tokenizer(
    folder: Path, reply_header: str | None = None, *, lean: bool = False
) -> CheckpointTokenizer:
    """The tokenizer of a checkpoint folder, by explicit class, so that no remote code can run.

    `tokenizer.json` is read as it is; without it `vocab.json` and `merges.txt` make a Qwen2
    tokenizer (Dream's own class is remote code with the same ids).

    Args:
        folder: Of the checkpoint.
        reply_header: See `CheckpointTokenizer`.
        lean: Do without transformers where the files need none of it.
    """
    direct = read_directly(folder) if lean else None
    return CheckpointTokenizer(direct or _backend(folder), folder, reply_header)


def _backend(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    if (folder / "tokenizer.json").is_file():
        kind = PreTrainedTokenizerFast
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        kind = Qwen2Tokenizer
    else:
        return None
    try:
        with transformers_output(progress=False):
            backend = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the reader is native code and raises plain Exception
        raise unreadable(folder, error) from error
    if not backend.get_vocab():
        raise CheckpointError(f"the tokenizer in {folder} knows no tokens; copy its files again")
    backend.padding_side = "left"
    backend.model_max_length = sys.maxsize  # the decoder knows the model's own limit
    return backend


def vocabulary(head: Vocab, tokenizer: CheckpointTokenizer) -> Vocab:
    """The ids of a model that mean something, and which of them are never generated.

    Models have more rows than their tokenizer has ids, for speed. The vocabulary ends with the last
    id that means something; the loop computes no logits of what lies behind. Unknown ids in front
    of it are banned.

    Args:
        head: All rows of the model's head as ids, with the special ones among them.
        tokenizer: Says which ids stand for something.
    """
    known = tokenizer.ids
    if known is None:
        return head
    named = {head.mask_id, *head.eot_ids, *([] if head.pad_id is None else [head.pad_id])}
    size = min(head.size, max(known | named) + 1)
    banned = {token for token in head.banned_ids if token < size}
    never = (set(range(size)) - known - named) | banned
    return replace(head, size=size, banned_ids=tuple(sorted(never)))


def control_ids(vocab: Vocab) -> frozenset[int]:
    """Ids that mean something to the decoder and so are no part of a user's text."""
    padding = () if vocab.pad_id is None else (vocab.pad_id,)
    return frozenset((*vocab.never_generated, *vocab.eot_ids, *padding))
