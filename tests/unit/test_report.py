"""Reports of made-up runs: tables, controls, files, and what is left out or refused."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from dllm_decode.cli import main
from dllm_decode.errors import ConfigError
from dllm_decode.evaluation import store
from dllm_decode.evaluation.metrics import Sample
from dllm_decode.evaluation.reporting import (
    controls,
    explore,
    factors,
    figures,
    overview,
    report,
    tables,
)
from dllm_decode.evaluation.reporting import render as page

NO_FIGURES = report.ReportSettings(draw=False)
THRESHOLD = {"_target_": "x.ConfidenceThreshold", "threshold": 0.9}
TOP_ONE = {"_target_": "x.TopK", "tokens_per_step": 1, "order": "confidence"}
EOT = {"eot": {"_target_": "x.EndOfText"}}


def samples(right: int, forwards: int, *, wasted: int = 0, tokens: int = 8, count: int = 40):
    useful = forwards - wasted
    steps = tuple(min(i * useful // tokens, useful - 1) for i in range(tokens))
    return [
        Sample(
            problem=f"copy/{n}", family="copy" if n % 2 else "sort", prompt="?", text="!",
            correct=n < right, forwards=forwards, slots=16, steps=steps, seconds=forwards / 100,
        )
        for n in range(count)
    ]  # fmt: skip


def run(
    folder: Path, name: str, found: list[Sample], *, select=None, transforms=None, stop=EOT,
    order: int = 0, **changes,
) -> Path:  # fmt: skip
    strategy = {"select": select or THRESHOLD, "transforms": transforms or {}, "stop": stop}
    path = folder / name.replace(" ", "-")
    shutil.rmtree(path, ignore_errors=True)
    results = {
        "name": name, "order": order, "settings": {"strategy": strategy, "schedule": {}},
        "families": ["copy", "sort"], "problems": len(found), "digest": "d1", "batch_size": 4,
        "model": {"description": "a model", "fingerprint": "f1"}, "figures": {}, "errors": 0,
        "environment": {"time": "2026", "cores": 2, "processor": "a processor"}, **changes,
    }  # fmt: skip
    with store.JobFolder(path, {}) as job:
        for sample in found:
            job.append(sample)
        job.finish(results)
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    run(folder, "sequential", samples(40, 16, wasted=8), select=TOP_ONE, order=3)
    run(folder, "threshold 0.9", samples(38, 6), order=1)
    run(folder, "threshold 0.5", samples(30, 3), select={**THRESHOLD, "threshold": 0.5}, order=2)
    credit = {"credit": {"_target_": "x.TraceCredit"}}
    run(folder, "credit", samples(36, 4), transforms=credit, order=0)
    return folder


def read(folder: Path) -> list[store.EvalRun]:
    return list(report.chosen_runs(store.collect(folder), None).whole)


def test_the_order_of_a_samples_file_changes_nothing(runs):
    before = tables.rows_of(read(runs), None)
    for file in runs.rglob("samples.jsonl"):
        lines = file.read_text("utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[::-1]), encoding="utf-8")
    assert tables.rows_of(read(runs), None) == before


def test_the_baseline_comes_first_and_speedups_are_against_it(runs):
    rows = tables.rows_of(read(runs), None)
    assert [row.strategy for row in rows] == [
        "sequential", "credit", "threshold 0.9", "threshold 0.5",
    ]  # fmt: skip
    assert [row.speedup.forwards for row in rows] == [1.0, 4.0, 16 / 6, 16 / 3]
    assert rows[1].accuracy.value == 0.9
    assert rows[1].headroom is None


def test_headroom_appears_with_an_oracle(runs):
    run(runs, "oracle", samples(40, 2), select={"_target_": "x.Oracle"})
    rows = tables.rows_of(read(runs), None)
    assert rows[-1].strategy == "oracle" and rows[-1].headroom == 1.0
    assert rows[0].headroom == pytest.approx(2 / 16)


def test_speedups_need_the_same_stop_rules(runs):
    run(runs, "factor", samples(30, 3), select={"_target_": "x.Factor"}, stop={})
    rows = {row.strategy: row for row in tables.rows_of(read(runs), None)}
    assert rows["factor"].speedup is None


def texts(found: list[store.EvalRun], kind: str) -> list[str]:
    return [note.text for note in controls.notes(found) if note.kind == kind]


def test_credit_is_compared_with_the_threshold_of_equal_accuracy(runs):
    (text,) = texts(read(runs), "credit")
    # 95 % at 8/6 and 75 % at 8/3 tokens per forward: 90 % at 8/6 + (5 / 20) * (8/3 - 8/6)
    assert "is as accurate" not in text and "reaches 1.67" in text
    # forwards are the same for all problems here, and only the accuracies are in doubt
    assert "+20.0 % tokens per forward [" in text and "the two cannot be told apart" in text
    assert "paired bootstrap" in text


def test_credit_is_compared_with_the_nearest_of_all_thresholds_of_equal_accuracy(runs):
    run(runs, "threshold 0.7", samples(37, 4), select={**THRESHOLD, "threshold": 0.7})
    (text,) = texts(read(runs), "credit")
    # now 92.5 % at 2 and 75 % at 8/3 surround it: 90 % at 2 + (2.5 / 17.5) * (8/3 - 2)
    assert "reaches 2.10 (linear interpolation between 3 thresholds): -4.5 % tokens" in text
    assert "so that the two cannot be told apart" in text
    # the new one is as fast as credit
    assert (
        "against threshold 0.7 (2.00 tokens per forward), the difference in accuracy is -2.5"
        in text
    )


def others_right(found: list[Sample]) -> list[Sample]:
    """As many right answers, to the last problems instead of the first."""
    return [replace(s, correct=o.correct) for s, o in zip(found, found[::-1], strict=True)]


def test_every_other_rule_is_compared_with_the_thresholds_of_equal_accuracy(tmp_path):
    """Two thresholds, rules between them in accuracy, and what has no threshold to compare with."""
    for name, right, forwards, level in (("t9", 76, 6, 0.9), ("t5", 60, 3, 0.5)):
        found = samples(right, forwards, count=80)
        run(tmp_path, name, found, select={**THRESHOLD, "threshold": level})
    fast, slow = samples(70, 2, count=80), samples(70, 9, count=80)
    run(tmp_path, "quick", fast, select={"_target_": "x.LocalLeap"})
    run(tmp_path, "lazy", slow, select={"_target_": "x.Klass"})
    run(tmp_path, "better", samples(79, 9, count=80), select={"_target_": "x.Klass"})
    run(tmp_path, "elsewhere", fast, select={"_target_": "x.LocalLeap"}, stop={})
    # neither is a point of the curve, though its rule is a plain threshold
    run(tmp_path, "voted", samples(70, 40, count=80), voting={"n": 5})
    plain = {"strategy": {"select": THRESHOLD, "transforms": {}, "stop": EOT}, "schedule": {}}
    run(tmp_path, "led", samples(70, 40, count=80), settings={**plain, "guidance": 1.0})
    run(tmp_path, "sequential", samples(80, 16, count=80), select=TOP_ONE)
    (text,) = texts(read(tmp_path), "thresholds")
    verdicts = text.rpartition("fitted): ")[2]
    assert re.search(r"quick \+\d+\.\d % \[\+", verdicts)
    assert re.search(r"lazy -\d+\.\d % \[-\d+\.\d, -", verdicts)
    assert "better open" in verdicts
    assert not re.search("elsewhere|sequential|t9|voted|led ", verdicts)


@pytest.mark.slow
def test_every_rule_has_its_control_at_equal_forwards_pooled_and_by_family(tmp_path):
    """A rule that wins on shuffle and loses on copy, which cancel out; and who has no control."""

    def found(copy: int, shuffle: int, forwards: int) -> list[Sample]:
        right = {"copy": copy, "shuffle": shuffle}
        return [
            replace(s, family=name, problem=f"{name}/{n}", correct=n % 100 < right[name])
            for name in right
            for n, s in enumerate(samples(0, forwards, count=100))
        ]

    ours = {"families": ["copy", "shuffle"], "manner": {"copy": "m1", "shuffle": "m2"}}
    run(tmp_path, "sequential", found(100, 100, 16), select=TOP_ONE, **ours)
    for level, right, forwards in ((0.9, 90, 6), (0.5, 70, 2)):
        select = {**THRESHOLD, "threshold": level}
        run(tmp_path, f"t{level}", found(right, right, forwards), select=select, **ours)
    bound = {"_target_": "x.EntropyBound"}
    run(tmp_path, "bound", found(60, 100, 4), select=bound, **ours)
    run(tmp_path, "hasty", found(60, 60, 1), select=bound, **ours)
    run(tmp_path, "slow", found(95, 95, 9), select=bound, **ours)
    run(tmp_path, "elsewhere", found(95, 95, 4), select=bound, stop={}, **ours)
    some = [replace(s, correct=True) for s in found(60, 100, 4) if s.problem.endswith("7")]
    run(tmp_path, "part", some, select=bound, digest="d2", **ours)
    out = tmp_path / "out"
    written = report.write_report(store.collect(tmp_path), out, NO_FIGURES)
    rows = {row.strategy: row.over_thresholds for row in written.report.overall}
    # thresholds have 80 % at 4 forwards and 90 % at 6, which is more than at any more
    assert rows["bound"].value == pytest.approx(0.0) and not rows["bound"].excludes(0)
    assert rows["slow"].value == pytest.approx(0.05)
    assert rows["hasty"].value != rows["hasty"].value  # there is no threshold as fast
    for name in ("sequential", "t0.9", "t0.5", "elsewhere"):
        assert rows[name] is None
    by_family = {
        family: {row.strategy: row.over_thresholds for row in rows}["bound"]
        for family, rows in written.report.families.items()
    }
    assert by_family["shuffle"].value == pytest.approx(0.2) and by_family["shuffle"].low > 0.1
    assert by_family["copy"].value == pytest.approx(-0.2) and by_family["copy"].high < -0.1
    part = {row.strategy: row.over_thresholds for row in written.report.parts}["part"]
    assert part is not None and part.value == pytest.approx(0.2)  # on its own 20 problems
    said = next(note.text for note in written.report.notes if note.text.startswith("bound: "))
    assert said.startswith("bound: 0.0 [-") and "one right answer -20.0 [-" in said
    assert "; many right answers +20.0 [+" in said
    assert "), 0.0 [-" in said and " on average over 2 families, each at forwards of its" in said
    assert "outside of the interval: copy -20.0 [-" in said and ", shuffle +20.0 [+" in said
    lines = list(csv.DictReader((out / "table.csv").open()))
    (line,) = (x for x in lines if (x["strategy"], x["family"]) == ("bound", "shuffle"))
    assert float(line["accuracy_over_thresholds"]) == pytest.approx(0.2)
    for name in ("report.md", "report.html"):
        assert "over thresholds (points at equal forwards [95 %])" in (out / name).read_text()
    console = Console(width=120, record=True, file=io.StringIO())
    for part_ in overview.overview(written.report, 120):
        console.print(part_)
    shown = console.export_text()
    assert "points over thresholds at equal forwards: bound on copy -20.0, bound on shuf" in shown


def test_answers_that_failed_are_no_cheap_ones(tmp_path):
    for level, right, forwards in ((0.9, 90, 6), (0.5, 70, 2)):
        select = {**THRESHOLD, "threshold": level}
        run(tmp_path, f"t{level}", samples(right, forwards, count=100), select=select)
    found = samples(80, 4, count=100)
    failed = [replace(s, forwards=0, steps=(), error="it is too long") for s in found[80:]]
    run(tmp_path, "bound", found[:80] + failed, select={"_target_": "x.EntropyBound"})
    rows = {row.strategy: row for row in tables.rows_of(read(tmp_path), None)}
    assert rows["bound"].forwards.value == 4
    assert rows["bound"].over_thresholds.value == pytest.approx(0.0)  # 80 % at 4, not at 3.2


def test_of_few_problems_nothing_is_certain(tmp_path):
    for level, right, forwards in ((0.9, 4, 6), (0.5, 4, 2)):
        select = {**THRESHOLD, "threshold": level}
        run(tmp_path, f"t{level}", samples(right, forwards, count=4), select=select)
    run(tmp_path, "bound", samples(0, 4, count=4), select={"_target_": "x.EntropyBound"})
    rows = {row.strategy: row for row in tables.rows_of(read(tmp_path), None)}
    gap = rows["bound"].over_thresholds
    assert gap.value == -1 and math.isnan(gap.low) and not gap.excludes(0)


def test_the_best_run_may_reach_the_oracle_and_is_not_the_oracle(runs):
    run(runs, "oracle", samples(40, 2), select={"_target_": "x.Oracle"})
    run(runs, "equal", samples(40, 2), select={"_target_": "x.EntropyBound"})
    rows = tables.rows_of(read(runs), None)
    assert overview.best(rows, [99.5]) == ["best at 99.5 % or more: equal, 4.00 tokens per forward"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("forwards", "verdict"), [(2, "credit beats it"), (9, "credit does not beat it")]
)
def test_the_verdict_on_credit_needs_an_interval_without_zero(tmp_path, forwards, verdict):
    """800 problems; the threshold that is as accurate, 90 %, takes 4 forwards."""
    run(tmp_path, "sequential", samples(800, 16, count=800), select=TOP_ONE)
    for threshold, right, passes in ((0.9, 760, 5), (0.7, 720, 4), (0.5, 600, 1)):
        select = {**THRESHOLD, "threshold": threshold}
        found = samples(right, passes, count=800)
        run(tmp_path, f"threshold {threshold}", found, select=select)
    credit = {"credit": {"_target_": "x.TraceCredit"}}
    run(tmp_path, "credit", others_right(samples(720, forwards, count=800)), transforms=credit)
    (text,) = texts(read(tmp_path), "credit")
    low, high = map(float, re.search(r"forward \[(.*?), (.*?)\]", text).groups())
    assert verdict in text and low * high > 0 and low < 100 * (4 / forwards - 1) < high


def test_resamples_that_leave_the_thresholds_keep_the_verdict_open(runs):
    credit = {"credit": {"_target_": "x.TraceCredit"}}
    run(runs, "credit", others_right(samples(38, 4)), transforms=credit)
    (text,) = texts(read(runs), "credit")
    assert "no telling which is better" in text


def test_credit_without_thresholds_says_what_is_missing(tmp_path):
    run(tmp_path, "credit", samples(36, 4), transforms={"c": {"_target_": "x.TraceCredit"}})
    (text,) = texts(read(tmp_path), "credit")
    assert "cannot be said" in text and "strategy=threshold" in text


def test_credit_above_or_before_every_threshold_stays_open(runs):
    credit = {"credit": {"_target_": "x.TraceCredit"}}
    run(runs, "credit", samples(40, 4), transforms=credit)
    assert "None of the 2 plain thresholds is as accurate" in texts(read(runs), "credit")[0]
    run(runs, "credit", samples(20, 2), transforms=credit)
    assert "slower and at least as accurate" in texts(read(runs), "credit")[0]


def test_the_stop_rule_is_shown_alone(runs):
    (text,) = texts(read(runs), "end of text")
    assert "not shown for sequential, credit, threshold 0.9, threshold 0.5" in text
    run(runs, "sequential stop=never", samples(40, 32, wasted=24), select=TOP_ONE, stop={})
    (text,) = texts(read(runs), "end of text")
    assert "forwards divided by 2.00" in text


ASKED = {"manner": {"copy": "m1", "sort": "m2"}}


def with_parts(folder: Path) -> Path:
    """Runs on 40 problems at batch 4, on ten of them as well, and on four of them at batch 1."""
    run(folder, "sequential", samples(40, 16, wasted=8), select=TOP_ONE, order=3, **ASKED)
    run(folder, "threshold", samples(38, 6), order=1, **ASKED)
    run(
        folder, "sequential stop=never", samples(10, 32, wasted=24, count=10), select=TOP_ONE,
        stop={}, digest="d2", **ASKED,
    )  # fmt: skip
    run(
        folder, "sequential transforms=[defer_eot]", samples(10, 8, count=10), select=TOP_ONE,
        transforms={"defer_eot": {"_target_": "x.DeferTokens"}}, digest="d2", **ASKED,
    )  # fmt: skip
    for name, forwards, select in (("sequential", 16, TOP_ONE), ("threshold", 4, THRESHOLD)):
        found = samples(4, forwards, count=4)
        run(folder / "b1", name, found, select=select, digest="d3", batch_size=1, **ASKED)
    return folder


def test_runs_on_part_of_the_problems_stand_beside_the_others(tmp_path):
    chosen = report.chosen_runs(store.collect(with_parts(tmp_path / "runs")), None)
    assert [(r.name, r.batch_size) for r in chosen.whole] == [("sequential", 4), ("threshold", 4)]
    assert len(chosen.parts) == 4
    written = report.write_report(store.collect(tmp_path / "runs"), tmp_path / "out", NO_FIGURES)
    rows = {row.strategy: row for row in written.report.parts}
    assert list(rows) == [
        "sequential", "sequential stop=never", "sequential transforms=[defer_eot]",
    ]  # fmt: skip
    assert {row.problems for row in rows.values()} == {10}
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "## On part of the problems (10)" in markdown
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>On part of the problems (10)</h2>" in html and "<h2>Wall time</h2>" in html


def test_wall_times_stand_side_by_side_for_each_batch_size(tmp_path):
    found = store.collect(with_parts(tmp_path / "runs"))
    times = report.write_report(found, tmp_path / "out", NO_FIGURES).report.times
    assert [(t.strategy, t.batch_size, t.problems, t.speedup) for t in times] == [
        ("sequential", 1, 4, 1.0), ("threshold", 1, 4, 4.0),
        ("sequential", 4, 40, 1.0), ("threshold", 4, 40, pytest.approx(16 / 6)),
    ]  # fmt: skip
    line = "| threshold | 40.0 | 200 | 4.00x | 60.0 | 133 | 2.67x |"
    written = (tmp_path / "out" / "report.md").read_text()
    assert line in written and "speedup (in wall time)" in written.split("## Wall time")[0]
    rows = list(csv.DictReader((tmp_path / "out" / "wall_time.csv").open()))
    assert float(rows[1]["seconds_per_problem"]) == pytest.approx(0.04)


def timed(folder: Path, seconds: dict[str, list[float]]) -> Path:
    """Two runs and, for their wall time, repetitions on four problems with the given means."""
    run(folder, "sequential", samples(40, 16), select=TOP_ONE, **ASKED)
    run(folder, "sequential stop=never", samples(40, 32), select=TOP_ONE, stop={}, **ASKED)
    stops = {"sequential": EOT, "sequential stop=never": {}}
    for name, times in seconds.items():
        for number, mean in enumerate(times, start=1):
            found = [replace(s, seconds=mean) for s in samples(4, 16, count=4)]
            run(
                folder / f"t{number}", name, found, select=TOP_ONE, stop=stops[name], digest="d3",
                timing=number, **ASKED,
            )  # fmt: skip
    return folder


TIMED = {"sequential": [0.02, 0.5, 0.01], "sequential stop=never": [0.06, 1.0, 0.05]}


def test_runs_made_for_their_wall_time_give_medians_over_repetitions(tmp_path):
    chosen = report.chosen_runs(store.collect(timed(tmp_path / "runs", TIMED)), None)
    assert (len(chosen.whole), len(chosen.parts), len(chosen.timed)) == (2, 0, 6)
    times = tables.wall_times(chosen.clocked)
    assert [(t.strategy, t.problems, t.repetitions) for t in times] == [
        ("sequential", 4, 3), ("sequential stop=never", 4, 3),
    ]  # fmt: skip
    assert [t.seconds_per_problem.value for t in times] == pytest.approx([0.02, 0.06])
    # a run without a stop rule is its own baseline
    assert [t.speedup for t in times] == [1.0, 1.0]


@pytest.mark.slow
def test_pages_show_those_wall_times_instead_of_the_runs_own(tmp_path, capsys):
    timed(tmp_path / "runs", TIMED)
    words = ["task=report", f"task.runs={tmp_path / 'runs'}", f"task.output={tmp_path / 'out'}"]
    words += ["task.figures=false", "display=plain", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(words) == 0
    for name in ("report.md", "report.html"):
        before, after = (tmp_path / "out" / name).read_text().split("Wall time", 1)
        assert "in wall time" not in before and "in wall time" in after
        assert "20.0 [10.0, 500.0]" in after
        assert "on 4 at batch 4; medians of 3 repetitions in which all runs took turns" in after
        assert "forwards divided by 2.00, wall time by 3.00" in after
    said = capsys.readouterr().out
    assert "speedup" in said and "wall time" not in said and "wall_time.csv" in said
    rows = list(csv.DictReader((tmp_path / "out" / "wall_time.csv").open()))
    assert [float(rows[0][f"seconds_per_problem{end}"]) for end in ("", "_low", "_high")] == [
        pytest.approx(0.02), pytest.approx(0.01), pytest.approx(0.5),
    ]  # fmt: skip
    assert rows[0]["repetitions"] == "3"


def test_a_run_on_part_of_the_problems_gives_way_to_one_on_all(tmp_path):
    folder = with_parts(tmp_path)
    run(
        folder / "later", "sequential stop=never", samples(40, 32), select=TOP_ONE, stop={}, **ASKED
    )
    chosen = report.chosen_runs(store.collect(folder), None)
    assert "sequential stop=never" in [r.name for r in chosen.whole]
    assert [r.name for r in chosen.beside] == ["sequential transforms=[defer_eot]"]


def test_controls_may_be_runs_on_part_of_the_problems(tmp_path):
    found = store.collect(with_parts(tmp_path / "runs"))
    notes = report.write_report(found, tmp_path / "out", NO_FIGURES).report.notes
    said = {kind: " ".join(n.text for n in notes if n.kind == kind) for kind in
            ("end of text", "padding")}  # fmt: skip
    assert (
        "against sequential stop=never, 10 problems): forwards divided by 2.00"
        in said["end of text"]
    )
    assert "needs 32.0 passes per problem, of which 75 % decide nothing" in said["padding"]
    assert "with it 50 % of 16.0 do" in said["padding"]
    assert "padding last (sequential transforms=[defer_eot], 10 problems)" in said["padding"]
    assert "every speedup in forwards is 2.00 times smaller" in said["padding"]


@pytest.mark.parametrize(
    "change",
    [{"manner": {"copy": "m1", "sort": "other"}}, {"manner": None}, {"template": "plain"},
     {"model": {"description": "b", "fingerprint": "f2"}}],
)  # fmt: skip
def test_fewer_problems_asked_in_another_way_are_no_part(tmp_path, change):
    folder = with_parts(tmp_path)
    run(folder, "factor", samples(3, 3, count=10), digest="d2", **{**ASKED, **change})
    with pytest.raises(ConfigError, match="the runs differ in their"):
        read(folder)


def test_gains_that_come_from_padding_are_noted(runs):
    (text,) = texts(read(runs), "padding")
    # 16 passes, 8 of them idle, against 4: 8 of the 12 saved passes were idle
    assert "credit 67 %" in text and "threshold 0.9 80 %" in text
    row = tables.rows_of(read(runs), None)[1]
    assert (row.speedup.forwards, row.speedup.useful) == (4.0, 2.0)


def test_shorter_answers_are_noted(tmp_path):
    run(tmp_path, "sequential", samples(40, 8), select=TOP_ONE)
    run(tmp_path, "threshold", samples(40, 4, tokens=4))
    (text,) = texts(read(tmp_path), "padding")
    assert "delivers 50 % fewer tokens" in text


# What is left out, and what is refused.


def test_unfinished_failed_and_damaged_runs_are_named(runs):
    (runs / "credit" / store.RESULTS).unlink()
    (runs / "threshold-0.9" / store.RESULTS).unlink()
    (runs / "threshold-0.9" / store.FAILURE).write_text('{"reason": "out of luck"}')
    (runs / "threshold-0.5" / store.RESULTS).write_text("{half")
    found = store.collect(runs)
    assert [r.name for r in found.runs] == ["sequential"]
    assert "credit: no results.json" in found.unfinished[0]
    assert "out of luck" in found.failed[0]
    assert "threshold-0.5/results.json cannot be read" in found.broken[0]


def test_missing_samples_and_keys_are_damage(runs):
    file = runs / "credit" / store.SAMPLES
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:-1]))
    (runs / "threshold-0.9" / store.RESULTS).write_text('{"name": "x"}')
    broken = " ".join(store.collect(runs).broken)
    assert "39 samples of the 40" in broken
    assert "has no order, settings" in broken


@pytest.mark.parametrize(
    ("change", "message"),
    [({"digest": "d2"}, "differ in their problems"),
     ({"model": {"description": "b", "fingerprint": "f2"}}, "differ in their model")],
)  # fmt: skip
def test_runs_that_no_table_should_mix_are_refused(runs, change, message):
    run(runs, "factor", samples(3, 3), **change)
    with pytest.raises(ConfigError, match=message) as caught:
        read(runs)
    assert "factor" in str(caught.value) and "credit" in str(caught.value)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no evaluation runs"):
        store.collect(tmp_path)
    with pytest.raises(ConfigError, match="must be a folder"):
        store.collect(tmp_path / "none")


def test_some_runs_can_be_chosen(runs):
    found = report.chosen_runs(store.collect(runs), "threshold").whole
    assert len(found) == 2
    with pytest.raises(ConfigError, match="no runs contain 'oracle'"):
        report.chosen_runs(store.collect(runs), "oracle")


def test_of_two_versions_of_a_job_the_newer_counts(runs):
    credit = {"credit": {"_target_": "x.TraceCredit"}}
    found, later = samples(10, 4), {"time": "2027"}
    path = run(runs / "again", "credit", found, transforms=credit, environment=later)
    assert path in [r.path for r in read(runs)]
    assert [r.name for r in read(runs)].count("credit") == 1


# Forms.


class Balance(HTMLParser):
    """Whether every tag is closed, and which tags there are."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "path", "use", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                raise AssertionError(f"{tag} closes something else")


