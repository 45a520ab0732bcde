"""What the fused kernels must do, whatever runs them: Triton's interpreter or a GPU.

Everything is compared with `reference` in float64 on the same logits, which are exact there.
Tolerances: the kernels compute in float32 whatever the dtype of the logits, so they are the same
for all dtypes. A sum of positive terms keeps a relative error of a few float32 roundings plus that
of exp, which grows with its argument: 1e-5 for `rest` and `moment` (all terms of one sign each).
Maxima, ids and logits at ids are copies and must be equal. Statistics of raised logits inherit the
error of both sums, so their moment is held to 1e-5 of their total as well. Products of the head are
summed in another order: their error is that of D float32 additions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from hypothesis import strategies as st
from torch import Tensor

from dllm_decode.decoding.prediction import GumbelDraw, Prediction
from dllm_decode.kernels import dispatch, fused, reference
from dllm_decode.kernels.noise import Noise
from dllm_decode.kernels.reference import RowStatistics

SUMS = 1e-5
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("normal", "ties", "huge", "tiny", "holes", "sparse", "peaked")


@dataclass(frozen=True)
class Case:
    """A recipe for a batch of rows; `spare` columns lie between the rows in memory."""

    rows: int
    vocabulary: int
    dtype: torch.dtype
    kind: str
    spare: int
    bans: int
    seed: int

    def logits(self, device: str) -> tuple[Tensor, Tensor]:
        """Logits (N, V) of this case and banned ids, at least one id left in every row."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.rows, self.vocabulary + self.spare)
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
        if self.kind == "ties":
            # several maxima in most blocks
            x = x.round().clamp(-2, 2)
        elif self.kind == "huge":
            x = x * (3e3 if self.dtype == torch.float16 else 1e37)
        elif self.kind == "tiny":
            x = x * 1e-6
        elif self.kind == "holes":
            x[torch.rand(shape, generator=generator) < 0.7] = float("-inf")
        elif self.kind == "sparse":
            x[torch.rand(shape, generator=generator) < 0.98] = float("-inf")
        elif self.kind == "peaked":
            x = x.masked_fill(torch.rand(shape, generator=generator) < 2 / shape[1], 40.0)
        kept = torch.randint(self.vocabulary, (1,), generator=generator)
        x[:, kept] = x[:, kept].nan_to_num(neginf=-1.0)
        banned = torch.randint(self.vocabulary, (self.bans,), generator=generator)
        banned = banned[banned != kept]
        return x.to(self.dtype).to(device)[:, : self.vocabulary], banned.to(device)

    def ids(self, slots: int, device: str) -> Tensor:
        """Ids (N, slots), distinct within a row where there are enough, some slots empty."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        order = torch.rand(self.rows, max(self.vocabulary, slots), generator=generator).argsort(1)
        ids = order[:, :slots]
        empty = torch.rand(self.rows, slots, generator=generator) < 0.4
        return ids.masked_fill(empty | (ids >= self.vocabulary), -1).to(device)

    def states(self, device: str) -> Tensor:
        """One hash state per row."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        states = torch.randint(-(2**63), 2**63 - 1, (self.rows,), generator=generator)
        return states.to(device)


def cases(rows: st.SearchStrategy[int], vocabulary: st.SearchStrategy[int]) -> st.SearchStrategy:
    """Cases of every dtype and kind."""
    return st.builds(
        Case,
        rows=rows,
        vocabulary=vocabulary,
        dtype=st.sampled_from(DTYPES),
        kind=st.sampled_from(KINDS),
        spare=st.sampled_from((0, 1, 16)),
        bans=st.sampled_from((0, 1, 4)),
        seed=st.integers(0, 2**32),
    )


@contextmanager
def poisoned() -> Iterator[None]:
    """Every buffer that is not filled by the kernel holds nonsense."""
    empty = torch.empty

    def poison(*args: object, **kwargs: object) -> Tensor:
        buffer = empty(*args, **kwargs)
        if buffer.dtype == torch.bool:
            buffer.view(torch.int8).fill_(77)
        else:
            buffer.fill_(float("nan") if buffer.dtype.is_floating_point else -77)
        return buffer

    with mock.patch.object(torch, "empty", poison):
        yield


