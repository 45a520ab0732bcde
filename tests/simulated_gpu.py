"""A GPU that is not there: tensors say `cuda:0` and compute on the processor.

Inside `with SimulatedGpu() as gpu:` every factory, copy and operator of torch behaves as on a
machine with GPUs, as far as rules go. Operands on different devices are refused as CUDA refuses
them (`MixedDevices`), and it is written down with the line of ours that caused it

- where the host waits for the device (`gpu.waits`),
- where it uploads something (`gpu.uploads`), or copies from one device to the other (`gpu.moves`),
- how many kernels are launched (`gpu.launches`, per line; views and empty tensors launch none),
- where a division by a number would be rounded otherwise than on the processor (`gpu.reciprocals`),
- how large the largest tensor of each dtype was (`gpu.largest`, in elements).

Values are real, so whole decodes run and must give what the processor gives. Numerics, memory and
streams of a real GPU are not simulated.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten
CPU = torch.device("cpu")

# Operators whose answer the host must have before it can go on.
WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "is_nonzero",
}  # fmt: skip
# Operators that launch nothing.
FREE = {
    "view", "_unsafe_view", "expand", "slice", "select", "unsqueeze", "squeeze", "permute",
    "transpose", "t", "detach", "alias", "as_strided", "split", "split_with_sizes", "unbind",
    "diagonal", "lift_fresh", "_reshape_alias", "unfold", "chunk", "empty", "empty_like",
    "empty_strided", "new_empty", "new_empty_strided", "is_pinned", "_fused_sdp_choice",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class MixedDevices(RuntimeError):
    """Operands of one operator lie on different devices."""


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU; `inner` is where its numbers are."""

    @staticmethod
    def __new__(cls, inner, device):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=device,
        )
        made.inner = inner
        return made

    def __repr__(self, **_):
        return f"OnGpu({self.inner}, {self.device})"

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs, self = kwargs or {}, args[0] if args else None
        gpu = SimulatedGpu.now
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            return gpu.indexed(function, *args)
        if function is Tensor.tolist:
            gpu.note(gpu.waits, "tolist")
            return self.inner.tolist()
        if function is Tensor.numpy:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy")
        if function is Tensor.detach:  # there are no gradients here
            return self
        if function is Tensor.transpose:  # of weights, which are no tensors of inference mode
            return gpu.run(aten.transpose.int, args, kwargs)
        if function is Tensor.data_ptr:
            return self.inner.data_ptr()
        if function is Tensor.__deepcopy__:
            return OnGpu(self.inner.clone(), self.device)
        with torch._C.DisableTorchFunctionSubclass():
            # what torch would ask CUDA's runtime for before it gets to an operator
            if function is Tensor.__invert__:
                return aten.bitwise_not.default(self)
            if function is Tensor.contiguous:
                form = torch.contiguous_format
                contiguous = self.is_contiguous()
                return self if contiguous else aten.clone.default(self, memory_format=form)
            if function is Tensor.nonzero:
                return aten.nonzero.default(self)
            if function is Tensor.copy_:
                return aten.copy_.default(*args, **kwargs)
            kinds = {Tensor.__bool__: bool, Tensor.__float__: float}
            kinds |= {Tensor.__int__: int, Tensor.__index__: int}
            if function in kinds:
                return kinds[function](aten._local_scalar_dense.default(self))
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return SimulatedGpu.now.run(operator, args, kwargs or {})


def unwrapped(value):
    """The numbers of a tensor, or of those in a list; anything else as it is."""
    if isinstance(value, OnGpu):
        return value.inner
    if isinstance(value, list | tuple):
        return type(value)(unwrapped(part) for part in value)
    return value


