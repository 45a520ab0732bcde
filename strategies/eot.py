"""End-of-text detection: how far a row is still worth decoding.

What lies behind the horizon is neither decoded nor attended to, so every rule here saves work; they
differ in how much evidence they ask for before they cut. A cut cannot be undone.

Two things hold for all of them. An end of text inside the prompt means nothing. Tokens that the
caller fixed are part of the answer, so nothing is ever cut off in front of one: an end of text
counts only from the row's last fixed column on (and a fixed one counts like a committed one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_decode.decoding.cache import mask_of
from dllm_decode.decoding.selection import best, order_scores
from dllm_decode.decoding.strategy import StopRule
from dllm_decode.decoding.types import Change, Request, Snapshot, StepView, Vocab, first_column
from dllm_decode.errors import (
    CapabilityError,
    ConfigError,
    require_choice,
    require_in_range,
)


@dataclass(frozen=True, kw_only=True)
class _EotRule(StopRule):
    """What the rules share: which ids end a text, and where a row may be cut.

    Args:
        ids: token ids that end a text, None for the model's own.
    """

    ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.ids is None:
            return
        whole = [isinstance(token, int) and not isinstance(token, bool) for token in self.ids]
        if not whole or not all(whole):
            raise ConfigError(
                f"ids must be null (the model's own) or a list of token ids, got {self.ids!r}"
            )

    def end_ids(self, vocab: Vocab) -> tuple[int, ...]:
        """Those that it was given, or the model's own."""
        return vocab.eot_ids if self.ids is None else tuple(self.ids)

    def begin(self, request: Request, snapshot: Snapshot) -> None:
        """No memory; refuses ids that the vocabulary does not have."""
        for token in self.ids or ():
            if not 0 <= token < snapshot.vocab.size:
                raise ConfigError(f"ids must lie in [0, {snapshot.vocab.size - 1}], got {token}")

    def _is_end(self, tokens: Tensor, snapshot: Snapshot) -> Tensor:
        """Where tokens end a text, same shape."""
        return torch.isin(tokens, snapshot.ids(self.end_ids(snapshot.vocab)))

    def _may_end(self, snapshot: Snapshot) -> Tensor:
        """Columns a row may be cut behind: generated, live, no fixed column behind, (B, L)."""
        return snapshot.behind_fixed & snapshot.live

    def _behind(self, snapshot: Snapshot, column: Tensor) -> Tensor:
        """Horizon behind a column (B,); the present one where it lies beyond the canvas."""
        return torch.where(column < snapshot.tokens.shape[1], column + 1, snapshot.horizon)

    def _on_canvas(self, slots: Tensor, view: StepView) -> Tensor:
        """Slots (B, W) as a plane (B, L)."""
        width = view.snapshot.tokens.shape[1]
        return mask_of(torch.where(slots, view.index, -1), width)


@dataclass(frozen=True, kw_only=True)
class CommittedEot(_EotRule):
    """End a row behind its first committed end of text, once everything before it is decided.

    With whole_prefix the text up to its end is exactly what full-length decoding gives, because
    the row is finished the moment it is cut.

    Args:
        whole_prefix: wait until no column in front of it is open; False cuts at the commit, while
            columns in front are still open (which are then decided without the columns cut off).
        ids: token ids that end a text, None for the model's own.

    Raises:
        ConfigError: for ids that do not exist.

    Examples:
        >>> from dllm_decode import Pipeline
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> ending = Pipeline(TopK(1), stop={"eot": CommittedEot()})
        >>> Copy(n=4).answer(ending, "ab")
        ('ab', 3)
    """

    whole_prefix: bool = True

    def horizon(self, snapshot: Snapshot, view: StepView, change: Change, memory: None) -> Tensor:
        """One past the first end of text that counts, (B,)."""
        ends = snapshot.decided & self._is_end(snapshot.tokens, snapshot) & self._may_end(snapshot)
        end = first_column(ends)
        limit = snapshot.first_undecided if self.whole_prefix else snapshot.tokens.shape[1]
        return torch.where(end < limit, end + 1, snapshot.horizon)


