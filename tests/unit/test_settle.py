from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from views import view_of

from dllm_decode.decoding.settle import settle
from dllm_decode.decoding.strategy import Budget, EveryStep, Pipeline, Strategy
from dllm_decode.decoding.types import Decision
from dllm_decode.errors import DecisionError
from dllm_decode.strategies.at_most import AtMost

OPEN = torch.tensor([[True, True, False], [True, False, False]])
SETTLED = torch.tensor([[False, False, True], [False, True, False]])


def a_view():
    logits = torch.tensor([[5.0, 1, 0, 0], [0, 4, 0, 0], [0, 0, 3, 0]]).expand(2, 3, 4)
    return replace(view_of(logits), open=OPEN, settled=SETTLED, step=torch.tensor([7, 7]))


class Mine(Strategy):
    def decide(self, view, memory):
        raise AssertionError("settle is tested with decisions made by hand")


def settled(decision, *, view=None, revocable=False, progress=EveryStep()):  # noqa: B008
    view = a_view() if view is None else view
    view = replace(view, snapshot=replace(view.snapshot, rows=torch.tensor([4, 9])))
    kind = type("Mine", (Mine,), {"revocable": revocable, "progress": progress})
    change, faults = settle(view, decision, kind())
    if faults.count:
        raise faults.error()
    return change


def flags(*slots):
    commit = torch.zeros(2, 3, dtype=torch.bool)
    for row, slot in slots:
        commit[row, slot] = True
    return commit


NOTHING = flags()


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (
            Decision(torch.zeros(2, 2, dtype=torch.bool)),
            r"returned commit, a tensor of shape \(2, 2\); it must be a tensor of shape \(2, 3\)",
        ),
        (Decision([1]), "returned commit, a list; it must be a tensor of shape"),
        (
            Decision(OPEN.int()),
            "returned commit, a tensor of type torch.int32; it must be torch.bool",
        ),
        (
            Decision(OPEN, remask=NOTHING.float()),
            "returned remask, a tensor of type torch.float32; it must be torch.bool",
        ),
        (
            Decision(OPEN, tokens=torch.zeros(2, 3)),
            "returned tokens, a tensor of type torch.float32; it must be torch.int64 or",
        ),
        (
            Decision(flags((1, 2))),
            "committed a position that is not open: row 9, generated column 2, step 7",
        ),
        (
            Decision(OPEN, tokens=torch.full((2, 3), 4)),
            "committed token 4, which lies outside the vocabulary of 4: row 4",
        ),
        (
            Decision(OPEN, tokens=torch.full((2, 3), -1)),
            "committed token -1, which lies outside",
        ),
        (
            Decision(OPEN, tokens=torch.full((2, 3), 3)),
            "committed token 3, a mask or control token that is never generated: row 4",
        ),
        (
            Decision(OPEN, remask=flags((1, 1))),
            "re-masked a position, but does not declare revocable = True: row 9",
        ),
        (
            Decision(OPEN, scores=torch.full((2, 3), float("nan"))),
            "gave a score that is NaN: row 4, generated column 0, step 7",
        ),
    ],
)
def test_an_illegal_decision_is_refused_by_name_row_column_and_step(decision, message):
    with pytest.raises(DecisionError, match=rf"strategy \(Mine\) {message}"):
        settled(decision)


def test_a_revocable_strategy_may_only_open_what_it_settled():
    with pytest.raises(DecisionError, match="re-masked a position that is not settled: row 9"):
        settled(Decision(OPEN, remask=flags((1, 2))), revocable=True)
    change = settled(Decision(OPEN, remask=flags((0, 2))), revocable=True)
    assert change.remask.tolist() == flags((0, 2)).tolist()


def test_what_a_strategy_says_about_positions_it_does_not_choose_need_not_be_legal():
    tokens = torch.tensor([[0, 99, -3], [1, 3, 3]])
    scores = torch.tensor([[0.0, 1, float("nan")]] * 2)
    change = settled(Decision(flags((0, 0), (1, 0)), tokens=tokens, scores=scores))
    assert change.tokens[change.commit].tolist() == [0, 1]


