"""The plain-torch definition of the row statistics: CPU path and specification of the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_decode.kernels.lazy import LazyFields, later
from dllm_decode.kernels.noise import gumbel

# Shifted logits are held above this, so that 0 * (-inf) cannot arise; exp of it is 0.
FLOOR = -1e30
# The least finite number of each type that scores may have.
_LEAST = {
    dtype: torch.finfo(dtype).min
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}
# Logits of a block of rows: with their exponentials they stay in the cache of one core.
_BLOCK = 1 << 17
# Ids among which the maximum is looked for in one go, which processors do many at a time.
_CHUNK = 512
# Ids from which on what a processor does many at a time is worth an operator more.
COLDEST = 1e-20  # smallest temperature: below, quotients of float32 soon overflow
_LONG = 8 * _CHUNK
_LOG2E = 1.4426950408889634
# Float64 planes (noise, entropies of prefixes) are made for so many ids at a time, for all rows.
COLUMNS = 8192


@dataclass(frozen=True)
class RowStatistics(LazyFields):
    """What most decoding rules need of N rows of logits.

    With a row's maximum m and total = 1 + rest: logsumexp = m + log(total), the top-1 probability
    is 1 / total, and the entropy in nats is log(total) - moment / total. The winner's own 1 stays
    out of the sum, because beside it what is left would be rounded away where the model is sure.

    Attributes:
        token: (N,) int64, the lowest id among the maxima, which is the winner.
        maximum: (N,) the largest logit m, NaN where the row holds one.
        rest: (N,) sum of exp(l - m) over all ids but the winner: the odds against it.
        moment: (N,) sum of exp(l - m) * (l - m); in plain torch it is summed when it is asked for.
        top_values: (N, k) the largest logits, largest first, where asked for in the same pass.
        top_ids: (N, k) their ids, the lower one first on ties.
        at: (N, K) the logits at given ids, where asked for in the same pass.

    Examples:
        >>> statistics = row_statistics(torch.tensor([[0.0, 0.0, 1000.0]]), k=2)
        >>> statistics.token.tolist(), statistics.confidence.tolist(), statistics.top_ids.tolist()
        ([2], [1.0], [[2, 0]])
    """

    token: Tensor
    maximum: Tensor
    rest: Tensor
    moment: Tensor
    top_values: Tensor | None = None
    top_ids: Tensor | None = None
    at: Tensor | None = None
    lazy: ClassVar[tuple[str, ...]] = ("moment",)

    @property
    def total(self) -> Tensor:
        """Sum of exp(l - m), 1 + rest, (N,)."""
        return self.rest + 1.0

    @property
    def logsumexp(self) -> Tensor:
        """Natural logarithm of the partition sum, (N,)."""
        return self.maximum + self.rest.log1p()

    @property
    def confidence(self) -> Tensor:
        """Probability of the most likely token, (N,)."""
        return self.total.reciprocal()

    @property
    def entropy(self) -> Tensor:
        """Entropy in nats, (N,); terms of probability 0 contribute 0."""
        return (self.rest.log1p() - self.moment / self.total).clamp(min=0.0)

    @property
    def healthy(self) -> Tensor:
        """Whether the row can be used at all, (N,): no NaN, no +inf, not -inf everywhere."""
        # the maximum of a row with a NaN is one; finite numbers less themselves are 0, others not
        return (self.maximum - self.maximum) == 0


@dataclass(frozen=True)
class Slots:
    """The credit of some rows before a step, and how it is to change and to act.

    Attributes:
        ids: (N, K) int64 credited tokens, distinct within a row, -1 for an empty slot.
        credit: (N, K) their credit, 0 where empty.
        alpha: strength of the fusion, 0 or more, (N,) or, in plain torch, one for all.
        beta: share of the credit that is kept, [0, 1], (N,) or one for all.
        gamma: exponent of the winner's probability, 0 or more.
        open: (N,) bool, rows that earn; all others come back empty.

    Examples:
        >>> one = torch.ones(1)
        >>> ids, credit = torch.tensor([[2, -1]]), torch.tensor([[0.5, 0.0]])
        >>> slots = Slots(ids, credit, one, one, 0.7, one > 0)
        >>> slots.gamma
        0.7
    """

    ids: Tensor
    credit: Tensor
    alpha: Tensor | float
    beta: Tensor | float
    gamma: float
    open: Tensor


@dataclass(frozen=True)
class CreditUpdate:
    """Credit after a step's evidence, and the statistics of the logits that it raises.

    Attributes:
        ids: (N, K) int64, -1 for an empty slot.
        credit: (N, K) in the dtype it came in, 0 where empty.
        delta: (N, K) float64, what is added to the logits at `ids`.
        raw: Statistics without these additions.
        fused: Statistics with them, in float64.
    """

    ids: Tensor
    credit: Tensor
    delta: Tensor
    raw: RowStatistics
    fused: RowStatistics


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of all statistics: float32, or float64 for float64 logits.

    Args:
        dtype: Of the logits.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in a type; no operator where they have it.

    Args:
        values: of any shape.
        dtype: the type.
    """
    return values if values.dtype == dtype else values.to(dtype)


