"""What an error about times advises gives true hours."""

import re
from typing import Any

import pytest
from file_instants import HOUR, hours, read, utc

from curtail_pipeline.errors import TraceError

SKIPPED = ["00:00", "01:00", "02:00", "04:00", "05:00", "06:00", "07:00"]


def test_advice_interval_end(csv: Any) -> None:
    path = csv("time,A", *(f"2021-03-14 {stamp},{i}" for i, stamp in enumerate(SKIPPED)))
    with pytest.raises(TraceError, match=r"does not exist in America/Chicago.*set traces.interval to end"):
        read(path, timezone="America/Chicago")
    assert read(path, timezone="America/Chicago", interval="end") == hours("2021-03-14T05:00", *range(7))


def test_advice_standard_time_all_year(csv: Any) -> None:
    path = csv("time,A", *(f"2021-03-14 0{n}:00,{n}" for n in range(8)))
    with pytest.raises(TraceError, match="keep one offset all year") as caught:
        read(path, timezone="America/Chicago")
    found = re.search(r"Set traces.timezone to (\S+)", str(caught.value))
    assert found is not None
    assert read(path, timezone=found[1]) == hours("2021-03-14T06:00", *range(8))


def test_advice_for_a_fixed_offset_on_a_changing_clock(csv: Any) -> None:
    ends = csv("time,A", *(f"2021-03-14 {stamp},{i}" for i, stamp in enumerate(SKIPPED)))
    for zone in ("Etc/GMT+6", "-06:00", "America/Regina"):
        with pytest.raises(TraceError, match=r"skip the hour after .*set traces.timezone to .*America/Chicago with"):
            read(ends, timezone=zone, interval="end")
    begins = ["00:00", "01:00", "03:00", "04:00", "05:00"]
    path = csv("time,A", *(f"2021-03-14 {stamp},{i}" for i, stamp in enumerate(begins)))
    with pytest.raises(TraceError, match=r"e\.g\. America/Chicago\), or, if that hour is really missing"):
        read(path, timezone="-06:00")
    assert read(path, timezone="America/Chicago") == hours("2021-03-14T06:00", *range(5))
    berlin = csv("time,A", *(f"2024-03-31 {n:02}:00,{n}" for n in (0, 1, 3, 4, 5)))
    with pytest.raises(TraceError, match=r"e\.g\. Europe/Berlin, or Europe/London with traces.interval end\)"):
        read(berlin)
    assert read(berlin, timezone="Europe/Berlin") == {
        utc("2024-03-30T23:00") + i * HOUR: float(n) for i, n in enumerate((0, 1, 3, 4, 5))
    }
    assert read(berlin, timezone="Europe/London", interval="end") == {
        utc("2024-03-30T23:00") + i * HOUR: float(n) for i, n in enumerate((0, 1, 3, 4, 5))
    }
    autumn = [f"2024-10-27 {text}" for text in ("01:00", "01:30", "02:00", "02:30", "02:00", "02:30", "03:00")]
    with pytest.raises(TraceError, match=r"repeat the hour from 2024-10-27 02:00:00.*Europe/Berlin"):
        read(csv("time,A", *(f"{stamp},{i}" for i, stamp in enumerate(autumn))))
    whole = csv("time,A", *(f"2021-03-14 {n:02}:00,{'' if n == 2 else n}" for n in range(6)))
    assert set(read(whole, timezone="-06:00").values()) == {0, 1, 3, 4, 5}
    autumn = ["00:00", "01:00", "01:00", "02:00", "03:00"]
    path = csv("time,A", *(f"2024-11-03 {stamp},{i}" for i, stamp in enumerate(autumn)))
    with pytest.raises(TraceError, match=r"repeat the hour from 2024-11-03 01:00:00.*America/Chicago"):
        read(path, timezone="-06:00")
    assert read(path, timezone="America/Chicago") == hours("2024-11-03T05:00", *range(5))


def test_advice_drop(csv: Any) -> None:
    path = csv("time,A", *(f"2024-11-03 {n:02}:00,{n}" for n in range(5)))
    with pytest.raises(TraceError, match=r"set traces\.ambiguous to drop"):
        read(path, timezone="America/Chicago")
    found = read(path, timezone="America/Chicago", ambiguous="drop", cadence_s=3600)
    assert found == {utc("2024-11-03T05:00"): 0, **hours("2024-11-03T08:00", 2, 3, 4)}
    found = read(path, timezone="America/Chicago", ambiguous="drop", interval="end", cadence_s=3600)
    assert found == {utc("2024-11-03T04:00"): 0, **hours("2024-11-03T08:00", 3, 4)}


