from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from dllm_decode import load
from dllm_decode.console.display import Display
from dllm_decode.console.race import Heat, Lane, picture, run_race, worth_watching
from dllm_decode.decoding.playback import frames_of
from dllm_decode.decoding.trace import Commit, StepRecord, Trace
from dllm_decode.problems import FAMILIES, demanding, problems
from dllm_decode.problems.recognise import family_of

WORDS = {1: " Ada", 2: " Ben", 3: " /", 9: ""}


def record(step: int, commits, edits=(), remasks=(), forced=False, horizon=4) -> StepRecord:
    made, over = (tuple(Commit(0, *one, one[2]) for one in some) for some in (commits, edits))
    lost = tuple((0, column) for column in remasks)
    flags = {"rows": (0,), "steps": (step,), "horizon": (horizon,), "forced": (forced,)}
    written = {"commits": made, "edits": over, "remasks": lost}
    return StepRecord(**flags, forwards=(1,), probes=(0,), **written)


def trace(*steps: StepRecord, length: int = 4, titles=("who",)) -> Trace:
    return Trace(titles, ((5,),), (length,), ({},), 8, (9,), WORDS, steps, ("eot",))


FAST = trace(record(0, [(0, 1, 0.4), (1, 2, 0.95)]), record(1, [(2, 9, 1.0)], horizon=3))
SLOW = trace(
    record(0, [(1, 1, 0.6)]),
    record(1, [(0, 1, 0.3)], remasks=[1], forced=True),
    record(2, [(1, 2, 0.8)]),
    record(3, [(2, 9, 1.0)], horizon=3),
)


def heat() -> Heat:
    return Heat("who", (Lane.of("slow", SLOW, 0, True), Lane.of("fast", FAST, 0, False)))


def console(width: int = 80, height: int = 24, **options) -> Console:
    kind = {"force_terminal": True, "color_system": "truecolor", **options}
    return Console(file=io.StringIO(), width=width, height=height, _environ={}, **kind)


def drawn(where: Console, moment: int) -> str:
    where.print(picture([heat()], moment, where))
    assert isinstance(where.file, io.StringIO)
    return where.file.getvalue()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_frames_tell_commits_edits_forced_ones_and_what_was_opened_again() -> None:
    frames = frames_of(SLOW, 0)
    assert [frame.forwards for frame in frames] == [0, 1, 2, 3, 4]
    assert frames[2].reopened == {1} and frames[2].fresh == {0}
    kinds = [[cell and cell.kind for cell in frame.cells] for frame in frames]
    assert kinds[2] == ["forced", None, None, None]
    assert kinds[4] == ["forced", "commit", "commit"]
    edited = trace(record(0, [(0, 1, 0.5)]), record(1, [], edits=[(0, 2, 0.9)], forced=True))
    cell = frames_of(edited, 0)[2].cells[0]
    assert cell is not None and (cell.kind, cell.step) == ("edit", 1)


def test_the_last_frame_of_a_recorded_decode_is_its_result() -> None:
    from dllm_decode.decoding.types import Request

    decoder = load("toy_shuffle", "threshold")
    prompts = tuple(tuple(decoder.encode(text)) for text in ("abcd", "ca"))
    request = Request(prompts, 6)
    result = decoder.decode(request, record=True)
    kept = Trace.of(request, result, decoder.model.denoiser.vocab)
    for row, outcome in enumerate(result.rows):
        last = frames_of(kept, row)[-1]
        assert last.forwards == outcome.forwards
        assert tuple(cell and cell.token for cell in last.cells) == outcome.tokens
        assert tuple(cell and cell.step for cell in last.cells) == outcome.step_of


def test_prompts_of_10_to_60_passes_are_shown_and_else_the_longest() -> None:
    assert worth_watching([3, 12, 70, 25, 10, 11]) == [3, 1, 5]
    assert worth_watching([3, 5, 1]) == [1]
    assert worth_watching([200, 61]) == [0]


def test_both_lanes_stand_side_by_side_with_their_passes() -> None:
    text = plain(drawn(console(), 2))
    assert re.search(r"slow: pass 2 +fast: pass 2, wrong", text)
    assert re.search(r" Ada +· +· ?· ? +Ada Ben∎", text)
    assert max(map(len, text.split("\n"))) <= 80
    assert "slow: pass 4, right" in plain(drawn(console(), 9))


