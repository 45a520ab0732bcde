"""`task=bench bench=step_cpu`: what a step costs on a processor when the forward pass is free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dllm_decode.errors import require_count
from dllm_decode.tasks import Context, Task
from dllm_decode.tasks.bench import check_counts, machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table


@dataclass(frozen=True)
class StepCpuBench(Task):
    """Times steps over given logits, in turns with one read of them (maximum and log-sum-exp).

    Threshold and credit, each with the end-of-text rule; one token is committed per step. Seconds
    are processor time of the thread that decodes, medians over all steps; operators are those that
    torch launches in a step, views included. Writes `step_cpu.json`.

    Attributes:
        batches: Rows decoded together.
        window: Columns per block.
        vocabulary: Token ids.
        rounds: Decodes of one block each.

    Raises:
        ConfigError: A value is out of range.

    Examples:
        >>> StepCpuBench(batches=(1,)).vocabulary
        126464
    """

    batches: tuple[int, ...] = (1, 8)
    window: int = 32
    vocabulary: int = 126_464
    rounds: int = 1

    def __post_init__(self) -> None:
        check_counts(self, "batches", "window", "rounds")
        require_count("task.vocabulary", self.vocabulary, minimum=2)

    def run(self, context: Context) -> int:
        """Measure, show a table, write the file."""
        import torch

        from dllm_decode.benchmarks.step_cpu import FreeModel, measure
        from dllm_decode.config.compose import compose_checked
        from dllm_decode.config.instantiate import build_node

        strategies = {
            name: build_node(compose_checked([f"strategy={name}"]), "strategy")
            for name in ("threshold", "credit")
        }
        steps: list[dict[str, Any]] = []
        for batch in self.batches:
            with context.display.working(f"{batch} rows"):
                model = FreeModel.of(batch, self.window, self.vocabulary)
                steps += measure(model, strategies, self.rounds)
        facts = {**machine(torch.device("cpu")), "threads": torch.get_num_threads()}
        sizes = {"window": self.window, "vocabulary": self.vocabulary, "rounds": self.rounds}
        written = context.folder.write_json("step_cpu.json", {**facts, **sizes, "steps": steps})
        context.display.show(steps_table(steps))
        context.display.say(f"written: {written}")
        return 0


def steps_table(steps: Sequence[dict[str, Any]]) -> Table:
    """Time and operators of a step.

    Args:
        steps: As `benchmarks.step_cpu.measure` gives them.
    """
    from rich.table import Table

    table = Table("strategy", "rows", "ms per step", "x one read", "operators")
    for step in steps:
        table.add_row(
            step["strategy"],
            str(step["rows"]),
            f"{1e3 * step['seconds']:.2f}",
            f"{step['ratio']:.2f}",
            str(step["operators"]),
        )
    return table
