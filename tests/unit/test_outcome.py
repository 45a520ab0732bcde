"""What a row delivers, with and without tokens that the caller fixed."""

import math
import pickle
import sys
from dataclasses import dataclass, fields, replace

import pytest
import torch
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode.decoding import picture
from dllm_decode.decoding.colours import GIVEN, colour_of
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.outcome import Outcome, Result
from dllm_decode.decoding.schedule import Blocks, SlidingWindow, WholeCanvas
from dllm_decode.decoding.strategy import Pipeline, StopRule
from dllm_decode.decoding.trace import Trace
from dllm_decode.decoding.types import Request
from dllm_decode.errors import ConfigError
from dllm_decode.strategies.eot import CommittedEot, PredictedEot
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.testing import VOCAB, HashDenoiser

EOT = VOCAB.eot_ids[0]
QUIET = dict.fromkeys(VOCAB.never_generated, -1e6)


@pytest.mark.parametrize(
    ("tokens", "last_fixed", "delivered", "end"),
    [
        ((), -1, (), 0),
        ((1, 2), -1, (1, 2), 2),
        ((1, EOT, 2), -1, (1,), 1),
        ((EOT, 1), -1, (), 0),
        ((1, EOT, 2, EOT, 3), 2, (1, 2), 3),
        ((EOT, EOT, 2), 2, (2,), 3),
        ((1, EOT, EOT, 5), 2, (1,), 2),
        ((1, EOT, 2, 3), 1, (1,), 1),
    ],
)
def test_delivered_is_what_stands_before_the_first_end_that_no_fixed_token_follows(
    tokens, last_fixed, delivered, end
):
    row = Outcome(tokens, eot_ids=(EOT,), last_fixed=last_fixed)
    assert row.delivered == delivered and row.end == end
    assert tuple(tokens[at] for at in row.delivered_places) == delivered


def test_a_result_has_a_column_for_every_field_of_its_rows():
    rows = (
        Outcome((1,), 2, "eot", (0,), (0.5,), 0, 1, "", (EOT,), -1, "a", 3, (Outcome(),), 1),
        Outcome(),
    )
    result = Result(rows)
    names = {
        "tokens": "sequences",
        "finish_reason": "finish_reasons",
        "text": "texts",
        "error": "errors",
    }
    for entry in fields(Outcome):
        if entry.name in ("eot_ids", "last_fixed"):
            continue
        column = getattr(result, names.get(entry.name, entry.name))
        assert column == tuple(getattr(row, entry.name) for row in rows)


@dataclass(frozen=True)
class CutAtOnce(StopRule):
    """A rule of somebody who has never heard of infilling."""

    def horizon(self, snapshot, view, change, memory):
        ends = snapshot.decided & torch.isin(snapshot.tokens, snapshot.ids((EOT,)))
        ends &= snapshot.columns >= snapshot.start
        first = torch.where(ends, snapshot.columns, snapshot.tokens.shape[1]).amin(1)
        return first + 1


RULES = {
    "committed": CommittedEot(),
    "at the commit": CommittedEot(whole_prefix=False),
    "predicted": PredictedEot(threshold=0.1),
    "one's own": CutAtOnce(),
}


