"""What stands beside a run's CO2: each figure by hand, and none where its input is missing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from curtail_pipeline.emissions.footprint import HOURS_PER_YEAR, FootprintInput, beside_rows, footprint
from curtail_pipeline.emissions.grams import PowerInterval, accounting_signals, intervals_table, ledger, totals
from curtail_pipeline.settings.sites import Site

START = datetime(2026, 5, 1, 10, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def site(name: str = "A", **footprint_of: float) -> Site:
    return Site.model_validate(
        {
            "name": name, "region": name, "training_kw": 2.0, "idle_kw": 0.5, "pue": 1.25, "steps_per_s": 1.0,
            "footprint": footprint_of,
        }
    )  # fmt: skip


def trace(kind: str, *values: float | None, region: str = "A") -> pl.DataFrame:
    """Half-hourly values from the start."""
    return pl.DataFrame(
        [(at(30 * i), region, value, kind) for i, value in enumerate(values)],
        schema={"time": pl.Datetime("us", "UTC"), "region": pl.String, "value": pl.Float64, "kind": pl.String},
        orient="row",
    )


WINDOWS = pl.DataFrame(
    [("A", at(0), at(90))],
    schema={"site": pl.String, "start": pl.Datetime("us", "UTC"), "end": pl.Datetime("us", "UTC")},
    orient="row",
)


def case(*more: pl.DataFrame, sites: list[Site] | None = None, **changes: Any) -> FootprintInput:
    """Site A trains for two hours at 2.5 kW, the first 90 minutes inside a window."""
    places = sites or [site()]
    traces = pl.concat([trace("marginal_intensity", 20, 20, 20, 400, 400), *more])
    intervals = intervals_table([PowerInterval("A", "training", at(0), at(120), 2.5)])
    signals = accounting_signals(traces)
    made = FootprintInput(
        places, traces, intervals, ledger(intervals, signals, places, WINDOWS), WINDOWS, signals, {}, 2_000_000, 0.1
    )
    return replace(made, **changes)


def test_what_nobody_has_given_is_none() -> None:
    found = footprint(case())
    assert (found.embodied_g, found.sci, found.average_co2_g, found.water_l) == (None, None, None, None)
    assert (found.cost, found.unpriced_kwh) == ({}, pytest.approx(5.0))
    rows = {name: (value, note) for name, value, note in beside_rows(found, 140.0, 0.1)}
    assert rows["SCI"] == ("–", "give sites[].footprint.embodied_kg for every site")
    assert rows["SCI, operational"][0] == "140 g" and rows["cost"] == ("–", "no price trace")


def test_software_carbon_intensity_takes_the_hours_share_of_the_hardware() -> None:
    data = case(sites=[site(embodied_kg=1_500.0, lifetime_years=5.0), site("unused")])
    grams = totals(data.ledger).co2_g
    assert grams == pytest.approx(2.5 * (1.5 * 20 + 0.5 * 400))
    found = footprint(data)
    assert found.embodied_g == pytest.approx(1_500_000 * 2 / (5 * HOURS_PER_YEAR))
    assert found.sci == pytest.approx((grams + found.embodied_g) / 2), "per million of two million tokens"
    assert footprint(replace(data, tokens=0)).sci is None


def test_location_based_co2_stands_beside_the_marginal_and_says_what_it_lacks() -> None:
    found = footprint(case(trace("average_intensity", 300, 300, None, None, None)))
    assert found.average_unaccounted_kwh == pytest.approx(1.25), "a value counts for two cadences"
    assert found.average_co2_g == pytest.approx(3.75 * 300)


def test_cost_is_that_of_the_grids_energy_at_its_price() -> None:
    found = footprint(case(trace("price", -20, -20, 60, 60, 60)))
    assert found.cost == {"A": pytest.approx(2.5 * (1.0 * -20 + 1.0 * 60) / 1_000)}
    assert found.unpriced_kwh == 0


def test_hours_match_by_themselves_and_a_battery_gives_what_was_clean_when_taken() -> None:
    found = footprint(case())
    assert (found.hourly_matched_share, found.hours_matched_share) == (pytest.approx(0.75), 0.5)
    data = case()
    half = data.intervals.with_columns(kw=1.5, battery_kw=1.0)
    helped = footprint(replace(data, intervals=half))
    assert helped.hourly_matched_share == pytest.approx((3.75 + 0.5) / 5), "and 1 kW of it outside the window"
    own = footprint(replace(data, intervals=data.intervals.with_columns(on_site_kw=2.5)))
    assert (own.hourly_matched_share, own.hours_matched_share) == (pytest.approx(1.0), 1.0)
    assert footprint(replace(data, intervals=data.intervals.clear())).hourly_matched_share is None


def test_water_is_that_of_the_machines_not_of_their_cooling_power() -> None:
    assert footprint(case(sites=[site(water_l_per_kwh=1.8)])).water_l == pytest.approx(5.0 / 1.25 * 1.8)


def test_the_band_adds_up_what_may_be_wrong() -> None:
    data = case()
    grams = totals(data.ledger).co2_g
    assert grams is not None
    band = footprint(data).band
    assert band is not None and band.forecast_g is None and band.gaps_g == (0.0, 0.0)
    assert (band.low_g, band.high_g) == (pytest.approx(0.9 * grams), pytest.approx(1.1 * grams))
    measured = data.ledger.with_columns(power=pl.lit("measured"))
    sure = footprint(replace(data, ledger=measured)).band
    assert sure is not None and (sure.low_g, sure.high_g) == (grams, grams), "counters know"
    said = accounting_signals(trace("marginal_intensity", 20, 20, 20, 20, 20))
    missed = footprint(replace(data, forecast=said)).band
    assert missed is not None and missed.forecast_g == pytest.approx(2.5 * 0.5 * 380)
    assert missed.high_g == pytest.approx(1.1 * grams + 2.5 * 0.5 * 380)


def test_gaps_widen_the_band() -> None:
    places, traces = [site()], trace("marginal_intensity", 20, 400)
    intervals = intervals_table([PowerInterval("A", "training", at(0), at(120), 2.5)])
    signals = accounting_signals(traces)
    table = ledger(intervals, signals, places, WINDOWS)
    assert totals(table).unaccounted_kwh > 0
    band = footprint(case(traces=traces, signals=signals, ledger=table)).band
    assert band is not None and band.gaps_g[1] > band.gaps_g[0] > 0
