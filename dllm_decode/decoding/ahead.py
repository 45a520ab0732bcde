"""Steps of a rule that are decided before the loop has taken them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dllm_decode.decoding import calls
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.settle import Faults, settle
from dllm_decode.decoding.strategy import PipelineMemory, Strategy
from dllm_decode.decoding.types import Change, Memory, StepView


def after(view: StepView, commit: Tensor, tokens: Tensor) -> StepView:
    """The same window one step later.

    Args:
        view: a step.
        commit: (B, W) bool, open slots that the step decides.
        tokens: (B, W) what stands at the slots then.
    """
    snapshot, width = view.snapshot, view.snapshot.tokens.shape[1]
    columns = torch.where(commit, view.index, width)
    hit = torch.zeros_like(snapshot.decided[:, :1]).expand(-1, width + 1)
    hit = hit.scatter(1, columns, commit)[:, :width]
    held = torch.cat([snapshot.tokens, snapshot.tokens[:, :1]], 1)
    held = held.scatter(1, columns, tokens)[:, :width]
    later = replace(snapshot, tokens=held, decided=snapshot.decided | hit)
    return replace(
        view,
        step=view.step + 1,
        tokens=tokens,
        open=view.open & ~commit,
        masked=view.masked & ~commit,
        settled=view.settled | commit,
        fresh=torch.zeros_like(view.fresh),
        window_step=view.window_step + 1,
        steps_left=later.undecided.sum(1),
        snapshot=later,
        noise=replace(view.noise, step=view.noise.step + 1),
    )


def remembers(memory: Memory | None) -> bool:
    """Whether a rule's memory holds anything, which steps that are taken back would spoil.

    Args:
        memory: what the rule began with.
    """
    if isinstance(memory, PipelineMemory):
        return any(remembers(part) for part in memory.parts.values())
    return memory is not None


def step_of(
    rule: Strategy, view: StepView, pred: Prediction, memory: Memory | None
) -> tuple[StepView, Change, Faults]:
    """One step of a rule with a given prediction: the state after it, what it did, and its faults.

    Args:
        rule: whose step it is.
        view: the state before, seen by the rule.
        pred: what the step is decided by.
        memory: of the rule.
    """
    view = view.with_prediction(pred)
    change, faults = settle(view, calls.decide(rule, view, memory), rule)
    tokens = torch.where(change.commit, change.tokens, view.tokens)
    return after(view, change.commit, tokens), change, faults
