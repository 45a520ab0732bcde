"""A tokenizer read with the library `tokenizers` alone, where its files leave nothing open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_decode.errors import CheckpointError
from dllm_decode.storage import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NAMED = ("bos_token", "eos_token", "pad_token")
# Settings of tokenizer_config.json with the values that leave `tokenizer.json` as it is; None: any.
_PLAIN: dict[str, tuple[Any, ...] | None] = {
    **dict.fromkeys((*_NAMED, "additional_special_tokens", "chat_template")),
    **dict.fromkeys(("model_max_length", "padding_side")),
    "tokenizer_class": ("PreTrainedTokenizerFast",),
    "clean_up_tokenization_spaces": (False,),
}
_OTHERS = ("added_tokens.json", "chat_template.jinja", "chat_template.json")


class DirectTokenizer:
    """The calls that `CheckpointTokenizer` makes of a tokenizer of transformers.

    Args:
        backend_tokenizer: Of `tokenizers`.
        settings: `tokenizer_config.json`.

    Examples:
        >>> from dllm_decode.models.locate import ASSETS
        >>> tokenizer = read_directly(ASSETS / "llada-tiny")
        >>> tokenizer.decode(tokenizer("Copy: 1 Ada")["input_ids"])
        'Copy: 1 Ada'
    """

    def __init__(self, backend_tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
        self.backend_tokenizer = backend_tokenizer
        self.chat_template: str | None = settings.get("chat_template")
        self.special_tokens_map = {
            name: settings[name] for name in _NAMED if settings.get(name) is not None
        }
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            self._id_of(settings.get(name)) for name in _NAMED
        )

    def _id_of(self, word: str | None) -> int | None:
        number: int | None = None if word is None else self.backend_tokenizer.token_to_id(word)
        return number

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """`input_ids` of a text."""
        found = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": found.ids}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of ids."""
        text: str = self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def get_vocab(self) -> dict[str, int]:
        """The id of every word."""
        vocab: dict[str, int] = self.backend_tokenizer.get_vocab()
        return vocab

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Control tokens and others that stand apart from the vocabulary, by id."""
        tokens: dict[int, Any] = self.backend_tokenizer.get_added_tokens_decoder()
        return tokens

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of control tokens."""
        return [number for number, token in self.added_tokens_decoder.items() if token.special]


def read_directly(folder: Path) -> DirectTokenizer | None:
    """The tokenizer of a checkpoint, None where transformers would do more than read its file.

    Raises `CheckpointError` for a file that cannot be read.
    """
    file, options = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not file.is_file() or not options.is_file():
        return None
    settings = read_json(options, CheckpointError)
    if not all(
        name in _PLAIN and (_PLAIN[name] is None or value in (_PLAIN[name] or ()))
        for name, value in settings.items()
    ):
        return None
    words = [settings.get(name) for name in _NAMED if settings.get(name) is not None]
    further = settings.get("additional_special_tokens") or []
    if not isinstance(further, list):
        return None
    words += further
    template = settings.get("chat_template")
    if not all(isinstance(word, str) for word in [*words, template or ""]):
        return None
    if any((folder / name).exists() for name in _OTHERS) or not _same_map(folder, settings):
        return None
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the reader is native code and raises plain Exception
        raise unreadable(folder, error) from error
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    if not special.issuperset(words) or backend.truncation or backend.padding:
        return None
    return DirectTokenizer(backend, settings)


def unreadable(folder: Path, error: Exception) -> CheckpointError:
    """What is said of a tokenizer that its reader has refused: the damaged file, where one is.

    Args:
        folder: Of the checkpoint.
        error: What the reader said, which names no file.
    """
    reason: object = error
    for name in ("special_tokens_map.json", "tokenizer_config.json", "tokenizer.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            values = read_json(file, CheckpointError)
        except CheckpointError as fault:
            reason = fault
        else:
            if name == "tokenizer.json" and not isinstance(values.get("model"), dict):
                reason = f"{file} has no object 'model'; copy the file again"
    return CheckpointError(f"the tokenizer in {folder} cannot be read: {reason}")


def _same_map(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether `special_tokens_map.json` names no other words than the settings."""
    file = folder / "special_tokens_map.json"
    if not file.is_file():
        return True
    return all(settings.get(n) == word for n, word in read_json(file, CheckpointError).items())