@pytest.mark.slow
def test_a_report_writes_every_form_and_the_same_figures_twice(runs, tmp_path):
    pytest.importorskip("matplotlib")
    written = report.write_report(
        store.collect(runs), tmp_path / "out", report.ReportSettings(preface="Read *this*.")
    )
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"table.csv", "report.md", "report.html"} <= names
    for figure in ("accuracy_speed", "families", "steps", "grid"):
        assert {f"{figure}.svg", f"{figure}.png"} <= names
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(html)
    # nothing is fetched from anywhere, and identifiers are unique
    assert not any(
        str(value).startswith(("http:", "https:", "//", "file:"))
        for tag, attrs in parser.seen
        for key, value in attrs.items()
        if key in ("src", "href", "xlink:href")
    )
    marks = [attrs["id"] for _, attrs in parser.seen if "id" in attrs]
    assert len(marks) == len(set(marks))
    assert html.count("<svg") == 4 and "credit" in html
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "Read *this*." in markdown and "| credit | 40 | 90.0 [" in markdown
    assert len(written.files) == 7
    report.write_report(store.collect(runs), tmp_path / "again")
    for path in (tmp_path / "out" / "figures").glob("*.svg"):
        assert path.read_bytes() == (tmp_path / "again" / "figures" / path.name).read_bytes()


