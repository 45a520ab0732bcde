from __future__ import annotations

import io
import json
import os
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from dllm_decode.cli import main
from dllm_decode.console.pictures import Picture, as_gif, as_svg
from dllm_decode.console.race import Heat, Lane
from dllm_decode.decoding.trace import Commit, StepRecord, Trace, TraceError
from dllm_decode.errors import ConfigError
from dllm_decode.tasks.export import Export

SVG = "{http://www.w3.org/2000/svg}"


def record(step: int, commits, edits=(), remasks=(), horizon=4) -> StepRecord:
    made, over = (tuple(Commit(0, *one, one[2]) for one in some) for some in (commits, edits))
    lost = tuple((0, column) for column in remasks)
    flags = {"rows": (0,), "steps": (step,), "horizon": (horizon,), "forced": (False,)}
    written = {"commits": made, "edits": over, "remasks": lost}
    return StepRecord(**flags, forwards=(1,), probes=(0,), **written)


TRACE = Trace(
    ("<who> & what",), ((5,),), (4,), ({},), 8, (9,), {1: " Ada", 2: " <b>"},
    (
        record(0, [(0, 1, 0.4), (1, 1, 0.6)]),
        record(1, [], edits=[(0, 2, 0.95)], remasks=[1]),
        record(2, [(1, 2, 0.8), (2, 9, 1.0)], horizon=3),
    ),
    ("eot",),
)  # fmt: skip


def picture(seconds: float = 6.0) -> Picture:
    lanes = (Lane.of("one", TRACE, 0), Lane.of("two", TRACE, 0, True))
    return Picture(Heat(TRACE.titles[0], lanes), 60, seconds)


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


def test_a_gif_has_a_frame_per_pass_and_plays_over_and_over() -> None:
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    with image.open(io.BytesIO(as_gif(picture(3.0), "dark"))) as gif:
        pauses = []
        for number in range(gif.n_frames):
            gif.seek(number)
            pauses.append(gif.info["duration"])
        assert pauses == [1000, 1000, 1000, 3000] and gif.info["loop"] == 0


def test_without_pillow_a_gif_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"task\.format=gif needs pillow: pip install pillow"):
        as_gif(picture(), "light")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with its baseline."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("trace.jsonl", "trace-sequential.jsonl"):
        (folder / name).write_text("\n".join(TRACE.lines()) + "\n")
    (folder / "results.json").write_text('{"runs": {"credit": {}, "sequential": {}}}')
    return folder


def lanes(task: Export) -> list[str]:
    return [lane.name for lane in task._heat().lanes]


def test_a_run_is_drawn_with_its_baseline_and_runs_side_by_side(run: Path) -> None:
    assert lanes(Export(str(run))) == ["sequential", "credit"]
    assert lanes(Export(str(run / "trace.jsonl"))) == ["trace"]
    assert lanes(Export([str(run), str(run / "trace-sequential.jsonl")])) == [
        "credit",
        "trace-sequential",
    ]
    (run / "results.json").unlink()
    assert lanes(Export(str(run))) == ["sequential", "run"]


def test_lanes_say_who_was_right_where_it_is_known(run: Path) -> None:
    def ends(runs: str) -> list[str]:
        return [lane.status(99).partition(", ")[2] for lane in Export(runs)._heat().lanes]

    assert ends(str(run)) == ["done", "done"]
    samples = [{"run": "credit", "correct": True}, {"run": "sequential", "correct": False}]
    (run / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)) + "\n")
    assert ends(str(run)) == ["done", "done"]  # nobody has graded them
    figures = {name: {"correct": 1} for name in ("credit", "sequential")}
    (run / "results.json").write_text(json.dumps({"runs": figures}))
    assert ends(str(run)) == ["wrong", "right"]
    assert ends(str(run / "trace.jsonl")) == ["right"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "mp4"}, r"task\.format must be one of gif, svg"),
        ({"theme": "auto"}, r"task\.theme must be one of light, dark"),
        ({"seconds": 0.0}, r"task\.seconds must lie in"),
        ({"columns": 5}, r"task\.columns must be"),
        ({"columns": 500}, r"task\.columns must lie in"),
        ({"output": "a.svg"}, r"named like another format .* give task\.format=svg"),
        ({"format": "svg", "output": "a.GIF"}, r"give task\.format=gif"),
        ({"row": 0}, r"task\.row must be a whole number >= 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Export("run", **settings)


def test_what_is_not_there_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.row must be at most 1"):
        Export(str(run), row=9)._heat()
    with pytest.raises(TraceError, match="cannot read the trace nowhere"):
        Export("nowhere")._heat()


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("folder.svg", "task.output must be a file, got {0}/folder.svg, which is a folder"),
        ("pipe.svg", "must be a file, got {0}/pipe.svg, which is a pipe or a device"),
        ("a_file/x.svg", "must be a file in a folder, got {0}/a_file/x.svg, where {0}/a_file is a"),
    ],
)
def test_a_place_that_can_hold_no_picture_is_refused_before_it_is_drawn(
    run: Path, tmp_path: Path, capsys, monkeypatch, place: str, message: str
) -> None:
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "a_file").touch()
    os.mkfifo(tmp_path / "pipe.svg")
    monkeypatch.setattr("dllm_decode.console.pictures.as_svg", lambda *_: pytest.fail("drawn"))
    words = ["task=export", f"runs={run}", "task.format=svg", f"task.output={tmp_path / place}"]
    assert main([*words, f"hydra.run.dir={tmp_path / 'out'}"]) == 2
    assert message.format(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["svg", pytest.param("gif", marks=pytest.mark.slow)])
def test_the_command_writes_one_picture(run: Path, tmp_path: Path, capsys, kind: str) -> None:
    if kind == "gif":
        pytest.importorskip("PIL.Image", reason="pillow is not installed")
    target = tmp_path / "pictures" / f"mine.{kind}"
    words = ["task=export", f"runs={run}", f"task.format={kind}", f"task.output={target}"]
    assert main([*words, "display=plain", f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    assert target.read_bytes()[:4] in (b"<svg", b"GIF8")
    assert f"mine.{kind}: " in capsys.readouterr().out


def test_a_picture_written_through_a_link_leaves_the_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link.svg").symlink_to("mine.svg")
    words = ["task=export", f"runs={run}", "task.format=svg", f"task.output={tmp_path}/link.svg"]
    assert main([*words, "display=none", f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "link.svg").is_symlink()
    assert (tmp_path / "mine.svg").read_bytes()[:4] == b"<svg"
