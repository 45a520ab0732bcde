"""Figures of a report: readable in print, without colour and with colour-blind eyes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_decode.errors import ConfigError
from dllm_decode.evaluation import metrics
from dllm_decode.evaluation.curves import pareto_front
from dllm_decode.evaluation.reporting.tables import Row, is_oracle, rows_of
from dllm_decode.evaluation.store import EvalRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with every common colour vision; markers tell more apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_LINES = ("-", "--", "-.", ":")


def style(number: int) -> tuple[str, str, str]:
    """Colour, marker and line of a run, so that 140 of them differ.

    Args:
        number: Of the run, from 0.
    """
    return (
        _COLOURS[number % len(_COLOURS)],
        _MARKERS[number % len(_MARKERS)],
        _LINES[(number // len(_COLOURS)) % len(_LINES)],
    )


def draw_all(runs: Sequence[EvalRun], folder: Path) -> list[Path]:
    """Draw all figures as SVG and PNG.

    Args:
        runs: What they show.
        folder: Where to write; it is made.

    Returns:
        The SVG files.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    makers: dict[str, Callable[[Sequence[EvalRun]], Figure]] = {
        "accuracy_speed": accuracy_against_speed,
        "families": per_family,
        "steps": commits_over_steps,
        "grid": ablation_grid,
    }
    for name, make in makers.items():
        figure = make(runs)
        for ending in ("svg", "png"):
            path = folder / f"{name}.{ending}"
            # fixed identifiers and no date: the same runs give the same file
            with plt.rc_context({"svg.hashsalt": name}):
                figure.savefig(path, dpi=150, metadata={"Date": None} if ending == "svg" else None)
        plt.close(figure)
        drawn.append(folder / f"{name}.svg")
    return drawn


