"""`task=report`: tables, figures and pages from the runs of `task=eval`."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path

from dllm_decode import storage
from dllm_decode.config.outputs import require_file, require_folder
from dllm_decode.errors import ConfigError, require_count
from dllm_decode.tasks import Context, Task


@dataclass(frozen=True)
class Report(Task):
    """Writes CSV, Markdown, HTML and figures of finished runs; shows what fits into a terminal.

    Args:
        runs: Folder that `task=eval` wrote, or one above several.
        only: Keep runs whose name or folder contains this text.
        output: Folder of the report; None: `report` in the run folder.
        title: Of the pages.
        preface: A Markdown file put before the tables.
        figures: Draw them, which needs matplotlib.
        answers: Problems whose answers `report.html` holds, to look at and to play, those first
            that some run got wrong; 0 makes a page without anything to sort, filter and click, as
            it is where `dllm_decode[report]` is not installed.
        define: Print the definition of every metric as well.
        markdown: Also write the Markdown page to this file, with its figures and `table.csv` beside
            it in a folder of the same name.
        sections: Families with a section of their own in the Markdown page; empty: all of them.

    Examples:
        >>> Report(runs="runs/eval", figures=False).title
        'Evaluation'
    """

    runs: str = "runs/eval"
    only: str | None = None
    output: str | None = None
    title: str = "Evaluation"
    preface: str | None = None
    figures: bool = True
    answers: int = 300
    define: bool = False
    markdown: str | None = None
    sections: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("task.runs must name a folder, got an empty text")
        require_count("task.answers", self.answers, minimum=0)
        if self.markdown is not None and not self.markdown.endswith(".md"):
            raise ConfigError(f"task.markdown must end with .md, got {self.markdown!r}")

    def run(self, context: Context) -> int:
        """Write the report; returns 1 if results were damaged or failed and had to be left out."""
        from dllm_decode.evaluation import metrics
        from dllm_decode.evaluation.reporting import explore
        from dllm_decode.evaluation.reporting.overview import overview
        from dllm_decode.evaluation.reporting.report import ReportSettings, collect, write_report

        self.check()
        collection = collect(self.runs)
        gc.freeze()  # samples hold no circles; every search for some would go through all of them
        folder = Path(self.output) if self.output else context.folder.path / "report"
        preface = self._preface()
        with context.display.working("writing the report"):
            some = tuple(self.sections)
            settings = ReportSettings(
                self.only, self.title, preface, self.figures, self.answers, some
            )
            written = write_report(collection, folder, settings)
        if self.markdown is not None:
            self._publish(folder, Path(self.markdown))
        closing = [
            f"also: {', '.join(p.name for p in written.files if p.suffix in ('.csv', '.md'))}"
        ]
        if self.answers and explore.missing():
            closing.append(f"the page has nothing to sort, filter and click: {explore.EXTRA}")
        closing.append(f"report: {folder / 'report.html'}")
        for part in overview(written.report, context.display.console.width, closing):
            context.display.show(part)
        for name, unit, text in metrics.definitions() if self.define else ():
            context.display.say(f"{name} [{unit}]: {text}")
        return int(bool(collection.broken or collection.failed))

    def check(self) -> None:
        """Refuse, before anything is read or drawn, what could not be written at the end."""
        self._preface()
        if self.output:
            require_folder("task.output", Path(self.output))
        if self.markdown is not None:
            page = Path(self.markdown)
            require_file("task.markdown", page)
            require_folder("the place of the figures of task.markdown", page.with_suffix(""))
        if self.figures:
            from dllm_decode.evaluation.reporting.figures import pyplot

            pyplot()

    def _preface(self) -> str:
        if self.preface is None:
            return ""
        try:
            return Path(self.preface).read_text(encoding="utf-8")
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(f"task.preface: {self.preface} cannot be read: {why}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"task.preface: {self.preface} is not UTF-8 text: {error.reason}"
            ) from None

    def _publish(self, folder: Path, page: Path) -> None:
        """Copy the Markdown page and its figures to where a documentation wants them."""
        text = (folder / "report.md").read_text(encoding="utf-8")
        target = page.with_suffix("")
        try:
            target.mkdir(parents=True, exist_ok=True)
            for file in (folder / "table.csv", *sorted((folder / "figures").glob("*.svg"))):
                (target / file.name).write_bytes(file.read_bytes())
            text = text.replace("`table.csv`", f"[table.csv]({target.name}/table.csv)")
            storage.write_text(page, text.replace("](figures/", f"]({target.name}/"))
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(f"task.markdown: {page} cannot be written: {why}") from None
