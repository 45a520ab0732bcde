"""What parts refuse when they meet, asked before torch is imported, which takes two seconds.

The parts themselves say it: they are built and put together in a child process in which torch and
whatever else is slow to import is a stand-in. So every rule stands where it stood, once. A stand-in
has every name and can be called, but gives no answer: whoever asks it for a number, a truth, a
length or a kind ends the rehearsal without a word, and the real run says what is wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NoReturn

from dllm_decode import errors
from dllm_decode.errors import DllmDecodeError

# What a child process never imports.
ABSENT = ("torch", "triton", "transformers", "numpy", "safetensors.torch", "rich")
_SECONDS = 10.0  # it takes a quarter of one
# Types of devices that torch knows by itself; a package may add another.
_DEVICES = (
    "cpu", "cuda", "ipu", "xpu", "mkldnn", "opengl", "opencl", "ideep", "hip", "ve", "fpga", "maia",
    "xla", "lazy", "vulkan", "mps", "meta", "hpu", "mtia", "privateuseone",
)  # fmt: skip
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")


def refusal(*steps: Callable[[], object]) -> DllmDecodeError | None:
    """What one of some steps refuses, None for nothing; leaves no trace in this process.

    Says nothing where torch is there already, where processes cannot be copied, and where several
    threads run.

    Args:
        steps: Each is run even if a stand-in ended the one before.
    """
    lonely = threading.active_count() == 1
    if "torch" in sys.modules or not hasattr(os, "fork") or not lonely:
        return None
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _play(steps, writing)
    os.close(writing)
    try:
        told = _read(reading)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 9)  # done, or too slow
        os.waitpid(child, 0)
    if not told:
        return None
    said = json.loads(told)
    fault: DllmDecodeError = getattr(errors, said["kind"])(said["message"])
    return fault


def _read(pipe: int) -> bytes:
    """All that comes through a pipe; nothing where its other end does not close in time."""
    told = b""
    while select.select([pipe], [], [], _SECONDS)[0]:
        part = os.read(pipe, 2**16)
        if not part:
            return told
        told += part
    return b""


def _play(steps: Sequence[Callable[[], object]], pipe: int) -> NoReturn:
    """The child process: run the steps and write what the first of them refuses into a pipe."""
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.meta_path.insert(0, StandIns())
        fault = next((fault for fault in map(_fault, steps) if fault is not None), None)
        kind = type(fault).__name__
        if fault is not None and getattr(errors, kind, None) is type(fault):
            os.write(pipe, json.dumps({"kind": kind, "message": str(fault)}).encode())
    finally:
        os._exit(0)  # nothing of the parent's is tidied up here


def _fault(step: Callable[[], object]) -> DllmDecodeError | None:
    try:
        step()
    except DllmDecodeError as fault:
        return fault
    except (Exception, Unanswered):
        return None
    return None


class Unanswered(BaseException):
    """A stand-in was asked what only the real thing knows; no `except Exception` stops it.

    Examples:
        >>> issubclass(Unanswered, Exception)
        False
    """


class _Class:
    """What classes derive from in place of the real class."""

    def __init__(self, *args: Any, **named: Any) -> None:
        return


class Missing:
    """A name of a module that is not there: it can be called, derived from and annotated with.

    Examples:
        >>> Missing().zeros(3).shape[0] > 2
        Traceback (most recent call last):
            ...
        dllm_decode.config.rehearsal.Unanswered
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing()

    def __call__(self, *args: Any, **named: Any) -> Any:
        if len(args) == 1 and not named and issubclass(type(args[0]), FunctionType | type):
            return args[0]  # it was a decorator
        return MissingValue()

    def __or__(self, other: Any) -> Any:  # in annotations
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (_Class,)

    def __hash__(self) -> int:
        return id(self)

    def __instancecheck__(self, thing: Any) -> bool:
        """No for what comes from elsewhere: kinds that are not there have no instances."""
        if issubclass(type(thing), Missing | _Class):
            raise Unanswered
        return False


class MissingValue(Missing):
    """What a call would have given, of which not even the kind is known.

    Examples:
        >>> isinstance(Missing().arange(3), int)
        Traceback (most recent call last):
            ...
        dllm_decode.config.rehearsal.Unanswered
    """

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise Unanswered


def _ask(*others: Any) -> NoReturn:
    raise Unanswered


# Everything that an operator or a built-in function may ask of an object.
_BINARY = "add sub mul truediv floordiv mod divmod pow matmul lshift rshift and xor"
_UNARY = (
    "bool int float complex index len iter next reversed contains getitem setitem delitem enter "
    "exit subclasscheck str repr format bytes eq ne lt le gt ge neg pos abs invert round trunc "
    "floor ceil"
)
for _name in _UNARY.split():
    setattr(Missing, f"__{_name}__", _ask)
for _name in _BINARY.split():
    for _side in ("", "r", "i"):
        setattr(Missing, f"__{_side}{_name}__", _ask)


class StandIns(MetaPathFinder, Loader):
    """Answers imports of what a child process never imports.

    Examples:
        >>> StandIns().find_spec("torch.nn").name, StandIns().find_spec("torchao")
        ('torch.nn', None)
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        absent = any(name == other or name.startswith(f"{other}.") for other in ABSENT)
        return ModuleSpec(name, self, is_package=True) if absent else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Nowhere(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "torch":
            vars(module).update(
                device=_device, empty=_empty, cuda=_Cuda(), distributed=_Distributed()
            )


class _Nowhere(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing()


# What can be known of devices without torch.


def _built_for_gpus() -> bool:
    """Whether the torch that is installed was built for CUDA or ROCm, as its version.py says."""
    spec = PathFinder.find_spec("torch")  # which asks no stand-in
    if spec is None or spec.origin is None:
        return True
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    lines = {line.partition(":")[0].strip(): line for line in text.splitlines()}
    return not all(lines.get(name, "").endswith("= None") for name in ("cuda", "hip"))


class _Cuda(Missing):
    def device_count(self) -> Any:
        return 0 if not _built_for_gpus() else MissingValue()

    def is_available(self) -> bool:
        if not _built_for_gpus():
            return False
        if any(map(os.path.exists, _DRIVERS)):
            return True
        raise Unanswered


class _Distributed(Missing):
    def is_torchelastic_launched(self) -> bool:
        return "TORCHELASTIC_RUN_ID" in os.environ


class _Device(MissingValue):
    def __init__(self, kind: str) -> None:
        self.type = kind


def _device(name: Any) -> _Device:
    """A device, of a type that torch knows."""
    kind = str(name).partition(":")[0]
    if not isinstance(name, str) or (kind not in _DEVICES and entry_points(group="torch.backends")):
        raise Unanswered
    if kind not in _DEVICES:
        raise RuntimeError(f"Expected one of {', '.join(_DEVICES)} device type: {name}")
    return _Device(kind)


def _empty(*shape: Any, device: Any = None, **named: Any) -> MissingValue:
    kind = getattr(device, "type", None)
    if kind == "cuda" and not _built_for_gpus():
        raise AssertionError("Torch not compiled with CUDA enabled")
    if kind not in ("cpu", "meta"):
        raise Unanswered
    return MissingValue()
