"""Writing a loaded model back in the format it was published in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from dllm_decode.errors import ConfigError
from dllm_decode.models.adapter import TransformersDenoiser
from dllm_decode.models.loaded import LoadedModel
from dllm_decode.models.loading import transformers_output

# Copied as they are, where the source folder has them.
_COMPANIONS = (
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


def save_checkpoint(loaded: LoadedModel, folder: Path) -> None:
    """Weights under their published names, config.json as it was read, and the tokenizer's files.

    Weights are written in the dtype they were loaded in. Raises `ConfigError` for models without
    weights.
    """
    denoiser = loaded.denoiser
    if not isinstance(denoiser, TransformersDenoiser):
        raise ConfigError(f"{loaded.description.family} has no weights to save")
    folder.mkdir(parents=True, exist_ok=True)
    with transformers_output(progress=False):
        denoiser.model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(loaded.source), indent=2) + "\n")
    for name in _COMPANIONS:
        origin = loaded.description.path and loaded.description.path / name
        if origin and origin.is_file():
            shutil.copyfile(origin, folder / name)
