"""`task=distill`: teach a model to be certain of what it writes (dParallel)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_decode import storage
from dllm_decode.console.prompts import prompts_to_learn_from
from dllm_decode.errors import (
    CheckpointError,
    ConfigError,
    require_count,
    require_in_range,
    require_some,
)
from dllm_decode.tasks import Context, Task
from dllm_decode.training.pace import Pace

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.table import Table

    from dllm_decode.api import TextDecoder
    from dllm_decode.decoding.observer import Observer
    from dllm_decode.decoding.outcome import Result
    from dllm_decode.models.loaded import LoadedModel
    from dllm_decode.training.devices import Devices
    from dllm_decode.training.distill import Student, Trajectory

DATA, MODEL, REPORT, PICTURE = "trajectories.jsonl", "model", "report.json", "curves.png"


@dataclass(frozen=True, kw_only=True)
class Distill(Pace, Task):
    """Trains the model on its own decodes and writes it into `output`, in its published format.

    1. The strategy of the command line decodes prompts; what it writes is kept as a data set.
    2. In each update half of one block of each row is hidden, then the other half, with everything
       behind the block; the loss is cross-entropy plus beta times the entropy at temperature T of
       what the model has right.
    3. Every so often held-out problems are decoded with a fixed threshold. Where accuracy has
       fallen too far, the run ends, and the weights measured before are the result.

    `output` gets `trajectories.jsonl`, `model/`, `report.json` (accuracy and forwards over
    thresholds and calibration, before and after), `curves.jsonl`, `curves.png` and a checkpoint
    from which the same command goes on. Started by `accelerate launch`, several processes share
    each update.

    Source: dParallel, arXiv 2509.26488. Deviations: blocks that have no columns are not drawn;
    padding and prompt length are those of the batch; ids that are never generated carry no mass.

    Attributes:
        output: Folder of the run.
        resume: Continue from a checkpoint in `output`; else a folder that holds one is refused.
        prompts: A file, see `console.prompts.read_prompts`; without one, problems of the training
            split, of which wrong answers are dropped.
        families: Names of their families.
        problems: Problems per family.
        held_out: Problems per family, or prompts of the file, to measure with. For a file a text is
            right that is the teacher's.
        max_new_tokens: Columns per prompt of a file; None for 64.
        batch_size: Prompts decoded together.
        rows: Of an update, over all processes.
        beta: Weight of the certainty term, 0 or more; 0 is plain self-distillation.
        temperature: Of the certainty term, (0, 10].
        lora: Rank of low-rank updates of all linear layers, which are merged at the end; 0 trains
            all weights. Needs peft.
        measure_every: Updates between two measurements.
        threshold: Of the decodes that are measured, [0, 1].
        tolerance: Accuracy that may be lost at this threshold, in points, [0, 100].
        thresholds: Of the curves before and after.
        seed: Of problems, batches and masks.

    Raises:
        ConfigError: A value is out of range, or the model has no weights to train.
        CheckpointError: `output` holds a run with other settings, or a damaged one.

    Examples:
        >>> Distill(steps=10, beta=0.0).rows
        16
    """

    steps: int = 5000
    rate: float = 1e-4
    warmup: int = 20
    betas: Sequence[float] = (0.9, 0.98)
    weight_decay: float = 0.01
    output: str = "runs/distill"
    resume: bool = True
    prompts: str | None = None
    families: Sequence[str] = field(default_factory=lambda: ["count", "add", "story", "sort"])
    problems: int = 1000
    held_out: int = 50
    max_new_tokens: int | None = None
    batch_size: int = 16
    rows: int = 16
    beta: float = 2.0
    temperature: float = 0.5
    lora: int = 0
    measure_every: int = 250
    threshold: float = 0.9
    tolerance: float = 1.0
    thresholds: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("problems", "held_out", "rows", "measure_every"):
            require_count(f"task.{name}", getattr(self, name))
        require_count("batch_size", self.batch_size)
        require_count("task.lora", self.lora, minimum=0)
        require_count("seed", self.seed, minimum=0)
        if self.max_new_tokens is not None:
            require_count("max_new_tokens", self.max_new_tokens)
        require_in_range("task.beta", self.beta, 0.0, 1000.0)
        require_in_range("task.temperature", self.temperature, 0.0, 10.0, open_low=True)
        require_in_range("task.threshold", self.threshold, 0.0, 1.0)
        require_some("task.thresholds", self.thresholds, "threshold")
        for value in self.thresholds:
            require_in_range("task.thresholds", value, 0.0, 1.0)
        require_in_range("task.tolerance", self.tolerance, 0.0, 100.0, unit="points")
        require_some("task.families", self.families, "family")

    def run(self, context: Context) -> int:
        """Decode, learn, measure, write; returns 0."""
        context.refuse_early(_check_grid)
        from dllm_decode.console.processes import deferred_interrupts, raise_for
        from dllm_decode.training import loop
        from dllm_decode.training.devices import Devices

        folder, devices = loop.prepare(self.output, self.resume), Devices.found()
        with loop.occupied(folder) if devices.first else nullcontext():
            work = _Distillation(self, context, self._decoder(context), folder, devices)
            with deferred_interrupts() as signals:
                done = work.train(lambda: bool(signals))
                raise_for(signals)
            if not done:
                context.display.say("stopped; the same command goes on")
            elif devices.first:
                work.finish()
        return 0

    def _decoder(self, context: Context) -> TextDecoder:
        """That of the configuration, with the body that has gradients."""
        from dllm_decode.api import build
        from dllm_decode.config.compose import compose_checked

        if context.cfg.model.get("body") != "auto":
            return context.decoder
        return build(compose_checked((*context.overrides, "model.body=stock")))


class _Distillation:
    """A run: the data, the student, and what has been measured."""

    def __init__(
        self,
        task: Distill,
        context: Context,
        decoder: TextDecoder,
        folder: Path,
        devices: Devices,
    ) -> None:
        from dllm_decode.models.adapter import TransformersDenoiser
        from dllm_decode.models.lean import LeanModel
        from dllm_decode.training import loop
        from dllm_decode.training.distill import Student

        self.task, self.context, self.folder, self.devices = task, context, folder, devices
        self.decoder, denoiser = decoder, decoder.model.denoiser
        block = decoder.decoder.schedule.block_length
        if isinstance(getattr(denoiser, "model", None), LeanModel):
            raise ConfigError("model.body=lean computes no gradients; use model.body=stock or auto")
        if not isinstance(denoiser, TransformersDenoiser):
            raise ConfigError(
                f"task=distill trains weights, and model ({type(denoiser).__name__}) has none"
            )
        _check_grid(decoder)
        assert block is not None
        self.student = Student(denoiser, block)
        self.asked = self._asked()
        loop.claim(folder, self._identity(), devices)
        self.learned, self.kept = self._data()
        self.before = self._state()
        self.weights = self._trained()

    # Data.

    def _asked(self) -> tuple[list[Any], list[Any]]:
        """Problems to learn from and to measure with; for a file its prompts."""
        from dllm_decode.problems import problems

        task = self.task
        if task.prompts is not None:
            asked = prompts_to_learn_from(task.prompts)
            if len(asked) <= task.held_out:
                raise ConfigError(
                    f"task=distill measures with task.held_out={task.held_out} prompts and needs "
                    f"more to learn from, got {len(asked)} in {task.prompts}"
                )
            return asked[task.held_out :], asked[: task.held_out]
        sides = []
        for split, count in (("train", task.problems), ("held_out", task.held_out)):
            drawn = [p for name in task.families for p in problems(name, split, count, task.seed)]
            sides.append([problem for problem in drawn if not problem.form])
        if not all(sides):
            raise ConfigError("task.families has only forms to fill in; give others")
        return sides[0], sides[1]

    def _data(self) -> tuple[list[Trajectory], list[Trajectory]]:
        """The teacher's decodes, from the file where there is one."""
        from dllm_decode.training.distill import read_trajectories, write_trajectories

        paths = [self.folder / DATA, self.folder / f"held_out-{DATA}"]
        if self.devices.first:
            titles = ("writing answers", "writing held-out answers")
            for path, asked, title in zip(paths, self.asked, titles, strict=True):
                if not path.exists():
                    found = self._decoded(asked, title)
                    about = {
                        "model": str(self.decoder.model.description),
                        "model_fingerprint": self.student.denoiser.fingerprint,
                        "strategy": self.context.strategy_name,
                        "seed": self.task.seed,
                        "asked": len(asked),
                        "kept": len(found),
                    }
                    write_trajectories(path, found, about)
        self.devices.wait()
        sides = []
        for path in paths:
            found, about = read_trajectories(path)
            own = self.student.denoiser.fingerprint
            if about.get("model_fingerprint") != own:
                raise ConfigError(
                    f"{path} was written by the model with fingerprint "
                    f"{about.get('model_fingerprint')}, but model has {own}; give another "
                    "task.output"
                )
            if not found:
                raise ConfigError(f"{path} holds no decode: all answers of the teacher were wrong")
            sides.append(found)
        return sides[0], sides[1]

    def _decoded(self, asked: Sequence[Any], title: str) -> list[Trajectory]:
        """What the teacher writes; of problems what is right."""
        from dllm_decode.problems import FAMILIES
        from dllm_decode.training.distill import Trajectory

        prompts, lengths = self._prompts(asked)
        result = self._generated(self.decoder, prompts, lengths, title)
        found = []
        for row, (problem, outcome) in enumerate(zip(asked, result.rows, strict=True)):
            family = getattr(problem, "family", "")
            if family and not FAMILIES[family].grade(problem, result.texts[row]):
                continue
            tokens = self._filled(outcome.tokens, lengths[row])
            found.append(Trajectory(prompts[row], tokens, family))
        return found

    def _prompts(self, asked: Sequence[Any]) -> tuple[list[tuple[int, ...]], list[int]]:
        """Token ids and columns of problems, or of the prompts of a file."""
        from dllm_decode.api import DEFAULT_NEW_TOKENS
        from dllm_decode.problems import FAMILIES

        encode = self.decoder.encode
        if self.task.prompts is None:
            ids = [encode(problem.prompt, row) for row, problem in enumerate(asked)]
            return ids, [FAMILIES[problem.family].canvas for problem in asked]
        length = self.task.max_new_tokens or DEFAULT_NEW_TOKENS
        ids = [
            encode(
                each.content,
                row,
                continue_final=each.continue_final_message,
                arguments=each.chat_template_kwargs,
            )
            for row, each in enumerate(asked)
        ]
        return ids, [each.max_new_tokens or length for each in asked]

    def _generated(
        self,
        decoder: TextDecoder,
        prompts: Sequence[tuple[int, ...]],
        lengths: Sequence[int],
        title: str,
        parameters: Mapping[str, float] | None = None,
    ) -> Result:
        def decode(progress: Observer) -> Result:
            return decoder.generate(
                list(prompts),
                max_new_tokens=list(lengths),
                batch_size=self.task.batch_size,
                seed=self.task.seed,
                parameters=parameters,
                observers=(progress,),
            )

        return self.context.decoded(title, lengths, decode)

    # Measuring.

    def _state(self) -> dict[str, Any]:
        """What the teacher does, from the file where there is one."""
        path = self.folder / "before.json"
        if self.devices.first and not path.exists():
            _write(path, self._measured(self.decoder.model, self.student))
        self.devices.wait()
        return storage.read_json(path, CheckpointError)

    def _measured(self, model: LoadedModel, student: Student) -> dict[str, Any]:
        """Curve, the point at the fixed threshold, and calibration."""
        values = dict.fromkeys([*self.task.thresholds, self.task.threshold])
        points = {value: self._point(value, model) for value in values}
        return {
            "curve": [points[value] for value in self.task.thresholds],
            "fixed": points[self.task.threshold],
            "calibration": student.calibration(self.kept, self.task.rows),
        }

    @cached_property
    def _ruled(self) -> DictConfig:
        """The configuration of the decodes that are measured."""
        from dllm_decode.config.compose import compose_checked

        return compose_checked((*self.context.overrides, "strategy=threshold"))

    def _point(self, threshold: float, model: LoadedModel) -> dict[str, float]:
        """Accuracy [%] and forwards of the held-out problems at a threshold."""
        from dllm_decode.api import build
        from dllm_decode.problems import FAMILIES

        asked = self.asked[1]
        prompts, lengths = self._prompts(asked)
        title = f"measuring at threshold {threshold:g}"
        decoder = build(self._ruled, model=lambda: model)
        own = {"strategy.select.threshold": threshold}
        result = self._generated(decoder, prompts, lengths, title, own)
        if self.task.prompts is None:
            right = [
                FAMILIES[problem.family].grade(problem, text)
                for problem, text in zip(asked, result.texts, strict=True)
            ]
        else:
            wanted = [kept.tokens for kept in self.kept]
            right = [
                self._filled(row.tokens, len(tokens)) == tokens
                for row, tokens in zip(result.rows, wanted, strict=True)
            ]
        return {
            "threshold": threshold,
            "accuracy": 100 * sum(right) / len(right),
            "forwards": sum(result.forwards) / len(right),
        }

    def _filled(self, tokens: Sequence[int], length: int) -> tuple[int, ...]:
        """Tokens with what fills the canvas behind them."""
        found = tuple(tokens[:length])
        return found + (self.student.vocab.filler,) * (length - len(found))

    # Learning.

    def _trained(self) -> dict[str, Any]:
        """The weights that learn, by name."""
        from dllm_decode.training.adapters import adapt

        model = self.student.denoiser.model
        if self.task.lora:
            adapt(model, self.task.lora, self.task.seed)
        else:
            model.requires_grad_(True)
        return {name: w for name, w in model.named_parameters() if w.requires_grad}

    def train(self, stop: Any) -> bool:
        """All updates; False where somebody stopped them."""
        from dllm_decode.training.distill import batch_of
        from dllm_decode.training.loop import TrainingLoop

        task, floor = self.task, self.before["fixed"]["accuracy"] - self.task.tolerance
        loop = TrainingLoop(
            self.folder, self.weights, task, self._identity(), stop, devices=self.devices
        )
        self.loop, fell = loop, [False]

        def loss_of(step: int) -> Any:
            rows, seed = batch_of(self.learned, task.rows, task.seed, step)
            own = self.devices.mine(rows) or rows[:1]
            seed += self.devices.rank
            return self.student.loss(own, seed, beta=task.beta, temperature=task.temperature)

        def every(step: int) -> Mapping[str, Any] | None:
            if step % task.measure_every and step != task.steps:
                return None
            point = self._point(task.threshold, self.decoder.model)
            fell[0] = point["accuracy"] < floor
            if self.devices.first and not fell[0]:
                self._save()
            return {name: point[name] for name in ("accuracy", "forwards")}

        with self.context.display.progress("distilling", task.steps) as report:
            return loop.run(loss_of, report, every, lambda: fell[0])

    def _identity(self) -> dict[str, Any]:
        """What a continuation must share: the data, what is measured, and how it learns."""
        names = (
            "seed", "prompts", "families", "problems", "held_out", "max_new_tokens", "threshold",
            "thresholds", "rate", "warmup", "flat", "final", "betas", "weight_decay", "clip",
            "rows", "beta", "temperature", "lora",
        )  # fmt: skip
        mine = {f"task.{name}": getattr(self.task, name) for name in names}
        mine["strategy"] = self.context.strategy_name
        mine["schedule.length"] = self.student.block
        mine["number of processes"] = self.devices.count
        if self.task.prompts is not None:
            sides = repr([self._prompts(side) for side in self.asked])
            mine["the digest of the prompts"] = hashlib.sha256(sides.encode()).hexdigest()[:16]
        return mine | {"the model's fingerprint": self.student.denoiser.fingerprint}

    def _save(self) -> None:
        """Write the model as it is now, with low-rank updates added to its weights."""
        from dllm_decode.models.loaded import save_checkpoint
        from dllm_decode.training.adapters import merged

        with merged(self.student.denoiser.model):
            save_checkpoint(self.decoder.model, self.folder / MODEL)

    def finish(self) -> None:
        """Measure what was written, compare, and say so."""
        from dllm_decode.training import loop

        written = (self.folder / MODEL).is_dir()
        if not written:
            self.context.display.say(
                f"no measurement stayed within task.tolerance={self.task.tolerance:g} points of "
                f"{self.before['fixed']['accuracy']:.1f} %; no model was written"
            )
        after = self._of_the_saved() if written else None
        found = gain(self.before, after) if after else None
        told = {
            "model": str(self.decoder.model.description),
            "model_fingerprint": self.student.denoiser.fingerprint,
            "beta": self.task.beta,
            "temperature": self.task.temperature,
            "updates": self.loop.step,
            "minutes": round(self.loop.seconds / 60, 1),
            "trajectories": len(self.learned),
            "before": self.before,
            "after": after,
            "gain": found,
        }
        _write(self.folder / REPORT, told)
        panels = {
            "loss [nats]": ["loss", "consistency", "certainty"],
            "right under the mask [share]": ["right"],
            "accuracy [%]": ["accuracy"],
            "forwards": ["forwards"],
        }
        loop.picture(self.loop.log(), panels, self.folder / PICTURE)
        model = str(self.folder / MODEL) if written else None
        self.context.folder.write_json("results.json", {"model": model})
        if after and found:
            self.context.display.show(_table(self.before, after))
            self.context.display.say(_verdict(found))
            self.context.display.say(f"use it with model.checkpoint={self.folder / MODEL}")

    def _of_the_saved(self) -> dict[str, Any]:
        """Curve and calibration of the weights that were written last."""
        from dllm_decode.models.loading import load_model
        from dllm_decode.training.distill import Student

        saved = load_model(str(self.folder / MODEL), device=str(self.student.device))
        return self._measured(saved, Student(saved.denoiser, self.student.block))


