"""Exact match during training, by a small decoder of its own.

The package's decoder is what figures in tables come from; this one only follows the training and
needs nothing but a network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_decode.evaluation.problems import FAMILIES, Problem, problems
from dllm_decode.pretraining.batches import BLOCK, Encoder
from dllm_decode.pretraining.network import Network
from dllm_decode.pretraining.tokenizer import vocabulary

_THRESHOLD = 0.95


@torch.no_grad()
def exact_match(
    network: Network, family: str, count: int, seed: int, device: torch.device
) -> float:
    """Share of held-out problems solved, decoding in blocks with a confidence threshold.

    count: problems; seed: of the problems. Several tokens per step where the model is sure of
    them, so the share can lie a little below that of one token per step.
    """
    asked = problems(family, "held_out", count, seed)
    answers = decode(network, asked, FAMILIES[family].canvas, device)
    right = [FAMILIES[family].grade(p, a) for p, a in zip(asked, answers, strict=True)]
    return sum(right) / len(right)


@torch.no_grad()
def decode(
    network: Network,
    asked: list[Problem],
    canvas: int,
    device: torch.device,
    threshold: float = _THRESHOLD,
    most: int = 0,
) -> list[str]:
    """Answers to problems, each decoded with those of the same prompt length.

    canvas: slots; threshold: confidence from which tokens are committed, beside the best one;
    most: if not 0, this many best tokens are committed in each step instead.
    """
    encoder = Encoder()
    texts: dict[int, str] = {}
    prompts = [encoder.prompt(problem.prompt) for problem in asked]
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
        shown = torch.tensor([prompts[row] for row in rows], device=device)
        masks = torch.full((len(rows), canvas), encoder.mask, device=device)
        done = _unmask(network, torch.cat([shown, masks], 1), length, encoder, threshold, most)
        for row, ids in zip(rows, done[:, length:].tolist(), strict=True):
            end = ids.index(encoder.eot) if encoder.eot in ids else len(ids)
            texts[row] = _text(ids[:end])
    return [texts[row] for row in range(len(asked))]


def _unmask(
    network: Network, tokens: Tensor, start: int, encoder: Encoder, threshold: float, most: int
) -> Tensor:
    """Fill all masks, block after block."""
    for left in range(start, tokens.shape[1], BLOCK):
        block = slice(left, min(left + BLOCK, tokens.shape[1]))
        while (open_ := tokens[:, block] == encoder.mask).any():
            with torch.autocast(tokens.device.type, torch.bfloat16):
                logits = network(tokens)[:, block].float()
            logits[..., encoder.mask] = -torch.inf
            confidence, best = logits.softmax(-1).max(-1)
            confidence = torch.where(open_, confidence, -1.0)
            if most:
                kth = confidence.topk(min(most, confidence.shape[1])).values[:, -1:]
                commit = (confidence >= kth) & open_
            else:
                top = confidence == confidence.max(-1, keepdim=True).values
                commit = ((confidence >= threshold) | top) & open_
            tokens[:, block] = torch.where(commit, best, tokens[:, block])
        ended = (tokens[:, : block.stop] == encoder.eot).any(1)
        if bool(ended.all()):  # nothing behind an end of text matters
            tokens[:, block.stop :] = encoder.eot
            break
    return tokens


_TOKENS = list(vocabulary())


def _text(ids: list[int]) -> str:
    """Plain text of known words; enough for grading."""
    return "".join(_TOKENS[token].replace("Ġ", " ") for token in ids)
