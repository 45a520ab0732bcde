from __future__ import annotations

import json
import os
import re
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dllm_decode import ConfigError
from dllm_decode.cli import main
from dllm_decode.tasks.chat import Chat


def talk(folder: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    left: Iterator[str] = iter(lines)

    def ask(_: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", ask)
    place = f"hydra.run.dir={folder}"
    toy = ["model=toy_shuffle", "max_new_tokens=8"]
    return main(["task=chat", *toy, "display=plain", place, *words])


def turns(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "chat.jsonl").open()]


@pytest.mark.slow
def test_the_strategy_can_be_switched_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["abcd", "/strategy threshold threshold=0.1", "/again", "/trace", "/quit", "never"]
    assert talk(tmp_path, lines, monkeypatch) == 0
    kept = turns(tmp_path)
    assert [turn["strategy"] for turn in kept] == ["credit", "threshold"]
    assert kept[0]["forwards"] > kept[1]["forwards"] == 1
    told = capsys.readouterr().out
    assert "confidence threshold (threshold 0.1)" in told and "1 pass, 4 tokens" in told
    assert (tmp_path / "turn-2.html").is_file()


@pytest.mark.slow
def test_a_question_that_fails_again_leaves_the_conversation_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds: list[int] = []

    def check(self, request, sources=()) -> None:
        if request.lengths[0] > 100:
            raise ConfigError("that is too long")
        seeds.extend(request.seeds)

    monkeypatch.setattr("dllm_decode.api.TextDecoder.check", check)
    lines = [
        "abcd", "/schedule.length 3", "/max_new_tokens 0", "/max_new_tokens x",
        "/max_new_tokens 101", *["/again"] * 8, "/max_new_tokens 1", "/again",
    ]  # fmt: skip
    assert talk(tmp_path, lines, monkeypatch, "seed=5") == 0
    told = capsys.readouterr().out
    assert "blocks (length 3)" in told  # what was changed is said
    assert "max_new_tokens must be a whole number >= 1, got 0" in told
    assert "max_new_tokens must be a whole number >= 1, got 'x'" in told
    assert told.count("that is too long") == 8 and seeds == [5, 5]
    assert "1 pass, 1 token," in told and len(turns(tmp_path)) == 2


@pytest.mark.slow
def test_every_command_does_what_its_help_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "/again", "/trace", "abcd", "/strategy sequential", "/again", "/strategy threshold",
        "/threshold 0.1", "/again", "/trace", "/max_new_tokens 4", "abc", "/threshold",
        "/strategy x", "/model toy_copy", "/threshold nine", "not in its alphabet", "", "/help",
        "/quit", "never",
    ]  # fmt: skip
    assert talk(tmp_path, lines, monkeypatch) == 0
    told = capsys.readouterr().out
    kept = turns(tmp_path)
    assert [turn["prompt"] for turn in kept] == ["abcd"] * 3 + ["abc"]
    assert [turn["strategy"] for turn in kept] == ["credit", "sequential", *["threshold"] * 2]
    assert kept[2]["overrides"] == ["strategy=threshold", "threshold=0.1"]
    passes = [turn["forwards"] for turn in kept]
    assert passes[1] >= passes[0] == 5 > passes[2] == 1
    for words in (
        "there is no question yet", "there is no answer yet",
        "confidence threshold (threshold 0.1)", f"open {tmp_path / 'turn-3.html'}",
        "/threshold is no command, or lacks a value",
        "error: unknown option strategy=x", "error: /model cannot be changed in a chat",
        "error: strategy.select.threshold must be a number", "the prompt contains",
        "another strategy, e.g.", "1 pass, 4 tokens, threshold, ",
    ):  # fmt: skip
        assert words in told, words
    assert '"name": "threshold"' in (tmp_path / "turn-3.html").read_text()


