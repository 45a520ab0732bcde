"""`task=export`: a recorded run as a moving picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_decode.config.outputs import require_file
from dllm_decode.errors import ConfigError, require_choice, require_count, require_in_range
from dllm_decode.storage import replacing
from dllm_decode.tasks import Context, Task
from dllm_decode.tasks.rehearsed import refuse_absent

if TYPE_CHECKING:
    from dllm_decode.console.race import Heat
    from dllm_decode.decoding.trace import Trace

FORMATS = ("gif", "svg")


@dataclass(frozen=True)
class Export(Task):
    """Draws one prompt of a run, its lanes side by side, as GIF or SVG.

    Attributes:
        runs: The folder of a run, with its baseline where it has one, or a trace file; or several.
        format: `gif` (needs pillow) or `svg`.
        row: The prompt, counted from 1; None for the one that is best to watch.
        seconds: That the race takes, (0, 600]; the end stays two more.
        theme: `light` or `dark`; `auto`, for SVG, as the reader's system has it.
        columns: Characters across, 20 to 400.
        output: The file, None for `race.gif` or `race.svg` in the run folder.

    Raises:
        ConfigError: A setting is out of range.

    Examples:
        >>> Export(runs="runs/mine", format="svg", theme="auto").seconds
        6.0
    """

    runs: str | list[str] = "runs/eval"
    format: str = "gif"
    row: int | None = None
    seconds: float = 6.0
    theme: str = "light"
    columns: int = 100
    output: str | None = None

    def __post_init__(self) -> None:
        require_choice("task.format", self.format, FORMATS)
        themes = ("light", "dark", "auto") if self.format == "svg" else ("light", "dark")
        require_choice("task.theme", self.theme, themes)
        require_in_range("task.seconds", self.seconds, 0.1, 600.0)
        require_count("task.columns", self.columns, minimum=20)
        require_in_range("task.columns", self.columns, 20, 400)
        if self.row is not None:
            require_count("task.row", self.row)
        ending = Path(self.output or "").suffix[1:].lower()
        if ending in FORMATS and ending != self.format:
            raise ConfigError(
                f"task.output={self.output} is named like another format than "
                f"task.format={self.format}; give task.format={ending}"
            )

    def run(self, context: Context) -> int:
        """Read the traces, draw, write one file."""
        refuse_absent(self._files.values())
        from dllm_decode.console.pictures import Picture, as_gif, as_svg
        from dllm_decode.console.runfolder import unwritable

        target = Path(self.output or context.folder.path / f"race.{self.format}").expanduser()
        require_file("task.output", target)
        picture = Picture(self._heat(), self.columns, self.seconds)
        draw = as_gif if self.format == "gif" else as_svg
        with context.display.working("drawing"):
            drawn = draw(picture, self.theme)
        data = drawn if isinstance(drawn, bytes) else drawn.encode("utf-8")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as partial:
                partial.write_bytes(data)
        except OSError as error:
            raise unwritable(target, error) from None
        across, down = picture.size
        context.display.say(f"{target}: {len(data) / 1000:.0f} kB, {across} x {down}")
        return 0

    def _heat(self) -> Heat:
        from dllm_decode.console.race import Heat, Lane, worth_watching

        traces = self._traces()
        first = next(iter(traces.values()))
        titles = first.titles
        if any(trace.titles != titles for trace in traces.values()):
            raise ConfigError(f"runs must be of the same prompts: {', '.join(traces)}")
        passes = [max(t.replay().forwards[n] for t in traces.values()) for n in range(len(titles))]
        own = list(traces.values())[-1].replay().forwards
        row = worth_watching(own)[0] if self.row is None else self.row - 1
        if row >= len(titles):
            raise ConfigError(f"task.row must be at most {len(titles)}, the prompts of the run")
        if not passes[row]:
            raise ConfigError(f"prompt {row + 1} of the run has no pass to draw")
        lanes = tuple(
            Lane.of(name, trace, row, right[row] if right and row < len(right) else None)
            for (name, trace), right in zip(traces.items(), self._right(), strict=True)
        )
        return Heat(titles[row], lanes)

    def _right(self) -> list[list[bool] | None]:
        """Of each lane, which answers are right; None where that is not known."""
        known = {place: graded(place.parent) for place in self._files.values()}
        return [
            known[place].get(place.stem.removeprefix("trace-") if "-" in place.stem else "")
            for place in self._files.values()
        ]

    def _traces(self) -> dict[str, Trace]:
        """Every lane by its name, the baseline of a run before the run itself."""
        from dllm_decode.decoding.trace import read_trace

        return {name: read_trace(file) for name, file in self._files.items()}

    @property
    def _files(self) -> dict[str, Path]:
        """The trace file of each lane."""
        places = [
            Path(p).expanduser() for p in ([self.runs] if isinstance(self.runs, str) else self.runs)
        ]
        found: dict[str, Path] = {}
        for place in places:
            files = {place.stem: place}
            if place.is_dir():
                others = sorted(place.glob("trace-*.jsonl")) if len(places) == 1 else []
                files = {file.stem.removeprefix("trace-"): file for file in others}
                files[_name(place)] = place / "trace.jsonl"
            for name, file in files.items():
                found[name if name not in found else str(place)] = file
        return found


def graded(folder: Path) -> dict[str, list[bool]]:
    """Which answers of a run are right, by the name of the strategy; "" is the run's own.

    Empty where it is not known.
    """
    try:
        runs = json.loads((folder / "results.json").read_text(encoding="utf-8"))["runs"]
        lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        samples = [json.loads(line) for line in lines]
        found = {
            name: [bool(sample["correct"]) for sample in samples if sample["run"] == name]
            for name, figures in runs.items()
            if "correct" in figures
        }
        return {**found, "": next(iter(found.values()))} if found else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _name(folder: Path) -> str:
    """The strategy of a run, else the name of its folder."""
    try:
        runs = json.loads((folder / "results.json").read_text(encoding="utf-8"))["runs"]
        return str(next(iter(runs)))
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return folder.name