def suppress(logits: Tensor, banned: Tensor | None) -> Tensor:
    """The logits in working precision with the banned ids at -inf; the input is not written to.

    Args:
        logits: (..., V).
        banned: (M,) token ids, or None.
    """
    values = cast(logits, working_dtype(logits.dtype))
    if banned is None or banned.numel() == 0:
        return values
    if values is logits:
        return values.index_fill(-1, banned, float("-inf"))
    return values.index_fill_(-1, banned, float("-inf"))


def lowest_argmax(values: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the last dimension and the lowest index that reaches it.

    `torch.max` promises the lowest index, but a processor takes its elements one by one; `amax`
    takes many at a time, and leaves only one chunk of them to look through.

    Args:
        values: (..., V).

    Returns:
        The maximum and the index, both (...).
    """
    whole = values.shape[-1] // _CHUNK * _CHUNK
    if whole < _LONG or values.device.type != "cpu" or values.dim() != 2:
        maximum, index = values.max(-1)
        return maximum, index
    chunks = values[:, :whole].unflatten(1, (-1, _CHUNK))
    maximum, chunk = chunks.amax(-1).max(-1)
    place = chunk[:, None, None].expand(-1, 1, _CHUNK)
    index = chunk * _CHUNK + chunks.gather(1, place)[:, 0].max(-1).indices
    if whole < values.shape[-1]:
        last, inside = values[:, whole:].max(-1)
        beyond = (last > maximum) | (last.isnan() & ~maximum.isnan())
        maximum = torch.where(beyond, last, maximum)
        index = torch.where(beyond, whole + inside, index)
    return maximum, index


def row_statistics(
    logits: Tensor, banned: Tensor | None = None, k: int = 0, ids: Tensor | None = None
) -> RowStatistics:
    """Argmax, maximum, the mass beside the argmax and the entropy moment of every row.

    Only `healthy` means anything in a row that holds NaN or +inf or is -inf everywhere.

    Args:
        logits: (N, V) of any float dtype and row stride.
        banned: (M,) ids that count as -inf.
        k: How many of the largest logits to return, 0 to V.
        ids: (N, K) in [-1, V), whose logits to return.
    """
    if logits.device.type == "cpu" and _rows_of_a_block(logits) is None:
        block = suppress(logits, banned)
        maximum, token, shifted = _shifted(block, block is not logits)
        weights = _weights(shifted, token, False)
        rest = weights.sum(-1)

        def moment() -> Tensor:
            # of so few rows these can be kept, and the logits need not be read again
            return _product(weights, shifted)

    else:
        scanned = [_scan(block, own) for block, own in _blocks(logits, banned)]
        token, maximum, rest = (
            scanned[0] if len(scanned) == 1 else map(torch.cat, zip(*scanned, strict=True))
        )

        def moment() -> Tensor:
            return _moment(logits, banned, maximum)

    statistics: RowStatistics = RowStatistics.made(
        {"moment": moment}, token=token, maximum=maximum, rest=rest
    )
    if k:
        values, best = top_k(logits, k, banned)
        statistics = statistics.but(top_values=values, top_ids=best)
    return statistics if ids is None else statistics.but(at=logits_at(logits, ids, banned))


def _blocks(logits: Tensor, banned: Tensor | None) -> Iterator[tuple[Tensor, bool]]:
    """The rows, banned ids at -inf, and whether they may be written to.

    On a processor they come in blocks of one buffer that stays in its cache. None of these has a
    single row: a sum over a single row is made in another order where several threads share it.
    """
    count, vocabulary = logits.shape
    rows = _rows_of_a_block(logits)
    if rows is None:
        block = suppress(logits, banned)
        yield block, block is not logits
        return
    buffer = logits.new_empty(rows + 1, vocabulary, dtype=working_dtype(logits.dtype))
    begin = 0
    while begin < count:
        end = count if count - begin <= rows + 1 else begin + rows
        block = buffer[: end - begin].copy_(logits[begin:end])
        if banned is not None:
            block.index_fill_(-1, banned, float("-inf"))
        yield block, True
        begin = end


def _rows_of_a_block(logits: Tensor) -> int | None:
    """How many rows make a block of `_blocks`, None where all of them are one."""
    count, vocabulary = logits.shape
    if count * vocabulary <= _BLOCK:
        return None
    rows = max(2, torch.get_num_threads() * _BLOCK // max(1, vocabulary))
    return None if logits.device.type != "cpu" or count <= rows + 1 else rows


def _scan(block: Tensor, own: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Argmax, maximum and the mass beside it of some rows, which may be lost if one's own."""
    maximum, token, shifted = _shifted(block, own)
    return token, maximum, _weights(shifted, token, True).sum(-1)


def _shifted(block: Tensor, own: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum and argmax of some rows, and l - m, in their place if they are one's own."""
    maximum, token = lowest_argmax(block)
    top = maximum[:, None]
    return maximum, token, block.sub_(top) if own else block - top


def _weights(shifted: Tensor, token: Tensor, own: bool) -> Tensor:
    """exp(l - m), 0 at the argmax, in the place of l - m if it is one's own."""
    return _exponential(shifted, own).scatter_(-1, token[:, None], 0.0)


def _product(weights: Tensor, shifted: Tensor) -> Tensor:
    """The entropy moment of every row, of exp(l - m) and l - m, which is lost."""
    return shifted.clamp_(min=FLOOR).mul_(weights).sum(-1)


def _exponential(shifted: Tensor, own: bool) -> Tensor:
    """Exponentials of what may be lost if it is own; processors are faster at base 2."""
    narrow = shifted.dtype == torch.float32 and shifted.device.type == "cpu"
    if narrow and shifted.shape[-1] >= _LONG:
        return (shifted.mul_(_LOG2E) if own else shifted * _LOG2E).exp2_()
    return shifted.exp_() if own else shifted.exp()


def _moment(logits: Tensor, banned: Tensor | None, maximum: Tensor) -> Tensor:
    """The entropy moment of every row, given the maxima."""
    parts, begin = [], 0
    for block, _ in _blocks(logits, banned):
        end = begin + block.shape[0]
        shifted = (block - maximum[begin:end, None]).clamp_(min=FLOOR)
        parts.append(_exponential(shifted, False).mul_(shifted).sum(-1))
        begin = end
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def kl_divergence(logits: Tensor, previous: Tensor) -> Tensor:
    """How far rows have moved, in nats: KL(p || q) of the distributions of two rows of logits.

        KL = sum_v p_v (l_v - m) - (l'_v - m')  -  (log total - log total')

    over ids that p does not exclude, relative to the maxima m and m', so that large logits cost no
    precision. It is infinite where q excludes an id of p, as a row of -inf does.

    Args:
        logits: (..., V) of p, -inf for ids that are excluded.
        previous: (..., V) of q, likewise.

    Returns:
        (...) in working precision, 0 or more.

    Examples:
        >>> one, two = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> round(kl_divergence(one, two).item(), 4)
        0.1438
        >>> kl_divergence(one, one + 5.0).tolist()
        [0.0]
    """
    values = logits.to(working_dtype(logits.dtype))
    own = values - values.amax(-1, keepdim=True)
    past = previous.to(values.dtype)
    past = past - past.amax(-1, keepdim=True)
    total, total_past = own.exp().sum(-1), past.exp().sum(-1)
    kept = own > float("-inf")
    terms = torch.where(kept, own.exp() * (own - past), 0.0)
    divergence = terms.sum(-1) / total - (total.log() - total_past.log())
    # a row of which nothing is left has no distribution: nan above
    return divergence.clamp(min=0.0).nan_to_num(nan=float("inf"), posinf=float("inf"))


def top_k(logits: Tensor, k: int, banned: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest logits of every row and their ids, largest first, lower id first on ties.

    Args:
        logits: (N, V).
        k: 1 to V.
        banned: (M,) ids that count as -inf.

    Returns:
        Values and ids, both (N, k).

    Examples:
        >>> top_k(torch.tensor([[1.0, 2.0, 2.0]]), 2)[1].tolist()
        [[1, 2]]
    """
    values = suppress(logits, banned)
    k = min(k, values.shape[-1])
    if values.is_cuda:
        return _top_k_without_a_look(values, k)
    top = values.topk(k, dim=-1)
    # topk leaves the choice among equals open: only rows with a tie at the cut need the full sort
    smallest = top.values[:, -1:]
    tied = (values == smallest).sum(-1) > (top.values == smallest).sum(-1)
    ids = top.indices
    if bool(tied.any()):
        ordered = values[tied].sort(dim=-1, descending=True, stable=True)
        ids = ids.clone()
        ids[tied] = ordered.indices[:, :k]
    ids = ids.sort(-1).values
    picked = values.gather(-1, ids)
    order = picked.sort(dim=-1, descending=True, stable=True)
    return order.values, ids.gather(-1, order.indices)


def _top_k_without_a_look(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`top_k` where the host would have to wait to see whether there are ties.

    Keys whose order is "larger first, then lower id" are all distinct: the bits of a float32, made
    monotone, in front of the id, counted backwards. Other dtypes are sorted.
    """
    if values.dtype != torch.float32:
        order = values.sort(dim=-1, descending=True, stable=True)
        return order.values[:, :k], order.indices[:, :k]
    bits = torch.where(values == 0, 0.0, values).view(torch.int32)  # -0.0 ties with 0.0
    bits = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32
    last = values.shape[-1] - 1
    keys = bits | torch.arange(last, -1, -1, device=values.device)
    ids = last - (keys.topk(k, dim=-1).values & 0x7FFFFFFF)
    return values.gather(-1, ids), ids


def logits_at(logits: Tensor, ids: Tensor, banned: Tensor | None = None) -> Tensor:
    """The logits of given ids, -inf for banned ids and for empty slots (id -1).

    Args:
        logits: (N, V).
        ids: (N, K) in [-1, V).
        banned: (M,) ids that count as -inf.

    Returns:
        (N, K) in working precision.
    """
    # on a GPU an id out of range would end the process, where the host gets an error
    largest = None if ids.device.type == "cpu" else logits.shape[-1] - 1
    values = cast(logits.gather(-1, ids.clamp(0, largest)), working_dtype(logits.dtype))
    dead = ids < 0
    if banned is not None and banned.numel():
        dead = dead | torch.isin(ids, banned)
    return values.masked_fill(dead, float("-inf"))


def gumbel_statistics(
    logits: Tensor,
    states: Tensor,
    temperature: float,
    banned: Tensor | None = None,
    k: int = 0,
) -> tuple[RowStatistics, Tensor]:
    """The row statistics, and a draw from the tempered rows by the Gumbel-max trick.

        draw = argmax_v  l_v / T + g(state, v),   g standard Gumbel noise in float64

    Args:
        logits: (N, V).
        states: (N,) int64, see `Noise.states`.
        temperature: T > 0.
        banned: (M,) ids that count as -inf.
        k: How many of the largest logits to return, 0 to V.

    Returns:
        The statistics, untempered, and the drawn ids (N,), the lowest id on ties.
    """
    return (
        row_statistics(logits, banned, k),
        gumbel_argmax(logits, states, temperature, banned),
    )


def gumbel_argmax(
    logits: Tensor, states: Tensor, temperature: float, banned: Tensor | None = None
) -> Tensor:
    """The draw of `gumbel_statistics` alone, (N,) int64.

    Args:
        logits: (N, V).
        states: (N,) int64, see `Noise.states`.
        temperature: T > 0.
        banned: (M,) ids that count as -inf.
    """
    scaled = tempered(suppress(logits, banned), temperature)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    best, drawn = None, ids
    for part, own in zip(scaled.split(COLUMNS, -1), ids.split(COLUMNS), strict=True):
        noisy, at = lowest_argmax(part.double() + gumbel(states[:, None], own))
        if best is None:
            best, drawn = noisy, at
        else:
            drawn = torch.where(noisy > best, own[at], drawn)
            best = torch.maximum(best, noisy)
    return drawn


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """The logits over T, rounded alike on every device.

    CUDA multiplies by the reciprocal of a plain number, which rounds otherwise than a division.

    Args:
        logits: of any shape.
        temperature: T > 0; below `COLDEST` as there.
    """
    divisor = max(temperature, COLDEST)
    return logits / torch.full((), divisor, dtype=logits.dtype, device=logits.device)


def merged_additions(ids: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Sparse additions with one slot per id: those to the same id add up in the first of them.

    Args:
        ids: (..., K) int64, -1 for an empty slot.
        delta: (..., K).

    Returns:
        Ids and float64 additions of the same shape, -1 and 0 where empty.

    Examples:
        >>> ids, delta = merged_additions(torch.tensor([7, 9, 7]), torch.tensor([1.0, 2.0, 4.0]))
        >>> ids.tolist(), delta.tolist()
        ([7, 9, -1], [5.0, 2.0, 0.0])
    """
    delta = delta.double().masked_fill(ids < 0, 0.0)
    same = (ids[..., :, None] == ids[..., None, :]) & (ids >= 0)[..., None]
    zero = torch.zeros((), dtype=delta.dtype, device=delta.device)
    summed = torch.where(same, delta[..., None, :], zero).sum(-1)
    slot = torch.arange(ids.shape[-1], device=ids.device)
    repeated = (same & (slot[None, :] < slot[:, None])).any(-1)
    empty = repeated | (ids < 0)
    return ids.masked_fill(empty, -1), summed.masked_fill(empty, 0.0)


def biased_statistics(
    base: RowStatistics, values: Tensor, ids: Tensor, delta: Tensor
) -> RowStatistics:
    """The statistics after sparse additions >= 0 to the logits, without reading a row again.

    With the base's winner w and maximum m, a_u = l_u - m, delta_w = 0 where w is not raised, and
    the new winner w' and maximum m' = m + t:

        rest'   = e^-t rest + sum_{u != w'} e^(a_u + delta_u - t) - sum_{u != w} e^(a_u - t)
        moment' = e^-t (moment - t rest) + sum_u x e^x at x = a_u + delta_u - t
                  - sum_{u != w} x e^x at x = a_u - t

    where u runs over w and the raised ids. What cancels in them is never much of the result.
    All in float64: in float32 a small addition would be lost beside a large maximum. Negative
    additions are outside the reach of this identity: they can cancel nearly all of the mass.

    Args:
        base: Statistics of the rows without the additions.
        values: (N, K) logits at `ids`, -inf for banned ids and empty slots.
        ids: (N, K) int64, distinct within a row, -1 for an empty slot.
        delta: (N, K), 0 or more.

    Examples:
        >>> logits, ids = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1]])
        >>> base = row_statistics(logits)
        >>> biased = biased_statistics(base, logits_at(logits, ids), ids, torch.tensor([[3.0]]))
        >>> biased.token.item(), round(biased.confidence.item(), 4)
        (1, 0.8668)
        >>> round(row_statistics(torch.tensor([[2.0, 4.0, 0.0]])).confidence.item(), 4)
        0.8668
    """
    exact = torch.float64
    maximum, rest = cast(base.maximum, exact), cast(base.rest, exact)
    # in a row that is -inf everywhere: -inf - (-inf) would be NaN
    below = cast(values, exact) - maximum.clamp(min=torch.finfo(torch.float64).min)[:, None]
    # the base's winner stands in front, at what its slot adds, if it has one
    token = base.token[:, None]
    own = ids == token
    stands = torch.where(own, cast(delta, exact), 0.0).sum(1, keepdim=True)
    below = below.masked_fill(own, float("-inf"))
    candidates = torch.cat([stands, below + delta], 1)  # -inf in an empty slot
    rise = candidates.amax(1)
    most = rise[:, None]
    holders = torch.cat([token, ids], 1)
    winner = holders.masked_fill(candidates < most, torch.iinfo(torch.int64).max).amin(1)
    winner = winner.where(rise < float("inf"), base.token)
    after, before = candidates - most, below - most
    weight, removed = after.exp(), before.exp()
    scale = (-rise).exp()
    beside = weight.masked_fill(holders == winner[:, None], 0.0)

    def moment() -> Tensor:
        # held above -inf, whose product with a weight of 0 would be NaN
        kept = scale * (base.moment.double() - rise * rest)
        added = (weight * after.clamp(min=FLOOR)).sum(1)
        return kept + added - (removed * before.clamp(min=FLOOR)).sum(1)

    return RowStatistics(
        token=winner,
        maximum=maximum + rise,
        rest=scale * rest + beside.sum(1) - removed.sum(1),
        moment=later(moment),
    )


def earned_credit(raw: RowStatistics, slots: Slots) -> tuple[Tensor, Tensor]:
    """Credit after a step's evidence: everything decays, the winner gains p ** gamma.

    The winner goes to the slot that holds it, else to the first empty one, else to the one with
    the least credit (the first on ties), which is forgotten.

    Args:
        raw: statistics of the N rows.
        slots: their credit before the step.

    Returns:
        Ids and credit after it, (N, K) int64 and float64.
    """
    ids, winner = slots.ids, raw.token[:, None]
    kept = cast(slots.credit, torch.float64) * _beside_slots(slots.beta)
    match = ids == winner
    rank = kept.masked_fill(ids < 0, -1.0).masked_fill(match, -2.0)
    slot = rank.argmin(1, keepdim=True)  # the first of equals
    gain = (cast(raw.rest, torch.float64) + 1.0)[:, None] ** -slots.gamma
    kept = kept.scatter(1, slot, (kept * match).gather(1, slot) + gain)
    closed = ~slots.open[:, None]
    return ids.scatter(1, slot, winner).masked_fill(closed, -1), kept.masked_fill(closed, 0.0)


def _beside_slots(strength: Tensor | float) -> Tensor | float:
    """One number for all rows, or one for each, beside their slots."""
    return cast(strength, torch.float64)[:, None] if isinstance(strength, Tensor) else strength


def credit_update(
    logits: Tensor,
    slots: Slots,
    banned: Tensor | None = None,
    raw: RowStatistics | None = None,
) -> CreditUpdate:
    """Decay, top-1 increment, and the statistics of the logits that the credit raises.

        C[v] <- beta * C[v] + [v = argmax_u l_u] * p(v) ** gamma,   l'[v] = l[v] + alpha log(1 + C[v])

    Source: CreditDecoding, arXiv 2510.06133, equations 6 and 7, on K slots per row.

    Args:
        logits: (N, V).
        slots: credit before the step.
        banned: (M,) ids that can neither earn nor be raised.
        raw: statistics of the logits where they are known, so that only K logits per row are read.
    """  # noqa: E501
    raw = row_statistics(logits, banned) if raw is None else raw
    ids, kept = earned_credit(raw, slots)
    delta = _beside_slots(slots.alpha) * kept.log1p()
    fused = biased_statistics(raw, logits_at(logits, ids, banned), ids, delta)
    return CreditUpdate(ids, cast(kept, slots.credit.dtype), delta, raw, fused)


def credit_from(values: Tensor, raw: RowStatistics, slots: Slots) -> CreditUpdate:
    """`credit_update` where everything it reads of the logits is known already.

    Args:
        values: (N, K) logits at `slots.ids`, -inf for banned ids and empty slots.
        raw: statistics of the rows, whose maximum is the logit of the winner.
        slots: credit before the step.
    """
    after, kept = earned_credit(raw, slots)
    delta = _beside_slots(slots.alpha) * kept.log1p()
    # the only id that can be new to a slot is the winner
    winner = after == raw.token[:, None]
    values = values.where(~winner, raw.maximum[:, None].to(values.dtype))
    values = values.masked_fill(after < 0, float("-inf"))
    fused = biased_statistics(raw, values, after, delta)
    return CreditUpdate(after, cast(kept, slots.credit.dtype), delta, raw, fused)


def threshold_selection(
    scores: Tensor,
    open: Tensor,
    threshold: Tensor,
    strict: bool = False,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Open slots whose score reaches the threshold, in each row at least the best one.

    The forced slot is the lowest column among the best open ones; a row without open slots commits
    nothing.

    Args:
        scores: (B, W), no NaN in open slots.
        open: (B, W) bool.
        threshold: (B,).
        strict: Ask for more than the threshold.
        order: (B, W), what the best one is the best by; None for the scores.

    Returns:
        The slots to commit, (B, W) bool, and how many slots each row has left open, (B,) int64.

    Examples:
        >>> scores = torch.tensor([[0.9, 0.4], [0.2, 0.3]])
        >>> threshold_selection(scores, scores > 0, torch.tensor([0.8, 0.8]))[0].tolist()
        [[True, False], [False, True]]
    """
    commit = reaching(scores, open, threshold[:, None], strict, order)
    return commit, open.sum(1) - commit.sum(1)


