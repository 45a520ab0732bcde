"""CreditDecoding: the invariants of the method, each against a dense version in float64."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from changing_model import ChangingModel, a_request, board_of, view_of
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.sampling import Categorical
from dllm_decode.decoding.schedule import Blocks, Schedule, SlidingWindow, WholeCanvas, Window
from dllm_decode.decoding.strategy import Pipeline, Strategy, Transform
from dllm_decode.decoding.types import Decision, Memory, Request, Snapshot, StepView
from dllm_decode.errors import ConfigError
from dllm_decode.strategies.credit import (
    AdaptiveCredit,
    CreditMemory,
    FullCredit,
    TraceCredit,
)
from dllm_decode.strategies.entropy import EntropyThreshold
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.threshold import ConfidenceThreshold

few = examples(6)
decodes = examples(3)
GOLDEN = Path(__file__).parents[1] / "golden" / "pure"


@dataclass
class DenseMemory(Memory):
    credit: Tensor


@dataclass(frozen=True)
class DenseCredit(Transform):
    """The definition, with one number per column and token of the vocabulary."""

    alpha: float = 0.65
    beta: float = 0.70
    gamma: float = 0.20

    def begin(self, request: Request, snapshot: Any) -> DenseMemory:
        rows, width = snapshot.tokens.shape
        return DenseMemory(torch.zeros(rows, width, snapshot.vocab.size, dtype=torch.float64))

    def adjust(self, view: StepView, memory: DenseMemory) -> Prediction:
        logits = view.pred.logits.double()
        credit = memory.credit
        credit[view.fresh] = 0.0
        credit *= self.beta
        probs = logits.softmax(-1)
        for row, slot in view.open.nonzero().tolist():
            token = int(view.pred.top_token[row, slot])
            column = int(view.index[row, slot])
            credit[row, column, token] += probs[row, slot, token] ** self.gamma
        earned = view.gather(credit)[..., : logits.shape[-1]] * view.open[..., None]
        return Prediction.of(logits + self.alpha * earned.log1p())


def decode(
    model: ChangingModel,
    transform: Transform | None,
    select: Strategy | None = None,
    **options: Any,
) -> Result:
    schedule = options.pop("schedule", Blocks(6))
    transforms = {} if transform is None else {"credit": transform}
    pipeline = Pipeline(select or ConfidenceThreshold(0.8), transforms)
    request = options.pop("request", a_request())
    return Decoder(model, pipeline, schedule, record=True, **options).decode(request)


def outcome(result: Result) -> tuple[object, ...]:
    return result.sequences, result.step_of, result.forwards, result.finish_reasons


@dataclass(frozen=True)
class Sequence:
    """Logits (T, B, W, V) of T steps and the slots still open in each, (T, B, W)."""

    logits: Tensor
    open_slots: Tensor


@st.composite
def sequences(draw: st.DrawFn, steps: int = 6) -> Sequence:
    """Steps of logits that partly stay, with slots that close one after the other."""
    seed = draw(st.integers(0, 10_000))
    size = draw(st.integers(2, 9))
    sharpness = draw(st.sampled_from([0.5, 2.0, 6.0]))
    generator = torch.Generator().manual_seed(seed)
    count = draw(st.integers(1, steps))
    lasting = torch.randn(1, 2, 4, size, generator=generator, dtype=torch.float64)
    passing = torch.randn(count, 2, 4, size, generator=generator, dtype=torch.float64)
    coarse = draw(st.booleans())
    logits = sharpness * (lasting + 0.7 * passing)
    logits = (2 * logits).round() / 2 if coarse else logits
    closes = torch.randint(1, count + 2, (2, 4), generator=generator)
    open_slots = torch.arange(count)[:, None, None] < closes
    return Sequence(logits, open_slots)


STRENGTHS = st.tuples(
    st.sampled_from([0.1, 0.65, 1.5]), st.sampled_from([0.0, 0.7, 0.95]), st.sampled_from([0.2, 1])
)


@dataclass(frozen=True)
class Moment:
    """One step of a transform that is driven by hand."""

    view: StepView
    pred: Prediction
    memory: CreditMemory


def drive(transform: Any, sequence: Sequence, banned: tuple[int, ...] = ()) -> list[Moment]:
    moments = []
    memory: Any = None
    for step, (logits, open_slots) in enumerate(
        zip(sequence.logits, sequence.open_slots, strict=True)
    ):
        view = view_of(logits, open_slots, fresh=step == 0, banned=banned)
        if memory is None:
            memory = transform.begin(Request(((),) * logits.shape[0]), view.snapshot)
        pred = transform.adjust(view, memory)
        moments.append(Moment(view, pred, memory.__class__(*vars(memory).values())))
    return moments


def credit_of(moment: Moment) -> Tensor:
    """The dense credit of a sparse memory, (B, W, V); ids appear once per position."""
    ids, credit = moment.memory.ids[:, :-1], moment.memory.credit[:, :-1]
    dense = torch.zeros(moment.view.pred.shape, dtype=torch.float64)
    for place in (ids >= 0).nonzero().tolist():
        row, slot, k = place
        assert dense[row, slot, ids[row, slot, k]] == 0.0
        dense[row, slot, ids[row, slot, k]] = credit[row, slot, k]
    return dense


# The state.


@few
@given(sequences(), STRENGTHS)
def test_credit_is_bounded_and_grows_at_one_token_per_step(
    sequence: Sequence, strengths: tuple[float, float, float]
) -> None:
    alpha, beta, gamma = strengths
    before = torch.zeros(sequence.logits.shape[1:], dtype=torch.float64)
    transform = TraceCredit(alpha=alpha, beta=beta, gamma=gamma)
    for step, moment in enumerate(drive(transform, sequence)):
        credit = credit_of(moment)
        geometric = sum(beta**power for power in range(step + 1))
        assert (credit >= 0).all()
        assert (credit.sum(-1) <= geometric + 1e-9).all()
        assert ((credit > 0).sum(-1) <= step + 1).all()
        grown = (credit > beta * before + 1e-12).sum(-1)
        assert (grown[moment.view.open] == 1).all()
        before = credit


@dataclass
class History(Memory):
    """What every open column was predicted in the steps so far of its block."""

    shares: list[Tensor]


@dataclass(frozen=True)
class NaiveFullCredit(Transform):
    """C_t = sum over s <= t of beta^(t - s) p_s^gamma, from all predictions of the block so far."""

    alpha: float
    beta: float
    gamma: float

    def begin(self, request: Request, snapshot: Any) -> History:
        return History([])

    def adjust(self, view: StepView, memory: History) -> Prediction:
        logits = view.pred.logits.double()
        share = logits.softmax(-1)
        columns = torch.zeros(*view.snapshot.tokens.shape, logits.shape[-1], dtype=torch.float64)
        for row, slot in view.open.nonzero().tolist():  # padding, -1, is the last column
            columns[row, view.index[row, slot]] = share[row, slot]
        if view.fresh.any():  # all rows enter a block together here
            memory.shares.clear()
        memory.shares.append(columns)
        bonus = torch.zeros_like(logits)
        for age, past in enumerate(reversed(memory.shares)):
            earned = view.gather(past)
            bonus += self.beta**age * torch.where(earned > 0, earned**self.gamma, 0.0)
        return Prediction.of(logits + self.alpha * bonus.log1p() * view.open[..., None])


@decodes
@given(st.integers(0, 500), STRENGTHS)
def test_full_credit_is_a_decaying_sum_of_all_probabilities(
    seed: int, strengths: tuple[float, float, float]
) -> None:
    alpha, beta, gamma = strengths
    request = a_request(1, 15)
    naive = decode(ChangingModel(seed=seed), NaiveFullCredit(*strengths), request=request)
    full = FullCredit(alpha=alpha, beta=beta, gamma=gamma)
    assert outcome(decode(ChangingModel(seed=seed), full, request=request)) == outcome(naive)


@decodes
@given(st.integers(0, 500))
def test_full_credit_draws_as_the_prediction_that_it_changes(seed: int) -> None:
    """Without strength it changes nothing, at any temperature."""
    sampler = Categorical(temperature=1.0)
    plain = decode(ChangingModel(seed=seed), None, sampler=sampler)
    off = decode(ChangingModel(seed=seed), FullCredit(alpha=0.0), sampler=sampler)
    assert outcome(off) == outcome(plain)


@few
@given(sequences(), STRENGTHS)
def test_the_winner_holds_at_least_what_it_has_just_earned(
    sequence: Sequence, strengths: tuple[float, float, float]
) -> None:
    alpha, beta, gamma = strengths
    for moment in drive(TraceCredit(alpha=alpha, beta=beta, gamma=gamma), sequence):
        pred, opened = moment.view.pred, moment.view.open
        held = credit_of(moment).gather(-1, pred.top_token[..., None])[..., 0]
        assert (held[opened] >= pred.top_confidence[opened] ** gamma - 1e-12).all()


@few
@given(sequences())
def test_a_decided_position_forgets_its_credit_and_gets_no_bonus(sequence: Sequence) -> None:
    for moment in drive(TraceCredit(), sequence):
        decided = ~moment.view.open
        assert (moment.memory.ids[:, :-1][decided] == -1).all()
        bonus = moment.pred.confidence[decided] - moment.view.pred.confidence[decided]
        assert bonus.numel() == 0 or bonus.abs().max() <= 1e-12


def test_a_step_without_open_positions_leaves_the_prediction_as_it_is() -> None:
    logits = torch.randn(2, 3, 5)
    view = view_of(logits, torch.zeros(2, 3, dtype=torch.bool))
    transform = TraceCredit()
    memory = transform.begin(Request(((), ())), view.snapshot)
    pred = transform.adjust(view, memory)
    assert torch.equal(pred.top_token, view.pred.top_token)
    assert torch.allclose(pred.confidence, view.pred.confidence, atol=1e-7)
    assert float(memory.credit.sum()) == 0.0


# The fusion.


@few
@given(sequences(), STRENGTHS)
def test_sparse_credit_is_the_dense_one_when_slots_suffice(
    sequence: Sequence, strengths: tuple[float, float, float]
) -> None:
    steps = sequence.logits.shape[0]
    alpha, beta, gamma = strengths
    sparse = TraceCredit(alpha=alpha, beta=beta, gamma=gamma, slots=steps)
    for mine, dense in zip(
        drive(sparse, sequence), drive(DenseCredit(alpha, beta, gamma), sequence), strict=True
    ):
        opened = mine.view.open
        assert torch.equal(mine.pred.top_token[opened], dense.pred.top_token[opened])
        error = (mine.pred.confidence - dense.pred.confidence)[opened].abs()
        assert error.numel() == 0 or error.max() <= 1e-12


@few
@given(sequences(steps=8), st.integers(1, 3))
def test_too_few_slots_cost_at_most_the_mass_of_the_bonus_they_dropped(
    sequence: Sequence, slots: int
) -> None:
    few = drive(TraceCredit(slots=slots), sequence)
    all_of_them = drive(TraceCredit(slots=8), sequence)
    for lossy, exact in zip(few, all_of_them, strict=True):
        opened = exact.view.open
        gain = (1 + credit_of(exact)) ** 0.65 - (1 + credit_of(lossy)) ** 0.65
        assert (gain >= -1e-9).all()  # forgetting never adds credit
        dropped = (exact.view.pred.probs * gain).sum(-1)
        error = (lossy.pred.confidence - exact.pred.confidence).abs()
        assert (error <= dropped + 1e-9)[opened].all()


def test_the_token_with_the_least_credit_makes_room() -> None:
    winners = [0, 1, 1, 2]
    logits = torch.full((4, 1, 1, 4), 0.0)
    for step, token in enumerate(winners):
        logits[step, 0, 0, token] = 3.0
    moments = drive(TraceCredit(slots=2), Sequence(logits, torch.ones(4, 1, 1).bool()))
    assert sorted(moments[-1].memory.ids[0, 0].tolist()) == [1, 2]


@few
@given(sequences(), STRENGTHS)
def test_the_raised_winner_is_one_of_the_credited_tokens(
    sequence: Sequence, strengths: tuple[float, float, float]
) -> None:
    alpha, beta, gamma = strengths
    for moment in drive(TraceCredit(alpha=alpha, beta=beta, gamma=gamma), sequence):
        held = credit_of(moment).gather(-1, moment.pred.top_token[..., None])[..., 0]
        assert (held[moment.view.open] > 0).all()


@few
@given(sequences())
def test_the_winner_gains_as_much_as_an_uncontested_bonus_allows_and_no_more(
    sequence: Sequence,
) -> None:
    for moment in drive(TraceCredit(), sequence):
        opened, raw = moment.view.open, moment.view.pred
        token = raw.top_token[..., None]
        credit = credit_of(moment)
        gain = (1 + credit.gather(-1, token)[..., 0]) ** 0.65
        p = raw.top_confidence
        bound = p * gain / (1 - p + p * gain)
        q = moment.pred.prob_of(token)[..., 0]
        assert (q <= bound + 1e-12)[opened].all()
        alone = ((credit > 0).sum(-1) == 1) & opened
        assert ((q - bound).abs() <= 1e-12)[alone].all()
        assert (q >= p - 1e-12)[alone].all()


@few
@given(sequences(), STRENGTHS)
def test_a_token_overtakes_exactly_when_its_raised_probability_is_larger(
    sequence: Sequence, strengths: tuple[float, float, float]
) -> None:
    alpha, beta, gamma = strengths
    for moment in drive(TraceCredit(alpha=alpha, beta=beta, gamma=gamma), sequence):
        weight = moment.view.pred.probs * (1 + credit_of(moment)) ** alpha
        winner = moment.pred.top_token[..., None]
        best = weight.amax(-1)
        assert torch.allclose(weight.gather(-1, winner)[..., 0], best, rtol=1e-12, atol=0.0)


@few
@given(sequences())
def test_at_the_papers_settings_an_accepted_token_is_the_models_own(sequence: Sequence) -> None:
    alpha, beta, gamma = 0.65, 0.70, 0.20
    top, rival = (1 + 2.0**-gamma) ** alpha, (1 - beta) ** -alpha
    bound = rival / (rival + top)
    assert bound == pytest.approx(0.593, abs=5e-4)
    for moment in drive(TraceCredit(), sequence):
        accepted = moment.view.open & (moment.pred.confidence > bound)
        assert torch.equal(moment.pred.top_token[accepted], moment.view.pred.top_token[accepted])


@few
@given(sequences(), st.integers(0, 100))
def test_adding_a_number_to_a_row_or_renaming_tokens_changes_nothing(
    sequence: Sequence, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = sequence.logits.shape[-1]
    order = torch.randperm(size, generator=generator)
    noisy = sequence.logits + 1e-3 * torch.rand(size, generator=generator, dtype=torch.float64)
    plain = drive(TraceCredit(), replace(sequence, logits=noisy))
    shifted = drive(TraceCredit(), replace(sequence, logits=noisy + 7.0))
    renamed = drive(TraceCredit(), replace(sequence, logits=noisy[..., order]))
    for one, other, third in zip(plain, shifted, renamed, strict=True):
        opened = one.view.open
        assert torch.equal(one.pred.top_token[opened], other.pred.top_token[opened])
        assert torch.allclose(one.pred.confidence, other.pred.confidence, atol=1e-12)
        assert torch.equal(one.pred.top_token[opened], order[third.pred.top_token[opened]])
        assert torch.allclose(one.pred.confidence, third.pred.confidence, atol=1e-12)


@few
@given(sequences(), st.floats(0.1, 0.9))
def test_at_a_fixed_state_more_strength_only_adds_positions_while_nothing_competes(
    sequence: Sequence, threshold: float
) -> None:
    first = replace(sequence, logits=sequence.logits[:1], open_slots=sequence.open_slots[:1])
    accepted = [
        drive(TraceCredit(alpha=alpha), first)[0].pred.confidence >= threshold
        for alpha in (0.0, 0.3, 0.65, 2.0)
    ]
    for weaker, stronger in pairwise(accepted):
        assert not (weaker & ~stronger).any()


@few
@given(sequences(), st.sampled_from([0.6, 0.8, 0.9]))
def test_without_memory_credit_is_a_lower_threshold(sequence: Sequence, tau: float) -> None:
    for moment in drive(TraceCredit(beta=0.0), sequence):
        p = moment.view.pred.top_confidence
        lower = tau / (tau + (1 - tau) * (1 + p**0.20) ** 0.65)
        clear = moment.view.open & ((p - lower).abs() > 1e-9)
        accepted = moment.pred.confidence >= tau
        assert torch.equal(accepted[clear], (p >= lower)[clear])


@pytest.mark.parametrize(("steps", "p"), [(1, 0.853), (2, 0.827), (4, 0.802), (10, 0.783)])
def test_the_lowest_accepted_probability_is_the_published_one(steps: int, p: float) -> None:
    """At threshold 0.9 with the paper's constants, for a token that stays on top."""
    for probability, accepted in ((p + 0.001, True), (p - 0.001, False)):
        logits = torch.tensor([math.log(probability), math.log1p(-probability)])
        sequence = Sequence(
            logits.double().expand(steps, 1, 1, 2), torch.ones(steps, 1, 1, dtype=torch.bool)
        )
        last = drive(TraceCredit(), sequence)[-1]
        assert bool(last.pred.confidence[0, 0] >= 0.9) is accepted


