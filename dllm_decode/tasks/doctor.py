"""`task=doctor`: versions, device, checkpoint and memory, and a fix for everything in the way."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dllm_decode.tasks import Context, Task

if TYPE_CHECKING:
    from rich.table import Table

    from dllm_decode.models.doctor import Examination


@dataclass(frozen=True)
class Doctor(Task):
    """Examines the installation and the configured model without loading its weights.

    Attributes:
        load: Also load the weights, which runs the self-check of the model.

    Examples:
        >>> Doctor(load=True)
        Doctor(load=True)
    """

    load: bool = False

    def run(self, context: Context) -> int:
        """Show tables and findings, write `doctor.json`; returns 1 if something is in the way."""
        from omegaconf import OmegaConf

        from dllm_decode.models.doctor import examine

        settings: Any = OmegaConf.to_container(context.cfg.model, resolve=True)
        with context.display.working("examining"):
            report = examine(settings)
        context.display.show(facts_table(report))
        if report.ids:
            context.display.show(ids_table(report))
        for finding in report.findings:
            kind = "problem" if finding.problem else "note"
            context.display.say(f"{kind}: {finding.text}\n  fix: {finding.fix}")
        if self.load and report.healthy:
            context.display.say(f"loaded and passes its self-check: {context.model.description}")
        if not report.findings:
            context.display.say("nothing to report: this model can be loaded")
        context.folder.write_json("doctor.json", asdict(report))
        return 0 if report.healthy else 1


def facts_table(report: Examination) -> Table:
    """What was found, one line each."""
    from rich.table import Table

    table = Table("what", "found", title="installation and model", title_justify="left")
    for name, value in report.facts.items():
        table.add_row(name, value)
    return table


def ids_table(report: Examination) -> Table:
    """A table of the special ids, with where each of them comes from.

    Args:
        report: What was found.
    """
    from rich.table import Table

    table = Table("id", "tokenizer", "config.json", "configuration", "used", title="special ids")
    table.title_justify = "left"
    for name, values in report.ids.items():
        table.add_row(name, *values)
    return table
