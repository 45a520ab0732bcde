"""`task=bench`: how long things take; each `bench=` option names a class of this module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dllm_decode.environment import processor, version_of
from dllm_decode.errors import ConfigError, require, require_choice, require_count
from dllm_decode.tasks import Context, Task

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from rich.table import Table

DTYPES = ("bfloat16", "float16", "float32")
CPU_NOTE = (
    "no CUDA device: these are figures of the plain-torch path on this CPU; the fused kernels were "
    "not timed, figures for them need a GPU"
)


@dataclass(frozen=True)
class KernelBench(Task):
    """Times the row statistics of `kernels/` against the one-read limit of the device.

    For each size: bytes of one read of the logits, its time at the measured copy bandwidth, the
    time of each fused kernel (on a GPU), of plain torch, of the naive way (dense, float64, sorted),
    of the head product alone, and of that product followed by the statistics. Writes
    `kernels.json` after each size, and `kernels.png`. What memory does not suffice for is left out.

    Attributes:
        batches: Rows decoded together; times the windows, these are the numbers of rows.
        windows: Positions per row.
        vocabularies: Token ids.
        dtypes: Of the logits.
        slots: Credited tokens per row.
        width: Of the hidden states.
        repeats: Timed runs of which the median counts.
        device: `auto`, `cpu` or `cuda`.
        largest: Logits in a case above which it is left out; None for 2^23 on a CPU, 2^30 on a GPU.

    Raises:
        ConfigError: A value is out of range, or the device is not there.

    Examples:
        >>> KernelBench(batches=(1,), windows=(32,)).vocabularies
        (126464,)
    """

    batches: tuple[int, ...] = (1, 8, 64)
    windows: tuple[int, ...] = (1, 32, 64)
    vocabularies: tuple[int, ...] = (126_464,)
    dtypes: tuple[str, ...] = ("bfloat16",)
    slots: int = 8
    width: int = 4096
    repeats: int = 30
    device: str = "auto"
    largest: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, "batches", "windows", "vocabularies", "slots", "width", "repeats")
        require(len(self.dtypes) > 0, "task.dtypes must not be empty")
        for dtype in self.dtypes:
            require_choice("task.dtypes", dtype, DTYPES)
        if self.largest is not None:
            require_count("task.largest", self.largest)
        require_choice("task.device", self.device, ("auto", "cpu", "cuda"))

    def run(self, context: Context) -> int:
        """Measure, show a table, write both files."""
        from dllm_decode.benchmarks.kernels import Stopwatch, copy_bandwidth, measure, ratios

        device = device_of(self.device)
        say = context.display.say
        if device.type != "cuda":
            say(CPU_NOTE)
        watch = Stopwatch(device, self.repeats)
        bandwidth = copy_bandwidth(watch, device)
        largest = self.largest or (1 << 30 if device.type == "cuda" else 1 << 23)
        records: list[dict[str, Any]] = []
        note = None if device.type == "cuda" else CPU_NOTE
        facts = {**machine(device), "note": note, "repeats": self.repeats}
        report = {**facts, "copy_bytes_per_second": bandwidth, "cases": records}
        for case in self._cases():
            size = f"{case.rows} rows x {case.vocabulary} ids, {str(case.dtype)[6:]}"
            if case.rows * case.vocabulary > largest:
                say(f"left out, larger than task.largest={largest}: {size}")
                continue
            with context.display.working(size):
                seconds, too_large = measure(case, watch, device)
            if too_large:
                say(f"{size}: out of memory: {', '.join(too_large)}")
            limit = case.bytes / bandwidth
            records.append(
                {
                    "rows": case.rows,
                    "vocabulary": case.vocabulary,
                    "dtype": str(case.dtype)[6:],
                    "slots": case.slots,
                    "width": case.width,
                    "bytes": case.bytes,
                    "head_bytes": case.head_bytes,
                    "seconds_one_read": limit,
                    "seconds_head_read": case.head_bytes / bandwidth,
                    "seconds": seconds,
                    "out_of_memory": too_large,
                    "ratios": ratios(seconds, limit),
                }
            )
            context.folder.write_json("kernels.json", report)  # whatever ends the next case
        written = context.folder.write_json("kernels.json", report)
        for record in records:
            context.display.show(case_table(record))
        picture = context.folder.path / "kernels.png"
        drawn = draw(records, picture, str(report["device"]))
        say(f"written: {written}" + (f", {picture}" if drawn else "; no plot without matplotlib"))
        return 0

    def _cases(self) -> list[Any]:
        import torch

        from dllm_decode.benchmarks.kernels import KernelCase

        rows = sorted({batch * window for batch in self.batches for window in self.windows})
        return [
            KernelCase(count, vocabulary, getattr(torch, dtype), self.slots, self.width)
            for dtype in self.dtypes
            for vocabulary in self.vocabularies
            for count in rows
        ]


def check_counts(task: Task, *names: str) -> None:
    """Refuse settings that are no counts of 1 or more, or empty lists of such.

    Args:
        task: What is to be run.
        names: Of its fields.

    Raises:
        ConfigError: Naming the first setting that is neither.
    """
    for name in names:
        value = getattr(task, name)
        listed = isinstance(value, list | tuple)
        require(not listed or len(value) > 0, f"task.{name} must not be empty")
        for count in value if listed else (value,):
            require_count(f"task.{name}", count)


def device_of(setting: str) -> torch.device:
    """The device that a setting names.

    Args:
        setting: `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: There is no such device.
    """
    import torch

    there = torch.cuda.is_available()
    if setting == "cuda" and not there:
        raise ConfigError("task.device=cuda needs a CUDA device, and there is none; use auto")
    return torch.device("cuda" if there and setting != "cpu" else "cpu")


def machine(device: torch.device) -> dict[str, object]:
    """What every table of figures has to say about where it was taken.

    Args:
        device: Where things were timed.
    """
    import torch

    from dllm_decode.benchmarks.kernels import kernels_start

    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else processor(),
        "kernels_timed": kernels_start(device),
        "versions": {
            "torch": torch.__version__,
            "triton": version_of("triton"),
            "cuda": torch.version.cuda,
        },
    }


def case_table(record: dict[str, Any]) -> Table:
    """Times and distances from the limit of one size.

    Args:
        record: One entry of `kernels.json`.
    """
    from rich.table import Table

    limit = record["seconds_one_read"]
    title = (
        f"{record['rows']} rows x {record['vocabulary']} ids, {record['dtype']}: "
        f"{record['bytes'] / 1e6:.1f} MB, one read {1e3 * limit:.3f} ms"
    )
    table = Table("path", "ms", "x one read", title=title, title_justify="left")
    for name, seconds in record["seconds"].items():
        beside = "" if name.startswith(("head", "selection")) else f"{seconds / limit:.2f}"
        table.add_row(name, f"{1e3 * seconds:.3f}", beside)
    return table


def draw(records: list[dict[str, Any]], path: Path, device: str) -> bool:
    """Plot time over rows, one panel per vocabulary and dtype.

    Args:
        records: The entries of `kernels.json`.
        path: The file to write.
        device: Its name, for the titles.

    Returns:
        False where matplotlib is missing and nothing was drawn.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    sizes = sorted({(record["vocabulary"], record["dtype"]) for record in records})
    figure = Figure(figsize=(9, 5.5 * max(1, len(sizes))), layout="constrained")
    for number, size in enumerate(sizes):
        axes = figure.add_subplot(len(sizes), 1, number + 1)
        own = [record for record in records if (record["vocabulary"], record["dtype"]) == size]
        rows = [record["rows"] for record in own]
        limits = [1e3 * record["seconds_one_read"] for record in own]
        axes.plot(rows, limits, color="black", linestyle="--", label="one read of the logits")
        names = dict.fromkeys(name for record in own for name in record["seconds"])
        for place, name in enumerate(names):
            style = ("-", "--", ":")[place // 10 % 3]
            times = [1e3 * record["seconds"].get(name, float("nan")) for record in own]
            axes.plot(rows, times, marker="o", label=name, color=f"C{place % 10}", linestyle=style)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="rows (batch x window)",
            ylabel="time [ms]",
            title=f"{size[0]} ids, {size[1]}, {device}",
        )
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    return True
