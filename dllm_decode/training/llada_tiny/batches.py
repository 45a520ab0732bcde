"""Training batches: a pure function of seed, worker and step, so that a run can resume exactly."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dllm_decode.problems import GAP, TRAINED, Family, Problem, draw, held_out
from dllm_decode.problems.lists import Labelled
from dllm_decode.problems.numbers import Story
from dllm_decode.problems.steps import Chain, Track
from dllm_decode.problems.sudoku import SudokuSix
from dllm_decode.problems.tales import Tale
from dllm_decode.problems.texts import Records
from dllm_decode.problems.words import MOVES, NAMES, OPERATIONS, PLACES
from dllm_decode.training.llada_tiny.tokenizer import (
    EOT,
    HEADER_END,
    HEADER_START,
    MASK,
    FastEncoder,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# Kinds of slots, masked at rates of their own; given ones never.
STRUCTURE, CONTENT, PADDING, GIVEN = 0, 1, 2, 3
_ALIKE = 0.85  # share of sudokus that are made from another one
BLOCK = 32  # slots; the block length that semi-autoregressive decoding commonly uses


@dataclass(frozen=True)
class Mixture:
    """How examples are laid out and masked.

    Attributes:
        buckets: Lengths of whole examples in tokens, ascending.
        batch_tokens: Tokens per worker and step.
        padding_weight: Weight in the loss of end-of-text tokens behind the first one.
        wide: Share of examples whose canvas is stretched to 32..64 slots.
        widest: Share of examples whose canvas is stretched to 64..128 slots.
        blocked: Share of examples masked as block decoding meets them.
        split: Share of examples with a mask rate of its own for each kind of token.
        stepwise: Share of problems worked out step by step in which steps are hidden or shown as a
            whole, see `Batches`.
        counted: Share of tales in which only numbers that follow from others are hidden, and the
            end of the tale behind a random sentence.
        least_rate: Floor of the mask rate by which the loss is divided.
        predicted: Share of a batch's slots that can be predicted.
        short: Exponent of the bonus per token for answers shorter than 16 tokens, without which
            two-token answers hardly count: 0 for none, 1 where every answer counts the same.
        balance: 1 draws examples of all lengths as often as the families make them; 0 gives short
            and long ones the same number of steps, so that there are many more short ones to learn
            an operation from.
        strange: Share of examples with names made up on the spot, so that what people try first is
            not new to the model.
        strange_lists: The same for short lists, which people type first; they are shorter, too.
        brief: Share of problems worked out step by step that have few steps, because finding a step
            by its label is learned where there are few to choose from.

    Examples:
        >>> Mixture(batch_tokens=512, buckets=(40, 256)).buckets
        (40, 256)
    """

    buckets: tuple[int, ...] = (28, 36, 48, 64, 88, 104, 128, 152, 192, 256)
    batch_tokens: int = 4096
    padding_weight: float = 0.15
    wide: float = 0.25
    widest: float = 0.15
    blocked: float = 0.2
    split: float = 0.3
    stepwise: float = 0.6
    counted: float = 0.4
    least_rate: float = 0.3
    predicted: float = 0.42
    short: float = 0.5
    balance: float = 0.5
    strange: float = 0.08
    strange_lists: float = 0.35
    brief: float = 0.5


@dataclass(frozen=True)
class Sketch:
    """What is drawn of an example before its problem is made.

    Attributes:
        family: Index into `TRAINED`.
        canvas: Slots of the canvas, 0 for one as long as the answer.
        spare: Slots behind the first end of text where the canvas is as long as the answer.
        length: Of the whole example in tokens where it is known already, otherwise 0.
    """

    family: int
    canvas: int
    spare: int
    length: int = 0

    def behind(self, answer: int, form: bool) -> int:
        """Slots behind the first end of text; none behind a form, which sets the canvas.

        Args:
            answer: Length of the answer in tokens.
            form: Whether the problem is an infilling.
        """
        if form:
            return 0
        return max(0, self.canvas - answer - 1) if self.canvas else self.spare


@dataclass(frozen=True)
class Example:
    """One encoded problem.

    Attributes:
        family: Index into `TRAINED`.
        prompt: Ids of the prompt.
        answer: Ids of the answer.
        padding: Slots of end-of-text behind the answer.
        given: For infilling, whether each slot of the answer stands on the canvas in advance; ()
            for other problems.

    Examples:
        >>> Example(family=0, prompt=[1, 2, 3], answer=[4, 5], padding=3).length
        9
    """

    family: int
    prompt: list[int]
    answer: list[int]
    padding: int
    given: tuple[bool, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of prompt, answer and padding, with the first end of text."""
        return len(self.prompt) + len(self.answer) + 1 + self.padding