@dataclass(frozen=True, kw_only=True)
class AcceptedEot(_EotRule):
    """Cut a row right behind the leftmost end of text that a learned filter accepted.

    Columns in front of the cut may still be open; the cut column itself is committed. Source: the
    first branch of Learn2PD's EoTP, arXiv 2509.25188.

    Args:
        ids: token ids that end a text, None for the model's own.

    Raises:
        ConfigError: for ids that do not exist.
        CapabilityError: in the first step of a selection that has no note `accepted`.

    Examples:
        >>> AcceptedEot(ids=[10]).ids
        [10]
    """

    def horizon(self, snapshot: Snapshot, view: StepView, change: Change, memory: None) -> Tensor:
        """One past the leftmost accepted end of text of this step, (B,)."""
        return self._behind(snapshot, self._accepted(snapshot, view, change))

    def _accepted(self, snapshot: Snapshot, view: StepView, change: Change) -> Tensor:
        """Column of the leftmost accepted end of text, (B,); beyond the canvas where none is."""
        if "accepted" not in change.notes:
            raise CapabilityError(
                "needs to know which positions a learned filter accepted, and the selection does "
                "not say; use strategy/select=learn2pd, or strategy/stop=eot"
            )
        ends = change.commit & change.notes["accepted"] & self._is_end(change.tokens, snapshot)
        return first_column(self._on_canvas(ends, view) & self._may_end(snapshot))


@dataclass(frozen=True, kw_only=True)
class PredictedEot(AcceptedEot):
    """Cut a row behind an end of text that is only predicted yet (EoTP).

    Looks at the positions that were open before this step, with the tokens and confidences that the
    model proposed there (before transforms). Nothing is committed at the cut column: a later step
    may put another token there, so a text can end without an end of text, and a cut too early
    cannot be taken back.

    Source: Learn2PD, arXiv 2509.25188. Its released code is scope=canvas (block where it caches),
    trigger=most_confident, threshold=0, accepted_first=true, and knows one id only; the paper
    speaks of a resolved end of text, which is `CommittedEot`.

    Args:
        scope: `block` (the current window) or `canvas` (every open column up to the horizon).
        trigger: `first` (the leftmost such position) or `most_confident`.
        threshold: confidence that it needs, probability in [0, 1].
        accepted_first: cut behind the leftmost end of text that a learned filter accepted in this
            step, if there is one, and look at predictions only otherwise.
        ids: token ids that end a text, None for the model's own.

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode import Pipeline
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Copy(n=4).answer(Pipeline(TopK(1), stop={"eot": PredictedEot()}), "ab")
        ('ab', 3)
    """

    scope: str = "block"
    trigger: str = "first"
    threshold: float = 0.9
    accepted_first: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("scope", self.scope, ("block", "canvas"))
        require_choice("trigger", self.trigger, ("first", "most_confident"))
        require_in_range("threshold", self.threshold, 0.0, 1.0)

    @property
    def sees_canvas(self) -> bool:  # type: ignore[override]
        """With scope `canvas`, all open columns must be predicted."""
        return self.scope == "canvas"

    def horizon(self, snapshot: Snapshot, view: StepView, change: Change, memory: None) -> Tensor:
        """One past the predicted (or accepted) end of text, (B,)."""
        confidence = view.pred.confidence
        hits = view.masked if self.scope == "canvas" else view.open
        hits = hits & view.gather(self._may_end(snapshot)) & (confidence >= self.threshold)
        hits = hits & self._is_end(view.pred.token, snapshot)
        if self.trigger == "most_confident":
            hits = best(order_scores(view), hits)
        column = first_column(self._on_canvas(hits, view))
        if self.accepted_first:
            accepted = self._accepted(snapshot, view, change)
            column = torch.where(accepted < snapshot.tokens.shape[1], accepted, column)
        return self._behind(snapshot, column)
