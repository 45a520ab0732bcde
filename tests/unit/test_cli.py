from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dllm_decode.cli import _parsed, main, quoted
from dllm_decode.config.compose import all_groups, compose_checked, hydra_application
from dllm_decode.decoding.trace import read_trace
from dllm_decode.errors import ConfigError

TOY = ("model=toy_copy", "task.samples=2", "display=none")


class Cli:
    """Runs command lines in this process, with the run folder in a temporary place."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder / "run"
        self.capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str) -> int:
        code = main([*words, f"hydra.run.dir={self.folder}"])
        self.out, self.err = self.capsys.readouterr()
        return code

    def json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())

    def samples(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "samples.jsonl").open()]


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(tmp_path, capsys)


@pytest.mark.slow
def test_a_run_writes_one_folder_with_everything_about_it(cli: Cli) -> None:
    assert cli(*TOY) == 0
    assert sorted(path.name for path in cli.folder.iterdir()) == [
        "config.yaml",
        "env.json",
        "results.json",
        "samples.jsonl",
        "trace-sequential.jsonl",
        "trace.html",
        "trace.jsonl",
    ]
    results = cli.json("results.json")
    assert set(results["runs"]) == {"credit", "sequential"}
    assert results["runs"]["credit"]["correct"] == 2
    assert results["speedup"]["forwards"] > 1
    assert "${" not in (cli.folder / "config.yaml").read_text()
    assert cli.json("env.json")["versions"]["torch"]
    assert [sample["run"] for sample in cli.samples()] == ["credit"] * 2 + ["sequential"] * 2


@pytest.mark.slow
def test_silence_means_silence(cli: Cli) -> None:
    assert cli(*TOY) == 0
    assert (cli.out, cli.err) == ("", "")


def test_the_first_line_says_what_runs(cli: Cli) -> None:
    assert cli(*TOY, "display=plain", "compare=false") == 0
    first = " ".join(cli.out.partition("step   1")[0].partition("exact toy")[2].split())
    assert first.startswith("world") and "Copy" in first and "on cpu" in first
    assert "trace credit" in first and "confidence threshold (threshold 0.9)" in first


@pytest.mark.slow
def test_the_plain_display_shows_race_answers_sentence_table_and_folder_in_this_order(
    cli: Cli,
) -> None:
    assert cli(*TOY, "display=plain", "display.speed=0.001") == 0  # nothing is paced here
    signs = ("pass  | sequential", "\n   1  |", "✓", "all 2 right in both", "tokens/forward",
             "fewer forwards", "run folder: ", "trace.html")  # fmt: skip
    places = [cli.out.index(sign) for sign in signs]
    assert places == sorted(places)
    assert "step   1 |" not in cli.out and "eot 2" in cli.out and "in wall time" in cli.out
    assert max(map(len, cli.out.partition("tokens/forward")[2].split("\n")[1:5])) <= 80


@pytest.mark.slow
def test_without_a_race_the_plain_display_shows_each_step_of_the_first_canvas(cli: Cli) -> None:
    assert cli(*TOY, "display=plain", "compare=false", "trace=none") == 0
    assert "step   1 |" in cli.out and "pass  |" not in cli.out and "trace.html" not in cli.out


@pytest.mark.slow
def test_a_run_of_many_prompts_is_recorded_only_on_request(cli: Cli) -> None:
    assert cli("model=toy_copy", "task.samples=3", "display=none", "trace.prompts=2") == 0
    assert "trace.html" not in {path.name for path in cli.folder.iterdir()}


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("prompt", "known"),
    [
        ("Sort: 1 Eva 2 Ben 3 Cleo", True),
        ("Hello, how are you?", False),
    ],
)
def test_the_bundled_model_says_what_it_has_never_learned(
    cli: Cli, prompt: str, known: bool
) -> None:
    words = ["model.checkpoint=bundled:llada-tiny", f"prompt={prompt}", "compare=false"]
    assert cli(*words, "max_new_tokens=32", "display=plain") == 0
    notes = [line for line in cli.out.split("\n") if "outside what the small" in line]
    assert len(notes) == (0 if known else 1)


@pytest.mark.slow
def test_no_comparison_when_it_is_not_wanted(cli: Cli) -> None:
    assert cli(*TOY, "compare=false") == 0
    assert set(cli.json("results.json")["runs"]) == {"credit"}


@pytest.mark.slow
def test_the_baseline_is_not_compared_with_itself(cli: Cli) -> None:
    assert cli(*TOY, "strategy=sequential") == 0
    assert set(cli.json("results.json")["runs"]) == {"sequential"}


@pytest.mark.slow
def test_the_answer_to_a_prompt_is_shown(cli: Cli) -> None:
    assert cli("model=toy_copy", "prompt=cab", "display=plain", "compare=false") == 0
    assert "  cab" in cli.out


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("prompt=What is 2 + 2, please?", "prompt='What is 2 + 2, please?'"),
        ("prompt=it's (fine) = {x}", "prompt='it\\'s (fine) = {x}'"),
        ("prompt='quoted already'", "prompt='quoted already'"),
        ("prompts=a,b.txt", "prompts='a,b.txt'"),
        ("prompt=null", "prompt=null"),
        ("prompt=", "prompt="),
        ("strategy=credit", "strategy=credit"),
        ("model.checkpoint=it's a=dir (x)/ck", "model.checkpoint='it\\'s a=dir (x)/ck'"),
        ("model.checkpoint=GSAI-ML/LLaDA-8B-Base", "model.checkpoint=GSAI-ML/LLaDA-8B-Base"),
        ("model.checkpoint=[a,bundled:llada-tiny]", "model.checkpoint=[a,bundled:llada-tiny]"),
        ("model.checkpoint=a b,c d", "model.checkpoint=a b,c d"),
        ("model.checkpoint=${oc.env:HOME}/x y", "model.checkpoint=${oc.env:HOME}/x y"),
        ("model.checkpoint='x y'", "model.checkpoint='x y'"),
        ("+strategy.select.weights=a (1)/f", "+strategy.select.weights='a (1)/f'"),
        ("runs=my runs", "runs='my runs'"),
        ("runs=/tmp/ü/x", "runs='/tmp/ü/x'"),
    ],
)
def test_free_text_is_quoted_for_the_override_grammar(word: str, expected: str) -> None:
    assert quoted(word) == expected


@pytest.mark.slow
def test_a_prompt_with_every_special_character_arrives_as_it_was_written(cli: Cli) -> None:
    text = 'a, b\'s (c) = {d} "e" $f [g] 100% \\h?'
    assert cli("model=toy_copy", f"prompt={text}") == 2
    assert "the prompt contains ','" in cli.err
    assert cli("--cfg", "job", f"prompt={text}") == 0
    assert yaml.safe_load(cli.out)["prompt"] == text


def test_a_path_with_a_comma_is_one_path_where_it_is_there(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a, b").mkdir()
    assert quoted("model.checkpoint=a, b") == "model.checkpoint='a, b'"
    assert quoted("model.checkpoint=a, c") == "model.checkpoint=a, c"


def test_prompts_come_from_a_file_of_lines(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("cab\n\ndeaf\n")
    assert cli("model=toy_copy", f"prompts={tmp_path / 'p.txt'}", "display=none") == 0
    assert [sample["text"] for sample in cli.samples()][:2] == ["cab", "deaf"]


def test_prompts_come_from_json_lines(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "cab", "id": 7}\n')
    assert cli("model=toy_copy", f"prompts={tmp_path / 'p.jsonl'}", "display=none") == 0
    assert cli.samples()[0]["text"] == "cab"


def test_prompts_come_from_standard_input(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("cab\n"))
    assert cli("model=toy_copy", "prompts=-", "display=none") == 0
    assert cli.samples()[0]["text"] == "cab"


def test_the_trace_in_the_run_folder_replays_to_the_samples(cli: Cli) -> None:
    assert cli(*TOY, "trace=jsonl", "compare=false") == 0
    trace = read_trace(cli.folder / "trace.jsonl")
    assert trace.replay().forwards == tuple(sample["forwards"] for sample in cli.samples())


def test_the_html_trace_is_one_page_without_outside_references(cli: Cli) -> None:
    assert cli(*TOY, "trace=html", "compare=false") == 0
    page = (cli.folder / "trace.html").read_text()
    assert '"finish_reasons"' in page and "/*TRACE*/" not in page
    page = page.replace("http://www.w3.org/2000/svg", "")  # the name of a language, not a place
    assert "http://" not in page and "https://" not in page and "src=" not in page


@pytest.mark.one_in(2)
@pytest.mark.parametrize("words", [["max_new_tokens=5"], ["schedule.length=100"]])
def test_a_block_longer_than_the_canvas_is_one_short_block(cli: Cli, words: list[str]) -> None:
    assert cli("model=toy_copy", "prompt=abcde", "display=none", *words) == 0
    assert {sample["text"] for sample in cli.samples()} == {"abcde"}


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cache=block_exact"], ["cache (BlockExact)", "block-causal models only", "use cache="]),
        (["model.device=cuda:7"], ["model.device must be auto, cpu", "cuda:7"]),
        (["model.dtype=float8"], ["model.dtype"]),
        (["max_new_tokens=0"], ["max_new_tokens must be a whole number >= 1"]),
        (["strategy.select.threshold=2"], ["strategy.select.threshold must lie in"]),
        (["prompts=pyproject.toml"], ["pyproject.toml"]),
    ],
)
def test_what_cannot_be_is_said_before_weights_are_read(
    cli: Cli, words: list[str], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("dllm_decode.models.loading._load_weights", read)
    assert cli("model=llada", *words) in (1, 2)
    assert [part for part in said if part not in cli.err] == [] and "weights" not in cli.err


@pytest.mark.slow
def test_a_short_row_is_decoded_alone_as_in_company(cli: Cli, tmp_path: Path) -> None:
    short, long = ({"prompt": "cab", "max_new_tokens": n} for n in (4, 40))
    found = []
    for records in ([short], [short, long]):
        (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, records)))
        assert cli("model=toy_copy", f"prompts={tmp_path / 'p.jsonl'}", "display=none") == 0
        found.append(cli.samples()[0])
    assert [f["text"] for f in found] == ["cab", "cab"]
    assert found[0]["forwards"] == found[1]["forwards"]


@pytest.mark.slow
def test_a_strategy_that_needs_a_reference_gets_one_and_its_price_is_shown(cli: Cli) -> None:
    assert cli(*TOY, "strategy=oracle") == 0
    runs = cli.json("results.json")["runs"]
    assert runs["oracle"]["reference_forwards"] == runs["sequential"]["forwards"]


def test_every_option_that_was_misspelt_or_wrong_leaves_no_folder(cli: Cli) -> None:
    assert cli("strategy=crdit") == 2
    assert not cli.folder.exists()
    assert cli(*TOY, "strategy.select.threshold=7") == 2
    assert not cli.folder.exists()


CONFIGURATION_FAULTS = {
    "unknown option": (
        ["strategy=crdit"],
        ["strategy=crdit", "did you mean strategy=credit?", "threshold"],
    ),
    "unknown option of an inner group": (
        ["strategy/select=treshold"],
        ["strategy/select=treshold", "did you mean strategy/select=threshold?"],
    ),
    "unknown group": (["stratgy=credit"], ["stratgy", "did you mean strategy?"]),
    "unknown inner group": (
        ["strategy/selct=credit"],
        ["strategy/selct", "did you mean strategy/select?"],
    ),
    "misspelt key": (
        ["strategy.select.treshold=0.5"],
        ["strategy.select.treshold", "did you mean strategy.select.threshold?", "at_least"],
    ),
    "misspelt key behind +": (
        ["+strategy.select.treshold=0.5"],
        ["strategy.select.treshold", "did you mean strategy.select.threshold?"],
    ),
    "misspelt key behind ++": (
        ["++schedule.lenght=8"],
        ["schedule.lenght", "did you mean schedule.length?"],
    ),
    "key of another place": (
        ["+strategy.threshold=0.5"],
        ["strategy.threshold", "did you mean strategy.select.threshold?"],
    ),
    "misspelt top key": (["+sed=3"], ["unknown key sed", "did you mean seed?"]),
    "misspelt part": (
        ["+strategy.transforms.credt.alpha=0.5"],
        ["strategy.transforms.credt", "did you mean strategy.transforms.credit?"],
    ),
    "key that is there already": (["+seed=3"], ["seed is in the configuration already"]),
    "unreadable override": (["seed=[1,"], ["cannot read the override", "seed=[1,"]),
    "value without a key": (["=1"], ["cannot read '=1'; write key=value or group=option"]),
    "value without a key behind +": (["+=1"], ["cannot read '+=1'; write key=value"]),
    "nothing taken out": (["~=1"], ["cannot read '~=1'; write key=value"]),
    "value out of range": (
        [*TOY, "strategy.select.threshold=1.5"],
        ["strategy.select.threshold", "[0.0, 1.0]", "1.5"],
    ),
    "value of a wrong type": (
        [*TOY, "strategy.select.threshold=high"],
        ["strategy.select.threshold must be a number", "'high'"],
    ),
    "flag of a wrong type": (
        [*TOY, "strategy.select.strict=3"],
        ["strategy.select.strict must be true or false", "3"],
    ),
    "word for a flag at the top": (["debug=maybe"], ["error: debug must be true or false, got 'm"]),
    "comparing perhaps": (["compare=maybe"], ["error: compare must be true or false, got 'm"]),
    "batches of no size": (
        ["batch_size=null"],
        ["error: batch_size must be a whole number >= 1, got None"],
    ),
    "batches of a word": (["batch_size=x"], ["error: batch_size must be a whole number >= 1, got"]),
    "shared setting of a wrong type": (
        [*TOY, "max_tokens_in_flight=x"],
        ["error: max_tokens_in_flight must be a whole number or null, got 'x'"],
    ),
    "display of a wrong word": ([*TOY, "display=fancy"], ["display", "auto, live, none, plain"]),
    "list instead of parts": (
        [*TOY, "strategy.filters=[a]"],
        ["strategy.filters", "mapping"],
    ),
    "empty prompt": (["model=toy_copy", "prompt="], ["prompt is empty"]),
    "empty name of a prompts file": (
        ["model=toy_copy", "prompts="],
        ["prompts names no file, got an empty text; give prompts=FILE or prompts=-"],
    ),
    "place of options that is not there": (
        ["hydra.searchpath=[pkg://nope.conf]", "seed=1"],
        ["hydra.searchpath: there is no pkg://nope.conf"],
    ),
    "folder of options that is not there": (
        ["hydra.searchpath=[file:///nope/conf]"],
        ["hydra.searchpath: there is no file:///nope/conf; it takes pkg://PACKAGE"],
    ),
    "folder of a configuration that is not there": (
        ["--config-path", "nope"],
        ["--config-path must be the full path of a folder", "got nope; --config-dir adds"],
    ),
    "blank prompt": (["model=toy_copy", "prompt='  '"], ["prompt is empty"]),
    "interpolation in a prompt": (["prompt=${x}"], ["prompt cannot hold ${", "prompts=FILE"]),
    "two kinds of prompts": (
        ["model=toy_copy", "prompt=a", "prompts=b.txt"],
        ["prompt and prompts exclude each other"],
    ),
    "no columns": ([*TOY, "max_new_tokens=0"], ["max_new_tokens", ">= 1", "0"]),
    "negative columns": ([*TOY, "max_new_tokens=-3"], ["max_new_tokens", ">= 1", "-3"]),
    "prompt longer than the model allows": (
        ["model=toy_copy", "model._target_=faulty_models.ShortWorld", "prompt=abcdefgh"],
        ["prompt has 9 tokens", "70 positions"],
    ),
    "parts that do not fit together": (
        [*TOY, "cache=dual"],
        ["cache (DualCache)", "use cache=none"],
    ),
    "target that does not exist": (
        [*TOY, "strategy.select._target_=dllm_decode.strategies.absent.Rule"],
        ["strategy.select"],
    ),
    "missing group": (
        ["~model"],
        ["model is needed and cannot be left out; choose an option with model=...; it has "],
    ),
    "missing trace": (["~trace"], ["trace is needed", "trace=none for nothing"]),
    "missing strategy": (["~strategy"], ["strategy is needed", "strategy=...; it has "]),
    "missing task": (["~task"], ["task is needed", "generate"]),
    "missing display": (["~display"], ["display is needed", "display=none for nothing"]),
    "missing rule": (
        ["~strategy.select"],
        ["strategy.select is needed", "strategy/select=...", "threshold"],
    ),
    "no folder": (["hydra.run.dir=null"], ["hydra.run.dir must name a folder, got null"]),
}


@pytest.mark.one_in(45)
@pytest.mark.parametrize("fault", CONFIGURATION_FAULTS)
def test_a_configuration_fault_is_one_message_and_exit_code_2(cli: Cli, fault: str) -> None:
    words, expected = CONFIGURATION_FAULTS[fault]
    code = cli(*words)
    message = cli.err.strip()
    assert [part for part in expected if part not in message] == [], message
    assert message.startswith("error: ") and len(message.splitlines()) == 1
    assert code == 2
    assert "Traceback" not in cli.err and not cli.folder.exists()


@pytest.mark.one_in(6)
@pytest.mark.parametrize("words", [["strategy=mine"], ["-m", "strategy=mine"], ["--cfg", "job"]])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: 1\nb: [1,\n", "mine.yaml, line 3 is no YAML: expected"),
        (b"a: 1\na: 2\n", "mine.yaml, line 2 is no YAML: found duplicate key"),
        (b"a: caf\xe9\n", "mine.yaml is not UTF-8 text: invalid continuation byte; save it"),
        (b"a: \x07\n", "unacceptable character"),
    ],
)
def test_an_option_of_ones_own_that_cannot_be_read_is_named(
    cli: Cli, tmp_path: Path, content: bytes, said: str, words: list[str]
) -> None:
    place = tmp_path / "options" / "strategy"
    place.mkdir(parents=True)
    (place / "mine.yaml").write_bytes(content)
    assert cli("--config-dir", str(tmp_path / "options"), *words, "strategy=mine") == 2
    assert said in cli.err and "mine.yaml" in cli.err
    assert len(cli.err.splitlines()) == 1 and not cli.folder.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--cfg job --resolve -m seed=1,2", "Only one of --run, --multirun, --cfg, --info and"),
        ("--experimental-rerun nope", "--experimental-rerun must be the file of a run, got nope"),
        ("--shell-completion", "Expecting one subcommand from ['install', 'uninstall', 'query']"),
    ],
)
def test_flags_that_hydra_refuses_are_one_message_and_exit_code_2(
    words: str, said: str, capsys
) -> None:
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1 and "fault of the program" not in err


@pytest.mark.parametrize("word", ["~model", "~strategy.select"])
def test_every_way_to_compose_says_what_cannot_be_left_out(word: str) -> None:
    with pytest.raises(ConfigError, match="is needed and cannot be left out"):
        compose_checked([word])


def _lines(*lines: str) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        (folder / "p.jsonl").write_text("".join(line + "\n" for line in lines))
        return ["model=toy_copy", f"prompts={folder / 'p.jsonl'}"]

    return write


def _truncated(folder: Path) -> list[str]:
    place = folder / "cut"
    place.mkdir()
    (place / "config.json").write_text('{"architectures": ["LLaDAModelLM"]')
    (place / "model.safetensors").write_bytes(b"\x10")
    return ["model=llada", f"model.checkpoint={place}"]


RUN_TIME_FAULTS: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    "absent prompts file": (
        lambda folder: ["model=toy_copy", f"prompts={folder / 'no.txt'}"],
        ["cannot read the prompts file", "no.txt", "No such file"],
    ),
    "malformed line": (_lines('{"prompt": "cab"}', "{"), ["p.jsonl, line 2", "not a JSON"]),
    "line without a prompt": (_lines('{"question": 1}'), ["p.jsonl, line 1", "prompt or messages"]),
    "line with an empty prompt": (_lines('{"prompt": " "}'), ["p.jsonl, line 1", "not empty"]),
    "line with a bad chat": (_lines('{"messages": [1]}'), ["p.jsonl, line 1", "role and content"]),
    "file without prompts": (_lines("", " "), ["p.jsonl holds no prompts"]),
    "missing checkpoint": (
        lambda folder: ["model=llada", f"model.checkpoint={folder / 'none'}"],
        ["none"],
    ),
    "truncated checkpoint": (_truncated, ["config.json"]),
    "unusable logits": (
        lambda folder: [*TOY, "model._target_=faulty_models.NanWorld", "strategy=sequential"],
        ["row 0", "step", "NaN"],
    ),
    "bug in a model": (
        lambda folder: [*TOY, "model._target_=faulty_models.BrokenWorld", "strategy=sequential"],
        ["ZeroDivisionError"],
    ),
}


@pytest.mark.one_in(10)
@pytest.mark.parametrize("fault", RUN_TIME_FAULTS)
def test_a_run_time_fault_is_one_message_and_exit_code_1(
    cli: Cli, tmp_path: Path, fault: str
) -> None:
    make, expected = RUN_TIME_FAULTS[fault]
    code = cli(*make(tmp_path))
    assert [part for part in expected if part not in cli.err] == [], cli.err
    assert code == 1
    assert "Traceback" not in cli.err


def test_a_folder_that_cannot_be_written_is_one_message(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cli.folder = tmp_path / "file" / "run"
    assert cli(*TOY) == 1
    assert "cannot write to the run folder" in cli.err and "hydra.run.dir" in cli.err
    assert len(cli.err.splitlines()) == 1


@pytest.mark.slow
def test_a_tokenizer_without_a_mask_token_is_named(cli: Cli, tmp_path: Path) -> None:
    import shutil

    from dllm_decode.models.locate import ASSETS

    shutil.copytree(ASSETS / "llada-tiny", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config.pop("mask_token_id")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        path = tmp_path / "m" / name
        path.write_text(path.read_text().replace("<|mdm_mask|>", "<|another|>"))
    assert cli("model=llada", f"model.checkpoint={tmp_path / 'm'}") == 1
    assert "mask token" in cli.err and "model.mask_id" in cli.err


@pytest.mark.slow
def test_ctrl_c_writes_what_was_decoded_and_ends_with_130(cli: Cli) -> None:
    interrupted = "model._target_=faulty_models.InterruptedWorld"
    assert cli(*TOY, interrupted, "strategy=sequential", "+model.after=4") == 130
    results = cli.json("results.json")["runs"]["sequential"]
    assert results["finish_reasons"] == {"interrupted": 2}
    assert {sample["finish_reason"] for sample in cli.samples()} == {"interrupted"}
    assert (cli.folder / "env.json").exists()


@pytest.mark.slow
def test_a_baseline_that_was_interrupted_is_not_compared_with(cli: Cli) -> None:
    interrupted = "model._target_=faulty_models.InterruptedWorld"
    assert cli("model=toy_copy", "task.samples=2", interrupted, "+model.after=6") == 130
    assert set(cli.json("results.json")["runs"]) == {"credit", "sequential"}
    assert "passes against" not in cli.out and "pass  |" not in cli.out
    assert "interrupted; the partial results are in the run folder" in cli.out


@pytest.mark.slow
def test_ctrl_c_before_the_first_step_ends_with_130_and_leaves_nothing(cli: Cli) -> None:
    interrupted = "model._target_=faulty_models.InterruptedWorld"
    assert cli(*TOY, interrupted, "+model.after=0") == 130
    assert cli.err.strip() == "interrupted"
    assert not cli.folder.exists()


def test_ctrl_c_while_the_program_is_still_being_imported_ends_with_130(tmp_path: Path) -> None:
    (tmp_path / "hydra.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    script = (
        "import runpy, signal, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runpy.run_module('dllm_decode', run_name='__main__')"
    )
    done, _ = _python("-c", script, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("word", ["debug=true", "hydra.verbose=true"])
def test_a_traceback_is_there_when_asked_for(cli: Cli, word: str) -> None:
    assert cli(*TOY, "strategy.select.threshold=7", word) == 2
    assert "Traceback" in cli.err and "error: strategy.select.threshold" in cli.err


@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_is_one_screen_and_says_where_to_read_more(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["--help"]) == 0
    text = cli.capsys.readouterr().out
    assert "which proposals are committed: credit, adjust" in text
    assert "python -m dllm_decode strategy=credit model=llada" in text
    assert "batch_size=16" in text and "prompts decoded together" in text
    assert "--help=strategy.credit" in text and "_target_" not in text
    lines = text.splitlines()
    assert len(lines) <= 40
    assert [line for line in lines if len(line) > int(columns) and "python -m" not in line] == []


@pytest.mark.slow
def test_help_of_a_group_has_a_line_for_every_option_and_help_of_an_option_its_settings(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["--help=strategy"]) == 0
    lines = cli.capsys.readouterr().out.splitlines()
    shown = [line.split(None, 1) for line in lines if re.match("  [a-z]", line)]
    options = {words[0]: words[-1] for words in shown}
    assert "Fast-dLLM" in options["threshold"] and len(options) >= 20

    assert main(["--help=strategy.credit"]) == 0
    text = cli.capsys.readouterr().out
    # meaning, unit, range and default, from the docstrings of all its parts
    assert re.search(r"\.threshold=0\.9 +probability, \[0, 1\]", text)
    assert re.search(r"\.alpha=0\.65 +strength \[nats per nat of log\(1 \+ C\)\], \[0, 100\]", text)
    assert "strategy.stop.eot: End a row behind" in text
    assert "strategy.transforms.credit.identity=true" in text

    assert main(["--help=strategy.select.threshold", "--help=task.report"]) == 0
    text = cli.capsys.readouterr().out
    assert ".threshold=0.9" in text and re.search(r"\.answers=300 +Problems whose answers", text)


@pytest.mark.one_in(16)
@pytest.mark.parametrize("target", [None, *all_groups()])
def test_every_option_of_every_group_can_be_asked_for(cli: Cli, target: str | None) -> None:
    if target is None:
        assert main(["--help=settings"]) == 0
        assert "sync_every=1" in cli.capsys.readouterr().out
        return
    options = hydra_application().options(target)
    chosen = options[:: max(1, len(options) // 3)]
    assert main([f"--help={target}.{option}" for option in chosen]) == 0
    out = cli.capsys.readouterr().out
    assert all(f"{target}={option}" in out for option in chosen)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("strategi", "there is no such group; did you mean strategy?"),
        ("schedule.block", "schedule has no block; did you mean blocks?; it has adablock, blocks"),
        ("strategy/select.klas", "strategy/select has no klas"),
        ("", "there is no such group"),
    ],
)
def test_help_for_what_is_not_there_says_what_there_is(cli: Cli, name: str, said: str) -> None:
    assert main([f"--help={name}"]) == 2
    assert said in cli.capsys.readouterr().err


@pytest.mark.one_in(8)
@pytest.mark.parametrize("name", ["dir=eq", "it's (odd), really", "a:b", "x{1}", "tail ", "ü"])
def test_a_path_may_hold_what_the_override_grammar_does_not_take(
    cli: Cli, name: str, tmp_path: Path
) -> None:
    cli.folder = tmp_path / name
    assert cli(*TOY, "compare=false") == 0
    assert (tmp_path / name / "results.json").exists()
    assert main(["model=llada", f"model.checkpoint={tmp_path / name}"]) == 1
    assert str(tmp_path / name) in cli.capsys.readouterr().err


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, beside the folder in which the program runs."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


EVAL = ("task=eval", "model=toy_copy", "families=[copy]", "task.count=1", "display=none")


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    ("words", "made"),
    [
        ([*TOY, "compare=false", "hydra.run.dir=~/run"], "run/results.json"),
        (["-m", *TOY, "compare=false", "hydra.sweep.dir=~/s"], "s/0/results.json"),
        ([*EVAL, "runs=~/x", "hydra.run.dir=r"], "x/*/results.json"),
        (["-m", *EVAL, "runs=~/x", "hydra.sweep.dir=r"], "x/*/results.json"),
        (["task=new", "name=my_rule", "task.output=~/mine", "hydra.run.dir=r"], "mine/README.md"),
    ],
    ids=["run", "sweep", "runs", "runs of a sweep", "new"],
)
def test_a_path_may_begin_at_the_home_folder(words: list[str], made: str, home: Path) -> None:
    assert main([*words]) == 0
    assert len(list(home.glob(made))) == 1
    assert not Path("~").exists()


@pytest.mark.slow
def test_a_report_goes_and_looks_where_paths_begin_at_the_home_folder(home: Path) -> None:
    (home / "preface.md").write_text("Said before.")
    assert main([*EVAL, "runs=~/x", "hydra.run.dir=r"]) == 0
    words = ["task.output=~/o", "task.markdown=~/q.md", "task.preface=~/preface.md"]
    quiet = ["task.figures=false", "display=none", "hydra.run.dir=r"]
    assert main(["task=report", "runs=~/x", *words, *quiet]) == 0
    assert (home / "o" / "report.md").is_file()
    assert "Said before." in (home / "q.md").read_text()
    assert not Path("~").exists()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("key", ["runs", "data", "shots"])
def test_what_is_read_may_begin_at_the_home_folder_in_every_way_to_compose(
    home: Path, key: str
) -> None:
    task = compose_checked(["task=eval", f"task.{key}='~/x'"]).task
    assert task[key] == str(home / "x")
    several = compose_checked(["task=compare", "runs=['~/a',b]"])
    assert several.task.runs == [str(home / "a"), "b"]


@pytest.mark.parametrize("task", ["distill", "pretrain", "train_drafter"])
def test_the_folder_of_a_training_may_begin_at_the_home_folder(home: Path, task: str) -> None:
    assert compose_checked([f"task={task}", "task.output='~/x'"]).task.output == str(home / "x")


def test_options_of_ones_own_may_lie_in_the_home_folder(home: Path) -> None:
    (home / "options").mkdir()
    (home / "options" / "mine.yaml").write_text("defaults: [config, _self_]\n")
    own = ["--config-dir=~/options", "--config-name=mine"]
    assert main([*own, *TOY, "compare=false", "hydra.run.dir=r"]) == 0


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_failing_job(tmp_path: Path, capsys) -> None:
    code = main(
        ["-m", *TOY, "strategy.select.threshold=0.5,7,0.9", f"hydra.sweep.dir={tmp_path / 's'}"]
    )
    assert code == 2
    assert "strategy.select.threshold must lie in" in capsys.readouterr().err
    places = sorted(p for p in (tmp_path / "s").iterdir() if p.is_dir())
    assert [place.name for place in places] == ["0", "1", "2"]
    assert [(place / "failure.json").exists() for place in places] == [False, True, False]


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("hydra.run.dirr=x", "did you mean hydra.run.dir?; hydra.run takes dir"),
        (
            "-m strategy=sequential,credit hydra/launcher=basic hydra.launcher.n_jobs=2",
            "hydra.launcher.n_jobs; hydra.launcher (hydra/launcher=basic) takes nothing",
        ),
        (
            "-m strategy=threshold strategy.select.treshold=0.5,0.9",
            "did you mean strategy.select.threshold?",
        ),
        (
            "-m strategy=sequential,topk strategy.select.tokens_per_stepp=2",
            "did you mean strategy.select.tokens_per_step?",
        ),
    ],
)  # fmt: skip
def test_misspelt_keys_of_sweeps_and_launchers_are_named(words, said, capsys) -> None:
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err


def _python(*words: str, cwd: Path | None = None) -> tuple[subprocess.CompletedProcess[str], float]:
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=cwd, timeout=120, check=False
    )
    return done, time.monotonic() - begin


@pytest.mark.slow
def test_importing_the_package_and_refusing_a_key_need_no_torch() -> None:
    script = (
        "import sys, dllm_decode, dllm_decode.cli as c\n"
        "codes = [c.main(w.split()) for w in "
        "('--help', '--cfg job', '+strategy.select.treshold=1', 'strategy=crdit')]\n"
        "assert codes == [0, 0, 2, 2], codes\n"
        "print(sorted({'torch', 'transformers', 'rich'} & set(sys.modules)))"
    )
    done, _ = _python("-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


# What the main command must never import before its first token: 6.5 seconds of processor time.
HEAVY = (
    "transformers",
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "scipy",
    "matplotlib",
    "pandas",
)


@pytest.mark.slow
def test_the_main_command_and_refused_values_import_nothing_that_decodes_nothing() -> None:
    script = (
        "import sys, dllm_decode.cli as c\n"
        "wrong = ('model.dtype=int8', 'strategy.select.threshold=7', 'batch_size=0')\n"
        "run = 'strategy=credit model=llada compare=false task.samples=1 max_new_tokens=32'\n"
        "codes = [c.main(w.split()) for w in (*wrong, run)]\n"
        "assert codes == [2, 2, 2, 0], codes\n"
        f"print(sorted({set(HEAVY)} & set(sys.modules)), 'tokenizers' in sys.modules)"
    )
    done, _ = _python("-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[] True"


def test_the_module_runs_as_a_program_and_returns_the_exit_code(tmp_path: Path) -> None:
    done, _ = _python("-m", "dllm_decode", "strategy=crdit", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown option strategy=crdit")
    assert done.stdout == "" and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        "strategy=topk --config-name config model=toy_copy",
        "--config-name config strategy=topk model=toy_copy",
        "strategy=topk model=toy_copy --config-name config",
        "strategy=topk --config-dir {options} model=toy_copy --config-name config",
        "-m strategy=topk,credit --config-dir {options} --config-name config model=toy_copy",
        "strategy=topk -m --config-dir {options} model=toy_copy,toy_reverse",
    ],
)
def test_settings_may_stand_before_between_and_behind_the_flags(words: str, tmp_path: Path) -> None:
    (tmp_path / "options").mkdir()
    given = words.format(options=tmp_path / "options").split()
    settings = [word for word in given if "=" in word]
    assert _parsed(given).overrides == settings