@pytest.mark.slow
def test_the_bundled_model_gets_each_question_alone_and_memory_can_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=llada", "model.checkpoint=bundled:llada-tiny", "max_new_tokens=32"]
    lines = ["Sort: 1 Eva 2 Ben 3 Cleo"] * 2
    assert talk(tmp_path / "a", lines, monkeypatch, *words) == 0
    assert [turn["answer"] for turn in turns(tmp_path / "a")] == ["1 Ben 2 Cleo 3 Eva"] * 2
    assert "outside what the small" not in capsys.readouterr().out
    seen: list[int] = []
    monkeypatch.setattr(
        "dllm_decode.api.TextDecoder.check",
        lambda self, request, sources=(): seen.append(len(request.prompts[0])),
    )
    lines = [*lines, "/new", "Hello"]
    assert talk(tmp_path / "b", lines, monkeypatch, *words, "task.memory=true") == 0
    assert seen[0] < seen[1] > seen[2]
    told = capsys.readouterr().out
    assert told.count("outside what the small") == 1 and "begins anew" in told


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"seed": 2**62}, r"seed must be less than 2\*\*62"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Chat(**settings)


class Terminal:
    """A process on a pseudo-terminal of 80 x 24."""

    def __init__(self, *words: str) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self.process, self.screen = pty.fork()
        if self.process == 0:
            os.environ.update(TERM="xterm-256color", COLUMNS="80", LINES="24")
            os.execv(sys.executable, [sys.executable, "-m", "dllm_decode", *words])
        fcntl.ioctl(self.screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.raw = ""

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.raw)

    def until(self, words: str, seconds: float = 90) -> None:
        """Read until the words have been seen since the last call."""
        begin, deadline = len(self.text), time.monotonic() + seconds
        while words not in self.text[begin:]:
            assert time.monotonic() < deadline, f"no {words!r} in {self.text[-2000:]}"
            if select.select([self.screen], [], [], 0.2)[0]:
                try:
                    self.raw += os.read(self.screen, 65536).decode("utf-8", "replace")
                except OSError:
                    break
        assert words in self.text[begin:], self.text[-2000:]

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def end(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_chat_on_a_terminal_shows_the_canvas_and_survives_control_c(tmp_path: Path) -> None:
    words = ["model=llada", "model.checkpoint=bundled:llada-tiny", "display.speed=0.1"]
    chat = Terminal("task=chat", *words, "max_new_tokens=32", f"hydra.run.dir={tmp_path}")
    chat.until("or /help")
    chat.type("Latin square of A B C D\n")
    chat.until("passes, ")
    assert chat.raw.count("·") > 50 and "48;5;" in chat.raw  # repainted, in colours
    chat.type("/strategy sequential\n")
    chat.until("tokens_per_step 1")
    chat.type("/again\n")
    chat.until("∎")
    chat.type("\x03")
    chat.until("interrupted")
    chat.type("/strategy credit\n/trace\n")
    chat.until("turn-2.html")
    time.sleep(1)  # an end of input is lost on a terminal that nobody reads yet
    chat.type("\x04")
    chat.until("run folder")
    assert chat.end() == 0
    kept = turns(tmp_path)
    assert [turn["finish_reason"] for turn in kept] == ["eot", "interrupted"]
    assert (tmp_path / "turn-2.html").is_file()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_race_on_a_terminal_is_paced_and_ends_with_sentence_table_and_folder(
    tmp_path: Path,
) -> None:
    words = ["model=llada", "model.checkpoint=bundled:llada-tiny", "strategy=credit"]
    begin = time.monotonic()
    run = Terminal(*words, "task.samples=3", f"hydra.run.dir={tmp_path}")
    run.until("sequential: pass 1 ")
    middle = time.monotonic()
    run.until("trace.html")
    assert run.end() == 0
    assert 4 < time.monotonic() - middle < 30 > middle - begin
    assert "48;5;" in run.raw  # colours
    ends = [
        r"sequential: pass \d+, (right|wrong)",
        "passes against",
        "tokens/forward",
        "run folder",
    ]
    places = [max(found.start() for found in re.finditer(words, run.text)) for words in ends]
    assert places == sorted(places)
