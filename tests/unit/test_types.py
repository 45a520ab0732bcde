from dataclasses import dataclass, replace

import pytest
import torch
from views import view_of

from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.types import (
    ColumnMemory,
    Memory,
    Request,
    Vocab,
    gather_columns,
)
from dllm_decode.errors import ConfigError
from dllm_decode.strategies.fixed import TopK
from dllm_decode.testing import HashDenoiser

PAIR = ((1, 2), (3,))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_id": 5}, r"mask_id must lie in \[0, 4\], got 5"),
        ({"eot_ids": (0, -1)}, r"eot_ids must lie in \[0, 4\], got -1"),
        ({"pad_id": 9}, r"pad_id must lie in \[0, 4\], got 9"),
        ({"banned_ids": (7,)}, r"banned_ids must lie in \[0, 4\], got 7"),
        ({"eot_ids": (3,)}, "the mask id 3 cannot end a text as well"),
    ],
)
def test_a_vocabulary_refuses_ids_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        Vocab(**{"size": 5, "mask_id": 3, **values})


def test_mask_and_control_ids_are_never_generated_and_the_filler_is_the_first_end_of_text():
    assert Vocab(9, 8, (2, 1), 0, (5, 5)).never_generated == (5, 8)
    assert Vocab(9, 8, (2, 1), 0).filler == 2
    assert Vocab(9, 8, (), 0).filler == 0
    assert Vocab(9, 8).filler == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": ()}, "at least one prompt, got none"),
        ({"seeds": (1,)}, r"seeds must have one entry per prompt \(2\), got 1"),
        ({"fixed": (None,)}, r"fixed must have one entry per prompt \(2\), got 1"),
        ({"reference": ()}, r"reference must have one entry per prompt \(2\), got 0"),
        ({"max_new_tokens": (1, 2, 3)}, r"one number or one per prompt \(2\), got 3"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number >= 1, got True"),
        ({"max_new_tokens": (2, -1)}, "max_new_tokens must be a whole number >= 1, got -1"),
        ({"max_new_tokens": 2.0}, r"max_new_tokens must be a whole number >= 1, got 2\.0"),
        (
            {"max_new_tokens": 2, "fixed": (None, {2: 1})},
            r"fixed token of row 1 must have an offset in \[0, 1\], got 2",
        ),
    ],
)
def test_a_request_refuses_what_cannot_be_decoded(values, message):
    with pytest.raises(ConfigError, match=message):
        Request(**{"prompts": PAIR, **values})


def test_rows_of_a_request_keep_their_seeds_lengths_and_fixed_tokens_when_taken():
    request = Request(PAIR, (4, 6), fixed=(None, {0: 1}), reference=((1,), (2,)))
    assert request.rows == 2 and request.lengths == (4, 6) and request.row_seeds == (0, 1)
    part = request.take([1])
    assert part == Request(((3,),), (6,), (1,), ({0: 1},), ((2,),))


@dataclass
class One(Memory):
    plane: torch.Tensor
    number: int = 7


@dataclass
class Outer(Memory):
    inside: One
    named: dict
    nothing: None = None


def test_memories_follow_the_rows_also_in_nested_memories_and_mappings():
    memory = Outer(One(torch.arange(3)), {"a": One(torch.arange(3)), "b": None})
    memory.take(torch.tensor([2, 0]))
    assert memory.inside.plane.tolist() == [2, 0] and memory.inside.number == 7
    assert memory.named["a"].plane.tolist() == [2, 0] and memory.named["b"] is None


def test_a_board_knows_what_is_live_and_undecided():
    view = view_of(torch.zeros(2, 3, 6), prompts=((4,), ()), lengths=(2, 3), eot=4)
    snapshot = view.snapshot
    assert snapshot.live.tolist() == [[True, True, True, False], [False, True, True, True]]
    assert snapshot.undecided.sum(1).tolist() == [2, 3]
    assert snapshot.mask_ratio.tolist() == [1.0, 1.0]
    assert snapshot.never_generated.tolist() == [5]


