"""FreeDave: draft several steps of a rule from one prediction, and verify them in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.decoding.ahead import remembers, step_of
from dllm_decode.decoding.strategy import (
    EveryStep,
    Pipeline,
    RuleWrapper,
    Strategy,
)
from dllm_decode.decoding.types import (
    Carry,
    Decision,
    Memory,
    Request,
    Snapshot,
    StepView,
)
from dllm_decode.errors import CapabilityError, ConfigError, require_count
from dllm_decode.strategies.threshold import ConfidenceThreshold


@dataclass(frozen=True)
class FreeDave(RuleWrapper):
    """Commit as many steps of a rule at once as one verifying pass confirms.

        draft    D(1), D(2), ... D(K): the states after 1 ... K steps of the rule, all decided by
                 this step's prediction; D(1) is right by definition
        verify   predictions at all of them in one batched pass
        accept   the largest a such that the rule, given the prediction at D(j), leads from D(j) to
                 D(j + 1), for every j < a

    The prediction at D(a) is kept: the next step begins with it and runs no pass of its own. A row
    gets the tokens that the rule alone would give it, in fewer passes and more computed rows; where
    a sampler draws as well, because step s + j is drafted and verified with the random numbers of
    step s + j. Windows that move with every commit stand still while drafts are made, and stop
    rules that end a row before its prefix is finished are asked once per pass: with these its
    tokens may be others.

    Source: FreeDave, arXiv 2510.00294 (and PSD, arXiv 2605.15609, for the drafts of several steps
    of any rule). Deviations: drafts are a chain, each a step of the rule, where the released code
    nests 1 ... K best positions; drafts end at the border of the window.

    Args:
        rule: what is sped up: a strategy, or a pipeline of one with transforms and filters, without
            memory, of which each step commits at least one position and opens none again.
        drafts: K, alternatives per verifying pass, 1 or more; 1 gives the rule itself, its passes
            moved to the end of each step.

    Raises:
        ConfigError: for rules that revise, have a budget of steps, or stop rules of their own.
        CapabilityError: in `begin`, for rules with a memory.

    Examples:
        >>> from dllm_decode.decoding.loop import Decoder
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> world = Copy(n=4)
        >>> world.answer(TopK(2), "abcd")
        ('abcd', 3)
        >>> request = Request((tuple(world.tokenizer.encode("abcd")),), 5)
        >>> result = Decoder(world, FreeDave(TopK(2))).decode(request)
        >>> world.tokenizer.decode(list(result.sequences[0])), result.passes, result.forwards
        ('abcd', (2,), (3,))
    """

    rule: Strategy = field(default_factory=ConfidenceThreshold)
    drafts: int = 4
    needs_window: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_count("drafts", self.drafts)
        kind = type(self.rule).__name__
        if not isinstance(self.rule, Strategy):
            raise ConfigError(f"rule must be a Strategy, got {kind}")
        if self.rule.revocable or self.rule.revises or self.rule.progress != EveryStep():
            raise ConfigError(
                f"rule ({kind}) cannot be drafted: each of its steps must commit a position, and "
                "open none again"
            )
        if isinstance(self.rule, Pipeline) and self.rule.stop:
            raise ConfigError("stop rules belong beside freedave, not into its rule")

    def begin(self, request: Request, snapshot: Snapshot) -> Memory | None:
        """What the rule's parts begin with, which must be nothing."""
        memory = self.rule.begin(request, snapshot)
        if remembers(memory):
            raise CapabilityError(
                f"rule ({type(self.rule).__name__}) remembers earlier steps, which drafts would "
                "have to take back; use a rule without memory, such as threshold, entropy_bound or "
                "topk"
            )
        return memory

    def decide(self, view: StepView, memory: Memory | None) -> Decision:
        """The steps that one verifying pass confirms."""
        state = view.for_part("rule")
        drafts, changes, within = [], [], []
        for ahead in range(self.drafts):
            state, change, faults = step_of(self.rule, state, view.later(ahead), memory)
            drafts.append(state)
            changes.append(change)
            within.append(faults)
        going_on = torch.stack([draft.open.any(1) for draft in drafts], 1)
        ahead_of = range(1, self.drafts + 1)
        found = view.probe([draft.tokens for draft in drafts], rows=going_on, ahead=ahead_of)
        accepted = torch.ones_like(view.step)
        committed, confidence = changes[0].commit, changes[0].confidence
        alive = going_on[:, 0]
        for ahead in range(1, self.drafts):
            state, change, faults = step_of(self.rule, drafts[ahead - 1], found[ahead - 1], memory)
            within.append(faults)
            alive = alive & _same(state, drafts[ahead])
            commit = change.commit & alive[:, None]
            confidence = torch.where(commit, change.confidence, confidence)
            committed = committed | commit
            accepted = accepted + alive
            alive = alive & going_on[:, ahead]
        tokens = torch.stack([draft.tokens for draft in drafts], 1)
        last = (accepted - 1)[:, None]
        row = torch.arange(len(last), device=last.device)
        return Decision(
            committed,
            tokens=tokens[row, last[:, 0]],
            scores=changes[0].scores,
            confidence=confidence,
            steps=accepted,
            carry=Carry(found, torch.where(going_on.gather(1, last)[:, 0], last[:, 0], -1)),
            within=tuple(within),
        )


def _same(one: StepView, other: StepView) -> Tensor:
    """Rows in which two states hold the same, (B,) bool."""
    return (one.open == other.open).all(1) & (one.tokens == other.tokens).all(1)
