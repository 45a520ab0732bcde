"""CCD: commit what contexts agree on, as released (two proposals) and as published (their mean)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_decode.decoding.selection import best, order_scores, ordered
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, Memory, Request, Snapshot, StepView
from dllm_decode.errors import require_choice, require_count, require_in_range


@dataclass
class CandidateMemory(Memory):
    """What the last step left behind, by generated column (the last one takes empty slots).

    Attributes:
        width: (B,) candidate width V.
        runner_up: (B, G + 1) bool, the best positions that were left open.
        token: (B, G + 1) what was proposed there.
    """

    width: Tensor
    runner_up: Tensor
    token: Tensor


@dataclass(frozen=True)
class ReleasedCCD(Strategy):
    """Commit the sharpest position, or several that two steps in a row agree on.

    Order the open positions by falling negative entropy. A step commits the best one, unless that
    was a runner-up of the step before; then it commits

        m = { i among the best V : i was a runner-up, and its proposal is that of the step before }

    (all of m with seek, the best of m otherwise; the best position where m is empty). Runners-up of
    a step are the best V positions that it leaves open. V is 1 in the first warm_up_steps - 1
    steps, grows by one per step up to 1 + floor(expand_ratio), and falls to 1 before growing
    where at most a tenth of the canvas is open.

    Source: the released code of CCD, arXiv 2512.02044, which its authors call preliminary: the
    paper averages the predicted distributions over the last steps, the code does not. Deviations:
    any number of rows, and one position per step outside m (as its defaults have it). Use it with
    schedule=whole, as released.

    Args:
        expand_ratio: how far V may grow, 0 or more; below 1 one position goes per step.
        warm_up_steps: first steps, which commit the best position only; 1 or more.
        seek: commit all of m (dynamic budget, CCD-DS) instead of one position (CCD).

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.decoding.schedule import WholeCanvas
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=6).answer(ReleasedCCD(warm_up_steps=2), "abcdef", schedule=WholeCanvas())
        ('abcdef', 5)
    """

    expand_ratio: float = 4.0
    warm_up_steps: int = 5
    seek: bool = True

    needs_window = True

    def __post_init__(self) -> None:
        require_in_range("expand_ratio", self.expand_ratio, 0.0, 1e6)
        require_count("warm_up_steps", self.warm_up_steps)

    def begin(self, request: Request, snapshot: Snapshot) -> CandidateMemory:
        """The memory before the first step: a width of 1 and no runners-up."""
        rows, columns = snapshot.tokens.shape
        nothing = torch.zeros_like(snapshot.tokens[:, :1]).expand(
            rows, columns - snapshot.start + 1
        )
        return CandidateMemory(torch.ones_like(snapshot.horizon), nothing.bool(), nothing.clone())

    def decide(self, view: StepView, memory: CandidateMemory) -> Decision:
        """The best position or the agreeing ones."""
        scores = order_scores(view, "entropy")
        memory.width = self._width(view, memory.width)
        column = _column(view, memory)
        was_runner_up = memory.runner_up.gather(1, column)
        agrees = was_runner_up & (memory.token.gather(1, column) == view.pred.token)
        matched = best(scores, view.open, memory.width) & agrees
        if not self.seek:
            matched = best(scores, matched)
        first = best(scores, view.open)
        expand = (first & was_runner_up).any(1) & matched.any(1) & ~self._warming(view)
        commit = torch.where(expand[:, None], matched, first)
        runner_up = best(scores, view.open & ~commit, memory.width)
        memory.runner_up = torch.zeros_like(memory.runner_up).scatter(1, column, runner_up)
        memory.token = memory.token.scatter(1, column, view.pred.token)
        return Decision(commit, scores=scores)

    def _warming(self, view: StepView) -> Tensor:
        return view.step < self.warm_up_steps

    def _width(self, view: StepView, width: Tensor) -> Tensor:
        """The candidate width V of this step, (B,)."""
        columns = view.snapshot.end - view.snapshot.start
        few = view.masked.sum(1) <= 0.1 * columns
        grown = torch.where(few, 1, width) + 1
        grown = grown.clamp(max=1 + int(self.expand_ratio))
        return torch.where(view.step < self.warm_up_steps - 1, 1, grown)


def _column(view: StepView, memory: CandidateMemory) -> Tensor:
    """Each slot's place in the memory, (B, W); absent slots share the last one."""
    spare = memory.token.shape[1] - 1
    return torch.where(view.index >= 0, view.index - view.snapshot.start, spare)


@dataclass
class ContextMemory(Memory):
    """What was predicted in the last steps where the model was surest, the latest step first.

    Attributes:
        column: (B, d - 1, V) generated columns, -1 where there was none.
        probs: (B, d - 1, V, vocabulary) float32, the distributions there.
    """

    column: Tensor
    probs: Tensor


