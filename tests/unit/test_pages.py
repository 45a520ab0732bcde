"""Tables of runs inside the pages of a documentation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fill_pages as pages
import pytest

from dllm_decode.errors import ConfigError
from dllm_decode.evaluation.metrics import Sample
from dllm_decode.evaluation.store import EvalRun

STRATEGIES = Path(__file__).parents[2] / "docs" / "strategies"


def run(name: str, right: int, forwards: int, select: dict | None = None) -> EvalRun:
    found = tuple(
        Sample(
            problem=f"{task}/{n}", family=task, prompt="", text="", correct=n < right, slots=8,
            forwards=forwards, steps=(0, 0, 0),
        )
        for task in ("copy", "shuffle") for n in range(4)
    )  # fmt: skip
    settings = {"strategy": {"select": select or {"_target_": "x.Y"}, "transforms": {}}}
    results = {"name": name, "families": ["copy", "shuffle"], "batch_size": 2}
    return EvalRun(Path(), {**results, "settings": settings}, found)


RUNS = [
    run("sequential", 4, 8, {"_target_": "x.TopK", "tokens_per_step": 1, "order": "confidence"}),
    run("threshold 0.5", 2, 2),
    run("threshold", 3, 4),
]


def test_a_marked_place_is_filled_with_the_runs_it_names(tmp_path):
    page = tmp_path / "a.md"
    page.write_text(
        "before\n<!-- runs: threshold; threshold 0.5 -->\nstale\n<!-- runs: end -->\nafter"
    )
    assert pages.refresh(tmp_path, RUNS) == [page]
    text = page.read_text()
    assert text.startswith("before\n<!-- runs: threshold; threshold 0.5 -->\n8 held-out problems")
    assert text.endswith("\n<!-- runs: end -->\nafter") and "stale" not in text
    assert "`sequential` has 100.0 [67.6, 100.0] % at 8.0 forwards." in text.replace("\n", " ")
    first = text.index("| threshold | 75.0 [40.9, 92.9] | 4.0 | 0.75 | 75.0 | 4.0 |")
    assert first < text.index("| threshold 0.5 | 50.0 [21.5, 78.5] | 2.0 | 1.50 | 50.0 | 2.0 |")


def test_runs_with_fewer_problems_are_compared_on_these(tmp_path):
    small = run("topk", 2, 4)
    small = small.on({s.problem for s in small.samples[::4]})
    page = tmp_path / "a.md"
    page.write_text("<!-- runs: threshold; topk -->\n<!-- runs: end -->\n")
    pages.refresh(tmp_path, [*RUNS, small, run("threshold", 0, 9)])
    text = page.read_text().replace("\n", " ")
    assert "2 held-out problems" in text and "`sequential` has 100.0 [34.2, 100.0] %" in text
    assert "| threshold | 100.0 [34.2, 100.0] | 4.0 |" in text


def test_a_table_counts_edits_and_probes_where_a_run_has_some(tmp_path):
    revises = run("wino", 3, 4)
    samples = tuple(replace(sample, remasks=2, probes=1) for sample in revises.samples)
    revises = EvalRun(revises.path, revises.results, samples)
    page = tmp_path / "a.md"
    page.write_text("<!-- runs: threshold; wino -->\n<!-- runs: end -->\n")
    pages.refresh(tmp_path, [*RUNS, revises])
    text = page.read_text()
    assert "| forwards that probe per problem | re-masks per problem |" in text
    assert "edits" not in text
    assert "| wino | 75.0 [40.9, 92.9] | 4.0 | 0.75 | 75.0 | 4.0 | 1.0 | 2.0 |" in text
    assert "| threshold | 75.0 [40.9, 92.9] | 4.0 | 0.75 | 75.0 | 4.0 | 0.0 | 0.0 |" in text


def test_runs_that_lack_some_of_the_problems_are_no_controls(tmp_path):
    select = {"_target_": "x.ConfidenceThreshold"}
    curve = [run("t5", 2, 2, {**select, "threshold": 0.5}), run("t9", 4, 4, select)]
    rule = run("rule", 4, 2, {"_target_": "x.EntropyBound"})
    part = run("part", 0, 2, {"_target_": "x.Klass"})
    part = part.on({sample.problem for sample in part.samples[:2]})
    page = tmp_path / "a.md"
    page.write_text("<!-- runs: rule; t9 -->\n<!-- runs: end -->\n")
    pages.refresh(tmp_path, [*RUNS, *curve, rule])
    alone = page.read_text()
    pages.refresh(tmp_path, [*RUNS, *curve, rule, part])
    assert page.read_text() == alone and "points of accuracy" in alone


def test_rules_have_their_control_below_the_table(tmp_path):
    select = {"_target_": "x.ConfidenceThreshold"}
    curve = [run("t5", 2, 2, {**select, "threshold": 0.5}), run("t9", 4, 4, select)]
    rule = run("rule", 4, 2, {"_target_": "x.EntropyBound"})
    page = tmp_path / "a.md"
    page.write_text("<!-- runs: rule; t9 -->\n<!-- runs: end -->\n")
    pages.refresh(tmp_path, [*RUNS, *curve, rule])
    text = page.read_text().replace("\n", " ")
    assert "rule: +50.0 [+12.5, +87.5] points of accuracy over plain thresholds at equal" in text
    assert "one right answer +50.0" in text and text.count("points of accuracy") == 1


def test_a_place_is_filled_by_the_runs_of_its_page_of_results(tmp_path):
    page = tmp_path / "strategies" / "a.md"
    page.parent.mkdir()
    plain, other = (
        "<!-- runs: threshold -->\n",
        "<!-- runs of results_rules.md: none; threshold -->\n",
    )
    page.write_text(f"{plain}old\n{pages.END}\n{other}stale\n{pages.END}\n")
    pages.refresh(tmp_path, RUNS)
    first = page.read_text()
    assert f"{other}stale\n" in first and "made with [the results](../results.md)" in first
    pages.refresh(tmp_path, [*RUNS, run("none", 1, 1)], "results_rules.md")
    text = page.read_text()
    assert text.startswith(first.partition(other)[0]) and f"{other}8 held-out" in text
    assert "made with [the results](../results_rules.md)" in text and "stale" not in text


def test_filling_again_changes_nothing(tmp_path):
    page = tmp_path / "a.md"
    page.write_text(
        "<!-- runs: threshold -->\n<!-- runs: end -->\nand\n"
        "<!-- runs: sequential -->\n<!-- runs: end -->\n"
    )
    pages.refresh(tmp_path, RUNS)
    text = page.read_text()
    assert pages.refresh(tmp_path, RUNS) == [] and page.read_text() == text
    assert text.count("held-out problems") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<!-- runs: credit -->\n<!-- runs: end -->",
            "names the run 'credit'; there are sequential",
        ),
        ("<!-- runs: threshold -->\n", "has a mark '<!-- runs: ...' without '<!-- runs: end -->'"),
    ],
)
def test_a_bad_page_is_refused_and_no_page_is_written(tmp_path, text, message):
    good = tmp_path / "a.md"
    good.write_text("<!-- runs: threshold -->\n<!-- runs: end -->")
    (tmp_path / "b.md").write_text(text)
    with pytest.raises(ConfigError, match=message):
        pages.refresh(tmp_path, RUNS)
    assert "held-out" not in good.read_text()


def test_a_page_of_results_that_no_place_names_is_refused(tmp_path):
    (tmp_path / "a.md").write_text(f"<!-- runs: threshold -->\n{pages.END}\n")
    with pytest.raises(ConfigError, match=r"has a place for the runs of results_rule\.md"):
        pages.refresh(tmp_path, RUNS, "results_rule.md")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="PAGES must be a folder of Markdown pages"):
        pages.refresh(tmp_path / "none", RUNS)


def test_every_strategy_page_shows_measured_runs():
    for page in STRATEGIES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert "Measured on the bundled model" in text and "accuracy % [95 %]" in text, page.name
