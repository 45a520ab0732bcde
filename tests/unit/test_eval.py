"""Whole evaluation runs: closed forms on exact worlds, resuming, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from drawing import examples, number
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dllm_decode.api import build
from dllm_decode.cli import main
from dllm_decode.config.compose import compose_checked
from dllm_decode.config.instantiate import build_node
from dllm_decode.decoding.types import Vocab
from dllm_decode.decoding.voting import Voting
from dllm_decode.errors import ConfigError
from dllm_decode.evaluation import metrics, store
from dllm_decode.evaluation.data import Question, bundled
from dllm_decode.evaluation.evaluate import Evaluation, check_questions, encode, infilling
from dllm_decode.evaluation.metrics import Sample
from dllm_decode.evaluation.reporting import controls
from dllm_decode.models.toy import Shuffle
from dllm_decode.problems import FAMILIES, GAP, TRAINED, Variant
from dllm_decode.tasks import build_task
from dllm_decode.tasks import eval as task_module
from dllm_decode.tasks.eval import Eval, job_name, world_questions

SEQUENTIAL = ("strategy=sequential",)


def evaluation(*overrides: str, batch: int = 256) -> tuple[Evaluation, list[Question]]:
    cfg = compose_checked(["model=toy_shuffle", "schedule=whole", *overrides])
    decoder = build(cfg)
    made = Evaluation(
        decoder.decoder,
        decoder.model.tokenizer,
        reference=lambda request, keys: decoded(decoder.sequential.decode(request)),
        max_batch=batch,
    )
    return made, world_questions(decoder.model, 400, 0)


def decoded(result):
    return result.sequences, result.forwards


def within(successes: int, trials: int, share: float) -> bool:
    """Whether a count is within 4.5 standard deviations of what a share predicts."""
    return abs(successes - trials * share) <= 4.5 * math.sqrt(trials * share * (1 - share)) + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "accuracy", "forwards"),
    [
        (("strategy=sequential",), 1.0, 6),
        (("strategy=topk", "strategy.select.tokens_per_step=2"), 0.3125, 3),
        (("strategy=topk", "strategy.select.tokens_per_step=3"), 0.12346, 2),
        (("strategy=threshold", "strategy.select.threshold=0.6"), 1.0, None),
    ],
)
def test_shuffle_reproduces_its_closed_forms(strategy, accuracy, forwards):
    run, questions = evaluation(*strategy)
    samples = list(run.samples(questions))
    assert within(sum(s.correct for s in samples), len(samples), accuracy)
    assert forwards is None or {s.forwards for s in samples} == {forwards}


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("model", "share"), [("toy_copy", 1.0), ("toy_reverse", 1.0), ("toy_replace_random", 0.0)]
)
def test_other_worlds_in_three_tokens_per_step(model, share):
    run, questions = evaluation(
        f"model={model}", "strategy=topk", "strategy.select.tokens_per_step=3"
    )
    samples = list(run.samples(questions[:60]))
    assert sum(s.correct for s in samples) == share * len(samples)


@pytest.mark.slow
def test_the_oracle_counts_its_reference_apart():
    run, questions = evaluation("strategy=oracle")
    samples = list(run.samples(questions[:20]))
    assert all(s.correct and s.reference_forwards == 6 for s in samples)
    assert metrics.forwards_per_problem(samples).value <= 6


@pytest.mark.slow
def test_a_sample_does_not_depend_on_what_else_is_decoded():
    run, questions = evaluation("strategy=topk", "sampler=categorical")
    strip = lambda s: {**s.to_record(), "seconds": 0}  # noqa: E731
    whole = {s.problem: strip(s) for s in run.samples(questions[:30])}
    done = frozenset(q.key for q in questions[:30:2])
    small, _ = evaluation("strategy=topk", "sampler=categorical", batch=3)
    part = {s.problem: strip(s) for s in small.samples(questions[:30], done)}
    assert part == {key: value for key, value in whole.items() if key not in done}


@pytest.mark.slow
def test_proposals_are_noted_since_they_stand_without_a_break():
    run, questions = evaluation("model=toy_copy", *SEQUENTIAL)
    (sample,) = run.samples(questions[:1])
    # everything is certain from the first step on
    assert sample.ready == (0,) * 6
    assert metrics.temporal_redundancy([sample]) == pytest.approx(5 / 6)
    run, questions = evaluation("model=toy_shuffle", *SEQUENTIAL)
    (sample,) = run.samples(questions[:1])
    assert all(ready <= step for ready, step in zip(sample.ready, sample.steps, strict=True))


def test_time_is_counted_for_decoding_only():
    run, questions = evaluation(*SEQUENTIAL)
    ticks = iter(range(10_000))
    slow = Evaluation(run.decoder, run.tokenizer, max_batch=2, clock=lambda: float(next(ticks)))
    samples = list(slow.samples(questions[:4]))
    assert sum(s.seconds for s in samples) == 4  # one tick per answer, none for grading


def bundled_decoder():
    return build(compose_checked(["model.checkpoint=bundled:llada-tiny", "strategy=threshold"]))


def test_in_the_infilling_form_labels_stand_and_names_are_decoded():
    decoder = bundled_decoder()
    run = Evaluation(decoder.decoder, decoder.model.tokenizer)
    for question in bundled("copy", number(1, 3), variant=Variant(infill=True)):
        (found,) = run.samples([question])
        labels = question.label.split()[0::2]
        assert found.text.split()[0::2] == labels
        assert found.delivered == len(labels) and found.slots == 32
        assert found.correct


def test_infilling_needs_one_token_for_each_name():
    (question,) = bundled("copy", 1, variant=Variant(infill=True))
    with pytest.raises(ConfigError, match=r"task\.problems\.infill needs a model whose tokenizer"):
        infilling(Words(chat=False), Vocab(size=300, mask_id=299), question)


def test_infilling_leaves_out_what_a_tokenizer_puts_around_a_text():
    question = Question("k", "t", "Q", "Ada", 6, bool, form=f" {GAP}da")
    bare, framed = Words(chat=False), Framed(chat=False)
    assert framed.encode("Q") == [1, ord("Q"), 2]
    vocab = Vocab(size=300, mask_id=299, eot_ids=(298,))
    columns, fixed = infilling(framed, vocab, question)
    assert (columns, fixed) == infilling(bare, vocab, question)
    assert fixed == {0: ord(" "), 2: ord("d"), 3: ord("a"), 4: 298, 5: 298}


class Words:
    """A tokenizer with one id per letter."""

    def __init__(self, chat: bool) -> None:
        self.has_chat_template = chat

    def encode(self, text, *, framed=True):
        return [ord(letter) for letter in text]

    def encode_chat(self, messages, *, open_reply=True):
        return self.encode("".join(f"<{m['role'][0]}>{m['content']}" for m in messages) + "<a>")


class Framed(Words):
    """One that writes a beginning and an end around every text."""

    def encode(self, text, *, framed=True):
        ids = super().encode(text)
        return [1, *ids, 2] if framed else ids


def text_of(chat: bool, template: str, shots=()) -> str:
    question = Question("k", "t", "Q2", "A2", 4, bool, tuple(shots))
    return "".join(map(chr, encode(Words(chat), question, template)))


def test_templates_are_explicit():
    assert text_of(True, "auto") == text_of(True, "chat") == "<u>Q2<a>"
    assert text_of(False, "auto") == text_of(True, "plain") == "Q2"
    assert text_of(True, "chat", [("Q1", "A1")]) == "<u>Q1<a>A1<u>Q2<a>"
    assert text_of(False, "plain", [("Q1", "A1")]) == "Q1\nA1\n\nQ2\n"
    with pytest.raises(ConfigError, match=r"task\.template must be one of auto, chat, plain"):
        text_of(True, "alpaca")


def test_nothing_and_repeated_keys_are_refused():
    with pytest.raises(ConfigError, match="at least one problem, got none"):
        check_questions([])
    question = Question("k", "t", "p", "l", 4, bool)
    with pytest.raises(ConfigError, match="two problems have the key 'k'"):
        check_questions([question, question])


# The store.


def sample(key: str, **changes) -> Sample:
    return Sample(
        **{**dict(problem=key, family="t", prompt="", text="", correct=True, forwards=2, slots=2,
                  steps=(0, 1)), **changes}
    )  # fmt: skip


def test_a_job_key_ignores_the_order_of_keys_and_nothing_else():
    assert store.job_key({"a": 1, "b": 2}) == store.job_key({"b": 2, "a": 1})
    assert store.job_key({"a": 1}) != store.job_key({"a": 2})


@pytest.mark.slow
def test_the_code_version_follows_the_plugins():
    one, other = evaluation(*SEQUENTIAL)[0].decoder, evaluation("strategy=factor")[0].decoder
    version = store.code_version([one.strategy.select])
    assert version == store.code_version([one.strategy.select])
    assert version != store.code_version([other.strategy.select])


@examples(10)
@given(st.integers(0, 400))
def test_a_killed_job_loses_at_most_the_line_in_flight(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("job")
    with store.JobFolder(path, {}) as job:
        for number in range(4):
            job.append(sample(f"p{number}"))
    file = path / store.SAMPLES
    data = file.read_bytes()
    file.write_bytes(data[: min(cut, len(data))])
    whole = data[: min(cut, len(data))].count(b"\n")
    with store.JobFolder(path, {}) as job:
        assert [s.problem for s in job.samples] == [f"p{n}" for n in range(whole)]
        for number in range(whole, 4):
            job.append(sample(f"p{number}"))
    assert file.read_bytes() == data


def test_failed_and_repeated_samples_are_done_again(tmp_path):
    with store.JobFolder(tmp_path, {}) as job:
        for entry in (sample("a", error="boom"), sample("b"), sample("b")):
            job.append(entry)
    with store.JobFolder(tmp_path, {}) as job:
        assert [s.problem for s in job.samples] == ["b"]


def test_a_job_in_use_is_refused(tmp_path):
    with (
        store.JobFolder(tmp_path, {}),
        pytest.raises(store.StoreError, match="in use by another process"),
        store.JobFolder(tmp_path, {}),
    ):
        pass


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / store.SAMPLES).write_text("{}\n", encoding="utf-8")
    with pytest.raises(store.StoreError, match=r"samples.jsonl, line 1 cannot be read"):
        store.parse_samples(tmp_path / store.SAMPLES)


def test_a_failure_is_noted_and_forgotten_when_the_job_succeeds(tmp_path):
    with pytest.raises(RuntimeError), store.JobFolder(tmp_path, {}):
        raise RuntimeError("no luck")
    assert "no luck" in (tmp_path / store.FAILURE).read_text()
    with store.JobFolder(tmp_path, {}) as job:
        job.finish({"done": True})
    assert not (tmp_path / store.FAILURE).exists()


# The command.


def command(tmp_path: Path, *words: str, sweep: bool = False) -> int:
    place = f"hydra.{'sweep' if sweep else 'run'}.dir={tmp_path / 'out'}"
    return main(
        [*(["-m"] if sweep else []), "task=eval", "model=toy_shuffle", "schedule=whole",
         "task.count=12", "batch_size=5", f"runs={tmp_path / 'runs'}", place,
         "display=plain", *words]
    )  # fmt: skip


def results_in(folder: Path) -> dict[str, dict]:
    return {
        values["name"]: values
        for file in sorted(folder.rglob("results.json"))
        for values in [json.loads(file.read_text())]
        if (file.parent / "samples.jsonl").exists()
    }


@pytest.mark.slow
def test_a_sweep_writes_a_job_per_strategy_and_one_model_serves_all(tmp_path, capsys, monkeypatch):
    loaded = []
    original = task_module.shared_model
    task_module._MODELS.clear()
    monkeypatch.setattr(
        task_module, "shared_model", lambda c: loaded.append(original(c)) or loaded[-1]
    )
    assert command(tmp_path, "strategy=sequential,topk", sweep=True) == 0
    assert len(loaded) == 2 and loaded[0] is loaded[1]
    found = results_in(tmp_path / "runs")
    assert set(found) == {"sequential schedule=whole", "topk schedule=whole"}
    figures = found["sequential schedule=whole"]["figures"]["all"]
    assert (figures["accuracy"]["value"], figures["forwards"]["value"]) == (1.0, 6.0)
    assert "sequential" in capsys.readouterr().out


@pytest.mark.slow
def test_a_rerun_skips_and_gives_the_same(tmp_path, capsys):
    assert command(tmp_path, *SEQUENTIAL) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert command(tmp_path, *SEQUENTIAL) == 0
    assert "done already" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_a_rerun_decodes_again_what_had_failed(tmp_path, capsys):
    assert command(tmp_path, *SEQUENTIAL) == 0
    (path,) = (tmp_path / "runs").iterdir()
    whole = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    failed = [{**whole[0], "error": "out of memory"}, *whole[1:]]
    (path / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in failed))
    results = json.loads((path / "results.json").read_text())
    (path / "results.json").write_text(json.dumps({**results, "errors": 1}))
    assert command(tmp_path, *SEQUENTIAL) == 0
    assert "done already" not in capsys.readouterr().out.splitlines()[-1]
    assert json.loads((path / "results.json").read_text())["errors"] == 0
    texts = {each["problem"]: each["text"] for each in whole}
    again = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    assert {each["problem"]: each["text"] for each in again} == texts


def test_samples_without_their_job_are_listed_as_broken(tmp_path):
    with store.JobFolder(tmp_path / "job", {}) as job:
        job.append(sample("a"))
    (tmp_path / "job" / "job.json").unlink()
    found = store.collect(tmp_path)
    assert not found.runs and "no job.json, which says what was evaluated" in found.broken[0]


@pytest.mark.slow
def test_a_form_longer_than_what_is_to_be_written_is_refused(tmp_path, capsys):
    words = ["task=eval", "model=llada", "task.families=[sudoku6]", "max_new_tokens=8"]
    more = ["task.count=1", f"runs={tmp_path}", "display=none", f"hydra.run.dir={tmp_path / 'out'}"]
    assert main([*words, *more]) != 0
    assert (
        "max_new_tokens must be at least 41, which the form of problem" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_two_runs_of_the_same_job_agree_in_everything_but_time(tmp_path):
    records = []
    for name in ("one", "two"):
        command(tmp_path / name, "strategy=topk", "sampler=categorical")
        (file,) = (tmp_path / name).rglob("samples.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        records.append([{**line, "seconds": 0} for line in lines])
    assert records[0] == records[1]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("seed", range(2))
def test_a_job_killed_anywhere_goes_on_without_loss_or_repetition(tmp_path, monkeypatch, seed):
    dies_after = random.Random(seed).randint(0, 11)
    original = store.JobFolder.append

    class Killed(BaseException):
        pass

    def dying(self, entry):
        if len(self.samples) == dies_after:
            self._file.write('{"half a li')
            raise Killed
        original(self, entry)

    monkeypatch.setattr(store.JobFolder, "append", dying)
    with pytest.raises(Killed):
        command(tmp_path, "strategy=topk")
    monkeypatch.setattr(store.JobFolder, "append", original)
    assert results_in(tmp_path / "runs") == {}
    assert command(tmp_path, "strategy=topk") == 0
    (file,) = (tmp_path / "runs").rglob("samples.jsonl")
    keys = [json.loads(line)["problem"] for line in file.read_text().splitlines()]
    assert sorted(keys) == sorted(f"shuffle/0/{n}" for n in range(12))
    run, questions = evaluation("strategy=topk")
    whole = {s.problem: s.to_record() for s in run.samples(questions[:12])}
    for line in file.read_text().splitlines():
        record = json.loads(line)
        assert {**record, "seconds": 0} == {
            **json.loads(json.dumps(whole[record["problem"]])), "seconds": 0
        }  # fmt: skip


@pytest.mark.slow
def test_the_oracle_takes_the_finished_sequential_job_as_its_reference(tmp_path, monkeypatch):
    from dllm_decode.api import TextDecoder

    assert command(tmp_path, *SEQUENTIAL) == 0
    calls = []
    original = TextDecoder.decode
    monkeypatch.setattr(TextDecoder, "decode", lambda *a, **k: calls.append(1) or original(*a, **k))
    assert command(tmp_path, "strategy=oracle") == 0
    assert calls == []
    found = results_in(tmp_path / "runs")["oracle schedule=whole"]
    assert found["figures"]["all"]["accuracy"]["value"] == 1.0
    assert command(tmp_path / "alone", "strategy=oracle") == 0
    alone = results_in(tmp_path / "alone" / "runs")["oracle schedule=whole"]
    assert len(calls) > 0
    assert alone["figures"]["all"]["forwards"] == found["figures"]["all"]["forwards"]


@pytest.mark.slow
def test_resume_false_does_the_job_again(tmp_path):
    command(tmp_path, *SEQUENTIAL)
    (file,) = (tmp_path / "runs").rglob("samples.jsonl")
    before = file.stat().st_mtime_ns
    command(tmp_path, *SEQUENTIAL, "task.resume=false")
    assert file.stat().st_mtime_ns > before
    assert len(file.read_text().splitlines()) == 12


def test_a_file_of_problems_is_evaluated(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": "abc", "answer": "#### 2"}) + "\n", encoding="utf-8")
    assert command(tmp_path, *SEQUENTIAL, f"task.data={data}", "max_new_tokens=3") == 0
    (found,) = results_in(tmp_path / "runs").values()
    assert found["families"] == ["gsm8k"] and found["problems"] == 1
    assert found["template"] == "plain" and found["shots"] == {"file": None, "count": 0}


@pytest.mark.slow
def test_broken_and_overlong_problems_cost_themselves_only(tmp_path, capsys, monkeypatch):
    lines = ["abc", "abcdefabcdef", "ab?", "cab"]
    records = [json.dumps({"question": text, "answer": "#### 2"}) for text in lines]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join([*records[:3], "{", records[3]]), encoding="utf-8")
    monkeypatch.setattr(Shuffle, "max_length", 10)
    assert command(tmp_path, *SEQUENTIAL, f"task.data={data}", "max_new_tokens=3") == 1
    (found,) = results_in(tmp_path / "runs").values()
    assert (found["problems"], found["errors"]) == (5, 3)
    (file,) = (tmp_path / "runs").rglob("samples.jsonl")
    samples = {s.problem: s for s in store.parse_samples(file)[0]}
    assert [bool(samples[f"gsm8k/{n}"].error) for n in range(1, 6)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    for line, message in ((2, "has 13 tokens"), (3, "contains '?'"), (4, "is not JSON")):
        assert f"data.jsonl, line {line}" in samples[f"gsm8k/{line}"].error
        assert message in samples[f"gsm8k/{line}"].error
    # the others are decoded as if they were alone with their seeds
    alone = tmp_path / "alone"
    data.write_text(
        "\n".join([records[0], *['{"question": "abc", "answer": "#### 1"}'] * 3, records[3]])
    )
    assert command(alone, *SEQUENTIAL, f"task.data={data}", "max_new_tokens=3") == 0
    (file,) = (alone / "runs").rglob("samples.jsonl")
    others = {s.problem: s for s in store.parse_samples(file)[0]}
    for key in ("gsm8k/1", "gsm8k/5"):
        assert others[key].tokens == samples[key].tokens


@pytest.mark.slow
def test_problems_of_which_none_can_be_decoded_are_refused(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": "abc", "answer": "#### 2"}) + "\n", encoding="utf-8")
    words = (*SEQUENTIAL, f"task.data={data}", "task.template=chat")
    assert command(tmp_path, *words) == 2
    assert "data.jsonl, line 1: a toy world has no chat template" in capsys.readouterr().err


@pytest.mark.one_in(20)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("task.count=0",), "task.count must be a whole number >= 1, got 0"),
        (("task.families=[copy,knit]",), "got 'knit'"),
        (("task.families=[]",), "at least one family"),
        (
            ("task.families=[records]", "task.problems.length=5"),
            "task.problems.length is for lists",
        ),
        (("task.problems.clues=1",), "task.problems.clues must lie in"),
        (("task.data=a.jsonl", "task.problems.infill=true"), "task.data is a file"),
        (("task.split=test",), "task.split must be one of held_out, train"),
        (("task.template=alpaca",), "task.template must be one of"),
        (
            ("task.run_code=true",),
            "task.run_code is gone; generated code is run",
        ),
        (("task.code_seconds=9",), "task.code_seconds is gone; generated code"),
        (("task.shots=a.jsonl",), "belong together"),
        (("task.format=gsm8k",), "need task.data"),
        (("task.format=humaneval",), "task.format=humaneval: such problems are graded by running"),
        (("task.format=gsm9k", "task.data=a.jsonl"), "task.format must be one of gsm8k"),
        (("runs=''",), "task.runs must name a folder"),
        (("task.timing=-1",), "task.timing must be a whole number"),
        (("batch_size=0",), "batch_size must be a whole number"),
        (("max_new_tokens=0",), "max_new_tokens must be a whole number"),
        (("task.cuont=3",), "did you mean task.count?"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(words, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_task(compose_checked(["task=eval", "model=toy_shuffle", *words]))


@pytest.mark.slow
def test_a_missing_file_is_an_error_of_the_configuration(tmp_path, capsys):
    assert command(tmp_path, *SEQUENTIAL, "task.data=missing.jsonl") == 2
    assert "missing.jsonl cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_an_unwritable_runs_folder_is_named(tmp_path, capsys):
    (tmp_path / "runs").write_text("a file")
    assert command(tmp_path, *SEQUENTIAL) == 2
    assert "task.runs must be a writable folder" in capsys.readouterr().err


def test_names_say_what_was_set():
    assert job_name("credit", ["task=eval", "strategy=credit"]) == "credit"
    assert job_name("threshold", ["strategy.select.threshold=0.8"]) == "threshold 0.8"
    words = ["strategy=topk", "cache=prefix", "schedule.length=8", "strategy/stop=never"]
    assert job_name("topk", words) == "topk stop=never cache=prefix length=8"


def test_all_families_can_be_asked_for():
    assert Eval(families="all").family_names() == list(FAMILIES)
    assert Eval(families="trained").family_names() == list(TRAINED)
    assert set(Eval().family_names()) <= set(FAMILIES)


CONF = Path(__file__).parents[2] / "conf" / "experiment"
EXPERIMENTS = sorted(path.stem for path in CONF.glob("*.yaml"))


CARDS = [name for name in EXPERIMENTS if "_gsm8k" in name]
# what a card leaves to its user
OPEN = {
    "task.data": "test.jsonl",
    "task.shots": "train.jsonl",
    "strategy.select.weights": "bundled:llada-tiny",
    "model.checkpoint": "folder",
}


LONG = ("bundled", "bundled_rules", "parallelbench", "credit_evidence")  # lists of 50 jobs and more


def given(name: str) -> list[str]:
    text = (CONF / f"{name}.yaml").read_text()
    return [
        f"{key}={value}" for key, value in OPEN.items() if f" {key.split('.')[-1]}: ???" in text
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_every_long_experiment_composes_and_builds(name):
    check_experiment(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in LONG])
def test_every_experiment_composes_and_builds(name):
    check_experiment(name)


def check_experiment(name):
    if name == "search":
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="an extra")
    cfg = compose_checked([f"experiment={name}", *given(name)])
    task = build_task(cfg)
    for node in ("strategy", "schedule", "cache", "sampler"):
        assert build_node(cfg, node) is not None
    for job in getattr(task, "jobs", []):
        check_job(job)


def check_job(job):
    of_strategy = [word for word in job.split() if word.startswith("strategy")]
    others = [word for word in job.split() if word not in of_strategy]
    assert all(parts_of(*of_strategy)) and all(parts_of("task=eval", *others))


def test_the_bundled_experiments_name_every_strategy():
    """What is measured nowhere has no figures to be judged by."""
    lists = [OmegaConf.load(CONF / f"{name}.yaml").task.jobs for name in LONG[:2]]
    words = {word for jobs in lists for job in jobs for word in job.split()}
    options = {path.stem for path in (CONF.parent / "strategy").glob("*.yaml")} - {"pipeline"}
    assert {f"strategy={name}" for name in options} <= words


@cache
def parts_of(*words):
    """Composing is slow, and most jobs share their strategy or all the rest with others."""
    cfg = compose_checked(words)
    return [build_node(cfg, node) is not None for node in ("strategy", "schedule", "cache")]


@pytest.mark.slow
def test_the_grid_is_a_sweep_whose_every_value_composes_and_builds():
    axes = OmegaConf.load(CONF / "grid.yaml").hydra.sweeper.params
    lists = {key: str(values).split(",") for key, values in axes.items()}
    assert list(lists) == ["strategy", "strategy.select.threshold", "cache", "schedule.length"]
    for row in itertools.zip_longest(*lists.values()):
        words = [f"{k}={v or values[0]}" for (k, values), v in zip(lists.items(), row, strict=True)]
        cfg = compose_checked(["experiment=grid", *words])
        assert all(build_node(cfg, node) for node in ("strategy", "schedule", "cache"))


@pytest.mark.one_in(9)
@pytest.mark.parametrize("name", CARDS)
def test_a_card_pins_every_number_of_its_rule(name):
    """A default that changes later must not change what a card stands for."""
    card = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    cfg = compose_checked([f"experiment={name}", *given(name)])

    def numbers(node, said, key):
        for field, value in (node or {}).items():
            if isinstance(value, dict):
                numbers(value, said.get(field, {}), f"{key}.{field}")
            elif type(value) in (int, float):
                assert field in said, f"{key}.{field}"

    for group in ("strategy", "schedule", "cache"):
        numbers(OmegaConf.to_container(cfg[group], resolve=True), card.get(group, {}), group)
    for key in ("seed", "batch_size", "max_new_tokens"):
        assert isinstance(card[key], int)
    assert card["task"]["count"] == 1319 and card["model"]["dtype"] == "bfloat16"


def test_a_recipe_without_its_data_says_so(tmp_path, capsys):
    words = ["experiment=llada_gsm8k_credit", f"hydra.run.dir={tmp_path / 'out'}"]
    assert main(words) == 2
    assert "task.data" in capsys.readouterr().err


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_runs_a_sweep(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        init = "hydra.launcher.ray.init"
        words = ["hydra/launcher=ray", f"{init}.address={cluster.address}"]
        words += [f"+{init}.object_store_memory=null", "strategy=sequential,topk"]
        assert command(tmp_path, *words, sweep=True) == 0
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()
    found = results_in(tmp_path / "runs")
    assert set(found) == {"sequential schedule=whole", "topk schedule=whole"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "package"),
    [("joblib", "hydra_plugins.hydra_joblib_launcher"),
     ("submitit_local", "hydra_plugins.hydra_submitit_launcher")],
)  # fmt: skip
def test_other_launchers_run_a_sweep(tmp_path, launcher, package):
    pytest.importorskip(package)
    words = [f"hydra/launcher={launcher}", "strategy=sequential,topk"]
    assert command(tmp_path, *words, sweep=True) == 0
    found = results_in(tmp_path / "runs")
    assert set(found) == {"sequential schedule=whole", "topk schedule=whole"}


@pytest.mark.slow
def test_an_interrupted_evaluation_keeps_its_samples_and_says_so(tmp_path, monkeypatch):
    original = store.JobFolder.append

    def interrupted(self, entry):
        if len(self.samples) == 5:
            raise KeyboardInterrupt
        original(self, entry)

    monkeypatch.setattr(store.JobFolder, "append", interrupted)
    assert command(tmp_path, *SEQUENTIAL) == 130
    (file,) = (tmp_path / "runs").rglob("samples.jsonl")
    assert len(file.read_text().splitlines()) == 5
    assert not (file.parent / "failure.json").exists()


def test_a_grader_that_stumbles_costs_the_answer_it_stumbles_over():
    run, questions = evaluation(*SEQUENTIAL)

    def stumbling(text):
        raise RecursionError("too deep")

    asked = [questions[0], replace(questions[1], grade=stumbling, source="a.jsonl, line 2")]
    good, bad = sorted(run.samples(asked), key=lambda s: bool(s.error))
    assert good.correct and not bad.correct
    assert bad.error == "a.jsonl, line 2: the answer cannot be graded: RecursionError: too deep"


@pytest.mark.slow
def test_a_job_of_a_sweep_that_cannot_begin_is_listed_by_the_report(tmp_path, capsys):
    words = ("model=toy_shuffle", "strategy=topk,learn2pd")  # the filter is for blocks
    assert command(tmp_path, *words, sweep=True) == 2
    found = store.collect(tmp_path / "runs")
    assert [r.name for r in found.runs] == ["topk schedule=whole"]
    assert "learn2pd" in found.failed[0] and "made for blocks of 32 columns" in found.failed[0]
    assert found.counts == "1 of 2 jobs done, 1 failed"
    place = [f"runs={tmp_path / 'runs'}", f"hydra.run.dir={tmp_path / 'report'}"]
    assert main(["task=report", "task.figures=false", "display=plain", *place]) == 1
    assert "1 of 2 jobs done, 1 failed" in capsys.readouterr().out
    assert "1 of 2 jobs done" in (tmp_path / "report" / "report" / "report.md").read_text()


@pytest.mark.slow
def test_a_job_that_begins_after_all_is_no_longer_listed_as_failed(tmp_path, monkeypatch):
    def broken(*_args, **_kwargs):
        raise ConfigError("no luck today")

    with monkeypatch.context() as patch:
        patch.setattr(task_module, "shared_model", broken)
        assert command(tmp_path, "strategy=topk", sweep=True) == 2
    assert "no luck today" in store.collect(tmp_path / "runs").failed[0]
    assert command(tmp_path, "strategy=topk", sweep=True) == 0
    assert store.collect(tmp_path / "runs").failed == ()
    assert command(tmp_path / "alone", "strategy=learn2pd") == 2  # one run says so on the screen
    assert not (tmp_path / "alone" / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [True, False])
def test_a_failure_that_was_repaired_is_forgotten_however_the_job_is_typed(tmp_path, capsys, sweep):
    few = ("families=[copy]", "task.count=1", "strategy=topk")
    assert command(tmp_path, *few) == 0
    (job,) = (tmp_path / "runs").iterdir()
    (job / "results.json").unlink()
    (job / "samples.jsonl").write_text("{}\n")
    assert command(tmp_path, *few, sweep=True) == 1
    assert "task.resume=false does the whole job again" in capsys.readouterr().err
    assert "samples.jsonl, line 1" in store.collect(tmp_path / "runs").failed[0]
    other = ("task.resume=false", "strategy=pipeline", "strategy/select=topk", "display=none")
    assert command(tmp_path, "families=[copy]", "task.count=1", *other, sweep=sweep) == 0
    assert store.collect(tmp_path / "runs").failed == ()


@pytest.mark.slow
def test_problems_that_could_not_be_decoded_are_counted_for_people(tmp_path, capsys):
    lines = [json.dumps({"question": text, "answer": "#### 2"}) for text in ("abc", "ab?")]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    assert command(tmp_path, *SEQUENTIAL, f"task.data={data}", "max_new_tokens=3") == 1
    said = capsys.readouterr().out
    assert "1 of 2 problems could not be decoded and count as wrong" in said
    assert "data.jsonl, line 2" in said
    notes = controls.notes(store.collect(tmp_path / "runs").runs)
    assert notes[0].kind == "not decoded" and "data.jsonl, line 2" in notes[0].text


def test_how_far_an_evaluation_is_is_said_every_few_seconds_at_the_pace_of_this_run():
    said, now = [], iter([0.0, 2.0, 6.0, 7.0, 12.0])
    tell = task_module.Ticker(said.append, total=12, clock=lambda: next(now))
    done = [sample(f"p{n}") for n in range(12)]
    for count in (4, 5, 7, 8, 10):  # four were there before
        tell(done[:count])
    assert said == [
        "7/12, accuracy 100.0 %, 1.00 tokens per forward, 10 s left",
        "10/12, accuracy 100.0 %, 1.00 tokens per forward, 4 s left",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"families": ["copy"]}, "task.families chooses bundled problems, and task.data=a.jsonl"),
        ({"split": "train"}, "task.split chooses bundled problems"),
        ({"style": "instruct"}, "task.style chooses bundled problems"),
        ({"answer": "boxed"}, "task.answer=boxed says what votes compare; it needs task.n of 2"),
    ],
)
def test_a_setting_that_nothing_would_read_is_refused(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Eval(data="a.jsonl", **settings)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("overrides", "commits"),
    [
        (("strategy=threshold",), True),
        (("strategy=dream",), False),
        (("strategy=remdm",), False),
    ],
)
def test_samples_tell_whether_each_pass_decided_something(overrides, commits):
    made, questions = evaluation(*overrides)
    assert {sample.commits for sample in made.samples(questions[:3])} == {commits}


def test_of_votes_most_passes_decide_nothing_that_is_delivered():
    made, questions = evaluation("sampler=categorical")
    voting = replace(made, voting=Voting(3))
    assert not any(sample.commits for sample in voting.samples(questions[:2]))
