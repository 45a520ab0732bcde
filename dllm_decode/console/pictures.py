"""A race as a picture that moves: SVG, or GIF where pillow is installed."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any

from rich.cells import cell_len

from dllm_decode.console.race import Heat, Lane
from dllm_decode.decoding.colours import INK, colour_of
from dllm_decode.decoding.playback import Frame
from dllm_decode.errors import ConfigError

THEMES = {"light": ("#ffffff", "#1b1b1b", "#6a6a6a"), "dark": ("#161616", "#e8e8e8", "#9a9a9a")}
_SIZE, _ACROSS, _DOWN, _EDGE = 15, 9, 24, 16  # of letters, and the space around, in pixels
_REST = 2.0  # seconds that the end stays
_GAP = 3  # characters between lanes
_COLOURS = 64  # of a GIF
_SCALE = 2  # pixels of a GIF per pixel of the layout


@dataclass(frozen=True)
class Mark:
    """Something that is seen from one moment to another.

    Attributes:
        column: Left edge in characters.
        line: From the top.
        width: In characters.
        text: What it says; "" for a bare colour.
        behind: Colour of the ground, "" for none.
        ink: `ink`, `dim` or `cell`.
        bold: Whether it stands out.
        since: First moment, counted in passes.
        until: First moment at which it is gone, None where it stays.

    Examples:
        >>> Mark(column=0, line=3, width=1, text="·", until=2).since
        0
    """

    column: int
    line: int
    width: int
    text: str
    behind: str = ""
    ink: str = "ink"
    bold: bool = False
    since: int = 0
    until: int | None = None


@dataclass(frozen=True)
class Picture:
    """A race laid out.

    Attributes:
        heat: The prompt and its lanes.
        columns: Characters across.
        seconds: That the race takes, more than 0.

    Examples:
        >>> lane = Lane("credit", [Frame((None,)), Frame((), forwards=1)], str)
        >>> Picture(Heat("Sort", (lane,)), columns=40, seconds=6.0).size
        (392, 128)
    """

    heat: Heat
    columns: int
    seconds: float

    @cached_property
    def blocks(self) -> tuple[Mark, ...]:
        """Everything that is ever seen."""
        lanes = self.heat.lanes
        width = (self.columns - _GAP * (len(lanes) - 1)) // len(lanes)
        title = self.heat.title
        title = title if len(title) <= self.columns else f"{title[: self.columns - 4]} ..."
        found = [Mark(0, 0, self.columns, title, bold=True)]
        for number, lane in enumerate(lanes):
            left = number * (width + _GAP)
            found += self._status(lane, left, width)
            found += _cells(lane, left, width)
        return tuple(found)

    def _status(self, lane: Lane, left: int, width: int) -> Iterator[Mark]:
        for moment in range(lane.passes + 1):
            last = moment == lane.passes
            words = {True: ", right", False: ", wrong", None: ", done"}[lane.correct]
            text = f"{lane.name}: pass {moment}{words if last else ''}"
            until = None if last else moment + 1
            yield Mark(left, 2, width, text, ink="dim", bold=last, since=moment, until=until)

    @property
    def size(self) -> tuple[int, int]:
        """Pixels across and down."""
        lines = max(block.line for block in self.blocks) + 1
        return self.columns * _ACROSS + 2 * _EDGE, lines * _DOWN + 2 * _EDGE

    @property
    def moments(self) -> int:
        """Passes of the longest lane."""
        return max(1, self.heat.moments)


def _places(widths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Line and character of each column."""
    found, line, used = [], 0, 0
    for room in widths:
        if used + room > width and used:
            line, used = line + 1, 0
        found.append((line, used))
        used += room
    return found


