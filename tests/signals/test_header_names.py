"""Names of columns that say what nobody declared: units, interval ends, hours of a day, or no header at all."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import FileTraces
from curtail_pipeline.signals.files import FileProvider
from curtail_pipeline.signals.header_names import require_declared_end, require_declared_zone

START = datetime(2026, 3, 1, tzinfo=UTC)


def opened(path: Path, text: str, **settings: Any) -> FileProvider:
    path.write_text(text)
    return FileProvider(FileTraces(path=str(path), **settings))


def rows(header: str, value: float = 400.0, count: int = 24) -> str:
    """Hourly rows."""
    stamps = [START + timedelta(hours=k) for k in range(count)]
    return "\n".join([header, *(f"{stamp.isoformat()},{value + k / 8}" for k, stamp in enumerate(stamps))])


def first_value(provider: FileProvider) -> float:
    span = provider.span()
    assert span is not None
    return float(provider.fetch(provider.regions()[0], *span)["value"][0])


def test_a_unit_in_a_header_is_declared_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text, path = rows("time,R (lb/MWh)"), tmp_path / "t.csv"
    with pytest.raises(
        TraceError, match=r"is in lb/MWh by its name, and would be read as g/kWh; declare --unit lb/MWh"
    ):
        opened(path, text).span()
    assert first_value(opened(path, text, unit="lb/MWh")) == pytest.approx(400 * 0.45359237)
    assert not caplog.text
    assert first_value(opened(path, text, unit="g/kWh")) == 400
    assert "is in lb/MWh by its name, and is read as g/kWh, as declared" in caplog.text
    with pytest.raises(TraceError, match="convert its values to MW"):
        opened(path, rows("time,R (GW)"), kind="curtailed_power").span()
    column = {"R (lb/MWh)": {"region": "R", "unit": "lb/MWh"}}
    assert first_value(opened(path, text, columns=column)) == pytest.approx(400 * 0.45359237)


@pytest.mark.parametrize("name", ["Curtailment (%)", "curtailment_pct", "percent curtailed"])
def test_a_share_is_no_curtailed_power(tmp_path: Path, name: str) -> None:
    text, path = rows(f"time,{name}"), tmp_path / "t.csv"
    for given in ({}, {"columns": {name: "R"}}):
        with pytest.raises(
            TraceError, match=r"by its name, and would be read as MW; convert its values to MW, or declare"
        ):
            opened(path, text, kind="curtailed_power", **given).span()
    assert first_value(opened(path, text, kind="curtailed_power", unit="MW")) == 400


def test_a_column_in_the_unit_of_another_kind_is_named_or_refused(tmp_path: Path) -> None:
    text, path = rows("time,Wind - MW,DE"), tmp_path / "t.csv"
    text = "\n".join(line if n == 0 else f"{line},50" for n, line in enumerate(text.split("\n")))
    with pytest.raises(TraceError, match=r"'Wind - MW' is in MW by its name, which does not measure price"):
        opened(path, text, kind="price").span()
    assert opened(path, text, kind="price", columns={"DE": "DE"}).regions() == ["DE"]
    # OASIS publishes prices in a column MW; who names it knows.
    assert opened(path, rows("time,MW"), kind="price", columns={"MW": "NP15"}).regions() == ["NP15"]


@pytest.mark.parametrize("written", ["lb/MWh", "lbs/MWh", "LB/MWH", "lbCO2/MWh", "pounds/MWh"])
@pytest.mark.parametrize("column", ["unit", "Units", "UoM"])
def test_a_column_of_units_is_read_in_every_spelling(tmp_path: Path, column: str, written: str) -> None:
    lines = [f"{START + timedelta(hours=k):%Y-%m-%dT%H:%MZ},R,{400 + k},{written}" for k in range(4)]
    text = "\n".join([f"time,region,value,{column}", *lines])
    assert first_value(opened(tmp_path / "t.csv", text)) == pytest.approx(400 * 0.45359237)


def test_a_column_of_generating_units_is_no_column_of_units(tmp_path: Path) -> None:
    lines = [f"{START + timedelta(hours=k):%Y-%m-%dT%H:%MZ},R,{400 + k},PLANT-{k}" for k in range(4)]
    assert first_value(opened(tmp_path / "t.csv", "\n".join(["time,region,value,Unit", *lines]))) == 400


ENDS = ("interval_end", "Interval End", "HourEnding", "INTERVALENDTIME_GMT", "GMTIntervalEnd", "Datum bis", "to", "end")
OTHERS = (
    "time",
    "SETTLEMENTDATE",
    "weekend",
    "Interval Start",
    "interval (start to end)",
    "Date",
    "trend",
    "point_time",
)


@pytest.mark.parametrize("name", [*ENDS, "UTC Time at End of Hour", "datetime_ending_utc", "period_ended", "endTime"])
def test_a_column_of_interval_ends_is_declared_or_refused(tmp_path: Path, name: str) -> None:
    text, path = rows(f"{name},R"), tmp_path / "t.csv"
    with pytest.raises(TraceError, match="interval ends by its name, and would be read as begins; declare --interval"):
        opened(path, text).span()
    span = opened(path, text, interval="end").span()
    assert span is not None and span[0] == START - timedelta(hours=1)
    assert opened(path, text, interval="begin").span() == (START, START + timedelta(days=1))


@pytest.mark.parametrize("name", ["interval_start", "startTime", "Datum von", "Delivery begin"])
def test_begins_that_are_declared_as_ends_are_warned_of(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, path = rows(f"{name},R"), tmp_path / "t.csv"
    assert opened(path, text, interval="begin").span() and not caplog.text
    assert opened(path, text, interval="end").span()
    assert f"column {name!r} holds interval begins by its name, and is read as ends, as declared" in caplog.text


@pytest.mark.parametrize("name", OTHERS)
def test_other_columns_of_times_are_begins(name: str) -> None:
    require_declared_end("t.csv", name)
    require_declared_zone("t.csv", name, "UTC", declared=False)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("Time (PST)", "America/Los_Angeles for the clock there, or -08:00"),
        ("MTU (CET/CEST)", "Europe/Berlin for the clock there"),
        ("datetime_beginning_ept", "America/New_York for the clock there"),
        ("time_local", "the zone's IANA name, or its offset"),
        ("Eastern Time", "the zone's IANA name, or its offset"),
        ("Local time (Europe/Berlin)", "(traces.timezone): Europe/Berlin, or"),
        ("Date (GMT+2)", "(traces.timezone): GMT+2, or"),
    ],
)
def test_a_zone_in_a_header_is_declared_or_refused(tmp_path: Path, name: str, fix: str) -> None:
    stamps, path = [f"{START + timedelta(hours=k):%Y-%m-%d %H:%M}" for k in range(24)], tmp_path / "t.csv"
    text = "\n".join([f"{name},R", *(f"{stamp},{400 + k}" for k, stamp in enumerate(stamps))])
    with pytest.raises(TraceError, match="times by its name, and would be read as UTC") as caught:
        opened(path, text).span()
    assert fix in str(caught.value)
    assert opened(path, text, timezone="UTC").span() == (START, START + timedelta(days=1))
    aware = text.replace(":00,", ":00Z,")
    assert opened(path, aware).span() == (START, START + timedelta(days=1))


def test_a_header_that_says_utc_of_times_declared_otherwise_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "time_utc,R\n2026-03-01 00:00,400\n2026-03-01 01:00,401\n"
    opened(tmp_path / "t.csv", text).span()
    assert not caplog.text
    opened(tmp_path / "t.csv", text, timezone="Asia/Tokyo").span()
    assert "column 'time_utc' holds UTC by its name, and is read as Asia/Tokyo" in caplog.text


@pytest.mark.parametrize(
    "form",
    [
        "HE{:02}",
        "H{}",
        "{}",
        "{:02}:00",
        "Values_Hour{:02}",
        "hour {}",
        "{0:02}:00-{0:02}:59",
        "{0} - {0}",
        "{:02}:00 PM",
    ],
)
def test_hours_of_a_day_are_no_regions(tmp_path: Path, form: str) -> None:
    first, path = 0 if ":" in form else 1, tmp_path / "t.csv"
    names = [form.format(hour) for hour in range(first, first + 24)]
    days = [f"2026-03-0{day}," + ",".join(str(400 + hour) for hour in range(24)) for day in range(1, 4)]
    with pytest.raises(TraceError, match="hours of a day by their names, and would be read as regions"):
        opened(path, "\n".join([",".join(["Date", *names]), *days])).span()
    mapped = opened(path, "\n".join([",".join(["Date", *names]), *days]), columns={names[3]: "R"})
    assert mapped.regions() == ["R"]


def test_counted_nodes_of_a_finer_signal_are_regions(tmp_path: Path) -> None:
    names = [f"node{n}" for n in range(1, 25)]
    table = pl.DataFrame({"time": [START + timedelta(hours=k) for k in range(24)], **dict.fromkeys(names, 400.0)})
    table.write_parquet(tmp_path / "t.parquet")
    assert FileProvider(FileTraces(path=str(tmp_path / "t.parquet"))).regions() == names


@pytest.mark.parametrize(
    "first", ["2026-03-01T00:00:00Z,410.5", "2026-03-01,R,410.5", "1772323200,410.5", "1/3/26 0:00,4"]
)
def test_a_file_without_a_header_is_refused(tmp_path: Path, first: str) -> None:
    with pytest.raises(TraceError, match="has no header: its first line is"):
        opened(tmp_path / "t.csv", f"{first}\n2026-03-01T01:00:00Z,410.5\n").regions()


def test_excels_line_on_the_separator_is_no_header(tmp_path: Path) -> None:
    assert opened(tmp_path / "t.csv", "sep=,\n" + rows("time,R")).regions() == ["R"]


def test_parts_of_a_second_shift_nothing(tmp_path: Path) -> None:
    stamps = [f"{START + timedelta(hours=k):%Y-%m-%dT%H:%M:%S}.{part}Z" for k, part in enumerate(["123", "4", "007"])]
    provider = opened(tmp_path / "t.csv", "\n".join(["time,R", *(f"{s},{400 + k}" for k, s in enumerate(stamps))]))
    assert provider.span() == (START, START + timedelta(hours=3))


def test_points_that_cannot_part_thousands_are_no_decimal_commas(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"'0.575' in column 'R'.*is not a number; write 1.234,5"):
        opened(tmp_path / "t.csv", rows("time,R").replace("400.0", "0.575"), kind="price", decimal=",").span()


@pytest.mark.parametrize("name", ["time_to", "valid_to", "datetime_to", "endtimestamp", "EndDateTime"])
def test_ends_in_other_words(name: str) -> None:
    with pytest.raises(TraceError, match="holds interval ends by its name"):
        require_declared_end("t.csv", name)


@pytest.mark.parametrize(
    ("above", "skipped"),
    [
        ("# Source: WattTime, exported 2024\n# lat, lon\n", 2),
        ("\nReport, 2024-04-01, NP15\n", 2),
    ],
)
def test_a_second_header_is_named(tmp_path: Path, above: str, skipped: int) -> None:
    text = above + rows("time,R")
    with pytest.raises(TraceError, match=f"'time,R' below it holds neither .* set traces.skip_lines to {skipped} if"):
        opened(tmp_path / "t.csv", text).regions()
    assert first_value(opened(tmp_path / "t.csv", text, skip_lines=skipped)) == 400.0


def test_a_row_of_units_below_the_header_is_named(tmp_path: Path) -> None:
    text = rows("time,R").replace("time,R\n", "time,R\nUTC,gCO2/kWh\n")
    with pytest.raises(TraceError, match=r"'UTC,gCO2/kWh' below it holds .*delete it if it gives units"):
        opened(tmp_path / "t.csv", text).regions()