def tensors_of(values) -> list[Tensor]:
    """The tensors among arguments, also those in lists."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_of(value)
    return found


class SimulatedGpu(contextlib.ExitStack):
    """The machine: what it refuses, and what it has written down since the last `clear`."""

    now: SimulatedGpu | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.uploads: list[str] = []
        self.moves: list[str] = []
        self.launches: Counter[str] = Counter()
        self.programs: Counter[str] = Counter()
        self.reciprocals: list[str] = []
        self.largest: Counter[torch.dtype] = Counter()
        self._silent = False
        self._graph: Graph | None = None

    def __enter__(self):
        super().__enter__()
        for target, name, value in (
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
            (torch.cuda, "device", lambda _: contextlib.nullcontext()),
            (torch.cuda, "CUDAGraph", Graph),
            (torch.cuda, "graph", self.capture),
            (nn.Module, "to", lambda module, device: self.moved(module, device)),
            (SimulatedGpu, "now", self),
        ):
            self.enter_context(mock.patch.object(target, name, value))
        self.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        self.enter_context(_Functions(self))
        self.enter_context(_Operators(self))
        return self

    def clear(self) -> None:
        """Forget what was written down."""
        for book in (self.waits, self.uploads, self.moves, self.reciprocals):
            book.clear()
        for counter in (self.launches, self.programs, self.largest):
            counter.clear()

    def place(self, module: nn.Module, device: str = "cuda:0") -> nn.Module:
        """Move the weights of a module to a device, in place."""
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    moved = OnGpu(unwrapped(weight.data), torch.device(device))
                    part._parameters[name] = nn.Parameter(moved, requires_grad=False)
            for name, values in part._buffers.items():
                if values is not None:
                    part._buffers[name] = OnGpu(unwrapped(values), torch.device(device))
        return module

    def moved(self, module: nn.Module, device) -> nn.Module:
        """`module.to(device)` by hand: torch would write into memory that is not there."""
        if any(weight.device != torch.device(device) for weight in module.parameters()):
            self.note(self.uploads, "weights")
        return self.place(module, str(device))

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Write nothing down."""
        before, self._silent = self._silent, True
        try:
            yield
        finally:
            self._silent = before

    @contextlib.contextmanager
    def capture(self, graph: Graph) -> Iterator[None]:
        """Record operators instead of running them: what they wrote is undone at the end."""
        self._graph = graph
        try:
            yield
        finally:
            self._graph = None
            graph.undo()

    def note(self, book: list[str], what: str) -> None:
        """Write down a wait, an upload or a move, and where it happened."""
        if self._graph is not None and book is not self.reciprocals:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        if not self._silent:
            book.append(f"{what} at {_line()}")

    def launch(self) -> None:
        """Write down a kernel."""
        if not self._silent:
            self.launches[_line()] += 1

    def indexed(self, function, self_, index, *value):
        """`x[index]`, and `x[index] = value`, by hand: torch would ask CUDA's runtime."""
        device, parts = self_.device, index if isinstance(index, tuple) else (index,)
        for part in parts:
            if isinstance(part, list):
                self.note(self.uploads, "index with a list")
            if not isinstance(part, Tensor):
                continue
            if part.dtype in (torch.bool, torch.uint8):
                self.note(self.waits, "index with a mask")
            elif part.dim() == 0 and part.is_cuda:
                self.note(self.waits, "index with a number on the device")
            if part.dim() and part.device.type == "cpu":
                self.note(self.uploads, "index from the host")
            elif part.dim() and part.device != device:
                raise MixedDevices(f"{device} indexed from {part.device} at {_line()}")
        if value and isinstance(value[0], Tensor) and value[0].dim() and value[0].device != device:
            raise MixedDevices(f"{value[0].device} written to {device} at {_line()}")
        inner = self_.inner
        with self.silence():
            before = inner.clone() if value and self._graph is not None else None
            found = function(inner, unwrapped(index), *unwrapped(value))
        if self._graph is not None:
            plain = (inner, unwrapped(index), *unwrapped(value))
            self._graph.add(function, plain, {}, found, "index_" if value else "index", before)
        if value or any(isinstance(part, Tensor | list) for part in parts):
            self.launch()
        return None if value else OnGpu(found, device)

    def run(self, operator, args, kwargs):
        """One operator: where its result lies, what it costs, and the numbers."""
        tensors = tensors_of((*args, *kwargs.values()))
        name = operator._schema.name.split("::")[1]
        device = self._device(name, tensors, kwargs.get("device"))
        on_gpu = device is not None and device.type == "cuda"
        if any(tensor.is_cuda for tensor in tensors):
            self._waits(name, args)
        if name == "_fused_sdp_choice":
            return 0
        if on_gpu and name in ("div", "div_") and not isinstance(args[1], OnGpu):
            exact = abs(math.frexp(args[1])[0]) == 0.5  # powers of two
            if not exact:
                self.note(self.reciprocals, f"/ {args[1]}")
        if on_gpu and name not in FREE and name not in WAITING:
            self.launch()
        given = {key: unwrapped(value) for key, value in kwargs.items()}
        if given.get("device") is not None:
            given |= {"device": CPU} | ({"pin_memory": False} if "pin_memory" in given else {})
        inner = unwrapped(args)
        before = None
        if self._graph is not None and name.endswith("_"):
            before = inner[0].clone()
        if name == "histc" and not inner[0].is_floating_point():  # which CUDA counts, and CPUs not
            found = operator(inner[0].float(), *inner[1:], **given).to(inner[0].dtype)
        else:
            found = operator(*inner, **given)
        if not on_gpu or name == "_local_scalar_dense":
            return found
        if self._graph is not None:
            self._graph.add(operator, inner, given, found, name, before)
        known = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, OnGpu)}

        def wrapped(value):
            if isinstance(value, list | tuple):
                return type(value)(wrapped(part) for part in value)
            if not isinstance(value, Tensor) or isinstance(value, OnGpu):
                return value
            if name not in FREE:
                self.largest[value.dtype] = max(self.largest[value.dtype], value.numel())
            return known[id(value)] if id(value) in known else OnGpu(value, device)

        return wrapped(found)

    def _device(self, name: str, tensors: list[Tensor], asked) -> torch.device | None:
        """Where the result lies; notes copies between devices and refuses mixed ones."""
        asked = None if asked is None else torch.device(asked)
        if name in ("_to_copy", "copy_"):
            here, there = tensors[0].device, asked or tensors[0].device
            if name == "copy_":
                there, here = tensors[0].device, tensors[1].device
            if (here.type, there.type) == ("cuda", "cpu"):
                self.note(self.waits, "copy to the host")
            elif (here.type, there.type) == ("cpu", "cuda"):
                self.note(self.uploads, "upload")
            elif here != there:
                self.note(self.moves, f"{tensors[-1].numel()} numbers, {here} to {there}")
            return there
        if asked is not None:
            return asked
        gpus = {tensor.device for tensor in tensors if tensor.is_cuda}
        if not gpus:
            return None
        device = gpus.pop()
        for other in tensors:
            # CUDA takes numbers from the host, and index tensors, which it uploads
            if other.device == device or (other.device.type == "cpu" and other.dim() == 0):
                continue
            if name in INDEXING and other.device.type == "cpu" and not other.is_floating_point():
                self.note(self.uploads, "index from the host")
                continue
            raise MixedDevices(f"{name}: {other.device} beside {device} at {_line()}")
        return device

    def _waits(self, name: str, args) -> None:
        if name in WAITING:
            self.note(self.waits, name)
        if name in INDEXING and any(
            isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in args[1]
        ):
            self.note(self.waits, "index with a mask")
        if name == "repeat_interleave" and len(args) > 1 and isinstance(args[1], Tensor):
            self.note(self.waits, "repeat_interleave")

    def interpret(self, names) -> None:
        """Run Triton programs of the package under the interpreter, on the numbers of tensors."""
        if not names:
            return
        from dllm_decode.kernels import programs

        for name in names:
            program = _Program(self, getattr(programs, name), name)
            self.enter_context(mock.patch.object(programs, name, program))