@few
@given(sequences())
def test_without_identity_a_position_passes_its_credit_on_to_each_winner(
    sequence: Sequence,
) -> None:
    credit = torch.zeros(sequence.logits.shape[1:3], dtype=torch.float64)
    for moment in drive(TraceCredit(identity=False), sequence):
        p, opened = moment.view.pred.top_confidence, moment.view.open
        credit = torch.where(opened, 0.70 * credit + p**0.20, 0.0)
        gain = (1 + credit) ** 0.65
        expected = p * gain / (1 - p + p * gain)
        assert torch.equal(moment.pred.top_token[opened], moment.view.pred.top_token[opened])
        assert torch.allclose(moment.pred.confidence[opened], expected[opened], atol=1e-12)


# Banned tokens.


@few
@given(sequences())
def test_a_banned_token_earns_nothing_and_is_not_raised(sequence: Sequence) -> None:
    logits = sequence.logits.clone()
    logits[..., 1] += 30.0
    for moment in drive(TraceCredit(), replace(sequence, logits=logits), banned=(1,)):
        assert not (moment.memory.ids == 1).any()
        assert float(moment.pred.prob_of(torch.tensor([[[1]]]).expand(2, 4, 1)).sum()) == 0.0


def test_decoding_goes_on_when_the_model_predicts_the_mask_everywhere() -> None:
    model = ChangingModel(favourite=11)
    result = decode(model, TraceCredit())
    assert all(11 not in row for row in result.sequences)
    assert all(forwards <= 12 for forwards in result.forwards)


