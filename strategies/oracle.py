"""The oracle: commits what is right and nothing else, so it shows how fast decoding could be.

Source: the extremely greedy parallel strategy of Learn2PD, arXiv 2509.25188, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, Memory, Request, Snapshot, StepView
from dllm_decode.errors import ConfigError, require_choice


@dataclass
class ReferenceMemory(Memory):
    """What the oracle follows.

    Attributes:
        tokens: (B, L) the reference by canvas column; prompts and padding hold any token.
    """

    tokens: Tensor


def reference_plane(request: Request, snapshot: Snapshot) -> Tensor:
    """The reference of each row on the canvas, (B, L); behind its end of text the filler.

    Args:
        request: with a reference.
        snapshot: the canvas of its rows.

    Raises:
        ConfigError: for references that are longer than the row, shorter without an end of text,
            or hold a token that is never generated.
    """
    vocab = snapshot.vocab
    plane = torch.full(snapshot.tokens.shape, vocab.filler, dtype=torch.long)
    never = set(vocab.never_generated)
    for row, tokens in enumerate(request.reference or ()):
        given, length = [int(token) for token in tokens], request.lengths[row]
        ended = bool(given) and given[-1] in vocab.eot_ids
        if len(given) > length or (len(given) < length and not ended):
            raise ConfigError(
                f"the reference of row {row} has {len(given)} tokens; it must have {length} "
                "(max_new_tokens), or fewer and end with an end-of-text token"
            )
        fixed = (request.fixed and request.fixed[row]) or {}  # anything but the mask
        wrong = [
            token
            for offset, token in enumerate(given)
            if not 0 <= token < vocab.size or (token in never and fixed.get(offset) != token)
        ]
        if wrong:
            raise ConfigError(
                f"the reference of row {row} contains token {wrong[0]}, which is never generated"
            )
        plane[row, snapshot.start : snapshot.start + len(given)] = torch.tensor(
            given, dtype=torch.long
        )
    return plane.to(snapshot.tokens.device)


@dataclass(frozen=True)
class Oracle(Strategy):
    """Commit exactly the open positions whose most likely token is the reference's.

        commit i  iff  argmax_v p(i, v) = y(i),    y: the tokens of another decode of the same model

    so the result is y, and the forwards it took are what a perfect selection rule would need. Where
    no open position agrees, the model cannot be followed any further and y is written instead.

    Notes, all (B, W) and for every column of the window: `confidence` (of the most likely token),
    `correct` (that token is y's) and `open`; `task=train_filter` learns from them.
    Needs `Request.reference`, which `generate` makes by one-token-per-step decoding of the same
    request; behind a reference's end of text, y is end of text.

    Source: the extremely greedy parallel strategy of Learn2PD, arXiv 2509.25188, section 3.
    Deviation: the published recipe spends one more forward to notice that it is stuck.

    Args:
        stuck: how much of y is written where no position agrees: `one` token, the one the model
            finds most likely, which is the progress every rule is granted; or the rest of the
            `block`, as in the published recipe for training data (more tokens per forward, but
            ones that no rule could have known).

    Raises:
        ConfigError: for other words, and references that do not fit.

    Examples:
        >>> from dllm_decode import Decoder, Request
        >>> from dllm_decode.models.toy import Copy
        >>> world = Copy(n=4)
        >>> prompt = tuple(world.tokenizer.encode("abcd"))
        >>> answer = (*prompt[:4], world.vocab.eot_ids[0])
        >>> Decoder(world, Oracle()).decode(Request((prompt,), 5, reference=(answer,))).forwards
        (1,)
    """

    stuck: str = "one"

    needs_reference = True

    def __post_init__(self) -> None:
        require_choice("stuck", self.stuck, ("one", "block"))

    def begin(self, request: Request, snapshot: Snapshot) -> ReferenceMemory:
        """The reference on the canvas."""
        return ReferenceMemory(reference_plane(request, snapshot))

    def decide(self, view: StepView, memory: ReferenceMemory) -> Decision:
        """The positions that agree, with the reference's tokens."""
        tokens = view.gather(memory.tokens)
        correct = (view.pred.top_token == tokens) & (view.index >= 0)
        notes = {"confidence": view.pred.top_confidence, "correct": correct, "open": view.open}
        agree = view.open & correct
        if self.stuck == "block":
            agree = torch.where(agree.any(1, keepdim=True), agree, view.open)
        # scores stay open: they are the probabilities of these tokens
        return Decision(agree, tokens=tokens, notes=notes)