@pytest.mark.slow
def test_the_oracle_is_shown_but_is_not_the_pareto_front(runs):
    run(runs, "oracle", samples(40, 2), select={"_target_": "x.Oracle"})
    (axes,) = figures.accuracy_against_speed(figures.shown_runs(read(runs))).axes
    front = next(line for line in axes.lines if line.get_label().startswith("Pareto"))
    assert len(front.get_xdata()) == 4 and max(front.get_xdata()) < 4  # tokens per forward
    alone = [r for r in read(runs) if r.name == "oracle"]
    assert figures.accuracy_against_speed(figures.shown_runs(alone)) is not None


def test_a_line_joins_the_settings_of_one_rule_and_every_rule_is_named_at_its_point(tmp_path):
    pytest.importorskip("matplotlib")
    shown = figures.shown_runs(factors.named(read(grid(tmp_path / "runs"))))
    drawn = figures.accuracy_against_speed(shown)
    (axes,) = drawn.axes
    lines = [line for line in axes.lines if line.get_marker() not in ("None", "_", "|")]
    sizes = sorted(len(line.get_xdata()) for line in lines)
    assert sizes == [1, 1, 1, 1, 1, 3]  # the thresholds; credit changes two settings at once
    thresholds = next(line for line in lines if len(line.get_xdata()) == 3)
    assert list(thresholds.get_ydata()) == [50.0, 70.0, 90.0]
    hues = {line.get_color() for line in lines}
    assert {"#8C8C8C", "#000000"} <= hues and len(hues) == 4  # control, oracle, two kinds of rules
    names = [text.get_text() for text in axes.texts]
    assert {"sequential", "oracle", "0.5", "0.7"} <= set(names) and len(names) == len(shown)
    places = [text.get_window_extent() for text in axes.texts]
    overlapping = [
        (a, b) for i, a in enumerate(places) for b in places[:i] if a.overlaps(b) and a is not b
    ]
    assert overlapping == []
    figures.pyplot().close(drawn)


