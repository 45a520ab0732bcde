"""Problems for an evaluation: the bundled families, and JSONL files in published formats."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dllm_decode.errors import ConfigError, require, require_choice, require_count
from dllm_decode.models.stop_texts import cut
from dllm_decode.problems import Variant, distinct_problems, families_of, grading, sentences
from dllm_decode.problems.instructed import WordsToSentence, worked_example
from dllm_decode.problems.sentences import grammar_faults

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """One problem as an evaluation sees it.

    Attributes:
        key: Unique within a run.
        family: Family or data set.
        prompt: The question.
        label: The published answer, for people.
        max_new_tokens: Columns to decode, at least 1.
        grade: Whether a text answers it.
        shots: Earlier (question, answer) turns.
        stops: Texts that end an answer.
        form: For infilling, the answer with a gap for every token that is to be found; "" for none.
        source: Where it stands, e.g. "test.jsonl, line 3"; "" for problems that are drawn.
        refused: Why it cannot be asked, with its source; "" where it can. A refused question has
            neither prompt nor label and no answer is right.
        answer: What of a text its grader reads, for votes; see `problems.grading.answer_in`.
        grade_strictly: The same for the one form that was asked for; None: `grade` knows one form.
        free: Whether an answer is free text, whose grammar can be graded as well.

    Examples:
        >>> question = Question("q/0", "sums", "1 + 1?", "2", 8, "2".__eq__, stops=(";",))
        >>> question.cut("2; and more")
        '2'
    """

    key: str
    family: str
    prompt: str
    label: str
    max_new_tokens: int
    grade: Callable[[str], bool]
    shots: tuple[tuple[str, str], ...] = ()
    stops: tuple[str, ...] = ()
    form: str = ""
    source: str = ""
    refused: str = ""
    answer: str = "text"
    grade_strictly: Callable[[str], bool] | None = None
    free: bool = False

    def cut(self, text: str) -> str:
        """The text up to the first stop text."""
        return cut(text, self.stops)


@dataclass(frozen=True)
class Format:
    """A published file format.

    Attributes:
        name: What `task.format` calls it.
        keys: The keys of a record, with the type of each value.
        prompt: The question of a record.
        label: Its published answer.
        check: Raises `ValueError` where a label cannot be right.
        grade: Whether a text answers a record.
        max_new_tokens: Columns for an answer.
        answer: What of a text `grade` reads, see `problems.grading.answer_in`.
        free: Whether an answer is free text, see `Question`.
    """

    name: str
    keys: Mapping[str, type[str]]
    prompt: Callable[[Record], str]
    label: Callable[[Record], str]
    check: Callable[[Record], None]
    grade: Callable[[Record, str], bool]
    max_new_tokens: int
    answer: str = "text"
    free: bool = False


def bundled(
    family: str,
    count: int,
    seed: int = 0,
    split: str = "held_out",
    variant: Variant | None = None,
    style: str = "shorthand",
) -> list[Question]:
    """Problems of a bundled family, drawn anew from a seed.

    Args:
        family: A name of `FAMILIES`.
        count: How many.
        seed: Of the draw.
        split: `held_out` or `train`, see `distinct_problems`.
        variant: Changes to the family, None for none.
        style: `shorthand` of the bundled model, or `instruct`: plain English, with a worked example
            as an earlier turn, except for sentences.

    Raises:
        ConfigError: For names that are no family of this style.
    """
    kinds = families_of(style)
    kind = kinds.get(family)
    require(kind is not None, f"task.families must be names of {', '.join(kinds)}; got {family!r}")
    assert kind is not None
    variant = variant or Variant()
    kind = variant.of(kind)
    free = isinstance(kind, WordsToSentence)  # where an example would be copied
    return [
        Question(
            key=f"{kind.name}/{split}/{seed}/{number}",
            family=kind.name,
            prompt=problem.prompt,
            label=problem.answer,
            max_new_tokens=kind.canvas,
            grade=partial(kind.grade, problem),
            form=(kind.form(problem) or "") if variant.infill else problem.form,
            shots=() if style != "instruct" or free else (worked_example(kind),),
            grade_strictly=partial(kind.grade_strictly, problem) if style == "instruct" else None,
            free=free,
        )
        for number, problem in enumerate(distinct_problems(kind, split, count, seed))
    ]


def grammatical(questions: Sequence[Question], server: str) -> list[Question]:
    """The questions, those with free answers graded by a LanguageTool server as well.

    Args:
        questions: Of an evaluation.
        server: Its address, which is tried at once.

    Raises:
        ConfigError: There is no server, or no question whose grammar can be graded.
    """
    if not any(question.free for question in questions):
        raise ConfigError(
            "task.language_tool grades the grammar of sentences, summaries and paraphrases; none "
            "of the problems asks for such text"
        )
    grammar_faults("This is a sentence.", server)

    def both(grade: Callable[[str], bool] | None, text: str) -> bool:
        return grade is not None and grade(text) and grammar_faults(text, server) == 0

    return [
        replace(
            question,
            grade=partial(both, question.grade),
            grade_strictly=question.grade_strictly and partial(both, question.grade_strictly),
        )
        if question.free
        else question
        for question in questions
    ]


def from_file(
    path: str | Path,
    format: str | None = None,
    *,
    count: int | None = None,
    shots: Sequence[tuple[str, str]] = (),
) -> list[Question]:
    """Problems of a file in a published format.

    A line that holds no problem (not JSON, a key missing or of another type, a label that cannot
    be right) costs itself only: its question is there and `Question.refused` says what is wrong.

    Args:
        path: JSON lines or one JSON array of objects, also gzip-compressed.
        format: A key of `FORMATS`; None: told from the keys of the first line that fits one.
        count: Only the first so many lines.
        shots: Earlier turns put before every question.

    Returns:
        One question per line, in the order of the file.

    Raises:
        ConfigError: Naming the file, where it cannot be read, is empty or has not a single good
            line (with what is wrong in the first), and for formats whose grading would run
            generated code.
    """
    path = Path(path)
    entries = read_entries(path)
    kind = _recognise(entries, path) if format is None else format_named(format)
    if count is not None:
        require_count("task.count", count)
        entries = entries[:count]
    questions = [_question(entry.checked(kind), kind, tuple(shots)) for entry in entries]
    if all(question.refused for question in questions):
        raise ConfigError(f"task.data: {questions[0].refused}")
    return questions


def shots_from_file(
    path: str | Path, count: int, format: str | None = None
) -> list[tuple[str, str]]:
    """The first records of a file as (question, published answer) turns.

    Args:
        path: See `from_file`.
        count: How many, at least 1.
        format: See `from_file`.

    Raises:
        ConfigError: Naming file and line for the first of them that is no example; an evaluation
            with other examples than were asked for would be another one.
    """
    require_count("task.shots", count)
    entries = read_entries(Path(path), "task.shots")
    kind = _recognise(entries, Path(path), "task.shots") if format is None else format_named(format)
    if len(entries) < count:
        raise ConfigError(f"task.shots asks for {count} examples, {path} has {len(entries)}")
    checked = [entry.checked(kind) for entry in entries[:count]]
    for entry in checked:
        if entry.fault:
            raise ConfigError(f"task.shots: {entry.fault}")
    return [(kind.prompt(entry.record), kind.label(entry.record)) for entry in checked]


@dataclass(frozen=True)
class Entry:
    """One line of a file, or one element of a JSON array.

    Attributes:
        number: Of the line or element, from 1.
        source: File and line, for messages.
        record: What it holds; empty where that is no object.
        fault: What is wrong with it, with its source; "" where nothing is.

    Examples:
        >>> Entry(number=3, source="mine.jsonl", record={"prompt": "1 + 1?"}).number
        3
    """

    number: int
    source: str
    record: Record
    fault: str = ""

    def checked(self, kind: Format) -> Entry:
        """This entry with what a format finds wrong in it."""
        if self.fault:
            return self
        fault = _fault_in(self.record, kind)
        return replace(self, fault=fault and f"{self.source} ({kind.name}) {fault}")


def read_entries(path: Path, setting: str = "task.data") -> list[Entry]:
    """All lines of a file that are not blank; broken ones with what is wrong.

    Lines end at a line feed and nowhere else: JSON may hold every other line separator as it is. A
    byte order mark is no part of the first line.

    Args:
        path: JSON lines or one JSON array of objects, also gzip-compressed.
        setting: What named the file, for messages.

    Raises:
        ConfigError: For a file that cannot be read or holds nothing.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{setting}: {path} cannot be read: {why}") from None
    data = data.removeprefix(codecs.BOM_UTF8)
    elements = _array(data)
    if elements is not None:
        found = [
            _entry(number, f"{path}, element {number}", element)
            for number, element in enumerate(elements, start=1)
        ]
    else:
        found = [
            _parsed(number, f"{path}, line {number}", line)
            for number, line in enumerate(data.split(b"\n"), start=1)
            if line.strip()
        ]
    if not found:
        raise ConfigError(f"{setting}: {path} has no problems")
    return found


