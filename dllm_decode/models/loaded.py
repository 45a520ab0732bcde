"""What every kind of model comes as: a denoiser, a tokenizer and a description."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dllm_decode.decoding.denoiser import Denoiser
from dllm_decode.errors import ConfigError
from dllm_decode.models.adapter import TransformersDenoiser
from dllm_decode.models.quiet import transformers_output


class Tokenizer(Protocol):
    """Text to token ids and back; never asks on stdin and never runs code from a checkpoint.

    Examples:
        >>> from dllm_decode.models.toy import SymbolTokenizer
        >>> tokenizer: Tokenizer = SymbolTokenizer("abc")
        >>> tokenizer.decode(tokenizer.encode("cab"))
        'cab'
    """

    @property
    def reads_text(self) -> bool:
        """Whether there is one; without it prompts are token ids and results have no texts."""

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` works."""

    def encode(self, text: str, *, control: bool | None = None, framed: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: Any text.
            control: Whether control tokens in it become what they stand for; None: as configured.
            framed: With what the tokenizer itself puts around a text.
        """

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        open_reply: bool = True,
        continue_final: bool | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation.

        Args:
            messages: Mappings with `role` and `content`.
            open_reply: Up to where the assistant's reply begins.
            continue_final: Up to the end of the last message, which is continued; None: if it is
                the assistant's and a reply is wanted.
            arguments: What the chat template is given beside the messages.
        """

    def decode(self, ids: list[int], *, keep_special: bool = False) -> str:
        """The text of token ids, without special tokens unless asked for."""


@dataclass(frozen=True)
class Description:
    """What was loaded, for the first line of output and for every result.

    Attributes:
        family: E.g. "LLaDA".
        checkpoint: The name it was asked for by.
        path: Folder it was read from, None for models without one.
        parameters: Their number.
        dtype: As loaded.
        device: As loaded.
        licence: Of the weights, None where unknown.
        passed_over: Checkpoints that stood earlier in the list and were not available, with the
            reason.
        edits: Whether its published decoding writes over tokens.
        adapters: Folders of the LoRA adapters that were merged into the weights.
        quantization: What the weights of linear layers are stored as, None for `dtype`.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> description = Copy(n=3).description
        >>> description.family, description.parameters
        ('exact toy world', 0)
    """

    family: str
    checkpoint: str
    path: Path | None
    parameters: int
    dtype: str
    device: str
    licence: str | None = None
    passed_over: Mapping[str, str] = field(default_factory=dict)
    edits: bool = False
    adapters: tuple[str, ...] = ()
    quantization: str | None = None

    def __str__(self) -> str:
        size = f"{_short(self.parameters)} parameters" if self.parameters else "no parameters"
        merged = f" with {' and '.join(self.adapters)}" if self.adapters else ""
        kind = f"{self.quantization} and " if self.quantization else ""
        where = f"{kind}{self.dtype} on {self.device}"
        return f"{self.family}, checkpoint {self.checkpoint}{merged}, {size}, {where}"


def _short(count: int) -> str:
    """1234567 as "1.23 million"."""
    for scale, word in ((10**9, " billion"), (10**6, " million"), (10**3, " thousand")):
        if count >= scale:
            return f"{count / scale:.3g}{word}"
    return str(count)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to decode.

    Attributes:
        denoiser: What the loop calls.
        tokenizer: Text to ids and back.
        description: What was loaded.
        source: The published `config.json` as read, empty for models without one.

    Examples:
        >>> from dllm_decode.models.loading import load_model
        >>> model = load_model("bundled:llada-tiny")
        >>> model.tokenizer.decode(model.tokenizer.encode(" Ada"))
        ' Ada'
    """

    denoiser: Denoiser
    tokenizer: Tokenizer
    description: Description
    source: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the checkpoint with its published names and config.json, tokenizer included.

        Raises `ConfigError` for models without weights.
        """
        save_checkpoint(self, Path(folder))


# Copied as they are, where the source folder has them.
_COMPANIONS = (
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


def save_checkpoint(loaded: LoadedModel, folder: Path) -> None:
    """Weights under their published names, config.json as it was read, and the tokenizer's files.

    Weights are written in the dtype they were loaded in. Raises `ConfigError` for models without
    weights.

    Args:
        loaded: The model.
        folder: Where to write; it is made.
    """
    denoiser = loaded.denoiser
    if not isinstance(denoiser, TransformersDenoiser):
        raise ConfigError(f"{loaded.description.family} has no weights to save")
    if loaded.description.quantization is not None:
        raise ConfigError(
            f"the weights are quantised ({loaded.description.quantization}) and cannot be saved "
            "under their published names; save the model without model.quantization"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with transformers_output(progress=False):
        denoiser.model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(loaded.source), indent=2) + "\n")
    for name in _COMPANIONS:
        origin = loaded.description.path and loaded.description.path / name
        if origin and origin.is_file():
            shutil.copyfile(origin, folder / name)