@dataclass(frozen=True)
class TrainingBatch:
    """One worker's share of a step.

    Attributes:
        tokens: (rows, length) with masks in them.
        wanted: (n,) flat slots to predict.
        target: (n,) the right tokens there.
        weight: (n,) in the loss.
        family: (n,) index into `TRAINED`.
        hard: (n,) the slot is masked, is no padding, and most of its answer is masked as well, so
            that it measures what the model knows.

    Examples:
        >>> weights = {name: 1.0 for name in TRAINED}
        >>> batch = Batches(Mixture(batch_tokens=256), seed=0, rank=0).batch(0, weights)
        >>> batch.tokens.dtype, batch.weight.dtype
        (dtype('int64'), dtype('float32'))
    """

    tokens: Ints
    wanted: Ints
    target: Ints
    weight: Floats
    family: Ints
    hard: NDArray[np.bool_]


class Encoder:
    """Problems to token ids in the chat layout.

    Attributes:
        text: Encodes plain text.
        mask: The mask's id.
        eot: Id of the end of text.

    Examples:
        >>> Encoder().given(" 1[MASK] 2[MASK]")
        (True, False, True, False)
    """

    def __init__(self) -> None:
        self.text = FastEncoder()
        self.mask, self.eot = self.text.special(MASK), self.text.special(EOT)
        self._start, self._end = self.text.special(HEADER_START), self.text.special(HEADER_END)
        numbers = {token for number in range(100) for token in self.text(f" {number}")}
        signs = {
            token for sign in ",.;:?=+-*/|" for token in self.text(sign) + self.text(" " + sign)
        }
        self._structure = numbers | signs
        self._results = set(self.text(" ="))
        self._ends = self.text(",")
        self._stops = self.text(".")
        self._numbers = [self._word(str(number)) for number in range(100)]
        self._asked = [*map(self._word, (*OPERATIONS, *MOVES))]
        self._places = [*map(self._word, PLACES)]
        self._from = self._word("from")

    def _word(self, text: str) -> int:
        (token,) = self.text(" " + text)
        return token

    def prompt(self, text: str) -> list[int]:
        """Ids of everything in front of the answer.

        Args:
            text: The question.
        """
        return [self._start, *self.text(" " + text), self._end]

    def answer(self, text: str) -> list[int]:
        """Ids of the answer without the end of text.

        Args:
            text: The answer.
        """
        return self.text(" " + text)

    def given(self, form: str) -> tuple[bool, ...]:
        """Whether each slot of a form is given; () without a form.

        Args:
            form: `Problem.form`.
        """
        slots: list[bool] = []
        for number, piece in enumerate(form.split(GAP) if form else ()):
            slots += [False] * (number > 0) + [True] * len(self.text(piece))
        return tuple(slots)

    def kinds(self, answer: list[int]) -> list[int]:
        """STRUCTURE or CONTENT for each id of an answer; what stands behind "=" is content.

        Args:
            answer: Its ids.
        """
        before = [-1, *answer]
        return [
            STRUCTURE if token in self._structure and last not in self._results else CONTENT
            for last, token in zip(before, answer, strict=False)
        ]

    def steps(self, tokens: Ints) -> Ints:
        """The number of the worked step that each token belongs to, from 0.

        A step ends with its comma.

        Args:
            tokens: (rows, length) ids.
        """
        ends = np.isin(tokens, self._ends)
        counted: Ints = np.cumsum(ends, axis=1) - ends
        return counted

    def asked(self, tokens: Ints) -> NDArray[np.bool_]:
        """Which tokens of worked steps say what is to be done, not what comes of it.

        Args:
            tokens: (rows, length) ids.
        """
        return np.isin(tokens, self._asked)

    def results(self, tokens: Ints) -> NDArray[np.bool_]:
        """Which words of tales follow from others: numbers but for the first, places named again.

        An event says the last number again, a change, and its result, of which any two give the
        third; somebody comes home "from the river" who went to the river.

        Args:
            tokens: (rows, length) ids.
        """
        numbers = np.isin(tokens, self._numbers)
        numbers &= np.cumsum(numbers, axis=1) > 1
        again = np.roll(tokens, 2, axis=1) == self._from
        result: NDArray[np.bool_] = numbers | (np.isin(tokens, self._places) & again)
        return result

    def sentences(self, tokens: Ints) -> Ints:
        """The number of the sentence that each token belongs to, from 0.

        Args:
            tokens: (rows, length) ids.
        """
        stops = np.isin(tokens, self._stops)
        counted: Ints = np.cumsum(stops, axis=1) - stops
        return counted