@examples(12)
@given(
    fixed=st.dictionaries(st.integers(0, 8), st.integers(0, 8), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    rule=st.sampled_from(sorted(RULES)),
    schedule=st.sampled_from([Blocks(4), WholeCanvas(), SlidingWindow(3)]),
    select=st.sampled_from([TopK(1), ConfidenceThreshold(0.4)]),
)
def test_no_text_that_the_caller_fixed_is_ever_dropped(fixed, seed, rule, schedule, select):
    model = HashDenoiser(seed=seed, added={**QUIET, EOT: 3.0})
    strategy = Pipeline(select, stop={"rule": RULES[rule]})
    request = Request(((1,), (2,)), 9, fixed=(fixed, None))
    row, other = Decoder(model, strategy, schedule).decode(request).rows
    assert all(row.tokens[at] == token for at, token in fixed.items())
    kept = {at: row.tokens[at] for at in row.delivered_places}
    assert {at: kept.get(at) for at in fixed} == fixed
    assert EOT not in row.delivered and EOT not in other.delivered
    assert row.end == len(row.tokens) or row.tokens[row.end] == EOT


@pytest.mark.parametrize("rule", RULES)
def test_an_end_of_text_in_a_gap_says_that_the_gap_needs_no_more(rule):
    """The columns behind the fixed text are decoded all the same."""

    @dataclass
    class EndsEverywhere(HashDenoiser):
        def __call__(self, tokens, live, index, plan):
            logits = super().__call__(tokens, live, index, plan)
            logits[..., EOT] += torch.where(index - 1 < 6, 25.0, -25.0)
            return logits

    fixed = {0: 5, 4: 6}
    strategy = Pipeline(TopK(1), stop={"rule": RULES[rule]})
    request = Request(((1,),), 8, fixed=(fixed,))
    row = Decoder(EndsEverywhere(added=QUIET), strategy, WholeCanvas()).decode(request).rows[0]
    assert row.tokens[1:4] == (EOT,) * 3 and row.tokens[4] == 6 and row.tokens[5] == EOT
    assert row.delivered == (5, 6)


@pytest.mark.parametrize("length", [1, 2, 6, 31])
def test_templates_shorter_than_a_block_are_filled(length):
    fixed = {at: 3 for at in range(0, length, 2)}
    decoder = Decoder(HashDenoiser(added=QUIET), ConfidenceThreshold(0.5))
    row = decoder.decode(Request(((1, 2),), length, fixed=(fixed,))).rows[0]
    assert len(row.tokens) == length and all(row.tokens[at] == 3 for at in fixed)


# In Python and notebooks.


ROWS = (
    Outcome(
        (7, 8, EOT), 2, "eot", (0, -1, 1), (0.5, math.nan, 1.0), eot_ids=(EOT,), text="a<b",
        pieces=("a", "<b", "end"),
    ),
    Outcome((9,), 3, "error", (2,), (0.0,), error="it <broke>"),
)  # fmt: skip


def test_a_result_is_its_rows_and_says_what_it_is_in_one_line():
    result = Result(ROWS)
    assert list(result) == list(ROWS) and len(result) == 2
    assert result[0] is ROWS[0] and result[-1] is ROWS[1] and result[:1] == ROWS[:1]
    assert repr(result) == "Result(2 rows, 5 forwards, eot 1, error 1)"
    assert repr(ROWS[0]) == "Outcome('a<b', 2 forwards, eot)"
    assert repr(Result(())) == "Result(0 rows, 0 forwards, nothing)"


def test_logprobs_and_the_step_map_are_those_of_the_path_that_was_taken():
    result = Result(ROWS)
    assert result.step_map == ((0, -1, 1), (2,))
    first, given, last = result.logprobs[0]
    assert (first, last) == (math.log(0.5), 0.0) and math.isnan(given)
    assert result.logprobs[1] == (-math.inf,)


def test_a_notebook_shows_tokens_as_text_coloured_by_confidence():
    page = Result(ROWS)._repr_html_()
    assert "&lt;b" in page and "<b" not in page.replace("&lt;b", "")
    assert colour_of(0.5) in page and GIVEN in page and "it &lt;broke&gt;" in page
    assert 'title="column 1, given"' in page and "column 0, step 1, confidence 0.500" in page
    many = Result(ROWS * picture.MOST_ROWS)._repr_html_()
    assert many.count("monospace") == picture.MOST_ROWS and "and 20 more rows" in many
    assert "no rows" in Result(())._repr_html_()


def test_a_result_becomes_a_data_frame_with_a_line_per_row(monkeypatch):
    pandas = pytest.importorskip("pandas")
    frame = Result(ROWS).to_pandas()
    assert list(frame["text"]) == ["a<b", ""] and list(frame["delivered"]) == [2, 1]
    assert list(frame["tokens_per_forward"]) == [1.0, 1 / 3] and frame["tokens"][0] == [7, 8, EOT]
    empty = Result(()).to_pandas()
    assert isinstance(empty, pandas.DataFrame) and list(empty.columns) == list(frame.columns)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="to_pandas needs pandas: pip install pandas"):
        Result(ROWS).to_pandas()


@pytest.mark.parametrize(("likely", "delivered"), [(3, (1,)), (10, (10, 10, 10))])
def test_a_text_ends_where_the_stop_rule_says_and_not_where_the_model_would(likely, delivered):
    rule = Pipeline(TopK(1), stop={"eot": CommittedEot(ids=(3,))})
    model = HashDenoiser(seed=1, added={likely: 4.0})
    decoder = Decoder(model, rule, record=True)
    request = Request(((1, 2),), 12)
    result = decoder.decode(request)
    assert result[0].tokens == (*delivered, 3)
    assert result[0].delivered == delivered and result[0].eot_ids == (3,)
    assert Trace.of(request, result, model.vocab).eot_ids == (3,)


def test_without_a_stop_rule_the_models_own_ids_end_a_text():
    result = Decoder(HashDenoiser(added={10: 4.0}), TopK(1)).decode(Request(((1, 2),), 6))
    assert result[0].eot_ids == (10,) and result[0].delivered == ()


def test_results_with_tokens_given_in_advance_can_be_compared_and_counted():
    request = Request(((1, 2),), 4, fixed=({1: 3},))
    decoder = Decoder(HashDenoiser(), TopK(1), Blocks(4))
    result = decoder.decode(request)
    assert math.isnan(result.confidence_of[0][1])
    for same in (decoder.decode(request), pickle.loads(pickle.dumps(result))):
        assert same == result and len({same[0], result[0]}) == 1
    other = replace(result[0], confidence_of=(0.5, 0.5, math.nan, 0.5))
    assert other != result[0] and result[0] != "an outcome"


def test_results_with_a_trace_can_be_compared():
    decoder = Decoder(HashDenoiser(), TopK(1), record=True)
    first, again = (decoder.decode(Request(((1, 2),), 4)) for _ in range(2))
    assert first == again and first != decoder.decode(Request(((1, 3),), 4))