def test_lanes_meet_at_passes_also_where_a_step_probes() -> None:
    steps = [replace(step, forwards=(3,), probes=(2,)) for step in FAST.steps]
    lane = Lane.of("probing", replace(FAST, steps=tuple(steps)), 0)
    assert [lane.step_at(moment) for moment in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert lane.status(5) == "probing: pass 5" and lane.status(6) == "probing: pass 6, done"
    assert Heat("who", (lane, Lane.of("fast", FAST, 0))).moments == 6


def test_a_first_difference_is_marked_where_it_happens() -> None:
    parted = replace(heat(), difference=(1, 1))
    where = console()
    where.print(picture([parted], 1, where))
    assert isinstance(where.file, io.StringIO)
    assert where.file.getvalue().count("\x1b[7m") == 2


def test_colours_tell_the_confidence_and_go_where_they_are_not_wanted() -> None:
    bright = drawn(console(), 4)
    assert "48;2;244;165;130" in bright and "48;2;67;147;195" in bright  # unsure, sure
    grey = drawn(console(no_color=True), 1)
    assert "48;" not in grey and "38;" not in grey
    assert "\x1b[1;4m" in grey and "bold: committed in this pass" in grey


def test_no_line_is_wider_than_a_terminal_of_few_signs() -> None:
    """A line that wraps would leave a copy of itself behind with every repaint."""
    from dllm_decode.console.output import _SIMPLER

    long = "Ein sehr langer Titel … " * 9
    for width in (40, 80):
        where = console(width=width, color_system=None)
        for moment in (0, 2, 4):
            where.print(picture([replace(heat(), title=long)], moment, where))
        assert isinstance(where.file, io.StringIO)
        text = plain(where.file.getvalue())
        signs = {sign for sign in text if not sign.isascii()} - {"…"}
        assert all(len(_SIMPLER[sign]) == 1 for sign in signs)
        assert max(map(len, text.split("\n"))) <= width


def test_a_token_longer_than_a_line_is_cut() -> None:
    lane = replace(Lane.of("fast", FAST, 0), pieces=lambda token: "word" * 30)
    assert {line.cell_len for line in lane.lines(lane.frames[-1], 25)} == {25}


def test_a_narrow_terminal_has_one_lane_above_the_other() -> None:
    text = plain(drawn(console(width=40), 1))
    assert max(map(len, text.split("\n"))) <= 40
    assert text.index("slow: pass 1") < text.index("fast: pass 1")


def test_columns_keep_their_places_while_they_are_filled() -> None:
    lane = Lane.of("slow", SLOW, 0)
    spans = [[len(line.plain) for line in lane.lines(frame, 40)] for frame in lane.frames[:4]]
    assert spans == [spans[0]] * 4


def test_a_long_canvas_shows_the_lines_where_something_happens() -> None:
    steps = [record(n, [(n, 1, 0.9)], horizon=200) for n in range(200)]
    long = Heat("tale", (Lane.of("a", trace(*steps, length=200), 0),) * 2)
    where = console(width=80, height=20)
    where.print(picture([long], 150, where))
    assert isinstance(where.file, io.StringIO)
    lines = plain(where.file.getvalue()).split("\n")
    assert len(lines) <= 20 and any("Ada" in line and "·" in line for line in lines)


def test_a_terminal_is_paced_and_lines_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("dllm_decode.console.race.time.sleep", slept.append)
    for speed, most in ((1.0, 0.5), (4.0, 0.125)):
        slept.clear()
        assert run_race([heat()], Display("live", console(), speed)) == 1
        assert len(slept) == 5 and 0 < max(slept) <= most
    slept.clear()
    where = Console(file=io.StringIO(), width=60)
    assert run_race([heat()], Display("plain", where)) == 0
    assert isinstance(where.file, io.StringIO)
    text = where.file.getvalue()
    assert slept == [] and "\x1b" not in text
    assert re.search(r"   4  \|  Ada Ben∎ +\|  Ada Ben∎", text)
    assert run_race([heat()], Display("none", where)) == 0
    assert where.file.getvalue() == text


def test_demanding_families_come_from_what_the_bundled_model_is_shown_with() -> None:
    names = [family.name for family in demanding()]
    assert names and all(FAMILIES[name].shown for name in names)
    canvases = [family.canvas for family in demanding()]
    assert canvases == sorted(canvases, reverse=True)


def test_a_long_family_joins_the_race_when_the_model_knows_it(monkeypatch) -> None:
    from dllm_decode import problems as package

    tale = replace(FAMILIES["tale"], shown=True)
    monkeypatch.setattr(package, "FAMILIES", {**FAMILIES, "tale": tale})
    assert package.demanding()[0].name == "tale"


LIGHT = [name for name in FAMILIES if "sudoku" not in name]  # those take a second to learn


@pytest.mark.parametrize("name", LIGHT)
def test_held_out_prompts_of_a_family_are_recognised(name: str) -> None:
    drawn = problems(name, "held_out", 8, seed=5)
    assert all(family_of(problem.prompt, [FAMILIES[name]]) for problem in drawn)


@pytest.mark.parametrize(
    "prompt",
    ["Hello, how are you?", "What is 2+2?", "Sort: 1 Eva 2 Ben", "Copy: 1 Ada 2 Ben",
     "Sort: 1 Alice 2 Ben 3 Cleo", "sort: 1 Eva 2 Ben 3 Cleo", "", "Copy: 1 Ada 2 Ben 3"],
)  # fmt: skip
def test_what_nobody_has_learned_is_not_recognised(prompt: str) -> None:
    families = [FAMILIES[name] for name in LIGHT if FAMILIES[name].shown]
    assert family_of(prompt, families) is None
