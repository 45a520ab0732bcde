import pytest
import torch

from dllm_decode.decoding.cache import DualCache
from dllm_decode.decoding.canvas import Canvas
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks, Schedule, SlidingWindow, WholeCanvas
from dllm_decode.decoding.types import Request, Vocab
from dllm_decode.errors import CapabilityError, ConfigError
from dllm_decode.strategies.fixed import TopK
from dllm_decode.testing import HashDenoiser, StoringHashDenoiser, row_of

VOCAB = Vocab(9, 8, (2,))


def board_of(prompts, lengths, decided=(), horizon=None):
    canvas = Canvas.of(Request(prompts, lengths), VOCAB)
    for row, column in decided:
        canvas.decided[row, canvas.start + column] = True
    if horizon is not None:
        canvas.narrow(canvas.start + torch.tensor(horizon))
    return canvas.snapshot()


def columns(window, snapshot):
    return torch.where(window.index >= 0, window.index - snapshot.start, -1).tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blocks(0), "length must be a whole number >= 1, got 0"),
        (lambda: Blocks(2.5), r"length must be a whole number >= 1, got 2\.5"),
        (lambda: Blocks(4, "row"), "origin must be one of auto, prompt, absolute"),
        (lambda: SlidingWindow(0), "width must be a whole number >= 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_block_longer_than_every_row_is_one_short_block():
    snapshot = board_of(((1,), (1,)), (4, 6))
    window = Blocks(9).window(snapshot)
    assert columns(window, snapshot) == [
        [0, 1, 2, 3, -1, -1, -1, -1, -1],
        [0, 1, 2, 3, 4, 5, -1, -1, -1],
    ]
    assert window.key.tolist() == [0, 0]


@pytest.mark.parametrize("origin", ["prompt", "absolute"])
@pytest.mark.parametrize("length", [1, 3, 7, 40])
def test_a_row_shorter_than_the_block_gets_the_same_alone_and_beside_a_longer_one(origin, length):
    model = HashDenoiser()

    def rows(*lengths):
        request = Request(((1, 2),) * len(lengths), lengths, seeds=(5,) * len(lengths))
        decoder = Decoder(model, TopK(2), Blocks(length, origin))
        return decoder.decode(request)

    alone, together = rows(4), rows(4, 12)
    assert row_of(alone, 0) == row_of(together, 0)
    assert len(alone.sequences[0]) == 4


def test_each_row_is_in_its_own_block_and_the_last_one_is_shorter():
    done = [(0, 0), (0, 1), (0, 2), (1, 0)]
    snapshot = board_of(((1, 1), (3,)), (5, 4), decided=done)
    window = Blocks(3).window(snapshot)
    assert columns(window, snapshot) == [[3, 4, -1], [0, 1, 2]]
    assert window.key.tolist() == [1, 0]


def test_blocks_end_at_the_horizon():
    snapshot = board_of(((),), 6, decided=[(0, 0), (0, 1), (0, 2)], horizon=[5])
    assert columns(Blocks(3).window(snapshot), snapshot) == [[3, 4, -1]]


def test_an_absolute_grid_counts_from_the_beginning_of_the_row():
    snapshot = board_of(((1, 1, 1), (1,)), 4)
    window = Blocks(4, "absolute").window(snapshot)
    assert columns(window, snapshot) == [[0, -1, -1, -1], [0, 1, 2, -1]]


def test_block_causal_models_impose_their_grid():
    assert Blocks(4).on_grid(4) == Blocks(4, "absolute")
    assert Blocks(4).on_grid(None) == Blocks(4)
    for schedule in (Blocks(8), Blocks(4, "prompt")):
        with pytest.raises(CapabilityError, match="model attends in blocks of 4 columns"):
            schedule.on_grid(4)
    for schedule in (WholeCanvas(), SlidingWindow(4)):
        with pytest.raises(CapabilityError, match=r"model attends block by block \(4 columns\)"):
            schedule.on_grid(4)


def test_the_whole_canvas_is_every_column_up_to_the_horizon():
    snapshot = board_of(((1,), ()), (3, 2), decided=[(0, 1)])
    window = WholeCanvas().window(snapshot)
    assert columns(window, snapshot) == [[0, 1, 2], [0, 1, -1]]
    assert WholeCanvas().block_length is None and Blocks(4).block_length == 4


def test_a_sliding_window_starts_at_the_first_undecided_column_and_is_never_new():
    snapshot = board_of(((),), 5, decided=[(0, 0), (0, 2)])
    window = SlidingWindow(3).window(snapshot)
    assert columns(window, snapshot) == [[1, 2, 3]]
    later = board_of(((),), 5, decided=[(0, 0), (0, 1), (0, 2)])
    assert columns(SlidingWindow(3).window(later), later) == [[3, 4, -1]]
    assert torch.equal(window.key, SlidingWindow(3).window(later).key)


def test_a_schedule_sees_the_last_step_of_each_row_and_none_at_its_start():
    seen = []

    class Grows(Schedule):
        def window(self, snapshot, view=None):
            seen.append((snapshot, view))
            return SlidingWindow(2).window(snapshot)

    decoder = Decoder(HashDenoiser(), TopK(1), Grows())
    decoder.decode(Request(((1,), (2, 3)), 3))
    assert seen[0][1] is None and all(view is not None for _, view in seen[1:])
    for (_, view), (before, _) in zip(seen[1:], seen, strict=False):
        assert torch.equal(view.snapshot.tokens, before.tokens)
        assert view.pred.confidence.shape == view.index.shape


def test_a_schedule_that_looks_at_the_whole_canvas_is_shown_it():
    seen = []

    class Wide(Blocks):
        sees_canvas = True

        def window(self, snapshot, view=None):
            seen.append(view)
            return super().window(snapshot)

    Decoder(HashDenoiser(), TopK(1), Wide(2)).decode(Request(((1,),), 6))
    assert seen[1].index.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert seen[1].active.tolist() == [[True, True, False, False, False, False]]
    with pytest.raises(CapabilityError, match=r"schedule \(Wide\) reads predictions outside"):
        Decoder(StoringHashDenoiser(), TopK(1), Wide(2), DualCache())


def test_a_schedule_with_one_argument_still_works():
    class Old(Schedule):
        def window(self, snapshot):
            return WholeCanvas().window(snapshot)

    assert Decoder(HashDenoiser(), TopK(4), Old()).decode(Request(((1,),), 4)).forwards == (1,)
