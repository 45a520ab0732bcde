"""A strategy inside SGLang: an algorithm for its `--dllm-algorithm`.

SGLang finds it by itself where both are installed (entry point `sglang.srt.plugins`). It runs the
model and keeps its keys and values; the strategy says what is written in the block. What a strategy
remembers goes on from step to step and ends with the block, as the states of SGLang's own
algorithms do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.dllm import algorithm as algorithms
from sglang.srt.dllm.algorithm.base import DllmAlgorithm
from torch import Tensor

from dllm_decode.errors import require, require_choice, require_count
from dllm_decode.integrations.hosted import HostedBlock, HostedStrategy, ids_of

SETTINGS = ("strategy", "overrides", "sampler", "eos_token_id", "banned_token_ids", "seed")
_OF_SGLANG = ("block_size", "capture_input_preparation")


@dataclass
class BlockState:
    """What is carried from step to step.

    Attributes:
        prompt: (B, W) bool, columns that are never written to.
        block: the rows; None before their first step.
    """

    prompt: Tensor
    block: HostedBlock | None = None


class DllmDecode(DllmAlgorithm):  # type: ignore[misc]
    """Any strategy that needs nothing of the model but logits.

    Args:
        config: SGLang's. The YAML file of `--dllm-algorithm-config` holds `strategy` (the name of
            an option, default `credit`), `overrides` (a list, as on the command line), `sampler`
            (default `greedy`), `eos_token_id` (one or several), `banned_token_ids`, and `seed` of a
            sampler (default 0), beside SGLang's own `block_size`.

    Raises:
        CapabilityError: for strategies that need more of the model than SGLang gives.
        ConfigError: for settings that are not known or out of range.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        given = dict(config.algorithm_config or {})
        for name in given:
            require_choice("a key of --dllm-algorithm-config", name, (*SETTINGS, *_OF_SGLANG))
        overrides = given.get("overrides") or ()
        require(
            isinstance(overrides, list | tuple),
            f"overrides must be a list like [strategy.select.threshold=0.8], got {overrides!r}",
        )
        self._next_seed = given.get("seed", 0)
        require_count("seed", self._next_seed, minimum=0)
        indel = (getattr(config, "delete_token_id", None), getattr(config, "split_token_id", None))
        self.rules = HostedStrategy.of(
            given.get("strategy", "credit"),
            mask_id=config.mask_id,
            eos_ids=ids_of("eos_token_id", given.get("eos_token_id")),
            banned_ids=(
                *ids_of("banned_token_ids", given.get("banned_token_ids")),
                *(token for token in indel if token is not None),
            ),
            sampler=given.get("sampler", "greedy"),
            overrides=overrides,
            host="SGLang",
        )
        self.rules.rehearse(self.block_size)

    def max_steps(self, block_size: int) -> int:
        """Steps after which a block is decided at the latest, and one that stores its tokens."""
        return self.rules.most_steps(block_size) + 1

    def init_step_state(self, forward_batch: Any) -> list[Any]:
        """A state per request; all requests share one where they start and end together."""
        prompt = self._prompt_mask(forward_batch)
        if not self.fdfo:
            return [BlockState(prompt)] * len(prompt)
        return [BlockState(row) for row in prompt.split(1)]

    def step(self, forward_batch: Any, full_logits: Tensor, states: list[Any]) -> list[bool]:
        """One step: the block is written in place.

        Args:
            forward_batch: SGLang's; `input_ids` holds the blocks.
            full_logits: (B W, V).
            states: what `init_step_state` gave, or the step before.

        Returns:
            Which blocks were decided already when this pass ran, so that its keys and values are
            those of their final tokens.
        """
        size = forward_batch.batch_size
        ids = forward_batch.input_ids.view(size, self.block_size)
        logits = full_logits.view(size, self.block_size, -1)
        done: list[bool] = []
        while len(done) < size:
            state = states[len(done)]
            rows = slice(len(done), len(done) + len(state.prompt))
            done += self._advance(state, ids[rows], logits[rows])
        return done

    def _advance(self, state: BlockState, ids: Tensor, logits: Tensor) -> tuple[bool, ...]:
        """One step of the rows of a state, written to their ids; which were done before."""
        if state.block is None:
            seed, self._next_seed = self._next_seed, self._next_seed + len(ids)
            state.block = self.rules.begin(ids, logits.shape[-1], state.prompt, seed)
        before = state.block.done
        if not all(before):
            with torch.inference_mode():
                state.block.step(logits)
            ids.copy_(state.block.tokens)
        return before


def register() -> None:
    """Make the algorithm known to SGLang under the name `DllmDecode`."""
    algorithms.algo_name_to_cls[DllmDecode.__name__] = DllmDecode