def test_families_on_which_rules_differ_have_a_panel_and_the_others_share_one(tmp_path):
    one = [replace(s, family="hard", correct=n < 10) for n, s in enumerate(samples(40, 4))]
    alike = [replace(s, problem=f"x{s.problem}") for s in samples(40, 8)]
    for name, found in (("a", one), ("b", [replace(s, correct=True) for s in one])):
        run(tmp_path / "runs", name, [*found, *alike], families=["copy", "sort", "hard"])
    panels = figures.panels_of(figures.shown_runs(read(tmp_path / "runs")))
    assert list(panels) == ["hard", "the other 2 families"]
    pooled = panels["the other 2 families"][0]
    assert (pooled.problems, pooled.accuracy.value, pooled.forwards.value) == (40, 1.0, 8.0)
    assert pooled.tokens_per_forward.value == 1.0


def test_csv_holds_full_figures(runs):
    rows = tables.rows_of(read(runs), None)
    found = list(csv.DictReader(io.StringIO(tables.csv_text(rows))))
    assert float(found[1]["accuracy"]) == 0.9
    assert float(found[1]["tokens_per_forward"]) == 2.0
    assert found[0]["share_of_oracle"] == ""


HOSTILE = [
    "$\\frac{$", "<script>alert(1)</script>", "=1+1", "+cmd", "-2", "@x", "a|b", "[x](data:x)",
    "![x](http://example.org/x.png)", "_x_", "**x**", "`x`", "<!-- x", "&lt;b&gt;", "\\", "~~x~~",
    "[credit]", "# x", "- x", "https://example.org",
]  # fmt: skip


