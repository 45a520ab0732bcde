from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import dllm_decode.conf
from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.denoiser import Denoiser
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.types import Request
from dllm_decode.errors import ConfigError
from dllm_decode.models.toy import (
    Copy,
    Markov,
    ReplaceIndex,
    ReplaceRandom,
    Reverse,
    Shuffle,
    Table,
    row_state,
)
from dllm_decode.strategies.fixed import TopK

WORLDS = [Copy, Reverse, ReplaceIndex, ReplaceRandom, Shuffle, Markov, Table]
OPTIONS = sorted((Path(next(iter(dllm_decode.conf.__path__))) / "model").glob("toy_*.yaml"))


def ask(world, rows, pad=0):
    """Logits at every column of rows of token ids, each padded on the left and right."""
    width = max(map(len, rows)) + pad
    tokens = torch.full((len(rows), width), world.vocab.pad_id)
    live = torch.zeros(len(rows), width, dtype=torch.bool)
    index = torch.full((len(rows), width), -1)
    for row, ids in enumerate(rows):
        begin = width - pad - len(ids)
        tokens[row, begin : begin + len(ids)] = torch.tensor(ids)
        live[row, begin : begin + len(ids)] = True
        index[row, : len(ids)] = torch.arange(begin, begin + len(ids))
    logits = world(tokens, live, index, Plan())
    return [logits[row, : len(ids)] for row, ids in enumerate(rows)]


def canvas(world, prompt, answer, length):
    mask = world.vocab.mask_id
    known = [mask if s == "_" else world.symbols.index(s) for s in answer]
    return [*world.tokenizer.encode(prompt), *known, *[mask] * (length - len(answer))]


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: path.stem)
def test_every_option_builds_and_has_the_defaults_of_its_class(path):
    world = instantiate(OmegaConf.load(path), _convert_="all")
    default = type(world)()
    for name, value in vars(default).items():
        got = getattr(world, name)
        plain = OmegaConf.create([value, got]) if isinstance(value, tuple) else None
        assert got == value or (plain is not None and plain[0] == plain[1]), name
    assert len(OPTIONS) == len(WORLDS)


@pytest.mark.parametrize("kind", WORLDS)
def test_a_world_is_a_loaded_model(kind):
    world = kind()
    assert isinstance(world.denoiser, Denoiser) and world.max_length is None
    assert "exact toy world" in str(world.description) and not world.tokenizer.has_chat_template
    assert len(world.sample_prompts(3)) == 3
    for prompt in world.sample_prompts(3, seed=1):
        ids = world.tokenizer.encode(prompt)
        assert world.tokenizer.decode(ids, keep_special=True) == prompt
        assert max(ids) < world.vocab.size


@pytest.mark.parametrize("kind", WORLDS)
def test_a_row_has_the_same_logits_in_any_batch_and_place(kind):
    world = kind()
    first, second = (canvas(world, prompt, "", 6) for prompt in world.sample_prompts(2))
    second[-6] = 0
    alone = ask(world, [first])[0]
    together = ask(world, [second[2:], first, second], pad=2)[1]
    assert torch.equal(alone, together)


@pytest.mark.parametrize("kind", WORLDS)
def test_logits_are_finite_and_end_of_text_follows_the_answer(kind):
    world = kind()
    prompt = world.sample_prompts(1)[0]
    logits = ask(world, [canvas(world, prompt, "", 12)])[0]
    assert bool(logits.isfinite().all())
    assert logits[-1].argmax() == world.vocab.eot_ids[0]
    assert logits[len(world.tokenizer.encode(prompt))].argmax() != world.vocab.eot_ids[0]


def test_a_row_without_a_prompt_has_the_default_instance():
    world = Copy(n=3)
    mask = world.vocab.mask_id
    for row in ([mask] * 4, [*world.tokenizer.encode(">"), *[mask] * 4]):
        answer = ask(world, [row])[0][-4:].argmax(-1).tolist()
        assert world.tokenizer.decode(answer, keep_special=True) == "abc."


