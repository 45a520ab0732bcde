"""Files of an evaluation: damaged ones, full disks, two processes, machines without fcntl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dllm_decode import storage
from dllm_decode.errors import ConfigError, DllmDecodeError
from dllm_decode.evaluation import store, validation
from dllm_decode.evaluation.metrics import Sample
from dllm_decode.evaluation.reporting import report

DEEP = "[" * 100_000
WRONG = [None, True, -1, 1.5, 1e308, float("nan"), 10**30, "", "x", "\ud800", [], [[]], {}]
WRONG += [{"a": {}}]
WRONG += [[-7], [None], [1e308], {"strategy": {"select": []}}, {"strategy": {"stop": {"a": 1}}}]


def sample(number: int, **changes) -> Sample:
    given = dict(
        problem=f"p{number}", family="t", prompt="?", text="!", correct=True, forwards=3, slots=4,
        steps=(0, 1), ready=(0, 0), confidence=(0.5, 1.0), end_step=2, tokens=(5, 6, 7),
    )  # fmt: skip
    return Sample(**{**given, **changes})


RESULTS = {
    "name": "a run", "order": 0, "settings": {"strategy": {"select": {"_target_": "x.TopK"}}},
    "families": ["t"], "problems": 3, "digest": "d", "model": {"description": "m"},
    "figures": {}, "batch_size": 4, "timing": 0, "manner": {"t": "m"}, "seed": 0,
    "template": "plain", "errors": 0, "environment": {"time": "2026", "cores": 2},
}  # fmt: skip
JOB = {"name": "a run", "settings": {"strategy": {}}, "model": {"description": "m"},
       "code": "c", "problems": "d", "seed": 0}  # fmt: skip


def finished(path: Path, **changes) -> Path:
    with store.JobFolder(path, JOB) as job:
        for number in range(3):
            job.append(sample(number))
        job.finish({**RESULTS, **changes})
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    finished(tmp_path / "good", name="good")
    finished(tmp_path / "other")
    return tmp_path


def reported(runs: Path) -> tuple[list[str], str]:
    """Names in a report of everything that can be read, and what it says was left out."""
    collection = store.collect(runs)
    if len(collection.runs) == 1:  # as the report has it, which is slow to write
        return [run.name for run in collection.runs], " ".join(collection.left_out)
    written = report.write_report(collection, runs / "out", report.ReportSettings(draw=False))
    for file in written.files:
        file.read_text(encoding="utf-8")
    return [row.strategy for row in written.report.overall], " ".join(written.report.warnings)


def changed(file: Path, key: str, value: object, line: int = 0) -> None:
    """Set one key of a JSON file, or of a line of it."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    lines[line] = json.dumps({**json.loads(lines[line]), key: value})
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [store.RESULTS, store.SAMPLES, store.JOB])
def test_a_wrong_value_under_any_key_is_left_out_with_file_and_key_or_does_no_harm(runs, name):
    file = runs / "other" / name
    before = file.read_text()
    keys = list(json.loads(before.splitlines()[0] if name == store.SAMPLES else before))
    refused = set()
    for key in keys:
        for value in WRONG:
            changed(file, key, value)
            try:
                names, left_out = reported(runs)
            except ConfigError as error:  # of another model, or on other problems
                assert key in ("digest", "model") and "differ in their" in str(error)
                continue
            finally:
                file.write_text(before)
            if len(names) == 1:
                assert str(file.parent) in left_out, (key, value)
                refused.add(key)
            if len(names) == 1 and type(value) in (list, dict, float):
                assert repr(key) in left_out or key in ("problems", "families"), (key, value)
    free = {"seed", "order", "batch_size", "timing"} if name == store.JOB else set()
    assert refused >= set(keys) - free, set(keys) - refused


@pytest.mark.parametrize("name", [store.RESULTS, store.SAMPLES, store.JOB])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe{}", DEEP.encode(), b"9" * 5000, b'{"a": 1e999}', b"\0"],
    ids=["empty", "half", "list", "null", "bytes", "deep", "digits", "infinite", "nul"],
)
def test_a_file_that_is_no_such_json_is_left_out_with_its_name(runs, name, content):
    (runs / "other" / name).write_bytes(content + b"\n")
    names, left_out = reported(runs)
    if not (name == store.JOB and content.startswith(b'{"a"')):  # an unknown key does no harm
        assert names == ["good"] and f"other/{name}" in left_out and "program" not in left_out


@pytest.mark.parametrize("key", list(RESULTS))
def test_values_nested_as_deep_as_json_can_be_read_are_left_out(runs, key):
    deep = "x"
    for _ in range(500):
        deep = {"strategy": deep}
    changed(runs / "other" / store.RESULTS, key, deep if key != "figures" else {"a": deep})
    names, left_out = reported(runs)
    assert names == ["good"] and "nested too deep" in left_out


