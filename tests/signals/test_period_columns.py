"""Hours and the intervals of each, in two columns beside a date."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from file_instants import HOUR, read, utc

from curtail_pipeline.errors import TraceError

CHICAGO = ZoneInfo("America/Chicago")


def rows(first: datetime, minutes: int, hours: int, from_hour: int = 1, from_part: int = 1) -> list[str]:
    """By the local clock, with a flag in the second pass of a repeated hour."""
    found = []
    for k in range(hours * 60 // minutes):
        local = (first + k * timedelta(minutes=minutes)).astimezone(CHICAGO)
        again = "Y" if local.fold else "N"
        part = local.minute // minutes + from_part
        found.append(f"{local:%Y-%m-%d},{local.hour + from_hour},{part},{again},{k}")
    return found


@pytest.mark.parametrize("start", ["2021-03-14T06:00", "2024-11-03T05:00", "2024-06-03T05:00"])
@pytest.mark.parametrize("minutes", [5, 15, 30])
@pytest.mark.parametrize("from_hour", [0, 1])
@pytest.mark.parametrize("from_part", [0, 1])
def test_hours_and_their_intervals(csv: Any, start: str, minutes: int, from_hour: int, from_part: int) -> None:
    step = timedelta(minutes=minutes)
    path = csv(
        "DeliveryDate,DeliveryHour,DeliveryInterval,DSTFlag,A", *rows(utc(start), minutes, 26, from_hour, from_part)
    )
    found = read(path, columns={"A": "A"}, timezone="America/Chicago", fold_column="DSTFlag")
    assert found == {utc(start) + k * step: float(k) for k in range(26 * 60 // minutes)}
    if "06" in start:
        # Only what a listing has, and without the flag: the hours of a day still show.
        few = rows(utc(start), minutes, 26, from_hour, from_part)[5 * 60 // minutes :]
        path = csv("Date,Hour,Interval,F,A", *few)
        assert min(read(path, columns={"A": "A"}, timezone="America/Chicago")) == utc(start) + 5 * HOUR


def test_intervals_that_part_no_hour_are_refused(csv: Any) -> None:
    lines = [f"2024-06-03,{hour + 1},{part},{hour}" for hour in range(24) for part in range(1, 6)]
    with pytest.raises(TraceError, match="'Hour', 'Interval' say the time of day together, beside 'Date'; give one"):
        read(csv("Date,Hour,Interval,A", *lines))


def test_hours_that_do_not_show_where_they_count_from_are_asked_for(csv: Any) -> None:
    lines = [f"2024-06-03,{hour},{part},{hour}" for hour in range(9, 17) for part in range(1, 13)]
    path = csv("Date,Hour,Interval,A", *lines)
    with pytest.raises(TraceError, match=r"set traces.hours_from to 1 where the day's first hour is 1"):
        read(path)
    assert min(read(path, hours_from=1)) == datetime(2024, 6, 3, 8, tzinfo=UTC)
    assert min(read(path, hours_from=0)) == datetime(2024, 6, 3, 9, tzinfo=UTC)
