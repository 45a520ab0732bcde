"""`task=bench bench=decoding`: caches, batch sizes, batching and canvas lengths, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from statistics import median
from typing import TYPE_CHECKING, Any

from dllm_decode.errors import require, require_choice
from dllm_decode.tasks import Context, Task
from dllm_decode.tasks.bench import check_counts

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from dllm_decode.benchmarks.decoding import Contender, Timing
    from dllm_decode.decoding.loop import Decoder

GROUPS = ("step", "batch", "batching", "cache", "canvas")


@dataclass(frozen=True)
class DecodingBench(Task):
    """Times whole decodes; the variants of a group take turns, medians and ratios are quoted.

    Groups: `step` (share of a step's time that each part takes, at batch 1 and 32); `batch`
    (prompts of mixed lengths, one to 32 at once); `batching` (answers of 2 to 100 tokens, eight at
    once: continuous, static, and static with finished rows that stay, as in the released samplers);
    `cache` (every policy that fits the model, one canvas); `canvas` (`none` and `dual` on canvases
    of 64 to 512). One token is committed per pass and nothing stops early, so that all variants of
    a group do the same work; `step` uses the configured strategy. The limit of the model's
    positions is lifted: this is about time, and what a model says beyond its trained length does
    not matter here. Says which targets are met. Writes `decoding.json` and `decoding.png`.

    Attributes:
        groups: Which of them.
        rounds: Timed runs of each variant, 1 or more.
        rows: Prompts per run of `batch` and `batching`.
        canvas: Generated columns in `cache`.
        block: Columns per block.

    Raises:
        ConfigError: A value is out of range.

    Examples:
        >>> DecodingBench(rounds=1).rows
        32
    """

    groups: tuple[str, ...] = GROUPS
    rounds: int = 3
    rows: int = 32
    canvas: int = 512
    block: int = 32

    def __post_init__(self) -> None:
        require(len(self.groups) > 0, "task.groups must not be empty")
        for group in self.groups:
            require_choice("task.groups", group, GROUPS)
        check_counts(self, "rounds", "rows", "canvas", "block")

    def run(self, context: Context) -> int:
        """Measure, show a table per group, write both files."""
        context.refuse_early()
        from dllm_decode.benchmarks.kernels import where_it_fits

        say = context.display.say
        say(str(context.model.description))
        report: dict[str, Any] = {"model": str(context.model.description), "rounds": self.rounds}
        timings: list[Timing] = []
        for group in sorted(self.groups, key="step".__ne__):  # the step comes first
            take = self._step if group == "step" else partial(self._compare, group=group)
            found: Any = where_it_fits(partial(take, context))
            if found is None:
                say(f"{group}: out of memory")
                report["out_of_memory"] = [*report.get("out_of_memory", []), group]
            elif group == "step":
                report["step"] = found
            else:
                timings += found
            report["timings"] = [asdict(timing) for timing in timings]
            context.folder.write_json("decoding.json", report)  # whatever ends the next group
        report["targets"] = self._targets(context, report.get("step", {}), timings)
        written = context.folder.write_json("decoding.json", report)
        picture = context.folder.path / "decoding.png"
        drawn = draw(timings, picture) if timings else False
        say(f"written: {written}" + (f", {picture}" if drawn else ""))
        return 0

    def _step(self, context: Context) -> dict[str, dict[str, float]]:
        from rich.table import Table

        from dllm_decode.benchmarks.decoding import PARTS, repeated, shares

        table = Table("rows at once", *PARTS, title="share of the time of a step [%]")
        found = {}
        decoder = unlimited(context.decoder.decoder)
        for batch in (1, 32):
            request = repeated(self._prompts(context), batch, 64)
            with context.display.working(f"step at batch {batch}"):
                parts = dict(shares(decoder, request, batch, self.rounds))
            found[str(batch)] = parts
            table.add_row(str(batch), *(f"{100 * parts[part]:.1f}" for part in PARTS))
        context.display.show(table)
        return found

    def _targets(
        self, context: Context, step: dict[str, dict[str, float]], timings: Sequence[Timing]
    ) -> list[dict[str, Any]]:
        from rich.table import Table

        from dllm_decode.benchmarks.decoding import targets

        found = list(targets(step, timings))
        table = Table("target", "measured", "goal", "", title="targets")
        for one in found:
            word = "met" if one.met else "not met"
            table.add_row(one.what, f"{one.measured:.2f}", one.goal, word)
        if found:
            context.display.show(table)
        return [{**asdict(one), "met": one.met} for one in found]

    def _compare(self, context: Context, group: str) -> list[Timing]:
        from dllm_decode.benchmarks.decoding import compare

        variants = self._variants(context, group)
        with context.display.progress(group, len(variants) * (self.rounds + 1)) as tick:
            done = count(1)
            timings = compare(group, variants, self.rounds, lambda: tick(next(done)))
        context.display.show(group_table(timings))
        return timings

    def _variants(self, context: Context, group: str) -> list[Contender]:
        from dllm_decode.benchmarks import decoding

        decoder, prompts = self._plain(context), self._prompts(context)
        if group == "batch":
            return decoding.batch_sizes(decoder, prompts, self.rows)
        if group == "batching":
            return decoding.ways_to_batch(decoder, prompts, self.rows)
        if group == "cache":
            return decoding.cache_policies(decoder, prompts, self.canvas)
        return decoding.canvas_lengths(decoder, prompts)

    def _prompts(self, context: Context) -> list[tuple[int, ...]]:
        """Sample problems of different lengths as token ids."""
        from dllm_decode.problems import TRAINED, problems

        texts = [problems(family, "held_out", 1)[0].prompt for family in sorted(TRAINED)]
        return [context.decoder.encode(text) for text in texts]

    def _plain(self, context: Context) -> Decoder:
        """The configured decoder, committing one token per pass and never stopping early."""
        from dllm_decode.decoding.schedule import Blocks

        one_by_one = context.decoder_with("strategy=sequential", "strategy/stop=never")
        return replace(unlimited(one_by_one.decoder), schedule=Blocks(self.block))


def unlimited(decoder: Decoder) -> Decoder:
    """The decoder without the limit on the model's positions, where the model can lift it.

    Args:
        decoder: Any.
    """
    denoiser: Any = decoder.denoiser
    if denoiser.max_length is None or "max_length" not in getattr(
        denoiser, "__dataclass_fields__", {}
    ):
        return decoder
    return replace(decoder, denoiser=replace(denoiser, max_length=None))


def group_table(timings: Sequence[Timing]) -> Table:
    """Tokens per second and ratios of one group.

    Args:
        timings: Of its variants.
    """
    from rich.table import Table

    table = Table(
        "variant", "seconds (median)", "tokens/s", "ratio", "forwards", title=timings[0].group
    )
    for timing in timings:
        table.add_row(
            timing.name,
            f"{median(timing.seconds):.3f}",
            f"{timing.tokens_per_second:.1f}",
            f"{timing.ratio:.2f}",
            str(timing.forwards),
        )
    return table


def draw(timings: Sequence[Timing], path: Path) -> bool:
    """Draw bars of tokens per second against each group's first variant.

    Args:
        timings: Of all groups.
        path: The file to write.

    Returns:
        False where matplotlib is missing and nothing was drawn.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    groups = list(dict.fromkeys(timing.group for timing in timings))
    figure = Figure(
        figsize=(8, 0.6 + 0.32 * len(timings) + 0.8 * len(groups)), layout="constrained"
    )
    heights = [1 + sum(timing.group == group for timing in timings) for group in groups]
    panels = figure.subplots(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, group in zip(panels, groups, strict=True):
        own = [timing for timing in timings if timing.group == group]
        bars = axes.barh([timing.name for timing in own], [timing.ratio for timing in own])
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_title(group, loc="left")
        axes.set_xlabel(f"tokens per second, relative to {own[0].name}")
    figure.savefig(path, dpi=110)
    return True