def test_advice_drop_where_both_ways_of_writing_ends_fit(csv: Any) -> None:
    # By the clock 02:00 is there twice, by the hour that ends then 01:00 is; neither can be.
    stamps = ["00:00", "01:00", "01:00", "02:00", "02:00", "03:00"]
    path = csv("time,A", *(f"2024-11-03 {stamp},{n}" for n, stamp in enumerate(stamps)))
    with pytest.raises(TraceError, match=r"fit what the clock shows .*set traces\.ambiguous to drop"):
        read(path, timezone="America/Chicago", interval="end")
    found = read(path, timezone="America/Chicago", interval="end", ambiguous="drop", cadence_s=3600)
    # What both make of a row stays.
    assert found == {**hours("2024-11-03T04:00", 0, 1), **hours("2024-11-03T07:00", 4, 5)}


def test_advice_time_format(csv: Any) -> None:
    path = csv("time,A", "13/04/2024 00:00,0", "13/04/2024 01:00,1")
    with pytest.raises(TraceError, match=r"set traces.time_format to '%d/%m/%Y %H:%M'$"):
        read(path)
    assert read(path, time_format="%d/%m/%Y %H:%M") == hours("2024-04-13T00:00", 0, 1)
    either = csv("time,A", "03/04/2024 00:00,0")
    with pytest.raises(TraceError, match=r"'%m/%d/%Y %H:%M' \(row 1 is 04 March 2024\), or to '%d/%m/%Y %H:%M'"):
        read(either)


@pytest.mark.parametrize(
    ("stamp", "form"),
    [
        ("Apr 13, 2024 12:00 AM", "%b %d, %Y %I:%M %p"),
        ("04/13/2024 00", "%m/%d/%Y %H"),
        ("13-Apr-24 00:00", "%d-%b-%y %H:%M"),
        ("24/04/13 00:00", "%y/%m/%d %H:%M"),
        ("24-04-13 00:00", "%y-%m-%d %H:%M"),
    ],
)
def test_advice_for_forms_of_exports(csv: Any, stamp: str, form: str) -> None:
    path = csv("time,A", f'"{stamp}",0')
    with pytest.raises(TraceError, match=r"set traces.time_format to '") as caught:
        read(path)
    assert repr(form) in str(caught.value)
    assert list(read(path, time_format=form)) == [utc("2024-04-13T00:00")]


def test_numbers_of_a_spreadsheets_days_are_named(csv: Any) -> None:
    with pytest.raises(TraceError, match=r"'45383.5' in column 'time', data row 1, .* a spreadsheet's number of a day"):
        read(csv("time,A", "45383.5,0", "45383.75,1"))


def test_a_note_below_the_values_is_no_zone(csv: Any) -> None:
    with pytest.raises(TraceError, match="'Source: AEMO' in column 'time', data row 2, is not a time"):
        read(csv("time,A", "2024-04-01T00:00Z,0", "Source: AEMO,"))


def test_a_city_leads_to_its_zone(csv: Any) -> None:
    for city, zone in (("Brisbane", "Australia/Brisbane"), ("los angeles", "America/Los_Angeles")):
        with pytest.raises(TraceError, match=rf"unknown timezone '{city}' \(did you mean {zone}\?\)"):
            read(csv("time,A", "2024-04-01 00:00,0"), timezone=city)


def test_advice_hours_from(csv: Any) -> None:
    path = csv("Date,Hour,A", "2024-04-01,5,0", "2024-04-01,6,1")
    assert read(path, hours_from=1) == hours("2024-04-01T04:00", 0, 1)
    assert read(path, hours_from=0) == hours("2024-04-01T05:00", 0, 1)


def test_bad_formats_are_one_line(csv: Any) -> None:
    path = csv("time,A", "2024-04-01 00:00,0")
    for form in ("%Q", "%", "%H:%M", "%Z %Y-%m-%d %H:%M"):
        with pytest.raises(TraceError, match="time_format") as caught:
            read(path, time_format=form)
        assert "\n" not in str(caught.value)
