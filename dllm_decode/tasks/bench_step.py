"""`task=bench bench=step`: where one step of an LLaDA-8B-sized model spends its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dllm_decode.errors import ConfigError, require, require_choice, require_count
from dllm_decode.tasks import Context, Task
from dllm_decode.tasks.bench import CPU_NOTE, DTYPES, check_counts, device_of, machine

if TYPE_CHECKING:
    from rich.table import Table

    from dllm_decode.benchmarks.step import Size
    from dllm_decode.decoding.loop import Decoder
    from dllm_decode.decoding.types import Request

# kernels and head: everything fused, logits written in between, plain torch
VARIANTS = (("auto", "auto"), ("auto", "apart"), ("reference", "apart"))
CPU_PARAMETERS = 10**9


@dataclass(frozen=True)
class StepBench(Task):
    """Profiles whole decoding steps of a model with random weights; no checkpoint is needed.

    For each batch, milliseconds per step of each part (`benchmarks.decoding.step_seconds`), with
    head and statistics fused, with the logits in between, and in plain torch; where the head is
    fused its product counts as statistics. Each part is timed with a device that has
    finished all earlier work, so the parts add up to more than an undisturbed step. Strategy,
    schedule and cache are the configured ones. Writes `step.json` and `step_profile.txt`, the
    operations of one decode of the first batch as torch.profiler sees them.

    Attributes:
        batches: Rows decoded together.
        prompt: Columns of the prompt.
        tokens: Generated columns.
        rounds: Decodes of which the median counts.
        vocabulary: Token ids of the model, LLaDA-8B's by default, as all of its sizes.
        width: Of the hidden states.
        inner: Of the feed-forward layers.
        layers: Number of blocks.
        heads: Attention heads of a block.
        dtype: Of the weights.
        device: `auto`, `cpu` or `cuda`.
        compile: See `load_model`.

    Raises:
        ConfigError: A value is out of range, the device is not there, or the model has more than
            10^9 parameters on a CPU.

    Examples:
        >>> StepBench(batches=(1,), layers=2).vocabulary
        126464
    """

    batches: tuple[int, ...] = (1, 32)
    prompt: int = 128
    tokens: int = 64
    rounds: int = 2
    vocabulary: int = 126_464
    width: int = 4096
    inner: int = 12_288
    layers: int = 32
    heads: int = 32
    dtype: str = "bfloat16"
    device: str = "auto"
    compile: str | None = None

    def __post_init__(self) -> None:
        names = ("batches", "prompt", "tokens", "rounds", "width", "inner", "layers", "heads")
        check_counts(self, *names)
        require_count("task.vocabulary", self.vocabulary, minimum=2)
        require(
            self.width % (2 * self.heads) == 0,
            f"task.width must be a multiple of 2 * task.heads, got {self.width} and {self.heads}",
        )
        require_choice("task.dtype", self.dtype, DTYPES)
        require_choice("task.device", self.device, ("auto", "cpu", "cuda"))
        if self.compile is not None:
            from dllm_decode.models.compiled import MODES

            require_choice("task.compile", self.compile, MODES)

    def run(self, context: Context) -> int:
        """Measure, show a table, write both files."""
        from dllm_decode.api import build
        from dllm_decode.benchmarks.kernels import where_it_fits
        from dllm_decode.benchmarks.step import profile, random_model

        size, device = self._size(), device_of(self.device)
        if device.type == "cpu" and size.parameters > CPU_PARAMETERS:
            raise ConfigError(
                f"a model of {size.parameters:.2g} parameters needs a GPU, and there is none; "
                "lower task.layers, task.width, task.inner and task.vocabulary"
            )
        say = context.display.say
        if device.type != "cuda":
            say(CPU_NOTE)
        variants = VARIANTS if device.type == "cuda" else VARIANTS[-1:]
        with context.display.working("making the model"):
            loaded = random_model(size, self.dtype, device, self.compile)
        say(str(loaded.description))
        decoder = build(context.cfg, model=lambda: loaded).decoder
        steps: list[dict[str, Any]] = []
        report = {
            **machine(device),
            "note": None if device.type == "cuda" else CPU_NOTE,
            "model": str(loaded.description),
            "prompt": self.prompt,
            "tokens": self.tokens,
            "compile": self.compile,
            "steps": steps,
        }
        for batch in self.batches:
            for kernels, head in variants:
                steps.append(self._variant(context, decoder, batch, kernels, head))
                written = context.folder.write_json("step.json", report)  # whatever comes next
        request = self._request(self.batches[0])
        with context.display.working("profile"):
            operations = where_it_fits(lambda: profile(decoder, request)) or "out of memory\n"
        table = context.folder.write_text("step_profile.txt", operations)
        context.display.show(step_table(steps))
        say(f"written: {written}, {table}")
        return 0

    def _size(self) -> Size:
        from dllm_decode.benchmarks.step import Size

        positions = self.prompt + self.tokens
        shape = (self.vocabulary, self.width, self.inner, self.layers, self.heads)
        return Size(*shape, positions=positions)

    def _request(self, rows: int) -> Request:
        from dllm_decode.benchmarks.step import random_request

        return random_request(self._size(), rows, self.prompt, self.tokens)

    def _variant(
        self, context: Context, decoder: Decoder, batch: int, kernels: str, head: str
    ) -> dict[str, Any]:
        import torch

        from dllm_decode.benchmarks.decoding import step_seconds
        from dllm_decode.benchmarks.kernels import where_it_fits
        from dllm_decode.kernels import dispatch

        gpu = decoder.denoiser.device.type == "cuda"
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        title = f"{batch} rows, kernels={kernels} head={head}"
        with context.display.working(title), dispatch.using(kernels, head):
            request = self._request(batch)
            seconds = where_it_fits(lambda: step_seconds(decoder, request, batch, self.rounds))
        if seconds is None:
            context.display.say(f"{title}: out of memory")
        return {
            "batch": batch,
            "kernels": kernels,
            "head": head,
            "seconds": None if seconds is None else dict(seconds),
            "peak_bytes": torch.cuda.max_memory_allocated() if gpu else None,
        }


def step_table(steps: list[dict[str, Any]]) -> Table:
    """Milliseconds per step of each part.

    Args:
        steps: The entries of `step.json`.
    """
    from rich.table import Table

    timed = [step for step in steps if step["seconds"] is not None]
    parts = list(timed[0]["seconds"]) if timed else []
    table = Table("rows", "kernels", "head", *parts, "sum", title="ms per step")
    for step in timed:
        times = [1e3 * step["seconds"][part] for part in parts]
        numbers = [f"{time:.3f}" for time in (*times, sum(times))]
        table.add_row(str(step["batch"]), step["kernels"], step["head"], *numbers)
    return table