def test_a_row_without_a_commit_is_given_its_best_position_and_only_that_row():
    change = settled(Decision(flags((1, 0))))
    assert change.commit.tolist() == flags((0, 0), (1, 0)).tolist()
    assert change.forced.tolist() == [True, False]
    scores = torch.tensor([[0.0, 1.0, 9.0], [0.0, 0.0, 0.0]])
    assert (
        settled(Decision(NOTHING, scores=scores)).commit.tolist() == flags((0, 1), (1, 0)).tolist()
    )


def test_forced_progress_takes_the_lowest_column_on_ties():
    change = settled(Decision(NOTHING, scores=torch.zeros(2, 3)))
    assert change.commit.tolist() == flags((0, 0), (1, 0)).tolist()


@pytest.mark.parametrize("token", [3, 99, -1])
def test_a_forced_commit_never_writes_an_illegal_token(token):
    change = settled(Decision(NOTHING, tokens=torch.full((2, 3), token)))
    assert change.tokens[change.commit].tolist() == [0, 0]


def test_a_forced_commit_writes_the_token_that_the_strategy_named():
    change = settled(Decision(NOTHING, tokens=torch.full((2, 3), 2)))
    assert change.tokens[change.commit].tolist() == [2, 2]


def test_re_masking_may_not_undo_the_gain_of_a_step():
    decision = Decision(flags((0, 0), (1, 0)), remask=SETTLED)
    change = settled(decision, revocable=True)
    assert not change.remask.any(), "one commit and one re-mask per row is no gain"
    assert change.commit.tolist() == decision.commit.tolist() and not change.forced.any()


def test_a_budget_lets_steps_pass_and_closes_in_the_last_one():
    early = settled(Decision(NOTHING), progress=Budget(9))
    assert not early.commit.any() and not early.forced.any()
    last = settled(Decision(flags((1, 0)), remask=SETTLED), revocable=True, progress=Budget(8))
    assert torch.equal(last.commit, OPEN) and not last.remask.any()
    assert last.forced.tolist() == [True, False]


def test_a_change_counts_columns_from_the_first_generated_one():
    view = view_of(torch.zeros(2, 3, 4), prompts=((1, 1), (2,)), lengths=(3, 2))
    change = settled(Decision(view.open), view=view)
    assert change.index.tolist() == [[0, 1, 2], [0, 1, -1]]
    assert change.horizon.tolist() == [3, 2] and change.rows.tolist() == [4, 9]


def test_the_models_own_probability_stands_beside_the_rules_confidence():
    confidence = torch.full((2, 3), 0.5)
    change = settled(Decision(OPEN, confidence=confidence))
    assert torch.equal(change.confidence, confidence)
    assert torch.allclose(change.probability, a_view().pred.confidence)


@given(data=st.data())
def test_whatever_is_asked_for_each_live_row_gains_and_nothing_closed_is_touched(data):
    def plane():
        rows = st.lists(st.booleans(), min_size=3, max_size=3)
        return torch.tensor(data.draw(st.lists(rows, min_size=2, max_size=2)))

    closed = plane()
    settled_slots = plane() & closed
    view = replace(a_view(), open=~closed, settled=settled_slots)
    decision = Decision(plane() & view.open, remask=plane() & settled_slots)
    change = settled(decision, view=view, revocable=True)
    gain = change.commit.sum(1) - change.remask.sum(1)
    assert (gain >= view.open.any(1).long()).all()
    assert not (change.commit & closed).any() and not (change.remask & ~settled_slots).any()


class Promises(Mine):
    """Says that it always commits."""

    always_commits = True


def test_the_word_that_something_is_always_committed_holds_for_the_class_that_gave_it_alone():
    class Another(Promises):
        def decide(self, view, memory):
            return Decision(NOTHING)

    class Renewed(Promises):
        always_commits = True

        def decide(self, view, memory):
            return Decision(OPEN)

    assert Renewed.always_commits and not Another.always_commits and not Strategy.always_commits
    assert Pipeline(Renewed()).always_commits
    assert not Pipeline(Renewed(), filters={"two": AtMost(2)}).always_commits
    assert not Pipeline(Another()).always_commits


def test_where_a_strategy_always_commits_no_other_slot_is_looked_for():
    decision = Decision(NOTHING)
    assert settle(a_view(), decision, Mine())[0].forced.all()
    change, _ = settle(a_view(), decision, Promises())
    assert not change.forced.any() and not change.commit.any()
