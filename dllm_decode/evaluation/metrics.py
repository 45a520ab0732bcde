"""What is measured: one definition each, printed on request, all pure functions of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dllm_decode.errors import ConfigError
from dllm_decode.evaluation import validation
from dllm_decode.evaluation.data import Question
from dllm_decode.evaluation.statistics import (
    Interval,
    bootstrap_ratio,
    orders,
    wilson,
)
from dllm_decode.evaluation.validation import fault_in, shown

if TYPE_CHECKING:
    from dllm_decode.decoding.outcome import Outcome


@dataclass(frozen=True)
class Sample:
    """One problem, decoded and graded; also one line of `samples.jsonl`.

    Attributes:
        problem: Its key, unique within a run.
        family: The family or data set it belongs to.
        prompt: The question.
        text: The answer that was decoded.
        correct: What the grader said.
        forwards: Passes the row took part in; guidance, refresh, probes and filters included.
        slots: Columns that were asked for.
        steps: For each delivered token, in order of position, the step that committed it, counted
            from 0; tokens given in advance are left out.
        ready: For each of them the first step since which it had been the model's unbroken
            proposal; empty where that was not recorded.
        confidence: The probability in [0, 1] with which each of them was committed.
        pieces: The text of each of them; empty where that was not recorded.
        end_step: Step that committed the end of text, -1 where there is none.
        spent: Commits behind the first end of text, which are not delivered.
        seconds: Wall time of decoding since the problem before was finished.
        finish_reason: As in `Outcome`.
        tokens: Everything that was generated, end of text included.
        reference_forwards: Passes of the decode that `strategy=oracle` imitates.
        error: Why there is no answer, "" where there is one.
        passes: Passes one after the other; several alternatives probed at once are one.
        probes: Forwards, of those above, over other tokens that the strategy asked for.
        drafts: Calls of a drafter, which are no forward passes.
        edits: Settled tokens that were written over.
        remasks: Settled columns that were opened again.
        not_granted: Edits and re-masks that the strategy asked for in vain.
        strict: What a grader said that allows the form that was asked for and no other; `correct`
            where there is one form, and None is that as well.
        commits: Whether each pass decided a column, so that one that decided nothing delivered
            decided padding; not so with guidance, voting, and rules that revise or may wait.

    Examples:
        >>> steps = (0, 0, 1)  # of three tokens
        >>> sample = Sample("sort/0", "sort", "Sort: ...", "Ada Eve", True, 2, 32, steps)
        >>> sample.delivered, Sample.from_record(sample.to_record()) == sample
        (3, True)
    """

    problem: str
    family: str
    prompt: str
    text: str
    correct: bool
    forwards: int
    slots: int
    steps: tuple[int, ...]
    ready: tuple[int, ...] = ()
    confidence: tuple[float, ...] = ()
    pieces: tuple[str, ...] = ()
    end_step: int = -1
    spent: int = 0
    seconds: float = 0.0
    finish_reason: str = "length"
    tokens: tuple[int, ...] = ()
    reference_forwards: int = 0
    error: str = ""
    passes: int = 0
    probes: int = 0
    drafts: int = 0
    edits: int = 0
    remasks: int = 0
    not_granted: int = 0
    strict: bool | None = None
    commits: bool = True

    @property
    def correct_strictly(self) -> bool:
        """Whether the answer is right and in the form that was asked for."""
        return self.correct if self.strict is None else self.strict

    @property
    def delivered(self) -> int:
        """Tokens before the first end of text that the decode had to find."""
        return len(self.steps)

    @property
    def wasted(self) -> int:
        """Passes that decided neither a delivered token nor the end of text."""
        # -1: no end of text; what a drafter adds may be a step without a pass
        return max(0, self.forwards + 1 - len({-1, *self.steps, self.end_step}))

    @property
    def padding(self) -> float:
        """Passes that decided nothing but padding, NaN where others decide nothing either."""
        apart = self.probes or self.edits or self.remasks or self.not_granted
        return self.wasted if self.commits and not apart else math.nan

    def to_record(self) -> dict[str, Any]:
        """The JSON object of this sample."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Sample:
        """The sample of a JSON object.

        Raises:
            ConfigError: Naming the key, for missing and unknown ones and for values that no
                evaluation writes.
        """
        if "task" in record and "family" not in record:  # as earlier versions wrote it
            record = {"family" if key == "task" else key: record[key] for key in record}
        # not recorded by earlier versions
        record = {"passes": record.get("forwards", 0), **_NOTHING, **record}
        if record.keys() != _KEYS:
            wrong = sorted(_KEYS.symmetric_difference(record))
            keys = ", ".join(sorted(_KEYS))
            raise ConfigError(f"a sample has the keys {keys}; check {shown(wrong)}")
        fault = fault_in(record, _CHECKS)
        if fault:
            raise ConfigError(fault)
        sample = cls._checked(record[name] for name in _NAMES)
        fault = _mismatch(sample)
        if fault:
            raise ConfigError(fault)
        return sample

    @classmethod
    def from_records(cls, records: Sequence[Any]) -> list[Sample] | None:
        """The samples of many JSON objects, checked key by key, which takes half the time.

        Args:
            records: Objects as `to_record` makes them.

        Returns:
            What `from_record` gives for each; None where one of them is no such object, or has
            other keys than the first.
        """
        if set(map(type, records)) != {dict} or len(set(map(tuple, records))) != 1:
            return None
        names = records[0].keys()
        if not names <= _KEYS <= {"passes", *_NOTHING, *names}:
            return None
        columns = {name: [record[name] for record in records] for name in names}
        if not all(validation.all_pass(values, _CHECKS[name]) for name, values in columns.items()):
            return None
        for name in _KEYS - names:
            like = columns["forwards"] if name == "passes" else [_NOTHING[name]] * len(records)
            columns[name] = like
        samples = list(map(cls._checked, zip(*map(columns.__getitem__, _NAMES), strict=True)))
        return None if any(map(_mismatch, samples)) else samples

    @classmethod
    def _checked(cls, values: Iterable[Any]) -> Sample:
        """A sample of values without faults, in the order of `_NAMES`."""
        # as the constructor does, but not field by field: a report reads hundreds of thousands;
        # under names that all samples share, and not under a copy of them for each
        sample = cls.__new__(cls)
        own = sample.__dict__
        own.update(zip(_NAMES, values, strict=True))
        for name in _LISTS:
            own[name] = tuple(own[name])
        return sample


