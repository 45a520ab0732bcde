"""Figures of a report: readable in print, without colour and with colour-blind eyes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_decode.errors import ConfigError
from dllm_decode.evaluation import metrics
from dllm_decode.evaluation.curves import pareto_front
from dllm_decode.evaluation.reporting.factors import CONTROL, ORACLE, RULE, Traits, traits_of
from dllm_decode.evaluation.reporting.palette import colour, colours
from dllm_decode.evaluation.reporting.tables import ALL, Row, rows_of
from dllm_decode.evaluation.statistics import Interval
from dllm_decode.evaluation.store import EvalRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT = 9  # points; at the width of a page 7 is still read
_MARKERS = ("o", "D", "^", "v", "P", "X", "<", ">")  # controls are squares, the oracle a star
_LINES = ("-", "--", "-.", ":")
_MOST_PANELS = 6
_APART = 0.1  # families whose accuracies differ by more between the rules get a panel


@dataclass(frozen=True)
class Shown:
    """A run as figures show it.

    Attributes:
        traits: What tells it from the others.
        rows: Its figures by family, `ALL` among them.

    Examples:
        >>> a = Shown(Traits("a", "a", {}, "one", 0.9, "threshold", RULE), {})
        >>> b = Shown(Traits("b", "b", {}, "one", 0.5, "threshold", RULE), {})
        >>> [one.traits.name for one in lines_of([a, b])[0]]
        ['b', 'a']
    """

    traits: Traits
    rows: Mapping[str, Row]


def shown_runs(runs: Sequence[EvalRun]) -> list[Shown]:
    """What figures need of some runs."""
    families = list(dict.fromkeys(family for run in runs for family in run.families))
    found: list[dict[str, Row]] = [{ALL: row} for row in rows_of(runs, None)]
    places = {id(run): number for number, run in enumerate(runs)}
    for family in families:
        own = [run for run in runs if family in run.families]
        for run, row in zip(own, rows_of(own, family), strict=True):
            found[places[id(run)]][family] = row
    return [Shown(trait, rows) for trait, rows in zip(traits_of(runs), found, strict=True)]


class Style:
    """Hue and marker by kind of rule: colour-blind eyes and grey print tell them apart as well.

    Examples:
        >>> credit = Traits("credit", "credit", {}, "", None, "credit", RULE)
        >>> style = Style([Shown(credit, {})])
        >>> style.colour(credit), style.marker(credit)
        ('#D55E00', 'o')
    """

    def __init__(self, shown: Sequence[Shown]) -> None:
        self.hues = colours([one.traits for one in shown])

    def colour(self, traits: Traits) -> str:
        """Grey for controls, black for the oracle."""
        return colour(traits, self.hues)

    def marker(self, traits: Traits) -> str:
        """A shape per kind."""
        if traits.role != RULE:
            return "*" if traits.role == ORACLE else "s"
        return _MARKERS[list(self.hues).index(traits.kind) % len(_MARKERS)]


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
    made = shown_runs(runs)
    makers: dict[str, Callable[[], Figure]] = {
        "accuracy_speed": lambda: accuracy_against_speed(made),
        "families": lambda: per_family(made),
        "steps": lambda: commits_over_steps(runs),
        "grid": lambda: ablation_grid(made),
    }
    return draw(makers, folder, ("svg", "png"))


def draw(
    makers: Mapping[str, Callable[[], Figure]], folder: Path, endings: Sequence[str]
) -> list[Path]:
    """Draw figures into files; returns the SVG files, or those of the only ending.

    Args:
        makers: What makes each figure, by its name.
        folder: Where to write; it is made.
        endings: E.g. `svg` and `png`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        figure = make()
        lay_out(figure)
        figure.set_layout_engine("none")  # laid out once, and alike in every format
        for ending in endings:
            path = folder / f"{name}.{ending}"
            # fixed identifiers and no date: the same runs give the same file
            with plt.rc_context({"svg.hashsalt": name}):
                figure.savefig(path, dpi=150, metadata={"Date": None} if ending == "svg" else None)
        plt.close(figure)
    return [folder / f"{name}.{endings[0]}" for name in makers]


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


