"""The number of threads: timed, said, looked at again, and never taken from the user."""

from __future__ import annotations

import json

import pytest
import torch

from dllm_decode.cli import main
from dllm_decode.console import threads
from dllm_decode.console.threads import ThreadWatch, timed_threads
from dllm_decode.errors import ConfigError
from dllm_decode.models import load_model

BUNDLED = "bundled:llada-tiny"


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded():
    return load_model(BUNDLED, body="lean")


@pytest.fixture
def free(monkeypatch, loaded):
    """Nobody has set the number of threads, and torch would take two."""
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(2)


class Machine:
    """Seconds of a pass by number of threads, which may change."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = {1: seconds["one"], 4: seconds["four"]}
        self.used: list[int] = []
        self.said: list[str] = []
        self.limits: list[float] = []

    def timed(self, number: int, most: float) -> float:
        self.limits.append(most)
        return self.seconds[number]

    def watch(self) -> ThreadWatch:
        made = ThreadWatch(self.timed, self.used.append, 4, self.said.append, fixed=10.0)
        made.choose()
        return made


@pytest.mark.parametrize(("one", "four", "best"), [(9, 4, 4), (4, 9, 1), (4, 3.9, 1), (4, 400, 1)])
def test_the_faster_stays_and_several_threads_have_to_gain_something(one, four, best):
    machine = Machine(one=one / 1000, four=four / 1000)
    watch = machine.watch()
    assert machine.used == [best] and machine.said == [watch.why]
    taken = f"{one if best == 1 else four:.1f} ms"
    assert watch.why.startswith(f"{best} thread") and f"a pass takes {taken}" in watch.why
    assert machine.limits[1] < 4 * one  # several threads that wait for each other end the trial


def test_the_choice_is_made_again_when_passes_become_several_times_slower():
    machine = Machine(one=0.010, four=0.004)
    watch = machine.watch()
    for columns in (50, 90, 200) * 4:
        watch(columns, 1e-4 * (10 + columns))
    for columns in (50, 90, 200) * 4:
        watch(columns, 2e-4 * (10 + columns))
    assert machine.used == [4]  # twice as slow is no reason
    machine.seconds[4] = 0.4
    for columns in (50, 90, 200) * 4:
        watch(columns, 5e-4 * (10 + columns))
    assert machine.used == [4, 1] and len(machine.said) == 2


def test_a_machine_that_stays_slow_is_not_timed_again_and_again():
    machine = Machine(one=0.010, four=0.004)
    watch = machine.watch()
    for seconds in (0.004,) * 8 + (0.1,) * 100:
        watch(50, seconds)
    assert len(machine.used) == 2


def test_a_loaded_model_gets_a_watch_and_decodes_the_same(free, loaded):
    said: list[str] = []
    watched = timed_threads(loaded, said.append)
    assert len(said) == 1 and "a pass takes" in said[0]
    torch.set_num_threads(1)
    tokens = torch.arange(20)[None]
    live = torch.ones_like(tokens, dtype=torch.bool)
    ours, theirs = (model.denoiser.hidden(tokens, live) for model in (watched, loaded))
    assert torch.equal(ours, theirs) and len(watched.denoiser.watch._recent) == 1


@pytest.mark.parametrize("name", threads.VARIABLES)
def test_what_the_environment_says_is_left_alone(free, loaded, monkeypatch, name):
    monkeypatch.setenv(name, "2")
    assert timed_threads(loaded, pytest.fail) is loaded and torch.get_num_threads() == 2


def test_toy_worlds_and_single_cores_are_not_timed(free, loaded):
    from dllm_decode import load

    toy = load("toy_copy").model
    assert timed_threads(toy, pytest.fail) is toy
    torch.set_num_threads(1)
    assert timed_threads(loaded, pytest.fail) is loaded


def test_the_number_may_be_a_setting_which_has_to_be_a_count():
    load_model(BUNDLED, body="lean", threads=2)
    assert torch.get_num_threads() == 2
    with pytest.raises(ConfigError, match=r"model\.threads must be a whole number >= 1, got 0"):
        load_model(BUNDLED, threads=0)


@pytest.mark.slow
@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("setting", "chosen"), [("model.threads=1", "model.threads"), ("", "a pass takes")]
)
def test_a_run_says_and_keeps_what_was_chosen(free, tmp_path, capsys, setting, chosen):
    words = f"model=llada compare=false task.samples=1 max_new_tokens=8 {setting}"
    assert main([*words.split(), f"hydra.run.dir={tmp_path}"]) == 0
    kept = json.loads((tmp_path / "env.json").read_text())
    assert chosen in kept["threads_chosen"] and kept["threads"] == torch.get_num_threads()
    assert ("a pass takes" in capsys.readouterr().out) == (not setting)


def test_workers_of_a_sweep_share_the_cores_unless_the_user_says_otherwise(
    free, loaded, monkeypatch
):
    from dllm_decode.tasks import ablation

    monkeypatch.setattr("dllm_decode.console.processes.leave_signals_to_parent", lambda: None)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    torch.set_num_threads(5)
    ablation._share_cores(2)
    assert torch.get_num_threads() == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    ablation._share_cores(2)
    assert torch.get_num_threads() == 3
    assert timed_threads(loaded, pytest.fail) is loaded  # and none of them chooses for itself
