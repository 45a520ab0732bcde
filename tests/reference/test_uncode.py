"""Uncode against a plain version, the table of frequencies, and the command that counts."""

import json
import math

import pytest
from changing_model import VOCAB, ChangingModel
from hypothesis import given
from hypothesis import strategies as st
from plain_decode import Now, loop_decode, plain_decode, requests

from dllm_decode.cli import main
from dllm_decode.errors import CheckpointError, ConfigError
from dllm_decode.models.frequencies import TokenFrequencies, counted
from dllm_decode.models.locate import ASSETS
from dllm_decode.strategies.uncode import Uncode
from dllm_decode.tasks.token_frequencies import CountTokens

COUNTS = {"0": 1, "1": 40, "2": 7, "3": 90, "5": 3, "7": 300, "10": 17}


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("table") / "frequencies.json"
    path.write_text(json.dumps({"vocabulary": VOCAB.size, "counts": COUNTS}))
    return str(path)


@given(
    case=requests(), decay=st.sampled_from([0.0, 0.2517, 1.0]),
    ceiling=st.sampled_from([0.513, 2.0, 10.0]), steps=st.sampled_from([None, 2]),
)  # fmt: skip
def test_uncode_commits_what_the_plain_version_commits(table, case, decay, ceiling, steps) -> None:
    total = sum(COUNTS.values())

    def rule(now: Now) -> list[int]:
        def score(column: int) -> float:
            share = COUNTS.get(str(now.token[column]), 0) / total
            value = min(ceiling, -now.confidence[column] * math.log(share + 1e-9))
            return value * math.exp(-decay * (column - now.block[0]))

        # what is clipped at the ceiling ties, and the lower column goes first
        line = sorted(now.open, key=lambda column: (-round(score(column), 9), column))
        whole, more = divmod(len(now.block), steps) if steps else (1, 0)
        return line[: max(1, whole + (steps is not None and now.in_block < more))]

    prompts, length, block = case
    model = ChangingModel()
    result = loop_decode(model, prompts, length, Uncode(table, decay, ceiling, steps), block)
    for row, prompt in enumerate(prompts):
        tokens, step_of = plain_decode(model, prompt, length, rule, block)
        assert (list(result.sequences[row]), list(result.step_of[row])) == (tokens, step_of)


def test_a_table_of_another_vocabulary_is_refused(tmp_path) -> None:
    path = tmp_path / "two.json"
    path.write_text('{"vocabulary": 2, "counts": {"1": 1}}')
    with pytest.raises(ConfigError, match=r"vocabulary of 2 tokens, but the model has 12"):
        loop_decode(ChangingModel(), ((1,),), 4, Uncode(str(path)), 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must hold one JSON object"),
        ("{", "cannot be read"),
        ('{"counts": {"1": 1}}', "vocabulary must be a whole number >= 1, got None"),
        ('{"vocabulary": true, "counts": {}}', "vocabulary must be a whole number >= 1, got True"),
        ('{"vocabulary": 3, "counts": [1]}', "counts must be an object"),
        ('{"vocabulary": 3, "counts": {"3": 1}}', r"token id below 3, got \'3\': 1"),
        ('{"vocabulary": 3, "counts": {"x": 1}}', r"token id below 3, got \'x\': 1"),
        ('{"vocabulary": 3, "counts": {"1": -1}}', r"got \'1\': -1"),
        ('{"vocabulary": 3, "counts": {"1": 0.5}}', r"got \'1\': 0.5"),
        ('{"vocabulary": 3, "counts": {"1": 0}}', "no token is counted"),
    ],
)
def test_damaged_tables_are_refused_with_the_name_of_the_file(tmp_path, text, message) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        Uncode(str(path))
    assert str(path) in str(caught.value)


def test_a_missing_table_says_how_to_make_one() -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.json .* task=token_frequencies"):
        Uncode("nowhere.json")


def test_the_bundled_table_is_that_of_the_bundled_model() -> None:
    """A new bundled model needs a new table: task=token_frequencies."""
    config = json.loads((ASSETS / "llada-tiny" / "config.json").read_text())
    assert Uncode().table.share.numel() == config["vocab_size"]


def test_the_command_counts_what_the_strategy_reads(tmp_path, capsys) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("ab\nbb\n")
    words = ["task=token_frequencies", "model=toy_copy", f"prompts={texts}", "display=plain"]
    assert main([*words, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    found = json.loads((tmp_path / "run" / "frequencies.json").read_text())
    assert sum(found["counts"].values()) >= 6 and "strategy=uncode" in capsys.readouterr().out
    assert float(TokenFrequencies.of(found, "it").share.sum()) == pytest.approx(1.0)
    assert counted([[1, 1], [2]], 4) == {"vocabulary": 4, "counts": {"1": 2, "2": 1}}


def test_the_command_refuses_what_it_cannot_count(tmp_path, capsys) -> None:
    words = ["task=token_frequencies", "model=toy_copy", f"hydra.run.dir={tmp_path}"]
    assert main([*words, "task.families=[nope]"]) == 2
    assert "task.families must be names of" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"task\.problems must be a whole number >= 1, got 0"):
        CountTokens(problems=0)
    with pytest.raises(ConfigError, match=r"prompts and task\.families exclude each other"):
        CountTokens("x.txt", ["copy"])


@pytest.mark.parametrize(
    ("key", "value"), [("decay", -1.0), ("ceiling", 0.0), ("steps_per_block", 0)]
)
def test_bad_settings_name_the_key_and_the_value(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} .* got {value}"):
        Uncode(**{key: value})
