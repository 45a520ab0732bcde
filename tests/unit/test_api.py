from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from faulty_models import InterruptedWorld
from torch import Tensor

import dllm_decode
from dllm_decode import CapabilityError, ConfigError, Interrupted, Request, load
from dllm_decode.api import TextDecoder
from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.observer import Observer
from dllm_decode.decoding.sampling import Categorical
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Decision, StepView
from dllm_decode.models.toy import Copy


@pytest.fixture(scope="module")
def copying() -> TextDecoder:
    return load(model="toy_copy", strategy="credit")


@pytest.fixture(scope="module")
def bundled() -> TextDecoder:
    return load(model="llada", strategy="credit", overrides=["model.checkpoint=bundled:llada-tiny"])


def test_every_public_name_can_be_imported() -> None:
    for name in dllm_decode.__all__:
        assert getattr(dllm_decode, name) is not None
    assert set(dllm_decode.__all__) <= set(dir(dllm_decode))
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        dllm_decode.absent  # noqa: B018


def test_the_readme_example_works(copying: TextDecoder) -> None:
    result = copying.generate(["cab", "deaf"], max_new_tokens=64)
    assert result.texts == ("cab", "deaf")
    assert result.finish_reasons == ("eot", "eot")
    assert len(result.forwards) == len(result.step_of) == 2
    assert result.reference_forwards == (0, 0)


def test_one_prompt_a_list_and_token_ids_are_the_same_thing(copying: TextDecoder) -> None:
    ids = copying.model.tokenizer.encode("cab")
    forms = ["cab", ["cab"], ids, [ids], torch.tensor(ids), torch.tensor([ids])]
    assert {copying.generate(form).texts for form in forms} == {("cab",)}


def test_a_string_becomes_a_message_where_there_is_a_chat_template(bundled: TextDecoder) -> None:
    text = "Copy: 1 Ada 2 Ben 3 Cleo"
    chat = [{"role": "user", "content": text}]
    assert bundled.encode(text) == bundled.encode(chat)
    assert bundled.encode(text, chat=False) == tuple(bundled.model.tokenizer.encode(text))
    results = [bundled.generate(form, max_new_tokens=32) for form in (text, chat, [chat])]
    assert len({result.sequences for result in results}) == 1
    assert results[0].texts[0].split() == text.split()[1:]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "at least one prompt"),
        ([3.5], "prompt 0 must be a text, a chat or token ids, got float"),
        ([[1, "x"]], "prompt 0 must hold token ids, got 'x'"),
        ([{"role": "user"}], "has the keys role and content"),
        (5, "must be a text, a chat or token ids, got int"),
    ],
)
def test_what_is_no_prompt_is_refused(copying: TextDecoder, prompt, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        copying.generate(prompt)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_new_token", "did you mean max_new_tokens"),
        ("temprature", "did you mean temperature"),
        ("gen_length", "it is called max_new_tokens"),
        ("do_sample", "give temperature"),
        ("xyzzy", "it takes max_new_tokens, temperature"),
    ],
)
def test_an_unknown_keyword_is_refused_with_a_hint(
    copying: TextDecoder, name: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=f"no option '{name}'.*{hint}"):
        copying.generate("cab", **{name: 1})


def test_load_takes_the_names_of_the_command_line() -> None:
    decoder = load(
        "toy_copy", "threshold", schedule="whole", overrides=["strategy.select.threshold=0.5"]
    )
    assert decoder.decoder.strategy.select.threshold == 0.5
    assert type(decoder.decoder.schedule).__name__ == "WholeCanvas"
    with pytest.raises(ConfigError, match="unknown option strategy=crdit; did you mean"):
        load("toy_copy", "crdit")
    with pytest.raises(ConfigError, match=r"samplr.*did you mean sampler"):
        load("toy_copy", samplr="greedy")
    with pytest.raises(ConfigError, match="sampler must be an option's name or a Sampler, got"):
        load("toy_copy", sampler={"temperature": 1})


