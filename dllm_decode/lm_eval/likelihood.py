"""Log-likelihoods of texts under a masked model."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence

import torch

from dllm_decode.decoding.cache import Plan
from dllm_decode.decoding.denoiser import Denoiser
from dllm_decode.errors import ConfigError, ModelOutputError


def log_likelihood(
    denoiser: Denoiser,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    draws: int = 128,
    batch: int = 16,
    seed: int = 0,
) -> float:
    """The Monte-Carlo estimate of log p(answer | prompt) in nats, as LLaDA defines it.

        E_{k ~ U{1..L}, S ~ subsets of size k}  (L / k) sum_{i in S} log p(answer_i | rest)

    which is the exact log joint for a denoiser with exact conditionals.

    Args:
        denoiser: The model.
        prompt: Token ids in front of the answer, none or more.
        answer: The L token ids that are scored; 0.0 for none.
        draws: Samples of (k, S), k stratified; where there are no more subsets than draws, all of
            them are weighed instead and the result is exact.
        batch: Canvases per forward pass.
        seed: Of the draws.

    Raises:
        ConfigError: For what is longer than the model, see `windows`.
        ModelOutputError: Where the model gives NaN.

    Source: LLaDA, arXiv 2502.09992, appendix B.5. Deviation: the enumeration.
    """
    length = len(answer)
    if length == 0:
        return 0.0
    limit = denoiser.max_length
    if limit is not None and len(prompt) + length > limit:
        raise ConfigError(
            f"context and continuation need {len(prompt) + length} positions, the model has {limit}"
        )
    total = 0.0
    chosen = list(_subsets(length, draws, seed))
    for start in range(0, len(chosen), batch):
        part = chosen[start : start + batch]
        scores = _masked_scores(denoiser, prompt, answer, [places for places, _ in part])
        total += sum(weight * score for (_, weight), score in zip(part, scores, strict=True))
    if math.isnan(total):
        raise ModelOutputError("the model gave NaN for a log-likelihood")
    return total


def windows(
    prompt: Sequence[int], answer: Sequence[int], limit: int | None
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Context and answer cut to what a model takes: (context, part of the answer) per pass.

    The context loses its beginning. An answer that is longer than the model is scored part by part,
    each token once: parts as long as the model without context, then what is left with as much in
    front of it as fits.

    Args:
        prompt: Token ids of the context.
        answer: Token ids that are scored.
        limit: Positions of the model, None for no limit.

    >>> windows([1, 2], [3, 4, 5, 6, 7], 3)
    [([], [3, 4, 5]), ([5], [6, 7])]
    """
    if limit is None or len(prompt) + len(answer) <= limit:
        return [(prompt, answer)]
    whole = [*prompt, *answer]
    found: list[tuple[Sequence[int], Sequence[int]]] = []
    start = len(prompt)
    while start < len(whole):
        end = min(start + limit, len(whole))
        found.append((whole[max(0, end - limit) : start], whole[start:end]))
        start = end
    return found


def _subsets(length: int, draws: int, seed: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Masked places and the weight of their sum of log-probabilities; weights include 1 / draws."""
    if 2**length - 1 <= draws:
        for size in range(1, length + 1):
            for places in itertools.combinations(range(length), size):
                # 1/L for the size, one of so many subsets, L/k from the estimator
                yield places, 1 / (math.comb(length, size) * size)
        return
    draw = random.Random(seed)
    offset = draw.random()
    for number in range(draws):
        size = 1 + int(length * ((number + offset) / draws % 1.0))
        yield tuple(sorted(draw.sample(range(length), size))), length / size / draws


@torch.no_grad()
def _masked_scores(
    denoiser: Denoiser,
    prompt: Sequence[int],
    answer: Sequence[int],
    masked: Sequence[tuple[int, ...]],
) -> list[float]:
    """Sum of log p(answer_i | rest) over the masked places of each canvas."""
    start, device = len(prompt), denoiser.device
    tokens = torch.tensor([*prompt, *answer], device=device).repeat(len(masked), 1)
    width = max(map(len, masked))
    index = torch.full((len(masked), width), -1, device=device)
    for row, places in enumerate(masked):
        columns = torch.tensor(places, device=device) + start
        tokens[row, columns] = denoiser.vocab.mask_id
        index[row, : len(places)] = columns
    live = torch.ones_like(tokens, dtype=torch.bool)
    logits = denoiser(tokens, live, index, Plan()).double()
    logits[..., denoiser.vocab.mask_id] = -torch.inf
    truth = torch.tensor([*prompt, *answer], device=device)[index.clamp(min=0)]
    scores = logits.log_softmax(-1).gather(-1, truth[..., None])[..., 0]
    sums: list[float] = torch.where(index >= 0, scores, 0.0).sum(1).tolist()
    return sums