def reaching(
    scores: Tensor,
    open: Tensor,
    level: Tensor | float,
    strict: bool = False,
    order: Tensor | None = None,
) -> Tensor:
    """What `threshold_selection` commits, (B, W) bool.

    Args:
        scores: (B, W), no NaN in open slots.
        open: (B, W) bool.
        level: the threshold, one for all rows or (B, 1).
        strict: Ask for more than the threshold.
        order: (B, W), what the best one is the best by; None for the scores.
    """
    enough = scores > level if strict else scores >= level
    best = best_slot(scores if order is None else order, open)
    # where no slot is open, the best one is none
    return enough.scatter_(1, best, True) & open


def best_slot(scores: Tensor, among: Tensor) -> Tensor:
    """The candidate with the largest score in each row, the lowest column on ties, (B, 1) int64.

    A row without candidates gets any slot.

    Args:
        scores: (B, W), no NaN among the candidates.
        among: (B, W) bool, the candidates.
    """
    # a candidate may have -inf, the others lie below; argmax takes the first
    floor = _LEAST[scores.dtype]
    return torch.where(among, scores.clamp(min=floor), float("-inf")).argmax(1, keepdim=True)


def head_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """The logits hidden @ weight.T, products and sums in float32 or better, (N, V).

    Args:
        hidden: (N, D).
        weight: (V, D), the output head without bias, of the same dtype.
    """
    if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    dtype = working_dtype(hidden.dtype)
    return hidden.to(dtype) @ weight.to(dtype).T


def head_statistics(hidden: Tensor, weight: Tensor, banned: Tensor | None = None) -> RowStatistics:
    """The row statistics of `head_logits`.

    The logits are not rounded to the dtype of the operands in between.

    Args:
        hidden: (N, D).
        weight: (V, D), the output head without bias, of the same dtype.
        banned: (M,) ids that count as -inf.
    """
    return row_statistics(head_logits(hidden, weight), banned)


def head_logits_at(
    hidden: Tensor, weight: Tensor, ids: Tensor, banned: Tensor | None = None
) -> Tensor:
    """The logits of given ids, -inf for banned ids and for empty slots (id -1).

    Args:
        hidden: (N, D).
        weight: (V, D), the output head without bias, of the same dtype.
        ids: (N, K) in [-1, V).
        banned: (M,) ids that count as -inf.

    Returns:
        (N, K), float32 or better.
    """
    dtype = working_dtype(hidden.dtype)
    columns = weight[ids.clamp(min=0)].to(dtype)
    values = (columns @ hidden.to(dtype)[..., None])[..., 0]
    dead = ids < 0
    if banned is not None and banned.numel():
        dead = dead | (ids[..., None] == banned).any(-1)
    return values.masked_fill(dead, float("-inf"))
