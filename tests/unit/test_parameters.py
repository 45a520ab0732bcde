"""Parameters that a row of a request sets for itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode import load
from dllm_decode.console.prompts import PromptsError, read_prompts
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.parameters import parameters_of_strategy
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline, Strategy
from dllm_decode.decoding.types import Decision, Request
from dllm_decode.errors import CapabilityError, ConfigError
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.entropy import EntropyThreshold
from dllm_decode.strategies.entropy_bound import EntropyBound
from dllm_decode.strategies.factor import Factor
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.testing import VOCAB, HashDenoiser, row_of

QUIET = dict.fromkeys(VOCAB.never_generated, -1e6)


def decoder(strategy: Strategy) -> Decoder:
    return Decoder(HashDenoiser(added=QUIET, patience=10**6), strategy, Blocks(4))


def with_credit(**settings) -> Pipeline:
    return Pipeline(ConfidenceThreshold(0.7), {"credit": TraceCredit(**settings)})


MAKERS = {
    "strategy.select.threshold": lambda value: Pipeline(ConfidenceThreshold(value)),
    "strategy.threshold": ConfidenceThreshold,
    "strategy.select.factor": lambda value: Pipeline(Factor(factor=value)),
    "strategy.select.bound": lambda value: Pipeline(EntropyBound(value, unit="bits")),
    "strategy.transforms.credit.alpha": lambda value: with_credit(alpha=3 * value),
    "strategy.transforms.credit.beta": lambda value: with_credit(beta=value),
}
SCALE = {"strategy.transforms.credit.alpha": 3}
VALUES = (0.05, 0.2, 0.4, 0.75, 0.95)


@given(
    key=st.sampled_from(sorted(MAKERS)),
    values=st.lists(st.sampled_from((None, *VALUES)), min_size=1, max_size=4),
    default=st.sampled_from(VALUES),
    max_batch=st.integers(1, 3),
)
def test_a_row_with_its_own_parameter_decodes_as_with_a_strategy_of_that_setting(
    key, values, default, max_batch
):
    own = tuple(None if v is None else {key: SCALE.get(key, 1) * v} for v in values)
    prompts = tuple((row, 5) for row in range(len(values)))
    lengths = tuple(9 - row for row in range(len(values)))
    request = Request(prompts, lengths, parameters=own)
    mixed = Engine(decoder(MAKERS[key](default)), max_batch).decode(request)
    assert mixed.errors == ("",) * len(values)
    for row, value in enumerate(values):
        strategy = MAKERS[key](default if value is None else value)
        alone = decoder(strategy).decode(Request((prompts[row],), lengths[row], seeds=(row,)))
        assert row_of(mixed, row) == row_of(alone, 0)


def test_entropy_thresholds_are_set_in_nats_and_compared_in_the_prediction_s_precision():
    one = Pipeline(EntropyThreshold(0.0))
    request = Request(((1,), (1,)), 6, (0, 0), parameters=(None, {"strategy.select.threshold": 9}))
    assert decoder(one).decode(request).forwards == (6, 2)


def test_several_given_of_several_parts_at_once():
    given = {"strategy.select.threshold": 0.3, "strategy.transforms.credit.alpha": 0.0}
    request = Request(((1,), (1,)), 6, (0, 0), parameters=(given, None))
    result = decoder(with_credit()).decode(request)
    plain = decoder(Pipeline(ConfidenceThreshold(0.3))).decode(Request(((1,),), 6))
    assert row_of(result, 0) == row_of(plain, 0)


def refused(parameters, strategy=None) -> str:
    request = Request(((1,), (2,)), 4, parameters=(None, parameters))
    with pytest.raises(ConfigError) as caught:
        decoder(strategy or with_credit()).decode(request)
    return str(caught.value)


def test_unknown_names_are_refused_with_the_one_that_was_meant():
    message = refused({"strategy.select.treshold": 0.5})
    assert message.startswith("parameters of row 1: unknown name 'strategy.select.treshold'; did")
    assert "did you mean strategy.select.threshold?" in message
    assert "may set strategy.transforms.credit.alpha, strategy.transforms.credit.beta" in message


def test_a_setting_of_the_whole_run_is_no_parameter_of_a_row():
    assert "unknown name 'strategy.select.at_least'" in refused({"strategy.select.at_least": 2})


@pytest.mark.parametrize("value", [1.5, float("nan"), "0.5", None, True])
def test_values_are_checked_like_the_field(value):
    must = "lie" if isinstance(value, float) else "be a number"
    assert refused({"strategy.select.threshold": value}) == (
        f"parameters of row 1: strategy.select.threshold must {must} in [0.0, 1.0], got {value!r}"
    )


def test_parameters_need_one_entry_per_prompt():
    with pytest.raises(ConfigError, match="parameters must have one entry per prompt"):
        Request(((1,), (2,)), 4, parameters=({},))


def test_only_numbers_of_a_part_are_given():
    for part, name in parameters_of_strategy(with_credit()).values():
        assert isinstance(getattr(part, name), float)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"request_parameters": ("threshold")}, "request_parameters must hold names, .*'thresh"),
        ({"request_parameters": 3}, "request_parameters must hold names, .*, got 3"),
        ({"request_parameters": ("treshold",)}, ".* 'treshold'; did you mean threshold.; it must"),
        ({"needs": "hidden"}, "needs must hold names, such as {\"hidden\"}, got 'hidden'"),
        ({"needs": {3}}, "needs must hold names, .*, got .3."),
    ],
)
def test_what_a_class_declares_is_checked_when_it_is_composed(declared, message):
    declaring = type("Declares", (ConfidenceThreshold,), declared)
    with pytest.raises(CapabilityError, match=rf"^strategy\.select \(Declares\): {message}"):
        decoder(Pipeline(declaring(0.7)))


def test_a_parameter_of_a_class_without_fields_is_refused():
    class Plain(Strategy):
        request_parameters = ("threshold",)

        def decide(self, view, memory):
            return Decision(view.open)

    with pytest.raises(CapabilityError, match=r"\(Plain\): .* of the dataclass, which has none"):
        decoder(Plain())


def test_generate_takes_one_mapping_or_one_per_prompt():
    decoder = load(model="toy_copy", strategy="threshold", overrides=["schedule.length=4"])
    key = "strategy.select.threshold"
    prompts = ["abc>", "cab>"]
    every = decoder.generate(prompts, max_new_tokens=8, parameters={key: 1.0})
    some = decoder.generate(prompts, max_new_tokens=8, parameters=[{key: 1.0}, None])
    assert some.forwards[0] == every.forwards[0] and some.texts == every.texts
    with pytest.raises(ConfigError, match="did you mean strategy"):
        decoder.generate("abc>", parameters={"strategy.select.thresold": 1.0})


def test_lines_of_a_prompts_file_say_what_they_need(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "a", "max_new_tokens": 7, "seed": 3, "parameters": {"strategy.x": 0.5}}\n'
        '{"messages": [{"role": "user", "content": "b"}]}\n'
    )
    first, second = read_prompts(str(path))
    assert (first.max_new_tokens, first.seed, first.parameters) == (7, 3, {"strategy.x": 0.5})
    assert (second.max_new_tokens, second.seed, second.parameters) == (None, None, None)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ('"max_new_tokens": 0', "max_new_tokens must be a whole number >= 1, got 0"),
        ('"seed": "x"', "seed must be a whole number >= 0, got 'x'"),
        ('"parameters": [1]', "parameters must be an object of numbers"),
        ('"parameters": {"a": "b"}', "parameters must be an object of numbers"),
    ],
)
def test_a_line_with_a_wrong_field_is_refused_by_number(tmp_path, field, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "a", {field}}}\n')
    with pytest.raises(PromptsError, match=f"line 1: {message}"):
        read_prompts(str(path))


def test_a_view_without_parameters_gives_the_default_and_no_tensor():
    seen = []

    class Asks(Strategy):
        def decide(self, view, memory):
            seen.append((view.parameter("x", 0.5, view.pred.confidence), view.for_part("y").part))
            return Decision(torch.zeros_like(view.open))

    decoder(Asks()).decode(Request(((1,),), 4))
    assert seen == [(0.5, "strategy.y")] * 4
