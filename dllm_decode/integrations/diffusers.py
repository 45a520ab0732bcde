"""A strategy as a scheduler of diffusers, for its pipelines that refine blocks of text.

    pipe = LLaDA2Pipeline(model=model, scheduler=StrategyScheduler("credit"), tokenizer=tokenizer)
    pipe(prompt, gen_length=128, temperature=0.0)

The pipeline runs the model and owns the text; the scheduler says what is written in the block. What
a strategy remembers goes on from step to step, and ends with the block.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_block_refinement import (
    BlockRefinementScheduler,
    BlockRefinementSchedulerOutput,
)
from torch import Tensor

from dllm_decode.decoding.returned import kind_of
from dllm_decode.decoding.sampling import Categorical
from dllm_decode.errors import ConfigError, require, require_choice
from dllm_decode.integrations.hosted import HostedBlock, HostedStrategy, ids_of

# What the pipeline passes in every step without anybody having asked for it.
_RULE_OF_DIFFUSERS = {"threshold": 0.7, "editing_threshold": 0.5, "minimal_topk": 1}


class StrategyScheduler(BlockRefinementScheduler):  # type: ignore[misc]
    """Any strategy that needs nothing of the model but logits.

    Args:
        strategy: the name of an option.
        overrides: its settings, as on the command line, e.g. `["strategy.select.threshold=0.8"]`.
        sampler: the name of an option; what `step` is given (`temperature` and so on) replaces it.
        eos_token_id: ids that end a text, for stop rules; one or several.
        banned_token_ids: ids that are never generated.
        block_length: columns of a block.
        num_inference_steps: without a meaning here: a block ends when it is decided.

    Raises:
        CapabilityError: for strategies that need more of the model than diffusers gives.
        ConfigError: for names and settings that are not known.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        strategy: str = "credit",
        overrides: Sequence[str] = (),
        sampler: str = "greedy",
        eos_token_id: int | Sequence[int] | None = None,
        banned_token_ids: Sequence[int] | None = None,
        block_length: int = 32,
        num_inference_steps: int = 32,
    ) -> None:
        super().__init__(block_length=block_length, num_inference_steps=num_inference_steps)
        self._block: HostedBlock | None = None
        self._rules: HostedStrategy | None = None
        self._said = False
        self._ids = {
            "eos_ids": ids_of("eos_token_id", eos_token_id),
            "banned_ids": ids_of("banned_token_ids", banned_token_ids),
        }
        # everything but the mask is known now, and refused now
        self._with_mask(max((0, *self._ids["eos_ids"], *self._ids["banned_ids"])) + 1).rehearse(
            block_length
        )

    def _with_mask(self, mask_id: int) -> HostedStrategy:
        """The strategy for a model with this mask."""
        own = self.config
        return HostedStrategy.of(
            own.strategy,
            mask_id=mask_id,
            **self._ids,
            sampler=own.sampler,
            overrides=tuple(own.overrides),
            host="diffusers",
        )

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        mask_token_id: int | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        sampling_method: str = "auto",
        threshold: float | None = None,
        editing_threshold: float | None = None,
        minimal_topk: int | None = None,
        prompt_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> BlockRefinementSchedulerOutput | tuple[Tensor, ...]:
        """One step of the block.

        Args:
            model_output: (B, W, V) logits of the block.
            timestep: which step of the block; 0 begins a new one.
            sample: (B, W) ids, the mask where a column is undecided.
            mask_token_id: of the model.
            temperature: of the sampling of proposed tokens; 0 takes the sampler of the scheduler.
            top_p: share of the probability that may be drawn from.
            top_k: number of tokens that may be drawn from.
            sampling_method: `greedy` proposes the likeliest token whatever the temperature.
            threshold: of diffusers' own rule; has no effect here, and other values than its
                pipeline's defaults are said to have none.
            editing_threshold: likewise.
            minimal_topk: likewise.
            prompt_mask: (W,) or (B, W) bool, columns that are never written to.
            generator: gives the seeds of a block.
            return_dict: False for a tuple.

        Returns:
            As diffusers' scheduler; `editing_transfer_index` are tokens written over or masked
            again.

        Raises:
            ConfigError: without a mask, and for tensors of another kind or shape.
        """
        require(
            mask_token_id is not None,
            "mask_token_id must be given: blocks that begin as random tokens are not decoded here",
        )
        _check_tensors(model_output, sample, prompt_mask)
        rule = (threshold, editing_threshold, minimal_topk)
        self._say_unused(dict(zip(_RULE_OF_DIFFUSERS, rule, strict=True)))
        require_choice("sampling_method", sampling_method, ("auto", "greedy", "multinomial"))
        block = self._block
        if int(timestep) == 0 or block is None or block.tokens.shape != sample.shape:
            greedy = temperature == 0 or sampling_method == "greedy"
            share = 1.0 if top_p is None else top_p
            sampler = None if greedy else Categorical(temperature, top_k=top_k or 0, top_p=share)
            rules = self._for_mask(int(mask_token_id or 0))
            prompt = None if prompt_mask is None else prompt_mask.bool().expand_as(sample)
            seed = _seed(generator)
            block = rules.begin(sample, model_output.shape[-1], prompt, seed, sampler)
            self._block = block
        made = block.step(model_output)
        values = {
            "prev_sample": block.tokens,
            "transfer_index": made.commit,
            "editing_transfer_index": made.revised,
            "sampled_tokens": made.tokens,
            "sampled_probs": made.confidence,
            "pred_logits": model_output,
        }
        return BlockRefinementSchedulerOutput(**values) if return_dict else tuple(values.values())

    def _for_mask(self, mask_id: int) -> HostedStrategy:
        """The strategy for a model with this mask, built once."""
        if self._rules is None or self._rules.mask_id != mask_id:
            self._rules = self._with_mask(mask_id)
        return self._rules

    def _say_unused(self, given: dict[str, Any]) -> None:
        """Warn once of settings of diffusers' rule that somebody has chosen."""
        chosen = [f"{k}={v}" for k, v in given.items() if v not in (None, _RULE_OF_DIFFUSERS[k])]
        if chosen and not self._said:
            self._said = True
            warnings.warn(
                f"{', '.join(chosen)} belongs to diffusers' own rule and has no effect; the "
                "strategy's settings are given to StrategyScheduler, e.g. "
                "overrides=['strategy.select.threshold=0.9']",
                UserWarning,
                stacklevel=3,
            )

    def check_block_should_continue(
        self,
        step_idx: int,
        masks_remaining: bool,
        editing_enabled: bool,
        editing_transfer_index: Tensor,
        post_steps: int,
        max_post_steps: int,
        finished: Tensor,
    ) -> bool:
        """Whether a row of the block has anything left to decide; asked by the pipeline."""
        if self._block is None:
            raise ConfigError("no block has been begun: call step with timestep 0 first")
        return not (bool(finished.all()) or all(self._block.done))


def _check_tensors(logits: Any, sample: Any, prompt_mask: Any) -> None:
    """Raise `ConfigError` for tensors of a step that do not belong to one block."""
    if not isinstance(sample, Tensor) or sample.dim() != 2:
        raise ConfigError(
            f"sample must be a tensor of token ids of shape (B, W), got {kind_of(sample)}"
        )
    rows, width = sample.shape
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != sample.shape:
        raise ConfigError(
            f"model_output must be logits of the sample's columns, a tensor of shape ({rows}, "
            f"{width}, V), got {kind_of(logits)}"
        )
    shapes = ((width,), (rows, width))
    if prompt_mask is not None and (
        not isinstance(prompt_mask, Tensor) or prompt_mask.shape not in shapes
    ):
        raise ConfigError(
            f"prompt_mask must be a tensor of flags of shape {shapes[0]} or {shapes[1]}, or None, "
            f"got {kind_of(prompt_mask)}"
        )


def _seed(generator: torch.Generator | None) -> int:
    """Of a block, from the pipeline's random numbers."""
    device = None if generator is None else generator.device
    return int(torch.randint(2**62, (1,), generator=generator, device=device))
