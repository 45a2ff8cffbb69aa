"""What an error advises is followed here, and gives the true hours."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from curtail_pipeline.cli.windows_of_file import windows_of_file
from curtail_pipeline.errors import TraceError

TRUE = ("2024-04-01T10:00:00Z", "2024-04-01T14:00:00Z")
HOUR = timedelta(hours=1)
UTC_DAY = [f"2024-04-01T{hour:02}:00Z" for hour in range(24)]


def table(header: str, rows: list[str]) -> str:
    return "\n".join([header, *rows]) + "\n"


def values(low: float, high: float, factor: float = 1.0) -> list[float]:
    """Of a day; low from 10:00 to 14:00."""
    return [factor * ((low if 10 <= hour < 14 else high) + 0.01 * hour) for hour in range(24)]


def day(low: float = 50, high: float = 400, factor: float = 1.0, name: str = "R") -> str:
    pairs = zip(UTC_DAY, values(low, high, factor), strict=True)
    return table(f"time,{name}", [f"{stamp},{value:.5f}" for stamp, value in pairs])


def local(zone_hours: int, form: str = "%Y-%m-%d %H:%M", ending: str = "") -> str:
    stamps = [datetime(2024, 4, 1, hour) + zone_hours * HOUR for hour in range(24)]
    pairs = zip(stamps, values(50, 400), strict=True)
    return table("time,R", [f"{stamp.strftime(form)}{ending},{value:.2f}" for stamp, value in pairs])


def two(first: str, second: str) -> str:
    """A date with two columns that may say the hour: the first does, the second counts from noon."""
    rows = [f"2024-04-01,{hour + 1},{(hour + 12) % 24 + 1},{value:.2f}" for hour, value in enumerate(values(50, 400))]
    return table(f"Date,{first},{second},R", rows)


HALVES = [f"2024-04-01,{n + 1},{50 if 20 <= n < 28 else 400 + n}" for n in range(48)]
LONG = [f"{s},x,{v:.2f}" for s, v in zip(UTC_DAY, values(50, 400), strict=True)]
FLAGS = [f"{s},R,{v:.2f},{{}}" for s, v in zip(UTC_DAY, values(50, 400), strict=True)]


@pytest.mark.parametrize(
    ("text", "given", "said", "followed"),
    [
        (day(factor=0.001), {}, "declare unit: kg/kWh", {"unit": "kg/kWh"}),
        (day(high=700, factor=1 / 0.45359237), {}, "declare unit: lb/MWh", {"unit": "lb/MWh"}),
        (day(-5, 60), {}, "declare kind: price|--kind price", {"kind": "price"}),
        (day(-5, 60, name="RRP"), {}, "--kind price", {"kind": "price"}),
        (day(50, 120), {}, "--kind marginal_intensity", {"kind": "marginal_intensity"}),
        (day(name="avg CO2"), {}, "--kind marginal_intensity", {"kind": "marginal_intensity"}),
        (table("Date,Period,R", HALVES), {}, "period_s, e.g. 1800", {"period_s": 1800}),
        (two("Hour", "Period"), {}, "hour_column to one of them", {"hour_column": "Hour"}),
        (local(2), {"timezone": "CEST"}, r"write Europe/Berlin .* or \+02:00 where", {"timezone": "Europe/Berlin"}),
        (local(2), {"timezone": "CEST"}, r"write Europe/Berlin .* or \+02:00 where", {"timezone": "+02:00"}),
        (local(10), {"timezone": "AEST"}, "write Australia/Brisbane", {"timezone": "Australia/Brisbane"}),
        (local(2, ending=" CEST"), {}, "e.g. Europe/Berlin", {"timezone": "Europe/Berlin"}),
        (local(0, "%d.%m.%y %H:%M"), {}, "time_format to '%d.%m.%y %H:%M'", {"time_format": "%d.%m.%y %H:%M"}),
        (local(0, "%d-%b-%Y %H:%M"), {}, "time_format to '%d-%b-%Y %H:%M'", {"time_format": "%d-%b-%Y %H:%M"}),
        (local(1), {"interval": "begin", "time_format": "%Y-%m-%d %H"}, "as traces.time_format", {"interval": "end"}),
        (table("id,time,R", [f"{i}x,{row.replace(',x', '')}" for i, row in enumerate(LONG)]), {},
         "traces.time_column", {"time_column": "time"}),
        (table("time,note,R", LONG), {}, "the columns to read in traces.columns", {"columns": {"R": "R"}}),
        (table("time,region,value,estimated", [row.format("maybe") for row in FLAGS]), {}, "write Y or N", "N"),
    ],
)  # fmt: skip
def test_advice(tmp_path: Path, text: str, given: dict[str, Any], said: str, followed: dict[str, Any] | str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(TraceError) as refused:
        windows_of_file(path, policy="threshold", **given)
    assert re.search(said, str(refused.value)), refused.value
    if isinstance(followed, str):
        path.write_text(text.replace("maybe", followed))
        followed = {}
    found = windows_of_file(path, policy="threshold", **(followed if followed else given))
    assert [(window.start, window.end) for window in found.windows] == [
        ("2024-04-01T10:00:00Z", "2024-04-01T14:00:00Z")
    ]


def test_advice_for_irregular_seconds(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    start = datetime(2024, 4, 1, tzinfo=UTC)
    shifts = [0, 400, -300, 200, 500, -100, 350, -450, 30, 250, 20, 100, -60, 40, 333, -111, 222, 10, 75, 5, -31, 9]
    stamps = [start + i * HOUR + timedelta(seconds=shift) for i, shift in enumerate(shifts)]
    rows = [f"{s:%Y-%m-%dT%H:%M:%SZ},{v:.2f}" for s, v in zip(stamps, values(50, 400), strict=False)]
    path.write_text(table("time,R", rows))
    with pytest.raises(TraceError, match=r"beside its cadence of 3600 s.*raise traces.snap_s"):
        windows_of_file(path)
    found = windows_of_file(path, policy="threshold", snap_s=500)
    assert [(window.start, window.end) for window in found.windows] == [
        ("2024-04-01T10:00:00Z", "2024-04-01T14:00:00Z")
    ]


def test_advice_for_stamps_seconds_apart(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"2024-{month:02}-01T00:00:{second:02}Z,400" for month in range(1, 13) for second in range(6)]
    path.write_text(table("time,R", rows))
    with pytest.raises(TraceError, match=r"as little as 1 s apart over 335 days.*set traces.cadence_s"):
        windows_of_file(path)
    found = windows_of_file(path, cadence_s=86_400)
    assert (found.nulls, found.agreeing) == (335 + 1 - 12, 12 * 5)
