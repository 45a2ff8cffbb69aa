from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from rule_cases import MINUTE, PAPER, PLAIN, SITE, START, trace

from curtail_pipeline.cli.windows_of_file import FoundWindow, windows_of_file
from curtail_pipeline.errors import MessageError, PolicyError, SettingsError, TraceError
from curtail_pipeline.settings.experiment import load_experiment
from curtail_pipeline.settings.job import PolicySettings
from curtail_pipeline.settings.rule_settings import RuleSettings, SignalRule
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.windows.bulk import windows_of_files
from curtail_pipeline.windows.quality import judge
from curtail_pipeline.windows.rules import WINDOW_SCHEMA, RuleState, derive_windows, merge_days


def derive(traces, policy=PAPER, minutes=None, rule=None, **options):
    end = START + minutes * MINUTE if minutes else traces["time"].max() + 5 * MINUTE
    rules = {"R": rule} if rule else None
    return derive_windows(traces, [SITE], policy, start=START, end=end, rules=rules, **options)[0]


def spans(table):
    return [
        ((start - START) / MINUTE, None if end is None else (end - START) / MINUTE)
        for start, end in table.select("start", "end").rows()
    ]


def test_paper_leaves_600_s_after_the_signal_rose_and_says_why():
    table = derive(trace([300, 62.137, 99.99, 100.0, 400, 400, 400]))
    assert table.schema == WINDOW_SCHEMA
    row = table.row(0, named=True)
    assert spans(table) == [(5, 25)]
    assert row["opened_by"] == "marginal_intensity 62.1 < 100 g/kWh"
    assert row["closed_by"] == "marginal_intensity 100.0 >= 100 g/kWh (600 s exit delay)"
    assert row["mean_signal"] == pytest.approx((62.137 + 99.99 + 100 + 400) / 4)
    assert row["min_signal"] == 62.137
    assert row["as_of"] == row["end"]
    assert row["policy"] == "paper"


@pytest.mark.parametrize(("high", "expected"), [(1, [(0, 35)]), (2, [(0, 40)]), (3, [(0, 20), (25, 45)])])
def test_paper_cancels_the_exit_when_the_signal_falls_again_within_the_delay(high, expected):
    values = [50, 50] + [200] * high + [50, 50] + [200] * 4
    assert spans(derive(trace(values))) == expected


def test_threshold_has_no_delay():
    assert spans(derive(trace([50, 200, 50, 50, 200]), PLAIN)) == [(0, 5), (10, 20)]


def test_a_window_open_at_the_end_has_no_end_nor_closing_reason():
    table = derive(trace([200, 50]))
    assert spans(table) == [(5, None)]
    assert table["closed_by"].to_list() == [None]
    assert table["as_of"].to_list() == [START + 10 * MINUTE]


def test_the_last_value_holds_for_two_cadences_at_most():
    table = derive(trace([200, 50]), minutes=60)
    assert spans(table) == [(5, 15)]
    assert table["closed_by"].to_list() == ["marginal_intensity signal older than 600 s"]


@pytest.mark.parametrize("hole", [None, "absent"])
def test_one_missing_value_is_held_and_two_close_the_window(hole):
    one = trace([50, 50, None, 50, 200, 200, 200])
    two = trace([50, 50, None, None, 50, 200, 200, 200])
    if hole == "absent":
        one, two = one.drop_nulls("value"), two.drop_nulls("value")
    assert spans(derive(one, PLAIN)) == [(0, 20)]
    assert spans(derive(two, PLAIN)) == [(0, 15), (20, 25)]


def test_a_stale_signal_ends_the_exit_delay_too():
    assert spans(derive(trace([50, 200]), PAPER, minutes=60, cadence_s=150)) == [(0, 10)]


def test_values_of_a_feed_slower_than_its_declared_cadence_go_stale_in_between():
    assert spans(derive(trace([50, 50, 50]), PLAIN, cadence_s=60)) == [(0, 2), (5, 7), (10, 12)]


def test_a_feed_that_slows_down_is_still_judged_by_its_finest_cadence():
    fine = trace([200] * 30, step=1)
    coarse = trace([50, 50, 200], first=34)
    middle = START + 30 * MINUTE
    _, state = derive_windows(fine, [SITE], PLAIN, start=START, end=middle)
    table, _ = derive_windows(coarse, [SITE], PLAIN, start=middle, end=START + 45 * MINUTE, state=state)
    assert spans(table) == [(34, 36), (39, 41)]


def test_a_value_in_the_band_after_a_gap_does_not_reopen():
    rule = RuleSettings(enter=100, exit=125, exit_delay_s=0)
    table = derive(trace([50, 110, None, None, None, 110, 99, 110, 125]), rule=rule)
    assert spans(table) == [(0, 15), (30, 40)]


