"""First contact with a GPU: does everything start, agree, and go as fast as it should.

Each step is small, stands alone and says one thing or a few; one that fails does not keep the
others from running. Sizes are chosen so that a card of 8 GB holds them.
"""

from __future__ import annotations

import math
import platform
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from dllm_decode.benchmarks.decoding import step_seconds
from dllm_decode.benchmarks.kernels import (
    Inputs,
    KernelCase,
    Stopwatch,
    copy_bandwidth,
    kernels_start,
    paths,
)
from dllm_decode.benchmarks.step import Size, random_model, random_request
from dllm_decode.decoding.cache import NoCache
from dllm_decode.decoding.loop import Decoder, Run
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Strategy
from dllm_decode.environment import processor, version_of
from dllm_decode.kernels import dispatch, reference
from dllm_decode.kernels.reference import RowStatistics, Slots
from dllm_decode.models.blueprint import import_class
from dllm_decode.models.spec import SPECS

COPIED = 2 * 2**30  # bytes that the measurement of the bandwidth takes
SWEPT = 2**28  # bytes that a stopwatch takes on a GPU
AGREES = 1e-3  # largest relative difference of sums in which kernels agree with the definition
# Seconds after which a step says no more: 100 in all, and one line more than that takes at most as
# long as a kernel takes to compile (20 seconds), so that two minutes are enough.
SHARES = {
    "machine": 2.0,
    "kernels against the definition": 40.0,
    "copy bandwidth": 5.0,
    "kernels against one read": 15.0,
    "head against the product": 15.0,
    "one step": 15.0,
    "attention": 2.0,
    "waits in three steps": 4.0,
    "experts": 2.0,
}


@dataclass(frozen=True)
class Sizes:
    """How large the steps are.

    Attributes:
        model: of one step; its vocabulary and width are those of the kernels as well.
        rows: of the kernels that are timed, few and many.
        batch: rows of the step.
        prompt: columns of each prompt.
        columns: generated ones.
        block: columns of a window.
        rounds: timed runs of which the median counts.
        checked: width of the hidden states with which the head is compared.

    Examples:
        >>> Sizes().bytes / 2**30 < 6
        True
    """

    model: Size = field(
        default_factory=lambda: Size(126_464, 4096, 12_288, layers=2, heads=32, positions=256)
    )
    rows: tuple[int, ...] = (64, 2048)
    batch: int = 8
    prompt: int = 128
    columns: int = 64
    block: int = 32
    rounds: int = 5
    checked: int = 256

    @property
    def bytes(self) -> int:
        """The most that lies on the device at once, in 16-bit numbers, by construction."""
        size, rows = self.model, max(self.rows)
        logits, weight = 2 * rows * size.vocabulary, 2 * size.vocabulary * size.width
        # two planes of logits, the head, and what both are made of
        kernels = 2 * logits + weight + 8 * 4096 * size.width + SWEPT
        step = 2 * size.parameters + 6 * self.batch * self.block * size.vocabulary
        # logits of few rows, head and states in float64
        checks = 8 * size.vocabulary * (self.checked + 4 * min(self.rows))
        return max(kernels, step, checks, COPIED + SWEPT)


@dataclass
class Contact:
    """What was found.

    Attributes:
        found: Title of a step to its lines, in the order in which they were taken.
        problems: What should not be so.

    Examples:
        >>> print(Contact({"driver": ["580.1"]}, []).block())
        first contact
        driver
          580.1
    """

    found: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def block(self) -> str:
        """All of it as one text, to be pasted into a report."""
        lines = ["first contact"]
        for title, said in self.found.items():
            lines += [title, *(f"  {line}" for line in said)]
        lines += [f"problem: {problem}" for problem in self.problems]
        return "\n".join(lines)


