"""The adapter: padding, positions, shift, masks, wanted slots, with and without a store."""

import sys
import types
from itertools import pairwise

import pytest
import torch
from golden_checkpoints import GOLDEN, OPTIONS

from dllm_decode.decoding.cache import (
    BlockExact,
    DelayedCache,
    DualCache,
    NoCache,
    PeriodicCache,
    Plan,
    PrefixCache,
    columns_of,
    mask_of,
)
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks, SlidingWindow, WholeCanvas
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request
from dllm_decode.errors import CapabilityError, ConfigError
from dllm_decode.models import load_model, placement
from dllm_decode.models.guided import guided
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.threshold import ConfidenceThreshold

FAMILIES = tuple(OPTIONS)


@pytest.fixture(scope="module")
def denoisers():
    return {
        family: load_model(str(GOLDEN / family), device="cpu", **options).denoiser
        for family, options in OPTIONS.items()
    }


def tokens(length, seed=0, high=150):
    return torch.randint(0, high, (length,), generator=torch.Generator().manual_seed(seed))


def padded(rows, pad=190):
    """Left-padded rows and which columns are live."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    live = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :] = row
        live[number, width - len(row) :] = True
    return ids, live


def columns(ids):
    return torch.arange(ids.shape[1]).expand_as(ids)


def record_calls(denoiser, monkeypatch):
    """Keyword arguments of every pass through the body."""
    calls = []
    body = denoiser.model.model
    original = body.forward

    def forward(**arguments):
        calls.append(arguments)
        return original(**arguments)

    monkeypatch.setattr(body, "forward", forward)
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_in_a_left_padded_batch_equals_the_row_alone(denoisers, family):
    rows = [tokens(length, seed) for seed, length in enumerate((21, 13, 17, 5))]
    ids, live = padded(rows)
    together = denoisers[family](ids, live, columns(ids), Plan())
    for number, row in enumerate(rows):
        alone = denoisers[family](
            row[None], torch.ones(1, len(row), dtype=torch.bool), columns(row[None]), Plan()
        )
        assert torch.allclose(together[number, -len(row) :], alone[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_columns_behind_the_horizon_have_no_influence(denoisers, family):
    ids = tokens(24)[None].repeat(2, 1)
    ids[1, 16:] = tokens(8, seed=9)
    live = columns(ids) < 16
    first, second = denoisers[family](ids, live, columns(ids)[:, :16], Plan())
    # with several threads a product may sum two equal rows in two orders
    assert torch.allclose(first, second, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_computed_for_the_wanted_slots_alone(denoisers, family, monkeypatch):
    ids = tokens(20)[None].repeat(2, 1)
    live = torch.ones_like(ids, dtype=torch.bool)
    every = denoisers[family](ids, live, columns(ids), Plan())
    head = denoisers[family].model.lm_head
    shapes, original = [], head.forward
    monkeypatch.setattr(
        head, "forward", lambda hidden: shapes.append(hidden.shape) or original(hidden)
    )
    index = torch.tensor([[3, 7, -1], [19, 0, 8]])
    some = denoisers[family](ids, live, index, Plan())
    assert shapes == [(2, 3, head.in_features)]
    for row, slot in (index >= 0).nonzero().tolist():
        expected = every[row, index[row, slot]]
        assert torch.allclose(some[row, slot], expected, atol=1e-5, rtol=0)


def test_only_a_shifted_model_predicts_a_column_from_the_one_on_its_left(
    denoisers,
):
    ids, live = padded([tokens(12), tokens(9, 1)])
    for family in ("llada", "dream"):
        denoiser = denoisers[family]
        raw = denoiser.model.lm_head(denoiser.hidden(ids, live))
        logits = denoiser(ids, live, columns(ids), Plan())
        first = [0, 3]
        for row in range(2):
            for column in range(first[row], 12):
                source = max(column - 1, first[row]) if family == "dream" else column
                assert torch.allclose(logits[row, column], raw[row, source], atol=1e-6)


def test_the_shift_crosses_block_borders(denoisers):
    # the first column of a block is predicted from the last column of the block before it
    ids = tokens(24)[None]
    live = torch.ones_like(ids, dtype=torch.bool)
    border = torch.tensor([[16]])
    raw = denoisers["dream"].model.lm_head(denoisers["dream"].hidden(ids, live))
    assert torch.allclose(
        denoisers["dream"](ids, live, border, Plan())[0, 0], raw[0, 15], atol=1e-6
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_always_passed_and_count_from_the_row_s_first_column(
    denoisers, family, monkeypatch
):
    calls = record_calls(denoisers[family], monkeypatch)
    ids, live = padded([tokens(6), tokens(4)])
    denoisers[family](ids, live, columns(ids), Plan())
    assert calls[0]["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3]]
    assert calls[0]["use_cache"] is False and calls[0]["past_key_values"] is None


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_never_numbers_and_there_is_none_where_everything_is_seen(
    denoisers, family, monkeypatch
):
    calls = record_calls(denoisers[family], monkeypatch)
    ids, live = padded([tokens(20), tokens(20, 1)])
    denoisers[family](ids, live, columns(ids), Plan())
    ids, live = padded([tokens(20), tokens(7)])
    denoisers[family](ids, live, columns(ids), Plan())
    masks = [call["attention_mask"] for call in calls]
    assert (masks[0] is None) == (family != "llada2")
    assert all(mask is None or mask.dtype == torch.bool for mask in masks)


@pytest.mark.parametrize("family", ["llada", "llada2"])
def test_flex_attention_is_given_blocks_of_the_same_mask(denoisers, family, monkeypatch):
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    denoiser = denoisers[family]
    ids, live = padded([tokens(20), tokens(7)])
    first, queries = live.int().argmax(1, keepdim=True), columns(ids)[:, 3:15]
    want = denoiser._mask(queries, live, first, False, ids)
    monkeypatch.setattr(denoiser.model.config, "_attn_implementation", "flex_attention")
    found = denoiser._mask(queries, live, first, False, ids)
    rows, width = ids.shape
    assert found.shape == (rows, 1, queries.shape[1], width)
    dense = flex.create_mask(found.mask_mod, rows, 1, queries.shape[1], width, "cpu")
    assert torch.equal(dense, want.expand(-1, 1, queries.shape[1], -1))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llada", "llada2"])
def test_a_padded_pass_through_flex_attention_is_that_of_sdpa(denoisers, family, monkeypatch):
    """Plain torch's FlexAttention: its compiled kernels need larger heads, or a GPU."""
    from torch.nn.attention.flex_attention import flex_attention
    from transformers.integrations import flex_attention as theirs

    def plain(*given, training=False, **more):
        return flex_attention(*given, **more)

    monkeypatch.setattr(theirs, "compile_friendly_flex_attention", plain)
    ids, live = padded([tokens(20), tokens(7)])
    want = denoisers[family](ids, live, columns(ids), Plan(complete=False))
    monkeypatch.setattr(denoisers[family].model.config, "_attn_implementation", "flex_attention")
    got = denoisers[family](ids, live, columns(ids), Plan(complete=False))
    torch.testing.assert_close(got[live], want[live], atol=1e-4, rtol=1e-3)


