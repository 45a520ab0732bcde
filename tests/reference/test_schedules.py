"""Schedules that choose their window anew in every step, against plain versions."""

import pytest
import torch
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import loop_decode, requests
from table_model import Case, Step, TableModel, cases, plain_steps

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import AdaptiveBlocks, Blocks, UndecidedColumns
from dllm_decode.errors import CapabilityError, ConfigError
from dllm_decode.strategies.threshold import ConfidenceThreshold

ENDS = (3, 7)


@given(cases(), st.integers(1, 6))
def test_the_window_holds_the_first_undecided_columns(case: Case, width: int) -> None:
    def rule(step: Step) -> list[int]:
        window = step.columns[:width]
        best = max(window, key=lambda column: (step.certainty[column], -column))
        return [column for column in window if step.confidence[column] >= 0.6] or [best]

    model = TableModel(case.table)
    decoder = Decoder(model, ConfidenceThreshold(0.6), UndecidedColumns(width))
    assert decoder.decode(model.request()).step_of == plain_steps(case.table, rule)


def plain_adablock(model, prompt, length, threshold, blocks: AdaptiveBlocks):
    """One row: the block, its threshold rule, and the end of the next block, as loops."""
    mask = model.vocab.mask_id
    tokens, step_of, step = [*prompt, *[mask] * length], [-1] * length, 0
    begin, end, ends = 0, min(blocks.length, length), []
    index = torch.arange(len(prompt), len(prompt) + length)[None]
    while -1 in step_of:
        canvas = torch.tensor([tokens])
        logits = model(canvas, torch.ones_like(canvas).bool(), index, Plan())[0].double()
        logits[:, mask] = float("-inf")
        confidence, token = (plane.tolist() for plane in logits.softmax(-1).max(-1))
        undecided = [column for column in range(length) if step_of[column] < 0]
        open_now = [column for column in undecided if begin <= column < end]
        best = max(open_now, key=lambda column: (confidence[column], -column))
        for column in {best, *(c for c in open_now if confidence[c] >= threshold)}:
            tokens[len(prompt) + column], step_of[column] = token[column], step
        step += 1
        left = [column for column in undecided if step_of[column] < 0]
        if left and left[0] >= end:
            ends.append(end)
            begin = left[0]
            reach = max(1, int(length * blocks.share))
            near = [c for c in left if c < begin + reach and token[c] in blocks.delimiters]
            surest = max(near, key=lambda c: (confidence[c], -c), default=None)
            found = surest is not None and confidence[surest] >= blocks.tau
            end = min(surest + 1 if found else begin + blocks.length, length)
    return tokens[len(prompt) :], step_of, ends


@given(
    requests(), st.sampled_from([0.2017, 0.5013]), st.sampled_from([0.0, 0.2513]),
    st.sampled_from([0.3, 1.0]),
)  # fmt: skip
def test_blocks_end_where_the_plain_version_ends_them(case, threshold, tau, share) -> None:
    prompts, length, block = case
    model = ChangingModel()
    blocks = AdaptiveBlocks(block, tau, share, delimiters=ENDS)
    result = loop_decode(model, prompts, length, ConfidenceThreshold(threshold), blocks)
    for row, prompt in enumerate(prompts):
        tokens, step_of, _ = plain_adablock(model, prompt, length, threshold, blocks)
        assert list(result.sequences[row]) == tokens
        assert list(result.step_of[row]) == step_of


def test_some_blocks_of_the_plain_version_end_at_delimiters() -> None:
    """Otherwise the comparison above would be one with plain blocks."""
    blocks = AdaptiveBlocks(4, 0.0, 1.0, delimiters=ENDS)
    found = [plain_adablock(ChangingModel(), (n,), 12, 0.3, blocks)[2] for n in range(6)]
    assert any(end % 4 for ends in found for end in ends)


def test_without_a_delimiter_the_blocks_are_those_of_their_length() -> None:
    model, prompts = ChangingModel(), ((1,), (2, 3), (4, 5, 6))
    plain = loop_decode(model, prompts, 9, ConfidenceThreshold(0.4), Blocks(4))
    never = AdaptiveBlocks(4, 1.0, 1.0, delimiters=ENDS)
    adaptive = loop_decode(model, prompts, 9, ConfidenceThreshold(0.4), never)
    assert adaptive.step_of == plain.step_of


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UndecidedColumns(0), "width must be a whole number >= 1, got 0"),
        (lambda: AdaptiveBlocks(0), "length must be a whole number >= 1, got 0"),
        (lambda: AdaptiveBlocks(tau=1.5), r"tau must lie in .* got 1\.5"),
        (lambda: AdaptiveBlocks(share=0.0), r"share must lie in .* got 0\.0"),
        (lambda: AdaptiveBlocks(delimiters=()), r"delimiters must be null .* got \(\)"),
        (lambda: AdaptiveBlocks(delimiters=("x",)), r"delimiters must be null .* got \('x',\)"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("schedule", [UndecidedColumns(4), AdaptiveBlocks(4)])
def test_models_that_attend_block_by_block_are_refused(schedule) -> None:
    with pytest.raises(CapabilityError, match=r"attends block by block .* use schedule=blocks"):
        schedule.on_grid(4)
