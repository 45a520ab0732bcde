"""Several decodes of a prompt, and what is delivered of them."""

from dataclasses import replace
from functools import cache

import pytest

from dllm_decode import Decoder, Request, load
from dllm_decode.api import TextDecoder
from dllm_decode.decoding.batching import check_voting
from dllm_decode.decoding.observer import Interrupted
from dllm_decode.decoding.outcome import Outcome, Result
from dllm_decode.decoding.sampling import Categorical
from dllm_decode.decoding.schedule import Blocks, WholeCanvas
from dllm_decode.decoding.voting import Voting, _repeated
from dllm_decode.errors import CapabilityError, ConfigError
from dllm_decode.evaluation.data import Question
from dllm_decode.evaluation.evaluate import Evaluation
from dllm_decode.problems.grading import answer_in
from dllm_decode.strategies.fixed import TopK
from dllm_decode.testing import HashDenoiser

END = 9


def said(*tokens: int, forwards: int = 1, error: str = "") -> Outcome:
    return Outcome(tokens=tokens, forwards=forwards, eot_ids=(END,), error=error)


class Script:
    """Gives prepared outcomes, row by row, and keeps what it was asked."""

    def __init__(self, *rounds: list[Outcome]) -> None:
        self.rounds, self.asked, self.decoders = list(rounds), [], []

    def __call__(self, decoder: Decoder, request: Request) -> Result:
        self.asked.append(request)
        self.decoders.append(decoder)
        rows = self.rounds.pop(0)
        assert len(rows) == request.rows
        return Result(tuple(rows))


def last(row: Outcome):
    """The last delivered token is the answer; 0 is none."""
    return (row.delivered[-1] or None) if row.delivered else None


DECODER = Decoder(HashDenoiser(), TopK(2), Blocks(4))
ONE = Request(((1, 2),), 8, seeds=(7,))


def vote(how: str, script: Script, n: int, request: Request = ONE, **settings) -> Outcome:
    return Voting(n, how, **settings).decode(DECODER, request, script, last)[0]


def test_the_most_common_answer_wins_and_all_forwards_are_counted() -> None:
    rows = [said(5, forwards=2), said(1, 4), said(3, 4, forwards=3), said(2), said(0)]
    winner = vote("majority", Script(rows), 5)
    assert (winner.tokens, winner.votes, winner.forwards) == ((1, 4), 2, 8)
    assert winner.candidates == tuple(rows)


def test_of_answers_with_equal_votes_the_first_one_wins() -> None:
    assert vote("majority", Script([said(6), said(5), said(5), said(6)]), 4).tokens == (6,)


def test_errors_and_texts_without_an_answer_abstain() -> None:
    rows = [said(4, error="lost"), said(4, error="lost"), said(0), said(3)]
    assert vote("majority", Script(rows), 4).tokens == (3,)
    nobody = vote("majority", Script([said(0), said(1, 0)]), 2)
    assert (nobody.tokens, nobody.votes) == ((0,), 0)
    lost = vote("majority", Script([said(1, error="lost"), said(error="gone")]), 2)
    assert lost.error == "lost" and lost.votes == 0


def test_only_the_longer_half_votes_where_that_was_asked_for() -> None:
    rows = [said(5), said(5), said(1, 1, 6), said(1, 7), said(1, 1, 1, 6)]
    assert vote("majority", Script(rows), 5).tokens == (5,)
    longer = vote("longer_half", Script(rows), 5)
    assert (longer.tokens, longer.votes) == ((1, 1, 6), 2)


def test_every_candidate_has_seeds_of_its_own() -> None:
    script = Script([said(1)] * 6)
    request = Request(((1,), (2,)), (3, 4), seeds=(10, 20))
    with pytest.warns(RuntimeWarning, match="all 3 decodes of every prompt came out the same"):
        Voting(3).decode(DECODER, request, script, last)
    (asked,) = script.asked
    assert asked.seeds == (10, 20, 12, 22, 14, 24) and asked.lengths == (3, 4) * 3


