"""A strategy as a scheduler of diffusers: its own base class, and its own pipeline."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dllm_decode.api import parts_from
from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.types import Request
from dllm_decode.errors import CapabilityError, ConfigError
from dllm_decode.models.toy import Shuffle


@pytest.fixture(scope="module", autouse=True)
def diffusers():
    return pytest.importorskip("diffusers", reason="needs pip install 'dllm_decode[diffusers]'")


pytestmark = pytest.mark.slow  # diffusers takes seconds to import
WIDTH = 8


@pytest.fixture(scope="module")
def Scheduler():
    from dllm_decode.integrations.diffusers import StrategyScheduler

    return StrategyScheduler


@pytest.fixture(scope="module")
def world():
    return Shuffle(n=4)


class Model(torch.nn.Module):
    """The exact model behind the call that diffusers' pipeline makes."""

    def __init__(self, world):
        super().__init__()
        self.world, self.passes = world, 0

    def forward(self, ids, attention_mask=None, position_ids=None):
        self.passes += 1
        index = torch.arange(ids.shape[1]).expand_as(ids)
        return SimpleNamespace(logits=self.world(ids, torch.ones_like(ids).bool(), index, Plan()))


def blocks_of(scheduler, world, prompt, rows=1, **step):
    """What the pipeline's inner loop does with a block behind a prompt."""
    tokens = torch.tensor([[*prompt, *[world.vocab.mask_id] * WIDTH]]).repeat(rows, 1)
    model, index, passes, going = Model(world), 0, 0, True
    while going:
        block = tokens[:, -WIDTH:]
        made = scheduler.step(model(tokens).logits[:, -WIDTH:], index, block,
                              mask_token_id=world.vocab.mask_id, **step)  # fmt: skip
        moved = made.transfer_index | made.editing_transfer_index
        tokens = torch.cat([tokens[:, :-WIDTH], torch.where(moved, made.prev_sample, block)], 1)
        index, passes = index + 1, passes + 1
        none = torch.zeros(rows, dtype=torch.bool)
        going = scheduler.check_block_should_continue(
            index, True, False, made.editing_transfer_index, 0, 16, none
        )
    return tokens[:, -WIDTH:], passes, made


@pytest.mark.parametrize("name", ["threshold", "credit", "joint_threshold", "rcr"])
def test_a_block_is_decoded_as_by_our_own_loop(Scheduler, world, name):
    prompt = tuple(world.tokenizer.encode("dbac>"))
    ends = list(world.vocab.eot_ids)
    tokens, passes, made = blocks_of(Scheduler(name, eos_token_id=ends), world, prompt)
    own = Decoder(world, parts_from({"strategy": name})["strategy"], Blocks(WIDTH, "prompt"))
    row = own.decode(Request((prompt,), WIDTH))[0]
    assert tokens[0].tolist() == [*row.tokens, *[ends[0]] * (WIDTH - len(row.tokens))]
    assert passes == row.forwards
    assert made.sampled_probs.shape == made.transfer_index.shape == (1, WIDTH)


def test_diffusers_own_pipeline_decodes_with_it(Scheduler, world):
    from diffusers import LLaDA2Pipeline

    model, end = Model(world), world.vocab.eot_ids[0]
    model.device, model.dtype = torch.device("cpu"), torch.float32
    prompt = tuple(world.tokenizer.encode("dbac>"))
    width = len(prompt)  # the prompt fills a block, what is generated the next
    scheduler = Scheduler("threshold", eos_token_id=end, block_length=width)
    pipe = LLaDA2Pipeline(model=model, scheduler=scheduler, tokenizer=None)
    pipe.set_progress_bar_config(disable=True)
    sequences = pipe(
        input_ids=torch.tensor([prompt] * 2), gen_length=width, block_length=width,
        num_inference_steps=2, mask_token_id=world.vocab.mask_id, eos_token_id=end,
        output_type="seq",
    ).sequences  # fmt: skip
    own = Decoder(world, parts_from({"strategy": "threshold"})["strategy"], Blocks(width, "prompt"))
    row = own.decode(Request((prompt,), width))[0]
    assert model.passes == row.forwards > 2, "the block outlasts num_inference_steps"
    for line in sequences.tolist():
        assert line[: len(row.tokens)] == list(row.tokens)
        assert world.vocab.mask_id not in line


