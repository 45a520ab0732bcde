"""`task=doctor`: versions, device, checkpoint and memory, and a fix for everything in the way."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dllm_decode.tasks import Context, Task

if TYPE_CHECKING:
    from rich.table import Table

    from dllm_decode.benchmarks.first_contact import Contact
    from dllm_decode.models.doctor import Examination


@dataclass(frozen=True)
class Doctor(Task):
    """Examines the installation and the configured model without loading its weights.

    Attributes:
        load: Also load the weights, which runs the self-check of the model.
        gpu: Also try the GPU, which takes less than two minutes; see
            `dllm_decode.benchmarks.first_contact`.

    Examples:
        >>> Doctor(load=True).gpu
        False
    """

    load: bool = False
    gpu: bool = False

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
        contact = self._contact(context) if self.gpu else None
        found = {} if contact is None else {"gpu": asdict(contact)}
        context.folder.write_json("doctor.json", {**asdict(report), **found})
        tried = not self.gpu or (contact is not None and not contact.problems)
        return 0 if report.healthy and tried else 1

    def _contact(self, context: Context) -> Contact | None:
        """What the GPU says of itself, shown as one block; None where there is none."""
        import torch

        from dllm_decode.benchmarks.first_contact import first_contact
        from dllm_decode.config.instantiate import build_node

        say = context.display.say
        if not torch.cuda.is_available():
            say("task.gpu=true: torch sees no GPU on this machine, so that there is none to try")
            return None
        device = torch.device("cuda", torch.cuda.current_device())
        strategy = build_node(context.cfg, "strategy")
        contact = first_contact(device, strategy, tell=lambda title: say(f"{title} ...", "dim"))
        say(f"```text\n{contact.block()}\n```")
        return contact


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