def test_sampling_options_have_the_names_of_hugging_face() -> None:
    shuffle = load(model="toy_shuffle", strategy="sequential")
    greedy = shuffle.generate("abcdef").texts
    drawn = [shuffle.generate("abcdef", temperature=1.0, seed=seed).texts for seed in range(4)]
    assert len(set(drawn)) > 1
    assert shuffle.generate("abcdef", temperature=1.0, seed=2).texts == drawn[2]
    assert shuffle.generate("abcdef", temperature=0.0).texts == greedy
    assert shuffle.generate("abcdef", temperature=1.0, top_k=1).texts == greedy
    with pytest.raises(ConfigError, match=r"^temperature must lie in"):
        shuffle.generate("abcdef", temperature=-1.0)


def test_options_change_the_sampler_that_was_loaded() -> None:
    decoder = load("toy_copy", sampler="categorical", overrides=["sampler.top_p=0.5"])
    sampling = decoder._sampling(0.3, None, None, None)
    assert sampling.decoder.sampler == Categorical(temperature=0.3, top_p=0.5)


def test_a_seed_belongs_to_the_prompt_and_not_to_the_batch() -> None:
    shuffle = load(model="toy_shuffle", strategy="sequential")
    prompts = ["abcdef", "ghijkl", "mnopqr"]
    together = shuffle.generate(prompts, temperature=1.0, seed=5).texts
    two = shuffle.generate(prompts, temperature=1.0, seed=5, batch_size=2).texts
    alone = tuple(
        shuffle.generate(prompt, temperature=1.0, seed=5 + row).texts[0]
        for row, prompt in enumerate(prompts)
    )
    assert together == two == alone


class Listener:
    def __init__(self) -> None:
        self.final: list[int] = []
        self.prompt: list[int] | None = None
        self.drafts: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        if self.prompt is None:
            self.prompt = value.tolist()
        else:
            self.final += value.tolist()

    def put_draft(self, value: torch.Tensor) -> None:
        self.drafts.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_hears_prompt_drafts_final_tokens_and_the_end(bundled: TextDecoder) -> None:
    listener = Listener()
    text = "Reverse: 1 Ada 2 Ben 3 Cleo 4 Dan"
    result = bundled.sequential.generate(text, max_new_tokens=32, streamer=listener)
    assert tuple(listener.prompt or ()) == bundled.encode(text)
    assert tuple(listener.final) == result.sequences[0]
    assert len(listener.drafts) == result.forwards[0]
    assert bundled.model.denoiser.vocab.mask_id in listener.drafts[0]
    assert listener.ended == 1


def test_a_streamer_without_drafts_is_enough(copying: TextDecoder) -> None:
    from transformers import TextStreamer

    class Tokenizer:
        def decode(self, ids, **options) -> str:
            return copying.model.tokenizer.decode([int(token) for token in ids])

    class Kept(TextStreamer):
        text = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text

    streamer = Kept(Tokenizer(), skip_prompt=True)
    copying.generate("cab", streamer=streamer)
    assert streamer.text == "cab"


def test_a_streamer_takes_one_prompt(copying: TextDecoder) -> None:
    with pytest.raises(ConfigError, match="streamer works with one prompt, got 2"):
        copying.generate(["a", "b"], streamer=Listener())


def test_tokens_given_in_advance_stay_and_the_rest_fits_around_them() -> None:
    world = load(model="toy_shuffle", strategy="sequential", overrides=["schedule.length=4"])
    ids = world.model.tokenizer.encode("abcd")
    result = world.generate("abcd", infill={0: ids[3], 2: ids[0]}, max_new_tokens=8)
    text = result.texts[0]
    assert (text[0], text[2]) == ("d", "a") and sorted(text) == list("abcd")
    assert result.step_of[0][0] == -1