class FlashAttention(types.ModuleType):
    """A stand-in for flash-attn with its calls and layouts, which computes row after row."""

    def __init__(self):
        super().__init__("flash_attn")
        self.calls = []

    def flash_attn_func(self, q, k, v, softmax_scale=None):
        heads = q.shape[2] // k.shape[2]
        parts = (q, *(part.repeat_interleave(heads, 2) for part in (k, v)))
        q, k, v = (part.transpose(1, 2) for part in parts)
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=softmax_scale)
        return found.transpose(1, 2)

    def flash_attn_varlen_func(
        self, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None
    ):
        begins = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        for ends, most, part in zip(begins, (max_seqlen_q, max_seqlen_k), (q, k), strict=True):
            assert ends[0] == 0 and ends[-1] == len(part)
            assert all(0 < after - before <= most for before, after in pairwise(ends))
        assert {cu_seqlens_q.dtype, cu_seqlens_k.dtype} == {torch.int32} and len(k) == len(v)
        self.calls.append(begins)
        rows = []
        for (a, b), (c, d) in zip(*map(pairwise, begins), strict=True):
            rows.append(
                self.flash_attn_func(q[None, a:b], k[None, c:d], v[None, c:d], softmax_scale)
            )
        return torch.cat(rows, 1)[0]