Column = TypeVar("Column", list[Any], NDArray[Any])


class Samples(tuple[Sample, ...]):
    """Samples of which each value is gathered once, however many figures are made of it.

    Examples:
        >>> some = Samples([Sample("a", "f", "?", "!", True, forwards=3, slots=8, steps=(0, 2))])
        >>> some.column("problem"), some.numbers("delivered").tolist()
        (['a'], [2])
    """

    @cached_property
    def _columns(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _source(self) -> tuple[Samples, list[int]] | None:
        return None

    def part(self, places: list[int]) -> Samples:
        """Some of them, which share what is gathered.

        Args:
            places: Which, counted from 0.
        """
        some = Samples(map(self.__getitem__, places))
        some.__dict__["_source"] = self, places
        return some

    @cached_property
    def without_failed(self) -> Samples | None:
        """Those that have an answer, None where all have: samples hold no circles."""
        errors = self.column("error")
        return self.part([at for at, why in enumerate(errors) if not why]) if any(errors) else None

    def column(self, name: str) -> list[Any]:
        """An attribute of every sample; not to be changed."""
        if self and name in _OFTEN and name not in self._columns and self._source is None:
            # all in one visit: samples lie scattered in memory, and to reach one takes longest
            columns = map(list, zip(*map(_often, self), strict=True))
            self._columns.update(zip(_OFTEN, columns, strict=True))
        return self.each(name, lambda samples: list(map(attrgetter(name), samples)))

    def numbers(self, name: str) -> NDArray[Any]:
        """An attribute of every sample, a number or a flag, as an array; not to be changed."""
        return self.each(f"numbers {name}", lambda samples: np.array(samples.column(name)))

    def entries(self, name: str) -> NDArray[np.int64]:
        """The whole numbers of an attribute that is a list, of one sample after the other."""
        key = f"entries {name}"
        if key not in self._columns:
            all_entries = chain.from_iterable(self.column(name))
            self._columns[key] = np.fromiter(all_entries, dtype=np.int64)
        found: NDArray[np.int64] = self._columns[key]
        return found

    def each(self, name: str, values: Callable[[Samples], Column]) -> Column:
        """One value for every sample, computed once.

        Args:
            name: Of the value.
            values: Computes it for all.
        """
        if name not in self._columns:
            if self._source is None:
                self._columns[name] = values(self)
            else:
                whole, places = self._source
                found: Any = whole.each(name, values)
                an_array = isinstance(found, np.ndarray)
                self._columns[name] = found[places] if an_array else [found[i] for i in places]
        column: Column = self._columns[name]
        return column

    @cached_property
    def problems(self) -> frozenset[str]:
        """The keys of its problems."""
        return frozenset(self.column("problem"))


_OFTEN = (
    "problem", "family", "correct", "correct_strictly", "forwards", "drafts", "slots", "seconds",
    "steps", "ready", "delivered", "wasted", "padding", "error",
)  # fmt: skip
_often = attrgetter(*_OFTEN)


def gathered(samples: Sequence[Sample]) -> Samples:
    """Samples that keep what they are asked for."""
    return samples if isinstance(samples, Samples) else Samples(samples)


def decoded(samples: Sequence[Sample]) -> Samples:
    """Those that have an answer: what a decode costs is told by decodes, not by failures."""
    some = gathered(samples)
    return some if some.without_failed is None else some.without_failed


def total(samples: Sequence[Sample], name: str) -> float:
    """The sum of an attribute over samples, which is whole where the attribute is.

    Args:
        samples: Any sequence of them.
        name: Of the attribute.
    """
    numbers = gathered(samples).numbers(name)
    # fractions one after the other: what is printed must not depend on how numpy adds them up
    return float(sum(numbers.tolist())) if numbers.dtype.kind == "f" else int(numbers.sum())


def same_problems(first: Sequence[Sample], second: Sequence[Sample]) -> bool:
    """Whether two runs are of the same problems."""
    return gathered(first).problems == gathered(second).problems


# What only some strategies do.
_COUNTS = ("probes", "drafts", "edits", "remasks", "not_granted")
_NOTHING: dict[str, Any] = {
    "pieces": (),
    **dict.fromkeys(_COUNTS, 0),
    "strict": None,
    "commits": True,
}
_LISTS = ("steps", "ready", "confidence", "pieces", "tokens")
_NAMES = tuple(entry.name for entry in fields(Sample))
_KEYS = frozenset(_NAMES)
_CHECKS: Mapping[str, validation.Check] = {
    "problem": validation.name,
    "family": validation.label,
    "prompt": validation.text,
    "text": validation.text,
    "correct": validation.flag,
    "forwards": validation.whole(0),
    "slots": validation.whole(0),
    "steps": validation.wholes(0),
    "ready": validation.wholes(-1),
    "confidence": validation.shares,
    "pieces": validation.texts,
    "end_step": validation.whole(-1),
    "spent": validation.whole(0),
    "seconds": validation.seconds,
    "finish_reason": validation.name,
    "tokens": validation.wholes(-1, 2**62),
    "reference_forwards": validation.whole(0),
    "error": validation.text,
    "passes": validation.whole(0),
    "probes": validation.whole(0),
    "drafts": validation.whole(0),
    "edits": validation.whole(0),
    "remasks": validation.whole(0),
    "not_granted": validation.whole(0),
    "strict": validation.optional(validation.flag),
    "commits": validation.flag,
}


def _mismatch(sample: Sample) -> str:
    """What is wrong with values that are fine one by one."""
    count, tokens = sample.forwards + sample.drafts, len(sample.steps)
    if sample.end_step >= count or (tokens and max(sample.steps) >= count):
        return f"'steps' and 'end_step' must be below 'forwards' and 'drafts' together, {count}"
    for name in ("ready", "confidence", "pieces"):
        if len(getattr(sample, name)) not in (0, tokens):
            return f"{name!r} must have as many entries as 'steps', {tokens}, or none"
    return ""


@dataclass(frozen=True)
class DecodedRow:
    """What came of decoding one question, before it is graded.

    Attributes:
        outcome: Tokens, forwards and finish reason.
        slots: Columns that were asked for.
        seconds: Wall time of decoding since the question before was finished.
        reference_forwards: Passes of the decode that `strategy=oracle` imitates.
        ready: For every generated column the first step since which its token had been the model's
            unbroken proposal; empty where that was not recorded.

    Examples:
        >>> from dllm_decode.decoding.outcome import Outcome
        >>> DecodedRow(Outcome(finish_reason="error", error="it is too long"), slots=32).seconds
        0.0
    """

    outcome: Outcome
    slots: int
    seconds: float = 0.0
    reference_forwards: int = 0
    ready: Sequence[int] = ()


def sample_of(
    question: Question,
    row: DecodedRow,
    text: str = "",
    correct: bool = False,
    piece: Callable[[int], str] | None = None,
    strict: bool | None = None,
    commits: bool = True,
) -> Sample:
    """What one decoded row counts as.

    Args:
        question: What was asked.
        row: What came of it.
        text: The answer that is delivered.
        correct: What the grader said of it.
        piece: The text of a token id; None leaves `Sample.pieces` empty.
        strict: See `Sample`.
        commits: The same.
    """
    outcome = row.outcome
    end = outcome.end
    found = [place for place in outcome.delivered_places if outcome.step_of[place] >= 0]
    return Sample(
        problem=question.key,
        family=question.family,
        prompt=question.prompt,
        text=text,
        correct=correct,
        forwards=outcome.forwards,
        slots=row.slots,
        steps=tuple(outcome.step_of[place] for place in found),
        ready=tuple(row.ready[place] for place in found) if row.ready else (),
        confidence=_shares(outcome, found),
        pieces=tuple(piece(outcome.tokens[place]) for place in found) if piece else (),
        end_step=outcome.step_of[end] if end < len(outcome.tokens) else -1,
        spent=sum(step >= 0 for step in outcome.step_of[end + 1 :]),
        seconds=row.seconds,
        finish_reason=outcome.finish_reason,
        tokens=outcome.tokens,
        reference_forwards=row.reference_forwards,
        error=outcome.error,
        passes=outcome.passes or outcome.forwards,
        strict=strict,
        commits=commits,
        **{name: getattr(outcome, name) for name in _COUNTS},
    )


def _shares(outcome: Outcome, places: Sequence[int]) -> tuple[float, ...]:
    """Confidences to five digits, which keeps `samples.jsonl` small."""
    if not outcome.confidence_of:
        return ()
    return tuple(round(outcome.confidence_of[place], 5) for place in places)


@dataclass(frozen=True)
class Metric:
    """One figure of a run.

    Attributes:
        name: Key in results and tables.
        unit: For people.
        definition: One sentence for people.
        of: Computes it from samples.
        interval: The same with a confidence interval, where there is one.

    Examples:
        >>> Metric("answers", "", "How many there are.", lambda samples: float(len(samples))).of([])
        0.0
    """

    name: str
    unit: str
    definition: str
    of: Callable[[Sequence[Sample]], float]
    interval: Callable[[Sequence[Sample]], Interval] | None = None


def accuracy(samples: Sequence[Sample]) -> Interval:
    """Share of problems that the grader accepts, with Wilson's interval."""
    return wilson(int(total(samples, "correct")), len(samples))


def accuracy_strict(samples: Sequence[Sample]) -> float:
    """Share of problems whose answer is right and in the form that was asked for."""
    return _mean_of(samples, "correct_strictly")


def tokens_per_forward(samples: Sequence[Sample]) -> Interval:
    """Delivered tokens of all problems over forwards of all problems, with a bootstrap interval."""
    some = decoded(samples)
    return _ratio_of(some.numbers("delivered"), some.numbers("forwards"))


def slots_per_forward(samples: Sequence[Sample]) -> float:
    """Requested columns over forwards: counts padding, as ParallelBench's "tokens per step"."""
    some = decoded(samples)
    return _ratio(total(some, "slots"), total(some, "forwards"))


def mean_of_ratios(samples: Sequence[Sample]) -> float:
    """Average over problems of delivered tokens per forward; each problem counts alike."""
    return _mean([_ratio(s.delivered, s.forwards) for s in decoded(samples)])


def forwards_per_problem(samples: Sequence[Sample]) -> Interval:
    """Mean forwards of a problem, with a bootstrap interval."""
    some = decoded(samples)
    return _ratio_of(some.numbers("forwards"), np.ones(len(some)))


def tokens_per_second(samples: Sequence[Sample]) -> float:
    """Delivered tokens over wall time of decoding."""
    samples = decoded(samples)
    return _ratio(total(samples, "delivered"), total(samples, "seconds"))


def seconds_per_problem(samples: Sequence[Sample]) -> float:
    """Wall time of decoding over problems."""
    return _mean_decoded(samples, "seconds")


def wasted_forwards(samples: Sequence[Sample]) -> float:
    """Mean passes of a problem that decided neither a delivered token nor its end of text."""
    return _mean_decoded(samples, "wasted")


def effective_token_ratio(samples: Sequence[Sample]) -> float:
    """Delivered tokens over requested columns."""
    some = decoded(samples)
    return _ratio(total(some, "delivered"), total(some, "slots"))


def decoding_order(samples: Sequence[Sample]) -> float:
    """Kendall's tau between position and step of delivered tokens, averaged over problems.

    Problems decoded in one step do not count.

    Returns:
        A number in [-1, 1], which is 1 from left to right, 0 without an order, and -1 from right to
        left; NaN where no problem counts.
    """
    taus = gathered(samples).each("order", lambda all_: orders(all_.column("steps")))
    return _mean([tau for tau in taus if not math.isnan(tau)])


def running_per_step(samples: Sequence[Sample]) -> list[int]:
    """How many problems are still running in step 0, 1, ...; drafts are steps as well."""
    some = gathered(samples)
    steps = some.numbers("forwards") + some.numbers("drafts")
    ended = np.bincount(steps.astype(np.intp))
    running: list[int] = (len(some) - np.cumsum(ended)[:-1]).tolist()
    return running


def commits_per_step(samples: Sequence[Sample]) -> list[float]:
    """Mean commits of delivered tokens in step 0, 1, ... over the problems still running then."""
    running = running_per_step(samples)
    commits = np.bincount(gathered(samples).entries("steps"), minlength=len(running))
    return [_ratio(count, rows) for count, rows in zip(commits.tolist(), running, strict=True)]


def temporal_redundancy(samples: Sequence[Sample], steps: int = 1) -> float:
    """Share of delivered tokens proposed, unbroken, at least `steps` steps before their commit.

    Args:
        samples: Of a run.
        steps: How long before, 1 or more.

    Returns:
        The share in [0, 1], NaN where the run did not record proposals.
    """
    some = gathered(samples)
    early = some.each(f"proposed {steps} steps before", lambda all_: _early(all_, steps))
    known = some.each("proposals", lambda all_: _lengths(all_.column("ready")))
    return _ratio(int(early.sum()), int(known.sum()))


def _early(samples: Samples, steps: int) -> NDArray[np.intp]:
    """How many tokens of each sample had been proposed so many steps before their commit."""
    known = _lengths(samples.column("ready"))
    committed = samples.entries("steps")[np.repeat(known > 0, _lengths(samples.column("steps")))]
    early = np.concatenate([[0], np.cumsum(committed - samples.entries("ready") >= steps)])
    return np.diff(early[np.cumsum(known)], prepend=0)


def _lengths(lists: Sequence[Sequence[int]]) -> NDArray[np.intp]:
    return np.array(list(map(len, lists)), dtype=np.intp)


@dataclass(frozen=True)
class Bin:
    """Tokens of similar confidence.

    Attributes:
        confidence: Their mean.
        right: Share of them that are right.
        count: How many.

    Examples:
        >>> Bin(confidence=0.93, right=0.91, count=120).right
        0.91
    """

    confidence: float
    right: float
    count: int


def calibration(tokens: Sequence[tuple[float, bool]], bins: int = 10) -> list[Bin]:
    """How often tokens committed with a confidence are right, in bins of equal width over 0..1.

    Args:
        tokens: (confidence at commit, whether the token is right) of each.
        bins: How many, 1 or more; empty ones are left out.

    Raises:
        ConfigError: A confidence is outside of [0, 1].
    """
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for confidence, right in tokens:
        if not 0 <= confidence <= 1:
            raise ConfigError(f"a confidence must be in [0, 1], got {confidence}")
        members[min(bins - 1, int(confidence * bins))].append((confidence, right))
    return [
        Bin(_mean([c for c, _ in found]), _mean([float(r) for _, r in found]), len(found))
        for found in members
        if found
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: |confidence - share of right tokens|, averaged over tokens."""
    total = sum(entry.count for entry in bins)
    return _ratio(sum(e.count * abs(e.confidence - e.right) for e in bins), total)


def _mean_decoded(samples: Sequence[Sample], name: str) -> float:
    """The mean of an attribute of the samples that have an answer."""
    return _mean_of(decoded(samples), name)


def _mean_of(samples: Sequence[Sample], name: str) -> float:
    """The mean of an attribute of samples."""
    return _ratio(total(samples, name), len(samples))


METRICS: tuple[Metric, ...] = (
    Metric(
        "accuracy",
        "share of problems",
        "problems whose answer the grader accepts, over all problems; 95 % interval: Wilson",
        lambda samples: accuracy(samples).value,
        accuracy,
    ),
    Metric(
        "accuracy_strict",
        "share of problems",
        "problems whose answer is right and in the form that was asked for; the same as accuracy "
        "where a family has one form",
        accuracy_strict,
    ),
    Metric(
        "forwards",
        "passes per problem",
        "model passes the row took part in, all counted (guidance, refresh, probes, filters), "
        "averaged over problems; 95 % interval: bootstrap over problems",
        lambda samples: forwards_per_problem(samples).value,
        forwards_per_problem,
    ),
    Metric(
        "tokens_per_forward",
        "tokens per pass",
        "delivered tokens of all problems (before the first end of text, tokens given in advance "
        "left out) over forwards of all problems; 95 % interval: bootstrap over problems",
        lambda samples: tokens_per_forward(samples).value,
        tokens_per_forward,
    ),
    Metric(
        "mean_tokens_per_forward",
        "tokens per pass",
        "delivered tokens over forwards of one problem, averaged over problems",
        mean_of_ratios,
    ),
    Metric(
        "slots_per_forward",
        "columns per pass",
        "requested columns of all problems over forwards of all problems: counts padding, and is "
        "what ParallelBench calls tokens per step",
        slots_per_forward,
    ),
    Metric(
        "tokens_per_second",
        "tokens per second",
        "delivered tokens over wall time of decoding (device synchronised; loading, tokenizing, "
        "grading and one warm-up batch left out)",
        tokens_per_second,
    ),
    Metric(
        "seconds_per_problem",
        "seconds",
        "wall time of decoding (as above) over problems, at the batch size of the run",
        seconds_per_problem,
    ),
    Metric(
        "wasted_forwards",
        "passes per problem",
        "passes that decided neither a delivered token nor its end of text, averaged over problems",
        wasted_forwards,
    ),
    Metric(
        "effective_token_ratio",
        "share of columns",
        "delivered tokens over requested columns",
        effective_token_ratio,
    ),
    Metric(
        "passes",
        "passes per problem",
        "model passes one after the other, averaged over problems: alternatives that a strategy "
        "probes at once are one pass here, and one forward each above",
        lambda samples: _mean_decoded(samples, "passes"),
    ),
    *(
        Metric(name, unit, f"{words}, averaged over problems", partial(_mean_decoded, name=name))
        for name, unit, words in (
            ("probes", "passes per problem", "forwards over other tokens that the strategy probed"),
            ("drafts", "calls per problem", "calls of a drafter, which are no passes"),
            ("edits", "tokens per problem", "settled tokens that were written over"),
            ("remasks", "columns per problem", "settled columns that were opened again"),
            (
                "not_granted",
                "tokens per problem",
                "edits and re-masks asked for that the progress rule did not allow",
            ),
        )
    ),
    Metric(
        "decoding_order",
        "Kendall's tau-b",
        "rank correlation of position and step of the delivered tokens, averaged over problems: 1 "
        "is left to right, 0 no order, -1 right to left",
        decoding_order,
    ),
    Metric(
        "temporal_redundancy",
        "share of tokens",
        "delivered tokens that had been the model's unbroken proposal for at least one step before "
        "they were committed",
        temporal_redundancy,
    ),
)


def in_order(samples: Sequence[Sample]) -> list[Sample]:
    """By problem: intervals draw by place, and answers arrive in another order in every run."""
    return sorted(samples, key=attrgetter("problem"))


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """All metrics of a run by name, with `low` and `high` where there is an interval.

    Raises:
        ConfigError: There are no samples.
    """
    if not samples:
        raise ConfigError("metrics need at least one problem, got none")
    samples = Samples(in_order(samples))
    figures: dict[str, Any] = {"problems": len(samples)}
    for metric in METRICS:
        if metric.interval is None:
            figures[metric.name] = metric.of(samples)
        else:
            figures[metric.name] = asdict(metric.interval(samples))
    reasons = samples.column("finish_reason")
    figures["finish_reasons"] = {name: reasons.count(name) for name in sorted(set(reasons))}
    return figures


def definitions() -> list[tuple[str, str, str]]:
    """(name, unit, definition) of every metric, for printing."""
    return [(metric.name, metric.unit, metric.definition) for metric in METRICS]


@dataclass(frozen=True)
class Speedup:
    """Against the sequential run of the same settings on the same problems.

    Attributes:
        forwards: Passes of the sequential run over passes of this one.
        wall_time: Seconds likewise.
        tokens: Delivered tokens of this run over those of the sequential one.
        padding: Share of the saved passes that decided nothing but padding in the sequential run,
            0 if none were saved.
        useful: Speedup in forwards, such passes of either run left out; NaN, as the share, where a
            run has others that decided nothing (`Sample.commits`): probes are cost, and no padding.

    Examples:
        >>> Speedup(forwards=4.0, wall_time=3.1, tokens=4.0, padding=1.0, useful=4.0).forwards
        4.0
    """

    forwards: float
    wall_time: float
    tokens: float
    padding: float
    useful: float


def speedup(samples: Sequence[Sample], sequential: Sequence[Sample]) -> Speedup:
    """How much faster a run was than the sequential one.

    Args:
        samples: Of the run.
        sequential: Of the sequential run.

    Raises:
        ConfigError: The two runs are not of the same problems.
    """
    if not same_problems(samples, sequential):
        raise ConfigError("a speedup compares runs on the same problems; these two differ in them")
    slow, fast = (partial(total, run) for run in _decoded_in_both(sequential, samples))
    before, after = slow("forwards"), fast("forwards")
    idle_before, idle_after = slow("padding"), fast("padding")
    wasted = idle_before - idle_after
    padding = 0.0
    if before > after:  # a share of what was saved; NaN where nobody knows
        padding = wasted if math.isnan(wasted) else max(0.0, wasted / (before - after))
    return Speedup(
        forwards=_ratio(before, after),
        wall_time=_ratio(slow("seconds"), fast("seconds")),
        tokens=_ratio(fast("delivered"), slow("delivered")),
        padding=min(padding, 1.0),
        useful=_ratio(before - idle_before, after - idle_after),
    )


def _decoded_in_both(first: Sequence[Sample], second: Sequence[Sample]) -> list[Samples]:
    """The samples of two runs on the same problems, without the problems that failed in either."""
    runs = [gathered(first), gathered(second)]
    columns = [(run.column("problem"), run.column("error")) for run in runs]
    failed = {problem for pair in columns for problem, why in zip(*pair, strict=True) if why}
    if not failed:
        return runs
    return [
        run.part([at for at, problem in enumerate(run.column("problem")) if problem not in failed])
        for run in runs
    ]


def headroom(samples: Sequence[Sample], oracle: Sequence[Sample]) -> float:
    """Share of the oracle's tokens per forward that a run reaches; above 1 is possible.

    Args:
        samples: Of the run.
        oracle: Of the run of `strategy=oracle`.

    Raises:
        ConfigError: The two runs are not of the same problems.
    """
    if not same_problems(samples, oracle):
        raise ConfigError("headroom compares runs on the same problems; these two differ in them")
    samples, oracle = _decoded_in_both(samples, oracle)
    return _speed(samples) / _speed(oracle) if total(oracle, "delivered") else math.nan


def per_sample_oracle(runs: Sequence[Sequence[Sample]]) -> list[Sample]:
    """For each problem the sample with the fewest forwards among the right ones.

    Where no run is right, the fewest forwards of all. What a rule could gain that knew the best
    setting of every problem.

    Source: ParallelBench, arXiv 2510.04767.

    Args:
        runs: Samples of each run.

    Raises:
        ConfigError: The runs are not of the same problems, or there are none.
    """
    if not runs or any({s.problem for s in run} != {s.problem for s in runs[0]} for run in runs):
        raise ConfigError("an oracle of single samples needs runs on the same problems")
    best: dict[str, Sample] = {}
    for sample in (sample for run in runs for sample in run):
        known = best.get(sample.problem)
        if known is None or _rank(sample) < _rank(known):
            best[sample.problem] = sample
    return list(best.values())


def _rank(sample: Sample) -> tuple[bool, int]:
    return not sample.correct, sample.forwards


def _speed(samples: Sequence[Sample]) -> float:
    """Tokens per forward without the interval, which takes a bootstrap."""
    return _ratio(total(samples, "delivered"), total(samples, "forwards"))


def _ratio_of(top: NDArray[Any], bottom: NDArray[Any]) -> Interval:
    """A ratio of sums with a bootstrap interval; NaN of nothing."""
    return bootstrap_ratio(top, bottom) if len(top) else Interval(math.nan, math.nan, math.nan)


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
