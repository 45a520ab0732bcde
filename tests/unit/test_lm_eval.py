"""The harness adapter, offline: exact log-likelihoods, options, chats, caches, whole runs."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from dllm_decode.errors import ConfigError
from dllm_decode.lm_eval import Answer, HarnessModel, log_likelihood
from dllm_decode.models.toy import Markov, Shuffle, Table


def asked(context: str, **options) -> Instance:
    return Instance("generate_until", {}, (context, options), 0)


@pytest.fixture(scope="module")
def shuffle() -> HarnessModel:
    return HarnessModel(model="toy_shuffle", strategy="sequential", schedule="whole", batch_size=4)


@pytest.mark.parametrize(
    ("world", "answers"),
    [
        (Table(outcomes={"ab": 4, "ba": 4, "aa": 2}, noise=0.0, floor=0.0), ("ab", "aa")),
        (Table(outcomes={"abc": 5, "bca": 3, "aab": 1, "cab": 1}, noise=0.0, floor=0.0),
         ("abc", "aab", "bca")),
        (Shuffle(n=4, noise=0.0, floor=0.0), ("abcd", "dcba")),
        (Markov(noise=0.0, floor=0.0), ()),
    ],
)  # fmt: skip
def test_enumerated_log_likelihood_equals_the_exact_log_joint(world, answers):
    prompt = world.tokenizer.encode(world.default_prompt)
    for answer in answers or (world.default_prompt[:3] or world.symbols[:1] * 3,):
        ids = [world.symbols.index(symbol) for symbol in answer]
        chance = world.probability(world.default_prompt, answer)
        if chance == 0 or len(answer) < int(world.lengths(_items(world))[0]):
            continue
        assert log_likelihood(world, prompt, ids) == pytest.approx(math.log(chance), abs=1e-9)


def _items(world):
    import torch

    return torch.tensor([[world.symbols.index(s) for s in world.default_prompt] or [-1]])


def test_the_random_estimate_agrees_with_the_exact_value():
    world = Table(outcomes={"abc": 5, "bca": 3, "aab": 1, "cab": 1}, noise=0.0, floor=0.0)
    ids = [world.symbols.index(symbol) for symbol in "abc"]
    draws = [log_likelihood(world, [], ids, draws=6, seed=seed) for seed in range(400)]
    exact = math.log(0.5)
    mean = sum(draws) / len(draws)
    spread = math.sqrt(sum((d - mean) ** 2 for d in draws) / len(draws) / (len(draws) - 1))
    assert abs(mean - exact) < 4.5 * spread
    assert len(set(draws)) > 1


def test_an_empty_continuation_is_certain():
    assert log_likelihood(Shuffle(n=3), [], []) == 0.0


def test_what_is_longer_than_the_model_is_refused():
    class Short(Shuffle):
        max_length = 3

    with pytest.raises(ConfigError, match="need 4 positions, the model has 3"):
        log_likelihood(Short(n=3), [0], [0, 1, 2])


def test_the_model_is_registered(shuffle):
    assert get_model("dllm_decode") is HarnessModel


def test_answers_carry_their_forwards_and_survive_a_cache(shuffle):
    (answer,) = shuffle.generate_until([asked("abcdef>", max_gen_toks=6)])
    assert sorted(answer) == list("abcdef")
    assert answer.stats == {"forwards": 6, "tokens": 6, "slots": 6, "finish_reason": "length"}
    again = pickle.loads(pickle.dumps(answer))
    assert (again, again.stats) == (answer, answer.stats)


def test_requests_of_different_lengths_and_options_keep_their_places(shuffle):
    requests = [
        asked("abc>", max_gen_toks=3),
        asked("abcdef>", max_gen_toks=6, **{"strategy.select.tokens_per_step": 6}),
        asked("abcd>", max_new_tokens=4),
    ]
    answers = shuffle.generate_until(requests)
    assert [answer.stats["forwards"] for answer in answers] == [3, 1, 4]
    assert [answer.stats["slots"] for answer in answers] == [3, 6, 4]


def test_a_batch_does_not_change_an_answer(shuffle):
    requests = [asked("abcdef>", max_gen_toks=6, temperature=1.0) for _ in range(5)]
    small = HarnessModel(model="toy_shuffle", strategy="sequential", schedule="whole", batch_size=1)
    assert shuffle.generate_until(requests) == small.generate_until(requests)
    assert len(set(shuffle.generate_until(requests))) > 1


def test_answers_end_at_the_first_stop_text(shuffle):
    (whole,) = shuffle.generate_until([asked("abcdef>", max_gen_toks=6)])
    (short,) = shuffle.generate_until([asked("abcdef>", max_gen_toks=6, until=["zz", whole[2]])])
    assert short == whole[:2]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"colour": 3}, "unknown option 'colour'"), ({"max_gen_toks": 0}, "max_gen_toks must be"),
     ({"strategy.select.treshold": 1}, "treshold")],
)  # fmt: skip
def test_requests_that_cannot_be_are_refused(shuffle, options, message):
    with pytest.raises(ConfigError, match=message):
        shuffle.generate_until([asked("abc>", **options)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"batch_size": "many"}, "batch_size must be"), ({"mc_num": 0}, "mc_num must be"),
     ({"strategy": "credits"}, "did you mean strategy=credit")],
)  # fmt: skip
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        HarnessModel(**{"model": "toy_shuffle", **arguments})


def test_batch_sizes_as_the_harness_passes_them():
    made = HarnessModel(model="toy_copy", batch_size="auto", max_batch_size=8, device="cpu")
    assert made.batch_size == 8


def test_log_likelihoods_of_requests(shuffle):
    request = Instance("loglikelihood", {}, ("abc>", "bca"), 0)
    ((score, greedy),) = shuffle.loglikelihood([request])
    assert score == pytest.approx(math.log(1 / 6), abs=1e-4)
    assert greedy is False
    (rolling,) = shuffle.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("abc",), 0)])
    assert rolling < 0


class Stored(dict):
    """What a cache hook hands over."""


class Hook:
    def __init__(self, stored: Stored) -> None:
        self.dbdict = stored

    def add_partial(self, *_):
        return None


def test_a_cache_of_another_configuration_is_refused(shuffle):
    stored = Stored()
    other = HarnessModel(model="toy_shuffle", strategy="topk", schedule="whole")
    shuffle.set_cache_hook(Hook(stored))
    shuffle.set_cache_hook(Hook(stored))  # its own is fine
    with pytest.raises(ConfigError, match="holds answers of another configuration"):
        other.set_cache_hook(Hook(stored))


def tasks(folder: Path) -> TaskManager:
    """A generation task and a scoring task on local files."""
    rows = [{"q": "abc>", "a": "abc", "b": "aab"}, {"q": "bca>", "a": "cab", "b": "bb"}]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "score.py").write_text(
        "def grade(doc, results):\n"
        "    answer = results[0]\n"
        "    return {'right': float(sorted(answer) == sorted(doc['a'])),\n"
        "            'forwards': answer.stats['forwards']}\n"
    )
    common = f"""
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{{{{q}}}}"
"""
    (folder / "shuffled.yaml").write_text(
        f"""task: shuffled
{common}
doc_to_target: ""
output_type: generate_until
generation_kwargs:
  until: ["?"]
  max_gen_toks: 3