@pytest.mark.parametrize("family", ["llada", pytest.param("dream", marks=pytest.mark.slow)])
def test_rows_of_different_lengths_are_what_a_mask_computes_under_every_cache(
    denoisers, family, monkeypatch
):
    from dllm_decode.models.varlen import NAME

    library, denoiser = FlashAttention(), denoisers[family]
    monkeypatch.setitem(sys.modules, "flash_attn", library)
    prompts = (tuple(tokens(20).tolist()), tuple(tokens(7).tolist()))
    for cache in (NoCache(), PrefixCache(), DualCache(), DelayedCache()):
        found = []
        for kind in ("sdpa", NAME):
            with monkeypatch.context() as patch:
                patch.setattr(denoiser.model.config, "_attn_implementation", kind)
                decoder = Decoder(denoiser, Pipeline(ConfidenceThreshold(0.02)), Blocks(8), cache)
                both = decoder.decode(Request(prompts, 16)).sequences
                alone = decoder.decode(Request(prompts[1:], 16)).sequences
                found.append((both, alone))
        assert found[0] == found[1], cache
    # the second row's keys are those of its own columns
    queries, keys = library.calls[0]
    assert queries[1] == queries[2] - queries[1] and keys[1] > keys[2] - keys[1]
    ids, live = padded([tokens(20), tokens(7)])
    want = denoiser.hidden(ids, live)
    monkeypatch.setattr(denoiser.model.config, "_attn_implementation", NAME)
    torch.testing.assert_close(denoiser.hidden(ids, live)[live], want[live], atol=1e-4, rtol=1e-3)


def test_flash_attention_is_refused_in_words_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr(placement, "pick_device", lambda name: torch.device("cuda"))
    with pytest.raises(ConfigError, match=r"needs model\.dtype=bfloat16 or float16, got float32"):
        placement.Placement("float32", attention="flash_attention_2")
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ConfigError, match="needs the package flash-attn; pip install flash-attn"):
        placement.Placement(attention="flash_attention_2")
    monkeypatch.setattr(placement, "find_spec", lambda name: object())
    chosen = placement.Placement(attention="flash_attention_2").for_transformers()
    assert chosen["attn_implementation"] == "dllm_decode_varlen"


def test_the_block_grid_is_counted_from_the_row_s_first_column(denoisers):
    denoiser = denoisers["llada2"]
    ids, live = padded([tokens(24), tokens(19, 1)])
    hidden = denoiser.hidden(ids, live)
    changed = ids.clone()
    changed[:, -1] += 1  # column 23 of row 0 lies in block 2, position 18 of row 1 as well
    moved = (denoiser.hidden(changed, live) - hidden).abs().amax(-1)
    assert moved[0, :16].max() < 1e-4 < moved[0, 16:].min()
    assert moved[1, 5 : 5 + 16].max() < 1e-4 < moved[1, 5 + 16 :].min()


def test_the_end_of_the_prompt_lies_in_the_first_block_of_a_block_causal_model(denoisers):
    seen = []

    class Watch(Blocks):
        def window(self, snapshot):
            window = super().window(snapshot)
            seen.append((window.index - snapshot.first[:, None])[window.index >= 0].tolist())
            return window

        def on_grid(self, block_length):
            assert block_length == 8
            return Watch(8, origin="absolute")

    decoder = Decoder(denoisers["llada2"], Pipeline(ConfidenceThreshold(0.0)), Watch(8))
    result = decoder.decode(Request(((1,) * 11,), 14))
    # asked once more after the last step, when there is nothing left
    assert seen[:3] == [[11, 12, 13, 14, 15], [16, 17, 18, 19, 20, 21, 22, 23], [24]]
    assert result.forwards == (3,)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_prompts_decodes_like_each_prompt_alone(denoisers, family):
    prompts = tuple(tuple(tokens(n, n).tolist()) for n in (5, 11, 3, 8))
    decoder = Decoder(denoisers[family], Pipeline(ConfidenceThreshold(0.3)), Blocks(8))
    together = decoder.decode(Request(prompts, 20))
    for row, prompt in enumerate(prompts):
        alone = decoder.decode(Request((prompt,), 20))
        assert alone.sequences[0] == together.sequences[row]
        assert alone.forwards[0] == together.forwards[row]


