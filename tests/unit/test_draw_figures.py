"""The figures of the results page follow from its tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from draw_figures import jobs_of, rows_of, shown_in

from dllm_decode.errors import ConfigError
from dllm_decode.evaluation.reporting.tables import ALL

ROOT = Path(__file__).parents[2]
PAGE = """
## All families together

| strategy | problems | accuracy (% [95 %]) | forwards (per problem) | tokens per forward ([95 %]) |
| --- | ---: | ---: | ---: | ---: |
| threshold | 8,500 | 98.8 [98.5, 99.0] | 2.6 | 6.75 [6.55, 6.95] |

## How they decode

| strategy | order |
| --- | ---: |
| threshold | +0.3 |
"""


def test_a_row_of_a_page_has_its_figures_and_intervals():
    row = rows_of(PAGE)["threshold"][ALL]
    assert (row.problems, row.forwards.value) == (8500, 2.6)
    share = row.accuracy
    assert (share.value, share.low, share.high) == pytest.approx((0.988, 0.985, 0.99))
    assert (row.tokens_per_forward.value, row.tokens_per_forward.low) == (6.75, 6.55)


def test_a_run_that_is_no_job_is_refused():
    with pytest.raises(ConfigError, match="the page shows 'threshold'; the jobs are other"):
        shown_in(PAGE, {"other": {"strategy": {"select": {"_target_": "x.Y"}}}})


@pytest.mark.slow
def test_every_run_of_the_committed_page_is_a_job_with_figures_for_every_family():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    shown = shown_in(page, jobs_of("bundled"))
    assert len(shown) > 12 and len({len(one.rows) for one in shown}) == 1
    lines = [one.traits.line for one in shown if one.traits.rule == "threshold"]
    assert max(map(lines.count, lines)) >= 5