def test_numbers_that_would_fill_the_memory_are_damage(runs):
    changed(runs / "other" / store.SAMPLES, "forwards", 10**9)
    assert "'forwards' must be a whole number from 0 to 1,000,000" in reported(runs)[1]
    changed(runs / "other" / store.SAMPLES, "forwards", 3)
    changed(runs / "other" / store.SAMPLES, "steps", [0] * 200_000)
    assert "'steps' must be a list of at most 20,000 numbers" in reported(runs)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": [0, 3]}, "'forwards' and 'drafts' together, 3"), ({"end_step": 3}, "must be below"),
     ({"ready": [0]}, "'ready' must have as many entries as 'steps', 2"),
     ({"confidence": [0.5] * 3}, "'confidence' must have as many"),
     ({"more": 1}, "check ['more']"), ({"confidence": [0.5, 1.5]}, "from 0 to 1")],
)  # fmt: skip
def test_samples_whose_values_do_not_fit_each_other_are_left_out(runs, change, message):
    for key, value in change.items():
        changed(runs / "other" / store.SAMPLES, key, value, line=1)
    names, left_out = reported(runs)
    assert names == ["good"] and message in left_out and "samples.jsonl, line 2" in left_out


def test_tasks_and_samples_have_to_agree(runs):
    changed(runs / "other" / store.RESULTS, "families", ["t", "u"])
    assert "'families' and the samples differ in ['u']" in reported(runs)[1]


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path):
    with store.JobFolder(tmp_path, JOB) as job:
        job.append(sample(0, text="a\u2028b\x85c"))
    line = json.dumps(sample(1, text="a\u2028b\x85c").to_record(), ensure_ascii=False)
    with (tmp_path / store.SAMPLES).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    assert len(store.parse_samples(tmp_path / store.SAMPLES)[0]) == 2


def test_samples_read_at_once_are_those_read_one_by_one():
    found = [None, False, 1.0, 0, 0.5, [], [0.5, 1], [0, True], [0, -2], [0.5, float("nan")]]
    found += [["a", "\ud800"], [10**400, 0.5], {"a": 1}, ...]
    for key in [*sample(0).to_record(), "more"]:
        for value in [*found, *WRONG, *([[0] * 20_001] if key == "tokens" else [])]:
            records = [storage.plain(sample(n).to_record()) for n in range(2)]
            records[1][key] = value
            if value is ...:
                del records[1][key]
            at_once = Sample.from_records(records)
            try:
                expected = list(map(Sample.from_record, records))
            except ConfigError:
                assert at_once is None, (key, value)
            else:
                like = records[0].keys() == records[1].keys()  # or of two versions
                assert at_once == (expected if like else None), (key, value)


def test_lines_that_are_no_json_by_themselves_are_damage_together_as_well(runs):
    file = runs / "other" / store.SAMPLES
    lines = file.read_text().splitlines()
    for cut in (", ", "[0, "):
        broken = lines[0].replace(cut, f"{cut.strip(', ')}\n", 1)
        file.write_text("\n".join([broken, *lines[1:]]) + "\n")
        assert "other/samples.jsonl, line 1 cannot be read" in reported(runs)[1]
    twice = lines[2].replace("{", '{"family": "u", ', 1)
    file.write_text("\n".join([*lines[:2], twice]) + "\n")
    assert "line 3 cannot be read: the key 'family' is there twice" in reported(runs)[1]


# Names.


@pytest.mark.parametrize("length", [121, 10**6])
def test_names_of_any_length_are_cut_and_stay_different(tmp_path, length):
    for number in range(2):
        finished(tmp_path / str(number), name="n" * length + str(number))
    names, left_out = reported(tmp_path)
    assert len(set(names)) == 2 and not left_out and max(map(len, names)) < 150


def test_a_name_is_one_line(tmp_path):
    finished(tmp_path / "a", name="a\r\n\x1b[31m|\tb")
    assert reported(tmp_path)[0] == ["a [31m| b"]


# Jobs that failed.


def test_a_folder_with_nothing_but_a_failure_is_listed_with_its_reason(runs):
    store.note_failure(runs / "sweep" / "3", "select.threshold must lie in\n[0, 1], got 2")
    assert "sweep/3: select.threshold must lie in [0, 1], got 2" in reported(runs)[1]
    (runs / "sweep" / "3" / store.FAILURE).write_bytes(b"\xff")
    assert "sweep/3/failure.json cannot be read" in reported(runs)[1]
    (runs / "sweep" / "3" / store.FAILURE).write_text('{"reason": ["x"]}')
    assert "sweep/3: failed" in reported(runs)[1]


def test_a_folder_of_failures_alone_is_told_apart_from_an_empty_one(tmp_path):
    store.note_failure(tmp_path / "0", "no luck")
    with pytest.raises(ConfigError, match=r"no runs are finished \(.*0: no luck\)"):
        report.chosen_runs(store.collect(tmp_path), None)


# Writing.