@pytest.mark.parametrize(("family", "scale"), [*((f, 0.0) for f in FAMILIES), ("dream", 1.5)])
def test_a_store_that_is_always_refreshed_changes_nothing(denoisers, family, scale):
    prompts = tuple(tuple(tokens(n, n).tolist()) for n in (5, 11, 3))
    model = guided(denoisers[family], scale)
    results = [
        Decoder(model, Pipeline(ConfidenceThreshold(0.3)), Blocks(8), cache).decode(
            Request(prompts, 20)
        )
        for cache in (NoCache(), PeriodicCache(every=1))
    ]
    assert results[0].sequences == results[1].sequences


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_the_block_store_of_a_block_causal_model_is_exact(denoisers, scale):
    prompts = tuple(tuple(tokens(n, n).tolist()) for n in (5, 11, 3))
    model = guided(denoisers["llada2"], scale)  # whose second canvas has a store of its own
    results = [
        Decoder(model, Pipeline(ConfidenceThreshold(0.3)), Blocks(8), cache).decode(
            Request(prompts, 20)
        )
        for cache in (NoCache(), BlockExact(length=8))
    ]
    assert results[0].sequences == results[1].sequences
    assert results[0].forwards == results[1].forwards


def test_a_shifted_model_with_a_store_recomputes_the_column_before_each_wanted_one(
    denoisers, monkeypatch
):
    denoiser = denoisers["dream"]
    ids = tokens(20)[None]
    live = torch.ones_like(ids, dtype=torch.bool)
    store = denoiser.allocate(1, 20)
    store.join(1)
    denoiser(ids, live, columns(ids), Plan(columns(ids), live, store))
    calls = record_calls(denoiser, monkeypatch)
    block = (columns(ids) >= 8) & (columns(ids) < 16)
    index = columns_of(block)
    plan = Plan(columns_of(block | mask_of(denoiser.sources(index, live), 20)), live, store)
    logits = denoiser(ids, live, index, plan)
    assert calls[0]["position_ids"].tolist() == [list(range(7, 16))]
    # nothing has changed since the store was filled, so the logits are those of a full pass
    monkeypatch.undo()
    assert torch.allclose(logits, denoiser(ids, live, index, Plan()), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("family", "first"), [("dream", 7), ("llada", 8)])
def test_the_loop_recomputes_the_columns_at_which_a_model_reads_its_logits(
    denoisers, monkeypatch, family, first
):
    """Dream's first logit of a block stands at the column in front of the block."""
    calls = record_calls(denoisers[family], monkeypatch)
    decoder = Decoder(denoisers[family], TopK(1), Blocks(4), DualCache())
    decoder.decode(Request((tuple(tokens(8).tolist()),), 8))
    positions = [call["position_ids"][0].tolist() for call in calls]
    full, block = list(range(16)), list(range(first, 12))
    assert positions[:5] == [full, block, block, block, full]
    assert positions[5] == list(range(first + 4, 16))


@pytest.mark.parametrize("schedule", [Blocks(4), Blocks(8, origin="prompt")])
def test_a_schedule_off_the_model_s_grid_is_refused_with_the_fix(denoisers, schedule):
    with pytest.raises(CapabilityError, match=r"schedule.length=8 schedule.origin=auto"):
        Decoder(denoisers["llada2"], Pipeline(ConfidenceThreshold(0.9)), schedule)


@pytest.mark.parametrize("schedule", [WholeCanvas(), SlidingWindow(8)])
def test_a_schedule_without_a_grid_is_refused_for_block_causal_models(denoisers, schedule):
    with pytest.raises(CapabilityError, match=r"use schedule=blocks schedule.length=8"):
        Decoder(denoisers["llada2"], Pipeline(ConfidenceThreshold(0.9)), schedule)
    Decoder(denoisers["llada"], Pipeline(ConfidenceThreshold(0.9)), schedule)


def test_full_attention_models_keep_the_grid_behind_the_prompt(denoisers):
    decoder = Decoder(
        denoisers["llada"], Pipeline(ConfidenceThreshold(0.0)), Blocks(8), PrefixCache()
    )
    assert decoder.schedule == Blocks(8)
    assert decoder.decode(Request(((1,) * 11,), 16)).forwards == (2,)


def test_an_unknown_origin_of_the_grid_is_refused():
    with pytest.raises(ConfigError, match=r"origin must be one of auto, prompt, absolute"):
        Blocks(8, origin="middle")


@pytest.mark.parametrize("family", ["llada2", "llada"])
def test_a_block_may_be_longer_than_the_answer(denoisers, family):
    request = Request(((1,) * 5,), 3)
    strategy = Pipeline(ConfidenceThreshold(0.0))
    assert Decoder(denoisers[family], strategy, Blocks(8)).decode(request).forwards == (1,)


@pytest.mark.parametrize("family", ["lladamoe", "llada2"])
def test_the_experts_of_a_mixture_are_one_product_for_which_the_host_does_not_wait(
    denoisers, family
):
    assert denoisers[family].model.config._experts_implementation == "grouped_mm"