def test_equal_decodes_are_no_surprise_where_the_sampler_draws(recwarn) -> None:
    request = Request(((1,),), 2)
    for sampler in (Categorical(0.5), Categorical(0.0)):
        drawing = replace(DECODER, sampler=sampler)
        Voting(2).decode(drawing, request, Script([said(1)] * 2), last)
        assert len(recwarn) == (0 if sampler.draws else 1)


@pytest.mark.parametrize("how", ["agreed", "block_lengths", "majority"])
def test_ctrl_c_keeps_the_first_answers(how: str) -> None:
    first = [said(1), said(2)] if how == "block_lengths" else [said(1), said(2)] * 4
    script = Script(first)

    def run(decoder: Decoder, request: Request) -> Result:
        if not script.rounds:
            rows = tuple(said(error="half") for _ in range(request.rows))
            raise Interrupted(Result(rows))
        return script(decoder, request)

    if how == "majority":
        script.rounds.clear()
    with pytest.raises(Interrupted) as stop:
        Voting(6, how).decode(DECODER, Request(((1,), (2,)), 8), run, lambda row: None)
    kept = stop.value.result.rows[:2]
    assert [row.tokens for row in kept] == ([(), ()] if how == "majority" else [(1,), (2,)])


def test_every_candidate_has_its_block_length() -> None:
    script = Script([said(1)], [said(2)], [said(2)])
    winner = vote("block_lengths", script, 3)
    assert [decoder.schedule.length for decoder in script.decoders] == [8, 16, 32]
    assert (winner.tokens, winner.votes) == ((2,), 2)
    script = Script([said(1)], [said(2)])
    vote("block_lengths", script, 2, block_lengths=[1, 3])
    assert [decoder.schedule.length for decoder in script.decoders] == [1, 3]
    whole = replace(DECODER, schedule=WholeCanvas())
    with pytest.raises(ConfigError, match=r"vote=block_lengths needs schedule=blocks"):
        Voting(2, "block_lengths").decode(whole, ONE, script, last)


def test_a_model_with_blocks_of_its_own_keeps_them() -> None:
    class BlockModel(HashDenoiser):
        block_length = 4

    decoder = Decoder(BlockModel(), TopK(2), Blocks(4))
    with pytest.raises(CapabilityError, match="attends in blocks of 4"):
        Voting(2, "block_lengths").decode(decoder, ONE, Script([said(1)]), last)


def test_agreed_tokens_are_fixed_for_further_candidates_until_one_answer_has_a_majority() -> None:
    request = replace(ONE, fixed=({1: 4},))
    first = [
        said(3, 4, 5, 6, 2, 2, 2, 2),
        said(3, 4, 5, 7, 2, 2, 2, 3),
        said(3, 4, 1, 7, 2, 2, 2, 4),
        said(3, 4, 1, 7, 2, 2, 2, 5),
    ]
    script = Script(first, [said(3, 4, 5, 6, 2, 2, 2, 2)], [said(3, 4, 5, 6, 2, 2, 2, 2)])
    winner = vote("agreed", script, 6, request)
    # of eight columns the last two are decoded anew, as is column 3, where they differ
    assert script.asked[1].fixed == ({0: 3, 1: 4, 4: 2, 5: 2},)
    assert script.asked[1].seeds == (7 + 4,) and len(winner.candidates) == 6
    script = Script([said(3, 2), said(1, 2), said(4, 2)])
    assert vote("agreed", script, 3).votes == 3 and len(script.asked) == 1