def test_a_generator_gives_the_same_tokens_again_and_others_differ(Scheduler, world):
    scheduler = Scheduler("random", eos_token_id=list(world.vocab.eot_ids))
    prompt = tuple(world.tokenizer.encode("dbac>"))

    def drawn(seed):
        source = torch.Generator().manual_seed(seed)
        return blocks_of(scheduler, world, prompt, temperature=2.0, generator=source)[0].tolist()

    assert drawn(1) == drawn(1)
    assert len({str(drawn(seed)) for seed in range(5)}) > 1


def test_columns_of_the_prompt_stay_and_the_configuration_is_saved(Scheduler, world, tmp_path):
    overrides = ["strategy.select.threshold=0.8"]
    Scheduler("threshold", overrides, eos_token_id=7).save_pretrained(tmp_path)
    again = Scheduler.from_pretrained(tmp_path)
    assert list(again.config.overrides) == overrides and again.config.eos_token_id == 7
    mask = world.vocab.mask_id
    sample = torch.tensor([[mask, 3, mask, mask]])
    logits = torch.zeros(1, 4, world.vocab.size)
    given = torch.tensor([True, True, False, False])
    made = again.step(logits, 0, sample, mask_token_id=mask, prompt_mask=given, return_dict=False)
    assert made[0][0, :2].tolist() == [mask, 3] and made[1][0, 2:].any()
    assert not made[1][0, :2].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"strategy": "freedave", "eos_token_id": 1},
            r"strategy.select \(FreeDave\) asks the model again .*diffusers",
        ),
        ({"strategy": "threshold"}, "give eos_token_id"),
        ({"strategy": "credt", "eos_token_id": 1}, "credt"),
        ({"eos_token_id": [True]}, "eos_token_id must be a token id"),
    ],
)
def test_what_diffusers_cannot_carry_is_refused_when_the_scheduler_is_made(
    Scheduler, settings, message
):
    with pytest.raises((CapabilityError, ConfigError), match=message):
        Scheduler(**settings)


def test_settings_of_diffusers_own_rule_are_said_to_have_no_effect_and_a_mask_is_needed(Scheduler):
    scheduler = Scheduler(eos_token_id=1)
    sample, logits = torch.tensor([[5, 5]]), torch.zeros(1, 2, 9)
    with pytest.warns(UserWarning, match=r"threshold=0.9 belongs to diffusers' own rule"):
        scheduler.step(logits, 0, sample, mask_token_id=5, threshold=0.9, editing_threshold=0.5)
    with pytest.raises(ConfigError, match="mask_token_id must be given"):
        scheduler.step(logits, 0, sample)
    with pytest.raises(ConfigError, match="no block has been begun"):
        Scheduler(eos_token_id=1).check_block_should_continue(0, True, False, sample, 0, 0, sample)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"model_output": torch.zeros(1, 2, 5)},
            r"model_output must be .* \(1, 3, V\), got .*2, 5",
        ),
        ({"model_output": None}, r"model_output must be logits .*, got None"),
        ({"sample": np.full((1, 3), 4)}, "sample must be a tensor of token ids .*, got a ndarray"),
        ({"sample": torch.full((3,), 4)}, r"sample must be .* \(B, W\), got a tensor .* \(3,\)"),
        ({"prompt_mask": torch.ones(2) > 0}, r"prompt_mask must be .* \(3,\) or \(1, 3\), or None"),
        ({"prompt_mask": [True] * 3}, r"prompt_mask must be a tensor of flags .*, got a list"),
    ],
)
def test_tensors_that_do_not_belong_to_one_block_are_refused(Scheduler, given, message):
    own = {"model_output": torch.zeros(1, 3, 5), "sample": torch.full((1, 3), 4)}
    with pytest.raises(ConfigError, match=f"^{message}"):
        Scheduler("threshold", eos_token_id=0).step(**own | given, timestep=0, mask_token_id=4)


@pytest.mark.parametrize("group", ["strategy", "sampler"])
def test_a_part_that_is_none_is_refused(Scheduler, group):
    with pytest.raises(ConfigError, match=f"^{group} must be an option's name .*, got None"):
        Scheduler(**{group: None}, eos_token_id=0)
