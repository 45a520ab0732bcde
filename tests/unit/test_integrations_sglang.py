"""A strategy inside SGLang: its own classes, from its wheel, around a model without weights.

SGLang itself imports a server; what an algorithm needs of it stands in two folders, whose other
imports are names in annotations and are stubbed here.
"""

import logging
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dllm_decode.api import parts_from
from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.types import Request
from dllm_decode.errors import CapabilityError, ConfigError
from dllm_decode.models.toy import Shuffle

WHERE = find_spec("sglang")
pytestmark = pytest.mark.skipif(WHERE is None, reason="needs pip install --no-deps sglang")

WIDTH = 8
STUBS = {
    "sglang.srt.layers.logits_processor": ("LogitsProcessorOutput",),
    "sglang.srt.model_executor.forward_batch_info": ("ForwardBatch",),
    "sglang.srt.model_executor.model_runner": ("ModelRunner",),
    "sglang.srt.configs.model_config": ("ModelConfig",),
    "sglang.srt.server_args": ("ServerArgs",),
    "sglang.srt.arg_groups.overrides": ("resolving_view",),
    "sglang.srt.utils": ("is_npu",),
}


@pytest.fixture(scope="module")
def sglang():
    """The real `sglang.srt.dllm`, with our algorithm in its list."""
    known = set(sys.modules)
    root = Path(WHERE.origin).parent
    for name, folder in (("sglang", root), ("sglang.srt", root / "srt")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    for name, words in STUBS.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(dict.fromkeys(words, lambda *given: False))
    logging.disable(logging.WARNING)  # algorithms for other models need more than is stubbed
    from sglang.srt.dllm import algorithm, config

    from dllm_decode.integrations import sglang as ours

    logging.disable(logging.NOTSET)
    ours.register()
    yield SimpleNamespace(get=algorithm.get_algorithm, Config=config.DllmConfig)
    for name in set(sys.modules) - known:
        if name.startswith(("sglang", "dllm_decode.integrations.sglang")):
            del sys.modules[name]


def made(sglang, fdfo=False, **settings):
    world = Shuffle(n=4)
    settings = {"eos_token_id": list(world.vocab.eot_ids), **settings}
    config = sglang.Config(
        "DllmDecode", settings, WIDTH, world.vocab.mask_id, 4, first_done_first_out_mode=fdfo
    )
    return world, sglang.get(config)


class Runner:
    """SGLang's model runner, as far as an algorithm calls it: prompts, blocks, exact logits."""

    def __init__(self, world, prompts):
        self.world, self.prompts, self.passes = world, prompts, 0

    def forward(self, batch, pp_proxy_tensors=None):
        self.passes += 1
        rows = []
        for prompt, block in zip(self.prompts, batch.input_ids.view(-1, WIDTH), strict=True):
            tokens = torch.cat([torch.tensor(prompt), block])[None]
            index = torch.arange(len(prompt), tokens.shape[1])[None]
            rows.append(self.world(tokens, torch.ones_like(tokens).bool(), index, Plan())[0])
        output = SimpleNamespace(full_logits=torch.cat(rows))
        return SimpleNamespace(logits_output=output, can_run_graph=False)


def batch_of(world, prompts, heads):
    """A block per request; the end of a prompt may stand at the head of its block."""
    mask = world.vocab.mask_id
    ids = [*heads, *[()] * (len(prompts) - len(heads))]
    lines = [[*head, *[mask] * (WIDTH - len(head))] for head in ids]
    return SimpleNamespace(
        batch_size=len(prompts), input_ids=torch.tensor(lines).view(-1), dllm_prompt_mask=None
    )


def served(algorithm, world, prompts, heads=()):
    """The blocks that SGLang's own loop makes of them, and the passes of each."""
    batch, runner = batch_of(world, prompts, heads), Runner(world, prompts)
    if not algorithm.fdfo:
        _, blocks, *_ = algorithm.run(runner, batch)
        return [block.tolist() for block in blocks], runner.passes
    states, done = [None] * len(prompts), {}
    for _ in range(algorithm.max_steps(WIDTH)):
        _, ids, accepted, states, _ = algorithm.run(runner, batch, states)
        for row, count in enumerate(accepted):
            if count and row not in done:
                done[row] = ids[row]
        if len(done) == len(prompts):
            break
    return [done[row] for row in range(len(prompts))], runner.passes


def prompts_of(world):
    return [tuple(world.tokenizer.encode(text)) for text in ("abcd>", "dbac>")]


@pytest.mark.parametrize("fdfo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    ["credit", *(pytest.param(n, marks=pytest.mark.slow) for n in ("klass", "joint_threshold"))],
)
def test_a_block_is_decoded_as_by_our_own_loop(sglang, name, fdfo):
    world, algorithm = made(sglang, fdfo, strategy=name)
    prompts = prompts_of(world)
    blocks, passes = served(algorithm, world, prompts)
    own = Decoder(world, parts_from({"strategy": name})["strategy"], Blocks(WIDTH, "prompt"))
    result = own.decode(Request(tuple(prompts), WIDTH))
    end = world.vocab.filler
    assert blocks == [[*row.tokens, *[end] * (WIDTH - len(row.tokens))] for row in result]
    if not fdfo:  # one more pass stores the keys and values of what was decided last
        assert passes == max(result.forwards) + 1


def test_the_end_of_a_prompt_in_the_block_is_left_alone_and_rows_may_begin_anywhere(sglang):
    world, algorithm = made(sglang, strategy="threshold")
    long, short = prompts_of(world)
    batch = batch_of(world, [long[:2], short], [long[2:]])
    algorithm.run(Runner(world, [long[:2], short]), batch)
    first, second = batch.input_ids.view(2, WIDTH).tolist()
    assert first[:3] == list(long[2:])
    assert world.vocab.mask_id not in first + second
    whole = Decoder(world, parts_from({"strategy": "threshold"})["strategy"], Blocks(WIDTH))
    own = whole.decode(Request((long, short), (WIDTH - 3, WIDTH)))
    assert first[3 : 3 + len(own[0].tokens)] == list(own[0].tokens)
    assert second[: len(own[1].tokens)] == list(own[1].tokens)


@pytest.mark.slow
def test_a_block_of_prompt_alone_and_a_mask_that_belongs_to_a_prompt_are_not_written(sglang):
    world, algorithm = made(sglang, strategy="threshold")
    prompts = prompts_of(world)
    mask, letter = world.vocab.mask_id, prompts[0][0]
    batch = batch_of(world, prompts, [[letter] * WIDTH, [letter, mask, letter]])
    batch.dllm_prompt_mask = torch.tensor([[True] * WIDTH, [True] * 3 + [False] * (WIDTH - 3)])
    before = batch.input_ids.clone().view(2, WIDTH)
    algorithm.run(Runner(world, prompts), batch)
    after = batch.input_ids.view(2, WIDTH)
    assert after[0].tolist() == before[0].tolist()
    assert after[1, :3].tolist() == [letter, mask, letter]
    assert mask not in after[1, 3:].tolist()


@pytest.mark.slow
def test_seeds_go_on_from_block_to_block(sglang):
    world, algorithm = made(
        sglang, strategy="random", sampler="categorical", overrides=["sampler.temperature=3"]
    )
    prompts = prompts_of(world)[:1]
    drawn = {str(served(algorithm, world, prompts)[0]) for _ in range(4)}
    assert len(drawn) > 1


@pytest.mark.one_in(10)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "freedave"}, r"strategy.select \(FreeDave\) asks the model again .* SGLang"),
        ({"strategy": "wino"}, r"strategy.select \(Wino\) asks the model again"),
        ({"strategy": "oracle"}, "reference"),
        ({"strategy": "learn2pd"}, "was made for blocks of 32 columns"),
        ({"strategy": "credit", "eos_token_id": None}, "give eos_token_id"),
        ({"treshold": 0.9}, "treshold"),
        ({"overrides": "strategy.select.threshold=0.8"}, "overrides must be a list"),
        ({"overrides": ["strategy.select.threshold=8"]}, "strategy.select.threshold"),
        ({"eos_token_id": "end"}, "eos_token_id must be a token id or a list"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_sglang_cannot_carry_is_refused_by_name_before_it_serves(sglang, settings, message):
    with pytest.raises((CapabilityError, ConfigError), match=message):
        made(sglang, **settings)
