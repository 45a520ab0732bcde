import pytest
from changing_model import ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import Now, loop_decode, plain_decode

from dllm_decode import Decoder, Pipeline, Request
from dllm_decode.decoding.schedule import WholeCanvas
from dllm_decode.errors import ConfigError
from dllm_decode.strategies.copy_prior import CopyPrior
from dllm_decode.strategies.fixed import TopK
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.testing import HashDenoiser


def plain_copied(canvas: list[int | None], column: int, span: int, ahead: int) -> int | None:
    """The token that a column of the canvas is offered, by looking at every earlier place."""
    held = [place for place in range(column) if canvas[place] is not None]
    if not held or column - held[-1] > ahead:
        return None
    end = held[-1]
    words = [canvas[end - back] if end - back >= 0 else None for back in range(span)]
    for place in range(end - 1, -1, -1):
        found = [canvas[place - back] if place - back >= 0 else None for back in range(span)]
        source = place + column - end
        token = canvas[source] if source < len(canvas) else None
        if None not in words and found == words and token is not None:
            return token
    return None


@st.composite
def repeating(draw) -> tuple[tuple[tuple[int, ...], ...], int, int]:
    """Prompts of few different tokens, so that spans are repeated."""
    token = st.integers(0, 2)
    rows = draw(st.integers(1, 3))
    prompts = tuple(tuple(draw(st.lists(token, min_size=1, max_size=9))) for _ in range(rows))
    length = draw(st.integers(1, 9))
    return prompts, length, draw(st.integers(1, length))


@given(repeating(), st.integers(1, 3), st.integers(1, 4), st.sampled_from([0.7, 3.0, 30.0]))
def test_copies_are_favoured_as_in_the_plain_version(case, span, ahead, alpha) -> None:
    def adjust(now: Now) -> list[list[float]]:
        logits = [list(row) for row in now.logits]
        for column in now.open:
            token = plain_copied(now.canvas, now.prompt + column, span, ahead)
            if token is not None:
                logits[column][token] += alpha
        return logits

    def rule(now: Now) -> list[int]:
        return [column for column in now.open if now.confidence[column] >= 0.4017]

    prompts, length, block = case
    model = ChangingModel()
    copying = Pipeline(ConfidenceThreshold(0.4017), {"copy": CopyPrior(span, ahead, alpha)})
    result = loop_decode(model, prompts, length, copying, block)
    for row, prompt in enumerate(prompts):
        tokens, step_of = plain_decode(model, prompt, length, rule, block, adjust)
        assert (list(result.sequences[row]), list(result.step_of[row])) == (tokens, step_of)


def test_a_repeated_text_is_copied_in_fewer_passes() -> None:
    """A model that is unsure of everything, and a prompt whose beginning comes back at its end."""
    prompt = (0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2)
    passes = []
    for alpha in (0.0, 20.0):
        rule = Pipeline(ConfidenceThreshold(0.99), {"copy": CopyPrior(3, 4, alpha)})
        model = ChangingModel(lasting=1.0, passing=1.0)
        result = Decoder(model, rule, WholeCanvas()).decode(Request((prompt,), 5))
        passes.append(result.forwards[0])
    assert result.sequences[0] == (3, 4, 5, 6, 7) and passes[1] < passes[0]


def test_what_is_undecided_is_neither_matched_nor_copied() -> None:
    model = ChangingModel()
    seen = []

    class Spy(CopyPrior):
        def copied(self, view):
            seen.append(super().copied(view))
            return seen[-1]

    rule = Pipeline(ConfidenceThreshold(0.99), {"copy": Spy(span=1, ahead=2)})
    Decoder(model, rule, WholeCanvas()).decode(Request(((4, 4),), 3))
    # behind "4 4" one column is offered a 4; the next would be copied from that very column
    assert seen[0].tolist() == [[4, -1, -1]]


@pytest.mark.parametrize(("key", "value"), [("span", 0), ("ahead", 0), ("alpha", -1.0)])
def test_bad_settings_name_the_key_and_the_value(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} .* got {value}"):
        CopyPrior(**{key: value})


def test_rows_may_set_their_own_strength() -> None:
    rule = Pipeline(ConfidenceThreshold(0.9), {"copy": CopyPrior(1, 1, 30.0)})
    decoder = Decoder(ChangingModel(), rule, WholeCanvas())
    key = "strategy.transforms.copy.alpha"
    both = decoder.decode(Request(((5, 6, 5),) * 2, 1, parameters=({key: 0.0}, None)))
    assert both.sequences[1] == (6,) and both.sequences[0] != (6,)


def test_a_span_longer_than_the_canvas_offers_nothing():
    rule = Pipeline(TopK(1), {"copy": CopyPrior(span=8)})
    one = Decoder(HashDenoiser(), rule).decode(Request(((1, 2),), 4, seeds=(0,)))
    plain = Decoder(HashDenoiser(), TopK(1)).decode(Request(((1, 2),), 4, seeds=(0,)))
    assert one.sequences == plain.sequences
