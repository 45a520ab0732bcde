"""A head in parts: the statistics of all parts are those of the whole."""

from itertools import pairwise

import pytest
import torch
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode.decoding.prediction import HiddenStates, Prediction
from dllm_decode.kernels import dispatch, reference
from dllm_decode.kernels.shards import VocabularyShard


class Together(VocabularyShard):
    """All parts in one process: what the others would send is computed here."""

    def shards(self):
        return [VocabularyShard(w, f, self.vocabulary) for w, f in self.group]

    def merged(self, own):
        self.__dict__["parts"] = [
            dispatch.head_statistics(self.hidden, part.weight, part.own(self.ids))
            for part in self.shards()
        ]
        return super().merged(own)

    def _gathered(self, values):
        if values.dtype == torch.float64 and "parts" in self.__dict__:
            return torch.stack(
                [
                    torch.stack([p.token + s.first, p.maximum, p.rest, p.moment]).double()
                    for p, s in zip(self.__dict__.pop("parts"), self.shards(), strict=True)
                ]
            )
        sizes = [len(part.weight) for part in self.shards()]
        if values.dtype == torch.long:
            return torch.tensor(sizes)[:, None]
        made = [reference.head_logits(self.hidden, part.weight) for part in self.shards()]
        width = max(sizes)
        return torch.stack([torch.nn.functional.pad(m, (0, width - m.shape[1])) for m in made])

    def largest(self, values):
        if values.dtype == torch.long:
            return values.new_tensor([max(len(part.weight) for part in self.shards())])
        found = [
            dispatch.head_logits_at(self.hidden, s.weight, s.own_ids(self.wanted), s.own(self.ids))
            for s in self.shards()
        ]
        return torch.stack(found).amax(0)


def head_of(weight, cuts, hidden, banned, wanted):
    borders = [0, *cuts, len(weight)]
    parts = [(weight[a:b], a) for a, b in pairwise(borders)]
    head = Together(*parts[0], len(weight), parts)
    vars(head).update(hidden=hidden, ids=banned, wanted=wanted)
    return head


@examples(15)
@given(
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(1, 10), min_size=1, max_size=3, unique=True).map(sorted),
    banned=st.lists(st.integers(0, 10), max_size=4, unique=True),
    ties=st.booleans(),
)
def test_the_statistics_of_all_parts_are_those_of_the_whole(seed, cuts, banned, ties):
    source = torch.Generator().manual_seed(seed)
    hidden = torch.randn(5, 3, generator=source)
    weight = torch.randn(11, 3, generator=source)
    if ties:  # the lowest id wins, whoever holds it
        hidden, weight = hidden.round(), weight.round()
    banned = torch.tensor(banned, dtype=torch.long)
    wanted = torch.randint(-1, 11, (5, 4), generator=source)
    head = head_of(weight, cuts, hidden, banned, wanted)
    got = dispatch.head_statistics(hidden, head, banned)
    want = reference.head_statistics(hidden, weight, banned)
    assert torch.equal(got.token, want.token)
    for name in ("maximum", "rest", "moment"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        dispatch.head_logits_at(hidden, head, wanted, banned),
        reference.head_logits_at(hidden, weight, wanted, banned),
    )
    torch.testing.assert_close(head.logits(hidden), reference.head_logits(hidden, weight))


def test_a_prediction_never_makes_logits_of_a_shared_head_unless_somebody_asks():
    hidden, weight = torch.randn(2, 3, 4), torch.randn(9, 4)
    banned, ids = torch.tensor([8]), torch.tensor([[[0], [7], [8]]] * 2)
    head = head_of(weight, [5], hidden.flatten(0, 1), banned, ids.flatten(0, 1))
    states = HiddenStates(hidden, head)
    pred = Prediction.of(states, banned)
    dense = Prediction.of(hidden @ weight.T, banned)
    assert torch.equal(pred.token, dense.token)
    torch.testing.assert_close(pred.confidence, dense.confidence)
    torch.testing.assert_close(pred.prob_of(ids), dense.prob_of(ids))
    assert not states.has_logits
    assert pytest.approx(states.logits) == hidden @ weight.T
