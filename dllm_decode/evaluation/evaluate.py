"""Decoding and grading questions with one decoder, sample by sample as they finish."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch

from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.observer import Observer
from dllm_decode.decoding.outcome import Outcome, Result
from dllm_decode.decoding.strategy import EveryStep
from dllm_decode.decoding.types import Change, Request, Snapshot, Vocab
from dllm_decode.decoding.voting import Voting
from dllm_decode.errors import ConfigError, require_choice
from dllm_decode.evaluation.data import Question
from dllm_decode.evaluation.metrics import DecodedRow, Sample, sample_of
from dllm_decode.models.loaded import Tokenizer
from dllm_decode.problems import GAP
from dllm_decode.problems.grading import answer_in

log = logging.getLogger(__name__)

TEMPLATES = ("auto", "chat", "plain")
Reference = tuple[Sequence[Sequence[int]], Sequence[int]]


def encode(tokenizer: Tokenizer, question: Question, template: str = "auto") -> tuple[int, ...]:
    """Token ids of a question with its earlier turns.

    Args:
        tokenizer: Of the model.
        question: What is asked.
        template: `chat` (the checkpoint's template, turns as user and assistant), `plain`
            (question, newline, answer, blank line, ..., question, newline; a lone question stands
            as it is), `auto` (chat where the checkpoint has one).
    """
    if template_of(tokenizer, template) == "plain":
        turns = "".join(f"{asked}\n{answer}\n\n" for asked, answer in question.shots)
        return tuple(tokenizer.encode(f"{turns}{question.prompt}" + ("\n" if turns else "")))
    messages = [
        {"role": role, "content": text}
        for turn in (*question.shots, (question.prompt,))
        for role, text in zip(("user", "assistant"), turn, strict=False)
    ]
    return tuple(tokenizer.encode_chat(messages))


def template_of(tokenizer: Tokenizer, template: str) -> str:
    """`chat` or `plain`: what a template comes to with a tokenizer; see `encode`.

    Args:
        tokenizer: Which may have a chat template.
        template: `auto`, `chat` or `plain`.
    """
    require_choice("task.template", template, TEMPLATES)
    if template != "auto":
        return template
    return "chat" if tokenizer.has_chat_template else "plain"


def infilling(
    tokenizer: Tokenizer, vocab: Vocab, question: Question
) -> tuple[int, dict[int, int] | None]:
    """Columns of a question, and the tokens its form fixes, by column, None without a form.

    All columns behind the last gap hold the end of text, where the model has one.

    Args:
        tokenizer: Of the model.
        vocab: Its special ids.
        question: With a form or without one.

    Raises:
        ConfigError: The answer does not fit into the gaps, one token each, or the form is longer
            than what is to be written.
    """
    if not question.form:
        return question.max_new_tokens, None
    ids: list[int] = []
    for number, piece in enumerate(question.form.split(GAP)):
        ids += [vocab.mask_id] if number else []
        ids += tokenizer.encode(piece, framed=False) if piece else []
    answer = tokenizer.encode(f" {question.label}", framed=False)
    pairs = zip(ids, answer, strict=False)
    if len(ids) != len(answer) or any(own not in (vocab.mask_id, token) for own, token in pairs):
        raise ConfigError(
            "task.problems.infill needs a model whose tokenizer makes one token of every word; "
            f"{question.label!r} has {len(answer)} tokens and its form {len(ids)}"
        )
    if len(ids) > question.max_new_tokens:
        raise ConfigError(
            f"max_new_tokens must be at least {len(ids)}, which the form of problem "
            f"{question.key} takes, got {question.max_new_tokens}"
        )
    ids += vocab.eot_ids[:1] * (question.max_new_tokens - len(ids))
    return len(ids), {place: token for place, token in enumerate(ids) if token != vocab.mask_id}


class Proposals(Observer):
    """Notes since which step each token has been proposed without a break.

    Args:
        lengths: Generated columns of each row of the request.

    Examples:
        >>> Proposals(lengths=[4]).of(row=0, length=0)
        []
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._token = torch.full((len(lengths), max(lengths)), -1)
        self._since = torch.full((len(lengths), max(lengths)), -1)

    def step(self, change: Change, snapshot: Snapshot) -> None:
        """Compare this step's proposals with those before."""
        slots = change.index >= 0
        # what an earlier step committed keeps its note
        columns = snapshot.start + change.index.clamp(min=0)
        slots &= change.commit | ~snapshot.decided.gather(1, columns)
        at = change.rows[:, None].expand_as(slots)[slots].cpu(), change.index[slots].cpu()
        self._token[change.rows[change.step == 0].cpu()] = -1  # a row that starts again
        new = change.tokens[slots].cpu()
        steps = change.step[:, None].expand_as(slots)[slots].cpu()
        self._since[at] = torch.where(self._token[at] == new, self._since[at], steps)
        self._token[at] = new

    def of(self, row: int, length: int) -> list[int]:
        """Since which step the token of each of a row's first columns has been proposed.

        Args:
            row: Of the request.
            length: How many columns.

        Returns:
            A step per column, -1 where nothing was proposed.
        """
        steps: list[int] = self._since[row, :length].tolist()
        return steps


@dataclass(frozen=True)
class Evaluation:
    """Answers questions with a decoder.

    Attributes:
        decoder: The parts.
        tokenizer: Of its model.
        reference: What strategies that need a reference imitate: from a request and the keys of its
            questions the tokens and the forwards they took, per row. None: such strategies are
            refused by the loop.
        template: See `encode`.
        max_batch: See `Engine`, as are `max_tokens_in_flight` and `batching`.
        seed: Question i is decoded with seed + i.
        voting: How many decodes of a question vote for its answer, and how.
        answer: What of a text is compared then; `auto` is what the question's grader reads.
        clock: Seconds, for tests.

    Examples:
        >>> from dllm_decode.evaluation.data import Question
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> from dllm_decode.decoding.loop import Decoder
        >>> world = Copy(n=3)
        >>> question = Question("q/0", "copy", "abc>", "abc", 4, lambda text: text == "abc")
        >>> [sample] = Evaluation(Decoder(world, TopK(2)), world.tokenizer).samples([question])
        >>> sample.text, sample.correct, sample.forwards
        ('abc', True, 2)
    """

    decoder: Decoder
    tokenizer: Tokenizer
    reference: Callable[[Request, Sequence[str]], Reference] | None = None
    template: str = "auto"
    max_batch: int = 16
    max_tokens_in_flight: int | None = None
    batching: str = "continuous"
    seed: int = 0
    voting: Voting = field(default_factory=lambda: Voting(1))
    answer: str = "auto"
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)

    def samples(
        self, questions: Sequence[Question], done: frozenset[str] = frozenset()
    ) -> Iterator[Sample]:
        """Grade every question not yet done, family by family, in the order in which they finish.

        Questions that cannot be decoded come first, as samples with an error.

        Args:
            questions: All of them, also those that are done: a question keeps its seed whatever is
                left out.
            done: Keys of questions to leave out.

        Raises:
            ConfigError: Where not a single question can be decoded.
        """
        faults = {question.key: self.fault_in(question) for question in questions}
        if all(faults.values()):
            raise ConfigError(next(iter(faults.values())))
        for question in questions:
            if faults[question.key] and question.key not in done:
                yield self._refused(question, faults[question.key])
        families = list(dict.fromkeys(question.family for question in questions))
        for family in families:
            chosen = [
                (place, question)
                for place, question in enumerate(questions)
                if question.family == family
                and question.key not in done
                and not faults[question.key]
            ]
            if chosen:
                yield from self._of_family(chosen)

    def warm_up(self, questions: Sequence[Question]) -> None:
        """Decode the first question and drop the result, so that no timing holds first calls."""
        first = next((question for question in questions if not self.fault_in(question)), None)
        if first is not None:
            request = self.request([(0, first)])
            Engine(self.decoder, 1).decode(self._with_reference(request, [first.key])[0])

    def fault_in(self, question: Question) -> str:
        """Why a question cannot be decoded, with its source; "" where it can."""
        if question.refused:
            return question.refused
        try:
            request = self.request([(0, question)])
        except ConfigError as error:
            return _with_source(question, str(error))
        prompt, columns = len(request.prompts[0]), request.lengths[0]
        limit = self.decoder.denoiser.max_length
        if limit is None or prompt + columns <= limit:
            return ""
        return (
            f"{question.source or question.key} has {prompt} tokens; with "
            f"max_new_tokens={columns} that is more than the {limit} positions of the model"
        )

    def _refused(self, question: Question, fault: str) -> Sample:
        log.warning("%s is not decoded: %s", question.key, fault)
        outcome = Outcome(finish_reason="error", error=fault)
        return sample_of(question, DecodedRow(outcome, question.max_new_tokens))

    def _of_family(self, chosen: Sequence[tuple[int, Question]]) -> Iterator[Sample]:
        request, reference_forwards = self._with_reference(
            self.request(chosen), [question.key for _, question in chosen]
        )
        if self.voting.n > 1:
            yield from self._voted(chosen, request, reference_forwards)
            return
        proposals = Proposals(request.lengths)
        imitates = any(part.needs_reference for _, part in self.decoder.strategy.parts())
        observers = self.decoder.observers if imitates else (*self.decoder.observers, proposals)
        engine = Engine(
            replace(self.decoder, observers=observers),
            self.max_batch,
            self.max_tokens_in_flight,
            self.batching,
        )
        for row, outcome, seconds in self._timed(engine, request):
            ready = [] if imitates else proposals.of(row, len(outcome.tokens))
            decoded = DecodedRow(
                outcome, request.lengths[row], seconds, reference_forwards[row], ready
            )
            yield self._graded(chosen[row][1], decoded)

    def _voted(
        self,
        chosen: Sequence[tuple[int, Question]],
        request: Request,
        reference_forwards: Sequence[int],
    ) -> Iterator[Sample]:
        """Every question with the answer that most of its decodes give, a batch at a time."""

        def run(decoder: Decoder, rows: Request) -> Result:
            engine = Engine(decoder, self.max_batch, self.max_tokens_in_flight, self.batching)
            return engine.decode(rows)

        for begin in range(0, len(chosen), self.max_batch):
            places = range(begin, min(begin + self.max_batch, len(chosen)))
            # the questions of a batch share their form of answer, because they are of one family
            asked = chosen[begin][1]
            started = self._now()
            winners = self.voting.decode(
                self.decoder, request.take(places), run, partial(self._answer, asked)
            )
            seconds = (self._now() - started) / len(places)
            for place, outcome in zip(places, winners, strict=True):
                decoded = DecodedRow(
                    outcome, request.lengths[place], seconds, reference_forwards[place]
                )
                yield self._graded(chosen[place][1], decoded)

    def _answer(self, question: Question, outcome: Outcome) -> Hashable | None:
        """What an outcome votes for."""
        text = question.cut(self.tokenizer.decode(list(outcome.delivered)))
        return answer_in(text, question.answer if self.answer == "auto" else self.answer)

    def request(self, chosen: Sequence[tuple[int, Question]]) -> Request:
        """What is decoded for some questions.

        Args:
            chosen: (number, question) of each; the number counts for the seed.
        """
        vocab = self.decoder.denoiser.vocab
        canvases = [infilling(self.tokenizer, vocab, q) for _, q in chosen]
        return Request(
            prompts=tuple(encode(self.tokenizer, q, self.template) for _, q in chosen),
            max_new_tokens=tuple(columns for columns, _ in canvases),
            seeds=tuple(self.seed + place for place, _ in chosen),
            fixed=tuple(fixed for _, fixed in canvases),
        )

    def _with_reference(
        self, request: Request, keys: Sequence[str]
    ) -> tuple[Request, tuple[int, ...]]:
        needed = any(part.needs_reference for _, part in self.decoder.strategy.parts())
        if not needed or self.reference is None:
            return request, (0,) * request.rows
        tokens, forwards = self.reference(request, keys)
        return replace(request, reference=tuple(tokens)), tuple(forwards)

    def _timed(self, engine: Engine, request: Request) -> Iterator[tuple[int, Outcome, float]]:
        """Rows as they finish, with the decoding time since the one before."""
        stream = engine.stream(request)
        while True:
            begin = self._now()
            news = next(stream, None)
            if news is None:
                return
            yield (*news, self._now() - begin)

    def _now(self) -> float:
        if self.decoder.denoiser.device.type == "cuda":
            torch.cuda.synchronize(self.decoder.denoiser.device)
        return self.clock()

    def _graded(self, question: Question, row: DecodedRow) -> Sample:
        text, correct, strict, outcome = "", False, None, row.outcome
        if outcome.error:
            outcome = replace(outcome, error=_with_source(question, outcome.error))
        else:
            text = question.cut(self.tokenizer.decode(list(outcome.delivered)))
            try:
                correct = question.grade(text)
                if question.grade_strictly is not None:
                    strict = correct and question.grade_strictly(text)
            except Exception as error:  # a grader that stumbles over one text costs that one only
                fault = f"the answer cannot be graded: {type(error).__name__}: {error}"
                outcome = replace(outcome, error=_with_source(question, fault))
        row = replace(row, outcome=outcome)
        return sample_of(
            question,
            row,
            text,
            correct,
            lambda token: self.tokenizer.decode([token]),
            strict,
            self._commits,
        )

    @cached_property
    def _commits(self) -> bool:
        """See `Sample.commits`."""
        decoder = self.decoder
        every = isinstance(decoder.strategy.progress, EveryStep)
        return every and decoder.able.passes_per_call == 1 and self.voting.n == 1


def _with_source(question: Question, fault: str) -> str:
    return f"{question.source or question.key}: {fault}"


def check_questions(questions: Sequence[Question]) -> None:
    """Refuse an evaluation of nothing, or of problems that cannot be told apart."""
    if not questions:
        raise ConfigError("an evaluation needs at least one problem, got none")
    twice = [key for key, times in Counter(q.key for q in questions).items() if times > 1]
    if twice:
        raise ConfigError(f"two problems have the key {twice[0]!r}; keys must be unique")
