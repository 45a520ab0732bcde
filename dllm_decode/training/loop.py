"""The steps of a training that can be interrupted: schedule, clipping, log and checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from dllm_decode import storage
from dllm_decode.errors import CheckpointError, ConfigError, ModelOutputError
from dllm_decode.training.devices import Devices
from dllm_decode.training.llada_tiny import checkpoint, curves
from dllm_decode.training.pace import Pace

CURVES, RUN, LOCK = "curves.jsonl", "run.json", ".lock"


class Adam:
    """AdamW on everything that is learned.

    Args:
        weights: By name.
        pace: Rate, betas and decay.

    Examples:
        >>> sorted(Adam({"w": torch.zeros(2, requires_grad=True)}, Pace(steps=10)).state())
        ['exp_avg.w', 'exp_avg_sq.w', 'step.w']
    """

    def __init__(self, weights: Mapping[str, Tensor], pace: Pace) -> None:
        self._weights, self._rate = dict(weights), pace.rate
        self._inner = torch.optim.AdamW(
            list(self._weights.values()),
            lr=pace.rate,
            betas=(pace.betas[0], pace.betas[1]),
            weight_decay=pace.weight_decay,
        )

    def step(self, share: float) -> None:
        """Update the weights from their gradients.

        Args:
            share: Of the highest rate.
        """
        for group in self._inner.param_groups:
            group["lr"] = self._rate * share
        self._inner.step()

    def state(self) -> dict[str, Tensor]:
        """What it keeps, by name; zeros before the first update."""
        found: dict[str, Tensor] = {}
        for name, weight in self._weights.items():
            state = self._inner.state[weight]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(weight) for _ in range(2))
            found |= {f"{kind}.{name}": value for kind, value in state.items()}
        return found


class TrainingLoop:
    """Runs updates of some weights, and goes on where an earlier run stopped.

    Every update depends on its number, the weights and the optimiser's state alone, so that a run
    that was interrupted ends in the same weights as one that was not.

    Args:
        folder: Where log and checkpoints are; it must be there.
        weights: What is learned, by name.
        pace: How.
        identity: Settings that a continuation must share, by their configuration key.
        stop: Says after each update whether to stop there; one process that says so is enough.
        devices: The processes that learn together.

    Attributes:
        step: Updates done.
        seconds: Of training, over all continuations.

    Raises:
        CheckpointError: The folder holds a run with other settings, or a damaged one.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> weight = torch.ones(1, requires_grad=True)
        >>> with TemporaryDirectory() as place:
        ...     loop = TrainingLoop(Path(place), {"w": weight}, Pace(steps=5, warmup=1), {})
        ...     done = loop.run(lambda step: ((weight**2).sum(), {}))
        >>> loop.step, bool(weight < 1)
        (5, True)
    """

    def __init__(
        self,
        folder: Path,
        weights: Mapping[str, Tensor],
        pace: Pace,
        identity: Mapping[str, Any],
        stop: Callable[[], bool] = lambda: False,
        devices: Devices | None = None,
    ) -> None:
        self.folder, self.pace, self.stop = folder, pace, stop
        self._devices, self._stopped = devices or Devices(), False
        self.step, self.seconds, self._ended = 0, 0.0, False
        self._weights = dict(weights)
        self._optimiser = Adam(self._weights, pace)
        self._identity = {name: _plain(value) for name, value in identity.items()}
        self._continue()

    def run(
        self,
        loss_of: Callable[[int], tuple[Tensor, Mapping[str, float]]],
        report: Callable[[float], None] = lambda step: None,
        every: Callable[[int], Mapping[str, Any] | None] = lambda step: None,
        enough: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Update to the end of the budget, or until somebody stops it; saves in both cases.

        Args:
            loss_of: The loss of an update by its number, from 0, and figures for the log.
            report: Called after each update with the number of updates so far.
            every: Asked after each update whether there is something to write into the log, such
                as a measurement; by the number of updates so far.
            enough: Asked then whether nothing more is to be gained.

        Returns:
            Whether the end was reached, of the budget or of what can be gained.

        Raises:
            ModelOutputError: The loss is no number.
        """
        if self._ended:  # by `enough`: what would be learned from here on is not wanted
            return True
        begun, saved = time.monotonic() - self.seconds, self.seconds
        figures: list[Mapping[str, float]] = []
        last = self.pace.halt or self.pace.steps
        while self.step < min(last, self.pace.steps):
            loss, told = loss_of(self.step)
            self._update(loss)
            figures.append({"loss": float(loss.detach()), **told})
            self.seconds = time.monotonic() - begun
            report(self.step)
            if self.step % self.pace.log_every == 0 or self.step == self.pace.steps:
                self._log(_means(figures) | {"rate": round(self.pace.share(self.step - 1), 4)})
                figures = []
            if (line := every(self.step)) is not None:
                self._log(line)
            if enough():
                self._ended = True
                self._save()
                return True
            if self._stopped:
                break
            if self.seconds - saved > 60 * self.pace.checkpoint_minutes:
                self._save()
                saved = self.seconds
        self._save()
        return self.step >= self.pace.steps

    def log(self) -> list[dict[str, Any]]:
        """All lines of the log so far."""
        path = self.folder / CURVES
        return curves.read(path) if path.exists() else []

    def _update(self, loss: Tensor) -> None:
        if not bool(loss.isfinite()):
            raise ModelOutputError(
                f"the loss became {float(loss.detach())} at update {self.step + 1}; lower "
                f"task.rate ({self.pace.rate})"
            )
        for weight in self._weights.values():
            weight.grad = torch.zeros_like(weight)
        if loss.requires_grad:  # nothing to learn where no slot was open
            torch.autograd.backward(loss)
        self._stopped = self.stop()
        self._share()
        torch.nn.utils.clip_grad_norm_(self._weights.values(), self.pace.clip)
        self._optimiser.step(self.pace.share(self.step))
        self.step += 1

    def _share(self) -> None:
        """Give all processes the mean gradient, and the wish of one to stop."""
        if self._devices.count == 1:
            return
        gradients = [w.grad for w in self._weights.values() if w.grad is not None]
        stop = gradients[0].new_tensor([float(self._stopped)])
        flat = self._devices.mean(torch.cat([*(g.flatten() for g in gradients), stop]))
        self._stopped = bool(flat[-1] > 0)
        for gradient, part in zip(
            gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def _log(self, line: Mapping[str, Any]) -> None:
        if not self._devices.first:
            return
        place = {"step": self.step, "minutes": round(self.seconds / 60, 2)}
        with (self.folder / CURVES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(place | dict(line)) + "\n")

    # Checkpoints.

    def _tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint holds, by name."""
        weights = {f"weight.{name}": weight for name, weight in self._weights.items()}
        return weights | {f"state.{name}": t for name, t in self._optimiser.state().items()}

    def _save(self) -> None:
        if not self._devices.first:
            return
        record = {
            "settings": self._identity,
            "course": {"step": self.step, "seconds": self.seconds, "ended": self._ended},
        }
        checkpoint.save(self.folder, self.step, self._tensors(), record)

    def _continue(self) -> None:
        record = checkpoint.read(self.folder)
        if record is None:
            return
        _compare(self.folder, record["settings"], self._identity)
        checkpoint.fill(self.folder / record["tensors"], self._tensors())
        course = record["course"]
        try:
            self.step, self.seconds = int(course["step"]), float(course["seconds"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                f"the checkpoint in {self.folder} must say how many updates and seconds it has "
                f"(course.step, course.seconds), got {course}"
            ) from None
        self._ended = bool(course.get("ended", False))
        if self._devices.first:
            curves.cut(self.folder / CURVES, self.step)


def _compare(folder: Path, before: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    for name, value in mine.items():
        if (other := before.get(name)) != value:
            raise CheckpointError(
                f"{name} must be {other!r} to continue the run in {folder}, got {value!r}; give "
                "another task.output for a new run"
            )


def claim(folder: Path, identity: Mapping[str, Any], devices: Devices) -> None:
    """Write down what a run is before it makes anything, or refuse the folder of another run.

    Args:
        folder: Of the run; it must be there.
        identity: Settings that a continuation must share, by their configuration key.
        devices: The processes of the run.

    Raises:
        CheckpointError: The folder holds a run with other settings, or its file is damaged.
    """
    path = folder / RUN
    mine = {name: _plain(value) for name, value in identity.items()}
    if devices.first and not path.exists():
        storage.write_text(path, json.dumps(mine, indent=1) + "\n")
    devices.wait()
    _compare(folder, storage.read_json(path, CheckpointError), mine)


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder of a run; raises `ConfigError` where one is in it.

    Args:
        folder: Of the run; it must be there.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"task.output={folder} is in use by another process; wait for it, or give another"
        ) from None
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise ConfigError(f"task.output must be a writable folder, got {folder}: {error}") from None
    try:
        yield
    finally:
        lock.release()


def prepare(output: str, resume: bool) -> Path:
    """The folder of a run, made where it is not there.

    Args:
        output: Its name.
        resume: Whether it may hold a run that is to go on.

    Raises:
        ConfigError: It cannot be made, or holds a run and `resume` is off.
    """
    folder = Path(output)
    if not output:
        raise ConfigError("task.output must name a folder, got an empty text")
    if not resume and ((folder / RUN).exists() or checkpoint.read(folder) is not None):
        raise ConfigError(
            f"task.output must be a new folder with task.resume=false; {folder} holds a run"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"task.output must be a writable folder, got {folder}: {error}") from None
    return folder


def picture(
    lines: Sequence[Mapping[str, Any]], panels: Mapping[str, Sequence[str]], path: Path
) -> bool:
    """Draw figures of a log over the updates into a PNG.

    Args:
        lines: Of the log.
        panels: For each panel, by the label of its axis, the names of the figures in it.
        path: The file.

    Returns:
        False where matplotlib is missing and nothing was drawn.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    figure = Figure(figsize=(9, 3 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, names) in zip(every, panels.items(), strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=name)
        axes.set(ylabel=label, xlabel="updates")
        if axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    return True


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the updates that have it."""
    names = dict.fromkeys(name for line in figures for name in line)
    values = {name: [line[name] for line in figures if name in line] for name in names}
    return {name: round(sum(each) / len(each), 5) for name, each in values.items()}


def _plain(value: Any) -> Any:
    """A setting as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))
