"""`task=train_drafter`: train the draft layer of `strategy=adjust` for a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_decode.console.prompts import prompts_to_learn_from
from dllm_decode.errors import (
    ConfigError,
    require,
    require_choice,
    require_count,
    require_in_range,
    require_some,
)
from dllm_decode.problems import FAMILIES
from dllm_decode.tasks import Context, Task
from dllm_decode.training.pace import Pace

if TYPE_CHECKING:
    from rich.table import Table

    from dllm_decode.api import TextDecoder
    from dllm_decode.models.drafting import DraftLayer
    from dllm_decode.training.drafter import Teacher, Text

DRAFTER, REPORT, PICTURE = "drafter.safetensors", "report.json", "curves.png"


@dataclass(frozen=True, kw_only=True)
class TrainDrafter(Pace, Task):
    """Trains a draft layer and writes `drafter.safetensors` and `report.json` into `output`.

    States of unfinished canvases are made from finished answers (the problems' own, or for a file
    of prompts what the model itself writes), the model goes on from there by a few single commits,
    and the layer learns to say after each of them what the model says. The model is left as it is.
    The same command continues a run that was stopped; its weights are those of a run that was not.

    Source: ADJUST, arXiv 2509.22738. Deviations: states are made from answers rather than taken
    from whole decodes, the loss is taken at every depth rather than at a drawn one, and the last
    norm of the layer starts at 0.5.

    Attributes:
        output: Folder of the run.
        resume: Continue from a checkpoint in `output`; else a folder that holds one is refused.
        prompts: A file, see `console.prompts.read_prompts`; without one, problems of the training
            split.
        families: Names of their families; None for those the bundled model solves. Forms to fill
            in are left out.
        problems: Problems per family.
        open_share: Share of the rows with problems that have several right answers, [0, 1].
        emphasis: Factor by which problems of a family are drawn more or less often, by name; a
            continuation may have another one.
        held_out: Prompts that are only measured with: problems per family, or prompts of the file.
        max_new_tokens: Columns per prompt of a file; None for 64.
        batch_size: Prompts of a file decoded together.
        depth: Commits that the layer follows at most, 1 or more.
        least_depth: Commits of the shortest rows, up to `depth`; every number from here to there is
            as frequent. A layer that is new learns the first drafts first, with 1.
        rows: Of an update.
        fresh: Batches that are made before they are gone through `passes` times.
        passes: See `fresh`.
        start: A draft layer to go on from, a file or `bundled:NAME`; None for a new one.
        heads: Attention heads of the layer; None for one per 32 components of the states, or fewer
            where the width asks for it.
        hidden: Width of the layer's feed-forward part; None for 8/3 of the states' width.
        seed: Of problems, states and initial weights.

    Raises:
        ConfigError: A value is out of range, or there are too few prompts.
        CapabilityError: The model shows no states.
        CheckpointError: `output` holds a run with other settings.

    Examples:
        >>> TrainDrafter(steps=100).depth
        3
    """

    steps: int = 3000
    rate: float = 2e-3
    output: str = "runs/drafter"
    resume: bool = True
    prompts: str | None = None
    families: Sequence[str] | None = None
    problems: int = 2000
    open_share: float = 0.85
    emphasis: Mapping[str, float] = field(default_factory=dict)
    held_out: int = 24
    max_new_tokens: int | None = None
    batch_size: int = 16
    depth: int = 3
    least_depth: int = 1
    rows: int = 24
    fresh: int = 16
    passes: int = 3
    start: str | None = None
    heads: int | None = None
    hidden: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("problems", "held_out", "depth", "least_depth", "rows", "fresh", "passes"):
            require_count(f"task.{name}", getattr(self, name))
        require_count("batch_size", self.batch_size)
        require_count("seed", self.seed, minimum=0)
        require(
            self.least_depth <= self.depth,
            f"task.least_depth must be at most task.depth ({self.depth}), got {self.least_depth}",
        )
        for name in ("heads", "hidden"):
            if getattr(self, name) is not None:
                require_count(f"task.{name}", getattr(self, name))
                require(
                    self.start is None,
                    f"task.{name} must not be given with task.start, which has its own sizes",
                )
        if self.max_new_tokens is not None:
            require_count("max_new_tokens", self.max_new_tokens)
        require_in_range("task.open_share", self.open_share, 0.0, 1.0)
        for name, factor in self.emphasis.items():
            require_choice("task.emphasis", name, tuple(FAMILIES))
            require_in_range(f"task.emphasis.{name}", factor, 0.0, 1e6, open_low=True)
        if self.prompts is not None and self.families is not None:
            raise ConfigError("prompts and task.families exclude each other; give one of them")
        require_some("task.families", self.families, "family")

    def run(self, context: Context) -> int:
        """Collect answers, learn, measure, write; returns 0."""
        context.refuse_early()
        from dllm_decode.training import loop

        folder = loop.prepare(self.output, self.resume)
        with loop.occupied(folder):
            return self._run(context, folder)

    def _run(self, context: Context, folder: Path) -> int:
        """The same in a folder that no other process writes to."""
        from dllm_decode.console.processes import deferred_interrupts, raise_for
        from dllm_decode.models.drafting import LayerDrafter
        from dllm_decode.training import loop
        from dllm_decode.training.drafter import Diet, Teacher, drafter_loss

        decoder = context.decoder_with("strategy=sequential")
        denoiser = decoder.model.denoiser
        teacher = Teacher(denoiser, decoder.decoder.schedule.block_length)
        learned, kept = self._texts(context, decoder)
        layer = self._layer(teacher, learned[0])
        diet = Diet(
            learned,
            self.rows,
            self.open_share,
            self.fresh,
            self.passes,
            self.depth,
            self.emphasis,
            self.seed,
            self.least_depth,
        )
        ahead: dict[int, Any] = {}

        def loss_of(step: int) -> Any:
            number = diet.number(step)
            if number not in ahead:
                for old in [n for n in ahead if n // self.fresh != number // self.fresh]:
                    del ahead[old]
                ahead[number] = teacher.rollout(*diet.batch(number))
            return drafter_loss(teacher, layer, ahead[number])

        with deferred_interrupts() as signals:
            training = loop.TrainingLoop(
                folder,
                dict(layer.named_parameters()),
                self,
                self._identity(teacher, learned, kept),
                lambda: bool(signals),
            )
            with context.display.progress("training the drafter", self.steps) as report:
                done = training.run(loss_of, report)
            raise_for(signals)
        if not done:
            context.display.say(f"stopped after {training.step} updates; the same command goes on")
            return 0
        layer.requires_grad_(False).eval()
        drafter = LayerDrafter(layer, teacher.own.fingerprint)
        about = {"model": decoder.model.description.checkpoint, "recipe": "task=train_drafter"}
        drafter.save(folder / DRAFTER, about)
        figures = self._figures(decoder, teacher, folder, kept, training)
        self._tell(context, folder, figures, training)
        return 0

    def _identity(
        self, teacher: Teacher, learned: Sequence[Text], kept: Sequence[Text]
    ) -> dict[str, Any]:
        """What a continuation must share."""
        names = (
            "seed", "rate", "warmup", "flat", "final", "betas", "weight_decay", "clip", "problems",
            "open_share", "depth", "least_depth", "rows", "fresh", "passes", "start",
            "heads", "hidden", "families", "prompts",
        )  # fmt: skip
        mine = {f"task.{name}": getattr(self, name) for name in names}
        if self.prompts is not None:
            sides = repr([learned, kept])
            mine["the digest of the texts"] = hashlib.sha256(sides.encode()).hexdigest()[:16]
        return mine | {"the model's fingerprint": teacher.own.fingerprint}

    def _layer(self, teacher: Teacher, text: Text) -> DraftLayer:
        """A layer of the model's width, new or with the weights of `start`."""
        import torch

        from dllm_decode.models.drafting import DraftLayer, LayerDrafter

        rollout = teacher.rollout([text], 1, 1, 0)
        width = rollout.states.shape[-1]
        assert teacher.own.embed is not None
        embedding = teacher.own.embed(rollout.tokens[0]).shape[-1]
        if self.start is not None:
            begun = LayerDrafter.load(self.start)
            require(
                begun.widths == (width, embedding),
                f"task.start must be a layer for states of width {width} and embeddings of "
                f"{embedding}, got one for {begun.widths[0]} and {begun.widths[1]}",
            )
            return begun.layer.to(teacher.device).train().requires_grad_(True)
        torch.manual_seed(self.seed)
        most = max(1, width // 32)
        fitting = [heads for heads in range(1, most + 1) if width % (2 * heads) == 0]
        heads = self.heads or max(fitting, default=1)
        hidden = self.hidden or max(1, 8 * width // 3)
        return DraftLayer(width, embedding, heads, hidden).to(teacher.device)

    # Prompts.

    def _texts(self, context: Context, decoder: TextDecoder) -> tuple[list[Text], list[Text]]:
        """What to learn from, and what to measure with."""
        if self.prompts is None:
            return (
                self._solved(decoder, "train", self.problems),
                self._solved(decoder, "held_out", self.held_out),
            )
        texts = self._written(context, self.prompts)
        if len(texts) <= self.held_out:
            raise ConfigError(
                f"task=train_drafter measures with task.held_out={self.held_out} prompts and needs "
                f"more to learn from, got {len(texts)} in {self.prompts}"
            )
        return texts[self.held_out :], texts[: self.held_out]

    def _solved(self, decoder: TextDecoder, split: str, count: int) -> list[Text]:
        """Problems with their answers."""
        from dllm_decode.problems import problems
        from dllm_decode.training.drafter import Text

        shown = [name for name, family in FAMILIES.items() if family.shown]
        found = []
        for name in self.families or shown or list(FAMILIES):
            for problem in problems(name, split, count, self.seed):
                if not problem.form:
                    family = FAMILIES[name]
                    prompt = tuple(decoder.encode(problem.prompt, 0))
                    answer = decoder.model.tokenizer.encode(" " + problem.answer, framed=False)
                    canvas = max(family.canvas, len(answer) + 1)
                    found.append(Text(prompt, tuple(answer), canvas, not family.determined, name))
        if not found:
            raise ConfigError("task.families has only forms to fill in; give others")
        return found

    def _written(self, context: Context, prompts: str) -> list[Text]:
        """Prompts of a file with what the model writes; in an order drawn by the seed."""
        import random

        from dllm_decode.api import DEFAULT_NEW_TOKENS
        from dllm_decode.decoding.types import Request
        from dllm_decode.training.drafter import Text

        asked = prompts_to_learn_from(prompts)
        writer = context.decoder_with("strategy=threshold")
        usual = self.max_new_tokens or DEFAULT_NEW_TOKENS
        lengths = tuple(each.max_new_tokens or usual for each in asked)
        ids = tuple(
            writer.encode(
                each.content,
                row,
                continue_final=each.continue_final_message,
                arguments=each.chat_template_kwargs,
            )
            for row, each in enumerate(asked)
        )
        request = Request(ids, lengths, tuple(self.seed + row for row in range(len(ids))))
        writer.check(request, [each.source for each in asked])
        result = context.decoded(
            "writing answers",
            request.lengths,
            lambda progress: writer.decode(
                request, batch_size=self.batch_size, observers=(progress,)
            ),
        )
        ends = writer.model.denoiser.vocab.eot_ids
        texts = []
        for prompt, length, tokens in zip(ids, lengths, result.sequences, strict=True):
            until = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
            texts.append(Text(tuple(prompt), tuple(tokens[:until]), length + 1))
        random.Random(self.seed).shuffle(texts)
        return texts

    # Telling.

    def _figures(
        self,
        decoder: TextDecoder,
        teacher: Teacher,
        folder: Path,
        kept: Sequence[Text],
        training: Any,
    ) -> dict[str, Any]:
        """The report, of the weights as they were written."""
        from dllm_decode.models.drafting import LayerDrafter
        from dllm_decode.training.drafter import measured

        drafter = LayerDrafter.load(folder / DRAFTER)
        layer = drafter.layer.to(teacher.device)
        return {
            "model": str(decoder.model.description),
            "model_fingerprint": drafter.fingerprint,
            "parameters": sum(weight.numel() for weight in layer.parameters()),
            "updates": training.step,
            "minutes": round(training.seconds / 60, 1),
            "seed": self.seed,
            "kl": measured(teacher, layer, kept, self.rows, self.depth, self.seed),
        }

    def _tell(
        self, context: Context, folder: Path, figures: Mapping[str, Any], training: Any
    ) -> None:
        from dllm_decode import storage
        from dllm_decode.training import loop

        text = json.dumps(storage.plain(dict(figures)), indent=1)
        storage.write_text(folder / REPORT, text + "\n")
        names = [f"{kind}_{n + 1}" for kind in ("kl", "marginal") for n in range(self.depth)]
        panels = {"KL to the model [nats]": names, "learning rate [share]": ["rate"]}
        loop.picture(training.log(), panels, folder / PICTURE)
        context.folder.write_json("results.json", {"drafter": str(folder / DRAFTER)})
        context.display.show(_table(figures["kl"]))
        context.display.say(
            f"decode with strategy=adjust strategy.select.weights={folder / DRAFTER}"
        )


def _table(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """KL of held-out states per group and depth."""
    from rich.table import Table

    sheet = Table(title="held-out states, KL to the model in nats: draft layer | first pass alone")
    sheet.add_column("texts")
    depths = max((len(levels) for levels in groups.values()), default=0)
    for depth in range(depths):
        sheet.add_column(f"depth {depth + 1}", justify="right")
    for group, levels in groups.items():
        cells = [f"{level['drafter']:.3f} | {level['marginal']:.3f}" for level in levels]
        sheet.add_row(group, *cells)
    return sheet