def test_planes_are_gathered_at_the_slots_and_absent_slots_read_column_zero():
    plane = torch.arange(8).reshape(2, 4)
    index = torch.tensor([[3, -1], [0, 2]])
    assert gather_columns(plane, index).tolist() == [[3, 0], [4, 6]]
    deep = gather_columns(plane[..., None].expand(2, 4, 5), index)
    assert deep.shape == (2, 2, 5) and deep[0, 0, 4] == 3


def test_a_view_made_by_hand_has_nothing_to_probe():
    with pytest.raises(ConfigError, match="made by hand and has no model to probe"):
        view_of(torch.zeros(1, 2, 6)).probe(torch.zeros(1, 2, dtype=torch.long))


def test_a_view_with_another_prediction_is_otherwise_the_same():
    view = view_of(torch.zeros(1, 2, 6))
    pred = Prediction.of(torch.ones(1, 2, 6))
    other = view.with_prediction(pred)
    assert other.pred is pred and other.snapshot is view.snapshot
    assert view.mask_ratio.tolist() == [1.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": ((1, 2.0),)}, r"prompt 0 must hold token ids, got 2\.0"),
        ({"prompts": ((True,),)}, "prompt 0 must hold token ids, got True"),
        ({"prompts": ((1,), ("a",))}, "prompt 1 must hold token ids, got 'a'"),
        ({"fixed": ({0: 1.5},)}, r"fixed tokens of row 0 must be token ids, got 1\.5"),
        ({"fixed": ({0.5: 1},)}, "offsets of row 0's fixed tokens must be whole numbers, got 0.5"),
        ({"seeds": (1.0,)}, r"the seed of row 0 must be a whole number, got 1\.0"),
        ({"seeds": (2**63,)}, "the seed of row 0 must lie in"),
        ({"seeds": (-(2**63) - 1,)}, "the seed of row 0 must lie in"),
    ],
)
def test_numbers_that_are_none_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Request(**{"prompts": ((1,),), "max_new_tokens": 3, **given})


def test_the_largest_seeds_are_taken():
    request = Request(((1,), (2,)), 3, seeds=(2**63 - 1, -(2**63)))
    result = Decoder(HashDenoiser(), TopK(1)).decode(request)
    assert [len(row) for row in result.sequences] == [3, 3]


def test_what_is_written_by_column_is_read_by_column_wherever_the_window_is():
    view = view_of(torch.zeros(2, 4, 9), prompts=((1, 2), (3,)))

    def at(*rows):
        return replace(view, index=torch.tensor(rows))

    memory = ColumnMemory.of(view.snapshot, 0.5, 2)
    here, there = at([2, 3, -1], [4, 5, -1]), at([3, 4], [2, 5])
    memory.write(here, torch.arange(12.0).reshape(2, 3, 2))
    assert memory.read(there).tolist() == [[[2, 3], [0.5, 0.5]], [[0.5, 0.5], [8, 9]]]
    memory.write(here, torch.zeros(2, 3, 2), where=torch.tensor([[True, False, True]] * 2))
    assert memory.read(there).tolist() == [[[2, 3], [0.5, 0.5]], [[0.5, 0.5], [8, 9]]]
    memory.take(torch.tensor([1]))
    assert memory.values[0, 2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("fill", "kind"), [(True, torch.bool), (0, torch.long), (0.0, torch.float32)]
)
def test_a_column_memory_has_the_kind_of_what_fills_it(fill, kind):
    snapshot = view_of(torch.zeros(1, 3, 9)).snapshot
    memory = ColumnMemory.of(snapshot, fill)
    assert memory.values.dtype == kind and memory.values.shape == (1, 4)
    assert ColumnMemory.of(snapshot, 0, dtype=torch.int8).values.dtype == torch.int8


@pytest.mark.parametrize("prompt", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_bytes_are_no_token_ids(prompt):
    with pytest.raises(ConfigError, match="each a sequence of token ids; row 0 is"):
        Request((prompt,), 4)