# Decoding.


@decodes
@given(st.integers(0, 300), st.sampled_from([0.5, 0.7, 0.9]), st.sampled_from([3, 5, 12]))
def test_decodes_are_those_of_the_dense_version(seed: int, tau: float, length: int) -> None:
    model = ChangingModel(seed=seed)
    options: dict[str, Any] = {"schedule": Blocks(length), "select": ConfidenceThreshold(tau)}
    sparse = decode(model, TraceCredit(slots=12), **options)
    assert outcome(sparse) == outcome(decode(model, DenseCredit(), **options))


@decodes
@given(st.integers(0, 300), st.sampled_from([ConfidenceThreshold(0.7), EntropyThreshold(0.6)]))
def test_without_strength_credit_is_absent(seed: int, select: Strategy) -> None:
    model = ChangingModel(seed=seed)
    for idle in (TraceCredit(alpha=0.0), TraceCredit(alpha=0.0, scope="request")):
        assert outcome(decode(model, idle, select)) == outcome(decode(model, None, select))


def test_without_strength_the_prediction_is_handed_on_as_it_is() -> None:
    view = view_of(torch.randn(1, 3, 5), torch.ones(1, 3, dtype=torch.bool))
    transform = TraceCredit(alpha=0.0)
    assert transform.adjust(view, transform.begin(Request(((),)), view.snapshot)) is view.pred