def gain(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Forwards of both curves at equal accuracy: one point below the best before.

    Where nothing is so accurate afterwards, at the best accuracy there is then.

    Args:
        before: With a `curve`.
        after: With a `curve`.

    Returns:
        `wanted`, one point below the best before; `accuracy`, at which both are compared; `before`
        and `after` in forwards, and `factor`, how many times fewer.
    """
    from dllm_decode.training.distill import frontier

    most = [max(point["accuracy"] for point in state["curve"]) for state in (before, after)]
    wanted = most[0] - 1.0
    level = min(wanted, most[1])
    one, two = frontier(before["curve"], level), frontier(after["curve"], level)
    assert one is not None and two is not None  # both curves get there
    return {"wanted": wanted, "accuracy": level, "before": one, "after": two, "factor": one / two}


def _verdict(found: Mapping[str, Any]) -> str:
    accuracy, factor = found["accuracy"], found["factor"]
    lost = f"no threshold reaches {found['wanted']:.1f} % afterwards; "
    change = f"{factor:.2f} times fewer" if factor >= 1 else f"{1 / factor:.2f} times as many"
    return (
        f"{lost if accuracy < found['wanted'] else ''}at {accuracy:.1f} % accuracy "
        f"{found['before']:.2f} forwards before and {found['after']:.2f} after: {change}"
    )


def _write(path: Path, figures: Mapping[str, Any]) -> None:
    storage.write_text(path, json.dumps(storage.plain(dict(figures)), indent=1) + "\n")


def _table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    """Accuracy and forwards over thresholds, and calibration, before and after."""
    from rich.table import Table

    sheet = Table(title="held-out problems: before | after")
    for head in ("threshold", "accuracy %", "forwards", "accuracy %", "forwards"):
        sheet.add_column(head, justify="right")
    for one, two in zip(before["curve"], after["curve"], strict=True):
        cells = [f"{p['accuracy']:.1f} {p['forwards']:.2f}".split() for p in (one, two)]
        sheet.add_row(f"{one['threshold']:g}", *cells[0], *cells[1])
    errors = [f"{side['calibration']['error']:.4f}" for side in (before, after)]
    sheet.add_row("calibration", errors[0], "", errors[1], "")
    return sheet


def _check_grid(decoder: TextDecoder) -> None:
    if decoder.decoder.schedule.block_length is None:
        raise ConfigError("task=distill needs a block grid; use schedule=blocks")