def first_contact(
    device: torch.device,
    strategy: Strategy,
    sizes: Sizes | None = None,
    tell: Callable[[str], None] = lambda title: None,
) -> Contact:
    """Take all steps, one after the other.

    Args:
        device: A GPU; on a processor the same steps run as far as they mean something there.
        strategy: Decodes the three steps in which the host's waits are looked for.
        sizes: How large the steps are; None for those that a card of 8 GB holds.
        tell: Is told the title of each step before it begins.
    """
    sizes, contact, started = sizes or Sizes(), Contact(), _now()
    end = started + sum(SHARES.values())
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    model = _Lazy(lambda: random_model(sizes.model, _dtype(device), device))
    bandwidth = _Lazy(lambda: copy_bandwidth(Stopwatch(device, sizes.rounds), device))
    steps: dict[str, Callable[[], Iterator[str]]] = {
        "machine": lambda: machine(device),
        "kernels against the definition": lambda: agreement(device, sizes, contact.problems),
        "copy bandwidth": lambda: iter([f"{bandwidth() / 1e9:,.0f} GB/s read and written"]),
        "kernels against one read": lambda: against_one_read(device, sizes, bandwidth()),
        "head against the product": lambda: head_against_product(device, sizes),
        "one step": lambda: one_step(decoder_of(model(), strategy, sizes), sizes),
        "attention": lambda: attention(device, sizes),
        "waits in three steps": lambda: waits(decoder_of(model(), strategy, sizes), sizes),
        "experts": lambda: experts(contact.problems),
    }
    for title, step in steps.items():
        tell(title)
        seconds = min(SHARES[title], end - _now())
        contact.found[title] = _taken(title, step, contact.problems, gpu, seconds)
    if gpu:
        peak = torch.cuda.max_memory_allocated(device)
        contact.found["peak memory"] = [f"{peak / 2**30:.2f} GiB"]
    contact.found["time taken"] = [f"{_now() - started:.0f} s"]
    return contact