@decodes
@given(st.integers(0, 300), st.sampled_from(["block", "request"]))
def test_a_row_decodes_alike_alone_and_in_a_batch(seed: int, scope: str) -> None:
    model = ChangingModel(seed=seed)
    request = a_request(3)
    together = decode(model, TraceCredit(scope=scope), request=request)
    for row in range(3):
        alone = decode(model, TraceCredit(scope=scope), request=request.take([row]))
        assert alone.sequences[0] == together.sequences[row]
        assert alone.step_of[0] == together.step_of[row]


@decodes
@given(st.integers(0, 300))
def test_each_commit_above_the_threshold_or_alone_and_each_step_gains(seed: int) -> None:
    result = decode(ChangingModel(seed=seed), TraceCredit(), ConfidenceThreshold(0.8))
    for change in result.trace:
        for row in range(change.rows.numel()):
            confidence = change.confidence[row][change.commit[row]]
            assert confidence.numel() >= 1
            assert confidence.numel() == 1 or (confidence >= 0.8).all()


@dataclass(frozen=True)
class Watch(Strategy):
    """One token per step, taking note of the confidences it was shown."""

    seen: list[tuple[int, Tensor]]

    def decide(self, view: StepView, memory: None) -> Decision:
        self.seen.append((int(view.index[0, 0]), view.pred.confidence[0].clone()))
        return TopK(1).decide(view, None)


