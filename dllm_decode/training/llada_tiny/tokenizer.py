"""The bundled model's tokenizer: one token per known word, bytes for everything else."""

from __future__ import annotations

import json
import re
from pathlib import Path

from dllm_decode.problems import tales, words

BOS, EOT, MASK = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"
HEADER_START, HEADER_END, TURN_END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
SPECIALS = (EOT, MASK, BOS, HEADER_START, HEADER_END, TURN_END)

# A word, a number, an operation or a sign, each with the blank before it; everything else one
# character at a time. What is no known piece falls apart into bytes, so every text comes back
# unchanged.
_PIECES = r" ?[A-Za-z]+| ?[-+*/]?[0-9]+| ?[^\sA-Za-z0-9]|\s"

# {header} question {end of header} answer {end of turn} question ... : three tokens per turn.
# Content starts with a blank, so that a word is the same token everywhere.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{ ' ' + message['content'] + '<|eot_id|>' }}"
    "{%- else -%}"
    "{{ '<|start_header_id|> ' + message['content'] + '<|end_header_id|>' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
)


def byte_letters() -> list[str]:
    """The printable letter that byte-level tokenizers use for each byte 0..255, in byte order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def vocabulary() -> dict[str, int]:
    """Token -> id: special tokens, then bytes, then words with the blank in front."""
    blank = byte_letters()[32]
    known = (*words.NUMBERS, *words.NAMES, *words.CITIES, *words.SYMBOLS, *words.THINGS)
    worked = (*words.OPERATIONS, *words.MOVES)
    told = (*words.PLACES, *words.MOODS, *words.TIMES, *tales.WORDS)
    pieces = [blank + word for word in (*known, *words.PHRASES, *words.PUNCTUATION, *told, *worked)]
    tokens = dict.fromkeys([*SPECIALS, *byte_letters(), *pieces])  # a word may be in two lists
    return {token: number for number, token in enumerate(tokens)}


class FastEncoder:
    """Text to ids for training data; gives what the saved tokenizer gives, but faster.

    Examples:
        >>> encode = FastEncoder()
        >>> len(encode(" Ada")), len(encode(" Adda"))
        (1, 5)
    """

    def __init__(self) -> None:
        self._ids = vocabulary()
        self._letters = byte_letters()
        self._pieces = re.compile(_PIECES)
        self._cache: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        """Encode a text without special tokens.

        Args:
            text: Any text.
        """
        ids: list[int] = []
        for piece in self._pieces.findall(text):
            if piece not in self._cache:
                self._cache[piece] = self._split(piece)
            ids += self._cache[piece]
        return ids

    def special(self, token: str) -> int:
        """Id of a special token.

        Args:
            token: One of `SPECIALS`.
        """
        return self._ids[token]

    def _split(self, piece: str) -> list[int]:
        letters = "".join(self._letters[byte] for byte in piece.encode("utf-8"))
        whole = self._ids.get(letters)
        return [whole] if whole is not None else [self._ids[letter] for letter in letters]


def save_tokenizer(folder: Path, longest: int) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`.

    Args:
        folder: An existing folder.
        longest: The model's limit in tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    ids = vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": EOT, "pad_token": EOT}
    config = {
        **names,
        "additional_special_tokens": [MASK, HEADER_START, HEADER_END, TURN_END],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n")
