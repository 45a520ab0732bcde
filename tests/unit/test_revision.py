"""Edits, re-masks, lingering, probes, states: what the loop grants, counts, costs and refuses."""

import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from test_cache import REQUEST, denoiser
from test_operators import steady_steps

from dllm_decode import Carry, Decision, Pipeline, Request, Revisions, Strategy
from dllm_decode.decoding.cache import (
    BlockExact,
    CertaintyCache,
    DelayedCache,
    DualCache,
    NoCache,
    PeriodicCache,
    PrefixCache,
)
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.selection import best
from dllm_decode.decoding.strategy import Budget, EveryStep
from dllm_decode.decoding.trace import Trace
from dllm_decode.errors import CapabilityError, ConfigError, DecisionError
from dllm_decode.models.toy import Copy
from dllm_decode.strategies.eot import CommittedEot
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.joint_threshold import JointThreshold
from dllm_decode.strategies.t2m import TokenToMask
from dllm_decode.testing import VOCAB, HashDenoiser, StoringHashDenoiser

TWO = Request(((1, 2), (3,)), (6, 4))


@dataclass(frozen=True)
class Says(Strategy):
    """Decides what a function says."""

    say: object = None
    revises = True
    revocable = True

    @property
    def progress(self):
        return Revisions(1)

    def decide(self, view, memory):
        return self.say(view)


def decode(say, request=TWO, model=None, **parts):
    strategy = say if isinstance(say, Strategy) else Says(say)
    return Decoder(model or HashDenoiser(), strategy, record=True, **parts).decode(request)


def one(view):
    return best(view.pred.confidence, view.open)


# What is granted, and what is refused.


def test_what_is_not_granted_is_counted_and_said_once():
    def eager(view):
        return Decision(one(view), remask=view.settled)

    with pytest.warns(
        RuntimeWarning, match=r"strategy asked for \d+ edits and re-masks in row"
    ) as said:
        result = decode(eager)
    assert len([w for w in said if "asked for" in str(w.message)]) == 1
    assert min(result.not_granted) > 0
    for row, length in enumerate(TWO.lengths):
        assert result.remasks[row] <= length and result.forwards[row] <= 2 * length
    kept = sum(int(c.not_granted.sum()) for c in result.trace)
    assert kept == sum(result.not_granted)


def test_writing_the_token_that_stands_there_is_no_edit():
    result = decode(lambda view: Decision(one(view) | view.settled, tokens=torch.where(
        view.settled, view.tokens, view.pred.token)))  # fmt: skip
    assert result.edits == (0, 0) and result.not_granted == (0, 0)


@pytest.mark.parametrize(
    ("say", "message"),
    [
        (lambda v: Decision(v.active & ~v.open & ~v.settled | one(v), tokens=v.pred.token), None),
        (lambda v: Decision(torch.ones_like(v.open)), "committed a position that is neither open"),
        (lambda v: Decision(one(v), remask=v.open), "re-masked a position that is not settled"),
        (
            lambda v: Decision(one(v) | v.settled, remask=v.settled),
            "re-masked a position and wrote to it in the same step",
        ),
        (
            lambda v: Decision(one(v) | v.settled, torch.full_like(v.tokens, VOCAB.mask_id)),
            "committed token 11, a mask or control token that is never generated",
        ),
        (lambda v: Decision(one(v), close=v.open), "returned close, a tensor of shape"),
        (lambda v: Decision(one(v), steps=v.open), "returned steps, a tensor of shape"),
        (lambda v: Decision(one(v), carry=3), "returned carry, a int; it must be a Carry"),
        (
            lambda v: Decision(one(v), carry=Carry([v.pred], torch.zeros_like(v.step))),
            "that no probe of this step made",
        ),
    ],
)
def test_decisions_that_cannot_be_are_refused_by_name(say, message):
    request = Request(((1, 2), (3,)), (6, 3))  # the second row has empty slots
    with warnings.catch_warnings(action="ignore"):
        if message is None:
            decode(say, request)
            return
        with pytest.raises(DecisionError, match=message) as caught:
            decode(say, request)
    assert "strategy (Says)" in str(caught.value)


@pytest.mark.parametrize("progress", [EveryStep(), Budget(9)])
def test_writing_over_tokens_needs_a_bound(progress):
    loose = type("Loose", (Says,), {"progress": progress})
    with pytest.raises(CapabilityError, match=r"revises = True needs progress = Revisions"):
        Decoder(HashDenoiser(), loose())


def test_a_bound_is_a_whole_number():
    with pytest.raises(ConfigError, match="per_column must be a whole number >= 1, got 0"):
        Revisions(0)


# Caches.