def test_hourly_values_hold_for_their_cadence():
    hourly = trace([50, 200, 50, 50, 200], step=60)
    assert spans(derive(hourly, PLAIN, minutes=300, cadence_s=3600)) == [(0, 60), (120, 240)]
    # Without being told, the rule has seen one stamp when the first value must be judged.
    assert spans(derive(hourly, PLAIN, minutes=300)) == [(0, 10), (120, 240)]


def test_estimates_are_believed_up_to_the_limit():
    rule = RuleSettings(enter=100, exit_delay_s=0, estimated_limit_s=900)
    estimated = [False, False, True, True, True, True, False, False]
    table = derive(trace([50] * 8, estimated=estimated), rule=rule)
    assert spans(table) == [(0, 25), (30, None)]
    assert table["closed_by"][0] == "marginal_intensity signal estimated for more than 900 s"


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("price", [1, 0, 5, 5.1, 9, 9], [(5, 20)]),
        ("curtailed_power", [9.9, 10, 5, 4.9, 0, 0], [(5, 20)]),
    ],
)
def test_defaults_of_other_kinds(kind, values, expected):
    assert spans(derive(trace(values, kind=kind), rule=RuleSettings(kind=kind))) == expected


def test_all_of_needs_every_signal_and_any_of_one():
    content = pl.concat([trace([50, 50, 50, 50, 200, 200]), trace([0, 20, 20, 0, 0, 30], kind="curtailed_power")])
    parts = [SignalRule(enter=100, exit_delay_s=0), SignalRule(kind="curtailed_power", enter=10, exit_delay_s=0)]
    both = derive(content, rule=RuleSettings(all_of=parts))
    assert spans(both) == [(5, 15)]
    assert both["opened_by"][0] == "marginal_intensity 50.0 < 100 g/kWh and curtailed_power 20.0 >= 10 MW"
    assert both["closed_by"][0] == "curtailed_power 0.0 < 10 MW"
    either = derive(content, rule=RuleSettings(any_of=parts))
    assert spans(either) == [(0, 20), (25, None)]
    assert either["opened_by"].to_list() == ["marginal_intensity 50.0 < 100 g/kWh", "curtailed_power 30.0 >= 10 MW"]


def test_the_history_of_short_windows_holds_the_next_one_back():
    """Six windows of 10 minutes, then a long one: it opens when it has outlasted what half of its like reached."""
    rule = RuleSettings(enter=100, exit_delay_s=0, min_duration_s=1200)
    short = [50, 50, 200]
    table = derive(trace(short * 6 + [50] * 12 + [200]), rule=rule)
    # Nothing is known before the fifth has ended.
    assert spans(table)[:5] == [(15 * i, 15 * i + 10) for i in range(5)]
    assert spans(table)[5:] == [(100, 150)]
    assert table["opened_by"][-1].endswith("(after 600 s in which it was expected to end too soon)")


def test_a_history_of_long_windows_opens_the_next_one_at_once():
    rule = RuleSettings(enter=100, exit_delay_s=0, min_duration_s=1200)
    table = derive(trace(([50] * 6 + [200]) * 7), rule=rule)
    assert spans(table) == [(35 * i, 35 * i + 30) for i in range(7)]


def forecast(issued, values, region="R", step=5):
    return pl.DataFrame(
        {
            "issued_at": [START + issued * MINUTE] * len(values),
            "target": [START + (issued + (i + 1) * step) * MINUTE for i in range(len(values))],
            "region": [region] * len(values),
            "value": [float(v) for v in values],
        },
        schema={
            "issued_at": pl.Datetime("us", "UTC"),
            "target": pl.Datetime("us", "UTC"),
            "region": pl.String,
            "value": pl.Float64,
        },
    )


def test_a_forecast_of_a_short_window_holds_it_back_until_a_later_issue_says_otherwise():
    rule = RuleSettings(enter=100, exit_delay_s=0, min_duration_s=1800)
    content = trace([200, 50, 50, 50, 50, 50, 50, 200])
    short = forecast(5, [50, 200, 200, 200, 200, 200, 200])
    longer = forecast(10, [50, 50, 50, 50, 50, 50, 50])
    assert spans(derive(content, rule=rule)) == [(5, 35)]
    assert spans(derive(content, rule=rule, forecasts=short)) == []
    assert spans(derive(content, rule=rule, forecasts=pl.concat([short, longer]))) == [(10, 35)]
    assert spans(derive(content, rule=rule, forecasts=forecast(0, [50] * 12))) == [(5, 35)]
    # Start-up time is a minimum duration too; a forecast for another region says nothing.
    needs = RuleSettings(enter=100, exit_delay_s=0, start_up_s=1800)
    assert spans(derive(content, rule=needs, forecasts=short)) == []
    assert spans(derive(content, rule=needs, forecasts=short.with_columns(region=pl.lit("S")))) == [(5, 35)]


