"""One decoding step of a model of a given size: random weights, real work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.types import Request, Vocab
from dllm_decode.models.adapter import TransformersDenoiser
from dllm_decode.models.blueprint import import_class, make_config
from dllm_decode.models.compiled import CompiledBody
from dllm_decode.models.loaded import Description, LoadedModel
from dllm_decode.models.placement import DTYPES
from dllm_decode.models.spec import SPECS
from dllm_decode.models.text import CheckpointTokenizer


@dataclass(frozen=True)
class Size:
    """Numbers that make a model of LLaDA's family.

    Attributes:
        vocabulary: Token ids.
        width: Of the hidden states.
        inner: Width of the feed-forward layers.
        layers: Number of blocks.
        heads: Attention heads of a block.
        positions: The longest sequence.

    Examples:
        >>> Size(vocabulary=100, width=8, inner=16, layers=2, heads=2, positions=64).parameters
        2880
    """

    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    positions: int

    @property
    def parameters(self) -> int:
        """Number of weights, those of norms left out."""
        block = 4 * self.width**2 + 3 * self.width * self.inner
        return 2 * self.vocabulary * self.width + self.layers * block


def random_model(
    size: Size, dtype: str, device: torch.device, compile: str | None = None
) -> LoadedModel:
    """A LLaDA model with random weights, made on the device; it has no tokenizer.

    Args:
        size: Of the model.
        dtype: `float32`, `bfloat16` or `float16`.
        device: Where it is made.
        compile: A mode of torch.compile, see `load_model`; None for no compilation.
    """
    spec = SPECS["LLaDAModelLM"]
    config = make_config(
        spec,
        {
            "vocab_size": size.vocabulary,
            "hidden_size": size.width,
            "intermediate_size": size.inner,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads,
            "max_position_embeddings": size.positions,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "rope_full_precision": True,
            "tie_word_embeddings": False,
        },
    )
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        model = import_class(spec.model_class)._from_config(
            config, dtype=DTYPES[dtype], attn_implementation="sdpa"
        )
    denoiser = TransformersDenoiser(
        model=model.eval(),
        vocab=Vocab(size.vocabulary, size.vocabulary - 1),
        max_length=size.positions,
        compiled=CompiledBody(model, compile) if compile else None,
    )
    description = Description(
        family=f"{spec.family} with random weights",
        checkpoint="none",
        path=None,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=dtype,
        device=str(device),
    )
    return LoadedModel(denoiser, CheckpointTokenizer(None, Path()), description)


def random_request(size: Size, rows: int, prompt: int, tokens: int) -> Request:
    """Rows with prompts of random ids.

    Args:
        size: Of the model.
        rows: How many.
        prompt: Columns of each prompt.
        tokens: Generated columns of each row.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(size.vocabulary - 1, (rows, prompt), generator=generator)
    return Request(tuple(map(tuple, ids.tolist())), tokens)


def profile(decoder: Decoder, request: Request, rows: int = 25) -> str:
    """The table of torch.profiler for the operations of one decode, the costliest first.

    Args:
        decoder: The parts.
        request: What is decoded.
        rows: Lines of the table.
    """
    from torch.profiler import ProfilerActivity

    gpu = decoder.denoiser.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.profiler.profile(activities=activities) as found:
        decoder.decode(request)
    order = "self_cuda_time_total" if gpu else "self_cpu_time_total"
    table: str = found.key_averages().table(sort_by=order, row_limit=rows)
    return table