@dataclass(frozen=True)
class ContextualCCD(Strategy):
    """Commit where the mean prediction of the last contexts is sharpest.

        pbar(i) = mean of p(i) over the steps among the last `contexts` in which i was a candidate
        commit    the candidate with the smallest H(pbar), and with a threshold all candidates with
                  H(pbar) <= threshold that were candidates in all of these steps

    Candidates of a step are its `candidates` surest open positions, so that pbar always holds the
    present prediction. The entropy of the mean is that of the predictions plus how far they are
    apart: H(pbar) = mean H(p) + mean KL(p || pbar).

    Source: Coherent Contextual Decoding, arXiv 2512.02044: CCD without a threshold, CCD-DS with
    one. What secondary sources leave open is decided so: a position that was no candidate in some
    of the steps has the mean of the others, and what is committed is the present proposal.

    Args:
        contexts: d, steps that are averaged, this one included, 1 or more; the paper takes 2 for
            LLaDA and 3 for Dream.
        candidates: V, positions that are remembered per step, 1 or more.
        threshold: entropy of the mean up to which candidates are committed together [nats]; None:
            one position per step.
        surest: what makes a candidate, `confidence` (LLaDA) or `entropy` (Dream).

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.decoding.schedule import WholeCanvas
        >>> from dllm_decode.models.toy import Copy
        >>> Copy(n=6).answer(ContextualCCD(), "abcdef", schedule=WholeCanvas())
        ('abcdef', 4)
    """

    contexts: int = 2
    candidates: int = 4
    threshold: float | None = 0.1
    surest: str = "confidence"

    def __post_init__(self) -> None:
        require_count("contexts", self.contexts)
        require_count("candidates", self.candidates)
        if self.threshold is not None:
            require_in_range("threshold", self.threshold, 0.0, 1e6, unit="nats")
        require_choice("surest", self.surest, ("confidence", "entropy"))

    def begin(self, request: Request, snapshot: Snapshot) -> ContextMemory:
        """No contexts yet."""
        shape = (snapshot.tokens.shape[0], self.contexts - 1, self.candidates)
        column = snapshot.tokens.new_full(shape, -1)
        return ContextMemory(column, torch.zeros(*shape, snapshot.vocab.size, device=column.device))

    def decide(self, view: StepView, memory: ContextMemory) -> Decision:
        """The candidates whose mean is sharp enough, at least the sharpest."""
        slot = ordered(order_scores(view, self.surest), view.open)[:, : self.candidates]
        real = view.open.gather(1, slot)
        column = torch.where(real, view.index.gather(1, slot) - view.snapshot.start, -1)
        probs = _distributions(view, slot)
        mean, seen = _mean(column, probs, memory)
        # where every token has been removed there is nothing to be sure of
        gone = view.pred.top_token.gather(1, slot) < 0
        scores = (-_entropy(mean)).masked_fill(gone, float("-inf"))
        chosen = best(scores, real)
        if self.threshold is not None:
            chosen = chosen | real & (seen == self.contexts) & (scores >= -self.threshold)
        self._remember(memory, column, probs)
        everywhere = scores.new_full(view.open.shape, float("-inf"))
        commit = torch.zeros_like(view.open).scatter(1, slot, chosen)
        return Decision(commit, scores=everywhere.scatter(1, slot, scores))

    def _remember(self, memory: ContextMemory, column: Tensor, probs: Tensor) -> None:
        """This step in front of those before, the oldest forgotten."""
        if self.contexts == 1:
            return
        missing = self.candidates - column.shape[1]  # a window narrower than that
        column = torch.nn.functional.pad(column, (0, missing), value=-1)
        probs = torch.nn.functional.pad(probs, (0, 0, 0, missing))
        memory.column = torch.cat([column[:, None], memory.column], 1)[:, : self.contexts - 1]
        memory.probs = torch.cat([probs[:, None], memory.probs], 1)[:, : self.contexts - 1]


def _distributions(view: StepView, slot: Tensor) -> Tensor:
    """What is predicted at some slots, (B, V, vocabulary) float32."""
    logits = view.pred.logits
    rows = logits.gather(1, slot[..., None].expand(-1, -1, logits.shape[2]))
    return rows.softmax(-1).float().nan_to_num(nan=0.0)


def _mean(column: Tensor, probs: Tensor, memory: ContextMemory) -> tuple[Tensor, Tensor]:
    """The mean distribution of each candidate, and over how many steps it is one, (B, V)."""
    total, seen = probs, torch.ones_like(column)
    for past, known in zip(memory.probs.unbind(1), memory.column.unbind(1), strict=True):
        same = (column[..., None] == known[:, None, :]) & (column >= 0)[..., None]
        place = same.int().argmax(-1)[..., None].expand(-1, -1, past.shape[2])
        found = same.any(-1)
        total = total + past.gather(1, place) * found[..., None]
        seen = seen + found
    return total / seen[..., None], seen


def _entropy(probs: Tensor) -> Tensor:
    """Entropy in nats of distributions (B, V, vocabulary), exact also where they are sharp."""
    top = probs.argmax(-1, keepdim=True)
    others = probs.scatter(-1, top, 0.0)
    rest = others.sum(-1).clamp(max=1.0)
    # the term of the likeliest, which is 1 - rest, without rounding rest away
    likeliest: Tensor = torch.special.xlog1py(1.0 - rest, -rest)
    entropy: Tensor = torch.special.entr(others).sum(-1) - likeliest
    return entropy
