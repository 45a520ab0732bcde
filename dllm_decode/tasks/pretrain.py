"""`task=pretrain`: train the next bundled model on the package's own problems."""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from dllm_decode.console.processes import deferred_interrupts, end_children, raise_for
from dllm_decode.errors import (
    ConfigError,
    DllmDecodeError,
    require_choice,
)
from dllm_decode.tasks import Context, Task
from dllm_decode.training.llada_tiny.recipe import Recipe

# Seconds that a step may take to its end after a signal; longer ones (the first one compiles) are
# given up, and the checkpoint is the one before.
_PATIENCE = 20.0


@dataclass(frozen=True)
class Pretrain(Recipe, Task):
    """Trains a masked diffusion model of LLaDA architecture and exports it.

    The folder `output` receives `model/` (published LLaDA format), `curves.jsonl`, `curves.png` and
    a checkpoint from which the same command continues; with `early` also `early/`, the model as it
    was after so many million tokens: unsure still, for the study of rules that look back. The
    settings are those of `Recipe`.

    Examples:
        >>> Pretrain(tokens=10.0).shape().width
        192
    """

    def run(self, context: Context) -> int:
        """Train and say where the model is; returns 0."""
        try:
            folder = self.train()
        except KeyboardInterrupt:
            context.display.say(f"stopped; the same command goes on with what is in {self.output}")
            raise
        context.folder.write_json("results.json", {"model": str(folder)})
        context.display.say(f"The model is in {folder}; use it with model.checkpoint={folder}")
        return 0

    def train(self) -> Path:
        """Train; returns the folder of the exported model.

        Raises:
            ConfigError: A device that is not there, or a used folder with `resume=false`.
            CheckpointError: A checkpoint that does not fit.
            KeyboardInterrupt: SIGINT or SIGTERM came; the checkpoint is of the step they came in.
        """
        from dllm_decode.training.llada_tiny.worker import work
        from dllm_decode.training.loop import occupied

        folder = self._prepare()
        with occupied(folder), deferred_interrupts() as signals:
            if self.workers == 1:
                work(0, self, "", lambda: bool(signals))
            else:
                self._train_together(signals)
            raise_for(signals)
        return folder / "model"

    def _train_together(self, signals: list[int]) -> None:
        """Train in several processes, which stop after the step in which a signal comes."""
        from torch.multiprocessing import get_context
        from torch.multiprocessing.spawn import ProcessException, spawn

        from dllm_decode.training.llada_tiny.worker import work

        # Large blocks are kept rather than given back to the system at every step.
        os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 30))
        os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 30))
        os.environ.setdefault("MALLOC_TOP_PAD_", str(1 << 26))
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        stop = get_context("spawn").Event()
        with tempfile.TemporaryDirectory() as place:
            store, last = str(Path(place) / "store"), math.inf
            try:
                processes = spawn(work, (self, store, stop.is_set), self.workers, join=False)
                while not processes.join(timeout=0.2):
                    if signals and not stop.is_set():
                        stop.set()
                        last = time.monotonic() + _PATIENCE
                    if time.monotonic() > last:
                        break
            except ProcessException as error:
                line = str(error).strip().splitlines()[-1]
                raise DllmDecodeError(f"a training process failed: {line}") from error
            finally:
                end_children()

    def _prepare(self) -> Path:
        """Check what only the machine can tell, and make the folder."""
        import torch

        from dllm_decode.training.llada_tiny import checkpoint
        from dllm_decode.training.loop import prepare

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
        folder = prepare(self.output, self.resume)
        record = checkpoint.read(folder)
        if record is not None:
            self.check_identity(record["settings"])
        return folder
