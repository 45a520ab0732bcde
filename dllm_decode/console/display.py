"""How people are told: words, tables, progress, and the canvas while it is unmasked."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import Progress
from rich.text import Text

from dllm_decode.decoding.colours import INK, colour_of
from dllm_decode.errors import ConfigError, require_choice

MODES = ("auto", "live", "plain", "none")
PLAIN_WIDTH = 110
_MASK = "·"
_SHOWN_ROWS = 8
_QUIET_SECONDS = 2.0  # nothing longer than this goes by without a word
_LINE_SECONDS = 10.0  # between further lines where nothing can be repainted
_BRIEF_SECONDS = 0.7  # a decode that takes less would only flash


def configured(mode: str = "auto", speed: float = 1.0) -> Display:
    """The display that the group `display` selects, on standard output; see `make_display`.

    Args:
        mode: `auto`, `live`, `plain` or `none`; see `make_display`.
        speed: Of a race, as a factor; 1 is its usual pace.
    """
    return make_display(mode, speed=speed)


def make_display(mode: str = "auto", console: Console | None = None, speed: float = 1.0) -> Display:
    """The display of a setting.

    Args:
        mode: `live` repaints a terminal, `plain` writes lines, `none` nothing at all; `auto` is
            live in a terminal and plain elsewhere.
        console: Of rich; None for standard output.
        speed: Of what is paced for the eye, more than 0; 2 is twice as fast.

    Raises:
        ConfigError: Another word, or a speed out of range.
    """
    require_choice("display", mode, MODES)
    if not 0 < speed < float("inf"):
        raise ConfigError(f"speed must be a number above 0, got {speed}")
    if console is None:
        # names such as stop=[eot,prophet] and answers such as :cat: are no markup
        literal = partial(Console, markup=False, emoji=False)
        console = literal()
        if not console.is_terminal:
            console = literal(width=PLAIN_WIDTH)
    if mode == "auto":
        mode = "live" if console.is_terminal else "plain"
    return Display(mode, console, speed)


@dataclass(frozen=True)
class Display:
    """Where output for people goes.

    Attributes:
        mode: `live`, `plain` or `none`.
        console: Of rich.
        speed: Of what is paced for the eye; 2 is twice as fast.

    Examples:
        >>> display = make_display("plain")
        >>> display.say("two rows are done")
        two rows are done
    """

    mode: str
    console: Console
    speed: float = 1.0

    @property
    def silent(self) -> bool:
        """Whether nothing is shown at all."""
        return self.mode == "none"

    def say(self, text: str, style: str | None = None) -> None:
        """One line, or several, as they are."""
        if not self.silent:
            self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def paragraph(self, text: str, style: str | None = None) -> None:
        """One long line, wrapped between words and indented from the second line on."""
        lines = textwrap.wrap(
            text,
            self.console.width,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        self.say("\n".join(lines), style)

    def show(self, thing: RenderableType) -> None:
        """A table or anything else rich can draw."""
        if not self.silent:
            self.console.print(thing)

    def working(self, text: str) -> AbstractContextManager[object]:
        """While something of unknown length happens."""
        if self.mode == "live":
            return self.console.status(text)
        if self.mode == "plain":
            self.say(f"{text} ...")
        return nullcontext()

    @contextmanager
    def progress(self, text: str, total: float) -> Iterator[Callable[[float], None]]:
        """A bar, or lines, while something of known length happens.

        Args:
            text: What happens.
            total: How much there is to do, in any unit.

        Yields:
            A function that takes how much is done so far, in the same unit.
        """
        if self.mode == "live":
            with Progress(console=self.console, transient=True) as bar:
                task = bar.add_task(text, total=total)
                yield lambda done: bar.update(task, completed=done)
            return
        yield _Lines(self, text, total) if self.mode == "plain" else lambda done: None

    @contextmanager
    def canvas(self, view: CanvasView, *, shown_later: bool = False) -> Iterator[None]:
        """Show a canvas while it is decoded; the view has to be among the decode's observers.

        Args:
            view: What is drawn.
            shown_later: Whether the decode will be shown once more, so that only one that takes
                its time is shown now.
        """
        if self.mode == "live":
            live = Live(
                get_renderable=view.render,
                console=self.console,
                transient=True,
                refresh_per_second=12,
            )
            begin = time.monotonic() + (_BRIEF_SECONDS if shown_later else 0.0)

            def start(_: int) -> None:
                if not live.is_started and time.monotonic() >= begin:
                    live.start()

            view.on_step = start
            try:
                yield
            finally:
                live.stop()
            return
        if self.mode == "plain" and not shown_later:
            view.on_step = lambda row: self.say(view.line(row)) if row == 0 else None
        yield


class _Lines:
    """Progress where nothing can be repainted: a line now and then."""

    def __init__(self, display: Display, text: str, total: float) -> None:
        self.display, self.text, self.total = display, text, total
        self.next = time.monotonic() + _QUIET_SECONDS

    def __call__(self, done: float) -> None:
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + _LINE_SECONDS
            self.display.say(f"{self.text}: {100 * done / max(self.total, 1):.0f} %")


@dataclass
class _ShownRow:
    """One canvas: a token or None per column, the step that committed it, and how sure it was."""

    tokens: list[int | None] = field(default_factory=list)
    step_of: list[int] = field(default_factory=list)
    sure: dict[int, float] = field(default_factory=dict)
    step: int = -1


class CanvasView:
    """The canvases of a decode as text; fed by `CanvasObserver`.

    Prompts, and rows beyond the eighth, are not drawn.

    Args:
        titles: One per row.
        piece: The text of one token id.

    Examples:
        >>> view = CanvasView(["first"], piece=lambda token: "abc"[token])
        >>> view.update(0, step=1, tokens=[2, None, 0])
        >>> view.line(0)
        'step   2 | c·a'
    """

    def __init__(self, titles: Sequence[str], piece: Callable[[int], str]) -> None:
        self.titles = titles
        self.piece = piece
        self.rows = {row: _ShownRow() for row in range(len(titles))}
        self.on_step: Callable[[int], None] | None = None

    def update(
        self,
        row: int,
        step: int,
        tokens: Sequence[int | None],
        confidence: Mapping[int, float] | None = None,
    ) -> None:
        """Take over a row after a step.

        Args:
            row: Which one.
            step: That the row has done, counted from 0.
            tokens: One per column, None where it is undecided.
            confidence: Of the columns that were written in this step.
        """
        state = self.rows[row]
        if step == 0:
            state.tokens, state.step_of, state.sure = [], [], {}
        state.sure.update(confidence or {})
        before = dict(enumerate(state.tokens))
        old_steps = dict(enumerate(state.step_of))
        state.step_of = [
            old_steps[column] if before.get(column) == token and column in before else step
            for column, token in enumerate(tokens)
        ]
        state.tokens, state.step = list(tokens), step
        if self.on_step is not None:
            self.on_step(row)

    def text(self, row: int) -> Text:
        """One canvas, coloured by confidence, what was committed in the last step in bold."""
        state, out = self.rows[row], Text()
        for column, (token, step) in enumerate(zip(state.tokens, state.step_of, strict=True)):
            if token is None:
                out.append(_MASK, style="dim")
                continue
            known = column in state.sure
            colour = f"{INK} on {colour_of(state.sure[column])}" if known else ""
            out.append(self.piece(token), f"bold {colour}" if step == state.step else colour)
        return out

    def line(self, row: int) -> str:
        """One canvas as a plain line."""
        return f"step {self.rows[row].step + 1:3d} | {self.text(row).plain}"

    def render(self) -> Group:
        """The first canvases, each under its title."""
        parts: list[RenderableType] = []
        for row in list(self.rows)[:_SHOWN_ROWS]:
            parts.append(Text(self.titles[row], style="dim", no_wrap=True, overflow="crop"))
            parts.append(self.text(row))
        if len(self.rows) > _SHOWN_ROWS:
            parts.append(Text(f"... and {len(self.rows) - _SHOWN_ROWS} more", style="dim"))
        return Group(*parts)
