"""The table of the longest answers of a family."""

from __future__ import annotations

import long_answers
import pytest

from dllm_decode.evaluation.reporting.tables import is_threshold, surroundings

pytestmark = pytest.mark.slow


def test_rules_are_measured_on_the_longest_answers_alone(monkeypatch, capsys):
    jobs = [("threshold", f"strategy.select.threshold={value}") for value in (0.6, 0.9)]
    monkeypatch.setattr(long_answers, "JOBS", (*jobs, ("credit",)))
    made = []
    run_of = long_answers.run_of
    monkeypatch.setattr(
        long_answers, "run_of", lambda *given: made.append(run_of(*given)) or made[-1]
    )
    assert long_answers.main(["count", "90", "schedule.length=64"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "7 problems of count with 90 tokens or more"
    assert [is_threshold(run) for run in made] == [True, True, False]
    assert len({str(surroundings(run)) for run in made}) == 1
    assert [run.name for run in made][-1] in said[-1] and len(said) == 1 + 3 + 1
    for run in made:
        assert {sample.slots for sample in run.samples} == {128}
        assert all(sample.prompt.startswith("Count ") for sample in run.samples)


def test_an_unknown_setting_is_said(capsys):
    assert long_answers.main(["count", "90", "schedule.lenght=64"]) == 2
    assert "lenght" in capsys.readouterr().err
