"""One training process: the loop over steps, alone or together with others."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from torch.nn import functional

from dllm_decode.console.output import tolerant_output
from dllm_decode.console.processes import leave_signals_to_parent
from dllm_decode.errors import ModelOutputError
from dllm_decode.models.locate import locate
from dllm_decode.models.placement import slow_on_processor
from dllm_decode.problems import TRAINED
from dllm_decode.training.llada_tiny import checkpoint, curves
from dllm_decode.training.llada_tiny.batches import TrainingBatch
from dllm_decode.training.llada_tiny.course import Course
from dllm_decode.training.llada_tiny.export import export
from dllm_decode.training.llada_tiny.loading import Loader
from dllm_decode.training.llada_tiny.measure import exact_match
from dllm_decode.training.llada_tiny.muon import MuonAdamW
from dllm_decode.training.llada_tiny.network import Network
from dllm_decode.training.llada_tiny.report import Reporter
from dllm_decode.training.llada_tiny.start import begin_from

if TYPE_CHECKING:
    from dllm_decode.training.llada_tiny.recipe import Recipe


class Worker:
    """Everything one process holds.

    Args:
        settings: Of the training.
        rank: Number of the process; 0 also writes files and reports.
        report: Shows the log.
        stop: Says after each step whether to stop there; one worker that says so is enough.
    """

    def __init__(
        self, settings: Recipe, rank: int, report: Reporter, stop: Callable[[], bool]
    ) -> None:
        self.settings, self.rank, self.report = settings, rank, report
        self.stop, self.stopped = stop, False
        self.folder, self.device = Path(settings.output), torch.device(settings.device)
        torch.manual_seed(settings.seed)  # the same weights in all workers
        self.network = Network(settings.shape())
        if settings.start and not checkpoint.read(self.folder):
            begin_from(self.network, locate(settings.start).folder)
        self.network.to(self.device)
        self.named = list(self.network.named_parameters())
        # products in half the bits, but not where a processor computes them number by number
        slow = slow_on_processor(torch.bfloat16, self.device)
        self.dtype = torch.float32 if slow else torch.bfloat16
        self.optimiser = MuonAdamW(
            self.named, rank=rank, workers=settings.workers, dtype=self.dtype
        )
        self.average = {name: weight.detach().clone() for name, weight in self.named}
        self.course = Course()
        if settings.compile:  # block by block: all share what is compiled for a length
            for block in self.network.blocks:
                block.compile(dynamic=False)
        self._continue()

    def run(self) -> None:
        """Train to the end of the budget, then measure and export; when stopped, only save."""
        settings, course = self.settings, self.course
        loader = Loader(settings.mixture(), settings.seed, self.rank, settings.loaders)
        begun, earlier, saved = time.monotonic(), course.seconds, course.seconds
        losses: list[float] = []
        try:
            while (progress := settings.progress(course)) < 1:
                if 0 < settings.halt <= course.step:
                    break
                batch = loader.batch(course.step, self._weights())
                before = course.tokens
                losses.append(self._step(batch, progress, earlier + time.monotonic() - begun))
                if before < 1e6 * settings.early <= course.tokens:
                    self._export(self.folder / "early")
                if self.stopped:
                    break
                if course.step % settings.log_every == 0:
                    self._log(sum(losses) / len(losses))
                    losses = []
                if self._due():
                    self._measure()
                    saved = -math.inf
                if course.seconds - saved > 60 * settings.checkpoint_minutes:
                    self._save()
                    saved = course.seconds
        finally:
            loader.close()
        self._save()
        if not self.stopped:
            self._measure()

    def _weights(self) -> dict[str, float]:
        """How often each family is drawn now."""
        return self.course.weights(self.settings.emphasis, self.settings.curriculum)

    def _due(self) -> bool:
        """Whether exact match is to be measured now, before the end."""
        progress = self.settings.progress(self.course)
        number = int(progress * self.settings.measurements)
        due = self.course.measured < number and progress < 1
        self.course.measured = max(number, self.course.measured)
        return due

    def _loss(
        self, tokens: Tensor, wanted: Tensor, target: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weighted cross-entropy, and which slots were right."""
        logits = self.network(tokens, wanted).float()
        loss = (functional.cross_entropy(logits, target, reduction="none") * weight).sum()
        return loss, logits.argmax(-1) == target

    def _step(self, batch: TrainingBatch, progress: float, seconds: float) -> float:
        """One update; returns the loss.

        Gradients and facts of all workers travel in one vector; the mean of their `seconds` decides
        where the schedule is, and one worker that asks to stop ends the run, so that all of them
        agree on both.
        """
        settings, course, count = self.settings, self.course, len(TRAINED)
        arrays = (batch.tokens, batch.wanted, batch.target, batch.weight)
        inputs = [torch.from_numpy(array).to(self.device) for array in arrays]
        half = self.dtype == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            loss, right = self._loss(*inputs)
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        hard, family = torch.from_numpy(batch.hard), torch.from_numpy(batch.family)
        tries = torch.bincount(family[hard], minlength=count).tolist()
        hits = torch.bincount(family[hard & right.cpu()], minlength=count).tolist()
        stop = float(self.stop())
        facts = [float(loss.detach()), seconds, stop, float(batch.tokens.size), *tries, *hits]
        gradients = [weight.grad.flatten() for _, weight in self.named if weight.grad is not None]
        flat = torch.cat([*gradients, torch.tensor(facts, device=self.device)])
        self._share(flat)
        facts = flat[-len(facts) :].tolist()
        self._apply(flat[: -len(facts)] / settings.workers, progress)
        course.seconds = facts[1] / settings.workers
        self.stopped = facts[2] > 0
        course.note(int(facts[3]), facts[4 : 4 + count], facts[4 + count :])
        return float(facts[0]) / settings.workers

    def _apply(self, gradient: Tensor, progress: float) -> None:
        """Clip, update the weights and their running mean."""
        settings, step = self.settings, self.course.step
        gradient *= (settings.clip / (gradient.norm() + 1e-6)).clamp(max=1.0)
        parts = torch.split(gradient, [weight.numel() for _, weight in self.named])
        for (_, weight), part in zip(self.named, parts, strict=True):
            weight.grad = part.view_as(weight)
        rate = settings.rate(step, progress)
        self.optimiser.step(
            step + 1,
            muon_rate=settings.muon_rate * rate,
            adam_rate=settings.adam_rate * rate,
            momentum=0.85 + 0.1 * min(1.0, step / 300),
            decay=settings.weight_decay,
            share=self._share if settings.workers > 1 else None,
        )
        keep = min(settings.average, (1 + step) / (10 + step))
        for name, weight in self.named:
            self.average[name].lerp_(weight.detach(), 1 - keep)

    def _share(self, flat: Tensor) -> None:
        """Add up over all workers, in place."""
        if self.settings.workers > 1:
            distributed.all_reduce(flat)

    def _log(self, loss: float) -> None:
        """One line of the log, with the mean loss since the last one."""
        course, settings = self.course, self.settings
        if not math.isfinite(loss):
            raise ModelOutputError(
                f"the loss became {loss} before step {course.step}; lower muon_rate "
                f"({settings.muon_rate}) or adam_rate ({settings.adam_rate})"
            )
        progress = settings.progress(course)
        self._write(
            self._place()
            | {
                "progress": round(progress, 4),
                "tokens_per_second": round(course.tokens / max(course.seconds, 1e-9)),
                "loss": round(loss, 4),
                "rate": round(settings.rate(course.step, progress), 4),
                "token_accuracy": {
                    name: round(1 - course.error(name), 4)
                    for name, tries in course.tries.items()
                    if tries > 0
                },
            }
        )

    def _measure(self) -> None:
        """Export the averaged weights; exact match with them, families divided among workers."""
        settings, folder = self.settings, self.folder / "model"
        self._export(folder)
        if settings.measured_problems:
            if settings.workers > 1:
                distributed.barrier()  # the folder must be there
            begun = [name for name, weight in self._weights().items() if weight]
            mine = begun[self.rank :: settings.workers]
            shares = exact_match(
                folder, mine, settings.measured_problems, settings.seed, settings.device
            )
            found = torch.tensor([shares.get(name, 0.0) for name in begun])
            self._share(found)
            exact = dict(zip(begun, (round(x, 4) for x in found.tolist()), strict=True))
            self._write(self._place() | {"exact_match": exact})
        if self.rank == 0 and (self.folder / "curves.jsonl").exists():
            curves.picture(curves.read(self.folder / "curves.jsonl"), self.folder / "curves.png")

    def _export(self, folder: Path) -> None:
        """Write the averaged weights as a model."""
        if self.rank == 0:
            settings = self.settings
            export(self.average, settings.shape(), folder, settings.mixture().buckets[-1])

    def _place(self) -> dict[str, object]:
        """Where the run stands, as every line of the log begins."""
        course = self.course
        minutes = round(course.seconds / 60, 2)
        return {"step": course.step, "minutes": minutes, "tokens": course.tokens}

    def _write(self, line: dict[str, object]) -> None:
        if self.rank == 0:
            with (self.folder / "curves.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.report(line)

    def _tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint holds, by name."""
        return (
            {f"weight.{name}": weight for name, weight in self.named}
            | {f"average.{name}": weight for name, weight in self.average.items()}
            | {f"state.{name}": value for name, value in self.optimiser.state.items()}
        )

    def _save(self) -> None:
        if self.rank == 0:
            record = {"settings": self.settings.identity(), "course": vars(self.course)}
            checkpoint.save(self.folder, self.course.step, self._tensors(), record)

    def _continue(self) -> None:
        """Take up the run in the output folder, if there is one."""
        record: dict[str, Any] | None = checkpoint.read(self.folder)
        if record is not None:
            self.settings.check_identity(record["settings"])
            checkpoint.fill(self.folder / record["tensors"], self._tensors())
            self.course = Course.of(record["course"])
            if self.rank == 0:
                curves.cut(self.folder / "curves.jsonl", self.course.step)


def work(rank: int, settings: Recipe, store: str, stop: Callable[[], bool]) -> None:
    """Body of a training process.

    Args:
        rank: Its number.
        settings: Of the training.
        store: File where the processes meet, if there are several.
        stop: Whether to stop after the step that is being done, with a checkpoint.
    """
    if settings.workers > 1:
        leave_signals_to_parent()
    if settings.device == "cpu":
        torch.set_num_threads(settings.threads)
    # A compiled version per length of the batches, another of the last block.
    torch._dynamo.config.recompile_limit = 64
    several = settings.workers > 1
    with contextlib.ExitStack() as stack:
        stack.enter_context(tolerant_output())
        report = stack.enter_context(Reporter(settings.display if rank == 0 else "none"))
        if several:
            place, number = f"file://{store}", settings.workers
            distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=number)
            stack.callback(distributed.destroy_process_group)
        Worker(settings, rank, report, stop).run()
