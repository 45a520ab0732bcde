"""`task=pretrain`: train the bundled model from scratch on the package's own problems."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_decode.errors import (
    CheckpointError,
    ConfigError,
    DllmDecodeError,
    require,
    require_choice,
    require_count,
    require_in_range,
)
from dllm_decode.problems import TRAINED
from dllm_decode.tasks import Context, Task

if TYPE_CHECKING:
    from dllm_decode.training.llada_tiny.batches import Mixture
    from dllm_decode.training.llada_tiny.course import Course
    from dllm_decode.training.llada_tiny.network import Shape

# What a checkpoint can only be continued with.
_IDENTITY = ("seed", "workers", "width", "layers", "heads", "hidden", "batch_tokens")


@dataclass(frozen=True)
class Pretrain(Task):
    """Trains a masked diffusion model of LLaDA architecture and exports it.

    The folder `output` receives `model/` (published LLaDA format), `curves.jsonl`, `curves.png` and
    a checkpoint from which the same command continues; with `early` also `early/`, the model as it
    was after so many million tokens: half-trained, for the study of rules that look back.

    Budget. tokens: millions of them in all, padding included; minutes: if not 0, so much training
    time over all continuations instead, compilation included; steps: if not 0, so many updates
    instead. With tokens or steps a run is reproducible to the bit on one machine. A continuation
    may have another budget: a larger one puts off the fall of the rates. halt: if not 0, stop after
    this many updates in all, as an interruption would, schedule unchanged.

    Machine. device: "cpu", "cuda" or "cuda:N"; workers: processes that share each step (CPU);
    threads: of each; loaders: processes that make batches (0: in the training process), for fast
    devices; compile: through torch.compile.

    Model. width, layers, heads, hidden: sizes of the network.

    Optimisation. batch_tokens: per worker and step; muon_rate, adam_rate: highest learning rates
    for matrices and for embeddings and norms; weight_decay: of the matrices; warmup [steps]; flat:
    share of the budget before the rates fall to zero in a straight line; emphasis: factor by which
    families are drawn more or less often than their errors ask for, by name; curriculum: families
    that are drawn only after so many million tokens, by name; clip: norm of the
    gradient; average: decay of the running mean of the weights, which is what is exported.

    Reporting. log_every [steps]; checkpoint_minutes: between checkpoints; measurements: of exact
    match, spread over the run; measured_problems: held-out ones per family (0: none); display:
    "auto", "live", "plain" or "none"; resume: continue from a checkpoint in `output`, else refuse a
    folder that holds one.
    """

    output: str = "runs/pretrain"
    seed: int = 7
    tokens: float = 150.0
    minutes: float = 0.0
    steps: int = 0
    halt: int = 0
    device: str = "cpu"
    workers: int = 2
    threads: int = 1
    loaders: int = 0
    compile: bool = True
    width: int = 192
    layers: int = 6
    heads: int = 6
    hidden: int = 512
    batch_tokens: int = 4096
    muon_rate: float = 0.015
    adam_rate: float = 0.0015
    weight_decay: float = 0.02
    warmup: int = 60
    flat: float = 0.7
    emphasis: Mapping[str, float] = field(default_factory=dict)
    curriculum: Mapping[str, float] = field(default_factory=dict)
    clip: float = 1.0
    average: float = 0.995
    early: float = 20.0
    log_every: int = 20
    checkpoint_minutes: float = 5.0
    measurements: int = 30
    measured_problems: int = 24
    display: str = "auto"
    resume: bool = True

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "width", "layers", "heads", "hidden", "warmup"):
            require_count(f"task.{name}", getattr(self, name))
        for name in ("steps", "halt", "loaders", "measurements", "measured_problems", "seed"):
            require_count(f"task.{name}", getattr(self, name), minimum=0)
        require_count("task.log_every", self.log_every)
        require_count("task.batch_tokens", self.batch_tokens, minimum=256)
        require_in_range("task.tokens", self.tokens, 0, 1e6, open_low=True, unit="million tokens")
        require_in_range("task.minutes", self.minutes, 0, 100_000, unit="minutes")
        require_in_range(
            "task.checkpoint_minutes", self.checkpoint_minutes, 0, 100_000, unit="minutes"
        )
        for name in ("muon_rate", "adam_rate", "weight_decay"):
            require_in_range(f"task.{name}", getattr(self, name), 0, 1)
        require_in_range("task.flat", self.flat, 0, 1, open_high=True)
        for name, factor in self.emphasis.items():
            require_choice("task.emphasis", name, tuple(TRAINED))
            require_in_range(f"task.emphasis.{name}", factor, 0, math.inf, open_low=True)
        for name, start in self.curriculum.items():
            require_choice("task.curriculum", name, tuple(TRAINED))
            require_in_range(f"task.curriculum.{name}", start, 0, 1e6, unit="million tokens")
        require_in_range("task.clip", self.clip, 0, math.inf, open_low=True)
        require_in_range("task.average", self.average, 0, 1, open_high=True)
        require_in_range("task.early", self.early, 0, 1e6, unit="million tokens")
        require_choice("display", self.display, ("auto", "live", "plain", "none"))
        even = self.width % (2 * self.heads) == 0
        require(
            even, f"task.width must be a multiple of 2 * heads = {2 * self.heads}, got {self.width}"
        )
        require(bool(self.output), "task.output must name a folder, got an empty text")
        if self.device.startswith("cuda") and self.workers > 1:
            raise ConfigError(
                f"task.workers must be 1 with task.device={self.device}, got {self.workers}"
            )

    def shape(self) -> Shape:
        """Sizes of the network, with the vocabulary of the package's problems."""
        from dllm_decode.training.llada_tiny.network import Shape
        from dllm_decode.training.llada_tiny.tokenizer import vocabulary

        return Shape(len(vocabulary()), self.width, self.layers, self.heads, self.hidden)

    def mixture(self) -> Mixture:
        """Layout of the batches."""
        from dllm_decode.training.llada_tiny.batches import Mixture

        return Mixture(batch_tokens=self.batch_tokens)

    def progress(self, course: Course) -> float:
        """Share of the budget that is used up."""
        if self.steps:
            return course.step / self.steps
        if self.minutes:
            return course.seconds / (60 * self.minutes)
        return course.tokens / (1e6 * self.tokens)

    def rate(self, step: int, progress: float) -> float:
        """Factor 0..1 of the learning rates: warm-up, flat, straight to zero."""
        warm = min(1.0, (step + 1) / self.warmup)
        return warm * max(0.0, min(1.0, (1 - progress) / (1 - self.flat)))

    def identity(self) -> dict[str, object]:
        """The settings that a continuation must share."""
        return {name: getattr(self, name) for name in _IDENTITY}

    def check_identity(self, other: Mapping[str, object]) -> None:
        """Refuse a checkpoint of a run with other settings; raises `CheckpointError`."""
        for name, value in self.identity().items():
            if other.get(name) != value:
                raise CheckpointError(
                    f"task.{name} must be {other.get(name)!r} to continue the run in "
                    f"{self.output}, got {value!r}; give another task.output for a new run"
                )

    def run(self, context: Context) -> int:
        """Train and say where the model is; returns 0."""
        folder = self.train()
        context.folder.write_json("results.json", {"model": str(folder)})
        context.display.say(f"The model is in {folder}; use it with model.checkpoint={folder}")
        return 0

    def train(self) -> Path:
        """Train; returns the folder of the exported model.

        Raises `ConfigError` for a device that is not there or a used folder with `resume=false`,
        `CheckpointError` for a checkpoint that does not fit.
        """
        from torch.multiprocessing.spawn import ProcessRaisedException, spawn

        from dllm_decode.training.llada_tiny.worker import work

        folder = self._prepare()
        if self.workers == 1:
            work(0, self, "")
        else:
            # Large blocks are kept rather than given back to the system at every step.
            os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 30))
            os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 30))
            os.environ.setdefault("MALLOC_TOP_PAD_", str(1 << 26))
            os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            with tempfile.TemporaryDirectory() as place:
                store = str(Path(place) / "store")
                try:
                    spawn(work, (self, store), self.workers)
                except ProcessRaisedException as error:
                    last = str(error).strip().splitlines()[-1]
                    raise DllmDecodeError(f"a training process failed: {last}") from error
        return folder / "model"

    def _prepare(self) -> Path:
        """Check what only the machine can tell, and make the folder."""
        import torch

        from dllm_decode.training.llada_tiny import checkpoint

        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise ConfigError(
                f"task.device must be cpu, cuda or cuda:N, got {self.device!r}"
            ) from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"task.device={self.device} needs a CUDA device, and there is none; use cpu"
            )
        require_choice("task.device", device.type, ("cpu", "cuda"))
        folder = Path(self.output)
        record = checkpoint.read(folder)
        require(
            self.resume or record is None,
            f"task.output must be a new folder with task.resume=false; {folder} holds a run",
        )
        if record is not None:
            self.check_identity(record["settings"])
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"task.output must be a writable folder, got {folder}: {error}"
            ) from None
        return folder
