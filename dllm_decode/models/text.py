"""The tokenizer of a checkpoint, behind the few calls that decoding needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_decode.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class CheckpointTokenizer:
    """A fast tokenizer read from a checkpoint folder.

    backend: the transformers tokenizer, None where the checkpoint has none (token ids only);
    folder: where it was looked for; reply_header: what the chat template appends even when it is
    asked not to, see `ModelSpec`.
    """

    backend: Any
    folder: Path
    reply_header: str | None = None

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

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it is, with what the tokenizer itself puts around it."""
        return list(self._need()(text)["input_ids"])

    def encode_chat(self, messages: list[dict[str, str]], *, open_reply: bool = True) -> list[int]:
        """Token ids of a conversation.

        messages: dicts with `role` and `content`; open_reply: end with the header behind which the
        assistant's reply is decoded, also with templates that always append it.
        Raises `ConfigError` where the checkpoint has no chat template.
        """
        backend = self._need()
        if not self.has_chat_template:
            raise ConfigError(
                f"the tokenizer in {self.folder} has no chat template (a base model?); give the "
                "prompt as text"
            )
        text = backend.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=open_reply
        )
        header = self.reply_header
        if not open_reply and header is not None and text.endswith(header):
            text = text.removesuffix(header)
        return list(backend(text, add_special_tokens=False)["input_ids"])

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
    def pad_id(self) -> int | None:
        """The tokenizer's own padding, None where it names none."""
        number = None if self.backend is None else self.backend.pad_token_id
        return None if number is None else int(number)

    @property
    def size(self) -> int | None:
        """One more than the largest id, None without a tokenizer."""
        return None if self.backend is None else max(self.backend.get_vocab().values()) + 1

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files, if there is one."""
        if self.backend is not None:
            self.backend.save_pretrained(folder)


def load_tokenizer(folder: Path, reply_header: str | None = None) -> CheckpointTokenizer:
    """The tokenizer of a checkpoint folder, by explicit class, so that no remote code can run.

    `tokenizer.json` is read as it is; without it `vocab.json` and `merges.txt` make a Qwen2
    tokenizer (Dream's own class is remote code with the same ids).
    """
    return CheckpointTokenizer(_backend(folder), folder, reply_header)


def _backend(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    if (folder / "tokenizer.json").is_file():
        kind = PreTrainedTokenizerFast
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        kind = Qwen2Tokenizer
    else:
        return None
    try:
        backend = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the reader is native code and raises plain Exception
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from error
    if not backend.get_vocab():
        raise CheckpointError(f"the tokenizer in {folder} knows no tokens; copy its files again")
    backend.padding_side = "left"
    return backend
