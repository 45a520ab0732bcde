import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode.decoding.selection import best, ordered, ranks
from dllm_decode.decoding.types import first_column


@st.composite
def scored(draw):
    width = draw(st.integers(1, 6))
    values = st.sampled_from([-1.0, 0.0, 0.5, 0.5, float("-inf")])
    row = st.lists(values, min_size=width, max_size=width)
    flags = st.lists(st.booleans(), min_size=width, max_size=width)
    rows = draw(st.integers(1, 3))
    return (
        torch.tensor([draw(row) for _ in range(rows)]),
        torch.tensor([draw(flags) for _ in range(rows)]),
    )


def naive_order(scores, among):
    """Candidates by falling score, then the others likewise; the lowest column first on ties."""
    columns = range(len(scores))
    return sorted(columns, key=lambda slot: (not among[slot], -scores[slot], slot))


@given(case=scored())
def test_order_and_ranks_are_those_of_a_plain_sort_of_each_row(case):
    scores, among = case
    expected = [naive_order(*row) for row in zip(scores.tolist(), among.tolist(), strict=True)]
    assert ordered(scores, among).tolist() == expected
    for row, order in enumerate(expected):
        assert [ranks(scores, among)[row, slot] for slot in order] == list(range(len(order)))


@given(case=scored(), count=st.integers(0, 7))
def test_the_best_are_the_first_candidates_of_that_order(case, count):
    scores, among = case
    chosen = best(scores, among, count)
    request_parameters = best(scores, among, torch.full((scores.shape[0],), count))
    assert torch.equal(chosen, request_parameters)
    for row in range(scores.shape[0]):
        order = naive_order(scores[row].tolist(), among[row].tolist())
        expected = {slot for slot in order[:count] if among[row, slot]}
        assert set(chosen[row].nonzero()[:, 0].tolist()) == expected


def test_the_first_column_is_the_lowest_and_the_width_where_there_is_none():
    flags = torch.tensor([[False, True, True], [False, False, False]])
    assert first_column(flags).tolist() == [1, 3]