class _Lazy:
    """A value that is made when it is first asked for, and again where that failed."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._made = make, None

    def __call__(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made


def _now() -> float:
    return time.perf_counter()


def _taken(
    title: str,
    step: Callable[[], Iterator[str]],
    problems: list[str],
    gpu: bool,
    seconds: float,
) -> list[str]:
    """The lines of a step, up to where it failed or had used its time."""
    if seconds <= 0:
        return ["left out: the steps before have used the time"]
    lines: list[str] = []
    end = _now() + seconds
    try:
        said = step()
        for line in said:
            lines.append(line)
            if _now() > end:
                lines.append(f"stopped here: its {seconds:.0f} s are over")
                break
    except Exception as error:  # whatever it is, the other steps are worth taking
        memory = isinstance(error, torch.OutOfMemoryError)
        text = (str(error).strip() or "no reason given").splitlines()[0]
        why = "out of memory" if memory else f"{type(error).__name__}: {text}"
        lines.append(f"failed: {why}")
        problems.append(f"{title}: {why}")
    if gpu:
        torch.cuda.empty_cache()
    return lines


def _dtype(device: torch.device) -> str:
    return "bfloat16" if device.type == "cuda" else "float32"


# The steps.


def machine(device: torch.device) -> Iterator[str]:
    """Device, driver, and what Triton needs to compile."""
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        yield (
            f"{about.name}, compute capability {about.major}.{about.minor}, "
            f"{about.total_memory / 2**30:.1f} GiB, {about.multi_processor_count} multiprocessors"
        )
        driver = Path("/proc/driver/nvidia/version")
        said = driver.read_text(encoding="utf-8").splitlines() if driver.is_file() else []
        yield f"driver: {said[0] if said else 'not told by this system'}"
    else:
        yield f"{processor()}, no GPU"
    compilers = [name for name in ("gcc", "clang", "cc") if shutil.which(name)]
    yield (
        f"python {platform.python_version()}, torch {torch.__version__} (cuda "
        f"{torch.version.cuda}), triton {version_of('triton')}, transformers "
        f"{version_of('transformers')}, C compiler: {compilers[0] if compilers else 'none'}"
    )


def agreement(device: torch.device, sizes: Sizes, problems: list[str]) -> Iterator[str]:
    """Each kernel, started on its own, beside the definition in float64."""
    ours = _implementation(device)
    if ours is reference:
        yield "plain torch runs here, which is the definition"
    rows = min(sizes.rows)
    dtype = getattr(torch, _dtype(device))
    given = Inputs.of(KernelCase(rows, sizes.model.vocabulary, dtype, 8, sizes.checked), device)
    for name, compare in _comparisons(ours, given).items():
        try:
            difference = compare()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler or driver raises, the others may start
            if dispatch.lost_device(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            yield f"{name}: does not start: {reason}"
            problems.append(f"the kernel of {name} does not start: {reason}")
            continue
        fine = difference <= AGREES
        yield f"{name}: {'agrees' if fine else 'DIFFERS'} (largest difference {difference:.1e})"
        if not fine:
            problems.append(f"the kernel of {name} differs from the definition: {difference:.1e}")


def _implementation(device: torch.device) -> ModuleType:
    """The fused kernels on a GPU, the definition elsewhere."""
    if device.type != "cuda" or dispatch._triton() is None:
        return reference
    from dllm_decode.kernels import fused

    return fused


def _comparisons(ours: Any, given: Inputs) -> dict[str, Callable[[], float]]:
    """What is compared, by the name of the kernel; each gives the largest relative difference."""
    x, banned = given.logits, given.banned
    exact = x.double()
    slots = Slots(given.ids, given.credit, given.alpha, given.beta, 0.2, given.open)
    scores, opened = x[:, 0].float().sigmoid()[None], given.open[None]
    level = scores.new_full((1,), 0.5)

    def statistics() -> float:
        found = ours.row_statistics(x, banned, 2, given.ids)
        return _apart(found, reference.row_statistics(exact, banned, 2, given.ids))

    def draw() -> float:
        found = ours.gumbel_statistics(x, given.states, 0.8, banned)[1].cpu()
        states = given.states.cpu()
        wanted = reference.gumbel_argmax(x.cpu().float(), states, 0.8, banned.cpu())
        return 0.0 if torch.equal(found, wanted) else math.inf

    def credit() -> float:
        found = ours.credit_update(x, slots, banned)
        wanted = reference.credit_update(exact, slots, banned)
        if not torch.equal(found.ids, wanted.ids):
            return math.inf
        return max(_relative(found.credit, wanted.credit), _apart(found.fused, wanted.fused))

    def selection() -> float:
        found = ours.threshold_selection(scores, opened, level)
        wanted = reference.threshold_selection(scores, opened, level)
        same = all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        return 0.0 if same else math.inf

    def head() -> float:
        found = ours.head_statistics(given.hidden, given.weight, banned)
        product = given.hidden.double() @ given.weight.double().T
        # which of two logits is larger is a matter of rounding here
        wanted: Any = reference.row_statistics(product, banned).but(token=found.token)
        return _apart(found, wanted)

    def head_at() -> float:
        ids = given.ids.clamp(min=0)
        found = ours.head_logits_at(given.hidden, given.weight, ids, None)
        picked = given.weight.double()[ids]
        return _relative(found, (picked @ given.hidden.double()[..., None])[..., 0])

    return {
        "statistics": statistics,
        "draw": draw,
        "credit": credit,
        "selection": selection,
        "head": head,
        "head at single ids": head_at,
    }


def _apart(found: RowStatistics, wanted: RowStatistics) -> float:
    """The largest relative difference of two statistics, infinite where they chose otherwise."""
    if not torch.equal(found.token, wanted.token):
        return math.inf
    pairs = [(getattr(found, name), getattr(wanted, name)) for name in ("maximum", "total")]
    return max(_relative(one, other) for one, other in pairs)


def _relative(found: Tensor, wanted: Tensor) -> float:
    wanted = wanted.double()
    return float(((found.double() - wanted).abs() / wanted.abs().clamp(min=1.0)).max())


def against_one_read(device: torch.device, sizes: Sizes, bandwidth: float) -> Iterator[str]:
    """The statistics of few and of many rows, in multiples of one read of their logits."""
    watch = Stopwatch(device, sizes.rounds)
    kernels = "triton" if kernels_start(device) else "reference"
    for rows in sizes.rows:
        case = _case(rows, sizes, device)
        given, limit = Inputs.of(case, device), case.bytes / bandwidth
        with dispatch.using(kernels):
            timed = {
                name.removesuffix(f" {kernels}"): watch(action) / limit
                for name, action in paths(case, given, kernels).items()
                if name.split()[0] in ("statistics", "draw", "credit")
            }
        said = ", ".join(f"{name} {times:.2f}x" for name, times in timed.items())
        yield f"{rows} rows ({kernels}; one read {1e6 * limit:,.0f} us): {said}"


def _case(rows: int, sizes: Sizes, device: torch.device) -> KernelCase:
    dtype = getattr(torch, _dtype(device))
    return KernelCase(rows, sizes.model.vocabulary, dtype, 8, sizes.model.width)


def head_against_product(device: torch.device, sizes: Sizes) -> Iterator[str]:
    """The output head with its statistics, in multiples of the product alone."""
    watch = Stopwatch(device, sizes.rounds)
    kernels = "triton" if kernels_start(device) else "reference"
    for rows in sizes.rows:
        case = _case(rows, sizes, device)
        given = Inputs.of(case, device)
        actions = paths(case, given, kernels)
        with dispatch.using(kernels):
            alone = watch(partial(torch.matmul, given.hidden, given.weight.T))
            fused = watch(actions[f"head {kernels}"])
            apart = watch(actions[f"head then statistics {kernels}"])
        yield (
            f"{rows} rows: product alone {1e3 * alone:.3f} ms, with statistics "
            f"{fused / alone:.2f}x in one, {apart / alone:.2f}x apart"
        )


def decoder_of(loaded: Any, strategy: Strategy, sizes: Sizes) -> Decoder:
    """The configured strategy on the random model."""
    return Decoder(loaded.denoiser, strategy, Blocks(sizes.block), NoCache())


def _begun(decoder: Decoder, sizes: Sizes) -> Run:
    """A decode whose kernels have started."""
    request = random_request(sizes.model, sizes.batch, sizes.prompt, sizes.columns)
    run = decoder.begin(request)
    run.admit(range(sizes.batch))
    for _ in range(2):
        if run.live:
            run.step()
    return run


def one_step(decoder: Decoder, sizes: Sizes) -> Iterator[str]:
    """A step in parts, how much of it the device works, and how many kernels it launches."""
    request = random_request(sizes.model, sizes.batch, sizes.prompt, sizes.columns)
    parts = step_seconds(decoder, request, sizes.batch, 1)
    size = sizes.model
    yield (
        f"{size.layers} layers of width {size.width}, {sizes.batch} rows of "
        f"{sizes.prompt + sizes.columns} columns: {1e3 * sum(parts.values()):.2f} ms; "
        + ", ".join(f"{name} {1e3 * seconds:.2f}" for name, seconds in parts.items())
    )
    run = _begun(decoder, sizes)
    launches, busy, wall = profiled(run)
    unit = "kernels" if decoder.denoiser.device.type == "cuda" else "operators"
    yield f"{launches} {unit} in a step"
    if busy is not None:
        yield (
            f"of {1e3 * wall:.2f} ms (profiled) the device works {1e3 * busy:.2f} ms, "
            f"{busy / wall:.0%}; the rest is the host's"
        )


def profiled(run: Run) -> tuple[int, float | None, float]:
    """Launches of a step, seconds in which the device works (None on a processor), and its wall."""
    from torch.profiler import ProfilerActivity

    gpu = run.batch.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.profiler.profile(activities=activities) as found:
        begin = time.perf_counter()
        run.step()
        if gpu:
            torch.cuda.synchronize()
        wall = time.perf_counter() - begin
    if not gpu:
        return sum(1 for event in found.events() if event.cpu_parent is None), None, wall
    kernels = [event for event in found.events() if event.device_type == DeviceType.CUDA]
    return len(kernels), sum(event.time_range.elapsed_us() for event in kernels) / 1e6, wall


def attention(device: torch.device, sizes: Sizes) -> Iterator[str]:
    """Which of torch's implementations of attention is chosen, with a mask and without."""
    heads, columns = sizes.model.heads, sizes.prompt + sizes.columns
    depth, dtype = sizes.model.width // heads, getattr(torch, _dtype(device))
    query = torch.zeros(2, heads, columns, depth, dtype=dtype, device=device)
    seen = torch.ones(2, 1, 1, columns, dtype=torch.bool, device=device)
    masks = {
        "no mask": None,
        "boolean mask": seen.expand(-1, 1, columns, -1),
        "additive mask": torch.zeros_like(seen, dtype=dtype).expand(-1, 1, columns, -1),
    }
    chosen = {
        name: _backend(torch._fused_sdp_choice(query, query, query, attn_mask=mask))
        for name, mask in masks.items()
    }
    few = query[:, : max(1, heads // 4)]
    chosen["fewer key/value heads"] = _backend(
        torch._fused_sdp_choice(query, few, few, enable_gqa=True)
    )
    yield ", ".join(f"{name}: {backend}" for name, backend in chosen.items())


def _backend(number: int) -> str:
    from torch.nn.attention import SDPBackend

    names = {int(value): name for name, value in SDPBackend.__members__.items()}  # type: ignore[call-overload]
    return names.get(number, str(number)).lower()


def waits(decoder: Decoder, sizes: Sizes) -> Iterator[str]:
    """Where the host waits for the device in three steps; one wait per step is meant to be."""
    run = _begun(decoder, sizes)
    if run.batch.device.type != "cuda":
        yield "a processor waits for nobody"
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(3):
                if run.live:
                    run.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in said
        if "synchroniz" in str(warning.message)
    )
    yield ", ".join(f"{place} ({times}x)" for place, times in places.items()) or "nowhere"


def experts(problems: list[str]) -> Iterator[str]:
    """How each mixture of experts is computed: in groups, or one expert after the other."""
    for name, spec in SPECS.items():
        kind = import_class(spec.model_class)
        if "Moe" not in kind.__name__ and "MoE" not in kind.__name__:
            continue
        grouped = kind._can_set_experts_implementation()
        yield f"{name}: {'grouped' if grouped else 'EAGER, one expert after the other'}"
        if not grouped:
            problems.append(f"{name} computes its experts one after the other, with host waits")
