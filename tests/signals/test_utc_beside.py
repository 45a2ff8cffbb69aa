"""Local times beside a column that says UTC: a file that tells its own zone is not read as UTC."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from file_instants import HOUR, read

from curtail_pipeline.errors import TraceError

START = datetime(2024, 6, 3)
Form = Callable[[datetime], str]


def naive(hours: float = 0.0) -> Form:
    return lambda stamp: f"{stamp + hours * HOUR:%Y-%m-%d %H:%M:%S}"


def aware(hours: float = 0.0) -> Form:
    return lambda stamp: f"{stamp + hours * HOUR:%Y-%m-%dT%H:%M:%SZ}"


def lines(header: str, *forms: Form, step: timedelta = HOUR, count: int = 30) -> list[str]:
    stamps = [START + k * step for k in range(count)]
    return [header, *(",".join([*(form(stamp) for form in forms), str(400 + k)]) for k, stamp in enumerate(stamps))]


@pytest.mark.parametrize(
    ("header", "forms", "said"),
    [
        ("HourDK,HourUTC,A", (naive(2), naive()), "2 h after what column 'HourUTC'"),
        ("HourSE,HourUTC,A", (naive(1), naive()), "1 h after what column 'HourUTC'"),
        ("Interval,GMTIntervalEnd,A", (naive(-5), naive()), "5 h before what column 'GMTIntervalEnd'"),
        ("Interval,start,A", (naive(-5), aware()), "5 h before what column 'start'"),
        ("stamp,epoch,A", (naive(5.5), lambda t: str(int((t - datetime(1970, 1, 1)).total_seconds()))), "5.5 h after"),
    ],
)
def test_local_times_beside_utc_are_not_read_as_utc(csv: Any, header: str, forms: tuple[Form, ...], said: str) -> None:
    path = csv(*lines(header, *forms))
    given = {"columns": {"A": "A"}}
    with pytest.raises(TraceError, match=f"would be read as UTC, and is {said}.*set traces.time_column to"):
        read(path, **given)
    other = header.split(",")[1]
    assert min(read(path, **given, time_column=other, interval="begin")) == datetime.fromisoformat("2024-06-03T00Z")
    assert min(read(path, **given, timezone="UTC")).replace(tzinfo=None) == datetime.fromisoformat(forms[0](START))


@pytest.mark.parametrize(
    ("header", "forms", "step"),
    [
        ("time,time_utc,A", (naive(), naive()), HOUR),
        ("begin,end,A", (naive(), aware(1)), HOUR),
        ("begin,end_utc,A", (naive(), naive(0.25)), HOUR / 4),
        ("time,published,A", (naive(), aware(2)), HOUR),
        ("time,date_utc,A", (naive(), lambda t: f"{t:%Y-%m-%d}"), HOUR),
        ("time,seen,A", (naive(), lambda t: f"{t + t.hour * 3 * HOUR:%Y-%m-%dT%H:%MZ}"), HOUR),
    ],
)
def test_other_columns_of_times_say_nothing_against_utc(
    csv: Any, header: str, forms: tuple[Form, ...], step: timedelta
) -> None:
    path = csv(*lines(header, *forms, step=step))
    assert min(read(path, columns={"A": "A"})) == datetime.fromisoformat("2024-06-03T00Z")


def test_periods_of_a_local_day_beside_utc(csv: Any) -> None:
    """Settlement periods count from midnight in London."""
    rows = []
    for k in range(96):
        utc = START + k * HOUR / 2
        local = utc + HOUR
        rows.append(f"{local:%Y-%m-%d},{2 * local.hour + local.minute // 30 + 1},{utc:%Y-%m-%dT%H:%MZ},{400 + k}")
    path = csv("settlementDate,settlementPeriod,startTime,A", *rows)
    with pytest.raises(TraceError, match="1 h after what column 'startTime' says in UTC"):
        read(path, columns={"A": "A"})
    found = read(path, columns={"A": "A"}, timezone="Europe/London")
    assert found == read(path, columns={"A": "A"}, time_column="startTime")
    assert min(found) == datetime.fromisoformat("2024-06-03T00Z")


def test_a_declared_zone_that_another_column_contradicts_is_warned_of(
    csv: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = csv(*lines("HourDK,HourUTC,A", naive(2), naive()))
    read(path, columns={"A": "A"}, timezone="Europe/Copenhagen")
    assert not caplog.text
    read(path, columns={"A": "A"}, timezone="Europe/Helsinki")
    assert "read as Europe/Helsinki as declared, is 1 h before what column 'HourUTC' says in UTC" in caplog.text
