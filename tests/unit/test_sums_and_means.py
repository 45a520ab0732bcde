"""What adds or averages over positions: each row for itself, over its own positions, and logs.

The released beam search of SOAR adds up probabilities under the name of a log-probability, so that
of two states the one with more decided positions wins. The siblings here are all rules whose
decision hangs on a sum or a mean over columns.
"""

import math

import pytest
import torch
from changing_model import ChangingModel, view_of

from dllm_decode.decoding.cache import CertaintyCache
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.schedule import Blocks, WholeCanvas
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request
from dllm_decode.strategies.ccd import ContextualCCD, ReleasedCCD
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.early import Prophet, Sched
from dllm_decode.strategies.entropy_bound import EntropyBound
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.rcr import RunningConfidence
from dllm_decode.strategies.saber import Saber
from dllm_decode.strategies.t2m import TokenToMask
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.strategies.wino import Wino
from dllm_decode.testing import StoringHashDenoiser

LEVELS = (1.6, 1.2, 0.8)
DECODERS = {
    "ccd": lambda: Decoder(ChangingModel(passing=1.0), ReleasedCCD(warm_up_steps=2), WholeCanvas()),
    "ccd of the paper": lambda: Decoder(
        ChangingModel(passing=1.0), ContextualCCD(3, threshold=0.9), WholeCanvas()
    ),
    "certainty cache": lambda: Decoder(
        StoringHashDenoiser(), TopK(1), WholeCanvas(), CertaintyCache(top=2, sigma=2.0, every=9)
    ),
    "credit": lambda: Decoder(
        ChangingModel(), Pipeline(ConfidenceThreshold(0.4), {"credit": TraceCredit()}), Blocks(4)
    ),
    "entropy bound": lambda: Decoder(ChangingModel(), EntropyBound(1.5), WholeCanvas()),
    "prophet": lambda: Decoder(
        ChangingModel(),
        Pipeline(TopK(1), stop={"early": Prophet(columns=None, levels=LEVELS)}),
        Blocks(4),
    ),
    "rcr": lambda: Decoder(ChangingModel(), RunningConfidence(4), WholeCanvas()),
    "saber": lambda: Decoder(ChangingModel(passing=9.0), Saber(at_least=1), WholeCanvas()),
    "sched": lambda: Decoder(
        ChangingModel(), Pipeline(TopK(1), stop={"early": Sched(high=2.0, low=0.5)}), Blocks(4)
    ),
    "t2m": lambda: Decoder(ChangingModel(), TokenToMask(), WholeCanvas()),
    "wino": lambda: Decoder(ChangingModel(), Wino(0.3, 0.6, 2), WholeCanvas()),
}
# short and long, before and behind: the first row is padded on both sides when it is not alone
PROMPTS, LENGTHS, SEEDS = ((1,), (2, 3, 4, 5), (6, 7)), (5, 11, 8), (5, 6, 7)


def what_it_did(result: Result, row: int) -> tuple:
    return (
        result.sequences[row],
        result.step_map[row],
        result.forwards[row],
        result.finish_reasons[row],
    )


# a tenth of these canvases is more than one column
LONGER = {"ccd": (21, 40, 30)}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", DECODERS)
def test_a_sum_or_mean_is_taken_over_the_columns_of_its_own_row(name: str) -> None:
    lengths = LONGER.get(name, LENGTHS)
    together = DECODERS[name]().decode(Request(PROMPTS, lengths, SEEDS))
    for row, (prompt, length, seed) in enumerate(zip(PROMPTS, lengths, SEEDS, strict=True)):
        alone = DECODERS[name]().decode(Request((prompt,), length, (seed,)))
        assert what_it_did(alone, 0) == what_it_did(together, row), f"row {row}"


@pytest.mark.parametrize("columns", [2, 5, 9])
@pytest.mark.parametrize("gap", [1.0, 3.0])
@pytest.mark.parametrize(
    "rule",
    [Prophet(columns=None, levels=(2.0, 2.0, 2.0)), Sched(high=2.0, low=2.0)],
    ids=["prophet", "sched"],
)
def test_a_mean_does_not_grow_with_the_number_of_its_columns(
    rule, gap: float, columns: int
) -> None:
    logits = torch.tensor([gap, 0.0, -9.0]).expand(1, columns, 3)
    view = view_of(logits, torch.ones(1, columns, dtype=torch.bool))
    assert bool(rule.closes(view, None)) == (gap > 2.0)


def test_a_log_probability_adds_logarithms_so_that_more_tokens_are_never_likelier() -> None:
    result = Decoder(ChangingModel(), ConfidenceThreshold(0.4)).decode(Request(PROMPTS, LENGTHS))
    for row in result.rows:
        product = math.prod(row.confidence_of)
        assert math.exp(sum(row.logprobs)) == pytest.approx(product)
        assert all(one <= 0.0 for one in row.logprobs) and sum(row.logprobs) < 0.0