def test_a_prompt_may_hold_any_number_of_items():
    world = Shuffle(n=6)
    logits = ask(world, [canvas(world, "xy>", "y", 3)])[0][-3:]
    assert world.tokenizer.decode(logits.argmax(-1).tolist(), keep_special=True) == "yx."


def test_decided_columns_predict_their_own_token():
    world = Shuffle(n=3)
    logits = ask(world, [canvas(world, "abc>", "aa_", 3)])[0][-3:]
    assert logits[:2].argmax(-1).tolist() == [0, 0]


def test_noise_breaks_ties_by_seed_canvas_and_column_and_can_be_switched_off():
    row = canvas(Shuffle(), "abcdef>", "", 6)
    winners = {
        tuple(ask(Shuffle(seed=seed), [row])[0][-6:].argmax(-1).tolist()) for seed in range(9)
    }
    assert len(winners) > 1
    exact = ask(Shuffle(noise=0.0), [row])[0][-6:]
    assert torch.equal(exact, exact[:1].expand(6, -1))
    change = ask(Shuffle(), [row])[0][-6:] - exact
    assert change.min() > 0 and change.max() < 1e-6


def test_a_floor_of_zero_makes_what_cannot_happen_impossible():
    logits = ask(Copy(n=2, floor=0.0), [canvas(Copy(), "ab>", "", 2)])[0][-2:]
    assert logits.isfinite().sum() == 2


def test_the_hash_of_a_row_ignores_padding_and_sees_every_live_token():
    tokens = torch.tensor([[1, 2, 3, 9], [8, 1, 2, 3], [1, 2, 4, 9]])
    live = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 0]]).bool()
    one, two, three = row_state(tokens, live, 0).tolist()
    assert one == two != three
    assert row_state(tokens, live, 1)[0] != one


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shuffle(n=0), r"model\.n must be a whole number >= 1, got 0"),
        (lambda: Shuffle(n=63), r"model\.n must be at most 62, got 63"),
        (lambda: ReplaceRandom(n=62), r"model\.n must be at most 61, got 62"),
        (lambda: ReplaceIndex(index=-1), r"model\.index must be a whole number >= 0, got -1"),
        (lambda: Copy(noise=-1.0), r"model\.noise must lie in \[0\.0, 1\.0\], got -1\.0"),
        (lambda: Copy(floor=1.0), r"model\.floor must lie in \[0\.0, 1\.0\), got 1\.0"),
        (lambda: Markov(n=0), r"model\.n must be a whole number >= 1, got 0"),
        (lambda: Markov(initial=()), r"model\.initial must have 1 to 62 entries, got 0"),
        (
            lambda: Markov(transition=((1.0,),)),
            r"model\.transition must have 2 rows of 2 numbers",
        ),
        (
            lambda: Markov(initial=(0.5, 0.6)),
            r"model\.initial must hold probabilities that add up to 1, got",
        ),
        (
            lambda: Markov(transition=((2.0, -1.0), (0.5, 0.5))),
            r"model\.transition must hold probabilities that add up to 1, got",
        ),
        (lambda: Table(outcomes={"a": -1.0}), r"model\.outcomes needs weights >= 0"),
        (lambda: Table(outcomes={}), r"model\.outcomes needs weights >= 0 with a sum above 0"),
        (lambda: Table(outcomes={"a>": 1.0}), r"model\.outcomes must not contain any of"),
        (
            lambda: Markov().tokenizer.encode("xy"),
            "the prompt contains 'x'; this world knows the symbols ab and the separator >",
        ),
        (lambda: Copy().tokenizer.encode_chat([]), "a toy world has no chat template"),
    ],
)
def test_settings_that_make_no_world_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_noise_behind_an_answer_depends_on_no_other_row():
    world = Reverse(n=2)
    short, long = (tuple(world.tokenizer.encode(text)) for text in ("ab", "abcdefghijklmnopqrst"))
    alone = Decoder(world, TopK(1)).decode(Request((short,), 8))
    beside = Decoder(world, TopK(1)).decode(Request((short, long), 8))
    assert alone.rows[0] == beside.rows[0]