class Graph:
    """A CUDA graph: the operators of a capture, run again on the same memory."""

    def __init__(self):
        self.steps = []
        self.written = []

    def add(self, operator, args, given, found, name, before=None):
        """One more operator; `before` is what it wrote over."""
        if before is not None:
            self.written.append((args[0], before))
        if name not in FREE:
            self.steps.append((operator, args, given, found))

    def undo(self):
        for target, before in reversed(self.written):
            target.copy_(before)

    def replay(self):
        """Run all of it again; what nobody wrote into the graph stays as it was."""
        modes = torch.utils._python_dispatch._disable_current_modes()
        with modes, torch._C.DisableTorchFunction():
            for operator, args, given, found in self.steps:
                again = operator(*args, **given)
                outs = tensors_of([found]), tensors_of([again])
                for out, new in zip(*outs, strict=True):
                    if out.data_ptr() != new.data_ptr():
                        out.copy_(new)


class _Program:
    """Stands in for a Triton program."""

    def __init__(self, gpu, program, name):
        self.gpu, self.program, self.name = gpu, program, name

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            devices = {arg.device for arg in args if isinstance(arg, Tensor)}
            if len(devices) > 1:
                raise MixedDevices(f"{self.name}: {devices} at {_line()}")
            self.gpu.programs[self.name] += 1
            given = {name: unwrapped(value) for name, value in kwargs.items()}

            def run(*inner):
                with (
                    torch.utils._python_dispatch._disable_current_modes(),
                    torch._C.DisableTorchFunction(),
                ):
                    self.program[grid](*inner, **given)

            run(*unwrapped(args))
            if self.gpu._graph is not None:
                self.gpu._graph.add(run, unwrapped(args), {}, None, self.name)

        return launch