def _array(data: bytes) -> list[Any] | None:
    """The elements of a file that is one JSON array of objects, None for other files."""
    if not data.lstrip().startswith(b"["):
        return None
    try:
        elements = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return elements if any(isinstance(element, dict) for element in elements) else None


def _parsed(number: int, source: str, line: bytes) -> Entry:
    try:
        return _entry(number, source, json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return Entry(number, source, {}, f"{source} is not UTF-8 text: {error.reason}")
    except ValueError as error:
        return Entry(number, source, {}, f"{source} is not JSON: {error}")
    except RecursionError:
        return Entry(number, source, {}, f"{source} is not JSON that can be read: nested too deep")


def _entry(number: int, source: str, value: Any) -> Entry:
    if isinstance(value, dict):
        return Entry(number, source, value)
    got = type(value).__name__
    return Entry(number, source, {}, f"{source} must be a JSON object, got {got}")


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """(line number, object) of each line; raises `ConfigError` for the first that is none."""
    for entry in read_entries(path):
        if entry.fault:
            raise ConfigError(f"task.data: {entry.fault}")
        yield entry.number, entry.record


def digest(questions: Sequence[Question]) -> str:
    """A hash of what is asked, in order: prompts, labels, turns, canvas lengths and stops."""
    state = hashlib.sha256()
    for q in questions:
        entry = [q.key, q.family, q.prompt, q.label, q.max_new_tokens, q.shots, q.stops]
        # what most questions do not have leaves the hash of those as it was
        extra = [text for text in (q.form, q.refused and "refused") if text]
        state.update(json.dumps([*entry, *extra]).encode())
    return state.hexdigest()


def how_asked(questions: Sequence[Question]) -> dict[str, str]:
    """For each family a hash of how it is asked, whatever the problems: columns, turns, stops."""
    asked: dict[str, set[str]] = {}
    for q in questions:
        entry = json.dumps([q.max_new_tokens, q.shots, q.stops, bool(q.form)])
        asked.setdefault(q.family, set()).add(entry)
    return {
        family: hashlib.sha256("".join(sorted(found)).encode()).hexdigest()[:16]
        for family, found in asked.items()
    }


def format_named(name: str) -> Format:
    """The format of this name; raises `ConfigError` for others."""
    if name in _RUN_CODE:
        raise ConfigError(f"task.format={name}: {GRADED_BY_RUNNING}")
    require_choice("task.format", name, tuple(FORMATS))
    return FORMATS[name]


def _recognise(entries: Sequence[Entry], path: Path, setting: str = "task.data") -> Format:
    """The format that a file is in, told from the keys of the first line that fits any."""
    for entry in entries:
        for kind in FORMATS.values():
            if not entry.fault and not _fault_in(entry.record, kind):
                return kind
    first = entries[0]
    for name, keys in _RUN_CODE.items():
        if keys <= set(first.record):
            raise ConfigError(f"{setting}: {path} has the keys of {name}; {GRADED_BY_RUNNING}")
    if first.fault:
        raise ConfigError(f"{setting}: {first.fault}")
    raise ConfigError(
        f"{setting}: {first.source} has the keys {', '.join(sorted(first.record)) or 'nothing'}, "
        f"which fit none of the formats {', '.join(FORMATS)}; set task.format"
    )


def _fault_in(record: Record, kind: Format) -> str:
    """What keeps a record from being a problem of a format, "" for nothing."""
    for key, type_ in kind.keys.items():
        value = record.get(key)
        if not isinstance(value, type_):
            got = type(value).__name__ if key in record else "nothing"
            return f"needs {key!r} of type {type_.__name__}, got {got}"
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return f"holds half a surrogate pair in {key!r}, which is no text"
        if not value.strip():
            return f"needs {key!r} with some text in it, got {value!r}"
    try:
        kind.check(record)
    except ValueError as error:
        return f"cannot be graded: {error}"
    return ""


def _question(entry: Entry, kind: Format, shots: tuple[tuple[str, str], ...]) -> Question:
    made = Question(
        key=f"{kind.name}/{entry.number}",
        family=kind.name,
        prompt="",
        label="",
        max_new_tokens=kind.max_new_tokens,
        answer=kind.answer,
        free=kind.free,
        grade=_never,
        shots=shots,
        source=entry.source,
        refused=entry.fault,
    )
    if entry.fault:
        return made
    return replace(
        made,
        prompt=kind.prompt(entry.record),
        label=kind.label(entry.record),
        grade=partial(kind.grade, entry.record),
    )


def _never(text: str) -> bool:
    return False


def _needs(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_gsm8k(record: Record) -> None:
    _needs("####" in record["answer"], "the answer has no '####' before its number")
    _needs(grading.last_number(record["answer"]) is not None, "no number in the answer")


def _check_math(record: Record) -> None:
    _needs(bool(grading.normal_latex(record["answer"])), "the answer is empty")


def _math_label(record: Record) -> str:
    solution = record.get("solution")
    return solution if isinstance(solution, str) else str(record["answer"])


def _countdown(record: Record) -> tuple[list[int], int]:
    parts = record["input"].split(",")
    _needs(
        len(parts) >= 3 and all(re.fullmatch(r"\s*[0-9]{1,9}\s*", part) for part in parts),
        f"input must be numbers and the target, separated by commas, got {record['input']!r}",
    )
    *numbers, target = map(int, parts)
    return numbers, target


def _check_countdown(record: Record) -> None:
    numbers, target = _countdown(record)
    _needs(
        grading.is_countdown(record["output"], numbers, target),
        f"output {record['output']!r} does not solve input {record['input']!r}",
    )


def _check_sudoku(record: Record) -> None:
    _needs(
        grading.read_grid(record["input"]) is not None,
        f"input must be four lines of four digits 0 to 4, got {record['input']!r}",
    )
    _needs(
        grading.is_sudoku(record["output"], record["input"]),
        f"output {record['output']!r} does not solve input {record['input']!r}",
    )


def _grade_countdown(record: Record, text: str) -> bool:
    numbers, target = _countdown(record)
    return grading.is_countdown(text, numbers, target)


def _summary_prompt(what: str, record: Record) -> str:
    return (
        f"Summarise the following {what} in one or two sentences.\n\n{record[what]}\n\n"
        "Answer with the summary and nothing else."
    )


def _grade_summary(what: str, record: Record, text: str) -> bool:
    return sentences.is_summary(text, record[what], record["summary"])


# Keys of published files that are graded by executing the answer, which this package does not do.
_RUN_CODE = {
    "humaneval": {"prompt", "test", "entry_point"},
    "mbpp": {"text", "code", "test_list"},
}
GRADED_BY_RUNNING = (
    "such problems are graded by running generated code, which lm-evaluation-harness does "
    "(python -m dllm_decode.lm_eval run --tasks humaneval ..., see docs/evaluate.md)"
)

FORMATS: dict[str, Format] = {
    "gsm8k": Format(
        "gsm8k",
        {"question": str, "answer": str},
        lambda record: record["question"],
        lambda record: record["answer"],
        _check_gsm8k,
        lambda record, text: grading.same_number(text, record["answer"]),
        max_new_tokens=256,
        answer="number",
    ),
    "math500": Format(
        "math500",
        {"problem": str, "answer": str},
        lambda record: f"{record['problem']}\n\nPut your final answer within \\boxed{{}}.",
        _math_label,
        _check_math,
        lambda record, text: grading.same_latex(text, record["answer"]),
        max_new_tokens=512,
        answer="boxed",
    ),
    "countdown": Format(
        "countdown",
        {"input": str, "output": str},
        lambda record: (
            "Combine the numbers with + - * / in steps, each number once, to reach the last "
            f'number. Write the steps like "1+2=3,3*4=12".\n{record["input"]}'
        ),
        lambda record: record["output"],
        _check_countdown,
        _grade_countdown,
        max_new_tokens=64,
    ),
    "sudoku": Format(
        "sudoku",
        {"input": str, "output": str},
        lambda record: (
            "Fill the empty cells (0) of this 4 x 4 sudoku with 1 to 4 and write the four lines.\n"
            f"{record['input']}"
        ),
        lambda record: record["output"],
        _check_sudoku,
        lambda record, text: grading.is_sudoku(text, record["input"]),
        max_new_tokens=64,
    ),
    **{
        name: Format(
            name,
            {what: str, "summary": str},
            partial(_summary_prompt, what),
            lambda record: record["summary"],
            lambda record: None,
            partial(_grade_summary, what),
            max_new_tokens=64,
            free=True,
        )
        for name, what in (("summary", "document"), ("dialogue", "dialogue"))
    },
    "paraphrase": Format(
        "paraphrase",
        {"text": str, "paraphrase": str},
        lambda record: (
            "Say the following in other words.\n\n"
            f"{record['text']}\n\nAnswer with the new text and nothing else."
        ),
        lambda record: record["paraphrase"],
        lambda record: None,
        lambda record, text: sentences.is_paraphrase(text, record["text"]),
        max_new_tokens=64,
        free=True,
    ),
}
