"""Models: the table of families, loading, adapters, exact toy worlds, the bundled checkpoint."""

from dllm_decode.models.loaded import Description, LoadedModel, Tokenizer
from dllm_decode.models.loading import load_model

__all__ = ["Description", "LoadedModel", "Tokenizer", "load_model"]
