from itertools import pairwise

import pytest
import torch
from changing_model import ChangingModel, view_of
from hypothesis import given
from hypothesis import strategies as st
from one_row import Canvas, surest
from table_model import Case, Step, TableModel, cases, decode, plain_steps
from torch import Tensor

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import WholeCanvas
from dllm_decode.decoding.types import Request
from dllm_decode.errors import ConfigError
from dllm_decode.strategies.ccd import ContextualCCD, ReleasedCCD
from dllm_decode.strategies.entropy import EntropyThreshold
from dllm_decode.strategies.fixed import TopK


class Plain:
    """The rule for one row, with lists for memory; proposals of a table never change."""

    def __init__(self, columns: int, ratio: float, warm: int, seek: bool) -> None:
        self.columns, self.ratio, self.warm, self.seek = columns, ratio, warm, seek

    def __call__(self, step: Step) -> list[int]:
        if step.step == 0:
            self.width, self.runners = 1, []
        if len(step.columns) <= 0.1 * self.columns:
            self.width = 1
        grown = min(self.width + 1, 1 + int(self.ratio))
        self.width = 1 if step.step < self.warm - 1 else grown
        line = step.best(len(step.columns), [-value for value in step.entropy])
        matched = [column for column in line[: self.width] if column in self.runners]
        taken = line[:1]
        if step.step >= self.warm and line[0] in self.runners and matched:
            taken = matched if self.seek else matched[:1]
        self.runners = [column for column in line if column not in taken][: self.width]
        return taken


class Flipping(TableModel):
    """Swaps its first two tokens in every other pass."""

    passes = 0

    def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
        self.passes += 1
        logits = super().__call__(tokens, live, index, plan)
        ids = torch.arange(logits.shape[-1])
        ids[:2] = torch.tensor([1, 0]) if self.passes % 2 else torch.tensor([0, 1])
        return logits[..., ids]


@given(cases(), st.sampled_from([0.0, 1.5, 2.0, 4.0]), st.integers(1, 6), st.booleans())
def test_ccd_commits_what_the_plain_version_commits(
    case: Case, ratio: float, warm: int, seek: bool
) -> None:
    result = decode(case.table, ReleasedCCD(ratio, warm, seek))
    assert result.step_of == plain_steps(case.table, Plain(case.table.shape[1], ratio, warm, seek))


def test_a_position_whose_proposal_flipped_waits() -> None:
    table = torch.zeros(1, 12, 3)
    table[..., 0] = torch.linspace(6, 3, 12)
    forwards = []
    for model in (TableModel(table), Flipping(table)):
        decoder = Decoder(model, ReleasedCCD(warm_up_steps=1), WholeCanvas())
        forwards.append(decoder.decode(model.request()).forwards[0])
    assert forwards[0] < 12
    assert forwards[1] == 12


@given(cases())
def test_without_candidates_it_is_one_token_per_step(case: Case) -> None:
    alone = decode(case.table, ReleasedCCD(expand_ratio=0.0)).step_of
    assert alone == decode(case.table, TopK(1, "entropy")).step_of


@given(cases())
def test_the_uniform_budget_commits_one_token_per_step(case: Case) -> None:
    result = decode(case.table, ReleasedCCD(seek=False, warm_up_steps=1))
    assert set(result.forwards) == {case.table.shape[1]}