class _Operators(TorchDispatchMode):
    """Hands every operator to the machine."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made_of_others = operator.has_kernel_for_dispatch_key(
            torch._C.DispatchKey.CompositeImplicitAutograd
        )
        if made_of_others and torch.is_inference_mode_enabled():
            with self:  # outside inference mode they come apart on their way here
                return operator.decompose(*args, **kwargs)
        return self.gpu.run(operator, args, kwargs)


class _Functions(TorchFunctionMode):
    """What torch does before it gets to an operator."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            if isinstance(args[0], OnGpu):
                return self.gpu.indexed(function, *args)
            if any(isinstance(part, OnGpu) for part in parts):
                raise MixedDevices(f"a tensor of the host indexed from the device at {_line()}")
        if function is Tensor.to:
            args = tuple(_numbered(arg) for arg in args)
        if kwargs.get("device") is not None:
            kwargs["device"] = _numbered(kwargs["device"])
            made_of_numbers = function in (torch.tensor, torch.as_tensor)
            if made_of_numbers and torch.device(kwargs["device"]).type == "cuda":
                device = torch.device(kwargs.pop("device"))
                self.gpu.note(self.gpu.uploads, "torch.tensor")
                with self.gpu.silence():
                    made = function(*args, **kwargs)
                return made if isinstance(made, OnGpu) else OnGpu(made, device)
        return function(*args, **kwargs)


def _numbered(device):
    """`cuda` without a number is the first one; anything but a device comes back as it is."""
    if isinstance(device, torch.device) or (isinstance(device, str) and device.startswith("cuda")):
        device = torch.device(device)
        return torch.device("cuda", 0) if device == torch.device("cuda") else device
    return device


def _line() -> str:
    """The innermost line of the package on the stack, of transformers where there is none."""
    frame, model = sys._getframe(1), None
    while frame is not None:
        path = frame.f_code.co_filename
        if "/dllm_decode/" in path or "/strategies/" in path:
            return f"{path.rpartition('/')[2]}:{frame.f_lineno}"
        if model is None and "/transformers/" in path:
            model = f"transformers/{path.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return model or "elsewhere"


def spread_over_two(gpu: SimulatedGpu, model: nn.Module) -> nn.Module:
    """What a device map makes of a model: last layer, norm and head are on the second device."""
    body, there = model.model, torch.device("cuda:1")
    gpu.place(model)
    for part in (body.layers[-1], body.norm, model.lm_head):
        gpu.place(part, "cuda:1")
        part.register_forward_pre_hook(
            lambda _, args, kwargs: tree_map(lambda given: _moved(given, there), (args, kwargs)),
            with_kwargs=True,
        )
    return model


def _moved(given, device):
    return given.to(device) if isinstance(given, Tensor) else given