def test_the_forecast_outranks_history_until_its_horizon():
    rule = RuleSettings(enter=100, exit_delay_s=0, min_duration_s=1200)
    content = trace([50, 50, 200] * 6 + [50] * 12 + [200])
    fresh, expired = forecast(85, [50] * 6), forecast(30, [50] * 6)
    assert spans(derive(content, rule=rule, forecasts=fresh))[-1] == (90, 150)
    assert spans(derive(content, rule=rule, forecasts=expired))[-1] == (100, 150)


@pytest.mark.parametrize("age_s", [300, 450, 600, 900])
def test_every_cut_of_a_trace_with_gaps_gives_the_state_of_the_whole(age_s):
    rule = RuleSettings(enter=100, exit=125, exit_delay_s=600, max_signal_age_s=age_s)
    content = trace(
        [50, 110, None, 50, 130, 130, 50, None, None, 60, 130, None, 120, None, None, None, 90, 130, 130, 130]
    )
    end = START + 120 * MINUTE
    whole, last = derive_windows(content, [SITE], PAPER, start=START, end=end, rules={"R": rule})
    for cut in range(1, 48):
        when = START + cut * timedelta(seconds=150)
        early, state = derive_windows(content, [SITE], PAPER, start=START, end=when, rules={"R": rule})
        late, after = derive_windows(content, [SITE], PAPER, start=when, end=end, state=state, rules={"R": rule})
        assert merge_days([early, late]).equals(whole)
        assert after == last


