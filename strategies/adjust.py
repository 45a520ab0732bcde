"""ADJUST: several commits per forward pass, each decided after the ones before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch

from dllm_decode.decoding.ahead import step_of
from dllm_decode.decoding.denoiser import Drafter
from dllm_decode.decoding.strategy import EveryStep, Pipeline, RuleWrapper, Strategy
from dllm_decode.decoding.types import Decision, Memory, StepView
from dllm_decode.errors import ConfigError, require_count
from dllm_decode.models.drafting import LayerDrafter
from dllm_decode.strategies.fixed import TopK


@dataclass(frozen=True)
class Adjust(RuleWrapper):
    """Several steps of a rule per forward pass, the later ones with what a draft layer predicts.

        h_0 = the model's states,   p_0 = head(h_0)
        step n of the rule, n = 0 ... K: decided by p_n
        h_n = draft layer(tokens that stand after step n - 1, h_(n-1)),   p_n = head(h_n)

    The rule that commits the surest position gives K + 1 tokens per forward pass, each of which has
    seen those before it; `threshold` gives what reaches the threshold, and then what reaches it
    once that stands. The layer is trained to say what the model would say (`task=train_drafter`):
    where it does, the tokens are those of the rule alone, at temperature above 0 as well, because
    step n is drawn with the random numbers of step n. A layer that changes nothing gives what the
    rule commits on one prediction.

    Source: ADJUST, arXiv 2509.22738, strategy `fixed`. Deviations: no draft follows the last commit
    of a step; ids that are never generated are removed from drafts too; what is committed per pass
    is a rule, and not a share of what is masked in the whole batch.

    Args:
        rule: what a step commits: a strategy, or a pipeline of one with transforms and filters, of
            which each step commits at least one position and opens none again.
        drafts: K, steps of the rule behind the one that the model itself decides, 0 or more.
        weights: safetensors file of the draft layer, or `bundled:NAME`; from Python any `Drafter`;
            one with a method `to`, as a module has it, is moved to the device of the model.
        match_model: refuse a layer that was trained for another checkpoint.

    Raises:
        ConfigError: for rules that revise, have a budget of steps, or stop rules of their own.
        CheckpointError: for weights that cannot be read.

    Examples:
        >>> Adjust(drafts=1).drafts  # two tokens per forward pass
        1
    """

    rule: Strategy = field(default_factory=lambda: TopK(1, "entropy"))
    drafts: int = 3
    weights: str | Drafter = "bundled:llada-tiny"
    match_model: bool = True
    needs = frozenset({"hidden", "embeddings"})

    def __post_init__(self) -> None:
        require_count("drafts", self.drafts, minimum=0)
        if not self.weights or not (isinstance(self.weights, str) or callable(self.weights)):
            raise ConfigError(
                f"weights must be a safetensors file or bundled:NAME, got {self.weights!r}"
            )
        kind = type(self.rule).__name__
        if not isinstance(self.rule, Strategy):
            raise ConfigError(f"rule must be a Strategy, got {kind}")
        rule = self.rule
        if rule.revocable or rule.revises or rule.progress != EveryStep() or _wraps(rule):
            raise ConfigError(
                f"rule ({kind}) cannot be drafted: each of its steps must commit a position, and "
                "open none again"
            )
        if isinstance(rule, Pipeline) and rule.stop:
            raise ConfigError("stop rules belong beside adjust, not into its rule")
        _ = self.drafter

    @cached_property
    def drafter(self) -> Drafter:
        """The draft layer as read from `weights`."""
        return LayerDrafter.load(self.weights) if isinstance(self.weights, str) else self.weights

    @property
    def model_fingerprint(self) -> str | None:
        """The model the layer was trained for, None where that is not to be checked."""
        made_for: str | None = getattr(self.drafter, "fingerprint", None)
        return made_for if self.match_model else None

    @property
    def drafter_widths(self) -> tuple[int, int] | None:
        """What the layer is for; None for drafters that do not say it."""
        widths: tuple[int, int] | None = getattr(self.drafter, "widths", None)
        return widths

    def decide(self, view: StepView, memory: Memory | None) -> Decision:
        """What all steps commit, each decided when the ones before it stand."""
        state, first, faults = step_of(self.rule, view.for_part("rule"), view.pred, memory)
        within = [faults]
        commit, confidence = first.commit, first.confidence
        steps = torch.ones_like(view.step)
        for ahead in range(1, self.drafts + 1):
            going_on = state.open.any(1)
            pred = view.draft(state.tokens, rows=going_on, ahead=ahead)
            state, change, faults = step_of(self.rule, state, pred, memory)
            within.append(faults)
            commit = commit | change.commit
            confidence = torch.where(change.commit, change.confidence, confidence)
            steps = steps + going_on
        return Decision(
            commit,
            tokens=state.tokens,
            scores=first.scores,
            confidence=confidence,
            steps=steps,
            within=tuple(within),
        )


def _wraps(rule: Strategy) -> bool:
    """Whether a rule, or one inside it, stands for several steps itself."""
    return any(isinstance(part, Strategy) and part.wraps for _, part in rule.parts())
