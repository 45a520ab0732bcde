"""Problems for an evaluation: the bundled families, and JSONL files in published formats."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dllm_decode.errors import ConfigError, require, require_choice, require_count
from dllm_decode.evaluation.sandbox import Limits, run_python
from dllm_decode.problems import FAMILIES, Variant, distinct_problems, grading

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """One problem as an evaluation sees it.

    key: unique within a run; task: family or data set; prompt: the question; label: the published
    answer, for people; max_new_tokens: columns to decode; grade: whether a text answers it;
    shots: earlier (question, answer) turns; stops: texts that end an answer; form: for infilling,
    the answer with a gap for every token that is to be found, "" for none.
    """

    key: str
    task: str
    prompt: str
    label: str
    max_new_tokens: int
    grade: Callable[[str], bool]
    shots: tuple[tuple[str, str], ...] = ()
    stops: tuple[str, ...] = ()
    form: str = ""

    def cut(self, text: str) -> str:
        """The text up to the first stop text."""
        ends = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text


@dataclass(frozen=True)
class Format:
    """A published file format.

    keys: with the type of each value; prompt: the question of a record; label: its published
    answer; check: raises `ValueError` where a label cannot be right; grade: (record, text);
    max_new_tokens: columns for an answer; runs_code: grading executes the answer; stops: texts
    that end an answer.
    """

    name: str
    keys: Mapping[str, type]
    prompt: Callable[[Record], str]
    label: Callable[[Record], str]
    check: Callable[[Record], None]
    grade: Callable[[Record, str], bool]
    max_new_tokens: int
    runs_code: bool = False
    stops: tuple[str, ...] = ()


def bundled(
    family: str,
    count: int,
    seed: int = 0,
    split: str = "held_out",
    variant: Variant | None = None,
) -> list[Question]:
    """Problems of a bundled family, drawn anew from a seed; see `problems` and `Variant`."""
    kind = FAMILIES.get(family)
    require(
        kind is not None, f"task.families must be names of {', '.join(FAMILIES)}; got {family!r}"
    )
    assert kind is not None
    variant = variant or Variant()
    kind = variant.of(kind)
    return [
        Question(
            key=f"{kind.name}/{split}/{seed}/{number}",
            task=kind.name,
            prompt=problem.prompt,
            label=problem.answer,
            max_new_tokens=kind.canvas,
            grade=partial(kind.grade, problem),
            form=(kind.form(problem) or "") if variant.infill else problem.form,
        )
        for number, problem in enumerate(distinct_problems(kind, split, count, seed))
    ]


def from_file(
    path: str | Path,
    format: str | None = None,
    *,
    count: int | None = None,
    run_code: bool = False,
    shots: Sequence[tuple[str, str]] = (),
    limits: Limits | None = None,
) -> list[Question]:
    """Problems of a JSONL file (also gzip-compressed).

    path: the file; format: a key of `FORMATS`, None: told from the keys of the first line; count:
    only the first so many; run_code: allow graders that execute answers, see
    `dllm_decode.evaluation.sandbox`; shots: earlier turns put before every question; limits: of
    the execution. Raises `ConfigError` naming file and line for files that are missing, empty or
    malformed, for labels that do not parse, and for code formats without `run_code`.
    """
    path = Path(path)
    records = list(read_records(path))
    if format is None:
        format = _told_from(records[0][1], path)
    require_choice("task.format", format, tuple(FORMATS))
    kind = FORMATS[format]
    if kind.runs_code and not run_code:
        raise ConfigError(
            f"grading {path} ({format}) runs generated code; allow it with task.run_code=true"
        )
    for line, record in records:
        _check(path, line, record, kind)
    if count is not None:
        require_count("task.count", count)
        records = records[:count]
    return [_question(record, line, kind, tuple(shots), limits) for line, record in records]


def shots_from_file(
    path: str | Path, count: int, format: str | None = None
) -> list[tuple[str, str]]:
    """The first `count` records of a file as (question, published answer) turns."""
    require_count("task.shots", count)
    records = list(read_records(Path(path)))
    name = _told_from(records[0][1], Path(path)) if format is None else format
    require_choice("task.format", name, tuple(FORMATS))
    kind = FORMATS[name]
    if len(records) < count:
        raise ConfigError(f"task.shots asks for {count} examples, {path} has {len(records)}")
    for line, record in records[:count]:
        _check(Path(path), line, record, kind)
    return [(kind.prompt(record), kind.label(record)) for _, record in records[:count]]


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line of a JSONL file; blank lines are skipped.

    Raises `ConfigError` for a file that cannot be read, is empty, or has a line that is no object.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"task.data: {path} cannot be read: {error}") from None
    found = False
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"task.data: {path}, line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ConfigError(f"task.data: {path}, line {number} must be a JSON object")
        found = True
        yield number, record
    if not found:
        raise ConfigError(f"task.data: {path} has no problems")


def digest(questions: Sequence[Question]) -> str:
    """A hash of what is asked, in order: prompts, labels, turns, canvas lengths and stops."""
    state = hashlib.sha256()
    for q in questions:
        entry = [q.key, q.task, q.prompt, q.label, q.max_new_tokens, q.shots, q.stops]
        state.update(json.dumps([*entry, q.form] if q.form else entry).encode())
    return state.hexdigest()


def manner(questions: Sequence[Question]) -> dict[str, str]:
    """For each task a hash of how it is asked, whatever the problems: columns, turns, stops."""
    asked: dict[str, set[str]] = {}
    for q in questions:
        entry = json.dumps([q.max_new_tokens, q.shots, q.stops, bool(q.form)])
        asked.setdefault(q.task, set()).add(entry)
    return {
        task: hashlib.sha256("".join(sorted(found)).encode()).hexdigest()[:16]
        for task, found in asked.items()
    }


def _told_from(record: Record, path: Path) -> str:
    for name, kind in FORMATS.items():
        if all(isinstance(record.get(key), type_) for key, type_ in kind.keys.items()):
            try:
                kind.check(record)
            except ValueError:
                continue
            return name
    raise ConfigError(
        f"task.data: the first line of {path} has the keys {', '.join(sorted(record))}, which is "
        f"none of the formats {', '.join(FORMATS)}; set task.format"
    )


def _check(path: Path, line: int, record: Record, kind: Format) -> None:
    where = f"task.data: {path}, line {line} ({kind.name})"
    for key, type_ in kind.keys.items():
        if not isinstance(record.get(key), type_):
            got = type(record[key]).__name__ if key in record else "nothing"
            raise ConfigError(f"{where} needs {key!r} of type {type_.__name__}, got {got}")
    try:
        kind.check(record)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _question(
    record: Record,
    line: int,
    kind: Format,
    shots: tuple[tuple[str, str], ...],
    limits: Limits | None,
) -> Question:
    def grade(text: str) -> bool:
        if kind.runs_code:
            return run_python(program_of(kind.name, record, text), limits).passed
        return kind.grade(record, text)

    return Question(
        key=f"{kind.name}/{record.get('task_id', line)}",
        task=kind.name,
        prompt=kind.prompt(record),
        label=kind.label(record),
        max_new_tokens=kind.max_new_tokens,
        grade=grade,
        shots=shots,
        stops=kind.stops,
    )


def program_of(format: str, record: Record, text: str) -> str:
    """The program whose success grades an answer to a record of a code format."""
    if format == "humaneval":
        return grading.humaneval_program(
            record["prompt"], text, record["test"], record["entry_point"]
        )
    return grading.mbpp_program(text, record["test_setup_code"], record["test_list"])


def _needs(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_gsm8k(record: Record) -> None:
    _needs("####" in record["answer"], "the answer has no '####' before its number")
    _needs(grading.last_number(record["answer"]) is not None, "no number in the answer")


def _check_math(record: Record) -> None:
    _needs(bool(record["answer"].strip()), "the answer is empty")


def _countdown(record: Record) -> tuple[list[int], int]:
    parts = record["input"].split(",")
    _needs(
        len(parts) >= 3 and all(part.strip().isdigit() for part in parts),
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


def _check_humaneval(record: Record) -> None:
    _needs(
        f"def {record['entry_point']}" in record["prompt"],
        f"the prompt does not define {record['entry_point']!r}",
    )


def _check_mbpp(record: Record) -> None:
    tests = record["test_list"]
    _needs(
        bool(tests) and all(isinstance(test, str) for test in tests),
        "test_list must hold at least one test",
    )


def _grade_countdown(record: Record, text: str) -> bool:
    numbers, target = _countdown(record)
    return grading.is_countdown(text, numbers, target)


def _never(record: Record, text: str) -> bool:
    raise ConfigError("a code format is graded by running the program")  # see `program_of`


FORMATS: dict[str, Format] = {
    "gsm8k": Format(
        "gsm8k",
        {"question": str, "answer": str},
        lambda record: record["question"],
        lambda record: record["answer"],
        _check_gsm8k,
        lambda record, text: grading.same_number(text, record["answer"]),
        max_new_tokens=256,
    ),
    "math500": Format(
        "math500",
        {"problem": str, "answer": str},
        lambda record: f"{record['problem']}\n\nPut your final answer within \\boxed{{}}.",
        lambda record: record.get("solution", record["answer"]),
        _check_math,
        lambda record, text: grading.same_latex(text, record["answer"]),
        max_new_tokens=512,
    ),
    "humaneval": Format(
        "humaneval",
        {"prompt": str, "test": str, "entry_point": str},
        lambda record: f"Complete this Python function.\n\n```python\n{record['prompt']}\n```",
        lambda record: record.get("canonical_solution", ""),
        _check_humaneval,
        _never,
        max_new_tokens=512,
        runs_code=True,
    ),
    "mbpp": Format(
        "mbpp",
        {"text": str, "code": str, "test_list": list, "test_setup_code": str},
        lambda record: "\n".join(
            [record["text"], "Your code has to pass these tests:", *record["test_list"]]
        ),
        lambda record: record["code"],
        _check_mbpp,
        _never,
        max_new_tokens=512,
        runs_code=True,
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
}