@pytest.mark.parametrize("cache", [DelayedCache(), CertaintyCache()])
@pytest.mark.parametrize("rule", [JointThreshold(), TokenToMask()])
def test_caches_without_predictions_where_tokens_stand_are_refused(cache, rule):
    with pytest.raises(CapabilityError, match="revises what is decided in the window"):
        Decoder(StoringHashDenoiser(), rule, cache=cache)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("cache", [DualCache(), PrefixCache(), PeriodicCache(every=1)])
def test_revising_works_with_caches_that_predict_the_window(cache):
    with warnings.catch_warnings(action="ignore"):
        for rule in (JointThreshold(0.3, 0.2, 3, None, 2), TokenToMask(0.3, revisions=2)):
            result = decode(rule, model=StoringHashDenoiser(), cache=cache, schedule=Blocks(3))
            assert all(VOCAB.mask_id not in sequence for sequence in result.sequences)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "rule", [JointThreshold(0.1, 0.05, 3, None, 3), TokenToMask(0.1, revisions=2)]
)
def test_the_block_exact_cache_stores_a_block_after_its_last_edit(rule):
    with warnings.catch_warnings(action="ignore"):
        plain, exact = (
            decode(rule, REQUEST, denoiser(4), cache=cache, schedule=Blocks(4))
            for cache in (NoCache(), BlockExact(4))
        )
    assert exact.sequences == plain.sequences and exact.forwards == plain.forwards
    assert sum(plain.edits) + sum(plain.remasks) > 0


# Ends.


def test_an_end_of_text_in_a_window_that_may_be_revised_ends_nothing_yet():
    eot = VOCAB.eot_ids[0]

    def second_thoughts(view):
        first = view.step[:, None] == 0
        tokens = torch.where(first, eot, 1).expand_as(view.tokens)
        return Decision(one(view) | view.settled, tokens=tokens)

    rule = Pipeline(Says(second_thoughts), stop={"eot": CommittedEot()})
    with warnings.catch_warnings(action="ignore"):
        result = decode(rule, Request(((1,),), 4), schedule=Blocks(2))
    assert result.sequences == ((1, 1, 1, 1),), "the end was written over before it counted"


def test_a_trace_of_edits_and_re_masks_replays_to_its_result():
    rule = Says(lambda v: Decision(one(v) | v.settled & (v.index % 2 == 0),
                                   remask=v.settled & (v.index % 2 == 1)))  # fmt: skip
    with warnings.catch_warnings(action="ignore"):
        result = decode(rule)
    trace = Trace.of(TWO, result, VOCAB)
    replayed = trace.replay()
    assert replayed.sequences == result.sequences and replayed.forwards == result.forwards
    assert replayed.step_of == result.step_of
    assert sum(len(step.edits) for step in trace.steps) == sum(result.edits) > 0
    assert sum(sum(step.not_granted) for step in trace.steps) == sum(result.not_granted) > 0


# Probes.


def test_any_slot_may_hold_another_token_and_only_who_asks_pays():
    seen = []

    def asks(view):
        mask = torch.full_like(view.tokens, VOCAB.mask_id)
        three = torch.stack([mask, view.tokens, mask], 1)
        rows = torch.tensor([[True, False, True], [False, False, False]])[view.snapshot.rows]
        seen.append(view.probe(three, where=view.settled, rows=rows))
        return Decision(one(view))

    model = HashDenoiser()
    result = decode(asks, Request(((1, 2), (3,)), 3), model)
    assert [len(found) for found in seen] == [3, 3, 3]
    assert torch.equal(seen[1][0].logits[0], seen[1][2].logits[0])
    assert result.probes == (6, 0) and result.forwards == (9, 3)
    assert result.passes == (6, 3), "three alternatives at once are one pass"
    assert sum(model.rows_per_pass) == sum(result.forwards)


