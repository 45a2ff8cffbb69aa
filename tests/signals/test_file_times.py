"""Times as people's files have them. Whatever the form, the true hours come out, or one line says why not."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from file_instants import HOUR, hours, read, utc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import FileTraces
from curtail_pipeline.signals.provider import make_provider

# --- clock changes, every convention: a true file is read truly ---

CHANGES = {
    "America/Chicago": ["2021-03-14T08:00", "2024-11-03T07:00"],
    "Europe/Berlin": ["2024-03-31T01:00", "2024-10-27T01:00"],
    "Australia/Adelaide": ["2026-04-04T16:30", "2026-10-03T16:30"],
    "America/Santiago": ["2024-04-07T03:00", "2024-09-08T04:00"],
}


def label(stamp: datetime, zone: str, step: timedelta, form: str) -> str:
    """How a file of that form writes an interval's stamp."""
    shown = (stamp + step if form == "end" else stamp).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    return f"{shown + step if form == 'hour ending' else shown:%Y-%m-%d %H:%M}"


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    zone=st.sampled_from(list(CHANGES)),
    change=st.integers(0, 1),
    minutes=st.sampled_from([5, 15, 30, 60]),
    before=st.integers(2, 5),
    form=st.sampled_from(["begin", "end", "hour ending"]),
    newest_first=st.booleans(),
)
def test_a_file_over_a_clock_change_gives_its_true_hours(
    tmp_path: Path, zone: str, change: int, minutes: int, before: int, form: str, newest_first: bool
) -> None:
    step = timedelta(minutes=minutes)
    first = utc(CHANGES[zone][change]) - before * HOUR
    truth = {first + i * step: float(i + 1) for i in range(9 * 60 // minutes)}
    rows = [f"{label(stamp, zone, step, form)},{value}" for stamp, value in truth.items()]
    path = tmp_path / "t.csv"
    path.write_text("time,A\n" + "\n".join(rows[::-1] if newest_first else rows) + "\n")
    assert read(path, timezone=zone, interval="begin" if form == "begin" else "end") == truth


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    zone=st.sampled_from(list(CHANGES)),
    change=st.integers(0, 1),
    minutes=st.sampled_from([15, 30, 60]),
    form=st.sampled_from(["begin", "end", "hour ending"]),
    gone=st.sets(st.integers(0, 35), max_size=6),
    drop=st.booleans(),
)
def test_with_rows_gone_no_hour_is_ever_wrong(
    tmp_path: Path, zone: str, change: int, minutes: int, form: str, gone: set[int], drop: bool
) -> None:
    step = timedelta(minutes=minutes)
    first = utc(CHANGES[zone][change]) - 4 * HOUR
    truth = {first + i * step: float(i + 1) for i in range(9 * 60 // minutes)}
    rows = [f"{label(s, zone, step, form)},{v}" for i, (s, v) in enumerate(truth.items()) if i not in gone]
    path = tmp_path / "t.csv"
    path.write_text("time,A\n" + "\n".join(rows) + "\n")
    asked = {"interval": "begin" if form == "begin" else "end", "cadence_s": minutes * 60}
    try:
        found = read(path, timezone=zone, ambiguous="drop" if drop else "infer", **asked)
    except TraceError:
        return
    assert found.items() <= truth.items()


def test_rows_without_a_value_may_lie_in_the_skipped_hour(csv: Any) -> None:
    path = csv("time,A", "2022-03-27 01:00,90", "2022-03-27 02:00,", "2022-03-27 03:00,-1", "2022-03-27 04:00,8")
    assert read(path, timezone="Europe/Brussels", kind="price") == hours("2022-03-27T00:00", 90, -1, 8)


def test_a_flag_tells_the_passes_of_a_repeated_hour(csv: Any) -> None:
    rows = ["11/03/2024 01:00:00,Y,3", "11/03/2024 02:00:00,N,4", "11/03/2024 01:00:00,N,2", "11/03/2024 00:00:00,N,1"]
    path = csv("stamp,RepeatedHourFlag,A", *rows)
    with pytest.raises(TraceError, match=r"'Y' in column 'RepeatedHourFlag'.*set traces.fold_column to it"):
        read(path)
    asked = {"timezone": "America/Chicago", "time_format": "%m/%d/%Y %H:%M:%S", "columns": {"A": "A"}}
    assert read(path, fold_column="RepeatedHourFlag", **asked) == hours("2024-11-03T05:00", 1, 2, 3, 4)
    wrong = csv("stamp,DST,A", "2024-11-03 00:00,Y,1", "2024-11-03 01:00,Y,2", "2024-11-03 01:00,N,3")
    with pytest.raises(TraceError, match=r"fold_column marks 2024-11-03 00:00:00, which does not occur twice"):
        read(wrong, timezone="America/Chicago", fold_column="DST", columns={"A": "A"})
    bad = csv("stamp,flag,A", "2024-11-03 00:00,maybe,1")
    with pytest.raises(TraceError, match=r"'maybe' in column 'flag', data row 1, is neither yes nor no"):
        read(bad, timezone="America/Chicago", fold_column="flag", columns={"A": "A"})


def test_a_repeated_hour_that_was_sorted_is_refused(csv: Any) -> None:
    stamps = ["00:30", "01:00", "01:00", "01:30", "01:30", "02:00"]
    path = csv("time,A", *(f"2024-11-03 {stamp},{i}" for i, stamp in enumerate(stamps)))
    with pytest.raises(TraceError, match=r"01:00:00 occurs twice.*set traces.ambiguous to drop"):
        read(path, timezone="America/Chicago")


# --- hours and periods beside a date ---


def numbered(day: datetime, zone: str, minutes: int, by_clock: bool) -> list[tuple[str, int, datetime]]:
    """Date, number and begin of a local day's periods."""
    step, found = timedelta(minutes=minutes), []
    begin = day.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    while (shown := begin.astimezone(ZoneInfo(zone)).replace(tzinfo=None)).date() == day.date():
        number = (shown - day) // step + 1 if by_clock else len(found) + 1
        found.append((f"{day:%Y-%m-%d}", number, begin))
        begin += step
    return found


@pytest.mark.parametrize("day", ["2024-03-31", "2024-10-27", "2024-06-01"])
@pytest.mark.parametrize(("minutes", "by_clock"), [(60, True), (60, False), (30, False), (30, True)])
def test_periods_of_a_day_with_a_clock_change(csv: Any, day: str, minutes: int, by_clock: bool) -> None:
    first = datetime.fromisoformat(day)
    rows = [row for n in (-1, 0, 1) for row in numbered(first + timedelta(days=n), "Europe/London", minutes, by_clock)]
    path = csv("Date,Period,A", *(f"{date},{number},{i}" for i, (date, number, _) in enumerate(rows)))
    truth = {begin: float(i) for i, (_, _, begin) in enumerate(rows)}
    for interval in ("begin", "end"):  # a number says so itself
        assert read(path, timezone="Europe/London", period_s=minutes * 60, interval=interval) == truth
    assert read(path, timezone="Europe/London") == truth


def test_a_table_of_24_hours_has_one_without_a_value_in_spring(csv: Any) -> None:
    rows = [f"2024-03-31,{n},{'' if n == 3 else n}" for n in range(1, 25)]
    path = csv("Date,Hour,A", *rows)
    assert read(path, timezone="Europe/Berlin") == hours("2024-03-30T23:00", 1, 2, *range(4, 25))
    elapsed = [f"2024-03-31,{n},{'' if n == 24 else n}" for n in range(1, 25)]
    assert read(csv("Date,Hour,A", *elapsed), timezone="Europe/Berlin") == hours("2024-03-30T23:00", *range(1, 24))


@pytest.mark.parametrize("zone", ["UTC", "+01:00", "Australia/Brisbane"])
def test_a_long_day_is_none_of_a_zone_whose_clocks_do_not_change(csv: Any, zone: str) -> None:
    counts = {25: 48, 26: 48, 27: 50}
    rows = [f"2024-10-{day},{n},{n}" for day, count in counts.items() for n in range(1, count + 1)]
    path = csv("Date,Settlement Period,A", *rows)
    with pytest.raises(
        TraceError, match=r"2024-10-27 has a number (49|50) in column .* set traces.timezone to the zone"
    ):
        read(path, timezone=zone)
    assert len(read(path, timezone="Europe/London")) == 146


def test_hours_in_every_spelling(csv: Any) -> None:
    expected = hours("2024-04-01T05:00", 1, 2, *([3] * 21), 4)
    values = [1, 2, *([3] * 21), 4]
    for name, spell in (
        ("Hour", str),
        ("HE", "HE{:02}".format),
        ("HourEnding", "{:02}:00".format),
        ("Hour", "{}.0".format),
    ):
        path = csv(f"Date,{name},A", *(f"2024-04-01,{spell(n)},{v}" for n, v in enumerate(values, 1)))
        assert read(path, timezone="America/Chicago") == expected, name
    begins = csv("Date,Hour,A", *(f"04/01/2024,{n},{v}" for n, v in enumerate(values)))
    assert read(begins, timezone="America/Chicago", time_format="%m/%d/%Y") == expected
    times = csv("Date,Time,A", *(f"2024-04-01,{n // 2:02}:{n % 2 * 30:02},{n}" for n in range(48)))
    found = read(times)
    assert len(found) == 48 and found[utc("2024-04-01T13:30")] == 27


def test_the_second_pass_may_be_lettered(csv: Any) -> None:
    labels = ["01", "02", "02X", "03"]
    path = csv("Date,Hour Ending,A", *(f"2024-11-03,{text},{i}" for i, text in enumerate(labels)))
    assert read(path, timezone="America/New_York") == hours("2024-11-03T04:00", 0, 1, 2, 3)


def test_an_hour_column_is_never_a_region(csv: Any) -> None:
    path = csv("time,Hour,A", "2024-04-01 00:00,1,5", "2024-04-01 01:00,2,6")
    provider = make_provider(FileTraces(path=str(path)))
    assert provider.regions() == ["A"]


@pytest.mark.parametrize(
    ("lines", "given", "message"),
    [
        (["Date,Hour,A", "2024-04-01,5,1", "2024-04-01,6,1"], {}, "neither an hour 0 nor an hour 24.*hours_from"),
        (["Date,Hour,A", "2024-04-01,25,1"], {"timezone": "America/Chicago"}, "has a number 25.*has 24 periods"),
        (["Date,Hour,A", "2024-04-01,26,1"], {}, "'26' in column 'Hour', data row 1, is not in 1 to 25"),
        (["Date,Hour,A", "2024-04-01,noon,1"], {}, "'noon' in column 'Hour', data row 1, is no hour"),
        (["Date,Period,A", "2024-04-01,7,1"], {}, "counts up to 7 a day.*period_s"),
        (["Date,Hour,Interval,A", "2024-04-01,1,1,1"], {}, "'Hour', 'Interval' say .* together, beside 'Date'; give"),
        (["Date,Hour,Period,A", "2024-04-01,1,1,1"], {}, "'Hour', 'Period' may all say.*hour_column"),
        (["time,H,A", "2024-04-01T05:00,1,1"], {"hour_column": "H"}, "has times of day already"),
        (["time,A", "2024-04-01 23:00,1", "2024-04-01 24:00,1"], {}, "24:00.*set traces.interval to end"),
    ],
)  # fmt: skip
def test_what_does_not_tell_its_hours_is_refused(
    csv: Any, lines: list[str], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        read(csv(*lines), **given)


# --- forms of a stamp ---


@pytest.mark.parametrize(
    ("stamps", "given"),
    [
        (["2024-04-01T00", "2024-04-01T01"], {}),
        (["2024-04-01T00Z", "2024-04-01T01Z"], {}),
        (["2024-03-31T19-05", "2024-03-31T20-05"], {}),
        (["2024/04/01 00:00:00", "2024/04/01 01:00:00"], {}),
        (["2024/4/1 0:00", "2024/4/1 1:00"], {}),
        (["20240401T00:00-0000", "20240401T01:00-0000"], {}),
        (["2024040100", "2024040101"], {}),
        (["1711929600", "1711933200"], {"timezone": "America/Chicago"}),
        (["1711929600000", "1711933200000"], {"timezone": "America/Chicago"}),
        (["1711929600000000000", "1711933200000000000"], {}),
        (["1711929600.0", "1711933200.0"], {}),
        (["2024-04-01 00:00:00 UTC", "2024-04-01 01:00:00 UTC"], {"timezone": "America/Chicago"}),
        (["2024-04-01 00:00 - 2024-04-01 01:00", "2024-04-01 01:00 - 2024-04-01 02:00"], {"interval": "end"}),
        (["2024-04-01T00:00Z/2024-04-01T01:00Z", "2024-04-01T01:00Z/2024-04-01T02:00Z"], {}),
        (["01/04/2024 00:00 - 01/04/2024 01:00", "01/04/2024 01:00 - 01/04/2024 02:00"],
         {"time_format": "%d/%m/%Y %H:%M - %d/%m/%Y %H:%M", "interval": "end"}),
        (["01/04/2024 00:00 - 01:00", "01/04/2024 01:00 - 02:00"], {"time_format": "%d/%m/%Y %H:%M"}),
        (["04/01/2024 12:00 AM", "04/01/2024 01:00 AM"], {"time_format": "%m/%d/%Y %I:%M %p"}),
        (["04/01/2024 00", "04/01/2024 01"], {"time_format": "%m/%d/%Y %H"}),
        (["2024-04-01 02:00 CEST", "2024-04-01 03:00 CEST"],
         {"time_format": "%Y-%m-%d %H:%M %Z", "timezone": "Europe/Berlin"}),
        (["2024-04-01 02:00 (CEST)", "2024-04-01 03:00 (CEST)"], {"timezone": "Europe/Berlin"}),
        (["2024-04-01 01:00", "2024-04-01 02:00"], {"interval": "end"}),
        (["2024-04-01 10:00", "2024-04-01 11:00"], {"timezone": "+10:00"}),
        (["2024-04-01 10:00", "2024-04-01 11:00"], {"timezone": "UTC+10"}),
        (["2024-03-31 19:00", "2024-03-31 20:00"], {"timezone": "-0500"}),
        (["2024-04-01 05:30", "2024-04-01 06:30"], {"timezone": "+05:30"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_forms_of_a_stamp(csv: Any, stamps: list[str], given: dict[str, Any]) -> None:
    assert read(csv("stamp,A", *(f"{s},{i}" for i, s in enumerate(stamps))), **given) == hours("2024-04-01T00:00", 0, 1)


def test_a_comma_before_parts_of_a_second(csv: Any) -> None:
    rows = [f'"2024-04-01 0{n}:00:00,000",{n}' for n in range(3)]
    assert read(csv("time,A", *rows)) == hours("2024-04-01T00:00", 0, 1, 2)


def test_24_hours_are_the_end_of_the_day(csv: Any) -> None:
    path = csv("time,A", *(f"2024-12-31 {n:02}:00,{n}" for n in range(1, 25)), "2025-01-01 01:00,25")
    assert read(path, interval="end") == hours("2024-12-31T00:00", *range(1, 26))


def test_epochs_in_parquet(tmp_path: Path) -> None:
    pl.DataFrame({"t": [1711929600000, 1711933200000], "A": [0.0, 1.0]}).write_parquet(tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == hours("2024-04-01T00:00", 0, 1)


def test_abbreviations_tell_the_passes_of_a_repeated_hour(csv: Any) -> None:
    stamps = ["01:00 CST", "02:00 CST", "01:00 CDT", "00:00 CDT"]
    path = csv("time,A", *(f"2024-11-03 {stamp},{i}" for i, stamp in enumerate(stamps)))
    assert read(path, timezone="America/Chicago") == hours("2024-11-03T05:00", 3, 2, 0, 1)
    with pytest.raises(TraceError, match=r"the zone 'CST' of '2024-11-03 01:00 CST' is not one of.*America/Chicago"):
        read(path)


@pytest.mark.parametrize(
    ("zone", "message"),
    [
        ("AEST", r"Australia/Brisbane.*\+10:00"),
        ("EST", r"America/New_York.*-05:00"),
        ("CET", r"Europe/Berlin.*\+01:00"),
        ("Europe/Berln", r"did you mean Europe/Berlin\?"),
        ("+25:00", r"unknown timezone '\+25:00'"),
    ],
)
def test_zones_that_are_none_say_what_to_write(csv: Any, zone: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read(csv("time,A", "2024-04-01 00:00,1"), timezone=zone)


def test_the_sign_of_an_etc_zone_is_explained(csv: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = csv("time,A", "2024-04-01 10:00,1", "2024-04-01 11:00,2")
    assert utc("2024-04-01T20:00") in read(path, timezone="Etc/GMT+10")
    assert "10 h behind UTC" in caplog.text and "write -10:00" in caplog.text
    caplog.clear()
    read(path, timezone="-10:00")
    assert not caplog.text


# --- seconds ---


def jittered(step: int, shifts: list[int]) -> list[str]:
    first = utc("2024-04-01T00:00")
    return [f"{first + timedelta(seconds=step * i + shift):%Y-%m-%dT%H:%M:%SZ},{i}" for i, shift in enumerate(shifts)]


def test_stamps_that_jitter_are_moved_to_their_cadence(csv: Any, caplog: pytest.LogCaptureFixture) -> None:
    shifts = [12, 10, 16, 11, 23, 22, 23, 20, 14, 11, 23, 8]
    found = read(csv("time,A", *jittered(300, shifts)))
    assert found == {utc("2024-04-01T00:00") + timedelta(minutes=5 * i): float(i) for i in range(12)}
    assert "moved by up to 23 s to a cadence of 300 s" in caplog.text
    far = csv("time,A", *jittered(300, [12, 10, 16, 71, 23, 22]))
    with pytest.raises(TraceError, match=r"00:16:11Z is 71 s beside its cadence of 300 s.*raise traces.snap_s"):
        read(far)
    assert read(far, snap_s=75) == {utc("2024-04-01T00:00") + timedelta(minutes=5 * i): float(i) for i in range(6)}


def test_stamps_that_jitter_by_a_minute_are_moved_when_that_is_declared(csv: Any) -> None:
    path = csv("time,A", *jittered(300, [i * 37 % 90 for i in range(60)]))
    with pytest.raises(TraceError, match=r"beside its cadence of 300 s.*raise traces.snap_s"):
        read(path)
    assert read(path, snap_s=90) == {utc("2024-04-01T00:00") + timedelta(minutes=5 * i): float(i) for i in range(60)}


def test_a_regular_offset_from_the_minute_stays(csv: Any) -> None:
    found = read(csv("time,A", *jittered(300, [13] * 6)))
    assert min(found) == utc("2024-04-01T00:00:13") and len(found) == 6


def test_stamps_without_any_cadence_are_refused(csv: Any) -> None:
    lines = [f"2024-04-01T{h:02}:{m:02}:{s:02}Z,1" for h, m, s in ((0, 0, 7), (0, 43, 1), (2, 2, 59), (9, 10, 11))]
    with pytest.raises(TraceError, match=r"no cadence: neighbours are .* set traces.cadence_s"):
        read(csv("time,A", *lines))


def test_seconds_apart_over_a_year_make_no_grid_of_seconds(csv: Any) -> None:
    days = [f"2024-{month:02}-01T00:00:{second:02}Z,1" for month in range(1, 13) for second in range(6)]
    with pytest.raises(TraceError, match=r"as little as 1 s apart over 335 days would make a grid of 28\d+ stamps"):
        read(csv("time,A", *days))


# --- times of day beside dates ---

DAY = [datetime(2024, 6, 3) + k * HOUR for k in range(24)]


@pytest.mark.parametrize(
    ("header", "clock", "minutes"),
    [
        ("Hours", "{0:%H} - {1:%H}", 60),
        ("oreb", "{0:%H:%M} - {1:%H:%M}", 15),
        ("Time Block", "{0:%H:%M}-{1:%H:%M}", 15),
        ("Saat", "{0:%H:%M}", 60),
        ("Time", "{0:%-I:%M %p}", 30),
        ("Time", "{0:%-I %p}", 60),
        ("Delivery Start (CET)", "{0:%H:%M:%S}", 60),
    ],
)
def test_times_of_day_and_ranges_of_them(csv: Any, header: str, clock: str, minutes: int) -> None:
    step = timedelta(minutes=minutes)
    stamps = [datetime(2024, 6, 3) + k * step for k in range(2 * 24 * 60 // minutes)]
    rows = [f"{t:%Y-%m-%d},{clock.format(t, t + step)},{400 + k}" for k, t in enumerate(stamps)]
    path = csv(f"Date,{header},A", *rows)
    truth = {t.replace(tzinfo=UTC) - 2 * HOUR: 400.0 + k for k, t in enumerate(stamps)}
    given = {"timezone": "Europe/Berlin", "columns": {"A": "A"}}
    assert read(path, **given, hour_column=header) == truth
    if " - " in clock:
        # A range says where it begins, whatever the setting for stamps.
        assert read(path, **given, hour_column=header, interval="end") == truth


@pytest.mark.parametrize("header", ["oreb", "Delivery Start (CET)", "Von", "Bis"])
def test_rows_of_a_day_that_a_time_of_day_tells_apart_say_so(csv: Any, header: str) -> None:
    """Quarters are more values than other marks have, and none of them is what to choose by."""
    stamps = [datetime(2024, 6, 3) + k * HOUR / 4 for k in range(96)]
    rows = [f"{t:%Y-%m-%d},{t + HOUR / 4:%H:%M},{t:%H:%M},{400 + k}" for k, t in enumerate(stamps)]
    path = csv(f"Date,Ende,{header},A", *rows)
    advised = "Ende" if header == "Bis" else header
    with pytest.raises(TraceError, match=rf"{re.escape(repr(advised))} says the time of day: set traces.hour_column"):
        read(path)
    if advised == header:
        assert len(read(path, hour_column=header)) == 96


def test_rows_are_told_apart_where_ranges_begin(csv: Any) -> None:
    """The two auctions' ranges of an hour and of a quarter are different texts of one begin."""
    rows = [f"{t:%Y-%m-%d %H:%M} - {t + HOUR:%Y-%m-%d %H:%M},Sequence 1,{40 + t.hour}" for t in DAY]
    rows += [
        f"{t:%Y-%m-%d %H:%M} - {t + HOUR / 4:%Y-%m-%d %H:%M},Sequence 2,{50 + t.hour}"
        for day in DAY
        for t in (day + k * HOUR / 4 for k in range(4))
    ]
    path = csv("MTU,Sequence,A", *rows)
    with pytest.raises(TraceError, match=r"'Sequence' tells them apart.*\{Sequence: Sequence 1\}"):
        read(path, columns={"A": "A"})
    assert len(read(path, columns={"A": "A"}, where={"Sequence": "Sequence 1"})) == 24


def test_a_start_with_full_times_is_no_time_of_day(csv: Any) -> None:
    rows = [f"{t:%Y-%m-%d},{t.hour * 2 + 1},{t:%Y-%m-%dT%H:%M}Z,{400 + t.hour}" for t in DAY]
    path = csv("settlementDate,settlementPeriod,startTime,A", *rows)
    assert min(read(path, columns={"A": "A"}, period_s=1800)) == utc("2024-06-03T00:00")
