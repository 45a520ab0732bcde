"""How often tokens occur in a text: a table for `strategy=uncode`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dllm_decode import storage
from dllm_decode.errors import CheckpointError
from dllm_decode.models.locate import Shelf

SHELF = Shelf(
    "frequency table", "frequencies/{}.json", "token_frequencies", "strategy.select.frequencies"
)


@dataclass(frozen=True, eq=False)
class TokenFrequencies:
    """The share of each token id among all tokens of a text.

    Attributes:
        share: (V,) float32, of sum 1.

    Examples:
        >>> TokenFrequencies.of(counted([[1, 2], [1, 1]], vocabulary=3), "two texts").share
        tensor([0.0000, 0.7500, 0.2500])
    """

    share: Tensor

    def to(self, device: torch.device) -> TokenFrequencies:
        """The table on a device."""
        return TokenFrequencies(self.share.to(device))

    @staticmethod
    def load(path: str | Path) -> TokenFrequencies:
        """Read a JSON file; see `of`.

        Args:
            path: The file, or `bundled:NAME` for one that ships with the package.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        file = SHELF.find(path)
        return TokenFrequencies.of(storage.read_json(file, CheckpointError), str(file))

    @staticmethod
    def of(document: Mapping[str, Any], source: str) -> TokenFrequencies:
        """The table of a document `{"vocabulary": V, "counts": {"id": n, ...}}`.

        Args:
            document: As `counted` makes it.
            source: Where it came from, for messages.

        Raises:
            CheckpointError: It is not such a document, or counts nothing.
        """
        size, counts = document.get("vocabulary"), document.get("counts")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise CheckpointError(f"{source}: vocabulary must be a whole number >= 1, got {size!r}")
        if not isinstance(counts, dict):
            raise CheckpointError(f"{source}: counts must be an object, got {counts!r}")
        for token, number in counts.items():
            right = isinstance(number, int) and not isinstance(number, bool) and number >= 0
            if not (token.isdecimal() and int(token) < size and right):
                raise CheckpointError(
                    f"{source}: counts must be whole numbers >= 0 by token id below {size}, got "
                    f"{token!r}: {number!r}"
                )
        total = sum(counts.values())
        if total == 0:
            raise CheckpointError(f"{source}: no token is counted")
        share = torch.zeros(size)
        share[[int(token) for token in counts]] = torch.tensor([*counts.values()]) / total
        return TokenFrequencies(share)


def counted(texts: Iterable[Iterable[int]], vocabulary: int) -> dict[str, Any]:
    """The document that `TokenFrequencies.of` reads.

    Args:
        texts: Of token ids below `vocabulary`.
        vocabulary: V, ids of the model.
    """
    counts = Counter(token for text in texts for token in text)
    entries = {str(token): counts[token] for token in sorted(counts)}
    return {"vocabulary": vocabulary, "counts": entries}
