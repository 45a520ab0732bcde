"""The settings of a pretraining run and what follows from them; `task=pretrain` runs it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dllm_decode.errors import (
    CheckpointError,
    ConfigError,
    require,
    require_choice,
    require_count,
    require_in_range,
)
from dllm_decode.problems import TRAINED

if TYPE_CHECKING:
    from dllm_decode.training.llada_tiny.batches import Mixture
    from dllm_decode.training.llada_tiny.course import Course
    from dllm_decode.training.llada_tiny.network import Shape

# What a checkpoint can only be continued with.
_IDENTITY = ("seed", "width", "layers", "heads", "hidden")
_STEP = ("workers", "batch_tokens")  # of these the product: the tokens of a step


@dataclass(frozen=True)
class Recipe:
    """What a run of `task=pretrain` is made of.

    With a budget in tokens or steps a run is reproducible to the bit on one machine. A continuation
    may have another budget: a larger one puts off the fall of the learning rates. It may also share
    its steps among more or fewer workers, as long as a step has as many tokens; the run is then
    another one of the same kind.

    Attributes:
        output: Folder of the run.
        start: Folder of a model in LLaDA format with the sizes below whose weights the run begins
            with, or `bundled:NAME`; "" draws them. Tokens keep their embeddings by their text, new
            tokens get fresh ones.
        seed: Of the weights and the batches.
        tokens: Budget in millions of tokens, padding included.
        minutes: If not 0, the budget in minutes of training over all continuations instead,
            compilation included.
        steps: If not 0, the budget in updates instead.
        halt: If not 0, stop after this many updates in all, with the schedule unchanged; the model
            is measured and exported as it is then, and the run can go on.
        device: `cpu`, `cuda` or `cuda:N`.
        workers: Processes that share each step, on a CPU.
        threads: Threads of each worker.
        loaders: Processes that make batches, for fast devices; 0 makes them in the training
            process.
        compile: Whether the network goes through `torch.compile`.
        width: Size of the residual stream, a multiple of `2 * heads`.
        layers: Number of blocks.
        heads: Attention heads of a block.
        hidden: Width of the feed-forward layers.
        batch_tokens: Tokens per worker and step, at least 256.
        muon_rate: Highest learning rate of matrices.
        adam_rate: Highest learning rate of embeddings and norms.
        weight_decay: Of the matrices.
        warmup: Steps until the rates are at their highest.
        flat: Share of the budget before the rates fall to zero in a straight line, in [0, 1).
        emphasis: Factor by which a family is drawn more or less often than its errors ask for.
        curriculum: Millions of tokens before a family is drawn for the first time.
        clip: Largest norm of the gradient.
        average: Decay of the running mean of the weights, which is what is exported.
        early: Millions of tokens after which the model is kept as it is then; 0 keeps none.
        log_every: Steps between two records of the curves.
        checkpoint_minutes: Minutes between two checkpoints.
        measurements: How often exact match is measured, spread over the run.
        measured_problems: Held-out problems per family and measurement; 0 measures none.
        display: `auto`, `live`, `plain` or `none`.
        resume: Continue from a checkpoint in `output`; else a folder that holds one is refused.

    Examples:
        >>> recipe = Recipe(tokens=10.0, width=64, heads=2)
        >>> recipe.shape().width
        64
    """

    output: str = "runs/pretrain"
    start: str = "bundled:llada-tiny-1"
    seed: int = 7
    tokens: float = 96.0
    minutes: float = 0.0
    steps: int = 0
    halt: int = 0
    device: str = "cpu"
    workers: int = 2
    threads: int = 1
    loaders: int = 0
    compile: bool = True
    width: int = 192
    layers: int = 6
    heads: int = 6
    hidden: int = 512
    batch_tokens: int = 1536
    muon_rate: float = 0.01
    adam_rate: float = 0.001
    weight_decay: float = 0.02
    warmup: int = 60
    flat: float = 0.2
    emphasis: Mapping[str, float] = field(default_factory=dict)
    curriculum: Mapping[str, float] = field(default_factory=dict)
    clip: float = 1.0
    average: float = 0.995
    early: float = 24.0
    log_every: int = 20
    checkpoint_minutes: float = 5.0
    measurements: int = 20
    measured_problems: int = 24
    display: str = "auto"
    resume: bool = True

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "width", "layers", "heads", "hidden", "warmup"):
            require_count(f"task.{name}", getattr(self, name))
        for name in ("steps", "halt", "loaders", "measurements", "measured_problems", "seed"):
            require_count(f"task.{name}", getattr(self, name), minimum=0)
        require_count("task.log_every", self.log_every)
        require_count("task.batch_tokens", self.batch_tokens, minimum=256)
        require_in_range("task.tokens", self.tokens, 0, 1e6, open_low=True, unit="million tokens")
        require_in_range("task.minutes", self.minutes, 0, 100_000, unit="minutes")
        require_in_range(
            "task.checkpoint_minutes", self.checkpoint_minutes, 0, 100_000, unit="minutes"
        )
        for name in ("muon_rate", "adam_rate", "weight_decay"):
            require_in_range(f"task.{name}", getattr(self, name), 0, 1)
        require_in_range("task.flat", self.flat, 0, 1, open_high=True)
        for name, factor in self.emphasis.items():
            require_choice("task.emphasis", name, tuple(TRAINED))
            require_in_range(f"task.emphasis.{name}", factor, 0, 1e6, open_low=True)
        for name, start in self.curriculum.items():
            require_choice("task.curriculum", name, tuple(TRAINED))
            require_in_range(f"task.curriculum.{name}", start, 0, 1e6, unit="million tokens")
        require(
            any(self.curriculum.get(name, 0) == 0 for name in TRAINED),
            "task.curriculum must leave a family that is drawn from the start (0 or absent), got "
            f"{dict(self.curriculum)}",
        )
        require_in_range("task.clip", self.clip, 0, math.inf, open_low=True)
        require_in_range("task.average", self.average, 0, 1, open_high=True)
        require_in_range("task.early", self.early, 0, 1e6, unit="million tokens")
        require_choice("display", self.display, ("auto", "live", "plain", "none"))
        even = self.width % (2 * self.heads) == 0
        require(
            even, f"task.width must be a multiple of 2 * heads = {2 * self.heads}, got {self.width}"
        )
        require(bool(self.output), "task.output must name a folder, got an empty text")
        if self.device.startswith("cuda") and self.workers > 1:
            raise ConfigError(
                f"task.workers must be 1 with task.device={self.device}, got {self.workers}"
            )

    def shape(self) -> Shape:
        """Sizes of the network, with the vocabulary of the package's problems."""
        from dllm_decode.training.llada_tiny.network import Shape
        from dllm_decode.training.llada_tiny.tokenizer import vocabulary

        return Shape(len(vocabulary()), self.width, self.layers, self.heads, self.hidden)

    def mixture(self) -> Mixture:
        """Layout of the batches."""
        from dllm_decode.training.llada_tiny.batches import Mixture

        return Mixture(batch_tokens=self.batch_tokens)

    def progress(self, course: Course) -> float:
        """Share of the budget that is used up.

        Args:
            course: Where the run stands.
        """
        if self.steps:
            return course.step / self.steps
        if self.minutes:
            return course.seconds / (60 * self.minutes)
        return course.tokens / (1e6 * self.tokens)

    def rate(self, step: int, progress: float) -> float:
        """Factor of the learning rates, 0 to 1: warm-up, flat, then straight down to zero.

        Args:
            step: Updates done.
            progress: Share of the budget that is used up, 0 to 1.
        """
        warm = min(1.0, (step + 1) / self.warmup)
        return warm * max(0.0, min(1.0, (1 - progress) / (1 - self.flat)))

    def identity(self) -> dict[str, object]:
        """The settings that a continuation must share."""
        return {name: getattr(self, name) for name in (*_IDENTITY, *_STEP)}

    def check_identity(self, other: Mapping[str, object]) -> None:
        """Refuse to continue a run that was begun with other settings.

        Args:
            other: What the checkpoint says of its run; see `identity`.

        Raises:
            CheckpointError: A setting differs; names it.
        """
        mine = self.identity()
        wanted = {f"task.{name}": (other.get(name), mine[name]) for name in _IDENTITY}
        product = " * ".join(f"task.{name}" for name in _STEP)
        wanted[product] = (_step_tokens(other), _step_tokens(mine))
        for name, (before, now) in wanted.items():
            if before != now:
                raise CheckpointError(
                    f"{name} must be {before!r} to continue the run in "
                    f"{self.output}, got {now!r}; give another task.output for a new run"
                )


def _step_tokens(settings: Mapping[str, object]) -> int | None:
    """Tokens of a step over all workers; None where the settings do not say."""
    factors = [settings.get(name) for name in _STEP]
    numbers = [factor for factor in factors if isinstance(factor, int)]
    return math.prod(numbers) if len(numbers) == len(_STEP) else None