def test_nothing_behind_an_end_of_text_is_fixed() -> None:
    first = [said(3, END, 2, 2), said(3, 1, 2, END), said(3, 1, 4, END)]
    script = Script(first, [said(3, 1, 4, END)])
    vote("agreed", script, 4, replace(ONE, max_new_tokens=4))
    assert script.asked[1].fixed == ({0: 3},)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0,), "n must be a whole number >= 1, got 0"),
        ((2, "most"), "vote must be one of majority, longer_half, block_lengths, agreed"),
        ((2, "majority", [4, 8]), "block_lengths needs vote=block_lengths, got vote=majority"),
        ((2, "block_lengths", [4]), r"block_lengths must have n = 2 entries, got \[4\]"),
        ((1, "block_lengths", [0]), "block_lengths must be a whole number >= 1, got 0"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Voting(*settings)


@pytest.mark.parametrize(
    ("text", "what", "answer"),
    [
        (" a  b\n", "text", "a b"),
        ("3 + 4 = 7; 7 pears", "number", 7),
        ("no idea", "number", None),
        (r"so \boxed{ \frac12 }", "boxed", r"\frac{1}{2}"),
        ("so 1/2", "boxed", None),
        ("Ada", len, 3),
    ],
)
def test_an_answer_is_what_the_graders_read(text, what, answer) -> None:
    assert answer_in(text, what) == answer


# In `generate` and `task=eval`.


@cache
def loaded() -> TextDecoder:
    return load("toy_shuffle", TopK(2))


def shuffling(**parts) -> TextDecoder:
    return replace(loaded(), decoder=replace(loaded().decoder, **parts))


def test_generate_delivers_the_winner_and_its_candidates() -> None:
    decoder = shuffling(sampler=Categorical(temperature=1.0))
    prompts = decoder.model.sample_prompts(2, 0)
    result = decoder.generate(prompts, max_new_tokens=6, n=4, batch_size=3)
    for row, (outcome, plain) in enumerate(
        zip(result.rows, decoder.generate(prompts, max_new_tokens=6).rows, strict=True)
    ):
        assert len(outcome.candidates) == 4 and outcome.candidates[0].text == plain.text
        assert outcome.forwards == result.forwards[row] == sum(
            candidate.forwards for candidate in outcome.candidates
        )  # fmt: skip
        texts = [candidate.text for candidate in outcome.candidates]
        assert outcome.votes == max(texts.count(text) for text in texts) == texts.count(
            outcome.text
        )  # fmt: skip
    first = decoder.generate(prompts, max_new_tokens=6, n=3, answer=lambda text: text[:1])
    assert all(row.votes >= 1 for row in first.rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 2, "record": True}, "record shows one decode of a prompt"),
        ({"n": 2, "streamer": object()}, "streamer shows one decode of a prompt"),
        ({"n": 2, "answer": "digits"}, "answer must be one of text, number, boxed"),
        ({"n": 2, "vote": "all"}, "vote must be one of"),
    ],
)
def test_generate_refuses_what_does_not_go_with_voting(options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shuffling().generate("abcdef", max_new_tokens=6, **options)


def test_an_evaluation_grades_the_winner_and_counts_all_forwards() -> None:
    decoder = shuffling(sampler=Categorical(temperature=1.0)).decoder
    world = decoder.denoiser
    questions = [
        Question(f"q/{n}", "shuffle", prompt, "", 6, lambda text: len(set(text)) == len(text))
        for n, prompt in enumerate(world.sample_prompts(3, 0))
    ]
    one = Evaluation(decoder, world.tokenizer, max_batch=4)
    five = replace(one, voting=Voting(3), max_batch=2)
    single, voted = list(one.samples(questions)), list(five.samples(questions))
    assert [sample.problem for sample in voted] == [question.key for question in questions]
    assert sum(s.forwards for s in voted) >= 2 * sum(s.forwards for s in single)
    again = list(replace(five, max_batch=5).samples(questions))
    assert [s.tokens for s in again] == [s.tokens for s in voted]


@pytest.mark.parametrize("vote", ["longer_half", "agreed"])
def test_one_decode_alone_has_no_vote(vote):
    with pytest.raises(ConfigError, match=f"vote={vote} needs n of 2 or more decodes, got n=1"):
        check_voting(1, vote, None)


def test_votes_of_the_last_seed_there_is_begin_again_with_the_first():
    request = Request(((1,), (2,)), 2, seeds=(2**63 - 2, 2**63 - 1))
    again = _repeated(request, range(2))
    assert again.seeds == (2**63 - 2, 2**63 - 1, -(2**63), -(2**63) + 1)