def lay_out(figure: Figure) -> None:
    """Find the places of all axes, without drawing anything."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


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
            "axes.titley": 1.0,  # nothing is above the axes; to look for it takes a fifth of all
            "svg.fonttype": "none",
            "text.parse_math": False,  # names of runs may hold dollar signs
        }
    )
    return plt


def accuracy_against_speed(shown: Sequence[Shown]) -> Figure:
    """Accuracy against tokens per forward over all problems, with intervals and Pareto front."""
    style = Style(shown)
    figure, axes = canvas(8.4, 5.6)
    rows = [one.rows[ALL] for one in shown]
    _front(axes, shown, rows)
    labels = []
    for one, row in zip(shown, rows, strict=True):
        _cross(axes, one, row, style)
    for line in lines_of(shown):
        labels += _along(axes, line, [one.rows[ALL] for one in line], style)
    axes.set_xlabel("tokens per forward [delivered tokens / model pass]")
    axes.set_ylabel("accuracy [% of problems]")
    axes.set_title(
        f"{rows[0].problems:,} problems per run; light bars: 95 % intervals; a line joins the "
        "settings of one rule",
        fontsize=FONT,
    )
    axes.set_xlim(left=0)
    axes.set_ylim(top=min(101, axes.get_ylim()[1]))
    _legend(figure, shown, style)
    lay_out(figure)
    place_labels(axes, labels)
    return figure


def lines_of(shown: Sequence[Shown]) -> list[list[Shown]]:
    """Runs that differ in one setting of one rule together, in its order; the others alone."""
    found: dict[str, list[Shown]] = {}
    for one in shown:
        found.setdefault(one.traits.line, []).append(one)
    return [sorted(line, key=lambda one: one.traits.at or 0.0) for line in found.values()]


def _front(axes: Axes, shown: Sequence[Shown], rows: Sequence[Row]) -> None:
    points = [
        (row.tokens_per_forward.value, 100 * row.accuracy.value)
        for one, row in zip(shown, rows, strict=True)
        if one.traits.role != ORACLE  # it knows the answers, and would hide the front of the rules
    ]
    front = pareto_front(points)
    axes.plot(
        [points[i][0] for i in front],
        [points[i][1] for i in front],
        color="#c4c4c4",
        linewidth=5,
        solid_joinstyle="round",
        zorder=0,
        label="Pareto front (no oracle)",
    )


def _cross(axes: Axes, one: Shown, row: Row, style: Style) -> None:
    speed, share = row.tokens_per_forward, row.accuracy
    axes.errorbar(
        [speed.value],
        [100 * share.value],
        xerr=[[speed.value - speed.low], [speed.high - speed.value]],
        yerr=[[100 * (share.value - share.low)], [100 * (share.high - share.value)]],
        color=style.colour(one.traits),
        alpha=0.3,
        elinewidth=1.0,
        linestyle="none",
        zorder=1,
    )


def _along(
    axes: Axes, line: Sequence[Shown], rows: Sequence[Row], style: Style
) -> list[tuple[float, float, str]]:
    """The points of one line; returns their labels with their places."""
    traits = line[0].traits
    xs = [row.tokens_per_forward.value for row in rows]
    ys = [100 * row.accuracy.value for row in rows]
    axes.plot(
        xs,
        ys,
        color=style.colour(traits),
        marker=style.marker(traits),
        markersize=10 if traits.role == ORACLE else 6,
        markeredgecolor="white",
        markeredgewidth=0.7,
        linewidth=1.6,
        zorder=3,
    )
    if len(line) == 1:
        return [(xs[0], ys[0], rows[0].strategy)]
    # the rule once, at the end of its line, and the setting at the other points
    last = len(line) - 1 if xs[-1] >= xs[0] else 0
    return [
        (x, y, row.strategy if number == last else f"{one.traits.at:g}")
        for number, (one, row, x, y) in enumerate(zip(line, rows, xs, ys, strict=True))
    ]


def _legend(figure: Figure, shown: Sequence[Shown], style: Style) -> None:
    """Kinds of rules below a figure."""
    from matplotlib.lines import Line2D

    first: dict[str, Traits] = {}
    for one in shown:
        kind = one.traits.kind if one.traits.role == RULE else one.traits.role
        first.setdefault(kind, one.traits)
    handles = [
        Line2D([], [], color=style.colour(t), marker=style.marker(t), linestyle="none", label=kind)
        for kind, t in first.items()
    ]
    handles.append(Line2D([], [], color="#c4c4c4", linewidth=5, label="Pareto front (no oracle)"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=FONT - 1
    )


# Places of a label around its point, in points: near first, then further away with a line to it.
_AROUND = ((1, 0), (0.7, 0.75), (0.7, -0.75), (0, 1.2), (0, -1.2), (-0.7, 0.75), (-0.7, -0.75),
           (-1, 0))  # fmt: skip
_RADII = (7, 14, 22, 32, 44, 58, 74)
_OFFSETS = [(radius * x, radius * y) for radius in _RADII for x, y in _AROUND]
_NEAR = 16  # of these are so near that no line is needed


def place_labels(
    axes: Axes,
    labels: Sequence[tuple[float, float, str]],
    size: float = FONT - 1.5,
    everywhere: bool = True,
) -> None:
    """Write names at their points, so that none lies on another one or on a point.

    Args:
        axes: With the points drawn and its limits set, laid out.
        labels: Place in data and text of each.
        size: Of the letters [points].
        everywhere: Whether a name that has no free place near its point is put further away, and
            not left out.
    """
    figure: Any = axes.get_figure()
    scale = 72 / figure.dpi
    points: list[Box] = [tuple(scale * axes.transData.transform((x, y))) for x, y, _ in labels]
    frame = axes.get_window_extent()
    inside = tuple(scale * edge for edge in (frame.x0, frame.y0, frame.x1, frame.y1))
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    places = list(range(len(labels)))
    for number in sorted(places, key=lambda i: -points[i][0]) if everywhere else places:
        x, y, text = labels[number]
        offsets = _OFFSETS if everywhere else _OFFSETS[:_NEAR]
        right, up, box, covered = _free_place(points[number], text, size, taken, inside, offsets)
        if covered and not everywhere:
            continue
        taken.append(box)
        far = math.hypot(right, up) > 16
        axes.annotate(
            _label(text),
            (x, y),
            (right, up),
            textcoords="offset points",
            fontsize=size,
            ha="left" if right > 1 else "right" if right < -1 else "center",
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.5} if far else None,
            zorder=4,
        )


Box = tuple[float, ...]


def _free_place(
    point: tuple[float, ...],
    text: str,
    size: float,
    taken: Sequence[Box],
    inside: Box,
    offsets: Sequence[tuple[float, float]],
) -> tuple[float, float, Box, float]:
    """The nearest offset of a label that covers nothing, or the one that covers least.

    Returns:
        To the right and up, its box, and the area that it covers.
    """
    best, least = None, math.inf
    wide, high = 0.58 * size * len(text) + 1, 1.25 * size
    for right, up in offsets:
        x, y = point[0] + right, point[1] + up
        left = x if right > 1 else x - wide if right < -1 else x - wide / 2
        box = (left, y - high / 2, left + wide, y + high / 2)
        covered = sum(_common(box, other) for other in taken) + 10 * _outside(box, inside)
        if covered < least:
            best, least = (right, up, box), covered
        if covered == 0:
            break
    assert best is not None
    return *best, least


def _common(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    across, up = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, across) * max(0.0, up)


def _outside(a: Box, frame: Box) -> float:
    return sum(
        max(0.0, x) for x in (frame[0] - a[0], frame[1] - a[1], a[2] - frame[2], a[3] - frame[3])
    )


def _label(name: str) -> str:
    """A name for a legend, which leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def per_family(shown: Sequence[Shown]) -> Figure:
    """Small multiples: a panel for each family on which the rules differ, one for all others."""
    panels = panels_of(shown)
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, grid = canvas(8.4, 2.9 * lines + 0.5, nrows=lines, ncols=columns, squeeze=False)
    style = Style(shown)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for (title, rows), axes in zip(panels.items(), grid.flat, strict=False):
        _panel(axes, shown, rows, style)
        axes.set_title(title, fontsize=FONT)
    for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel("tokens per forward")
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy [%]")
    _legend(figure, shown, style)
    lay_out(figure)
    for (_, rows), axes in zip(panels.items(), grid.flat, strict=False):
        _names(axes, shown, rows)
    return figure


