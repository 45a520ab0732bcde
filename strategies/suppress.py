"""Keeping tokens back: never proposing them, or committing them only when nothing else is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.strategy import Transform
from dllm_decode.decoding.types import Request, Snapshot, StepView, Vocab
from dllm_decode.errors import require


@dataclass(frozen=True)
class _Suppress(Transform):
    """What both share: the token ids and their checks.

    Args:
        ids: token ids, or None for the model's end-of-text ids.
    """

    ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        given = () if self.ids is None else self.ids
        whole = all(isinstance(token, int) and not isinstance(token, bool) for token in given)
        require(
            self.ids is None or (len(given) > 0 and whole),
            "ids must be null (the model's end-of-text ids) or a list of token ids, "
            f"got {self.ids!r}",
        )

    def begin(self, request: Request, snapshot: Snapshot) -> None:
        """No memory; refuses ids outside the vocabulary, and a list that leaves nothing to say."""
        vocab = snapshot.vocab
        ids = vocab.eot_ids if self.ids is None else tuple(self.ids)
        require(len(ids) > 0, "ids is null, but the model has no end-of-text id; give the ids")
        for token in ids:
            require(0 <= token < vocab.size, f"ids must lie in [0, {vocab.size - 1}], got {token}")
        left = vocab.size - len({*ids, *vocab.never_generated})
        require(left > 0, f"ids removes every token of the vocabulary of {vocab.size}")

    def chosen(self, view: StepView) -> Tensor:
        """The token ids, (K,) int64."""
        ids = view.snapshot.vocab.eot_ids if self.ids is None else self.ids
        return view.snapshot.ids(tuple(ids))


@dataclass(frozen=True)
class BanTokens(_Suppress):
    """Remove tokens from the prediction: l'[v] = -inf for the given ids, before any sampling.

    Source: LLaDA's `logits_eos_inf`.

    Args:
        ids: token ids, or None for the model's end-of-text ids.

    Raises:
        ConfigError: for ids that are not in the vocabulary, and for all of it.

    Examples:
        >>> from dllm_decode import Pipeline
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> endless = Pipeline(TopK(1), {"ban": BanTokens()})
        >>> len(Copy(n=4).answer(endless, "abcd")[0])  # a fifth symbol in the place of the end
        5
    """

    def banned_ids(self, vocab: Vocab) -> tuple[int, ...]:
        """The ids, for samplers that truncate the distribution before a transform sees it."""
        return vocab.eot_ids if self.ids is None else tuple(self.ids)

    def adjust(self, view: StepView, memory: None) -> Prediction:
        """The prediction without the ids."""
        return view.pred.suppress(self.chosen(view))


@dataclass(frozen=True)
class DeferTokens(_Suppress):
    """Let tokens be proposed, but prefer any other: their confidence is 0.

    The proposal is the prediction's; confidence and all other statistics come from the distribution
    without the given ids, so every other proposal gains a little.

    Source: LLaDA's `confidence_eos_eot_inf`. Deviation: it also holds for sampled proposals, where
    the released code has no effect on one of its two ids.

    Args:
        ids: token ids, or None for the model's end-of-text ids.

    Raises:
        ConfigError: for ids that are not in the vocabulary, and for all of it.

    Examples:
        >>> from dllm_decode import Pipeline
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.threshold import ConfidenceThreshold
        >>> patient = Pipeline(ConfidenceThreshold(0.9), {"defer": DeferTokens()})
        >>> Copy(n=4).answer(patient, "abcd")  # four symbols, and then the end
        ('abcd', 2)
    """

    def adjust(self, view: StepView, memory: None) -> Prediction:
        """The same proposals with the confidence of the reduced distribution."""
        return view.pred.deferring(self.chosen(view))
