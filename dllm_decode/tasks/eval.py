"""`task=eval`: decode and grade problems, write every sample as it comes, show the table."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_decode.decoding.batching import check_batching, check_voting
from dllm_decode.environment import hardware, version_of
from dllm_decode.errors import (
    ConfigError,
    DllmDecodeError,
    require_choice,
    require_count,
    require_in_range,
    require_some,
)
from dllm_decode.problems import TRAINED, Variant, families_of
from dllm_decode.tasks import Context, Task, strategy_name
from dllm_decode.tasks.eval_devices import check_devices, merged, placed, plan_of, workers

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dllm_decode.api import TextDecoder
    from dllm_decode.decoding.types import Request
    from dllm_decode.decoding.voting import Voting
    from dllm_decode.evaluation.data import Question
    from dllm_decode.evaluation.evaluate import Evaluation, Reference
    from dllm_decode.evaluation.metrics import Sample
    from dllm_decode.evaluation.store import JobFolder
    from dllm_decode.models.loaded import LoadedModel

GROUPS = ("strategy", "schedule", "cache", "sampler")
_MODELS: dict[str, Any] = {}  # models of this process, so that a sweep loads each of them once
_FINISHED: dict[Path, None] = {}  # jobs of this command, for the table at the end


@dataclass(frozen=True)
class Eval(Task):
    """Measures one combination of model, strategy, schedule, cache and sampler on problems.

    Exact toy worlds bring their own problems, and `families` does not matter. A job is named by a
    hash of everything that matters to its figures, so that a rerun skips finished jobs and goes on
    with unfinished ones. `batch_size`, `max_tokens_in_flight` and `batching` change speed and
    nothing else.

    Args:
        families: Bundled ones by name, `shown` (those the bundled model solves), `trained` (those
            it is trained on) or `all`.
        style: `shorthand`, as the bundled model is trained, or `instruct`: the tasks of
            ParallelBench in plain English with a worked example, for other checkpoints.
        language_tool: Address of a LanguageTool server that grades the grammar of free text.
        problems: List lengths, clues and other changes, see `dllm_decode.problems.variant`.
        split: `held_out` or `train`.
        count: Problems per family, or of the file.
        seed: Of the draw; question i is decoded with seed + i.
        data: A JSONL file instead, see `dllm_decode.evaluation.data`.
        format: Of the file; None: told from its keys.
        max_new_tokens: Columns per answer; None: what family or format needs.
        template: `auto`, `chat` or `plain`, see `dllm_decode.evaluation.evaluate.encode`.
        shots: A file of examples in the same format.
        shot_count: How many of them, from the top, stand before every question.
        batch_size: Problems decoded together.
        max_tokens_in_flight: See `Engine`.
        batching: See `Engine`.
        runs: The folder of all jobs.
        resume: False does the job again from the start.
        at_least: Accuracy in [0, 1] that a search asks for, see `objective`.
        timing: n > 0 makes it the n-th repetition of a job that reports use for its wall time and
            for nothing else.
        n: Decodes of every problem, which vote for its answer; forwards are those of all.
        vote: How, see `dllm_decode.decoding.voting.Voting`.
        block_lengths: Of `vote=block_lengths`, n of them; None for 8, 16, 32, ...
        answer: What of a text is compared, `text`, `number` or `boxed`; `auto`: what the grader
            reads.
        devices: `all` shares the problems among all GPUs of this machine, a list among the devices
            it names, each with a model of its own; None: one device. Changes speed and nothing
            else.

    Examples:
        >>> Eval(families="sort", count=20).split
        'held_out'
    """

    families: str | list[str] = "shown"
    style: str = "shorthand"
    language_tool: str | None = None
    problems: Variant = field(default_factory=Variant)
    split: str = "held_out"
    count: int = 100
    seed: int = 0
    data: str | None = None
    format: str | None = None
    max_new_tokens: int | None = None
    template: str = "auto"
    shots: str | None = None
    shot_count: int = 0
    batch_size: int = 16
    max_tokens_in_flight: int | None = None
    batching: str = "continuous"
    runs: str = "runs/eval"
    resume: bool = True
    at_least: float = 0.0
    timing: int = 0
    n: int = 1
    vote: str = "majority"
    block_lengths: list[int] | None = None
    answer: str = "auto"
    devices: str | list[str] | None = None

    def __post_init__(self) -> None:
        require_count("task.count", self.count)
        require_count("task.timing", self.timing, minimum=0)
        require_in_range("task.at_least", self.at_least, 0.0, 1.0)
        require_count("seed", self.seed, minimum=0)
        check_batching(self.batch_size, self.max_tokens_in_flight, self.batching)
        require_count("task.shot_count", self.shot_count, minimum=0)
        if self.max_new_tokens is not None:
            require_count("max_new_tokens", self.max_new_tokens)
        require_choice("task.answer", self.answer, ("auto", "text", "number", "boxed"))
        check_voting(self.n, self.vote, self.block_lengths)
        check_devices(self.devices, self.timing)
        require_choice("task.split", self.split, ("held_out", "train"))
        require_choice("task.template", self.template, ("auto", "chat", "plain"))
        if (self.shots is None) != (self.shot_count == 0):
            raise ConfigError(
                "task.shots (a file) and task.shot_count (how many) belong together, got "
                f"{self.shots!r} and {self.shot_count}"
            )
        if self.format is not None:
            from dllm_decode.evaluation.data import format_named

            format_named(self.format)
        if self.data is None and (self.format is not None or self.shots is not None):
            raise ConfigError("task.format and task.shots need task.data, a file of problems")
        if self.data is not None and self.problems != Variant():
            raise ConfigError("task.problems changes bundled families; task.data is a file")
        self._check_unused()
        if not self.runs:
            raise ConfigError("task.runs must name a folder, got an empty text")
        for name in self.family_names():  # refused before a model is loaded
            self.problems.of(families_of(self.style)[name])

    def _check_unused(self) -> None:
        """Refuse settings that nothing would read."""
        if self.answer != "auto" and self.n == 1:
            raise ConfigError(
                f"task.answer={self.answer} says what votes compare; it needs task.n of 2 or more, "
                f"got {self.n}"
            )
        if self.data is None:
            return
        for name, usual in (("families", "shown"), ("split", "held_out"), ("style", "shorthand")):
            if getattr(self, name) != usual:
                raise ConfigError(
                    f"task.{name} chooses bundled problems, and task.data={self.data} is a file; "
                    f"leave one of them out"
                )

    def _voting(self) -> Voting:
        """How the decodes of a problem vote."""
        from dllm_decode.decoding.voting import Voting

        return Voting(self.n, self.vote, self.block_lengths)

    def run(self, context: Context) -> int:
        """Decode what is not done yet; returns 0, or 1 if a problem could not be decoded."""
        number = job_number()
        if not number:  # the first one, or the only one: a process may run several commands
            _FINISHED.clear()
        code = self.evaluate(context, number)
        if number is None:
            self.conclude(context)
        return code

    def conclude(self, context: Context) -> None:
        """The table of all jobs of this command."""
        there = [path for path in _FINISHED if path.is_dir()]
        if there and not context.display.silent:
            show_table(context, there, 100 * self.at_least)

    def objective(self, context: Context) -> float:
        """Tokens per forward; below zero, the more the less accurate, where `at_least` is missed.

        tokens per forward        if accuracy >= at_least
        accuracy - at_least       otherwise
        """
        from dllm_decode.evaluation.store import RESULTS, read_json

        figures = read_json(context.folder.path / RESULTS)["figures"]["all"]
        share = float(figures["accuracy"]["value"])
        if share < self.at_least:
            return share - self.at_least
        return float(figures["tokens_per_forward"]["value"])

    def evaluate(self, context: Context, order: int | None) -> int:
        """`run` without its table.

        Args:
            context: Of the job.
            order: Its place in reports; None for the one it has, 0 for a new one.

        Returns:
            0, or 1 if a problem could not be decoded.
        """
        from dllm_decode.evaluation.store import RESULTS, JobFolder, read_json, write_json

        name = job_name(context.cfg_choice("strategy"), context.overrides)
        others: tuple[str, ...] = ()
        with self._failures_noted(context, name, order is not None):
            context.refuse_early(
                lambda decoder: self.questions(decoder.model),
                lambda: self.devices and placed(context, self.devices),
            )
        if self.devices is not None:
            context, others = placed(context, self.devices)
        with self._failures_noted(context, name, order is not None):
            decoder, questions, description, path = self._prepared(context, name)
        if self.resume and (path / RESULTS).exists() and not read_json(path / RESULTS)["errors"]:
            context.display.say(f"{name}: done already, {path}")
        else:
            job = {"name": name, **description}
            with JobFolder(path, job, fresh=not self.resume) as folder:
                self._decode(context, decoder, questions, folder, name, others)
                results = self._results(context, decoder, questions, folder)
                folder.finish({"name": name, "order": order or 0, **results})
                tell_errors(context, name, folder)
        _FINISHED[path.absolute()] = None
        results = read_json(path / RESULTS)
        if order is not None and results.get("order") != order:  # its place in the present list
            results["order"] = order
            write_json(path / RESULTS, results)
        context.folder.write_json("results.json", {"job": str(path), **results})
        return int(results["errors"] > 0)

    def _prepared(
        self, context: Context, name: str
    ) -> tuple[TextDecoder, list[Question], dict[str, Any], Path]:
        """What is decoded with, what is asked, what the job is and where it goes."""
        from dllm_decode.api import build
        from dllm_decode.evaluation.evaluate import check_questions
        from dllm_decode.evaluation.store import job_key

        decoder = build(context.cfg, model=lambda: shared_model(context))
        questions = self.questions(decoder.model)
        check_questions(questions)
        description = self.description(context, decoder, questions)
        path = Path(self.runs) / f"{_slug(name)}-{job_key(description)}"
        return decoder, questions, description, path

    @contextmanager
    def _failures_noted(self, context: Context, name: str, among_others: bool) -> Iterator[None]:
        """Note among the other jobs of a sweep or list, for reports, that one could not begin."""
        from dllm_decode.evaluation.store import forget_failure, job_key, note_failure

        wanted = {"model": model_settings(context.cfg), "settings": settings_of(context.cfg)}
        place = Path(self.runs) / f"{_slug(name)}-failed-{job_key(wanted)}"
        try:
            yield
        except DllmDecodeError as error:
            if among_others:
                note_failure(place, f"{type(error).__name__}: {error}")
            raise
        forget_failure(place)

    # What is asked.

    def family_names(self) -> list[str]:
        """Names of the bundled families; raises `ConfigError` for unknown ones and for none."""
        kinds = families_of(self.style)
        if self.families == "all" or (self.style == "instruct" and self.families == "shown"):
            return list(kinds)
        if self.families == "trained" and self.style == "shorthand":
            return list(TRAINED)
        if self.families == "shown":
            return [family.name for family in kinds.values() if family.shown] or list(kinds)
        names = [self.families] if isinstance(self.families, str) else list(self.families)
        require_some("task.families", names, "family")
        words = "shown, all," if self.style == "instruct" else "shown, trained, all,"
        for name in names:
            if name not in kinds:
                raise ConfigError(
                    f"task.families must be {words} or names of {', '.join(kinds)}; got {name!r}"
                )
            if names.count(name) > 1:
                raise ConfigError(f"task.families must name each family once, got {names}")
        return names

    def questions(self, model: LoadedModel) -> list[Question]:
        """The problems, in the order in which they are numbered."""
        from dataclasses import replace

        from dllm_decode.evaluation import data

        if self.data is not None:
            found = self._from_file(self.data)
        elif hasattr(model, "sample_prompts"):
            found = world_questions(model, self.count, self.seed)
        else:
            found = [
                question
                for family in self.family_names()
                for question in data.bundled(
                    family, self.count, self.seed, self.split, self.problems, self.style
                )
            ]
        if self.language_tool is not None:
            found = data.grammatical(found, self.language_tool)
        if self.max_new_tokens is None:
            return found
        return [replace(question, max_new_tokens=self.max_new_tokens) for question in found]

    def _from_file(self, path: str) -> list[Question]:
        from dllm_decode.evaluation import data

        shots: list[tuple[str, str]] = []
        if self.shots is not None:
            shots = data.shots_from_file(self.shots, self.shot_count, self.format)
        return data.from_file(path, self.format, count=self.count, shots=shots)

    # What the job is.

    def description(
        self, context: Context, decoder: TextDecoder, questions: Sequence[Question]
    ) -> dict[str, Any]:
        """Everything that matters to the figures, as plain values; its hash names the job."""
        return self._description(settings_of(context.cfg), decoder, questions)

    def _description(
        self, settings: dict[str, Any], decoder: TextDecoder, questions: Sequence[Question]
    ) -> dict[str, Any]:
        from dllm_decode.evaluation.data import digest
        from dllm_decode.evaluation.store import code_version

        loop = decoder.decoder
        parts = [part for _, part in loop.strategy.parts()]
        return {
            "settings": settings,
            "model": model_facts(decoder),
            "code": code_version([*parts, loop.schedule, loop.cache, loop.sampler]),
            "problems": digest(questions),
            "seed": self.seed,
            "template": self.template,
            **({"language_tool": True} if self.language_tool else {}),
            "batch_size": self.batch_size,
            "max_tokens_in_flight": self.max_tokens_in_flight,
            "batching": self.batching,
            **({"timing": self.timing} if self.timing else {}),
            **(self._vote() if self.n > 1 else {}),
        }

    def _vote(self) -> dict[str, Any]:
        """What voting changes, as plain values."""
        names = ("n", "vote", "block_lengths", "answer")
        return {"voting": {name: getattr(self, name) for name in names}}

    # Doing it.

    def _decode(
        self,
        context: Context,
        decoder: TextDecoder,
        questions: Sequence[Question],
        folder: JobFolder,
        name: str,
        others: Sequence[str],
    ) -> None:
        evaluation = self._evaluation(context, decoder, questions)
        done = frozenset(sample.problem for sample in folder.samples)
        left = [question for question in questions if question.key not in done]
        if not left:
            return
        keys = [[question.key for question in asked] for asked in (questions, left)]
        # a single device leaves nothing to others
        mine, theirs = plan_of(context, others, *keys) if others else (done, [])
        with workers(theirs) as answers, progress(context, name, len(questions)) as tell:
            with context.display.working(f"{name}: warming up"):
                evaluation.warm_up(left)
            tell(folder.samples)
            for sample in merged(evaluation.samples(questions, mine), answers):
                folder.append(sample)
                tell(folder.samples)

    def answered(
        self, context: Context, model: LoadedModel, done: frozenset[str]
    ) -> Iterator[Sample]:
        """Samples of the questions that are not done, as a further process answers them.

        Args:
            context: Of that process.
            model: Its model.
            done: Keys of the questions that are answered elsewhere.
        """
        from dllm_decode.api import build

        decoder = build(context.cfg, model=lambda: model)
        questions = self.questions(decoder.model)
        evaluation = self._evaluation(context, decoder, questions)
        evaluation.warm_up([question for question in questions if question.key not in done])
        yield from evaluation.samples(questions, done)

    def _evaluation(
        self, context: Context, decoder: TextDecoder, questions: Sequence[Question]
    ) -> Evaluation:
        from dllm_decode.evaluation.evaluate import Evaluation

        return Evaluation(
            decoder.decoder,
            decoder.model.tokenizer,
            reference=partial(self._reference, context, decoder, questions),
            template=self.template,
            max_batch=self.batch_size,
            max_tokens_in_flight=self.max_tokens_in_flight,
            batching=self.batching,
            seed=self.seed,
            voting=self._voting(),
            answer=self.answer,
        )

    def _reference(
        self,
        context: Context,
        decoder: TextDecoder,
        questions: Sequence[Question],
        request: Request,
        keys: Sequence[str],
    ) -> Reference:
        """What the oracle imitates: from the finished sequential job if there is one."""
        from dllm_decode.config.compose import compose_checked
        from dllm_decode.evaluation.store import RESULTS, SAMPLES, job_key, parse_samples

        plain_cfg = compose_checked(["strategy=sequential"])
        settings = {**settings_of(context.cfg), "strategy": settings_of(plain_cfg)["strategy"]}
        key = job_key(self._description(settings, decoder.sequential, questions))
        for path in Path(self.runs).glob(f"*-{key}/{RESULTS}"):
            found = parse_samples(path.parent / SAMPLES)[0]
            samples = {s.problem: s for s in found if not s.error}
            if all(name in samples for name in keys):
                asked = [samples[name] for name in keys]
                return [s.tokens for s in asked], [s.forwards for s in asked]
        result = decoder.sequential.decode(request, batch_size=self.batch_size)
        failed = [
            f"{name}: {error}" for name, error in zip(keys, result.errors, strict=True) if error
        ]
        if failed:
            raise DllmDecodeError(f"the reference decode of {failed[0]}")
        return result.sequences, result.forwards

    def _results(
        self,
        context: Context,
        decoder: TextDecoder,
        questions: Sequence[Question],
        folder: JobFolder,
    ) -> dict[str, Any]:
        """What `results.json` holds."""
        from dllm_decode.evaluation import metrics
        from dllm_decode.evaluation.data import digest, how_asked
        from dllm_decode.evaluation.evaluate import template_of

        families = list(dict.fromkeys(question.family for question in questions))
        by_family = {
            family: metrics.summary([s for s in folder.samples if s.family == family])
            for family in families
        }
        return {
            "settings": settings_of(context.cfg),
            "model": model_facts(decoder),
            "families": families,
            "problems": len(questions),
            "digest": digest(questions),
            "manner": how_asked(questions),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "timing": self.timing,
            **(self._vote() if self.n > 1 else {}),
            "template": template_of(decoder.model.tokenizer, self.template),
            "shots": {"file": self.shots, "count": self.shot_count},
            "errors": sum(bool(sample.error) for sample in folder.samples),
            "figures": {"all": metrics.summary(folder.samples), **by_family},
            "environment": environment(),
        }


def shared_model(context: Context) -> LoadedModel:
    """The model of this configuration, kept for further jobs of this process."""
    from dllm_decode.api import check_before_loading

    key = json.dumps(model_settings(context.cfg), sort_keys=True)
    if key not in _MODELS:
        check_before_loading(context.cfg)
        _MODELS.clear()  # one at a time: a large model leaves no room for a second
        _MODELS[key] = context.model
    model: LoadedModel = _MODELS[key]
    return model


def world_questions(world: Any, count: int, seed: int) -> list[Question]:
    """Instances of an exact toy world; an answer is right if it can happen at all.

    Args:
        world: A toy model.
        count: How many.
        seed: Of the draw.
    """
    import torch

    from dllm_decode.evaluation.data import Question

    def columns(prompt: str) -> int:
        items = [world.symbols.index(s) for s in prompt if s in world.symbols]
        return max(1, int(world.lengths(torch.tensor([items]))[0]))

    name = type(world).__name__.lower()
    return [
        Question(
            key=f"{name}/{seed}/{number}",
            family=name,
            prompt=prompt,
            label="",
            max_new_tokens=columns(prompt),
            grade=partial(_can_happen, world, prompt),
        )
        for number, prompt in enumerate(world.sample_prompts(count, seed))
    ]


def _can_happen(world: Any, prompt: str, text: str) -> bool:
    return bool(world.probability(prompt, text) > 0.0)


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """The resolved groups and the guidance, which decide what tokens come out."""
    from omegaconf import OmegaConf

    groups = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in GROUPS}
    # without guidance the hash of a job stays as it was
    return {**groups, **({"guidance": float(cfg.guidance)} if cfg.guidance else {})}


def model_settings(cfg: DictConfig) -> Any:
    """The settings of the group `model`, references in them resolved."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg.model, resolve=True)