class Words(HTMLParser):
    """Cells of the tables of a page as they are read, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: set[str] = set()
        self.inside = False

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.inside = tag == "td"
        if self.inside:
            self.cells.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "td"

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data


@pytest.mark.slow
def test_names_that_mean_something_elsewhere_do_no_harm_in_any_form(tmp_path):
    pytest.importorskip("matplotlib")
    for number, name in enumerate(HOSTILE):
        run(tmp_path / "runs" / str(number), name.replace("/", "\u2215"), samples(38, 6))
    written = report.write_report(
        store.collect(tmp_path / "runs"),
        tmp_path / "out",
        report.ReportSettings(title="<script>x</script>"),
    )
    names = [name.replace("/", "\u2215") for name in HOSTILE]
    page = Words()
    page.feed((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert set(names) <= set(page.cells)
    assert not page.tags & {"script", "img", "b", "del"} and "em" not in page.tags
    assert "<script" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    rows = list(csv.reader((tmp_path / "out" / "table.csv").open(encoding="utf-8")))
    assert not [row[0] for row in rows if row[0].startswith(tuple("=+-@\t"))]
    assert {row[0].removeprefix("'") for row in rows[1:]} == set(names)
    assert len(written.files) == 7


@pytest.mark.parametrize("name", ["=1", "+1", "-1", "@1", "\t=1", "\r=1", "\n@1"])
def test_no_cell_of_a_spreadsheet_begins_a_formula(runs, name):
    (row, *_) = tables.rows_of(read(runs), None)
    row = replace(row, strategy=name, family=name)
    (found,) = csv.DictReader(io.StringIO(tables.csv_text([row]), newline=""))
    assert found["strategy"] == found["family"] == f"'{name.strip()}"
    timing = tables.WallTime(name, 1, 1, 1, row.accuracy, 1.0, None)
    assert tables.wall_time_csv([timing]).splitlines()[1].lstrip('"').startswith("'")


def test_facts_about_the_machine_and_names_of_tasks_are_text_as_well(tmp_path):
    facts = {"time": "2026", "cores": 2, "processor": "<script>x</script>"}
    found = [replace(s, family="<b>copy</b>") for s in samples(3, 4, count=4)]
    run(
        tmp_path / "runs", "a", found, families=["<b>copy</b>"], environment=facts,
        model={"description": "<img src=x>"},
    )  # fmt: skip
    report.write_report(store.collect(tmp_path / "runs"), tmp_path / "out", NO_FIGURES)
    page = Words()
    page.feed((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert not page.tags & {"script", "img", "b"}
    assert not re.search(r"<(script|b|img)", (tmp_path / "out" / "report.md").read_text())


def test_the_page_is_the_markdown_and_its_figures(runs, tmp_path):
    written = report.write_report(
        store.collect(runs),
        tmp_path / "out",
        report.ReportSettings(preface="Read *this*: ![x](http://a/b.png)", draw=False),
    )
    html = page.to_html(written.report, {"grid": "<?xml?><svg><g id='a'/></svg>"})
    assert "<em>this</em>" in html and "<img" not in html and "<?xml" not in html
    assert '<svg role="img" aria-label="Accuracy of every run' in html
    assert html.count("<table>") == html.count('<div class="wide"><table>') == 4


@pytest.mark.slow
@pytest.mark.one_in(5)
@pytest.mark.parametrize("form", ["$", "$a$ $", "$\\frac{$", "$\\undefined$", "_hidden"])
def test_figures_show_names_as_they_are(runs, form):
    Text = pytest.importorskip("matplotlib.text").Text
    found = [replace(r, results={**r.results, "name": f"{form}{r.name}"}) for r in read(runs)]
    shown = figures.shown_runs(found)
    for drawn in (figures.accuracy_against_speed(shown), figures.per_family(shown),
                  figures.commits_over_steps(found), figures.ablation_grid(shown)):  # fmt: skip
        drawn.canvas.draw()
        texts = {text.get_text().strip() for text in drawn.findobj(Text)}
        assert {r.name for r in found} & texts, drawn
        figures.pyplot().close(drawn)
    grid = figures.ablation_grid(shown)
    assert {r.name for r in found} <= {text.get_text().strip() for text in grid.findobj(Text)}


def test_definitions_are_printed_on_request(runs, tmp_path, capsys):
    words = ["task=report", f"runs={runs}", "task.figures=false", "task.define=true"]
    markdown = tmp_path / "docs" / "results.md"
    markdown.parent.mkdir()
    words += [f"hydra.run.dir={tmp_path / 'out'}", f"task.markdown={markdown}", "display=plain"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "tokens_per_forward [tokens per pass]: delivered tokens" in shown
    assert markdown.read_text(encoding="utf-8").startswith("# Evaluation")


def test_a_page_may_show_some_families_and_leave_the_others_to_the_table_beside_it(runs, tmp_path):
    page = tmp_path / "results.md"
    words = ["task=report", f"runs={runs}", "task.figures=false", "display=plain"]
    words += [f"hydra.run.dir={tmp_path / 'out'}", f"task.markdown={page}", "task.sections=[sort]"]
    assert main(words) == 0
    text = page.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("### ")] == ["### sort"]
    assert "2 families are in [table.csv](results/table.csv), these are some." in text
    table = (tmp_path / "results" / "table.csv").read_text(encoding="utf-8")
    assert "copy" in table and "sort" in table


def test_a_section_of_a_family_that_no_run_has_is_refused(runs, tmp_path, capsys):
    words = ["task=report", f"runs={runs}", "task.figures=false", "display=plain"]
    words += [f"hydra.run.dir={tmp_path / 'out'}", "task.sections=[sudoku]"]
    assert main(words) == 2
    assert "task.sections must be one of copy, sort; got 'sudoku'" in capsys.readouterr().err


@pytest.mark.slow
def test_damaged_results_make_the_command_fail_but_not_the_report(runs, tmp_path, capsys):
    (runs / "credit" / store.RESULTS).write_text("{half")
    words = ["task=report", f"runs={runs}", "task.figures=false", "display=plain"]
    assert main([*words, f"hydra.run.dir={tmp_path / 'out'}"]) == 1
    assert "credit/results.json cannot be read" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "out" / "report" / "report.html").exists()


def test_report_settings_are_checked():
    from dllm_decode.tasks.report import Report

    with pytest.raises(ConfigError, match=r"task\.runs must name a folder"):
        Report(runs="")
    with pytest.raises(ConfigError, match=r"task\.markdown must end with \.md"):
        Report(markdown="page.html")


def test_the_documented_definitions_are_those_of_the_code():
    docs = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert page.definitions_markdown().strip() in docs.read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_ablation_runs_its_list_and_reports_it(tmp_path, capsys):
    jobs = json.dumps(["strategy=sequential", "strategy=topk strategy.select.tokens_per_step=3"])
    words = ["task=ablation", "model=toy_shuffle", "schedule=whole", f"task.jobs={jobs}"]
    words += ["task.count=6", f"runs={tmp_path / 'runs'}", "display=plain", "task.figures=false"]
    assert main([*words, f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    found = report.chosen_runs(store.collect(tmp_path / "runs"), None).whole
    assert [r.name for r in found] == [
        "sequential schedule=whole", "topk schedule=whole tokens_per_step=3",
    ]  # fmt: skip
    assert "job 2 of 2" in capsys.readouterr().out
    assert (tmp_path / "out" / "report" / "report.html").exists()


@pytest.mark.slow
def test_a_failing_job_does_not_stop_an_ablation(tmp_path, capsys):
    jobs = json.dumps(["strategy=learn2pd", "strategy=sequential"])  # the filter is for blocks
    words = ["task=ablation", "model=toy_shuffle", "schedule=whole", f"task.jobs={jobs}"]
    words += ["task.count=3", f"runs={tmp_path / 'runs'}", "display=plain", "task.figures=false"]
    assert main([*words, f"hydra.run.dir={tmp_path / 'out'}"]) == 1
    assert "failed: " in capsys.readouterr().out
    assert len(store.collect(tmp_path / "runs").runs) == 1


def ablation(folder: Path, *words: str) -> list[str]:
    common = ["task=ablation", "model=toy_shuffle", "task.figures=false", "display=plain"]
    place = [f"runs={folder / 'runs'}", f"hydra.run.dir={folder / 'out'}"]
    return [*common, *place, *words]


@pytest.mark.slow
def test_an_ablation_adds_a_job_of_fewer_problems_and_wall_times(tmp_path, capsys):
    part = "strategy=sequential strategy/stop=never task.count=3"
    words = [f'task.jobs=["strategy=oracle","strategy=sequential","{part}"]']
    words += ["task.common='schedule=whole'"]
    words += ["task.count=6", "batch_size=4", "task.timed_batches=[1,2]", "task.timed_count=1"]
    assert main(ablation(tmp_path, *words, "task.timed_repeats=2")) == 0
    chosen = report.chosen_runs(store.collect(tmp_path / "runs"), None)
    assert [(r.name, len(r.samples), r.batch_size) for r in chosen.whole] == [
        ("sequential schedule=whole", 6, 4), ("oracle schedule=whole", 6, 4),
    ]  # fmt: skip
    assert [(len(r.samples), r.batch_size) for r in chosen.parts] == [(3, 4)]
    # a full batch at least
    counts = {(r.timing, r.batch_size, len(r.samples)) for r in chosen.timed}
    assert counts == {(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 2)} and len(chosen.timed) == 12
    turns = [line for line in capsys.readouterr().out.splitlines() if "task.timing=" in line]
    first = [line.rpartition("batch_size=")[2] for line in turns[:6]]
    assert first == ["1 task.timing=1"] * 3 + ["2 task.timing=1"] * 3
    page = (tmp_path / "out" / "report" / "report.md").read_text()
    assert "time at batch 1 (ms per problem [range])" in page and "time at batch 2" in page
    [ended] = [line for line in page.splitlines() if ", 3 problems)" in line]
    assert "against sequential" in ended, ended


@pytest.mark.slow
def test_a_finished_job_takes_the_place_it_has_in_the_present_list(tmp_path):
    jobs = ["strategy=sequential", "strategy=topk", "strategy=credit"]
    for order in (jobs, jobs[::-1]):
        words = [f"task.jobs={json.dumps(order)}", "schedule=whole", "task.count=2"]
        assert main(ablation(tmp_path, *words)) == 0
    names = [r.name.split()[0] for r in read(tmp_path / "runs")]
    assert names == ["sequential", "credit", "topk"]  # the baseline always first


@pytest.mark.slow
def test_workers_share_the_jobs_and_give_the_same(tmp_path, capsys):
    jobs = ["strategy=sequential", "strategy=topk", "strategy=learn2pd", "strategy=oracle"]
    words = [f"task.jobs={json.dumps(jobs)}", "schedule=whole", "task.count=6"]
    found = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        assert main(ablation(folder, *words, f"task.workers={workers}")) == 1  # no filter for it
        runs = read(folder / "runs")
        found.append({r.name: [replace(s, seconds=0.0) for s in r.samples] for r in runs})
    assert found[0] == found[1] and len(found[0]) == 3
    assert "4 of 4 done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [({"workers": 0}, "task.workers"), ({"timed_count": 0}, "task.timed_count"),
     ({"timed_batches": [0]}, "task.timed_batches"), ({"timed_repeats": 0}, "task.timed_repeats")],
)  # fmt: skip
def test_ablation_settings_are_checked(change, message):
    from dllm_decode.tasks.ablation import Ablation

    with pytest.raises(ConfigError, match=f"{message} must be a whole number"):
        Ablation(jobs=["strategy=credit"], **change)


def test_ablations_refuse_empty_and_repeated_jobs():
    from dllm_decode.tasks.ablation import Ablation

    with pytest.raises(ConfigError, match="at least one line of overrides"):
        Ablation()
    with pytest.raises(ConfigError, match="must not name a job twice"):
        Ablation(jobs=["strategy=credit", "strategy=credit"])


# What tells runs apart.


def grid(folder: Path) -> Path:
    """A sweep of two rules over thresholds, a baseline and an oracle."""
    run(folder, "sequential schedule.length=8", samples(40, 16), select=TOP_ONE)
    for order, value in enumerate((0.5, 0.7, 0.9), start=1):
        right, select = int(40 * value), {**THRESHOLD, "threshold": value}
        run(folder, f"threshold {value} length=8", samples(right, 4), select=select, order=order)
        alpha = {"credit": {"_target_": "x.credit.TraceCredit", "alpha": value}}
        name = f"credit threshold={value} alpha={value} length=8"
        found = samples(right, 3)
        run(folder, name, found, select=select, transforms=alpha, order=order + 3)
    run(folder, "oracle length=8", samples(40, 2), select={"_target_": "x.Oracle"}, order=9)
    return folder


def test_names_say_only_what_differs_and_factors_are_columns(tmp_path):
    found = factors.traits_of(read(grid(tmp_path / "runs")))
    names = [trait.name for trait in found]
    assert names[:3] == ["sequential", "threshold 0.5", "threshold 0.7"]
    assert names[4] == "credit threshold=0.5 alpha=0.5" and names[-1] == "oracle"
    assert factors.factor_names(found) == ["strategy", "threshold", "alpha"]
    assert [trait.role for trait in found] == ["control", *["rule"] * 6, "oracle"]
    thresholds = [trait for trait in found if trait.rule == "threshold"]
    assert len({trait.line for trait in thresholds}) == 1
    assert [trait.at for trait in thresholds] == [0.5, 0.7, 0.9]
    # alpha and threshold change together: no line runs along one of them alone
    assert len({trait.line for trait in found if trait.rule == "credit"}) == 3


def test_a_default_is_left_out_of_a_name_though_most_runs_say_otherwise(tmp_path):
    fixed = {"_target_": "x.TopK", "tokens_per_step": 2, "order": "confidence"}
    run(tmp_path / "runs", "topk", samples(30, 4), select=fixed, order=0)
    for order, count in enumerate((2, 4), 1):
        select = {**fixed, "tokens_per_step": count, "order": "entropy"}
        name = f"topk tokens_per_step={count} order=entropy"
        run(tmp_path / "runs", name, samples(30, 4), select=select, order=order)
    run(tmp_path / "runs", "threshold", samples(30, 4), order=3)
    names = [trait.name for trait in factors.traits_of(read(tmp_path / "runs"))]
    assert sorted(names[:3]) == [
        "topk order=entropy tokens_per_step=2", "topk order=entropy tokens_per_step=4",
        "topk tokens_per_step=2",
    ]  # fmt: skip


def test_of_one_rule_only_what_was_set_is_left_and_every_run_has_its_own_name(tmp_path):
    for value in (0.5, 0.7):
        select = {**THRESHOLD, "threshold": value}
        run(tmp_path / "runs", f"threshold {value}", samples(30, 4), select=select)
    assert [t.name for t in factors.traits_of(read(tmp_path / "runs"))] == [
        "threshold=0.5", "threshold=0.7",
    ]  # fmt: skip
    again = factors.traits_of(factors.named(read(tmp_path / "runs")))
    assert [t.factors for t in again] == [{"threshold": 0.5}, {"threshold": 0.7}]
    assert len({t.line for t in again}) == 1
    run(tmp_path / "other", "mine", samples(30, 4), order=0)
    run(tmp_path / "other", "yours", samples(30, 4), order=1)
    assert [t.name for t in factors.traits_of(read(tmp_path / "other"))] == ["mine", "yours"]


def test_a_setting_outside_of_the_rule_is_in_the_name_of_the_run_that_was_given_it(tmp_path):
    def settings(length):
        strategy = {"select": THRESHOLD, "stop": EOT}
        return {"settings": {"strategy": strategy, "schedule": {"length": length}}}

    run(tmp_path / "runs", "sequential", samples(40, 16), order=0, **settings(32))
    run(tmp_path / "runs", "credit length=8", samples(38, 6), order=1, **settings(8))
    named = [trait.name for trait in factors.traits_of(read(tmp_path / "runs"))]
    assert named == ["sequential", "credit length=8"]


def test_problems_that_could_not_be_decoded_are_told_in_the_terminal(runs, tmp_path):
    broken = [replace(one, error="too long", steps=(), forwards=0) for one in samples(3, 6)[:2]]
    run(runs, "threshold 0.9", [*broken, *samples(38, 6)[2:]], order=1)
    written = report.write_report(store.collect(runs), tmp_path / "out", NO_FIGURES)
    lines = [str(line) for line in overview.overview(written.report, 100)]
    assert any("2 of 40 problems of threshold 0.9 could not be decoded" in line for line in lines)


def test_a_gain_where_all_thresholds_are_as_accurate_is_a_number(tmp_path):
    for order, (value, forwards) in enumerate(((0.5, 3), (0.9, 6))):
        select = {**THRESHOLD, "threshold": value}
        found = samples(40, forwards)
        run(tmp_path, f"threshold {value}", found, select=select, order=order)
    credit = {"credit": {"_target_": "x.credit.TraceCredit"}}
    run(tmp_path, "credit", samples(40, 4), transforms=credit, order=2)
    told = [note.text for note in controls.notes(read(tmp_path)) if note.kind == "credit"]
    assert len(told) == 1 and "-25.0 % tokens per forward" in told[0] and "nan" not in told[0]


def test_runs_that_differ_in_guidance_or_voting_alone_have_names_of_their_own(tmp_path):
    plain = {"strategy": {"select": THRESHOLD, "stop": EOT}, "schedule": {}}
    votes = {"answer": "auto", "block_lengths": None, "n": 5}
    manners = [
        {"settings": plain}, {"settings": {**plain, "guidance": 0.5}},
        {"settings": plain, "voting": {**votes, "vote": "majority"}},
        {"settings": plain, "voting": {**votes, "vote": "agreed"}},
    ]  # fmt: skip
    for order, manner in enumerate(manners):
        run(tmp_path / "runs", f"threshold run={order}", samples(30, 4), order=order, **manner)
    named = [trait.name for trait in factors.traits_of(read(tmp_path / "runs"))]
    assert named == ["threshold", "guidance=0.5", "n=5", "n=5 vote=agreed"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("count", [3, 60])
def test_a_terminal_gets_at_most_forty_lines_with_the_fastest_at_every_accuracy(tmp_path, count):
    folder = tmp_path / "runs"
    run(folder, "sequential", samples(40, 16), select=TOP_ONE)
    for number in range(count):
        select = {**THRESHOLD, "threshold": number / 100}
        run(folder, f"threshold {number / 100}", samples(40 - number % 40, 12 - number % 9),
            select=select, order=number + 1)  # fmt: skip
    written = report.write_report(store.collect(folder), tmp_path / "out", NO_FIGURES)
    console = Console(width=80, file=io.StringIO())
    for part in overview.overview(written.report, 80, ["report: somewhere"]):
        console.print(part)
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= overview.MOST_LINES and max(map(len, lines)) <= 80
    assert any("sequential" in line for line in lines)
    told = [line for line in lines if line.startswith("best at ")]
    floor, name = re.match(r"best at ([\d.]+) % or more: (.*), ", told[-1]).groups()
    enough = [r for r in written.report.overall if 100 * r.accuracy.value >= float(floor)]
    assert name == max(enough, key=lambda row: row.tokens_per_forward.value).strategy
    assert any(line.strip().startswith(name) for line in lines)
    assert ("more runs" in console.file.getvalue()) == (count > 30)


def test_without_the_packages_for_it_the_page_is_plain(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(explore, "find_spec", lambda name: None)
    words = ["task=report", f"runs={runs}", "task.figures=false", "display=plain"]
    assert main([*words, f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    assert "pip install 'dllm_decode[report]'" in capsys.readouterr().out
    page = (tmp_path / "out" / "report" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "threshold 0.9" in page


@pytest.mark.parametrize("place", ["cache", "file", "nobody"])
def test_the_script_of_the_charts_is_made_once_wherever_it_can_be_kept(
    place, tmp_path, monkeypatch
):
    made = []
    charts = SimpleNamespace(javascript_bundle=lambda: made.append(1) or "let chart = 'é'")
    monkeypatch.setattr(explore, "import_module", lambda name: charts)
    monkeypatch.setattr(explore, "version", lambda name: "1.9")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", "" if place == "nobody" else str(tmp_path / place))
    if place == "nobody":
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert [explore._charts(), explore._charts()] == ["let chart = 'é'"] * 2
    assert len(made) == (1 if place == "cache" else 2)
    kept = [found.name for found in tmp_path.rglob("*.*")]
    assert kept == (["charts-1.9.js"] if place == "cache" else [])


def test_the_page_holds_the_problems_that_some_run_got_wrong_first(runs):
    found = explore.data(read(runs), 12)
    assert len(found["problems"]) == 12 and found["total"] == 40
    wrong = [any(not answer[1] for answer in answers) for answers in found["answers"]]
    assert sum(wrong) == 10  # threshold 0.5 has ten wrong ones, and the others fewer
    texts, first = found["texts"], found["answers"][0][0]
    assert texts[first[0]] == "!" and len(first[3]) == 8
    assert {run["name"]: run["kind"] for run in found["runs"]}["sequential"] == "control"


def test_what_a_page_knows_cannot_end_the_script_it_stands_in(tmp_path, monkeypatch):
    monkeypatch.setattr(explore, "find_spec", lambda name: object())
    monkeypatch.setattr(explore, "libraries", lambda: (("", ""), "let a = '</script>'"))
    sly = [
        replace(s, prompt="</script><b>{tables}/* charts.js */", text="<!--")
        for s in samples(20, 4)
    ]
    run(tmp_path / "runs", "a", sly)
    made = explore.section(read(tmp_path / "runs"), 5)
    inside = made.split("explore-data", 1)[1].split("explore-tables", 1)[0]
    assert "</script><b>" not in inside and "<!--" not in inside
    assert "{tables}/* charts.js */" in inside
    assert made.count("</script>") == made.count("<script") == 4


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (None, r"cannot be read: No such file or directory$"),
        (b"\xff\xfe", r"is not UTF-8 text: invalid start byte$"),
    ],
)
def test_a_preface_that_cannot_be_read_is_named(tmp_path: Path, data, fault: str) -> None:
    from dllm_decode.tasks.report import Report

    page = tmp_path / "preface.md"
    if data is not None:
        page.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"^task\.preface: .*preface\.md {fault}"):
        Report(preface=str(page))._preface()


def test_a_file_in_the_place_of_the_report_is_named(runs, tmp_path, capsys):
    place = tmp_path / "there"
    place.touch()
    assert main(["task=report", f"runs={runs}", f"task.output={place}", "task.figures=false"]) == 2
    told = f"task.output must be a folder, got {place}, which is a file"
    assert told in " ".join(capsys.readouterr().err.split())
