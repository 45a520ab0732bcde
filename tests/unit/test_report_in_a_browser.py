"""The page of a report in a real browser: what a person clicks, and what comes of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from dllm_decode.evaluation import store
from dllm_decode.evaluation.metrics import Sample
from dllm_decode.evaluation.reporting import report

sys.path.insert(0, str(Path(__file__).parents[1]))
from browsers import chromium, watched
from test_report import EOT, THRESHOLD, TOP_ONE, run

pytestmark = pytest.mark.slow
WORDS = ("One", " two", " three", " four")


def answers(wrong: set[int], forwards: int) -> list[Sample]:
    return [
        Sample(
            problem=f"copy/{n}", family="copy" if n % 2 else "sort", prompt=f"Problem {n} <b>",
            text="".join(WORDS), correct=n not in wrong, forwards=forwards, slots=8,
            steps=tuple(i * forwards // 4 for i in range(4)), confidence=(0.4, 0.6, 0.8, 1.0),
            pieces=WORDS, seconds=0.1,
        )
        for n in range(20)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("itables")
    pytest.importorskip("vl_convert")
    folder = tmp_path_factory.mktemp("report")
    runs = folder / "runs"
    run(runs, "sequential", answers(set(), 8), select=TOP_ONE)
    for order, (value, wrong) in enumerate(((0.5, {1, 2, 3, 4, 5, 6}), (0.9, {6})), start=1):
        for place, length in enumerate((8, 32)):
            run(
                runs, f"threshold {value} length={length}", answers(wrong, 2 * order),
                select={**THRESHOLD, "threshold": value}, order=2 * order + place,
                settings={
                    "strategy": {"select": {**THRESHOLD, "threshold": value}, "stop": EOT},
                    "schedule": {"_target_": "x.Blocks", "length": length},
                },
            )  # fmt: skip
    report.write_report(
        store.collect(runs), folder / "out", report.ReportSettings(draw=False, answers=50)
    )
    return (folder / "out" / "report.html").as_uri()


@pytest.fixture(scope="module", params=["light", "dark"])
def browser(request, page):
    with chromium() as running:
        size = {"width": 1280, "height": 1600}
        context = running.new_context(viewport=size, color_scheme=request.param, offline=True)
        opened = context.new_page()
        faults = watched(opened)
        opened.goto(page)
        opened.wait_for_function("document.getElementById('explore').dataset.ready", timeout=60_000)
        yield opened
        # nothing was asked of a network that is not there, and no program failed
        assert faults == []


def cells(browser, css: str) -> list[str]:
    return browser.locator(css).all_inner_texts()


def button(browser, name: str, right: bool):
    for row in browser.locator("#runs tbody tr").all():
        if row.locator("td").first.inner_text() == name:
            return row.locator(f"button[data-right={str(right).lower()}]")
    raise AssertionError(name)


def select(browser, mark: str, value: str) -> None:
    browser.locator(f"#{mark}").select_option(value)


def test_what_one_run_got_wrong_and_another_right_is_two_clicks(browser):
    button(browser, "threshold 0.5 length=8", right=False).click()
    button(browser, "threshold 0.9 length=8", right=True).click()
    told = browser.locator("#chosen").inner_text()
    assert told.startswith(
        "5 problems: threshold 0.5 length=8 wrong, threshold 0.9 length=8 right."
    )
    prompts = cells(browser, "#samples tbody tr td:nth-child(2)")
    assert prompts == [f"Problem {n} <b>" for n in (1, 2, 3, 4, 5)]
    rows = cells(browser, "#samples tbody tr:first-child td")
    assert rows[2] == "✗ One two three four" and rows[3] == "2" and rows[5] == "4"

    # the answer, pass by pass
    players = browser.locator("#players .play")
    assert players.count() == 2
    players.first.locator("input[type=range]").fill("1")
    shown = players.first.locator(".cells span")
    assert [text.strip() for text in shown.all_inner_texts()] == ["One", "two", "·", "·"]
    assert "confidence 60 %" in shown.nth(1).get_attribute("title")

    browser.locator("#clear").click()
    assert "Choose" in browser.locator("#chosen").inner_text()
    assert cells(browser, "#players .play") == []


def test_runs_are_sorted_filtered_and_grouped_by_their_factors(browser):
    heads = [text.strip() for text in cells(browser, "#runs thead .dt-column-title")]
    assert heads[2:5] == ["strategy", "threshold", "length"]
    head = browser.locator("#runs thead .dt-column-title")
    head.get_by_text("tokens per forward", exact=True).click()
    names = cells(browser, "#runs tbody td:first-child")
    assert names[0] == "sequential"
    search = browser.locator("#explore .dt-search input")
    search.press_sequentially("length=32")
    assert len(cells(browser, "#runs tbody tr")) == 2
    # charts show what the table shows
    assert browser.locator("#chart .mark-symbol.role-mark path").count() == 2
    for _ in "length=32":
        search.press("Backspace")
    select(browser, "group", "length")
    groups = cells(browser, "#runs tbody tr.dtrg-group")
    assert [text.split(" (")[0] for text in groups][-2:] == ["length: 8", "length: 32"]
    select(browser, "group", "")
    assert len(cells(browser, "#runs tbody tr")) == 5


def test_a_pivot_and_the_best_at_every_accuracy_are_those_of_the_runs(browser):
    select(browser, "rows", "threshold")
    select(browser, "columns", "length")
    select(browser, "cells", "accuracy")
    found = browser.locator("#pivot .mark-text.role-mark text").all_text_contents()
    assert sorted(found) == ["100.0", "70.0", "70.0", "95.0", "95.0"]
    floors = [re.sub(r"\s+", " ", text) for text in cells(browser, "#floors tbody tr")]
    assert floors[0].startswith("80 % threshold 0.9 length=8") and "99.5 % sequential" in floors[-1]
    select(browser, "family", "copy")
    assert cells(browser, "#runs tbody tr td:nth-child(6)")[0].startswith("100.0")
    select(browser, "family", "all families")


def test_a_click_on_a_point_of_the_chart_shows_what_that_run_got_wrong(browser):
    point = browser.locator("#chart .mark-symbol.role-mark path").last
    point.scroll_into_view_if_needed()
    point.hover()
    tip = browser.locator("#vg-tooltip-element")
    tip.wait_for()
    assert "tokens per forward" in tip.inner_text() and "threshold" in tip.inner_text()
    point.click()
    assert "wrong" in browser.locator("#chosen").inner_text()
    browser.locator("#clear").click()