def test_a_template_sets_the_length_and_its_masks_are_filled(bundled: TextDecoder) -> None:
    tokenizer, mask = bundled.model.tokenizer, bundled.model.denoiser.vocab.mask_id
    answer = tokenizer.encode(" 1 Ada 2 Ben 3 Cleo")
    template = [token if place != 3 else mask for place, token in enumerate(answer)]
    decoder = replace(
        bundled, decoder=load("toy_copy", overrides=["schedule=whole"]).decoder
    )  # only the schedule differs
    decoder = replace(bundled, decoder=replace(bundled.decoder, schedule=decoder.decoder.schedule))
    result = decoder.generate("Copy: 1 Ada 2 Ben 3 Cleo", infill=template)
    assert result.sequences[0] == tuple(answer)
    words = tokenizer.decode(answer[:3]), tokenizer.decode(answer[4:])
    again = decoder.generate("Copy: 1 Ada 2 Ben 3 Cleo", infill="[MASK]".join(words))
    assert again.sequences == result.sequences


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
        ({"batch_size": "2"}, "batch_size must be a whole number >= 1, got '2'"),
        ({"max_tokens_in_flight": 0}, "max_tokens_in_flight must be a whole number >= 1, got 0"),
        ({"batching": "fast"}, "batching must be one of continuous, static; got 'fast'"),
        ({"batching": None}, "batching must be one of continuous, static; got None"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_by_the_name_of_the_argument(
    copying: TextDecoder, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        copying.generate("a", max_new_tokens=4, **settings)


def test_infilling_needs_one_entry_per_prompt(copying: TextDecoder) -> None:
    with pytest.raises(ConfigError, match="infill must have one entry per prompt"):
        copying.generate(["a", "b"], infill=["x"])
    with pytest.raises(ConfigError, match="no exact token ids"):
        copying.generate("a", infill="a[MASK]")


def test_the_oracle_gets_its_reference_and_the_price_is_told(copying: TextDecoder) -> None:
    oracle = load("toy_copy", "oracle")
    result = oracle.generate(["cab", "deaf"])
    plain = copying.sequential.generate(["cab", "deaf"])
    assert result.texts == plain.texts
    assert result.reference_forwards == plain.forwards
    assert sum(result.forwards) < sum(plain.forwards)


def test_a_given_reference_is_used_and_not_made() -> None:
    oracle = load("toy_copy", "oracle", overrides=["schedule=whole"])
    ids = tuple(oracle.model.tokenizer.encode("cab"))
    end = oracle.model.denoiser.vocab.eot_ids[0]
    reference = ((*ids[:3], *[end] * 5),)
    result = oracle.decode(Request((ids,), 8, reference=reference))
    assert result.texts == ("cab",) and result.reference_forwards == (0,)


def test_ctrl_c_carries_the_partial_texts(copying: TextDecoder) -> None:
    world = InterruptedWorld(after=2)
    decoder = replace(
        copying.sequential, model=world, decoder=replace(copying.sequential.decoder, denoiser=world)
    )
    with pytest.raises(Interrupted) as stop:
        decoder.generate("abcdef")
    assert stop.value.result.finish_reasons == ("interrupted",)
    assert len(stop.value.result.texts) == 1
    assert stop.value.result.undecided[0] > 0


def test_a_row_whose_reference_decode_failed_is_an_error_row() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Allergic(Copy):
        def __call__(self, tokens: Tensor, live: Tensor, index: Tensor, plan: Plan) -> Tensor:
            if bool((tokens[:, 0] == self.symbols.index("z")).any()):
                raise ZeroDivisionError("no z")
            return super().__call__(tokens, live, index, plan)

    oracle = load("toy_copy", "oracle", overrides=["schedule=whole"])
    world = Allergic(n=3)
    oracle = replace(oracle, model=world, decoder=replace(oracle.decoder, denoiser=world))
    result = oracle.generate(["cab", "zab"], batch_size=2, max_new_tokens=4)
    assert result.rows[0].text == "cab" and not result.errors[0]
    assert result.errors[1].startswith("the reference decode failed: ZeroDivisionError('no z')")


def test_ctrl_c_in_a_reference_decode_delivers_nothing_of_it() -> None:
    oracle = load("toy_copy", "oracle", overrides=["schedule=whole"])
    world = InterruptedWorld(after=2)
    oracle = replace(oracle, model=world, decoder=replace(oracle.decoder, denoiser=world))
    with pytest.raises(Interrupted) as stop:
        oracle.generate(["abcdef", "cab"])
    result = stop.value.result
    assert result.finish_reasons == ("interrupted",) * 2 and result.sequences == ((), ())
    assert result.reference_forwards == (2, 2) and result.forwards == (0, 0)


def test_a_warm_up_leaves_faults_to_the_decode_and_keeps_to_the_bound() -> None:
    widths = []

    @dataclass(frozen=True)
    class Small(Strategy):
        def decide(self, view: StepView, memory: None) -> Decision:
            widths.append(len(view.open))
            if len(view.open) > 1:
                raise torch.OutOfMemoryError("two rows")
            return Decision(view.open)

    decoder = load("toy_copy", Small(), overrides=["schedule=whole"])
    ids = tuple(decoder.encode(text, row) for row, text in enumerate(["cab", "abc"]))
    request = Request(ids, 8)
    decoder.warm_up(request, 2)
    decoder.warm_up(request, 2, max_tokens_in_flight=request.width)
    assert widths == [2, 1]
    assert decoder.decode(request, batch_size=2).errors == ("", "")


def test_a_batch_size_below_the_number_of_prompts_changes_nothing(copying: TextDecoder) -> None:
    prompts = ["cab", "de", "fghij"]
    whole, parts = copying.generate(prompts), copying.generate(prompts, batch_size=2)
    assert whole.sequences == parts.sequences and whole.forwards == parts.forwards


def test_one_number_of_columns_per_prompt_is_possible(copying: TextDecoder) -> None:
    result = copying.generate(["abc", "abcdef"], max_new_tokens=[32, 40])
    assert result.texts == ("abc", "abcdef")
    with pytest.raises(ConfigError, match="one per prompt"):
        copying.generate(["abc"], max_new_tokens=[32, 40])


@pytest.mark.parametrize(
    ("stop", "text"),
    [("2", " 1 Ada "), ([" 3", " 2"], " 1 Ada"), ([], " 1 Ada 2 Ben 3 Cleo"), ("never", None)],
)
def test_a_stop_text_ends_the_text_and_not_the_tokens(bundled, stop, text) -> None:
    prompt = "Copy: 1 Ada 2 Ben 3 Cleo"
    plain = bundled.generate(prompt, max_new_tokens=32)
    cut = bundled.generate(prompt, max_new_tokens=32, stop=stop)
    assert cut.texts == (plain.texts[0] if text is None else text,)
    assert cut.sequences == plain.sequences


def test_a_stop_text_ends_the_texts_of_what_was_voted_on_as_well(bundled) -> None:
    prompt = "Copy: 1 Ada 2 Ben 3 Cleo"
    (row,) = bundled.generate(
        prompt, max_new_tokens=32, n=2, vote="block_lengths", block_lengths=(16, 32), stop=" 2"
    ).rows
    assert [row.text, *(candidate.text for candidate in row.candidates)] == [" 1 Ada"] * 3


def test_a_stop_text_that_is_none_is_refused(copying: TextDecoder) -> None:
    with pytest.raises(ConfigError, match="stop must be a text or a list of texts, got 3"):
        copying.generate("cab", stop=3)


def test_a_decoder_prints_one_line(bundled: TextDecoder) -> None:
    line = repr(bundled)
    assert "\n" not in line and len(line) < 400
    assert "bundled:llada-tiny" in line and "trace credit" in line and "blocks (length 32)" in line


@pytest.mark.parametrize("strategy", ["sequential", "oracle"])
def test_a_stream_gives_the_canvas_after_every_step_and_the_result_with_the_last(
    strategy: str,
) -> None:
    decoder = load(model="toy_copy", strategy=strategy)
    steps = list(decoder.stream("cab", max_new_tokens=6))
    result = decoder.generate("cab", max_new_tokens=6)
    assert len(steps) == result.forwards[0] and [s.result for s in steps[:-1]] == [None] * (
        len(steps) - 1
    )
    last = steps[-1]
    assert last.result == result and last.result[0].pieces[:3] == ("c", "a", "b")
    assert last.text == "cab∎" and last.forwards == result.forwards[0]
    # what is fresh in a step was open in the one before
    for before, after in itertools.pairwise(steps):
        assert after.fresh and all(before.tokens[place] is None for place in after.fresh)
    first = steps[0]
    assert str(first).startswith("  1 | ") and (strategy == "oracle" or "·" in first.text)
    assert "outline" in first._repr_html_()
    given = next(iter(decoder.stream("cab", max_new_tokens=6, infill={0: 2})))
    assert given.tokens[0] == 2 and given.confidence[0] is None
    (only,) = decoder.stream("cab", max_new_tokens=1, infill={0: 2})
    assert only.tokens == only.result[0].tokens == (2,) and only.forwards == 0


def test_a_stream_refuses_what_generate_refuses(copying: TextDecoder) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens"):
        next(copying.stream("cab", max_new_tokens=0))
    with pytest.raises(ConfigError, match="prompt 0 must be"):
        next(copying.stream(3.5))
    with pytest.raises(ConfigError, match=r"stream\(\) has no option 'max_tokens'.*max_new_tokens"):
        next(copying.stream("cab", max_tokens=3))


@pytest.mark.parametrize("prompts", [[], ["cab", "de"], [[1], [2]]])
def test_a_stream_takes_one_prompt_and_drops_none(copying: TextDecoder, prompts) -> None:
    with pytest.raises(ConfigError, match=f"stream takes one prompt, got {len(prompts)}"):
        next(copying.stream(prompts))


def test_progress_is_a_bar_of_columns(copying: TextDecoder, capsys) -> None:
    result = copying.generate(["cab", "de"], max_new_tokens=6, progress=True)
    assert result.texts == ("cab", "de")
    told = capsys.readouterr().err
    assert "/12 [" in told and "column/s" in told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"infill": 5}, r"infill of prompt 0 must be a text with \[MASK\], a list .*, got 5"),
        ({"infill": True}, "infill of prompt 0 must be a text"),
        ({"infill": ""}, "infill of prompt 0 must be a text .*, got ''"),
        ({"infill": [[]]}, r"infill of prompt 0 must be a text .*, got \[\]"),
        ({"parameters": 5}, "parameters must be {'full key': value}, .*, got 5"),
        ({"parameters": [5]}, "parameters must be {'full key': value}, .*, got 5"),
        ({"parameters": {3: 0.5}}, "parameters must be {'full key': value}, .*, got {3: 0.5}"),
        ({"observers": 5}, "observers must be a list of observers, got 5"),
        ({"observers": None}, "observers must be a list of observers, got None"),
        ({"observers": [5]}, "an observer has the methods start, step and finish, .* got 5"),
        ({"observers": [Observer]}, "an observer has the methods start, step and finish"),
        ({"streamer": 5}, "streamer must have the methods put and end, got 5"),
        (
            {"n": 2, "vote": "block_lengths", "block_lengths": 5},
            "block_lengths must be a list of lengths, got 5",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_an_argument_of_another_kind_is_refused_by_name(
    copying: TextDecoder, given: dict[str, object], message: str
) -> None:
    with pytest.raises((ConfigError, CapabilityError), match=message):
        copying.generate("cab", **given)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(5, "overrides must be a list of texts"), ({"seed": object()}, "overrides must hold texts")],
)
def test_overrides_of_another_kind_are_refused(overrides: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("toy_copy", overrides=overrides)


def test_answers_that_cannot_be_hashed_are_compared_as_they_are_shown(copying: TextDecoder) -> None:
    result = copying.generate("cab", n=2, answer=list)
    assert result.rows[0].votes == 2
