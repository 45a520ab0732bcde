"""`task=generate`: decode prompts, show it happening, and say what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dllm_decode.console.processes import INTERRUPTED
from dllm_decode.console.prompts import GivenPrompt, one_prompt, read_prompts
from dllm_decode.decoding.batching import check_batching
from dllm_decode.errors import ConfigError, require, require_count
from dllm_decode.tasks import Context, Task

if TYPE_CHECKING:
    from rich.table import Table

    from dllm_decode.api import TextDecoder
    from dllm_decode.console.display import Display
    from dllm_decode.decoding.outcome import Result
    from dllm_decode.decoding.trace import Trace
    from dllm_decode.decoding.types import Request
    from dllm_decode.evaluation.metrics import Sample

BASELINE = "sequential"
_MOST_RACING = 64  # prompts; the steps of more are not kept for a race
_MOST_OFFERS = 500_000  # open columns over all steps; of more no candidates are kept


@dataclass(frozen=True)
class Job:
    """One prompt to decode.

    Attributes:
        prompt: The prompt and what its line asked for.
        columns: To generate.
        grade: Whether a text is right, None where that is not known.
        form: For infilling, the answer with a gap for every token to be found, "" where all are.

    Examples:
        >>> Job(GivenPrompt("Sort: Eve, Ada.", source="the command line"), columns=32).columns
        32
    """

    prompt: GivenPrompt
    columns: int
    grade: Callable[[str], bool] | None = None
    form: str = ""

    @property
    def title(self) -> str:
        """The prompt on one line, for infilling with what is given."""
        if not self.form:
            return self.prompt.title
        from dllm_decode.problems import GAP

        return f"{self.prompt.title}: {' '.join(self.form.replace(GAP, ' ·').split())}"


@dataclass(frozen=True)
class Decoded:
    """A decode of all jobs.

    Attributes:
        result: Its rows are the jobs.
        seconds: Wall time, without display and warm-up.
    """

    result: Result
    seconds: float

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return "interrupted" in self.result.finish_reasons


@dataclass(frozen=True)
class Generate(Task):
    """Decodes prompts and compares with one token per step.

    Attributes:
        prompt: One text.
        prompts: A file, see `console.prompts.read_prompts`; with neither, sample problems of the
            model, which are graded.
        max_new_tokens: Columns per prompt, None for what a sample problem needs and 64 for other
            prompts.
        seed: Prompt i is decoded with seed + i; lines of a prompts file may say otherwise.
        batch_size: Prompts decoded together; changes speed and nothing else, like the next two.
        max_tokens_in_flight: See `Engine`.
        batching: See `Engine`.
        compare: Decode the same prompts with `strategy=sequential` as well.
        samples: Number of sample problems.
        chat: Whether prompts become a user's message where the model has a chat template.

    Examples:
        >>> Generate(prompt="Sort: Eve, Ada.", compare=False).max_new_tokens is None
        True
    """

    prompt: str | None = None
    prompts: str | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    batch_size: int = 16
    max_tokens_in_flight: int | None = None
    batching: str = "continuous"
    compare: bool = True
    samples: int = 6
    chat: bool = True

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompts is not None:
            raise ConfigError("prompt and prompts exclude each other; give one of them")
        if self.max_new_tokens is not None:
            require_count("max_new_tokens", self.max_new_tokens)
        require_count("seed", self.seed, minimum=0)
        require(self.seed < 2**63, f"seed must be less than 2**63, got {self.seed}")
        check_batching(self.batch_size, self.max_tokens_in_flight, self.batching)
        require_count("task.samples", self.samples)
        if self.prompt is not None:
            one_prompt(self.prompt)

    def run(self, context: Context) -> int:
        """Decode, show, compare, write; returns 0, 1 if a row failed, 130 after Ctrl-C."""
        asked = self.asked()
        context.refuse_early(lambda decoder: self.prepare(decoder, asked))
        decoder = context.decoder
        display = context.display
        display.paragraph(first_line(decoder))
        jobs, request = self.prepare(decoder, asked)
        decoder = with_candidates(decoder, context.trace.candidates, request)
        note = note_for_strangers(decoder, [j.prompt.title for j in jobs if j.grade is None])
        if note:
            display.paragraph(note, "bold")
        racing = self.compare and not is_baseline(decoder)
        keep = context.trace.records(len(jobs)) or (racing and len(jobs) <= _MOST_RACING)
        own = context.strategy_name
        runs = {own: self._decode(context, decoder, request, jobs, keep, racing)}
        if racing and not runs[own].interrupted:
            runs[BASELINE] = self._baseline(context, decoder, request, keep)
        samples = {name: samples_of(jobs, run) for name, run in runs.items()}
        traces = self._traces(context, decoder, jobs, request, runs) if keep else {}
        write(context, decoder, jobs, runs, samples, traces)
        watched: Sequence[int] = ()
        if BASELINE in traces and not any(run.interrupted for run in runs.values()):
            watched = self._race(display, jobs, samples, traces)
        self._show(context, jobs, runs, samples, watched)
        if any(run.interrupted for run in runs.values()):
            return INTERRUPTED
        return int(any(any(run.result.errors) for run in runs.values()))

    def conclude(self, context: Context) -> None:
        """A line for every job of a sweep."""
        from dllm_decode.tasks.sweep_table import table_of_jobs

        context.display.show(table_of_jobs(context.folder.path.parent))

    # What to decode.

    def prepare(
        self, decoder: TextDecoder, asked: list[GivenPrompt] | None = None
    ) -> tuple[list[Job], Request]:
        """The prompts, or sample problems, and the request for them.

        Args:
            decoder: That will decode them, to whose model the samples belong.
            asked: The prompts, None to read them as the settings say.
        """
        jobs = self._jobs(decoder, self.asked() if asked is None else asked)
        return jobs, self._request(decoder, jobs)

    def asked(self) -> list[GivenPrompt] | None:
        """The prompts that are given, None for sample problems."""
        if self.prompt is not None:
            return one_prompt(self.prompt)
        return None if self.prompts is None else read_prompts(self.prompts)

    def _jobs(self, decoder: TextDecoder, asked: list[GivenPrompt] | None) -> list[Job]:
        from dllm_decode.api import DEFAULT_NEW_TOKENS

        default = self.max_new_tokens or DEFAULT_NEW_TOKENS
        if asked is not None:
            return [Job(prompt, prompt.max_new_tokens or default) for prompt in asked]
        model: Any = decoder.model
        if hasattr(model, "sample_prompts"):
            return [
                Job(GivenPrompt(text, f"sample {n}"), default, _possible(model, text))
                for n, text in enumerate(model.sample_prompts(self.samples, self.seed))
            ]
        return self._sample_problems()

    def _sample_problems(self) -> list[Job]:
        """Held-out problems of the families that take many passes, in turn.

        Fewer problems than families are spread over them, so that all kinds are seen.
        """
        from dllm_decode.problems import FAMILIES, demanding, problems

        families = demanding()
        if self.samples < len(families):
            places = range(self.samples)
            families = [families[place * len(families) // self.samples] for place in places]
        each = -(-self.samples // len(families))
        drawn = [problems(family.name, "held_out", each, self.seed) for family in families]
        turns = [group[turn] for turn in range(each) for group in drawn][: self.samples]
        return [
            Job(
                GivenPrompt(problem.prompt, f"{problem.family} {n}"),
                self.max_new_tokens or FAMILIES[problem.family].canvas,
                partial(FAMILIES[problem.family].grade, problem),
                problem.form,
            )
            for n, problem in enumerate(turns)
        ]

    def _request(self, decoder: TextDecoder, jobs: Sequence[Job]) -> Request:
        from dllm_decode.decoding.types import Request

        ids = []
        for row, job in enumerate(jobs):
            try:
                ids.append(
                    decoder.encode(
                        job.prompt.content,
                        row,
                        self.chat,
                        continue_final=job.prompt.continue_final_message,
                        arguments=job.prompt.chat_template_kwargs,
                    )
                )
            except ConfigError as error:
                raise ConfigError(f"{job.prompt.source}: {error}") from None
        forms = [job.form or None for job in jobs]
        columns = [job.columns for job in jobs]
        lengths, fixed = decoder.infilling(forms if any(forms) else None, columns, len(jobs))
        request = Request(
            prompts=tuple(ids),
            max_new_tokens=lengths,
            seeds=tuple(
                self.seed + row if job.prompt.seed is None else job.prompt.seed
                for row, job in enumerate(jobs)
            ),
            fixed=fixed,
            parameters=tuple(job.prompt.parameters for job in jobs),
        )
        decoder.check(request, [job.prompt.source for job in jobs])
        return request

    # Decoding.

    def _decode(
        self,
        context: Context,
        decoder: TextDecoder,
        request: Request,
        jobs: Sequence[Job],
        keep: bool,
        racing: bool,
    ) -> Decoded:
        from dllm_decode.console.display import CanvasView
        from dllm_decode.console.watching import CanvasObserver

        view = CanvasView([job.title for job in jobs], decoder.piece)
        observer = CanvasObserver(view)
        with context.display.canvas(view, shown_later=racing and keep):
            silent = context.display.silent
            return self._timed(decoder, request, () if silent else (observer,), keep)

    def _baseline(
        self, context: Context, decoder: TextDecoder, request: Request, keep: bool
    ) -> Decoded:
        from dllm_decode.console.watching import ProgressObserver

        columns = sum(request.lengths)
        with context.display.progress("the same, one token per step", columns) as report:
            return self._timed(
                decoder.sequential,
                replace(request, parameters=None),  # parameters of the other strategy
                (ProgressObserver(columns, report),),
                keep,
            )

    def _timed(
        self, decoder: TextDecoder, request: Request, observers: Sequence[Any], record: bool
    ) -> Decoded:
        from dllm_decode.decoding.observer import Interrupted

        begin = time.perf_counter()
        try:
            decoder.warm_up(request, self.batch_size, self.max_tokens_in_flight)
            begin = time.perf_counter()
            result = decoder.decode(
                request,
                batch_size=self.batch_size,
                max_tokens_in_flight=self.max_tokens_in_flight,
                batching=self.batching,
                observers=observers,
                record=record,
            )
        except Interrupted as stop:
            result = stop.result
        spent = sum(observer.seconds for observer in observers)
        return Decoded(result, time.perf_counter() - begin - spent)

    # Telling.

    def _traces(
        self,
        context: Context,
        decoder: TextDecoder,
        jobs: Sequence[Job],
        request: Request,
        runs: dict[str, Decoded],
    ) -> dict[str, Trace]:
        from dllm_decode.console.trace_files import trace_of

        titles = [job.title for job in jobs]
        return {
            name: trace_of(request, run.result, titles, decoder.model) for name, run in runs.items()
        }

    def _race(
        self,
        display: Display,
        jobs: Sequence[Job],
        samples: dict[str, list[Sample]],
        traces: dict[str, Trace],
    ) -> list[int]:
        """Show the prompts worth watching; returns those whose answers have been seen."""
        from dllm_decode.console.race import Heat, Lane, run_race, worth_watching

        own = next(iter(traces))
        heats, rows = [], worth_watching([sample.forwards for sample in samples[own]])
        for row in rows:
            graded = jobs[row].grade is not None
            lanes = [
                Lane.of(name, traces[name], row, samples[name][row].correct if graded else None)
                for name in (BASELINE, own)
            ]
            heats.append(Heat(jobs[row].title, tuple(lanes)))
        return rows[: run_race(heats, display)]

    def _show(
        self,
        context: Context,
        jobs: Sequence[Job],
        runs: dict[str, Decoded],
        samples: dict[str, list[Sample]],
        watched: Sequence[int],
    ) -> None:
        display = context.display
        first = next(iter(samples.values()))
        for row, (job, sample) in enumerate(zip(jobs, first, strict=True)):
            if row in watched and job.grade is not None:  # what people asked, they may want to copy
                continue
            display.say(job.title, "dim")
            mark = "" if job.grade is None else ("  ✓" if sample.correct else "  ✗ wrong")
            note = sample.error and f"  failed: {sample.error}"
            style = None if sample.correct or job.grade is None else "red"
            display.say(f"  {sample.text.strip() or '(empty)'}{mark}{note}", style)
        graded = any(job.grade is not None for job in jobs)
        interrupted = any(run.interrupted for run in runs.values())
        whole = len(runs) == 2 and not interrupted  # half a decode proves nothing
        if whole:
            own, baseline = samples.items()
            display.say(verdict(own, baseline, graded), "bold")
        display.show(table(runs, samples, graded))
        if whole:
            display.say(compared(*samples.values()))
        if interrupted:
            display.say("interrupted; the partial results are in the run folder", "bold")
        display.say(f"run folder: {context.folder.path}")
        player = context.folder.path / "trace.html"
        if player.is_file():
            display.say(f"player: {player}")


def _possible(world: Any, prompt: str) -> Callable[[str], bool]:
    """Whether an answer can happen at all in an exact world."""
    return lambda text: world.probability(prompt, text) > 0.0


def first_line(decoder: TextDecoder) -> str:
    """Model, checkpoint, parameters, device, strategy in words."""
    return f"{decoder.model.description}; {parts_line(decoder)}"


def parts_line(decoder: TextDecoder) -> str:
    """Strategy, schedule, cache, sampler and guidance in words."""
    from dllm_decode.console.describe import describe_part, describe_strategy
    from dllm_decode.models.guided import Guided

    loop = decoder.decoder
    others = ", ".join(map(describe_part, (loop.schedule, loop.cache, loop.sampler)))
    twice = f"; guidance {loop.denoiser.scale}" if isinstance(loop.denoiser, Guided) else ""
    return f"{describe_strategy(loop.strategy)}; {others}{twice}"


def note_for_strangers(decoder: TextDecoder, prompts: Sequence[str]) -> str:
    """One line where the bundled model is asked what it has never learned, else "".

    Args:
        decoder: Only the bundled model has a note.
        prompts: Those without a known answer.
    """
    from dllm_decode.models.locate import BUNDLED

    if not decoder.model.description.checkpoint.startswith(BUNDLED):
        return ""
    from dllm_decode.problems import FAMILIES
    from dllm_decode.problems.recognise import family_of

    known = [family for family in FAMILIES.values() if family.shown]
    strange = sum(family_of(prompt, known) is None for prompt in prompts)
    if not strange:
        return ""
    which, whose = "this prompt is", "its answer means"
    if len(prompts) > 1:
        which, whose = f"{strange} of these prompts are", "answers to them mean"
    return (
        f"note: {which} outside what the small bundled model has learned, {len(known)} kinds of "
        f'short problems such as "Sort: 1 Eva 2 Ben 3 Cleo"; {whose} nothing '
        "(model=llada_8b_instruct is one that answers)"
    )


def with_candidates(decoder: TextDecoder, most: int, request: Request) -> TextDecoder:
    """The decoder with so many candidates per open column in its records.

    A request so large that they would fill hundreds of megabytes is recorded without them.

    Args:
        decoder: The configured one.
        most: Candidates per column.
        request: What is to be decoded.
    """
    offers = sum(length**2 for length in request.lengths) // 2  # one pass per column at worst
    kept = most if offers <= _MOST_OFFERS else 0
    return replace(decoder, decoder=replace(decoder.decoder, candidates=kept))


def is_baseline(decoder: TextDecoder) -> bool:
    """Whether a decoder is the one that others are compared with, one token per step."""
    return decoder.decoder == decoder.sequential.decoder


def samples_of(jobs: Sequence[Job], run: Decoded) -> list[Sample]:
    """What is measured of each row; the wall time is shared evenly.

    Args:
        jobs: What was decoded.
        run: What came of it.
    """
    from dllm_decode.evaluation.data import Question
    from dllm_decode.evaluation.metrics import DecodedRow, sample_of

    samples = []
    for number, (job, outcome) in enumerate(zip(jobs, run.result.rows, strict=True)):
        key, title = f"{number} {job.prompt.source}", job.prompt.title
        grade = job.grade or (lambda text: False)
        question = Question(key, "generate", title, "", job.columns, grade)
        seconds = run.seconds / len(jobs)
        row = DecodedRow(outcome, job.columns, seconds, outcome.reference_forwards)
        samples.append(sample_of(question, row, outcome.text, grade(outcome.text)))
    return samples


def figures(samples: Sequence[Sample], seconds: float, graded: bool) -> dict[str, Any]:
    """The figures of a decode, as in `results.json`; see `dllm_decode.evaluation.metrics`.

    Args:
        samples: Of a decode.
        seconds: Its wall time.
        graded: Whether any answer could be graded.
    """
    forwards = sum(sample.forwards for sample in samples)
    delivered = sum(sample.delivered for sample in samples)
    reasons = [sample.finish_reason for sample in samples]
    found = {
        "prompts": len(samples),
        "forwards": forwards,
        "reference_forwards": sum(sample.reference_forwards for sample in samples),
        "delivered_tokens": delivered,
        "tokens_per_forward": delivered / forwards if forwards else 0.0,
        "seconds": seconds,
        "tokens_per_second": delivered / seconds if seconds else 0.0,
        "finish_reasons": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }
    return {**found, "correct": sum(s.correct for s in samples)} if graded else found


def table(runs: dict[str, Decoded], samples: dict[str, list[Sample]], graded: bool) -> Table:
    """The figures of each decode, a line per strategy.

    Args:
        runs: Decodes by the name of their strategy.
        samples: What was measured of each row, by the same names.
        graded: Whether it is known what is right.
    """
    from rich import box
    from rich.table import Table

    # fits 80 columns
    sheet = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    sheet.add_column("strategy", overflow="fold")
    heads = ["forwards", "tokens", "tokens/forward", "tokens/s", "seconds"]
    for head in [*heads, *(["correct"] if graded else [])]:
        sheet.add_column(head, justify="right", no_wrap=True)
    sheet.add_column("finish")
    for name, run in runs.items():
        found = figures(samples[name], run.seconds, graded)
        extra = found["reference_forwards"]
        cells = [
            f"{found['forwards']}" + (f" + {extra} reference" if extra else ""),
            f"{found['delivered_tokens']}",
            f"{found['tokens_per_forward']:.2f}",
            f"{found['tokens_per_second']:.1f}",
            f"{found['seconds']:.2f}",
        ]
        cells += [f"{found['correct']}/{found['prompts']}"] if graded else []
        reasons = ", ".join(f"{reason} {n}" for reason, n in found["finish_reasons"].items())
        sheet.add_row(name, *cells, reasons)
    return sheet


def compared(samples: Sequence[Sample], baseline: Sequence[Sample]) -> str:
    """The two speedups, which are different things.

    Args:
        samples: Of the decode.
        baseline: Of one token per step.
    """
    from dllm_decode.evaluation.metrics import speedup

    gain = speedup(samples, baseline)
    return (
        f"against one token per step: {gain.forwards:.2f}x fewer forwards, "
        f"{gain.wall_time:.2f}x in wall time"
    )


def verdict(
    own: tuple[str, Sequence[Sample]], baseline: tuple[str, Sequence[Sample]], graded: bool
) -> str:
    """One sentence: passes against those of the baseline, and who was right.

    Args:
        own: Name of the strategy and what was measured of each row.
        baseline: Likewise.
        graded: Whether it is known what is right.
    """
    (name, mine), (other, theirs) = own, baseline
    spent = sum(s.forwards for s in mine)
    word = "pass" if spent == 1 else "passes"
    passes = f"{spent} {word} against {sum(s.forwards for s in theirs)}"
    count = len(mine)
    if not graded:
        same = sum(a.text == b.text for a, b in zip(mine, theirs, strict=True))
        if count == 1:
            return f"{passes}, {'the same answer' if same else 'different answers'}"
        return f"{passes}, the same answer to {same} of {count} prompts"
    right, expected = (sum(sample.correct for sample in group) for group in (mine, theirs))
    if count == 1 and right != expected:
        return f"{passes}, only {name if right else other} right"
    if right == expected and right in (0, count):
        word = "right" if right else "wrong"
        return f"{passes}, {f'both {word}' if count == 1 else f'all {count} {word} in both'}"
    return f"{passes}, {right} against {expected} of {count} right"


def write(
    context: Context,
    decoder: TextDecoder,
    jobs: Sequence[Job],
    runs: dict[str, Decoded],
    samples: dict[str, list[Sample]],
    traces: dict[str, Trace],
) -> None:
    """`results.json`, `samples.jsonl`, and the traces where they were asked for.

    Args:
        context: With the run folder.
        decoder: The configured one.
        jobs: What was decoded.
        runs: Decodes by name.
        samples: Of each decode, by name.
        traces: Of each decode, by name; {} where none are wanted.
    """
    from dllm_decode.evaluation.metrics import speedup

    graded = any(job.grade is not None for job in jobs)
    results: dict[str, Any] = {
        "model": {**asdict(decoder.model.description)},
        "strategy": first_line(decoder).partition("; ")[2],
        "runs": {name: figures(samples[name], run.seconds, graded) for name, run in runs.items()},
    }
    if len(runs) == 2 and not any(run.interrupted for run in runs.values()):
        results["speedup"] = asdict(speedup(*samples.values()))
    context.folder.write_json("results.json", results)
    context.folder.write_jsonl(
        "samples.jsonl",
        (
            {"run": name, **sample.to_record()}
            for name, group in samples.items()
            for sample in group
        ),
    )
    if context.trace.records(len(jobs)):
        known = [job.grade is not None for job in jobs]
        correct = {
            name: [s.correct if k else None for s, k in zip(group, known, strict=True)]
            for name, group in samples.items()
        }
        context.trace.write(context.folder, traces, correct)