def panels_of(shown: Sequence[Shown]) -> dict[str, list[Row | None]]:
    """What each panel shows, a row per run: families on which rules differ most, then the rest."""
    families = list(dict.fromkeys(f for one in shown for f in one.rows if f != ALL))
    spreads = {}
    for family in families:
        shares = [
            one.rows[family].accuracy.value
            for one in shown
            if family in one.rows and one.traits.role == RULE
        ]
        spreads[family] = max(shares) - min(shares) if shares else 0.0
    apart = sorted((f for f in families if spreads[f] > _APART), key=lambda f: -spreads[f])
    chosen = apart[: _MOST_PANELS - 1]
    rest = [family for family in families if family not in chosen]
    panels: dict[str, list[Row | None]] = {
        family: [one.rows.get(family) for one in shown] for family in chosen
    }
    if rest:
        title = rest[0] if len(rest) == 1 else f"the other {len(rest)} families"
        panels[title] = [_pooled(one, rest, title) for one in shown]
    return panels


def _pooled(one: Shown, families: Sequence[str], title: str) -> Row | None:
    """One row for several families; without intervals."""
    rows = [one.rows[family] for family in families if family in one.rows]
    if not rows:
        return None
    problems = sum(row.problems for row in rows)
    passes = sum(row.problems * row.forwards.value for row in rows)
    tokens = sum(row.problems * row.forwards.value * row.tokens_per_forward.value for row in rows)
    share = sum(row.problems * row.accuracy.value for row in rows) / problems
    forwards, speed = passes / problems, tokens / passes if passes else 0.0
    return replace(
        rows[0],
        family=title,
        problems=problems,
        accuracy=Interval(share, share, share),
        forwards=Interval(forwards, forwards, forwards),
        tokens_per_forward=Interval(speed, speed, speed),
    )