@given(cases())
def test_rows_do_not_see_each_other(case: Case) -> None:
    strategy = ReleasedCCD(warm_up_steps=1)
    together = decode(case.table, strategy).step_of
    alone = [decode(case.table[row : row + 1], strategy).step_of[0] for row in range(len(together))]
    assert list(together) == alone


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        ({"expand_ratio": -1.0}, "expand_ratio", "-1.0"),
        ({"warm_up_steps": 0}, "warm_up_steps", "0"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(options: dict, key: str, got: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        ReleasedCCD(**options)
    assert got in str(caught.value)


# The rule of the paper.


def entropy_of(p: Tensor) -> float:
    return float(torch.special.entr(p).sum())


def paper(canvas: Canvas, rule: ContextualCCD) -> list[dict[int, float]]:
    """The entropy of the mean of every candidate, step by step: mean entropy plus divergence."""
    history: list[dict[int, Tensor]] = []
    told = []
    while left := canvas.open():
        p = canvas.distributions()
        by = p.amax(-1) if rule.surest == "confidence" else -torch.special.entr(p).sum(-1)
        line = surest(left, by.tolist(), rule.candidates)
        history = [*history, {column: p[column] for column in line}][-rule.contexts :]
        sharp, always = {}, set()
        for column in line:
            kept = [step[column] for step in history if column in step]
            mean = torch.stack(kept).mean(0)
            apart = [float((q * (q / mean).log()).nan_to_num(0.0).sum()) for q in kept]
            sharp[column] = sum(entropy_of(q) for q in kept) / len(kept) + sum(apart) / len(kept)
            always |= {column} if len(kept) == rule.contexts else set()
        chosen = {min(line, key=lambda column: (sharp[column], column))}
        if rule.threshold is not None:
            chosen |= {column for column in always if sharp[column] <= rule.threshold}
        canvas.commit(sorted(chosen), p.argmax(-1).tolist())
        told.append(sharp)
    return told


@given(
    st.integers(0, 200),
    st.builds(
        ContextualCCD,
        contexts=st.integers(1, 3),
        candidates=st.integers(1, 5),
        threshold=st.sampled_from([None, 0.31, 1.21]),
        surest=st.sampled_from(["confidence", "entropy"]),
    ),
)
def test_the_paper_s_rule_commits_what_its_plain_version_commits(
    seed: int, rule: ContextualCCD
) -> None:
    model = ChangingModel(seed=seed, lasting=8.0, passing=5.0)
    canvas = Canvas(model, (3, 5), 9)
    told = paper(canvas, rule)
    result = Decoder(model, rule, WholeCanvas(), record=True).decode(Request(((3, 5),), 9))
    assert (list(result.step_of[0]), result.forwards) == (canvas.step_of, (canvas.passes,))
    assert list(result.sequences[0]) == canvas.tokens[2:]
    for change, sharp in zip(result.trace, told, strict=True):
        scores = dict(zip(change.index[0].tolist(), change.scores[0].tolist(), strict=True))
        found = {column: -scores[column] for column in sharp}
        assert found == pytest.approx(sharp, rel=1e-4, abs=1e-6)


@given(cases(), st.integers(1, 3))
def test_with_contexts_that_never_change_it_is_entropy_order(case: Case, contexts: int) -> None:
    rule = ContextualCCD(contexts, candidates=1, threshold=None, surest="entropy")
    assert decode(case.table, rule).step_of == decode(case.table, TopK(1, "entropy")).step_of


@given(cases(), st.sampled_from([0.4, 0.9]))
def test_one_context_of_all_positions_is_the_entropy_threshold(case: Case, level: float) -> None:
    rule = ContextualCCD(contexts=1, candidates=case.table.shape[1], threshold=level)
    assert decode(case.table, rule).step_of == decode(case.table, EntropyThreshold(level)).step_of


def test_a_lower_threshold_commits_fewer_in_the_same_state() -> None:
    logits = torch.randn(3, 12, 6, generator=torch.Generator().manual_seed(0)) * 2
    view = view_of(logits, torch.ones(3, 12, dtype=torch.bool))
    commits = []
    for level in (0.2, 0.6, 1.0, 3.0):
        rule = ContextualCCD(contexts=1, candidates=8, threshold=level)
        commits.append(rule.decide(view, rule.begin(None, view.snapshot)).commit)
    for fewer, more in pairwise(commits):
        assert (fewer <= more).all() and int(fewer.sum()) < int(more.sum())
    assert commits[-1].sum(1).tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        ({"contexts": 0}, "contexts", "0"),
        ({"candidates": 0}, "candidates", "0"),
        ({"threshold": -0.5}, "threshold", "-0.5"),
        ({"surest": "margin"}, "surest", "margin"),
    ],
)
def test_bad_settings_of_the_paper_s_rule_name_the_key_and_the_value(
    options: dict, key: str, got: str
) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        ContextualCCD(**options)
    assert got in str(caught.value)
