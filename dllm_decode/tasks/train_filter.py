"""`task=train_filter`: train the acceptance filter of `strategy=learn2pd` for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from dllm_decode.console.prompts import GivenPrompt, prompts_to_learn_from
from dllm_decode.errors import (
    ConfigError,
    require_count,
    require_in_range,
    require_some,
)
from dllm_decode.tasks import Context, Task

if TYPE_CHECKING:
    from rich.table import Table

    from dllm_decode.api import TextDecoder
    from dllm_decode.decoding.observer import Observer
    from dllm_decode.decoding.outcome import Result
    from dllm_decode.decoding.types import Request
    from dllm_decode.training.filter import FilterRecipe, FilterRecords, FittedFilter

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.96, 0.98, 0.99)
FILTER, REPORT = "filter.safetensors", "report.json"


@dataclass(frozen=True)
class _Prompts:
    """What is decoded: columns and for infilling a form of each, and the family it is of."""

    asked: Sequence[GivenPrompt]
    lengths: Sequence[int]
    forms: Sequence[str | None]
    families: Sequence[str]

    def groups(self) -> dict[str, set[int]]:
        """Prompts that a filter can be kept from: each family, and the longer half of canvases."""
        found: dict[str, set[int]] = {}
        for number, family in enumerate(self.families):
            found.setdefault(family, set()).add(number)
        if len(found) < 2:
            found = {}
        shortest = min(self.lengths)
        longer = {number for number, length in enumerate(self.lengths) if length > shortest}
        return found | ({f"more than {shortest} columns": longer} if longer else {})


@dataclass(frozen=True)
class TrainFilter(Task):
    """Trains a filter and writes `filter.safetensors` and `report.json` into the run folder.

    Each prompt is decoded one token per step; then the oracle decodes it again, committing what
    equals that reference (and copying the rest of a block where it is stuck), and every one of its
    forward passes is a record. The filter is for the block length of the schedule and for this
    model alone; both stand in the file. The weights are reproducible to the bit on one machine.

    Source: Learn2PD, arXiv 2509.25188. Deviations from its released code: records are split by
    prompt, not one by one (records of one block are nearly alike); columns that a short block does
    not have carry no loss; the pass that only finds out that the oracle is stuck is not repeated;
    the weights with the smallest loss on watched prompts are kept, not the last ones.

    Attributes:
        prompts: A file, see `console.prompts.read_prompts`; without one, problems of the training
            split.
        families: Names of their families; None for those the bundled model solves.
        problems: Problems per family, or a number for each family by its name.
        max_new_tokens: Columns per prompt; None for what a family needs, and 64 for a file.
        batch_size: Prompts decoded together.
        reference: Probability from which the reference decode commits several tokens together,
            (0, 1]; None for one token per step, as published.
        steps: Updates.
        batch_records: Records per update; None for all of them, as published.
        rate: Learning rate of AdamW, (0, 1].
        weight_decay: Of AdamW, [0, 1].
        held_out: Share of the prompts that is only measured with, (0, 1); the same share of the
            others is watched, and decides which weights are kept.
        transfer: Whether a filter is trained without each family, and without the longer answers,
            and measured there.
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
    problems: int | Mapping[str, int] = 40
    max_new_tokens: int | None = None
    batch_size: int = 16
    reference: float | None = None
    steps: int = 3000
    batch_records: int | None = 1024
    rate: float = 3e-3
    weight_decay: float = 0.01
    held_out: float = 0.2
    transfer: bool = True
    thresholds: Sequence[float] = THRESHOLDS
    seed: int = 0

    def __post_init__(self) -> None:
        require_count("task.steps", self.steps)
        if self.batch_records is not None:
            require_count("task.batch_records", self.batch_records)
        if isinstance(self.problems, Mapping):
            for family, count in self.problems.items():
                require_count(f"task.problems.{family}", count)
        else:
            require_count("task.problems", self.problems)
        require_count("batch_size", self.batch_size)
        require_count("seed", self.seed, minimum=0)
        if self.max_new_tokens is not None:
            require_count("max_new_tokens", self.max_new_tokens)
        if self.reference is not None:
            require_in_range("task.reference", self.reference, 0.0, 1.0, open_low=True)
        require_in_range("task.rate", self.rate, 0.0, 1.0, open_low=True)
        require_in_range("task.weight_decay", self.weight_decay, 0.0, 1.0)
        require_in_range("task.held_out", self.held_out, 0.0, 1.0, open_low=True, open_high=True)
        require_some("task.thresholds", self.thresholds, "threshold")
        for threshold in self.thresholds:
            require_in_range("task.thresholds", threshold, 0.0, 1.0)
        if self.prompts is not None and self.families is not None:
            raise ConfigError("prompts and task.families exclude each other; give one of them")
        require_some("task.families", self.families, "family")
        if isinstance(self.problems, Mapping) and (self.families or self.prompts):
            raise ConfigError(
                "task.problems names families, so that task.families and prompts must not be given"
            )

    def run(self, context: Context) -> int:
        """Decode, learn, measure, write; returns 0."""
        context.refuse_early(_check_grid)
        from dllm_decode.decoding.denoiser import Capabilities
        from dllm_decode.training.filter import compared, doubt, fit, split, transfer

        prompts = self._prompts()
        decoder = context.decoder_with("strategy=sequential")
        _check_grid(decoder)
        records = self._records(context, decoder, self._request(decoder, prompts))
        rest, kept = split(records, self.held_out, self.seed)
        learned, watched = (
            split(rest, self.held_out, self.seed) if len(rest.prompts) > 1 else (rest, None)
        )
        recipe = self._recipe()
        with context.display.progress("training the filter", self.steps) as report:
            mark = Capabilities.of(decoder.model.denoiser).fingerprint
            fitted = fit(learned, recipe, watched, fingerprint=mark, report=report)
        verdict = compared(fitted.network, kept, self.seed)
        network = replace(fitted.network, doubt=doubt(verdict))
        groups = prompts.groups() if self.transfer else {}
        figures = {
            **self._figures(decoder, fitted, learned, kept),
            "compared": verdict,
            "doubt": network.doubt,
            "transfer": transfer(records, groups, recipe, self.held_out),
        }
        about = {"model": decoder.model.description.checkpoint, "recipe": "task=train_filter"}
        report_file = context.folder.write_json(REPORT, figures)
        network.save(report_file.with_name(FILTER), about)
        context.display.show(_table(figures["held_out"]["at"]))
        context.display.say(
            f"{len(learned)} records to learn from, {len(kept)} to measure with; "
            f"{_verdict(verdict)}; decode with "
            f"strategy=learn2pd strategy.select.weights={report_file.with_name(FILTER)}"
        )
        return 0

    def _recipe(self) -> FilterRecipe:
        from dllm_decode.training.filter import FilterRecipe

        return FilterRecipe(self.steps, self.rate, self.weight_decay, self.batch_records, self.seed)

    # Prompts.

    def _prompts(self) -> _Prompts:
        from dllm_decode.api import DEFAULT_NEW_TOKENS
        from dllm_decode.problems import FAMILIES, problems

        if self.prompts is not None:
            asked = prompts_to_learn_from(self.prompts)
            usual = self.max_new_tokens or DEFAULT_NEW_TOKENS
            lengths = [each.max_new_tokens or usual for each in asked]
            found = _Prompts(asked, lengths, [None] * len(asked), [""] * len(asked))
        else:
            drawn = [
                problem
                for name, count in self._counts().items()
                for problem in problems(name, "train", count, self.seed)
            ]
            found = _Prompts(
                [GivenPrompt(p.prompt, f"{p.family} {n}") for n, p in enumerate(drawn)],
                [self.max_new_tokens or FAMILIES[p.family].canvas for p in drawn],
                [p.form or None for p in drawn],
                [p.family for p in drawn],
            )
        if len(found.asked) < 2:
            raise ConfigError(
                "task=train_filter needs two prompts or more, one to learn from and one to measure "
                f"with, got {len(found.asked)}"
            )
        return found

    def _counts(self) -> Mapping[str, int]:
        """Problems of each family."""
        from dllm_decode.problems import FAMILIES

        if isinstance(self.problems, Mapping):
            return self.problems
        shown = [name for name, family in FAMILIES.items() if family.shown]
        return dict.fromkeys(self.families or shown or list(FAMILIES), self.problems)

    def _request(self, decoder: TextDecoder, prompts: _Prompts) -> Request:
        from dllm_decode.decoding.types import Request

        ids = tuple(
            decoder.encode(
                prompt.content,
                row,
                continue_final=prompt.continue_final_message,
                arguments=prompt.chat_template_kwargs,
            )
            for row, prompt in enumerate(prompts.asked)
        )
        seeds = tuple(self.seed + row for row in range(len(ids)))
        forms = prompts.forms if any(prompts.forms) else None
        columns, fixed = decoder.infilling(forms, prompts.lengths, len(ids))
        request = Request(ids, columns, seeds, fixed)
        decoder.check(request, [prompt.source for prompt in prompts.asked])
        return request

    # FilterRecords.

    def _records(self, context: Context, decoder: TextDecoder, request: Request) -> FilterRecords:
        """The forward passes of the oracle, which follows the reference decode."""
        from dllm_decode.training.filter import FilterRecorder

        if self.reference is not None:
            rule = f"strategy.select.threshold={self.reference}"
            decoder = context.decoder_with("strategy=threshold", rule)
        reference = self._decode(context, "reference decode", decoder, request)
        request = replace(request, reference=reference)
        oracle = context.decoder_with("strategy=oracle", "strategy.select.stuck=block")
        recorder = FilterRecorder()
        self._decode(context, "oracle pass", oracle, request, recorder)
        return recorder.records()

    def _decode(
        self,
        context: Context,
        title: str,
        decoder: TextDecoder,
        request: Request,
        *observers: Observer,
    ) -> tuple[tuple[int, ...], ...]:
        def decode(progress: Observer) -> Result:
            return decoder.decode(
                request, batch_size=self.batch_size, observers=(*observers, progress)
            )

        return context.decoded(title, request.lengths, decode).sequences

    # Telling.

    def _figures(
        self,
        decoder: TextDecoder,
        fitted: FittedFilter,
        learned: FilterRecords,
        kept: FilterRecords,
    ) -> dict[str, Any]:
        from dllm_decode.training.filter import loss, measured

        network = fitted.network

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
            "reference": self.reference,
            "recipe": asdict(self._recipe()),
            "problems": dict(self._counts()) if self.prompts is None else None,
            "kept_after": fitted.kept,
            "curve": [
                dict(zip(("step", "learned", "watched"), point, strict=True))
                for point in fitted.curve
            ],
            "trained_on": figures(learned),
            "held_out": figures(kept),
        }


def _verdict(found: Mapping[str, Any]) -> str:
    """In words, how the filter compares with the confidence it reads."""
    from dllm_decode.training.filter import doubt

    auc, against = found["auc"], doubt(found)
    if against is not None:
        return f"no better than plain confidence: {against}"
    return f"better than plain confidence: AUC {auc['filter']:.3f}, not {auc['confidence']:.3f}"


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    """Held-out precision and recall per threshold."""
    from rich.table import Table

    sheet = Table(
        title="held-out prompts, open columns: filter | confidence alone | as many of the surest"
    )
    for head in ("threshold", "precision", "recall", "precision", "recall", "precision"):
        sheet.add_column(head, justify="right")
    for row in rows:
        values = [
            row[name][figure]
            for name in ("filter", "confidence")
            for figure in ("precision", "recall")
        ]
        cells = ["-" if x is None else f"{x:.3f}" for x in (*values, row["at_equal_speed"])]
        sheet.add_row(f"{row['threshold']:g}", *cells)
    return sheet


def _check_grid(decoder: TextDecoder) -> None:
    if decoder.decoder.schedule.block_length is None:
        raise ConfigError("task=train_filter needs a block grid; use schedule=blocks")
