"""The same prompt decoded by two strategies, side by side and pass by pass."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dllm_decode.console.display import Display
from dllm_decode.decoding.colours import INK, colour_of, legend
from dllm_decode.decoding.playback import Frame, frames_of
from dllm_decode.decoding.trace import Trace

LONG = range(10, 61)  # passes that an eye can follow, and that are worth watching
_SECONDS = 6.0  # of a race at speed 1
_LONGEST_PASS = 0.5  # seconds; short races end earlier
_NARROW = 60  # columns of a terminal below which lanes stand one above the other
_PLAIN_LINES = 40
_MOST_PROMPTS = 3
_END, _OPEN, _BREAK = "∎", "·", "↵"


@dataclass(frozen=True)
class Lane:
    """One decode of one prompt.

    Attributes:
        name: Of the strategy.
        frames: The canvas before the first pass and after each.
        pieces: The text of each column's token in a frame.
        correct: Whether the answer is right, None where that is not known.

    Examples:
        >>> from dllm_decode.decoding.playback import Cell
        >>> cell = Cell(7, 0, 0.9, "commit")
        >>> frames = [Frame((None,)), Frame((cell,), frozenset({0}), forwards=1)]
        >>> Lane("credit", frames, {7: "yes"}.__getitem__, correct=True).status(1)
        'credit: pass 1, right'
    """

    name: str
    frames: Sequence[Frame]
    pieces: Callable[[int], str]
    correct: bool | None = None

    @staticmethod
    def of(name: str, trace: Trace, row: int, correct: bool | None = None) -> Lane:
        """The lane of a row of a trace."""

        def piece(token: int) -> str:
            if token in trace.eot_ids:
                return _END
            text = trace.pieces.get(token, f"<{token}>")
            return text.replace("\n", _BREAK).replace("\t", " ").replace("\r", "")

        return Lane(name, frames_of(trace, row), piece, correct)

    @property
    def passes(self) -> int:
        """How many it took."""
        return self.frames[-1].forwards

    def step_at(self, moment: int) -> int:
        """How many steps are done after so many passes; a step that probes takes several."""
        return max(0, bisect_right(self._passes, moment) - 1)

    def at(self, moment: int) -> Frame:
        """The canvas after so many passes; the last one stays."""
        return self.frames[self.step_at(moment)]

    @cached_property
    def _passes(self) -> list[int]:
        return [frame.forwards for frame in self.frames]

    @cached_property
    def widths(self) -> list[int]:
        """Terminal cells of each column, wide enough for every token that ever stands there."""
        columns = max(len(frame.cells) for frame in self.frames)
        widths = [1] * columns
        for frame in self.frames:
            for column in frame.fresh:
                cell = frame.cells[column] if column < len(frame.cells) else None
                if cell is not None:
                    widths[column] = max(widths[column], cell_len(self.pieces(cell.token)))
        for column, cell in enumerate(self.frames[0].cells):
            if cell is not None:
                widths[column] = max(widths[column], cell_len(self.pieces(cell.token)))
        return widths

    def lines(self, frame: Frame, width: int, marked: int = -1) -> list[Text]:
        """The canvas in lines of at most so many terminal cells; columns keep their places.

        Args:
            frame: Of this lane.
            width: Of a line.
            marked: A column that is to be seen at once.
        """
        lines, used = [Text()], 0
        for column, (cell, wanted) in enumerate(zip(frame.cells, self.widths, strict=False)):
            room = min(wanted, width)
            if used + room > width and used:
                lines.append(Text())
                used = 0
            used += room
            if cell is None or column == marked:
                loud = column in frame.reopened or column == marked
                style = "reverse" if loud else "dim"
                piece = _OPEN.center(room) if cell is None else self.pieces(cell.token)
                lines[-1].append(set_cell_size(piece, room), style=style)
                continue
            style = f"{INK} on {colour_of(cell.confidence)}"
            if column in frame.fresh:
                style += " bold underline" if cell.kind == "commit" else " bold italic underline"
            piece = self.pieces(cell.token)
            lines[-1].append(set_cell_size(piece, room), style=style)
        return lines

    def status(self, moment: int) -> str:
        """How far it is."""
        over = moment >= self.passes
        end = {True: ", right", False: ", wrong", None: ", done"}[self.correct] if over else ""
        return f"{self.name}: pass {min(moment, self.passes)}{end}"


@dataclass(frozen=True)
class Heat:
    """One prompt and its lanes.

    Attributes:
        title: The prompt on one line.
        lanes: The decodes, the baseline first.
        difference: Step (counted from 1) and column at which they first do different things.

    Examples:
        >>> lane = Lane("credit", [Frame((None,)), Frame((None,), forwards=2)], str)
        >>> Heat("Sort: 1 Eva 2 Ben 3 Cleo", (lane, lane)).moments
        2
    """

    title: str
    lanes: tuple[Lane, ...]
    difference: tuple[int, int] | None = None

    @property
    def moments(self) -> int:
        """Passes of its longest lane."""
        return max(lane.passes for lane in self.lanes)

    def marked(self, lane: Lane, moment: int) -> int:
        """The column of the first difference where a lane is just there, else -1."""
        here = self.difference is not None and lane.step_at(moment) == self.difference[0]
        return self.difference[1] if self.difference is not None and here else -1


def worth_watching(passes: Sequence[int], most: int = _MOST_PROMPTS) -> list[int]:
    """Rows to show: those that need 10 to 60 passes, else the one that needs the most.

    Args:
        passes: Of each row.
        most: How many rows may be shown.
    """
    order = sorted(range(len(passes)), key=lambda row: (-passes[row], row))
    return [row for row in order if passes[row] in LONG][:most] or order[:1]


def run_race(heats: Sequence[Heat], display: Display) -> int:
    """Show a race: repainted and paced in a terminal, in lines elsewhere.

    Args:
        heats: The prompts, most interesting first; as many are shown as fit.
        display: Where.

    Returns:
        How many of them stay on a terminal with their whole answer.
    """
    if display.mode == "plain":
        _say(heats[0], display)
    if display.mode != "live":
        return 0
    console = display.console
    heats = _fitting(heats, console)
    moments = max(heat.moments for heat in heats)
    pause = min(_SECONDS / max(moments, 1), _LONGEST_PASS) / display.speed
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for moment in range(moments + 1):
            begin = time.monotonic()
            live.update(picture(heats, moment, console), refresh=True)
            time.sleep(max(0.0, pause - (time.monotonic() - begin)))
    whole = len(heats) > 1 or _height(heats[0], console) <= _most(heats, console)
    return len(heats) if whole else 0


def _room(console: Console, lanes: int) -> int:
    """Terminal cells of one lane."""
    return console.width if console.width < _NARROW else (console.width - 2 * (lanes - 1)) // lanes


def _fitting(heats: Sequence[Heat], console: Console) -> list[Heat]:
    """As many prompts as the height of the terminal holds, at least one."""
    left = console.height - 3
    chosen: list[Heat] = []
    for heat in heats:
        stacked = len(heat.lanes) if console.width < _NARROW else 1
        left -= stacked * (_height(heat, console) + 1) + 2
        if chosen and left < 0:
            break
        chosen.append(heat)
    return chosen


def _height(heat: Heat, console: Console) -> int:
    """Lines of the canvas of its largest lane."""
    width = _room(console, len(heat.lanes))
    return max(len(lane.lines(lane.frames[0], width)) for lane in heat.lanes)


def _most(heats: Sequence[Heat], console: Console) -> int:
    """Lines that a canvas may take."""
    stacked = len(heats[0].lanes) if console.width < _NARROW else 1
    return max(3, ((console.height - 3) // len(heats) - 2) // stacked - 1)


def picture(heats: Sequence[Heat], moment: int, console: Console) -> RenderableType:
    """The race after so many passes.

    Args:
        heats: The prompts.
        moment: Passes that every lane has done, or all that it needs.
        console: Whose size counts.
    """
    parts: list[RenderableType] = []
    for heat in heats:
        parts.append(Text(_short(heat.title, console.width), style="bold"))
        width = _room(console, len(heat.lanes))
        most = _most(heats, console)
        drawn = [
            _drawn(lane, moment, width, most, heat.marked(lane, moment)) for lane in heat.lanes
        ]
        if console.width < _NARROW:
            parts += [line for lines in drawn for line in lines]
        else:
            grid = Table.grid(padding=(0, 2, 0, 0))
            for _ in drawn:
                grid.add_column(width=width, no_wrap=True)
            grid.add_row(*(Group(*lines) for lines in drawn))
            parts.append(grid)
        parts.append(Text())
    parts.append(_key(console))
    return Group(*parts)


def _short(text: str, width: int) -> str:
    """A text that fits into a line in any encoding: one of few signs may have no ellipsis."""
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 4)} ..."


def _drawn(lane: Lane, moment: int, width: int, most: int, marked: int) -> list[Text]:
    """A lane in lines; of a long canvas those around the first open column."""
    frame = lane.at(moment)
    lines = lane.lines(frame, width, marked)
    height = len(lane.lines(lane.frames[0], width))
    lines += [Text()] * (height - len(lines))
    if height > most:
        now = next((n for n, line in enumerate(lines) if _OPEN in line.plain), height)
        top = min(max(0, now - most // 2), height - most)
        lines = lines[top : top + most]
    return [Text(lane.status(moment), style="dim", no_wrap=True, overflow="crop"), *lines]


def _key(console: Console) -> Text:
    """What the colours mean, or what the typefaces mean where there are none."""
    if console.no_color or console.color_system is None:
        return Text("bold: committed in this pass; a dot is a column that is still open")
    key = Text("confidence ", style="dim")
    for words, colour in legend():
        key.append(f" {words} ", style=f"{INK} on {colour}")
    key.append("  bold: this pass", style="dim")
    return key


def _say(heat: Heat, display: Display) -> None:
    """A race in lines: passes evenly spread, so that there are not too many."""
    width = max(20, (display.console.width - 10) // len(heat.lanes) - 3)
    blank = " " * width
    height = max(len(lane.lines(lane.frames[0], width)) for lane in heat.lanes)
    shown = max(2, min(heat.moments + 1, _PLAIN_LINES // height))
    parting = set()
    if heat.difference is not None:
        frames = heat.lanes[0].frames
        parting = {frames[min(heat.difference[0], len(frames) - 1)].forwards}
    even = {round(n * heat.moments / (shown - 1)) for n in range(shown)}
    display.say(heat.title)
    display.say("pass " + "".join(f" | {lane.name:{width}}" for lane in heat.lanes).rstrip())
    for moment in sorted(even | parting):
        columns = [lane.lines(lane.at(moment), width) for lane in heat.lanes]
        for number in range(max(map(len, columns))):
            cells = [
                column[number].plain + " " * (width - column[number].cell_len)
                if number < len(column)
                else blank
                for column in columns
            ]
            sign = "*" if moment in parting else " "
            head = f"{moment:4d}{sign}" if number == 0 else "     "
            display.say((head + "".join(f" | {cell}" for cell in cells)).rstrip())
