"""Plugins written with the names of the first edition still work, and say what to write."""

from dataclasses import dataclass

import pytest
import torch

import dllm_decode
from dllm_decode.decoding import prediction, types
from dllm_decode.decoding.cache import CachePolicy
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.strategy import Pipeline, Strategy, Transform
from dllm_decode.decoding.types import Decision, Request
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.testing import HashDenoiser, StoringHashDenoiser

REQUEST = Request(((1, 2), (3,)), 6, parameters=({"strategy.level": 0.3}, None))


def decode(strategy, request=REQUEST):
    return Decoder(HashDenoiser(), strategy).decode(request)


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        (dllm_decode, "Board", types.Snapshot),
        (types, "Board", types.Snapshot),
        (prediction, "RaisedPrediction", prediction.BiasedPrediction),
        (prediction, "Unprojected", prediction.HiddenStates),
    ],
)
def test_an_old_class_name_gives_the_class(place, old, new):
    with pytest.warns(DeprecationWarning, match=rf"{old} is now .*{new.__name__}"):
        assert getattr(place, old) is new
    with pytest.raises(AttributeError, match="Bored"):
        _ = place.Bored


def test_a_strategy_that_uses_the_old_names_decodes_as_with_the_new_ones():
    with pytest.warns(DeprecationWarning, match=r"Old\.per_row is now request_parameters"):

        @dataclass(frozen=True)
        class Old(Strategy):
            level: float = 0.6
            per_row = ("level",)

            def decide(self, view, memory):
                level = view.knob("level", self.level, view.pred.confidence)
                return Decision(
                    view.board.undecided.any() & view.open & (view.pred.confidence >= level)
                )

    @dataclass(frozen=True)
    class New(Strategy):
        level: float = 0.6
        request_parameters = ("level",)

        def decide(self, view, memory):
            level = view.parameter("level", self.level, view.pred.confidence)
            return Decision(
                view.snapshot.undecided.any() & view.open & (view.pred.confidence >= level)
            )

    with pytest.warns(DeprecationWarning) as said:
        old = decode(Pipeline(Old()), Request(((1, 2),), 6, parameters=None))
    assert {
        "StepView.knob is now StepView.parameter",
        "StepView.board is now StepView.snapshot",
    } <= {str(warning.message) for warning in said}
    assert all(warning.filename == __file__ for warning in said)
    assert old == decode(Pipeline(New()), Request(((1, 2),), 6))


def test_a_cache_policy_that_uses_the_old_name_decodes_as_with_the_new_one():
    class Policy(CachePolicy):
        def __init__(self, name):
            self.name = name

        def recompute(self, step):
            return getattr(step, self.name).live

    def through(name):
        model = StoringHashDenoiser()
        decoder = Decoder(model, ConfidenceThreshold(0.6), cache=Policy(name))
        return decoder.decode(Request(((1, 2),), 6))

    with pytest.warns(DeprecationWarning, match="Step.board is now Step.snapshot"):
        old = through("board")
    assert old == through("snapshot")


@pytest.mark.parametrize(
    ("old", "new", "arguments"),
    [
        (
            "raised",
            "with_logit_bias",
            lambda view: (view.index[..., None] * 0, view.pred.confidence[..., None]),
        ),
        ("without", "suppress", lambda view: (torch.tensor([2, 3]),)),
    ],
)
def test_a_transform_that_uses_the_old_names_decodes_as_with_the_new_ones(old, new, arguments):
    @dataclass(frozen=True)
    class Calls(Transform):
        method: str

        def adjust(self, view, memory):
            return getattr(view.pred, self.method)(*arguments(view))

    def through(method):
        return decode(
            Pipeline(ConfidenceThreshold(0.6), {"mine": Calls(method)}), Request(((1,),), 6)
        )

    with pytest.warns(DeprecationWarning, match=f"Prediction.{old} is now Prediction.{new}"):
        found = through(old)
    assert found == through(new)
