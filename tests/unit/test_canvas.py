import pytest
import torch

from dllm_decode.decoding.canvas import Canvas
from dllm_decode.decoding.types import Change, Request, Vocab

VOCAB = Vocab(9, 8, (2,), 7)
REQUEST = Request(((1, 3), (4,)), (2, 4), fixed=(None, {1: 5}))


def change_of(index, commit, tokens, remask=None, step=0):
    commit = torch.tensor(commit)
    zero = torch.zeros(commit.shape)
    rows = torch.arange(commit.shape[0])
    return Change(
        rows=rows,
        step=torch.full_like(rows, step),
        index=torch.tensor(index),
        commit=commit,
        remask=torch.zeros_like(commit) if remask is None else torch.tensor(remask),
        tokens=torch.tensor(tokens),
        confidence=zero + 0.25,
        probability=zero,
        scores=zero,
        forced=commit.any(1),
        horizon=rows,
        probes=0,
        notes={},
    )


def test_prompts_are_padded_on_the_left_and_what_a_row_lacks_on_the_right_is_filled():
    canvas = Canvas.of(REQUEST, VOCAB)
    assert canvas.tokens.tolist() == [[1, 3, 8, 8, 2, 2], [7, 4, 8, 5, 8, 8]]
    assert canvas.editable.int().tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 1, 0, 1, 1]]
    assert torch.equal(canvas.decided, ~canvas.editable)
    assert canvas.start == 2 and canvas.first.tolist() == [0, 1]
    assert canvas.end.tolist() == canvas.horizon.tolist() == [4, 6]


def test_without_a_padding_id_the_filler_pads():
    assert Canvas.of(REQUEST, Vocab(9, 8, (2,))).tokens[1, 0] == 2
    assert Canvas.of(REQUEST, Vocab(9, 8)).tokens[1, 0] == 8


def test_a_change_is_written_and_can_be_opened_again():
    canvas = Canvas.of(REQUEST, VOCAB)
    index = [[0, 1], [0, -1]]
    canvas.apply(change_of(index, [[False, True], [True, False]], [[6, 6], [1, 6]], step=3))
    assert canvas.tokens[:, 2:4].tolist() == [[8, 6], [1, 5]]
    assert canvas.decided[:, 2].tolist() == [False, True]
    assert canvas.step_of[0, 3] == 3 and canvas.confidence_of[1, 2] == 0.25
    canvas.apply(
        change_of(index, [[True, False], [False, False]], [[4, 0], [0, 0]], [[False, True]] * 2)
    )
    assert canvas.tokens[0, 2:4].tolist() == [4, 8] and not canvas.decided[0, 3]
    assert canvas.step_of[0, 3] == -1 and canvas.confidence_of[0, 3].isnan()


def test_slots_without_a_column_write_nowhere():
    canvas = Canvas.of(REQUEST, VOCAB)
    before = canvas.tokens.clone()
    canvas.apply(change_of([[-1, -1], [-1, -1]], [[False, False]] * 2, [[0, 0]] * 2))
    assert torch.equal(canvas.tokens, before)


def test_a_board_does_not_change_when_the_canvas_does():
    canvas = Canvas.of(REQUEST, VOCAB)
    snapshot = canvas.snapshot()
    canvas.apply(change_of([[0], [0]], [[True], [True]], [[1], [1]]))
    canvas.narrow(torch.tensor([3, 3]))
    assert snapshot.tokens[0, 2] == 8 and not snapshot.decided[0, 2]
    assert snapshot.horizon.tolist() == [4, 6]


@pytest.mark.parametrize(("asked", "got"), [(99, 4), (3, 3), (0, 2), (-5, 2)])
def test_the_horizon_only_shrinks_and_never_into_the_prompt(asked, got):
    canvas = Canvas.of(REQUEST, VOCAB)
    canvas.narrow(torch.tensor([asked, asked]))
    assert canvas.horizon[0] == got


def test_rows_are_kept_dropped_and_reordered():
    canvas = Canvas.of(REQUEST, VOCAB)
    expected = canvas.tokens[1].tolist()
    taken = canvas.take(torch.tensor([1]))
    taken = canvas if taken is None else taken
    assert taken.tokens[0].tolist() == expected and taken.end.tolist() == [6]
