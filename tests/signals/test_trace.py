from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import Kind, Unit
from curtail_pipeline.signals.trace import TRACE_SCHEMA, Ingested, build_series, conversion_factor, normalise, to_trace

START = datetime(2026, 3, 21, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def points(minutes: list[int], values: list[float | None], **columns: Any) -> pl.DataFrame:
    return pl.DataFrame({"time": [START + m * MINUTE for m in minutes], "value": values, **columns}).with_columns(
        pl.col("time").cast(pl.Datetime("us", "UTC")), pl.col("value").cast(pl.Float64)
    )


def trace_of(table: pl.DataFrame, until: int, start: int = 0, **options: Any) -> Ingested:
    return normalise(
        table,
        region="R",
        kind=options.pop("kind", "marginal_intensity"),
        unit=options.pop("unit", "g/kWh"),
        source="test",
        start=START + start * MINUTE,
        end=START + until * MINUTE,
        retrieved_at=START,
        **options,
    )


@pytest.mark.parametrize(
    ("kind", "unit", "factor"),
    [
        ("marginal_intensity", "g/kWh", 1.0),
        ("marginal_intensity", "kg/kWh", 1000.0),
        ("average_intensity", "lb/MWh", 0.45359237),
        ("price", "currency/MWh", 1.0),
        ("curtailed_power", "MW", 1.0),
    ],
)
def test_units_are_converted_to_the_canonical_one(kind: Kind, unit: Unit, factor: float) -> None:
    assert conversion_factor(kind, unit) == factor


def test_a_unit_that_cannot_measure_the_kind_is_refused() -> None:
    with pytest.raises(TraceError, match=r"'MW' cannot measure price; set unit to one of: currency/MWh"):
        conversion_factor("price", "MW")


def test_missing_stamps_are_null_and_values_are_held_no_further_than_their_cadence() -> None:
    found = trace_of(points([0, 5, 10, 15, 35, 40], [1, 2, 3, 0, 5, 6]), 50)
    assert found.trace["value"].to_list() == [1, 2, 3, 0, None, None, None, 5, 6, None]
    assert found.trace.schema == pl.Schema(TRACE_SCHEMA)
    assert found.report.nulls == 4 and found.report.cadence_s == 300


def test_nan_and_infinity_are_missing_values_not_zero() -> None:
    found = trace_of(points([0, 5, 10, 15], [1.0, float("nan"), float("inf"), None]), 20)
    assert found.trace["value"].to_list() == [1, None, None, None]


def test_a_cadence_change_is_held_at_the_finest_and_a_hole_in_the_coarse_part_stays_one() -> None:
    day = 24 * 60
    coarse = [*range(-day, 0, 30), 0, 30, 60, 90, 150, 180, 210]
    fine = [215, 220, 225, 230]
    found = trace_of(points(coarse + fine, [float(m) for m in coarse + fine]), 235, start=-day)
    by_minute = dict(zip(range(-day, 235, 5), found.trace["value"].to_list(), strict=True))
    assert found.report.cadence_s == 300
    assert [by_minute[m] for m in (0, 25, 30, 55, 115, 120, 145, 150, 205, 210, 215)] == [
        0, 0, 30, 30, 90, None, None, 150, 180, 210, 215,
    ]  # fmt: skip


FINE = list(range(0, 60, 5))


@pytest.mark.parametrize(
    ("minutes", "missing"),
    [
        # Thinned to hourly values in the middle, at the end and at the begin.
        ([*FINE, 60, 120, 180, 240, *range(300, 360, 5)], [65, 115, 125, 235, 245, 295]),
        ([*FINE, 60, 120, 180, 240, 300], [65, 295]),
        ([0, 60, 120, 180, 240, *range(245, 300, 5)], [5, 55, 235]),
        # A listing of hits, of which two are neighbours.
        ([0, 5, 180, 240, 300, 360], [10, 175, 185, 235, 355]),
    ],
)
def test_points_that_were_dropped_are_missing_and_not_held(minutes: list[int], missing: list[int]) -> None:
    found = trace_of(points(minutes, [float(m) for m in minutes]), minutes[-1] + 5)
    by_minute = dict(zip(range(0, minutes[-1] + 5, 5), found.trace["value"].to_list(), strict=True))
    assert found.report.cadence_s == 300
    assert [by_minute[m] for m in minutes] == minutes
    assert [by_minute[m] for m in missing] == [None] * len(missing)


def test_an_hourly_source_with_one_stray_stamp_stays_hourly() -> None:
    minutes = sorted([*range(0, 30 * 60, 60), 90])
    assert trace_of(points(minutes, [1.0] * len(minutes)), 30 * 60).report.cadence_s == 3600


def test_agreeing_duplicates_are_dropped_and_of_disagreeing_ones_the_latest_revision_is_kept() -> None:
    updated = [START + m * MINUTE for m in (0, 9, 1, 0, 0, 0)]
    found = trace_of(points([0, 5, 5, 10, 10, 15], [1, 2, 7, 3, 3, 4], updated=updated), 20)
    assert found.trace["value"].to_list() == [1, 2, 3, 4]
    assert (found.report.duplicates, found.report.conflicts) == (1, 1)
    example = found.report.conflict_examples[0]
    assert (example.time, example.kept, example.dropped) == (START + 5 * MINUTE, 2, 7)
    # Without revision times the last in the file wins; a null never wins over a value.
    again = trace_of(points([0, 5, 5, 10, 10], [1, 2, 7, 3, None]), 15)
    assert again.trace["value"].to_list() == [1, 7, 3]
    assert (again.report.duplicates, again.report.conflicts) == (1, 1)


def test_duplicates_are_reported_for_the_range_that_is_asked() -> None:
    table = points([0, 0, 5, 10, 10], [1, 1, 2, 3, 4])
    assert trace_of(table, 5).report.duplicates == 1
    assert trace_of(table, 15, start=5).report.duplicates == 0
    assert trace_of(table, 15, start=5).report.conflicts == 1


def test_stamps_beside_the_grid_are_held_from_the_next_grid_stamp_and_counted() -> None:
    found = trace_of(points([0, 5, 10, 15, 22, 25, 30], [0, 5, 10, 15, 22, 25, 30]), 35)
    assert found.trace["value"].to_list() == [0, 5, 10, 15, None, 25, 30]
    assert found.report.off_grid == 1
    shifted = trace_of(points([2, 7, 12, 17], [2, 7, 12, 17]), 22)
    assert shifted.trace["time"][0] == START + 2 * MINUTE and shifted.report.off_grid == 0


def test_stamps_of_interval_ends_move_to_the_begin() -> None:
    day = 24 * 60
    minutes = [*range(30, day + 31, 30), *range(day + 35, day + 50, 5)]
    table = points(minutes, [float(m) for m in minutes])
    series = build_series(table, kind="price", unit="currency/MWh", end_stamped=True)
    trace = to_trace(
        series,
        region="R",
        kind="price",
        source="test",
        start=START,
        end=START + (day + 45) * MINUTE,
        retrieved_at=START,
    ).trace
    by_minute = dict(zip(range(0, day + 45, 5), trace["value"].to_list(), strict=True))
    asked = (0, 25, 30, day - 5, day, day + 25, day + 30, day + 35, day + 40)
    assert [by_minute[m] for m in asked] == [30, 30, 60, day, day + 30, day + 30, day + 35, day + 40, day + 45]


def test_nothing_at_all_gives_a_grid_of_nulls() -> None:
    empty = points([], [])
    assert trace_of(empty, 20, cadence_s=300).trace["value"].to_list() == [None] * 4
    assert trace_of(empty, 0).trace.is_empty()


@settings(max_examples=60, deadline=None)
@given(
    present=st.lists(st.booleans(), min_size=8, max_size=60).filter(lambda flags: sum(flags) > 4),
    cut=st.integers(1, 59),
    seed=st.integers(0, 999),
)
def test_a_range_split_anywhere_equals_the_whole(present: list[bool], cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    minutes = [5 * i for i, there in enumerate(present) if there]
    table = points(minutes, [float(v) for v in rng.integers(0, 900, len(minutes))]).sample(
        fraction=1, shuffle=True, seed=seed
    )
    series = build_series(table, kind="marginal_intensity", unit="g/kWh")

    def cut_out(low: int, high: int) -> pl.DataFrame:
        return to_trace(
            series,
            region="R",
            kind="marginal_intensity",
            source="test",
            start=START + low * MINUTE,
            end=START + high * MINUTE,
            retrieved_at=START,
        ).trace

    end = 5 * len(present)
    middle = min(5 * cut, end)
    whole = cut_out(0, end)
    assert pl.concat([cut_out(0, middle), cut_out(middle, end)]).equals(whole)
    # Every stamp of the source has its own value, whatever is around it.
    given_values = table.sort("time").join(whole, on="time", how="left", suffix="_held")
    on_grid = given_values.filter(pl.col("value_held").is_not_null())
    assert (on_grid["value"] == on_grid["value_held"]).all()
    assert len(on_grid) == len(table) or series.cadence_s != 300
