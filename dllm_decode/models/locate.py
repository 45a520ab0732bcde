"""Finding checkpoints: bundled folder, local folder, Hub cache, Hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from dllm_decode.errors import CheckpointError, ConfigError
from dllm_decode.storage import read_json

log = logging.getLogger(__name__)
BUNDLED = "bundled:"
ASSETS = Path(__file__).parent / "assets"
ADAPTER = "adapter_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What a checkpoint needs; never code, and never formats that can carry code.
WANTED_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "README.md"]
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)
_LICENCE = re.compile(r"^license:[ \t]*(\S+)[ \t]*$", re.MULTILINE)
_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


@dataclass(frozen=True)
class Located:
    """A checkpoint that is there.

    Attributes:
        name: The name it was asked for by.
        folder: Where it is.
        passed_over: Names tried before it, with the reason.

    Examples:
        >>> from pathlib import Path
        >>> Located("mine", Path("checkpoints/mine")).passed_over
        {}
    """

    name: str
    folder: Path
    passed_over: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shelf:
    """Where files of one kind lie that a strategy reads beside its model, and how to get one.

    Attributes:
        kind: What such a file holds, in one word.
        bundled: Path of those that ship with the package below its assets, `{}` for the name.
        task: The command that makes one.
        key: The setting that names one.

    Examples:
        >>> counts = Shelf("frequency table", "frequencies/{}.json", "token_frequencies", "table")
        >>> counts.find("bundled:llada-tiny").name
        'llada-tiny.json'
    """

    kind: str
    bundled: str
    task: str
    key: str

    def find(self, path: str | Path) -> Path:
        """The file.

        Args:
            path: It, or `bundled:NAME` for one that ships with the package.

        Raises:
            CheckpointError: It is not there.
        """
        name = str(path)
        file = Path(name).expanduser()
        if name.startswith(BUNDLED):
            file = ASSETS / self.bundled.format(name.removeprefix(BUNDLED))
        if not file.is_file():
            raise CheckpointError(
                f"{self.kind} {name} was not found (looked for {file}); make one with "
                f"task={self.task} and give its file as {self.key}"
            )
        return file


def locate(checkpoint: str | Sequence[str] | None) -> Located:
    """The folder of a checkpoint.

    Args:
        checkpoint: One name, which must be there or be fetched from the Hub, or several in order of
            preference, of which the first one available is taken and none is fetched. A name is
            `bundled:NAME`, a folder, or a Hub id.

    Raises:
        CheckpointError: None is available; the message says what was looked for where.
        ConfigError: A name can be none of the three.
    """
    if checkpoint is None:
        raise ConfigError("model.checkpoint is not set; give a folder or a Hub id")
    if isinstance(checkpoint, str):
        return Located(checkpoint, _strict(checkpoint))
    names = list(checkpoint)
    if not names:
        raise ConfigError("model.checkpoint is an empty list; name at least one checkpoint")
    passed_over: dict[str, str] = {}
    for name in names:
        folder, reason = look_for(name)
        if folder is not None:
            return Located(name, folder, passed_over)
        passed_over[name] = reason
    tried = "; ".join(f"{name}: {reason}" for name, reason in passed_over.items())
    raise CheckpointError(
        f"none of the checkpoints in model.checkpoint is available ({tried}); a list is never "
        "downloaded, so set model.checkpoint to one folder or Hub id"
    )


def look_for(name: str) -> tuple[Path | None, str]:
    """The folder of a checkpoint that is already on this machine, or None and why not."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"model.checkpoint must be a folder or a Hub id, got {name!r}")
    if name.startswith(BUNDLED):
        return _complete(ASSETS / name.removeprefix(BUNDLED), "not in this installation")
    local = Path(name).expanduser()
    found, reason = None, f"folder {local.absolute()} does not exist"
    if local.exists():
        found, reason = _complete(local, "is a file, not a folder")
    if found is not None or not _HUB_NAME.match(name):
        return found, reason
    cached = _cached(name)
    if cached is None:
        if local.exists():
            return None, f"{reason}, and it is not in the Hub cache {_hub_cache()} either"
        return None, f"neither a folder here nor in the Hub cache {_hub_cache()}"
    found, absent = _complete(cached, "not in the Hub cache")
    if found is not None and local.exists():
        log.warning("%s; the copy in the Hub cache is taken: %s", reason, found)
    return found, absent


def is_absent_hub_name(name: str) -> bool:
    """Whether a name can only be that of a repository on the Hub which is not on this machine."""
    local = name.startswith(BUNDLED) or Path(name).expanduser().exists()
    return not local and _HUB_NAME.match(name) is not None and _cached(name) is None


