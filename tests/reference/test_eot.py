"""End-of-text rules: what is cut, what is never cut, and what a cut costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from changing_model import VOCAB, ChangingModel, a_request, board_of, change_of, view_of
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.schedule import Blocks, WholeCanvas
from dllm_decode.decoding.strategy import NeverStop, Pipeline, Strategy
from dllm_decode.decoding.types import Decision, Request, StepView
from dllm_decode.errors import CapabilityError, ConfigError
from dllm_decode.strategies.eot import AcceptedEot, CommittedEot, PredictedEot
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.threshold import ConfidenceThreshold

decodes = examples(4)
EOT, MASK = 10, 11
SEEDS = st.integers(0, 500)


def decode(model: ChangingModel, stop: Any, request: Request, **options: Any) -> Result:
    select = options.pop("select", TopK(1))
    schedule = options.pop("schedule", Blocks(6))
    return Decoder(model, Pipeline(select, stop={"stop": stop}), schedule, record=True).decode(
        request
    )


def eager(seed: int = 0) -> ChangingModel:
    """A model that predicts the end of text more often than not, at ever other places."""
    return ChangingModel(seed=seed, lasting=3.0, passing=5.0)


def cut(tokens: list[int], fixed: tuple[int, ...] = (), start: int = 2, **options: Any) -> int:
    """Where a row is cut; tokens: the canvas, MASK where open; fixed: columns the caller gave."""
    canvas = torch.tensor([tokens])
    editable = torch.arange(len(tokens))[None] >= start
    for column in fixed:
        editable[0, column] = False
    snapshot = board_of(canvas, canvas != MASK, editable=editable, start=start)
    rule = CommittedEot(**options)
    assert rule.begin(a_request(1), snapshot) is None
    nothing: Any = None
    return int(rule.horizon(snapshot, nothing, nothing, None))


# Committed.


@pytest.mark.parametrize(
    ("tokens", "horizon"),
    [
        ([1, 2, 3, EOT, MASK, MASK], 4),  # everything before it is decided
        ([1, 2, MASK, EOT, 4, MASK], 6),  # something before it is still open
        ([1, 2, 3, 4, 5, EOT], 6),  # at the last column
        ([1, 2, EOT, MASK, EOT, MASK], 3),  # at the first generated one, and the first of two
        ([1, EOT, MASK, MASK, MASK, MASK], 6),  # in the prompt
        ([1, 2, 3, MASK, MASK, EOT], 6),
    ],
)
def test_a_row_ends_behind_its_first_end_of_text_with_a_decided_prefix(
    tokens: list[int], horizon: int
) -> None:
    assert cut(tokens) == horizon


def test_a_row_can_be_cut_at_the_commit_already() -> None:
    assert cut([1, 2, MASK, EOT, 4, MASK], whole_prefix=False) == 4


@pytest.mark.parametrize(
    ("tokens", "fixed", "horizon"),
    [
        ([1, 2, 3, EOT, 7, MASK, MASK, MASK], (4,), 8),  # a fixed token behind: not the end
        ([1, 2, 3, EOT, 7, EOT, MASK, MASK], (4,), 6),
        ([1, 2, 3, 4, EOT, MASK, MASK, MASK], (4,), 5),  # the fixed end of text itself
        ([1, 2, EOT, 4, EOT, MASK, MASK, MASK], (2, 4), 5),  # of two fixed ones the last
    ],
)
def test_nothing_is_cut_off_in_front_of_a_fixed_token(
    tokens: list[int], fixed: tuple[int, ...], horizon: int
) -> None:
    assert cut(tokens, fixed) == horizon


def test_ids_can_be_chosen() -> None:
    assert cut([1, 2, 5, EOT, MASK, MASK], ids=(5,)) == 3
    assert cut([1, 2, 3, EOT, MASK, MASK], ids=[5, 6]) == 6


def test_a_literal_end_of_text_in_the_prompt_ends_nothing() -> None:
    request = Request(((3, EOT), (EOT,)), max_new_tokens=8)
    result = decode(ChangingModel(favourite=4), CommittedEot(), request)
    assert [len(row) for row in result.sequences] == [8, 8]


@decodes
@given(SEEDS, st.sampled_from([Blocks(4), Blocks(12), WholeCanvas()]), st.integers(1, 3))
def test_the_text_up_to_its_end_is_that_of_a_full_decode(
    seed: int, schedule: Any, per_step: int
) -> None:
    model, request, select = eager(seed), a_request(3), TopK(per_step)
    stopped = decode(model, CommittedEot(), request, schedule=schedule, select=select)
    full = decode(model, NeverStop(), request, schedule=schedule, select=select)
    for row in range(3):
        text = stopped.sequences[row]
        assert text == full.sequences[row][: len(text)]
        assert EOT not in text[:-1]
        assert stopped.finish_reasons[row] == ("eot" if len(text) < 12 else "length")
        assert stopped.forwards[row] <= full.forwards[row]


def test_what_lies_behind_the_end_costs_no_forward() -> None:
    """Left to right with blocks of one column: as many forwards as tokens up to the end."""
    model = ChangingModel(vocab=replace(VOCAB, eot_ids=tuple(range(5, 11))))  # half of all tokens
    result = decode(model, CommittedEot(), a_request(4, 40), schedule=Blocks(1))
    for row in range(4):
        assert result.finish_reasons[row] == "eot" and len(result.sequences[row]) < 40
        assert result.forwards[row] == len(result.sequences[row])


# Accepted.


def accepted_at(columns: list[int]) -> int:
    """Where a row is cut when a filter accepted the end of text at some of 2, 4 and a word at 1."""
    logits = torch.zeros(1, 6, 12)
    logits[0, :, 4] = 1.0
    logits[0, [2, 4], EOT] = 5.0
    opened = torch.ones(1, 6, dtype=torch.bool)
    snapshot = board_of(torch.full((1, 6), MASK), ~opened)
    view = view_of(logits, opened, snapshot=snapshot)
    accepted = torch.zeros(1, 6, dtype=torch.bool)
    accepted[0, columns] = True
    change = change_of(view, accepted, view.pred.token, accepted=accepted)
    return int(AcceptedEot().horizon(snapshot, view, change, None))


def test_a_row_is_cut_behind_the_leftmost_accepted_end_of_text() -> None:
    assert accepted_at([1, 2, 4]) == 3
    assert accepted_at([1, 4]) == 5
    assert accepted_at([1]) == 6


@pytest.mark.parametrize(("proposed", "committed", "horizon"), [(EOT, 4, 4), (4, EOT, 2)])
def test_what_was_committed_counts_not_what_the_model_proposed(
    proposed: int, committed: int, horizon: int
) -> None:
    """A transform (credit, a ban) may have put another token there."""
    logits = torch.zeros(1, 4, 12)
    logits[0, :, 4] = 1.0
    logits[0, 1, proposed] = 5.0
    opened = torch.ones(1, 4, dtype=torch.bool)
    snapshot = board_of(torch.full((1, 4), MASK), ~opened)
    view = view_of(logits, opened, snapshot=snapshot)
    tokens = torch.tensor([[4, committed, 4, 4]])
    change = change_of(view, opened, tokens, accepted=opened)
    assert int(AcceptedEot().horizon(snapshot, view, change, None)) == horizon


def test_a_vetoed_end_of_text_does_not_cut() -> None:
    logits = torch.zeros(1, 4, 12)
    logits[0, :, EOT] = 5.0
    opened = torch.ones(1, 4, dtype=torch.bool)
    snapshot = board_of(torch.full((1, 4), MASK), ~opened)
    view = view_of(logits, opened, snapshot=snapshot)
    only_the_last = torch.tensor([[False, False, False, True]])
    change = change_of(view, only_the_last, view.pred.token, accepted=opened)
    assert int(AcceptedEot().horizon(snapshot, view, change, None)) == 4


def test_a_selection_that_accepts_nothing_by_name_is_refused() -> None:
    with pytest.raises(
        CapabilityError, match=r"^strategy\.stop\.stop \(AcceptedEot\): .*select=learn2pd"
    ):
        decode(eager(), AcceptedEot(), a_request())
    with pytest.raises(CapabilityError, match=r"^strategy\.stop\.stop \(PredictedEot\): needs"):
        decode(eager(), PredictedEot(accepted_first=True), a_request())


# Predicted.


def predicted(where: dict[int, float], window: range = range(4), **options: Any) -> int:
    """Where a row of 8 columns is cut; where: confidence of the end of text at some columns."""
    probs = torch.full((1, 8, 12), 1e-9)
    probs[0, :, 4] = 1.0
    for column, confidence in where.items():
        probs[0, column, EOT], probs[0, column, 4] = confidence, 1 - confidence
    masked = torch.ones(1, 8, dtype=torch.bool)
    snapshot = board_of(torch.full((1, 8), MASK), ~masked)
    active = torch.zeros(1, 8, dtype=torch.bool)
    active[0, list(window)] = True
    view = replace(view_of(probs.log(), masked, snapshot=snapshot), active=active, open=active)
    nothing = torch.zeros(1, 8, dtype=torch.bool)
    notes = {"accepted": nothing} if "accepted" not in options else {}
    change = change_of(view, nothing, view.pred.token, **notes)
    return int(PredictedEot(**options).horizon(snapshot, view, change, None))


def test_the_trigger_is_the_first_or_the_surest_prediction() -> None:
    where = {1: 0.92, 3: 0.99}
    assert predicted(where, trigger="first") == 2
    assert predicted(where, trigger="most_confident") == 4


def test_the_scope_is_the_window_or_the_canvas() -> None:
    where = {3: 0.92, 6: 0.99}
    surest = {"trigger": "most_confident"}
    assert predicted(where, scope="block", **surest) == 4
    assert predicted(where, scope="canvas", **surest) == 7
    assert predicted({6: 0.99}, scope="block") == 8


def test_a_prediction_needs_the_threshold() -> None:
    where = {1: 0.6, 2: 0.95}
    assert predicted(where, threshold=0.9) == 3
    assert predicted(where, threshold=0.5) == 2
    assert predicted({1: 0.4}, threshold=0.0) == 8  # not the most likely token: no prediction


def test_predicted_ids_can_be_chosen() -> None:
    assert predicted({1: 0.95}, ids=(4,)) == 1
    assert predicted({0: 0.95}, ids=(4,)) == 2


def test_an_accepted_end_of_text_goes_before_predictions_where_asked() -> None:
    probs = torch.full((1, 6, 12), 1e-9)
    probs[0, :, 4] = 1.0
    probs[0, [1, 4], EOT] = 9.0
    opened = torch.ones(1, 6, dtype=torch.bool)
    snapshot = board_of(torch.full((1, 6), MASK), ~opened)
    view = view_of(probs.log(), opened, snapshot=snapshot)
    accepted = torch.tensor([[False] * 4 + [True, False]])
    change = change_of(view, accepted, view.pred.token, accepted=accepted)
    first = PredictedEot(accepted_first=True)
    assert int(first.horizon(snapshot, view, change, None)) == 5
    assert int(PredictedEot().horizon(snapshot, view, change, None)) == 2
    none_accepted = change_of(view, accepted & False, view.pred.token, accepted=accepted & False)
    assert int(first.horizon(snapshot, view, none_accepted, None)) == 2


@dataclass(frozen=True)
class Asked(ChangingModel):
    """Keeps how many columns of its row were wanted in each pass."""

    columns: list[int] = field(default_factory=list)

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        self.columns.append(int((index >= 0).sum()))
        return super().__call__(tokens, live, index, plan)


@pytest.mark.parametrize(
    ("stop", "columns"),
    [
        # threshold 1.0: nothing is ever cut
        (PredictedEot(scope="canvas", threshold=1.0), 12),
        (PredictedEot(scope="block", threshold=1.0), 4),
        (CommittedEot(), 4),
    ],
)
def test_the_canvas_is_predicted_only_where_it_is_looked_at(stop: Any, columns: int) -> None:
    model = Asked()
    decode(model, stop, a_request(1), schedule=Blocks(4))
    assert model.columns[0] == columns


RELEASED = PredictedEot(scope="canvas", trigger="most_confident", threshold=0.0)


@decodes
@given(SEEDS, st.sampled_from([RELEASED, PredictedEot(threshold=0.3)]), st.booleans())
def test_cuts_shorten_a_row_and_leave_no_mask(seed: int, stop: PredictedEot, whole: bool) -> None:
    schedule: Any = WholeCanvas() if whole else Blocks(4)
    result = decode(eager(seed), stop, a_request(3), schedule=schedule)
    lengths = [change.horizon.tolist() for change in result.trace]
    for row in range(3):
        assert 1 <= len(result.sequences[row]) <= 12
        assert MASK not in result.sequences[row]
        own = [
            length[change.rows.tolist().index(row)]
            for length, change in zip(lengths, result.trace, strict=True)
            if row in change.rows.tolist()
        ]
        assert own == sorted(own, reverse=True)
        assert own[-1] == len(result.sequences[row])


def test_a_predicted_cut_can_leave_a_text_without_its_end() -> None:
    """The trap of the released rule: the cut column is decided later, and differently."""
    endings = {
        decode(eager(seed), RELEASED, a_request(1), schedule=Blocks(4)).sequences[0][-1] == EOT
        for seed in range(60)
    }
    assert endings == {True, False}


@decodes
@given(SEEDS)
def test_without_any_end_of_text_no_rule_changes_anything(seed: int) -> None:
    model = ChangingModel(seed=seed, vocab=replace(VOCAB, eot_ids=(0,), banned_ids=(0,)))
    plain = decode(model, NeverStop(), a_request())
    for stop in (CommittedEot(), CommittedEot(whole_prefix=False), RELEASED, PredictedEot()):
        assert decode(model, stop, a_request()).sequences == plain.sequences
        assert decode(model, stop, a_request()).forwards == plain.forwards


@decodes
@given(SEEDS)
def test_fixed_tokens_survive_every_rule(seed: int) -> None:
    request = a_request(2, 12, fixed=({3: 7, 8: 2}, {5: EOT, 6: 1}))
    for stop in (CommittedEot(), CommittedEot(whole_prefix=False), RELEASED, PredictedEot()):
        result = decode(eager(seed), stop, request)
        assert [result.sequences[0][column] for column in (3, 8)] == [7, 2]
        assert [result.sequences[1][column] for column in (5, 6)] == [EOT, 1]


class Everything(Strategy):
    """Commits all open columns at once."""

    def decide(self, view: StepView, memory: None) -> Decision:
        return Decision(view.open)


@decodes
@given(SEEDS)
def test_rows_are_cut_one_by_one(seed: int) -> None:
    request = a_request(3)
    for stop in (CommittedEot(), RELEASED):
        for select in (Everything(), ConfidenceThreshold(0.5)):
            together = decode(eager(seed), stop, request, select=select)
            for row in range(3):
                alone = decode(eager(seed), stop, request.take([row]), select=select)
                assert alone.sequences[0] == together.sequences[row]


# What is refused.


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (CommittedEot, {"ids": ()}, r"ids must be null .* got \(\)"),
        (CommittedEot, {"ids": "10"}, r"list of token ids, got '10'"),
        (AcceptedEot, {"ids": [True]}, r"list of token ids, got \[True\]"),
        (PredictedEot, {"scope": "row"}, "scope must be one of block, canvas; got 'row'"),
        (PredictedEot, {"trigger": "any"}, "trigger must be one of first, most_confident"),
        (PredictedEot, {"threshold": 1.5}, r"threshold must lie in \[0.0, 1.0\], got 1.5"),
    ],
)
def test_values_that_cannot_work_are_refused(
    rule: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        rule(**options)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ids must lie in \[0, 11\], got 12"):
        decode(eager(), CommittedEot(ids=(12,)), a_request())
