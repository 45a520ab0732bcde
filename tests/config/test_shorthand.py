"""What people type: short words, folders, bare rules, flags; and the answers to what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dllm_decode import ConfigError, load
from dllm_decode.cli import main
from dllm_decode.config.compose import compose_checked
from dllm_decode.config.shorthand import OTHERWISE, SAME
from dllm_decode.tasks import strategy_name

WRITTEN_OUT = {
    "threshold=0.8": {"strategy.select.threshold": 0.8},
    "alpha=0.3": {"strategy.transforms.credit.alpha": 0.3},
    "block_length=16": {"schedule.length": 16},
    "block_size=16": {"schedule.length": 16},
    "length=16": {"schedule.length": 16},
    "schedule=sliding width=8": {"schedule.width": 8},
    "device=cpu": {"model.device": "cpu"},
    "dtype=float32": {"model.dtype": "float32"},
    "torch_dtype=float32": {"model.dtype": "float32"},
    "mask_id=5": {"model.mask_id": 5},
    "eos_token_id=[5]": {"model.eot_ids": [5]},
    "gen_length=12": {"max_new_tokens": 12},
    "max_tokens=12": {"max_new_tokens": 12},
    "seed=4": {"seed": 4, "task.seed": 4},
    "samples=3": {"task.samples": 3},
    "task=eval count=3": {"task.count": 3},
    "strategy=dream steps=8": {"strategy.select.steps": 8},
    "strategy=dream alg_temp=0.5": {"strategy.select.position_temperature": 0.5},
    "temperature=0.7": {"sampler.temperature": 0.7, "sampler.top_p": 1.0},
    "temperature=0.7 top_p=0.9": {"sampler.temperature": 0.7, "sampler.top_p": 0.9},
    "top_k=5": {"sampler.top_k": 5, "sampler.temperature": 1.0},
    "sampler=dream temperature=0.7": {"sampler.temperature": 0.7, "sampler.top_p": 0.95},
    "strategy=entropy_bound bound=0.3": {"strategy.select.bound": 0.3},
    "strategy=credit strategy/select=factor factor=2": {"strategy.select.factor": 2},
}


@pytest.mark.one_in(24)
@pytest.mark.parametrize("words", WRITTEN_OUT)
def test_a_word_whose_meaning_is_unique_stands_for_its_key(words: str) -> None:
    cfg = compose_checked(words.split())
    for key, value in WRITTEN_OUT[words].items():
        assert OmegaConf.select(cfg, key) == value


ANSWERS = {
    "steps=8": "strategy.select.steps_per_block",
    "remasking=random": "strategy=random",
    "do_sample=true": "sampler=categorical",
    "max_length=100": "max_new_tokens",
    "sampler=greedy temperature=0.7": "use sampler=categorical",
    "sampler.temperature=0.7": "sampler=categorical",
    "strategy.select.factor=2": "strategy/select=factor",
    "schedule=whole block_length=8": "it is called schedule.length, which the chosen parts do not",
    "task=pretrain device=cpu": "model.device, task.device",
    "cache=block_exact length=8": "schedule.length, cache.length",
    "treshold=0.8": "did you mean strategy.select.threshold?",
    "sed=3": "did you mean seed?",
    "strategy/transforms=[credt]": "did you mean strategy/transforms=[credit]?",
    "strategy/transforms=[ccd]": "strategy/transforms has ban_eot, copy_prior",
    "strategy/filters=[at_mots]": "did you mean strategy/filters=[at_most]?",
    "strategy/transforms=[credit,ban_eott]": "did you mean strategy/transforms=[ban_eot]?",
    "strategy/stop=eott": "did you mean strategy/stop=eot?",
    "strategy/select=thresold": "did you mean strategy/select=threshold?",
    "schedule=block": "did you mean schedule=blocks?",
    "cache=duel": "did you mean cache=dual?",
    "sampler=gredy": "did you mean sampler=greedy?",
    "trace=htlm": "did you mean trace=html?",
    "task=genrate": "did you mean task=generate?",
    "task=bench bench=kernel": "did you mean bench=kernels?",
    "experiment=bundeled": "did you mean experiment=bundled?",
    "model=llada_8b": "did you mean model=llada_8b_base or model=llada_8b_instruct?",
    "strategy=credt": "did you mean strategy=credit?",
}


@pytest.mark.one_in(27)
@pytest.mark.parametrize("words", ANSWERS)
def test_what_cannot_be_meant_is_answered_with_what_can(words: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose_checked(words.split())
    assert ANSWERS[words] in str(error.value)
    assert "search path" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.one_in(10)
@pytest.mark.parametrize(
    "name",
    ["GSAI-ML/LLaDA-8B-Instruct", "/a/folder", "./folder", "../it's, here", "~/x", "a/b c=d", ".",
     "bundled:llada-tiny", "C:\\models\\x", "\\\\server\\x"],
)  # fmt: skip
def test_a_folder_or_a_hub_id_is_a_model(name: str) -> None:
    cfg = compose_checked([f"model={name}"])
    assert (cfg.model.checkpoint, cfg.model.dtype) == (name, "auto")


@pytest.mark.slow
def test_a_folder_works_in_python_and_on_the_command_line(tmp_path: Path, capsys) -> None:
    from dllm_decode.models.locate import ASSETS

    place = str(ASSETS / "llada-tiny")
    assert load(model=place).model.description.checkpoint == place
    words = [f"model={place}", "prompt=Copy: 1 Ada 2 Ben 3 Cleo", "compare=false", "display=none"]
    assert main([*words, f"hydra.run.dir={tmp_path / 'run'}"]) == 0


@pytest.mark.one_in(2)
@pytest.mark.parametrize("word", ["strategy=factor2", "strategy/select=factor2"])
def test_a_bare_rule_runs_alone_with_the_default_stop_rule(word: str, tmp_path: Path) -> None:
    folder = tmp_path / "options" / "strategy" / "select"
    folder.mkdir(parents=True)
    rule = "_target_: dllm_decode.strategies.factor.Factor\nfactor: 2.0\n"
    (folder / "factor2.yaml").write_text(rule)
    words = ["--config-dir", str(tmp_path / "options"), word, "model=toy_copy", "display=none"]
    assert main([*words, "compare=false", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    cfg = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert (list(cfg.strategy.transforms), list(cfg.strategy.stop)) == ([], ["eot"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["runs"]) == ["factor2"]


@pytest.mark.parametrize(
    ("option", "overrides", "name"),
    [
        ("credit", [], "credit"),
        ("pipeline", ["strategy=pipeline", "strategy/select=factor"], "factor"),
        ("credit", ["strategy=credit", "strategy/select=factor"], "credit select=factor"),
        ("threshold", ["strategy/transforms=[credit]"], "threshold transforms=[credit]"),
        ("pipeline", [], "pipeline"),
    ],
)
def test_the_table_says_what_runs(option: str, overrides: list[str], name: str) -> None:
    assert strategy_name(option, overrides) == name


@pytest.mark.slow
def test_words_in_a_sweep_are_written_out_for_each_job(tmp_path: Path) -> None:
    words = ["-m", "model=toy_copy", "display=none", "compare=false", "task.samples=1"]
    words += ["strategy=threshold,fixed", "temperature=0,0.5", f"hydra.sweep.dir={tmp_path / 's'}"]
    assert main(words) == 0
    found = [OmegaConf.load(path) for path in sorted((tmp_path / "s").glob("*/config.yaml"))]
    rules = [cfg.strategy.select._target_.rpartition(".")[2] for cfg in found]
    assert rules == ["ConfidenceThreshold", "ConfidenceThreshold", "FixedSchedule", "FixedSchedule"]
    assert [cfg.sampler.temperature for cfg in found] == [0, 0.5, 0, 0.5]


def test_python_and_the_command_line_answer_from_one_table() -> None:
    decoder = load("toy_copy", "threshold")
    for name, ours in SAME.items():
        with pytest.raises(ConfigError, match=ours):
            decoder.generate("abc", **{name: 1})
    for name, advice in OTHERWISE.items():
        with pytest.raises(ConfigError) as error:
            decoder.generate("abc", **{name: 1})
        assert advice in str(error.value)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--version", 0, "dllm_decode 0."),
        ("--vers", 0, "dllm_decode 0."),
        ("strategy=credit --version", 0, "dllm_decode 0."),
        ("--help --version", 0, "dllm_decode 0."),
        ("help", 2, "did you mean --help?"),
        ("version", 2, "did you mean --version?"),
        ("credit", 2, "write key=value or group=option"),
        ("--strategy=credit", 2, "write strategy=credit instead of --strategy=credit"),
        ("--strategy credit", 2, "there is no flag --strategy"),
        ("--verison", 2, "did you mean --version?"),
        ("--config-name foo", 2, "there is no configuration 'foo'"),
        ("--config-name confg", 2, "did you mean config?"),
        ("--config-dir nowhere", 2, "--config-dir must be a folder of options, got nowhere"),
        ("--config-dir", 2, "expected one argument"),
    ],
)
def test_words_that_are_no_settings_get_a_useful_line(
    words: str, code: int, said: str, capsys
) -> None:
    assert main(words.split()) == code
    told = capsys.readouterr()
    assert said in told.out + told.err
    assert len(told.err.splitlines()) <= 1