def model_facts(decoder: TextDecoder) -> dict[str, Any]:
    """What was decoded with: the checkpoint, its fingerprint, precision and device."""
    from dllm_decode.decoding.denoiser import Capabilities

    about = decoder.model.description
    mark = Capabilities.of(decoder.model.denoiser).fingerprint
    facts: dict[str, Any] = {
        "description": str(about),
        "fingerprint": mark,
        "dtype": about.dtype,
        "device": about.device,
    }
    if mark is None:  # an exact world: its settings are all there is to it
        facts["settings"] = repr(decoder.model.denoiser)
    return facts


def environment() -> dict[str, Any]:
    """Versions and hardware that the figures depend on."""
    found = hardware()
    return {
        "python": found["python"],
        "torch": version_of("torch"),
        "transformers": version_of("transformers"),
        "processor": found["processor"],
        "cores": found["cpu_cores"],
        "threads": found["threads"],
        "gpu": found["gpus"][0] if found["gpus"] else None,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def job_name(strategy: str, overrides: Sequence[str]) -> str:
    """What tables call a job: its strategy, then what else was set.

    Args:
        strategy: The option of the group.
        overrides: Of the command line or sweep, e.g. `strategy.select.threshold=0.8`.
    """
    words = [strategy_name(strategy, overrides)]
    for text in overrides:
        key, sign, value = text.lstrip("+").partition("=")
        path = re.split(r"[./]", key)
        if sign and path[0] in GROUPS and key != "strategy" and "strategy/" not in key:
            # "threshold 0.8" rather than "threshold threshold=0.8"
            words.append(value if path[-1] == strategy else f"{path[-1]}={value}")
        elif key in ("guidance", "task.n", "task.vote", "task.block_lengths"):
            words.append(text.lstrip("+").removeprefix("task."))
    return " ".join(words)


def job_number() -> int | None:
    """Place of a job in its sweep, None outside of one."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    number = HydraConfig.get().job.get("num", None)
    return int(number) if number is not None else None


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=]+", "-", name).strip("-")[:60]


# What people see.


def tell_errors(context: Context, name: str, folder: JobFolder) -> None:
    """How many problems could not be decoded, and the first of them with file and line.

    Args:
        context: Shows it.
        name: Of the job.
        folder: Of the job.
    """
    failed = [sample.error for sample in folder.samples if sample.error]
    if failed:
        context.display.say(
            f"{name}: {len(failed)} of {len(folder.samples)} problems could not be decoded and "
            f"count as wrong; the first: {failed[0]}",
            "bold",
        )


@contextmanager
def progress(
    context: Context, name: str, total: int
) -> Iterator[Callable[[Sequence[Sample]], None]]:
    """Problems done, accuracy, tokens per forward, time left; yields a taker of samples so far.

    Args:
        context: Shows it.
        name: Of the job.
        total: Problems.
    """
    display = context.display
    if display.mode == "live":
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=display.console, transient=True) as bar:
            task = bar.add_task(name, total=total, figures="")
            yield lambda samples: bar.update(task, completed=len(samples), figures=so_far(samples))
        return
    yield Ticker(lambda text: display.say(f"{name}: {text}"), total)


@dataclass
class Ticker:
    """Says every few seconds how far an evaluation is; for displays without a bar.

    Attributes:
        say: Tells people a line.
        total: Problems in all.
        pause: Seconds between two lines.
        clock: Seconds, for tests.

    Examples:
        >>> Ticker(print, total=20).pause
        5.0
    """

    say: Callable[[str], None]
    total: int
    pause: float = 5.0
    clock: Callable[[], float] = time.monotonic
    _begin: float = 0.0
    _told: float = 0.0
    _there: int = -1  # problems that an earlier run had done, which say nothing of the pace

    def __call__(self, samples: Sequence[Sample]) -> None:
        """Take the samples so far; the first call starts the clock."""
        now = self.clock()
        if self._there < 0:
            self._begin = self._told = now
            self._there = len(samples)
        new = len(samples) - self._there
        if new and now - self._told >= self.pause:
            self._told = now
            left = (now - self._begin) / new * (self.total - len(samples))
            self.say(f"{len(samples)}/{self.total}, {so_far(samples)}, {left:.0f} s left")


def so_far(samples: Sequence[Sample]) -> str:
    """Accuracy and tokens per forward of the samples until now."""
    if not samples:
        return ""
    right = sum(sample.correct for sample in samples) / len(samples)
    forwards = sum(sample.forwards for sample in samples)
    tokens = sum(sample.delivered for sample in samples) / max(1, forwards)
    return f"accuracy {100 * right:.1f} %, {tokens:.2f} tokens per forward"


def show_table(context: Context, paths: Sequence[Path], floor: float = 0.0) -> None:
    """The jobs of this command that can stand in one table with the last one.

    Args:
        context: Of the last job.
        paths: Of the jobs.
        floor: Accuracy [%] at which the fastest one is named; 0 for the usual steps.
    """
    from dllm_decode.evaluation.reporting.factors import named
    from dllm_decode.evaluation.reporting.overview import FLOORS, overview, table
    from dllm_decode.evaluation.reporting.render import ReportPage
    from dllm_decode.evaluation.reporting.report import facts_of, read_runs
    from dllm_decode.evaluation.reporting.tables import rows_of

    runs = read_runs(paths)
    last = runs[-1].results
    runs = [run for run in runs if all(run.results[k] == last[k] for k in ("model", "digest"))]
    width = context.display.console.width
    if len(runs) > 1:
        runs = named(runs)
        report = ReportPage("", facts_of(runs), rows_of(runs, None), {}, ())
        closing = ["task=report makes tables, figures and a page of them"]
        for part in overview(report, width, closing, (floor,) if floor else FLOORS):
            context.display.show(part)
        return
    context.display.say(runs[0].name)
    families = [None, *(last["families"] if len(last["families"]) > 1 else [])]
    rows = [row for family in families for row in rows_of(runs, family)]
    context.display.show(table(rows, families=True, width=width))