def _panel(axes: Axes, shown: Sequence[Shown], rows: Sequence[Row | None], style: Style) -> None:
    by_name = {row.strategy: row for row in rows if row is not None}
    here = [one for one in shown if one.rows[ALL].strategy in by_name]
    own = [by_name[one.rows[ALL].strategy] for one in here]
    _front(axes, here, own)
    for line in lines_of(here):
        _along(axes, line, [by_name[one.rows[ALL].strategy] for one in line], style)
    axes.set_xlim(left=0)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 88), min(102, high + 1))


def _names(axes: Axes, shown: Sequence[Shown], rows: Sequence[Row | None]) -> None:
    """Names in a panel where there is room; all of them are in the figure of all families."""
    own = [(one, row) for one, row in zip(shown, rows, strict=True) if row is not None]
    front = set(
        pareto_front([(row.tokens_per_forward.value, row.accuracy.value) for _, row in own])
    )
    order = sorted(range(len(own)), key=lambda number: number not in front)
    labels = [
        (row.tokens_per_forward.value, 100 * row.accuracy.value, row.strategy)
        for _, row in (own[number] for number in order)
    ]
    place_labels(axes, labels, FONT - 2.5, everywhere=False)


def commits_over_steps(runs: Sequence[EvalRun]) -> Figure:
    """Tokens committed in each step, averaged over the problems still running then.

    A panel per kind of rule, with the baseline in grey in each.
    """
    traits = traits_of(runs)
    style = Style([Shown(trait, {}) for trait in traits])
    panels: dict[str, list[int]] = {}
    for number, trait in enumerate(traits):
        panels.setdefault(trait.kind if trait.role == RULE else trait.role, []).append(number)
    baseline = panels.pop(CONTROL, [])[:1] if len(panels) > 1 else []
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, grid = canvas(
        8.4, 0.6 + 2.5 * lines, nrows=lines, ncols=columns, squeeze=False, sharex=True, sharey=True
    )
    for axes, (kind, members) in zip(grid.flat, panels.items(), strict=False):
        for number in baseline:
            _commits(axes, runs[number], style.colour(traits[number]), "-")
        for place, number in enumerate(members):
            line = _LINES[place % len(_LINES)]
            _commits(axes, runs[number], style.colour(traits[number]), line, 1 - 0.13 * (place % 6))
        axes.set_title(kind, fontsize=FONT)
        axes.legend(frameon=False, fontsize=FONT - 2, loc="best", handlelength=2.6)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    grid[0, 0].set_xscale("log", base=2)
    grid[0, 0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.set_xlabel("model pass of a problem [number, log scale]")
    for axes in grid[:, 0]:
        axes.set_ylabel("tokens committed [per pass]")
    figure.suptitle(
        "averaged over problems still running; steps reached by 2 % or more", fontsize=FONT
    )
    return figure


def _commits(axes: Axes, run: EvalRun, colour: str, line: str, strength: float = 1.0) -> None:
    commits = metrics.commits_per_step(run.samples)
    running = metrics.running_per_step(run.samples)
    # the tail of a few long problems says nothing about the rule
    enough = [i for i, rows in enumerate(running) if rows >= max(1, len(run.samples) // 50)]
    axes.plot(
        [i + 1 for i in enough],
        [commits[i] for i in enough],
        color=colour,
        linestyle=line,
        linewidth=1.5,
        alpha=strength,
        marker=".",
        markersize=4,
        label=_label(run.name),
    )


def ablation_grid(shown: Sequence[Shown]) -> Figure:
    """Accuracy (shade and number) of every run on every family, tokens per forward beneath."""
    families = list(dict.fromkeys(f for one in shown for f in one.rows if f != ALL))
    figure, axes = canvas(max(5.0, 2.4 + 0.42 * len(families)), 0.9 + 0.29 * len(shown))
    shares = [
        [100 * one.rows[f].accuracy.value if f in one.rows else math.nan for f in families]
        for one in shown
    ]
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for i, one in enumerate(shown):
        for j, family in enumerate(families):
            row = one.rows.get(family)
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
                    in_layout=False,  # it is inside of the axes; to measure all takes longest
                )
    axes.set_xticks(range(len(families)), families, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(shown)), [one.rows[ALL].strategy for one in shown], fontsize=7)
    axes.grid(visible=False)
    axes.set_title("accuracy [%], tokens per forward below", fontsize=9)
    figure.colorbar(image, ax=axes, label="accuracy [%]", shrink=0.8)
    return figure