def confidences(transform: Transform, seed: int, request: Request, schedule: Any) -> Any:
    seen: list[tuple[int, Tensor]] = []
    decode(ChangingModel(seed=seed), transform, Watch(seen), request=request, schedule=schedule)
    return seen


@decodes
@given(st.integers(0, 100))
def test_a_new_block_starts_without_credit_and_a_request_scope_does_not(seed: int) -> None:
    """The first step of block 2 sees the one-step bonus of a fresh decode, whatever went before."""
    request = Request(((3,),), max_new_tokens=12)
    for transform in (TraceCredit(), TraceCredit(scope="request")):
        seen = confidences(transform, seed, request, Blocks(6))
        model = ChangingModel(seed=seed)
        result = decode(model, transform, TopK(1), request=request)
        done = result.sequences[0][:6]
        resumed = Request(((3,),), 12, fixed=(dict(enumerate(done)),))
        fresh = confidences(TraceCredit(), seed, resumed, Blocks(6))[0][1]
        # a canvas-wide view starts with its columns of the first block
        second = seen[6][1][-6:]
        assert torch.equal(second, fresh) is (transform.scope == "block")


@dataclass(frozen=True)
class EveryStepNew(Schedule):
    """The whole canvas, as a window that counts as new in every step."""

    def window(self, snapshot: Snapshot) -> Window:
        return Window(WholeCanvas().window(snapshot).index, snapshot.undecided.sum(1))


