from __future__ import annotations

import io
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from dllm_decode.cli import main
from dllm_decode.console.pictures import Picture, as_svg
from dllm_decode.console.race import Heat, Lane
from dllm_decode.decoding.trace import Commit, StepRecord, Trace

SVG = "{http://www.w3.org/2000/svg}"


def record(step: int, commits, remasks=(), horizon=4) -> StepRecord:
    made = tuple(Commit(0, column, token, sure, sure) for column, token, sure in commits)
    return StepRecord((0,), (step,), (horizon,), (False,), 0, made, tuple((0, c) for c in remasks))


TRACE = Trace(
    ("<who> & what",), ((5,),), (4,), ({},), 8, (9,), {1: " Ada", 2: " <b>"},
    (
        record(0, [(0, 1, 0.4), (1, 1, 0.6)]),
        record(1, [(0, 2, 0.95)], remasks=[1]),
        record(2, [(1, 2, 0.8), (2, 9, 1.0)], horizon=3),
    ),
    ("eot",),
)  # fmt: skip


def picture(seconds: float = 6.0) -> Picture:
    lanes = (Lane.of("one", TRACE, 0), Lane.of("two", TRACE, 0, True))
    return Picture(Heat(TRACE.titles[0], lanes), 60, seconds)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    words = ["model=toy_shuffle", "task.samples=2", "display=none", f"hydra.run.dir={folder}"]
    assert main(words) == 0
    return folder


def seen(picture: Picture, moment: int) -> list[str]:
    blocks = [b for b in picture.blocks if b.since <= moment and (b.until or 99) > moment]
    places = [(b.line, b.column) for b in blocks]
    assert len(places) == len(set(places)), "two things in one place"
    return [b.text for b in sorted(blocks, key=lambda b: (b.line, b.column))]


def test_at_each_moment_a_picture_shows_the_canvases_of_that_pass() -> None:
    begin = ["<who> & what", "one: pass 0", "two: pass 0", *"····" * 2]
    assert seen(picture(), 0) == begin
    assert seen(picture(), 1)[3:7] == [" Ada", " Ada", "·", "·"]
    assert seen(picture(), 2)[3:7] == [" <b>", "·", "·", "·"]
    end = [" <b>", " <b>", "∎"]
    assert seen(picture(), 3)[1:] == ["one: pass 3, done", "two: pass 3, right", *end * 2]


def test_an_svg_is_well_formed_plays_itself_and_asks_the_network_for_nothing() -> None:
    for theme in ("light", "dark", "auto"):
        text = as_svg(picture(), theme)
        root = ET.fromstring(text)
        words = [node.text for node in root.iter(f"{SVG}text")]
        assert "<who> & what" in words and " <b>" in words
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "prefers-reduced-motion" in text and "8s step-end infinite" in text
        assert ("prefers-color-scheme" in text) == (theme == "auto")
        used = set(re.findall(r'class="(t\d+)"', text))
        assert used == set(re.findall(r"@keyframes (t\d+)", text)) and used


def test_where_less_motion_is_preferred_the_end_is_what_stays() -> None:
    root = ET.fromstring(as_svg(picture(), "light"))
    stays = [g.find(f"{SVG}text") for g in root.iter(f"{SVG}g") if "opacity" not in g.attrib]
    words = [text.text for text in stays if text is not None]
    assert "one: pass 3, done" in words and "one: pass 0" not in words


def test_a_run_is_exported_as_gif_with_a_frame_per_pass(run: Path, tmp_path: Path, capsys) -> None:
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    words = ["task=export", f"runs={run}", "display=plain", f"hydra.run.dir={tmp_path / 'out'}"]
    assert main([*words, "task.seconds=2", "task.theme=dark"]) == 0
    with image.open(io.BytesIO((tmp_path / "out" / "race.gif").read_bytes())) as gif:
        pauses = []
        for number in range(gif.n_frames):
            gif.seek(number)
            pauses.append(gif.info["duration"])
        assert gif.n_frames > 3 and gif.info["loop"] == 0
    assert 3900 <= sum(pauses) <= 4100
    assert "race.gif: " in capsys.readouterr().out


def test_a_run_is_exported_as_svg_with_its_baseline(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "pictures" / "mine.svg"
    words = ["task=export", f"runs={run}", "task.format=svg", "display=none", "task.row=2"]
    place = f"hydra.run.dir={tmp_path / 'out'}"
    assert main([*words, f"task.output={target}", place]) == 0
    text = target.read_text()
    assert re.findall(r">(\w+): pass \d+, (?:right|wrong|done)<", text) == ["sequential", "credit"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.format=mp4"], "task.format must be one of gif, svg"),
        (["task.theme=auto"], "task.theme must be one of light, dark"),
        (["task.seconds=0"], "task.seconds must lie in"),
        (["task.columns=5"], "task.columns must be"),
        (["task.row=0"], "task.row must be a whole number >= 1"),
        (["task.row=9"], "task.row must be at most 2"),
        (["runs=nowhere"], "cannot read the trace nowhere"),
    ],
)
def test_what_cannot_be_exported_is_refused(run: Path, tmp_path: Path, capsys, words, message):
    place = f"hydra.run.dir={tmp_path / 'out'}"
    more = [] if "runs=nowhere" in words else [f"runs={run}"]
    assert main(["task=export", *more, *words, place, "display=none"]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_pillow_a_gif_is_refused_with_what_to_do(
    run: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    place = f"hydra.run.dir={tmp_path / 'out'}"
    assert main(["task=export", f"runs={run}", place, "display=none"]) == 2
    assert "task.format=gif needs pillow: pip install pillow" in capsys.readouterr().err
