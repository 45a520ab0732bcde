"""`task=chat`: talk to a model in the terminal, and switch strategies in the middle."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dllm_decode.config.instantiate import PARTS
from dllm_decode.errors import ConfigError, DllmDecodeError, require, require_count
from dllm_decode.tasks import Context, Task, strategy_name

if TYPE_CHECKING:
    from dllm_decode.api import TextDecoder
    from dllm_decode.decoding.outcome import Result

_PAUSE = 0.15  # seconds that a pass is seen at least, at speed 1
HELP = """\
/strategy NAME    another strategy, e.g. /strategy threshold, with its defaults
/KEY VALUE        a setting of the parts that run, e.g. /threshold 0.8,
                  /schedule.length 16, or /max_new_tokens 32
/again            the last question once more, with what is set now
/trace            a page that plays the last answer
/new              forget the conversation
/quit             end (also Ctrl-D; Ctrl-C ends an answer)"""


@dataclass(frozen=True)
class Chat(Task):
    """Reads questions from the terminal and decodes answers while the canvas is shown.

    Attributes:
        max_new_tokens: Columns per answer, None for 64.
        seed: Of the first answer; each further one has the next.
        memory: Whether earlier turns are part of the prompt, None for yes, except with the bundled
            model, which has learned to answer single questions.

    Raises:
        ConfigError: A setting is out of range.

    Examples:
        >>> Chat(max_new_tokens=32).seed
        0
    """

    max_new_tokens: int | None = None
    seed: int = 0
    memory: bool | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            require_count("max_new_tokens", self.max_new_tokens)
        require_count("seed", self.seed, minimum=0)
        require(self.seed < 2**62, f"seed must be less than 2**62, got {self.seed}")

    def run(self, context: Context) -> int:
        """Talk until the input ends; write `chat.jsonl`."""
        talk = _Talk(self, context, context.decoder)
        talk.greet()
        try:
            while talk.turn(_ask(context)):
                pass
        finally:
            context.folder.write_jsonl("chat.jsonl", talk.turns)
        context.display.say(f"run folder: {context.folder.path}")
        return 0


def _ask(context: Context) -> str | None:
    """The next line, None at the end of the input."""
    with suppress(ImportError):  # line editing and history, where Python has them
        import readline  # noqa: F401
    try:
        return input("" if context.display.silent else "> ")
    except (EOFError, RuntimeError):  # the latter: there is no standard input
        return None


@dataclass
class _Talk:
    """A conversation, and the decoder that answers at the moment.

    Attributes:
        task: Its settings.
        context: Of the run.
        decoder: With the strategy that was chosen last.
        words: Overrides that were typed since the last /strategy, that one included.
        history: Messages so far, where they are part of the prompt.
        turns: What `chat.jsonl` gets.
        page: Writes the player of the last answer; None before the first.
        columns: Of the next answer.
        asked: Questions so far, repeated ones not counted; the seed of each is its own.
    """

    task: Chat
    context: Context
    decoder: TextDecoder
    words: tuple[str, ...] = ()
    history: list[dict[str, Any]] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    page: Callable[[], str] | None = None
    columns: int = 0
    asked: int = 0

    @property
    def name(self) -> str:
        """The strategy in the words that chose it."""
        chosen = [word for word in self.words if word.startswith("strategy=")]
        if not chosen:
            return self.context.strategy_name
        return strategy_name(chosen[-1].partition("=")[2], self.words)

    def greet(self) -> None:
        """Model, strategy, and where help is."""
        from dllm_decode.tasks.generate import first_line

        self.context.display.paragraph(first_line(self.decoder))
        self.context.display.say("type a question, or /help", "dim")

    def turn(self, line: str | None) -> bool:
        """Answer a line or carry it out; returns whether to go on."""
        if line is None or line.strip() in ("/quit", "/exit"):
            return False
        line = line.strip()
        try:
            if line.startswith("/"):
                self._command(*line[1:].split(None, 1))
            elif line:
                self._answer(line)
        except DllmDecodeError as error:
            self.context.display.paragraph(f"error: {error}", "red")
        return True

    # Commands.

    def _command(self, name: str = "", rest: str = "") -> None:
        commands = {
            "help": self._help,
            "again": self._again,
            "trace": self._trace,
            "new": self._new,
        }
        if name in commands:
            commands[name]()
        elif name == "strategy" and rest:
            self._switch(tuple(f"strategy={rest}".split()))
        elif name == "max_new_tokens" and rest:
            columns = int(rest) if rest.isdecimal() else rest
            require_count("max_new_tokens", columns)
            self.columns = int(columns)
        elif re.split(r"[./@=]", name)[0] in self._elsewhere:
            parts = ", ".join(PARTS)
            raise ConfigError(f"/{name} cannot be changed in a chat; settings of {parts} can")
        elif name and rest:
            self._switch((*self.words, f"{name}={rest}"))
        else:
            self.context.display.say(f"/{name} is no command, or lacks a value\n{HELP}")

    @property
    def _elsewhere(self) -> set[str]:
        """Names at the top of the configuration that belong to no part of the decoder."""
        return {str(name) for name in self.context.cfg} - set(PARTS)

    def _help(self) -> None:
        self.context.display.say(HELP)

    def _switch(self, words: tuple[str, ...]) -> None:
        """Another decoder with the same model; a word that does not fit changes nothing."""
        from dllm_decode.tasks.generate import parts_line

        self.decoder = self.context.decoder_with(*words)
        self.words = words
        self.context.display.paragraph(parts_line(self.decoder), "dim")

    def _again(self) -> None:
        if not self.turns:
            self.context.display.say("there is no question yet")
            return
        before = [*self.history], self.asked
        del self.history[-2:]
        self.asked -= 1
        try:
            self._answer(self.turns[-1]["prompt"])
        except DllmDecodeError:
            self.history, self.asked = before  # the answer that was there is still the last
            raise

    def _trace(self) -> None:
        words = "there is no answer yet" if self.page is None else self.page()
        self.context.display.say(words)

    def _new(self) -> None:
        self.history.clear()
        self.context.display.say("the conversation begins anew", "dim")

    # Answers.

    def _answer(self, text: str) -> None:
        from dllm_decode.console.display import CanvasView
        from dllm_decode.console.watching import CanvasObserver
        from dllm_decode.decoding.observer import Interrupted
        from dllm_decode.tasks.generate import note_for_strangers, with_candidates

        display, decoder = self.context.display, self.decoder
        note = note_for_strangers(decoder, [text])
        if note:
            display.paragraph(note, "dim")
        view = CanvasView([text], decoder.piece)
        observer = CanvasObserver(view, _PAUSE / display.speed if display.mode == "live" else 0.0)
        request = self._request(decoder, text)
        decoder = with_candidates(decoder, 8, request)
        begin = time.perf_counter()
        try:
            with display.canvas(view):
                watching = () if display.silent else (observer,)
                result = decoder.decode(request, observers=watching, record=True)
        except Interrupted as stop:
            result = stop.result
        self._keep(text, result, request, time.perf_counter() - begin - observer.seconds)

    def _request(self, decoder: TextDecoder, text: str) -> Any:
        from dllm_decode.api import DEFAULT_NEW_TOKENS
        from dllm_decode.decoding.types import Request

        asked: Any = [*self.history, {"role": "user", "content": text}] if self._remembers else text
        length = self.columns or self.task.max_new_tokens or DEFAULT_NEW_TOKENS
        seed = self.task.seed + self.asked
        request = Request((decoder.encode(asked),), length, seeds=(seed,))
        decoder.check(request, ["the conversation" if self.history else "the question"])
        return request

    @property
    def _remembers(self) -> bool:
        from dllm_decode.models.locate import BUNDLED

        model = self.decoder.model
        if not model.tokenizer.has_chat_template:
            return False
        if self.task.memory is None:
            return not model.description.checkpoint.startswith(BUNDLED)
        return self.task.memory

    def _keep(self, text: str, result: Result, request: Any, seconds: float) -> None:
        """Say the answer and what it cost, and remember both."""
        from dllm_decode.console.trace_files import player, trace_of

        (row,), display, name = result.rows, self.context.display, self.name
        self.asked += 1
        answer = row.text.strip()
        display.say(answer or "(empty)", "bold")
        count = f"{row.forwards} pass{'' if row.forwards == 1 else 'es'}"
        over = ", interrupted" if row.finish_reason == "interrupted" else ""
        tokens = f"{len(row.delivered)} token{'' if len(row.delivered) == 1 else 's'}"
        display.say(f"{count}, {tokens}, {name}, {seconds:.2f} s{over}", "dim")
        turn = {"prompt": text, "answer": answer, "strategy": name, "overrides": self.words}
        costs = {"forwards": row.forwards, "finish_reason": row.finish_reason, "seconds": seconds}
        self.turns.append({**turn, **costs})
        if self._remembers:
            self.history += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": answer},
            ]
        number, model = len(self.turns), self.decoder.model

        def page() -> str:
            trace = trace_of(request, result, [text], model)
            place = self.context.folder.write_text(f"turn-{number}.html", player({name: trace}))
            return f"open {place}"

        self.page = page