@decodes
@given(st.integers(0, 100))
def test_a_window_that_counts_as_new_starts_without_credit(seed: int) -> None:
    model = ChangingModel(seed=seed)
    fresh = decode(model, TraceCredit(), TopK(1), schedule=EveryStepNew())
    memoryless = decode(model, TraceCredit(beta=0.0), TopK(1), schedule=WholeCanvas())
    kept = decode(model, TraceCredit(scope="request"), TopK(1), schedule=EveryStepNew())
    whole = decode(model, TraceCredit(), TopK(1), schedule=WholeCanvas())
    assert fresh.confidence_of == memoryless.confidence_of != kept.confidence_of
    assert kept.confidence_of == whole.confidence_of


@decodes
@given(st.integers(0, 100))
def test_nothing_outlives_a_request(seed: int) -> None:
    model = ChangingModel(seed=seed)
    pipeline = Pipeline(ConfidenceThreshold(0.7), {"credit": TraceCredit()})
    decoder = Decoder(model, pipeline, Blocks(6))
    first = outcome(decoder.decode(a_request()))
    decoder.decode(Request(((5, 6),), 12))
    assert outcome(decoder.decode(a_request())) == first


@decodes
@given(st.integers(0, 100))
def test_credit_follows_its_column_when_the_window_slides(seed: int) -> None:
    """A window that slides over all columns keeps what they earned; one of full width is the same
    as the whole canvas."""
    model = ChangingModel(seed=seed)
    wide = decode(model, TraceCredit(slots=12), schedule=SlidingWindow(12))
    whole = decode(model, TraceCredit(slots=12), schedule=WholeCanvas())
    assert outcome(wide) == outcome(whole)
    narrow = decode(model, TraceCredit(slots=12), schedule=SlidingWindow(4))
    dense = decode(model, DenseCredit(), schedule=SlidingWindow(4))
    assert outcome(narrow) == outcome(dense)


