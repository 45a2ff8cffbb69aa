"""What a day's windows are shown as."""

import polars as pl
import pytest
from rule_cases import MINUTE, PLAIN, SITE, START, trace

from curtail_pipeline.settings.sites import Site
from curtail_pipeline.windows.day_tables import day_summary, diff_windows, plot_windows
from curtail_pipeline.windows.rules import derive_windows


def test_the_summary_of_a_day_and_what_changed():
    other = Site(name="other", region="S", training_kw=1, idle_kw=0, steps_per_s=1)
    content = pl.concat([trace([50] * 12 + [200] * 6 + [50] * 6), trace([300] * 24, region="S")])
    noon = START + 60 * MINUTE
    end = START + 120 * MINUTE
    before, _ = derive_windows(content, [SITE, other], PLAIN, start=START, end=START + 30 * MINUTE)
    table, _ = derive_windows(content, [SITE, other], PLAIN, start=START, end=end)
    summary = day_summary(table, [SITE, other], START, end)
    assert summary["site"].to_list() == ["site", "other"]
    assert summary.row(0, named=True) == {
        "site": "site",
        "region": "R",
        "windows": 2,
        "hours": 1.5,
        "longest_hours": 1.0,
        "open": True,
        "mean_signal": pytest.approx(50),
    }
    assert summary.row(1)[2:] == (0, 0.0, 0.0, False, None)
    assert day_summary(table, [SITE], noon, end)["hours"].to_list() == [0.5]
    changes = diff_windows(before, table)
    assert changes.select("change", "site", "start").rows() == [
        ("ended", "site", START),
        ("added", "site", START + 90 * MINUTE),
    ]
    assert diff_windows(table, before)["change"].to_list() == ["changed", "removed"]
    assert diff_windows(table, table).is_empty()
    assert diff_windows(None, table).is_empty()


def test_the_plot_shades_each_window():
    content = pl.concat([trace([50] * 12 + [200] * 6 + [50] * 6), trace([300] * 24, region="S")])
    table, _ = derive_windows(content, [SITE], PLAIN, start=START, end=START + 120 * MINUTE)
    spec = plot_windows(content, table).to_dict()
    (shaded, line), (other, _) = (
        [spec["datasets"][layer["data"]["name"]] for layer in chart["layer"]] for chart in spec["vconcat"]
    )
    assert [row["start"] for row in shaded] == ["2026-01-11T00:00:00Z", "2026-01-11T01:30:00Z"]
    assert len(line) == 24
    assert other == []
    assert plot_windows(content.clear(), table).to_dict()["mark"]["type"] == "line"
