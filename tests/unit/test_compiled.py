"""The forward pass through torch.compile: static shapes, the same results, a way back."""

import logging
from dataclasses import replace
from functools import cache as remember
from pathlib import Path

import pytest
import torch

from dllm_decode.decoding.cache import DualCache, NoCache
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder, Run
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request
from dllm_decode.errors import ConfigError
from dllm_decode.models import load_model
from dllm_decode.models.compiled import CompiledBody
from dllm_decode.strategies.threshold import ConfidenceThreshold

LLADA = Path(__file__).parents[1] / "golden" / "checkpoints" / "llada"
REQUEST = Request(((1, 2, 3), (4,), (5, 6)), (20, 9, 24))


@remember
def plain():
    return load_model(str(LLADA), device="cpu", dtype="float32").denoiser


class Shapes(CompiledBody):
    """Notes the shapes that the graph gets."""

    def __init__(self, model) -> None:
        super().__init__(model, backend="eager")
        self.seen: list = []
        graph = self._graph

        def recorded(model, tokens, positions, mask, store):
            width = tokens.shape[1] if store is None else store.width
            self.seen.append((*tokens.shape, width))
            return graph(model, tokens, positions, mask, store)

        self._graph = recorded


def decode(denoiser, cache, max_batch=2):
    decoder = Decoder(denoiser, Pipeline(ConfidenceThreshold(0.6)), Blocks(8), cache)
    return Engine(decoder, max_batch).decode(REQUEST)


@pytest.mark.slow
@pytest.mark.one_in(2)
@pytest.mark.parametrize("cache", [NoCache(), DualCache()], ids=["none", "dual"])
def test_padded_shapes_change_nothing_and_are_few(cache):
    body = Shapes(plain().model)
    result = decode(replace(plain(), compiled=body), cache)
    expected = decode(plain(), cache)
    assert result.errors == expected.errors == ("",) * 3
    assert result.sequences == expected.sequences and result.forwards == expected.forwards
    # never more canvas columns than the store has
    width = 32 if cache == NoCache() else 27
    assert set(body.seen) <= {(1, 32, width), (2, 32, width)} and len(body.seen) > 2


@pytest.mark.slow
def test_a_single_row_has_no_mask_and_is_compiled_once_for_all_widths():
    compiled, masks = [], []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    body = CompiledBody(plain().model, backend=backend)
    graph = body._graph

    def recorded(model, tokens, positions, mask, store):
        masks.append(mask)
        return graph(model, tokens, positions, mask, store)

    body._graph = recorded
    for width in (33, 40, 57):
        tokens = torch.arange(width)[None]
        seen = torch.ones_like(tokens).bool()
        there = replace(plain(), compiled=body).hidden(tokens, seen, True)
        assert not body._broken
        torch.testing.assert_close(there, plain().hidden(tokens, seen, True))
    assert len(compiled) == 1 and masks == [None] * 3


@pytest.mark.slow
def test_a_store_for_cuda_graphs_stays_where_it_is_from_decode_to_decode():
    """What torch asks of buffers that a graph writes to: static inputs, at the same addresses."""
    static = []

    def note(graph, inputs):
        about = torch._guards.TracingContext.get().fw_metadata
        static.append([tuple(inputs[place].shape) for place in about.static_input_indices])
        return graph

    from torch._dynamo.backends.common import aot_autograd  # slow to import

    backend = aot_autograd(fw_compiler=note, inference_compiler=note)
    body = CompiledBody(plain().model, backend=backend)
    body.mode = "reduce-overhead"
    denoiser = replace(plain(), compiled=body)
    places = []
    for _ in range(2):
        run = Run(
            Decoder(denoiser, Pipeline(ConfidenceThreshold(0.6)), Blocks(8), DualCache()), REQUEST
        )
        run.admit([0])
        run.step()
        run.step()
        places.append([layer.keys.data_ptr() for layer in run.batch.store.positional])
        run.batch.abandon()
        del run
    assert not body._broken
    assert places[0] == places[1]
    buffers = [shape for shape in static[0] if len(shape) == 4]
    assert len(buffers) == 2 * plain().model.config.num_hidden_layers
    assert {(shape[0], shape[2]) for shape in buffers} == {(3, 27)}, "rows and columns"


@pytest.mark.slow
def test_what_cannot_be_compiled_runs_uncompiled_with_one_word_of_why(caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here\nand a long story")

    body = CompiledBody(plain().model, backend=broken)
    with caplog.at_level(logging.WARNING, "dllm_decode"):
        result = decode(replace(plain(), compiled=body), NoCache())
    assert result.sequences == decode(plain(), NoCache()).sequences
    messages = [r.message for r in caplog.records if "uncompiled" in r.message]
    assert len(messages) == 1 and "no compiler here" in messages[0]
    assert "long story" not in messages[0]


def test_running_out_of_memory_is_no_reason_to_give_up_compiling():
    body = CompiledBody(plain().model, backend="eager")

    def full(*_):
        raise torch.OutOfMemoryError("simulated")

    body._padded = full
    with pytest.raises(torch.OutOfMemoryError):
        replace(plain(), compiled=body).hidden(torch.ones(1, 4).long(), torch.ones(1, 4).bool())
    assert not body._broken


@pytest.mark.slow
def test_the_mode_is_a_setting_of_the_model():
    with pytest.raises(ConfigError, match=r"model\.compile must be one of default, reduce"):
        load_model(str(LLADA), device="cpu", compile="fast")
    assert load_model(str(LLADA), device="cpu", compile="default").denoiser.compiled is not None


def test_a_model_on_several_devices_is_not_compiled(caplog):
    from dllm_decode.models.loading import compiled

    assert compiled(plain(), "default", spread=True).compiled is None
    assert "spread over several devices" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("cache", [NoCache(), DualCache()], ids=["none", "dual"])
def test_inductor_gives_the_same_tokens(cache):
    body = CompiledBody(plain().model)
    result = decode(replace(plain(), compiled=body), cache)
    assert not body._broken
    assert result.sequences == decode(plain(), cache).sequences