def _complete(folder: Path, absent: str) -> tuple[Path | None, str]:
    """The folder if all of its files are there, else what is missing."""
    if not folder.is_dir():
        return None, absent
    missing = missing_files(folder)
    if missing:
        return None, f"{folder} has no {', '.join(missing)}{_instead(folder)}"
    return folder, ""


def _instead(folder: Path) -> str:
    """What an incomplete folder holds that a person may have taken for a checkpoint."""
    if (folder / ADAPTER).is_file():
        base = read_json(folder / ADAPTER, CheckpointError).get("base_model_name_or_path")
        return (
            f"; it holds an adapter ({ADAPTER}) for the model {base!r}: set model.checkpoint to "
            f"that model and model.adapters=[{folder}]"
        )
    others = sorted(
        file.name for kind in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in folder.glob(kind)
    )
    if others:
        return (
            f"; {', '.join(others[:3])} cannot be read here (pickle can run code): only "
            "safetensors files are, which save_pretrained of transformers writes"
        )
    return ""


def cached_adapter(name: str, *, download: bool = False) -> Path | None:
    """The folder of an adapter (`adapter_config.json`) with this name, None where it is none.

    Args:
        name: A folder or a Hub id.
        download: Whether a Hub id may be fetched.
    """
    local = Path(name).expanduser()
    if local.exists() or name.startswith(BUNDLED) or not _HUB_NAME.match(name):
        return local if (local / ADAPTER).is_file() else None
    folder = _cached(name)
    if folder is None and download:
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, allow_patterns=WANTED_FILES))
        except Exception as error:  # as in `_download`
            raise CheckpointError(
                f"adapter {name} is not available: it is neither a folder here nor in the Hub "
                f"cache, and could not be downloaded ({type(error).__name__}: {_first_line(error)})"
            ) from error
    return folder if folder is not None and (folder / ADAPTER).is_file() else None


def missing_files(folder: Path) -> list[str]:
    """Files a checkpoint folder needs and does not have."""
    if not (folder / "config.json").is_file():
        return ["config.json"]
    if (folder / SINGLE).is_file():
        return []
    if not (folder / INDEX).is_file():
        return [f"{SINGLE} or {INDEX}"]
    shards = sorted(set(weight_map(folder).values()))
    return [shard for shard in shards if not (folder / shard).is_file()]


def weight_map(folder: Path) -> dict[str, str]:
    """The shard of every tensor, as the index of a checkpoint names it.

    Raises `CheckpointError` for an index that is no such mapping or names files outside of its
    folder. Links are followed: the Hub cache is made of them, and an index cannot make one.
    """
    index = folder / INDEX
    shards = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index} has no 'weight_map', an object from tensors to files")
    for name, shard in shards.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: 'weight_map' must name a .safetensors file for every tensor, got "
                f"{str(shard)[:80]!r} for {name[:80]!r}"
            )
        if not _is_inside(shard):
            raise CheckpointError(
                f"{index}: 'weight_map' names a file outside of the folder: {shard[:200]!r}"
            )
    return shards


def _is_inside(name: str) -> bool:
    """Whether a relative path stays below where it starts, on any system."""
    parts = PureWindowsPath(name)
    return not (parts.drive or parts.root or ".." in parts.parts or "\0" in name)


def licence_of(folder: Path) -> str | None:
    """The licence that the model card (README.md) states in its front matter, None without one."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    front = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
    stated = _LICENCE.search(front.group(1)) if front else None
    return stated.group(1).strip("'\"") if stated else None


def _strict(name: str) -> Path:
    folder, reason = look_for(name)
    if folder is not None:
        return folder
    if name.startswith(BUNDLED) or Path(name).expanduser().exists() or not _HUB_NAME.match(name):
        raise CheckpointError(f"checkpoint {name} is not available: {reason}")
    return _download(name, reason)


def _hub_cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _cached(name: str) -> Path | None:
    """The newest snapshot of a Hub id in the cache, without any network access."""
    import huggingface_hub

    kept = Path(_hub_cache()) / f"models--{name.replace('/', '--')}"
    if "snapshot_download" not in vars(huggingface_hub) and not kept.is_dir():
        return None  # importing it takes half a second, and there is nothing to find
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def _download(name: str, reason: str) -> Path:
    """Fetch a checkpoint from the Hub, with progress bars; what is there already is kept."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=WANTED_FILES))
    except Exception as error:  # the Hub client raises a wide family of network and HTTP errors
        raise CheckpointError(
            f"checkpoint {name} is not available: {reason}, and it could not be downloaded "
            f"({type(error).__name__}: {_first_line(error)}); check the name and the network, or "
            "copy the checkpoint here and set model.checkpoint to its folder"
        ) from error
    missing = missing_files(folder)
    if missing:
        raise CheckpointError(
            f"checkpoint {name} was downloaded to {folder} but has no {', '.join(missing)}"
            f"{_instead(folder)}"
        )
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0]
