"""`task=token_frequencies`: count tokens for `strategy=uncode`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllm_decode.console.prompts import read_prompts
from dllm_decode.errors import ConfigError, require_count, require_some
from dllm_decode.tasks import Context, Task

if TYPE_CHECKING:
    from dllm_decode.models.loaded import Tokenizer

FILE = "frequencies.json"


@dataclass(frozen=True)
class CountTokens(Task):
    """Counts the tokens of texts and writes `frequencies.json` into the run folder.

    Attributes:
        prompts: A file of texts, see `console.prompts.read_prompts`; without one, answers to
            problems of the training split.
        families: Names of their families; None for those the bundled model solves.
        problems: Problems per family.
        seed: Of the problems.

    Raises:
        ConfigError: A value is out of range.

    Examples:
        >>> CountTokens(families=["copy"], problems=50)
        CountTokens(prompts=None, families=['copy'], problems=50, seed=0)
    """

    prompts: str | None = None
    families: Sequence[str] | None = None
    problems: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        require_count("task.problems", self.problems)
        require_count("seed", self.seed, minimum=0)
        if self.prompts is not None and self.families is not None:
            raise ConfigError("prompts and task.families exclude each other; give one of them")
        require_some("task.families", self.families, "family")

    def run(self, context: Context) -> int:
        """Count and write; returns 0."""
        from dllm_decode.models.frequencies import TokenFrequencies, counted

        texts = list(self._texts())
        tokenizer, vocab = context.model.tokenizer, context.model.denoiser.vocab
        # an answer ends, and where it ends is a token like any other
        ids = [[*_ids(tokenizer, text), *vocab.eot_ids[:1]] for text in texts]
        document = counted(ids, vocab.size)
        TokenFrequencies.of(document, self.prompts or "the problems")  # refuses texts of nothing
        path = context.folder.write_json(FILE, document)
        context.display.say(
            f"{sum(map(len, ids))} tokens in {len(texts)} texts; decode with strategy=uncode "
            f"strategy.select.frequencies={path}"
        )
        return 0

    def _texts(self) -> Iterator[str]:
        if self.prompts is not None:
            for asked in read_prompts(self.prompts):
                turns = asked.content if isinstance(asked.content, list) else [asked.content]
                yield from (turn if isinstance(turn, str) else turn["content"] for turn in turns)
            return
        from dllm_decode.problems import FAMILIES, problems

        shown = [name for name, family in FAMILIES.items() if family.shown]
        for name in self.families or shown or list(FAMILIES):
            if name not in FAMILIES:
                raise ConfigError(
                    f"task.families must be names of {', '.join(FAMILIES)}; got {name!r}"
                )
            yield from (found.answer for found in problems(name, "train", self.problems, self.seed))


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text that stands alone."""
    return list(tokenizer.encode(text, framed=False)) if text else []
