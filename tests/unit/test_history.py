"""What the age of a proposal says beside its confidence."""

from __future__ import annotations

import math

import pytest
import torch
from card_history import Sightings, Watch, auc, redundancy
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode.api import load


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30).filter(
        lambda cases: len({good for _, good in cases}) == 2
    )
)
def test_the_area_is_the_share_of_pairs_in_the_right_order(cases: list[tuple[int, bool]]) -> None:
    good = [score for score, positive in cases if positive]
    bad = [score for score, positive in cases if not positive]
    pairs = [(a > b) + 0.5 * (a == b) for a in good for b in bad]
    score = torch.tensor([float(score) for score, _ in cases])
    positive = torch.tensor([positive for _, positive in cases])
    assert auc(score, positive) == pytest.approx(sum(pairs) / len(pairs))


def test_an_area_without_one_kind_of_case_is_no_number() -> None:
    assert math.isnan(auc(torch.rand(3), torch.ones(3, dtype=torch.bool)))


def _drawn(law: str, count: int = 4000) -> Sightings:
    """Sightings whose truth depends on p alone, or on p and age."""
    torch.manual_seed(0)
    p, age = 0.1 + 0.7 * torch.rand(count, dtype=torch.double), torch.randint(6, (count,))
    truth = p if law == "confidence" else (p.logit() + age - 2).sigmoid()
    return Sightings(p, age, torch.rand(count, dtype=torch.double) < truth)


def test_age_adds_nothing_where_confidence_says_all() -> None:
    found = redundancy(_drawn("confidence"))
    assert found is not None and found.count == 4000
    assert abs(found.gain) < 0.003 and 0.6 < found.alone < 0.8


def test_age_adds_what_it_knows() -> None:
    found = redundancy(_drawn("both"))
    assert found is not None and found.gain > 0.08


def test_too_few_or_uniform_sightings_give_no_figure() -> None:
    seen = _drawn("confidence")
    assert redundancy(seen.below(0.101)) is None
    assert redundancy(Sightings(seen.probability, seen.age, torch.ones(4000) > 0)) is None


def test_a_decode_is_watched_column_by_column() -> None:
    decoder = load(model="toy_shuffle", strategy="sequential", overrides=["schedule.length=8"])
    vocab = decoder.model.denoiser.vocab
    request_rows, columns = 2, 8
    watch = Watch(request_rows, columns)
    result = decoder.generate(
        decoder.model.sample_prompts(request_rows, 0), max_new_tokens=columns, observers=[watch]
    )
    seen = watch.sightings(result.sequences, vocab.eot_ids)
    answers = [[t for t in row if t not in vocab.eot_ids] for row in result.sequences]
    # Every answer column is open up to its own step, and its last proposal is what is committed.
    steps = [step + 1 for row, a in enumerate(answers) for step in result.step_of[row][: len(a)]]
    assert len(seen.final) == sum(steps)
    assert int(seen.final.sum()) >= len(steps)
    assert int(seen.age.max()) <= max(steps) - 1 and int((seen.age == 0).sum()) >= len(steps)
    assert ((seen.probability > 0) & (seen.probability <= 1)).all()