class Full:
    """A file on a disk that is full; what was written before is kept."""

    def __init__(self, file) -> None:
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, text):
        self.file.write(text[: len(text) // 2])
        self.file.flush()
        raise OSError(28, "No space left on device")


def no_space(*_args, **_kwargs):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_told_and_leaves_what_was_finished_and_nothing_stray(tmp_path, monkeypatch):
    with pytest.raises(store.StoreError, match=r"No space left.*what was finished is kept") as told:  # noqa: SIM117
        with store.JobFolder(tmp_path, JOB) as job:
            job.append(sample(0))
            job._file = Full(job._file)
            monkeypatch.setattr(Path, "write_text", no_space)
            job.append(sample(1))
    assert told.value.exit_code == 1
    assert {p.name for p in tmp_path.iterdir()} <= {store.SAMPLES, store.JOB, store.LOCK}
    monkeypatch.undo()
    with store.JobFolder(tmp_path, JOB) as job:
        assert [s.problem for s in job.samples] == ["p0"]
        job.append(sample(1))
    assert len(store.parse_samples(tmp_path / store.SAMPLES)[0]) == 2


def test_resuming_on_a_full_disk_keeps_the_samples(tmp_path, monkeypatch):
    with store.JobFolder(tmp_path, JOB) as job:
        for entry in (sample(0), sample(1, error="boom"), sample(2)):
            job.append(entry)
    before = (tmp_path / store.SAMPLES).read_bytes()
    monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(store.StoreError, match="No space left"), store.JobFolder(tmp_path, JOB):
        pass
    assert (tmp_path / store.SAMPLES).read_bytes() == before
    monkeypatch.undo()
    with store.JobFolder(tmp_path, JOB) as job:  # and the lock was let go
        assert [s.problem for s in job.samples] == ["p0", "p2"]


def test_a_kill_while_resuming_leaves_the_samples(tmp_path, monkeypatch):
    with store.JobFolder(tmp_path, JOB) as job:
        for entry in (sample(0), sample(0)):
            job.append(entry)
    before = (tmp_path / store.SAMPLES).read_bytes()

    def killed(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt), store.JobFolder(tmp_path, JOB):
        pass
    assert (tmp_path / store.SAMPLES).read_bytes() == before
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for name in ("there.txt", "new.txt"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(Path("kept") / name)
        (tmp_path / "kept" / "there.txt").write_text("old")
        storage.write_text(tmp_path / "link", "text")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "kept" / name).read_text() == "text"
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "link"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no such pipes")
def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match=f"{name} is a pipe, a device or a socket"):
            storage.write_text(tmp_path / name, "text")
    with pytest.raises(store.StoreError, match="pipe is a pipe, a device or a socket"):
        store.write_json(tmp_path / "pipe", {})
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("write", [storage.write_text, lambda path, _: store.write_json(path, {})])
def test_an_atomic_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path, monkeypatch, write
):
    path = tmp_path / "old.json"
    path.write_text("old")
    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises((OSError, store.StoreError), match="No space left"):
        write(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["old.json"] and path.read_text() == "old"


def test_a_file_with_the_longest_name_there_is_can_be_written(tmp_path):
    storage.write_text(tmp_path / ("n" * 255), "text")
    assert (tmp_path / ("n" * 255)).read_text() == "text"


def test_what_json_has_no_number_for_becomes_null():
    value = {1: (float("nan"), float("inf")), "p": Path("a") / "b"}
    assert storage.plain(value) == {"1": [None, None], "p": "a/b"}


def test_json_with_a_byte_order_mark_is_read_and_other_faults_name_the_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf{}")
    assert storage.read_json(path) == {}
    for content, message in ((DEEP, "nested too deep"), ("[1]", "one JSON object, got list")):
        path.write_text(content)
        with pytest.raises(DllmDecodeError, match=f"a.json.*{message}"):
            storage.read_json(path)
    with pytest.raises(store.StoreError, match=r"b\.json cannot be read"):
        store.read_json(tmp_path / "b.json")


def test_another_process_cannot_take_the_lock_of_a_job(tmp_path):
    code = (
        "import sys; from filelock import FileLock, Timeout\n"
        "try: FileLock(sys.argv[1]).acquire(timeout=0)\n"
        "except Timeout: print('locked')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / store.LOCK)]
    with store.JobFolder(tmp_path, JOB):
        assert subprocess.run(command, capture_output=True, check=True).stdout == b"locked\n"
    assert subprocess.run(command, capture_output=True, check=True).stdout == b""


@pytest.mark.parametrize("value", [DEEP, "x" * 10**6, list(range(10**5)), {"a": {"b": {"c": 1}}}])
def test_a_wrong_value_is_shown_in_a_few_letters(value):
    assert len(validation.shown(value)) < 200


def test_files_of_earlier_versions_are_read(runs):
    results = runs / "other" / store.RESULTS
    results.write_text(results.read_text().replace('"families"', '"task_names"'))
    samples = runs / "other" / store.SAMPLES
    samples.write_text(samples.read_text().replace('"family"', '"task"'))
    assert reported(runs) == (["a run", "good"], "")
    with store.JobFolder(runs / "other", JOB) as job:  # and an unfinished job goes on
        assert [s.family for s in job.samples] == ["t", "t", "t"]
