"""Two processes that share a model give the tokens of one; started by torchrun on the CPU.

The second one computes something else on purpose: both take the states of the first, and each the
statistics of its own part of the vocabulary.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Pipeline
from dllm_decode.decoding.types import Request
from dllm_decode.models import load_model
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.threshold import ConfidenceThreshold

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"
OPTIONS = {
    "llada": {},
    "dream": {},
    "lladamoe": {"mask_id": 197},
    "llada2": {"mask_id": 213, "block_length": 8},
}


def decode(family, **options):
    """Tokens and forwards of a small batch."""
    options = {"device": "cpu", "dtype": "float32"} | OPTIONS[family] | options
    loaded = load_model(str(GOLDEN / family), **options)
    prompts = ((5, 9, 14, 3), (77, 20, 31, 8, 41, 12, 60), (2,))
    strategy = Pipeline(ConfidenceThreshold(0.3), transforms={"credit": TraceCredit()})
    decoder = Decoder(loaded.denoiser, strategy, Blocks(8))
    gathered = []
    model = loaded.denoiser.model
    if os.environ.get("RANK") == "1":  # as if this device had rounded otherwise
        model.model.norm.weight.data *= 1.2
    if "tensor_parallel" in options:
        model.get_output_embeddings().register_forward_hook(lambda *_: gathered.append(1))
    result = decoder.decode(Request(prompts, 20))
    assert not gathered, "each process looks at its own part of the logits"
    return [list(map(list, result.sequences)), list(result.forwards)]


@pytest.mark.parametrize("family", OPTIONS)
def test_two_ranks_give_the_tokens_of_one_process(family, tmp_path):
    pytest.importorskip("accelerate")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*command, __file__, family, str(tmp_path)],
        check=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1] == decode(family)


@pytest.mark.parametrize("family", ["llada", "llada2"])
def test_a_device_map_gives_the_tokens_of_one_device(family):
    pytest.importorskip("accelerate")
    assert decode(family, device_map="auto") == decode(family)


if __name__ == "__main__":
    _, name, target = sys.argv
    outcome = json.dumps(decode(name, tensor_parallel=2))
    Path(target, f"{os.environ['RANK']}.json").write_text(outcome)