process_results: !function score.grade
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
  - metric: forwards
    aggregation: mean
    higher_is_better: false
"""
    )
    (folder / "choice.yaml").write_text(
        f"""task: choice
{common}
output_type: multiple_choice
doc_to_choice: "{{{{[b, a]}}}}"
doc_to_target: 1
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
    )
    return TaskManager(include_path=str(folder), include_defaults=False)


def test_whole_runs_on_local_tasks(shuffle, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    found = lm_eval.simple_evaluate(
        model=shuffle, tasks=["shuffled", "choice"], task_manager=tasks(tmp_path),
        bootstrap_iters=0,
    )["results"]  # fmt: skip
    assert found["shuffled"]["right,none"] == 1.0
    assert found["shuffled"]["forwards,none"] == 3.0
    assert found["choice"]["acc,none"] == 1.0


def test_chats_go_through_the_checkpoints_template():
    made = HarnessModel(model="llada", pretrained="bundled:llada-tiny", strategy="credit")
    history = [{"role": "user", "content": "Copy: 1 Ada 2 Ben 3 Eva"}]
    text = made.apply_chat_template(history)
    tokenizer = made.text.model.tokenizer
    assert tokenizer.encode(text) == tokenizer.encode_chat(history)
    assert made.chat_template() and made.tokenizer_name
    (answer,) = made.generate_until([asked(text, max_gen_toks=32)])
    assert isinstance(answer, Answer) and answer.stats["forwards"] >= 1


@pytest.mark.slow
def test_the_command_line_runs_local_tasks_offline(tmp_path):
    tasks(tmp_path)
    words = ["run", "--model", "dllm_decode", "--tasks", "shuffled", "--include_path"]
    words += [str(tmp_path), "--batch_size", "4", "--use_cache", str(tmp_path / "answers")]
    words += ["--model_args", "model=toy_shuffle,strategy=sequential,schedule=whole"]
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "dllm_decode.lm_eval", *words],
        env={**os.environ, **offline}, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "forwards" in done.stdout
    assert len(list(tmp_path.glob("answers-*.db"))) == 1