def test_a_probe_of_what_stands_there_says_what_the_pass_said():
    def asks(view):
        same = view.probe(view.tokens, where=view.settled | view.open)
        assert torch.equal(same.logits, view.pred.logits)
        assert torch.equal(view.later(0).token, view.pred.token)
        return Decision(one(view))

    decode(asks)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda v: v.probe(v.tokens, where=v.step), "probe needs where as flags"),
        (lambda v: v.probe(v.tokens, rows=v.open), "probe needs rows as flags"),
        (lambda v: v.probe([]), "one alternative or more"),
        (lambda v: v.probe([v.tokens], ahead=[1, 2]), "as many numbers in `ahead`"),
        (lambda v: v.probe([v.tokens], ahead=-1), "probe needs a whole number of steps .* -1"),
        (lambda v: v.probe([v.tokens], ahead="x"), "probe needs a whole number .* got 'x'"),
        (lambda v: v.probe([v.tokens], ahead=None), "probe needs a whole number .* got None"),
        (lambda v: v.later(-3), "later needs a whole number of steps ahead, 0 or more, got -3"),
        (lambda v: v.later(2**70), "later needs a whole number"),
        (lambda v: v.draft(v.tokens), "has no drafter"),
        (lambda v: v.head(v.pred.logits), "states of the model are not shown"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused_with_the_place(ask, message):
    with pytest.raises((DecisionError, ConfigError), match=message) as caught:
        decode(lambda view: ask(view) and None)
    assert str(caught.value).startswith("strategy (Says)")


def test_a_carry_names_predictions_and_a_choice_beyond_them_carries_nothing():
    def carries(choice, *made):
        def say(view):
            first = one(view)
            tokens = torch.where(first, view.pred.token, view.tokens)
            found = [view.probe(tokens, rows=view.open.sum(1) > 1) for _ in made]
            return Decision(first, carry=Carry(found, torch.full_like(view.step, choice)))

        return say

    beyond = decode(carries(5, "one"))
    assert beyond.sequences == decode(TopK(1)).sequences and beyond.forwards == (11, 7)
    with pytest.raises(DecisionError, match="returned carry without predictions"):
        decode(carries(0))


def test_a_carried_prediction_saves_the_pass_and_another_canvas_does_not():
    def carries(wrong):
        def say(view):
            first = one(view)
            tokens = torch.where(first, view.pred.token, view.tokens)
            other = torch.where(view.open, 1, view.tokens)
            found = view.probe(other if wrong else tokens, rows=view.open.sum(1) > 1)
            return Decision(first, carry=Carry([found], torch.zeros_like(view.step)))

        return say

    right, wrong = decode(carries(False)), decode(carries(True))
    assert right.sequences == wrong.sequences == decode(TopK(1)).sequences
    assert right.forwards == (6, 4) and right.passes == (6, 4), "each pass but the first is carried"
    assert wrong.forwards == (11, 7)


# States.


class Looks(TopK):
    needs = frozenset({"hidden"})

    def decide(self, view, memory):
        assert view.hidden.shape[:2] == view.open.shape
        again = view.head(view.hidden)
        torch.testing.assert_close(again.logits, view.pred.logits)
        return super().decide(view, memory)


def test_the_states_of_a_transformer_are_what_its_head_makes_the_logits_of():
    model = denoiser()
    for cache in (NoCache(), DualCache()):
        looking = decode(Looks(1), REQUEST, model, cache=cache, schedule=Blocks(4))
        plain = decode(TopK(1), REQUEST, model, cache=cache, schedule=Blocks(4))
        assert looking.sequences == plain.sequences and looking.forwards == plain.forwards


def test_a_drafter_goes_on_from_draft_to_draft_and_is_counted_apart():
    class Adds:
        def __call__(self, model, states, tokens, live):
            assert states.shape[:2] == tokens.shape == live.shape
            return states + 1

    class Drafts(TopK):
        drafter = property(lambda self: Adds())

        def decide(self, view, memory):
            start = view.hidden
            for count in (1, 2):
                draft = view.draft(view.tokens, rows=view.snapshot.rows == 0)
                torch.testing.assert_close(draft.logits, view.head(start + count).logits)
            return super().decide(view, memory)

    result = decode(Drafts(1), REQUEST.take([0, 1]), denoiser(), schedule=Blocks(4))
    assert result.drafts == (2 * result.forwards[0], 0)
    assert (
        result.forwards
        == decode(TopK(1), REQUEST.take([0, 1]), denoiser(), schedule=Blocks(4)).forwards
    )
    with pytest.raises(CapabilityError, match="has a drafter, which needs the states of the whole"):
        Decoder(denoiser(), Drafts(1), cache=DualCache())


def test_a_model_that_shows_no_states_and_words_that_nobody_knows_are_refused():
    closed = type("Closed", (Copy,), {"provides": frozenset()})
    with pytest.raises(CapabilityError, match=r"looks at the model's hidden, which model \(Closed"):
        Decoder(closed(n=3), Looks(1))
    odd = type("Odd", (TopK,), {"needs": frozenset({"attention"})})
    with pytest.raises(CapabilityError, match=r"model.s attention.*it provides embeddings, hidden"):
        Decoder(HashDenoiser(), odd(1))


# What it costs.


def test_what_is_not_declared_costs_nothing():
    seen = []

    class Plain(TopK):
        def decide(self, view, memory):
            seen.append(view)
            return super().decide(view, memory)

    result = decode(Plain(1))
    for view, change in zip(seen, result.trace, strict=True):
        assert view.lingering is None and view.hidden is None and view.snapshot.revised is None
        for name in ("edit", "not_granted", "probes", "carried", "drafts", "steps"):
            assert getattr(change, name) is None, name
    declared = Says(lambda view: Decision(one(view)))
    fewest = min(step.total() for step in steady_steps(TopK(1)))
    assert fewest < min(step.total() for step in steady_steps(declared))
    assert replace(seen[0], step=seen[0].step).live.tolist() == [True, True]