@contextmanager
def parts(block: int, blocks: int) -> Iterator[None]:
    """Rows read in programs of so many blocks of so many ids."""

    def layout(rows: int, vocabulary: int) -> tuple[int, int, int]:
        return block, block * blocks, -(-vocabulary // (block * blocks))

    with mock.patch.object(fused, "layout", layout):
        yield


def assert_close(ours: Tensor, exact: Tensor, relative: float, absolute: float = 1e-30) -> None:
    torch.testing.assert_close(
        ours.double(), exact.double(), rtol=relative, atol=absolute, equal_nan=False
    )


def assert_same_statistics(ours: RowStatistics, exact: RowStatistics) -> None:
    assert torch.equal(ours.token, exact.token)
    assert torch.equal(ours.maximum.double(), exact.maximum)
    assert_close(ours.rest, exact.rest, SUMS)
    assert_close(ours.moment, exact.moment, SUMS, 1e-12)
    for name in ("top_values", "top_ids", "at"):
        mine, theirs = getattr(ours, name), getattr(exact, name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert torch.equal(mine.to(theirs.dtype), theirs)


def check_statistics(case: Case, device: str, k: int) -> None:
    logits, banned = case.logits(device)
    before = logits.clone()
    ids = case.ids(3, device)
    with poisoned():
        ours = fused.row_statistics(logits, banned, min(k, case.vocabulary), ids)
    exact = reference.row_statistics(logits.double(), banned, min(k, case.vocabulary), ids)
    assert_same_statistics(ours, exact)
    assert torch.equal(logits, before)


def check_parts_agree(case: Case, device: str, block: int, blocks: int) -> None:
    """However a row is split, ids and draws are equal and sums agree."""
    logits, banned = case.logits(device)
    states, k = case.states(device), min(4, case.vocabulary)
    with poisoned(), parts(block, blocks):
        split, drawn = fused.gumbel_statistics(logits, states, 0.8, banned, k)
    whole = reference.row_statistics(logits.double(), banned, k)
    assert_same_statistics(split, whole)
    # short blocks also here: the compiler unrolls a block, and noise takes hundreds of instructions
    own = min(1024, max(16, 1 << (case.vocabulary - 1).bit_length()))
    with poisoned(), parts(own, -(-case.vocabulary // own)):
        unsplit, again = fused.gumbel_statistics(logits, states, 0.8, banned, k)
    assert torch.equal(drawn, again)
    assert torch.equal(split.token, unsplit.token)
    assert_close(split.rest, unsplit.rest, SUMS)


def check_permutation(case: Case, device: str) -> None:
    """A row's numbers do not depend on its place in the batch.

    To the last bit, except where rows begin in the middle of 16 bytes: there the order of the sums
    depends on where.
    """
    logits, banned = case.logits(device)
    states = case.states(device)
    order = torch.randperm(case.rows, generator=torch.Generator().manual_seed(1)).to(device)
    ours, drawn = fused.gumbel_statistics(logits, states, 1.0, banned)
    moved, moved_drawn = fused.gumbel_statistics(logits[order], states[order], 1.0, banned)
    assert torch.equal(drawn[order], moved_drawn)
    aligned = all(x.stride(0) * x.element_size() % 16 == 0 for x in (logits, logits[order]))
    for name in ("token", "maximum", "rest", "moment"):
        here, there = getattr(ours, name)[order], getattr(moved, name)
        if aligned or name in ("token", "maximum"):
            assert torch.equal(here, there)
        else:
            assert_close(here, there.double(), SUMS, 1e-12)


def check_draws(case: Case, device: str, temperature: float) -> None:
    """The kernel draws what the definition draws."""
    logits, banned = case.logits(device)
    states = case.states(device)
    with poisoned():
        ours, drawn = fused.gumbel_statistics(logits, states, temperature, banned)
    # the definition divides in float32, so it is evaluated in float32 and on the CPU
    expected = reference.gumbel_argmax(
        logits.cpu().float(), states.cpu(), temperature, banned.cpu()
    )
    assert torch.equal(drawn.cpu(), expected)
    assert_same_statistics(ours, reference.row_statistics(logits.double(), banned))


def chi_square(drawn: Tensor, probabilities: Tensor) -> float:
    """Pearson's statistic of drawn ids against their probabilities."""
    counts = torch.bincount(drawn.cpu(), minlength=probabilities.numel()).double()
    expected = probabilities.double() * drawn.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def check_frequencies(device: str, rows: int, limit: float) -> None:
    """Draws of equal rows with different states follow the tempered distribution.

    limit: quantile 0.999 of chi-square with 5 degrees of freedom is 20.5.
    """
    row = torch.tensor([0.0, 1.0, 0.5, -1.0, 2.0, 1.5, 9.0], device=device)
    noise = Noise(
        torch.arange(rows), torch.zeros(rows, dtype=torch.long), torch.zeros(rows, 1).long()
    )
    states = noise.states().flatten().to(device)
    banned = torch.tensor([6], device=device)
    _, drawn = fused.gumbel_statistics(row.expand(rows, 7).contiguous(), states, 0.8, banned)
    assert chi_square(drawn, (row[:6].cpu() / 0.8).softmax(0)) < limit


def check_credit(case: Case, device: str, slots: int, gamma: float, known: str) -> None:
    """Update and fusion: from one pass, and where statistics or also the K logits are known.

    known: `nothing`, `statistics` or `logits`.
    """
    logits, banned = case.logits(device)
    generator = torch.Generator().manual_seed(case.seed + 3)
    ids = case.ids(slots, device)
    beta = torch.rand(case.rows, generator=generator, dtype=torch.float64).to(device)
    bound = 1 / (1 - beta.clamp(max=0.99))
    credit = torch.rand(case.rows, slots, generator=generator, dtype=torch.float64).to(device)
    credit = (credit * bound[:, None]).masked_fill(ids < 0, 0.0)
    alpha = torch.rand(case.rows, generator=generator, dtype=torch.float64).to(device) * 2
    opened = (torch.rand(case.rows, generator=generator) < 0.8).to(device)
    before = reference.Slots(ids, credit, alpha, beta, gamma, opened)
    raw = None if known == "nothing" else fused.row_statistics(logits, banned)
    with poisoned():
        if known == "logits":
            assert raw is not None
            values = reference.logits_at(logits, ids, banned)
            ours = fused.credit_from(values, raw, before)
        else:
            ours = fused.credit_update(logits, before, banned, raw)
    exact = reference.credit_update(logits.double(), before, banned)
    assert torch.equal(ours.ids, exact.ids)
    assert_close(ours.credit, exact.credit, SUMS, 1e-9)
    assert_close(ours.delta, exact.delta, SUMS, 1e-9)
    assert_same_statistics(ours.raw, exact.raw)
    assert torch.equal(ours.fused.token, exact.fused.token)
    assert_close(ours.fused.maximum, exact.fused.maximum, 1e-12, SUMS)
    assert_close(ours.fused.rest, exact.fused.rest, 2 * SUMS)
    error = (ours.fused.moment.double() - exact.fused.moment).abs()
    assert (error <= 2 * SUMS * (exact.fused.total - exact.fused.moment)).all()


def check_selection(rows: int, columns: int, strict: bool, seed: int, device: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    # few levels, so that scores tie with each other and with the threshold
    scores = torch.randint(0, 8, (rows, columns), generator=generator).float() / 8
    opened = torch.rand(rows, columns, generator=generator) < 0.5
    threshold = torch.randint(0, 10, (rows,), generator=generator).float() / 8
    # an order that goes with the scores and tells most of their ties apart
    order = scores + torch.randint(0, 8, (rows, columns), generator=generator).float() / 64
    order = order.to(device) if seed % 2 else None
    args = (scores.to(device), opened.to(device), threshold.to(device), strict, order)
    with poisoned():
        commit, left = fused.threshold_selection(*args)
    expected, expected_left = reference.threshold_selection(*args)
    assert torch.equal(commit.view(torch.int8), expected.view(torch.int8))
    assert torch.equal(left, expected_left)


def check_head(case: Case, depth: int, device: str) -> None:
    generator = torch.Generator().manual_seed(case.seed)
    # `spare` columns between the rows of both operands
    hidden = torch.randn(case.rows, depth + case.spare, generator=generator).to(case.dtype)
    weight = torch.randn(case.vocabulary, depth + case.spare, generator=generator).to(case.dtype)
    hidden, weight = hidden.to(device)[:, :depth], weight.to(device)[:, :depth] / 4
    _, banned = case.logits(device)
    wanted = case.ids(3, device)
    with poisoned():
        ours = fused.head_statistics(hidden, weight, banned)
        at = fused.head_logits_at(hidden, weight, wanted, banned)
    logits = hidden.double() @ weight.double().T
    exact = reference.row_statistics(logits, banned)
    error = depth * 2.0**-23 * (hidden.double().abs() @ weight.double().abs().T).amax(1)
    expected = reference.logits_at(logits, wanted, banned)
    assert torch.equal(at.isfinite(), expected.isfinite())
    apart = (at - expected).abs().nan_to_num(0.0)
    assert (apart <= error[:, None]).all()
    assert ((ours.maximum - exact.maximum).abs() <= error).all()
    # a maximum within the error may be the other one
    chosen = reference.logits_at(logits, ours.token[:, None], banned)[:, 0]
    assert (exact.maximum - chosen <= 2 * error).all()
    slack = 2 * error + SUMS
    assert ((ours.rest - exact.rest).abs() <= slack * exact.total).all()
    scale = exact.total - exact.moment
    assert ((ours.moment - exact.moment).abs() <= 2 * slack * scale).all()


def check_unusable_rows(device: str) -> None:
    """NaN, +inf and rows without a finite logit are told from usable ones; ids stay ids."""
    logits = torch.zeros(5, 40, device=device)
    logits[0, 7] = float("nan")
    logits[1, 7] = float("inf")
    logits[2] = float("-inf")
    logits[3, 3:] = float("-inf")
    banned = torch.tensor([0, 1, 2], device=device)
    expected = [False, False, False, False, True]
    for block, blocks in ((16, 1), (16, 2), (64, 1)):
        with parts(block, blocks):
            ours = fused.row_statistics(logits, banned, 2)
        assert ours.healthy.tolist() == expected
        assert ((ours.token >= 0) & (ours.token < 40)).all()
        assert ours.top_ids is not None
        assert ((ours.top_ids >= 0) & (ours.top_ids < 40)).all()
    assert reference.row_statistics(logits, banned).healthy.tolist() == expected
    # the largest of a row may have to include what is -inf, lowest ids first
    lone = torch.full((1, 40), float("-inf"), device=device)
    lone[0, 39] = 1.0
    with parts(16, 3):
        found = fused.row_statistics(lone, None, 3)
    assert found.top_ids is not None
    assert found.top_ids.tolist() == [[39, 0, 1]]


def check_prediction(case: Case, device: str) -> None:
    """A prediction says the same whichever implementation computes it."""
    logits, banned = case.logits(device)
    rows = logits[None]
    noise = Noise(
        torch.tensor([7], device=device),
        torch.tensor([3], device=device),
        torch.arange(case.rows, device=device)[None],
    )
    ids = case.ids(4, device)[None]
    credit = torch.ones_like(ids, dtype=torch.float64).masked_fill(ids < 0, 0.0)
    alpha = torch.tensor([0.65], device=device)
    opened = torch.ones(1, case.rows, dtype=torch.bool, device=device)

    def outputs(kernels: str, values: Tensor) -> list[Tensor]:
        with dispatch.using(kernels):
            pred = Prediction.of(values, banned, GumbelDraw(noise, 0.7))
            found = [pred.token, pred.top_token, pred.topk(3)[1], pred.confidence, pred.entropy]
            found += [pred.margin, pred.logsumexp]
            credited = pred.credited(reference.Slots(ids, credit, alpha, alpha, 0.2, opened))
            more = credited.prediction
            assert torch.equal(more.logits.argmax(-1), more.top_token) or case.kind == "huge"
            return [*found, credited.ids, more.top_token, more.top_confidence, more.entropy]

    for ours, exact in zip(outputs("triton", rows), outputs("reference", rows), strict=True):
        if exact.dtype == torch.int64:
            assert torch.equal(ours, exact)
        else:
            assert_close(ours, exact, 1e-4, 1e-4)