class Batches:
    """Makes the batch of any step.

    The length of a step's examples is the same for all workers, so that they finish together.

    Args:
        mixture: How examples are laid out and masked.
        seed: Of the whole run.
        rank: Of this worker, from 0.

    Examples:
        >>> batches = Batches(Mixture(batch_tokens=256), seed=0, rank=0)
        >>> weights = {name: 1.0 for name in TRAINED}
        >>> bool((batches.batch(3, weights).tokens == batches.batch(3, weights).tokens).all())
        True
    """

    def __init__(self, mixture: Mixture, seed: int, rank: int) -> None:
        self.mixture, self.seed, self.rank = mixture, seed, rank
        self.encoder = Encoder()
        self._families = list(TRAINED.values())
        # Sizes of the problems of families in which all are alike; sudokus take long to make, and
        # most would be thrown away because another length is wanted.
        self._alike: dict[int, tuple[int, int, bool]] = {}
        self._last: dict[str, Problem] = {}
        for index, family in enumerate(self._families):
            if isinstance(family, SudokuSix):
                problem = draw(family, "train", random.Random(0))
                prompt = self.encoder.prompt(problem.prompt)
                answer = self.encoder.answer(problem.answer)
                self._alike[index] = len(prompt), len(answer), bool(problem.form)

    def batch(self, step: int, weights: Mapping[str, float]) -> TrainingBatch:
        """The batch of one step.

        Args:
            step: Its number, from 0.
            weights: Relative frequency of each family by name.
        """
        self._last.clear()  # a batch must not depend on those before
        shares = [weights[family.name] for family in self._families]
        bucket = self._bucket(random.Random(f"{self.seed}/{step}"), shares)
        rng = random.Random(f"{self.seed}/{step}/{self.rank}")
        length = self.mixture.buckets[bucket]
        rows = max(1, self.mixture.batch_tokens // length)
        examples: list[Example] = []
        while len(examples) < rows:
            sketch = self._sketch(rng, shares)
            if sketch.length == 0 or self._bucket_of(sketch.length) == bucket:
                example = self._example(rng, sketch)
                if self._bucket_of(example.length) == bucket:
                    examples.append(example)
        return self._masked(examples, length, np.random.default_rng(rng.getrandbits(63)))

    def _bucket(self, rng: random.Random, shares: list[float]) -> int:
        """Draw the bucket of a whole step."""
        buckets = self.mixture.buckets
        while True:
            sketch = self._sketch(rng, shares)
            bucket = self._bucket_of(sketch.length or self._example(rng, sketch).length)
            if rng.random() < (buckets[bucket] / buckets[-1]) ** self.mixture.balance:
                return bucket

    def _bucket_of(self, length: int) -> int:
        """The shortest bucket that holds an example (the last one if padding must be cut)."""
        for index, longest in enumerate(self.mixture.buckets):
            if length <= longest:
                return index
        return len(self.mixture.buckets) - 1

    def _sketch(self, rng: random.Random, shares: list[float]) -> Sketch:
        """Draw all of an example but the problem."""
        index = rng.choices(range(len(shares)), shares)[0]
        kind, canvas = rng.random(), 0
        if kind < self.mixture.widest:
            canvas = rng.randint(64, 128)
        elif kind < self.mixture.widest + self.mixture.wide:
            canvas = rng.randint(32, 64)
        sketch = Sketch(index, canvas, rng.randint(0, 4))
        if index not in self._alike:
            return sketch
        prompt, answer, form = self._alike[index]
        return replace(sketch, length=prompt + answer + 1 + sketch.behind(answer, form))

    def _example(self, rng: random.Random, sketch: Sketch) -> Example:
        family = self._families[sketch.family]
        mixture, listed = self.mixture, isinstance(family, Labelled)
        if rng.random() < (mixture.strange_lists if listed else mixture.strange):
            family = strange(family, rng)
        if isinstance(family, Chain | Track) and rng.random() < self.mixture.brief:
            family = replace(family, shortest=1, longest=6)
        problem = self._problem(family, rng)
        prompt, answer = self.encoder.prompt(problem.prompt), self.encoder.answer(problem.answer)
        given = self.encoder.given(problem.form)
        padding = sketch.behind(len(answer), bool(given))
        return Example(sketch.family, prompt, answer, padding, given)

    def _problem(self, family: Family, rng: random.Random) -> Problem:
        """A new problem; most sudokus are made from the last one of the batch, which saves time."""
        last = self._last.get(family.name)
        if isinstance(family, SudokuSix) and last is not None and rng.random() < _ALIKE:
            problem = family.alike(last, rng)
            if not held_out(problem.shown):
                return problem
        self._last[family.name] = problem = draw(family, "train", rng)
        return problem

    def _masked(
        self, examples: list[Example], length: int, rng: np.random.Generator
    ) -> TrainingBatch:
        rows, encoder, mixture = len(examples), self.encoder, self.mixture
        clean = np.full((rows, length), encoder.eot, dtype=np.int64)
        kind = np.full((rows, length), PADDING)
        start = np.array([len(example.prompt) for example in examples])
        first_eot = np.zeros((rows, length), dtype=bool)
        worked = np.zeros(rows, dtype=bool)
        for number, example in enumerate(examples):
            begin, end = len(example.prompt), len(example.prompt) + len(example.answer)
            clean[number, :end] = example.prompt + example.answer
            kind[number, :begin] = GIVEN
            worked[number] = isinstance(self._families[example.family], Chain | Track)
            kind[number, begin:end] = encoder.kinds(example.answer)
            if example.given:  # all behind the form is given, too
                kind[number, begin:end][np.array(example.given)] = GIVEN
                kind[number, end:] = GIVEN
            first_eot[number, end] = not example.given
        place = np.arange(length) - start[:, None]  # slot on the canvas
        loose = [not self._families[example.family].determined for example in examples]
        rate = self._rates(kind, place, np.array(loose), rng)
        stepwise = worked & (rng.random(rows) < mixture.stepwise)
        rate = np.where(
            stepwise[:, None] & (kind < PADDING), self._stepwise(clean, kind, rng), rate
        )
        told = np.array([isinstance(self._families[example.family], Tale) for example in examples])
        counted = told & (rng.random(rows) < mixture.counted)
        rate = np.where(counted[:, None] & (kind < PADDING), self._counted(clean, rng), rate)
        masked = (rng.random((rows, length)) < rate) & (kind != GIVEN)
        weight = np.where((kind == PADDING) & ~first_eot, mixture.padding_weight, 1.0)
        weight = weight / np.maximum(rate, mixture.least_rate)
        answers = np.maximum(1, (kind < PADDING).sum(1))
        weight = weight * (16 / answers[:, None]) ** mixture.short
        wanted = self._chosen(
            masked, first_eot | (kind < PADDING), int(rows * length * mixture.predicted), rng
        )
        family = np.array([example.family for example in examples])
        hidden = (masked & (kind < PADDING)).sum(1) / np.maximum(1, (kind < PADDING).sum(1))
        flat = masked.reshape(-1)[wanted]
        total = max(1.0, float(np.where(kind == GIVEN, 0, weight * rate).sum()))
        return TrainingBatch(
            tokens=np.where(masked, encoder.mask, clean),
            wanted=wanted,
            target=clean.reshape(-1)[wanted],
            weight=(weight.reshape(-1)[wanted] * flat / total).astype(np.float32),
            family=family[wanted // length],
            hard=flat & (kind.reshape(-1)[wanted] < PADDING) & (hidden[wanted // length] > 0.6),
        )

    def _rates(
        self,
        kind: Ints,
        place: Ints,
        loose: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> NDArray[np.float64]:
        """The mask rate of every slot.

        Args:
            kind: The family of each row.
            place: The row of each slot.
            loose: Rows with many right answers. Low rates come more often there, because as long as
                most of such an answer is hidden, what is right is chance and nothing is learned.
            rng: Where the numbers come from.
        """
        rows, length = kind.shape
        stratified = (rng.permutation(rows) + rng.random(rows)) / rows
        stratified = np.where(loose, stratified**2, stratified)
        rate = np.repeat(stratified[:, None], length, axis=1)
        how = rng.random((rows,))
        split = how < self.mixture.split
        own = np.concatenate([rng.random((rows, 3)), np.zeros((rows, 1))], axis=1)
        own = np.where(rng.random((rows, 4)) < 0.3, np.round(own), own)  # all or none, often
        own = np.where(loose[:, None], own**2, own)
        rate = np.where(split[:, None], np.take_along_axis(own, kind, axis=1), rate)
        blocked = ~split & (how < self.mixture.split + self.mixture.blocked)
        blocks = np.maximum(1, -(-(place.max(1) + 1) // BLOCK))
        current = (rng.random(rows) * np.minimum(blocks, 4)).astype(int)[:, None]
        by_block = np.where(
            place // BLOCK < current, 0.0, np.where(place // BLOCK > current, 1, rate)
        )
        return np.where(blocked[:, None], by_block, rate)

    def _stepwise(self, clean: Ints, kind: Ints, rng: np.random.Generator) -> NDArray[np.float64]:
        """Mask rates that hide or show each worked step as a whole, some or many of them per row.

        What a hidden step says can then be known from the step before, if that is shown: most
        examples of the operation a token can give. Of tokens hidden one by one few can be known.
        In a third of the rows labels and signs of all steps are shown, as a decoder, which is sure
        of them, decides them first; in another third also what is to be done, so that doing it
        need not wait until finding it is learned.
        """
        rows = len(clean)
        share = rng.uniform(0.2, 0.8, (rows, 1))
        hidden = (rng.random(clean.shape) < share).astype(float)
        hidden = np.take_along_axis(hidden, self.encoder.steps(clean), axis=1)
        level = np.where(self.encoder.asked(clean), 2, np.where(kind == STRUCTURE, 1, 3))
        return np.where(level <= rng.integers(0, 3, (rows, 1)), 0.0, hidden)

    def _counted(self, clean: Ints, rng: np.random.Generator) -> NDArray[np.float64]:
        """Mask rates that hide half of the results of tales, and what is not told yet.

        Few words of a tale are numbers; hidden with all others, few of them can be known.
        """
        sentence = self.encoder.sentences(clean)
        end = rng.integers(4, 2 + np.maximum(4, sentence.max(1)))  # the head tells of no change
        rate = np.where(self.encoder.results(clean), 0.5, 0.0)
        return np.where(sentence < end[:, None], rate, 1.0)

    def _chosen(
        self,
        masked: NDArray[np.bool_],
        counts: NDArray[np.bool_],
        count: int,
        rng: np.random.Generator,
    ) -> Ints:
        """A fixed number of slots (compiled code wants fixed shapes): masked ones first.

        counts: slots that come before all others, if masked.
        """
        order = rng.random(masked.size) + 2.0 * (masked * (1.0 + counts)).reshape(-1)
        picked: Ints = np.sort(np.argpartition(-order, count)[:count])
        return picked


def strange(family: Family, rng: random.Random) -> Family:
    """A family with short lists and with a few made-up names; other families as they are.

    Args:
        family: One of `TRAINED`.
        rng: Where the names come from.
    """
    if isinstance(family, Labelled) and family.longest <= 9:
        made_up = tuple(_made_up(rng) for _ in range(4))
        pool = made_up + tuple(rng.sample(NAMES, 8)) if rng.random() < 0.6 else NAMES
        return replace(family, shortest=2, longest=5, pool=pool)
    if isinstance(family, Records | Story | Tale):
        return replace(family, pool=(_made_up(rng), *rng.sample(NAMES, 3)))
    return family


def _made_up(rng: random.Random) -> str:
    """A word that looks like a name, such as "Tobira" or "Orrel"; two to nine letters."""
    while True:
        syllables = [
            rng.choice("bcdfghjklmnprstvwyz")
            + rng.choice(("a", "e", "i", "o", "u", "a", "e", "i", "o", "ie", "oa", "ya"))
            + rng.choice(("", "", "", "n", "r", "l", "s", "d", "m", "x", "rr", "ll", "tt", "lf"))
            for _ in range(rng.randint(1, 3))
        ]
        if rng.random() < 0.2:
            syllables[0] = syllables[0][1:]
        name = "".join(syllables)[: rng.randint(2, 9)].capitalize()
        if len(name) > 1 and name not in NAMES:
            return name