def _cells(lane: Lane, left: int, width: int) -> Iterator[Mark]:
    """The columns of a lane: each state from the pass that made it to the one that ended it."""
    for column, (line, at) in enumerate(_places(lane.widths, width)):
        place = (left + at, 3 + line, lane.widths[column])
        for frame, since, until in _states(lane, column):
            if column >= len(frame.cells):
                continue
            cell = frame.cells[column]
            if cell is None:
                yield Mark(*place, "·", "", "dim", False, since, until)
                continue
            look = (*place, lane.pieces(cell.token), colour_of(cell.confidence), "cell")
            calm = since  # from when on it no longer stands out
            if column in frame.fresh and since < lane.passes:
                calm = since + 1
                yield Mark(*look, True, since, calm)
            if until is None or calm < until:
                yield Mark(*look, False, calm, until)


def _states(lane: Lane, column: int) -> Iterator[tuple[Frame, int, int | None]]:
    """The first frame of each state of a column, and between which passes it is seen."""
    states: list[Any] = [
        frame.cells[column] if column < len(frame.cells) else "gone" for frame in lane.frames
    ]
    begins = [n for n, state in enumerate(states) if n == 0 or state != states[n - 1]]
    for begin, end in zip(begins, [*begins[1:], None], strict=True):
        since = lane.frames[begin].forwards
        until = None if end is None else lane.frames[end].forwards
        if since != until:  # else the next step took no pass
            yield lane.frames[begin], since, until


def as_svg(picture: Picture, theme: str) -> str:
    """The picture as one SVG file that plays by itself, over and over.

    Args:
        picture: What is drawn.
        theme: `light`, `dark`, or `auto` for what the reader's system prefers. Where less motion is
            preferred the end is shown.
    """
    (across, down), total = picture.size, picture.seconds + _REST
    spans = dict.fromkeys((b.since, b.until) for b in picture.blocks if b.since or b.until)
    names = {span: f"t{number}" for number, span in enumerate(spans)}
    share = 100 * picture.seconds / picture.moments / total
    rules = [_keyframes(names[span], span, share) for span in spans]
    rules += [
        f".{name}{{animation:{name} {total:g}s step-end infinite}}" for name in names.values()
    ]
    first, second = ("light", "dark") if theme == "auto" else (theme, theme)
    style = [
        _tinted(first),
        f"@media (prefers-color-scheme:dark){{{_tinted(second)}}}" if first != second else "",
        f"text{{font:{_SIZE}px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        "white-space:pre}.b{font-weight:bold}",
        *rules,
        "@media (prefers-reduced-motion:reduce){*{animation:none!important}}",
    ]
    body = [
        _drawn_svg(block, names.get((block.since, block.until), "")) for block in picture.blocks
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" width="{across}" '
        f'height="{down}" role="img" aria-label="{escape(picture.heat.title)}">'
        f"<style>{''.join(style)}</style>"
        f'<rect class="paper" width="{across}" height="{down}" rx="6"/>{"".join(body)}</svg>\n'
    )


def _tinted(theme: str) -> str:
    paper, ink, dim = THEMES[theme]
    return (
        f".paper{{fill:{paper}}}.ink{{fill:{ink}}}.dim{{fill:{dim}}}.cell{{fill:{INK}}}"
        f".line{{stroke:{INK}}}"
    )


def _keyframes(name: str, span: tuple[int, int | None], share: float) -> str:
    since, until = span
    shown = f"{since * share:.3f}%{{opacity:1}}"
    before = "0%{opacity:0}" if since else ""
    after = "" if until is None else f"{until * share:.3f}%{{opacity:0}}"
    return f"@keyframes {name}{{{before}{shown}{after}to{{opacity:{int(until is None)}}}}}"


