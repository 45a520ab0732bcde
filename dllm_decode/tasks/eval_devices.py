"""An evaluation over several devices: each has a process with a model of its own.

The process of the command line is the first of them and the only one that writes; the others hand
it their samples as they are finished. What a question gets does not depend on who answers it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any, cast

from dllm_decode.errors import ConfigError, DeviceError, DllmDecodeError, require
from dllm_decode.tasks import Context, build_task

if TYPE_CHECKING:
    from dllm_decode.evaluation.metrics import Sample

_PATIENCE = 0.2  # seconds between two looks at whether a process is still there


def check_devices(devices: str | Sequence[str] | None, timing: int) -> None:
    """Refuse what names no devices; raises `ConfigError`."""
    if devices is None:
        return
    named = [devices] if isinstance(devices, str) else list(devices)
    require(
        devices == "all" or (not isinstance(devices, str) and bool(named)),
        f"task.devices must be null, all, or a list like [cuda:0,cuda:1], got {devices!r}",
    )
    require(
        timing == 0, "task.timing measures one device; leave task.devices out or set task.timing=0"
    )


def placed(context: Context, devices: str | Sequence[str]) -> tuple[Context, tuple[str, ...]]:
    """The context of the first device, and the names of the others.

    Raises:
        ConfigError: Where a device is not there, or the model is spread already.
    """
    import torch

    from dllm_decode.models.placement import pick_device

    for name in ("device_map", "tensor_parallel"):
        require(
            context.cfg.model.get(name) is None,
            f"task.devices gives each device a model of its own, but model.{name} spreads one over "
            "several; use one of them",
        )
    if devices == "all":
        count = torch.cuda.device_count()
        require(
            count > 0,
            "task.devices=all means all GPUs, and torch sees none; name devices, as in [cpu,cpu]",
        )
        return context, tuple(f"cuda:{number}" for number in range(1, count))
    require(
        context.cfg.model.get("device", "auto") == "auto",
        "task.devices says where models go; leave model.device out",
    )
    for device in devices:
        pick_device(device, "task.devices must name")
    return on_device(context, devices[0]), tuple(devices[1:])


def on_device(context: Context, device: str) -> Context:
    """The context with its model on a device; computed models have no place to choose."""
    from omegaconf import OmegaConf

    if "device" not in context.cfg.model:
        return context
    cfg = context.cfg.copy()
    OmegaConf.update(cfg, "model.device", device)
    return replace(context, cfg=cfg)


@dataclass(frozen=True)
class Share:
    """What one process does.

    Attributes:
        cfg: The configuration, as plain values.
        overrides: Of the command line.
        choices: The option of each group.
        device: Where its model goes.
        done: Keys of the questions that are not its own.

    Examples:
        >>> Share({}, (), {}, "cuda:1", frozenset({"copy/0"})).device
        'cuda:1'
    """

    cfg: Mapping[str, Any]
    overrides: tuple[str, ...]
    choices: Mapping[str, str]
    device: str
    done: frozenset[str]


def shares(keys: Sequence[str], left: Sequence[str], count: int) -> list[frozenset[str]]:
    """For each of some processes the keys of the questions that are not its own.

    Args:
        keys: Of all questions.
        left: Those that are to be answered; every process has the same mixture of them.
        count: Of processes.
    """
    everything = frozenset(keys)
    return [everything - frozenset(left[part::count]) for part in range(count)]


def answer(share: Share, told: Any) -> None:
    """In a process of its own: answer a share, and tell each sample, then None or a fault."""
    from omegaconf import OmegaConf

    from dllm_decode.config.instantiate import build_model
    from dllm_decode.console.display import make_display
    from dllm_decode.console.processes import leave_signals_to_parent
    from dllm_decode.console.runfolder import RunFolder

    leave_signals_to_parent()
    try:
        cfg = OmegaConf.create(dict(share.cfg))
        folder = cast(RunFolder, None)  # nothing is written here
        context = Context(cfg, share.overrides, share.choices, folder, make_display("none"))
        context = on_device(context, share.device)
        task: Any = build_task(context.cfg)  # task=eval, as in the process that writes
        for sample in task.answered(context, build_model(context.cfg), share.done):
            told.put(sample)
        told.put(None)
    except Exception as error:  # said by the process that writes
        told.put(error if isinstance(error, DllmDecodeError) else RuntimeError(repr(error)))


@contextmanager
def workers(work: Sequence[Share]) -> Iterator[Answers]:
    """Processes that answer shares; they end with the block, whatever ends it."""
    spawning = multiprocessing.get_context("spawn")
    told: Any = spawning.Queue()
    processes = [
        spawning.Process(target=answer, args=(share, told), name=share.device, daemon=True)
        for share in work
    ]
    for process in processes:
        process.start()
    try:
        yield Answers(processes, told)
    finally:
        for process in processes:
            process.kill()
            process.join(5)


class Answers:
    """What processes tell.

    Attributes:
        processes: Those that answer.

    Examples:
        >>> import queue
        >>> told = queue.Queue()
        >>> told.put("a sample"), told.put(None)
        (None, None)
        >>> list(Answers([object()], told).rest())
        ['a sample']
    """

    def __init__(self, processes: Sequence[Any], told: Any) -> None:
        self.processes = processes
        self._told = told
        self._ready = 0

    def now(self) -> Iterator[Sample]:
        """The samples that are there, without waiting for more."""
        while self._ready < len(self.processes):
            try:
                yield from self._taken(self._told.get_nowait())
            except Empty:
                return

    def rest(self) -> Iterator[Sample]:
        """All samples that are still to come.

        Raises:
            DllmDecodeError: What stopped a process.
        """
        while self._ready < len(self.processes):
            try:
                yield from self._taken(self._told.get(timeout=_PATIENCE))
            except Empty:
                self._look_after()

    def _taken(self, told: Any) -> Iterator[Sample]:
        if isinstance(told, Exception):
            raise told
        if told is None:
            self._ready += 1
        else:
            yield told

    def _look_after(self) -> None:
        """Raise where a process has gone without a word."""
        gone = [process for process in self.processes if process.exitcode not in (None, 0)]
        if gone and self._told.empty():
            raise DeviceError(
                f"the process of {gone[0].name} ended with code {gone[0].exitcode}; the problems "
                "that are done are kept, and the same command goes on with the others"
            )


def merged(own: Iterator[Sample], others: Answers) -> Iterator[Sample]:
    """The samples of this process and of the others, as they come."""
    for sample in own:
        yield sample
        yield from others.now()
    yield from others.rest()


def plan_of(
    context: Context, devices: Sequence[str], keys: Sequence[str], left: Sequence[str]
) -> tuple[frozenset[str], list[Share]]:
    """What this process leaves to others, and the shares of those.

    Args:
        context: Of this process.
        devices: Of the others.
        keys: Of all questions.
        left: Of those that are to be answered.
    """
    from omegaconf import OmegaConf

    cfg = OmegaConf.to_container(context.cfg, resolve=True)
    if not isinstance(cfg, dict):
        raise ConfigError("the configuration is no mapping")
    mine, *theirs = shares(keys, left, 1 + len(devices))
    plain: Any = {**cfg, "runs": str(Path(cfg["runs"]).absolute())}
    return mine, [
        Share(plain, context.overrides, dict(context.choices), device, done)
        for device, done in zip(devices, theirs, strict=True)
        if len(done) < len(keys)
    ]
