"""The page of a report in a real browser: what a person clicks, and what comes of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dllm_decode.evaluation import store
from dllm_decode.evaluation.metrics import Sample
from dllm_decode.evaluation.reporting import report

sys.path.insert(0, str(Path(__file__).parents[1]))
from browsers import chromium
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
    report.write_report(store.collect(runs), folder / "out", draw=False, answers=50)
    return (folder / "out" / "report.html").as_uri()


@pytest.fixture(scope="module", params=[False, True], ids=["light", "dark"])
def browser(request, page):
    from selenium.webdriver.support.ui import WebDriverWait

    with chromium(dark=request.param) as opened:
        opened.get(page)
        ready = "return document.getElementById('explore').dataset.ready"
        WebDriverWait(opened, 60).until(lambda b: b.execute_script(ready))
        yield opened
        # nothing was asked of a network that is not there, and no program failed
        assert [entry["message"] for entry in opened.get_log("browser")] == []


def cells(browser, css: str) -> list[str]:
    return [element.text for element in browser.find_elements("css selector", css)]


def button(browser, name: str, right: bool):
    for row in browser.find_elements("css selector", "#runs tbody tr"):
        if row.find_element("css selector", "td").text == name:
            return row.find_element("css selector", f"button[data-right={str(right).lower()}]")
    raise AssertionError(name)


def select(browser, mark: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", mark)).select_by_value(value)


def test_what_one_run_got_wrong_and_another_right_is_two_clicks(browser):
    button(browser, "threshold 0.5 length=8", right=False).click()
    button(browser, "threshold 0.9 length=8", right=True).click()
    told = browser.find_element("id", "chosen").text
    assert told.startswith(
        "5 problems: threshold 0.5 length=8 wrong, threshold 0.9 length=8 right."
    )
    prompts = cells(browser, "#samples tbody tr td:nth-child(2)")
    assert prompts == [f"Problem {n} <b>" for n in (1, 2, 3, 4, 5)]
    rows = cells(browser, "#samples tbody tr:first-child td")
    assert rows[2] == "✗ One two three four" and rows[3] == "2" and rows[5] == "4"

    # the answer, pass by pass
    players = browser.find_elements("css selector", "#players .play")
    assert len(players) == 2
    slider = players[0].find_element("css selector", "input[type=range]")
    browser.execute_script(
        "arguments[0].value = 1; arguments[0].dispatchEvent(new Event('input'))", slider
    )
    shown = [span.text for span in players[0].find_elements("css selector", ".cells span")]
    assert [text.strip() for text in shown] == ["One", "two", "·", "·"]
    assert "confidence 60 %" in players[0].find_elements("css selector", ".cells span")[
        1
    ].get_attribute("title")

    browser.find_element("id", "clear").click()
    assert "Choose" in browser.find_element("id", "chosen").text
    assert cells(browser, "#players .play") == []


def test_runs_are_sorted_filtered_and_grouped_by_their_factors(browser):
    heads = [text.strip() for text in cells(browser, "#runs thead .dt-column-title")]
    assert heads[2:5] == ["strategy", "threshold", "length"]
    for head in browser.find_elements("css selector", "#runs thead .dt-column-title"):
        if head.text.strip() == "tokens per forward":
            head.click()
    names = cells(browser, "#runs tbody td:first-child")
    assert names[0] == "sequential"
    search = browser.find_element("css selector", "#explore .dt-search input")
    search.send_keys("length=32")
    assert len(cells(browser, "#runs tbody tr")) == 2
    # charts show what the table shows
    marks = "return document.querySelectorAll('#chart .mark-symbol.role-mark path').length"
    assert browser.execute_script(marks) == 2
    for _ in "length=32":
        search.send_keys("\ue003")
    select(browser, "group", "length")
    groups = cells(browser, "#runs tbody tr.dtrg-group")
    assert [text.split(" (")[0] for text in groups][-2:] == ["length: 8", "length: 32"]
    select(browser, "group", "")
    assert len(cells(browser, "#runs tbody tr")) == 5


def test_a_pivot_and_the_best_at_every_accuracy_are_those_of_the_runs(browser):
    select(browser, "rows", "threshold")
    select(browser, "columns", "length")
    select(browser, "cells", "accuracy")
    texts = "return [...document.querySelectorAll('#pivot .mark-text.role-mark text')]"
    found = browser.execute_script(f"{texts}.map((e) => e.textContent)")
    assert sorted(found) == ["100.0", "70.0", "70.0", "95.0", "95.0"]
    floors = cells(browser, "#floors tbody tr")
    assert floors[0].startswith("80 % threshold 0.9 length=8") and "99.5 % sequential" in floors[-1]
    select(browser, "family", "copy")
    assert cells(browser, "#runs tbody tr td:nth-child(6)")[0].startswith("100.0")
    select(browser, "family", "all families")


def test_a_click_on_a_point_of_the_chart_shows_what_that_run_got_wrong(browser):
    from selenium.webdriver.common.action_chains import ActionChains

    point = browser.find_elements("css selector", "#chart .mark-symbol.role-mark path")[-1]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser).move_to_element(point).pause(0.3).click().perform()
    assert "wrong" in browser.find_element("id", "chosen").text
    tip = browser.find_element("id", "vg-tooltip-element").text
    assert "tokens per forward" in tip and "threshold" in tip
    browser.find_element("id", "clear").click()
