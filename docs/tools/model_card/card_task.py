"""What `python docs/tools/model_card` does: measure again every figure of the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_decode.errors import (
    ConfigError,
    DllmDecodeError,
    require,
    require_count,
    require_in_range,
)
from dllm_decode.tasks import Context, Task

if TYPE_CHECKING:
    from card_dynamics import Dynamics
    from card_history import Redundancy
    from card_text import Measured

    from dllm_decode.evaluation.store import EvalRun
    from dllm_decode.tasks.ablation import Ablation

ORDERS = ("random", "confidence", "margin")  # of the cells of a puzzle, compared with each other
PUZZLE = "sudoku6"


@dataclass(frozen=True)
class ModelCard(Task):
    """Evaluates the model on its families and writes the measured part of its card.

    Measured: accuracy of every family with one token per step, with several, and for confidence
    thresholds; temporal redundancy; calibration. Finished jobs in `runs` are not done again.

    Attributes:
        count: Held-out problems per family that is shown, with one token per step.
        compared_count: The same for everything else, of which these are the first.
        weak_count: Of the families that are not shown, which are decoded one token per step only;
            0 leaves them out.
        hard_count: Problems of each family on which decoding is hard, for how it behaves there; 0
            leaves it out.
        tokens_per_step: What is compared with one token per step.
        thresholds: The same for confidences.
        batch_size: See `Eval`.
        workers: Jobs that run at the same time, see `Ablation`.
        runs: See `Eval`.
        resume: See `Eval`.
        card: A Markdown page whose part between the marks of `card_text` is replaced, with the
            pictures beside it; None for `card.md` in the run folder.
    """

    count: int = 500
    compared_count: int = 100
    weak_count: int = 100
    hard_count: int = 100
    tokens_per_step: list[int] = field(default_factory=lambda: [2, 4, 8])
    thresholds: list[float] = field(default_factory=lambda: [0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
    batch_size: int = 16
    workers: int = 1
    runs: str = "runs/eval"
    resume: bool = True
    card: str | None = None

    def __post_init__(self) -> None:
        require_count("task.count", self.count)
        require_count("task.compared_count", self.compared_count)
        require_count("task.weak_count", self.weak_count, minimum=0)
        require_count("task.hard_count", self.hard_count, minimum=0)
        require_count("batch_size", self.batch_size)
        require_count("task.workers", self.workers)
        for value in self.tokens_per_step:
            require_count("task.tokens_per_step", value, minimum=2)
        for threshold in self.thresholds:
            require_in_range("task.thresholds", threshold, 0, 1)
        require(
            bool(self.thresholds and self.tokens_per_step),
            "task.thresholds and task.tokens_per_step must hold at least one value each",
        )
        if self.card is not None and not self.card.endswith(".md"):
            raise ConfigError(f"task.card must end with .md, got {self.card!r}")

    def run(self, context: Context) -> int:
        """Measure what is not measured yet and write the card; returns 0."""
        import card_dynamics as dynamics
        import card_text as card

        from dllm_decode.problems import FAMILIES

        if self.ablation().evaluate(context):
            raise DllmDecodeError("a job of the model card failed, see above; no card was written")
        runs = {name: _run(context, n) for n, name in enumerate(self.jobs())}
        found = self.measured(runs)
        answers = right_answers(context, found)
        determined = {name: family.determined for name, family in FAMILIES.items()}
        page = Path(self.card) if self.card else context.folder.path / "card.md"
        text = card.text(found, determined, answers)
        if self.hard_count:
            text = f"{text}\n\n{dynamics.text(self.dynamics(context, runs))}"
        if self.card:
            card.insert(page, text)
        else:
            page.write_text(text + "\n", encoding="utf-8")
        card.draw(found, determined, answers, page.parent)
        context.display.say(text)
        context.display.say(f"model card: {page}")
        return 0

    def jobs(self) -> dict[str, str]:
        """What is evaluated, by a name of its own."""
        from dllm_decode.problems import FAMILIES, HARD

        several = {
            f"top {k}": f"strategy=topk strategy.select.tokens_per_step={k}"
            for k in self.tokens_per_step
        }
        levels = {
            f"threshold {x}": f"strategy=threshold strategy.select.threshold={x}"
            for x in self.thresholds
        }
        few = min(self.compared_count, self.count)
        jobs = {"sequential": "strategy=sequential"}
        jobs |= {name: f"{job} task.count={few}" for name, job in (several | levels).items()}
        weak = [f.name for f in FAMILIES.values() if f.trained and not f.shown]
        if weak and self.weak_count:
            names = ",".join(weak)
            jobs["weak"] = (
                f"strategy=sequential task.families=[{names}] task.count={self.weak_count}"
            )
        if self.hard_count:
            asked = f"task.count={self.hard_count} task.families"
            one = "strategy=topk strategy.select.tokens_per_step=1 schedule=whole"
            for order in ORDERS:
                job = f"{one} strategy.select.order={order} {asked}=[{PUZZLE}]"
                jobs[f"order {order}"] = job
            if self._among_all():
                jobs["oracle"] = f"strategy=oracle task.count={few}"
                return jobs
            hard = {"sequential": "strategy=sequential", **levels, "oracle": "strategy=oracle"}
            for name, job in hard.items():  # the oracle last, as ablations do
                jobs[f"hard {name}"] = f"{job} {asked}=[{','.join(HARD)}]"
        return jobs

    def _among_all(self) -> bool:
        """Whether the jobs on all families have decoded enough problems of the hard ones, too."""
        from dllm_decode.problems import FAMILIES, HARD

        few = min(self.compared_count, self.count)
        return self.hard_count <= few and all(FAMILIES[name].shown for name in HARD)

    def ablation(self) -> Ablation:
        """The jobs as one task."""
        from dllm_decode.tasks.ablation import Ablation

        return Ablation(
            jobs=list(self.jobs().values()),
            families="shown",
            count=self.count,
            batch_size=self.batch_size,
            workers=self.workers,
            runs=self.runs,
            resume=self.resume,
        )

    def measured(self, runs: Mapping[str, EvalRun]) -> Measured:
        """The finished jobs that the first half of the card is made of."""
        from card_text import Measured

        return Measured(
            sequential=runs["sequential"],
            weak=runs.get("weak"),
            parallel=tuple((k, runs[f"top {k}"]) for k in self.tokens_per_step),
            thresholds=tuple((x, runs[f"threshold {x}"]) for x in self.thresholds),
        )

    def dynamics(self, context: Context, runs: Mapping[str, EvalRun]) -> Dynamics:
        """The finished jobs on the hard families, and what the age of proposals says there."""
        from card_dynamics import Dynamics

        from dllm_decode.evaluation import data
        from dllm_decode.problems import HARD

        def hard(name: str) -> EvalRun:
            if f"hard {name}" in runs:
                return runs[f"hard {name}"]
            first = {p.key for f in HARD for p in data.bundled(f, self.hard_count)}
            run = runs[name].on(first)
            return replace(run, results={**run.results, "families": list(HARD)})

        return Dynamics(
            sequential=hard("sequential"),
            thresholds=tuple((x, hard(f"threshold {x}")) for x in self.thresholds),
            oracle=hard("oracle"),
            orders=tuple((order, runs[f"order {order}"]) for order in ORDERS),
            history={name: self._history(context, name) for name in HARD},
        )

    def _history(self, context: Context, family: str) -> Redundancy | None:
        """What age says below a threshold of 0.9, on the first problems of a family."""
        import card_history as history

        from dllm_decode.api import build
        from dllm_decode.config.compose import compose_checked
        from dllm_decode.evaluation import data
        from dllm_decode.evaluation.evaluate import Evaluation
        from dllm_decode.tasks.eval import shared_model

        line = "strategy=threshold strategy.select.threshold=0.9"
        cfg = compose_checked(self.ablation().overrides(context, line))
        decoder = build(cfg, model=lambda: shared_model(replace(context, cfg=cfg)))
        questions = data.bundled(family, self.hard_count)
        evaluation = Evaluation(decoder.decoder, decoder.model.tokenizer)
        request = evaluation.request(list(enumerate(questions)))
        watch = history.Watch(request.rows, max(request.lengths))
        result = decoder.decode(request, observers=[watch])
        seen = watch.sightings(result.sequences, decoder.model.denoiser.vocab.eot_ids)
        return history.redundancy(seen.below(0.9))


def _run(context: Context, number: int) -> EvalRun:
    from dllm_decode.evaluation.store import read_json, read_run

    place = context.folder.path / "jobs" / f"{number:02d}" / "results.json"
    return read_run(Path(read_json(place)["job"]))


def right_answers(context: Context, found: Measured) -> Mapping[str, Sequence[int]]:
    """Token ids of the right answer of every problem that is shown, by the problem's key."""
    from dllm_decode.evaluation import data

    tokenizer = context.model.tokenizer
    run = found.sequential
    answers = {}
    for task in run.families:
        _, split, seed, _ = run.of(task)[0].problem.split("/")
        for question in data.bundled(task, len(run.of(task)), int(seed), split):
            answers[question.key] = tokenizer.encode(f" {question.label}", framed=False)
    return answers
