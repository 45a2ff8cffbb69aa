"""The last interval of a day, written as 00:00 of that day."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from file_instants import hours, read

from curtail_pipeline.errors import TraceError

DAYS = ["2024-04-01", "2024-04-02"]


def lines(day: str, region: str = "") -> list[str]:
    return [f"{day} {(hour + 1) % 24:02}:00,{region}{400 + hour}" for hour in range(24)]


@pytest.mark.parametrize("order", [1, -1])
def test_a_day_that_ends_at_its_own_begin_is_refused(csv: Any, order: int) -> None:
    rows = [*lines(DAYS[0]), *lines(DAYS[1])][::order]
    for interval in ("end", "begin"):
        with pytest.raises(TraceError, match=r"2024-04-0\d 00:00:00 stands beside .* write .* 24:00"):
            read(csv("time,A", *rows), interval=interval)
    written = [row.replace(" 00:00", " 24:00") for row in rows]
    assert read(csv("time,A", *written), interval="end")[next(iter(hours("2024-04-01", 0)))] == 400


def test_so_is_one_of_dates_beside_hours_and_of_regions_in_turn(csv: Any) -> None:
    rows = [row.replace(" ", ",") for row in lines(DAYS[0])]
    with pytest.raises(TraceError, match="2024-04-01 00:00:00 stands beside 2024-04-01 23:00:00"):
        read(csv("Date,Hour Ending,A", *rows), interval="end")
    both = [row for pair in zip(lines(DAYS[0], "A,"), lines(DAYS[0], "B,"), strict=True) for row in pair]
    with pytest.raises(TraceError, match="2024-04-01 00:00:00 stands beside"):
        read(csv("time,region,value", *both), interval="end")


def test_a_day_in_two_parts_is_none(csv: Any) -> None:
    rows = [f"2024-04-01 {hour:02}:00,{400 + hour}" for hour in (*range(12, 24), *range(12))]
    assert read(csv("time,A", *rows)) == hours("2024-04-01", *range(400, 424))


def test_midnights_in_their_place_are_read(csv: Any, tmp_path: Path) -> None:
    rows = [f"2024-04-01 {hour:02}:00,{400 + hour}" for hour in range(24)]
    assert read(csv("time,A", *rows[::-1])) == hours("2024-04-01", *range(400, 424))


@pytest.mark.parametrize("minutes", [5, 15, 60])
def test_last_seconds_are_interval_ends(csv: Any, minutes: int) -> None:
    step = timedelta(minutes=minutes)
    first = datetime(2024, 4, 1)
    rows = [f"{first + (k + 1) * step - timedelta(seconds=1):%Y-%m-%d %H:%M:%S},{k}" for k in range(24)]
    path = csv("time,A", *rows)
    with pytest.raises(TraceError, match=r"are the last seconds of intervals, .* set traces.interval to end"):
        read(path)
    assert read(path, interval="end") == {(first + k * step).replace(tzinfo=UTC): float(k) for k in range(24)}
    assert min(read(path, interval="begin")).second == 59