def test_forecasts_day_by_day_give_the_windows_of_the_whole():
    rule = RuleSettings(enter=100, exit_delay_s=300, min_duration_s=1800)
    content = trace(([200] * 3 + [50] * 5 + [200] * 2 + [60] * 9) * 4)
    issues = [forecast(m, ([50] * (m // 5 % 7) + [300] * 2 + [50] * 10)[:12]) for m in range(0, 380, 10)]
    forecasts = pl.concat(issues)
    end = 380
    whole, last = derive_windows(
        content, [SITE], PAPER, start=START, end=START + end * MINUTE, rules={"R": rule}, forecasts=forecasts
    )
    assert len(whole) >= 4
    for cut in range(5, end, 15):
        when = START + cut * MINUTE
        options = {"rules": {"R": rule}, "forecasts": forecasts}
        early, state = derive_windows(content, [SITE], PAPER, start=START, end=when, **options)
        late, after = derive_windows(
            content, [SITE], PAPER, start=when, end=START + end * MINUTE, state=state, **options
        )
        assert merge_days([early, late]).equals(whole)
        assert after == last


def test_mci_hours(test_data):
    result = windows_of_file(test_data / "paper" / "mci.csv", policy="threshold")
    assert result.policy == "threshold"
    assert result.hours == {
        "CAISO_NORTH": pytest.approx(6.083333, abs=1e-5),
        "SPP_TX": pytest.approx(6.833333, abs=1e-5),
        "NEM_SA": 10.5,
        "DE": 0.0,
    }
    assert result.nulls == 0
    assert result.duplicates == 0
    first = result.windows[0]
    assert first == FoundWindow(
        site="CAISO_NORTH",
        region="CAISO_NORTH",
        start="2026-01-11T17:05:00Z",
        end="2026-01-11T19:05:00Z",
        hours=2.0,
        opened_by="marginal_intensity 68.9 < 100 g/kWh",
        closed_by="marginal_intensity 458.6 >= 100 g/kWh",
    )
    for site, hours in result.hours.items():
        assert sum(w.hours for w in result.windows if w.site == site) == pytest.approx(hours, abs=1e-5)


def test_windows_of_a_file_with_another_kind_and_with_an_experiment(test_data, tmp_path):
    week = test_data / "caiso_np15_weeks" / "vector_high_volatility_week.csv"
    with pytest.raises(PolicyError, match="average_intensity cannot define a window"):
        windows_of_file(week, kind="average_intensity")
    content = pl.DataFrame({"time": ["2026-01-11T00:00Z", "2026-01-11T01:00Z", "2026-01-11T02:00Z"], "R": [-1.0, 9, 0]})
    content.write_csv(tmp_path / "price.csv")
    result = windows_of_file(tmp_path / "price.csv", policy="threshold", kind="price", unit="currency/MWh")
    assert [(w.start, w.end, w.hours) for w in result.windows] == [
        ("2026-01-11T00:00:00Z", "2026-01-11T01:00:00Z", 1.0),
        ("2026-01-11T02:00:00Z", None, 1.0),
    ]
    experiment = load_experiment("laptop")
    result = windows_of_file(test_data / "paper" / "mci.csv", experiment)
    assert list(result.hours) == ["CAISO_NORTH", "SPP_TX", "NEM_SA"]
    assert result.policy == "paper"
    assert result.hours["NEM_SA"] == pytest.approx(10 + 2 / 3, abs=1e-5)
    with pytest.raises(SettingsError, match="interval"):
        windows_of_file(tmp_path / "price.csv", interval="middle")


def test_marginal_intensity_finds_the_power_that_caiso_curtailed(test_data):
    from curtail_pipeline.benchmarks.bench_windows_quality import run

    rules = run(str(test_data))["rules"]
    found = rules["marginal_intensity < 100 g/kWh"]
    assert (found["precision"], found["recall"], found["share_of_mwh"]) == pytest.approx((1.0, 0.605, 0.803), abs=2e-3)
    assert rules["price <= 0"] == {"precision": None, "recall": 0.0, "share_of_mwh": 0.0, "window_hours": 0.0}
    either = rules["marginal_intensity or price <= 30"]
    assert either["precision"] > 0.99 and either["recall"] > 0.7 and either["share_of_mwh"] > 0.88
    assert rules["price or curtailed_power, default rules"]["share_of_mwh"] == 1.0


def test_quality_counts_parts_of_intervals():
    windows = derive(trace([50, 50, 50, 200, 200, 200]), PLAIN)
    quality = judge(windows, trace([20, 0, 0], kind="curtailed_power", step=10).select("time", "value"), 600)
    assert quality.window_hours == pytest.approx(0.25)
    assert quality.precision == pytest.approx(10 / 15)
    assert quality.recall == 1.0
    assert quality.share_of_mwh == 1.0


def test_unreadable_state_and_wrong_use_are_refused():
    content = trace([50, 50, 200])
    end = START + 15 * MINUTE
    _, state = derive_windows(content, [SITE], PAPER, start=START, end=end)
    with pytest.raises(PolicyError, match="made under another rule"):
        derive_windows(content, [SITE], PLAIN, start=end, end=end + MINUTE, state=state)
    with pytest.raises(PolicyError, match=r"as of 2026-01-11T00:15:00Z, after the start"):
        derive_windows(content, [SITE], PAPER, start=START, end=end, state=state)
    with pytest.raises(MessageError, match="a state is not a RuleState"):
        RuleState.read({"schema": 1, "at": "yesterday"}, "a state")
    with pytest.raises(PolicyError, match="is empty"):
        derive_windows(content, [SITE], PAPER, start=end, end=end)
    with pytest.raises(PolicyError, match="unknown policy 'papper'; window rules exist for boundary"):
        derive_windows(content, [SITE], PolicySettings(name="papper"), start=START, end=end)
    with pytest.raises(PolicyError, match="has no time zone"):
        derive_windows(content, [SITE], PAPER, start=START.replace(tzinfo=None), end=end)
    with pytest.raises(TraceError, match="needs a column 'kind'"):
        derive_windows(content.drop("kind"), [SITE], PAPER, start=START, end=end)
    naive = content.with_columns(pl.col("time").dt.replace_time_zone(None))
    with pytest.raises(TraceError, match="UTC"):
        derive_windows(naive, [SITE], PAPER, start=START, end=end)


def test_files_in_batches_give_the_windows_of_the_table(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("curtail_pipeline.windows.bulk.BATCH_ROWS", 30)
    names = [f"R{i}" for i in range(5)]
    sites = [Site(name=f"s{name}", region=name, training_kw=1, idle_kw=0, steps_per_s=1) for name in names]
    tables, files = [], {}
    for i, name in enumerate(names):
        values = [float((7 * j * (i + 1)) % 150) if j % 9 else None for j in range(40)]
        own = trace(values, region=name)
        halves = [tmp_path / f"{name}-1.parquet", tmp_path / f"{name}-0.parquet"]
        own[:25].select("time", "value").write_parquet(halves[0])
        own[20:].select("time", "value").write_parquet(halves[1])
        tables.append(own)
        files[name] = halves
    options = {"start": START + 7 * MINUTE, "end": START + 180 * MINUTE}
    rules = {"R3": RuleSettings(enter=60, exit=120, min_duration_s=600)}
    whole, _ = derive_windows(pl.concat(tables), sites, PAPER, rules=rules, **options)
    assert whole.height > 10
    assert windows_of_files(files, sites, PAPER, rules=rules, **options).equals(whole)
    with pytest.raises(TraceError, match="no trace file for region 'R0'"):
        windows_of_files({"X": []}, sites, PAPER, **options)
