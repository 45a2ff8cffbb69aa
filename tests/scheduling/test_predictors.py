"""What predictors say of the hours to come."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from simulation_cases import START, minutes
from test_policy_forecast import MINUTE

from curtail_pipeline.errors import PolicyError
from curtail_pipeline.scheduling.predictors import (
    DAY,
    PersistenceForecast,
    SeasonalForecast,
    TableForecast,
    issued_forecasts,
    make_forecast,
)
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.times import to_us

# Forecasts


def daily(days: int, start: float = 0.0) -> Signal:
    """Hourly values: the day's number, plus a hundredth of the hour."""
    hours = np.arange(days * 24)
    times = to_us(START) + (hours * 60 * MINUTE).astype(np.int64)
    return Signal(times, start + hours // 24 + (hours % 24) / 100, 60 * MINUTE, 120 * MINUTE)


def test_seasonal_mirrors_the_past_days() -> None:
    signal = daily(4)
    now = to_us(START) + 3 * DAY
    forecast = SeasonalForecast({"A": signal})
    ahead = np.array([0, 1, 23, 24, 47, 48, 71, 72]) * 60 * MINUTE + now
    expected = [2.0, 2.01, 2.23, 1.0, 1.23, 0.0, 0.23, 2.0]
    assert forecast.predict("A", now, ahead).tolist() == pytest.approx(expected)
    fresh = SeasonalForecast({"A": daily(1)})
    early = to_us(START) + 5 * 60 * MINUTE
    assert fresh.predict("A", early, ahead[:2]).tolist() == pytest.approx([0.05, 0.05]), "no day yet: as now"


def test_persistence_and_perfect() -> None:
    signal = daily(2)
    now = to_us(START) + 30 * MINUTE
    targets = now + np.array([0, 60, 40 * 60, 100 * 60]) * MINUTE
    assert PersistenceForecast({"A": signal}).predict("A", now, targets).tolist() == [0.0] * 4
    perfect = make_forecast("perfect", {"A": signal}).predict("A", now, targets)
    assert perfect[:3].tolist() == pytest.approx([0.0, 0.01, 1.16])
    assert np.isnan(perfect[3])


def recorded() -> pl.DataFrame:
    rows = [
        (minutes(issue), minutes(issue + 5 * k), "A", float(100 * issue + k)) for issue in (0, 5) for k in (1, 2, 3)
    ]
    schema = {
        "issued_at": pl.Datetime("us", "UTC"),
        "target": pl.Datetime("us", "UTC"),
        "region": pl.String,
        "value": pl.Float64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_recorded_forecasts_are_those_issued_by_now() -> None:
    beyond = PersistenceForecast({"A": daily(1, start=7.0)})
    table = TableForecast(issued_forecasts(recorded()), beyond)
    targets = to_us(START) + np.array([5, 7, 15, 20]) * MINUTE
    assert table.predict("A", to_us(minutes(2)), targets).tolist() == [1.0, 1.0, 3.0, 7.0]
    assert table.predict("A", to_us(minutes(5)), targets).tolist() == [7.0, 7.0, 502.0, 503.0]
    assert table.predict("A", to_us(minutes(59)), targets).tolist() == [7.0] * 4, "too old"


def test_a_forecast_file_is_read_and_bad_ones_are_named(tmp_path: Path) -> None:
    signals = {"A": daily(1)}
    recorded().write_parquet(tmp_path / "f.parquet")
    recorded().write_csv(tmp_path / "f.csv")
    targets = np.array([to_us(minutes(5))])
    for name in ("f.parquet", "f.csv"):
        assert make_forecast(str(tmp_path / name), signals).predict("A", to_us(START), targets).tolist() == [1.0]
    (tmp_path / "g.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PolicyError, match="needs the columns issued_at, target"):
        make_forecast(str(tmp_path / "g.csv"), signals)
    late = pl.col("issued_at", "target") + timedelta(days=4_000)
    for name, rows, message in (
        ("none", recorded().head(0), "no value for A; it has none at all"),
        ("other", recorded().with_columns(region=pl.lit("B")), "no value for A; it has B"),
        ("late", recorded().with_columns(late), "none of them while the trace runs"),
        ("endless", recorded().with_columns(value=pl.lit(float("inf"))), "infinite values for A"),
    ):
        rows.write_parquet(tmp_path / f"{name}.parquet")
        with pytest.raises(PolicyError, match=message):
            make_forecast(str(tmp_path / f"{name}.parquet"), signals)