def canvas(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    """A figure and its axes.

    Args:
        width: In inches.
        height: In inches.
        grid: What else `matplotlib.pyplot.subplots` takes.
    """
    made: tuple[Figure, Any] = pyplot().subplots(
        figsize=(width, height), layout="constrained", **grid
    )
    return made


def pyplot() -> Any:
    """Matplotlib's pyplot, for files and not for a screen.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ConfigError(
            "figures need matplotlib: pip install 'dllm_decode[plot]', or set task.figures=false"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "svg.fonttype": "none",
            "text.parse_math": False,  # names of runs may hold dollar signs
        }
    )
    return plt


def accuracy_against_speed(runs: Sequence[EvalRun]) -> Figure:
    """Accuracy against tokens per forward over all problems, with intervals and Pareto front."""
    rows = rows_of(runs, None)
    figure, axes = canvas(8.4, max(4.8, 0.18 * len(rows) + 0.3))  # the legend has to fit
    points = [
        (row.tokens_per_forward.value, 100 * row.accuracy.value)
        for run, row in zip(runs, rows, strict=True)
        if not is_oracle(run)  # it knows the answers, and would hide the front of the rules
    ]
    front = pareto_front(points)
    axes.plot(
        [points[i][0] for i in front],
        [points[i][1] for i in front],
        color="#999999",
        linewidth=1.2,
        zorder=1,
        label="Pareto front (no oracle)",
    )
    for number, row in enumerate(rows):
        _cross(axes, row, number)
    axes.set_xlabel("tokens per forward [delivered tokens / model pass]")
    axes.set_ylabel("accuracy [% of problems]")
    axes.set_title(f"{rows[0].problems:,} problems per run; bars: 95 % intervals", fontsize=9)
    _legend_beside(figure, axes)
    return figure


def _cross(axes: Axes, row: Row, number: int) -> None:
    colour, marker, _ = style(number)
    speed, share = row.tokens_per_forward, row.accuracy
    axes.errorbar(
        [speed.value],
        [100 * share.value],
        xerr=[[speed.value - speed.low], [speed.high - speed.value]],
        yerr=[[100 * (share.value - share.low)], [100 * (share.high - share.value)]],
        color=colour,
        marker=marker,
        markersize=6,
        markeredgecolor="white",
        markeredgewidth=0.6,
        elinewidth=0.9,
        linestyle="none",
        label=_label(row.strategy),
        zorder=3,
    )


def _label(name: str) -> str:
    """A name for a legend, which leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _legend_beside(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)


def per_family(runs: Sequence[EvalRun]) -> Figure:
    """A panel per family with a bar of tokens per forward for each run, its accuracy beside it."""
    families = list(dict.fromkeys(family for run in runs for family in run.families))
    columns = min(3, len(families))
    lines = math.ceil(len(families) / columns)
    figure, panels = canvas(
        3.1 * columns + 0.8,
        (0.21 * len(runs) + 0.75) * lines,
        nrows=lines,
        ncols=columns,
        squeeze=False,
        sharey=True,
    )
    for axes in panels.flat[len(families) :]:
        axes.set_visible(False)
    for family, axes in zip(families, panels.flat, strict=False):
        rows = rows_of([run for run in runs if family in run.families], family)
        _bars(axes, rows, family)
    for axes in panels.flat[max(0, len(families) - columns) : len(families)]:
        axes.set_xlabel("tokens per forward")
    return figure


def _bars(axes: Axes, rows: Sequence[Row], family: str) -> None:
    places = list(range(len(rows)))
    values = [row.tokens_per_forward.value for row in rows]
    axes.barh(places, values, color=[style(i)[0] for i in places], height=0.72)
    for place, row in zip(places, rows, strict=True):
        axes.text(
            row.tokens_per_forward.value,
            place,
            f" {100 * row.accuracy.value:.0f} %",
            va="center",
            fontsize=7,
        )
    axes.set_yticks(places, [row.strategy for row in rows], fontsize=7)
    axes.set_xlim(0, 1.22 * max(values))
    axes.grid(axis="y", visible=False)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    axes.set_title(f"{family} (accuracy at the bar's end)", fontsize=8)


def commits_over_steps(runs: Sequence[EvalRun]) -> Figure:
    """Tokens committed in each step, averaged over the problems still running then.

    A panel for every seven runs, as many as there are colours.
    """
    groups = [runs[i : i + len(_COLOURS)] for i in range(0, len(runs), len(_COLOURS))]
    columns = min(2, len(groups))
    lines = math.ceil(len(groups) / columns)
    figure, panels = canvas(
        4.6 * columns + (1.4 if columns == 1 else 0.2),
        0.5 + 3.3 * lines,
        nrows=lines,
        ncols=columns,
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for axes, group in zip(panels.flat, groups, strict=False):
        for number, run in enumerate(group):
            _commits(axes, run, number)
        axes.legend(frameon=False, fontsize=7, loc="upper right")
    for axes in panels.flat[len(groups) :]:
        axes.set_visible(False)
    panels[0, 0].set_xscale("log", base=2)
    panels[0, 0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axes in panels.flat[max(0, len(groups) - columns) : len(groups)]:
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.set_xlabel("model pass of a problem [number, log scale]")
    for axes in panels[:, 0]:
        axes.set_ylabel("delivered tokens committed [per pass]")
    figure.suptitle(
        "averaged over problems still running; steps reached by 2 % or more", fontsize=9
    )
    return figure


def _commits(axes: Axes, run: EvalRun, number: int) -> None:
    colour, _, _ = style(number)
    commits = metrics.commits_per_step(run.samples)
    running = [sum(s.forwards > step for s in run.samples) for step in range(len(commits))]
    # the tail of a few long problems says nothing about the rule
    enough = [i for i, rows in enumerate(running) if rows >= max(1, len(run.samples) // 50)]
    axes.plot(
        [i + 1 for i in enough],
        [commits[i] for i in enough],
        color=colour,
        linestyle=_LINES[number % len(_LINES)],
        linewidth=1.4,
        marker=".",
        markersize=4,
        label=_label(run.name),
    )


def ablation_grid(runs: Sequence[EvalRun]) -> Figure:
    """Accuracy (shade and number) of every run on every family, tokens per forward beneath."""
    families = list(dict.fromkeys(family for run in runs for family in run.families))
    figure, axes = canvas(max(5.0, 2.4 + 0.62 * len(families)), 0.9 + 0.34 * len(runs))
    by_family = {
        family: {
            row.strategy: row for row in rows_of([r for r in runs if family in r.families], family)
        }
        for family in families
    }
    shares = [
        [
            100 * by_family[t][r.name].accuracy.value if r.name in by_family[t] else math.nan
            for t in families
        ]
        for r in runs
    ]
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for i, run in enumerate(runs):
        for j, family in enumerate(families):
            row = by_family[family].get(run.name)
            if row is not None:
                axes.text(
                    j,
                    i,
                    f"{100 * row.accuracy.value:.0f}\n{row.tokens_per_forward.value:.1f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    linespacing=0.95,
                    color="black" if row.accuracy.value > 0.55 else "white",
                )
    axes.set_xticks(range(len(families)), families, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(runs)), [run.name for run in runs], fontsize=7)
    axes.grid(visible=False)
    axes.set_title("accuracy [%], tokens per forward below", fontsize=9)
    figure.colorbar(image, ax=axes, label="accuracy [%]", shrink=0.8)
    return figure
