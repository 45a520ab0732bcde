from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from dllm_decode import ConfigError, load
from dllm_decode.console.describe import describe_part, describe_strategy
from dllm_decode.console.display import CanvasView, make_display
from dllm_decode.console.watching import CanvasObserver, ProgressObserver
from dllm_decode.decoding.strategy import NeverStop, Pipeline
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.fixed import FixedSchedule
from dllm_decode.strategies.threshold import ConfidenceThreshold


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=60)


def paper() -> Console:
    return Console(file=io.StringIO(), width=60)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_auto_is_live_in_a_terminal_and_plain_elsewhere() -> None:
    assert make_display("auto", terminal()).mode == "live"
    assert make_display("auto", paper()).mode == "plain"


def test_texts_and_cells_of_tables_are_shown_letter_by_letter(capsys) -> None:
    odd = "stop=[eot,prophet] [red]x[/] :cat:"
    display, sheet = make_display("plain"), Table("run")
    sheet.add_row(odd)
    display.say(odd)
    display.paragraph(odd)
    display.show(sheet)
    assert capsys.readouterr().out.count(odd) == 3


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="display must be one of auto, live, plain, none"):
        make_display("loud")


def test_none_writes_nothing() -> None:
    console = paper()
    display = make_display("none", console)
    display.say("x")
    display.show("x")
    with display.working("x"), display.progress("x", 3) as report:
        report(2)
    with display.canvas(CanvasView(["x"], str)):
        pass
    assert written(console) == ""


def test_text_of_a_model_is_never_read_as_markup() -> None:
    console = paper()
    make_display("plain", console).say("[red]a[/red] [link=x]")
    assert written(console) == "[red]a[/red] [link=x]\n"


def test_a_view_draws_open_columns_as_dots_and_new_tokens_in_bold() -> None:
    view = CanvasView(["title"], "abc".__getitem__)
    view.update(0, 0, [0, None, None])
    view.update(0, 1, [0, 2, None])
    assert view.line(0) == "step   2 | ac·"
    bold = [span for span in view.text(0).spans if "bold" in str(span.style)]
    assert [(span.start, span.end) for span in bold] == [(1, 2)]


def test_a_row_that_starts_again_is_drawn_anew() -> None:
    view = CanvasView(["title"], "abc".__getitem__)
    view.update(0, 0, [0, None])
    view.update(0, 1, [0, 1])
    view.update(0, 0, [None, 1])
    assert view.line(0) == "step   1 | ·b"


def test_more_rows_than_fit_are_counted() -> None:
    view = CanvasView([f"title {row}" for row in range(11)], str)
    console = terminal()
    console.print(view.render())
    assert "title 7" in written(console) and "title 8" not in written(console)
    assert "... and 3 more" in written(console)


def test_a_live_canvas_shows_the_decode_and_cleans_up() -> None:
    console = terminal()
    display = make_display("live", console)
    decoder = load("toy_copy", "sequential", overrides=["schedule=whole"])
    view = CanvasView(["cab"], decoder.piece)
    with display.canvas(view):
        decoder.generate("cab", max_new_tokens=5, observers=[CanvasObserver(view)])
    assert view.text(0).plain == "cab∎"
    assert "cab" in written(console)


def test_progress_counts_columns_that_need_no_more_work() -> None:
    reports: list[float] = []
    decoder = load("toy_copy", "sequential")
    observer = ProgressObserver(3 * 40, reports.append)
    decoder.generate(["cab", "de", "f"], max_new_tokens=40, batch_size=2, observers=[observer])
    assert reports[-1] == 120
    assert all(0 <= report <= 120 for report in reports)


def test_plain_progress_speaks_only_about_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("dllm_decode.console.display.time.monotonic", lambda: now[0])
    console = paper()
    with make_display("plain", console).progress("working", 10) as report:
        for now[0], done in ((1.0, 1), (3.0, 5), (4.0, 6), (14.0, 8)):
            report(done)
    assert written(console) == "working: 50 %\nworking: 80 %\n"


def test_a_part_in_words_is_its_class_its_numbers_and_what_is_not_default() -> None:
    assert describe_part(ConfidenceThreshold()) == "confidence threshold (threshold 0.9)"
    words = describe_part(ConfidenceThreshold(threshold=0.5, strict=True, at_least=2))
    assert words == "confidence threshold (threshold 0.5, strict True, at_least 2)"
    assert describe_part(FixedSchedule()) == "fixed schedule (steps_per_block 16)"
    assert describe_part(NeverStop()) == "never stop"


def test_a_strategy_in_words_is_its_parts_in_order() -> None:
    strategy = Pipeline(
        ConfidenceThreshold(), transforms={"credit": TraceCredit()}, stop={"never": NeverStop()}
    )
    words = describe_strategy(strategy)
    assert words.startswith("trace credit (") and words.endswith(
        "-> confidence threshold (threshold 0.9)"
    )
    assert describe_strategy(ConfidenceThreshold()) == "confidence threshold (threshold 0.9)"


def test_what_is_shown_later_is_shown_now_only_where_it_takes_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("dllm_decode.console.display.time.monotonic", lambda: now[0])
    for seconds, seen in ((0.2, False), (1.0, True)):
        console, view = terminal(), CanvasView(["title"], "abc".__getitem__)
        now[0] = 0.0
        with make_display("live", console).canvas(view, shown_later=True):
            now[0] = seconds
            view.update(0, 0, [0, None])
        assert ("title" in written(console)) == seen


def test_a_canvas_is_coloured_by_confidence() -> None:
    view = CanvasView(["title"], "abc".__getitem__)
    view.update(0, 0, [0, 1, None], {0: 0.3, 1: 0.995})
    styles = [str(span.style) for span in view.text(0).spans]
    assert "#f4a582" in styles[0] and "#4393c3" in styles[1] and styles[2] == "dim"


@pytest.mark.parametrize("speed", [0.0, -1.0, float("inf"), float("nan")])
def test_a_speed_out_of_range_is_refused(speed: float) -> None:
    with pytest.raises(ConfigError, match="speed must be a number above 0"):
        make_display("auto", paper(), speed)
