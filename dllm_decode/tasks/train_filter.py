"""`task=train_filter`: train the acceptance filter of `strategy=learn2pd` for a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dllm_decode.console.prompts import GivenPrompt, read_prompts
from dllm_decode.errors import ConfigError, DllmDecodeError, require_count, require_in_range
from dllm_decode.tasks import Context, Task

if TYPE_CHECKING:
    from rich.table import Table

    from dllm_decode.api import TextDecoder
    from dllm_decode.decoding.types import Request
    from dllm_decode.training.filter import FilterRecords

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.96, 0.98, 0.99)
FILTER, REPORT = "filter.safetensors", "report.json"


@dataclass(frozen=True)
class TrainFilter(Task):
    """Trains a filter and writes `filter.safetensors` and `report.json` into the run folder.

    Each prompt is decoded one token per step; then the oracle decodes it again, committing what
    equals that reference (and copying the rest of a block where it is stuck), and every one of its
    forward passes is a record. The filter is for the block length of the schedule and for this
    model alone; both stand in the file. The weights are reproducible to the bit on one machine.

    Source: Learn2PD, arXiv 2509.25188. Deviations from its released code: records are split by
    prompt, not one by one (records of one block are nearly alike); columns that a short block does
    not have carry no loss; the pass that only finds out that the oracle is stuck is not repeated.

    Attributes:
        prompts: A file, see `console.prompts.read_prompts`; without one, problems of the training
            split.
        families: Names of their families; None for those the bundled model solves.
        problems: Problems per family.
        max_new_tokens: Columns per prompt; None for what a family needs, and 64 for a file.
        batch_size: Prompts decoded together.
        steps: Updates on all records at once.
        rate: Learning rate of AdamW, (0, 1].
        weight_decay: Of AdamW, [0, 1].
        held_out: Share of the prompts that is only measured with, (0, 1).
        thresholds: At which precision and recall are reported.
        seed: Of problems, split and weights.

    Raises:
        ConfigError: A value is out of range, the schedule has no blocks, or there are fewer than
            two prompts.

    Examples:
        >>> TrainFilter(problems=10).steps
        3000
    """

    prompts: str | None = None
    families: Sequence[str] | None = None
    problems: int = 40
    max_new_tokens: int | None = None
    batch_size: int = 16
    steps: int = 3000
    rate: float = 3e-3
    weight_decay: float = 0.01
    held_out: float = 0.2
    thresholds: Sequence[float] = THRESHOLDS
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("problems", "steps"):
            require_count(f"task.{name}", getattr(self, name))
        require_count("batch_size", self.batch_size)
        require_count("seed", self.seed, minimum=0)
        if self.max_new_tokens is not None:
            require_count("max_new_tokens", self.max_new_tokens)
        require_in_range("task.rate", self.rate, 0.0, 1.0, open_low=True)
        require_in_range("task.weight_decay", self.weight_decay, 0.0, 1.0)
        require_in_range("task.held_out", self.held_out, 0.0, 1.0, open_low=True, open_high=True)
        for threshold in self.thresholds:
            require_in_range("task.thresholds", threshold, 0.0, 1.0)
        if self.prompts is not None and self.families is not None:
            raise ConfigError("prompts and task.families exclude each other; give one of them")

    def run(self, context: Context) -> int:
        """Decode, learn, measure, write; returns 0."""
        from dllm_decode.decoding.denoiser import Capabilities
        from dllm_decode.training.filter import FilterRecipe, fit, split

        asked, lengths, forms = self._prompts()
        decoder = context.decoder_with("strategy=sequential")
        if decoder.decoder.schedule.block_length is None:
            raise ConfigError("task=train_filter needs a block grid; use schedule=blocks")
        request = self._request(decoder, asked, lengths, forms)
        records = self._records(context, decoder, request)
        learned, kept = split(records, self.held_out, self.seed)
        with context.display.progress("training the filter", self.steps) as report:
            network = fit(
                learned,
                FilterRecipe(self.steps, self.rate, self.weight_decay, self.seed),
                fingerprint=Capabilities.of(decoder.model.denoiser).fingerprint,
                report=report,
            )
        figures = self._figures(decoder, network, learned, kept)
        about = {"model": decoder.model.description.checkpoint, "recipe": "task=train_filter"}
        report_file = context.folder.write_json(REPORT, figures)
        network.save(report_file.with_name(FILTER), about)
        context.display.show(_table(figures["held_out"]["at"]))
        context.display.say(
            f"{len(learned)} records to learn from, {len(kept)} to measure with; decode with "
            f"strategy=learn2pd strategy.select.weights={report_file.with_name(FILTER)}"
        )
        return 0

    # Prompts.

    def _prompts(self) -> tuple[list[GivenPrompt], list[int], list[str | None]]:
        """What to decode, columns for each, and for infilling its form."""
        from dllm_decode.api import DEFAULT_NEW_TOKENS
        from dllm_decode.problems import FAMILIES, problems

        if self.prompts is not None:
            asked = read_prompts(self.prompts)
            lengths = [self.max_new_tokens or DEFAULT_NEW_TOKENS] * len(asked)
            forms: list[str | None] = [None] * len(asked)
        else:
            shown = [name for name, family in FAMILIES.items() if family.shown]
            names = self.families or shown or list(FAMILIES)
            drawn = [p for name in names for p in problems(name, "train", self.problems, self.seed)]
            asked = [GivenPrompt(p.prompt, f"{p.family} {n}") for n, p in enumerate(drawn)]
            lengths = [self.max_new_tokens or FAMILIES[p.family].canvas for p in drawn]
            forms = [p.form or None for p in drawn]
        if len(asked) < 2:
            raise ConfigError(
                "task=train_filter needs two prompts or more, one to learn from and one to measure "
                f"with, got {len(asked)}"
            )
        return asked, lengths, forms

    def _request(
        self,
        decoder: TextDecoder,
        asked: Sequence[GivenPrompt],
        lengths: Sequence[int],
        forms: Sequence[str | None],
    ) -> Request:
        from dllm_decode.decoding.types import Request

        ids = tuple(
            decoder.encode(
                prompt.content,
                row,
                continue_final=prompt.continue_final_message,
                arguments=prompt.chat_template_kwargs,
            )
            for row, prompt in enumerate(asked)
        )
        seeds = tuple(self.seed + row for row in range(len(ids)))
        columns, fixed = decoder.infilling(forms if any(forms) else None, lengths, len(ids))
        request = Request(ids, columns, seeds, fixed)
        decoder.check(request, [prompt.source for prompt in asked])
        return request

    # FilterRecords.

    def _records(self, context: Context, decoder: TextDecoder, request: Request) -> FilterRecords:
        """The forward passes of the oracle, which follows a decode of one token per step."""
        from dllm_decode.training.filter import FilterRecorder

        columns = sum(request.lengths)
        reference = self._decode(context, "reference decode", decoder, request, columns)
        request = replace(request, reference=reference)
        oracle = context.decoder_with("strategy=oracle", "strategy.select.stuck=block")
        recorder = FilterRecorder()
        self._decode(context, "oracle pass", oracle, request, columns, recorder)
        return recorder.records()

    def _decode(
        self,
        context: Context,
        title: str,
        decoder: TextDecoder,
        request: Request,
        columns: int,
        *observers: Any,
    ) -> tuple[tuple[int, ...], ...]:
        from dllm_decode.console.watching import ProgressObserver

        with context.display.progress(title, columns) as report:
            result = decoder.decode(
                request,
                batch_size=self.batch_size,
                observers=(*observers, ProgressObserver(columns, report)),
            )
        failed = [error for error in result.errors if error]
        if failed:
            raise DllmDecodeError(f"{title}: {len(failed)} prompts failed, the first: {failed[0]}")
        return result.sequences

    # Telling.

    def _figures(
        self, decoder: TextDecoder, network: Any, learned: FilterRecords, kept: FilterRecords
    ) -> dict[str, Any]:
        from dllm_decode.training.filter import loss, measured

        def figures(records: FilterRecords) -> dict[str, Any]:
            return {
                "prompts": len(records.prompts),
                "records": len(records),
                "open_columns": int(records.open.sum()),
                "loss": float(loss(network, records)),
                "at": measured(network, records, self.thresholds),
            }

        return {
            "model": str(decoder.model.description),
            "model_fingerprint": network.fingerprint,
            "block_length": network.block_length,
            "parameters": sum(weight.numel() for weight in network.weights()),
            "steps": self.steps,
            "seed": self.seed,
            "trained_on": figures(learned),
            "held_out": figures(kept),
        }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    """Held-out precision and recall per threshold."""
    from rich.table import Table

    sheet = Table(title="held-out prompts, open columns: filter | confidence alone")
    for head in ("threshold", "precision", "recall", "precision", "recall"):
        sheet.add_column(head, justify="right")
    for row in rows:
        cells = [
            "-" if row[name][figure] is None else f"{row[name][figure]:.3f}"
            for name in ("filter", "confidence")
            for figure in ("precision", "recall")
        ]
        sheet.add_row(f"{row['threshold']:g}", *cells)
    return sheet
