"""The player as a person meets it, in Chromium and Firefox; skipped where there are none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dllm_decode.console.trace_files import player
from dllm_decode.decoding.trace import Commit, Offer, StepRecord, Trace

sys.path.insert(0, str(Path(__file__).parents[1]))
from browsers import chromium, watched

pytestmark = pytest.mark.slow

FIREFOX = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)
PIECES = {1: " Ada", 2: " Ben", 9: "<end>"}


def record(
    step: int, commits, edits=(), remasks=(), forced=False, horizon=4, offers=()
) -> StepRecord:
    made, over = (
        tuple(Commit(row, *one, one[2]) for row in (0, 1) for one in some)
        for some in (commits, edits)
    )
    return StepRecord(
        rows=(0, 1),
        steps=(step, step),
        horizon=(horizon, horizon),
        forced=(forced, forced),
        forwards=(1, 1),
        probes=(0, 0),
        commits=made,
        edits=over,
        remasks=tuple((row, column) for row in (0, 1) for column in remasks),
        fresh=(step == 0,) * 2,
        candidates=tuple(Offer(row, column, pairs) for row in (0, 1) for column, pairs in offers),
    )


def trace(*steps: StepRecord) -> Trace:
    titles = ("first prompt", "second <b>prompt</b>")
    given = ({}, {3: 2})
    return Trace(titles, ((5,), (6,)), (4, 4), given, 8, (9,), PIECES, steps, ("eot", "length"))


FAST = trace(
    record(0, [(0, 1, 0.4), (1, 2, 0.95)], offers=[(0, ((1, 0.4), (2, 0.3))), (1, ((2, 0.95),))]),
    record(1, [(2, 9, 1.0)], offers=[(2, ((9, 1.0),))], horizon=3),
)
SLOW = trace(
    record(0, [(0, 1, 0.4)], offers=[(0, ((1, 0.4), (2, 0.3)))]),
    record(1, [(1, 1, 0.3)], forced=True),
    record(2, [], edits=[(0, 2, 0.8)], remasks=[1]),
    record(3, [(1, 2, 0.8)]),
    record(4, [(2, 9, 1.0)], horizon=3),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    made = browser.new_page(reduced_motion="reduce")
    faults = watched(made)
    file = tmp_path / "trace.html"
    file.write_text(player({"fast": FAST, "slow": SLOW}, {"fast": [True, None]}), encoding="utf-8")
    made.goto(f"file://{file}")
    yield made
    assert faults == []
    made.close()


def cells(page: Any, lane: int) -> list[str]:
    found: list[str] = page.locator(".lane").nth(lane).locator(".cell").all_text_contents()
    return found


def kinds(page: Any, lane: int, column: int) -> set[str]:
    cell = page.locator(".lane").nth(lane).locator(f"[data-column='{column}']")
    return set(cell.get_attribute("class").split()) - {"cell"}


def test_lanes_play_in_sync_and_keys_move_them(page: Any) -> None:
    assert cells(page, 0) == ["·"] * 4 == cells(page, 1)
    page.keyboard.press("ArrowRight")
    assert cells(page, 0) == [" Ada", " Ben", "·", "·"] and cells(page, 1)[0] == " Ada"
    assert kinds(page, 0, 0) == {"fresh"}
    page.keyboard.press("End")
    assert page.locator("#where").text_content() == "pass 5 of 5"
    assert cells(page, 0) == [" Ada", " Ben", "□"] == [" Ada", *cells(page, 1)[1:]]
    facts = page.locator("h2 .facts").all_text_contents()
    assert facts == ["2 passes, eot, right", "5 passes, eot"]
    page.keyboard.press("Home")
    assert page.locator("#where").text_content() == "pass 0 of 5"
    page.keyboard.press("ArrowDown")
    assert page.locator("#title").text_content() == "second <b>prompt</b>"
    assert kinds(page, 0, 3) == {"given"}
    page.keyboard.press("+")
    assert page.locator("#speed").input_value() == "2"


def test_forced_commits_edits_and_what_was_opened_again_are_told_apart(page: Any) -> None:
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert kinds(page, 1, 1) == {"fresh", "forced"}
    page.keyboard.press("ArrowRight")
    assert kinds(page, 1, 0) == {"fresh", "edit"}
    assert kinds(page, 1, 1) == {"open", "reopened"} and cells(page, 1)[1] == "↺"
    signs = page.locator(".lane").nth(1).locator("svg").first.locator("text").all_text_contents()
    assert {"!", "↺✎"} <= set(signs)


def test_confidence_is_a_colour_in_light_and_dark(page: Any) -> None:
    from dllm_decode.decoding.colours import SCALE

    page.keyboard.press("ArrowRight")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        seen = [
            page.locator(f".lane:first-child [data-column='{column}']").evaluate(
                "cell => getComputedStyle(cell).backgroundColor"
            )
            for column in (0, 1)
        ]
        wanted = [SCALE[0][1], SCALE[3][1]]
        rgb = [tuple(int(hue[at : at + 2], 16) for at in (1, 3, 5)) for hue in wanted]
        assert seen == [f"rgb{value}" for value in map(str, rgb)]


def test_pointing_and_tapping_tell_token_step_confidence_and_candidates(page: Any) -> None:
    page.keyboard.press("ArrowRight")
    for act in ("hover", "click"):
        page.mouse.move(0, 0)
        getattr(page.locator(".lane:first-child [data-column='0']"), act)()
        told = page.locator("#tip").inner_text()
        for words in ("token 1", "step 1", "confidence 0.4000", "Ada\t0.4000", "Ben\t0.3000"):
            assert words in told
    page.locator(".lane:first-child [data-column='2']").hover()
    assert "column 2, open" in page.locator("#tip").inner_text()


def test_the_first_difference_is_said_marked_and_a_key_away(page: Any) -> None:
    assert page.locator("#said").text_content() == "first difference: step 1, column 1"
    page.keyboard.press("End")
    page.keyboard.press("d")
    assert page.locator("#where").text_content() == "pass 1 of 5"
    assert page.locator(".differs").count() == 2


def test_a_step_that_probes_takes_its_passes(browser: Any, tmp_path: Path) -> None:
    steps = [replace(step, forwards=(3, 1), probes=(2, 0)) for step in FAST.steps]
    probing = replace(FAST, steps=tuple(steps))
    (tmp_path / "t.html").write_text(player({"a": probing, "b": FAST}), encoding="utf-8")
    page = browser.new_page()
    page.goto(f"file://{tmp_path / 't.html'}#row=0&pass=2")
    assert page.locator("#where").text_content() == "pass 2 of 6"
    assert cells(page, 0) == ["·"] * 4 and cells(page, 1) == [" Ada", " Ben", "□"]
    page.keyboard.press("ArrowRight")
    assert cells(page, 0) == [" Ada", " Ben", "·", "·"]
    page.close()


def test_equal_decodes_have_no_difference(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "t.html").write_text(player({"a": FAST, "b": FAST}), encoding="utf-8")
    page = browser.new_page()
    page.goto(f"file://{tmp_path / 't.html'}#row=1&pass=1")
    assert page.locator("#said").text_content() == "the decodes do the same in every pass"
    assert page.locator("#part").is_hidden()
    assert page.locator("#title").text_content() == "second <b>prompt</b>"
    page.close()


def test_the_strip_says_what_other_rules_would_have_committed(page: Any) -> None:
    rules = page.locator(".lane:first-child .rules")
    names = [text.strip() for text in rules.locator("label").all_text_contents()]
    assert names == ["threshold 0.7", "threshold 0.8", "threshold 0.9", "credit"]
    assert rules.locator("b").all_text_contents() == ["1", "1", "1", "1"]
    rules.locator("input").first.check()
    assert kinds(page, 0, 1) == {"open", "would"} and kinds(page, 0, 0) == {"open"}
    assert "only until the two part" in rules.inner_text()
    rules.locator("input").first.focus()
    page.keyboard.press("Space")  # of the box, not of the player
    assert not rules.locator("input").first.is_checked()
    assert page.locator("#play").text_content() == "play"


def test_bars_of_the_timeline_can_be_clicked(page: Any) -> None:
    bars = page.locator(".lane").nth(1).locator("svg").first
    box = bars.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.7, box["y"] + 10)
    assert page.locator("#where").text_content() == "pass 4 of 5"


def test_playing_ends_at_the_last_pass(page: Any) -> None:
    page.locator("#speed").select_option("4")
    page.locator("#play").click()
    assert page.locator("#play").text_content() == "stop"
    page.wait_for_function("document.getElementById('play').textContent === 'play'", timeout=5000)
    assert page.locator("#where").text_content() == "pass 5 of 5"


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 700})
    page.keyboard.press("End")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.skipif(FIREFOX is None, reason="no firefox on this machine")
def test_firefox_draws_the_canvas(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    (tmp_path / "t.html").write_text(player({"fast": FAST, "slow": SLOW}), encoding="utf-8")
    assert FIREFOX is not None
    shot = tmp_path / "shot.png"
    place = ["--profile", str(tmp_path / "profile"), "--headless", "--window-size", "1000,700"]
    (tmp_path / "profile").mkdir()
    address = f"file://{tmp_path / 't.html'}#row=0&pass=1"
    subprocess.run(
        [FIREFOX, *place, "--screenshot", str(shot), address],
        check=True,
        timeout=120,
        capture_output=True,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
    )
    colours = {colour for _, colour in pillow.open(shot).convert("RGB").getcolors(1 << 24)}
    assert {(0xF4, 0xA5, 0x82), (0x92, 0xC5, 0xDE)} <= colours  # drawn by the script