def _drawn_svg(block: Mark, moving: str) -> str:
    x, y = _EDGE + block.column * _ACROSS, _EDGE + block.line * _DOWN
    wide = block.width * _ACROSS
    hidden = "" if block.until is None else ' opacity="0"'
    kind = f' class="{moving}"' if moving else ""
    parts = []
    if block.behind:
        parts.append(
            f'<rect x="{x}" y="{y + 2}" width="{wide}" height="{_DOWN - 4}" fill="{block.behind}"/>'
        )
    dot = block.text == "·"
    middle = x + wide // 2 if dot else x
    anchor = ' text-anchor="middle"' if dot else ""
    length = cell_len(block.text) * _ACROSS
    fixed = "" if dot or not length else f' textLength="{length}" lengthAdjust="spacingAndGlyphs"'
    weight = " b" if block.bold else ""
    if block.text:
        parts.append(
            f'<text class="{block.ink}{weight}" x="{middle}" y="{y + 17}"{anchor}{fixed} '
            f'xml:space="preserve">{escape(block.text)}</text>'
        )
    if block.bold and block.behind:
        parts.append(f'<path class="line" d="M{x} {y + _DOWN - 3}h{wide}" stroke-width="2"/>')
    return f"<g{kind}{hidden}>{''.join(parts)}</g>"


def as_gif(picture: Picture, theme: str) -> bytes:
    """The picture as a GIF that plays over and over.

    Args:
        picture: What is drawn.
        theme: `light` or `dark`.

    Raises:
        ConfigError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ConfigError(
            "task.format=gif needs pillow: pip install pillow; task.format=svg needs nothing"
        ) from None
    pen = _Pen(theme)
    frames = [pen.frame(picture, moment) for moment in range(picture.moments + 1)]
    palette = frames[-1].quantize(_COLOURS, dither=Image.Dither.NONE)
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    pause = round(1000 * picture.seconds / picture.moments)
    held = [*[pause] * (len(flat) - 1), pause + round(1000 * _REST)]
    out = io.BytesIO()
    flat[0].save(
        out, "GIF", save_all=True, append_images=flat[1:], duration=held, loop=0, optimize=True
    )
    return out.getvalue()


class _Pen:
    """Draws moments of a picture with pillow."""

    def __init__(self, theme: str) -> None:
        self.paper, self.ink, self.dim = THEMES[theme]
        self.plain, self.bold = _font(""), _font("-Bold")

    def frame(self, picture: Picture, moment: int) -> Any:
        """What is seen at one moment."""
        from PIL import Image, ImageDraw

        across, down = (side * _SCALE for side in picture.size)
        image = Image.new("RGB", (across, down), self.paper)
        draw = ImageDraw.Draw(image)
        for block in picture.blocks:
            if block.since <= moment and (block.until is None or moment < block.until):
                self._block(draw, block)
        return image

    def _block(self, draw: Any, block: Mark) -> None:
        x = (_EDGE + block.column * _ACROSS) * _SCALE
        y = (_EDGE + block.line * _DOWN) * _SCALE
        wide, high = block.width * _ACROSS * _SCALE, _DOWN * _SCALE
        if block.behind:
            draw.rectangle((x, y + 4, x + wide - 1, y + high - 5), fill=block.behind)
        if block.bold and block.behind:
            draw.rectangle((x, y + high - 8, x + wide - 1, y + high - 5), fill=INK)
        if block.text == "·":
            middle = x + wide // 2
            draw.ellipse(
                (middle - 2, y + high // 2 - 2, middle + 2, y + high // 2 + 2), fill=self.dim
            )
        elif block.text == "∎":
            draw.rectangle((x + 5, y + 16, x + wide - 6, y + high - 14), fill=INK)
        else:
            fill = {"ink": self.ink, "dim": self.dim, "cell": INK}[block.ink]
            font = self.bold if block.bold else self.plain
            draw.text((x, y + 6), block.text, font=font, fill=fill)


def _font(weight: str) -> Any:
    """A monospaced font that matplotlib brings, else the one in pillow."""
    from PIL import ImageFont

    try:
        from matplotlib import get_data_path

        file = f"{get_data_path()}/fonts/ttf/DejaVuSansMono{weight}.ttf"
        return ImageFont.truetype(file, _SIZE * _SCALE)
    except (ImportError, OSError):
        return ImageFont.load_default(_SIZE * _SCALE)