# The adaptive form.


def test_the_adaptive_form_starts_as_plain_decoding_and_gains_strength() -> None:
    logits = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(1))
    transform = AdaptiveCredit()
    opened = torch.ones(1, 4, dtype=torch.bool)
    first = view_of(logits, opened, fresh=True)
    memory = transform.begin(Request(((),)), first.snapshot)
    plain = transform.adjust(first, memory).confidence
    assert torch.allclose(plain, first.pred.confidence, atol=1e-7)
    half = view_of(logits, torch.tensor([[True, False, True, False]]))
    raised = transform.adjust(half, memory)
    # credit: 0.5 * p from the first step and p from this one, strength 0.5
    p = half.pred.top_confidence.double()
    gain = (1 + 1.5 * p) ** 0.5
    expected = p * gain / (1 - p + p * gain)
    assert torch.allclose(raised.confidence.double()[half.open], expected[half.open], atol=1e-6)


def test_the_adaptive_form_counts_the_block_or_the_canvas() -> None:
    opened = torch.tensor([[True, False]])
    tokens = torch.full((1, 8), 11)
    decided = torch.tensor([[False, True] + [False] * 6])
    view = view_of(torch.randn(1, 2, 5), opened, snapshot=board_of(tokens, decided))
    by_block, by_canvas = (AdaptiveCredit(ratio_over=over) for over in ("block", "canvas"))
    assert [float(strength) for strength in by_block.strengths(view)] == [0.5, 0.5, 1.0]
    assert [float(strength) for strength in by_canvas.strengths(view)] == [0.125, 0.125, 1.0]


# Stored cases of the published rule.


@pytest.mark.parametrize("number", [0, 1])
def test_the_stored_credit_sequences_are_reproduced(number: int) -> None:
    about = json.loads((GOLDEN / f"credit_sequence_{number}.json").read_text())
    stored = load_file(GOLDEN / f"credit_sequence_{number}.safetensors")
    logits, masked = stored["logits"], stored["masked"]
    sequence = Sequence(logits[:, None], masked[:, None])
    transform = TraceCredit(**about["parameters"], slots=logits.shape[0])
    for step, moment in enumerate(drive(transform, sequence)):
        rows = masked[step]
        credit = credit_of(moment)[0]
        assert (credit - stored["credit"][step])[rows].abs().max() <= 2e-5
        assert torch.equal(
            moment.pred.top_token[0][rows].int(), stored["fused_argmax"][step][rows].int()
        )
        error = (moment.pred.confidence[0] - stored["fused_confidence"][step])[rows].abs().max()
        assert error <= about["tolerances"]["fused_confidence_abs"]


@pytest.mark.parametrize("case", ["v7_k1", "v7_k4", "v50_k4", "v50_k8", "v300_k4", "v300_k8"])
def test_the_stored_fusions_are_reproduced(case: str) -> None:
    stored = load_file(GOLDEN / f"credit_fusion_sparse_{case}.safetensors")
    base = Prediction.of(stored["logits"][None].double())
    ids, credit = stored["ids"][None].long(), stored["credits"][None].double()
    for alpha in (0.65, 0.7, 1.0):
        pred = base.with_logit_bias(ids, alpha * credit.clamp(min=0).log1p())
        assert torch.equal(pred.top_token[0].int(), stored[f"fused_argmax_a{alpha}"].int())
        error = pred.confidence[0] - stored[f"fused_confidence_a{alpha}"]
        assert error.abs().max() <= 1e-9


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, r"alpha must lie in \[0.0, 100.0\], got"),
        ({"beta": 1.1}, r"beta must lie in \[0.0, 1.0\], got 1.1"),
        ({"gamma": float("nan")}, r"gamma must lie in .* got nan"),
        ({"slots": 0}, r"slots must be a whole number >= 1, got 0"),
        ({"scope": "canvas"}, r"scope must be one of block, request; got 'canvas'"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TraceCredit(**options)


def test_an_unknown_ratio_is_refused() -> None:
    with pytest.raises(ConfigError, match="ratio_over must be one of block, canvas; got 'row'"):
        AdaptiveCredit(ratio_over="row")
