# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The Triton programs behind `fused`; what they compute is defined in `reference`.

Written for Triton 3.6 to 3.9 and for the interpreter: float32 right after every load (the
interpreter's bfloat16 arithmetic is wrong), no autotuning, no libdevice.

A row's statistics are a monoid: with m the maximum of two parts and d_i = m_i - m,

    mass_i = rest_i, and 1 more in all parts but the winner's
    rest = sum_i e^d_i mass_i,   moment = sum_i e^d_i (moment_i + d_i mass_i),

token the lowest id among the maxima. Every program below folds blocks into that, so a row can be
read by one program or by many.
"""

from __future__ import annotations

import triton
import triton.language as tl

# below every key that `order_keys` makes, and above
LOWEST = tl.constexpr(-(2**63) + 1)
HIGHEST = tl.constexpr(2**63 - 1)
MINUS_INFINITY = tl.constexpr(float("-inf"))
FLOOR = tl.constexpr(-1e30)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def finite(maximum):
    """The maximum as something that can be subtracted: 0 for a part that is -inf everywhere.

    Args:
        maximum: float32.
    """
    return tl.where(maximum == MINUS_INFINITY, 0.0, maximum)


@triton.jit
def token_bits(state, ids):
    """Hash of (state, id) as `noise.fold` but for its last step, `x ^ (x >> 31)`, uint64.

    Args:
        state: int64, one for the row.
        ids: Token ids.
    """
    wide = ids.to(tl.uint32, bitcast=True).to(tl.uint64)
    mixed = (state.to(tl.uint64, bitcast=True) ^ wide) + 0x9E3779B97F4A7C15
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9
    return (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB


@triton.jit
def gumbel(bits):
    """Standard Gumbel noise in float64, as `noise.gumbel`.

    Args:
        bits: uint64, from `token_bits`.
    """
    bits = bits ^ (bits >> 31)
    uniform = ((bits >> 12).to(tl.int64).to(tl.float64) + 0.5) * (1.0 / 4503599627370496.0)
    return -tl.log(-tl.log(uniform))


@triton.jit
def may_win(bits, exponent):
    """Above 0 where a noisy logit may beat the best so far; never wrong where it says no.

    A logit wins if g > best - l / T, that is if -log u < 2 ** exponent with the exponent
    (l / T - best) / log 2. As 1 - u < -log u, only ids with 1 - u < 2 ** exponent can, which is a
    comparison with the leading 31 bits of the hash: no logarithm.

    Args:
        bits: uint64, of `token_bits`, whose missing step changes the lowest of the 31 at most.
        exponent: float32, an upper bound.
    """
    below = (0x7FFFFFFF - (bits >> 33).to(tl.int32)).to(tl.float32)
    return tl.exp2(exponent) * 2147490000.0 + 4.0 - below


@triton.jit
def order_keys(x, ids):
    """int64 keys that order logits as (larger first, then lower id): float bits made monotone.

    Args:
        x: float32 logits.
        ids: Their ids.
    """
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64)


@triton.jit
def key_value(keys):
    """The logits that keys stand for.

    Args:
        keys: int64, from `order_keys`.
    """
    bits = (keys >> 32).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def key_id(keys):
    """The ids that keys stand for.

    Args:
        keys: int64, from `order_keys`.
    """
    return 0x7FFFFFFF - (keys & 0x7FFFFFFF)


@triton.jit
def best_keys(keys, others, K: tl.constexpr, WIDTH: tl.constexpr):
    """The K largest of two sets of keys in falling order, LOWEST in the rest of WIDTH slots.

    Args:
        keys: int64.
        others: int64.
        K: How many are wanted.
        WIDTH: Slots of the result, a power of two of at least K.
    """
    slot = tl.arange(0, WIDTH)
    found = tl.full((WIDTH,), LOWEST, tl.int64)
    for number in range(0, K):
        top = tl.maximum(tl.max(keys, 0), tl.max(others, 0))
        found = tl.where(slot == number, top, found)
        keys = tl.where(keys == top, LOWEST, keys)
        others = tl.where(others == top, LOWEST, others)
    return found


@triton.jit
def load_within(block, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """A block in the middle of a row, (HEIGHT, WIDTH) float32.

    Pairs of bfloat16 are taken apart by hand: the compiler would need three instructions.

    Args:
        block: Pointer to the first logit, at 16 bytes.
        HEIGHT: Lines of the block.
        WIDTH: Ids of a line.
    """
    line = tl.arange(0, HEIGHT)[:, None] * WIDTH
    if block.dtype.element_ty == tl.bfloat16:
        words = block.to(tl.pointer_type(tl.uint32), bitcast=True)
        pair = tl.load(words + (line // 2 + tl.arange(0, WIDTH // 2)[None, :]))
        first = (pair << 16).to(tl.float32, bitcast=True)
        second = (pair & 0xFFFF0000).to(tl.float32, bitcast=True)
        return tl.reshape(tl.join(first, second), (HEIGHT, WIDTH))
    else:
        return tl.load(block + (line + tl.arange(0, WIDTH)[None, :])).to(tl.float32)


@triton.jit
def next_banned(banned, at, zero, end, BANS: tl.constexpr):
    """The first place from `at` on that holds a banned id, `end` where there is none.

    Args:
        banned: Pointer to BANS ids.
        at: A place.
        zero: The id at place 0.
        end: One past the last place.
        BANS: Number of banned ids.
    """
    for number in range(0, BANS):
        ban = tl.load(banned + number).to(tl.int32) - zero
        end = tl.where(ban >= at, tl.minimum(end, ban), end)
    return end


@triton.jit
def load_edge(
    row, at, zero, shift, vocabulary, banned, BANS: tl.constexpr, VECTOR: tl.constexpr
):  # fmt: skip
    """Logits at an edge of a row, or banned ones: float32, -inf where none is to be seen.

    Whole vectors are read, so that their loads are as wide as within the row; what belongs to the
    neighbours lies in the same 16 bytes as a logit of the row.

    Args:
        row: Pointer to the vector that holds the row's first logit.
        at: Places, counted from there.
        zero: The id at place 0.
        shift: Place of the row's first logit.
        vocabulary: Logits of the row.
        banned: Pointer to BANS ids.
        BANS: Number of banned ids.
        VECTOR: Logits in 16 bytes.
    """
    held = (at // VECTOR) * VECTOR < vocabulary + shift
    x = tl.load(row + at, mask=held, other=MINUS_INFINITY).to(tl.float32)
    x = tl.where((at >= shift) & (at < vocabulary + shift), x, MINUS_INFINITY)
    for number in range(0, BANS):
        x = tl.where(at + zero == tl.load(banned + number).to(tl.int32), MINUS_INFINITY, x)
    return x


@triton.jit(do_not_specialize=["first_part", "all_parts"])
def scan_rows(
    logits, stride, vocabulary, banned, first_id, first_part, all_parts,
    maximum_out, rest_out, moment_out, token_out,
    keys_out,
    states, temperature, noisy_out, drawn_out,
    BANS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    K: tl.constexpr, SLOTS: tl.constexpr, DRAW: tl.constexpr,
    VECTOR: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One part (CHUNK ids) of one row: statistics, the K best keys, the Gumbel-max draw.

    A warp of its own: nothing waits for other warps. What every logit pays is a conversion, the
    maximum, a difference, an exponential and two sums, which each thread keeps for itself until
    the end; whatever concerns a new maximum, a new key or a new draw is behind a branch that is
    taken ever more rarely along the row, and so are edges of the row and banned ids.

    Args:
        logits: Pointer to the rows.
        stride: Logits from one row to the next.
        vocabulary: Logits of a row.
        banned: Pointer to BANS ids.
        first_id: The id of the rows' first logit, where they are slabs of longer rows.
        first_part: Number of the first part.
        all_parts: Parts of a row, those of other slabs included.
        maximum_out: Pointer to float32, one per row and part, as the next two.
        rest_out: Sums of exp(l - m) over all ids but the winner.
        moment_out: Sums of exp(l - m) (l - m).
        token_out: Pointer to int32, one per row and part.
        keys_out: Pointer to int64, SLOTS per row and part.
        states: Pointer to int64, one per row.
        temperature: Of the draw.
        noisy_out: Pointer to float64, the best noisy logit per row and part.
        drawn_out: Pointer to int32, its id.
        BANS: Number of banned ids.
        BLOCK: Ids that are read at once, a power of two.
        CHUNK: Ids of a part, a multiple of BLOCK.
        K: How many of the largest logits are wanted, 0 for none.
        SLOTS: A power of two of at least K.
        DRAW: Whether a token is drawn.
        VECTOR: Logits in 16 bytes.
        WIDTH: Ids of a line of a block, which divides BLOCK.
    """
    HEIGHT: tl.constexpr = BLOCK // WIDTH
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    place = row * all_parts + first_part + part
    logits += row * stride
    # rows may begin anywhere; blocks begin at 16 bytes
    shift = ((logits.to(tl.int64) & 15) * VECTOR // 16).to(tl.int32)
    logits = tl.multiple_of(logits - shift, 16)
    line, column = tl.arange(0, HEIGHT)[:, None] * WIDTH, tl.arange(0, WIDTH)[None, :]
    begin = part * CHUNK
    end = vocabulary + shift
    if part + 1 < tl.num_programs(1):
        end = begin + CHUNK
    zero = first_id - shift
    ban = next_banned(banned, begin, zero, end, BANS)
    maximum = tl.full((), MINUS_INFINITY, tl.float32)
    base = tl.full((), 0.0, tl.float32)
    rests = tl.full((WIDTH,), 0.0, tl.float32)
    moments = tl.full((WIDTH,), 0.0, tl.float32)
    token = tl.full((), 0, tl.int32)
    keys = tl.full((SLOTS,), LOWEST, tl.int64)
    entry = tl.full((), MINUS_INFINITY, tl.float32)
    noisy = tl.full((), MINUS_INFINITY, tl.float64)
    drawn = tl.full((), 0, tl.int32)
    state = tl.full((), 0, tl.int64)
    rate = tl.full((), 0.0, tl.float32)
    if DRAW:
        state = tl.load(states + row)
        rate = LOG2E / temperature
    for start in range(begin, end, BLOCK):
        outside = (start < shift) | (start + BLOCK > vocabulary + shift)
        if outside | (start + BLOCK > ban):
            at = start + line + column
            x = load_edge(logits, at, zero, shift, vocabulary, banned, BANS, VECTOR)
            ban = next_banned(banned, start + BLOCK, zero, end, BANS)
        else:
            x = load_within(logits + start, HEIGHT, WIDTH)
        top = tl.max(tl.max(x, 0), 0)
        seen = x
        if top > maximum:
            ids = start + zero + line + column
            token = tl.min(tl.min(tl.where(x == top, ids, 0x7FFFFFFF), 0), 0)
            drop = tl.maximum((maximum - top) * LOG2E, FLOOR)
            scale = tl.exp2(drop)
            # the new winner leaves the sums, and the one it replaces joins them
            x = tl.where(ids == token, MINUS_INFINITY, x)
            rests += tl.where(tl.arange(0, WIDTH) == 0, 1.0, 0.0)
            moments = scale * (moments + drop * rests)
            rests = scale * rests
            maximum = top
            base = finite(top)
        if K > 0:  # noqa: SIM102 - the outer one is settled at compile time
            if top >= entry:
                for number in range(0, HEIGHT):
                    at = start + number * WIDTH + tl.arange(0, WIDTH)
                    y = load_edge(logits, at, zero, shift, vocabulary, banned, BANS, VECTOR)
                    if tl.max(y, 0) >= entry:
                        inside = (at >= shift) & (at < vocabulary + shift)
                        own = tl.where(inside, order_keys(y, at + zero), LOWEST)
                        keys = best_keys(own, keys, K, SLOTS)
                        last = tl.min(tl.where(tl.arange(0, SLOTS) < K, keys, HIGHEST), 0)
                        entry = tl.where(last == LOWEST, MINUS_INFINITY, key_value(last))
        below = (x - base) * LOG2E
        weights = tl.exp2(below)
        rests += tl.sum(weights, 0)
        moments += tl.sum(weights * tl.maximum(below, FLOOR), 0)
        if DRAW:
            level = base * rate
            slack = tl.abs(level) * 1e-6 + 1e-3
            exponent = tl.minimum(level - noisy.to(tl.float32) * LOG2E + slack, 1e4)
            bits = token_bits(state, start + zero + line + column)
            # float64 noise only where a block may hold a new winner
            if tl.max(tl.max(may_win(bits, (seen - base) * rate + exponent), 0), 0) > 0.0:
                for number in range(0, HEIGHT):
                    at = start + number * WIDTH + tl.arange(0, WIDTH)
                    y = load_edge(logits, at, zero, shift, vocabulary, banned, BANS, VECTOR)
                    exact = tl.div_rn(y, temperature).to(tl.float64)
                    exact += gumbel(token_bits(state, at + zero))
                    best = tl.max(exact, 0)
                    if best > noisy:
                        drawn = tl.min(tl.where(exact == best, at + zero, 0x7FFFFFFF), 0)
                        noisy = best
    tl.store(maximum_out + place, maximum)
    tl.store(rest_out + place, tl.sum(rests, 0))
    tl.store(moment_out + place, tl.sum(moments, 0) * LN2)
    tl.store(token_out + place, token)
    if K > 0:
        tl.store(keys_out + place * SLOTS + tl.arange(0, SLOTS), keys)
    if DRAW:
        tl.store(noisy_out + place, noisy)
        tl.store(drawn_out + place, drawn)


@triton.jit
def merge_parts(
    maxima, rests, moments, tokens, row, vocabulary, PARTS: tl.constexpr, WIDTH: tl.constexpr
):
    """Maximum, rest, moment and token of a row from those of its parts; ids rise with parts.

    Args:
        maxima: Pointer to float32, PARTS per row; so are the next two.
        rests: Sums of exp(l - m) over all ids but a part's winner.
        moments: Sums of exp(l - m) (l - m).
        tokens: Pointer to the parts' argmax, int32.
        row: Number of the row.
        vocabulary: Logits of the row.
        PARTS: Parts of a row.
        WIDTH: A power of two of at least PARTS.
    """
    if PARTS == 1:
        maximum = tl.load(maxima + row)
        rest = tl.load(rests + row)
        moment = tl.load(moments + row)
        winner = tl.load(tokens + row)
    else:
        part = tl.arange(0, WIDTH)
        inside = part < PARTS
        place = row * PARTS + part
        m = tl.load(maxima + place, mask=inside, other=MINUS_INFINITY)
        mass = tl.load(rests + place, mask=inside, other=0.0)
        slope = tl.load(moments + place, mask=inside, other=0.0)
        token = tl.load(tokens + place, mask=inside, other=0)
        maximum = tl.max(m, 0)
        drop = tl.maximum(m - finite(maximum), FLOOR)
        scale = tl.exp(drop)
        winner = tl.min(tl.where(inside & (m == maximum), token, vocabulary - 1), 0)
        # the winners of the other parts are part of what is left beside this one
        mass += tl.where((m == maximum) & (token == winner), 0.0, 1.0)
        rest = tl.sum(scale * mass, 0)
        moment = tl.sum(scale * (slope + drop * mass), 0)
    # a row with a NaN shows it in its maximum
    return tl.where(rest == rest, maximum, rest), rest, moment, winner


@triton.jit
def gather_logits(logits, banned, ids, used, BANS: tl.constexpr):
    """Logits of a row at ids in float32; -inf for banned ids and for slots that are not used.

    Args:
        logits: Pointer to the row's first logit.
        banned: Pointer to BANS ids.
        ids: Token ids, -1 for an empty slot.
        used: Which slots are part of the row's.
        BANS: Number of banned ids.
    """
    used = used & (ids >= 0)
    x = tl.load(logits + ids, mask=used, other=MINUS_INFINITY).to(tl.float32)
    for number in range(0, BANS):
        x = tl.where(ids == tl.load(banned + number), MINUS_INFINITY, x)
    return x


@triton.jit
def finish_rows(
    maxima, rests, moments, tokens,
    keys, noisy, drawn,
    logits, stride, vocabulary, banned, wanted,
    maximum_out, rest_out, moment_out, token_out,
    value_out, id_out, at_out, drawn_out,
    PARTS: tl.constexpr, PART_WIDTH: tl.constexpr,
    K: tl.constexpr, WIDTH: tl.constexpr,
    SLOTS: tl.constexpr, SLOT_WIDTH: tl.constexpr,
    BANS: tl.constexpr, DRAW: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one row and write the results.

    Args:
        maxima: Pointer to float32, PARTS per row, as the next two.
        rests: Sums of exp(l - m) over all ids but a part's winner.
        moments: Sums of exp(l - m) (l - m).
        tokens: Pointer to the parts' argmax, int32.
        keys: Pointer to the parts' keys, int64, WIDTH per part.
        noisy: Pointer to the parts' best noisy logit, float64.
        drawn: Pointer to its id, int32.
        logits: Pointer to the rows, for the logits at `wanted`.
        stride: Logits from one row to the next.
        vocabulary: Logits of a row.
        banned: Pointer to BANS ids.
        wanted: Pointer to int64, SLOTS ids per row.
        maximum_out: Pointer to float32, one per row, as the next two.
        rest_out: Sums of exp(l - m) over all ids but the winner.
        moment_out: Sums of exp(l - m) (l - m).
        token_out: Pointer to int64, one per row.
        value_out: Pointer to the K largest logits of a row.
        id_out: Pointer to their ids, int64.
        at_out: Pointer to the logits at `wanted`.
        drawn_out: Pointer to the drawn ids, int64.
        PARTS: Parts of a row.
        PART_WIDTH: A power of two of at least PARTS.
        K: How many of the largest logits are wanted, 0 for none.
        WIDTH: Keys per part, a power of two of at least K.
        SLOTS: Ids per row whose logits are wanted, 0 for none.
        SLOT_WIDTH: A power of two of at least SLOTS.
        BANS: Number of banned ids.
        DRAW: Whether a token is drawn.
    """
    row = tl.program_id(0).to(tl.int64)
    maximum, rest, moment, token = merge_parts(
        maxima, rests, moments, tokens, row, vocabulary, PARTS, PART_WIDTH
    )
    tl.store(maximum_out + row, maximum)
    tl.store(rest_out + row, rest)
    tl.store(moment_out + row, moment)
    tl.store(token_out + row, token.to(tl.int64))
    if K > 0:
        # WIDTH slots per part: parts that are padding hold no key
        spot = tl.arange(0, PART_WIDTH * WIDTH)
        own = tl.load(keys + row * PARTS * WIDTH + spot, mask=spot < PARTS * WIDTH, other=LOWEST)
        best = best_keys(own, tl.full((WIDTH,), LOWEST, tl.int64), K, WIDTH)
        slot = tl.arange(0, WIDTH)
        tl.store(value_out + row * K + slot, key_value(best), mask=slot < K)
        # a row of NaN has no order; its ids must still be ids
        ids = tl.minimum(key_id(best), vocabulary - 1)
        tl.store(id_out + row * K + slot, ids, mask=slot < K)
    if SLOTS > 0:
        slot = tl.arange(0, SLOT_WIDTH)
        inside = slot < SLOTS
        ids = tl.load(wanted + row * SLOTS + slot, mask=inside, other=-1)
        x = gather_logits(logits + row * stride, banned, ids, inside, BANS)
        tl.store(at_out + row * SLOTS + slot, x, mask=inside)
    if DRAW:
        part = tl.arange(0, PART_WIDTH)
        inside = part < PARTS
        value = tl.load(noisy + row * PARTS + part, mask=inside, other=MINUS_INFINITY)
        choice = tl.load(drawn + row * PARTS + part, mask=inside, other=0)
        hit = inside & (value == tl.max(value, 0))
        winner = tl.min(tl.where(hit, choice, vocabulary - 1), 0)
        tl.store(drawn_out + row, winner.to(tl.int64))


@triton.jit
def credit_rows(
    maxima, rests, moments, tokens,
    logits, stride, vocabulary, banned,
    old_ids, old_credit, alphas, betas, gamma, opened,
    maximum_out, rest_out, moment_out, token_out,
    ids_out, credit_out, delta_out,
    fused_maximum, fused_rest, fused_moment, fused_token,
    PARTS: tl.constexpr, PART_WIDTH: tl.constexpr,
    SLOTS: tl.constexpr, SLOT_WIDTH: tl.constexpr, BANS: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one row, update its K slots of credit, and raise the statistics by it.

    Everything after the merge is float64: K numbers per row cost nothing beside the row itself.

    Args:
        maxima: Pointer to float32, PARTS per row, as the next two.
        rests: Sums of exp(l - m) over all ids but a part's winner.
        moments: Sums of exp(l - m) (l - m).
        tokens: Pointer to the parts' argmax.
        logits: Pointer to the rows, or to the SLOTS logits at `old_ids` of each.
        stride: Logits from one row to the next.
        vocabulary: Logits of a row.
        banned: Pointer to BANS ids.
        old_ids: Pointer to int64, SLOTS per row, -1 for an empty slot.
        old_credit: Pointer to the credit of these, 0 where empty.
        alphas: Pointer to the strength of each row.
        betas: Pointer to the share of the credit that each row keeps.
        gamma: Exponent of the winner's probability.
        opened: Pointer to int8, whether a row earns.
        maximum_out: Pointer to the statistics without credit, one per row, as the next three.
        rest_out: Sums of exp(l - m) over all ids but the winner.
        moment_out: Sums of exp(l - m) (l - m).
        token_out: The argmax, int64.
        ids_out: Pointer to the ids after the step, SLOTS per row.
        credit_out: Pointer to their credit.
        delta_out: Pointer to float64, what the credit adds to their logits.
        fused_maximum: Pointer to the statistics with credit, float64, as the next two.
        fused_rest: Sums of exp(l - m) over all ids but the winner.
        fused_moment: Sums of exp(l - m) (l - m).
        fused_token: The argmax, int64.
        PARTS: Parts of a row.
        PART_WIDTH: A power of two of at least PARTS.
        SLOTS: Slots of a row.
        SLOT_WIDTH: A power of two of at least SLOTS.
        BANS: Number of banned ids.
        GIVEN: Whether `logits` holds the logits at `old_ids` alone, not the row.
    """
    row = tl.program_id(0).to(tl.int64)
    maximum, rest, moment, token = merge_parts(
        maxima, rests, moments, tokens, row, vocabulary, PARTS, PART_WIDTH
    )
    tl.store(maximum_out + row, maximum)
    tl.store(rest_out + row, rest)
    tl.store(moment_out + row, moment)
    tl.store(token_out + row, token.to(tl.int64))
    slot = tl.arange(0, SLOT_WIDTH)
    inside = slot < SLOTS
    place = row * SLOTS + slot
    live = tl.load(opened + row) != 0
    ids = tl.load(old_ids + place, mask=inside, other=-1)
    credit = tl.load(old_credit + place, mask=inside, other=0.0).to(tl.float64)
    credit = credit * tl.load(betas + row).to(tl.float64)
    # the slot that holds the winner, else the first empty one, else the one with least credit
    match = ids == token
    rank = tl.where(match, -2.0, tl.where(ids < 0, -1.0, credit))
    rank = tl.where(inside, rank, float("inf"))
    chosen = tl.min(tl.where(rank == tl.min(rank, 0), slot, SLOT_WIDTH), 0)
    mass = rest.to(tl.float64)
    gain = tl.exp(tl.log(1.0 + mass) * -gamma)
    credit = tl.where(slot == chosen, tl.where(match, credit, 0.0) + gain, credit)
    ids = tl.where(slot == chosen, token.to(tl.int64), ids)
    ids = tl.where(live & inside, ids, -1)
    credit = tl.where(live & inside, credit, 0.0)
    delta = tl.load(alphas + row).to(tl.float64) * tl.log(1.0 + credit)
    tl.store(ids_out + place, ids, mask=inside)
    tl.store(credit_out + place, credit, mask=inside)
    tl.store(delta_out + place, delta, mask=inside)
    # as `reference.biased_statistics`; the argmax has a slot by now, unless the row is closed
    base = maximum.to(tl.float64)
    if GIVEN:
        # the only id that can be new to a slot is the winner
        x = tl.load(logits + place, mask=inside, other=MINUS_INFINITY).to(tl.float64)
        x = tl.where(ids == token, base, tl.where(ids >= 0, x, MINUS_INFINITY))
    else:
        x = gather_logits(logits + row * stride, banned, ids, inside, BANS).to(tl.float64)
    # the argmax stands apart from the slots, at what its own adds
    own = ids == token
    below = tl.where(own, MINUS_INFINITY, x - finite(base))
    above = tl.where(ids >= 0, below + delta, MINUS_INFINITY)
    stands = tl.sum(tl.where(own, delta, 0.0), 0)
    rise = tl.maximum(tl.max(above, 0), stands)
    beyond = tl.full((), 0x7FFFFFFF, tl.int64)
    winner = tl.min(tl.where((ids >= 0) & (above == rise), ids, beyond), 0)
    winner = tl.minimum(winner, tl.where(stands == rise, token.to(tl.int64), beyond))
    winner = tl.where(winner < beyond, winner, token.to(tl.int64))
    after = tl.maximum(above - rise, FLOOR)
    before = tl.maximum(below - rise, FLOOR)
    weight = tl.exp(after)
    removed = tl.exp(before)
    scale = tl.exp(-rise)
    kept = tl.exp(stands - rise)
    beside = tl.sum(tl.where(ids == winner, 0.0, weight) - removed, 0)
    beside += tl.where(winner == token, 0.0, kept)
    tl.store(fused_maximum + row, base + rise)
    tl.store(fused_rest + row, scale * mass + beside)
    change = tl.sum(weight * after - removed * before, 0) + kept * (stands - rise)
    shifted = scale * (moment.to(tl.float64) - rise * mass)
    tl.store(fused_moment + row, shifted + change)
    tl.store(fused_token + row, winner)


@triton.jit
def select_rows(
    scores, order, opened, thresholds, columns, commit_out, left_out,
    STRICT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Open slots of one row that reach its threshold, else the best one; counts what is left.

    Args:
        scores: Pointer to the scores, `columns` per row.
        order: Pointer to what the best one is the best by, likewise.
        opened: Pointer to int8, which slots are open.
        thresholds: Pointer to one threshold per row.
        columns: Slots of a row.
        commit_out: Pointer to int8, the slots to commit.
        left_out: Pointer to int64, open slots that stay, one number per row.
        STRICT: Whether a score must lie above the threshold.
        WIDTH: A power of two of at least `columns`.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < columns
    place = row * columns + column
    score = tl.load(scores + place, mask=inside, other=0.0)
    live = (tl.load(opened + place, mask=inside, other=0) != 0) & inside
    level = tl.load(thresholds + row)
    enough = live & (score > level) if STRICT else live & (score >= level)
    rank = tl.load(order + place, mask=inside, other=0.0)
    rank = tl.where(live, rank, MINUS_INFINITY)
    best = tl.min(tl.where(live & (rank == tl.max(rank, 0)), column, WIDTH), 0)
    # the best one is enough where any is
    commit = enough | (live & (column == best))
    tl.store(commit_out + place, commit.to(tl.int8), mask=inside)
    left = tl.sum(live.to(tl.int32), 0) - tl.sum(commit.to(tl.int32), 0)
    tl.store(left_out + row, left.to(tl.int64))


@triton.jit
def scan_head(
    hidden, hidden_stride, weight, weight_stride, rows, vocabulary, banned,
    maximum_out, rest_out, moment_out, token_out,
    DEPTH: tl.constexpr, BANS: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """CHUNK columns of hidden x head for ROWS rows: products in tiles, statistics online.

    Row blocks are the fast grid dimension, so that programs which run together share the part of
    the head they read.

    Args:
        hidden: Pointer to the hidden states, DEPTH per row.
        hidden_stride: Numbers from one row to the next.
        weight: Pointer to the head, DEPTH per id.
        weight_stride: Numbers from one id to the next.
        rows: Rows of hidden states.
        vocabulary: Ids of the head.
        banned: Pointer to BANS ids.
        maximum_out: Pointer to float32, one per row and part, as the next two.
        rest_out: Sums of exp(l - m) over all ids but the winner.
        moment_out: Sums of exp(l - m) (l - m).
        token_out: Pointer to int32, one per row and part.
        DEPTH: Width of the hidden states.
        BANS: Number of banned ids.
        CHUNK: Ids of a part, a multiple of BLOCK.
        ROWS: Rows of a tile.
        BLOCK: Ids of a tile.
        INNER: Inner dimension of a tile.
        UPCAST: Multiply in float32, as the interpreter must.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    begin = part * CHUNK
    present = row < rows
    inner = tl.arange(0, INNER)
    place = row.to(tl.int64) * tl.num_programs(1) + part
    # rows and ids that do not exist read the last one, so that the loads need no masks
    left = hidden + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * hidden_stride
    maximum = tl.full((ROWS,), MINUS_INFINITY, tl.float32)
    rest = tl.full((ROWS,), 0.0, tl.float32)
    moment = tl.full((ROWS,), 0.0, tl.float32)
    token = tl.full((ROWS,), 0, tl.int32)
    for offset in range(0, CHUNK, BLOCK):
        start = begin + offset
        ids = start + tl.arange(0, BLOCK)
        real = ids < vocabulary
        right = weight + tl.minimum(ids, vocabulary - 1).to(tl.int64)[None, :] * weight_stride
        x = tl.full((ROWS, BLOCK), 0.0, tl.float32)
        for depth in range(0, DEPTH, INNER):
            at = depth + inner
            if DEPTH % INNER == 0:
                a = tl.load(left + at[None, :])
                b = tl.load(right + at[:, None])
            else:
                a = tl.load(left + at[None, :], mask=(at < DEPTH)[None, :], other=0)
                b = tl.load(right + at[:, None], mask=(at < DEPTH)[:, None], other=0)
            if UPCAST:
                x += tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
            else:
                x += tl.dot(a, b)
        x = tl.where(real[None, :], x, MINUS_INFINITY)
        for number in range(0, BANS):
            ban = tl.load(banned + number).to(tl.int32)
            if (ban >= start) & (ban < start + BLOCK):
                x = tl.where((ids == ban)[None, :], MINUS_INFINITY, x)
        top = tl.max(x, 1)
        first = tl.min(tl.where(x == top[:, None], ids[None, :], vocabulary), 1)
        # a new winner leaves the sums, and the one it replaces joins them
        first = tl.where(top > maximum, first, -1)
        x = tl.where(ids[None, :] == first[:, None], MINUS_INFINITY, x)
        token = tl.where(first >= 0, first, token)
        rest = tl.where(first >= 0, rest + 1.0, rest)
        new = tl.maximum(maximum, top)
        base = finite(new)
        drop = tl.maximum((maximum - base) * LOG2E, FLOOR)
        scale = tl.exp2(drop)
        x = (x - base[:, None]) * LOG2E
        weights = tl.exp2(x)
        change = tl.sum(weights * tl.maximum(x, FLOOR), 1)
        moment = scale * (moment + drop * rest) + change
        rest = scale * rest + tl.sum(weights, 1)
        maximum = new
    tl.store(maximum_out + place, maximum, mask=present)
    tl.store(rest_out + place, rest, mask=present)
    tl.store(moment_out + place, moment * LN2, mask=present)
    tl.store(token_out + place, tl.minimum(token, vocabulary - 1), mask=present)


@triton.jit
def gather_head(
    hidden, hidden_stride, weight, weight_stride, banned, wanted, at_out,
    DEPTH: tl.constexpr, BANS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The logit of one id for one row: a column of hidden x head.

    Args:
        hidden: Pointer to the hidden states, DEPTH per row.
        hidden_stride: Numbers from one row to the next.
        weight: Pointer to the head, DEPTH per id.
        weight_stride: Numbers from one id to the next.
        banned: Pointer to BANS ids.
        wanted: Pointer to int64, the ids of a row, -1 for an empty slot.
        at_out: Pointer to float32, their logits.
        DEPTH: Width of the hidden states.
        BANS: Number of banned ids.
        BLOCK: Numbers that are read at once, a power of two.
    """
    row = tl.program_id(0).to(tl.int64)
    place = row * tl.num_programs(1) + tl.program_id(1)
    token = tl.load(wanted + place)
    used = token >= 0
    # nothing is read for an empty slot
    limit = tl.where(used, DEPTH, 0)
    left = hidden + row * hidden_stride
    right = weight + tl.maximum(token, 0) * weight_stride
    products = tl.full((BLOCK,), 0.0, tl.float32)
    for depth in range(0, DEPTH, BLOCK):
        at = depth + tl.arange(0, BLOCK)
        inside = at < limit
        a = tl.load(left + at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(right + at, mask=inside, other=0.0).to(tl.float32)
        products += a * b
    x = tl.where(used, tl.sum(products, 0), MINUS_INFINITY)
    for number in range(0, BANS):
        x = tl.where(token == tl.load(banned + number), MINUS_INFINITY, x)
    tl.store(at_out + place, x)
