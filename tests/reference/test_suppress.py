import pytest
import torch
from hypothesis import given
from table_model import Case, cases, decode

from dllm_decode.errors import ConfigError
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.suppress import BanTokens, DeferTokens


@pytest.mark.parametrize("seed", range(5))
def test_a_banned_token_leaves_the_rest_renormalised(seed: int) -> None:
    table = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(seed)) * 2
    banned = decode(table, TopK(1), transforms={"ban_eot": BanTokens([0])})
    table[..., 0] = float("-inf")
    expected = decode(table, TopK(1))
    assert banned.sequences == expected.sequences
    assert banned.step_of == expected.step_of
    assert torch.tensor(banned.confidence_of).allclose(torch.tensor(expected.confidence_of))


def test_the_models_own_probability_is_recorded_with_what_is_banned_in_it() -> None:
    table = torch.tensor([[[2.0, 1.0, 0.0]]])
    result = decode(table, TopK(1), transforms={"ban_eot": BanTokens([0])})
    own, without = table[0, 0].softmax(0)[1], table[0, 0, 1:].softmax(0)[0]
    assert result.trace[0].probability.item() == pytest.approx(float(own))
    assert result.trace[0].confidence.item() == pytest.approx(float(without))


@given(cases())
def test_a_deferred_token_is_committed_only_when_nothing_else_is_left(case: Case) -> None:
    plain = decode(case.table, TopK(1))
    deferred = decode(case.table, TopK(1), transforms={"defer_eot": DeferTokens([0])})
    assert deferred.sequences == plain.sequences
    for tokens, steps in zip(deferred.sequences, deferred.step_of, strict=True):
        late = [step for token, step in zip(tokens, steps, strict=True) if token == 0]
        early = [step for token, step in zip(tokens, steps, strict=True) if token != 0]
        assert max(early, default=-1) < min(late, default=len(tokens))


def test_other_proposals_gain_what_the_deferred_token_had() -> None:
    table = torch.tensor([[[0.0, 1.0, 0.0], [2.0, 1.0, 0.0]]])
    result = decode(table, TopK(2), transforms={"defer_eot": DeferTokens([0])})
    assert result.sequences == ((1, 0),)
    kept = torch.tensor([1.0, 0.0]).softmax(0)[0]
    assert result.confidence_of[0][0] == pytest.approx(float(kept))
    assert result.confidence_of[0][1] == 0.0


def test_no_ids_mean_the_end_of_text_of_the_model() -> None:
    table = torch.tensor([[[0.0, 3.0, 1.0]]])
    result = decode(table, TopK(1), transforms={"ban_eot": BanTokens()}, eot_ids=(1,))
    assert result.sequences == ((2,),)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: BanTokens([]), r"ids must be null .* got \[\]"),
        (lambda: DeferTokens([1.5]), r"ids .* got \[1\.5\]"),
    ],
)
def test_ids_that_are_no_ids_are_refused(part, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        part()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            BanTokens(),
            r"^strategy\.transforms\.mine \(BanTokens\): ids is null, but the model has no end",
        ),
        (DeferTokens([9]), r"ids must lie in \[0, 3\], got 9"),
        (BanTokens([0, 1, 2]), r"ids removes every token of the vocabulary of 4"),
    ],
)
def test_ids_that_do_not_fit_the_model_are_refused(part, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(torch.zeros(1, 2, 3), TopK(1), transforms={"mine": part})
